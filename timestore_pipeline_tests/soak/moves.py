"""Installations that are put back, copied, and shared."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.errors import CopyInPlace, TableNotOurs, TimestoreError
from timestore_pipeline.operating.backup import back_up_ledger
from timestore_pipeline.operating.installation import change_identity
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.installations import LedgerCopy, copy_of_ledger, put_back, state_of_folder
from timestore_pipeline_tests.soak.books import (
    DATASETS_YAML,
    PLAIN,
    Books,
)
from timestore_pipeline_tests.soak.faults import (
    Kind,
    Seen,
)
from timestore_pipeline_tests.soak.inside import cleaned_up_by_another_program
from timestore_pipeline_tests.soak.jobs import (
    Job,
)
from timestore_pipeline_tests.soak.site import DATASETS, PLACES, Site, Wrong, published, refused, settings_at


def _back_up(site: Site) -> Path | LedgerCopy:
    if site.kind == "postgresql":
        return copy_of_ledger(site.store)
    target = site.folder / f"backup-{next(site.numbers)}"
    back_up_ledger(site.settings, target)
    return target


def _put_back(site: Site, backup: Path | LedgerCopy) -> None:
    if isinstance(backup, Path):
        site.store.close()
        for path in site.home.glob("ledger.sqlite*"):
            if ".replaced" not in path.name:
                path.unlink()
        shutil.copyfile(backup, site.home / "ledger.sqlite")
    else:
        put_back(site.store, backup)
        site.store.close()
    site.reopen()


def older_ledger(site: Site, kind: Kind) -> None:
    """Put a backup of the ledger back over tables that have more, stage beside it, and make the ledger again."""
    if not site.backups or site.dice.random() < 0.5:
        site.backups.append(_back_up(site))
    backup = site.dice.choice(site.backups)
    site.publish_more()
    if site.dice.random() < 0.5:
        site.stage(*site.batches())
    if site.dice.random() < 0.3:
        cleaned_up_by_another_program(site, PLAIN)
    _put_back(site, backup)
    # Who stages is not held up, and may well send again what the older ledger has forgotten.
    site.stage(*site.batches(dataset=PLAIN))
    if site.dice.random() < 0.3:
        site.repeat()
    _refused_until_rebuilt(site, kind, staged=True)


def older_ledger_and_staging(site: Site, kind: Kind) -> None:
    """Put a backup of ledger and staging back over tables that have more, and make the ledger again."""
    backup, staging = _back_up(site), site.folder / "staging-backup"
    shutil.copytree(site.at["staging"], staging)
    site.publish_more()
    site.flush()
    lost = site.batches(dataset=PLAIN) if site.dice.random() < 0.5 else ()
    site.stage(*lost)
    shutil.rmtree(site.at["staging"])
    staging.rename(site.at["staging"])
    _put_back(site, backup)
    # What was neither published nor in the backup is gone, and its producers have it still.
    site.books.acked = [batch for batch in site.books.acked if batch not in lost]
    site.backups.clear()
    _refused_until_rebuilt(site, kind, staged=False)
    site.stage(*lost)


def _refused_until_rebuilt(site: Site, kind: Kind, *, staged: bool) -> None:
    """Look that nothing is done to a table that is newer than the ledger; ``staged``: there is something to flush."""
    table, segments = site.at["tables"] / PLAIN, site.at["staging"] / PLAIN
    before = state_of_folder(table), set(segments.glob("*"))
    with refused("an older ledger at a newer table", TableNotOurs) if staged else suppress(TableNotOurs):
        site.flush(PLAIN)
    site.do(Job("maintain"))
    if (state_of_folder(table), set(segments.glob("*"))) != before:
        raise Wrong("an older ledger was refused, and changed something")
    site.rebuild()
    site.look("after the ledger was rebuilt")
    site.told(kind, Seen.RECOVERED)


@contextmanager
def _copy(site: Site, **places: Path) -> Iterator[Store]:
    """Open a copy of the installation, with ``places`` elsewhere than beside it."""
    copy = site.folder / "copy"
    site.store.close()
    shutil.copytree(site.home, copy / "home")
    shutil.copytree(site.folder / "mnt", copy / "mnt")
    site.reopen()
    at = {name: copy / "mnt" / name for name in PLACES} | places
    settings = settings_at(copy / "home", at, ledger_url=f"sqlite:///{copy / 'home' / 'ledger.sqlite'}")
    with site.instances.used_by(Store.open(settings)) as store:
        yield store
    shutil.rmtree(copy)


def copied(site: Site, kind: Kind) -> None:
    """Copy the installation, and let the copy become one of its own that has every row and goes on."""
    if not site.books.acked:
        site.publish_more()
    with _copy(site) as copy:
        before, (batch,) = site.state(), site.batches(1, PLAIN)
        books = Books([*site.books.acked, batch], site.books.foreign)
        if site.dice.random() < 0.5:
            site.stage(*site.batches())
            site.flush(PLAIN)
            before = site.state()
        change_identity(copy)
        stage(copy, PLAIN, batch.table())
        for dataset in DATASETS:
            flush_windows(copy, BuildOrder(dataset, owner="the copy"))
        if problems := books.problems(published(copy)):
            raise Wrong(f"in a copy with an identity of its own: {problems}")
        if site.state() != before:
            raise Wrong("a copy with an identity of its own changed the original")
        if copy.ledger.identity == site.store.ledger.identity:
            raise Wrong("a copy has the identity of the original")
    site.told(kind, Seen.WENT_ON)
    site.recover()


def copied_with_shared_tables(site: Site, kind: Kind) -> None:
    """Copy the installation but for its tables, and let the copy try to use those of the original."""
    site.publish_more()
    with _copy(site, tables=site.at["tables"]) as copy:
        site.publish_more()
        before = site.state()
        with refused("a copy on the tables of the original", CopyInPlace):
            change_identity(copy)
        (batch,) = site.batches(1, PLAIN)
        stage(copy, PLAIN, batch.table())
        with refused("a copy on the tables of the original", TableNotOurs):
            flush_windows(copy, BuildOrder(PLAIN, owner="the copy"))
        if site.state() != before:
            raise Wrong("a copy on the tables of the original was refused, and changed something")
    site.told(kind, Seen.REFUSED)
    site.recover()


def second_installation(site: Site, kind: Kind) -> None:
    """Let a new installation name our tables as its own."""
    if not site.books.acked:
        site.publish_more()
    home, before = site.folder / "stranger", site.facts()
    home.mkdir()
    (home / "datasets.yaml").write_text(DATASETS_YAML, encoding="utf-8")
    places = {"staging": home / "staging", "tables": site.at["tables"], "archive": home / "archive"}
    stranger = settings_at(home, places, ledger_url="sqlite://")
    (batch,) = site.batches(1, PLAIN)
    with refused("a second installation on our tables", TimestoreError), Store.open(stranger) as store:
        stage(store, PLAIN, batch.table())
        flush_windows(store, BuildOrder(PLAIN, owner="a stranger"))
    site.told(kind, Seen.REFUSED)
    shutil.rmtree(home)
    if site.facts() != before:
        raise Wrong("a second installation was refused, and changed something")
    site.recover()
