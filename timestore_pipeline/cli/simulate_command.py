"""``timestore simulate``: other thresholds beside those that hold, as a table, as JSON and as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.options import AsJson, OneDataset, open_store, seconds_of
from timestore_pipeline.cli.output import Heading, print_json, print_table, say, warn
from timestore_pipeline.errors import TimestoreError

if TYPE_CHECKING:
    from timestore_pipeline.policy import FlushThresholds
    from timestore_pipeline.simulating.replay import Replay
    from timestore_pipeline.simulating.what_if import WhatIf


_QUANTILES = {"median": 0.5, "95 %": 0.95, "longest": 1.0}
_DAY_SECONDS = 86_400

simulate_app = typer.Typer(rich_markup_mode=None)


@simulate_app.command(short_help="Show what other flush thresholds would have done.")
def simulate(
    dataset: OneDataset,
    max_age: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Proposed age threshold, such as 90s, 15m or 2h; 0 switches it off."),
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Proposed threshold of rows; 0 switches it off.")
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Proposed threshold of bytes; 0 switches it off.")
    ] = None,
    last: Annotated[str, typer.Option(metavar="DURATION", help="How far to look back, such as 6h or 30d.")] = "7d",
    run_start: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="What a run needs to start, on your machine.")
    ] = 5.0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it too: a .png, .svg or .pdf. Needs matplotlib.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay what was staged with other flush thresholds, beside those that hold.

    It says what they would have done to the number of flushes, the sizes of files and the freshness of the table.
    Thresholds that are not given stay as they are. Nothing is changed.
    """
    from timestore_pipeline.datasets import FlushSpec
    from timestore_pipeline.simulating import what_if

    age = None if max_age is None else seconds_of(max_age, "--max-age")
    proposed = FlushSpec(max_age_ms=None if age is None else round(age * 1e3), max_rows=max_rows, max_bytes=max_bytes)
    with open_store() as store:
        found = what_if.simulate(
            store,
            dataset,
            proposed,
            last_seconds=seconds_of(last, "--last"),
            run_start_seconds=run_start,
        )
    if as_json:
        print_json(_as_json(found))
    else:
        _print_comparison(found)
    if plot is not None:
        _save_plot(found, plot)
        warn(f"drawn into {plot}")


def _print_comparison(found: WhatIf) -> None:
    period = wording.duration((found.until - found.since) / 1e6)
    say(
        f"{found.dataset}: {wording.counted(found.batches, 'batch', 'batches')} with "
        f"{wording.counted(found.rows, 'row')} in {period}, replayed"
    )
    headings = [Heading(""), Heading("measured", right=True), Heading("current", right=True)]
    headings.append(Heading("proposed", right=True))
    print_table(headings, _rows(found))
    for assumption in found.assumptions:
        say(f"assumed: {assumption}")
    if found.proposed.left_batches:
        say(f"{wording.counted(found.proposed.left_batches, 'batch', 'batches')} would be staged still")
    late = _share_late(found.proposed.waits, found.levels.publish_seconds)
    if late:
        say(
            f"{late:.1%} of the batches would be later than promised ({wording.duration(found.levels.publish_seconds)})"
        )


def _as_json(found: WhatIf) -> dict[str, Any]:
    measured = found.measured
    return {
        "dataset": found.dataset,
        "from": wording.iso(found.since),
        "until": wording.iso(found.until),
        "batches": found.batches,
        "rows": found.rows,
        "measured": {
            "flushes": len(measured.flushes),
            "files": sum(each.files for each in measured.flushes),
            "bytes": sum(each.bytes for each in measured.flushes),
            "freshness_seconds": _quantiles(measured.waits),
        },
        "current": _replay_as_json(found.current),
        "proposed": _replay_as_json(found.proposed),
        "publish_slo_seconds": found.levels.publish_seconds,
        "share_later_than_slo": _share_late(found.proposed.waits, found.levels.publish_seconds),
        "assumed": list(found.assumptions),
    }


