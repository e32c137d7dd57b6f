"""The demo's proof is worth something only if it fails when a row is lost, doubled or changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.demo.accounting import differences, sums_of_reader, sums_of_source, sums_of_table, table_files
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.landing.files import scan_landing
from timestore_pipeline.staging.ingest import ingest_files
from timestore_pipeline_tests.conftest import MakeStore

DATASETS = """
datasets:
  trips:
    columns: {year: integer, month: integer, day: integer, who: varchar, miles: double, at: timestamptz}
    time: at
    window: month
    start: 2013-01-01
    landing: {csv: {"null": ["NA"]}}
"""
SOURCE = """\
year,month,day,who,miles,at
2013,1,1,Ada,1.5,2013-01-01T10:00:00Z
2013,1,31,NA,2.5,2013-02-01T04:00:00Z
2013,2,1,Bob,NA,2013-02-01T10:00:00Z
2013,2,1,Bob,NA,2013-02-01T10:00:00Z
"""


def compare(make_store: MakeStore, tmp_path: Path, landed: str) -> tuple[list[str], list[str]]:
    """Publish what landed and hold it against SOURCE: differences in the table, and through the read API."""
    store = make_store(DATASETS)
    spec = store.datasets["trips"]
    source = tmp_path / "source.csv"
    source.write_text(SOURCE)
    folder = store.settings.landing_path / "trips"
    folder.mkdir(parents=True)
    (folder / "trips.csv").write_text(landed)
    ingest_files(store, "trips", scan_landing(store).of("trips"))
    flush_windows(store, BuildOrder("trips", owner="test"))
    expected = sums_of_source(spec, source, days=365)
    return (
        differences(spec, "the table", expected, sums_of_table(spec, table_files(store, "trips"))),
        differences(spec, "the read API", expected, sums_of_reader(store, spec)),
    )


def test_equal_rows_have_no_differences_whatever_their_order(make_store: MakeStore, tmp_path: Path):
    header, *lines = SOURCE.splitlines()

    in_table, in_reader = compare(make_store, tmp_path, "\n".join([header, *reversed(lines), ""]))

    assert in_table == in_reader == []


@pytest.mark.parametrize(
    ("landed", "difference"),
    [
        pytest.param(
            SOURCE.replace("2013,2,1,Bob,NA,2013-02-01T10:00:00Z\n", "", 1), "2013-02 has 3 rows", id="a row lost"
        ),
        pytest.param(SOURCE + SOURCE.splitlines()[1] + "\n", "2013-01 has 1 rows", id="a row doubled"),
        pytest.param(SOURCE.replace("1.5", "1.5000000000000002"), "columns miles", id="the last bit of a number"),
        pytest.param(SOURCE.replace("31,NA", "31,"), "columns who", id="an empty text for a null"),
        pytest.param(SOURCE.replace("Ada", "ada"), "columns who", id="a letter"),
        pytest.param(SOURCE.replace("T04:00:00Z", "T04:00:01Z"), "columns at", id="a second"),
    ],
)
def test_whatever_is_not_equal_is_found(make_store: MakeStore, tmp_path: Path, landed: str, difference: str):
    for found in compare(make_store, tmp_path, landed):
        assert len(found) == 1
        assert difference in found[0].replace("the source and ", "")


def test_values_swapped_between_rows_are_found(make_store: MakeStore, tmp_path: Path):
    # Column by column nothing has changed; only whole rows tell.
    swapped = SOURCE.replace("31,NA,2.5", "31,Bob,2.5").replace("1,Bob,NA", "1,NA,NA", 1)

    in_table, in_reader = compare(make_store, tmp_path, swapped)

    assert len(in_table) == len(in_reader) == 1
    assert "2013-02" in in_table[0]
