"""``stage()`` and ``stage_file``: one batch from a caller's own code, a frame or a file from anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import BatchIdReserved, BatchRejected, ReadingTooLong
from timestore_pipeline.model.windows import TimeRange
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.segments.identity import file_batch_id
from timestore_pipeline.staging.deadline import Deadline
from timestore_pipeline.staging.direct import publish_if_direct, warn_of_direct_write
from timestore_pipeline.staging.file_rows import ChangedWhileRead, FileRows
from timestore_pipeline.staging.folder_arrivals import FolderArrivals
from timestore_pipeline.staging.frame_rows import Incoming, stage_together
from timestore_pipeline.staging.frames import Frame, as_table
from timestore_pipeline.staging.incoming import as_replacement
from timestore_pipeline.staging.load import load, receipt_of
from timestore_pipeline.staging.receipts import Receipt, check_texts
from timestore_pipeline.staging.retry import when_there_is_room
from timestore_pipeline.store import Store


def stage(
    store: Store,
    dataset: str,
    data: Frame,
    batch_id: str | None = None,
    source: str = "stage()",
    wait_seconds: float = 0.0,
) -> Receipt:
    """Stage a frame as one batch; when this returns, the batch is acknowledged.

    Args:
        store: the installation.
        dataset: a declared dataset.
        data: a pyarrow Table, RecordBatch or RecordBatchReader, a pandas or Polars frame, a DuckDB relation, or
            anything else with ``__arrow_c_stream__``. Its columns go by name, in any order; values are cast to the
            dataset's types where that loses nothing.
        batch_id: the caller's idempotency key; derived from the content where left out.
        source: where the data comes from, for lineage.
        wait_seconds: how long to try again, at growing intervals, while there is no room.

    Returns:
        The receipt; ``duplicate`` is true where the same batch was staged before, and nothing changed.

    Raises:
        NoFrame: ``data`` is nothing of these.
        BatchRejected: the data does not fit the dataset; nothing was staged.
        BatchConflict: ``batch_id`` is known with other content.
        StagingQueueFull, GuardrailExceeded, DiskFull, TooManyIngests, IntakePaused: refused for now, and counted
            as dropped.
        UnknownDataset, ColumnsChanged, LedgerError: as they say.
    """
    return stage_incoming(store, dataset, incoming_of(store, dataset, data, batch_id, source), wait_seconds)


def incoming_of(
    store: Store,
    dataset: str,
    data: Frame,
    batch_id: str | None = None,
    source: str = "stage()",
    replaces: TimeRange | None = None,
) -> Incoming:
    """Return a frame as a batch for :func:`stage_incoming`.

    With ``replaces`` its rows are all rows of that range of times. Once it is acknowledged nobody sees an earlier row
    of the range, staged or published; without a row the range is emptied. Rows of closed windows are staged whatever
    the dataset does with late ones. Without a ``batch_id`` the same rows for the same range are a repeat for as long as
    nothing else was said of the range.

    Raises:
        NoFrame, BatchRejected, UnknownDataset: as :func:`stage` says.
    """
    bounds = Bounds.of(store.settings)
    store.datasets[dataset]  # says which ones there are
    incoming = Incoming.of(dataset, as_table(dataset, data, source, bounds), batch_id, source)
    return incoming if replaces is None else incoming.replacing(store, dataset, replaces, named=batch_id is not None)


def stage_incoming(store: Store, dataset: str, incoming: Incoming, wait_seconds: float = 0.0) -> Receipt:
    """Stage a batch; when this returns, it is acknowledged.

    Raises:
        BatchRejected: the data does not fit the dataset, or has rows outside of the range that it is to replace.
        TimestoreError: as :func:`stage` says.
    """
    spec = store.datasets[dataset]
    warn_of_direct_write(store, dataset)
    receipt = when_there_is_room(
        store, dataset, lambda: receipt_of(stage_together(store, spec, [incoming]).answers[0]), wait_seconds
    )
    publish_if_direct(store, dataset)
    return receipt


def stage_file(
    store: Store,
    dataset: str,
    path: Path,
    batch_id: str | None = None,
    wait_seconds: float = 0.0,
    source: str | None = None,
) -> Receipt:
    """Stage one file from anywhere as one batch; the file stays where it is.

    ``source`` is what it is called in lineage, by default its name. While there is no room it is tried again, at
    growing intervals, for ``wait_seconds``.

    Raises:
        BatchRejected: it cannot be read or cast; nothing was staged or set aside.
        BatchConflict: ``batch_id`` is known with other content.
        StagingQueueFull, GuardrailExceeded, DiskFull, TooManyIngests, IntakePaused: refused for now, and counted
            as dropped.
        ColumnsChanged, UnknownDataset, LedgerError: as they say.
    """
    return _stage_when_there_is_room(store, dataset, _GivenFile(path, batch_id, source), wait_seconds)


def stage_late_file(store: Store, dataset: str, path: Path, source: str) -> Receipt:
    """Stage a file as ``stage_file``, also its rows of closed windows, whatever the dataset does with them.

    Raises:
        TimestoreError: as ``stage_file`` raises.
    """
    return _stage_when_there_is_room(store, dataset, _GivenFile(path, source=source, take_late=True), 0)


def stage_file_replacing(
    store: Store,
    dataset: str,
    path: Path,
    replaces: TimeRange,
    batch_id: str | None = None,
    wait_seconds: float = 0.0,
) -> Receipt:
    """Stage a file as ``stage_file``, as all rows that there are to be of a range of times (see :func:`incoming_of`).

    Raises:
        TimestoreError: as ``stage_file`` raises; BatchRejected also where it has rows outside of the range.
    """
    return _stage_when_there_is_room(store, dataset, _GivenFile(path, batch_id, replaces=replaces), wait_seconds)


@dataclass(frozen=True)
class _GivenFile:
    """A file from anywhere, and what its caller says of it."""

    path: Path
    batch_id: str | None = None
    source: str | None = None
    take_late: bool = False
    replaces: TimeRange | None = None


def _stage_when_there_is_room(store: Store, dataset: str, file: _GivenFile, wait_seconds: float) -> Receipt:
    spec = store.datasets[dataset]
    warn_of_direct_write(store, dataset)
    receipt = when_there_is_room(store, dataset, lambda: _stage_file(store, spec, file), wait_seconds)
    publish_if_direct(store, dataset)
    return receipt


def _stage_file(store: Store, spec: DatasetSpec, file: _GivenFile) -> Receipt:
    path = file.path.absolute()
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
            IncomingBatch(file.batch_id or file_batch_id(fingerprint), fingerprint, file.source or path.name, size),
        )
        if file.replaces is not None:
            batch = as_replacement(store, spec.name, batch, file.replaces, named=file.batch_id is not None)
        # Both ends of a link may be read.
        folders = (path.parent, path.resolve().parent)
        rows = FileRows(store, spec, arrivals, {arrivals.known_as(path): batch}, folders, take_late=file.take_late)
        (answer,) = load(rows).in_order
    match answer:
        case BatchIdReserved():
            raise answer
        case BatchRejected() | ChangedWhileRead() | ReadingTooLong():
            raise BatchRejected(spec.name, str(path), answer.reason) from answer
    return receipt_of(answer)


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
