"""Rounds of faults, one after the other, until there were enough; one that fails is kept, with how to repeat it."""

from __future__ import annotations

import logging
import random
import shutil
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from timestore_pipeline_tests.postgresql import programs
from timestore_pipeline_tests.reuse import compiled_once, migrated_once
from timestore_pipeline_tests.shared_duckdb import SharedInstances
from timestore_pipeline_tests.soak.coordinator import run
from timestore_pipeline_tests.soak.faults import Kind, Seen
from timestore_pipeline_tests.soak.rounds import do_round
from timestore_pipeline_tests.soak.site import Site, Wrong
from timestore_pipeline_tests.soak.tally import Tally
from timestore_pipeline_tests.soak.workers import Soak

ROUND_STEPS = 24
"""Most steps of a round: with each commit its tables take longer to open."""

_CROWD_EVERY, _CROWD_KILLS, _CROWD_SECONDS = 64, 16, 300
_DISK_MEGABYTES = 96
_SAY_SECONDS = 30


def kind_of_round(number: int) -> str:
    """Return on what a round is: most on a disk, some with the ledger on PostgreSQL, or the files in an object store.

    Now and then it is a ``crowd``: many processes at once.
    """
    if number % _CROWD_EVERY == _CROWD_EVERY - 1:
        return "crowd"
    if number % 8 == 3 and programs() is not None:
        return "postgresql"
    return "s3" if number % 16 == 6 else "sqlite"


@contextmanager
def small_disk() -> Iterator[tuple[Path, bool]]:
    """Give a folder, and whether it is a small disk of its own, which may be filled up: not all may mount site."""
    with tempfile.TemporaryDirectory(prefix="timestore-soak-") as name:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MEGABYTES}m", "timestore-soak", name]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        try:
            yield Path(name), mounted
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", name], check=False)


def soak_by_rounds(
    tally: Tally,
    seed: int,
    keep: Path,
    *,
    only: int | None = None,
    first: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Do rounds from ``first`` on until there were faults enough, or only one; the first that fails ends it.

    What failed is kept in a folder below ``keep``.
    """
    # What the parts warn of is what is done to them.
    logging.getLogger("timestore_pipeline").addHandler(logging.NullHandler())
    said = time.monotonic()
    number = first if only is None else only
    with small_disk() as (folder, mounted), migrated_once(), compiled_once():
        if not mounted:
            say("No file system can be mounted here, so no disk is filled up: these are errors of single calls instead")
        instances = SharedInstances(folder)
        while not tally.enough and not tally.problems:
            if kind_of_round(number) == "crowd":
                _crowd(tally, seed, number, keep)
            else:
                place = folder / f"round-{number}"
                disk = folder if mounted else None
                _round(Site(seed, number, place, tally, instances, kind_of_round(number), disk), seed, number, keep)
            tally.rounds += 1
            if only is not None:
                break
            number += 1
            if time.monotonic() > said + _SAY_SECONDS:
                said = time.monotonic()
                say(f"{tally.injected:,} faults; {tally.rows()}")
        instances.close()


def _round(site: Site, seed: int, number: int, keep: Path) -> None:
    try:
        do_round(site, ROUND_STEPS)
    except Exception as error:
        kept = keep / f".soak-{seed}-{number}"
        shutil.copytree(site.folder, kept, dirs_exist_ok=True)
        (kept / "story.txt").write_text("\n".join([*site.story, traceback.format_exc()]), encoding="utf-8")
        words = str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
        _fail(site.tally, seed, number, f"{words}\n  What it did, and all its files, are in {kept}.")
    finally:
        shutil.rmtree(site.folder, ignore_errors=True)


def _crowd(tally: Tally, seed: int, number: int, keep: Path) -> None:
    """Let many processes work at once, killed at random and stopped for longer than their leases."""
    folder = Path(tempfile.mkdtemp(dir=keep, prefix=".soak-crowd-"))
    draw = random.Random(f"{seed} round {number}").randrange(1_000_000)
    soak = Soak(folder / "home", draw, _CROWD_SECONDS, processes=3)
    figures = run(soak, lambda _: None, enough=lambda: soak.kills.total() >= _CROWD_KILLS)
    tally.count(Kind.KILLED_AMONG_OTHERS, Seen.RECOVERED, soak.kills.total() + soak.stops)
    tally.batches += figures["batches"]
    tally.acknowledged += figures["rows audited"]
    tally.read += figures["rows audited"]
    if soak.problems:
        _fail(tally, seed, number, f"many processes: {'; '.join(soak.problems[:5])}\n  All files are in {folder}.")
    else:
        shutil.rmtree(folder)


def _fail(tally: Tally, seed: int, number: int, words: str) -> None:
    tally.problems.append(
        f"round {number} (on {kind_of_round(number)}): {words}\n  Again: make soak SEED={seed} ROUND={number}"
    )
