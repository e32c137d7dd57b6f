"""How results get to stdout: a table for people, plain lines where no terminal reads them, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Heading:
    """Heading of a table's column; numbers are aligned to the right."""

    text: str
    right: bool = False


def print_table(headings: Sequence[Heading], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. Its rows are never cut: what does not fit a terminal is folded, or shown line by line."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _print_plain(headings, cells)
        return
    from rich.console import Console

    console = Console()
    natural_width = sum(_widths(headings, cells)) + 3 * len(headings)
    if natural_width > console.width and len(headings) > 2:
        _print_records(headings, cells)
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    # Texts, because plain strings would be searched for markup such as [bold].
    for heading in headings:
        table.add_column(Text(heading.text), justify="right" if heading.right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def say(message: str) -> None:
    """Print a line that is the result of a command."""
    print(printable(message))


def warn(message: str) -> None:
    """Print a line for people, beside the result."""
    sys.stdout.flush()
    print(f"timestore: {message}", file=sys.stderr)


def _print_plain(headings: Sequence[Heading], rows: Sequence[Sequence[str]]) -> None:
    widths = _widths(headings, rows)
    for row in [[heading.text for heading in headings], *rows]:
        aligned = [
            cell.rjust(width) if heading.right else cell.ljust(width)
            for cell, heading, width in zip(row, headings, widths, strict=True)
        ]
        print("  ".join(aligned).rstrip())


def _print_records(headings: Sequence[Heading], rows: Sequence[Sequence[str]]) -> None:
    width = max(len(heading.text) for heading in headings)
    for index, row in enumerate(rows):
        if index:
            print()
        for heading, cell in zip(headings, row, strict=True):
            print(f"{heading.text.ljust(width)}  {cell}".rstrip())


def _widths(headings: Sequence[Heading], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max([len(heading.text), *(len(row[index]) for row in rows)]) for index, heading in enumerate(headings)]


def printable(text: str) -> str:
    """Return ``text`` with all that could move a cursor or break a line spelled out."""
    # A file name may hold anything, also what moves a terminal's cursor or breaks a line in two.
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
