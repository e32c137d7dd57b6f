"""Which landing files are ready, and which of them one ingest run takes."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from timestore_pipeline.alone import alone
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.landing.found import LandingFile, LandingScan, bytes_on_disk, is_ready_name
from timestore_pipeline.ledger.landing import SettledFile, all_settled
from timestore_pipeline.ledger.limits import EVERY_DATASET, all_pauses, pause_of
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.settings import Settings
from timestore_pipeline.store import Store


def scan_landing(store: Store, datasets: Iterable[str] | None = None) -> LandingScan:
    """Look into ``<landing>/<dataset>/`` of the given datasets, by default of all.

    A look over all datasets also reports folders that no dataset declares. Nothing is raised for what is wrong
    with one file or folder: it becomes a problem, and the others go on (invariant 9).

    Raises:
        UnknownDataset: a given dataset is not declared; for one that is refused, why that is.
    """
    names = [store.datasets[name].name for name in (store.datasets if datasets is None else datasets)]
    landing = store.settings.landing_location
    if not isinstance(landing, Path):
        from timestore_pipeline.landing.bucket import look_into_bucket  # brings obstore

        return look_into_bucket(store, landing, names, everywhere=datasets is None)
    files: list[LandingFile] = []
    problems: list[str] = []
    try:
        entries = sorted(os.scandir(landing), key=lambda entry: entry.name)
    except FileNotFoundError:
        return LandingScan(
            (), (f"the landing folder {landing} does not exist; create it or set TIMESTORE_LANDING_DIRECTORY",)
        )
    except OSError as error:
        problems.append(f"the landing folder {landing} cannot be listed: {_cause(error)}")
        if not os.access(landing, os.X_OK):
            return LandingScan((), tuple(problems))
        entries = []
    with store.ledger.read() as tx:
        settled = all_settled(tx)
    for name in names:
        try:
            with alone(name):
                _scan_dataset(store, name, landing / name, settled, files, problems)
        except TimestoreError as error:
            problems.append(str(error))
    if datasets is None:
        problems += _undeclared(store, entries)
    files.sort(key=lambda file: (file.modified_at, file.path))
    return LandingScan(tuple(files), tuple(problems))


def files_for_one_run(store: Store, scan: LandingScan) -> dict[str, tuple[LandingFile, ...]]:
    """Return what one ingest run may take of ``scan``, oldest first: dataset → files, datasets without any left out.

    Bounded by files and bytes per run over all datasets, which take turns, so that none takes the run of the others;
    and per dataset by the room in its staging queue: past that files just wait, and so do those of a dataset whose
    intake is paused. The first file of each dataset is taken however large it is, so that none waits for ever. One that
    is larger than a whole run takes no other's place, and one that is larger than any file may be is not going to be
    read.
    """
    with store.ledger.read() as tx:
        states = queue_states(tx)
        policies = store.policies(tx)
        pauses = all_pauses(tx)
    room: dict[str, float] = {}
    for name in {file.dataset for file in scan.files}:
        if pause_of(pauses, name) is not None:
            room[name] = 0
            continue
        limit = policies[name].limits.max_pending
        pending = states[name].pending_batches if name in states else 0
        room[name] = limit - pending if limit else float("inf")
    return share_out(store.settings, scan.files, room)


def share_out(
    settings: Settings, found: Iterable[LandingFile], room: Mapping[str, float]
) -> dict[str, tuple[LandingFile, ...]]:
    """Return what one run takes of the files that were found (oldest first), where datasets have so much ``room``."""
    waiting: dict[str, deque[LandingFile]] = {}
    for file in found:
        if room[file.dataset] > 0:
            waiting.setdefault(file.dataset, deque()).append(file)
    taken: dict[str, list[LandingFile]] = {name: [] for name in waiting}
    count = size = 0
    monsters: set[str] = set()
    while waiting and count < settings.landing_max_files_per_run:
        for name, files in list(waiting.items()):
            file = files.popleft()
            cost = file.bytes
            if file.is_larger_than(settings.landing_max_file_bytes):
                cost = 0
            elif file.bytes > settings.landing_max_bytes_per_run and name not in monsters:
                monsters.add(name)
                cost = 0
            if taken[name] and size + cost > settings.landing_max_bytes_per_run:
                del waiting[name]
                continue
            taken[name].append(file)
            count += 1
            size += cost
            if not files or len(taken[name]) >= room[name]:
                del waiting[name]
            if count >= settings.landing_max_files_per_run:
                break
    return {name: tuple(files) for name, files in taken.items() if files}


def waiting_for_room(store: Store, scan: LandingScan) -> list[str]:
    """Return a sentence for each dataset whose files wait because its intake is paused or its staging queue full."""
    taken = files_for_one_run(store, scan)
    with store.ledger.read() as tx:
        policies = store.policies(tx)
        pauses = all_pauses(tx)
    sentences = []
    for name in sorted({file.dataset for file in scan.files} - set(taken)):
        pause = pause_of(pauses, name)
        files = len(scan.of(name))
        waiting = f"{name}: {files:,} {'file waits' if files == 1 else 'files wait'}"
        if pause is not None:
            resume = "--all" if pause.dataset == EVERY_DATASET else name
            sentences.append(
                f"{waiting}, intake is paused by {pause.paused_by}: {pause.reason}; 'timestore resume {resume}' ends it"
            )
        elif limit := policies[name].limits.max_pending:
            sentences.append(f"{waiting}, the staging queue is at its limit of {limit} batches")
    return sentences


def _scan_dataset(
    store: Store,
    dataset: str,
    folder: Path,
    settled: set[SettledFile],
    files: list[LandingFile],
    problems: list[str],
) -> None:
    landing_spec = store.datasets[dataset].landing
    if folder.is_symlink():
        problems.append(f"{dataset}: {folder} is a symbolic link, which is never followed; make it a folder")
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(f"{dataset}: the folder {folder} cannot be listed: {_cause(error)}")
        return
    for entry in entries:
        if not is_ready_name(entry.name) or not landing_spec.matches(entry.name):
            continue
        try:
            entry.name.encode()
            status = entry.stat(follow_symlinks=False)
        except UnicodeEncodeError:
            # The ledger and DuckDB take text only.
            problems.append(f"{dataset}: the name of {_printable(entry.path)} is not UTF-8; rename the file")
            continue
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{dataset}: the files in {folder} cannot be looked at: {_cause(error)}")
            return
        if stat.S_ISLNK(status.st_mode):
            problems.append(f"{dataset}: {entry.path} is a symbolic link, which is never followed; copy the file")
            continue
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            problems.append(f"{dataset}: {entry.path} is a pipe, a socket or a device, which are never read; remove it")
            continue
        stamp = SettledFile(dataset, entry.name, status.st_size, status.st_mtime_ns)
        if not stat.S_ISREG(status.st_mode) or stamp in settled:
            continue
        if os.access(entry.path, os.R_OK):
            path = Path(entry.path)
            files.append(LandingFile(dataset, path, status.st_size, status.st_mtime, disk_bytes=bytes_on_disk(status)))
        else:
            problems.append(f"{dataset}: {entry.path} cannot be read: permission denied; the other files go on")


def _cause(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _printable(path: str) -> str:
    return os.fsencode(path).decode(errors="backslashreplace")


def _undeclared(store: Store, entries: Iterable[os.DirEntry[str]]) -> Sequence[str]:
    problems = []
    for entry in entries:
        if not is_ready_name(entry.name) or entry.name in store.datasets.declared:
            continue
        if entry.is_dir():
            problems.append(
                f"folder {_printable(entry.path)} belongs to no declared dataset, its files wait; "
                f"declare {_printable(entry.name)!r} in {store.settings.datasets_path} or remove it"
            )
        else:
            problems.append(f"file {_printable(entry.path)} lies outside of any dataset's folder; move it into one")
    return problems
