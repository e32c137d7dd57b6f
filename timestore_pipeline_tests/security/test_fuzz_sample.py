"""A short sample of ``make fuzz``, bounded by its number of mutants; and that the command's mutants can be repeated."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from timestore_pipeline.rows.formats.known import FORMATS, MEDIA_TYPES
from timestore_pipeline_tests.fuzz.mutants import BATCHES, mutated


@pytest.mark.process
def test_whatever_is_made_of_a_batch_the_next_good_one_is_taken(tmp_path: Path):
    command = [sys.executable, "-m", "timestore_pipeline_tests.fuzz", "--mutants", "60", "--seed", "20260101"]

    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 good batches" in done.stdout


def test_mutants_are_made_of_every_format():
    assert {MEDIA_TYPES[batch.media_type] for batch in BATCHES} == set(FORMATS)


def test_a_seed_makes_the_same_mutants_again():
    def made(seed: int) -> list[bytes]:
        chance = random.Random(seed)
        return [mutated(batch, chance) for batch in BATCHES]

    assert made(7) == made(7)
    assert made(7) != made(8)
