"""A short sample of ``make fuzz``, bounded by its number of mutants; and that the command's mutants can be repeated."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from timestore_pipeline_tests.fuzz.mutants import BATCHES, mutated
from timestore_pipeline_tests.fuzz.run import Run


@pytest.mark.process
def test_whatever_is_made_of_a_batch_the_next_good_one_is_taken(tmp_path: Path):
    outcome = Run(tmp_path, seed=20_260_101).go_on(mutants=60)

    assert not outcome.failures, "\n".join(outcome.lines())
    assert len(outcome.good_seconds) == 60


def test_a_seed_makes_the_same_mutants_again():
    def made(seed: int) -> list[bytes]:
        chance = random.Random(seed)
        return [mutated(batch, chance) for batch in BATCHES]

    assert made(7) == made(7)
    assert made(7) != made(8)
