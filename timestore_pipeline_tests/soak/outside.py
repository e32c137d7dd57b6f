"""Processes that are killed, or stopped until they are taken for dead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline_tests.forks import CONTEXT
from timestore_pipeline_tests.soak.books import (
    PLAIN,
)
from timestore_pipeline_tests.soak.faults import (
    Kind,
    Seen,
)
from timestore_pipeline_tests.soak.jobs import (
    IN_A_TRANSACTION,
    POINTS,
    Job,
    journaled,
    work_until_ended,
)
from timestore_pipeline_tests.soak.site import DATASETS, Site, Wrong

_DEADLINE_SECONDS = 120
_FOREVER = 2**62


@contextmanager
def _other_process(site: Site, jobs: list[Job], plan: str | None) -> Iterator[Any]:
    """Let another process do jobs in the block; afterwards it has ended, and what it acknowledged is noted."""
    site.story.append(f"    a process: {[(job.name, job.dataset) for job in jobs]} {plan or ''}")
    journal = site.folder / "journal"
    journal.unlink(missing_ok=True)
    batches = [batch for job in jobs for batch in job.batches]
    site.books.doubts += batches
    began, begin = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(
        target=work_until_ended,
        args=(site.settings, dict(os.environ), site.clock.hours, jobs, plan, journal, begin),
    )
    process.start()
    begin.close()
    try:
        with suppress(EOFError):
            if not began.poll(_DEADLINE_SECONDS):
                raise Wrong("a process did not begin")
            began.recv()
        yield process
        process.join(_DEADLINE_SECONDS)
        if process.exitcode is None:
            raise Wrong("a process did not end")
    finally:
        process.kill()
        process.join()
        began.close()
    acked = journaled(journal)
    for batch in batches:
        if batch.number in acked and batch in site.books.doubts:
            site.acknowledged(batch)
    if process.exitcode not in (0, 1, -signal.SIGKILL):
        raise Wrong(f"a process ended with {process.exitcode}; its error is above")


def killed_at_a_point(site: Site, kind: Kind) -> None:
    """Kill a process at a crash point, now and then the one that settles what it has left, too."""
    job = site.job("stage", "ingest", "flush", "flush", "compact", "maintain", "retire")
    times = site.dice.choice((1, 1, 2))
    killed = _killed(site, kind, job, times)
    if killed and job.name in ("flush", "compact") and site.dice.random() < 0.5:
        _killed(site, kind, Job("settle"), 1)
    site.recover()


def _killed(site: Site, kind: Kind, job: Job, times: int) -> bool:
    plan = f"{site.dice.choice(POINTS[job.name])}:{times}={signal.SIGKILL.name}"
    with _other_process(site, [job], plan) as process:
        pass
    killed = process.exitcode == -signal.SIGKILL
    if killed:
        site.told(kind, Seen.RECOVERED, plan)
    return killed


def killed_anywhere(site: Site, kind: Kind) -> None:
    """Kill a process that does one piece of work after the other, at any moment."""
    script = [Job("stage", batches=site.batches()) for _ in range(3)]
    for dataset in site.dice.sample(DATASETS, 2):
        script.insert(site.dice.randrange(1, len(script) + 1), Job("flush", dataset))
    script += [site.job("ingest"), Job("compact", PLAIN), Job("maintain")]
    moment = site.dice.uniform(0, 0.35)
    with _other_process(site, script, None) as process:
        time.sleep(moment)
        process.kill()
    if process.exitcode == -signal.SIGKILL:
        site.told(kind, Seen.RECOVERED, f"after {moment:.3f} s")
    site.recover()


def stopped(site: Site, kind: Kind) -> None:
    """Stop a process in the middle of its work, take it for dead, do its work and other work, and let it go on."""
    job = site.job("flush", "flush", "flush", "compact", "stage", "ingest")
    points = [point for point in POINTS[job.name] if point not in IN_A_TRANSACTION]
    plan = f"{site.dice.choice(points)}={signal.SIGSTOP.name}"
    meanwhile = site.dice.choice(("nothing", "again", "again", "more", "retire"))
    with _other_process(site, [job], plan) as process:
        is_stopped = _wait_until_stopped(process)
        if is_stopped:
            settle_dead_builds(site.store, now=_FOREVER)
            _do_meanwhile(site, meanwhile, job)
            os.kill(process.pid, signal.SIGCONT)
    if is_stopped:
        site.told(kind, Seen.REFUSED if process.exitcode else Seen.WENT_ON, f"meanwhile {meanwhile}")
    site.recover()


def _do_meanwhile(site: Site, meanwhile: str, job: Job) -> None:
    """What others do while a process is stopped that they take for dead."""
    if meanwhile == "again":
        site.do(job)
    elif meanwhile == "more":
        site.stage(*site.batches(dataset=PLAIN))
        site.do(Job("flush", job.dataset or PLAIN))
    elif meanwhile == "retire":
        site.do(Job("retire"))


def _wait_until_stopped(process: Any) -> bool:
    """Wait until a process is stopped or has ended; return whether it is stopped."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while process.is_alive():
        with suppress(FileNotFoundError):
            if Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                return True
        if time.monotonic() > deadline:
            raise Wrong("a process was neither stopped nor did it end")
        time.sleep(0.005)
    return False
