"""The files of a build: written from the slices that it claimed, and from those of the table that its commit replaces.

A build replaces the windows of a dataset with a key, those that are rebuilt, those of which corrections take published
rows, and those whose files have narrower types:
a reader of Delta tables takes a file without a column for nulls, but not every one takes an INT32 for a BIGINT or a
DECIMAL(6,2) for a DECIMAL(8,4). So the commit that widens a column replaces all files that have it narrower.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import duckdb

from timestore_pipeline.building.corrected_files import (
    FilesToRewrite,
    corrections_of_build,
    files_to_rewrite,
    files_with_taken_rows,
)
from timestore_pipeline.building.publication import WrittenFiles
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.remote_files import duckdb_name, duckdb_path
from timestore_pipeline.duck.sql import column_list, literal, time_range_sql
from timestore_pipeline.errors import TableError, TimestoreError
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.ledger.claims import Claim, replace_also
from timestore_pipeline.ledger.corrected_windows import LeftOut, Taken, record_taken
from timestore_pipeline.ledger.schemas import schema_history
from timestore_pipeline.ledger.states import BuildKind
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.windows import Window
from timestore_pipeline.rows.one_per_key import winning_rows
from timestore_pipeline.segments.description import SEGMENT_TABLE
from timestore_pipeline.segments.slices import (
    MOST_ATTACHED,
    attach_segment,
    bring_segments,
    detach_segment,
    gather_slices,
    rows_of_segment,
    rows_taken,
)
from timestore_pipeline.staging.room import check_disk
from timestore_pipeline.storage.layout import gathering_file
from timestore_pipeline.store import Store
from timestore_pipeline.table.commit import declare_types
from timestore_pipeline.table.contents import ParquetFile, TableFile, has_columns, live_files, types_that_differ
from timestore_pipeline.table.delta import DeltaTable
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.parquet import WindowFolders, WindowSource, slices_as_source, window_folders, write_window
from timestore_pipeline.table.replacement import read_for_replacement

log = log_named(__name__)

_FILES_PER_LOOK = 500


def write_claim(store: Store, columns: Sequence[Column], claim: Claim, target_file_bytes: int) -> WrittenFiles:
    """Write the files of all claimed windows, and of those that the commit has to replace besides.

    A rebuild has all rows of its windows in its claim, so that nothing is taken over from their files. ``columns`` are
    those of the table, and the next file of a window starts at ``target_file_bytes``.

    Raises:
        SegmentUnreadable, TableError, DiskFull: as they say.
        duckdb.Error: the files cannot be written.
    """
    spec = store.datasets[claim.build.dataset]
    place = store.table(spec.name)
    claim, of_slices = _without_taken_slices(claim)
    left_out = LeftOut(of_slices)
    claimed = {spec.window_at(piece.window_start) for piece in claim.slices}
    replaced = {spec.window_at(start) for start in claim.replaced}
    rebuilt = set(replaced) if claim.build.kind is BuildKind.REBUILD else set()
    files: list[ParquetFile] = []
    narrow: set[Window] = set()
    with (
        store.connect(place, *store.segment_folders(spec.name)) as connection,
        window_folders(store, claim.build, columns) as folders,
    ):
        if claim.build.schema_version > 1:
            declare_types(OwnTable(store, spec.name), columns)
            narrow = _narrow_windows(store, connection, spec, columns, claim)
            replaced |= narrow
        corrections = corrections_of_build(store, claim.build) if replaced - rebuilt else {}
        replacement = None
        live: dict[str | None, list[TableFile]] = defaultdict(list)
        if replaced:
            keys = [window.key for window in replaced]
            replacement = read_for_replacement(OwnTable(store, spec.name), claim.build, keys)
            for file in replacement.files:
                live[file.window_key].append(file)
            if not spec.key and has_columns(replacement.table, columns):
                # What a correction takes lies in some files of a window; the others stay as they are.
                for window in corrections.keys() & replaced - narrow:
                    files_of, acting = live[window.key], corrections[window]
                    live[window.key] = files_with_taken_rows(folders, connection, window, files_of, acting)
                replacement = replacement.only([file for some in live.values() for file in some])

        def write(window: Window, staged: WindowSource | None) -> None:
            check_disk(store, place.root)
            source = staged
            if replacement is not None and window in replaced:
                again = FilesToRewrite()
                if window not in rebuilt:
                    acting = corrections.get(window, ())
                    again = files_to_rewrite(folders, connection, window, live[window.key], acting)
                left_out.of_files.update(again.taken)
                source = rewritten_source(folders, connection, window, staged, again)
            if source is not None and source.rows != 0:
                files.extend(write_window(folders, connection, window, source, target_file_bytes))

        if claim.slices:
            for window, source, taken in _staged_windows(store, connection, spec, columns, claim):
                left_out.of_slices.update(taken)
                write(window, source)
        for window in sorted(replaced - claimed - rebuilt):
            write(window, None)
    if left_out.taken:
        store.ledger.transact(lambda tx: record_taken(tx, claim.build.id, left_out.taken))
        reach(CrashPoint.TAKEN_RECORDED)
    return WrittenFiles(files, replacement, left_out)


def _without_taken_slices(claim: Claim) -> tuple[Claim, Taken]:
    """Return a claim with the slices that are to be read, and how many rows the others have, which all are taken."""
    taken: Taken = Counter()
    for piece in claim.slices:
        if piece.is_taken:
            first = next(each for each in piece.corrections if each.takes_all(piece.min_time, piece.max_time))
            taken[piece.window_start, first.number] += piece.rows
    if not taken:
        return claim, taken
    return replace(claim, slices=tuple(piece for piece in claim.slices if not piece.is_taken)), taken


def _narrow_windows(
    store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, columns: Sequence[Column], claim: Claim
) -> set[Window]:
    """Return the windows whose files must be written anew because a column is wider now; the ledger knows of them."""
    table = open_table(store.table(spec.name), spec.name)
    keys = narrow_windows(store, connection, spec, columns, table)
    found = {window for key in keys if (window := spec.window_of_partition(key)) is not None}
    if found:
        log.warning("%s: a column has a wider type now; %d windows are written anew for it", spec.name, len(found))
        starts = [window.start_micros for window in found]
        store.ledger.transact(lambda tx: replace_also(tx, claim.build, starts))
        reach(CrashPoint.WINDOWS_ADDED)
    return found


def _staged_windows(
    store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, columns: Sequence[Column], claim: Claim
) -> Iterator[tuple[Window, WindowSource, Taken]]:
    """Yield each window with its staged rows, which are there while it is written, and with what is taken of them."""
    by_window = claim.by_window()
    if max(len(pieces) for pieces in by_window.values()) > MOST_ATTACHED:
        with _scratch_file(store, connection, claim.build) as scratch:
            table = f"{scratch}.{SEGMENT_TABLE}"
            gathered = gather_slices(store, connection, spec, columns, claim.slices, table)
            of_windows: defaultdict[int, Taken] = defaultdict(Counter)
            for each, rows in gathered.items():
                of_windows[each[0]][each] = rows
            for window_start, pieces in by_window.items():
                here = of_windows[window_start]
                yield spec.window_at(window_start), slices_as_source(store, pieces, [table], here.total()), here
        return
    last_use = {piece.segment_id: window for window, pieces in by_window.items() for piece in pieces}
    attached: set[str] = set()
    for window_start, pieces in by_window.items():
        bring_segments(store, (piece for piece in pieces if piece.segment_id not in attached))
        for piece in pieces:
            if piece.segment_id not in attached:
                attach_segment(store, connection, piece)
                attached.add(piece.segment_id)
        taken: Taken = Counter()
        for piece in pieces:
            taken += rows_taken(connection, spec, piece)
        tables = [rows_of_segment(spec, columns, piece) for piece in pieces]
        yield spec.window_at(window_start), slices_as_source(store, pieces, tables, taken.total()), taken
        for segment_id in [name for name in attached if last_use[name] == window_start]:
            detach_segment(connection, segment_id)
            attached.remove(segment_id)


@contextmanager
def _scratch_file(store: Store, connection: duckdb.DuckDBPyConnection, build: Build) -> Iterator[str]:
    """Attach an empty DuckDB file for the time of a build: what is gathered there may be larger than memory."""
    path = store.settings.temp_path / gathering_file(build.dataset, build.sequence)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    connection.execute(f"ATTACH {literal(str(path))} AS scratch")
    try:
        yield "scratch"
    finally:
        connection.execute("DETACH scratch")
        path.unlink(missing_ok=True)


def published_columns(store: Store, spec: DatasetSpec, table: DeltaTable) -> tuple[Column, ...]:
    """Return the columns that the files of the table have, as the dataset's latest may not be published yet.

    With a key the position is among them.

    Raises:
        TableError: the dataset never had such columns: somebody else has changed the table.
    """
    with store.ledger.read() as tx:
        history = schema_history(tx, spec.name)
    for version in reversed(history):
        columns = spec.table_columns(version.columns)
        if has_columns(table, columns):
            return columns
    raise TableError(
        f"dataset {spec.name!r}: its table has columns that the dataset never had; "
        f"'timestore schema {spec.name}' shows those that it had. Restore the table's log from a backup."
    )


def narrow_windows(
    store: Store, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, columns: Sequence[Column], table: DeltaTable
) -> set[str]:
    """Return the keys of the windows with a file in which a column is narrower than in ``columns``.

    The footers are read only where the table itself has a narrower column.
    """
    wider = {column.name: column.type for column in columns if column.name in types_that_differ(table, columns)}
    if not wider:
        return set()
    place = store.table(spec.name)
    live = live_files(table)
    # DuckDB gives the name back without what escapes it.
    window_of = {str(duckdb_path(place, file.path)): file.window_key for file in live}
    found: set[str] = set()
    for start in range(0, len(live), _FILES_PER_LOOK):
        some = live[start : start + _FILES_PER_LOOK]
        files = ", ".join(literal(duckdb_name(place, file.path)) for file in some)
        rows = connection.execute(f"SELECT file_name, name, duckdb_type FROM parquet_schema([{files}])").fetchall()
        narrow = {window_of[path] for path, name, type_ in rows if name in wider and type_ != wider[name]}
        found |= {key for key in narrow if key is not None}
    return found


def rewritten_source(
    folders: WindowFolders,
    connection: duckdb.DuckDBPyConnection,
    window: Window,
    staged: WindowSource | None,
    again: FilesToRewrite,
) -> WindowSource | None:
    """Return the rows of a window from its live files and from what is ``staged``; with a key just those that win.

    None where there are neither.

    Raises:
        SegmentUnreadable, TableError: with a key, another number of rows was read than there should be.
    """
    spec, columns = folders.spec, folders.columns
    live = again.files

    def wrong(reason: str) -> TimestoreError:
        return TableError(
            f"dataset {spec.name!r}: the files of window {window.key} cannot be read again: {reason}. "
            f"Restore them from a backup: {', '.join(file.path for file in live[:3])}"
        )

    if not live and not (staged and spec.key):
        return staged
    source = WindowSource(
        relations=[*(staged.relations if staged else ()), *again.relations],
        rows=((staged and staged.rows) or 0) + again.rows,
        bytes=(staged.bytes if staged else 0) + sum(file.bytes for file in live),
        one_after_the_other=False,
        counted_by="the ledger and the table",
        wrong=staged.wrong if staged and not live else wrong,
    )
    if not spec.key or not source.rows:
        return source
    condition = time_range_sql(spec.time_column(columns), window.start_micros, window.end_micros)
    parts = [f"SELECT {column_list(columns)} FROM {relation} WHERE {condition}" for relation in source.relations]
    rows = " UNION ALL ".join(parts)
    found = connection.execute(f"SELECT count(*) FROM ({rows})").fetchall()[0][0]
    if found != source.rows:
        raise source.wrong(f"{found} rows were read where {source.counted_by} have {source.rows}")
    return WindowSource(
        relations=[f"({winning_rows(spec, columns, rows)})"],
        rows=None,
        bytes=source.bytes,
        one_after_the_other=False,
        counted_by=source.counted_by,
        wrong=source.wrong,
    )
