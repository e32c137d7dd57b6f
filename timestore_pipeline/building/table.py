"""The Delta table of a dataset: creating it, committing a build to it once, and fencing a build that died.

Every commit of a build carries two application transactions (Delta protocol, "Transaction Identifiers"):

- ``timestore/<dataset>/<lane>`` = the build's sequence. delta-rs refuses a second commit of it from a stale handle, and
  rebases a commit over those of other lanes.
- ``timestore/<dataset>/<lane>/published`` = the same sequence, only where the commit publishes rows. A fence leaves it
  out, so that whoever finds the sequence in the table can tell a published build from a fenced one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import (
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    Schema,
    TableFeatures,
    Transaction,
)
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from timestore_pipeline.clock import now_micros
from timestore_pipeline.columns import POSITION_COLUMN, WINDOW_COLUMN, Column
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.durable_files import fsync_path, make_folder, sync_private
from timestore_pipeline.errors import TableError
from timestore_pipeline.ledger.builds import PUBLISHING
from timestore_pipeline.settings import MOST_LANES

if TYPE_CHECKING:
    from timestore_pipeline.ledger.builds import Build

LOG_FOLDER = "_delta_log"

_ARROW_TYPES = {
    "BOOLEAN": pa.bool_(),
    "TINYINT": pa.int8(),
    "SMALLINT": pa.int16(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "VARCHAR": pa.string(),
    "BLOB": pa.binary(),
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", "UTC"),
}
_NO_WINDOW = "-"
_NAIVE_TIMES = "timestampNtz"

# Each attempt but the first follows a commit of another lane, which takes much longer to prepare than to commit.
_MOST_ATTEMPTS = 100


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file in place and durable; ``path`` is relative to the table, ``statistics`` as Delta has them."""

    path: str
    window_key: str
    rows: int
    bytes: int
    modified_at_ms: int
    statistics: Mapping[str, Any]


@dataclass(frozen=True)
class TableFile:
    """A file that is live in the table."""

    path: str
    window_key: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Replacement:
    """Files that a commit takes out of the table, as they are live on ``table``: the handle that it commits on.

    ``kept`` are the other files of the same windows (``window_keys``), which stay. ``data_change`` says whether the
    rows become others; where they do not, as in a compaction, whoever follows the table's changes has nothing to do.
    """

    table: DeltaTable
    files: tuple[TableFile, ...]
    kept: tuple[TableFile, ...] = ()
    data_change: bool = True
    window_keys: frozenset[str] = frozenset()

    def unchanged_on(self, table: DeltaTable) -> Replacement | None:
        """Return the same replacement on a newer handle; None where its windows have other files there."""
        live = {file for file in live_files(table) if file.window_key in self.window_keys}
        same = live == {*self.files, *self.kept} and _types(table.schema()) == _types(self.table.schema())
        return replace(self, table=table) if same else None

    def only(self, files: Collection[TableFile]) -> Replacement:
        """Return the replacement of just these of its files."""
        chosen = set(files)
        return replace(
            self,
            files=tuple(file for file in self.files if file in chosen),
            kept=(*self.kept, *(file for file in self.files if file not in chosen)),
        )


class SequenceTaken(Exception):
    """The table already has this sequence or a later one: the build was published or fenced."""


def has_table(path: Path) -> bool:
    """Whether there is a table. Killed at the wrong moment, delta-rs leaves an empty folder, which is none yet."""
    log = path / LOG_FOLDER
    return log.is_dir() and any(log.glob("*.json"))


def ensure_table(path: Path, dataset: str, columns: Sequence[Column], seen: int | None = None, fenced: int = 0) -> int:
    """Create the dataset's table unless it exists; return its version.

    The table is there before any build commits to it, so that a fence always has a table to be put into. ``seen`` is
    the version that readers were given, None where there was none yet. In a new table the builds up to the sequence
    ``fenced`` are fenced from the start.

    Raises:
        TableError: it cannot be created or opened, or has lost entries of its log since readers saw it.
    """
    log = path / LOG_FOLDER
    if has_table(path):
        version = open_table(path, dataset).version()
        if seen is not None and version < seen:
            raise TableError(
                f"dataset {dataset!r}: the table at {path} is at version {version} and was at {seen}; "
                f"restore the missing entries of {log}"
            )
        return version
    if seen is not None:
        raise TableError(f"dataset {dataset!r}: {log} is gone or empty, the table was at version {seen}; restore it")
    with _translated(path, dataset):
        make_folder(path)
        table = DeltaTable.create(
            str(path),
            schema=arrow_schema(columns),
            mode="ignore",
            partition_by=[WINDOW_COLUMN],
            name=dataset,
            commit_properties=CommitProperties(app_transactions=_fences(dataset, fenced) if fenced else []),
        )
        version = table.version()
    reach(CrashPoint.TABLE_CREATED)
    _sync_log(path, version)
    fsync_path(path)
    return version


