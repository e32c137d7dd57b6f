"""Every error that this project raises on purpose, as one small tree (long, because it is read whole).

Each error carries the things that it talks about as fields, and its message names them and says what to do.
Exceptions of the libraries below are translated where they arise and kept as ``__cause__``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from errno import EMFILE

from timestore_pipeline.exhaustion import most_open_files
from timestore_pipeline.inert import as_entry
from timestore_pipeline.model.columns import Column


class TimestoreError(Exception):
    """Base of all errors raised on purpose; its message is meant for the person who reads it.

    It may have names that others gave. Whoever logs it, or a traceback that ends in it, gets it as an entry.
    """

    def __str__(self) -> str:
        return as_entry(str(self.args[0]) if self.args else "")


class SettingsError(TimestoreError):
    """A ``TIMESTORE_*`` variable has a value that is not allowed."""


class DatasetsFileError(TimestoreError):
    """``datasets.yaml`` cannot be read or says something that is not allowed.

    Args:
        path: the file.
        problems: one line per problem, each naming dataset and key.
    """

    def __init__(self, path: object, problems: Sequence[str]) -> None:
        self.path = str(path)
        self.problems = tuple(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{path} is not usable:\n{lines}")


class UnknownDataset(TimestoreError, KeyError):
    """A dataset was named that ``datasets.yaml`` does not declare. A KeyError too, as any mapping raises."""

    def __init__(self, dataset: str, known: Sequence[str]) -> None:
        self.dataset = dataset
        declared = ", ".join(sorted(known)) or "none"
        super().__init__(
            f"dataset {dataset!r} is not declared. Declared datasets: {declared}. "
            "Add it to datasets.yaml or correct the name."
        )


class LedgerError(TimestoreError):
    """The ledger cannot be opened, is locked for too long, or is of a newer version."""


class LedgerInterrupted(LedgerError):
    """The ledger ended a transaction before its commit: its server stops, or two waited for each other.

    Nothing of it was written, and it may be done again.
    """


class LedgerLost(LedgerError):
    """The ledger does not know a dataset of which there are staged or published rows."""

    def __init__(self, location: str, found: Sequence[str]) -> None:
        self.location = location
        self.found = tuple(found)
        listed = ", ".join(self.found[:5]) + (f" and {len(self.found) - 5} more" if len(self.found) > 5 else "")
        super().__init__(
            f"the ledger {location} knows nothing of {listed}. It is new, or another one: if its disk is not mounted, "
            "mount it; if the ledger was lost, run 'timestore ledger rebuild'; if this is the wrong one, correct "
            "TIMESTORE_LEDGER_URL, TIMESTORE_STAGING_DIRECTORY or TIMESTORE_TABLES_URL; if these are no longer wanted, "
            "move them away. Nothing was changed."
        )


class LedgerInUse(LedgerError):
    """There is a ledger with batches in it, so none is made in its place."""

    def __init__(self, location: str, batches: int) -> None:
        self.location = location
        self.batches = batches
        super().__init__(
            f"the ledger {location} is there and knows {batches:,} batches, so it was not rebuilt. "
            "To put one made from segments and tables in its place, stop the service and give --replace."
        )


class CommitUnknown(LedgerError):
    """The ledger failed in the middle of a commit, so what the transaction wrote may be there or not."""


class LedgerReplaced(CommitUnknown):
    """The file of the ledger was removed or replaced: what is written to it is seen by nobody.

    Unknown rather than refused, because a ledger that was rebuilt meanwhile may rest on the caller's files.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        super().__init__(
            f"the ledger {location} was removed or replaced while it was in use; nothing was written to it. "
            "Start this process again; if the ledger is lost, run 'timestore ledger rebuild' first."
        )


class DeclarationChanged(TimestoreError):
    """``datasets.yaml`` contradicts the rows of a dataset: their time, window, key, columns or start.

    ``changes`` are phrases, one for each thing that was changed.
    """

    def __init__(self, dataset: str, changes: Sequence[str]) -> None:
        self.dataset = dataset
        self.changes = tuple(changes)
        super().__init__(
            f"dataset {dataset!r}: datasets.yaml contradicts its rows: {'; '.join(changes)}. This is fixed once rows "
            "are staged: restore what it was, or declare a new dataset (docs/datasets.md, What is fixed). Until then "
            "this dataset is left alone, nothing of it is lost, and the others go on."
        )


