"""What a person sees while the demo works: bars in a terminal, else a line every few seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.demo.ledger_view import Standing

_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class Moment:
    """How far everything is at one moment."""

    dropped: int
    standing: Standing
    runs: int


class Display(Protocol):
    """Shows how far the demo is, until the ``with`` block ends."""

    def show(self, moment: Moment) -> None:
        """Show ``moment``."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def display(console: Console, files: int) -> Display:
    """Return the display that suits where the output goes; ``files`` are to be dropped in all."""
    return _Bars(console, files) if console.is_terminal else _Lines(console, files)


class _Bars:
    def __init__(self, console: Console, files: int) -> None:
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            TimeElapsedColumn(),
            console=console,
        )
        self._dropped, self._staged, self._published = (
            self._progress.add_task(text, total=files, note="") for text in ("files dropped", "staged", "published")
        )

    def show(self, moment: Moment) -> None:
        standing = moment.standing
        set_apart = standing.quarantined + standing.duplicates
        self._progress.update(self._dropped, completed=moment.dropped)
        self._progress.update(
            self._staged,
            completed=standing.staged + set_apart,
            note=f"queue {standing.queued:,} batches, {standing.staged_rows - standing.published_rows:,} rows",
        )
        self._progress.update(self._published, completed=standing.settled, note=f"Dagster runs: {moment.runs}")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class _Lines:
    def __init__(self, console: Console, files: int) -> None:
        self._console, self._files = console, files
        self._started = time.monotonic()
        self._next = 0.0

    def show(self, moment: Moment) -> None:
        elapsed = time.monotonic() - self._started
        if elapsed < self._next:
            return
        self._next = elapsed + _SECONDS_BETWEEN_LINES
        standing = moment.standing
        self._console.print(
            f"  {elapsed:4.0f} s  dropped {moment.dropped:,} of {self._files:,} files, staged {standing.staged:,}, "
            f"published {standing.published:,}, queue {standing.queued:,} batches "
            f"({standing.staged_rows - standing.published_rows:,} rows), Dagster runs: {moment.runs}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
