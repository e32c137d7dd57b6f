"""Landing files → one segment per dataset: what an ingest run does for each dataset.

One bad file never holds the others up (invariant 9): it is found, set aside with its reason, and the rest is
staged in one go. A file is removed from the landing folder only after the ledger has its batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb
from sqlalchemy import Connection

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import (
    BatchConflict,
    BatchesRefused,
    BatchRejected,
    GuardrailExceeded,
    IntakePaused,
    ReadingTooLong,
    SegmentNotWritten,
    StagingQueueFull,
    TooManyIngests,
    TooManyOpenFiles,
)
from timestore_pipeline.landing.found import LandingFile
from timestore_pipeline.ledger.batches import SegmentRow, known_batches
from timestore_pipeline.ledger.counters import RETRIED_BATCHES, count
from timestore_pipeline.ledger.datasets import dataset_schema, lock_dataset
from timestore_pipeline.ledger.landing import Readings, end_readings
from timestore_pipeline.ledger.quarantine import QuarantineEntry, next_try_at, set_aside
from timestore_pipeline.ledger.schemas import SchemaStep, required_columns
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.model.windows import Window
from timestore_pipeline.places import PlaceName
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.rows.culprits import attempt_by_halves
from timestore_pipeline.rows.inference import infer_columns, types_of_values
from timestore_pipeline.rows.readers import ReadPlan, plan_reads, read_through
from timestore_pipeline.rows.reasons import NoRowsToInferFrom, UnreadableFile, readable_reason
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.segments.identity import claims_given_id, file_batch_id
from timestore_pipeline.segments.segment import QUARANTINE_FOLDER, WrittenSegment, write_segment
from timestore_pipeline.settings import AfterIngest
from timestore_pipeline.staging.arrivals import (
    Arrivals,
    FolderArrivals,
    too_large_in_words,
    unique_name,
)
from timestore_pipeline.staging.deadline import Deadline, end_this_process
from timestore_pipeline.staging.direct import publish_if_direct, warn_of_direct_write
from timestore_pipeline.staging.receipts import (
    Acknowledged,
    Receipt,
    SegmentSchema,
    StagedMeanwhile,
    acknowledge_segment,
    check_texts,
    duplicate_receipts,
    reserved_id,
    settle_known,
)
from timestore_pipeline.staging.retry import when_there_is_room
from timestore_pipeline.staging.room import check_room, count_breaches
from timestore_pipeline.staging.suspects import (
    ReadingGroup,
    blamed_alone,
    may_be_read_elsewhere,
    reading_groups,
    reading_id,
    recorded_reading,
    suspicions,
    verdict,
)
from timestore_pipeline.staging.turns import turn
from timestore_pipeline.store import Store


@dataclass(frozen=True)
class IngestReport:
    """What one ingest of one dataset did.

    ``receipts`` has every batch that is in the ledger now, duplicates included; ``skipped`` has a sentence for
    every file that was left where it is.
    """

    dataset: str
    receipts: tuple[Receipt, ...] = ()
    quarantined: tuple[QuarantineEntry, ...] = ()
    skipped: tuple[str, ...] = ()
    segment_id: str | None = None
    segment_bytes: int = 0
    columns: tuple[Column, ...] = ()
    duration_seconds: float = 0.0

    @property
    def staged(self) -> tuple[Receipt, ...]:
        """The receipts of the batches that are new."""
        return tuple(receipt for receipt in self.receipts if not receipt.duplicate)

    @property
    def batches(self) -> int:
        """How many batches are new."""
        return len(self.staged)

    @property
    def duplicates(self) -> int:
        """How many batches were in the ledger already."""
        return len(self.receipts) - len(self.staged)

    @property
    def rows(self) -> int:
        """How many rows were staged."""
        return sum(receipt.rows for receipt in self.staged)

    @property
    def quarantined_rows(self) -> int:
        """How many rows of staged batches were set aside."""
        return sum(receipt.quarantined_rows for receipt in self.staged)

    @property
    def dropped_rows(self) -> int:
        """How many rows of staged batches came too late for a dataset that drops such rows."""
        return sum(receipt.dropped_rows for receipt in self.staged)

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows that got rows, in time order."""
        return tuple(sorted({window for receipt in self.staged for window in receipt.windows}))