def open_table(path: Path, dataset: str, version: int | None = None) -> DeltaTable:
    """Open the table at ``version``, by default the latest.

    Raises:
        TableError: it is missing or damaged.
    """
    entry = path / LOG_FOLDER / f"{version or 0:020d}.json"
    if version is not None and entry.exists() and not entry.stat().st_size:
        # delta-rs would take it for a commit of nothing, and its rows would be missing without a word.
        raise TableError(f"dataset {dataset!r}: the log entry {entry} is empty; restore it")
    with _translated(path, dataset):
        return DeltaTable(str(path), version=version)


def last_sequence(table: DeltaTable, dataset: str, lane: int | None = None) -> int:
    """Return the sequence of the last build of a lane that was published or fenced, 0 for none; the highest of all."""
    lanes = range(MOST_LANES) if lane is None else (lane,)
    return max(table.transaction_version(_app_id(dataset, each)) or 0 for each in lanes)


def last_published_sequence(table: DeltaTable, dataset: str, lane: int) -> int:
    """Return the sequence of the last build of a lane that was published, 0 for none."""
    return table.transaction_version(_published_app_id(dataset, lane)) or 0


def is_published(table: DeltaTable, build: Build) -> bool:
    """Whether a build that has not ended in the ledger is in the table, at the version of ``table``."""
    return last_published_sequence(table, build.dataset, build.lane) == build.sequence


def read_for_replacement(
    path: Path, build: Build, window_keys: Collection[str], *, data_change: bool = True
) -> Replacement:
    """Return all live files of some windows, for a build that reads them and commits others in their place.

    Raises:
        SequenceTaken: the build was fenced before.
        TableError: the table is missing or damaged.
    """
    table = open_table(path, build.dataset)
    if last_sequence(table, build.dataset, build.lane) >= build.sequence:
        raise SequenceTaken
    wanted = frozenset(window_keys)
    files = tuple(file for file in live_files(table) if file.window_key in wanted)
    return Replacement(table, files, data_change=data_change, window_keys=wanted)


def commit_build(
    path: Path,
    build: Build,
    columns: Sequence[Column],
    files: Sequence[ParquetFile],
    replacement: Replacement | None = None,
) -> int:
    """Publish a build's files in one commit, in place of those of ``replacement``, durably; return the table version.

    A replacement is committed on a handle on which its windows are as they were found, and only as the very next
    version: delta-rs does not mind when a commit removes a file that another one has removed already, and its rows
    would be there twice. Where another lane's commit came in between, the windows are looked at again on a new handle.

    Raises:
        SequenceTaken: the build was fenced (or published) before; nothing was committed.
        TableError: the commit failed, and whether it is in the table must be looked up.
    """
    for file in files:
        size = (path / file.path).stat().st_size
        if size != file.bytes:
            raise TableError(f"dataset {build.dataset!r}: {path / file.path} has {size} bytes instead of {file.bytes}")
    data_change = replacement is None or replacement.data_change
    actions: list[AddAction | RemoveAction] = [
        AddAction(
            path=file.path,
            size=file.bytes,
            partition_values={WINDOW_COLUMN: file.window_key},
            modification_time=file.modified_at_ms,
            data_change=data_change,
            # Not escaped: delta-rs reads the escape of a letter beyond the second plane as another letter.
            stats=json.dumps(file.statistics, ensure_ascii=False),
        )
        for file in files
    ]
    grows = replacement is not None and _grows(build, replacement.table, columns)
    if replacement is not None and not grows:
        actions += [
            RemoveAction(
                path=file.path,
                data_change=data_change,
                deletion_timestamp=now_micros() // 1_000,
                size=file.bytes,
                partition_values={WINDOW_COLUMN: file.window_key},
            )
            for file in replacement.files
        ]
    transactions = [
        Transaction(_app_id(build.dataset, build.lane), build.sequence),
        Transaction(_published_app_id(build.dataset, build.lane), build.sequence),
    ]
    if replacement is not None and grows and replacement.kept:
        raise TableError(
            f"dataset {build.dataset!r}: its columns have changed, and only some files of a window would get the new "
            "ones; try again after the next flush."
        )
    return _commit(path, build, actions, transactions, "publish", columns, replacement)


