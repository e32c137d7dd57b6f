"""Numbers, sizes and durations as people read them."""

from __future__ import annotations

import pytest

from timestore_pipeline.cli import wording


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (999_940, "999.9 kB"),
        (999_999, "1.0 MB"),
        (134_217_728, "134.2 MB"),
        (5 * 10**12, "5.0 TB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_sizes(size_bytes: int, words: str):
    assert wording.size(size_bytes) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.00 s"),
        (0.25, "0.25 s"),
        (12, "12 s"),
        (60, "60 s"),
        (150, "2.5 min"),
        (7_200, "2.0 h"),
        (10**6, "11.6 d"),
    ],
)
def test_durations(seconds: float, words: str):
    assert wording.duration(seconds) == words


def test_counts():
    assert wording.counted(1, "row") == "1 row"
    assert wording.counted(0, "row") == "0 rows"
    assert wording.counted(1_234, "batch", "batches") == "1,234 batches"


def test_moments():
    assert wording.moment(1_767_225_600_123_456) == "2026-01-01 00:00:00Z"
    assert wording.iso(1_767_225_600_123_456) == "2026-01-01T00:00:00.123456+00:00"
