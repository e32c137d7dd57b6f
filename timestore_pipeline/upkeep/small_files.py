"""Small files become few large ones (short, because each chore has a file).

In a round as many bytes, of all datasets, as the settings say.
"""

from __future__ import annotations

from dataclasses import replace

from timestore_pipeline.building.compact import (
    CompactionReport,
    compact_windows,
    effective_rules,
    merged_count,
    plan_compaction,
)
from timestore_pipeline.model.windows import EVERY_WINDOW
from timestore_pipeline.upkeep.chores import ChoreOfDatasets, Round


def _find(round_: Round, dataset: str) -> CompactionReport:
    spec = round_.store.datasets[dataset]
    rules = effective_rules(round_.store, spec)
    plan = plan_compaction(round_.store, spec, rules, EVERY_WINDOW, spec.first_open_window(round_.now))
    files = [file for some in plan.values() for file in some]
    return CompactionReport(
        dataset,
        windows=len(plan),
        rows=sum(file.rows for file in files),
        bytes=sum(file.bytes for file in files),
        files=len(files),
        merged_files=sum(merged_count(some, rules.target_file_bytes) for some in plan.values()),
    )


def _merge(round_: Round, dataset: str) -> CompactionReport:
    most = max(0, round_.most_compacted_bytes)
    return compact_windows(round_.store, round_.order(dataset), max_bytes=most, now=round_.now)


def _left(round_: Round, done: CompactionReport) -> Round:
    return replace(round_, most_compacted_bytes=round_.most_compacted_bytes - done.bytes)


SMALL_FILES = ChoreOfDatasets("compaction", "compaction", CompactionReport, _find, _merge, _left)
