"""Credentials come from the environment and go nowhere: planted ones are searched for in all that is said or kept."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import pytest

from timestore_pipeline.cli import main
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.ledger import Ledger
from timestore_pipeline.metrics import exposition
from timestore_pipeline.settings import load_settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import hourly
from timestore_pipeline_tests.ports import unused_port

SECRET = "pl4nted"
COMMANDS = [
    ("status",),
    ("sql", "SELECT 1"),
    ("ingest",),
    ("flush", "--all"),
    ("quarantine", "list"),
    ("metrics",),
]


def unusable_ledgers() -> list[str]:
    port = unused_port()
    return [
        f"postgresql://timestore:{SECRET}@127.0.0.1:{port}/timestore",
        f"postgresql+psycopg2://timestore@127.0.0.1:{port}/timestore?password={SECRET}",
        f"postgresql://timestore:an@{SECRET}@127.0.0.1:{port}/timestore",
        f"postgresql://timestore:a@b@127.0.0.1:{SECRET}/timestore",
        f"nosuch://timestore:{SECRET}@127.0.0.1/timestore",
        f"{SECRET}",
    ]


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(unusable_ledgers())))
def test_no_error_of_the_ledger_shows_its_password(number: int, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)

    with pytest.raises(TimestoreError) as refusal:
        Ledger.open(unusable_ledgers()[number])

    assert "LEDGER_URL" in str(refusal.value) or "cannot be opened" in str(refusal.value)
    # The lines of this file are in a traceback too, but name no secret.
    assert SECRET not in "".join(traceback.format_exception(refusal.value)) + caplog.text


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.process
def test_no_command_shows_the_ledgers_password(
    command: tuple[str, ...], store_environment, capfd: pytest.CaptureFixture[str]
):
    for url in unusable_ledgers():
        store_environment(ledger_url=url, ledger_busy_timeout_seconds=0.2)

        assert main(list(command)) != 0

    said = capfd.readouterr()
    assert SECRET not in said.out + said.err


def test_settings_show_neither_passwords_nor_wrong_values_of_them(store_environment, monkeypatch: pytest.MonkeyPatch):
    store_environment(ledger_url=unusable_ledgers()[0], pushgateway_url=f"http://timestore:{SECRET}@127.0.0.1:9091")

    settings = load_settings()

    assert settings.pushgateway_url is not None
    assert SECRET in settings.pushgateway_url
    assert SECRET not in repr(settings) + str(settings)


@pytest.mark.long
def test_a_pushgateways_password_is_in_nothing_that_is_said_or_kept(
    store_environment, home: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    store_environment(pushgateway_url=f"http://timestore:{SECRET}@127.0.0.1:{unused_port()}")
    from timestore_pipeline.orchestration.logs import InertLog
    from timestore_pipeline.orchestration.resources import MetricsResource

    with Store.open() as store:
        stage(store, "weather", hourly(3))
        said = MetricsResource().push(store, InertLog(logging.getLogger("run"), {}))
        shown = exposition(store).decode()
        assert SECRET not in repr(store)
    for command in COMMANDS:
        main(list(command))

    printed = capfd.readouterr()
    assert "not pushed" in said
    assert SECRET not in said + shown + printed.out + printed.err + caplog.text
    assert [path for path in home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []


def test_a_push_that_succeeds_does_not_name_the_password(store_environment, monkeypatch: pytest.MonkeyPatch):
    from timestore_pipeline.metrics import pushgateway
    from timestore_pipeline.orchestration.logs import InertLog
    from timestore_pipeline.orchestration.resources import MetricsResource

    monkeypatch.setattr(pushgateway, "push_to_gateway", lambda *_, **__: None)
    store_environment(pushgateway_url=f"http://timestore:{SECRET}@127.0.0.1:9091")

    with Store.open() as store:
        said = MetricsResource().push(store, InertLog(logging.getLogger("run"), {}))

    assert said.startswith("pushed to")
    assert SECRET not in said