class ColumnsChanged(DeclarationChanged):
    """The columns declared in ``datasets.yaml`` are not those with which rows of the dataset were staged."""

    def __init__(self, dataset: str, fixed: Sequence[Column], declared: Sequence[Column]) -> None:
        had, has = set(fixed), set(declared)
        gone = ", ".join(f"{column.name} {column.type}" for column in fixed if column not in has)
        new = ", ".join(f"{column.name} {column.type}" for column in declared if column not in had)
        super().__init__(
            dataset,
            [f"its columns (fixed but not declared: {gone or 'none'}; declared but not fixed: {new or 'none'})"],
        )


class DatasetRemoved(TimestoreError):
    """The ledger does not know a dataset any more that this process has declared."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        super().__init__(
            f"dataset {dataset!r}: somebody has removed it from the ledger since this process was started. If it is to "
            "be there again, keep it in datasets.yaml and start this process again; else take it out of the file."
        )


class DatasetFailed(TimestoreError):
    """Something unforeseen went wrong with one dataset; the others go on."""

    def __init__(self, dataset: str, error: Exception) -> None:
        self.dataset = dataset
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        super().__init__(f"dataset {dataset!r}: {said}" if dataset else said)


class BatchRejected(TimestoreError):
    """A batch cannot be staged as it is; nothing of it was kept.

    Args:
        dataset: the dataset that it was meant for.
        source: the file or caller that it came from.
        reason: what is wrong with it.
    """

    def __init__(self, dataset: str, source: str, reason: str) -> None:
        self.dataset = dataset
        self.source = source
        self.reason = reason
        super().__init__(f"dataset {dataset!r}: {source} cannot be staged: {reason}")


class BatchIdReserved(BatchRejected):
    """A caller gave a new batch an id of the kind that the project gives itself."""

    def __init__(self, dataset: str, source: str, batch_id: str) -> None:
        self.batch_id = batch_id
        super().__init__(
            dataset,
            source,
            f"the id {batch_id[:100]!r} is of a kind that timestore gives itself (file-…, arrow-… and unread-… before "
            "a hash, token/…, and what ends in /rows/ and a number); send it under another id, or under none",
        )


class NoFrame(TimestoreError, TypeError):
    """What was given to be staged has no rows that can be read as Arrow. A TypeError too, as for any wrong argument."""

    def __init__(self, dataset: str, type_: type) -> None:
        self.dataset = dataset
        super().__init__(
            f"dataset {dataset!r}: a {type_.__module__}.{type_.__qualname__} cannot be staged. Give a pyarrow Table or "
            "RecordBatchReader, a pandas or Polars DataFrame, a DuckDB relation, or anything else with "
            "__arrow_c_stream__; pyarrow.Table.from_pylist takes a list of dictionaries."
        )


class SegmentNotWritten(TimestoreError):
    """Memory or disk were not enough to write a segment; nothing was staged."""

    def __init__(self, dataset: str, reason: str, *, out_of_memory: bool) -> None:
        self.dataset = dataset
        self.reason = reason
        self.out_of_memory = out_of_memory
        super().__init__(
            f"dataset {dataset!r}: the segment could not be written: {reason}. "
            "The files wait in the landing folder; check disk and memory (TIMESTORE_DUCKDB_MEMORY_LIMIT)."
        )


class ReadingTooLong(SegmentNotWritten):
    """Reading landing files took longer than it may; nothing was staged."""

    def __init__(self, dataset: str, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(
            dataset,
            f"reading it takes longer than {seconds:g} s (TIMESTORE_LANDING_MAX_READING_SECONDS)",
            out_of_memory=False,
        )


class BatchConflict(TimestoreError):
    """A batch id was used again with other content (invariant 2)."""

    def __init__(self, dataset: str, batch_id: str) -> None:
        self.dataset = dataset
        self.batch_id = batch_id
        super().__init__(
            f"dataset {dataset!r}: batch id {batch_id!r} is already in the ledger with other content. "
            "A batch id names one content for ever: send the new rows under a new id."
        )


class BadRange(TimestoreError):
    """What is to be replaced is no range of times."""

    def __init__(self, dataset: str, reason: str) -> None:
        self.dataset = dataset
        super().__init__(
            f"dataset {dataset!r}: {reason}. Give the first time that is replaced and the first that is not any more."
        )


class BatchesRefused(TimestoreError):
    """Batches of one segment cannot be staged, whatever the others are; nothing of the segment was.

    Args:
        dataset: the dataset.
        reasons: what is wrong with each of them and what to do, by ordinal.
    """

    def __init__(self, dataset: str, reasons: Mapping[int, str]) -> None:
        self.dataset = dataset
        self.reasons = dict(reasons)
        super().__init__(f"dataset {dataset!r}: {next(iter(self.reasons.values()))}")


class TooManyWindows(BatchesRefused):
    """Batches have rows in more windows (``found``, by ordinal) than one may (``limit``)."""

    def __init__(self, dataset: str, found: Mapping[int, int], limit: int) -> None:
        self.limit = limit
        reasons = {
            ordinal: f"its rows lie in {windows:,} windows, each of which becomes a file of the table; a batch may "
            f"have {limit:,}. Send rows of fewer windows, or for a backfill run 'timestore limits set {dataset} "
            "max_windows N' (TIMESTORE_STAGING_MAX_WINDOWS)"
            for ordinal, windows in found.items()
        }
        super().__init__(dataset, reasons)


class QuarantineFull(BatchesRefused):
    """Batches have rows that cannot be staged (``found``: what is wrong with them), and no more may be set aside."""

    def __init__(self, dataset: str, found: Mapping[int, str], kept_bytes: int, limit: int) -> None:
        reasons = {
            ordinal: f"{problem}; and no more rows of the dataset can be set aside, as {kept_bytes:,} bytes are and "
            f"{limit:,} may be (TIMESTORE_QUARANTINE_MAX_DATASET_BYTES). Correct these rows, or see 'timestore "
            f"quarantine list {dataset}'"
            for ordinal, problem in found.items()
        }
        super().__init__(dataset, reasons)


class StagingQueueFull(TimestoreError):
    """Staging was refused because too many batches wait to be published."""

    def __init__(self, dataset: str, depth: int, limit: int) -> None:
        self.dataset = dataset
        self.depth = depth
        self.limit = limit
        super().__init__(
            f"dataset {dataset!r}: {depth} batches are staged and unpublished, the limit is {limit}. "
            f"Retry later, run 'timestore flush {dataset}', or 'timestore limits set {dataset} max_pending N'."
        )


class ClientShareTaken(StagingQueueFull):
    """Staging was refused because one client has as many batches in the queue as it leaves room for others."""

    def __init__(self, dataset: str, client: str, limit: int) -> None:
        self.dataset = dataset
        self.client = client
        self.limit = limit
        TimestoreError.__init__(
            self,
            f"dataset {dataset!r}: {client} has its share of the staging queue, whose limit is {limit} batches; the "
            f"rest is for others. Retry later, or run 'timestore flush {dataset}'.",
        )


class IntakePaused(TimestoreError):
    """An operator stopped intake of the dataset, or of all datasets."""

    def __init__(self, dataset: str, paused_by: str, since: str, reason: str, resume: str) -> None:
        self.dataset = dataset
        self.paused_by = paused_by
        self.reason = reason
        super().__init__(
            f"dataset {dataset!r}: intake is paused since {since} by {paused_by}: {reason}. "
            f"Retry later, or run 'timestore {resume}'."
        )


class WriterFull(TimestoreError):
    """A writer holds as many unanswered bytes as it may, and none were answered in time."""

    def __init__(self, dataset: str, waiting_bytes: int, limit_bytes: int) -> None:
        self.dataset = dataset
        self.waiting_bytes = waiting_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            f"dataset {dataset!r}: {waiting_bytes:,} bytes wait to be written, the writer's limit is {limit_bytes:,}. "
            "Try again when some are acknowledged, or open the writer with more max_waiting_bytes."
        )


class WriterClosed(TimestoreError):
    """A batch was given to a writer that is closed, that something ended, or that another process opened."""

    def __init__(self, dataset: str, reason: str) -> None:
        self.dataset = dataset
        super().__init__(f"dataset {dataset!r}: the writer {reason}. Open another one.")


class WriterWaitsForItself(TimestoreError):
    """A callback of a writer's future asked for another answer of the same writer, which that callback holds up."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        super().__init__(
            f"dataset {dataset!r}: callbacks run on the thread that commits, which would wait for itself for ever. "
            "Use submit() in a callback, and wait for what it returns elsewhere."
        )


