"""Acknowledging a written segment in the ledger, and what the caller gets for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import BatchConflict, BatchIdReserved, BatchRejected, CommitUnknown, GuardrailExceeded
from timestore_pipeline.ledger.batches import (
    BatchOrder,
    KnownBatch,
    NewSegment,
    acknowledge,
    known_batches,
    windows_of_batches,
)
from timestore_pipeline.ledger.corrected_windows import mark_windows, windows_with_files
from timestore_pipeline.ledger.corrections import NewCorrection, acknowledge_correction, is_acknowledged
from timestore_pipeline.ledger.counters import DIRECT_WRITE_BATCHES, RETRIED_BATCHES, count
from timestore_pipeline.ledger.datasets import claim_positions, fix_declaration, lock_dataset, schema_and_corrections
from timestore_pipeline.ledger.quarantine import (
    NewEntry,
    QuarantineEntry,
    open_entries,
    resolve_staged_files,
    set_aside,
)
from timestore_pipeline.ledger.schemas import SchemaStep, add_versions
from timestore_pipeline.ledger.states import CorrectionKind, QuarantineKind
from timestore_pipeline.ledger.tables import last_claimed_sequence
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import Window, from_micros
from timestore_pipeline.segments.corrections import keep_correction
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.segments.identity import MAX_BATCH_ID
from timestore_pipeline.segments.judging import reason_in_words
from timestore_pipeline.segments.segment import WrittenSegment
from timestore_pipeline.staging.lateness import count_late_rows
from timestore_pipeline.staging.room import (
    check_guardrails,
    check_pause,
    check_quarantine,
    check_queue,
    check_shares,
    count_breaches,
    guardrail_breaches,
    log_breaches,
)
from timestore_pipeline.store import Store

_SHOWN = 100


@dataclass(frozen=True)
class Receipt:
    """What became of one batch. Once the caller has it, the batch is in the ledger.

    ``rows`` were staged, now or, for a ``duplicate``, at the first time; ``quarantined_rows`` were set aside,
    ``dropped_rows`` came too late for a dataset that drops such rows.
    """

    dataset: str
    batch_id: str
    source: str
    rows: int
    quarantined_rows: int
    duplicate: bool
    windows: tuple[Window, ...]
    segment_id: str | None
    dropped_rows: int = 0


def check_texts(dataset: str, batch: IncomingBatch) -> IncomingBatch:
    """Return a batch whose id and source every ledger can hold, and a person read.

    Raises:
        BatchRejected: its id or source is no text, too long, or has characters that are none.
    """
    shown = repr(batch.source)[:_SHOWN]
    for what, text in (("batch id", batch.batch_id), ("source", batch.source)):
        if not isinstance(text, str):
            raise BatchRejected(dataset, shown, f"its {what} is no text but {type(text).__name__}")
        if "\0" in text or (not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)):
            raise BatchRejected(
                dataset, shown, f"its {what} {text[:_SHOWN]!r} has characters that are not UTF-8, or nulls"
            )
    if len(batch.batch_id) > MAX_BATCH_ID:
        raise BatchRejected(
            dataset, shown, f"its batch id has {len(batch.batch_id)} characters; {MAX_BATCH_ID} are the most"
        )
    return batch


def reserved_id(dataset: str, batch: IncomingBatch) -> BatchIdReserved:
    """Return what the caller of a new batch is told whose id is of those that we give."""
    return BatchIdReserved(dataset, repr(batch.source)[:_SHOWN], batch.batch_id)


class StagedMeanwhile(Exception):
    """A segment was overtaken: ask the ledger, and write it again.

    Another process was first with some of its batches, with other columns or limits, or swept the file as an orphan.
    """


@dataclass(frozen=True)
class Premises:
    """What a segment was written on, which may be otherwise by now.

    Its columns are those of version ``base`` in the ledger (0: none) with what is to be taken up (``steps``).
    ``order`` is where its rows stand among others, where they keep the places that they had; else ``corrections`` is
    the number of the last correction, after which they come. ``in_turn`` is False where it was written out of turn,
    because the dataset had no limit of turns.
    """

    base: int
    steps: tuple[SchemaStep, ...] = ()
    order: BatchOrder | None = None
    in_turn: bool = True
    corrections: int = 0


@dataclass(frozen=True)
class Acknowledged:
    """The receipts of a segment's batches, by ordinal, and the quarantine entries of their refused rows."""

    receipts: tuple[Receipt, ...]
    quarantined: tuple[QuarantineEntry, ...]


