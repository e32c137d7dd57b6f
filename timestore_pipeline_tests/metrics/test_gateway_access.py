"""A Pushgateway that asks who one is: passwords, tokens and certificates reach it, and nobody else."""

from __future__ import annotations

import base64
import logging
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml

from timestore_pipeline.errors import SettingsError
from timestore_pipeline.metrics import push_metrics
from timestore_pipeline.metrics.series import METRICS_TIMESTAMP, SERIES
from timestore_pipeline.settings import RESERVED_LABELS, Settings, load_settings, variable_name
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.metrics.servers import Gateway, pushgateway
from timestore_pipeline_tests.stub_server import QuietHandler, answering_with

USER = "timestore"
PASSWORD = "pl4nted:pass wörd"
PASSWORD_BCRYPT = "$2b$04$GzASeCw.Jdl9te8i/30LveneSEHbhADD4RuySZTmuEgI5zSNeccV2"
TOKEN = "pl4nted.t0ken-_~+/=="
LOGIN = {"Authorization": "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}

Fields = dict[str, Any]


@dataclass(frozen=True)
class Certificates:
    """PEM files of an authority of the test's own, and of what it vouches for."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / f"{name}.pem"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    made = Certificates(folder)

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc")
    openssl("req", "-x509", *new_key, "-keyout", made.ca_key, "-out", made.ca, "-days", 2, "-subj", "/CN=the test",
            "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    for name, extension in (
        ("server", "subjectAltName=IP:127.0.0.1"),
        ("elsewhere", "subjectAltName=DNS:elsewhere.example.org"),
        ("client", "extendedKeyUsage=clientAuth"),
    ):
        openssl("req", "-x509", "-CA", made.ca, "-CAkey", made.ca_key, *new_key, "-keyout", folder / f"{name}_key.pem",
                "-out", folder / f"{name}.pem", "-days", 2, "-subj", f"/CN={name}", "-addext", extension)  # fmt: skip
    openssl("pkey", "-in", made.client_key, "-aes256", "-passout", "pass:unknown", "-out", made.locked_key)
    return made


@contextmanager
def guarded_gateway(
    program: Callable[[str], str], folder: Path, certificates: Certificates, server: str = "server", **more: Any
) -> Iterator[Gateway]:
    """A Pushgateway with TLS, and what ``more`` adds to its configuration."""
    config = {
        "tls_server_config": {
            "cert_file": str(certificates.folder / f"{server}.pem"),
            "key_file": str(certificates.folder / f"{server}_key.pem"),
            **more.pop("tls", {}),
        },
        **more,
    }
    path = folder / "web.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    tls = ssl.create_default_context(cafile=str(certificates.ca))
    tls.check_hostname = False
    tls.load_cert_chain(certificates.client, certificates.client_key)
    with pushgateway(program, f"--web.config.file={path}", scheme="https", headers=LOGIN, tls=tls) as gateway:
        yield gateway


def was_pushed_to(gateway: Gateway) -> bool:
    return len(gateway.samples(METRICS_TIMESTAMP, job="timestore")) == 1


@pytest.mark.server
def test_a_password_reaches_a_gateway_over_tls_and_nothing_else(
    make_store: MakeStore,
    program: Callable[[str], str],
    certificates: Certificates,
    tmp_path: Path,
    home: Path,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.DEBUG)
    (home / "password").write_text(f"{PASSWORD}\n", encoding="utf-8")
    with guarded_gateway(program, tmp_path, certificates, basic_auth_users={USER: PASSWORD_BCRYPT}) as gateway:
        access: Fields = {
            "pushgateway_url": gateway.url,
            "pushgateway_username": USER,
            "pushgateway_ca_file": certificates.ca,
            "pushgateway_timeout_seconds": 60,
        }
        for right in ({"pushgateway_password": PASSWORD}, {"pushgateway_password_file": "password"}):
            gateway.open("metrics/job/timestore", method="DELETE")
            result = push_metrics(make_store(**access, **right))
            assert result.pushed, result.reason
            assert was_pushed_to(gateway)

        gateway.open("metrics/job/timestore", method="DELETE")
        wrong = push_metrics(make_store(**access, pushgateway_password="pl4nted, but another"))
        unknown = push_metrics(make_store(**{**access, "pushgateway_ca_file": None}, pushgateway_password=PASSWORD))
        careless = push_metrics(
            make_store(
                **{**access, "pushgateway_ca_file": None}, pushgateway_password=PASSWORD, pushgateway_verify_tls=False
            )
        )

    assert "HTTP 401" in wrong.reason
    assert "CERTIFICATE_VERIFY_FAILED" in unknown.reason
    assert careless.pushed, careless.reason
    assert "pl4nted" not in wrong.reason + unknown.reason + caplog.text


@pytest.mark.server
def test_a_gateway_must_be_the_one_that_its_certificate_names(
    make_store: MakeStore, program: Callable[[str], str], certificates: Certificates, tmp_path: Path
):
    with guarded_gateway(program, tmp_path, certificates, server="elsewhere") as gateway:
        result = push_metrics(make_store(pushgateway_url=gateway.url, pushgateway_ca_file=certificates.ca))

        assert not was_pushed_to(gateway)
    assert not result.pushed
    assert "127.0.0.1" in result.reason


@pytest.mark.server
def test_a_client_certificate_is_shown(
    make_store: MakeStore, program: Callable[[str], str], certificates: Certificates, tmp_path: Path
):
    only_known = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": str(certificates.ca)}
    with guarded_gateway(program, tmp_path, certificates, tls=only_known) as gateway:
        access: Fields = {
            "pushgateway_url": gateway.url,
            "pushgateway_ca_file": certificates.ca,
            "pushgateway_timeout_seconds": 60,
        }
        nobody = push_metrics(make_store(**access))
        assert not was_pushed_to(gateway)
        known = push_metrics(
            make_store(
                **access,
                pushgateway_certificate_file=certificates.client,
                pushgateway_key_file=certificates.client_key,
            )
        )
        assert was_pushed_to(gateway)

    assert not nobody.pushed
    assert known.pushed, known.reason


@contextmanager
def proxy_with_token(gateway: Gateway) -> Iterator[tuple[str, list[str | None]]]:
    """A proxy before a Pushgateway that lets pass who shows the token; yields its URL and what it was shown."""
    shown: list[str | None] = []

    class Proxy(QuietHandler):
        def do_PUT(self) -> None:
            shown.append(self.headers["Authorization"])
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if shown[-1] != f"Bearer {TOKEN}":
                self.send_response(403)
            else:
                with urlopen(Request(gateway.url + self.path, data=body, method="PUT"), timeout=10) as answer:
                    self.send_response(answer.status)
            self.end_headers()

    with answering_with(Proxy) as port:
        yield f"http://127.0.0.1:{port}", shown


@pytest.mark.server
def test_a_bearer_token_passes_a_proxy_and_may_be_renewed(
    make_store: MakeStore, program: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "token"
    path.write_text("pl4nted-old", encoding="utf-8")
    with pushgateway(program) as gateway, proxy_with_token(gateway) as (url, shown):
        store = make_store(pushgateway_url=url, pushgateway_bearer_token_file=path, pushgateway_timeout_seconds=60)
        old = push_metrics(store)
        assert not was_pushed_to(gateway)
        path.write_text(f"{TOKEN}\n", encoding="utf-8")
        assert push_metrics(store).pushed
        assert was_pushed_to(gateway)
        given = make_store(pushgateway_url=url, pushgateway_bearer_token=TOKEN, pushgateway_timeout_seconds=60)
        assert push_metrics(given).pushed

    assert "HTTP 403" in old.reason
    assert shown == ["Bearer pl4nted-old", f"Bearer {TOKEN}", f"Bearer {TOKEN}"]
    assert "pl4nted" not in old.reason + caplog.text


@pytest.mark.server
def test_grouping_labels_are_on_every_series_and_make_the_group(make_store: MakeStore, program: Callable[[str], str]):
    with pushgateway(program) as gateway:
        store = make_store(
            pushgateway_url=gateway.url,
            pushgateway_grouping="environment = prod, path=a/b",
            pushgateway_timeout_seconds=60,
        )
        gateway.put("job/timestore", "others_series 1\n")

        assert push_metrics(store).pushed
        assert push_metrics(store).pushed

        assert len(gateway.samples(METRICS_TIMESTAMP, job="timestore", environment="prod", path="a/b")) == 1
        assert len(gateway.samples(METRICS_TIMESTAMP)) == 1
        assert gateway.samples("others_series") == [1], "another group of the same job is another's"


def test_labels_of_the_series_cannot_be_grouping_labels():
    assert {label for each in SERIES for label in each.labels} | {"job", "le"} == RESERVED_LABELS


@pytest.mark.parametrize(
    "wrong", ["prod", "=prod", "environment=", "a b=c", "1a=b", "__a=b", "job=x", "dataset=x", "le=1", "a=1,a=2"]
)
def test_wrong_grouping_labels_are_refused_at_the_start(wrong: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIMESTORE_PUSHGATEWAY_GROUPING", wrong)

    with pytest.raises(SettingsError, match=r"^TIMESTORE_PUSHGATEWAY_GROUPING is .* (NAME=VALUE|is taken)"):
        load_settings()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"password": "pl4nted", "password_file": "f", "username": "u"}, ("password", "password_file")),
        ({"bearer_token": "pl4nted", "bearer_token_file": "f"}, ("bearer_token", "bearer_token_file")),
        ({"username": "u"}, ("username", "password")),
        ({"password": "pl4nted"}, ("password", "username")),
        ({"username": "u", "password": "pl4nted", "bearer_token": "pl4nted"}, ("username", "bearer_token")),
        ({"url": "http://u:pl4nted@h", "bearer_token": "pl4nted"}, ("url", "bearer_token")),
        ({"url": "https://h", "key_file": "k"}, ("key_file", "certificate_file")),
        ({"url": "http://h", "ca_file": "c"}, ("ca_file", "url")),
        ({"url": "h:9091", "verify_tls": "false"}, ("verify_tls", "url")),
        ({"username": "u:v", "password": "pl4nted"}, ("username",)),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(
    fields: dict[str, str], named: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    for name, value in fields.items():
        monkeypatch.setenv(variable_name(f"pushgateway_{name}"), value)

    with pytest.raises(SettingsError) as refusal:
        load_settings()

    assert all(variable_name(f"pushgateway_{name}") in str(refusal.value) for name in named)
    assert "pl4nted" not in str(refusal.value)


def unusable(certificates: Certificates, folder: Path) -> list[Fields]:
    (folder / "empty").write_text("\n")
    (folder / "lines").write_text("pl4nted\nsecret")
    (folder / "binary").write_bytes(b"\xff\xfe")
    here: Fields = {"pushgateway_url": "https://127.0.0.1:1"}
    files = [{"pushgateway_bearer_token_file": folder / name} for name in ("missing", "empty", "lines", "binary", ".")]
    return [
        *files,
        {"pushgateway_bearer_token": "pl4nted\r\nX-Injected: yes"},
        {"pushgateway_bearer_token": "pl4ntéd"},
        {**here, "pushgateway_ca_file": folder / "missing"},
        {**here, "pushgateway_ca_file": folder / "empty"},
        {**here, "pushgateway_certificate_file": certificates.client},
        {**here, "pushgateway_certificate_file": certificates.client, "pushgateway_key_file": certificates.server_key},
        {**here, "pushgateway_certificate_file": certificates.client, "pushgateway_key_file": certificates.locked_key},
    ]


def test_a_file_that_cannot_be_used_is_a_warning_that_names_its_variable(
    make_store: MakeStore, certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    for fields in unusable(certificates, tmp_path):
        result = push_metrics(make_store(**{"pushgateway_url": "http://127.0.0.1:1", **fields}))

        assert not result.pushed
        variable = variable_name(next(name for name in fields if name != "pushgateway_url"))
        assert variable in result.reason, fields
        assert "pl4nt" not in result.reason + caplog.text


def test_settings_never_show_a_password_or_a_token():
    settings = Settings(pushgateway_username="u", pushgateway_password=PASSWORD)  # pyright: ignore[reportArgumentType]
    token = Settings(pushgateway_bearer_token=TOKEN)  # pyright: ignore[reportArgumentType]

    assert "pl4nted" not in repr(settings) + str(settings.model_dump()) + repr(token) + str(token.model_dump())
