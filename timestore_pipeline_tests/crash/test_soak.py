"""The soak, short: many processes at once, killed at random, and every row counted at the end."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from timestore_pipeline_tests.soak.coordinator import run
from timestore_pipeline_tests.soak.workers import Soak


@pytest.mark.crash
@pytest.mark.xdist_group("soak")
def test_random_kills_lose_and_double_nothing(tmp_path: Path):
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"repeat it with: make soak SECONDS=20 SEED={seed}")
    soak = Soak(tmp_path / "soak", seed, seconds=20, processes=4)

    figures = run(soak)

    print(figures, dict(soak.kills))
    assert soak.problems == []
    assert figures["kills"] >= 5
    assert figures["rows audited"] > 0
