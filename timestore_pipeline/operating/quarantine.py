"""Out of quarantine: an entry is retried, and its rows are staged like any others, or discarded for good.

Each row is in exactly one place at every moment (invariant 2): what is staged again leaves quarantine in the same
ledger transaction. Bytes go only after the ledger says so; a crash in between leaves a file that is swept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Connection

from timestore_pipeline.building.damage import damaged_slices
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import (
    BatchConflict,
    BatchRejected,
    EntryNotOpen,
    EntryNotRetried,
    EntryUnusable,
    NotRestored,
    ObjectMissing,
    SegmentNotWritten,
    TimestoreError,
    UnknownEntry,
)
from timestore_pipeline.inert import log_named
from timestore_pipeline.landing.found import is_ready_name
from timestore_pipeline.ledger.batches import ordinal_of_batch
from timestore_pipeline.ledger.quarantine import (
    QuarantineEntry,
    begin_try,
    change_reason,
    discard_slices,
    entries_to_try_again,
    find_entry,
    give_slices_back,
    name_resolver,
    open_entries,
    resolve_entry,
)
from timestore_pipeline.ledger.slices import Slice, quarantined_slices
from timestore_pipeline.ledger.states import QuarantineKind, QuarantineState
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.operating.kept_rows import KeptRows
from timestore_pipeline.settings import AfterIngest
from timestore_pipeline.staging.arrivals import archive_day
from timestore_pipeline.staging.load import load, receipt_of
from timestore_pipeline.staging.stage import stage_late_file
from timestore_pipeline.storage.layout import decided_key, key_aside, segment_key
from timestore_pipeline.store import Store

log = log_named(__name__)

_MAINTENANCE = "maintenance"


@dataclass(frozen=True)
class Retried:
    """What a retry did: the entry as it stands now, how many rows it brought back, and what is left and why."""

    entry: QuarantineEntry
    rows: int
    left: str | None = None

    @property
    def done(self) -> bool:
        """Whether the entry is resolved."""
        return self.entry.state is QuarantineState.RETRIED


def open_entry(store: Store, entry_id: int) -> QuarantineEntry:
    """Return an entry that waits for somebody to decide.

    Raises:
        UnknownEntry: there is none of that id.
        EntryNotOpen: it was retried or discarded before.
    """
    with store.ledger.read() as tx:
        entry = find_entry(tx, entry_id)
        known = [each.id for each in open_entries(tx)]
    if entry is None:
        raise UnknownEntry(entry_id, known)
    if entry.state is not QuarantineState.OPEN:
        raise EntryNotOpen(entry.id, entry.state.value, entry.resolved_by or "?")
    return entry


def retry_entry(store: Store, entry_id: int, by: str) -> Retried:
    """Try once more what could not be done: nothing is lost if it fails again, and nothing doubled if repeated.

    A file goes through staging again. Rows are staged as a batch of their own; those that are still impossible stay
    in quarantine. A closed window takes them, because somebody wants them. A segment is read again, from where it is
    kept or from its old place, and goes back to the queue.

    Raises:
        UnknownEntry, EntryNotOpen: as they say.
        EntryUnusable: its bytes are not where they should be.
        EntryNotRetried: they could not be read, moved or written just now.
        StagingQueueFull, GuardrailExceeded, DiskFull, TooManyIngests: there is no room just now; try again later.
        ColumnsChanged, UnknownDataset, LedgerError: as they say.
    """
    entry = open_entry(store, entry_id)
    spec = store.datasets[entry.dataset]
    retry = {QuarantineKind.BATCH: _retry_file, QuarantineKind.ROWS: _retry_rows}.get(entry.kind, _retry_segment)
    try:
        return retry(store, spec, entry, by)
    except TimestoreError:
        raise
    except OSError as error:
        raise EntryNotRetried(entry.id, store.staging.shown(entry.path), error) from error


def find_due_again(store: Store, *, now: int, most: int | None = None) -> list[QuarantineEntry]:
    """Return the entries of files that may have been set aside for what they have not done, as it is time for each.

    A process that ends while it reads is not proof that the file did it.
    """
    with store.ledger.read() as tx:
        return [entry for entry in entries_to_try_again(tx, now) if entry.dataset in store.datasets][:most]


def try_again(store: Store, *, now: int, most: int | None = None) -> list[QuarantineEntry]:
    """Retry what :func:`find_due_again` finds, and return the entries that were tried.

    A try is counted before it is made, and there are few of them, so that a file that ends its process is not read for
    ever.
    """
    tried = []
    for entry in find_due_again(store, now=now, most=most):
        if not store.ledger.transact(lambda tx, entry=entry: begin_try(tx, entry, now), repeatable=False):
            continue
        tried.append(entry)
        try:
            retry_entry(store, entry.id, _MAINTENANCE)
        except TimestoreError as error:
            log.warning("%s: %s could not be tried again: %s", entry.dataset, entry.source, error)
    return tried


def discard_entry(store: Store, entry_id: int, by: str) -> QuarantineEntry:
    """Give an entry up: the ledger remembers who and when, then its bytes are removed.

    Bytes that others still need stay: a file with the rows of several batches until the last of them is resolved, a
    segment until its other rows are published and its retention has passed.

    Raises:
        UnknownEntry, EntryNotOpen, PlaceError, LedgerError: as they say.
    """
    entry = open_entry(store, entry_id)
    store.staging.require()  # else the decision would stand, and the bytes stay
    now = now_micros()

    def give_up(tx: Connection) -> bool:
        if entry.kind is QuarantineKind.SEGMENT:
            return discard_slices(tx, entry, by=by, now=now)
        resolve_entry(tx, entry.id, QuarantineState.DISCARDED, by, now)
        return entry.path not in {other.path for other in open_entries(tx)}

    if store.ledger.transact(give_up, repeatable=False):
        _remove(store, entry, [entry.path])
    _mark_decided(store, entry)
    return _now(store, entry)


def _mark_decided(store: Store, entry: QuarantineEntry) -> None:
    """Leave a sign beside a file that other batches need still: without the ledger nobody could tell what is decided.

    It is swept after the file.
    """
    if entry.kind is not QuarantineKind.ROWS or store.staging.size(entry.path) is None:
        return
    with store.ledger.read() as tx:
        ordinal = ordinal_of_batch(tx, entry.dataset, entry.batch_id)
    try:
        mark = decided_key(entry.path, ordinal)
        scratch = store.staging.scratch(mark)
        scratch.touch()
        store.staging.put(scratch, mark)
    except OSError as error:
        log.warning("%s: that entry %s is decided is known to the ledger alone: %s", entry.dataset, entry.id, error)


def kept_file(store: Store, entry: QuarantineEntry) -> Path | None:
    """Return a local file with the bytes of an entry; of a file that could not be moved, its place in landing.

    None where there is none.

    Raises:
        StorageError: it cannot be fetched just now.
    """
    try:
        path = _left_in_landing(store, entry) or store.staging.fetch(entry.path)
    except ObjectMissing:
        return None
    return path if path.is_file() else None


def kept_at(store: Store, entry: QuarantineEntry) -> str:
    """Return where the bytes of an entry are, or should be."""
    key = _landing_key(entry)
    if key is not None and store.staging.size(entry.path) is None and store.landing.size(key) is not None:
        return store.landing.shown(key)
    return store.staging.shown(entry.path)


def _landing_key(entry: QuarantineEntry) -> str | None:
    """Return where in landing the file of an entry was, if it was there: a caller may call a source what it likes."""
    from_landing = entry.kind is QuarantineKind.BATCH and is_ready_name(entry.source) and "/" not in entry.source
    return f"{entry.dataset}/{entry.source}" if from_landing else None


def _left_in_landing(store: Store, entry: QuarantineEntry) -> Path | None:
    key = _landing_key(entry)
    if key is None or store.staging.size(entry.path) is not None:
        return None
    # An object may have been written again since it was fetched.
    is_copied = store.landing.forget(key)
    if is_copied and (store.landing.size(key) or 0) > store.settings.landing_max_file_bytes:
        return None  # it was set aside for that, and is brought here by nobody
    with suppress(ObjectMissing):
        landed = store.landing.fetch(key)
        return landed if landed.is_file() else None
    return None


def _now(store: Store, entry: QuarantineEntry) -> QuarantineEntry:
    with store.ledger.read() as tx:
        return find_entry(tx, entry.id) or entry


def _retry_file(store: Store, spec: DatasetSpec, entry: QuarantineEntry, by: str) -> Retried:
    path = kept_file(store, entry)
    if path is None:
        raise EntryUnusable(entry.id, store.staging.shown(entry.path))
    try:
        receipt = stage_late_file(store, spec.name, path, entry.source)
    except (BatchRejected, BatchConflict) as error:
        return _still_there(store, entry, error.reason if isinstance(error, BatchRejected) else str(error))
    # Where the file is not what it was when it was set aside, its batch has another id than the entry.

    def resolve(tx: Connection) -> None:
        if not resolve_entry(tx, entry.id, QuarantineState.RETRIED, by, now_micros()):
            name_resolver(tx, entry.id, by)

    store.ledger.transact(resolve)
    key = _landing_key(entry) if store.staging.size(entry.path) is None else None
    _clear_away(store, spec, path)
    _remove(store, entry, [entry.path])
    if key is not None and store.landing.forget(key):
        store.landing.delete(key)  # what went to the archive was a copy of the object
    return Retried(_now(store, entry), 0 if receipt.duplicate else receipt.rows)


def _remove(store: Store, entry: QuarantineEntry, keys: Sequence[str]) -> None:
    """Remove bytes that no entry needs any more; what cannot be removed is left to the sweep."""
    try:
        store.staging.delete(*keys)
    except OSError as error:
        log.warning("%s: what entry %s left is swept later: %s", entry.dataset, entry.id, error.strerror or error)


def _still_there(store: Store, entry: QuarantineEntry, reason: str) -> Retried:
    """Record why an entry could not be retried just now."""
    store.ledger.transact(lambda tx: change_reason(tx, entry.id, reason))
    return Retried(_now(store, entry), 0, reason)


def _clear_away(store: Store, spec: DatasetSpec, path: Path) -> None:
    """Archive a file that is staged at last, or delete it where that is what becomes of staged files."""
    try:
        if store.settings.landing_after_ingest is AfterIngest.DELETE:
            path.unlink(missing_ok=True)
            return
        store.archive.adopt(path, f"{spec.name}/{archive_day()}/{path.name}")
    except OSError as error:
        log.warning("%s: %s is staged but could not be cleared away: %s", spec.name, path, error.strerror or error)


def _retry_rows(store: Store, spec: DatasetSpec, entry: QuarantineEntry, by: str) -> Retried:
    try:
        path = store.staging.fetch(entry.path)
    except ObjectMissing:
        raise EntryUnusable(entry.id, store.staging.shown(entry.path)) from None
    if not path.is_file():
        raise EntryUnusable(entry.id, path)
    rows = KeptRows(store, spec, entry, path, by)
    (answer,) = load(rows).in_order
    if isinstance(answer, BatchRejected):
        return _still_there(store, entry, answer.reason)
    if isinstance(answer, SegmentNotWritten):
        if isinstance(answer.__cause__, OSError):
            raise answer.__cause__
        return _still_there(store, entry, f"the rows cannot be read back: {answer.reason}")
    receipt = receipt_of(answer)
    if receipt.duplicate:
        store.ledger.transact(rows.record)
        return Retried(_now(store, entry), 0)
    _mark_decided(store, entry)
    return Retried(_now(store, entry), receipt.rows, rows.left)


def _retry_segment(store: Store, spec: DatasetSpec, entry: QuarantineEntry, by: str) -> Retried:
    with store.ledger.read() as tx:
        pieces = quarantined_slices(tx, entry.id)
    if not pieces:
        raise NotRestored(entry.id, store.staging.shown(entry.path))
    staging = store.staging
    kept = entry.path
    home = segment_key(spec.name, entry.batch_id)
    # An operator puts a backup where the file was, or where its damaged copy is now.
    places = dict.fromkeys((kept, home, key_aside(spec.name, home)))
    found = {place: _damage_at(store, spec, pieces, place) for place in places if staging.size(place) is not None}
    if not found:
        raise EntryUnusable(entry.id, staging.shown(kept))
    best = min(found, key=lambda place: len(found[place]))
    damaged = found[best]
    readable = [piece.window_start for piece in pieces if piece.window_start not in damaged]
    left = next(iter(damaged.values()), None)
    if not readable:
        _still_there(store, entry, left or entry.reason)
        return Retried(_now(store, entry), 0, left)
    target = kept if damaged else home
    if best != target:
        store.places.claim_segments(entry.dataset)
        staging.link(best, target)

    def give_back(tx: Connection) -> bool:
        if staging.size(target) is None:
            # Swept as an orphan: the ledger did not know its new name yet.
            raise EntryUnusable(entry.id, staging.shown(target))
        done = give_slices_back(tx, entry, readable, path=target, by=by, now=now_micros())
        if done and left:
            change_reason(tx, entry.id, left)
        return done

    given_back = store.ledger.transact(give_back, repeatable=False)
    if given_back and not damaged:
        _remove(store, entry, [place for place in places if place != target])
    rows = sum(piece.rows for piece in pieces if piece.window_start in readable)
    return Retried(_now(store, entry), rows if given_back else 0, left)


def _damage_at(store: Store, spec: DatasetSpec, pieces: Sequence[Slice], place: str) -> dict[int, str]:
    """Return window start → reason, for the slices that cannot be read from a file at ``place``."""
    there = [replace(piece, path=place) for piece in pieces]
    return {piece.window_start: reason for piece, reason in damaged_slices(store, spec, there).items()}
