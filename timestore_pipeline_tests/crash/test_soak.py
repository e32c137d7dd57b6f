"""The soak, short: many processes at once, killed at random; faults of every kind; and every row counted at the end."""

from __future__ import annotations

import os
import random
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from timestore_pipeline_tests.postgresql import URL_VARIABLE, running_server
from timestore_pipeline_tests.sampling import examples
from timestore_pipeline_tests.soak.books import KEYED, PLAIN, Batch, Books
from timestore_pipeline_tests.soak.coordinator import run
from timestore_pipeline_tests.soak.run import soak_by_rounds
from timestore_pipeline_tests.soak.tally import Tally
from timestore_pipeline_tests.soak.workers import Soak, noted

KILLS, BATCHES, SECONDS = examples(6), examples(10), examples(240)
"""How much of them ends a soak here: work, and a time only where nothing goes on."""
FAULTS = examples(60)

# A round on each: on a disk, with its ledger on PostgreSQL, in an object store.
ROUNDS = [
    0,
    pytest.param(3, marks=pytest.mark.server),
    pytest.param(6, marks=pytest.mark.server),
]


@pytest.mark.crash
@pytest.mark.process
@pytest.mark.timeout(examples(900))
@pytest.mark.parametrize("first", ROUNDS, ids=["disk", "postgresql", "object store"])
def test_faults_of_every_kind_lose_and_double_nothing(first: int, request: pytest.FixtureRequest, tmp_path: Path):
    """The disk has most of them, so that all are a few seconds."""
    seed = zlib.crc32(request.config.option.seed.encode())
    tally = Tally(FAULTS if first == 0 else FAULTS // 4)

    soak_by_rounds(tally, seed, tmp_path, first=first)

    print(*tally.table(), tally.rows(), sep="\n")
    assert tally.problems == []
    assert tally.enough
    assert tally.acknowledged == tally.read > 0


def test_a_row_too_few_or_too_many_is_seen():
    first, second = (Batch("seed 1", number, KEYED) for number in (1, 2))
    plain, doubt = (Batch("seed 1", number, PLAIN) for number in (3, 4))
    books = Books(acked=[first, second, plain], doubts=[doubt])
    there = {PLAIN: books.expected(PLAIN), KEYED: books.expected(KEYED)}
    row = plain.rows[0]

    assert books.problems(there) == []
    assert books.problems({PLAIN: there[PLAIN] + Counter(doubt.rows)}) == []
    assert "0 rows lost" in books.problems({PLAIN: there[PLAIN] + Counter([row])})[0]
    assert "1 rows lost" in books.problems({PLAIN: there[PLAIN] - Counter([row])})[0]
    assert "19 rows lost" in books.problems({PLAIN: there[PLAIN] + Counter(doubt.rows[:1])})[0]
    # Of a key the row that was acknowledged last.
    assert books.problems({KEYED: Books(acked=[second, first]).expected(KEYED)})


@pytest.mark.crash
@pytest.mark.timeout(examples(900))
@pytest.mark.xdist_group("soak")
@pytest.mark.usefixtures("ledger_kind")
def test_random_kills_lose_and_double_nothing(tmp_path: Path):
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"repeat it with: make soak SECONDS=20 SEED={seed}")
    soak = Soak(tmp_path / "soak", seed, seconds=SECONDS, processes=3, ledger_url=os.environ.get(URL_VARIABLE))

    figures = run(soak, enough=lambda: soak.kills.total() >= KILLS and len(noted(soak, "acked")) >= BATCHES)

    print(figures, dict(soak.kills))
    assert soak.problems == []
    assert figures["kills"] >= KILLS
    assert figures["batches"] >= BATCHES


@pytest.mark.crash
@pytest.mark.timeout(examples(900))
@pytest.mark.server
@pytest.mark.xdist_group("soak")
def test_random_kills_and_crashes_of_the_ledgers_server_lose_and_double_nothing(tmp_path: Path):
    """The server, with PostgreSQL's own durability, is dropped in mid-commit again and again, or restarted."""
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    dice = random.Random(f"{seed} server")
    with running_server() as server:
        url = server.url(server.create_database())
        soak = Soak(tmp_path / "soak", seed, seconds=SECONDS, processes=3, ledger_url=url)
        # By this thread, which outlives the soak: a server ends with the thread that started it.
        with ThreadPoolExecutor(1) as pool:
            soaking = pool.submit(run, soak)
            for mode in ("immediate", "fast", "immediate"):
                acked = len(noted(soak, "acked"))
                while len(noted(soak, "acked")) <= acked and not soaking.done():
                    time.sleep(dice.uniform(0.1, 1))
                server.stop(mode)
                time.sleep(dice.uniform(0, 0.5))
                server.start()
            soak.seconds = 0  # it has gone on after each; the audit is left in peace
            figures = soaking.result(SECONDS)

    print(figures, dict(soak.kills))
    assert soak.problems == []
    assert figures["rows audited"] > 0
