"""Commits to the Delta table of a dataset: it is created, builds are published once, or fenced (invariant 5)."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.errors import TableError
from timestore_pipeline.ledger.builds import PUBLISHING
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import WINDOW_COLUMN, Column
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.table_folder import (
    has_table,
    log_entry,
    sync_log,
)
from timestore_pipeline.table.delta import (
    AddAction,
    CommitFailedError,
    CommitProperties,
    DeltaError,
    DeltaTable,
    PostCommitHookProperties,
    RemoveAction,
    TableFeatures,
    Transaction,
    add_feature,
)

if TYPE_CHECKING:
    from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.table.contents import ParquetFile, delta_schema, has_columns
from timestore_pipeline.table.opening import (
    NAIVE_TIMES,
    OWNER_PROPERTY,
    delta_in_words,
    open_table,
    open_unchecked,
    translated,
)
from timestore_pipeline.table.replacement import Owned, Replacement, SequenceTaken
from timestore_pipeline.table.sequences import app_id, fences_of_all_lanes, last_sequence, published_app_id

_NO_WINDOW = "-"

# Each attempt but the first follows a commit of another lane, which takes much longer to prepare than to commit.
_MOST_ATTEMPTS = 100


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
    with translated(place, dataset):
        place.make_root()
        try:
            table = DeltaTable.create(
                place.location,
                schema=delta_schema(columns),
                mode="ignore",
                storage_options=dict(place.options),
                partition_by=[WINDOW_COLUMN],
                name=dataset,
                configuration={OWNER_PROPERTY: installation},
                raise_if_key_not_exists=False,
                commit_properties=CommitProperties(
                    custom_metadata={"timestoreInstallation": installation},
                    # Retried, one of two processes would put its metadata after the other's, and fail builds by that.
                    max_commit_retries=0,
                    app_transactions=fences_of_all_lanes(dataset, fenced) if fenced else [],
                ),
            )
        except (DeltaError, OSError):
            # Its answer may have been lost on the way from an object store, or another process was quicker.
            if not has_table(place):
                raise
            table = open_unchecked(place)
        version = table.version()
    reach(CrashPoint.TABLE_CREATED)
    sync_log(place, version)
    place.sync()


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
        Transaction(app_id(build.dataset, build.lane), build.sequence),
        Transaction(published_app_id(build.dataset, build.lane), build.sequence),
    ]
    if replacement is not None and grows and replacement.kept:
        raise TableError(
            f"dataset {build.dataset!r}: its columns have changed, and only some files of a window would get the new "
            "ones; try again after the next flush."
        )
    return _commit(own, _LogEntry(build, "publish", columns, transactions, actions, replacement))


def commit_fence(own: Owned, build: Build, columns: Sequence[Column]) -> int:
    """Make sure that a build can never be published; return the table version.

    Raises:
        SequenceTaken: the build is in the table already, published or fenced.
        TableError: the commit failed.
    """
    fence = Transaction(app_id(build.dataset, build.lane), build.sequence)
    return _commit(own, _LogEntry(build, "fence", columns, [fence]))


def declare_types(own: Owned, columns: Sequence[Column]) -> None:
    """Make the table ready for columns of types that it was not created with: a commit that changes no row.

    Raises:
        TableError: the table cannot be used, or is not ours; try again.
    """
    place, dataset = own.place, own.dataset
    if not any(column.type == "TIMESTAMP" for column in columns):
        return
    table = own.opened()
    if NAIVE_TIMES in (table.protocol().reader_features or []):
        return
    with translated(place, dataset):
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
                app_transactions=fences_of_all_lanes(dataset, sequence),
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
        raise TableError(f"dataset {dataset!r}: commit to {place.location} failed: {delta_in_words(error)}") from error
    fenced = open_table(place, dataset)
    for version in range(max(0, table.version() - 1), fenced.version() + 1):
        sync_log(place, version)
    return fenced


@dataclass(frozen=True)
class _LogEntry:
    """What a build enters in the log; ``action`` is "publish" or "fence", ``columns`` are those of the table then."""

    build: Build
    action: str
    columns: Sequence[Column]
    transactions: list[Transaction]
    actions: list[AddAction | RemoveAction] = field(default_factory=list)
    replacement: Replacement | None = None


def _commit(own: Owned, entry: _LogEntry) -> int:
    """Commit on a new handle, or on the one that is held since the files to be removed were looked up.

    Either was looked at when it was opened. What the ledger has learnt since does not change what was in that version.
    """
    place, build, replacement, attempts = own.place, entry.build, entry.replacement, 0
    while True:
        attempts += 1
        table = replacement.table if replacement is not None else own.opened()
        # delta-rs refuses a repeated sequence only on a handle that has not seen the first one, so look on this
        # handle and commit on this handle: no commit can come in between unnoticed.
        if last_sequence(table, build.dataset, build.lane) >= build.sequence:
            raise SequenceTaken
        reach(CrashPoint.TABLE_CHECKED)
        try:
            _commit_on(table, replace(entry, replacement=replacement), own.installation)
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
                failed = f"dataset {build.dataset!r}: commit to {place.location} failed: {delta_in_words(error)}"
                raise TableError(failed) from error
    reach(CrashPoint.TABLE_COMMITTED)
    mine = _sync_commit(place, build, since=table.version())
    reach(CrashPoint.TABLE_SYNCED)
    return mine


def _commit_on(table: DeltaTable, entry: _LogEntry, installation: str) -> None:
    build, columns, replacement = entry.build, entry.columns, entry.replacement
    # delta-rs takes a new schema up only with an overwrite: of no window, so that it removes nothing by itself, or
    # of those that are replaced, whose files it then removes instead of actions that it would not take.
    grows = entry.action == "publish" and _grows(build, table, columns)
    windows = sorted({file.window_key or "" for file in replacement.files}) if replacement is not None else []
    table.create_write_transaction(
        entry.actions,
        "overwrite" if grows else "append",
        delta_schema(columns),
        [WINDOW_COLUMN],
        partition_filters=[(WINDOW_COLUMN, "in", windows or [_NO_WINDOW])] if grows else None,
        commit_properties=CommitProperties(
            app_transactions=entry.transactions,
            custom_metadata={
                "timestoreAction": entry.action,
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


def _grows(build: Build, table: DeltaTable, columns: Sequence[Column]) -> bool:
    """Whether the commit gives the table new columns or wider types: only builds that publish slices do."""
    return build.kind in PUBLISHING and not has_columns(table, columns)


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