class TooManyIngests(TimestoreError):
    """A batch waited its turn to be written for too long."""

    def __init__(self, dataset: str, running: int, limit: int, waited_seconds: float) -> None:
        self.dataset = dataset
        self.running = running
        self.limit = limit
        self.waited_seconds = waited_seconds
        super().__init__(
            f"dataset {dataset!r}: {running} segments are being written, the limit is {limit}, and none ended within "
            f"{waited_seconds:g} s. Retry later, or run 'timestore limits set {dataset} concurrent_ingests N'."
        )


class DiskFull(TimestoreError):
    """Less disk is free than the minimum that is always kept."""

    def __init__(self, path: object, free_bytes: int, needed_bytes: int) -> None:
        self.path = str(path)
        self.free_bytes = free_bytes
        self.needed_bytes = needed_bytes
        super().__init__(
            f"{path}: {free_bytes:,} bytes are free and {needed_bytes:,} must be. "
            "Free some space or lower TIMESTORE_STAGING_MIN_FREE_DISK_BYTES."
        )


class GuardrailExceeded(TimestoreError):
    """A size guardrail in ``enforce`` mode refused a batch."""

    def __init__(self, dataset: str, guardrail: str, size_bytes: int, limit_bytes: int) -> None:
        self.dataset = dataset
        self.guardrail = guardrail
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            f"dataset {dataset!r}: {size_bytes:,} bytes are staged, {guardrail} allows {limit_bytes:,}. "
            f"Run 'timestore flush {dataset}' or raise {guardrail}."
        )


