"""The soak, short: many processes at once, killed at random, and every row counted at the end."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from timestore_pipeline_tests.postgresql import URL_VARIABLE
from timestore_pipeline_tests.soak.coordinator import run
from timestore_pipeline_tests.soak.workers import Soak


@pytest.mark.crash
@pytest.mark.xdist_group("soak")
@pytest.mark.usefixtures("ledger_kind")
def test_random_kills_lose_and_double_nothing(tmp_path: Path):
    seed = random.SystemRandom().randrange(1_000_000)
    seconds = 12
    print(f"repeat it with: make soak SECONDS={seconds} SEED={seed}")
    soak = Soak(tmp_path / "soak", seed, seconds, processes=4, ledger_url=os.environ.get(URL_VARIABLE))

    figures = run(soak)

    print(figures, dict(soak.kills))
    assert soak.problems == []
    assert figures["kills"] >= 5
    assert figures["rows audited"] > 0
