"""Maintenance: all that keeps disk, table and ledger small, in one bounded round that may be killed anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from timestore_pipeline.building.compact import CompactionReport
from timestore_pipeline.building.completion import follow_others
from timestore_pipeline.building.expire import ExpiredWindows
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.ledger.forgetting import Pruned
from timestore_pipeline.ledger.quarantine import QuarantineEntry
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.freed import Freed
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.archived_files import OLD_ARCHIVE
from timestore_pipeline.upkeep.chores import Chore, ChoreOfDatasets, Round
from timestore_pipeline.upkeep.disk_use import DISK_USE
from timestore_pipeline.upkeep.old_history import OLD_HISTORY
from timestore_pipeline.upkeep.old_windows import OLD_WINDOWS
from timestore_pipeline.upkeep.orphans import ORPHANS
from timestore_pipeline.upkeep.published_segments import PUBLISHED_SEGMENTS
from timestore_pipeline.upkeep.quarantine_entries import OLD_ENTRIES, UNPROVEN_ENTRIES
from timestore_pipeline.upkeep.small_files import SMALL_FILES
from timestore_pipeline.upkeep.vacuum import LOG_ENTRIES, UNREADABLE_FILES

DEAD_BUILDS = Chore[object](
    "dead_builds",
    "settling dead builds",
    None,
    find=lambda round_: None,
    remove=lambda round_: settle_dead_builds(round_.store, round_.owner_is_gone),
)

COMMITS_OF_OTHERS = ChoreOfDatasets[bool](
    "commits_of_others",
    "following other programs",
    lambda dataset: False,
    find=lambda round_, dataset: False,
    remove=lambda round_, dataset: follow_others(round_.store, dataset),
)

CHORES: tuple[Chore[Any] | ChoreOfDatasets[Any], ...] = (
    DEAD_BUILDS,
    COMMITS_OF_OTHERS,
    # What is freed first makes room for what compaction writes.
    PUBLISHED_SEGMENTS,
    OLD_WINDOWS,
    UNREADABLE_FILES,
    SMALL_FILES,
    LOG_ENTRIES,
    OLD_HISTORY,
    ORPHANS,
    OLD_ENTRIES,
    OLD_ARCHIVE,
    DISK_USE,
    # Last, because one of them may end the process.
    UNPROVEN_ENTRIES,
)
"""All chores, in the order in which a round does them."""


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
    tried_again: tuple[QuarantineEntry, ...]
    discarded: tuple[QuarantineEntry, ...]
    archived: Freed
    problems: tuple[str, ...]
    dry_run: bool

    @property
    def numbers(self) -> dict[str, int]:
        """What was done, as numbers."""
        each = self.datasets
        return {
            "files_merged": sum(one.compaction.files for one in each),
            "files_merged_into": sum(one.compaction.merged_files for one in each),
            "bytes_merged": sum(one.compaction.bytes for one in each),
            "windows_dropped": sum(one.expired.windows for one in each),
            "rows_dropped": sum(one.expired.rows for one in each),
            "batches_forgotten": sum(one.pruned.batches for one in each),
            "builds_forgotten": sum(one.pruned.builds for one in each),
            "segments_unlinked": self.segments.files,
            "orphans_swept": self.orphans.files,
        }

    @property
    def freed(self) -> Freed:
        """All files that were removed."""
        total = self.segments + self.orphans + self.archived
        total += Freed(len(self.discarded), sum(entry.bytes for entry in self.discarded))
        for each in self.datasets:
            total += each.vacuumed + each.log_entries
        return total


def maintain(
    store: Store,
    *,
    owner: str,
    owner_is_gone: Callable[[str], bool] = lambda owner: False,
    dry_run: bool = False,
    now: int | None = None,
) -> MaintenanceReport:
    """Do one round of all chores, as far as one run goes.

    Args:
        store: the installation.
        owner: who does it, as for builds.
        owner_is_gone: as for :func:`settle_dead_builds`.
        dry_run: say what would be done, and change nothing.
        now: microseconds since the epoch, by default the clock's.
    """
    settings = store.settings
    round_ = Round(
        store,
        now_micros() if now is None else now,
        owner,
        owner_is_gone,
        most=settings.maintenance_max_removals,
        most_compacted_bytes=settings.maintenance_max_compacted_bytes,
    )
    done: dict[str, Any] = {}
    problems: list[str] = []
    for chore in CHORES:
        done[chore.part], failed = chore.over(round_, dry_run=dry_run)
        problems += failed
    of_datasets = ("compaction", "expired", "vacuumed", "log_entries", "pruned")
    return MaintenanceReport(
        tuple(DatasetMaintenance(name, **{part: done[part][name] for part in of_datasets}) for name in store.datasets),
        segments=done["segments"],
        orphans=done["orphans"],
        tried_again=tuple(done["tried_again"]),
        discarded=tuple(done["discarded"]),
        archived=done["archived"],
        problems=tuple(problems),
        dry_run=dry_run,
    )


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
