"""File names are names, never patterns: whatever a file is called, it is staged, archived, quarantined and retried."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.operating.quarantine import discard_entry, retry_entry
from timestore_pipeline.staging.stage import stage_file
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import arrow_bytes, files_under, hourly, ingest, parquet_bytes, readable, rows_of
from timestore_pipeline_tests.conftest import DATASETS_YAML
from timestore_pipeline_tests.sampling import examples

ROWS = hourly(2)
CSV = "ts,station,temp\n2026-01-01T00:00:00Z,JFK,0\n2026-01-01T01:00:00Z,JFK,1\n"
LINES = (
    '{"ts": "2026-01-01T00:00:00Z", "station": "JFK", "temp": 0}\n'
    '{"ts": "2026-01-01T01:00:00Z", "station": "JFK", "temp": 1}\n'
)
CONTENTS = {
    ".csv": CSV.encode(),
    ".jsonl": LINES.encode(),
    ".parquet": parquet_bytes(ROWS),
    ".arrow": arrow_bytes(ROWS),
}
# Those that mean something to a shell, a glob, a URL, SQL, a log or a terminal; and any other that a name may have.
CHARACTERS = st.one_of(
    st.sampled_from("*?[]{}!^-\\'\"`$%&;|<>()~#=:, \n\r\t\x1b\x7f@+é"),
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/"),
)
NAMES = st.text(CHARACTERS, min_size=1, max_size=40).filter(
    lambda name: not name.startswith((".", "_")) and len(name.encode()) < 200
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    from timestore_pipeline.settings import Settings

    home = tmp_path_factory.mktemp("home")
    (home / "datasets.yaml").write_text(DATASETS_YAML)
    with Store.open(Settings(home=home, staging_min_free_disk_bytes=0)) as store:
        yield store


def forget(store: Store) -> None:
    """Let every batch be new, and nothing be left of the example before."""
    for table in ("batch_slices", "slices", "batches", "segments", "quarantine", "settled_files", "readings"):
        store.ledger.transact(lambda tx, table=table: tx.exec_driver_sql(f"DELETE FROM {table}"))
    for folder in (store.settings.landing_path, store.settings.archive_path, store.settings.staging_path / "weather"):
        for path in folder.iterdir() if folder.exists() else ():
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith(".timestore-"):
                path.unlink()


@pytest.mark.long
@example("x[1]", ".csv")
@example("what?", ".csv")
@example("\\a", ".csv")
@example("*", ".parquet")
@example("-rf", ".csv")
@example("a\nb", ".csv")
@example("é" * 95, ".arrow")
@example("**", ".jsonl")
@example("'; DROP TABLE x; --", ".csv")
@settings(max_examples=examples(6), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES, st.sampled_from(sorted(CONTENTS)))
def test_whatever_a_file_is_called(opened: Store, name: str, ending: str):
    store, content, file_name = opened, CONTENTS[ending], name + ending
    forget(store)
    folder = store.settings.landing_path / "weather"
    folder.mkdir(parents=True)
    # What the name would match if it were a pattern: of other columns, so that reading them would be noticed.
    for other in ("a", "x1", "whatX", "ab"):
        (store.settings.landing_path / f"{other}{ending}").write_bytes(b"wrong\n1\n")
    (folder / file_name).write_bytes(content)

    report = ingest(store)["weather"]

    assert [entry.reason for entry in report.quarantined] == []
    assert [receipt.source for receipt in report.staged] == [file_name]
    assert readable(store) == rows_of(ROWS)
    assert files_under(store.settings.archive_path) == [file_name]
    assert list(folder.iterdir()) == []

    # Bad, it goes to quarantine, and from there back or away.
    for end in (retry_entry, discard_entry):
        forget(store)
        folder.mkdir(parents=True)
        (folder / file_name).write_bytes(b"\x00bad")
        (entry,) = ingest(store)["weather"].quarantined
        kept = store.staging.fetch(entry.path)
        assert kept.read_bytes() == b"\x00bad"
        kept.write_bytes(content)
        end(store, entry.id, "me")
        assert not kept.exists()
        assert readable(store) == (rows_of(ROWS) if end is retry_entry else [])
        with store.ledger.read() as tx:
            assert open_entries(tx) == []

    # And wherever it lies.
    forget(store)
    anywhere = store.settings.home / "anywhere"
    anywhere.mkdir(exist_ok=True)
    (anywhere / file_name).write_bytes(content)
    assert stage_file(store, "weather", anywhere / file_name).rows == 2
    (anywhere / file_name).unlink()


def test_a_name_that_is_no_text_is_told_and_holds_nobody_up(store: Store, drop: Callable[..., Path]):
    folder = drop(store, "weather", "a.csv", CSV).parent
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff[1].csv")).write_text(CSV)

    assert ingest(store)["weather"].rows == 2
