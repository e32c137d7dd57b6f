"""A name is given once, on a disk as in an object store."""

from __future__ import annotations

from pathlib import Path

import pytest

from timestore_pipeline.ledger.builds import NewBuild, mark_aborted
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.storage.local import LocalStorage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import claim_slices, hourly


def put(storage: LocalStorage, key: str, content: bytes) -> None:
    scratch = storage.scratch(key)
    scratch.write_bytes(content)
    storage.put(scratch, key)


def test_a_file_never_takes_the_place_of_another_one(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    put(storage, "a/one", b"first")

    with pytest.raises(FileExistsError):
        put(storage, "a/one", b"other")

    assert (tmp_path / "a/one").read_bytes() == b"first"


def test_a_put_that_is_done_again_is_done_once(tmp_path: Path):
    storage = LocalStorage(tmp_path)

    for _ in range(2):
        put(storage, "a/one", b"first")

    assert [entry.key for entry in storage.entries()] == ["a/one"]


def test_two_copies_of_a_ledger_give_their_builds_different_sequences(store: Store):
    """As if the ledger was put back to where it was before each of them."""
    stage(store, "weather", hourly(3))
    given = set()
    for turn in range(20):
        with store.ledger.write() as tx:
            claim = claim_slices(tx, NewBuild("weather", owner="x", trigger="manual", lease_micros=1, now=turn))
            assert claim is not None
            given.add(claim.build.sequence)
            mark_aborted(tx, claim.build, error="", recovered=False, now=turn)
            tx.exec_driver_sql("UPDATE datasets SET next_sequence = 1")
            tx.exec_driver_sql("DELETE FROM builds")

    assert len(given) == 20
