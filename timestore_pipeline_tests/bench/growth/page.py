"""The block "How cost grows" of ``docs/growth.md`` and its picture, both made from ``docs/growth.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timestore_pipeline_tests.bench.growth import carry

DOCS = Path(__file__).parents[3] / "docs"
FIGURES = DOCS / "growth.json"
PAGE = DOCS / "growth.md"
PICTURE = DOCS / "images" / "growth.png"
BEGIN, END = "<!-- growth: made from docs/growth.json -->", "<!-- growth: end -->"


_SIZES = {
    "ledger": ("ledger", "datasets", "batches"),
    "definitions": ("datasets",),
    "tables": ("versions", "life"),
    "workers": ("workers",),
}


def keep(found: dict[str, Any]) -> dict[str, Any]:
    """Put what was measured in place of the same sizes in the docs, and return all that is there now."""
    whole = kept()
    for part, new in found.items():
        old = whole.get(part, {"rows": [], "load": new["load"]})
        rows = {tuple(row[name] for name in _SIZES[part]): row for row in (*old["rows"], *new["rows"])}
        loads = (*old["load"], *new["load"])
        whole[part] = {**new, "rows": [rows[size] for size in sorted(rows)], "load": (min(loads), max(loads))}
    FIGURES.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    whole = kept()
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), whole), encoding="utf-8")
    draw(whole, PICTURE)
    return whole


def kept() -> dict[str, Any]:
    """Return what was measured for the docs."""
    return json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}


def rendered(page: str, found: dict[str, Any]) -> str:
    """Return the page with its block made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, "", *lines(found), "", END]) + after


def lines(found: dict[str, Any]) -> list[str]:
    """Return the report of what was measured, as far as it was."""
    report: list[str] = []
    for part, show in (("ledger", _ledger), ("definitions", _definitions), ("tables", _tables), ("workers", _workers)):
        if part in found:
            low, high = found[part]["load"]
            report += ["", *show(found[part]["rows"]), "", f"{found[part]['machine']}; load {low} to {high}."]
    if all(part in found for part in ("ledger", "definitions", "tables", "workers")):
        report += ["", "## Carried on", "", *carry.table(found)]
    return report[1:]


def _ledger(rows: list[dict[str, Any]]) -> list[str]:
    least = min(row["batches"] for row in rows)
    common = min((row["datasets"] for row in rows if row["batches"] != least), default=0)
    report = ["## Ledger and sensors", ""]
    report += [
        "CPU milliseconds of the process and, on PostgreSQL, of the server (statements in brackets); every batch is a "
        "segment of its own, 10 of each dataset are staged."
    ]
    for title, name, chosen in (
        (f"{least:,} batches of history", "datasets", [row for row in rows if row["batches"] == least]),
        (f"{common:,} datasets", "batches", [row for row in rows if row["datasets"] == common]),
    ):
        for kind, words in (("sqlite", "SQLite"), ("postgresql", "PostgreSQL")):
            mine = sorted((row for row in chosen if row["ledger"] == kind), key=lambda row: row[name])
            if len(mine) < 2:
                continue
            report += ["", f"| {words}, {title} | " + " | ".join(f"{row[name]:,} {name}" for row in mine) + " |"]
            report += ["|---" * (len(mine) + 1) + "|"]
            for operation in mine[0]["costs"]:
                costs = [row["costs"][operation] for row in mine]
                cells = [f"{_own(cost, kind)} ({cost['statements']:,})" for cost in costs]
                report.append(f"| {operation} | " + " | ".join(cells) + " |")
            sizes = " | ".join(f"{row['push_bytes'] / 1e6:,.1f} MB" for row in mine)
            report.append(f"| size of the metrics' picture | {sizes} |")
    return report


def _own(cost: dict[str, float], kind: str) -> str:
    return f"{cost['cpu_ms']:,.1f}" + (f" + {cost['server_cpu_ms']:,.1f}" if kind == "postgresql" else "")


def _definitions(rows: list[dict[str, Any]]) -> list[str]:
    return [
        "## Loading a code location",
        "",
        "| datasets | definitions, CPU | their description for the webserver, CPU | memory |",
        "|---|---|---|---|",
        *(
            f"| {row['datasets']:,} | {row['load_seconds']:.2f} s | {row['describe_seconds']:.2f} s "
            f"| {row['memory_mib']:.0f} MiB |"
            for row in rows
        ),
    ]


