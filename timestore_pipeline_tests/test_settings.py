"""Settings: what the environment may say, and what it is told when it says something else."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from timestore_pipeline.errors import SettingsError
from timestore_pipeline.settings import (
    PREFIX,
    AfterIngest,
    GuardrailMode,
    Settings,
    load_settings,
    unknown_variables,
    variable_name,
)

DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
SWITCHES = [name for name, default in DEFAULTS.items() if isinstance(default, bool)]
NUMBERS = [name for name, default in DEFAULTS.items() if isinstance(default, int | float) and name not in SWITCHES]
CHOICES = [name for name, default in DEFAULTS.items() if isinstance(default, AfterIngest | GuardrailMode)]


@pytest.mark.parametrize(
    ("variable", "default"),
    [
        ("TIMESTORE_STAGING_DIRECTORY", "data/staging"),
        ("TIMESTORE_STAGING_MAX_DATASET_BYTES", 536_870_912),
        ("TIMESTORE_STAGING_MAX_TOTAL_BYTES", 0),
        ("TIMESTORE_STAGING_MAX_PENDING", 1_000),
        ("TIMESTORE_STAGING_FLUSH_MAX_ROWS", 50_000),
        ("TIMESTORE_STAGING_FLUSH_MAX_BYTES", 134_217_728),
        ("TIMESTORE_STAGING_FLUSH_MAX_AGE_MS", 60_000),
    ],
)
def test_the_names_and_defaults_that_operators_rely_on(variable: str, default: object):
    settings = load_settings()

    assert getattr(settings, variable.removeprefix(PREFIX).lower()) == default


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIMESTORE_STAGING_FLUSH_MAX_ROWS", "7")
    monkeypatch.setenv("TIMESTORE_LANDING_AFTER_INGEST", "keep")
    monkeypatch.setenv("TIMESTORE_STAGING_GUARDRAIL_MODE", "enforce")
    monkeypatch.setenv("TIMESTORE_PUSHGATEWAY_URL", "http://127.0.0.1:9091/")

    settings = load_settings()

    assert settings.staging_flush_max_rows == 7
    assert settings.landing_after_ingest is AfterIngest.KEEP
    assert settings.staging_guardrail_mode is GuardrailMode.ENFORCE
    assert settings.pushgateway_url == "http://127.0.0.1:9091"


def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIMESTORE_STAGING_MAX_PENDING", "")
    monkeypatch.setenv("TIMESTORE_PUSHGATEWAY_URL", "")

    assert load_settings().staging_max_pending == 1_000
    assert load_settings().pushgateway_url is None


@pytest.mark.parametrize("field", [*NUMBERS, *CHOICES, *SWITCHES])
def test_a_wrong_value_is_refused_with_the_name_of_its_variable(field: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variable_name(field), "-three")

    with pytest.raises(SettingsError, match=rf"^{variable_name(field)} is '-three', which is not allowed: \w+"):
        load_settings()


@pytest.mark.parametrize("field", NUMBERS)
def test_no_number_may_be_negative(field: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variable_name(field), "-1")

    with pytest.raises(SettingsError, match=rf"^{variable_name(field)} .* greater than"):
        load_settings()


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "1e999"])
def test_every_number_is_finite(field: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variable_name(field), value)

    with pytest.raises(SettingsError, match=rf"^{variable_name(field)} "):
        load_settings()


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIMESTORE_STAGING_MAX_PENDING", "many")
    monkeypatch.setenv("TIMESTORE_DUCKDB_MEMORY_LIMIT", "a lot")
    monkeypatch.setenv("TIMESTORE_LANDING_AFTER_INGEST", "burn")

    with pytest.raises(SettingsError) as caught:
        load_settings()

    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any("TIMESTORE_LANDING_AFTER_INGEST" in line and "'archive', 'delete' or 'keep'" in line for line in lines)


def test_a_value_that_holds_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TIMESTORE_LEDGER_URL", "postgresql://timestore:hunter2@db/timestore")

    settings = load_settings()

    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.model_dump())
    assert settings.resolved_ledger_url == "postgresql://timestore:hunter2@db/timestore"


def test_a_typo_is_reported_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("TIMESTORE_STAGING_FLUSH_MAX_ROW", "7")

    with caplog.at_level(logging.WARNING):
        load_settings()

    assert "TIMESTORE_STAGING_FLUSH_MAX_ROW is no setting" in caplog.text
    assert "did you mean TIMESTORE_STAGING_FLUSH_MAX_ROWS?" in caplog.text


def test_names_of_others_are_not_reported():
    assert unknown_variables({"PATH": "/bin", "TIMESTORES": "1", variable_name("home"): "."}) == {}
    assert unknown_variables({"TIMESTORE_QWXYZ": "1"}) == {"TIMESTORE_QWXYZ": None}


def test_relative_paths_are_resolved_against_home(tmp_path: Path):
    settings = load_settings(home=tmp_path, landing_directory=Path("in"), tables_url="out")

    assert settings.landing_path == tmp_path / "in"
    assert settings.tables_location == tmp_path / "out"
    assert settings.staging_path == tmp_path / "data" / "staging"
    assert settings.datasets_path == tmp_path / "datasets.yaml"
    assert settings.temp_path.is_relative_to(settings.staging_path)
    assert settings.resolved_ledger_url == f"sqlite:///{tmp_path}/data/staging/ledger.sqlite"


def test_absolute_paths_stay_and_the_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    settings = load_settings(home=Path("/srv"), staging_directory=tmp_path / "s", landing_directory=Path("~/in"))

    assert settings.staging_path == tmp_path / "s"
    assert settings.landing_path == tmp_path / "in"


def test_home_is_the_current_folder_unless_it_is_set(tmp_path: Path):
    assert load_settings().datasets_path == tmp_path / "datasets.yaml"


@pytest.mark.parametrize("name", ["a?b", "a\\b", "a%20b", "a\nb", "a\x7fb", "a\udcffb"])
@pytest.mark.parametrize("field", [name for name in DEFAULTS if name.endswith("_directory")] + ["tables_url", "home"])
def test_a_folder_that_the_libraries_below_cannot_take_is_refused_at_once(field: str, name: str, tmp_path: Path):
    fields = {"home": tmp_path, field: tmp_path / name if field == "home" else name}

    with pytest.raises(SettingsError, match=rf"^{variable_name(field)}: .* in its name"):
        load_settings(**fields)


def test_every_setting_is_described():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
