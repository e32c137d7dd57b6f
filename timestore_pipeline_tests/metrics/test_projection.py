"""The picture: every series, for every dataset, as the ledger has it at one moment (invariant 7)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import select

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.errors import StagingQueueFull
from timestore_pipeline.landing.files import scan_landing
from timestore_pipeline.landing.found import record_backlog
from timestore_pipeline.ledger.builds import NewBuild, mark_aborted
from timestore_pipeline.ledger.counters import (
    DROPPED_BATCHES,
    FLUSH_BATCHES,
    FLUSH_BUCKETS,
    FLUSH_DURATION,
    FLUSH_ROWS,
    RETENTION_BYTES,
    RETENTION_SEGMENTS,
    RETRIED_BATCHES,
    SEGMENT_BYTES,
    count,
    observe,
)
from timestore_pipeline.ledger.landing import landing_backlogs
from timestore_pipeline.ledger.schema import segments
from timestore_pipeline.ledger.segments import mark_unlinked
from timestore_pipeline.metrics import collect_metrics, exposition
from timestore_pipeline.metrics import series as names
from timestore_pipeline.metrics.series import SERIES, SeriesType
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.staging.ingest import ingest_files
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import claim_slices
from timestore_pipeline_tests.conftest import DATASETS_YAML, WEATHER_CSV, MakeStore

SECOND = 1_000_000


def weather(rows: int = 3, first: int = 0) -> pa.Table:
    """Rows of ``weather``, all in the window 2026-01-01."""
    times = [datetime(2026, 1, 1, tzinfo=UTC)] * rows
    temperatures = [float(first + index) for index in range(rows)]
    return pa.table({"ts": times, "station": ["JFK"] * rows, "temp": temperatures})


def value(store: Store, name: str, now: int | None = None, **labels: str) -> float:
    """The one sample of a series that has these labels."""
    found = [
        sample.value
        for family in collect_metrics(store, now)
        for sample in family.samples
        if sample.name == name and sample.labels == {"dataset": "weather", **labels}
    ]
    assert len(found) == 1, f"{name} {labels}: {found}"
    return found[0]


def test_everything_is_exported_as_zero_before_anything_happened(store: Store):
    families = {family.name: family for family in collect_metrics(store)}
    never_zero = {names.FLUSH_THRESHOLD, names.LIMIT, names.SLO, names.LEDGER_BYTES, names.METRICS_TIMESTAMP}

    for each in SERIES:
        if each.name in never_zero:
            continue
        samples = families[each.name.removesuffix("_total")].samples
        assert {sample.value for sample in samples} == {0}
        if not each.per_dataset:
            continue
        for dataset in store.datasets:
            labels = [sample.labels for sample in samples if sample.labels["dataset"] == dataset]
            seen = {label.get(each.label) if each.label else None for label in labels}
            assert seen == (set(each.values) or {None})


def test_what_is_staged_is_in_the_queue_until_it_is_published(store: Store):
    stage(store, "weather", weather(3))
    stage(store, "weather", weather(4, first=3))

    assert value(store, names.QUEUE_DEPTH, metric="batches") == 2
    assert value(store, names.QUEUE_DEPTH, metric="rows") == 7
    assert value(store, names.PUBLISHED_ROWS) == 0

    flush_windows(store, BuildOrder("weather", owner="test"))

    assert value(store, names.QUEUE_DEPTH, metric="batches") == 0
    assert value(store, names.QUEUE_DEPTH, metric="rows") == 0
    assert value(store, names.PUBLISHED_ROWS) == 7
    assert value(store, names.PUBLISHED_WINDOWS) == 1
    assert value(store, names.PUBLISHED_FILES) == 1
    parquet = list(store.table("weather").root.rglob("*.parquet"))
    assert value(store, names.PUBLISHED_BYTES) == sum(path.stat().st_size for path in parquet)


def test_the_age_is_that_of_the_oldest_batch(store: Store):
    before = now_micros()
    stage(store, "weather", weather())
    after = now_micros()

    age = value(store, names.OLDEST_AGE, now=after + 90 * SECOND)

    assert 90 <= age <= 90 + (after - before) / SECOND
    assert value(store, names.OLDEST_AGE, now=before - SECOND) == 0, "the clock of another host may lag"


def test_the_age_can_be_told_when_nobody_pushes_any_more(store: Store):
    assert value(store, names.OLDEST_TIMESTAMP) == 0
    before = now_micros()
    stage(store, "weather", weather())
    after = now_micros()
    stage(store, "weather", weather(first=3))

    assert before / SECOND <= value(store, names.OLDEST_TIMESTAMP, now=after + 90 * SECOND) <= after / SECOND


def test_thresholds_and_limits_are_those_in_force(make_store: MakeStore):
    overridden = DATASETS_YAML.replace(
        "window: day", "window: day\n    flush: {max_rows: 7, max_age_ms: 1500}"
    ).replace("window: hour", "window: hour\n    limits: {max_pending: 3, max_bytes: 0}")
    store = make_store(
        overridden,
        staging_flush_max_bytes=0,
        staging_max_pending=9,
        staging_max_dataset_bytes=10,
        staging_concurrent_ingests=2,
    )

    def exported(name: str, label: str, dataset: str) -> dict[str, float]:
        family = next(family for family in collect_metrics(store) if family.name == name)
        return {sample.labels[label]: sample.value for sample in family.samples if sample.labels["dataset"] == dataset}

    assert exported(names.FLUSH_THRESHOLD, "threshold", "weather") == {"rows": 7, "bytes": 0, "age": 1.5}
    assert exported(names.FLUSH_THRESHOLD, "threshold", "events") == {"rows": 50_000, "bytes": 0, "age": 60}
    assert exported(names.SLO, "slo", "weather") == {"flush": 30, "publish": 60}
    assert exported(names.SLO, "slo", "events") == {"flush": 30, "publish": 120}
    assert exported(names.LIMIT, "limit", "weather") == {
        "batches": 9,
        "bytes": 10,
        "windows": 1_000,
        "ingests": 2,
        "builds": 1,
    }
    assert exported(names.LIMIT, "limit", "events") == {
        "batches": 3,
        "bytes": 0,
        "windows": 1_000,
        "ingests": 2,
        "builds": 1,
    }


def test_a_build_is_in_flight_from_its_claim_to_its_end(store: Store):
    stage(store, "weather", weather())
    stage(store, "weather", weather(first=3))
    with store.ledger.write() as tx:
        claim = claim_slices(tx, NewBuild("weather", owner="slow", trigger="manual", lease_micros=1, now=SECOND))
    assert claim is not None

    assert value(store, names.BUILDS_IN_FLIGHT) == 1
    assert value(store, names.BUILD_AGE, now=31 * SECOND) == 30
    assert value(store, names.BUILD_TIMESTAMP) == 1

    with store.ledger.write() as tx:
        mark_aborted(tx, claim.build, error="it died", recovered=True, now=32 * SECOND)

    assert value(store, names.BUILDS_IN_FLIGHT) == 0
    assert value(store, names.BUILD_AGE) == 0
    assert value(store, names.BUILD_TIMESTAMP) == 0


def test_segments_are_counted_and_their_unpublished_bytes_summed(store: Store):
    stage(store, "weather", weather())
    stage(store, "weather", weather(first=3))

    assert value(store, names.SEGMENTS, component="staged") == 2
    assert value(store, names.QUEUE_BYTES) == value(store, names.DISK_USAGE, component="staged") > 0

    flush_windows(store, BuildOrder("weather", owner="test"))

    assert value(store, names.SEGMENTS, component="staged") == 0
    assert value(store, names.SEGMENTS, component="retained") == 2
    assert value(store, names.QUEUE_BYTES) == 0


def test_segments_are_counted_by_size_when_they_are_staged_and_again_when_retention_ends(make_store: MakeStore):
    store = make_store(staging_retention_seconds=0)
    stage(store, "weather", weather())
    stage(store, "weather", weather(first=3))
    sizes = [path.stat().st_size for path in store.settings.staging_path.rglob("*.duckdb")]

    assert value(store, SEGMENT_BYTES + "_count") == 2
    assert value(store, SEGMENT_BYTES + "_sum") == sum(sizes)
    assert value(store, SEGMENT_BYTES + "_bucket", le="+Inf") == 2
    assert value(store, SEGMENT_BYTES + "_bucket", le="16384.0") == sum(size <= 16_384 for size in sizes)
    assert value(store, SEGMENT_BYTES + "_bucket", le="1.073741824e+09") == 2

    flush_windows(store, BuildOrder("weather", owner="test"))
    assert value(store, RETENTION_SEGMENTS) == 0
    unlink_published_segments(store)
    unlink_published_segments(store)

    assert value(store, RETENTION_SEGMENTS) == 2
    assert value(store, RETENTION_BYTES) == sum(sizes)
    with store.ledger.write() as tx:
        mark_unlinked(tx, tx.execute(select(segments.c.id)).scalars().all(), 0)
    assert value(store, RETENTION_SEGMENTS) == 2, "a process that was slow counts nothing twice"


def test_the_installation_as_a_whole_has_its_own_series(store: Store, home: Path):
    def whole(name: str, now: int | None = None) -> float:
        family = next(family for family in collect_metrics(store, now) if family.name == name)
        assert [sample.labels for sample in family.samples] == [{}]
        return family.samples[0].value

    assert whole(names.METRICS_TIMESTAMP, now=90 * SECOND) == 90
    before = whole(names.LEDGER_BYTES)
    with store.ledger.write() as tx:
        for number in range(2_000):
            count(tx, DROPPED_BATCHES, "weather", f"reason {number:04d}")
    assert whole(names.LEDGER_BYTES) > before > 0
    store.close()
    assert whole(names.LEDGER_BYTES) == (home / "data/staging/ledger.sqlite").stat().st_size


def test_disk_usage_is_what_the_file_system_says(store: Store, drop: Callable[[Store, str, str, str | bytes], Path]):
    drop(store, "weather", "good.csv", WEATHER_CSV)
    drop(store, "weather", "bad.csv", "this,is,no weather\n1,2,3\n")
    ingest_files(store, "weather", scan_landing(store).of("weather"))
    segments = list(store.settings.staging_path.rglob("*.duckdb"))
    assert segments

    def usage() -> dict[str, float]:
        return {part: value(store, names.DISK_USAGE, component=part) for part in ("staged", "retained", "quarantine")}

    size = sum(path.stat().st_size for path in segments)
    refused = len("this,is,no weather\n1,2,3\n")
    assert usage() == {"staged": size, "retained": 0, "quarantine": refused}
    assert value(store, names.QUARANTINED_BATCHES) == 1

    flush_windows(store, BuildOrder("weather", owner="test"))

    assert usage() == {"staged": 0, "retained": size, "quarantine": refused}


def test_refused_rows_are_counted_apart_from_refused_batches(store: Store):
    times = [datetime(2026, 1, 1, tzinfo=UTC), None, datetime(1999, 1, 1, tzinfo=UTC)]

    stage(store, "weather", pa.table({"ts": times, "station": ["JFK"] * 3, "temp": [1.0, 2.0, 3.0]}))

    assert value(store, names.QUARANTINED_ROWS) == 2
    assert value(store, names.QUARANTINED_BATCHES) == 0
    assert value(store, names.QUEUE_DEPTH, metric="rows") == 1


def test_a_flush_is_counted_by_its_result(store: Store):
    stage(store, "weather", weather(3))
    before = now_micros() / SECOND

    flush_windows(store, BuildOrder("weather", owner="test"))

    assert value(store, FLUSH_BATCHES, result="success") == 1
    assert value(store, FLUSH_ROWS, result="success") == 3
    assert value(store, FLUSH_DURATION + "_count", result="success") == 1
    assert value(store, FLUSH_DURATION + "_count", result="failure") == 0
    assert before <= value(store, names.FLUSH_LAST_SUCCESS) <= now_micros() / SECOND


def test_a_build_that_died_counts_as_failure_and_its_batches_as_retried(store: Store):
    stage(store, "weather", weather(3))
    with store.ledger.write() as tx:
        claim = claim_slices(tx, NewBuild("weather", owner="dead", trigger="manual", lease_micros=1, now=0))
        assert claim is not None
        mark_aborted(tx, claim.build, error="it died", recovered=True, now=7 * SECOND)

    assert value(store, RETRIED_BATCHES, reason="flush_abort") == 1
    assert value(store, FLUSH_ROWS, result="failure") == 3
    assert value(store, FLUSH_DURATION + "_sum", result="failure") == 7
    assert value(store, names.FLUSH_LAST_SUCCESS) == 0


def test_a_repeated_batch_counts_as_retried(store: Store):
    for _ in range(3):
        stage(store, "weather", weather(), batch_id="once")

    assert value(store, RETRIED_BATCHES, reason="duplicate") == 2
    assert value(store, names.QUEUE_DEPTH, metric="batches") == 1


def test_a_refused_batch_counts_as_dropped(make_store: MakeStore):
    store = make_store(staging_max_pending=1)
    stage(store, "weather", weather())

    with pytest.raises(StagingQueueFull):
        stage(store, "weather", weather(first=10))

    assert value(store, DROPPED_BATCHES, reason="queue_full") == 1
    assert value(store, DROPPED_BATCHES, reason="disk_full") == 0


def test_buckets_are_cumulative(store: Store):
    observed = [0.01, 0.05, 0.3, 0.3, 45, 99_999]
    with store.ledger.write() as tx:
        for seconds in observed:
            observe(tx, FLUSH_DURATION, "weather", "success", seconds)

    for bound in FLUSH_BUCKETS:
        at_most = sum(seconds <= bound for seconds in observed)
        assert value(store, FLUSH_DURATION + "_bucket", result="success", le=str(float(bound))) == at_most
    assert value(store, FLUSH_DURATION + "_bucket", result="success", le="+Inf") == len(observed)
    assert value(store, FLUSH_DURATION + "_count", result="success") == len(observed)
    assert value(store, FLUSH_DURATION + "_sum", result="success") == pytest.approx(sum(observed))


ONLY_EVENTS = "datasets: {events: {time: {column: at, unit: ms}, window: hour}}"


def test_a_dataset_that_is_no_longer_declared_stays_visible_while_something_of_it_waits(make_store: MakeStore):
    stage(make_store(), "weather", weather())

    store = make_store(ONLY_EVENTS)

    assert value(store, names.QUEUE_DEPTH, metric="batches") == 1


def test_a_dataset_that_was_removed_is_gone_with_all_its_series(make_store: MakeStore):
    store = make_store()
    stage(store, "weather", weather())
    flush_windows(store, BuildOrder("weather", owner="test"))
    assert b'dataset="weather"' in exposition(store)

    picture = exposition(make_store(ONLY_EVENTS))

    assert b'dataset="events"' in picture
    assert b'dataset="weather"' not in picture


def test_a_reason_that_the_table_of_series_does_not_know_is_exported_all_the_same(store: Store):
    with store.ledger.write() as tx:
        count(tx, DROPPED_BATCHES, "weather", "new_reason", 3)

    assert value(store, DROPPED_BATCHES, reason="new_reason") == 3


def test_every_process_sees_the_same_picture(make_store: MakeStore):
    one, other = make_store(), make_store()
    stage(one, "weather", weather())
    now = now_micros()

    pictures = [[family.samples for family in collect_metrics(each, now)] for each in (one, other)]

    assert pictures[0] == pictures[1]


def test_a_picture_is_taken_in_one_transaction(store: Store, monkeypatch: pytest.MonkeyPatch):
    opened = []
    read = type(store.ledger).read
    monkeypatch.setattr(type(store.ledger), "read", lambda ledger: opened.append(1) or read(ledger))

    collect_metrics(store)

    assert len(opened) == 1


def test_the_exposition_can_be_parsed_back(store: Store):
    stage(store, "weather", weather(5))

    families = {family.name: family for family in text_string_to_metric_families(exposition(store).decode())}

    types = {each.name.removesuffix("_total"): each.type for each in SERIES}
    assert {name: SeriesType(family.type) for name, family in families.items()} == types
    rows = [sample for sample in families[names.QUEUE_DEPTH].samples if sample.labels["metric"] == "rows"]
    assert {sample.labels["dataset"]: sample.value for sample in rows} == {"weather": 5, "events": 0}


@pytest.mark.server
def test_prometheus_finds_nothing_wrong_with_the_exposition(store: Store, program: Callable[[str], str]):
    stage(store, "weather", weather())
    flush_windows(store, BuildOrder("weather", owner="test"))

    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=exposition(store), capture_output=True, check=False
    )

    assert checked.returncode == 0, checked.stderr.decode()
    assert checked.stderr == b""


def test_landing_files_that_wait_are_the_backlog(store: Store, drop: Callable[[Store, str, str, str | bytes], Path]):
    for name, modified_at in (("a.csv", 2_000), ("b.csv", 1_000)):
        os.utime(drop(store, "weather", name, WEATHER_CSV), (modified_at, modified_at))
    drop(store, "weather", "c.csv.partial", WEATHER_CSV)

    assert record_backlog(store, scan_landing(store))

    now = 1_600 * SECOND
    assert value(store, names.LANDING_FILES) == 2
    assert value(store, names.LANDING_BYTES) == 2 * len(WEATHER_CSV)
    assert value(store, names.LANDING_AGE, now=now) == 600
    assert value(store, names.LANDING_AGE, now=0) == 0
    assert value(store, names.LANDING_TIMESTAMP) == 1_000
    assert not record_backlog(store, scan_landing(store)), "nothing is written where nothing changed"

    ingest_files(store, "weather", scan_landing(store).of("weather"))
    assert record_backlog(store, scan_landing(store))
    assert value(store, names.LANDING_FILES) == 0
    assert value(store, names.LANDING_AGE, now=now) == 0
    assert value(store, names.LANDING_TIMESTAMP) == 0


def test_the_backlog_of_a_dataset_that_is_declared_no_more_goes(
    make_store: MakeStore, drop: Callable[[Store, str, str, str | bytes], Path]
):
    store = make_store()
    drop(store, "weather", "a.csv", WEATHER_CSV)
    record_backlog(store, scan_landing(store))

    later = make_store(ONLY_EVENTS)
    record_backlog(later, scan_landing(later))

    with later.ledger.read() as tx:
        assert landing_backlogs(tx) == {}