def commit_fence(path: Path, build: Build, columns: Sequence[Column]) -> int:
    """Make sure that a build can never be published; return the table version.

    Raises:
        SequenceTaken: the build is in the table already, published or fenced.
        TableError: the commit failed.
    """
    return _commit(path, build, [], [Transaction(_app_id(build.dataset, build.lane), build.sequence)], "fence", columns)


def declare_types(path: Path, dataset: str, columns: Sequence[Column]) -> None:
    """Make the table ready for columns of types that it was not created with: a commit that changes no row.

    Raises:
        TableError: the table cannot be used; try again.
    """
    if not any(column.type == "TIMESTAMP" for column in columns):
        return
    table = open_table(path, dataset)
    if _NAIVE_TIMES in (table.protocol().reader_features or []):
        return
    with _translated(path, dataset):
        table.alter.add_feature(TableFeatures.TimestampWithoutTimezone, allow_protocol_versions_increase=True)
    for version in range(table.version(), open_table(path, dataset).version() + 1):
        _sync_log(path, version)
    reach(CrashPoint.TYPES_DECLARED)


def fence_all(path: Path, dataset: str, sequence: int) -> DeltaTable:
    """Make sure that no build up to ``sequence``, which nobody knows of any more, can be published; return the table.

    Whatever its lane is.

    Raises:
        SequenceTaken: a later one is in the table.
        TableError: the commit failed; nothing is fenced.
    """
    table = open_table(path, dataset)
    if last_sequence(table, dataset) >= sequence:
        raise SequenceTaken
    try:
        table.create_write_transaction(
            [],
            "append",
            pa.schema(table.schema().to_arrow()),
            [WINDOW_COLUMN],
            commit_properties=CommitProperties(
                app_transactions=_fences(dataset, sequence),
                custom_metadata={"timestoreAction": "fence", "timestoreSequence": str(sequence)},
            ),
        )
    except CommitFailedError as error:
        if last_sequence(open_table(path, dataset), dataset) >= sequence:
            raise SequenceTaken from error
        raise TableError(f"dataset {dataset!r}: commit to {path} failed: {error}") from error
    except (DeltaError, OSError) as error:
        raise TableError(f"dataset {dataset!r}: commit to {path} failed: {error}") from error
    fenced = open_table(path, dataset)
    for version in range(max(0, table.version() - 1), fenced.version() + 1):
        _sync_log(path, version)
    return fenced


def published_sequences(table: DeltaTable, dataset: str) -> set[int]:
    """Return the sequences of builds of which the table still says that it has them: not those of long ago."""
    found = {last_published_sequence(table, dataset, lane) for lane in range(MOST_LANES)}
    for entry in table.history():
        if entry.get("timestoreAction") == "publish":
            found.add(int(entry["timestoreSequence"]))
    names = (file.path.rpartition("/")[2].partition("-")[0] for file in live_files(table))
    return (found | {int(name) for name in names if name.isdecimal()}) - {0}


def table_columns(table: DeltaTable) -> tuple[Column, ...]:
    """Return the columns of a dataset's table, without the partition column and the position of a row.

    Raises:
        ValueError: one has a type that no dataset can hold.
    """
    types = {arrow: name for name, arrow in _ARROW_TYPES.items()}
    found = []
    for field in pa.schema(table.schema().to_arrow()):
        if field.name in (WINDOW_COLUMN, POSITION_COLUMN):
            continue
        if pa.types.is_decimal(field.type):
            found.append(Column(field.name, f"DECIMAL({field.type.precision},{field.type.scale})"))
        elif field.type in types:
            found.append(Column(field.name, types[field.type]))
        else:
            raise ValueError(f"column {field.name!r} of the table has the type {field.type}")
    return tuple(found)


def version_of_build(table: DeltaTable, build: Build, limit: int | None = None) -> int:
    """Return the table version that published ``build``; that of ``table`` where its log no longer says.

    ``limit``: look at so many versions only, the last ones.
    """
    for entry in table.history(limit):
        if entry.get("timestoreSequence") == str(build.sequence) and entry.get("timestoreAction") == "publish":
            return int(entry["version"])
    return table.version()


