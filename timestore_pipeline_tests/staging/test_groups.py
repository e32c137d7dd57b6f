"""Batches that are staged together: each is judged by what holds without those that are refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline.ledger.datasets import dataset_columns
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.operating.quarantine import retry_entry
from timestore_pipeline_tests.builders import ingest
from timestore_pipeline_tests.conftest import MakeStore

Drop = Callable[..., Path]

TIDES = "datasets: {tides: {time: at, window: day, limits: {max_windows: 1}%s}}"
FITS = {
    "a": '{"at": "2026-01-01", "level": 1}\n',
    "b": '{"at": "2026-01-01", "level": true}\n',
    "c": '{"at": "2026-01-01", "level": 1, "height": 1}\n',
    "d": '{"at": "2026-01-01", "level": 1, "height": true}\n',
    "e": '{"at": "2026-01-01", "level": 1, "HEIGHT": 1}\n',
}
TWO_DAYS = {
    name.upper(): text + text.replace("2026-01-01", "2026-01-02").replace("1}", "2}") for name, text in FITS.items()
}
NEVER = {
    "no_time": '{"level": 1, "width": 1}\n',
    "bad_time": '{"at": "then", "level": 1, "width": 1}\n',
    "bad_level": '{"at": "2026-01-01", "level": 1, "width": 1}\n{"at": "2026-01-01", "level": "x", "width": 1}\n',
}
KINDS = FITS | TWO_DAYS | NEVER


def test_a_file_is_not_held_against_the_columns_of_one_that_is_refused(make_store: MakeStore, drop: Drop):
    store = make_store(TIDES % "")
    drop(store, "tides", "1.jsonl", '{"at": "2026-01-01", "b": 1}\n{"at": "2026-01-02", "b": 1}\n')
    drop(store, "tides", "2.jsonl", '{"at": "2026-01-01", "b": true}\n')

    report = ingest(store)["tides"]

    assert [receipt.source for receipt in report.staged] == ["2.jsonl"]
    assert [entry.source for entry in report.quarantined] == ["1.jsonl"]


def test_values_of_a_file_that_cannot_be_read_are_not_held_against_others(make_store: MakeStore, drop: Drop):
    store = make_store(TIDES % ", evolve: true, columns: {at: timestamp, level: int}")
    drop(store, "tides", "1.csv", "at,level,height\n2026-01-01,1,low\n")
    drop(store, "tides", "2.csv", "at,level,height\n2026-01-01,1,low\n2026-01-01,1\n")
    drop(store, "tides", "3.csv", "at,level,height\n2026-01-01,1,high\n")

    report = ingest(store)["tides"]

    assert [receipt.source for receipt in report.staged] == ["1.csv", "3.csv"]
    assert [entry.source for entry in report.quarantined] == ["2.csv"]


@pytest.mark.parametrize("evolve", ["", ", evolve: true", ", evolve: true, columns: {at: timestamp, level: int}"])
@pytest.mark.parametrize("seed", [4, 8, 9])
def test_what_is_refused_in_a_group_is_refused_alone_and_for_what_the_dataset_has(
    make_store: MakeStore, drop: Drop, evolve: str, seed: int
):
    store = make_store(TIDES % evolve)
    chosen = random.Random(seed).sample(sorted(KINDS), 6)
    for number, name in enumerate(chosen):
        drop(store, "tides", f"{number}_{name}.jsonl", KINDS[name])

    ingest(store)

    with store.ledger.read() as tx:
        columns = dataset_columns(tx, store.datasets["tides"]) or ()
        entries = open_entries(tx)
    has = {column.name for column in columns}
    for entry in entries:
        named = entry.reason.partition("The dataset has ")[2]
        assert {text.split()[0] for text in named.split(", ") if text} <= has, entry.reason
        retried = retry_entry(store, entry.id, "me")
        assert not retried.done, f"{entry.source} of {chosen}: {entry.reason}"
