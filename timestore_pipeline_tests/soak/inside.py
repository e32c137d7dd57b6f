"""Faults that happen inside of this process: calls, commits and requests that fail, clocks, other programs, places."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.ledger.tables import table_versions
from timestore_pipeline.storage.marks import mark_key
from timestore_pipeline.storage.table_folder import has_table
from timestore_pipeline_tests.fault_proxy import Effect, Fault, slow_down
from timestore_pipeline_tests.soak.books import (
    KEYED,
    PLAIN,
    day_of,
    foreign_row,
    table_of,
)
from timestore_pipeline_tests.soak.faults import (
    DELTA_ERRORS,
    Kind,
    Seen,
    broken_delta_commits,
    broken_ledger_commits,
    failing_calls,
    full_disk,
)
from timestore_pipeline_tests.soak.jobs import (
    Job,
)
from timestore_pipeline_tests.soak.site import DATASETS, OTHERS, Site, Wrong


def call_fails(site: Site, kind: Kind) -> None:
    """Let calls that make files durable fail in the middle of a piece of work."""
    job = site.job("stage", "stage", "ingest", "flush", "flush", "compact", "maintain", *site.rare)
    most = 6 if job.name in ("stage", "ingest") else 14
    code = errno.EIO if kind is Kind.EIO else errno.ENOSPC
    first = site.dice.randint(1, most)
    # Now and then another one, while what the first has broken is cleared up.
    numbers = {first, first + site.dice.randint(1, 5)} if site.dice.random() < 0.4 else {first}
    site.attempt(kind, job, lambda fired: failing_calls(numbers, code, fired))


def disk_is_full(site: Site, kind: Kind) -> None:
    """Leave a piece of work nothing of the disk, or too little; counted where it could not be done."""
    disk = site.disk
    assert disk
    job = site.job("stage", "ingest", "flush", "flush", "compact", *site.rare)
    leave = site.dice.choice((0, 0, 4, 16, 40, 80, 160)) << 10

    @contextmanager
    def full(fired: Callable[[], object]) -> Iterator[None]:
        with full_disk(disk, leave):
            try:
                yield
            except (TimestoreError, OSError):
                fired()
                raise

    site.attempt(kind, job, full)


def _plan(site: Site, kind: Kind, lost: Kind) -> dict[int, bool]:
    """Which commits end with an error, by whether they arrive: one, now and then a second one of either sort."""
    first = site.dice.choice((1, 1, 2, 3))
    plan = {first: kind is lost}
    if site.dice.random() < 0.3:
        plan[first + 1] = site.dice.random() < 0.5
    return plan


def delta_commit_breaks(site: Site, kind: Kind) -> None:
    """Let the commit of a build end with an error, now and then that of its fence too."""
    job = site.job("flush", "flush", "compact")
    plan = {1: kind is Kind.DELTA_LOST}
    if site.dice.random() < 0.4:
        plan[2] = site.dice.random() < 0.5
    error = site.dice.choice(DELTA_ERRORS)
    site.attempt(
        kind,
        job,
        lambda fired: broken_delta_commits(
            plan, error, lambda arrived: fired(Kind.DELTA_LOST if arrived else Kind.DELTA_FAILED)
        ),
    )


def ledger_commit_breaks(site: Site, kind: Kind) -> None:
    """Let commits to the ledger end with an error."""
    job = site.job("stage", "stage", "ingest", "flush", "flush", "compact", "maintain", *site.rare)
    plan = _plan(site, kind, Kind.LEDGER_LOST)
    site.attempt(
        kind,
        job,
        lambda fired: broken_ledger_commits(
            site.store.ledger, plan, lambda arrived: fired(Kind.LEDGER_LOST if arrived else Kind.LEDGER_FAILED)
        ),
    )


def clock_jumps(site: Site, kind: Kind) -> None:
    """Set the clock in the middle of a piece of work; where its lease has run out by that, others may settle it."""
    job = site.job("stage", "ingest", "flush", "flush", "flush", "compact")
    hours = site.dice.choice((1, 48)) * (1 if kind is Kind.CLOCK_FORWARD else -1)
    others_settle = kind is Kind.CLOCK_FORWARD and site.dice.random() < 0.5

    def jump() -> None:
        site.clock.hours = hours
        if others_settle:
            settle_dead_builds(site.store)

    # A ledger that is made again has what waits in the order of the clocks that wrote it, so nothing waits then.
    site.flush(KEYED)
    site.clock.hours = 0
    site.attempt(kind, job, lambda fired: site.in_the_middle(job, jump, fired, outside=others_settle))
    site.flush(KEYED)


def another_program_works(site: Site, kind: Kind) -> None:
    """Let another program commit to a table, between two pieces of work or in the middle of one."""
    with site.store.ledger.read() as tx:
        version = table_versions(tx).get(PLAIN)
    if version is None:
        # What others do to a table is read once a build of it was recorded.
        site.stage(*site.batches(1, PLAIN))
        site.flush(PLAIN)
    dataset = PLAIN if kind is Kind.APPENDED or not has_table(site.store.table(KEYED)) else site.dice.choice(DATASETS)
    location = site.store.table(dataset).location
    act = partial(PROGRAMS[kind], site, location, dataset)
    if site.dice.random() < 0.4:
        act()
        site.told(kind, Seen.WENT_ON)
        site.recover()
        return
    job = replace(site.job("flush", "flush", "compact", "maintain"), dataset=dataset)
    site.attempt(kind, job, lambda fired: site.in_the_middle(job, act, fired))


def _optimize(site: Site, location: str, dataset: str) -> None:
    DeltaTable(location).optimize.compact()


def _vacuum(site: Site, location: str, dataset: str) -> None:
    DeltaTable(location).vacuum(0, dry_run=False, enforce_retention_duration=False)


def _append(site: Site, location: str, dataset: str) -> None:
    row = foreign_row(next(site.numbers))
    rows = table_of(PLAIN, [row]).append_column("window_key", pa.array([day_of(row)], pa.string()))
    write_deltalake(location, rows, mode="append")
    site.books.foreign.append(row)
    site.to_follow = True


def _checkpoint(site: Site, location: str, dataset: str) -> None:
    DeltaTable(location).create_checkpoint()
    if site.dice.random() < 0.5:
        # As a program does for which a short history is enough.
        for entry in sorted((site.at["tables"] / dataset / "_delta_log").glob("*.json"))[:-1]:
            entry.unlink()


def cleaned_up_by_another_program(site: Site, dataset: str) -> None:
    """Let another program be the last that commits to a table, and leave nothing of its history."""
    location = site.store.table(dataset).location
    for act in (_optimize, _checkpoint):
        act(site, location, dataset)


@contextmanager
def _away(site: Site, name: str, instead: str) -> Iterator[None]:
    """Take a place away in the block, and leave nothing, an empty folder or another installation's there."""
    place = site.at[name]
    hidden = place.rename(site.folder / f"{name}-hidden")
    if instead != "gone":
        place.mkdir()
    if instead == "another's":
        (place / mark_key(name)).write_text(f"{OTHERS}\n")
    try:
        yield
    finally:
        shutil.rmtree(place, ignore_errors=True)
        hidden.rename(place)


