"""Landing files → one segment per dataset: what an ingest run does for each dataset.

One bad file never holds the others up (invariant 9): it is found, set aside with its reason, and the rest is
staged in one go. A file is removed from the landing folder only after the ledger has its batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb
from sqlalchemy import Connection

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import (
    BatchConflict,
    BatchRejected,
    GuardrailExceeded,
    IntakePaused,
    ReadingTooLong,
    SegmentNotWritten,
    StagingQueueFull,
    TooManyIngests,
)
from timestore_pipeline.landing.found import LandingFile
from timestore_pipeline.ledger.landing import Readings, end_readings
from timestore_pipeline.ledger.quarantine import QuarantineEntry
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.windows import Window
from timestore_pipeline.placement import PlaceName
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.settings import AfterIngest
from timestore_pipeline.staging.arrivals import Arrivals, too_large_in_words
from timestore_pipeline.staging.bad_files import BadFile, record_bad_file, unread_batch
from timestore_pipeline.staging.deadline import Deadline, end_this_process
from timestore_pipeline.staging.direct import publish_if_direct, warn_of_direct_write
from timestore_pipeline.staging.file_rows import ChangedWhileRead, FileRows
from timestore_pipeline.staging.folder_arrivals import FolderArrivals
from timestore_pipeline.staging.load import Loaded, load
from timestore_pipeline.staging.receipts import Receipt
from timestore_pipeline.staging.room import count_breaches
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


@dataclass(frozen=True)
class _Fates:
    """What has become of landing files; of those that were not taken in (``unread``) by their ids."""

    batches: Mapping[Path, IncomingBatch] = field(default_factory=dict)
    receipts: Mapping[Path, Receipt] = field(default_factory=dict)
    refused: Mapping[Path, BadFile] = field(default_factory=dict)
    unread: Mapping[str, BadFile] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    loaded: Loaded = field(default_factory=Loaded)

    def and_then(self, later: _Fates) -> _Fates:
        """Return these and later ones."""
        return _Fates(
            {**self.batches, **later.batches},
            {**self.receipts, **later.receipts},
            {**self.refused, **later.refused},
            {**self.unread, **later.unread},
            (*self.skipped, *later.skipped),
            self.loaded.and_then(replace(later.loaded, answers={})),
        )


class _GroupRows(FileRows):
    """The rows of a group of landing files, whose reading is recorded."""

    def __init__(
        self,
        store: Store,
        spec: DatasetSpec,
        arrivals: Arrivals,
        batches: Mapping[Path, IncomingBatch],
        group: ReadingGroup,
    ) -> None:
        super().__init__(store, spec, arrivals, batches)
        self._group = group

    @contextmanager
    def reading(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Let a file be blamed for what ends this process, and the process end that reads for ever.

        Only an ingest run may be ended: whoever stages a file by a call has other things to do.
        """
        with (
            blamed_alone(self.store, self.spec.name, self._group),
            self.deadline.over(connection, end=end_this_process),
        ):
            yield

    def record(self, tx: Connection) -> None:
        """Forget that the files are read."""
        end_readings(tx, self.spec.name, self._group.file_ids)


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
    by_id = {reading_id(file): file for file in files}
    limit = store.settings.landing_max_file_bytes
    too_large = {
        file_id: BadFile(too_large_in_words(file.bytes, file.disk_bytes, limit))
        for file_id, file in by_id.items()
        if file.is_larger_than(limit)
    }
    try:
        readable = {file_id: file for file_id, file in by_id.items() if file_id not in too_large}
        fates = _Fates(unread=too_large).and_then(_stage_in_groups(store, spec, readable, arrivals))
    except GuardrailExceeded as error:
        breach = error
        store.ledger.transact(lambda tx: count_breaches(tx, [breach]), repeatable=False)
        raise
    quarantined: list[QuarantineEntry] = []
    skipped = list(fates.skipped)
    ids = {file.path.name: file_id for file_id, file in by_id.items()}
    for path, bad in fates.refused.items():
        batch = fates.batches[path]
        if not arrivals.is_unchanged(path):
            skipped.append(ChangedWhileRead(batch.source).reason)  # the other reason may quote what is in another file
        elif (entry := record_bad_file(store, spec, batch, bad, ids[batch.source])) is not None:
            arrivals.set_aside(path, batch, entry.path)
            quarantined.append(entry)
    for file_id, bad in fates.unread.items():
        file = by_id[file_id]
        entry = record_bad_file(store, spec, unread_batch(file, file_id), bad, file_id)
        assert entry is not None  # no batch that was staged has such an id
        arrivals.set_unread_aside(file, entry.path)
        quarantined.append(entry)
    arrivals.clear_away({path: fates.batches[path] for path in fates.receipts})
    publish_if_direct(store, spec.name)
    segments = fates.loaded.segments
    return IngestReport(
        dataset=spec.name,
        receipts=tuple(sorted(fates.receipts.values(), key=lambda receipt: receipt.duplicate)),
        quarantined=(*fates.loaded.quarantined, *quarantined),
        skipped=tuple(skipped),
        segment_id=segments[0].id if segments else None,
        segment_bytes=sum(segment.bytes for segment in segments),
        columns=fates.loaded.columns,
        duration_seconds=time.perf_counter() - started,
    )


