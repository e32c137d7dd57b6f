"""The proxy before the Dagster UI, on a real nginx: what the UI asks passes, what other sites make it ask does not."""

from __future__ import annotations

import http.client
import re
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from timestore_pipeline_tests.ports import unused_port
from timestore_pipeline_tests.stub_server import QuietHandler, answering_with

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "deploy/nginx/timestore.conf"
# What docs/security.md adds to it for `timestore serve`.
(SERVE,) = re.findall(r"^```nginx\n(.*?)^```", (ROOT / "docs/security.md").read_text(), re.MULTILINE | re.DOTALL)
NAME = "timestore.example.org"
LOGIN = {"Authorization": "Basic YW5uOnNlY3JldA=="}  # ann:secret
PASSWORD_FILE = "ann:{PLAIN}secret\n"
MUTATION = "/graphql?query=mutation{launchRun(executionParams:{})}"


@dataclass
class Webserver:
    """Stands for Dagster's webserver, which takes everything: notes what arrives, and echoes over a WebSocket."""

    port: int = 0
    arrived: list[tuple[str, str, str]] = field(default_factory=list)


@pytest.fixture
def webserver() -> Iterator[Webserver]:
    noted = Webserver()

    class Handler(QuietHandler):
        def answer(self) -> None:
            noted.arrived.append((self.command, self.path, self.headers["Host"]))
            if self.headers.get("Upgrade") == "websocket":
                self.send_response(101)
                self.send_header("Upgrade", "websocket")
                self.send_header("Connection", "Upgrade")
                self.end_headers()
                self.wfile.write(self.rfile.read(5))
                return
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(b"ok")

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = answer

    with answering_with(Handler) as noted.port:
        yield noted


@dataclass(frozen=True)
class Proxy:
    """nginx, and how a browser asks it."""

    port: int

    @property
    def host(self) -> str:
        return f"{NAME}:{self.port}"

    @property
    def origin(self) -> str:
        return f"https://{self.host}"

    def connection(self) -> closing[http.client.HTTPSConnection]:
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        return closing(http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=trusting))

    def ask(self, method: str, path: str, *, host: str = "", **headers: str) -> int:
        sent = {"Host": host or self.host, **LOGIN, **headers}
        with self.connection() as connection:
            connection.request(method, path, b"{}" if method == "POST" else None, sent)
            return connection.getresponse().status


@pytest.fixture
def proxy(program: Callable[[str], str], webserver: Webserver, tmp_path: Path) -> Iterator[Proxy]:
    """A real nginx with the configuration as it is, but for the lines that are one's own."""
    nginx = program("nginx")
    port = unused_port()
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={NAME}", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "passwords").write_text(PASSWORD_FILE)
    text = CONFIGURATION.read_text().replace("    location / {", f"{SERVE}\n    location / {{")
    for ours, theirs in (
        ("http://127.0.0.1:8640;", f"http://127.0.0.1:{webserver.port};"),
        ("server 127.0.0.1:3000;", f"server 127.0.0.1:{webserver.port};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/nginx/timestore.crt", str(certificate)),
        ("/etc/nginx/timestore.key", str(key)),
        ("/etc/nginx/timestore.htpasswd", str(tmp_path / "passwords")),
    ):
        assert text.count(ours) == 1, ours
        text = text.replace(ours, theirs)
    (tmp_path / "timestore.conf").write_text(text)
    places = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{places}include {tmp_path}/timestore.conf;\n}}\n"
    )
    started = subprocess.Popen([nginx, "-p", tmp_path, "-c", tmp_path / "nginx.conf"])
    try:
        made = Proxy(port)
        deadline = time.monotonic() + 30
        while True:
            assert started.poll() is None, "nginx did not start"
            with suppress(ConnectionRefusedError):
                made.ask("GET", "/")
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        webserver.arrived.clear()
        yield made
    finally:
        started.terminate()
        started.wait(240)


