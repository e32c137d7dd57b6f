"""Installations in the middle of their work, each made once and copied for every test that begins there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import make_url

from timestore_pipeline.store import Store
from timestore_pipeline_tests.postgresql import URL_VARIABLE, shared_server

Arrange = Callable[..., Store]
"""``arrange(name, datasets_yaml, prepare, **settings)``: a store that ``prepare`` has been let at."""


@dataclass
class Arrangements:
    """Installations to begin with, each made once and copied for every test that begins there."""

    folder: Path
    databases: dict[str, str] = field(default_factory=dict)

    def keep(self, name: str, home: Path) -> None:
        """Keep the installation of this test, which is closed, under ``name``."""
        shutil.copytree(home, self.folder / name)
        if url := os.environ.get(URL_VARIABLE):
            self.databases[name] = shared_server().copy_database(_database(url))

    def restore(self, name: str, home: Path) -> bool:
        """Make the installation of this test, which is empty, one that was kept; False where there is none."""
        if not (self.folder / name).exists():
            return False
        shutil.copytree(self.folder / name, home, dirs_exist_ok=True)
        if url := os.environ.get(URL_VARIABLE):
            shared_server().drop_database(_database(url))
            shared_server().copy_database(self.databases[name], _database(url))
        return True


def _database(url: str) -> str:
    name = make_url(url).database
    assert name
    return name
