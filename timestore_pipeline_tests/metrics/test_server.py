"""``timestore metrics --serve`` and ``--output``: each scrape and each file is the ledger's picture of that moment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from timestore_pipeline.ledger.counters import DROPPED_BATCHES, count
from timestore_pipeline.metrics import series as names
from timestore_pipeline.metrics import write_exposition
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly
from timestore_pipeline_tests.cli.conftest import Finished, timestore  # noqa: F401
from timestore_pipeline_tests.conftest import DATASETS_YAML
from timestore_pipeline_tests.metrics.servers import ask, prometheus_scraping, until
from timestore_pipeline_tests.metrics.work import audit, let_work
from timestore_pipeline_tests.ports import unused_port

Run = Callable[..., Finished]
PutEnvironment = Callable[..., dict[str, str]]
SERVE = [sys.executable, "-m", "timestore_pipeline.cli", "metrics", "--serve"]


@contextmanager
def serving(environment: dict[str, str], *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command as somebody starts it; yields the address that it says."""
    environment = {**environment, "PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen([*SERVE, *options], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("serving metrics at http://"), said
        yield said.split()[-1], process
    finally:
        process.kill()
        process.communicate()


def scrape(url: str) -> str:
    with urlopen(url, timeout=120) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        return response.read().decode()


@pytest.mark.process
def test_each_scrape_shows_the_ledger_as_it_is_and_says_what_is_wrong_to_whoever_asks(
    store_environment: PutEnvironment,
):
    with serving(store_environment(), "--port", "0") as (url, process), Store.open() as store:
        assert url.startswith("http://127.0.0.1:")
        # Clients that say nothing hold no other up.
        host, port = url.split("/")[2].split(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(5)]
        assert f'{names.QUEUE_DEPTH}{{dataset="weather",metric="rows"}} 0.0' in scrape(url)
        for each in silent:
            each.close()
        stage(store, "weather", hourly(5))
        assert f'{names.QUEUE_DEPTH}{{dataset="weather",metric="rows"}} 5.0' in scrape(url)
        path = store.settings.datasets_path
        path.write_text(DATASETS_YAML.replace("events:", "others:"), encoding="utf-8")
        assert 'dataset="others"' in scrape(url)
        assert 'dataset="events"' not in scrape(url)

        path.write_text("datasets: [", encoding="utf-8")
        with pytest.raises(HTTPError) as refused:
            scrape(url)
        assert refused.value.code == 503
        assert b"datasets.yaml is not usable" in refused.value.read()

        # The next one is answered.
        path.write_text(DATASETS_YAML, encoding="utf-8")
        assert names.LEDGER_BYTES in scrape(url)
        with pytest.raises(HTTPError) as missing:
            scrape(url + "/../secrets")
        assert missing.value.code == 404

        process.send_signal(signal.SIGINT)
        assert process.wait(600) == 0


def test_a_port_that_is_taken_and_a_host_that_is_none_are_told(store_environment: PutEnvironment, timestore: Run):  # noqa: F811
    store_environment()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = timestore("metrics", "--serve", "--port", port)
    assert finished.code == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in finished.err

    assert "cannot listen on 'no such host'" in timestore("metrics", "--serve", "--host", "no such host").err


def test_serving_and_writing_exclude_each_other(store_environment: PutEnvironment, timestore: Run):  # noqa: F811
    store_environment()

    assert timestore("metrics", "--serve", "--output", "x.prom").code == 2


def test_a_file_for_the_textfile_collector_is_whole_or_the_old_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "textfiles"
    folder.mkdir()
    path = folder / "timestore.prom"
    write_exposition(store, path)
    old = path.read_text(encoding="utf-8")
    seen_by_others = path.stat().st_mode & 0o044
    assert old.startswith("# HELP timestore_")
    assert old.endswith("\n")
    assert seen_by_others, "the node exporter runs as somebody else"

    with store.ledger.write() as tx:
        count(tx, DROPPED_BATCHES, "weather", "queue_full", 3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken_disk)
        patch.setattr(os, "rename", broken_disk)
        with pytest.raises(Exception, match=r"timestore\.prom cannot be written: No space left"):
            write_exposition(store, path)
    assert path.read_text(encoding="utf-8") == old
    assert list(folder.iterdir()) == [path]

    write_exposition(store, path)
    assert f'{DROPPED_BATCHES}{{dataset="weather",reason="queue_full"}} 3.0' in path.read_text(encoding="utf-8")


def broken_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_the_command_writes_the_file(store_environment: PutEnvironment, timestore: Run, tmp_path: Path):  # noqa: F811
    store_environment()

    assert timestore("metrics", "--output", tmp_path / "a.prom") == Finished(timestore("--version").code, "", "")
    assert names.LEDGER_BYTES in (tmp_path / "a.prom").read_text(encoding="utf-8")
    refused = timestore("metrics", "--output", tmp_path / "missing" / "a.prom")
    assert refused.code == 1
    assert "a.prom cannot be written: No such file or directory" in refused.err


@pytest.mark.server
@pytest.mark.timeout(240)
def test_a_prometheus_that_scrapes_has_the_counters_of_the_ledger_and_never_sees_one_go_down(
    store_environment: PutEnvironment, program: Callable[[str], str], tmp_path: Path
):
    environment = store_environment(staging_max_pending=4)
    port = unused_port()
    Store.open().close()
    told: Counter[str] = Counter()

    for numbers in (range(4), range(4, 8)):
        with (
            serving(environment, "--port", str(port)),
            prometheus_scraping(program, tmp_path, f"127.0.0.1:{port}", job="timestore") as prometheus,
        ):
            told += let_work(environment, numbers)
            with Store.open() as store:
                expected = audit(store, told)
            names = "|".join(sorted({name for name, _, _ in expected}))

            def scraped(prometheus: str = prometheus, names: str = names) -> dict[tuple[str, ...], float]:
                found = ask(prometheus, f'{{__name__=~"{names}",job="timestore"}}')
                return {key: found.get(key, 0) for key in expected}  # noqa: B023

            until(lambda: scraped() == expected, f"Prometheus has {expected}")  # noqa: B023
            resets = {ask(prometheus, f"sum(resets({name}[1h]))")["", "", ""] for name, _, _ in expected}
            assert resets == {0}
    assert all(expected.values()), expected
