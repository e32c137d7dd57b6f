"""The application: what is asked at which address, by whom, and what is answered."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, urlsplit

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sqlalchemy import Connection
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import DatasetRemoved, DeclarationChanged, TimestoreError, UnknownDataset
from timestore_pipeline.http.answers import BatchAnswer, DatasetAnswer, DatasetsAnswer, HealthAnswer, ReceiptAnswer
from timestore_pipeline.http.bodies import Room, drain, read_body
from timestore_pipeline.http.decoding import format_of, sweep_spool
from timestore_pipeline.http.intake import Intake, Posted
from timestore_pipeline.http.meter import OTHER, Meter
from timestore_pipeline.http.openapi import ENDPOINTS, REPLACE_END, REPLACE_START, EndpointSpec, openapi_document
from timestore_pipeline.http.problems import Problem, ProblemResponse, later, problem_of
from timestore_pipeline.http.shares import Remembered, Slots, Turns
from timestore_pipeline.http.tokens import Scope, Token, Tokens
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.batches import batch_state
from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.ledger.limits import all_pauses, pause_of
from timestore_pipeline.ledger.queue import pending_batches
from timestore_pipeline.metrics import exposition
from timestore_pipeline.model.windows import TimeRange
from timestore_pipeline.segments.identity import MAX_BATCH_ID, Client
from timestore_pipeline.staging.frame_rows import range_of
from timestore_pipeline.staging.room import check_disk
from timestore_pipeline.timestore import Timestore

log = log_named(__name__)

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_KEY = re.compile(rf"[\x20-\x7e]{{1,{MAX_BATCH_ID}}}")
_THREADS_THAT_LOOK = 4
_HEALTH_SECONDS = 5.0
_HEALTH_REMEMBERED_SECONDS = 1.0


@dataclass(frozen=True)
class _Caller:
    """Who asks; no token where none are asked for."""

    token: Token | None

    @property
    def name(self) -> str | None:
        return self.token.name if self.token else None

    @property
    def source(self) -> str:
        """What its batches say that they come from."""
        return f"HTTP by {self.token.name}" if self.token else "HTTP"

    def client(self, key: str | None) -> Client | None:
        """Whose batch it is that has ``key``; None where everybody is the same."""
        return Client(self.source, self.token.key_space or self.token.name, key) if self.token else None


class Api:
    """What is behind the addresses.

    Args:
        timestore: the installation; it must stay open for longer.
        tokens: who may do what; with none of them everybody may do everything, from this machine.
    """

    def __init__(self, timestore: Timestore, tokens: Tokens) -> None:
        settings = timestore.store.settings
        self._timestore = timestore
        self._settings = settings
        self._tokens = tokens
        self._room = Room(settings.http_max_held_bytes)
        self._slots = Slots(settings.http_max_requests, settings.http_max_requests_per_token)
        self._meter = Meter(_named(each) for each in ENDPOINTS)
        self._looking = CapacityLimiter(_THREADS_THAT_LOOK)
        self._looks = Turns(_THREADS_THAT_LOOK // 2)
        self._scraping = CapacityLimiter(1)
        self._looking_at_health = CapacityLimiter(1)
        self._intake = Intake(timestore)
        self._health = Remembered(self._look_at_health, _HEALTH_REMEMBERED_SECONDS)

    async def post_batch(self, request: Request) -> Response:
        """Stage the body as one batch, and answer once it is durable."""
        name = request.path_params["name"]
        caller = self._allowed(request, [Scope.STAGE], name)
        self._known(name)
        format_ = format_of(request.headers.get("content-type", ""))
        key = _idempotency_key(request)
        replaces = _range_to_replace(request, name)
        with self._room.holding(caller.name) as holding:
            body = await read_body(
                request, holding, self._settings.http_max_body_bytes, self._settings.http_body_seconds
            )
            posted = Posted(
                dataset=name,
                key=key,
                replaces=replaces,
                source=caller.source,
                client=caller.client(key),
                format=format_,
                encoding=request.headers.get("content-encoding", ""),
                body=body,
                holding=holding,
            )
            receipt = await self._intake.stage(posted, self._settings.http_request_seconds)
        # By its own key a client finds it again, and nobody else does.
        batch_id = key or receipt.batch_id
        where = f"/datasets/{name}/batches/{quote(batch_id, safe='')}"
        answer = ReceiptAnswer.of(receipt, batch_id).model_dump(mode="json")
        return JSONResponse(answer, 200 if receipt.duplicate else 201, {"Location": where})

    async def get_batch(self, request: Request) -> Response:
        """Say what became of a batch."""
        name, batch_id = request.path_params["name"], request.path_params["batch_id"]
        caller = self._allowed(request, [Scope.READ, Scope.STAGE], name)
        client = caller.client(batch_id)
        self._known(name)
        spec = self._timestore.datasets[name]
        ids = [client.batch_id, batch_id] if client else [batch_id]

        def look() -> BatchAnswer:
            with self._timestore.store.ledger.read() as tx:
                states = (batch_state(tx, name, each) for each in ids if each is not None and _is_batch_id(each))
                found = next(filter(None, states), None)
            if found is None:
                raise Problem(404, "unknown-batch", f"dataset {name!r} has no batch of that id, or not any more")
            return BatchAnswer.of(spec, batch_id, found)

        return JSONResponse((await self._look(caller, look)).model_dump(mode="json"))

    async def get_datasets(self, request: Request) -> Response:
        """List the datasets that the caller may read."""
        caller = self._allowed(request, [Scope.READ])
        specs = [
            spec for spec in self._timestore.datasets.values() if caller.token is None or caller.token.covers(spec.name)
        ]

        def look() -> DatasetsAnswer:
            store = self._timestore.store
            with store.ledger.read() as tx:
                policies, pauses = store.policies(tx), all_pauses(tx)
                return DatasetsAnswer(
                    datasets=[
                        DatasetAnswer(
                            name=spec.name,
                            description=spec.description,
                            time_column=spec.time.column,
                            window=spec.window.value,
                            columns=_columns_now(tx, spec),
                            staged_batches=pending_batches(tx, spec.name),
                            max_pending=policies[spec.name].limits.max_pending,
                            intake_paused=pause_of(pauses, spec.name) is not None,
                        )
                        for spec in specs
                    ]
                )

        return JSONResponse((await self._look(caller, look)).model_dump(mode="json"))

    async def get_health(self, _request: Request) -> Response:
        """Say whether batches can be taken: the ledger answers, and there is disk.

        Whoever asks while another one looks, or a moment after, gets the same answer: asking costs nothing.
        """
        await self._health.now()
        return JSONResponse(HealthAnswer(ledger="ok", disk="ok").model_dump(mode="json"))

    async def _look_at_health(self) -> None:
        def look() -> None:
            with self._timestore.store.ledger.read() as tx:
                all_pauses(tx)
            check_disk(self._timestore.store)

        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                await run_sync(look, limiter=self._looking_at_health, abandon_on_cancel=True)
        except TimeoutError:
            raise later(503, "ledger-away", f"the ledger did not answer within {_HEALTH_SECONDS:g} s", 5) from None

    async def get_metrics(self, request: Request) -> Response:
        """Every metric, in the Prometheus text format."""
        self._allowed(request, [Scope.METRICS])
        text = await run_sync(exposition, self._timestore.store, limiter=self._scraping)
        return Response(text + self._meter.exposition(), headers={"Content-Type": _METRICS_TYPE})

    async def get_openapi(self, _request: Request) -> Response:
        """The OpenAPI document of all this."""
        return JSONResponse(openapi_document(with_tokens=self._tokens.required))

    def application(self) -> Starlette:
        """Return the application. At its end all that was posted is answered."""

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            await run_sync(sweep_spool, self._timestore.store)
            yield
            await run_sync(self._intake.close)

        routes = [
            Route(
                each.path,
                self._answering(getattr(self, each.handler), each),
                methods=[each.method],
            )
            for each in ENDPOINTS
        ]

        async def unrouted(_request: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            kind, detail = _UNROUTED.get(error.status_code, ("refused", error.detail))
            self._meter.answered(OTHER, error.status_code, 0.0, kind)
            return Problem(error.status_code, kind, detail, error.headers or {}).response()

        return Starlette(routes=routes, exception_handlers={HTTPException: unrouted}, lifespan=lifespan)

    def _answering(self, endpoint: Endpoint, spec: EndpointSpec) -> Endpoint:
        """Return an endpoint that answers whatever happens, and says so in the log."""
        name = _named(spec)

        async def answer(request: Request) -> Response:
            started = time.monotonic()
            with self._meter.running():
                try:
                    slot = self._slots.slot() if spec.takes_slot else None
                except Problem as problem:
                    response = problem.response()
                else:
                    request.state.slot = slot
                    try:
                        response = await _attempt(endpoint, request)
                    finally:
                        if slot is not None:
                            slot.give_back()
            if response.status_code >= 400 and not await drain(request):
                response.headers["Connection"] = "close"
            path = request.scope.get("raw_path", b"").decode("ascii", "backslashreplace")
            spent = time.monotonic() - started
            kind = response.kind if isinstance(response, ProblemResponse) else None
            self._meter.answered(name, response.status_code, spent, kind)
            log.info("%s %s %s %.0f ms", request.method, path, response.status_code, spent * 1_000)
            return response

        return answer

    async def _look(self, caller: _Caller, look: Callable[[], T]) -> T:
        async with self._looks.of(caller.name):
            return await run_sync(look, limiter=self._looking)

    def _known(self, dataset: str) -> None:
        if dataset not in self._timestore.datasets.declared:
            raise UnknownDataset(dataset, ())

    def _allowed(self, request: Request, scopes: Sequence[Scope], dataset: str | None = None) -> _Caller:
        """Return who asks.

        Raises:
            Problem: there is no valid token (401), it is not for this (403), or it has as many requests going on as it
                may (503).
        """
        if not self._tokens.required:
            # A page in a browser on this machine may have a name of its own made to mean this server.
            if _host_name(request) not in LOOPBACK_NAMES:
                raise Problem(403, "wrong-host", "without tokens this server answers to localhost and 127.0.0.1 only")
            return _Caller(None)
        scheme, _, presented = request.headers.get("authorization", "").partition(" ")
        token = self._tokens.find(presented.strip()) if scheme.lower() == "bearer" else None
        if token is None:
            error = ', error="invalid_token"' if scheme else ""
            raise Problem(
                401,
                "unauthorized",
                "send a valid token as 'Authorization: Bearer …'",
                {"WWW-Authenticate": f'Bearer realm="timestore"{error}'},
            )
        if not token.allows(scopes, dataset):
            raise Problem(403, "forbidden", f"the token {token.name!r} is not for this")
        request.state.slot.of(token.name)
        return _Caller(token)


_UNROUTED = {
    404: ("not-found", "there is nothing at this address; see /openapi.json"),
    405: ("wrong-method", "this address does not know the method; see /openapi.json"),
}


def _named(endpoint: EndpointSpec) -> str:
    return f"{endpoint.method} {endpoint.path}"


async def _attempt(endpoint: Endpoint, request: Request) -> Response:
    try:
        return await endpoint(request)
    except Problem as problem:
        return problem.response()
    except TimestoreError as error:
        problem = problem_of(error)
        if problem.status >= 500:
            log.warning("%s: %s", request.method, error)
        return problem.response()
    except OSError as error:
        log.warning("%s could not be answered: %s", request.method, error)
        return later(503, "not-written", f"the server could not do it: {error.strerror or 'see its log'}", 5).response()
    except Exception:
        log.exception("%s could not be answered", request.method)
        return Problem(500, "failed", "the server failed; see its log").response()


def _host_name(request: Request) -> str | None:
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return None


def _idempotency_key(request: Request) -> str | None:
    """Return the caller's key, without the quotes that the header's draft standard wants around it.

    Raises:
        Problem: it is given twice, empty, too long or has characters that no key has (400).
    """
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    key = keys[0].strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if len(keys) > 1 or not _KEY.fullmatch(key):
        raise Problem(400, "bad-key", f"send one Idempotency-Key of 1 to {MAX_BATCH_ID} printable ASCII characters")
    return key


def _range_to_replace(request: Request, dataset: str) -> TimeRange | None:
    """Return the range of times of which the body has all rows; None where it comes to what is there.

    Raises:
        Problem: one end of it is given without the other, or twice (400).
        BadRange: they are no range of times.
    """
    start, end = (request.query_params.getlist(name) for name in (REPLACE_START, REPLACE_END))
    if not start and not end:
        return None
    if len(start) != 1 or len(end) != 1:
        raise Problem(400, "bad-range", f"give both {REPLACE_START} and {REPLACE_END}, once each, or neither")
    return range_of(dataset, (start[0], end[0]))


def _is_batch_id(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _columns_now(tx: Connection, spec: DatasetSpec) -> dict[str, str]:
    """Return column → type; nothing for a dataset that has been refused since the server was started."""
    try:
        columns = dataset_columns(tx, spec)
    except (DeclarationChanged, DatasetRemoved):
        return {}
    return {column.name: column.type for column in columns or ()}