def _tables(rows: list[dict[str, Any]]) -> list[str]:
    return [
        "## Versions of a table",
        "",
        "CPU milliseconds; a checkpoint every 100 versions.",
        "",
        "| versions | the table was | live files | log | open | plan a read | commit |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row['versions']:,} | {row['life']} | {row['files']:,} "
            f"| {row['log_entries']:,} files, {row['log_bytes'] / 1e6:,.1f} MB | "
            + " | ".join(f"{row['costs'][name]['cpu_ms']:,.1f}" for name in ("open", "plan a read", "commit"))
            + " |"
            for row in rows
        ),
    ]


def _workers(rows: list[dict[str, Any]]) -> list[str]:
    return [
        "## Processes",
        "",
        "Each stages 10 batches of 100,000 rows of 7 columns into a dataset of its own, then builds their 24 windows.",
        "",
        "| processes | staged, rows/s in all | per CPU second | built, rows/s in all | per CPU second | memory |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['workers']} | {row['stage']['rows_per_second']:,.0f} | {row['stage']['rows_per_cpu_second']:,.0f} "
            f"| {row['build']['rows_per_second']:,.0f} | {row['build']['rows_per_cpu_second']:,.0f} "
            f"| {row['memory_mib']:.0f} MiB |"
            for row in rows
        ),
    ]


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the picture; needs matplotlib."""
    # Not pyplot, which would look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), layout="constrained")
    (by_datasets, by_history), (versions, loading) = figure.subplots(2, 2)
    rows = found.get("ledger", {}).get("rows", [])
    least = min((row["batches"] for row in rows), default=0)
    common = min((row["datasets"] for row in rows if row["batches"] != least), default=0)
    for axes, name, chosen in (
        (by_datasets, "datasets", [row for row in rows if row["batches"] == least]),
        (by_history, "batches", [row for row in rows if row["datasets"] == common]),
    ):
        for kind, style in (("sqlite", ":"), ("postgresql", "-")):
            mine = sorted((row for row in chosen if row["ledger"] == kind), key=lambda row: row[name])
            for number, operation in enumerate(mine[0]["costs"] if mine else ()):
                costs = [row["costs"][operation] for row in mine]
                axes.plot(
                    [row[name] for row in mine],
                    [cost["cpu_ms"] + cost["server_cpu_ms"] for cost in costs],
                    style,
                    marker=".",
                    color=f"C{number}",
                    label=operation if kind == "postgresql" else None,
                )
        axes.set(xscale="log", yscale="log", xlabel=name, ylabel="CPU milliseconds")
    by_datasets.set_title(f"Ledger by datasets ({least:,} batches of history; dotted: SQLite)")
    by_history.set_title(f"Ledger by history ({common:,} datasets; dotted: SQLite)")
    by_datasets.legend(fontsize="small")
    _draw_tables(versions, found.get("tables", {}).get("rows", []))
    loads = found.get("definitions", {}).get("rows", [])
    loading.plot([row["datasets"] for row in loads], [row["load_seconds"] for row in loads], marker=".", label="CPU s")
    loading.plot(
        [row["datasets"] for row in loads], [row["memory_mib"] / 100 for row in loads], marker=".", label="100 MiB"
    )
    loading.set(title="Loading definitions", xscale="log", yscale="log", xlabel="datasets")
    loading.legend()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90)


def _draw_tables(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    for number, operation in enumerate(("open", "plan a read", "commit")):
        for life, style in (("never compacted", ":"), ("compacted, log cleaned", "-")):
            mine = [row for row in rows if row["life"] == life]
            axes.plot(
                [row["versions"] for row in mine],
                [row["costs"][operation]["cpu_ms"] for row in mine],
                style,
                marker=".",
                color=f"C{number}",
                label=operation if life != "never compacted" else None,
            )
    title = "A table by its versions (dotted: never compacted)"
    axes.set(title=title, xscale="log", yscale="log", xlabel="versions", ylabel="CPU milliseconds")
    axes.legend()