def acknowledge_segment(
    store: Store,
    spec: DatasetSpec,
    premises: Premises,
    written: WrittenSegment,
    batches: Sequence[IncomingBatch],
    together: Callable[[Connection], object],
) -> Acknowledged:
    """Put a segment and its batches (by ordinal) into the ledger: after this they are staged (invariant 1).

    Files of these batches that were in quarantine are in it no more. ``together`` is done in the same transaction.
    Where nothing was recorded, the files of the segment are removed.

    Raises:
        StagedMeanwhile: another process was first with some of the batches, or it is not as it was otherwise; nothing
            was recorded.
        StagingQueueFull, GuardrailExceeded, IntakePaused: there is no room any more; nothing was recorded.
        BatchesRefused: some have rows to be set aside, and there is no room for these; nothing was recorded.
        DeclarationChanged: the declaration contradicts what was staged meanwhile; nothing was recorded.
    """
    now = now_micros()
    refused_rows = written.refused_rows
    rows = [batch.row for batch in written.batches]

    def refused_entries(tx: Connection) -> list[QuarantineEntry]:
        return [
            _set_rows_aside(tx, spec, written, ordinal, batch, now)
            for ordinal, batch in enumerate(batches)
            if ordinal in refused_rows
        ]

    def record(tx: Connection) -> tuple[list[QuarantineEntry], list[GuardrailExceeded]]:
        lock_dataset(tx, spec.name)
        if not written.is_there(store):
            raise StagedMeanwhile  # this process slept so long that a file was swept
        known = known_of(tx, spec.name, batches)
        limits = store.policy(tx, spec).limits
        if known and _is_recorded(tx, spec, written, known):
            # The connection broke in the commit, and the ledger has it all the same.
            return refused_entries(tx), guardrail_breaches(tx, store, spec, limits)
        if known:
            raise StagedMeanwhile
        if 0 < limits.max_windows < written.most_windows:
            raise StagedMeanwhile  # the limit is another one now: look at it again
        if limits.concurrent_ingests and not premises.in_turn:
            raise StagedMeanwhile  # there are turns now: wait for one
        now_there, corrections = schema_and_corrections(tx, spec)
        if (now_there.version if now_there else 0) != premises.base:
            raise StagedMeanwhile  # written with columns that have changed: nobody's change is lost
        after = premises.corrections if premises.order is None else premises.order.after_correction
        if premises.order is None and corrections != premises.corrections:
            raise StagedMeanwhile  # the segment says after which correction it comes
        check_pause(tx, spec.name)
        if not premises.base:
            fix_declaration(tx, spec)
        if refused_rows:
            check_quarantine(tx, store, spec, written)
        version = add_versions(tx, spec.name, premises.base, premises.steps, now)
        check_queue(tx, spec, limits, len(batches))
        check_shares(tx, spec, limits, batches)
        check_guardrails(tx, store, spec, limits)
        first_open = spec.first_open_window(written.judged_at).start_micros
        if written.correction is not None:
            after = _correct(tx, spec, written, batches[0], now)
        position = premises.order.position if premises.order else None
        if spec.key and position is None:
            position = claim_positions(tx, spec.name, written.numbers)
        segment = NewSegment(written.row, rows, written.slices, version, position, after)
        acknowledge(tx, spec.name, segment, now, first_open_window=first_open)
        count_late_rows(tx, spec, written)
        resolve_staged_files(tx, spec.name, (batch.batch_id for batch in batches), now)
        together(tx)
        entries = refused_entries(tx)
        if not store.settings.staging_enabled:
            count(tx, DIRECT_WRITE_BATCHES, spec.name, "", len(batches))
        breaches = guardrail_breaches(tx, store, spec, limits)
        count_breaches(tx, breaches)
        reach(CrashPoint.BATCHES_RECORDED)
        return entries, breaches

    try:
        entries, breaches = store.ledger.transact(record)
    except CommitUnknown:
        raise  # the ledger may have the segment; if not, it is swept
    except Exception:  # not an interrupt, which may come after the commit: then the ledger has it
        written.discard(store)
        raise
    reach(CrashPoint.BATCHES_ACKNOWLEDGED)
    if written.correction_path is not None:
        keep_correction(store, written.correction_path)
    log_breaches(breaches)
    windows: dict[int, list[Window]] = {}
    for piece in written.slices:
        for ordinal in piece.batch_rows:
            windows.setdefault(ordinal, []).append(spec.window_at(piece.window_start))
    receipts = tuple(
        Receipt(
            dataset=spec.name,
            batch_id=row.batch_id,
            source=row.source,
            rows=row.rows,
            quarantined_rows=row.quarantined_rows,
            duplicate=False,
            windows=tuple(windows.get(row.ordinal, ())),
            segment_id=written.row.id if written.row else None,
            dropped_rows=row.dropped_rows,
        )
        for row in rows
    )
    return Acknowledged(receipts, tuple(entries))