class BuildInFlight(TimestoreError):
    """Another build of the dataset holds its claim, so this one did not start."""

    def __init__(self, dataset: str, build_id: int, owner: str) -> None:
        self.dataset = dataset
        self.build_id = build_id
        self.owner = owner
        super().__init__(f"dataset {dataset!r}: build {build_id} of {owner} is in flight; try again when it has ended.")


class CorrectionPending(TimestoreError):
    """Rows of windows are to be corrected, so their files are not merged before that."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        super().__init__(
            f"dataset {dataset!r}: published rows of these windows are to be corrected, and their files are merged "
            "after that; the next flush corrects them."
        )


class BuildAborted(TimestoreError):
    """A build lost its claim (it was fenced by a recovery) and published nothing."""

    def __init__(self, dataset: str, build_id: int) -> None:
        self.dataset = dataset
        self.build_id = build_id
        super().__init__(
            f"dataset {dataset!r}: build {build_id} was fenced because its lease had run out; "
            "nothing of it was published, its slices are staged again and the next flush takes them."
        )


class RebuildRefused(TimestoreError):
    """Windows cannot be derived again, because not all that was published in them is still there."""

    def __init__(self, dataset: str, windows: str, missing: Sequence[str]) -> None:
        self.dataset = dataset
        self.missing = tuple(missing)
        listed = "; ".join(missing[:20]) + (f"; and {len(missing) - 20} more" if len(missing) > 20 else "")
        super().__init__(
            f"dataset {dataset!r}: {windows} cannot be rebuilt, nothing was changed. Missing: {listed}. "
            "Choose windows that are still retained, or set retention.staging of the dataset higher for the future."
        )


class SegmentUnreadable(TimestoreError):
    """A segment file is missing or damaged, so the staged rows in it cannot be read."""

    def __init__(self, dataset: str, path: object, reason: str) -> None:
        self.dataset = dataset
        self.path = str(path)
        self.reason = reason
        super().__init__(
            f"dataset {dataset!r}: segment {path} cannot be read: {reason}. Restore the file from a backup; "
            "if flushes fail again and again, they set its rows aside and go on without them (docs/quarantine.md)."
        )


class TooManyOpenFiles(TimestoreError, OSError):
    """This process may open no more files. An OSError too; it says nothing of the file that could not be opened."""

    def __init__(self, what: str) -> None:
        self.errno = EMFILE
        super().__init__(
            f"no more files can be opened, while {what}: this process may have {most_open_files():,} open. Nothing is "
            "damaged. Raise the limit (ulimit -n, LimitNOFILE= of systemd) or do less at once, and try again."
        )


class StorageError(TimestoreError, OSError):
    """An object store did not do what it was asked. An OSError too, as a disk would raise.

    Args:
        what: the request: its verb and the URL of the object.
        reason: what the store said, without credentials.
    """

    what: str
    reason: str


class StorageUnavailable(StorageError):
    """An object store gave no usable answer for as long as it was asked."""

    def __init__(self, what: str, reason: str, attempts: int, patience_seconds: float) -> None:
        self.what = what
        self.reason = reason
        self.attempts = attempts
        super().__init__(
            f"{what} failed {attempts} times within {patience_seconds:g} s: {reason}. Nothing half is visible and "
            "nothing acknowledged is lost. See whether the store is up and reachable from here (AWS_ENDPOINT_URL, "
            "network), or raise TIMESTORE_OBJECT_STORE_RETRY_SECONDS; then try again."
        )


class StorageRefused(StorageError):
    """An object store said no, or cannot be asked as things are set, so asking again would change nothing."""

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(
            f"{what} was refused: {reason}. Correct the URL, the bucket, its permissions or what the environment says "
            "of it (AWS_*, GOOGLE_*, AZURE_*; docs/object-store.md)."
        )


class ObjectMissing(StorageError, FileNotFoundError):
    """There is no object of that name."""

    def __init__(self, location: str) -> None:
        self.what = f"GET {location}"
        self.reason = "there is no such object"
        super().__init__(f"{location}: there is no such object")


class UnlistableKey(StorageRefused):
    """A listing has a key with an empty part, '.' or '..' in it: no library takes it, and none of its page is given."""

    def __init__(self, folder: str, reason: str) -> None:
        super().__init__(f"LIST {folder}", reason)


class PlaceError(StorageError):
    """A place where this installation keeps files is not there, or belongs to another one; nothing was changed.

    It is over by itself when the place is back.

    Args:
        name: which place: ``staging``, ``tables``, ``archive`` or ``work``.
        location: where it was looked for.
        reason: what was found there.
        remedy: what to do, in sentences.
    """

    def __init__(self, name: str, location: str, reason: str, remedy: str) -> None:
        self.name = name
        self.location = location
        self.what = f"looking for {name} at {location}"
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{name}: {location} {reason}. Nothing was changed, and what is staged waits. {remedy}")


class PlaceMissing(PlaceError):
    """A place does not carry the mark that this installation has left there: it is not mounted, empty, or another."""

    def __init__(self, name: str, location: str, variable: str, *, there: bool) -> None:
        reason = "does not carry the mark of this installation" if there else "is not there"
        super().__init__(
            name,
            location,
            reason,
            f"Mount it, or correct {variable}; then all goes on by itself. If what was there is gone for good, and "
            f"this is where it goes on, run 'timestore installation adopt {name}'.",
        )


class PlaceForeign(PlaceError):
    """A place carries the mark of another installation."""

    def __init__(self, name: str, location: str, variable: str, *, owner: str, identity: str) -> None:
        self.owner = owner
        self.identity = identity
        super().__init__(
            name,
            location,
            f"belongs to the installation {owner}, and this is {identity}",
            f"Correct {variable}, or TIMESTORE_LEDGER_URL if this is the wrong ledger. If the ledger was lost, run "
            "'timestore ledger rebuild'; if this installation is a copy, 'timestore installation new-identity'; to "
            f"take the place from the other one, 'timestore installation adopt {name}'.",
        )


class PlaceUnreadable(PlaceError):
    """Nobody can say whose a place is, because it cannot be looked at."""

    def __init__(self, name: str, location: str, reason: str) -> None:
        super().__init__(name, location, f"cannot be looked at: {reason}", "Mend that; then all goes on by itself.")


class SegmentsAway(PlaceError):
    """The folder of a dataset's segments in staging is not the one that they were written to, and none is in it."""

    def __init__(self, dataset: str, location: str, *, there: bool) -> None:
        self.dataset = dataset
        name = f"staging/{dataset}"
        super().__init__(
            name,
            location,
            "has neither its mark nor segments that the ledger knows there" if there else "is not there",
            "Mount it or put it back; then all goes on by itself. If the segments are gone for good, run 'timestore "
            f"installation adopt {name}': builds then set aside what cannot be read.",
        )


