"""Nothing but PostgreSQL and an object store is shared: files land there, are staged, published and read from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import dagster as dg
import pytest
from deltalake import DeltaTable

from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline_tests.builders import hourly, readable, rows_of, weather_csv
from timestore_pipeline_tests.e2e.conftest import Deployment
from timestore_pipeline_tests.e2e.test_daemon import published_rows, statuses
from timestore_pipeline_tests.fault_proxy import Effect, Fault, slow_down
from timestore_pipeline_tests.object_store import Bucket
from timestore_pipeline_tests.postgresql import fresh_ledger

pytestmark = [pytest.mark.e2e, pytest.mark.server, pytest.mark.xdist_group("e2e")]

ROWS_PER_FILE = 30


@pytest.fixture
def shared_ledger(clean_environment: None) -> Iterator[None]:
    """An empty ledger on PostgreSQL for all that the test starts."""
    with fresh_ledger("postgresql"):
        yield


def land(bucket: Bucket, station: str) -> list[tuple[object, ...]]:
    """Drop a file of rows in two windows; return its rows."""
    table = hourly(ROWS_PER_FILE, station=station)
    lines = (f"{row['ts']:%Y-%m-%dT%H:%M:%SZ},{station},{row['temp']}" for row in table.to_pylist())
    bucket.put(f"landing/weather/{station} %.csv", weather_csv(*lines))
    return rows_of(table)


@pytest.mark.timeout(500)
def test_what_lands_in_a_bucket_is_published_into_it_whatever_the_store_does_meanwhile(
    shared_ledger: None, s3_bucket: Bucket, deploy: Callable[..., Deployment]
):
    url, proxy = s3_bucket.url, s3_bucket.proxy
    deployment = deploy(
        landing_directory=f"{url}/landing",
        landing_archive_directory=f"{url}/archive",
        staging_directory=f"{url}/staging",
        tables_url=f"{url}/tables",
        staging_flush_max_rows=1,
    )
    store = deployment.store
    expected = [row for number in range(6) for row in land(s3_bucket, f"first-{number}")]
    s3_bucket.put("landing/weather/bad.csv", "no,such,columns\n1,2,3\n")
    proxy.add(
        *(slow_down(operation, times=2) for operation in ("LIST", "GET", "PUT", "COPY", "DELETE_MANY")),
        # The first segment, and the first commit of a table: done, and the answer is lost.
        Fault(Effect.DROP_AFTER, "PUT", key="staging/*"),
        Fault(Effect.DROP_AFTER, "PUT", key="tables/*"),
        Fault(Effect.CUT, "GET", key="staging/*"),
    )
    deployment.start()
    deployment.wait_for(
        "the first rows are published", lambda: published_rows(store) == {"weather": len(expected)}, 240
    )

    land(s3_bucket, "first-0")  # delivered twice
    expected += [row for number in range(4) for row in land(s3_bucket, f"second-{number}")]
    deployment.wait_for("all rows are published", lambda: published_rows(store) == {"weather": len(expected)}, 240)
    deployment.wait_for("nothing waits", lambda: not s3_bucket.keys("landing/"))
    deployment.wait_for("all runs end", lambda: all(run.is_finished for run in deployment.instance.get_runs()))

    assert readable(store) == sorted(expected, key=repr)
    assert DeltaTable(f"{url}/tables/weather").to_pyarrow_table().num_rows == len(expected) == 10 * ROWS_PER_FILE
    assert statuses(deployment) == {dg.DagsterRunStatus.SUCCESS}
    assert len({s3_bucket.get(key) for key in s3_bucket.keys("archive/weather/")}) == 10
    with store.ledger.read() as tx:
        (entry,) = open_entries(tx)
    assert s3_bucket.get(f"staging/{entry.path}") == b"no,such,columns\n1,2,3\n"
    assert not store.settings.path("data/staging").exists(), "nothing but what may be lost is on the host"
    assert not store.settings.path("data/tables").exists()
