"""Ids of batches: what the project gives nobody can take, and a conflict is the matter of one batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import BatchConflict, BatchIdReserved, TimestoreError
from timestore_pipeline.ledger.batches import known_batches
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.operating.quarantine import retry_entry
from timestore_pipeline.segments.identity import Client, claims_given_id, content_batch_id, file_batch_id
from timestore_pipeline.staging import load, receipts
from timestore_pipeline.staging.arrivals import file_fingerprint
from timestore_pipeline.staging.frame_rows import Incoming, Sent, stage_together
from timestore_pipeline.staging.frames import table_fingerprint
from timestore_pipeline.staging.room import Admission, admissions
from timestore_pipeline.staging.stage import stage, stage_file
from timestore_pipeline.staging.writer import Writer
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly, ingest, readable, rows_of
from timestore_pipeline_tests.conftest import WEATHER_CSV, MakeStore

HASH = "0123456789abcdef" * 4
CLAIMS = [f"file-{HASH}", f"arrow-{HASH}", f"unread-{HASH}", "b/rows/7", "line\nbreak/rows/7", "token/acme/1"]


def given_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ids be taken that are kept for us now."""
    monkeypatch.setattr(load, "claims_given_id", lambda *_: False)


@pytest.mark.parametrize("batch_id", CLAIMS)
def test_an_id_that_we_give_is_given_to_no_caller(store: Store, tmp_path: Path, batch_id: str):
    file = tmp_path / "a.csv"
    file.write_text(WEATHER_CSV)

    with pytest.raises(BatchIdReserved, match="gives itself"):
        stage(store, "weather", hourly(1), batch_id)
    with pytest.raises(BatchIdReserved, match="gives itself"):
        stage_file(store, "weather", file, batch_id)
    with Writer(store, "weather") as writer:
        claim, honest = writer.submit(hourly(1), batch_id), writer.submit(hourly(2), "mine")
        with pytest.raises(BatchIdReserved, match="gives itself"):
            claim.result()
        assert honest.result().rows == 2
        with pytest.raises(BatchIdReserved, match="gives itself"):  # nor by what the group before has found
            writer.write(hourly(1), batch_id)

    assert readable(store) == rows_of(hourly(2))


