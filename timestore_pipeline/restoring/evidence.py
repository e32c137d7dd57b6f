"""What the files of a dataset say, read without a ledger: segments, quarantine, the table and its manifests.

The table is fenced before it is looked at: a build that still runs from the time before can then not publish rows any
more that are about to be taken for staged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

import duckdb
import pyarrow as pa

from timestore_pipeline.datasets import NAME_PATTERN
from timestore_pipeline.duck.sql import literal
from timestore_pipeline.errors import TableError, TableNotOurs, TablesAway, TimestoreError
from timestore_pipeline.ledger.claims import MOST_APART
from timestore_pipeline.model.columns import BATCH_COLUMN, Column
from timestore_pipeline.segments.corrections import CorrectionFile, read_correction
from timestore_pipeline.segments.description import (
    SEGMENT_TABLE,
    Description,
    NotDescribed,
    describe_segment,
    read_refused_rows,
    read_segment,
)
from timestore_pipeline.storage import Entry, Storage
from timestore_pipeline.storage.layout import (
    acknowledged_correction,
    dataset_of,
    decided_by,
    folders_of,
    is_correction,
    is_of_segment,
    is_refused_rows,
    is_segment,
    is_unfinished,
)
from timestore_pipeline.storage.marks import datasets_with_table_marks, table_mark
from timestore_pipeline.storage.table_folder import file_name, has_table, parquet_files, scratch_of_windows
from timestore_pipeline.store import Store
from timestore_pipeline.table.commit import fence_all
from timestore_pipeline.table.contents import TableFile, last_position, live_files, sequence_of_file, table_columns
from timestore_pipeline.table.delta import DeltaTable
from timestore_pipeline.table.manifests import (
    Published,
    forget_manifests,
    keep_manifest,
    last_manifest_sequence,
    pending_manifests,
    read_manifests,
    read_versions,
    tables_with_manifests,
)
from timestore_pipeline.table.opening import declare_owner, open_table, owner_of
from timestore_pipeline.table.replacement import SequenceTaken
from timestore_pipeline.table.sequences import last_sequence, published_sequences
from timestore_pipeline.table.title import Objection, way_out

T = TypeVar("T")

# Of builds in flight, the sequences are the next ones, of as many as there are lanes. More costs nothing.
_SEQUENCES_AHEAD = 1_000 * MOST_APART


@dataclass(frozen=True)
class FoundSegment:
    """A segment that says what it holds; ``set_aside`` where it lies in quarantine because part of it is damaged.

    ``numbers`` is one more than the highest number of its rows, 0 without a key.
    """

    id: str
    file: Entry
    description: Description
    columns: tuple[Column, ...]
    numbers: int
    set_aside: bool

    @property
    def age(self) -> tuple[int, str]:
        """By which segments sort, oldest first: by what had been acknowledged when they were begun.

        Those of versions that did not say it come first, by the clocks of their writers.
        """
        after = self.description.after
        return -1 if after is None else after, self.id


@dataclass(frozen=True)
class FoundCorrection:
    """A correction that was acknowledged, and its file; None where only its segment says it any more."""

    said: CorrectionFile
    file: Entry | None


@dataclass(frozen=True)
class TableEvidence:
    """The table as it stands behind the fence with the sequence ``fenced``, and what its manifests say.

    ``columns`` are those of the table, ``versions`` those that the dataset had had when it was last published.
    ``dead`` are sequences that a build may have had, and that can never be published any more. ``last_position`` is the
    highest position of a row, 0 without a key.
    """

    table_id: str
    version: int
    fenced: int
    dead: tuple[int, ...]
    columns: tuple[Column, ...]
    versions: tuple[tuple[Column, ...], ...]
    files: tuple[TableFile, ...]
    published: tuple[Published, ...]
    last_position: int


@dataclass(frozen=True)
class Evidence:
    """All that is found of one dataset.

    ``unreadable`` are segments and files of refused rows that do not say what they hold, each with the reason;
    ``resolved`` are (file of refused rows, ordinal) that are decided.
    """

    dataset: str
    segments: tuple[FoundSegment, ...] = ()
    unreadable: tuple[tuple[Entry, str], ...] = ()
    refused: tuple[tuple[Entry, Description], ...] = ()
    resolved: frozenset[tuple[str, int]] = frozenset()
    bad_files: tuple[Entry, ...] = ()
    corrections: tuple[FoundCorrection, ...] = ()
    table: TableEvidence | None = None
    notes: tuple[str, ...] = field(default=())


def datasets_with_files(store: Store) -> set[str]:
    """Return the names of all datasets, declared or not, that have segments, quarantined files or a table."""
    found = set()
    for entry in store.staging.entries():
        found.add(dataset_of(entry.key))
    found |= {name for name in store.datasets if has_table(store.table(name))}
    # Other tables may lie there too; a manifest says that it is one of timestore's.
    found |= tables_with_manifests(store.tables)
    return {name for name in found if name is not None and re.match(NAME_PATTERN, name)}


def refuse_tables_away(store: Store, had: Collection[str] = (), lost: Collection[str] = ()) -> None:
    """Refuse to go on without the tables of the datasets ``had``, and of those of which marks or manifests say it.

    But for those that are ``lost`` for good.

    Raises:
        TablesAway: one is not there; what its segments have is published, and would be staged again.
    """
    names = {*had, *datasets_with_table_marks(store.tables), *tables_with_manifests(store.tables)}.difference(lost)
    places = {name: store.table(name) for name in sorted(names) if re.match(NAME_PATTERN, name)}
    # One with Parquet files and no log is another matter.
    away = [
        (name, place.location)
        for name, place in places.items()
        if not has_table(place) and not any(parquet_files(place))
    ]
    if away:
        raise TablesAway(away)


def give_up_tables(store: Store, datasets: Iterable[str]) -> None:
    """Let nothing say any more that these datasets have tables, where there is none: they are gone for good.

    Raises:
        TableError: one is there.
    """
    for name in datasets:
        place = store.table(name)
        if has_table(place):
            raise TableError(f"dataset {name!r}: the table at {place.location} is there, so it is not given up.")
        forget_manifests(place)
        store.tables.delete(table_mark(name))


def gather(store: Store, dataset: str, *, fence: bool = True, take_over: bool = False) -> Evidence:
    """Fence the dataset's table and read all that its files say; without ``fence`` nothing is changed.

    With ``take_over`` a table of another installation becomes this one's.

    Raises:
        TableNotOurs: the table is another installation's.
        TableError: the table cannot be read, so nobody can say what is published.
        TimestoreError: a file must not be read by this user.
    """
    notes: list[str] = []
    table = _table_evidence(store, dataset, notes, fence, take_over)
    segments: list[FoundSegment] = []
    unreadable: list[tuple[Entry, str]] = []
    home, aside, corrections = (_files(store, folder) for folder in folders_of(dataset))
    refused: list[tuple[Entry, Description]] = []
    bad_files: list[Entry] = []
    resolved: set[tuple[str, int]] = set()
    with store.connect(*store.segment_folders(dataset)) as connection:
        for file in [*aside, *home]:
            if is_segment(file.key):
                found = _try(store, lambda each: read_segment(connection, each), file, unreadable)
                if found is not None:
                    segments.append(FoundSegment(PurePosixPath(file.key).stem, file, *found, file in aside))
        for file in aside:
            decided = decided_by(file_name(file.key))
            if is_refused_rows(file.key):
                described = _try(store, lambda each: read_refused_rows(connection, each), file, unreadable)
                if described is not None:
                    refused.append((file, described))
            elif decided is not None:
                resolved.add(decided)
            elif not is_unfinished(file.key) and not is_of_segment(file.key):
                bad_files.append(file)
    published = {each.contribution.segment_id for each in table.published} if table else set()
    said = {file.key for file in corrections if is_correction(file.key)}
    # An object store has both names for a moment, while one becomes the other.
    unkept = {path for file in corrections if (path := acknowledged_correction(file.key))} - said
    pending = {PurePosixPath(path).stem for path in unkept}
    unsaid = {each.id for each in segments if each.description.correction and each.id in pending - published}
    for segment_id in sorted(unsaid):
        notes.append(
            f"{dataset}: segment {segment_id} was to replace a range, and its files do not say that this was "
            "acknowledged. It is left out, and swept after an hour: move it away to keep it"
        )
    segments = [each for each in segments if each.id not in unsaid]
    return Evidence(
        dataset,
        tuple(segments),
        tuple(unreadable),
        tuple(refused),
        frozenset(resolved),
        tuple(bad_files),
        tuple(_corrections(store, corrections, segments, notes)),
        table,
        tuple(notes),
    )


def _corrections(
    store: Store, files: Iterable[Entry], segments: Iterable[FoundSegment], notes: list[str]
) -> Iterator[FoundCorrection]:
    """Go through the corrections that were acknowledged, by their files and, where these are gone, by segments."""
    known = set()
    for file in files:
        if is_correction(file.key):
            try:
                yield FoundCorrection(read_correction(store, file.key), file)
            except (NotDescribed, OSError) as error:
                notes.append(f"{store.staging.shown(file.key)}: nobody knows any more what it corrected: {error}")
            else:
                known.add(PurePosixPath(file.key).stem)
    for each in segments:
        correction = each.description.correction
        if correction is not None and each.id not in known:
            said = CorrectionFile(correction, each.description.batches[0].batch, each.id)
            yield FoundCorrection(said, None)


def _try(store: Store, read: Callable[[Path], T], file: Entry, unreadable: list[tuple[Entry, str]]) -> T | None:
    path = store.staging.fetch(file.key)
    if not os.access(path, os.R_OK):
        raise TimestoreError(f"{path} must not be read by this user; run this as the user of the service")
    try:
        return read(path)
    except NotDescribed as error:
        if store.staging.forget(file.key):  # it may be the copy that is damaged
            with suppress(NotDescribed):
                return read(store.staging.fetch(file.key))
        unreadable.append((file, str(error)))
        return None


def _files(store: Store, folder: str) -> list[Entry]:
    return [entry for entry in store.staging.entries(f"{folder}/") if entry.key.count("/") == folder.count("/") + 1]


def _table_evidence(store: Store, dataset: str, notes: list[str], fence: bool, take_over: bool) -> TableEvidence | None:
    place, mine = store.table(dataset), store.ledger.identity
    if not has_table(place):
        if any(parquet_files(place)):
            raise TableError(
                f"dataset {dataset!r}: {place.location} has Parquet files and no log, so nobody can say what is "
                "published. Restore its _delta_log; or move the folder away, then what segments still have is "
                "published again"
            )
        return None
    while True:
        table = open_table(place, dataset)
        _refuse_others(store, dataset, table, take_over)
        if fence and owner_of(table) != mine:
            # Whoever had it and is still at work is refused from now on.
            declare_owner(place, dataset, table, mine)
            notes.append(f"{dataset}: its table belongs to this installation from now on")
            continue
        last = last_sequence(table, dataset)
        fenced = max(last, last_manifest_sequence(place), *_sequences_of_files(place)) + _SEQUENCES_AHEAD
        try:
            table = fence_all(place, dataset, fenced, mine) if fence else table
            break
        except SequenceTaken:
            continue  # a build that was alive came in between; the next fence is above it
    files = tuple(live_files(table))
    have = published_sequences(place, table, dataset)
    pending = pending_manifests(place)
    newest = max(have, default=0)
    # What they wrote is left to the sweep, which asks the table first.
    dead = {each for each in _sequences_of_files(place) if each > newest} | (set(pending) - have)
    if fence:
        for sequence in pending:
            if sequence in have:
                keep_manifest(place, sequence)
                notes.append(f"{dataset}: build sequence {sequence} had reached the table before its end was recorded")
            else:
                notes.append(f"{dataset}: build sequence {sequence} had not reached the table, its rows are staged")
    try:
        published = tuple(read_manifests(place))
        versions = tuple(read_versions(place))
        columns = table_columns(table)
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise TableError(
            f"dataset {dataset!r}: a manifest or the schema of {place.location} cannot be read, so nobody can say what "
            f"is published: {error}. Restore it from a backup"
        ) from error
    return TableEvidence(
        str(table.metadata().id),
        table.version(),
        fenced,
        tuple(sorted(dead)),
        columns,
        versions,
        files,
        published,
        last_position(table),
    )


def _refuse_others(store: Store, dataset: str, table: DeltaTable, take_over: bool) -> None:
    """Refuse a table that says that it is another installation's, unless it shall be taken over."""
    owner, mine = owner_of(table), store.ledger.identity
    if take_over or owner in (None, mine):
        return
    raise TableNotOurs(
        dataset,
        store.table(dataset).location,
        Objection.OTHER_INSTALLATION.value,
        f"it belongs to installation {owner}, and the ledger would be that of {mine}",
        way_out(Objection.OTHER_INSTALLATION),
    )


