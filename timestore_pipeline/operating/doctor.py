"""Looks at an installation part by part and says what is wrong and which command mends it.

Nothing here raises, whatever state the installation is in, and nothing is changed: what cannot be looked at is a
finding as well. Dagster is looked at by its own side, and the gateway by those who push to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from shutil import disk_usage

from timestore_pipeline.datasets import Datasets, load_datasets
from timestore_pipeline.durable_files import nearest_there
from timestore_pipeline.errors import StorageError, TimestoreError
from timestore_pipeline.landing.files import scan_landing
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.history import failures_in_a_row, latest_builds
from timestore_pipeline.ledger.limits import all_pauses
from timestore_pipeline.ledger.quarantine import open_totals
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.ledger.slices import unpublished_slices
from timestore_pipeline.ledger.tables import table_versions
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.locations import ObjectUrl
from timestore_pipeline.operating.observed_places import observe_places
from timestore_pipeline.placement import PlaceName, storage_at, uses_work
from timestore_pipeline.places import PlaceState
from timestore_pipeline.segments.slices import by_segment
from timestore_pipeline.settings import Settings, load_settings, unknown_variables
from timestore_pipeline.storage.marks import read_mark, refuse_second_creation
from timestore_pipeline.storage.table_folder import has_table, parquet_files
from timestore_pipeline.store import Store, ledger_file, signs_of_a_ledger
from timestore_pipeline.table.contents import live_files
from timestore_pipeline.table.foreign import foreign_commits
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.title import way_out

_NO_FILE = "_timestore-doctor"
_CLOCK_SLACK_MICROS = 60_000_000
_STUCK_MICROS = 900_000_000
_NAMED = 3


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """What was found of one part, and what to do about it; ``unusable`` where nothing works without the part."""

    part: str
    level: Level
    message: str
    fix: str = ""
    unusable: bool = False


def safely(part: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return what ``look`` finds; where it raises, that is the finding."""
    found: list[Finding] = []
    try:
        for finding in look():
            found.append(finding)
    except Exception as error:  # a doctor that falls ill helps nobody
        message = str(error) if isinstance(error, TimestoreError) else f"{type(error).__name__}: {error}"
        found.append(Finding(part, Level.ERROR, f"it cannot be looked at: {message}", "see the message"))
    return found or [Finding(part, Level.OK, "nothing is wrong")]


def look_at_settings() -> tuple[Settings | None, Datasets | None, list[Finding]]:
    """Return the settings and datasets as far as they can be read, and what is wrong with them."""
    try:
        settings = load_settings()
    except TimestoreError as error:
        fix = "correct or unset the variable, see docs/configuration.md"
        return None, None, [Finding("settings", Level.ERROR, str(error), fix, unusable=True)]
    found = [
        Finding(
            "settings", Level.WARNING, f"{name} is no setting and has no effect", f"set {nearest}" if nearest else ""
        )
        for name, nearest in unknown_variables(os.environ).items()
    ]
    if not settings.staging_enabled:
        found.append(
            Finding("settings", Level.WARNING, "staging is off, which is deprecated", "unset TIMESTORE_STAGING_ENABLED")
        )
    found = found or [Finding("settings", Level.OK, f"home is {settings.path('.')}")]
    try:
        datasets = load_datasets(settings.datasets_path)
    except TimestoreError as error:
        fix = "correct the file, or set TIMESTORE_DATASETS_FILE"
        return settings, None, [*found, Finding("datasets", Level.ERROR, str(error), fix, unusable=True)]
    if not datasets:
        return settings, datasets, [*found, Finding("datasets", Level.WARNING, "none is declared", "declare one")]
    return settings, datasets, [*found, Finding("datasets", Level.OK, f"{len(datasets)} are declared")]