class NothingToRebuildFrom(PlaceError):
    """A lost ledger is made again from places that carry a mark, and one of them does not."""

    def __init__(self, name: str, location: str, variable: str, *, there: bool) -> None:
        super().__init__(
            name,
            location,
            "carries no mark of an installation" if there else "is not there",
            f"A ledger is made again from staging and tables. Mount what is missing, or correct {variable}. Where "
            "there never was a mark, because the installation is older than marks or a place was lost for good, look "
            "that all is there that there is, and give --adopt.",
        )


class RebuildFromOthers(PlaceError):
    """Staging and tables are of different installations, so no ledger knows both."""

    def __init__(self, name: str, location: str, mark: str, other: str) -> None:
        super().__init__(
            name,
            location,
            f"belongs to the installation {mark}, and staging to {other}",
            "Correct TIMESTORE_TABLES_URL or TIMESTORE_STAGING_DIRECTORY.",
        )


class TablesOfOthers(PlaceError):
    """Nothing but the tables says whose a ledger would be, so they are not adopted: they may be in use elsewhere."""

    def __init__(self, location: str, owner: str) -> None:
        super().__init__(
            "tables",
            location,
            f"belongs to the installation {owner}, and no segment or ledger here says that this is that one",
            "Correct TIMESTORE_TABLES_URL or TIMESTORE_STAGING_DIRECTORY. To have the tables for this installation "
            "from now on, give --take-over: whoever has them now can write to them no more.",
        )


