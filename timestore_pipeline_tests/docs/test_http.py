"""The examples of docs/http.md do what the page says, as they stand there."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from timestore_pipeline.http.openapi import ENDPOINTS
from timestore_pipeline.http.tokens import Tokens
from timestore_pipeline.rows.formats.known import MEDIA_TYPES
from timestore_pipeline.settings import Settings, load_settings
from timestore_pipeline.timestore import Timestore
from timestore_pipeline_tests.docs.pages import DOCS, ROOT
from timestore_pipeline_tests.http.server import Server, serving

pytestmark = pytest.mark.process

PAGE = (DOCS / "http.md").read_text(encoding="utf-8")
DATASETS = (ROOT / "datasets.yaml").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def server(store_environment: Callable[..., dict[str, str]]) -> Iterator[Server]:
    store_environment(DATASETS)
    with serving(load_settings()) as server:
        yield server


def test_the_commands_do_what_the_page_says(server: Server, program: Callable[[str], str]):
    program("curl")
    commands = [block for block in blocks("sh") if block.startswith("curl ")]
    assert len(commands) == 3

    def run(command: str) -> dict:
        here = command.replace("http://127.0.0.1:8640", server.url)
        return json.loads(subprocess.run(["sh", "-c", here], capture_output=True, text=True, check=True).stdout)

    assert run(commands[0]) == json.loads(blocks("json")[0])
    assert run(commands[1])["rows"] == 1
    assert run(commands[2])["state"] == "staged"
    with Timestore.open() as timestore:
        assert timestore.sql("SELECT temp FROM weather").fetchall() == [(40.0,)]


def test_the_problem_is_as_the_page_shows_it(server: Server):
    rows = [{"origin": "JFK", "temp": temp, "time_hour": "2026-01-01"} for temp in (1, "warm")]
    with server.client() as client:
        found = client.post("/datasets/weather/batches", json=rows).json()

    shown = json.loads(blocks("json")[1])
    assert found["detail"].startswith(shown.pop("detail").removesuffix("…"))
    found.pop("detail")
    assert found == shown


def test_a_token_is_made_and_taken_as_the_page_says(tmp_path: Path):
    (command,) = (block for block in blocks("sh") if block.startswith("python "))
    here = command.replace("python ", f"{sys.executable} ", 1)
    token, digest = subprocess.run(["sh", "-c", here], capture_output=True, text=True, check=True).stdout.split()
    assert hashlib.sha256(token.encode()).hexdigest() == digest
    document = yaml.safe_load(blocks("yaml")[0].replace("6b8c…", digest))
    path = tmp_path / "tokens.yaml"
    path.write_text(yaml.safe_dump(document))
    path.chmod(0o600)

    found = Tokens(Settings(http_tokens_file=path)).find(token)

    assert found is not None
    assert found.name == "station-7"


def test_the_page_has_every_address_answer_and_format():
    for endpoint in ENDPOINTS:
        assert f"`{endpoint.method} {endpoint.path.replace('batch_id:path', 'id')}`" in PAGE
        answers = PAGE.partition("| answer | when")[2].partition("\n\n")[0]
        assert all(str(status) in answers for status in endpoint.problems)
    assert all(media_type in PAGE for media_type in MEDIA_TYPES if not media_type.endswith("arrow.file"))