def look_at_folders(settings: Settings) -> Iterator[Finding]:
    """Look whether folders are there, may be used by this user, and have free disk."""
    folders = {
        "landing": (settings.landing_location, "TIMESTORE_LANDING_DIRECTORY"),
        "staging": (settings.staging_location, "TIMESTORE_STAGING_DIRECTORY"),
        "archive": (settings.archive_location, "TIMESTORE_LANDING_ARCHIVE_DIRECTORY"),
        "tables": (settings.tables_location, "TIMESTORE_TABLES_URL"),
    }
    if uses_work(settings):
        folders["work"] = (settings.work_path, "TIMESTORE_WORK_DIRECTORY")
    for name, (path, variable) in folders.items():
        if not isinstance(path, Path):
            yield from _look_at_store(settings, name, path, variable)
            continue
        existing = nearest_there(path)
        if not existing.is_dir():
            yield Finding(f"folder {name}", Level.ERROR, f"{existing} is no folder", f"move it away, or set {variable}")
            continue
        if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
            fix = f"chown or chmod {existing} for the user of the service, or run this as that user"
            yield Finding(f"folder {name}", Level.ERROR, f"{existing} may not be read and written", fix)
            continue
        if existing != path and name == "landing":
            yield Finding(f"folder {name}", Level.WARNING, f"{path} does not exist", f"mkdir -p {path}")
        free, needed = disk_usage(existing).free, settings.staging_min_free_disk_bytes
        level = Level.ERROR if free < needed else Level.WARNING if free < 2 * needed else Level.OK
        fix = "" if level is Level.OK else "free some disk, see 'Full disk' in the runbook"
        yield Finding(f"disk {name}", level, f"{free:,} bytes are free, {needed:,} must be", fix)


def _look_at_store(settings: Settings, name: str, location: ObjectUrl, variable: str) -> Iterator[Finding]:
    """Look whether an object store answers, and refuses to create a key that is there: tables rest on that."""
    part = f"store {name}"
    place = storage_at(settings, location)
    try:
        next(place.entries(), None)
        if name == "landing":
            place.delete(_NO_FILE)  # there is none, but whether it may be deleted is asked first
        mark = read_mark(place, name) if name == PlaceName.TABLES else None
        if mark is not None:
            refuse_second_creation(place, name, mark)
    except StorageError as error:
        yield Finding(part, Level.ERROR, str(error), f"see the message, or set {variable}")
        return
    yield Finding(part, Level.OK, f"{location} answers")


def open_without_changes(settings: Settings, datasets: Datasets) -> tuple[Store | None, Finding]:
    """Open the installation unless that would make a ledger; say what is wrong with the ledger where it cannot be."""

    def bad(message: str, fix: str) -> tuple[None, Finding]:
        return None, Finding("ledger", Level.ERROR, message, fix, unusable=True)

    try:
        file = ledger_file(settings)
        if file is not None and not file.exists():
            found = signs_of_a_ledger(settings, datasets)
            if found:
                fix = "mount the disk that it is on; if it was lost: timestore ledger rebuild"
                return bad(f"{file} is not there, and there are {', '.join(found)}", fix)
            return None, Finding("ledger", Level.WARNING, f"{file} is not there yet", "the first command makes it")
        if file is not None and not os.access(file, os.R_OK | os.W_OK):
            return bad(f"{file} may not be read and written", "run this as the user of the service")
        if file is not None:
            answer = _integrity(file)
            if answer != "ok":
                fix = "stop the service, then timestore ledger rebuild --replace"
                return bad(f"{file} is damaged: {answer}", fix)
        store = Store.open(settings, datasets=datasets)
    except Exception as error:
        fix = "the message says; if it is lost or damaged: timestore ledger rebuild"
        return bad(str(error) or type(error).__name__, fix)
    return store, Finding("ledger", Level.OK, f"{store.ledger.location} is open, and of this version")


def look_at_places(store: Store) -> Iterator[Finding]:
    """Look whether the places are there, and belong to this installation."""
    for each in observe_places(store):
        part = f"place {each.name}"
        if each.problem:
            yield Finding(part, Level.ERROR, f"{each.location} {each.problem}", each.remedy)
        else:
            owned = "belongs to this installation" if each.state == PlaceState.OURS else "has nothing in it yet"
            yield Finding(part, Level.OK, f"{each.location} {owned}")


