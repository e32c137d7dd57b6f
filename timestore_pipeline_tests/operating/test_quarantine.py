"""What is in quarantine gets out: retried once its cause is gone, or discarded; every row is in one place only."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.crash_points import CrashPoint, at
from timestore_pipeline.errors import (
    BatchRejected,
    EntryNotOpen,
    EntryNotRetried,
    EntryUnusable,
    StagingQueueFull,
    TimestoreError,
    TooManyIngests,
    UnknownEntry,
)
from timestore_pipeline.ledger.batches import ordinal_of_batch
from timestore_pipeline.ledger.quarantine import QuarantineEntry, all_entries, open_entries
from timestore_pipeline.ledger.queue import queue_states
from timestore_pipeline.ledger.slices import quarantined_slices
from timestore_pipeline.ledger.states import QuarantineKind, QuarantineState
from timestore_pipeline.operating.kept_rows import retry_batch_id
from timestore_pipeline.operating.preview import preview
from timestore_pipeline.operating.quarantine import discard_entry, open_entry, retry_entry
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.staging.turns import turn
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    Rows,
    build,
    files_under,
    flip_byte,
    hourly,
    in_order,
    ingest,
    published,
    readable,
    rows_of,
    segment_file,
    weather,
    weather_csv,
)
from timestore_pipeline_tests.conftest import DATASETS_YAML, MakeStore
from timestore_pipeline_tests.deaths import dies_at
from timestore_pipeline_tests.sampling import examples
from timestore_pipeline_tests.soak.faults import failing_calls

Drop = Callable[..., Path]

STRICT_YAML = DATASETS_YAML.replace("    window: day\n", "    window: day\n    start: 2026-01-01\n", 1)
"""``weather`` starts in 2026, so that rows of 2025 are impossible."""

OLD = weather((NEW_YEAR - timedelta(days=9), "JFK", 1.0), (NEW_YEAR - timedelta(days=8), "LGA", 2.0))
NEVER = weather((None, "EWR", 3.0))


def the_entry(store: Store) -> QuarantineEntry:
    with store.ledger.read() as tx:
        (entry,) = open_entries(tx)
    return entry


def entries(store: Store) -> list[QuarantineEntry]:
    with store.ledger.read() as tx:
        return all_entries(tx)


def set_segment_aside(store: Store) -> Path:
    """Stage 24 rows, damage them, let builds fail until they are set aside; return where they were."""
    path = segment_file(store, stage(store, "weather", hourly(24)).segment_id)
    shutil.copyfile(path, path.with_name("backup"))
    flip_byte(path, path.stat().st_size - 8_000)
    for _ in range(store.settings.build_max_attempts - 1):
        with pytest.raises(TimestoreError):
            flush_windows(store, BuildOrder("weather", owner="the test"))
    assert flush_windows(store, BuildOrder("weather", owner="the test")) is None
    return path


def with_an_entry_of_each_kind(make_store: MakeStore, drop: Drop) -> Store:
    """A store with a segment, rows and a file in quarantine."""
    store = make_store(STRICT_YAML)
    set_segment_aside(store)
    stage(store, "weather", OLD)
    drop(store, "weather", "a.csv", "nonsense")
    ingest(store)
    return store


def test_a_file_that_can_be_staged_by_now_is_staged_and_archived(make_store: MakeStore, drop: Drop):
    narrow = make_store(DATASETS_YAML.replace(", temp: double", ""))
    drop(narrow, "weather", "a.csv", weather_csv("2026-01-01,JFK,1"))
    ingest(narrow)
    entry = the_entry(narrow)
    store = make_store()

    outcome = retry_entry(store, entry.id, "ann@host")

    assert (outcome.done, outcome.rows, outcome.left) == (True, 1, None)
    assert len(readable(store)) == 1
    (after,) = entries(store)
    assert (after.state, after.resolved_by) == (QuarantineState.RETRIED, "ann@host")
    assert after.resolved_at is not None
    assert files_under(store.settings.archive_path) == [Path(entry.path).name]
    assert files_under(store.settings.staging_path / "_quarantine") == []
    assert build(store).windows[0].batches[0].source == "a.csv"


def test_a_file_that_still_fails_stays_with_its_new_reason(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", weather_csv("not a time,JFK,1"))
    ingest(store)
    entry = the_entry(store)
    store.staging.fetch(entry.path).write_text("something,else\n1,2\n")

    outcome = retry_entry(store, entry.id, "ann@host")

    assert not outcome.done
    assert "something" in (outcome.left or "")
    assert the_entry(store).reason == outcome.left
    assert store.staging.fetch(entry.path).exists()


def test_a_file_that_was_mended_in_quarantine_is_staged(store: Store, drop: Drop):
    drop(store, "weather", "a.csv", weather_csv("not a time,JFK,1"))
    ingest(store)
    entry = the_entry(store)
    store.staging.fetch(entry.path).write_text(weather_csv("2026-01-01,JFK,1"))

    assert retry_entry(store, entry.id, "ann@host").done
    assert len(readable(store)) == 1


def test_a_file_that_lands_again_and_can_be_staged_is_not_in_quarantine_any_more(make_store: MakeStore, drop: Drop):
    narrow = make_store(DATASETS_YAML.replace(", temp: double", ""))
    content = weather_csv("2026-01-01,JFK,1")
    drop(narrow, "weather", "a.csv", content)
    ingest(narrow)
    store = make_store()
    drop(store, "weather", "again.csv", content)

    ingest(store)

    assert [(entry.state, entry.resolved_by) for entry in entries(store)] == [(QuarantineState.RETRIED, "staging")]
    assert len(readable(store)) == 1
    sweep_orphans(store, older_than_seconds=-60)
    assert files_under(store.settings.staging_path / "_quarantine") == []


def test_rows_that_are_possible_by_now_are_staged_as_a_batch_of_their_own(make_store: MakeStore):
    strict = make_store(STRICT_YAML)
    stage(strict, "weather", OLD, batch_id="b")
    stage(strict, "weather", hourly(2))
    entry = the_entry(strict)
    store = make_store()

    outcome = retry_entry(store, entry.id, "ann@host")

    assert (outcome.done, outcome.rows) == (True, 2)
    assert readable(store) == rows_of(OLD, hourly(2))
    assert retry_batch_id(entry) == f"b/rows/{entry.id}"
    with pytest.raises(EntryNotOpen):
        retry_entry(store, entry.id, "ann@host")
    assert build(store).rows == 4


def test_rows_wait_their_turn_like_any_other_batch(make_store: MakeStore):
    strict = make_store(STRICT_YAML)
    stage(strict, "weather", OLD, batch_id="b")
    entry = the_entry(strict)
    store = make_store(staging_concurrent_ingests=1, staging_turn_timeout_seconds=0.05)
    spec = store.datasets["weather"]
    with store.ledger.read() as tx:
        limits = store.policy(tx, spec).limits

    with turn(store, spec, limits), pytest.raises(TooManyIngests):
        retry_entry(store, entry.id, "ann@host")

    assert the_entry(store).state is QuarantineState.OPEN
    assert files_under(store.settings.staging_path / "weather") == []
    assert retry_entry(store, entry.id, "ann@host").rows == 2


def test_rows_for_which_there_is_no_room_leave_no_segment_behind(make_store: MakeStore):
    strict = make_store(STRICT_YAML)
    stage(strict, "weather", OLD, batch_id="b")
    entry = the_entry(strict)
    store = make_store(staging_max_pending=1)

    with pytest.raises(StagingQueueFull), at(CrashPoint.SEGMENT_IN_PLACE, lambda: stage(store, "weather", hourly(1))):
        retry_entry(store, entry.id, "ann@host")

    assert len(files_under(store.settings.staging_path / "weather")) == 1


def test_rows_of_one_batch_are_retried_without_those_of_the_others(make_store: MakeStore, drop: Drop):
    strict = make_store(STRICT_YAML)
    drop(strict, "weather", "a.csv", weather_csv("2025-01-01,JFK,1", "2026-01-01,JFK,2"))
    drop(strict, "weather", "b.csv", weather_csv("2025-02-01,LGA,3", "2026-01-01,LGA,4"))
    ingest(strict)
    store = make_store()
    (a,) = [entry for entry in entries(store) if entry.source == "a.csv"]

    retry_entry(store, a.id, "ann@host")

    assert [row[2] for row in readable(store)] == [1.0, 2.0, 4.0]
    assert the_entry(store).source == "b.csv"
    retry_entry(store, the_entry(store).id, "ann@host")
    assert [row[2] for row in readable(store)] == [1.0, 3.0, 2.0, 4.0]


def test_rows_that_are_still_impossible_stay_and_the_others_go(make_store: MakeStore):
    strict = make_store(STRICT_YAML)
    stage(strict, "weather", concat(OLD, NEVER), batch_id="b")
    first = the_entry(strict)
    store = make_store()

    outcome = retry_entry(store, first.id, "ann@host")

    assert (outcome.done, outcome.rows, outcome.left) == (True, 2, "1 rows: the time is null")
    left = the_entry(store)
    assert (left.rows, left.reason, left.batch_id) == (1, "1 rows: the time is null", f"b/rows/{first.id}")
    again = retry_entry(store, left.id, "ann@host")
    assert (again.done, again.rows) == (False, 0)
    assert the_entry(store).id == left.id
    assert readable(store) == rows_of(OLD)
    assert kept_rows(store) == rows_of(NEVER)
    assert retry_batch_id(left) == f"b/rows/{left.id}"


def test_a_retry_of_which_the_ledger_knows_already_changes_nothing(make_store: MakeStore):
    """The process ends after the rows are acknowledged; the same transaction has resolved the entry."""
    strict = make_store(STRICT_YAML)
    stage(strict, "weather", OLD)
    entry = the_entry(strict)
    store = make_store()

    with dies_at(CrashPoint.BATCHES_ACKNOWLEDGED):
        retry_entry(store, entry.id, "ann@host")

    assert readable(store) == rows_of(OLD)
    with pytest.raises(EntryNotOpen):
        retry_entry(store, entry.id, "ann@host")


def test_long_batch_ids_stay_within_what_the_ledger_holds(make_store: MakeStore):
    strict = make_store(STRICT_YAML)
    stage(strict, "weather", OLD, batch_id="x" * 255)
    entry = the_entry(strict)

    assert len(retry_batch_id(entry)) <= 255
    assert retry_entry(make_store(), entry.id, "ann@host").done


@pytest.mark.long
@pytest.mark.parametrize("place", ["old", "quarantine"])
def test_a_segment_restored_from_a_backup_goes_back_to_the_queue(store: Store, place: str):
    path = set_segment_aside(store)
    entry = the_entry(store)
    assert not retry_entry(store, entry.id, "ann@host").done
    backup = path.with_name("backup")
    shutil.copyfile(backup, path if place == "old" else store.staging.fetch(entry.path))

    outcome = retry_entry(store, entry.id, "ann@host")

    assert (outcome.done, outcome.rows) == (True, 24)
    assert readable(store) == rows_of(hourly(24))
    with store.ledger.read() as tx:
        assert queue_states(tx)["weather"].pending_batches == 1
    sweep_orphans(store, older_than_seconds=-60)
    assert files_under(store.settings.staging_path / "_quarantine") == []
    assert build(store).rows == 24
    assert published(store) == readable(store) == rows_of(hourly(24))
    unlink_published_segments(store, now=1 << 62)
    assert not path.exists()


def test_a_segment_whose_file_is_gone_can_be_restored(make_store: MakeStore):
    store = make_store(build_max_attempts=1)
    path = segment_file(store, stage(store, "weather", hourly(24)).segment_id)
    backup = path.rename(path.with_name("backup"))
    assert flush_windows(store, BuildOrder("weather", owner="the test")) is None
    entry = the_entry(store)

    with pytest.raises(EntryUnusable, match=path.name):
        retry_entry(store, entry.id, "ann@host")
    backup.rename(path)

    assert retry_entry(store, entry.id, "ann@host").rows == 24
    assert build(store).rows == 24


@pytest.mark.long
def test_a_backup_of_another_segment_is_not_taken(store: Store):
    path = set_segment_aside(store)
    shutil.copyfile(segment_file(store, stage(store, "weather", hourly(3)).segment_id), path)

    outcome = retry_entry(store, the_entry(store).id, "ann@host")

    assert (outcome.done, outcome.rows) == (False, 0)
    assert "3 rows were read where the ledger has 24" in (outcome.left or "") or "checksum" in (outcome.left or "")
    assert readable(store) == rows_of(hourly(3))


def test_a_disk_that_fails_in_a_retry_is_a_clear_error_and_nothing_is_lost(store: Store):
    path = set_segment_aside(store)
    shutil.copyfile(path.with_name("backup"), store.staging.fetch(the_entry(store).path))

    with failing_calls({1}, errno.EIO, lambda: None), pytest.raises(EntryNotRetried, match="Input/output error"):
        retry_entry(store, the_entry(store).id, "ann@host")

    assert retry_entry(store, the_entry(store).id, "ann@host").rows == 24
    assert readable(store) == rows_of(hourly(24))


def test_what_cannot_be_removed_after_a_retry_is_left_to_the_sweep(store: Store, monkeypatch: pytest.MonkeyPatch):
    path = set_segment_aside(store)
    kept = store.staging.fetch(the_entry(store).path)
    shutil.copyfile(path.with_name("backup"), kept)
    unlink = os.unlink

    def fail(file: Path, **options: object) -> None:
        if Path(file) == kept:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", fail)
        assert retry_entry(store, the_entry(store).id, "ann@host").rows == 24

    assert kept.exists()
    sweep_orphans(store, older_than_seconds=-60)
    assert not kept.exists()
    assert readable(store) == rows_of(hourly(24))


@pytest.mark.long
def test_discarding_removes_the_bytes_and_remembers_who_and_when(make_store: MakeStore, drop: Drop):
    store = with_an_entry_of_each_kind(make_store, drop)
    kinds = {entry.kind: entry for entry in entries(store)}
    assert set(kinds) == set(QuarantineKind)

    for entry in kinds.values():
        assert store.staging.fetch(entry.path).exists()
        assert discard_entry(store, entry.id, "ann@host").resolved_by == "ann@host"
        assert not store.staging.fetch(entry.path).exists()

    assert {entry.state for entry in entries(store)} == {QuarantineState.DISCARDED}
    assert all(entry.resolved_at for entry in entries(store))
    assert readable(store) == []
    with pytest.raises(EntryNotOpen, match="discarded before, by ann@host"):
        discard_entry(store, kinds[QuarantineKind.ROWS].id, "bob@host")
    with pytest.raises(UnknownEntry, match="no quarantine entry 99"):
        open_entry(store, 99)


def test_bytes_that_another_entry_needs_are_kept(make_store: MakeStore, drop: Drop):
    store = make_store(STRICT_YAML)
    for name in ("a", "b"):
        drop(store, "weather", f"{name}.csv", weather_csv(f"2025-01-01,{name},1"))
    ingest(store)
    a, b = entries(store)
    assert a.path == b.path

    discard_entry(store, a.id, "ann@host")
    assert store.staging.fetch(b.path).exists()
    discard_entry(store, b.id, "ann@host")
    assert not store.staging.fetch(b.path).exists()


def test_a_crash_after_the_ledger_was_told_of_a_discard_leaves_bytes_that_are_swept(
    store: Store, drop: Drop, monkeypatch: pytest.MonkeyPatch
):
    drop(store, "weather", "a.csv", "nonsense")
    ingest(store)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            discard_entry(store, the_entry(store).id, "ann@host")
    assert len(files_under(store.settings.staging_path / "_quarantine")) == 1

    sweep_orphans(store, older_than_seconds=-60)

    assert files_under(store.settings.staging_path / "_quarantine") == []


def test_an_open_entry_is_never_swept(make_store: MakeStore, drop: Drop):
    store = with_an_entry_of_each_kind(make_store, drop)

    sweep_orphans(store, older_than_seconds=-60)

    assert all(store.staging.fetch(entry.path).exists() for entry in entries(store))


@pytest.mark.long
def test_a_look_shows_how_an_entry_begins(make_store: MakeStore, drop: Drop):
    store = make_store(STRICT_YAML)
    path = set_segment_aside(store)
    stage(store, "weather", concat(OLD, NEVER))
    drop(store, "weather", "a.csv", "non\nsense")
    ingest(store)
    looks = {entry.kind: preview(store, entry) for entry in entries(store)}

    assert looks[QuarantineKind.BATCH].lines == ("non", "sense")
    rows = looks[QuarantineKind.ROWS]
    assert rows.columns == ("ts", "station", "temp", "_problem")
    assert [row[3] for row in rows.rows] == ["early", "early", "null"]
    assert "it cannot be read" in (looks[QuarantineKind.SEGMENT].problem or "")
    shutil.copyfile(path.with_name("backup"), store.staging.fetch(entries(store)[0].path))
    assert len(preview(store, entries(store)[0]).rows) == 10


def test_a_file_of_no_text_is_not_shown(store: Store, drop: Drop):
    drop(store, "weather", "a.parquet", b"PAR1\0\0nonsense")
    ingest(store)

    assert preview(store, the_entry(store)).problem == "it is no text"


def test_staging_a_file_by_hand_that_fails_sets_nothing_aside(store: Store, tmp_path: Path):
    from timestore_pipeline.staging.stage import stage_file

    path = tmp_path / "a.csv"
    path.write_text("nonsense")
    with pytest.raises(BatchRejected):
        stage_file(store, "weather", path)

    assert entries(store) == []


def concat(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables)


def kept_rows(store: Store) -> Rows:
    """Every row that open entries hold: refused rows from their files, rows of damaged segments by their batches."""
    found: list[tuple] = []
    with store.ledger.read() as tx:
        for entry in open_entries(tx):
            if entry.kind is QuarantineKind.ROWS:
                ordinal = ordinal_of_batch(tx, entry.dataset, entry.batch_id)
                table = pq.read_table(store.staging.fetch(entry.path))
                found += [
                    (row["ts"], row["station"], row["temp"]) for row in table.to_pylist() if row["_batch"] == ordinal
                ]
    return in_order(found)


ACTIONS = ("stage", "stage with impossible rows", "build", "damage", "restore", "retry", "widen", "sweep")


@pytest.mark.long
@given(actions=st.lists(st.sampled_from(ACTIONS), min_size=3, max_size=14))
@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_readable_once_or_in_quarantine_once(make_store: MakeStore, home: Path, actions: list[str]):
    """Invariant 2, with segments that break and are restored between everything that may happen to them."""
    shutil.rmtree(home / "data", ignore_errors=True)
    store = make_store(STRICT_YAML, build_max_attempts=1, staging_retention_seconds=0)
    staged: dict[str, Rows] = {}
    backups: dict[str, bytes] = {}
    serial = 0
    for action in actions:
        if action.startswith("stage"):
            serial += 1
            table = weather(*((NEW_YEAR + timedelta(hours=12 * n), f"s{serial}", float(n)) for n in range(4)))
            if action != "stage":
                early = weather((NEW_YEAR - timedelta(days=serial), f"s{serial}", -1.0), (None, f"s{serial}", -2.0))
                table = concat(table, early)
            receipt = stage(store, "weather", table)
            staged[f"s{serial}"] = rows_of(table)
            assert receipt.segment_id
            backups[receipt.segment_id] = segment_file(store, receipt.segment_id).read_bytes()
        elif action == "build":
            try_to_build(store)
        elif action == "damage":
            for segment_id in list(backups)[-1:]:
                path = segment_file(store, segment_id)
                if path.exists():
                    path.write_bytes(path.read_bytes()[:-1])
                    try_to_build(store)
        elif action == "restore":
            for entry in entries(store):
                if entry.state is QuarantineState.OPEN and entry.kind is QuarantineKind.SEGMENT:
                    store.staging.fetch(entry.path).write_bytes(backups[entry.batch_id])
        elif action == "retry":
            for entry in entries(store):
                if entry.state is QuarantineState.OPEN:
                    retry_entry(store, entry.id, "ann@host")
        elif action == "widen":
            store = make_store(DATASETS_YAML, build_max_attempts=1, staging_retention_seconds=0)
        else:
            unlink_published_segments(store)
            sweep_orphans(store, older_than_seconds=-60)
        assert in_order([*readable(store), *kept_rows(store), *lost_rows(store, backups)]) == in_order(
            row for rows in staged.values() for row in rows
        )


def try_to_build(store: Store) -> None:
    flush_windows(store, BuildOrder("weather", owner="the test"))


def lost_rows(store: Store, backups: dict[str, bytes]) -> Rows:
    """The rows of slices in quarantine, taken from what their segments were before they were damaged."""
    found: list[tuple] = []
    for entry in entries(store):
        if entry.state is not QuarantineState.OPEN or entry.kind is not QuarantineKind.SEGMENT:
            continue
        copy = store.settings.temp_path / "copy.duckdb"
        copy.write_bytes(backups[entry.batch_id])
        with store.ledger.read() as tx:
            pieces = quarantined_slices(tx, entry.id)
        with store.connect(copy.parent) as connection:
            connection.execute(f"ATTACH '{copy}' AS copy (READ_ONLY)")
            for piece in pieces:
                found += connection.execute(
                    "SELECT ts, station, temp FROM copy.rows WHERE epoch_us(date_trunc('day', ts)) = ?",
                    [piece.window_start],
                ).fetchall()
    return in_order(found)
