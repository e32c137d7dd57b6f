"""What a power cut would leave, seen in the system calls; and disks that fail at the n-th sync or write."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import Ending, start
from timestore_pipeline_tests.crash.conftest import Recover

# What PostgreSQL syncs is its own affair; here it is seen in one trace with all the rest.
pytestmark = [pytest.mark.crash, pytest.mark.server, pytest.mark.only_on("sqlite")]

SYNCS = {"fsync", "fdatasync"}
RENAMES = {"rename", "renameat", "renameat2", "link", "linkat"}
UNLINKS = {"unlink", "unlinkat"}
_CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Call:
    """A system call that succeeded, and the paths in its arguments; of a sync, the path of the file."""

    name: str
    paths: tuple[str, ...]


Strace = Callable[..., Ending]


@pytest.fixture
def strace(program: Callable[[str], str], tmp_path: Path) -> Strace:
    """Does a job in a process of its own under strace with options; returns how it ended."""
    path = program("strace")

    def run(store: Store, job: str, *options: str) -> Ending:
        child = start(store, job, held=True)
        child.wait_until_stopped()
        attached = subprocess.Popen(
            [path, "-f", "-y", "-s", "4096", "-o", tmp_path / "strace", *options, "-p", str(child.pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        with attached as tracer:
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            if "attached" not in said:
                child.kill()
                complain = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
                complain(f"strace may not trace here: {said.strip()}")
            child.signal(signal.SIGCONT)
            assert child.exit_code() in (0, 1)
        return child.ending()

    return run


@pytest.fixture
def trace(strace: Strace, tmp_path: Path) -> Callable[[Store, str], list[Call]]:
    """Does a job; returns what it synced, renamed and unlinked in the installation, in order."""

    def run(store: Store, job: str) -> list[Call]:
        assert strace(store, job, "-e", f"trace={','.join(sorted(SYNCS | RENAMES | UNLINKS))}") == Ending()
        home = str(store.settings.home)
        calls = []
        for name, arguments, result in _CALL.findall(_joined((tmp_path / "strace").read_text(encoding="utf-8"))):
            named = re.findall(r'"(/[^"]*)"|<(/[^>]*)>', re.sub(r"AT_FDCWD<[^>]*>", "", arguments))
            paths = tuple(path or opened for path, opened in named)
            if result == "0" and paths and paths[0].startswith(home):
                calls.append(Call(name, tuple(path.removeprefix(home + "/data/") for path in paths)))
        return calls

    return run


def _joined(text: str) -> str:
    """Put calls that strace tells in two halves, because another thread came between, on the line of their end."""
    begun: dict[tuple[str, str], str] = {}
    lines = []
    for line in text.splitlines():
        if unfinished := re.match(r"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$", line):
            begun[unfinished[1], unfinished[2]] = unfinished[3]
        elif resumed := re.match(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$", line):
            lines.append(f"{resumed[1]} {resumed[2]}({begun[resumed[1], resumed[2]]}{resumed[3]}")
        else:
            lines.append(line)
    return "\n".join(lines)


def position(calls: list[Call], names: set[str], pattern: str, after: int = -1) -> int:
    """Where the first such call after ``after`` stands whose last path matches ``pattern``."""
    for index in range(after + 1, len(calls)):
        if calls[index].name in names and re.fullmatch(pattern, calls[index].paths[-1]):
            return index
    listing = "\n".join(f"{index} {call.name} {call.paths}" for index, call in enumerate(calls))
    pytest.fail(f"no {'/'.join(sorted(names))} of {pattern} after {after} in:\n{listing}")


def in_this_order(calls: list[Call], *steps: tuple[set[str], str]) -> None:
    """Each step must be found after the one before."""
    at = -1
    for names, pattern in steps:
        at = position(calls, names, pattern, at)


SEGMENT = r"staging/readings/\w+\.duckdb"
LEDGER = r"staging/ledger\.sqlite(-wal)?"


def test_a_batch_is_on_disk_before_the_ledger_has_it(at_work: Callable[..., Store], trace):
    store = at_work()

    calls = trace(store, "stage")

    in_this_order(
        calls,
        (SYNCS, SEGMENT + r"\.tmp"),
        (RENAMES, SEGMENT),
        (SYNCS, "staging/readings"),
        (SYNCS, LEDGER),
    )
    refused = r"staging/_quarantine/readings/\w+\.rows\.parquet"
    in_this_order(
        calls,
        (SYNCS, refused + r"\.tmp"),
        (RENAMES, refused),
        (SYNCS, "staging/_quarantine/readings"),
        (RENAMES, SEGMENT),
        (SYNCS, LEDGER),
    )
    # Nothing that the acknowledgement rests on is synced only after it.
    acknowledged = position(calls, SYNCS, LEDGER, position(calls, RENAMES, SEGMENT))
    assert all(re.fullmatch(f"{LEDGER}|staging", call.paths[-1]) for call in calls[acknowledged:] if call.name in SYNCS)


def test_a_new_folder_of_a_dataset_is_on_disk_before_the_ledger_has_its_first_batch(
    at_work: Callable[..., Store], trace
):
    store = at_work()
    assert not (store.settings.staging_path / "others").exists()

    calls = trace(store, "stage others")

    in_this_order(calls, (SYNCS, "staging"), (RENAMES, r"staging/others/\w+\.duckdb"), (SYNCS, LEDGER))


def test_archived_files_leave_the_landing_folder_after_the_ledger_has_them(at_work: Callable[..., Store], trace):
    store = at_work()

    calls = trace(store, "ingest")

    archive = r"archive/readings/[-\d]+"
    in_this_order(calls, (RENAMES, SEGMENT), (SYNCS, LEDGER), (RENAMES, archive + r"/[cd]\.csv"), (SYNCS, archive))
    acknowledged = position(calls, SYNCS, LEDGER, position(calls, RENAMES, SEGMENT))
    moved = [index for index, call in enumerate(calls) if re.fullmatch(archive + r"/[cd]\.csv", call.paths[-1])]
    assert len(moved) == 2
    assert min(moved) > acknowledged


def test_rows_are_in_the_table_on_disk_before_the_ledger_says_so_and_before_their_segment_goes(
    at_work: Callable[..., Store], trace
):
    store = at_work()

    calls = trace(store, "build and retire")

    entry = r"tables/readings/_delta_log/\d+\.json"
    log = "tables/readings/_delta_log"
    for day in ("2026-01-01", "2026-01-02"):
        folder = f"tables/readings/window_key={day}"
        in_this_order(
            calls,
            (SYNCS, LEDGER),  # the claim
            (SYNCS, folder + r"/\.\d+-\.tmp/.*\.parquet"),
            (RENAMES, folder + r"/\d+-\d+\.parquet"),
            (SYNCS, folder),
            (SYNCS, "tables/readings"),  # that the folder is in it
            (RENAMES, entry),
            (SYNCS, entry),
            (SYNCS, log),
            (SYNCS, LEDGER),
            (UNLINKS, SEGMENT),
        )
    committed = position(calls, RENAMES, entry)
    # From the commit on, only the log and the ledger have anything left to make durable.
    assert all(
        re.fullmatch(f"{entry}|{log}|{LEDGER}", call.paths[-1]) for call in calls[committed:] if call.name in SYNCS
    )
    logged = position(calls, SYNCS, log, committed)
    marked = position(calls, SYNCS, LEDGER, logged)
    unlinked = [
        index for index, call in enumerate(calls) if re.fullmatch(SEGMENT, call.paths[-1]) and call.name in UNLINKS
    ]
    assert len(unlinked) == 2
    assert min(unlinked) > marked


@pytest.fixture
def broken_disk(strace: Strace, tmp_path: Path) -> Callable[..., tuple[bool, Ending]]:
    """Does a job while one system call fails; whether it was reached, and how the job ended."""

    def run(store: Store, job: str, injection: str, only: Path | None = None) -> tuple[bool, Ending]:
        only_there = ["-P", str(only)] if only else []
        call = injection.partition(":")[0]
        ending = strace(store, job, *only_there, "-e", f"trace={call}", "-e", f"inject={injection}")
        return "(INJECTED)" in (tmp_path / "strace").read_text(encoding="utf-8", errors="replace"), ending

    return run


INJECTIONS = [
    *(("stage", f"fsync:error=EIO:when={when}") for when in range(1, 8)),
    *(("stage", f"fdatasync:error=EIO:when={when}") for when in range(1, 3)),
    *(("stage", f"pwrite64:error=ENOSPC:when={when}") for when in (*range(1, 8), 12, 20)),
    *(("stage", f"pwrite64:error=ENOSPC:when={when}+") for when in (1, 4)),
    *(("build", f"fsync:error=EIO:when={when}") for when in range(1, 8)),
    *(("build", f"fdatasync:error=EIO:when={when}") for when in range(1, 4)),
    *(("build", f"pwrite64:error=ENOSPC:when={when}") for when in (*range(1, 8), 12, 20)),
    ("build", "linkat:error=EIO:when=1"),
    *(("build", f"link:error=EIO:when={when}") for when in range(1, 3)),
    ("build", "rename:error=EIO:when=1"),
    ("retire", "fdatasync:error=EIO:when=1"),
    ("retire", "unlink:error=EIO:when=1"),
]
CLEAR = {
    "TimestoreError",
    "LedgerError",
    "CommitUnknown",
    "TableError",
    "DiskFull",
    "BuildAborted",
    "SegmentUnreadable",
}


@pytest.mark.matrix
@pytest.mark.parametrize(("job", "injection"), INJECTIONS)
def test_a_failing_disk_is_a_clear_error_and_loses_nothing(
    job: str, injection: str, at_work: Callable[..., Store], broken_disk, recover: Recover
):
    store = at_work()
    if job == "retire":
        flush_windows(store, BuildOrder("readings", owner="the test"))

    reached, ending = broken_disk(store, job, injection)

    assert reached or ending == Ending()
    assert ending.error in CLEAR | {None}, ending
    if job == "stage" and ending.error is None:
        assert "e" in rows.in_ledger(store)
    recover(store)
    unlink_published_segments(store)
    rows.assert_all_is_well(store)


def test_a_full_disk_in_the_log_of_the_table_publishes_nothing(
    at_work: Callable[..., Store], broken_disk, recover: Recover
):
    store = at_work()
    # Only there: the threads of a process wake each other up by writes too.
    entry = store.table("readings").root / "_delta_log" / f"{2:020d}.json#1"

    reached, ending = broken_disk(store, "build", "write:error=ENOSPC:when=1+", entry)

    assert reached
    assert ending.error == "TableError"
    recover(store)
    rows.assert_all_is_well(store)