def look_at_ledger(store: Store) -> Iterator[Finding]:
    """Look at the clock, at builds, pauses and quarantine, all from one moment of the ledger."""
    now = now_micros()
    with store.ledger.read() as tx:
        builds = builds_in_flight(tx)
        queues = queue_states(tx)
        pauses = all_pauses(tx)
        totals = open_totals(tx)
        latest = latest_builds(tx)
        failures = {name: failures_in_a_row(tx, name) for name in store.datasets}
    newest = max([each.claimed_at for each in (*builds, *latest.values())], default=0)
    if newest > now + _CLOCK_SLACK_MICROS:
        seconds = (newest - now) // 1_000_000
        yield Finding("clock", Level.ERROR, f"the ledger is {seconds} s ahead of this host", "correct the clock (NTP)")
    for build in builds:
        age = (now - build.claimed_at) // 1_000_000
        if build.lease_expires_at < now or now - build.claimed_at > _STUCK_MICROS:
            message = f"build {build.id} of {build.owner} has been in flight for {age} s"
            yield Finding(f"builds {build.dataset}", Level.WARNING, message, f"timestore flush {build.dataset}")
    for name, count in failures.items():
        if count:
            last = latest.get(name)
            message = f"{count} builds failed one after the other: {last.error if last else '?'}"
            yield Finding(f"builds {name}", Level.ERROR, message, f"mend the cause, then timestore flush {name}")
    for pause in pauses.values():
        which = "--all" if pause.dataset == "*" else pause.dataset
        message = f"it is paused by {pause.paused_by}: {pause.reason}"
        yield Finding(f"intake {pause.dataset}", Level.WARNING, message, f"timestore resume {which}")
    for name, each in totals.items():
        message = f"{each.batches} files, {each.rows} rows and {each.segments} damaged segments are in quarantine"
        yield Finding(f"quarantine {name}", Level.WARNING, message, f"timestore quarantine list {name}")
    for name, error in store.datasets.refused.items():
        fix = "restore in datasets.yaml what it was, or declare a new dataset"
        yield Finding(f"dataset {name}", Level.ERROR, str(error), fix)
    for name in sorted(queues.keys() - set(store.datasets.declared)):
        message = f"{queues[name].pending_rows:,} rows are staged, and it is not declared any more"
        fix = f"put it back into datasets.yaml, or timestore dataset remove {name}"
        yield Finding(f"dataset {name}", Level.ERROR, message, fix)
    for problem in scan_landing(store).problems:
        yield Finding("landing", Level.WARNING, problem, "the message says")


def look_at_segments(store: Store) -> Iterator[Finding]:
    """Look whether the files of all staged rows are there."""
    with store.ledger.read() as tx:
        staged = by_segment(unpublished_slices(tx))
    gone: dict[str, list[str]] = {}
    sizes = store.staging.sizes()
    for pieces in staged.values():
        size = sizes(pieces[0].path)
        if size is None or size < max(piece.bytes for piece in pieces):
            gone.setdefault(pieces[0].dataset, []).append(store.staging.shown(pieces[0].path))
    for name, paths in gone.items():
        listed = ", ".join(paths[:_NAMED])
        message = f"{len(paths)} segments with staged rows are gone or cut short: {listed}"
        yield Finding(f"segments {name}", Level.ERROR, message, "see 'Corrupt segment' in the runbook")
    if not gone:
        yield Finding("segments", Level.OK, f"{len(staged)} with staged rows are there")


def look_at_table(store: Store, dataset: str) -> Iterator[Finding]:
    """Look whether a table opens, is ours, is as new as the ledger says and no newer, and has all its files."""
    part, place = f"table {dataset}", store.table(dataset)
    with store.ledger.read() as tx:
        seen = table_versions(tx, [dataset]).get(dataset)
    if has_table(place):
        look = OwnTable(store, dataset).look()
        if look.objection is not None:
            objection, words = look.objection
            yield Finding(part, Level.ERROR, f"it is not written to: {words}", way_out(objection))
            return
    if seen is None:
        yield Finding(part, Level.OK, "nothing is published yet")
        return
    if not has_table(place):
        fix = f"mount or restore it; if it was deleted on purpose: timestore installation adopt tables/{dataset}"
        yield Finding(part, Level.ERROR, f"{place.location} is gone", fix)
        return
    version = open_table(place, dataset).version()
    commits = foreign_commits(place, range(seen + 1, version + 1))
    if commits:
        message = f"{commits[-1].in_words}; the next build, maintenance or failing read follows"
        yield Finding(part, Level.WARNING, message, "timestore maintain, then timestore loss show " + dataset)
        seen = version
    files = live_files(open_table(place, dataset, seen))
    sizes = {entry.key: entry.bytes for entry in parquet_files(place)}
    gone = [file.path for file in files if sizes.get(file.path) != file.bytes]
    if gone:
        message = f"{len(gone)} of {len(files)} files are gone or cut short: {', '.join(gone[:_NAMED])}"
        yield Finding(part, Level.ERROR, message, "restore them from a backup, or timestore build --rebuild")
        return
    yield Finding(part, Level.OK, f"version {seen} with {len(files)} files")


def _integrity(file: Path) -> str:
    import sqlite3
    from contextlib import closing

    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
            return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.Error as error:
        return str(error)