def _save_plot(found: WhatIf, path: Path) -> None:
    """Draw both replays side by side into ``path``, PNG, SVG or PDF by its ending.

    Raises:
        TimestoreError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from timestore_pipeline.cli.plot import draw
    except ImportError as error:
        raise TimestoreError(
            "plots need matplotlib: pip install 'timestore-pipeline[plot]', or leave --plot out"
        ) from error
    draw(found, path)


def _rows(found: WhatIf) -> list[list[str]]:
    from timestore_pipeline.simulating.what_if import weighted_quantile

    flushes, replays = found.measured.flushes, (found.current, found.proposed)
    days = max(found.until - found.since, 1) / 1e6 / _DAY_SECONDS
    sizes = [each.bytes / each.files for each in flushes if each.files for _ in range(each.files)]
    size_lists = [sizes, *([*each.file_bytes] for each in replays)]

    def of_thresholds(show: Callable[[FlushThresholds], str]) -> list[str]:
        return ["", *(show(each.thresholds) for each in replays)]

    def per_day(count: float) -> str:
        return wording.number(round(count / days)) if days >= 1 / 24 else "-"

    counts = [len(flushes), *(len(each.flushes) for each in replays)]
    rows = [
        ["flush at rows", *of_thresholds(lambda each: wording.number(each.max_rows) if each.max_rows else "off")],
        ["flush at bytes", *of_thresholds(lambda each: wording.size(each.max_bytes) if each.max_bytes else "off")],
        [
            "flush at age",
            *of_thresholds(lambda each: wording.duration(each.max_age_ms / 1e3) if each.max_age_ms else "off"),
        ],
        ["flushes", *map(wording.number, counts)],
        ["flushes a day", *map(per_day, counts)],
        ["by trigger", "", *map(_triggers, replays)],
        ["files", *(wording.number(len(each)) for each in size_lists)],
        ["mean file", *(wording.size(round(sum(each) / len(each))) if each else "-" for each in size_lists)],
        ["median file", *(_size(weighted_quantile([(size, 1) for size in each], 0.5)) for each in size_lists)],
        ["most staged batches", "", *(wording.number(each.most_pending) for each in replays)],
    ]
    for name, of in _QUANTILES.items():
        waits = (found.measured.waits, found.current.waits, found.proposed.waits)
        rows.append([f"freshness, {name}", *(_seconds(weighted_quantile(each, of)) for each in waits)])
    return rows


def _triggers(replay: Replay) -> str:
    return ", ".join(f"{trigger.value} {count}" for trigger, count in replay.triggers.most_common()) or "-"


def _seconds(value: float) -> str:
    return "-" if math.isnan(value) else wording.duration(value)


def _size(value: float) -> str:
    return "-" if math.isnan(value) else wording.size(round(value))


def _quantiles(waits: Sequence[tuple[float, int]]) -> dict[str, float | None]:
    from timestore_pipeline.simulating.what_if import weighted_quantile

    found = {"p50": 0.5, "p95": 0.95, "max": 1.0}
    return {
        name: None if math.isnan(value := weighted_quantile(waits, of)) else round(value, 3)
        for name, of in found.items()
    }


def _share_late(waits: Sequence[tuple[float, int]], promised: float) -> float:
    total = sum(batches for _, batches in waits)
    return sum(batches for wait, batches in waits if wait > promised) / total if promised and total else 0.0


def _replay_as_json(replay: Replay) -> dict[str, Any]:
    thresholds = replay.thresholds
    return {
        "thresholds": {
            "max_rows": thresholds.max_rows,
            "max_bytes": thresholds.max_bytes,
            "max_age_ms": thresholds.max_age_ms,
        },
        "flushes": len(replay.flushes),
        "triggers": {trigger.value: count for trigger, count in replay.triggers.items()},
        "files": len(replay.file_bytes),
        "bytes": round(sum(replay.file_bytes)),
        "mean_file_bytes": round(sum(replay.file_bytes) / len(replay.file_bytes)) if replay.file_bytes else None,
        "freshness_seconds": _quantiles(replay.waits),
        "most_staged_batches": replay.most_pending,
        "left_batches": replay.left_batches,
    }
