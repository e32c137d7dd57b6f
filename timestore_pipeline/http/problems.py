"""What a request is refused with: problem details (RFC 9457), and which error of the library leads to which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from timestore_pipeline.errors import (
    BadRange,
    BatchConflict,
    BatchIdReserved,
    BatchRejected,
    DatasetRemoved,
    DeclarationChanged,
    DiskFull,
    GuardrailExceeded,
    IntakePaused,
    LedgerError,
    SegmentNotWritten,
    SettingsError,
    StagingQueueFull,
    StorageError,
    TimestoreError,
    TooManyIngests,
    UnknownDataset,
    WriterClosed,
    WriterFull,
)
from timestore_pipeline.http.answers import BadRow

MEDIA_TYPE = "application/problem+json"


class ProblemResponse(JSONResponse):
    """A response that is no success, and which."""

    kind: str


@dataclass
class Problem(Exception):
    """An answer that is no success. ``kind`` tells a program which; ``detail`` tells a person what to do."""

    status: int
    kind: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    def response(self) -> ProblemResponse:
        """Return it as a response."""
        body = {
            "type": f"urn:timestore:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        response = ProblemResponse(body, self.status, dict(self.headers), MEDIA_TYPE)
        response.kind = self.kind
        return response


def later(status: int, kind: str, detail: str, seconds: float) -> Problem:
    """Return a refusal for now."""
    return Problem(status, kind, detail, {"Retry-After": str(max(1, round(seconds)))})


def too_large(detail: str) -> Problem:
    """Return the answer to a body of too many bytes or rows."""
    return Problem(413, "too-large", detail)


def rejected(detail: str, rows: Sequence[BadRow] = (), *, more_rows: bool = False) -> Problem:
    """Return the answer to rows that do not fit the dataset: ``rows`` are the first of them."""
    named = [row.model_dump() for row in rows]
    return Problem(422, "rows-rejected", detail, more={"rows": named, "more_rows": more_rows})


_SOON = 1.0
_A_FLUSH = 5.0
_AN_OPERATOR = 60.0

_FOR_NOW: tuple[tuple[type[TimestoreError], int, str, float], ...] = (
    (StagingQueueFull, 429, "queue-full", _A_FLUSH),
    (GuardrailExceeded, 429, "queue-full", _A_FLUSH),
    (TooManyIngests, 429, "busy", _SOON),
    (WriterFull, 429, "busy", _SOON),
    (IntakePaused, 503, "intake-paused", _AN_OPERATOR),
    (DiskFull, 503, "disk-full", _AN_OPERATOR),
    (LedgerError, 503, "ledger-away", _A_FLUSH),
    (DeclarationChanged, 503, "dataset-refused", _AN_OPERATOR),
    (DatasetRemoved, 503, "dataset-refused", _AN_OPERATOR),
    (WriterClosed, 503, "shutting-down", _SOON),
    (SegmentNotWritten, 503, "not-written", _A_FLUSH),
    (StorageError, 503, "not-written", _A_FLUSH),
)


def problem_of(error: TimestoreError) -> Problem:
    """Return the answer to a request in which the library raised ``error``."""
    for kind, status, name, seconds in _FOR_NOW:
        if isinstance(error, kind):
            return later(status, name, str(error), seconds)
    if isinstance(error, UnknownDataset):
        return Problem(404, "unknown-dataset", f"there is no dataset {error.dataset!r}")
    if isinstance(error, BadRange):
        return Problem(400, "bad-range", str(error))
    if isinstance(error, BatchConflict):
        return Problem(409, "batch-conflict", str(error))
    if isinstance(error, BatchIdReserved):
        return Problem(400, "bad-key", str(error))
    if isinstance(error, BatchRejected):
        return rejected(str(error))
    if isinstance(error, SettingsError):
        return later(503, "misconfigured", "the server is not usable as it is configured; see its log", _AN_OPERATOR)
    return Problem(500, "failed", str(error))