@dataclass
class _Files:
    """The files of one ingest as they pass through it."""

    arrivals: Arrivals
    ids: Mapping[str, str] = field(default_factory=dict)
    """What files are called before they are read, by their names."""
    batches: dict[Path, IncomingBatch] = field(default_factory=dict)
    """All that were taken in."""
    fresh: dict[Path, IncomingBatch] = field(default_factory=dict)
    staged: dict[Path, IncomingBatch] = field(default_factory=dict)
    duplicates: dict[Path, Receipt] = field(default_factory=dict)
    twins: dict[Path, Path] = field(default_factory=dict)
    refused: dict[Path, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    """Why files are set aside without having been taken in, by their ids."""
    patience_lost: set[str] = field(default_factory=set)
    """Names of files that were too long to read or ended their readers, which may not have been their fault."""
    skipped: list[str] = field(default_factory=list)
    take_late: bool = False
    wider: dict[Path, Sequence[Column]] = field(default_factory=dict)
    """Of text files whose values did not fit the columns: the types that their values look like."""


@dataclass
class _Staged:
    """What the groups of one ingest have brought into the ledger."""

    receipts: list[Receipt] = field(default_factory=list)
    quarantined: list[QuarantineEntry] = field(default_factory=list)
    segments: list[SegmentRow] = field(default_factory=list)
    columns: tuple[Column, ...] = ()


def ingest_files(store: Store, dataset: str, files: Sequence[LandingFile]) -> IngestReport:
    """Stage landing files as one segment, acknowledge them, and clear them away as the settings say.

    Args:
        store: the installation.
        dataset: the dataset that all the files belong to.
        files: as found by ``scan_landing``; each becomes one batch, its id derived from its content.

    Raises:
        UnknownDataset, ColumnsChanged, GuardrailExceeded, DiskFull, LedgerError: nothing was staged, the files wait.
        PlaceError: staging or the archive is not there, or another installation's; likewise.
    """
    started = time.perf_counter()
    spec = store.datasets[dataset]
    warn_of_direct_write(store, dataset)
    if store.settings.landing_after_ingest is AfterIngest.ARCHIVE:
        store.places[PlaceName.ARCHIVE].claim()  # or each file would be staged, and stay
    with _arrivals(store, spec) as arrivals:
        return _ingest(store, spec, files, arrivals, started)


@contextmanager
def _arrivals(store: Store, spec: DatasetSpec) -> Iterator[Arrivals]:
    """Give the landing files of a dataset, wherever they lie."""
    if isinstance(store.settings.landing_location, Path):
        with FolderArrivals(store, spec) as arrivals:
            yield arrivals
        return
    from timestore_pipeline.staging.fetched import fetched_arrivals  # brings obstore

    with fetched_arrivals(store, spec) as fetched:
        yield fetched


def _ingest(
    store: Store, spec: DatasetSpec, files: Sequence[LandingFile], arrivals: Arrivals, started: float
) -> IngestReport:
    dataset = spec.name
    by_id = {reading_id(file): file for file in files}
    state = _Files(arrivals, {file.path.name: file_id for file_id, file in by_id.items()})
    done = _Staged()
    limit = store.settings.landing_max_file_bytes
    for file_id, file in by_id.items():
        if file.is_larger_than(limit):
            state.unread[file_id] = too_large_in_words(file.bytes, file.disk_bytes, limit)
    try:
        _stage_in_groups(
            store, spec, {key: file for key, file in by_id.items() if key not in state.unread}, state, done
        )
    except GuardrailExceeded as error:
        breach = error
        store.ledger.transact(lambda tx: count_breaches(tx, [breach]), repeatable=False)
        raise
    _drop_changed(state, state.refused)
    _settle_twins(store, spec, done.receipts, state)
    quarantined = [
        entry for path, reason in state.refused.items() if (entry := _set_file_aside(store, spec, path, reason, state))
    ] + [
        _set_unread_aside(store, spec, file_id, by_id[file_id], reason, state)
        for file_id, reason in state.unread.items()
    ]
    arrivals.clear_away({path: state.batches[path] for path in (*state.staged, *state.duplicates)})
    publish_if_direct(store, dataset)
    return IngestReport(
        dataset=dataset,
        receipts=(*done.receipts, *state.duplicates.values()),
        quarantined=(*done.quarantined, *quarantined),
        skipped=tuple(state.skipped),
        segment_id=done.segments[0].id if done.segments else None,
        segment_bytes=sum(segment.bytes for segment in done.segments),
        columns=done.columns,
        duration_seconds=time.perf_counter() - started,
    )


def stage_file(
    store: Store,
    dataset: str,
    path: Path,
    batch_id: str | None = None,
    wait_seconds: float = 0.0,
    source: str | None = None,
    *,
    take_late: bool = False,
) -> Receipt:
    """Stage one file from anywhere as one batch; the file stays where it is.

    ``source`` is what it is called in lineage, by default its name. While there is no room it is tried again, at
    growing intervals, for ``wait_seconds``. With ``take_late`` rows of closed windows are staged whatever the dataset
    does with them.

    Raises:
        BatchRejected: it cannot be read or cast; nothing was staged or set aside.
        BatchConflict: ``batch_id`` is known with other content.
        StagingQueueFull, GuardrailExceeded, DiskFull, TooManyIngests, IntakePaused: refused for now, and counted
            as dropped.
        ColumnsChanged, UnknownDataset, LedgerError: as they say.
    """
    spec = store.datasets[dataset]
    absolute = path.absolute()
    warn_of_direct_write(store, dataset)
    receipt = when_there_is_room(
        store, dataset, lambda: _stage_file(store, spec, absolute, batch_id, source, take_late), wait_seconds
    )
    publish_if_direct(store, dataset)
    return receipt


def _stage_file(
    store: Store, spec: DatasetSpec, path: Path, batch_id: str | None, source: str | None, take_late: bool
) -> Receipt:
    if not _is_utf8(path):
        raise BatchRejected(spec.name, ascii(str(path)), "DuckDB and the ledger take UTF-8 names only; rename it")
    # A link that the caller names is the caller's choice.
    with FolderArrivals(store, spec, through_links=True) as arrivals:
        try:
            deadline = Deadline.of(spec.name, store.settings.landing_max_reading_seconds)
            size, fingerprint = arrivals.look(path, deadline)
        except ReadingTooLong as error:
            raise BatchRejected(spec.name, str(path), error.reason) from error
        except OSError as error:
            raise BatchRejected(spec.name, str(path), f"it cannot be read: {error.strerror or error}") from error
        batch = check_texts(
            spec.name,
            IncomingBatch(batch_id or file_batch_id(fingerprint), fingerprint, source or path.name, size),
        )
        duplicate = duplicate_receipts(store, spec, [batch]).get(batch.batch_id)
        if duplicate is not None:
            return duplicate
        if claims_given_id(batch.batch_id, batch.fingerprint, batch.client):
            raise reserved_id(spec.name, batch)
        known_as = arrivals.known_as(path)
        state = _Files(arrivals, batches={known_as: batch}, fresh={known_as: batch}, take_late=take_late)
        limits = check_room(store, spec, 1)
        with turn(store, spec, limits):
            try:
                # Both ends of a link may be read.
                acknowledged, _, _ = _stage_fresh(store, spec, state, path.parent, path.resolve().parent)
            except ReadingTooLong as error:
                raise BatchRejected(spec.name, str(path), error.reason) from error
    if state.refused:
        duplicate_receipts(store, spec, [batch])  # where another was first, with other content, that is what is wrong
        raise BatchRejected(spec.name, str(path), state.refused[known_as])
    if state.skipped:
        raise BatchRejected(spec.name, str(path), state.skipped[0])
    return acknowledged.receipts[0] if acknowledged.receipts else state.duplicates[known_as]


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _set_duplicates_apart(store: Store, spec: DatasetSpec, batches: dict[Path, IncomingBatch], state: _Files) -> None:
    known = settle_known(store, spec, list(batches.values()))
    first: dict[str, Path] = {}
    for path, batch in batches.items():
        answer = known.get(batch.batch_id)
        if isinstance(answer, BatchConflict):
            state.refused[path] = (
                f"other rows were staged under its id {batch.batch_id}, by somebody who gave them that; stage it with "
                f"'timestore stage {spec.name} FILE --batch-id ID' under another one"
            )
        elif answer is not None:
            state.duplicates[path] = answer
        elif batch.batch_id in first:
            state.twins[path] = first[batch.batch_id]
        else:
            first[batch.batch_id] = path
            state.fresh[path] = batch


def _settle_twins(store: Store, spec: DatasetSpec, receipts: Iterable[Receipt], state: _Files) -> None:
    """Let files with the same content as another one of this ingest share its fate."""
    staged = {receipt.batch_id: receipt for receipt in receipts}
    for twin, path in state.twins.items():
        if path in state.refused:
            state.refused[twin] = state.refused[path]
        elif state.batches[twin].batch_id in staged:
            state.duplicates[twin] = replace(
                staged[state.batches[twin].batch_id], source=state.batches[twin].source, duplicate=True
            )
        elif path in state.duplicates:
            state.duplicates[twin] = replace(state.duplicates[path], source=state.batches[twin].source)
    repeats = sum(1 for twin in state.twins if twin in state.duplicates)
    if repeats:
        store.ledger.transact(lambda tx: count(tx, RETRIED_BATCHES, spec.name, "duplicate", repeats), repeatable=False)


def _stage_in_groups(
    store: Store, spec: DatasetSpec, files: Mapping[str, LandingFile], state: _Files, done: _Staged
) -> None:
    """Stage files (by their ids), in one segment unless one of them has ended a process, or is too much to be read."""
    attempts = store.settings.landing_max_attempts
    groups = deque(reading_groups(list(files), before := suspicions(store, spec.name, list(files))))
    while groups:
        group = groups.popleft()
        if group.alone and before[group.file_ids[0]].alone >= attempts:
            _give_up(state, files[group.file_ids[0]], group.file_ids[0], before)
            continue
        state.fresh = {}
        refused = set(state.refused)
        try:
            with recorded_reading(store, spec.name, group):
                _stage_group(store, spec, group, files, state, done)
        except (StagingQueueFull, TooManyIngests, IntakePaused) as error:
            state.skipped.append(f"{len(state.fresh)} files wait: {error}")
        except SegmentNotWritten as error:
            too_long = isinstance(error, ReadingTooLong)
            if too_long:
                # Readers take an interrupt for something that is wrong with a file.
                state.refused = {path: reason for path, reason in state.refused.items() if path in refused}
            if group.alone:
                _judge_alone(state, files[group.file_ids[0]], group.file_ids[0], error)
                continue
            if not (too_long or error.out_of_memory):
                raise
            left = _not_dealt_with(group, files, state)
            before = suspicions(store, spec.name, left)
            groups.extendleft(reversed(reading_groups(left, before)))


def _stage_group(
    store: Store,
    spec: DatasetSpec,
    group: ReadingGroup,
    files: Mapping[str, LandingFile],
    state: _Files,
    done: _Staged,
) -> None:
    with blamed_alone(store, spec.name, group):
        deadline = Deadline.of(spec.name, store.settings.landing_max_reading_seconds)
        batches, skipped = state.arrivals.take_in([files[file_id] for file_id in group.file_ids], deadline)
    state.batches.update(batches)
    state.skipped += skipped
    _set_duplicates_apart(store, spec, batches, state)
    if not state.fresh:
        return
    limits = check_room(store, spec, len(state.fresh))
    with turn(store, spec, limits):
        acknowledged, written, done.columns = _stage_fresh(
            store, spec, state, group=group, together=lambda tx: end_readings(tx, spec.name, group.file_ids)
        )
    done.receipts += acknowledged.receipts
    done.quarantined += acknowledged.quarantined
    done.segments += [written.row] if written and written.row else []
    state.staged.update(state.fresh)
    state.fresh = {}


def _not_dealt_with(group: ReadingGroup, files: Mapping[str, LandingFile], state: _Files) -> list[str]:
    """Return which files of a group are to be read again, and forget what was found out about these."""
    dealt_with = {
        state.batches[path].source
        for path in (*state.refused, *state.duplicates, *state.staged)
        if path in state.batches
    }
    left = [file_id for file_id in group.file_ids if files[file_id].path.name not in dealt_with]
    names = {files[file_id].path.name for file_id in left}
    for path in [path for path, batch in state.batches.items() if batch.source in names]:
        del state.batches[path]
        state.twins.pop(path, None)
        state.wider.pop(path, None)
    return left


def _judge_alone(state: _Files, file: LandingFile, file_id: str, error: SegmentNotWritten) -> None:
    """Decide about a file that could not be read although nothing else was."""
    path = next(iter(state.fresh), None)
    if isinstance(error, ReadingTooLong):
        state.patience_lost.add(file.path.name)
    elif not error.out_of_memory:
        state.skipped.append(f"{file.path.name} waits: {error.reason}")
        return
    reason = f"read alone it needs more memory than there is: {error.reason}" if error.out_of_memory else error.reason
    if path is None:
        state.unread[file_id] = reason
    else:
        state.refused[path] = reason


def _give_up(state: _Files, file: LandingFile, file_id: str, before: Mapping[str, Readings]) -> None:
    """Refuse a file that has ended process after process, without another look."""
    if may_be_read_elsewhere(before[file_id], now_micros()):
        state.skipped.append(f"{file.path.name} waits: it may be read by another process just now")
    else:
        state.patience_lost.add(file.path.name)
        state.unread[file_id] = verdict(before[file_id])


def _stage_fresh(
    store: Store,
    spec: DatasetSpec,
    state: _Files,
    *folders: Path,
    group: ReadingGroup | None = None,
    together: Callable[[Connection], object] | None = None,
) -> tuple[Acknowledged, WrittenSegment | None, tuple[Column, ...]]:
    """Write and acknowledge a segment of ``state.fresh``; what turns out bad moves to the other parts of ``state``.

    The files lie in the landing folder, or in ``folders``. ``group`` is what they are read as, ``together`` is done in
    the acknowledging transaction.
    """
    columns: tuple[Column, ...] = ()
    deadline = Deadline.of(spec.name, store.settings.landing_max_reading_seconds)
    while state.fresh:
        with store.ledger.read() as tx:
            known, most_windows = dataset_schema(tx, spec), store.policy(tx, spec).limits.max_windows
        with (
            store.writers.connection(*folders) as connection,
            blamed_alone(store, spec.name, group) if group else nullcontext(),
            # Only an ingest run may be ended: whoever stages a file by a call has other things to do.
            deadline.over(connection, end=end_this_process if group else None),
        ):
            schema, first = _schema(store, connection, spec, known, state)
            if schema is None:
                break
            plan = _plan(store, connection, spec, schema, state)
            deadline.check()
            columns = plan.schema.columns
            if not state.fresh:
                break
            order = [state.fresh[path] for path in plan.order]
            expected_bytes = sum(batch.source_bytes for batch in order)
            try:
                written = write_segment(
                    store,
                    connection,
                    spec,
                    columns,
                    plan.sources,
                    batches=order,
                    expected_bytes=expected_bytes,
                    take_late=state.take_late,
                    most_windows=most_windows,
                )
            except BatchesRefused as error:
                _refuse(state, plan, error)
                continue
            except (duckdb.Error, OSError) as error:
                deadline.check()
                if isinstance(error, OSError) or not _refuse_unreadable(store, connection, spec, schema, state):
                    out_of_memory = isinstance(error, duckdb.OutOfMemoryException)
                    raise SegmentNotWritten(spec.name, readable_reason(error), out_of_memory=out_of_memory) from error
                deadline.check()
                continue
        if _drop_changed(state, state.fresh):
            written.discard(store)
            continue
        try:
            brought = [
                SchemaStep(step.columns, state.fresh[step.path].batch_id, state.fresh[step.path].source)
                for step in plan.growth
            ]
            segment_schema = SegmentSchema(schema.version, (*first, *brought))
            return acknowledge_segment(store, spec, segment_schema, written, order, together), written, columns
        except (StagedMeanwhile, BatchConflict):
            _set_duplicates_apart(store, spec, _take_all(state), state)
        except BatchesRefused as error:
            _refuse(state, plan, error)
    return Acknowledged((), ()), None, columns


def _refuse(state: _Files, plan: ReadPlan, error: BatchesRefused) -> None:
    for ordinal, reason in error.reasons.items():
        state.refused[plan.order[ordinal]] = reason
        del state.fresh[plan.order[ordinal]]


def _take_all(state: _Files) -> dict[Path, IncomingBatch]:
    batches, state.fresh = state.fresh, {}
    return batches


def _schema(
    store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, schema: Schema | None, state: _Files
) -> tuple[Schema | None, list[SchemaStep]]:
    """Return the dataset's columns with the step that enters them into the ledger, if they are not there.

    None where neither the ledger (``schema``) nor a file tells them.
    """
    if schema is not None:
        return schema, [] if schema.version else [SchemaStep(schema.columns)]
    without_rows: dict[Path, str] = {}
    for path in list(state.fresh):
        try:
            columns = infer_columns(connection, spec, path, Bounds.of(store.settings))
        except NoRowsToInferFrom as error:
            without_rows[path] = str(error)
        except TooManyOpenFiles:
            raise  # an OSError that says nothing of the file
        except (UnreadableFile, OSError) as error:
            state.refused[path] = str(error)
            del state.fresh[path]
        else:
            batch = state.fresh[path]
            step = SchemaStep(columns, batch.batch_id, batch.source)
            return Schema(0, columns, required_columns(spec, columns)), [step]
    state.refused.update(without_rows)
    state.fresh.clear()
    return None, []


def _plan(
    store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, schema: Schema, state: _Files
) -> ReadPlan:
    plan = plan_reads(connection, spec, schema, list(state.fresh), Bounds.of(store.settings), state.wider)
    for path, reason in plan.refused.items():
        state.refused[path] = reason
        del state.fresh[path]
    return plan


def _refuse_unreadable(
    store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, schema: Schema, state: _Files
) -> bool:
    """Find the files that made a segment fail, by reading alone; False where reading is not what failed.

    A text file of which the values ask for wider types is not refused: it is read again with these.
    """
    try:
        found = _unreadable(store, connection, spec, schema, list(state.fresh), state.wider)
    except duckdb.OutOfMemoryException:
        return False
    for path, reason in found.items():
        if path.exists() and path not in state.wider and spec.evolves:
            state.wider[path] = types_of_values(connection, spec, schema, path, Bounds.of(store.settings))
            if state.wider[path]:
                continue
        del state.fresh[path]
        if path.exists():
            state.refused[path] = reason
    return bool(found)


def _unreadable(
    store: Store,
    connection: duckdb.DuckDBPyConnection,
    spec: DatasetSpec,
    schema: Schema,
    files: Sequence[Path],
    wider: Mapping[Path, Sequence[Column]],
) -> dict[Path, str]:
    def read(part: Sequence[Path]) -> Mapping[Path, str]:
        plan = plan_reads(connection, spec, schema, part, Bounds.of(store.settings), wider)
        for source in plan.sources:
            read_through(connection, source)
        return plan.refused

    found: dict[Path, str] = {}
    for part, refused in attempt_by_halves(files, read, UnreadableFile):
        found.update({part[0]: str(refused)} if isinstance(refused, UnreadableFile) else refused)
    return found


def _drop_changed(state: _Files, paths: Iterable[Path]) -> bool:
    """Leave files alone that were written to, or swapped for others, while they were read.

    Those that were refused too: the reason may quote what is in another file.
    """
    changed = [path for path in paths if not state.arrivals.is_unchanged(path)]
    for path in changed:
        state.fresh.pop(path, None)
        state.refused.pop(path, None)
        state.skipped.append(
            f"{state.batches[path].source} changed while it was read; it is taken when it is complete "
            "(write under a name that ends in .partial and rename it)"
        )
    return bool(changed)


def _set_file_aside(store: Store, spec: DatasetSpec, path: Path, reason: str, state: _Files) -> QuarantineEntry | None:
    """Move a bad file to quarantine; the ledger first, so that after a crash in between the file is found again.

    None where the file was not bad: another ingest staged it, and cleared it away while it was read here.
    """
    batch = state.batches[path]
    entry = _record_bad_file(store, spec, batch, reason, state)
    if entry is not None:
        state.arrivals.set_aside(path, batch, entry.path)
    return entry


def _set_unread_aside(
    store: Store, spec: DatasetSpec, file_id: str, file: LandingFile, reason: str, state: _Files
) -> QuarantineEntry:
    """Move a file to quarantine that was not read, under the id that it has without being read."""
    fingerprint = file_id.rpartition("-")[2]
    batch = IncomingBatch(file_id, fingerprint, file.path.name, max(file.bytes, file.disk_bytes))
    entry = _record_bad_file(store, spec, batch, reason, state)
    assert entry is not None  # no batch that was staged has such an id
    state.arrivals.set_unread_aside(file, entry.path)
    return entry


def _record_bad_file(
    store: Store, spec: DatasetSpec, batch: IncomingBatch, reason: str, state: _Files
) -> QuarantineEntry | None:
    relative = f"{QUARANTINE_FOLDER}/{spec.name}/{unique_name(batch.fingerprint, batch.source)}"

    def record(tx: Connection) -> QuarantineEntry | None:
        # Another ingest may stage it just now, and resolves what it finds in quarantine.
        lock_dataset(tx, spec.name)
        known = known_batches(tx, spec.name, [batch.batch_id]).get(batch.batch_id)
        if known is not None and known.fingerprint == batch.fingerprint:
            return None
        now = now_micros()
        entry = set_aside(
            tx,
            dataset=spec.name,
            kind=QuarantineKind.BATCH,
            batch_id=batch.batch_id,
            source=batch.source,
            path=relative,
            reason=reason,
            rows=None,
            size_bytes=batch.source_bytes,
            now=now,
            try_again_at=next_try_at(0, now) if batch.source in state.patience_lost else None,
        )
        end_readings(tx, spec.name, [state.ids[batch.source]])
        return entry

    entry = store.ledger.transact(record)
    if entry is not None:
        reach(CrashPoint.BAD_FILE_RECORDED)
    return entry