class CopyInPlace(TimestoreError):
    """A copy of an installation is to become one of its own, and uses a place that the original has."""

    def __init__(self, places: Sequence[tuple[str, str]]) -> None:
        self.places = tuple(places)
        listed = ", ".join(f"{name} at {location}" for name, location in self.places)
        super().__init__(
            f"the original has {listed} too. Nothing was changed. Let the settings of the copy name places of its own "
            "(TIMESTORE_STAGING_DIRECTORY, TIMESTORE_TABLES_URL, TIMESTORE_LANDING_ARCHIVE_DIRECTORY); or give "
            "--in-place where these are copies too, on another host or of a whole disk."
        )


class UnknownPlace(TimestoreError):
    """An installation has no place of that name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        super().__init__(f"there is no place {name!r}. Places: {', '.join(sorted(known))}.")


class UnknownEntry(TimestoreError):
    """There is no quarantine entry of that id."""

    def __init__(self, entry_id: int, known: Sequence[int]) -> None:
        self.entry_id = entry_id
        listed = ", ".join(map(str, known[:20])) or "none"
        super().__init__(f"there is no quarantine entry {entry_id}. Open entries: {listed}.")


class LossRefused(TimestoreError):
    """What is missing is no loss that can be accepted, or not the one that was named; nothing was changed."""

    def __init__(self, dataset: str, why: str, remedy: str) -> None:
        self.dataset = dataset
        super().__init__(f"dataset {dataset!r}: {why}. {remedy}")


class RemovalRefused(TimestoreError):
    """A dataset is not removed as things are; nothing of it was."""

    def __init__(self, dataset: str, why: str, remedy: str) -> None:
        self.dataset = dataset
        super().__init__(f"dataset {dataset!r} is not removed: {why}. {remedy}")


class EntryNotOpen(TimestoreError):
    """A quarantine entry was retried or discarded before, so there is nothing left to decide."""

    def __init__(self, entry_id: int, state: str, by: str) -> None:
        self.entry_id = entry_id
        self.state = state
        super().__init__(f"quarantine entry {entry_id} was {state} before, by {by}; nothing was done.")


class EntryUnusable(TimestoreError):
    """The bytes of a quarantine entry are not where they should be."""

    def __init__(self, entry_id: int, path: object) -> None:
        self.entry_id = entry_id
        self.path = str(path)
        super().__init__(
            f"quarantine entry {entry_id}: there is no file {path}. Restore it from a backup and retry, "
            f"or give it up with 'timestore quarantine discard {entry_id}'."
        )


class EntryNotRetried(TimestoreError):
    """The bytes of a quarantine entry could not be read, moved or written just now; nothing of it is lost."""

    def __init__(self, entry_id: int, path: object, error: OSError) -> None:
        self.entry_id = entry_id
        self.path = str(path)
        super().__init__(
            f"quarantine entry {entry_id}: {path} could not be retried: {error}. Nothing is lost; "
            "check the disk and retry."
        )


class StagingNotEmpty(TimestoreError):
    """Staging holds something that is nowhere else, so it is cleared only by somebody who says how much of it."""

    def __init__(self, rows: int, files: int, said_rows: int, said_files: int) -> None:
        self.rows = rows
        self.files = files
        if rows or files:
            there = f"{rows:,} unpublished rows and {files:,} quarantined files are in staging and nowhere else"
            wanted = f"--lose-rows {rows}" + (f" --lose-files {files}" if files else "")
            then = f"Publish them ('timestore drain'), or give '{wanted}' to lose them for good."
        else:
            there = "nothing unpublished is in staging"
            then = "Leave --lose-rows and --lose-files out."
        said = f", not {said_rows:,} and {said_files:,}" if said_rows or said_files else ""
        super().__init__(f"{there}{said}; nothing was cleared. {then}")


class NotRestored(TimestoreError):
    """A segment could not be read when the ledger was rebuilt, so the ledger does not know its rows."""

    def __init__(self, entry_id: int, path: object) -> None:
        self.entry_id = entry_id
        self.path = str(path)
        super().__init__(
            f"quarantine entry {entry_id}: the ledger was rebuilt without {path}, which could not be read. Restore the "
            "file from a backup and run 'timestore ledger rebuild --replace', or give it up with "
            f"'timestore quarantine discard {entry_id}'."
        )


class TableError(TimestoreError):
    """The Delta table of a dataset cannot be opened or committed to."""


class TableGone(TableError):
    """A dataset's table is not where it was, though the place of all tables is there; nothing was changed."""

    def __init__(self, dataset: str, location: str, version: int) -> None:
        self.dataset = dataset
        self.location = location
        self.version = version
        self.remedy = (
            "Mount or restore it; then all goes on by itself. If it was deleted on purpose, run 'timestore "
            f"installation adopt tables/{dataset}': what segments still have of its rows is published again, the "
            "others are lost."
        )
        super().__init__(
            f"dataset {dataset!r}: there is no table at {location}, and it was at version {version}. Nothing was "
            f"changed, and what is staged waits. {self.remedy}"
        )


