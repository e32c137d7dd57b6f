"""What happened, in numbers, and how to look at it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from examples.demo import accounting, ledger_view
from examples.demo.deliveries import Fate
from examples.demo.outcome import Outcome, quarantined_rows
from timestore_pipeline.ledger.windows import published_totals
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_QUERY = """\
SELECT CASE WHEN visib < 1 THEN 'under a mile' WHEN visib < 5 THEN '1 to 5 miles'
            WHEN visib < 10 THEN '5 to 10 miles' ELSE 'clear' END AS visibility,
       count(*) AS flights,
       round(avg(dep_delay), 1) AS mean_delay_minutes,
       round(100 * avg((dep_time IS NULL)::INT), 1) AS percent_cancelled
FROM flights JOIN weather USING (origin, time_hour)
GROUP BY visibility ORDER BY min(visib)"""

_MAX_PROBLEMS = 50


@dataclass(frozen=True)
class Spread:
    """Median, 95th percentile and maximum of some seconds."""

    p50: float
    p95: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Spread:
        """Return the spread of at least one value."""
        ordered = sorted(seconds)
        p50, p95 = (ordered[max(0, math.ceil(len(ordered) * share) - 1)] for share in (0.5, 0.95))
        return cls(p50, p95, ordered[-1])

    def __str__(self) -> str:
        return f"p50 {self.p50:.1f} s, p95 {self.p95:.1f} s, max {self.max:.1f} s"


def print_report(console: Console, store: Store, outcome: Outcome, seconds: float) -> None:
    """Print what was sent and what became of it; ``seconds`` is how long the demo took in all."""
    standing, runs = ledger_view.standing(store), outcome.runs
    batches = ledger_view.batch_times(store)
    waits = [(batch, outcome.dropped_at[batch.dataset, batch.source]) for batch in batches]
    with store.ledger.read() as tx:
        totals = published_totals(tx)
    tables = [accounting.table_files(store, name) for name in store.datasets]
    jobs = ", ".join(f"{count} {job}" for job, count in sorted(runs.by_job.items()))
    facts = [
        ("files sent", f"{len(outcome.deliveries):,}, {_megabytes(outcome.dropped_bytes)}, in 5 formats"),
        ("  staged", f"{standing.staged:,}, {standing.staged_rows:,} rows"),
        ("  quarantined", f"{standing.quarantined:,}"),
        ("  duplicates", f"{standing.duplicates:,}, staged once"),
        ("rows sent", f"{outcome.source_rows:,} of the source and {outcome.refused_rows} impossible ones"),
        ("  published", f"{standing.published_rows:,}"),
        ("  quarantined", f"{quarantined_rows(store):,}"),
        *(
            (name, f"{rows:,} rows, monthly partitions: {windows}")
            for name, (windows, rows, _, _) in sorted(totals.items())
        ),
        (
            "Parquet files",
            f"{sum(len(table.paths) for table in tables):,} in {len(tables)} tables, "
            f"{_megabytes(sum(table.bytes for table in tables))}; "
            f"file by file it would have been {standing.published:,}",
        ),
        ("landing → queryable", str(Spread.of(batch.staged_at - dropped for batch, dropped in waits))),
        ("landing → published", str(Spread.of(batch.published_at - dropped for batch, dropped in waits))),
        ("Dagster runs", f"{jobs}; {runs.failed or 'none'} failed"),
        ("time", f"{seconds:.0f} s in all, {outcome.pipeline_seconds:.0f} s from the first file to the last row"),
    ]
    if outcome.gateway_rows is not None:
        facts.append(("Pushgateway", f"{outcome.gateway_rows:,.0f} rows published, say the metrics"))
    console.print("\n[bold]What happened[/]")
    _print_pairs(console, facts)
    console.print("\n[bold]What was wrong on purpose[/]")
    _print_pairs(console, _flaws(outcome))
    console.print("\n[bold]Delays by visibility[/], a query over both datasets")
    _print_rows(console, query_rows(store, SAMPLE_QUERY).to_arrow())


def print_verdict(console: Console, store: Store, outcome: Outcome, problems: Sequence[str]) -> None:
    """Print whether every row is accounted for, and if not, which are not."""
    if problems:
        console.print("\n[bold red]Not everything is accounted for[/]")
        for problem in problems[:_MAX_PROBLEMS]:
            console.print(f"  - {escape(problem)}")
        if len(problems) > _MAX_PROBLEMS:
            console.print(f"  … and {len(problems) - _MAX_PROBLEMS:,} more")
        return
    console.print(
        f"\n[bold green]Every row is accounted for[/]\n"
        f"  {ledger_view.standing(store).published_rows:,} published + {quarantined_rows(store):,} quarantined "
        f"= {outcome.source_rows + outcome.refused_rows:,} sent.\n"
        "  For each month and column, counts and checksums of the source CSV,\n"
        "  the published Parquet files and the read API agree."
    )


def print_ways_on(console: Console, store: Store, environment: Path) -> None:
    """Print how to look at what the demo left; ``environment`` is the file with its settings."""
    console.print("\n[bold]Look at it[/]")
    _print_pairs(
        console,
        [
            ("in the UI", "make dev DEMO=1"),
            ("in SQL", f"(. {shown(environment)} && .venv/bin/timestore sql 'SELECT count(*) FROM flights')"),
            ("on disk", shown(store.tables.root)),
        ],
    )


def shown(path: Path) -> str:
    """Return a path as it is called from the current folder, in a form that a shell takes as a path."""
    relative = os.path.relpath(path)
    return relative if relative.startswith("../") else f"./{relative}"


def _flaws(outcome: Outcome) -> list[tuple[str, str]]:
    fates: dict[str, list[Fate]] = {}
    for delivery in outcome.deliveries:
        if delivery.flaw:
            fates.setdefault(delivery.flaw, []).append(delivery.fate)
    became = {
        Fate.QUARANTINED: "files quarantined, with the reason",
        Fate.DUPLICATE: "files not staged again",
        Fate.STAGED: "rows quarantined, the rest of their files published",
    }
    return [(flaw, f"{len(found)} {became[found[0]]}") for flaw, found in fates.items()]


def _print_pairs(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        console.print(f"  {escape(name.ljust(width))}  {escape(value)}")


def _print_rows(console: Console, rows: pa.Table) -> None:
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="")
    for field in rows.schema:
        table.add_column(field.name, justify="left" if str(field.type) == "string" else "right")
    for row in rows.to_pylist():
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    console.print(table)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