def _stage_in_groups(store: Store, spec: DatasetSpec, files: Mapping[str, LandingFile], arrivals: Arrivals) -> _Fates:
    """Stage files (by their ids), in one segment unless one of them has ended a process, or is too much to be read."""
    done = _Fates()
    before = suspicions(store, spec.name, list(files))
    groups = deque(reading_groups(list(files), before))
    while groups:
        group = groups.popleft()
        first = group.file_ids[0]
        if group.alone and before[first].alone >= store.settings.landing_max_attempts:
            done = done.and_then(_given_up(files[first], first, before[first]))
            continue
        found, error = _stage_group(store, spec, group, files, arrivals)
        if isinstance(error, ReadingTooLong):
            found = replace(found, refused={})  # readers take an interrupt for something that is wrong with a file
        if error is not None and group.alone:
            found = found.and_then(_judged_alone(found, files[first], first, error))
        elif error is not None:
            if not (isinstance(error, ReadingTooLong) or error.out_of_memory):
                raise error
            answered = {found.batches[path].source for path in (*found.refused, *found.receipts)}
            left = [file_id for file_id in group.file_ids if files[file_id].path.name not in answered]
            before = suspicions(store, spec.name, left)
            groups.extendleft(reversed(reading_groups(left, before)))
        done = done.and_then(found)
    return done


def _stage_group(
    store: Store, spec: DatasetSpec, group: ReadingGroup, files: Mapping[str, LandingFile], arrivals: Arrivals
) -> tuple[_Fates, SegmentNotWritten | None]:
    """Return what became of the files of a group, and why the others could not be written to a segment."""
    found = _Fates()
    try:
        with recorded_reading(store, spec.name, group):
            with blamed_alone(store, spec.name, group):
                deadline = Deadline.of(spec.name, store.settings.landing_max_reading_seconds)
                batches, skipped = arrivals.take_in([files[file_id] for file_id in group.file_ids], deadline)
            found = _Fates(batches, skipped=tuple(skipped))
            loaded = load(_GroupRows(store, spec, arrivals, batches, group))
            found = found.and_then(_fates_of(spec, list(batches), loaded))
            for answer in loaded.answers.values():
                if isinstance(answer, SegmentNotWritten):
                    raise answer
    except SegmentNotWritten as error:
        return found, error
    return found, None


def _fates_of(spec: DatasetSpec, paths: Sequence[Path], loaded: Loaded) -> _Fates:
    """Return what the answers of a load mean for its files.

    Raises:
        TimestoreError: what is wrong is wrong for all of them.
    """
    receipts: dict[Path, Receipt] = {}
    refused: dict[Path, BadFile] = {}
    skipped: list[str] = []
    waiting: dict[str, int] = {}
    for number, answer in loaded.answers.items():
        match answer:
            case Receipt():
                receipts[paths[number]] = answer
            case BatchRejected():
                refused[paths[number]] = BadFile(answer.reason)
            case BatchConflict():
                refused[paths[number]] = BadFile(
                    f"other rows were staged under its id {answer.batch_id}, by somebody who gave them that; stage it "
                    f"with 'timestore stage {spec.name} FILE --batch-id ID' under another one"
                )
            case ChangedWhileRead():
                skipped.append(answer.reason)
            case StagingQueueFull() | TooManyIngests() | IntakePaused():
                waiting[str(answer)] = waiting.get(str(answer), 0) + 1
            case SegmentNotWritten():
                continue
            case _:
                raise answer
    skipped += [f"{count} files wait: {reason}" for reason, count in waiting.items()]
    return _Fates(receipts=receipts, refused=refused, skipped=tuple(skipped), loaded=loaded)


def _judged_alone(found: _Fates, file: LandingFile, file_id: str, error: SegmentNotWritten) -> _Fates:
    """Decide about a file that could not be read although nothing else was."""
    if not (isinstance(error, ReadingTooLong) or error.out_of_memory):
        return _Fates(skipped=(f"{file.path.name} waits: {error.reason}",))
    reason = f"read alone it needs more memory than there is: {error.reason}" if error.out_of_memory else error.reason
    bad = BadFile(reason, try_again=isinstance(error, ReadingTooLong))
    path = next(iter(found.batches), None)
    return _Fates(unread={file_id: bad}) if path is None else _Fates(refused={path: bad})


def _given_up(file: LandingFile, file_id: str, readings: Readings) -> _Fates:
    """Refuse a file that has ended process after process, without another look."""
    if may_be_read_elsewhere(readings, now_micros()):
        return _Fates(skipped=(f"{file.path.name} waits: it may be read by another process just now",))
    return _Fates(unread={file_id: BadFile(verdict(readings), try_again=True)})
