"""A real Prometheus that scrapes a real Pushgateway: its counters are the ledger's, and never go down."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from timestore_pipeline.ledger.counters import counter_values
from timestore_pipeline.metrics import push_metrics
from timestore_pipeline.metrics.series import SERIES, SeriesType
from timestore_pipeline.store import Store
from timestore_pipeline_tests.conftest import unused_port
from timestore_pipeline_tests.metrics.promql import RULES, RULES_FOLDER
from timestore_pipeline_tests.metrics.servers import PUSHGATEWAY_FORGETS, ask, running, until

PROCESSES = 12
COUNTERS = [each.name for each in SERIES if each.type is SeriesType.COUNTER]

# Stages a batch, the same again, one too many, flushes, and pushes: as many short processes do.
CHILD = """
import sys
from timestore_pipeline.building.build import build_windows
from timestore_pipeline.errors import BuildInFlight, StagingQueueFull
from timestore_pipeline.metrics import push_metrics
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly

number = int(sys.argv[1])
with Store.open() as store:
    for name in (f"own {number}", f"own {number}", "shared", f"more {number}"):
        try:
            stage(store, "weather", hourly(5, station=name.partition(" ")[2] or "JFK"), batch_id=name)
        except StagingQueueFull:
            pass
    if number % 3 == 0:
        try:
            build_windows(store, "weather", owner=f"process {number}")
        except BuildInFlight:
            pass
    push_metrics(store)
"""


@pytest.mark.server
@pytest.mark.timeout(240)
def test_counters_in_prometheus_are_those_of_the_ledger_and_never_go_down(
    store_environment: Callable[..., dict[str, str]], program: Callable[[str], str], tmp_path: Path
):
    gateway, prometheus = (f"http://127.0.0.1:{unused_port()}" for _ in range(2))
    environment = store_environment(pushgateway_url=gateway, pushgateway_timeout_seconds=20, staging_max_pending=6)
    environment["PYTHONPATH"] = ":".join(sys.path)
    config = yaml.safe_load((RULES_FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [gateway.removeprefix("http://")]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    start_gateway = (
        program("prometheus-pushgateway"),
        f"--web.listen-address={gateway.removeprefix('http://')}",
        PUSHGATEWAY_FORGETS,
    )
    start_prometheus = (
        program("prometheus"),
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address={prometheus.removeprefix('http://')}",
    )

    def work(number: int) -> None:
        subprocess.run([sys.executable, "-c", CHILD, str(number)], env=environment, check=True)

    def ledger() -> dict[tuple[str, ...], float]:
        with Store.open() as store, store.ledger.read() as tx:
            return {key: value for key, value in counter_values(tx).items() if value}

    def agree() -> bool:
        names = "|".join(COUNTERS)
        scraped = ask(prometheus, f'{{__name__=~"{names}",job="timestore"}}')
        return {key: value for key, value in scraped.items() if value} == ledger()

    for numbers in (range(PROCESSES // 2), range(PROCESSES // 2, PROCESSES)):
        # Both servers are started anew for the second half; the gateway has forgotten everything.
        with running(gateway, *start_gateway), running(prometheus, *start_prometheus):
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(work, numbers))
            with Store.open() as store:
                assert push_metrics(store).pushed
            until(agree, "Prometheus has what the ledger has")
            resets = [ask(prometheus, f"sum(resets({name}[1h]))") for name in COUNTERS]
            assert {value for each in resets for value in each.values()} == {0}

    counted = ledger()
    assert counted["timestore_staging_retried_batches_total", "weather", "duplicate"] >= PROCESSES - 1
    assert counted["timestore_staging_dropped_batches_total", "weather", "queue_full"] > 0
    assert counted["timestore_staging_flush_rows_total", "weather", "success"] > 0