class TablesAway(TableError):
    """Tables that datasets have are not where they were while a ledger is made again; nothing was done."""

    def __init__(self, tables: Sequence[tuple[str, str]]) -> None:
        self.tables = tuple(tables)
        named = "; ".join(f"dataset {dataset!r} has a table, and there is none at {place}" for dataset, place in tables)
        options = " ".join(f"--lost-table {dataset}" for dataset, _ in tables)
        super().__init__(
            f"{named}. Nothing was done: what segments still have would be staged again, and its rows be there twice "
            "once the table is back. Mount or restore it. Where it is gone for good, say so with "
            f"'{options}': what segments still have of its rows is published again, the others are lost."
        )


class SegmentsLost(LedgerError):
    """The ledger that is to be replaced has staged rows whose segments are not there; nothing was done."""

    def __init__(self, datasets: Sequence[tuple[str, int, str]]) -> None:
        self.datasets = tuple(datasets)
        named = "; ".join(
            f"dataset {dataset!r} has {rows:,} staged rows of which the segments are not in {place}"
            for dataset, rows, place in datasets
        )
        options = " ".join(f"--lost-segments {dataset}" for dataset, _, _ in datasets)
        super().__init__(
            f"{named}. Nothing was done: the new ledger would know nothing of these rows. Put the folder or the files "
            f"back, or mount them. Where they are gone for good, say so with '{options}': these rows are lost."
        )


class TableNotOurs(TableError):
    """A table must not be written to: it is another installation's, or its log and the ledger contradict each other.

    Args:
        dataset: whose table it should be.
        location: where it is.
        reason: a short word for it, as in metrics.
        found: what its log says, as the end of a sentence.
        way_out: what to do.
    """

    def __init__(self, dataset: str, location: str, reason: str, found: str, way_out: str) -> None:
        self.dataset = dataset
        self.location = location
        self.reason = reason
        super().__init__(
            f"dataset {dataset!r}: the table at {location} is not written to, and nothing was changed: {found}. "
            f"{way_out}"
        )


class AnotherTable(TableError):
    """There is another table in the place of the one that the ledger knows; its rows are not the dataset's."""

    def __init__(self, dataset: str, location: str, found: str, known: str | None, way_out: str) -> None:
        super().__init__(
            f"dataset {dataset!r}: the table at {location} is not read: it is another table (Delta id {found}) than "
            f"the one that the ledger knows ({known}). {way_out}"
        )


class DeltaPanic(TableError, OSError):
    """delta-rs gave up in the middle of a call. An OSError too: whether a commit arrived must be looked up."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"delta-rs gave up: {' '.join(reason.split())}. Its report is on stderr; try again.")

    def __str__(self) -> str:
        return str(self.args[0])


class QueryError(TimestoreError):
    """A query of the user cannot be run."""
