"""The Delta table of a dataset: creating it, committing a build to it once, and fencing a build that died.

Every commit of a build carries two application transactions (Delta protocol, "Transaction Identifiers"):

- ``timestore/<dataset>/<lane>`` = the build's sequence. delta-rs refuses a second commit of it from a stale handle, and
  rebases a commit over those of other lanes.
- ``timestore/<dataset>/<lane>/published`` = the same sequence, only where the commit publishes rows. A fence leaves it
  out, so that whoever finds the sequence in the table can tell a published build from a fenced one.

Whose a table is stands in its properties: these survive checkpoints and the clean-up of the log, and other programs
leave them as they are. Once they are changed, delta-rs refuses the commit of every build whose handle is older.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import PyFileSystem

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import TableError, TimestoreError
from timestore_pipeline.ledger.builds import PUBLISHING
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import POSITION_COLUMN, WINDOW_COLUMN, Column, delta_type, type_in_delta
from timestore_pipeline.settings import MOST_LANES
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.table_folder import (
    entry_is_empty,
    file_name,
    has_table,
    log_entry,
    log_key,
    sync_log,
)
from timestore_pipeline.table.delta import (
    AddAction,
    CommitFailedError,
    CommitProperties,
    DeltaError,
    DeltaStorageHandler,
    DeltaTable,
    Field,
    PostCommitHookProperties,
    PrimitiveType,
    RemoveAction,
    Schema,
    TableFeatures,
    TableNotFoundError,
    Transaction,
    add_feature,
    set_properties,
)

if TYPE_CHECKING:
    from timestore_pipeline.ledger.builds import Build

_OWNER = "timestore.installation"
"""The property of a table that has the identity of its installation."""

_NO_WINDOW = "-"
_CUT_MICROS = 999
_NAIVE_TIMES = "timestampNtz"

# What changes nothing of how the rows of a file are read.
_READABLE_FEATURES = {_NAIVE_TIMES, "v2Checkpoint", "vacuumProtocolCheck"}

# Each attempt but the first follows a commit of another lane, which takes much longer to prepare than to commit.
_MOST_ATTEMPTS = 100


class Owned(Protocol):
    """A table as whoever it belongs to writes to it (see ``own_table.py``)."""

    @property
    def place(self) -> Storage:
        """Where its files are."""
        ...

    @property
    def dataset(self) -> str:
        """Whose rows it has."""
        ...

    @property
    def installation(self) -> str:
        """The identity of the one that it belongs to."""
        ...

    def opened(self) -> DeltaTable:
        """Open its latest version; raise :class:`~timestore_pipeline.errors.TableNotOurs` if none may commit on it."""
        ...


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
    """A file that is live in the table. ``window_key`` may be any text, or None, where another program wrote it."""

    path: str
    window_key: str | None
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


@dataclass(frozen=True)
class Commit:
    """A commit of a build, or a fence, as the log of a table has it.

    ``build`` and ``owner`` are None where it is of no single build.
    """

    version: int
    sequence: int
    is_fence: bool
    build: int | None
    owner: str | None


class SequenceTaken(Exception):
    """The table already has this sequence or a later one: the build was published or fenced."""


def ensure_table(place: Storage, dataset: str, columns: Sequence[Column], installation: str, fenced: int = 0) -> None:
    """Create the dataset's table unless it exists.

    The table is there before any build commits to it, so that a fence always has a table to be put into. It belongs to
    ``installation`` from its first commit on. In a new table the builds up to the sequence ``fenced`` are fenced from
    the start.

    Raises:
        TableError: it cannot be created.
    """
    if has_table(place):
        return
    with _translated(place, dataset):
        place.make_root()
        try:
            table = DeltaTable.create(
                place.location,
                schema=delta_schema(columns),
                mode="ignore",
                storage_options=dict(place.options),
                partition_by=[WINDOW_COLUMN],
                name=dataset,
                configuration={_OWNER: installation},
                raise_if_key_not_exists=False,
                commit_properties=CommitProperties(
                    custom_metadata={"timestoreInstallation": installation},
                    # Retried, one of two processes would put its metadata after the other's, and fail builds by that.
                    max_commit_retries=0,
                    app_transactions=_fences(dataset, fenced) if fenced else [],
                ),
            )
        except (DeltaError, OSError):
            # Its answer may have been lost on the way from an object store, or another process was quicker.
            if not has_table(place):
                raise
            table = _opened(place)
        version = table.version()
    reach(CrashPoint.TABLE_CREATED)
    sync_log(place, version)
    place.sync()


def open_table(place: Storage, dataset: str, version: int | None = None) -> DeltaTable:
    """Open the table at ``version``, by default the latest.

    Raises:
        PlaceError: the place of the tables is not there, or another installation's.
        TableError: it is missing or damaged.
    """
    place.require()
    if version is not None and entry_is_empty(place, version):
        # delta-rs would take it for a commit of nothing, and its rows would be missing without a word.
        raise TableError(f"dataset {dataset!r}: the log entry {place.shown(log_key(version))} is empty; restore it")
    with _translated(place, dataset, version):
        table = _opened(place, version)
    unknown = sorted(set(table.protocol().reader_features or ()) - _READABLE_FEATURES)
    if unknown:
        raise TableError(
            f"dataset {dataset!r}: version {table.version()} of the table at {place.location} needs "
            f"{', '.join(unknown)} to be read, which another program has switched on and timestore does not know: rows "
            "marked as deleted would be read. Restore the version before it, and switch it off in that program."
        )
    return table


def _opened(place: Storage, version: int | None = None) -> DeltaTable:
    return DeltaTable(place.location, version=version, storage_options=dict(place.options))


def owner_of(table: DeltaTable) -> str | None:
    """Return the identity of the installation that the table belongs to; None where it does not say."""
    return table.metadata().configuration.get(_OWNER)


def declare_owner(place: Storage, dataset: str, table: DeltaTable, installation: str) -> None:
    """Say in a table whose it is from now on, on a handle that has just been looked at.

    Builds in flight whose handles are older are refused, and come again.

    Raises:
        TableError: the commit failed; somebody else may have been quicker.
    """
    with _translated(place, dataset), suppress(CommitFailedError):
        said = CommitProperties(custom_metadata={"timestoreAction": "own", "timestoreInstallation": installation})
        set_properties(table, {_OWNER: installation}, said)
    for version in range(table.version(), open_table(place, dataset).version() + 1):
        sync_log(place, version)


def commits_of_builds(place: Storage, table: DeltaTable, dataset: str, limit: int) -> Iterator[Commit]:
    """Go through the commits of builds, and the fences, among the last ``limit`` entries of the log, latest first.

    Raises:
        TableError: the log cannot be read.
    """
    for entry in _history(place, table, dataset, limit):
        if entry.get("timestoreAction") in ("publish", "fence"):
            build = entry.get("timestoreBuild")
            yield Commit(
                version=int(entry["version"]),
                sequence=_number(entry.get("timestoreSequence")),
                is_fence=entry["timestoreAction"] == "fence",
                build=None if build is None else _number(build),
                owner=entry.get("timestoreOwner"),
            )


def _number(text: object) -> int:
    """Return a number of the ledger's in a log entry; -1, which the ledger gives to nothing, for anything else."""
    number = int(text) if isinstance(text, str) and re.fullmatch("[0-9]{1,19}", text) else -1
    return number if number < 2**63 else -1


