"""Late rows: those whose window had ended when they were staged. A window closes at its end plus the lateness.

Judged once per segment, while it is written, against the clock of the process that writes it: one moment for all its
rows, and no window that closes or opens again in between. Only what the rows are refused for is decided here; late
rows that are accepted go to their own windows like any others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.ledger.counters import LATE_BATCHES, LATE_ROWS, count
from timestore_pipeline.segments.segment import WrittenSegment


class LateOutcome(StrEnum):
    """What became of late rows: the label ``outcome`` of the series that count them."""

    WITHIN_LATENESS = "within_lateness"
    """Their window was still open."""
    ACCEPTED = "accepted"
    """Their window was closed, and they were staged all the same."""
    QUARANTINED = "quarantined"
    DROPPED = "dropped"


@dataclass(frozen=True)
class LateRows:
    """How many late rows of how many batches."""

    rows: int
    batches: int


def late_rows(spec: DatasetSpec, written: WrittenSegment) -> dict[LateOutcome, LateRows]:
    """Return what a segment had of late rows, by outcome; only outcomes that there were."""
    first_open = spec.first_open_window(written.judged_at).start_micros
    found: dict[LateOutcome, dict[int, int]] = {outcome: {} for outcome in LateOutcome}

    def add(outcome: LateOutcome, rows_by_batch: Mapping[int, int]) -> None:
        for ordinal, rows in rows_by_batch.items():
            found[outcome][ordinal] = found[outcome].get(ordinal, 0) + rows

    for piece in written.slices:
        if piece.window_start < first_open:
            add(LateOutcome.ACCEPTED, piece.batch_rows)
        elif spec.window_at(piece.window_start).end_micros <= written.judged_at:
            add(LateOutcome.WITHIN_LATENESS, piece.batch_rows)
    add(LateOutcome.DROPPED, written.dropped)
    for ordinal, parts in written.refused.items():
        rows = sum(part.rows for part in parts if part.late)
        if rows:
            add(LateOutcome.QUARANTINED, {ordinal: rows})
    return {outcome: LateRows(sum(by_batch.values()), len(by_batch)) for outcome, by_batch in found.items() if by_batch}


def count_late_rows(tx: Connection, spec: DatasetSpec, written: WrittenSegment) -> None:
    """Count the late rows of a segment, in the transaction that acknowledges it."""
    for outcome, late in late_rows(spec, written).items():
        count(tx, LATE_ROWS, spec.name, outcome.value, late.rows)
        count(tx, LATE_BATCHES, spec.name, outcome.value, late.batches)