def test_what_has_such_an_id_from_before_is_a_repeat(store: Store, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as before:
        given_as_before(before)
        stage(store, "weather", hourly(1), "b/rows/7")

    assert stage(store, "weather", hourly(1), "b/rows/7").duplicate
    with pytest.raises(BatchConflict):
        stage(store, "weather", hourly(2), "b/rows/7")


def test_the_id_of_its_own_content_is_no_claim(store: Store):
    own = content_batch_id(table_fingerprint(hourly(1)))

    assert not stage(store, "weather", hourly(1), own).duplicate
    assert stage(store, "weather", hourly(1)).duplicate


@given(st.text(max_size=300), st.text(st.sampled_from("abc./-_1"), min_size=1, max_size=63))
def test_no_key_of_a_client_is_a_claim_or_another_clients(key: str, name: str):
    client = Client("HTTP by x", name, key)
    assert client.batch_id is not None
    assert len(client.batch_id) <= 255
    assert not claims_given_id(client.batch_id, HASH, client)
    if "/" not in name:  # as no name of a token has
        for other in (Client("y", "other", key), Client("y", f"{name}2", key)):
            assert other.batch_id != client.batch_id or other.space == client.space


def test_a_conflict_of_one_file_lets_the_others_be_staged(store: Store, drop, monkeypatch: pytest.MonkeyPatch):
    content = WEATHER_CSV.replace("1.5", "9.5")
    taken = drop(store, "weather", "taken.csv", content)
    with monkeypatch.context() as before:
        given_as_before(before)
        stage(store, "weather", hourly(1), file_batch_id(file_fingerprint(taken)))
    drop(store, "weather", "twin.csv", content)
    drop(store, "weather", "honest.csv", WEATHER_CSV)

    report = ingest(store)["weather"]

    assert [receipt.source for receipt in report.staged] == ["honest.csv"]
    assert {entry.source for entry in report.quarantined} <= {"taken.csv", "twin.csv"}
    assert "--batch-id" in report.quarantined[0].reason
    assert len(readable(store)) == 4
    assert ingest(store) == {}
    assert not retry_entry(store, report.quarantined[0].id, "me").done
    stage_file(store, "weather", store.staging.fetch(report.quarantined[0].path), "under another one")
    assert len(readable(store)) == 7


def test_a_conflict_that_comes_while_files_are_read_is_that_files_alone(
    store: Store, drop, monkeypatch: pytest.MonkeyPatch
):
    taken = drop(store, "weather", "taken.csv", WEATHER_CSV.replace("1.5", "9.5"))
    drop(store, "weather", "honest.csv", WEATHER_CSV)
    given_as_before(monkeypatch)
    taken_id = file_batch_id(file_fingerprint(taken))

    with at(CrashPoint.SEGMENT_IN_PLACE, lambda: stage(store, "weather", hourly(1), taken_id)):
        report = ingest(store)["weather"]

    assert [receipt.source for receipt in report.staged] == ["honest.csv"]
    with store.ledger.read() as tx:
        assert [entry.source for entry in open_entries(tx)] == ["taken.csv"]


def incoming(name: str, key: str, count: int) -> Incoming:
    client = Client(f"HTTP by {name}", name, key)
    return Incoming.of("weather", hourly(count), client.batch_id, client.name, Sent(client=client))


def test_a_client_cannot_take_anothers_next_key(store: Store):
    spec = store.datasets["weather"]

    answers = stage_together(store, spec, [incoming("mallory", "next", 1), incoming("alice", "next", 2)]).in_order

    assert [answer.rows for answer in answers if isinstance(answer, receipts.Receipt)] == [1, 2]


def test_a_key_from_before_clients_had_spaces_is_still_known_to_its_client_alone(store: Store):
    spec = store.datasets["weather"]
    stage(store, "weather", hourly(1), "old", "HTTP by alice")

    (repeat,) = stage_together(store, spec, [incoming("alice", "old", 1)]).in_order
    (other,) = stage_together(store, spec, [incoming("mallory", "old", 1)]).in_order
    (conflict,) = stage_together(store, spec, [incoming("alice", "old", 3)]).in_order

    assert isinstance(repeat, receipts.Receipt)
    assert repeat.duplicate
    assert [window.key for window in repeat.windows] == ["2026-01-01"]
    assert isinstance(other, receipts.Receipt)
    assert not other.duplicate
    assert isinstance(conflict, BatchConflict)
    with store.ledger.read() as tx:
        assert set(known_batches(tx, "weather", ["old", "token/mallory/old", "token/alice/old"])) == {
            "old",
            "token/mallory/old",
        }


NAMES = st.sampled_from([None, "a", "b", "c"])


@given(st.lists(NAMES, max_size=60), st.integers(1, 40))
def test_there_is_room_left_for_whoever_has_nothing_yet(arriving: list[str | None], limit: int):
    found = admissions(arriving, {}, 0, limit)

    taken = [name for name, admission in zip(arriving, found, strict=True) if admission is Admission.TAKEN]
    assert len(taken) <= limit
    clients = {name: taken.count(name) for name in set(taken) if name}
    if None not in taken and len(taken) < limit:
        assert admissions(["new"], clients, len(taken), limit) == [Admission.TAKEN]
    if limit > 1 and len(clients) == 1 and None not in taken:
        assert len(taken) <= (limit + 1) // 2
    # One after the other, asking the ledger each time, comes to the same.
    for number, (name, admission) in enumerate(zip(arriving, found, strict=True)):
        before = [each for each, so in zip(arriving[:number], found, strict=False) if so is Admission.TAKEN]
        held = {each: before.count(each) for each in before if each}
        assert admissions([name], held, len(before), limit) == [admission]


def test_one_client_leaves_room_for_another_and_for_files(make_store: MakeStore, drop):
    store = make_store(staging_max_pending=10)
    spec = store.datasets["weather"]

    greedy = stage_together(store, spec, [incoming("greedy", str(n), n + 1) for n in range(20)]).in_order
    again = [stage_together(store, spec, [incoming("greedy", f"again {n}", n + 30)]).answers[0] for n in range(3)]
    modest = stage_together(store, spec, [incoming("modest", str(n), n + 60) for n in range(2)]).in_order
    drop(store, "weather", "a.csv", WEATHER_CSV)

    assert sum(isinstance(answer, receipts.Receipt) for answer in greedy) == 5
    for answer in [*greedy[5:], *again]:
        assert isinstance(answer, TimestoreError)
        assert "has its share" in str(answer)
    assert all(isinstance(answer, receipts.Receipt) for answer in modest)
    assert ingest(store)["weather"].batches == 1
