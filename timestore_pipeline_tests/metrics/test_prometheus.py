"""A real Prometheus that scrapes a real Pushgateway: its counters are the ledger's, and never go down."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from timestore_pipeline.ledger.counters import counter_values
from timestore_pipeline.metrics import push_metrics
from timestore_pipeline.metrics.series import SERIES, SeriesType
from timestore_pipeline.store import Store
from timestore_pipeline_tests.conftest import unused_port
from timestore_pipeline_tests.metrics.promql import RULES, RULES_FOLDER

DEADLINE_SECONDS = 60
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


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            if condition():
                return
        except (URLError, ConnectionError):
            pass
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}"
        time.sleep(0.1)


@contextmanager
def running(url: str, *command: str) -> Iterator[None]:
    """A server, from the moment that it is ready."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: urlopen(f"{url}/-/ready", timeout=5).status == 200 or process.poll(), f"{command[0]} is ready")
        assert process.poll() is None, f"{command[0]} ended"
        yield
    finally:
        process.terminate()
        process.wait(30)


def ask(prometheus: str, query: str) -> dict[tuple[str, ...], float]:
    """The answer to a query: (metric, dataset, value of the third label) → value."""
    with urlopen(f"{prometheus}/api/v1/query?{urlencode({'query': query})}", timeout=10) as response:
        results = json.load(response)["data"]["result"]
    seconds = {each.label for each in SERIES if each.label}
    return {
        (
            result["metric"].get("__name__", ""),
            result["metric"].get("dataset", ""),
            next((value for label, value in result["metric"].items() if label in seconds), ""),
        ): float(result["value"][1])
        for result in results
    }


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
        # Debian's keeps what it has in a file that all gateways of the machine share.
        "--persistence.file=",
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