def _sequences_of_files(place: Storage) -> set[int]:
    """The sequences in the names of Parquet files, and 0: of builds too that died before their manifests."""
    names = [file_name(entry.key) for entry in parquet_files(place)]
    names += [file_name(left.key).lstrip(".") for left in scratch_of_windows(place)]
    return {0, *(sequence for name in names if (sequence := sequence_of_file(name)) is not None)}


def carve(connection: duckdb.DuckDBPyConnection, source: Path, target: Path, description: Description) -> None:
    """Write a segment with the batches of ``description`` alone, taken from one that has more; not synced yet.

    Raises:
        duckdb.Error: it cannot be read or written.
    """
    ordinals = ", ".join(str(each.ordinal) for each in description.batches)
    connection.execute(f"ATTACH {literal(str(source))} AS whole (READ_ONLY)")
    connection.execute(f"ATTACH {literal(str(target))} AS part (BLOCK_SIZE 16384)")
    connection.execute("BEGIN")
    connection.execute(
        f"CREATE TABLE part.{SEGMENT_TABLE} AS FROM whole.{SEGMENT_TABLE} WHERE {BATCH_COLUMN} IN ({ordinals})"
    )
    describe_segment(connection, "part", description)
    connection.execute("COMMIT")
    connection.execute("DETACH part")
    connection.execute("DETACH whole")
