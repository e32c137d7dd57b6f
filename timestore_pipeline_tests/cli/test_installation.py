"""``timestore installation``, and how other commands speak of places that are not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from timestore_pipeline.cli import ExitCode
from timestore_pipeline.metrics.projection import collect_metrics
from timestore_pipeline.metrics.series import PLACES_UNUSABLE
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import build, hourly, readable, rows_of
from timestore_pipeline_tests.cli.conftest import Finished

Run = Callable[..., Finished]


@pytest.fixture
def store(installation: Callable[..., Store]) -> Store:
    """An installation with published rows, in the environment."""
    store = installation()
    stage(store, "weather", hourly(5))
    build(store)
    return store


def places_unusable(store: Store) -> float:
    (family,) = [each for each in collect_metrics(store) if each.name == PLACES_UNUSABLE]
    return family.samples[0].value


def test_all_places_are_shown(store: Store, timestore: Run):
    shown = timestore("installation", "show")

    assert shown.code is ExitCode.DONE
    assert store.ledger.identity in shown.out
    assert shown.out.count("ours") == 3
    as_json = json.loads(timestore("installation", "show", "--json").out)
    assert as_json["identity"] == store.ledger.identity
    assert {each["name"] for each in as_json["places"]} == {"staging", "tables", "archive"}
    assert places_unusable(store) == 0


@pytest.mark.long
def test_what_is_not_there_is_said_everywhere(store: Store, timestore: Run):
    stage(store, "weather", hourly(3, station="LGA"))
    hidden = store.tables.root.rename(store.settings.home / "hidden")

    shown = timestore("installation", "show")
    assert (shown.code, "missing" in shown.out) == (ExitCode.FAILED, True)
    for code, finished in (
        (ExitCode.MISCONFIGURED, timestore("flush", "weather")),
        (ExitCode.DONE, timestore("status")),
        (ExitCode.FAILED, timestore("doctor")),
    ):
        assert finished.code is code
        assert "installation adopt tables" in finished.out + finished.err
    assert places_unusable(store) == 1

    hidden.rename(store.tables.root)
    assert timestore("flush", "weather").code is ExitCode.DONE
    assert places_unusable(store) == 0


@pytest.mark.long
def test_a_table_that_is_gone_is_given_up_on_purpose(store: Store, timestore: Run):
    shutil.rmtree(store.table("weather").root)
    assert "tables/weather" in timestore("installation", "show").out
    assert places_unusable(store) == 1
    refused = timestore("installation", "adopt", "tables/weather")
    assert (refused.code, "--yes" in refused.err) == (ExitCode.USAGE, True)

    adopted = timestore("installation", "adopt", "tables/weather", "--yes")

    assert adopted.code is ExitCode.DONE
    assert "5 rows are staged again" in adopted.out
    assert timestore("flush", "weather").code is ExitCode.DONE
    assert readable(store) == rows_of(hourly(5))


def test_a_place_that_does_not_exist_is_a_wrong_call(store: Store, timestore: Run):
    assert timestore("installation", "adopt", "nowhere", "--yes").code is ExitCode.USAGE


def test_a_copy_gets_an_identity_of_its_own(store: Store, timestore: Run, monkeypatch: pytest.MonkeyPatch):
    before = store.ledger.identity
    copy = store.settings.home.with_name("copy")
    store.close()
    shutil.copytree(store.settings.home, copy)
    assert timestore("installation", "new-identity", "--yes").code is ExitCode.FAILED
    monkeypatch.setenv("TIMESTORE_HOME", str(copy))

    changed = timestore("installation", "new-identity", "--yes", "--json")

    assert changed.code is ExitCode.DONE
    assert json.loads(changed.out)["before"] == before != json.loads(changed.out)["identity"]
    assert timestore("installation", "show").code is ExitCode.DONE
