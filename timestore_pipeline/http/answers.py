"""What is answered: each shape as a model, of which the OpenAPI document is made too."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.ledger.batches import BatchPart, BatchState
from timestore_pipeline.model.windows import from_micros
from timestore_pipeline.rows.reasons import UnreadableRow
from timestore_pipeline.staging.receipts import Receipt


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class ReceiptAnswer(_Answer):
    """What became of a batch. It is durable, and queries have its rows."""

    dataset: str
    batch_id: str = Field(description="The Idempotency-Key, else made from the content.")
    rows: int = Field(ge=0, description="Rows that were staged, now or at the first time.")
    quarantined_rows: int = Field(ge=0, description="Rows that no window can hold; they were set aside.")
    dropped_rows: int = Field(ge=0, description="Rows that came too late for a dataset that drops such rows.")
    duplicate: bool = Field(description="Whether the same batch was there before; then nothing changed.")
    windows: list[str] = Field(description="Keys of the windows that have its rows.")

    @classmethod
    def of(cls, receipt: Receipt, batch_id: str) -> ReceiptAnswer:
        """Return a receipt as it is answered to who knows the batch as ``batch_id``."""
        return cls(
            dataset=receipt.dataset,
            batch_id=batch_id,
            rows=receipt.rows,
            quarantined_rows=receipt.quarantined_rows,
            dropped_rows=receipt.dropped_rows,
            duplicate=receipt.duplicate,
            windows=[window.key for window in receipt.windows],
        )


class State(StrEnum):
    """Where rows are."""

    STAGED = "staged"
    PUBLISHED = "published"
    QUARANTINED = "quarantined"


class WindowAnswer(_Answer):
    """The rows of a batch in one window."""

    window: str
    rows: int = Field(ge=0)
    state: State
    published_at: datetime | None


class QuarantineAnswer(_Answer):
    """An open entry of the quarantine."""

    entry: int = Field(description="Its number, as `timestore quarantine show` takes it.")
    kind: str
    rows: int | None
    reason: str
    since: datetime


class BatchAnswer(_Answer):
    """What became of a batch, and where its rows are."""

    dataset: str
    batch_id: str
    state: State = Field(description="`published` once all its rows are in the table.")
    source: str
    rows: int = Field(ge=0)
    quarantined_rows: int = Field(ge=0)
    dropped_rows: int = Field(ge=0)
    staged_at: datetime | None = Field(description="Null where the whole batch is in quarantine.")
    published_at: datetime | None
    windows: list[WindowAnswer]
    quarantine: list[QuarantineAnswer]

    @classmethod
    def of(cls, spec: DatasetSpec, batch_id: str, found: BatchState) -> BatchAnswer:
        """Return a batch's state as it is answered."""
        record = found.record
        entries = [
            QuarantineAnswer(
                entry=entry.id,
                kind=entry.kind.value,
                rows=entry.rows,
                reason=entry.reason,
                since=from_micros(entry.created_at),
            )
            for entry in found.quarantined
        ]
        return cls(
            dataset=spec.name,
            batch_id=batch_id,
            state=_state(found),
            source=record.source if record else found.quarantined[0].source,
            rows=record.rows if record else 0,
            quarantined_rows=record.quarantined_rows if record else 0,
            dropped_rows=record.dropped_rows if record else 0,
            staged_at=_moment(record.staged_at if record else None),
            published_at=_moment(record.published_at if record else None),
            windows=[
                WindowAnswer(
                    window=spec.window_at(part.window_start).key,
                    rows=part.rows,
                    state=_state_of_part(part),
                    published_at=_moment(part.published_at),
                )
                for part in found.parts
            ],
            quarantine=entries,
        )


class DatasetAnswer(_Answer):
    """A dataset: its columns, and what waits to be published."""

    name: str
    description: str
    time_column: str
    window: str = Field(description="How long a window is: `hour`, `day` or `month`.")
    columns: dict[str, str] = Field(
        description="Column → type; empty until a first batch tells, where none are declared."
    )
    staged_batches: int = Field(ge=0, description="Batches that wait to be published.")
    max_pending: int = Field(ge=0, description="Most of them; 0: no limit.")
    intake_paused: bool


class DatasetsAnswer(_Answer):
    """The datasets that the token may read."""

    datasets: list[DatasetAnswer]


class HealthAnswer(_Answer):
    """Whether batches can be taken."""

    ledger: str
    disk: str


class BadRow(_Answer):
    """A row that does not fit."""

    row: int = Field(ge=1, description="Its number in the body, from 1; a header line is not counted.")
    reason: str

    @classmethod
    def of(cls, unreadable: UnreadableRow) -> BadRow:
        """Return what is answered to a row that cannot be read."""
        return cls(row=unreadable.row, reason=str(unreadable))


class ProblemAnswer(BaseModel):
    """Problem details (RFC 9457)."""

    type: str = Field(description="`urn:timestore:problem:…`: which problem, for programs.")
    title: str
    status: int
    detail: str = Field(description="What is wrong and what to do, for people.")
    rows: list[BadRow] | None = Field(default=None, description="With 422: the first rows that do not fit.")
    more_rows: bool | None = Field(default=None, description="With 422: whether there are more of them.")


def schemas() -> dict[str, Any]:
    """Return the JSON schemas of all answers, by name."""
    from pydantic.json_schema import models_json_schema

    models = (ReceiptAnswer, BatchAnswer, DatasetsAnswer, HealthAnswer, ProblemAnswer)
    _, document = models_json_schema(
        [(model, "serialization") for model in models], ref_template="#/components/schemas/{model}"
    )
    return document["$defs"]


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else from_micros(micros)


def _state_of_part(part: BatchPart) -> State:
    if part.published_at is not None:
        return State.PUBLISHED
    return State.QUARANTINED if part.quarantine_id is not None else State.STAGED


def _state(found: BatchState) -> State:
    record = found.record
    if record is None or record.quarantined_at is not None or (not record.rows and record.quarantined_rows):
        return State.QUARANTINED
    return State.STAGED if record.published_at is None else State.PUBLISHED
