"""A real Prometheus that scrapes a real Pushgateway: its counters are the ledger's, and never go down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from timestore_pipeline.ledger.counters import counter_values
from timestore_pipeline.metrics import push_metrics
from timestore_pipeline.metrics.series import SERIES, SeriesType
from timestore_pipeline.store import Store
from timestore_pipeline_tests.metrics.servers import PUSHGATEWAY_FORGETS, ask, prometheus_scraping, running, until
from timestore_pipeline_tests.metrics.work import audit, let_work
from timestore_pipeline_tests.ports import unused_port

PROCESSES = 8
COUNTERS = [each.name for each in SERIES if each.type is SeriesType.COUNTER]
COUNTED = [
    *COUNTERS,
    *(f"{each.name}_{part}" for each in SERIES if each.type is SeriesType.HISTOGRAM for part in ("count", "sum")),
]


@pytest.mark.server
@pytest.mark.timeout(240)
def test_counters_in_prometheus_are_those_of_the_ledger_and_never_go_down(
    store_environment: Callable[..., dict[str, str]], program: Callable[[str], str], tmp_path: Path
):
    gateway = f"127.0.0.1:{unused_port()}"
    environment = store_environment(
        pushgateway_url=f"http://{gateway}", pushgateway_timeout_seconds=60, staging_max_pending=4
    )
    start_gateway = (program("prometheus-pushgateway"), f"--web.listen-address={gateway}", PUSHGATEWAY_FORGETS)
    told: Counter[str] = Counter()

    for numbers in (range(PROCESSES // 2), range(PROCESSES // 2, PROCESSES)):
        # Both servers are started anew for the second half; the gateway has forgotten everything.
        with (
            running(f"http://{gateway}", *start_gateway),
            prometheus_scraping(program, tmp_path, gateway) as prometheus,
        ):
            told += let_work(environment, numbers)
            with Store.open() as store:
                assert push_metrics(store).pushed
                expected = audit(store, told)
                with store.ledger.read() as tx:
                    counters = {key: value for key, value in counter_values(tx).items() if value}

            def scraped(names: list[str], prometheus: str = prometheus) -> dict[tuple[str, ...], float]:
                found = ask(prometheus, f'{{__name__=~"{"|".join(names)}",job="timestore"}}')
                return {key: value for key, value in found.items() if value}

            until(lambda: scraped(COUNTERS) == counters, "Prometheus has what the ledger counted")  # noqa: B023
            found = scraped(COUNTED)
            assert {key: found.get(key, 0) for key in expected} == expected
            resets = [ask(prometheus, f"sum(resets({name}[1h]))") for name in COUNTED]
            assert {value for each in resets for value in each.values()} == {0}

    assert all(expected.values()), expected
