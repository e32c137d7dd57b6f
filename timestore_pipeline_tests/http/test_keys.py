"""Whose keys are whose: tokens cannot take each other's, nor the ids that files and retried rows are going to get."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from timestore_pipeline.segments.identity import file_batch_id
from timestore_pipeline.staging.arrivals import file_fingerprint
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import ingest, readable
from timestore_pipeline_tests.conftest import WEATHER_CSV
from timestore_pipeline_tests.http.server import bearer, tokens_document
from timestore_pipeline_tests.http.test_batches import CSV, post, problem

ROW = "ts,station,temp\n2026-01-01T00:00:00Z,JFK,{}\n"


def test_a_token_cannot_take_the_next_key_of_another(serving_in_process):
    with serving_in_process(tokens_document()) as client:
        mallory = post(client, ROW.format(1), CSV, Idempotency_Key="next", **bearer("all"))
        alice = post(client, ROW.format(2), CSV, Idempotency_Key="next", **bearer("weather"))
        again = post(client, ROW.format(2), CSV, Idempotency_Key="next", **bearer("weather"))

        assert [answer.status_code for answer in (mallory, alice, again)] == [201, 201, 200]
        assert alice.json()["batch_id"] == "next"
        for name in ("all", "weather"):
            found = client.get(alice.headers["location"], headers=bearer(name)).json()
            assert (found["batch_id"], found["source"]) == ("next", f"HTTP by {name}")
        assert client.get("/datasets/weather/batches/token%2Fall%2Fnext", headers=bearer("reader")).is_success
        problem(client.get("/datasets/weather/batches/next", headers=bearer("reader")), 404, "unknown-batch")


def test_a_key_from_before_tokens_had_spaces_is_still_known(serving_in_process):
    with serving_in_process(tokens_document()) as client:
        key = {"Idempotency_Key": "old"}
        first = post(client, ROW.format(1), CSV, **key, **bearer("all"))
        with Store.open() as store:
            # As it was stored then.
            store.ledger.transact(
                lambda tx: tx.exec_driver_sql("UPDATE batches SET batch_id = 'old', source = 'HTTP by weather'")
            )
        assert first.status_code == 201
        assert post(client, ROW.format(1), CSV, **key, **bearer("weather")).status_code == 200
        problem(post(client, ROW.format(2), CSV, **key, **bearer("weather")), 409, "batch-conflict")
        assert post(client, ROW.format(1), CSV, **key, **bearer("all")).status_code == 201


def test_tokens_may_share_a_space_so_that_one_can_take_the_others_place(serving_in_process):
    document = json.loads(tokens_document())
    for token in document["tokens"][:2]:
        token["key_space"] = "station-7"
    with serving_in_process(json.dumps(document)) as client:
        answers = [post(client, ROW.format(1), CSV, Idempotency_Key="k", **bearer(name)) for name in ("all", "weather")]

    assert [answer.status_code for answer in answers] == [201, 200]


@pytest.mark.parametrize("with_tokens", [True, False])
def test_a_file_that_is_to_come_cannot_be_kept_out(serving_in_process, drop, tmp_path: Path, *, with_tokens: bool):
    (tmp_path / "a.csv").write_text(WEATHER_CSV)
    key = file_batch_id(file_fingerprint(tmp_path / "a.csv"))
    headers = bearer("weather") if with_tokens else {}
    with serving_in_process(tokens_document() if with_tokens else None) as client, Store.open() as store:
        claim = post(client, ROW.format(7), CSV, Idempotency_Key=key, **headers)
        if with_tokens:
            assert claim.status_code == 201
        else:
            problem(claim, 400, "bad-key")
        drop(store, "weather", "a.csv", WEATHER_CSV)
        assert ingest(store)["weather"].rows == 3
        assert len(readable(store)) == 3 + with_tokens


def test_one_token_leaves_room_in_the_queue_for_another(serving_in_process):
    with serving_in_process(tokens_document(), staging_max_pending=10) as client:
        greedy = [post(client, ROW.format(n), CSV, **bearer("weather")) for n in range(12)]
        modest = post(client, ROW.format(99), CSV, **bearer("all"))

        assert [answer.status_code for answer in greedy] == [201] * 5 + [429] * 7
        assert "has its share" in problem(greedy[-1], 429, "queue-full")["detail"]
        assert int(greedy[-1].headers["retry-after"]) > 0
        assert modest.status_code == 201


def test_what_nobody_has_to_show_a_token_for_has_the_whole_queue(serving_in_process):
    with serving_in_process(staging_max_pending=3) as client:
        answers = [post(client, ROW.format(n), CSV) for n in range(4)]

    assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
