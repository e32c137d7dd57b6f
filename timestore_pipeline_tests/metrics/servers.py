"""Real servers for the tests of metrics: Pushgateways and Prometheuses of their own, and what they answer."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import yaml
from prometheus_client.parser import text_string_to_metric_families

from timestore_pipeline.metrics.series import SERIES
from timestore_pipeline_tests.metrics.promql import RULES, RULES_FOLDER
from timestore_pipeline_tests.ports import unused_port

DEADLINE_SECONDS = 180

PUSHGATEWAY_FORGETS = "--persistence.file="
"""Debian's keeps what it has in a file that all gateways of the machine share."""


_WIPING = "--web.enable-admin-api"


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


class Gateway:
    """A running Pushgateway; ``headers`` and ``tls`` are what it asks of those who scrape it."""

    def __init__(self, url: str, headers: dict[str, str] | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.url = url
        self._headers = headers or {}
        self._tls = tls

    def open(self, path: str, **request: Any) -> str:
        """Ask it for something."""
        asked = Request(f"{self.url}/{path}", headers=self._headers, **request)
        with urlopen(asked, timeout=10, context=self._tls) as response:
            return response.read().decode()

    def samples(self, name: str, **labels: str) -> list[float]:
        """The values that a scrape finds of a series, among the groups that have these labels."""
        text = self.open("metrics")
        return [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def forget(self) -> None:
        """Let it hold nothing."""
        self.open("api/v1/admin/wipe", method="PUT")

    def put(self, group: str, text: str) -> None:
        """Push something else."""
        self.open(f"metrics/{group}", data=text.encode(), method="PUT")


@contextmanager
def pushgateway(
    program: Callable[[str], str],
    *options: str,
    scheme: str = "http",
    headers: dict[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Gateway]:
    """A Pushgateway that holds nothing yet."""
    address = f"127.0.0.1:{unused_port()}"
    command = (
        program("prometheus-pushgateway"),
        f"--web.listen-address={address}",
        PUSHGATEWAY_FORGETS,
        _WIPING,
        *options,
    )
    gateway = Gateway(f"{scheme}://{address}", headers, tls)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def answers() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        return bool(gateway.open("-/ready"))

    try:
        until(answers, "the Pushgateway answers")
        yield gateway
    finally:
        process.kill()
        process.communicate()


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
        process.wait(240)


@contextmanager
def prometheus_scraping(
    program: Callable[[str], str], folder: Path, target: str, job: str = "pushgateway"
) -> Iterator[str]:
    """A Prometheus with the rules and the configuration of the docs, every second; what it has stays in ``folder``."""
    config = yaml.safe_load((RULES_FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0] |= {"job_name": job, "static_configs": [{"targets": [target]}]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{unused_port()}"
    with running(
        f"http://{address}",
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={address}",
    ):
        yield f"http://{address}"


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """The answer to a query as Prometheus gives it; one that cannot be parsed or asked is an error."""
    asked = Request(f"{prometheus}/api/v1/query", data=urlencode({"query": expression}).encode())
    try:
        with urlopen(asked, timeout=60) as response:
            return json.load(response)["data"]["result"]
    except HTTPError as error:
        raise AssertionError(f"{expression}: {error.read().decode()}") from error


def ask(prometheus: str, expression: str) -> dict[tuple[str, ...], float]:
    """The answer to a query: (metric, dataset, value of the third label) → value."""
    results = query(prometheus, expression)
    seconds = {each.label for each in SERIES if each.label}
    return {
        (
            result["metric"].get("__name__", ""),
            result["metric"].get("dataset", ""),
            next((value for label, value in result["metric"].items() if label in seconds), ""),
        ): float(result["value"][1])
        for result in results
    }
