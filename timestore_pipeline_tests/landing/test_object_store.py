"""Files that land in an object store: what is found, staged and cleared away there, whatever goes wrong in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.errors import EntryUnusable
from timestore_pipeline.landing.files import scan_landing
from timestore_pipeline.landing.found import record_backlog
from timestore_pipeline.ledger.counters import LANDING_FAILED_LOOKS, counter_values
from timestore_pipeline.ledger.quarantine import QuarantineEntry, open_entries
from timestore_pipeline.operating.quarantine import kept_at, retry_entry
from timestore_pipeline.settings import AfterIngest, SettingsError, load_settings
from timestore_pipeline.staging.ingest import ingest_files
from timestore_pipeline.store import Store
from timestore_pipeline.validation.run import LoadSize, validate
from timestore_pipeline_tests.builders import Rows, hourly, ingest, readable, rows_of, weather_csv
from timestore_pipeline_tests.conftest import MakeStore
from timestore_pipeline_tests.crash.child import killed_at
from timestore_pipeline_tests.fault_proxy import Effect, Fault, denied, slow_down
from timestore_pipeline_tests.object_store import CREDENTIALS, Bucket

pytestmark = pytest.mark.server

Open = Callable[..., Store]


@pytest.fixture
def open_store(make_store: MakeStore, s3_bucket: Bucket) -> Open:
    """Opens a store whose files land in the bucket, below ``landing``, and are archived below ``archive``."""

    def opened(**settings: object) -> Store:
        # Patient, for requests are counted: one that takes long here is not to be made again.
        patience = {"object_store_timeout_seconds": 120}
        places = {"landing_directory": f"{s3_bucket.url}/landing"}
        return make_store(**{**patience, **places, "landing_archive_directory": f"{s3_bucket.url}/archive", **settings})

    return opened


def quarantined(store: Store) -> list[QuarantineEntry]:
    with store.ledger.read() as tx:
        return open_entries(tx, "weather")


def land(bucket: Bucket, *names: str) -> Rows:
    """Put files of two rows each, told apart by their names, into the folder of ``weather``; return their rows."""
    tables = []
    for name in names:
        table = hourly(2, station=name)
        station = '"' + name.replace('"', '""') + '"'
        rows = (f"{row['ts']:%Y-%m-%dT%H:%M:%SZ},{station},{row['temp']}" for row in table.to_pylist())
        bucket.put(f"landing/weather/{name}", weather_csv(*rows))
        tables.append(table)
    return rows_of(*tables)


def names_ready(store: Store) -> list[str]:
    return sorted(file.path.name for file in scan_landing(store).files)


def names_left(bucket: Bucket) -> list[str]:
    return [key.removeprefix("landing/weather/") for key in bucket.keys("landing/weather/")]


@pytest.mark.parametrize("after", AfterIngest)
def test_objects_are_staged_and_then_archived_deleted_or_kept(
    open_store: Open, s3_bucket: Bucket, after: AfterIngest
) -> None:
    store = open_store(landing_after_ingest=after)
    rows = land(s3_bucket, *(f"{number}.csv" for number in range(20)))

    report = ingest(store)["weather"]

    assert readable(store) == rows
    assert (report.batches, report.duplicates, report.skipped) == (20, 0, ())
    # One listing, one request to read a file, and no more than two to clear it away.
    cleared = {AfterIngest.ARCHIVE: {"COPY": 20, "HEAD": 20, "DELETE_MANY": 1}}
    cleared |= {AfterIngest.DELETE: {"HEAD": 20, "DELETE_MANY": 1}, AfterIngest.KEEP: {}}
    made = Counter(request.operation for request in s3_bucket.proxy.requests if ".timestore-" not in request.key)
    assert made == {"LIST": 1, "GET": 20, **cleared[after]}
    assert len(names_left(s3_bucket)) == (20 if after is AfterIngest.KEEP else 0)
    archived = [s3_bucket.get(key) for key in s3_bucket.keys("archive/weather/")]
    assert len(set(archived)) == (20 if after is AfterIngest.ARCHIVE else 0)
    assert scan_landing(store).files == ()
    assert not any(store.settings.landing_path.iterdir()), "the fetched copies are gone"


def test_the_archive_of_objects_can_be_a_folder(open_store: Open, s3_bucket: Bucket) -> None:
    store = open_store(landing_archive_directory="archived")
    land(s3_bucket, "a.csv")

    ingest(store)

    assert names_left(s3_bucket) == []
    assert [path.name[-6:] for path in store.settings.archive_path.rglob("*.csv")] == ["-a.csv"]


def test_odd_names_are_staged_and_unfinished_ones_wait(open_store: Open, s3_bucket: Bucket) -> None:
    store = open_store()
    odd = ["a b.csv", "100%.csv", "%2e%2e.csv", "ü é.csv", "a+b&c=d#e.csv", "a*[b]?.csv", '~{}|^`<>".csv', "a\\b.csv"]
    odd += ["x" * 300 + ".csv", "(1).csv", "..csv"[1:].rjust(5, "c")]
    rows = land(s3_bucket, *odd)
    unready = [".hidden.csv", "..csv", "_x.csv", "a.csv.tmp", "b.csv.partial"]
    land(s3_bucket, *unready)

    ingest(store)

    assert readable(store) == rows
    assert names_left(s3_bucket) == sorted(unready)
    with store.ledger.read() as tx:
        from sqlalchemy import select

        from timestore_pipeline.ledger.schema import batches

        assert sorted(tx.execute(select(batches.c.source)).scalars()) == sorted(odd)


def test_what_lies_elsewhere_is_said_and_signs_of_folders_are_none(open_store: Open, s3_bucket: Bucket) -> None:
    store = open_store()
    rows = land(s3_bucket, "a.csv", "2026/01/b.csv", "2026/01/c.csv")[:2]
    for key in ("landing/", "landing/weather/", "landing/weather/sub/", "landing/new/", "landing/events/"):
        s3_bucket.put(key, b"")
    s3_bucket.put("landing/loose.csv", b"x")
    s3_bucket.put("landing/unknown/x.csv", b"x")

    found = scan_landing(store)
    ingest(store)

    assert [problem.split(",")[0].replace(s3_bucket.url, "") for problem in found.problems] == [
        "weather: 2 objects lie in folders below /landing/weather",
        "folder /landing/unknown belongs to no declared dataset",
        "1 objects lie outside of any dataset's folder in /landing",
    ]
    assert "'2026/01/b.csv'" in found.problems[0]
    assert [row for row in readable(store) if row[1] == "a.csv"] == readable(store)
    assert len(rows) == len(readable(store)) == 2
    assert names_ready(store) == [], "a sign of a folder is asked for once"


@pytest.mark.parametrize(
    ("bad", "seen"),
    [
        ("landing//x.csv", {"(1).csv", "a.csv"}),
        ("landing/weather/2026//x.csv", {"(1).csv", "a.csv"}),
        ("landing/weather//x.csv", {"a.csv"}),
        ("landing/weather/..", {"a.csv"}),
        ("landing/weather/./x.csv", {"a.csv"}),
    ],
)
def test_a_key_that_cannot_be_listed_hides_as_little_as_can_be(
    open_store: Open, s3_bucket: Bucket, bad: str, seen: set[str]
) -> None:
    store = open_store()
    land(s3_bucket, "(1).csv", "a.csv")
    s3_bucket.put("landing/events/e.json", b'{"at": 1}\n')
    s3_bucket.put(bad, b"x")

    found = scan_landing(store)

    assert {file.path.name for file in found.files} == {*seen, "e.json"}
    assert "cannot be listed" in found.problems[0]
    assert scan_landing(store, ["events"]).problems == ()
    s3_bucket.delete(bad)
    assert names_ready(store) == ["(1).csv", "a.csv", "e.json"]


def test_more_objects_than_one_answer_has(open_store: Open, s3_bucket: Bucket) -> None:
    s3_bucket.proxy.page = 10
    store = open_store(landing_max_files_per_run=30)
    rows = land(s3_bucket, *(f"{number}.csv" for number in range(45)))

    found = scan_landing(store)

    assert len(found.files) == 45
    assert len(s3_bucket.proxy.passed("LIST")) == 5
    ingest(store)
    assert len(names_left(s3_bucket)) == 15, "one run takes no more than it may"
    ingest(store)
    assert readable(store) == rows


def overwrite(bucket: Bucket, station: str) -> Callable[[object], None]:
    return lambda _: bucket.put("landing/weather/a.csv", weather_csv(f"2026-01-01T00:00:00Z,{station},0"))


def test_an_object_that_is_written_again_before_it_is_read_is_taken_as_it_is_now(
    open_store: Open, s3_bucket: Bucket
) -> None:
    store = open_store()
    land(s3_bucket, "a.csv")
    s3_bucket.proxy.add(Fault(Effect.CALL, "GET", call=overwrite(s3_bucket, "new")))

    ingest(store)

    assert [row[1] for row in readable(store)] == ["new"]
    assert names_left(s3_bucket) == []


@pytest.mark.parametrize("operation", ["COPY", "HEAD"])
def test_an_object_that_is_written_again_after_it_was_read_stays_and_is_taken_next(
    open_store: Open, s3_bucket: Bucket, operation: str
) -> None:
    store = open_store()
    rows = land(s3_bucket, "a.csv")
    s3_bucket.proxy.add(Fault(Effect.CALL, operation, call=overwrite(s3_bucket, "new")))

    ingest(store)

    assert readable(store) == rows
    assert names_ready(store) == ["a.csv"]
    ingest(store)
    assert sorted(row[1] for row in readable(store)) == ["a.csv", "a.csv", "new"]
    assert names_left(s3_bucket) == []


FAULTS = {
    "500": lambda operation: Fault(Effect.ERROR, operation, times=2),
    "503 SlowDown": lambda operation: slow_down(operation, times=3),
    "an error after it was done": lambda operation: Fault(Effect.ERROR_AFTER, operation, status=502),
    "dropped before": lambda operation: Fault(Effect.DROP_BEFORE, operation),
    "dropped after": lambda operation: Fault(Effect.DROP_AFTER, operation, times=2),
    "hung after it was done": lambda operation: Fault(Effect.HANG_AFTER, operation),
    "cut in the middle": lambda operation: Fault(Effect.CUT, operation),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_moment_at_any_request_loses_and_doubles_nothing(
    open_store: Open, s3_bucket: Bucket, fault: str
) -> None:
    impatience = {"object_store_timeout_seconds": 1} if fault.startswith("hung") else {}
    store = open_store(**impatience)
    rows = land(s3_bucket, "a.csv", "b.csv")
    s3_bucket.put("landing/weather/bad.csv", "no,such,columns\n1,2,3\n")
    faults = [FAULTS[fault](operation) for operation in ("LIST", "GET", "COPY", "HEAD", "DELETE_MANY")]
    s3_bucket.proxy.add(*faults)

    report = ingest(store)["weather"]

    assert all(each.hits for each in faults)
    assert readable(store) == rows
    assert [entry.source for entry in report.quarantined] == ["bad.csv"]
    assert names_left(s3_bucket) == []
    assert len(s3_bucket.keys("archive/weather/")) == 2
    assert store.staging.size(report.quarantined[0].path)


def failed_looks(store: Store) -> float:
    with store.ledger.read() as tx:
        return counter_values(tx).get((LANDING_FAILED_LOOKS, "", ""), 0)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda: Fault(Effect.ERROR, times=None), "LIST s3://.*500.*See whether the store is up and reachable"),
        (lambda: denied(times=None), "403 Forbidden.*AccessDenied.*permissions"),
        (lambda: Fault(Effect.ERROR, times=None, status=404, code="NoSuchBucket"), "NoSuchBucket.*Correct the URL"),
        (lambda: Fault(Effect.DROP_BEFORE, times=None), "See whether the store is up"),
    ],
)
def test_a_store_that_does_not_answer_is_a_problem_that_is_counted_and_forgets_no_backlog(
    open_store: Open, s3_bucket: Bucket, fault: Callable[[], Fault], said: str
) -> None:
    store = open_store(object_store_retry_seconds=0.3)
    land(s3_bucket, "a.csv")
    record_backlog(store, scan_landing(store))
    s3_bucket.proxy.add(fault())

    found = scan_landing(store)
    record_backlog(store, found)

    assert (found.files, found.answered) == ((), False)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found.problems[0])
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in found.problems[0]
    assert failed_looks(store) == 1
    s3_bucket.proxy.heal()
    assert not record_backlog(store, scan_landing(store)), "what the last look found is still what there is"


def test_files_wait_while_objects_cannot_be_read_and_one_that_may_not_be_read_holds_up_no_other(
    open_store: Open, s3_bucket: Bucket
) -> None:
    store = open_store(object_store_retry_seconds=0.3)
    rows = land(s3_bucket, *(f"{number}.csv" for number in range(40)))
    with s3_bucket.proxy.spoilt(Fault(Effect.ERROR, "GET", "*.csv", times=None)):
        down = ingest(store)["weather"]
    asked = len(s3_bucket.proxy.passed("GET"))

    assert (down.receipts, readable(store)) == ((), [])
    assert "40 files wait" in down.skipped[-1]
    assert asked <= 16 * 4, "once it has given up it asks for no more files"

    s3_bucket.proxy.add(denied("GET", key="*/7.csv", times=None))
    report = ingest(store)["weather"]

    assert [sentence.split(" ")[0] for sentence in report.skipped] == ["7.csv"]
    assert "AccessDenied" in report.skipped[0]
    assert names_left(s3_bucket) == ["7.csv"]
    s3_bucket.proxy.heal()
    ingest(store)
    assert readable(store) == rows


@pytest.mark.parametrize("operation", ["COPY", "DELETE_MANY"])
def test_an_object_that_may_not_be_cleared_away_is_remembered_and_not_staged_again(
    open_store: Open, s3_bucket: Bucket, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    rows = land(s3_bucket, "a.csv", "b.csv")
    s3_bucket.proxy.add(denied(operation, times=None))

    ingest(store)

    assert "a.csv is staged but could not be cleared away" in caplog.text
    assert names_ready(store) == []
    assert readable(store) == rows
    overwrite(s3_bucket, "new")(None)
    assert names_ready(store) == ["a.csv"], "another content is another file"


def test_an_object_larger_than_a_file_may_be_is_set_aside_without_being_fetched(
    open_store: Open, s3_bucket: Bucket
) -> None:
    store = open_store()
    rows = land(s3_bucket, "a.csv")
    land(s3_bucket, "huge.csv")
    small = open_store(landing_max_file_bytes=50)
    files = [file if file.path.name == "huge.csv" else replace(file, bytes=1) for file in scan_landing(small).files]

    (entry,) = ingest_files(small, "weather", files).quarantined

    assert names_ready(small) == []

    assert readable(store) == rows
    assert "TIMESTORE_LANDING_MAX_FILE_BYTES" in entry.reason
    assert kept_at(store, entry).endswith("huge.csv")
    with pytest.raises(EntryUnusable):
        retry_entry(small, entry.id, "me")
    assert retry_entry(store, entry.id, "me").done
    assert names_left(s3_bucket) == []


def test_a_file_too_large_for_the_local_disk_waits_and_the_others_go_on(open_store: Open, s3_bucket: Bucket) -> None:
    store = open_store(landing_max_file_bytes=1 << 61)
    rows = land(s3_bucket, "a.csv")
    land(s3_bucket, "huge.csv")
    files = [
        replace(file, bytes=1 << 60) if file.path.name == "huge.csv" else file for file in scan_landing(store).files
    ]

    report = ingest_files(store, "weather", files)

    assert readable(store) == rows
    assert "huge.csv waits: its 1,152,921,504,606,846,976 bytes do not fit" in report.skipped[0]


KILLED_INGESTS = (CrashPoint.BATCHES_ACKNOWLEDGED, CrashPoint.LANDING_FILES_COPIED, CrashPoint.BAD_FILE_MOVED)


@pytest.mark.crash
@pytest.mark.parametrize("point", KILLED_INGESTS)
def test_a_process_killed_in_an_ingest_of_objects_loses_and_doubles_nothing(
    open_store: Open, s3_bucket: Bucket, point: CrashPoint
) -> None:
    rows = land(s3_bucket, "a.csv", "b.csv")
    s3_bucket.put("landing/weather/bad.csv", "no,such,columns\n1,2,3\n")
    killed_at(open_store(), "ingest", point)

    store = open_store()
    ingest(store)

    assert readable(store) == rows
    assert names_left(s3_bucket) == []
    assert len({s3_bucket.get(key) for key in s3_bucket.keys("archive/")}) == 2
    (entry,) = quarantined(store)
    assert store.staging.size(entry.path)
    assert [path.name for path in store.settings.landing_path.iterdir()] == [], "what the dead one fetched is gone"


def test_two_ingests_at_once_stage_each_object_once(open_store: Open, s3_bucket: Bucket) -> None:
    stores = [open_store(), open_store()]
    rows = land(s3_bucket, *(f"{number}.csv" for number in range(30)))
    found = scan_landing(stores[0]).files

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda store: ingest_files(store, "weather", found), stores))

    assert readable(stores[0]) == rows
    assert sum(report.batches for report in reports) == 30
    assert names_left(s3_bucket) == []
    assert len(s3_bucket.keys("archive/")) == 30


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"landing_directory": "s3://bucket/landing"}, "LANDING_ARCHIVE_DIRECTORY is not set.*s3://bucket/archive"),
        (
            {"landing_directory": "s3://bucket", "landing_archive_directory": "s3://bucket/done"},
            "within TIMESTORE_LAND",
        ),
        ({"landing_directory": "ftp://bucket/landing"}, "TIMESTORE_LANDING_DIRECTORY: ftp:// is no place for files"),
        ({"landing_directory": "s3://key:secret@bucket/x"}, "must not hold credentials"),
    ],
)
def test_places_that_cannot_be_meant_are_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as raised:
        load_settings(**settings)

    assert "secret@" not in str(raised.value)


def test_an_empty_object_is_a_bad_file_and_can_be_tried_again(open_store: Open, s3_bucket: Bucket) -> None:
    store = open_store(landing_archive_directory="archive")
    s3_bucket.put("landing/weather/empty.csv", b"")

    ingest(store)

    (entry,) = quarantined(store)
    assert entry.source == "empty.csv"
    assert not retry_entry(store, entry.id, by="the test").rows
    path = store.staging.fetch(entry.path)
    path.write_text(weather_csv("2026-01-01T00:00:00Z,JFK,1"))
    assert retry_entry(store, entry.id, by="the test").rows == 1
    assert len(readable(store)) == 1
    assert len(list(store.settings.archive_path.rglob("*.csv"))) == 1


def test_validation_drops_its_files_into_the_bucket_and_leaves_none(open_store: Open, s3_bucket: Bucket) -> None:
    store = open_store(flush_sensor_interval_seconds=1, landing_sensor_interval_seconds=1, staging_flush_max_rows=20)
    land(s3_bucket, "a.csv")

    found = validate(store, LoadSize(4, 10, 1))

    assert found.passed, found.checks
    assert len(s3_bucket.proxy.passed("PUT", "landing/.*")) == 2
    assert s3_bucket.keys() == ["landing/weather/a.csv"]
