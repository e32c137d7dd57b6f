"""The webserver of ``make dev`` takes only what its own pages ask, whatever other pages the same browser has open."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

SCRIPT = Path(__file__).parents[2] / "scripts/guarded_dagster.py"
OURS = "http://127.0.0.1:3000"
MUTATION = "/graphql?query=mutation{launchRun(executionParams:{})}"


@pytest.fixture(scope="module")
def guarded():
    spec = importlib.util.spec_from_file_location("guarded_dagster", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def browser(guarded) -> TestClient:
    async def answer(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    methods = ["GET", "HEAD", "POST", "PUT"]
    app = Starlette(
        routes=[
            Route("/graphql", answer, methods=methods),
            WebSocketRoute("/graphql", echo),
            Route("/{path:path}", answer, methods=methods),
        ]
    )
    return TestClient(guarded.OnlyItsOwnPages(app, {"localhost", "devbox"}), base_url=OURS)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/assets", {}, 200),
        ("GET", "/assets", {"Host": "localhost:3000"}, 200),
        ("GET", "/assets", {"Host": "devbox:3000"}, 200),
        ("GET", "/assets", {"Host": "[::1]:3000"}, 200),
        ("GET", "/assets", {"Origin": "https://elsewhere.example"}, 200),
        ("POST", "/graphql", {"Origin": OURS}, 200),
        ("POST", "/graphql", {}, 200),  # no browser
        ("GET", MUTATION, {}, 405),
        ("HEAD", MUTATION, {}, 405),
        ("GET", MUTATION.replace("graphql", "graphql%0A"), {}, 405),
        ("POST", "/graphql", {"Origin": "https://elsewhere.example"}, 403),
        ("POST", "/graphql", {"Origin": "null"}, 403),
        ("POST", "/graphql", {"Origin": "http://127.0.0.1:8000"}, 403),
        ("POST", "/report_asset_check/weather", {"Origin": "https://elsewhere.example"}, 403),
        ("PUT", "/", {"Origin": "https://elsewhere.example"}, 403),
        ("GET", "/assets", {"Host": "elsewhere.example:3000"}, 421),
        ("POST", "/graphql", {"Host": "elsewhere.example", "Origin": "http://elsewhere.example"}, 421),
        ("GET", "/", {"Host": ""}, 421),
        ("GET", "/", {"Host": "[evil"}, 421),
        ("GET", "/", {"Host": "127.0.0.1:3000/"}, 421),
        ("POST", "/graphql", {"Host": "evil.example@127.0.0.1", "Origin": "http://evil.example@127.0.0.1"}, 421),
        ("POST", "/graphql", [("Origin", "https://elsewhere.example"), ("Origin", OURS)], 403),
        ("GET", "/", [("Host", "elsewhere.example"), ("Host", "localhost")], 421),
    ],
)
def test_what_passes(
    browser: TestClient, method: str, path: str, headers: dict[str, str] | list[tuple[str, str]], status: int
):
    assert browser.request(method, path, headers=headers).status_code == status


def test_the_websocket_is_for_its_own_pages(browser: TestClient):
    with browser.websocket_connect("/graphql", headers={"Origin": OURS, "Host": "127.0.0.1:3000"}) as connection:
        connection.send_text("hello")
        assert connection.receive_text() == "hello"
    for host, origin in (("127.0.0.1:3000", "https://elsewhere.example"), ("elsewhere.example", OURS)):
        headers = {"Host": host, "Origin": origin}
        with pytest.raises(WebSocketDisconnect), browser.websocket_connect("/graphql", headers=headers):
            pass


def test_dagster_still_starts_its_webserver_as_it_is_replaced():
    """What the script puts itself in the place of is no interface of Dagster's: a new version may do it otherwise."""
    from dagster._cli import dev
    from dagster_webserver.graphql import GraphQLServer

    assert '[sys.executable, "-m", "dagster_webserver"]' in inspect.getsource(dev.dev_command_impl)
    assert "open_ipc_subprocess" in vars(dev)
    assert "self.build_middleware()" in inspect.getsource(GraphQLServer)
