"""What ``datasets.yaml`` says of a dataset is fixed with its first batch; what contradicts it concerns it alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from timestore_pipeline.building.damage import damaged_slices, set_unreadable_aside
from timestore_pipeline.building.due import plan_flushes
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.datasets import parse_datasets
from timestore_pipeline.errors import DatasetRemoved, DeclarationChanged, LedgerLost
from timestore_pipeline.landing.files import scan_landing
from timestore_pipeline.ledger.forgetting import forget_dataset
from timestore_pipeline.ledger.quarantine import open_entries
from timestore_pipeline.ledger.schema import datasets as datasets_table
from timestore_pipeline.ledger.slices import unpublished_slices
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.metrics.projection import collect_metrics
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.drain import drain
from timestore_pipeline.reading.relations import open_reader
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.settings import Settings
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.timestore import Timestore
from timestore_pipeline.upkeep.maintenance import maintain
from timestore_pipeline_tests.builders import NEW_YEAR, build, ingest, readable
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.sampling import examples

Drop = Callable[..., Path]

COLUMNS = "columns: {ts: timestamptz, received: timestamptz, id: int, v: int}"
DECLARED = f"{COLUMNS}, time: ts, window: day, key: {{columns: [id]}}, start: 2026-01-01"


def two(declared: str) -> str:
    """A datasets file with the dataset ``w``, declared so, and a healthy one."""
    return f"""
datasets:
  w: {{{declared}}}
  healthy: {{columns: {{ts: timestamptz, v: int}}, time: ts, window: day}}
