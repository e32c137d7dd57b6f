"""The OpenAPI 3.1 document, made from the endpoints, formats and answers that the application uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from timestore_pipeline import __version__
from timestore_pipeline.http.answers import schemas
from timestore_pipeline.http.problems import MEDIA_TYPE
from timestore_pipeline.http.tokens import Scope
from timestore_pipeline.rows.formats.known import MEDIA_TYPES
from timestore_pipeline.segments.identity import MAX_BATCH_ID


@dataclass(frozen=True)
class EndpointSpec:
    """An address, who answers it, and what with: status → name of the answer and what it means.

    One that takes no slot is answered however many requests go on.
    """

    path: str
    method: str
    handler: str
    summary: str
    answers: dict[int, tuple[str, str]]
    problems: tuple[int, ...] = ()
    scopes: tuple[Scope, ...] = ()
    takes_rows: bool = False
    media_type: str = "application/json"
    parameters: tuple[str, ...] = field(default=())
    takes_slot: bool = True


REPLACE_START, REPLACE_END = "replace_start", "replace_end"
"""Parameters of a batch: the first time that it replaces, and the first that it does not replace any more."""

_GUARDED = (401, 403, 503)

ENDPOINTS = (
    EndpointSpec(
        "/datasets/{name}/batches",
        "POST",
        "post_batch",
        "Stage rows as one batch; answered once they are durable",
        {
            201: ("ReceiptAnswer", "The batch is durable, and queries have its rows."),
            200: ("ReceiptAnswer", "The same batch was there before; nothing changed."),
        },
        (400, *_GUARDED, 404, 408, 409, 413, 415, 422, 429),
        (Scope.STAGE,),
        takes_rows=True,
        parameters=("name", REPLACE_START, REPLACE_END),
    ),
    EndpointSpec(
        "/datasets/{name}/batches/{batch_id:path}",
        "GET",
        "get_batch",
        "What became of a batch",
        {200: ("BatchAnswer", "Where its rows are.")},
        (*_GUARDED, 404),
        (Scope.READ, Scope.STAGE),
        parameters=("name", "batch_id"),
    ),
    EndpointSpec(
        "/datasets",
        "GET",
        "get_datasets",
        "The datasets that the token may read",
        {200: ("DatasetsAnswer", "The datasets.")},
        _GUARDED,
        (Scope.READ,),
    ),
    EndpointSpec(
        "/healthz",
        "GET",
        "get_health",
        "Whether batches can be taken",
        {200: ("HealthAnswer", "The ledger answers and there is disk.")},
        (503,),
        takes_slot=False,
    ),
    EndpointSpec(
        "/metrics",
        "GET",
        "get_metrics",
        "Every metric, in the Prometheus text format",
        {200: ("", "The metrics.")},
        _GUARDED,
        (Scope.METRICS,),
        media_type="text/plain",
    ),
    EndpointSpec(
        "/openapi.json", "GET", "get_openapi", "This document", {200: ("", "An OpenAPI 3.1 document.")}, (503,)
    ),
)
"""All that can be asked."""

_PROBLEMS = {
    400: "The Idempotency-Key or the range to replace is not usable, or the client hung up.",
    401: "There is no valid token.",
    403: "The token is not for this; or, where there are no tokens, the Host header does not mean this machine.",
    404: "There is no such dataset or batch.",
    408: "The body came too slowly.",
    409: "The Idempotency-Key is known with other content.",
    413: "Too many bytes or rows.",
    415: "The Content-Type or Content-Encoding is not known.",
    422: "Rows do not fit the dataset or the range that they replace; nothing was staged.",
    429: "The dataset's queue is full.",
    503: "Not now: intake is paused, the disk is full, the ledger is away, or too much is going on.",
}
_RETRIED = (429, 503)

_MOMENT = {
    "in": "query",
    "schema": {"type": "string", "format": "date-time"},
    "description": "With the other end: the rows are all that there are to be of the times from `replace_start` until "
    "before `replace_end`. From the answer on nobody sees an earlier row of them. ISO 8601; without a zone in UTC.",
}
_PARAMETERS: dict[str, dict[str, Any]] = {
    REPLACE_START: {"name": REPLACE_START, **_MOMENT},
    REPLACE_END: {"name": REPLACE_END, **_MOMENT},
    "name": {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "description": "A dataset.",
    },
    "batch_id": {
        "name": "batch_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "description": "The batch's id, percent-encoded.",
    },
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_BATCH_ID,
        "pattern": r"^[!-~]([ -~]*[!-~])?$",
    },
    "description": "Names the batch: the same key with the same body is staged once, however often it is sent. "
    "Made from the body where it is left out.",
}


def openapi_document(*, with_tokens: bool = True) -> dict[str, Any]:
    """Return the document; without ``with_tokens`` it asks for none."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace(":path}", "}")
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, with_tokens=with_tokens)
    components: dict[str, Any] = {"schemas": schemas()}
    if with_tokens:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "timestore", "version": __version__, "description": "Batches of time series, in."},
        "paths": paths,
        "components": components,
    }


def _operation(endpoint: EndpointSpec, *, with_tokens: bool) -> dict[str, Any]:
    responses = {str(status): _answer(endpoint, *answer) for status, answer in endpoint.answers.items()}
    for status in sorted(endpoint.problems):
        responses[str(status)] = _problem(status)
    operation: dict[str, Any] = {
        "operationId": endpoint.handler,
        "summary": endpoint.summary,
        "parameters": [_PARAMETERS[name] for name in endpoint.parameters],
        "responses": responses,
    }
    if endpoint.takes_rows:
        operation["parameters"].append(_KEY)
        operation["requestBody"] = {
            "required": True,
            "content": {media_type: {"schema": format_.body_schema} for media_type, format_ in MEDIA_TYPES.items()},
        }
    if endpoint.scopes and with_tokens:
        operation["security"] = [{"token": []}]
        operation["description"] = "For tokens with the scope " + " or ".join(f"`{scope}`" for scope in endpoint.scopes)
    return operation


def _answer(endpoint: EndpointSpec, name: str, description: str) -> dict[str, Any]:
    if name:
        schema: dict[str, Any] = {"$ref": f"#/components/schemas/{name}"}
    else:
        schema = {"type": "object"} if endpoint.media_type == "application/json" else {"type": "string"}
    answer: dict[str, Any] = {"description": description, "content": {endpoint.media_type: {"schema": schema}}}
    if endpoint.takes_rows:
        answer["headers"] = {
            "Location": {"schema": {"type": "string"}, "description": "Where to ask what became of the batch."}
        }
    return answer


def _problem(status: int) -> dict[str, Any]:
    problem: dict[str, Any] = {
        "description": _PROBLEMS[status],
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}},
    }
    if status in _RETRIED:
        problem["headers"] = {
            "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait before trying again."}
        }
    return problem
