"""A run of many steps pushes as often as it pays, and never ends with a push owed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import pytest

from timestore_pipeline.ledger.counters import DROPPED_BATCHES, count
from timestore_pipeline.orchestration.logs import InertLog
from timestore_pipeline.orchestration.resources import MetricsResource
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.stub_server import QuietHandler, answering_with

LOG = InertLog(logging.getLogger(__name__), {})


@contextmanager
def gateway(seconds: float) -> Iterator[tuple[str, list[bytes]]]:
    """A gateway that takes its time for each push; gives its URL and the bodies that it got."""
    bodies: list[bytes] = []

    class Handler(QuietHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(seconds)
            bodies.append(body)
            self.send_response(200)
            self.end_headers()

    with answering_with(Handler) as port:
        yield f"http://127.0.0.1:{port}", bodies


@pytest.mark.long
def test_steps_that_follow_one_another_push_once_and_the_end_of_the_run_makes_up_for_the_others(make_store: MakeStore):
    with gateway(seconds=2) as (url, bodies):
        store = make_store(pushgateway_url=url, pushgateway_timeout_seconds=60)
        metrics = MetricsResource()
        metrics.setup_for_execution(dg.build_init_resource_context())
        said = [metrics.push(store, LOG) for _ in range(20)]
        store.ledger.transact(lambda tx: count(tx, DROPPED_BATCHES, "weather", "queue_full", 7))
        store.close()  # whichever resource ends first
        metrics.teardown_after_execution(dg.build_init_resource_context())
        metrics.teardown_after_execution(dg.build_init_resource_context())

    assert "pushed to" in said[0]
    assert {"at the end of the run" in line for line in said[1:]} == {True}
    assert len(bodies) == 2
    assert b'timestore_staging_dropped_batches_total{dataset="weather",reason="queue_full"} 7.0' in bodies[1]


@pytest.mark.long
def test_a_picture_that_takes_longer_to_draw_than_the_gateway_may_take_arrives(make_store: MakeStore, monkeypatch):
    from timestore_pipeline.metrics import pushgateway

    collect = pushgateway.collect_metrics
    monkeypatch.setattr(pushgateway, "collect_metrics", lambda store: [time.sleep(3.2), collect(store)][1])

    with gateway(seconds=0) as (url, bodies):
        store = make_store(pushgateway_url=url, pushgateway_timeout_seconds=3)
        said = MetricsResource().push(store, LOG)

    assert "pushed to" in said
    assert len(bodies) == 1
