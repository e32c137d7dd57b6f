"""A landing file of which every process dies that reads it: the others go on, and it is not tried for ever."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.staging import ingest as ingesting
from timestore_pipeline.staging.suspects import LAST_READER_SECONDS
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import ingest, published
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import start

pytestmark = pytest.mark.crash

TOGETHER = 2
"""How often it is read beside others before it is read alone."""


@pytest.mark.parametrize(
    ("job", "attempts", "settings"),
    [
        ("ingest and be killed by a bomb", 1, {}),
        ("ingest and crash on a bomb", 2, {}),
        pytest.param("ingest and spin on a bomb", 1, {"landing_max_reading_seconds": 5.0}, marks=pytest.mark.long),
    ],
)
def test_a_file_that_kills_its_readers_is_quarantined_alone(
    at_work: Callable[..., Store], drop, monkeypatch: pytest.MonkeyPatch, job: str, attempts: int, settings: dict
):
    store = at_work(landing_max_attempts=attempts, **settings)
    bomb = drop(store, "readings", "bomb.csv", "id,at\n77,2026-01-01\n")
    os.utime(bomb, (0, 0))  # the first in every group
    deaths = 0
    while (code := start(store, job).exit_code()) != 0:
        assert code in (-signal.SIGKILL, -signal.SIGSEGV)
        deaths += 1
        assert deaths <= TOGETHER + attempts
        rows.assert_acknowledged_rows_are_readable_once(store)

    # The others were staged before; the bomb is left alone until no reader of it can be alive.
    assert deaths == TOGETHER + attempts
    assert bomb.exists()
    assert rows.in_ledger(store) >= {"a", "b", "c", "d"}
    later = ingesting.now_micros() + LAST_READER_SECONDS * 1_000_000
    monkeypatch.setattr(ingesting, "now_micros", lambda: later)
    ingest(store)

    with store.ledger.read() as tx:
        (entry,) = [entry for entry in open_entries(tx, "readings") if entry.source == "bomb.csv"]
    assert f"{attempts} processes have ended while they read it alone" in entry.reason
    assert entry.try_again_at is not None
    assert store.staging.fetch(entry.path).read_text().startswith("id,at\n77")
    flush_windows(store, BuildOrder("readings", owner="the test"))
    assert sorted(row[0] for row in published(store, "readings")) == list(range(30))
