"""How results get to stdout: a table for people, plain lines where no terminal reads them, JSON for programs.

All that the command says goes through here: what is not its own text is made inert on the way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TextIO, cast

from timestore_pipeline.inert import as_entry, json_escaped, visible, visible_lines

if TYPE_CHECKING:
    from rich.tree import Tree


@dataclass(frozen=True)
class Heading:
    """Heading of a table's column; numbers are aligned to the right."""

    text: str
    right: bool = False


def print_table(headings: Sequence[Heading], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. Its rows are never cut: what does not fit a terminal is folded, or shown line by line."""
    headings = [replace(heading, text=visible(heading.text)) for heading in headings]
    cells = [[visible(cell) for cell in row] for row in rows]
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


def print_tree(tree: Tree) -> None:
    """Print a tree that was made with :func:`node`, and :func:`root`."""
    from rich.console import Console

    # Lines are for reading by people and by grep alike: none is cut or folded.
    Console(width=100_000, highlight=False).print(tree)


def root(text: str) -> Tree:
    """Return a new tree."""
    from rich.text import Text
    from rich.tree import Tree

    # A Text, because a plain string would be searched for markup such as [bold].
    return Tree(Text(visible(text)))


def node(under: Tree, text: str) -> Tree:
    """Add a line to a tree, and return it for others to be put under."""
    from rich.text import Text

    return under.add(Text(visible(text)))


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json_escaped(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)))


def say(message: str) -> None:
    """Print a line that is the result of a command."""
    print(visible(message))


def warn(message: str) -> None:
    """Print a line for people, beside the result; further lines of it are indented, so that none looks like another."""
    sys.stdout.flush()
    print(f"timestore: {as_entry(message)}", file=sys.stderr)


def ask(question: str) -> bool:
    """Return what a person answers to a question, which is asked on stderr."""
    import typer

    return typer.confirm(visible(question), err=True)


def can_ask() -> bool:
    """Whether there is somebody to answer a question."""
    return sys.stdin.isatty()


@contextmanager
def inert_stderr() -> Iterator[None]:
    """Make inert what anybody writes to stderr in the block: logs, warnings, what Typer says of arguments."""
    with redirect_stderr(cast(TextIO, _Inert(sys.stderr))):
        yield


class _Inert:
    """A text stream whose lines are all visible."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(visible_lines(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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
