"""A histogram counts what it is given in buckets."""

from __future__ import annotations

import pytest

from timestore_pipeline.ledger.counters import FLUSH_DURATION, histogram_values, observe
from timestore_pipeline.store import Store

pytestmark = pytest.mark.both_ledgers


def test_a_histogram_counts_each_observation_in_its_bucket(store: Store):
    with store.ledger.write() as tx:
        for value in (0.05, 0.051, 1.0, 10**6):
            observe(tx, FLUSH_DURATION, "weather", "success", value)
        (histogram,) = histogram_values(tx).values()

    assert histogram.counts[0] == 1
    assert histogram.counts[1] == 1
    assert histogram.counts[-1] == 1
    assert sum(histogram.counts) == 4
    assert histogram.sum == pytest.approx(1_000_001.101)
