"""Deletes old runs of sensors and schedules, with their event logs and files, but none that the UI still shows.

Dagster knows a partition as materialized only while the run that materialized it last is there. So that run stays,
and the latest of every asset and check. Runs that a person started are left to people.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

from timestore_pipeline.model.freed import Freed

_AUTOMATIC_TAGS = ("dagster/sensor_name", "dagster/schedule_name")
_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_PAGE = 500
_PER_QUERY = 200


@dataclass(frozen=True)
class RunRetention:
    """Automatic runs that ended are deleted when older than ``age``, or more than ``number``; 0 is no limit."""

    age: timedelta
    number: int


@dataclass(frozen=True)
class OldRuns:
    """Runs that have had their time, oldest first, and how many as old are still shown; what was freed with them."""

    ids: tuple[str, ...] = ()
    kept: int = 0
    freed: Freed = field(default_factory=Freed)

    @property
    def runs(self) -> int:
        """How many runs go."""
        return len(self.ids)


def find_old_runs(
    instance: dg.DagsterInstance,
    retention: RunRetention,
    check_keys: Sequence[dg.AssetCheckKey],
    *,
    most: int,
    now: datetime | None = None,
) -> OldRuns:
    """Return the automatic runs that have had their time, at most ``most``; which files go with them is seen later."""
    old = _old_runs(instance, retention, now or datetime.now(UTC))
    if not old:
        return OldRuns()
    needed = shown_runs(instance, check_keys)
    chosen = [run_id for run_id in old if run_id not in needed]
    return OldRuns(tuple(chosen[:most]), kept=len(old) - len(chosen))


def delete_runs(instance: dg.DagsterInstance, old: OldRuns) -> OldRuns:
    """Delete runs with their files, and what deleted runs have left; return them with what that freed.

    May be killed at any moment: what is left of a run is found by its file the next time.
    """
    freed = Freed()
    for run_id in old.ids:
        instance.delete_run(run_id)
        freed += _remove_files(instance, run_id)
    return replace(old, freed=freed + _remove_strays(instance))


def shown_runs(instance: dg.DagsterInstance, check_keys: Sequence[dg.AssetCheckKey]) -> set[str]:
    """Return the runs of the latest materialization of every asset and partition, and of the latest of every check."""
    needed: set[str] = set()
    materialized, observed = dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_OBSERVATION
    for key in instance.all_asset_keys():
        for event_type, fetch in (
            (materialized, instance.fetch_materializations),
            (observed, instance.fetch_observations),
        ):
            latest = instance.event_log_storage.get_latest_storage_id_by_partition(key, event_type)
            needed |= _runs_of_events(fetch, key, sorted(latest.values()))
        event = instance.get_latest_materialization_event(key)
        if event is not None:
            needed.add(event.run_id)
    checks = instance.event_log_storage.get_latest_asset_check_execution_by_key(check_keys)
    return needed | {record.run_id for record in checks.values()}


def _runs_of_events(
    fetch: Callable[..., dg.EventRecordsResult], key: dg.AssetKey, storage_ids: Sequence[int]
) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(storage_ids), _PER_QUERY):
        wanted = dg.AssetRecordsFilter(asset_key=key, storage_ids=storage_ids[start : start + _PER_QUERY])
        found |= {record.run_id for record in fetch(wanted, limit=_PER_QUERY).records}
    return found


def _old_runs(instance: dg.DagsterInstance, retention: RunRetention, now: datetime) -> list[str]:
    """Return the automatic runs that ended and have had their time, oldest first."""
    ended: list[tuple[datetime, str]] = []
    for record in _ended_runs(instance):
        if any(tag in record.dagster_run.tags for tag in _AUTOMATIC_TAGS):
            ended.append((record.update_timestamp.replace(tzinfo=UTC), record.dagster_run.run_id))
    ended.sort()
    by_number = len(ended) - retention.number if retention.number else 0
    before = now - retention.age if retention.age else datetime.min.replace(tzinfo=UTC)
    return [run_id for place, (at, run_id) in enumerate(ended) if at < before or place < by_number]


def _ended_runs(instance: dg.DagsterInstance) -> Iterator[dg.RunRecord]:
    cursor = None
    while True:
        page = instance.get_run_records(dg.RunsFilter(statuses=_FINISHED), limit=_PAGE, cursor=cursor)
        yield from page
        if len(page) < _PAGE:
            return
        cursor = page[-1].dagster_run.run_id


def _remove_files(instance: dg.DagsterInstance, run_id: str) -> Freed:
    """Remove what Dagster leaves of a deleted run on disk: its event log's database, its output and its results."""
    return sum((_remove(path) for path in _files_of_run(instance, run_id)), Freed())


def _files_of_run(instance: dg.DagsterInstance, run_id: str) -> Iterator[Path]:
    events = instance.event_log_storage
    if isinstance(events, SqliteEventLogStorage):
        database = Path(events.path_for_shard(run_id))
        yield from (database, *(database.with_name(database.name + end) for end in ("-wal", "-shm", "-journal")))
    logs = instance.compute_log_manager
    if isinstance(logs, LocalComputeLogManager):
        # Output of the steps, and what they returned, lie in a folder of the run.
        yield Path(logs.get_captured_local_path([run_id, "compute_logs", "any"], "out")).parents[1]


def _remove(path: Path) -> Freed:
    """Remove a file or a folder."""
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        freed = Freed(len(files), sum(file.stat().st_size for file in files))
        shutil.rmtree(path, ignore_errors=True)
        return freed
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return Freed()
    return Freed(1, size)


def _remove_strays(instance: dg.DagsterInstance) -> Freed:
    """Remove the event logs of runs that are gone: of runs deleted in the UI, or by a process that was killed."""
    events = instance.event_log_storage
    if not isinstance(events, SqliteEventLogStorage):
        return Freed()
    freed = Freed()
    folder = Path(events.path_for_shard("x")).parent
    for database in sorted(folder.glob("????????-????-????-????-????????????.db")):
        if instance.get_run_by_id(database.stem) is None:
            freed += _remove_files(instance, database.stem)
    return freed
