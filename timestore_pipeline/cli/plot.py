"""The picture of ``timestore simulate``: flushes, freshness and file sizes, current and proposed. Needs matplotlib."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from timestore_pipeline.cli import wording
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.simulating.replay import Replay
from timestore_pipeline.simulating.what_if import WhatIf

_COLOURS = {"current": "tab:blue", "proposed": "tab:orange"}
_MEASURED = "0.55"


def draw(found: WhatIf, path: Path) -> None:
    """Draw the comparison into a file; its ending says in which format.

    Raises:
        TimestoreError: the ending is of no format, or the file cannot be written.
    """
    # Not pyplot, which would look for a display.
    figure = Figure(figsize=(15, 5), layout="constrained")
    figure.suptitle(f"{found.dataset}: {wording.number(found.batches)} batches, {wording.number(found.rows)} rows")
    over_time, freshness, files = figure.subplots(1, 3)
    replays = {"current": found.current, "proposed": found.proposed}
    _flushes(over_time, found, replays)
    _freshness(freshness, found, replays)
    _files(files, found, replays)
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise TimestoreError(f"{path}: a picture ends in .png, .svg or .pdf") from error
    except OSError as error:
        raise TimestoreError(f"{path} cannot be written: {error.strerror or error}") from error


def _label(name: str, replay: Replay) -> str:
    thresholds = replay.thresholds
    parts = [
        f"{wording.number(thresholds.max_rows)} rows" if thresholds.max_rows else "",
        wording.size(thresholds.max_bytes) if thresholds.max_bytes else "",
        wording.duration(thresholds.max_age_ms / 1e3) if thresholds.max_age_ms else "",
    ]
    return f"{name}: {', '.join(filter(None, parts)) or 'whatever is staged'}"


def _flushes(axes: Any, found: WhatIf, replays: dict[str, Replay]) -> None:
    def moments(micros: list[int]) -> list[datetime]:
        return [datetime.fromtimestamp(each / 1e6, UTC) for each in micros]

    ended = [each.finished_at for each in found.measured.flushes]
    axes.step(moments(ended), range(1, len(ended) + 1), where="post", color=_MEASURED, ls=":", label="measured")
    for name, replay in replays.items():
        published = [flush.published_at for flush in replay.flushes]
        counts = range(1, len(published) + 1)
        axes.step(moments(published), counts, where="post", color=_COLOURS[name], label=_label(name, replay))
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set(title="Flushes", xlabel="time (UTC)", ylabel="flushes so far", ylim=(0, None))
    axes.legend()


def _freshness(axes: Any, found: WhatIf, replays: dict[str, Replay]) -> None:
    lines = [("measured", found.measured.waits, _MEASURED), *((n, r.waits, _COLOURS[n]) for n, r in replays.items())]
    for name, waits, colour in lines:
        if waits:
            values, weights = zip(*waits, strict=True)
            axes.ecdf(values, weights, color=colour, ls=":" if name == "measured" else "-", label=name)
    if found.levels.publish_seconds:
        axes.axvline(found.levels.publish_seconds, color="tab:red", ls="--", label="promised")
    axes.set(title="Freshness", xlabel="seconds from staged to published", ylabel="share of batches", xlim=(0, None))
    axes.legend()


def _files(axes: Any, found: WhatIf, replays: dict[str, Replay]) -> None:
    for name, replay in replays.items():
        if replay.file_bytes:
            label = f"{name}: {wording.number(len(replay.file_bytes))} files"
            axes.ecdf([size / 1e6 for size in replay.file_bytes], color=_COLOURS[name], label=label)
    axes.axvline(found.machine.target_file_bytes / 1e6, color="tab:green", ls="--", label="target size")
    axes.set(title="Sizes of files", xlabel="MB", ylabel="share of files", xscale="log")
    axes.legend()
