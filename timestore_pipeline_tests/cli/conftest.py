"""The command as a test calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from timestore_pipeline.cli import ExitCode, main
from timestore_pipeline.store import Store


@dataclass(frozen=True)
class Finished:
    """How a command ended, and what it printed."""

    code: ExitCode
    out: str
    err: str


@pytest.fixture
def timestore(capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs ``timestore ARGUMENTS…`` in the environment as it is."""

    def run(*arguments: object) -> Finished:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return Finished(ExitCode(code), printed.out, printed.err)

    return run


@pytest.fixture
def installation(store_environment: Callable[..., dict[str, str]]) -> Iterator[Callable[..., Store]]:
    """Puts an installation into the environment and opens it, to arrange and look behind the command."""
    opened: list[Store] = []

    def install(*arguments: Any, **settings: Any) -> Store:
        store_environment(*arguments, **settings)
        opened.append(Store.open())
        return opened[-1]

    yield install
    for store in opened:
        store.close()


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a file somewhere outside of the landing folder."""

    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write
