"""Servers for tests: one that a module shares whose tests change nothing of it, others of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from timestore_pipeline.http.app import Api
from timestore_pipeline.http.tokens import Tokens
from timestore_pipeline.settings import Settings, load_settings
from timestore_pipeline.timestore import Timestore
from timestore_pipeline_tests.conftest import DATASETS_YAML
from timestore_pipeline_tests.http.server import Server, ServerProcess, process_serving, serving


@pytest.fixture
def make_server(store_environment: Callable[..., dict[str, str]]) -> Iterator[Callable[..., Server]]:
    """Serves the test's installation in this process; keyword arguments are fields of Settings."""
    with ExitStack() as servers:

        def make(datasets_yaml: str = DATASETS_YAML, **fields: object) -> Server:
            store_environment(datasets_yaml, **fields)
            return servers.enter_context(serving(load_settings()))

        yield make


@pytest.fixture
def start_server(
    store_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> Iterator[Callable[..., ServerProcess]]:
    """Starts a server process of the test's installation; keyword arguments are fields of Settings."""
    with ExitStack() as servers:

        def start(port: int = 0, datasets_yaml: str = DATASETS_YAML, **fields: object) -> ServerProcess:
            environment = store_environment(datasets_yaml, **fields)
            return servers.enter_context(process_serving(environment, tmp_path / "server.log", port))

        yield start


@pytest.fixture
def serving_in_process(store_environment: Callable[..., dict[str, str]]) -> Callable:
    """Serves the test's installation from within this process, to the bearers of tokens or to everybody."""

    @contextmanager
    def serve(tokens: str | None = None, **fields: object) -> Iterator[TestClient]:
        store_environment(**fields, **({"http_tokens": tokens} if tokens else {}))
        with Timestore.open() as timestore:
            application = Api(timestore, Tokens(timestore.store.settings)).application()
            with TestClient(application, base_url="http://localhost") as client:
                yield client

    return serve


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without tokens that the tests of a module share; each uses batches of its own."""
    home = tmp_path_factory.mktemp("served")
    (home / "datasets.yaml").write_text(DATASETS_YAML, encoding="utf-8")
    settings = Settings(
        home=home,
        staging_min_free_disk_bytes=0,
        staging_max_pending=0,
        http_max_body_bytes=1 << 20,
        http_max_decoded_bytes=4 << 20,
        http_max_rows=5_000,
    )
    with serving(settings) as server:
        yield server


@pytest.fixture
def client(shared: Server) -> Iterator[httpx.Client]:
    """A client of the shared server."""
    with shared.client() as client:
        yield client
