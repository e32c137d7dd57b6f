"""Whatever a column, a batch, a file or an argument is called: it is a name, and never SQL, path or shell."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from timestore_pipeline.cli import main
from timestore_pipeline.cli.exit_codes import ExitCode
from timestore_pipeline.errors import BatchRejected, UnknownDataset
from timestore_pipeline.ledger.batches import known_batches
from timestore_pipeline.operating.quarantine import discard_entry, retry_entry
from timestore_pipeline.staging.stage import stage, stage_file
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import build, hourly, ingest, published, readable, weather_csv
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.sampling import examples

HOSTILE = [
    "'; DROP TABLE rows; --",
    '"; DROP TABLE batches; --',
    "x' || (SELECT content FROM read_text('/etc/passwd')) || '",
    "../../../etc/passwd",
    "/etc/passwd",
    "a/../../b",
    "..",
    "$(touch planted)",
    "`touch planted`",
    "; touch planted",
    "--yes",
    "-h",
    "*",
    "a?[b]{c}",
    "%2e%2e%2fplanted",
    "new\nline",
    "nul\0byte",
    "\udcff",
    "\u202egnp.exe",
    "",
    " ",
    "2026-01-01' OR '1'='1",
    "2026-01-01/../../x",
    "x" * 300,
]

names = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=30),
    st.lists(
        st.sampled_from(["'", '"', ";", "--", "/", "..", "\\", "$", "`", "\0", "a", " ", "DROP", "ä"]), max_size=8
    ).map("".join),
)
bounded = settings(
    max_examples=examples(25), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def outside(tmp_path: Path, home: Path) -> Callable[[], list[str]]:
    """Lists what lies beside the installation, and in the working directory: nothing may ever be added."""

    def look() -> list[str]:
        return sorted(str(path) for path in tmp_path.rglob("*") if home not in path.parents)

    return look


@pytest.mark.long
@bounded
@given(name=names, value=st.text(max_size=20))
def test_a_column_is_kept_under_its_name_or_refused(make_store: MakeStore, outside, name: str, value: str):
    store = make_store()
    before, rows = outside(), len(readable(store, "events")) if _has_rows(store) else 0
    try:
        data = pa.table({"at": [1_767_225_600_000], name: pa.array([value], pa.string())})
    except UnicodeEncodeError:
        return  # pyarrow takes no such text either
    try:
        receipt = stage(store, "events", data, batch_id=f"b{next(_COUNT)}")
    except BatchRejected:
        # Columns are fixed by the first batch, so most are refused because they are others.
        assert (len(readable(store, "events")) if _has_rows(store) else 0) == rows
    else:
        assert receipt.rows == 1
        assert readable(store, "events")[-1][1] is not None
    assert outside() == before


_COUNT = itertools.count()


def _has_rows(store: Store) -> bool:
    return any((store.settings.staging_path / "events").glob("*.duckdb"))


@pytest.mark.parametrize("name", ["a'b", "a.b", "$x", "`x`", "../x", "a--b", "*", "%2e", "select", "日付", "-h"])
def test_a_strange_column_goes_all_the_way_to_the_table(store: Store, drop, name: str):
    drop(store, "events", "a.csv", f'at,"{name}"\n1767225600000,one\n')

    assert ingest(store)["events"].rows == 1
    build(store, "events")

    assert (
        published(store, "events")
        == readable(store, "events")
        == [(datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None), "one")]
    )


@bounded
@given(name=names)
def test_a_dataset_that_is_not_declared_is_no_folder_and_no_table(make_store: MakeStore, outside, name: str):
    store = make_store()
    before = outside()
    if name in store.datasets:
        return
    for attempt in (
        lambda: stage(store, name, hourly(1)),
        lambda: stage_file(store, name, Path("/etc/hostname")),
        lambda: readable(store, name),
    ):
        with pytest.raises(UnknownDataset):
            attempt()
    assert outside() == before
    assert not (store.settings.staging_path / "_tmp").exists() or not list(store.tables.root.glob("[!.]*"))


@pytest.mark.long
@bounded
@given(batch_id=names, source=names)
def test_a_batch_id_and_a_source_are_kept_as_they_are_or_refused(
    make_store: MakeStore, outside, batch_id: str, source: str
):
    store = make_store()
    before = outside()
    data = hourly(1, station=f"S{next(_COUNT)}")
    try:
        receipt = stage(store, "weather", data, batch_id=f"{next(_COUNT)}{batch_id}", source=source)
    except BatchRejected:
        return
    with store.ledger.read() as tx:
        assert receipt.batch_id in known_batches(tx, "weather", [receipt.batch_id])
    assert receipt.source == source
    assert outside() == before


@pytest.mark.long
@settings(bounded, max_examples=examples(25))
@given(
    name=names.filter(lambda name: "/" not in name and "\0" not in name and name not in ("", ".", "..")),
    bad=st.booleans(),
)
def test_a_landing_file_of_any_name_stays_within_its_folders(
    make_store: MakeStore, drop, outside, name: str, bad: bool
):
    store = make_store()
    number = next(_COUNT)
    content = "bad\n" if bad else weather_csv(f"2026-01-01T00:00:00Z,S{number},1")
    content += "#" * number if bad else ""
    file_name = name.encode("utf-8", "surrogateescape")[:200].decode("utf-8", "surrogateescape") + ".csv"
    try:
        drop(store, "weather", file_name, content)
    except (OSError, UnicodeEncodeError):
        return  # no such file can be made
    before = outside()

    report = ingest(store).get("weather")

    for entry in report.quarantined if report else ():
        assert store.staging.fetch(entry.path).parent == store.settings.staging_path / "_quarantine" / "weather"
        retry_entry(store, entry.id, "ann@host")
        discard_entry(store, entry.id, "ann@host")
    assert outside() == before
    for path in store.settings.home.rglob("*"):
        assert path.is_relative_to(store.settings.home)
        assert not path.is_symlink()
    for left in (store.settings.landing_path / "weather").iterdir():
        left.unlink()


COMMANDS: list[Callable[[str], list[str]]] = [
    lambda text: ["status", text],
    lambda text: ["status", "--", text],
    lambda text: ["flush", "--", text],
    lambda text: ["flush", "weather", "--window", text],
    lambda text: ["ingest", "--", text],
    lambda text: ["stage", "weather", text],
    lambda text: ["stage", "--batch-id", text, "weather", "missing.csv"],
    lambda text: ["stage", "--", text, "missing.csv"],
    lambda text: ["quarantine", "list", "--", text],
    lambda text: ["quarantine", "show", "--", text],
    lambda text: ["quarantine", "retry", "--", text],
    lambda text: ["quarantine", "discard", "--yes", "--", text],
    lambda text: ["limits", "set", "--", "weather", "max_pending", text],
    lambda text: ["limits", "set", "--", "weather", text, "5"],
    lambda text: ["limits", "set", "--", text, "max_pending", "5"],
    lambda text: ["limits", "clear", "--", "weather", text],
]


@pytest.mark.long
@settings(bounded, max_examples=examples(40))
@given(number=st.integers(0, len(COMMANDS) - 1), text=names)
def test_an_argument_of_a_command_does_nothing_but_fail(store_environment, home: Path, outside, number: int, text: str):
    store_environment()
    before = outside()
    with Store.open() as store:
        staged = len(readable(store))

    code = main(COMMANDS[number](text))

    assert code in set(ExitCode)
    assert outside() == before
    assert not os.path.lexists(home / "planted")
    with Store.open() as store:
        assert len(readable(store)) == staged
