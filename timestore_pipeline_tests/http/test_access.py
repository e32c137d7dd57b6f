"""Who is let in: tokens by scope and dataset, none in any log, and no open server for others than this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from timestore_pipeline.errors import SettingsError
from timestore_pipeline.http.tokens import Tokens
from timestore_pipeline.settings import Settings
from timestore_pipeline_tests.http.server import TOKENS, bearer, tokens_document
from timestore_pipeline_tests.http.test_batches import CSV, post, problem

ROW = "ts,station,temp\n2026-01-01T00:00:00Z,JFK,1\n"


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.yaml"
    path.write_text(tokens_document(), encoding="utf-8")
    path.chmod(0o600)
    return path


@pytest.mark.process
def test_a_token_opens_what_it_is_for_and_is_in_no_log(start_server, tokens_file: Path, tmp_path: Path):
    server = start_server(http_tokens_file=tokens_file)
    with server.client() as client:
        for answer in (
            post(client, ROW, CSV),
            post(client, ROW, CSV, Authorization="Bearer wrong"),
            post(client, ROW, CSV, Authorization=f"Basic {TOKENS['all']}"),
            client.get("/datasets"),
            client.get("/metrics"),
        ):
            assert "Bearer" in answer.headers["www-authenticate"]
            problem(answer, 401, "unauthorized")
        assert post(client, ROW, CSV, **bearer("weather")).status_code == 201
        done = post(client, ROW, CSV, **bearer("all"))
        assert done.status_code == 201
        problem(post(client, ROW, CSV, dataset="events", **bearer("weather")), 403, "forbidden")
        problem(post(client, ROW, CSV, dataset="unheard_of", **bearer("weather")), 403, "forbidden")
        problem(post(client, ROW, CSV, **bearer("reader")), 403, "forbidden")
        problem(client.get("/metrics", headers=bearer("reader")), 403, "forbidden")
        problem(client.get("/datasets", headers=bearer("weather")), 403, "forbidden")
        assert client.get("/metrics", headers=bearer("scraper")).status_code == 200
        listed = client.get("/datasets", headers=bearer("reader")).json()["datasets"]
        assert [each["name"] for each in listed] == ["weather"]
        where = done.headers["location"]
        assert client.get(where, headers=bearer("all")).json()["source"] == "HTTP by all"
        # Keys are of the token that gave them; others name the batch as the ledger does.
        problem(client.get(where, headers=bearer("weather")), 404, "unknown-batch")
        folder, _, key = where.rpartition("/")
        as_ledger_does = f"{folder}/{quote(f'token/all/{key}', safe='')}"
        assert client.get(as_ledger_does, headers=bearer("reader")).json()["source"] == "HTTP by all"
        assert client.get("/healthz").status_code == 200
        assert client.get("/openapi.json").json()["components"]["securitySchemes"]

        # One that is withdrawn is of no use any more, without a restart.
        tokens_file.write_text(tokens_document().replace('"name": "all"', '"name": "old", "x": 1'), encoding="utf-8")
        problem(post(client, ROW, CSV, **bearer("all")), 503, "misconfigured")
    server.stop()

    log = (tmp_path / "server.log").read_text()
    assert "POST /datasets/weather/batches 201" in log
    assert not [token for token in TOKENS.values() if token in log]


def test_tokens_may_come_from_the_environment(make_server):
    server = make_server(http_tokens=tokens_document())
    with server.client() as client:
        problem(client.get("/datasets"), 401, "unauthorized")
        assert client.get("/datasets", headers=bearer("reader")).status_code == 200


@pytest.mark.process
def test_without_tokens_only_this_machine_is_served(store_environment: Callable[..., dict[str, str]]):
    environment = store_environment()
    command = [sys.executable, "-m", "timestore_pipeline.cli", "serve", "--host", "0.0.0.0", "--port", "0"]

    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)

    assert ended.returncode == 3
    assert "TIMESTORE_HTTP_TOKENS_FILE" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_page_that_was_given_a_name_for_this_machine_is_refused(shared):
    with shared.client() as client:
        problem(client.get("/datasets", headers={"Host": "evil.example"}), 403, "wrong-host")
        assert client.get("/datasets", headers={"Host": "localhost:1"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (tokens_document(), 0o644, "chmod"),
        (tokens_document(), 0o620, "chmod"),
        ("tokens: [", 0o600, "no YAML"),
        ("tokens: []", 0o600, "tokens"),
        ("tokens: [{name: a, token: hush-hush, scopes: [read], datasets: [w]}]", 0o600, "tokens.0.sha256"),
        (f"tokens: [{{name: a, sha256: {'a' * 64}, scopes: [read]}}]", 0o600, "names no datasets"),
        (f"tokens: [{{name: a, sha256: {'a' * 64}, scopes: [write], datasets: ['*']}}]", 0o600, "scopes"),
    ],
)
def test_a_tokens_file_that_is_not_safe_or_not_right_is_refused(tmp_path: Path, content: str, mode: int, says: str):
    path = tmp_path / "tokens.yaml"
    path.write_text(content, encoding="utf-8")
    path.chmod(mode)

    with pytest.raises(SettingsError, match="TIMESTORE_HTTP_TOKENS_FILE") as raised:
        Tokens(Settings(http_tokens_file=path))

    assert says in str(raised.value)
    assert "hush-hush" not in str(raised.value)


def test_a_tokens_file_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        Tokens(Settings(http_tokens_file=tmp_path / "none"))


def test_file_and_variable_exclude_each_other(store_environment: Callable[..., dict[str, str]]):
    from timestore_pipeline.settings import load_settings

    store_environment(http_tokens="a", http_tokens_file="b")
    with pytest.raises(SettingsError, match="TIMESTORE_HTTP_TOKENS and TIMESTORE_HTTP_TOKENS_FILE are both set"):
        load_settings()
    assert "TIMESTORE_HTTP_TOKENS" in os.environ