def test_what_the_ui_asks_passes(proxy: Proxy, webserver: Webserver):
    assert proxy.ask("GET", "/assets/partitions/weather?view=events") == 200
    assert proxy.ask("HEAD", "/") == 200
    assert proxy.ask("GET", "/logs/run/stderr", Origin="https://elsewhere.example") == 200
    assert proxy.ask("POST", "/graphql?op=Runs", Origin=proxy.origin) == 200

    assert webserver.arrived == [
        ("GET", "/assets/partitions/weather?view=events", proxy.host),
        ("HEAD", "/", proxy.host),
        ("GET", "/logs/run/stderr", proxy.host),
        ("POST", "/graphql?op=Runs", proxy.host),
    ]


def test_logs_and_runs_arrive_over_a_websocket(proxy: Proxy, webserver: Webserver):
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Host": proxy.host, "Origin": proxy.origin, **LOGIN}
    with proxy.connection() as connection:
        connection.request("GET", "/graphql", headers=upgrade)
        sock = connection.sock
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 101")
        sock.sendall(b"hello")
        assert sock.recv(16) == b"hello"

    assert webserver.arrived == [("GET", "/graphql", proxy.host)]


def test_batches_pass_with_a_token_in_place_of_the_login(proxy: Proxy, webserver: Webserver):
    token = {"Authorization": "Bearer something"}
    assert proxy.ask("POST", "/datasets/weather/batches", **token) == 200
    assert proxy.ask("GET", "/healthz", Authorization="") == 200
    assert proxy.ask("GET", "/assets", **token) == 401

    assert webserver.arrived == [
        ("POST", "/datasets/weather/batches", proxy.host),
        ("GET", "/healthz", proxy.host),
    ]


def test_nothing_arrives_of_what_another_site_makes_a_browser_ask(proxy: Proxy, webserver: Webserver):
    foreign = {"Origin": "https://elsewhere.example"}
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
    asked = [
        # A picture, a link, a script: by GET, however the path is written.
        *(proxy.ask("GET", MUTATION.replace("/graphql", path)) for path in GRAPHQL),
        *(proxy.ask("HEAD", MUTATION.replace("/graphql", path)) for path in GRAPHQL),
        proxy.ask("GET", MUTATION, Origin=proxy.origin),
        # A form, or a script: with the site's own origin, one that is hidden, one that only looks like ours, or none.
        proxy.ask("POST", "/graphql", **foreign),
        proxy.ask("POST", "/graphql", Origin="null"),
        proxy.ask("POST", "/graphql", Origin=f"{proxy.origin}.elsewhere.example"),
        proxy.ask("POST", "/graphql", Origin=proxy.origin.replace("https", "http")),
        proxy.ask("POST", "/graphql", Origin=f"https://elsewhere.example {proxy.origin}"),
        proxy.ask("POST", "/graphql"),
        proxy.ask("GET", "/graphql", **upgrade, **foreign),
        proxy.ask("GET", "/graphql", **upgrade),
        proxy.ask("POST", "/graphql", **upgrade, Origin=proxy.origin),
        # Other methods, and the addresses under which assets are reported.
        *(proxy.ask(method, "/graphql", Origin=proxy.origin) for method in ("PUT", "DELETE", "OPTIONS", "BREW")),
        proxy.ask("POST", "/report_asset_materialization/weather", Origin=proxy.origin),
        proxy.ask("POST", "/", Origin=proxy.origin),
        # Under a name that the site has made to mean this address.
        proxy.ask("GET", "/", host="elsewhere.example"),
        proxy.ask("POST", "/graphql", host="elsewhere.example", Origin="https://elsewhere.example"),
        proxy.ask("POST", "/graphql", host=f"127.0.0.1:{proxy.port}", Origin=f"https://127.0.0.1:{proxy.port}"),
        # Without a login.
        proxy.ask("GET", "/", Authorization=""),
        proxy.ask("POST", "/graphql", Origin=proxy.origin, Authorization=""),
    ]

    assert webserver.arrived == []
    assert set(asked) <= {400, 401, 403, 405, 421}


GRAPHQL = [
    "/graphql",
    "//graphql",
    "/%67raphql",
    "/./graphql",
    "/x/../graphql",
    "/graphql/",
    "/graphql%0A",
    "/graphql%2F",
]
"""Spellings that the webserver takes for /graphql, or could."""
