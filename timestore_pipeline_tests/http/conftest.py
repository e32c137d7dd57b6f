"""One server for the tests of a module that change nothing of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from timestore_pipeline.settings import PREFIX
from timestore_pipeline_tests.conftest import DATASETS_YAML
from timestore_pipeline_tests.http.server import Server, serving

MakeServer = Callable[..., Server]


@pytest.fixture
def make_server(store_environment: Callable[..., dict[str, str]], tmp_path: Path) -> Iterator[MakeServer]:
    """Starts a server of the test's installation; keyword arguments are fields of Settings."""
    with_contexts: list = []

    def make(port: int = 0, datasets_yaml: str = DATASETS_YAML, **fields: object) -> Server:
        context = serving(store_environment(datasets_yaml, **fields), tmp_path / "server.log", port)
        with_contexts.append(context)
        return context.__enter__()

    yield make
    for context in with_contexts:
        context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without tokens that the tests of a module share; each uses batches of its own."""
    home = tmp_path_factory.mktemp("served")
    (home / "datasets.yaml").write_text(DATASETS_YAML, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    fields = {
        "home": home,
        "staging_min_free_disk_bytes": 0,
        "staging_max_pending": 0,
        "http_max_body_bytes": 1 << 20,
        "http_max_decoded_bytes": 4 << 20,
        "http_max_rows": 5_000,
    }
    environment.update({PREFIX + field.upper(): str(value) for field, value in fields.items()})
    with serving(environment, home / "server.log") as server:
        yield server


@pytest.fixture
def client(shared: Server) -> Iterator[httpx.Client]:
    """A client of the shared server."""
    with shared.client() as client:
        yield client
