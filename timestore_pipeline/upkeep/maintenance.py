"""Maintenance: all that keeps disk, table and ledger small, in one bounded pass that may be killed anywhere.

One dataset's failure never holds another's (invariant 9): it is told in the report, and tried again the next time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from timestore_pipeline.alone import alone
from timestore_pipeline.building.compact import (
    CompactionReport,
    compact_windows,
    effective_rules,
    merged_count,
    plan_compaction,
)
from timestore_pipeline.building.completion import follow_others
from timestore_pipeline.building.expire import ExpiredWindows, expire_windows, expired_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.crash_points import CrashPoint, reach
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.ledger.forgetting import Pruned, prune_batches, prune_builds
from timestore_pipeline.ledger.quarantine import QuarantineEntry
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.freed import Freed
from timestore_pipeline.operating.quarantine import try_again
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.kept_files import discard_old_entries, look_at_disk, remove_old_archive
from timestore_pipeline.upkeep.retention import sweep_orphans, unlink_published_segments
from timestore_pipeline.upkeep.vacuum import clean_log, vacuum_table

log = logging.getLogger(__name__)

T = TypeVar("T")


_NOTHING = Freed()


@dataclass(frozen=True)
class DatasetMaintenance:
    """What was done (or, of a dry run, would be) for one dataset."""

    dataset: str
    compaction: CompactionReport
    expired: ExpiredWindows
    vacuumed: Freed
    log_entries: Freed
    pruned: Pruned


@dataclass(frozen=True)
class MaintenanceReport:
    """What one pass did; ``problems`` are sentences on what it could not do."""

    datasets: tuple[DatasetMaintenance, ...]
    segments: Freed
    orphans: Freed
    tried_again: tuple[QuarantineEntry, ...] = ()
    discarded: tuple[QuarantineEntry, ...] = ()
    archived: Freed = _NOTHING
    problems: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def freed(self) -> Freed:
        """All files that were removed."""
        total = self.segments + self.orphans + self.archived
        total += Freed(len(self.discarded), sum(entry.bytes for entry in self.discarded))
        for each in self.datasets:
            total += each.vacuumed + each.log_entries
        return total


@dataclass
class _Pass:
    """A pass while it goes on."""

    store: Store
    owner: str
    now: int
    dry_run: bool
    problems: list[str] = field(default_factory=list)

    def order(self, spec: DatasetSpec) -> BuildOrder:
        return BuildOrder(spec.name, owner=self.owner, trigger=Trigger.MAINTENANCE)

    def attempt(self, what: str, act: Callable[[], T], otherwise: T) -> T:
        try:
            with alone():
                return act()
        except TimestoreError as error:
            log.warning("%s: %s", what, error)
            self.problems.append(f"{what}: {error}")
            return otherwise


def maintain(
    store: Store,
    *,
    owner: str,
    owner_is_gone: Callable[[str], bool] = lambda owner: False,
    dry_run: bool = False,
    now: int | None = None,
) -> MaintenanceReport:
    """Compact, expire, vacuum, unlink, sweep and prune, as far as one run goes.

    Args:
        store: the installation.
        owner: who does it, as for builds.
        owner_is_gone: as for :func:`settle_dead_builds`.
        dry_run: say what would be done, and change nothing.
        now: microseconds since the epoch, by default the clock's.
    """
    work = _Pass(store, owner, now_micros() if now is None else now, dry_run)
    most = store.settings.maintenance_max_removals
    if not dry_run:
        work.attempt("settling dead builds", lambda: settle_dead_builds(store, owner_is_gone), [])
        for name in store.datasets:
            work.attempt(f"{name}: following other programs", partial(follow_others, store, name), False)
    # What is freed first makes room for what compaction writes.
    segments = work.attempt(
        "unlinking segments",
        lambda: unlink_published_segments(store, work.now, max_files=most, dry_run=dry_run),
        Freed(),
    )
    expired = {name: _expire(work, spec) for name, spec in store.datasets.items()}
    vacuumed = {name: _vacuum(work, name, most) for name in store.datasets}
    compacted: dict[str, CompactionReport] = {}
    left = store.settings.maintenance_max_compacted_bytes
    for name, spec in store.datasets.items():
        compacted[name] = _compact(work, spec, left)
        left -= compacted[name].bytes
    done = tuple(
        DatasetMaintenance(
            name,
            compacted[name],
            expired[name],
            vacuumed[name],
            Freed() if dry_run else _clean_log(work, name),
            _prune(work, name, most),
        )
        for name in store.datasets
    )
    orphans = work.attempt("sweeping", lambda: sweep_orphans(store, max_files=most, dry_run=dry_run), Freed())
    discarded = work.attempt(
        "discarding old entries of the quarantine",
        lambda: discard_old_entries(store, now=work.now, dry_run=dry_run, most=most),
        [],
    )
    archived = work.attempt(
        "removing old archived files",
        lambda: remove_old_archive(store, now=work.now, dry_run=dry_run, most=most),
        Freed(),
    )
    if not dry_run:
        work.attempt("looking at the disk", lambda: look_at_disk(store, now=work.now), None)
    # Last, because one of them may end the process.
    tried = work.attempt(
        "trying files of the quarantine again", lambda: try_again(store, now=work.now, dry_run=dry_run, most=most), []
    )
    return MaintenanceReport(
        done, segments, orphans, tuple(tried), tuple(discarded), archived, tuple(work.problems), dry_run
    )


def _expire(work: _Pass, spec: DatasetSpec) -> ExpiredWindows:
    def act() -> ExpiredWindows:
        if not work.dry_run:
            return expire_windows(work.store, work.order(spec), now=work.now)
        old = expired_windows(work.store, spec, work.now)
        return ExpiredWindows(
            spec.name,
            len(old),
            sum(total.rows for total in old),
            sum(total.files for total in old),
            sum(total.bytes for total in old),
        )

    return work.attempt(f"{spec.name}: dropping old windows", act, ExpiredWindows(spec.name))


def _vacuum(work: _Pass, dataset: str, most: int) -> Freed:
    return work.attempt(
        f"{dataset}: vacuum",
        lambda: vacuum_table(work.store, dataset, max_files=most, dry_run=work.dry_run, now=work.now),
        Freed(),
    )


def _clean_log(work: _Pass, dataset: str) -> Freed:
    return work.attempt(f"{dataset}: table log", lambda: clean_log(work.store, dataset, work.now), Freed())


def _compact(work: _Pass, spec: DatasetSpec, left: int) -> CompactionReport:
    def act() -> CompactionReport:
        if not work.dry_run:
            return compact_windows(work.store, work.order(spec), max_bytes=max(0, left), now=work.now)
        rules = effective_rules(work.store, spec)
        plan = plan_compaction(work.store, spec, rules, now=work.now)
        files = [file for some in plan.values() for file in some]
        return CompactionReport(
            spec.name,
            windows=len(plan),
            rows=sum(file.rows for file in files),
            bytes=sum(file.bytes for file in files),
            files=len(files),
            merged_files=sum(merged_count(some, rules.target_file_bytes) for some in plan.values()),
        )

    return work.attempt(f"{spec.name}: compaction", act, CompactionReport(spec.name))


def _prune(work: _Pass, dataset: str, most: int) -> Pruned:
    settings = work.store.settings

    def prune(tx: Connection) -> Pruned:
        pruned = prune_batches(
            tx,
            dataset,
            work.now - int(settings.ledger_batch_retention_seconds * 1e6),
            most,
            dry_run=work.dry_run,
        )
        pruned += prune_builds(
            tx, dataset, work.now - int(settings.ledger_build_retention_seconds * 1e6), dry_run=work.dry_run
        )
        reach(CrashPoint.LEDGER_PRUNED)
        return pruned

    return work.attempt(f"{dataset}: pruning the ledger", lambda: work.store.ledger.transact(prune), Pruned())


def in_words(report: MaintenanceReport) -> Iterable[str]:
    """Yield a sentence for each thing that was done, or would be."""
    would = "would be " if report.dry_run else ""
    for each in report.datasets:
        merged, expired, name = each.compaction, each.expired, each.dataset
        if merged.files:
            into = f"into {merged.merged_files:,}"
            yield f"{name}: {merged.files:,} files of {merged.windows:,} windows {would}merged {into}"
        if merged.stopped:
            yield f"{name}: compaction goes on the next time: {merged.stopped}"
        if expired.windows:
            yield f"{name}: {expired.windows:,} old windows with {expired.rows:,} rows {would}dropped"
        if each.vacuumed.files:
            yield f"{name}: {each.vacuumed.files:,} Parquet files of {each.vacuumed.bytes:,} bytes {would}removed"
        if each.log_entries.files:
            yield f"{name}: {each.log_entries.files:,} log entries of {each.log_entries.bytes:,} bytes {would}removed"
        if each.pruned.batches or each.pruned.builds:
            yield f"{name}: {each.pruned.batches:,} batches and {each.pruned.builds:,} builds {would}forgotten"
    for entry in report.discarded:
        yield f"{entry.dataset}: entry {entry.id} of the quarantine {would}discarded, as it is too old"
    if report.archived.files:
        yield f"{report.archived.files:,} archived files of {report.archived.bytes:,} bytes {would}removed"
    for entry in report.tried_again:
        yield f"{entry.dataset}: entry {entry.id} of the quarantine {would}tried again"
    if report.segments.files:
        yield f"{report.segments.files:,} published segments of {report.segments.bytes:,} bytes {would}unlinked"
    if report.orphans.files:
        yield f"{report.orphans.files:,} orphaned files of {report.orphans.bytes:,} bytes {would}swept"