def _correct(tx: Connection, spec: DatasetSpec, written: WrittenSegment, batch: IncomingBatch, now: int) -> int:
    """Record the correction that a segment comes with; return its number.

    Raises:
        StagedMeanwhile: it is not the one that the segment says, or a build was claimed since the segment was written.
    """
    said = written.correction
    assert said is not None
    new = NewCorrection(
        spec.name,
        kind=CorrectionKind.REPLACEMENT,
        range_start=said.range.start,
        range_end=said.range.end,
        batch_id=batch.batch_id,
        fingerprint=batch.fingerprint,
        source=batch.source,
        path=written.correction_path or "",
    )
    if last_claimed_sequence(tx, spec.name) + 1 != said.before_sequence:
        raise StagedMeanwhile
    number = acknowledge_correction(tx, new, now)
    if number != said.number:
        raise StagedMeanwhile
    ends = (from_micros(time) for time in (said.range.start, said.range.end - 1))
    first, last = (Window.containing(moment, spec.window).start_micros for moment in ends)
    mark_windows(tx, spec.name, number, windows_with_files(tx, spec.name, first, last))
    return number


def _is_recorded(tx: Connection, spec: DatasetSpec, written: WrittenSegment, known: Mapping[str, KnownBatch]) -> bool:
    """Whether it is this very segment, its correction, or its file of refused rows that the ledger has."""
    if written.row is not None:
        return all(batch.segment_id == written.row.id for batch in known.values())
    if written.correction_path is not None:
        return is_acknowledged(tx, spec.name, written.correction_path)
    return written.refused_path is not None and any(
        entry.path == written.refused_path for entry in open_entries(tx, spec.name)
    )


def known_of(tx: Connection, dataset: str, batches: Sequence[IncomingBatch]) -> dict[str, KnownBatch]:
    """Return those of ``batches`` that the dataset already has, by id.

    A client's key was the id itself before each client had a space of its own; so such a batch is known too, to the
    client that sent it.
    """
    former = {batch.client.key for batch in batches if batch.client and batch.client.key}
    found = known_batches(tx, dataset, former.union(batch.batch_id for batch in batches))
    known: dict[str, KnownBatch] = {}
    for batch in batches:
        if batch.batch_id in found:
            known[batch.batch_id] = found[batch.batch_id]
        elif batch.client and batch.client.key in found and found[batch.client.key].source == batch.client.name:
            known[batch.batch_id] = found[batch.client.key]
    return known


def settle_known(
    store: Store, spec: DatasetSpec, batches: Sequence[IncomingBatch]
) -> list[Receipt | BatchConflict | None]:
    """Return what becomes of each of ``batches`` whose id is in the ledger already; None of the others.

    A receipt where the content is the same, and then it is counted as retried, else the conflict.
    """
    with store.ledger.read() as tx:
        known = known_of(tx, spec.name, batches)
        windows = windows_of_batches(tx, spec.name, (found.batch_id for found in known.values())) if known else {}

    def settled(batch: IncomingBatch) -> Receipt | BatchConflict | None:
        found = known.get(batch.batch_id)
        if found is None:
            return None
        if found.fingerprint != batch.fingerprint:
            return BatchConflict(spec.name, batch.batch_id)
        return Receipt(
            dataset=spec.name,
            batch_id=batch.batch_id,
            source=batch.source,
            rows=found.rows,
            quarantined_rows=found.quarantined_rows,
            duplicate=True,
            windows=tuple(spec.window_at(start) for start in windows.get(found.batch_id, ())),
            segment_id=found.segment_id,
            dropped_rows=found.dropped_rows,
        )

    answers = [settled(batch) for batch in batches]
    repeats = sum(isinstance(answer, Receipt) for answer in answers)
    if repeats:
        store.ledger.transact(lambda tx: count(tx, RETRIED_BATCHES, spec.name, "duplicate", repeats), repeatable=False)
    return answers


def _set_rows_aside(
    tx: Connection,
    spec: DatasetSpec,
    written: WrittenSegment,
    ordinal: int,
    batch: IncomingBatch,
    now: int,
) -> QuarantineEntry:
    rows = written.refused_rows[ordinal]
    entry = NewEntry(
        dataset=spec.name,
        kind=QuarantineKind.ROWS,
        batch_id=batch.batch_id,
        source=batch.source,
        path=written.refused_path or "",
        reason=reason_in_words(written.refused[ordinal]),
        rows=rows,
        bytes=written.refused_bytes * rows // sum(written.refused_rows.values()),
        created_at=now,
    )
    return set_aside(tx, entry)