def sync_found(path: Path, table: DeltaTable, seen: int | None) -> None:
    """Make the log entries durable that processes which died may have left unsynced (invariant 6).

    That is, all since the version ``seen`` that readers are given (None: there was no table yet), and the last two.
    """
    last = table.version()
    for version in range(max(0, min(last - 1, last if seen is None else seen + 1)), last + 1):
        _sync_log(path, version)


def live_files(table: DeltaTable) -> list[TableFile]:
    """Return the files of the table at the version of ``table``."""
    partition = f"partition.{WINDOW_COLUMN}"
    # Only these: Python has no datetime for some of the bounds that the statistics may have.
    wanted = ["path", partition, "num_records", "size_bytes"]
    actions = pa.table(table.get_add_actions(flatten=True)).select(wanted).to_pylist()
    return [
        TableFile(
            path=unquote(action["path"]),
            window_key=action[partition],
            rows=action["num_records"],
            bytes=action["size_bytes"],
        )
        for action in actions
    ]


def file_bounds(table: DeltaTable) -> pa.Table:
    """Return a row per live file, in no order: ``path``, ``window_key``, and ``min.<column>``, ``max.<column>``.

    The bounds have the columns' own types; one that the log does not have is null, or missing in all rows.
    """
    actions = pa.table(table.get_add_actions(flatten=True))
    names = [name for name in actions.column_names if name == "path" or name.startswith(("min.", "max."))]
    bounds = actions.select(names).append_column(WINDOW_COLUMN, actions[f"partition.{WINDOW_COLUMN}"])
    paths = pa.array([unquote(path) for path in actions["path"].to_pylist()], pa.string())
    return bounds.set_column(bounds.column_names.index("path"), "path", paths)


def version_at(path: Path, dataset: str, moment: datetime) -> int:
    """Return the version that the table was at, at a time.

    Raises:
        TableError: it is missing or damaged, or its log does not reach back so far.
    """
    table = open_table(path, dataset)
    with _translated(path, dataset):
        table.load_as_version(moment)
    return table.version()


def file_prefix(sequence: int) -> str:
    """Return how the names of all files of a build start; no two builds of a dataset share it."""
    return f"{sequence:010d}-"


def sequence_of_file(name: str) -> int | None:
    """Return the sequence of the build that wrote a file of that name; None for files of other tools."""
    number = name.partition("-")[0]
    return int(number) if len(number) == len(file_prefix(0)) - 1 and number.isdecimal() else None


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """Return the Arrow schema of a table with these columns and the partition column."""
    return pa.schema(
        [*(pa.field(column.name, _arrow_type(column)) for column in columns), (WINDOW_COLUMN, pa.string())]
    )


def _arrow_type(column: Column) -> pa.DataType:
    if column.type.startswith("DECIMAL"):
        precision, scale = column.type.removeprefix("DECIMAL(").removesuffix(")").split(",")
        return pa.decimal128(int(precision), int(scale))
    return _ARROW_TYPES[column.type]


def _app_id(dataset: str, lane: int) -> str:
    return f"timestore/{dataset}/{lane}"


def _published_app_id(dataset: str, lane: int) -> str:
    return f"{_app_id(dataset, lane)}/published"


def _fences(dataset: str, sequence: int) -> list[Transaction]:
    return [Transaction(_app_id(dataset, lane), sequence) for lane in range(MOST_LANES)]


def _commit(
    path: Path,
    build: Build,
    actions: list[AddAction | RemoveAction],
    transactions: list[Transaction],
    action: str,
    columns: Sequence[Column],
    replacement: Replacement | None = None,
) -> int:
    """Commit on a new handle, or on the one that is held since the files to be removed were looked up."""
    attempts = 0
    while True:
        attempts += 1
        table = replacement.table if replacement is not None else open_table(path, build.dataset)
        # delta-rs refuses a repeated sequence only on a handle that has not seen the first one, so look on this
        # handle and commit on this handle: no commit can come in between unnoticed.
        if last_sequence(table, build.dataset, build.lane) >= build.sequence:
            raise SequenceTaken
        reach(CrashPoint.TABLE_CHECKED)
        try:
            _commit_on(table, build, actions, transactions, action, columns, replacement)
            break
        except CommitFailedError as error:
            now = open_table(path, build.dataset)
            if last_sequence(now, build.dataset, build.lane) >= build.sequence:
                raise SequenceTaken from error
            moved = replacement is not None and now.version() > table.version() and attempts < _MOST_ATTEMPTS
            replacement = replacement.unchanged_on(now) if replacement is not None and moved else None
            if replacement is None:
                raise TableError(f"dataset {build.dataset!r}: commit to {path} failed: {error}") from error
        except (DeltaError, OSError) as error:
            raise TableError(f"dataset {build.dataset!r}: commit to {path} failed: {error}") from error
    reach(CrashPoint.TABLE_COMMITTED)
    mine = _sync_commit(path, build, since=table.version())
    reach(CrashPoint.TABLE_SYNCED)
    return mine


