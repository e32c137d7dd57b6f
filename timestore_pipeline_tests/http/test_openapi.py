"""The OpenAPI document says what the server does: held against it by schemathesis."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from timestore_pipeline.http.openapi import ENDPOINTS, openapi_document
from timestore_pipeline.rows.formats.known import MEDIA_TYPES
from timestore_pipeline_tests.sampling import examples

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@schemathesis.serializer(*(media_type for media_type in MEDIA_TYPES if media_type != "application/json"))
def as_it_is(_context: object, value: object) -> bytes:
    """Texts and bytes go out as they were generated."""
    content = getattr(value, "data", value)
    return content if isinstance(content, bytes) else str(content).encode("utf-8", "surrogatepass")


_SLOW = (hypothesis.HealthCheck.filter_too_much, hypothesis.HealthCheck.data_too_large)
_OPERATIONS = [
    found.ok()
    for found in schemathesis.openapi.from_dict(openapi_document(with_tokens=False)).get_all_operations()
    if isinstance(found, Ok)
]


@pytest.mark.long
@pytest.mark.parametrize("operation", _OPERATIONS, ids=lambda operation: operation.label)
def test_the_server_does_what_the_document_says(operation, shared):
    @hypothesis.settings(max_examples=examples(25), suppress_health_check=_SLOW, database=None)
    @hypothesis.given(case=operation.as_strategy())
    def ask(case) -> None:
        case.call_and_validate(base_url=shared.url, checks=_CHECKS)

    ask()


def test_every_operation_is_asked():
    assert len(_OPERATIONS) == len(ENDPOINTS)


def test_the_document_has_every_address_and_format(client):
    document = client.get("/openapi.json").json()

    assert document == openapi_document(with_tokens=False)
    assert document["openapi"].startswith("3.1")
    posted = document["paths"]["/datasets/{name}/batches"]["post"]
    assert set(posted["requestBody"]["content"]) == set(MEDIA_TYPES)
    assert {"200", "201", "401", "403", "404", "409", "413", "415", "422", "429", "503"} <= set(posted["responses"])