"""


def rows(first: int, count: int = 3) -> pa.Table:
    """Rows of ``w``, an hour apart; each was received a month after its time."""
    times = [NEW_YEAR + timedelta(hours=first + number) for number in range(count)]
    return pa.table(
        {
            "ts": pa.array(times, pa.timestamp("us", "UTC")),
            "received": pa.array([time + timedelta(days=31) for time in times], pa.timestamp("us", "UTC")),
            "id": pa.array(range(first, first + count), pa.int32()),
            "v": pa.array(range(first, first + count), pa.int32()),
        }
    )


def one_published_and_one_staged(store: Store) -> None:
    stage(store, "w", rows(0))
    build(store, "w")
    stage(store, "w", rows(3))


def assert_works(store: Store) -> None:
    """The healthy dataset stages, publishes and is read, and maintenance has nothing to complain of but the other."""
    batch = pa.table({"ts": rows(0)["ts"], "v": rows(0)["v"]})
    before = len(readable(store, "healthy"))
    stage(store, "healthy", batch, batch_id=f"after {before}")
    build(store, "healthy")
    assert len(readable(store, "healthy")) == before + 3


def refused_in_metrics(store: Store) -> dict[str, float]:
    (family,) = (each for each in collect_metrics(store) if each.name == "timestore_dataset_refused")
    return {sample.labels["dataset"]: sample.value for sample in family.samples}


CONTRADICTIONS = {
    "time column": (DECLARED.replace("time: ts", "time: received"), "time was .*'ts'.* and is .*'received'"),
    "window": (DECLARED.replace("window: day", "window: hour"), "window was day and is hour"),
    "no key": (DECLARED.replace("key: {columns: [id]},", ""), "key was .*'id'.* and is none"),
    "other key": (DECLARED.replace("[id]", "[id, v]"), "key was"),
    "version": (DECLARED.replace("[id]", "[id], version: v"), "key was .* and is .*'version': 'v'"),
    "type of the time": (DECLARED.replace("{ts: timestamptz", "{ts: timestamp"), "ts TIMESTAMP"),
    "type": (DECLARED.replace("v: int", "v: varchar"), "v VARCHAR"),
    "missing column": (DECLARED.replace(", v: int", ""), "v INTEGER"),
    "time format": (DECLARED.replace("time: ts", "time: {column: ts, format: '%d.%m.%Y'}"), "time was .*format"),
    "time unit": (DECLARED.replace("time: ts", "time: {column: ts, unit: s}"), "time was .*unit"),
    "later start": (DECLARED.replace("2026-01-01", "2026-01-02"), "start is 2026-01-02, .*rows from 2026-01-01 on"),
}


@pytest.mark.long
@pytest.mark.matrix
@pytest.mark.parametrize(("declared", "says"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_contradiction_is_refused_for_that_dataset_alone_and_harms_no_row(
    make_store: MakeStore, declared: str, says: str
):
    before = make_store(two(DECLARED))
    one_published_and_one_staged(before)
    expected = readable(before, "w")
    store = make_store(two(declared))

    assert list(store.datasets.refused) == ["w"]
    assert refused_in_metrics(store) == {"w": 1.0, "healthy": 0.0}
    for attempt in (
        lambda: store.datasets["w"],
        lambda: stage(store, "w", rows(6)),
        lambda: flush_windows(store, BuildOrder("w", owner="the test")),
        lambda: query_rows(store, "SELECT * FROM w").to_arrow(),
        lambda: Timestore(store).read("w"),
        lambda: audit_rows(store, "w"),
        lambda: scan_landing(store, ["w"]),
    ):
        with pytest.raises(DeclarationChanged, match=rf"(?s)'w'.*{says}.*restore what it was"):
            attempt()

    assert_works(store)
    assert maintain(store, owner="the test").problems == ()
    again = make_store(two(DECLARED))
    assert not again.datasets.refused
    with again.ledger.read() as tx:
        assert open_entries(tx) == []
    assert readable(again, "w") == expected
    build(again, "w")
    assert readable(again, "w") == expected
    assert audit_rows(again, "w").wrong == ()


@pytest.mark.parametrize("time", ["{column: at, unit: s}", "{column: at, format: '%Y/%m/%d'}"])
def test_what_the_time_means_is_fixed_where_columns_are_inferred_too(make_store: MakeStore, drop: Drop, time: str):
    store = make_store(two("time: {column: at, unit: ms}, window: hour"))
    drop(store, "w", "a.csv", "at,v\n1767225600000,1\n")
    ingest(store)
    expected = readable(store, "w")

    changed = make_store(two(f"time: {time}, window: hour"))

    with pytest.raises(DeclarationChanged, match=r"time was .*'ms'"):
        stage(changed, "w", rows(0))
    assert readable(make_store(two("time: {column: at, unit: ms}, window: hour")), "w") == expected


def test_until_the_first_batch_everything_may_change(make_store: MakeStore):
    make_store(two(DECLARED))
    for declared, _ in CONTRADICTIONS.values():
        assert not make_store(two(declared)).datasets.refused

    store = make_store(two(DECLARED.replace("time: ts", "time: received")))
    stage(store, "w", rows(0))
    build(store, "w")
    assert [window.window.key for window in audit_rows(store, "w").windows] == ["2026-02-01"]


def test_the_first_batch_decides_between_processes_with_different_files(make_store: MakeStore):
    """The one that was opened first writes; then the one whose file is newer finds itself contradicted."""
    first = make_store(two(DECLARED))
    second = make_store(two(DECLARED.replace("time: ts", "time: received")))
    stage(first, "w", rows(0))

    for _ in range(2 * second.settings.build_max_attempts):
        with pytest.raises(DeclarationChanged, match="time was"):
            flush_windows(second, BuildOrder("w", owner="the test"))
        with pytest.raises(DeclarationChanged, match="time was"):
            stage(second, "w", rows(3))
    assert_works(second)
    with open_reader(second, ["healthy"]) as connection:
        assert connection.execute("SELECT count(*) FROM healthy").fetchone() == (3,)

    assert len(readable(first, "w")) == 3
    build(first, "w")
    assert audit_rows(first, "w").wrong == ()


def test_an_earlier_start_more_columns_and_what_decides_nothing_may_change_at_any_time(make_store: MakeStore):
    one_published_and_one_staged(make_store(two(DECLARED)))

    wider = DECLARED.replace("2026-01-01", "2025-01-01").replace("v: int", "v: bigint, more: double")
    store = make_store(two(f"{wider}, lateness: 7d, late: quarantine, description: Another"))

    assert not store.datasets.refused
    assert len(readable(store, "w")) == 6
    build(store, "w")
    assert len(readable(store, "w")) == 6


def test_a_healthy_segment_is_not_damaged_whatever_a_declaration_says(make_store: MakeStore):
    store = make_store(two(DECLARED))
    stage(store, "w", rows(0))
    with store.ledger.read() as tx:
        slices = unpublished_slices(tx, ["w"])

    for declared, _ in CONTRADICTIONS.values():
        spec = parse_datasets(two(declared))["w"]
        assert "rows were read" not in str(damaged_slices(store, spec, slices)), declared
    assert set_unreadable_aside(store, "w") == []


def test_a_ledger_from_before_takes_the_time_from_the_declaration_if_the_rows_have_it(make_store: MakeStore):
    store = make_store(two(DECLARED))
    one_published_and_one_staged(store)
    with store.ledger.write() as tx:
        tx.execute(update(datasets_table).values(time=None))

    other_column = DECLARED.replace("time: ts", "time: at").replace("v: int", "v: int, at: timestamptz")
    with pytest.raises(DeclarationChanged, match="which the rows do not have as a time"):
        stage(make_store(two(other_column)), "w", rows(6))
    assert not make_store(two(DECLARED)).datasets.refused

    with pytest.raises(DeclarationChanged, match="time was"):
        stage(make_store(two(DECLARED.replace("time: ts", "time: received"))), "w", rows(6))


def test_files_of_a_dataset_that_the_ledger_does_not_know_concern_it_alone(make_store: MakeStore):
    store = make_store(two(DECLARED))
    one_published_and_one_staged(store)
    with store.ledger.write() as tx:
        forget_dataset(tx, "w")

    again = make_store(two(DECLARED))

    assert_works(again)
    with pytest.raises(LedgerLost, match="knows nothing of the segments"):
        stage(again, "w", rows(6))
    maintain(again, owner="the test")
    assert again.table("w").local is not None
    assert list((again.settings.staging_path / "w").iterdir())


def test_a_process_whose_dataset_was_removed_from_the_ledger_is_told(make_store: MakeStore):
    store = make_store(two(DECLARED))
    with store.ledger.write() as tx:
        forget_dataset(tx, "w")

    with pytest.raises(DatasetRemoved, match="start this process again"):
        stage(store, "w", rows(0))
    assert_works(store)


def test_status_doctor_and_the_plan_of_flushes_name_the_one_that_is_refused(make_store: MakeStore):
    from timestore_pipeline.cli.status_command import collect_status, status_as_json, status_as_row
    from timestore_pipeline.operating.doctor import look_at_ledger

    one_published_and_one_staged(make_store(two(DECLARED)))
    store = make_store(two(DECLARED.replace("time: ts", "time: received")))

    statuses, _ = collect_status(store)
    (refused,) = [each for each in statuses if each.dataset == "w"]
    assert "time was" in status_as_json(refused)["refused"]
    assert "refused" in status_as_row(refused)
    assert (refused.published.rows, refused.queue.pending_rows) == (3, 3)
    assert [str(found.level) for found in look_at_ledger(store) if found.part == "dataset w"] == ["error"]
    assert re.search("w: 3 rows are staged and cannot be published: .*time was", " ".join(plan_flushes(store).waiting))
    (left,) = drain(store, ["w"], owner="the test", by="me", reason="-", timeout_seconds=30).remainders
    assert not left.passes
    assert "time was" in " ".join(left.reasons)


def parts() -> st.SearchStrategy[str]:
    """Declarations of ``w`` over the same columns; most of them contradict each other."""
    return st.builds(
        "columns: {{ts: {}, received: timestamptz, id: int, v: {}}}, time: {}, window: {}{}, start: {}".format,
        st.sampled_from(["timestamptz", "timestamptz", "timestamp"]),
        st.sampled_from(["int", "int", "bigint", "varchar"]),
        st.sampled_from(["ts", "ts", "received", "{column: ts, unit: s}"]),
        st.sampled_from(["day", "day", "hour", "month"]),
        st.sampled_from(["", "", ", key: {columns: [id]}", ", key: {columns: [id], version: v}"]),
        st.sampled_from(["2026-01-01", "2025-01-01", "2026-02-01", "0001-01-01"]),
    )


@pytest.mark.long
@hypothesis.settings(max_examples=examples(5))
@given(declarations=st.lists(st.tuples(parts(), st.booleans()), min_size=2, max_size=4))
def test_what_is_accepted_reads_back_the_same_rows_and_what_is_refused_concerns_one_dataset(
    declarations: list[tuple[str, bool]],
):
    with TemporaryDirectory() as folder:
        staged: list[int] = []
        batches = 0
        for number, (declared, flush) in enumerate(declarations):
            (Path(folder) / "datasets.yaml").write_text(two(declared))
            settings = Settings(home=Path(folder), staging_min_free_disk_bytes=0, build_max_attempts=1)
            with Store.open(settings) as store:
                try:
                    receipt = stage(store, "w", rows(3 * number).cast(arrow_schema_of(declared)))
                    batches += 1
                    staged += range(3 * number, 3 * number + receipt.rows)
                    if flush:
                        flush_windows(store, BuildOrder("w", owner="the test"))
                    found = query_rows(store, "SELECT CAST(v AS int) AS v FROM w ORDER BY v").to_arrow().to_pylist()
                    assert [row["v"] for row in found] == staged
                    assert audit_rows(store, "w").wrong == ()
                except DeclarationChanged:
                    assert list(store.datasets.refused) == ["w"]
                    assert batches
                assert_works(store)
                assert maintain(store, owner="the test").problems == ()
                with store.ledger.read() as tx:
                    assert [entry.reason for entry in open_entries(tx) if entry.kind is not QuarantineKind.ROWS] == []


def arrow_schema_of(declared: str) -> pa.Schema:
    """The types in which the rows come: as they are declared, so that nothing else stands in their way."""
    time = pa.timestamp("us") if "ts: timestamp," in declared else pa.timestamp("us", "UTC")
    value = pa.string() if "v: varchar" in declared else pa.int64() if "v: bigint" in declared else pa.int32()
    return pa.schema([("ts", time), ("received", pa.timestamp("us", "UTC")), ("id", pa.int32()), ("v", value)])