def last_sequence(table: DeltaTable, dataset: str, lane: int | None = None) -> int:
    """Return the sequence of the last build of a lane that was published or fenced, 0 for none; the highest of all."""
    lanes = range(MOST_LANES) if lane is None else (lane,)
    return max(table.transaction_version(_app_id(dataset, each)) or 0 for each in lanes)


def is_of_dataset(table: DeltaTable, dataset: str) -> bool:
    """Whether the table's log says that a build of the dataset has committed to it, or a fence of one."""
    return last_sequence(table, dataset) > 0


def last_published_sequence(table: DeltaTable, dataset: str, lane: int) -> int:
    """Return the sequence of the last build of a lane that was published, 0 for none."""
    return table.transaction_version(_published_app_id(dataset, lane)) or 0


def is_published(table: DeltaTable, build: Build) -> bool:
    """Whether a build that has not ended in the ledger is in the table, at the version of ``table``."""
    return last_published_sequence(table, build.dataset, build.lane) == build.sequence


def read_for_replacement(
    own: Owned, build: Build, window_keys: Collection[str], *, data_change: bool = True
) -> Replacement:
    """Return all live files of some windows, for a build that reads them and commits others in their place.

    Raises:
        SequenceTaken: the build was fenced before.
        TableError: the table is missing or damaged, or not ours.
    """
    table = own.opened()
    if last_sequence(table, build.dataset, build.lane) >= build.sequence:
        raise SequenceTaken
    wanted = frozenset(window_keys)
    files = tuple(file for file in live_files(table) if file.window_key in wanted)
    return Replacement(table, files, data_change=data_change, window_keys=wanted)


