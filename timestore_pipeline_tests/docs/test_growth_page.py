"""The page about growth says what was measured, and its arithmetic follows from that."""

from __future__ import annotations

import pytest

from timestore_pipeline_tests.bench.growth import PARTS, carry, page


def test_the_block_is_the_one_that_the_kept_figures_make():
    text = page.PAGE.read_text(encoding="utf-8")

    assert page.BEGIN in text
    assert page.rendered(text, page.kept()) == text, "run the benchmark with --write"


@pytest.mark.skipif(not set(PARTS) <= page.kept().keys(), reason="not every part has been measured")
def test_what_is_carried_on_adds_up():
    found = page.kept()
    every = carry.lines(found)

    assert [line.full_at for line in every] == sorted(line.full_at for line in every)
    for line in every:
        assert line.load(line.full_at) <= 1 < line.load(line.full_at + 1)
        assert line.load(carry.DATASETS) == pytest.approx(carry.DATASETS * line.load(1))
    rows = next(line for line in every if line.part.startswith("rows"))
    one = next(row for row in found["workers"]["rows"] if row["workers"] == 1)
    seconds = carry.ROWS_A_DAY * sum(1 / one[what]["rows_per_cpu_second"] for what in ("stage", "build"))
    assert rows.load(carry.DATASETS) * 86_400 == pytest.approx(seconds)
