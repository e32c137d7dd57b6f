"""What is said to databases meanwhile, recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event


@dataclass(frozen=True)
class Statement:
    """SQL that was executed, once or, where it is for ``many``, for each of its ``parameters``."""

    text: str
    parameters: Any
    many: bool


@contextmanager
def statements() -> Iterator[list[Statement]]:
    """Everything that is executed on any ledger meanwhile."""
    said: list[Statement] = []

    def note(_connection: Any, _cursor: Any, text: str, parameters: Any, _context: Any, many: bool) -> None:
        said.append(Statement(text, parameters, many))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(Engine, "before_cursor_execute", note)