def commit_build(
    own: Owned,
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
        TableNotOurs: the table is not ours, or the ledger does not know all of it; nothing was committed.
        TableError: the commit failed, and whether it is in the table must be looked up.
    """
    place = own.place
    for file in files:
        size = place.size(file.path)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place.shown(file.path))
        if size != file.bytes:
            shown = place.shown(file.path)
            raise TableError(f"dataset {build.dataset!r}: {shown} has {size} bytes instead of {file.bytes}")
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
    return _commit(own, build, actions, transactions, "publish", columns, replacement)


def commit_fence(own: Owned, build: Build, columns: Sequence[Column]) -> int:
    """Make sure that a build can never be published; return the table version.

    Raises:
        SequenceTaken: the build is in the table already, published or fenced.
        TableError: the commit failed.
    """
    fence = Transaction(_app_id(build.dataset, build.lane), build.sequence)
    return _commit(own, build, [], [fence], "fence", columns)


def declare_types(own: Owned, columns: Sequence[Column]) -> None:
    """Make the table ready for columns of types that it was not created with: a commit that changes no row.

    Raises:
        TableError: the table cannot be used, or is not ours; try again.
    """
    place, dataset = own.place, own.dataset
    if not any(column.type == "TIMESTAMP" for column in columns):
        return
    table = own.opened()
    if _NAIVE_TIMES in (table.protocol().reader_features or []):
        return
    with _translated(place, dataset):
        said = CommitProperties(custom_metadata={"timestoreInstallation": own.installation})
        add_feature(table, TableFeatures.TimestampWithoutTimezone, said)
    for version in range(table.version(), open_table(place, dataset).version() + 1):
        sync_log(place, version)
    reach(CrashPoint.TYPES_DECLARED)


def fence_all(place: Storage, dataset: str, sequence: int, installation: str) -> DeltaTable:
    """Make sure that no build up to ``sequence``, which nobody knows of any more, can be published; return the table.

    Whatever its lane is. ``installation`` does it; the caller has looked whether the table is its own.

    Raises:
        SequenceTaken: a later one is in the table.
        TableError: the commit failed; nothing is fenced.
    """
    table = open_table(place, dataset)
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
                custom_metadata={
                    "timestoreAction": "fence",
                    "timestoreSequence": str(sequence),
                    "timestoreInstallation": installation,
                },
            ),
        )
    except (DeltaError, OSError) as error:
        # Whatever it was: the answer to a commit that arrived may be lost on the way.
        if last_sequence(open_table(place, dataset), dataset) >= sequence:
            raise SequenceTaken from error
        raise TableError(f"dataset {dataset!r}: commit to {place.location} failed: {_in_words(error)}") from error
    fenced = open_table(place, dataset)
    for version in range(max(0, table.version() - 1), fenced.version() + 1):
        sync_log(place, version)
    return fenced


def published_sequences(place: Storage, table: DeltaTable, dataset: str) -> set[int]:
    """Return the sequences of builds of which the table still says that it has them: not those of long ago."""
    found = {last_published_sequence(table, dataset, lane) for lane in range(MOST_LANES)}
    for entry in _history(place, table, dataset):
        if entry.get("timestoreAction") == "publish":
            found.add(int(entry["timestoreSequence"]))
    names = (file_name(file.path).partition("-")[0] for file in live_files(table))
    return (found | {int(name) for name in names if name.isdecimal()}) - {0}


def table_columns(table: DeltaTable) -> tuple[Column, ...]:
    """Return the columns of a dataset's table, without the partition column and the position of a row.

    Raises:
        ValueError: one has a type that no dataset can hold.
    """
    found = []
    for field in table.schema().fields:
        if field.name in (WINDOW_COLUMN, POSITION_COLUMN):
            continue
        type_ = type_in_delta(field.type.type)
        if type_ is None:
            raise ValueError(f"column {field.name!r} of the table has the type {field.type.type}")
        found.append(Column(field.name, type_))
    return tuple(found)


def version_of_build(place: Storage, table: DeltaTable, build: Build, limit: int | None = None) -> int:
    """Return the table version that published ``build``; that of ``table`` where its log no longer says.

    ``limit``: look at so many versions only, the last ones.
    """
    for entry in _history(place, table, build.dataset, limit):
        if entry.get("timestoreSequence") == str(build.sequence) and entry.get("timestoreAction") == "publish":
            return int(entry["version"])
    return table.version()


def _history(place: Storage, table: DeltaTable, dataset: str, limit: int | None = None) -> Iterator[Mapping[str, Any]]:
    """Go through what commits say of themselves, latest first: so many of them, or as far back as the log has entries.

    They are read one by one: delta-rs reads all, and holds Python's lock meanwhile, so that not even a heartbeat of a
    build comes through.
    """
    with _translated(place, dataset):
        first = 0 if limit is None else max(0, table.version() - limit + 1)
        for version in range(table.version(), first - 1, -1):
            try:
                entry = log_entry(place, version)
            except FileNotFoundError:
                return  # cleaned up behind a checkpoint
            for action in _actions(entry, version):
                yield from ({**info, "version": version} for name, info in action.items() if name == "commitInfo")


def _actions(entry: str, version: int) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in entry.splitlines()]
    except ValueError as error:
        raise DeltaError(f"the log entry of version {version} is damaged: {error}") from error


def sync_found(place: Storage, table: DeltaTable, seen: int | None) -> None:
    """Make the log entries durable that processes which died may have left unsynced (invariant 6).

    That is, all since the version ``seen`` that readers are given (None: there was no table yet), and the last two.
    """
    last = table.version()
    for version in range(max(0, min(last - 1, last if seen is None else seen + 1)), last + 1):
        sync_log(place, version)


def live_files(table: DeltaTable) -> list[TableFile]:
    """Return the files of the table at the version of ``table``."""
    partition = f"partition.{WINDOW_COLUMN}"
    # Only these: Python has no datetime for some of the bounds that the statistics may have.
    found = pa.table(table.get_add_actions(flatten=True))
    wanted = ["path", partition, "num_records", "size_bytes"]
    return [
        TableFile(
            path=unquote(action["path"]),
            window_key=action.get(partition),
            rows=_rows_of(table, action),
            bytes=action["size_bytes"],
        )
        for action in found.select([name for name in wanted if name in found.column_names]).to_pylist()
    ]


def _rows_of(table: DeltaTable, action: Mapping[str, Any]) -> int:
    """Return the rows of a file by the log, or where another program left them out there, by its footer."""
    rows = action.get("num_records")
    if rows is not None:
        return rows
    files = PyFileSystem(DeltaStorageHandler.from_table(table._table))
    try:
        return pq.read_metadata(unquote(action["path"]), filesystem=files).num_rows
    except (OSError, DeltaError, pa.ArrowException):
        return 0  # it is gone or damaged: the row audit says so


def last_position(table: DeltaTable) -> int:
    """Return the highest position of a row by the statistics in the log; 0 where there is none."""
    found = pa.table(table.get_add_actions(flatten=True))
    name = f"max.{POSITION_COLUMN}"
    positions = found[name].to_pylist() if name in found.column_names else []
    return max((position for position in positions if position is not None), default=0)


def file_bounds(table: DeltaTable) -> pa.Table:
    """Return a row per live file, in no order: ``path``, ``window_key``, and ``min.<column>``, ``max.<column>``.

    The bounds have the columns' own types; one that the log does not have is null, or missing in all rows.
    """
    actions = pa.table(table.get_add_actions(flatten=True))
    names = [name for name in actions.column_names if name == "path" or name.startswith(("min.", "max."))]
    bounds = actions.select(names).append_column(WINDOW_COLUMN, actions[f"partition.{WINDOW_COLUMN}"])
    paths = [unquote(path) for path in actions["path"].to_pylist()]
    foreign = [sequence_of_file(file_name(path)) is None for path in paths]
    for number, field in enumerate(bounds.schema if any(foreign) else ()):
        if field.name.startswith("max.") and pa.types.is_timestamp(field.type):
            # Other programs cut the times in statistics to milliseconds, as Delta's protocol lets them.
            later = pc.call_function("add", [bounds.column(number), pa.scalar(_CUT_MICROS, pa.duration("us"))])
            either = pc.call_function("if_else", [pa.array(foreign), later, bounds.column(number)])
            bounds = bounds.set_column(number, field, either)
    return bounds.set_column(bounds.column_names.index("path"), "path", pa.array(paths, pa.string()))


def version_at(place: Storage, dataset: str, moment: datetime) -> int:
    """Return the version that the table was at, at a time.

    Raises:
        TableError: it is missing or damaged, or its log does not reach back so far.
    """
    table = open_table(place, dataset)
    with _translated(place, dataset):
        table.load_as_version(moment)
    return table.version()


def file_prefix(sequence: int) -> str:
    """Return how the names of all files of a build start; no two builds share it, also not those of two ledgers."""
    return f"{sequence:010d}-"


def sequence_of_file(name: str) -> int | None:
    """Return the sequence of the build that wrote a file of that name; None for files of other tools."""
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() and name.startswith(file_prefix(int(number))) else None


def delta_schema(columns: Sequence[Column]) -> Schema:
    """Return the schema of a table with these columns and the partition column."""
    types = [*((column.name, delta_type(column.type)) for column in columns), (WINDOW_COLUMN, delta_type("VARCHAR"))]
    return Schema([Field(name, PrimitiveType(type_)) for name, type_ in types])


def _app_id(dataset: str, lane: int) -> str:
    return f"timestore/{dataset}/{lane}"


def _published_app_id(dataset: str, lane: int) -> str:
    return f"{_app_id(dataset, lane)}/published"


def _fences(dataset: str, sequence: int) -> list[Transaction]:
    return [Transaction(_app_id(dataset, lane), sequence) for lane in range(MOST_LANES)]


def _commit(
    own: Owned,
    build: Build,
    actions: list[AddAction | RemoveAction],
    transactions: list[Transaction],
    action: str,
    columns: Sequence[Column],
    replacement: Replacement | None = None,
) -> int:
    """Commit on a new handle, or on the one that is held since the files to be removed were looked up.

    Either was looked at when it was opened. What the ledger has learnt since does not change what was in that version.
    """
    place, attempts = own.place, 0
    while True:
        attempts += 1
        table = replacement.table if replacement is not None else own.opened()
        # delta-rs refuses a repeated sequence only on a handle that has not seen the first one, so look on this
        # handle and commit on this handle: no commit can come in between unnoticed.
        if last_sequence(table, build.dataset, build.lane) >= build.sequence:
            raise SequenceTaken
        reach(CrashPoint.TABLE_CHECKED)
        try:
            _commit_on(table, build, actions, transactions, action, own.installation, columns, replacement)
            break
        except (DeltaError, OSError) as error:
            # Whatever it was: the answer to a commit that arrived may be lost on the way.
            now = open_table(place, build.dataset)
            if last_sequence(now, build.dataset, build.lane) >= build.sequence:
                raise SequenceTaken from error
            conflict = isinstance(error, CommitFailedError)
            moved = conflict and replacement is not None and now.version() > table.version()
            again = moved and attempts < _MOST_ATTEMPTS
            replacement = replacement.unchanged_on(now) if replacement is not None and again else None
            # What is committed on is looked at as well; others have committed to it since.
            replacement = replacement and replacement.unchanged_on(own.opened())
            if replacement is None:
                failed = f"dataset {build.dataset!r}: commit to {place.location} failed: {_in_words(error)}"
                raise TableError(failed) from error
    reach(CrashPoint.TABLE_COMMITTED)
    mine = _sync_commit(place, build, since=table.version())
    reach(CrashPoint.TABLE_SYNCED)
    return mine


def _commit_on(
    table: DeltaTable,
    build: Build,
    actions: list[AddAction | RemoveAction],
    transactions: list[Transaction],
    action: str,
    installation: str,
    columns: Sequence[Column],
    replacement: Replacement | None,
) -> None:
    # delta-rs takes a new schema up only with an overwrite: of no window, so that it removes nothing by itself, or
    # of those that are replaced, whose files it then removes instead of actions that it would not take.
    grows = action == "publish" and _grows(build, table, columns)
    windows = sorted({file.window_key or "" for file in replacement.files}) if replacement is not None else []
    table.create_write_transaction(
        actions,
        "overwrite" if grows else "append",
        delta_schema(columns),
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
                "timestoreInstallation": installation,
            },
            max_commit_retries=None if replacement is None else 0,
        ),
        # Maintenance does that, and leaves the versions that readers may hold.
        post_commithook_properties=PostCommitHookProperties(cleanup_expired_logs=False),
    )


def has_columns(table: DeltaTable, columns: Sequence[Column]) -> bool:
    """Whether the table has just these columns at its version; those of the ledger may be ahead until a flush."""
    return _types(table.schema()) == _types(delta_schema(columns))


def types_that_differ(table: DeltaTable, columns: Sequence[Column]) -> set[str]:
    """Return the names of those columns that the table has with another type."""
    had = _types(table.schema())
    wanted = _types(delta_schema(columns))
    return {name for name, type_ in wanted.items() if had.get(name, type_) != type_}


def _grows(build: Build, table: DeltaTable, columns: Sequence[Column]) -> bool:
    """Whether the commit gives the table new columns or wider types: only builds that publish slices do."""
    return build.kind in PUBLISHING and not has_columns(table, columns)


def _types(schema: Schema) -> dict[str, str]:
    return {field.name: field.type.to_json() for field in schema.fields}


def _sync_commit(place: Storage, build: Build, since: int) -> int:
    """Make the log durable from version ``since`` on; return the version that is the build's.

    The entry before may be of a process that died before it could sync it.
    """
    latest = open_table(place, build.dataset).version()
    mine = latest
    for version in range(since, latest + 1):
        sync_log(place, version)
        if version > since and f'"timestoreSequence":"{build.sequence}"' in log_entry(place, version):
            mine = version
    return mine


@contextmanager
def _translated(place: Storage, dataset: str, version: int | None = None) -> Iterator[None]:
    try:
        yield
    except TimestoreError:
        raise
    except TableNotFoundError as error:
        if version is not None and has_table(place):
            raise TableError(
                f"dataset {dataset!r}: the log of the table at {place.location} does not reach back to version "
                f"{version} any more: it was cleaned up behind a later checkpoint. Read a later version."
            ) from error
        raise TableError(f"dataset {dataset!r}: there is no table at {place.location}") from error
    except (DeltaError, OSError) as error:
        raise TableError(
            f"dataset {dataset!r}: the table at {place.location} cannot be used: {_in_words(error)}"
        ) from error


def _in_words(error: Exception) -> str:
    """Return what delta-rs says in one line, without colours and without queries of URLs, which may be signed."""
    plain = re.sub(r"\x1b\[[0-9;]*m|↳", "", str(error))
    return " ".join(re.sub(r"(\w://[^\s?]*)\?\S*", r"\1", plain).split())
