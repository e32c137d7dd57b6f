"""Files that a setting names: whatever stands there, nobody waits for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from timestore_pipeline.datasets import load_datasets
from timestore_pipeline.errors import DatasetsFileError, SettingsError
from timestore_pipeline.http.tokens import Tokens
from timestore_pipeline.metrics.transport import gateway_handler
from timestore_pipeline.model.named_files import MOST_BYTES
from timestore_pipeline.settings import Settings

MakeSettings = Callable[..., Settings]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MOST_BYTES * 1_000)
    path.chmod(0o600)


ANYTHING = pytest.mark.parametrize("make", [fifo, device, listening, huge, Path.mkdir])


@ANYTHING
def test_a_tokens_file_that_is_no_file_is_refused(tmp_path: Path, make_settings: MakeSettings, make):
    make(tmp_path / "t")

    with pytest.raises(SettingsError, match="TIMESTORE_HTTP_TOKENS_FILE"):
        Tokens(make_settings(http_tokens_file=tmp_path / "t"))


def test_a_pipe_in_the_place_of_the_tokens_file_lets_nobody_in_and_holds_up_nobody(
    tmp_path: Path, make_settings: MakeSettings
):
    from timestore_pipeline_tests.http.server import TOKENS, tokens_document

    path = tmp_path / "tokens.yaml"
    path.write_text(tokens_document())
    path.chmod(0o600)
    tokens = Tokens(make_settings(http_tokens_file=path))
    assert tokens.find(TOKENS["all"])

    path.unlink()
    os.mkfifo(path, 0o600)

    with pytest.raises(SettingsError, match="regular file"):
        tokens.find(TOKENS["all"])


@ANYTHING
def test_a_datasets_file_that_is_no_file_is_refused(tmp_path: Path, make):
    make(tmp_path / "d")

    with pytest.raises(DatasetsFileError, match="cannot be read"):
        load_datasets(tmp_path / "d")


@ANYTHING
@pytest.mark.parametrize("field", ["pushgateway_bearer_token_file", "pushgateway_ca_file"])
def test_a_file_of_the_gateway_that_is_no_file_is_refused(tmp_path: Path, make_settings: MakeSettings, make, field):
    make(tmp_path / "f")
    url = "https://gateway.invalid"
    settings = make_settings(pushgateway_url=url, **{field: tmp_path / "f"})

    with pytest.raises(SettingsError, match=field.upper()):
        gateway_handler(settings, urlsplit(url))
