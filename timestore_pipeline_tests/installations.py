"""Installations that are backed up, put back, copied and moved, as whoever runs them does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, insert, select, text

from timestore_pipeline.ledger.schema import builds, metadata, quarantine
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, publish
from timestore_pipeline_tests.conftest import DATASETS_YAML

LedgerCopy = Mapping[str, Sequence[Mapping[str, Any]]]
"""All rows of a ledger, by table: what a restore puts back, on whatever database."""


def copy_of_ledger(store: Store) -> LedgerCopy:
    """Return the ledger as it stands."""
    with store.ledger.read() as tx:
        return {
            table.name: [dict(row) for row in tx.execute(select(table)).mappings()] for table in metadata.sorted_tables
        }


def put_back(store: Store, copy: LedgerCopy) -> None:
    """Make the ledger what it was when ``copy`` was made, ids that are given next included."""
    with store.ledger.write() as tx:
        for table in reversed(metadata.sorted_tables):
            tx.execute(delete(table))
        for table in metadata.sorted_tables:
            if copy[table.name]:
                tx.execute(insert(table), list(copy[table.name]))
        if tx.dialect.name == "postgresql":
            for table in (builds, quarantine):
                last = tx.execute(select(func.coalesce(func.max(table.c.id), 0))).scalar_one()
                tx.execute(
                    text("SELECT setval(pg_get_serial_sequence(:name, 'id'), :next, false)"),
                    {"name": table.name, "next": last + 1},
                )


@contextmanager
def ledger_put_back(store: Store) -> Iterator[None]:
    """Put the ledger back, after the block, as it was before: it knows nothing of what the block did."""
    night = copy_of_ledger(store)
    yield
    put_back(store, night)


@contextmanager
def table_put_back(store: Store) -> Iterator[None]:
    """Put the table of ``weather`` back, after the block, as it was before: it lacks what the block published."""
    table, backup = store.table("weather").root, store.tables.root / "backup"
    shutil.copytree(table, backup)
    yield
    shutil.rmtree(table)
    backup.rename(table)


def build_behind_the_ledger(store: Store) -> None:
    """Publish three rows; three more of which a ledger that was put back knows nothing; and stage another three."""
    publish(store, hourly(3))
    with ledger_put_back(store):
        publish(store, hourly(3, station="LOST"))
    stage(store, "weather", hourly(3, station="NEW"))


def state_of_folder(folder: Path) -> dict[str, bytes]:
    """Return all files under a folder with their content, to see whether anything has changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def another_installation(home: Path, **settings: Any) -> Iterator[Store]:
    """Open an installation of its own at ``home``, on SQLite."""
    home.mkdir(exist_ok=True)
    (home / "datasets.yaml").write_text(DATASETS_YAML, encoding="utf-8")
    fields = {"ledger_url": f"sqlite:///{home / 'ledger.sqlite'}", "staging_min_free_disk_bytes": 0, **settings}
    with Store.open(Settings(home=home, **fields)) as store:
        yield store


def copy_installation(store: Store, home: Path) -> None:
    """Copy all files of an installation on SQLite to ``home``, as ``cp -a`` of a stopped one does."""
    shutil.copytree(store.settings.path("."), home)