def _commit_on(
    table: DeltaTable,
    build: Build,
    actions: list[AddAction | RemoveAction],
    transactions: list[Transaction],
    action: str,
    columns: Sequence[Column],
    replacement: Replacement | None,
) -> None:
    # delta-rs takes a new schema up only with an overwrite: of no window, so that it removes nothing by itself, or
    # of those that are replaced, whose files it then removes instead of actions that it would not take.
    grows = action == "publish" and _grows(build, table, columns)
    windows = sorted({file.window_key for file in replacement.files}) if replacement is not None else []
    table.create_write_transaction(
        actions,
        "overwrite" if grows else "append",
        arrow_schema(columns),
        [WINDOW_COLUMN],
        partition_filters=[(WINDOW_COLUMN, "in", windows or [_NO_WINDOW])] if grows else None,
        commit_properties=CommitProperties(
            app_transactions=transactions,
            custom_metadata={
                "timestoreAction": action,
                "timestoreKind": build.kind.value,
                "timestoreBuild": str(build.id),
                "timestoreSequence": str(build.sequence),
                "timestoreOwner": build.owner,
            },
            max_commit_retries=None if replacement is None else 0,
        ),
        # Maintenance does that, and leaves the versions that readers may hold.
        post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
    )


def has_columns(table: DeltaTable, columns: Sequence[Column]) -> bool:
    """Whether the table has just these columns at its version; those of the ledger may be ahead until a flush."""
    return _types(table.schema()) == _types(Schema.from_arrow(arrow_schema(columns)))


def types_that_differ(table: DeltaTable, columns: Sequence[Column]) -> set[str]:
    """Return the names of those columns that the table has with another type."""
    had = _types(table.schema())
    wanted = _types(Schema.from_arrow(arrow_schema(columns)))
    return {name for name, type_ in wanted.items() if had.get(name, type_) != type_}


def _grows(build: Build, table: DeltaTable, columns: Sequence[Column]) -> bool:
    """Whether the commit gives the table new columns or wider types: only builds that publish slices do."""
    return build.kind in PUBLISHING and not has_columns(table, columns)


def _types(schema: Schema) -> dict[str, str]:
    return {field.name: field.type.to_json() for field in schema.fields}


def _sync_commit(path: Path, build: Build, since: int) -> int:
    """Make the log durable from version ``since`` on; return the version that is the build's.

    The entry before may be of a process that died before it could sync it.
    """
    latest = open_table(path, build.dataset).version()
    mine = latest
    for version in range(since, latest + 1):
        _sync_log(path, version)
        if (
            version > since
            and f'"timestoreSequence":"{build.sequence}"' in (path / LOG_FOLDER / f"{version:020d}.json").read_text()
        ):
            mine = version
    return mine


def _sync_log(path: Path, version: int) -> None:
    """Make the log entry ``version`` durable, with a checkpoint that came with it and the folder."""
    log = path / LOG_FOLDER
    entry = log / f"{version:020d}.json"
    if entry.exists():  # old ones are cleaned up behind a checkpoint
        sync_private(entry)
    checkpoints = list(log.glob(f"{version:020d}.checkpoint*"))
    for file in (*checkpoints, *([log / "_last_checkpoint"] if checkpoints else [])):
        sync_private(file)
    sync_private(log)


@contextmanager
def _translated(path: Path, dataset: str) -> Iterator[None]:
    try:
        yield
    except TableNotFoundError as error:
        raise TableError(f"dataset {dataset!r}: there is no table at {path}") from error
    except (DeltaError, OSError) as error:
        raise TableError(f"dataset {dataset!r}: the table at {path} cannot be used: {error}") from error