def place_goes_away(site: Site, kind: Kind) -> None:
    """Take a place away before a piece of work, which is refused and changes nothing, or in the middle of it."""
    name = {Kind.STAGING_AWAY: "staging", Kind.TABLES_AWAY: "tables", Kind.ARCHIVE_AWAY: "archive"}[kind]
    instead = site.dice.choice(("gone", "empty", "another's"))
    jobs = {"staging": ("stage", "ingest", "flush"), "tables": ("flush",), "archive": ("ingest",)}[name]
    job = site.job(*jobs)
    if not site.at[name].exists():
        # It was never used, so it is new wherever it is.
        site.recover()
        if job.batches:
            site.stage(*job.batches)
        return
    if site.dice.random() < 0.5:
        site.attempt(kind, job, lambda fired: _away_in_the_middle(site, job, name, instead, fired))
        return
    with _away(site, name, instead):
        before = site.facts()
        site.story.append(f"    {job.name} {job.dataset} without {name}: {instead}")
        try:
            site.do(job)
        except TimestoreError as error:
            site.told(kind, Seen.REFUSED, error)
        else:
            raise Wrong(f"{job.name} was not refused without {name} ({instead})")
        if site.facts() != before:
            raise Wrong(f"{job.name} was refused without {name} ({instead}), and changed something")
    site.recover()


@contextmanager
def _away_in_the_middle(site: Site, job: Job, name: str, instead: str, fired: Callable[[], object]) -> Iterator[None]:
    """Take a place away in the middle of a piece of work; it is back when the block ends."""
    with (
        ExitStack() as back,
        site.in_the_middle(job, lambda: back.enter_context(_away(site, name, instead)), fired),
    ):
        yield


def requests_fail(site: Site, kind: Kind) -> None:
    """Spoil some requests of a piece of work to the object store."""
    assert site.proxied
    job = site.job("stage", "flush", "flush", "ingest", "compact", "maintain")
    effects = {
        Kind.STORE_ERROR: (Effect.ERROR, Effect.DROP_BEFORE),
        Kind.STORE_LOST: (Effect.ERROR_AFTER, Effect.DROP_AFTER),
        Kind.STORE_SLOW: (Effect.CUT, Effect.TRICKLE, Effect.HANG, Effect.HANG_AFTER),
    }[kind]
    faults = []
    for _ in range(site.dice.randint(2, 4)):
        effect = site.dice.choice(effects)
        operations = ("PUT", "PUT", "GET", "LIST") if effect is not Effect.CUT else ("GET",)
        if kind is Kind.STORE_LOST:
            operations = ("PUT", "PUT", "DELETE_MANY", "COPY")
        fault = Fault(effect, site.dice.choice(operations), skip=site.dice.randrange(6))
        if effect is Effect.ERROR and site.dice.random() < 0.5:
            fault = slow_down(fault.operation, skip=fault.skip)
        # Now and then for longer than anybody is patient.
        if effect is Effect.ERROR and site.dice.random() < 0.2:
            fault.times = None
        faults.append(fault)

    @contextmanager
    def spoilt(fired: Callable[[], object]) -> Iterator[None]:
        assert site.proxied
        with site.impatient(), site.proxied.proxy.spoilt(*faults):
            try:
                yield
            finally:
                for fault in faults:
                    if fault.hits:
                        fired()

    site.attempt(kind, job, spoilt)


PROGRAMS: dict[Kind, Callable[[Site, str, str], None]] = {
    Kind.OPTIMIZED: _optimize,
    Kind.VACUUMED: _vacuum,
    Kind.APPENDED: _append,
    Kind.CHECKPOINTED: _checkpoint,
}
"""What other programs do."""
