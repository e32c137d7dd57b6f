"""What lies on the disk besides staging and tables: it is bounded, counted, and not kept for ever."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from timestore_pipeline.errors import BatchRejected, GuardrailExceeded
from timestore_pipeline.ledger.quarantine import QuarantineEntry, find_entry, open_entries
from timestore_pipeline.ledger.schema import quarantine
from timestore_pipeline.ledger.states import QuarantineKind, QuarantineState
from timestore_pipeline.metrics import exposition
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import from_micros
from timestore_pipeline.staging.frame_rows import Incoming, stage_together
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.archived_files import find_old_archive, remove_old_archive
from timestore_pipeline.upkeep.maintenance import MaintenanceReport, in_words, maintain
from timestore_pipeline.upkeep.quarantine_entries import discard_old_entries
from timestore_pipeline_tests.builders import NEW_YEAR, files_under, hourly, ingest, readable, weather
from timestore_pipeline_tests.conftest import WEATHER_CSV, MakeStore

DAY = 86_400_000_000
BAD_CSV = "ts,station,temp\n1990-01-01T00:00:00Z,JFK,{}\n2026-01-01T00:00:00Z,JFK,{}\n"


def only_bad(number: int):
    """A batch of which no row can be staged."""
    return weather((NEW_YEAR.replace(year=1990) + timedelta(seconds=number), "JFK", float(number)))


def run(store: Store, **options) -> MaintenanceReport:
    return maintain(store, owner="the test", **options)


def entries(store: Store) -> list[QuarantineEntry]:
    with store.ledger.read() as tx:
        return open_entries(tx)


@pytest.mark.long
def test_who_sends_nothing_but_bad_rows_fills_no_disk_and_holds_up_nobody(make_store: MakeStore, drop):
    store = make_store(quarantine_max_dataset_bytes=20_000)
    spec = store.datasets["weather"]

    def offer(number: int):
        return Incoming.of("weather", only_bad(number), f"bad {number}", "stage()")

    good = Incoming.of("weather", hourly(2), "good", "stage()")
    answers = [stage_together(store, spec, [offer(number)]).answers[0] for number in range(40)]
    *together, honest = stage_together(store, spec, [offer(100), offer(101), good]).in_order
    drop(store, "weather", "bad.csv", BAD_CSV.format(1, 2))
    drop(store, "weather", "a.csv", WEATHER_CSV)
    report = ingest(store)["weather"]

    refused = [answer for answer in [*answers, *together] if isinstance(answer, BatchRejected)]
    assert 30 < len(refused) < 42
    assert len(entries(store)) == 42 - len(refused) + 1
    assert "TIMESTORE_QUARANTINE_MAX_DATASET_BYTES" in str(refused[0])
    assert "before the dataset's start" in str(refused[0])
    assert not isinstance(honest, Exception)
    assert [receipt.source for receipt in report.staged] == ["a.csv"]
    assert [entry.source for entry in report.quarantined] == ["bad.csv"]  # whole: it lay on the disk before
    assert report.quarantined[0].kind is QuarantineKind.BATCH
    assert len(readable(store)) == 5


def test_what_is_in_quarantine_counts_in_the_guardrail_of_all(make_store: MakeStore):
    store = make_store(staging_guardrail_mode="enforce", staging_max_total_bytes=1_000)
    stage(store, "weather", only_bad(1))

    with pytest.raises(GuardrailExceeded, match="MAX_TOTAL_BYTES"):
        stage(store, "weather", hourly(1))


def test_files_and_rows_are_discarded_when_they_have_been_in_quarantine_for_long_enough(store: Store, drop):
    drop(store, "weather", "bad.csv", "bad")
    ingest(store)
    stage(store, "weather", only_bad(1))
    kept = files_under(store.settings.staging_path / "_quarantine")
    assert len(kept) == 2

    assert run(store, now=now_micros() + 89 * DAY).discarded == ()
    look = run(store, now=now_micros() + 91 * DAY, dry_run=True)
    assert [entry.source for entry in look.discarded] == ["bad.csv", "stage()"]
    assert [line for line in in_words(look) if "would be discarded" in line]
    assert files_under(store.settings.staging_path / "_quarantine") == kept
    done = run(store, now=now_micros() + 91 * DAY)

    assert len(done.discarded) == 2
    assert done.problems == ()
    assert done.freed.bytes > 0
    assert [name for name in files_under(store.settings.staging_path / "_quarantine") if name in kept] == []
    with store.ledger.read() as tx:
        found = find_entry(tx, done.discarded[0].id)
    assert found is not None
    assert (found.state, found.resolved_by) == (QuarantineState.DISCARDED, "retention")


def test_staged_rows_that_cannot_be_read_are_kept_however_old(store: Store, drop):
    drop(store, "weather", "bad.csv", "bad")
    ingest(store)
    store.ledger.transact(lambda tx: tx.execute(quarantine.update().values(kind=QuarantineKind.SEGMENT.value)))

    assert discard_old_entries(store, now=now_micros() + 9_000 * DAY) == []


def test_archived_files_are_removed_by_the_day_of_their_folder_whatever_their_own_time(store: Store, drop):
    old = drop(store, "weather", "old.csv", WEATHER_CSV)
    os.utime(old, (0, 0))
    ingest(store)
    archive = store.settings.archive_path
    ours = archive / "weather" / f"{from_micros(now_micros()):%Y-%m-%d}"
    (archive / "weather" / "notes").mkdir()
    for other in ("weather/notes/old.csv", "weather/readme.csv", f"weather/{ours.name}-x", "mine.csv"):
        (archive / other).write_text("mine")

    assert remove_old_archive(store, now=now_micros() + 89 * DAY).files == 0
    assert find_old_archive(store, now=now_micros() + 92 * DAY).files == 1
    assert (ours / "old.csv").exists()
    report = run(store, now=now_micros() + 92 * DAY)

    assert (report.archived.files, report.archived.bytes) == (1, len(WEATHER_CSV))
    assert not ours.exists()
    assert files_under(archive) == sorted(["old.csv", "readme.csv", f"{ours.name}-x", "mine.csv"])


def test_an_archive_has_no_more_bytes_than_it_may_and_the_oldest_go_first(make_store: MakeStore, drop):
    size = len(WEATHER_CSV)
    store = make_store(landing_archive_max_dataset_bytes=2 * size, landing_archive_retention_seconds=0)
    archive = store.settings.archive_path / "weather"
    for day in ("2026-01-01", "2026-01-02", "2026-01-03"):
        for name in ("a.csv", "b.csv"):
            (archive / day).mkdir(parents=True, exist_ok=True)
            (archive / day / name).write_text(WEATHER_CSV)
    drop(store, "events", "a.csv", "at,kind\n1767225600000,start\n")
    ingest(store)
    run(store)  # sees how much there is

    assert run(store, dry_run=True).archived.files == 4
    report = run(store)

    assert (report.archived.files, report.archived.bytes) == (4, 4 * size)
    assert files_under(archive) == ["a.csv", "b.csv"]
    assert (archive / "2026-01-03" / "a.csv").exists()
    assert len(files_under(store.settings.archive_path / "events")) == 1
    assert run(store).archived.files == 0
    assert archived_bytes(store) == 2 * size


def test_an_archive_of_many_bytes_goes_in_several_passes(make_store: MakeStore, drop):
    store = make_store(landing_archive_max_dataset_bytes=1, maintenance_max_removals=1)
    for number in range(3):
        drop(store, "weather", f"{number}.csv", WEATHER_CSV.replace("1.5", str(number)))
    ingest(store)
    run(store)

    assert [run(store).archived.files for _ in range(4)] == [1, 1, 1, 0]


def archived_bytes(store: Store, dataset: str = "weather") -> float:
    samples = dict(line.rsplit(" ", 1) for line in exposition(store).decode().splitlines() if not line.startswith("#"))
    return float(samples[f'timestore_staging_disk_usage_bytes{{component="archive",dataset="{dataset}"}}'])


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_is_removed_at_once_than_it_says(make_store: MakeStore, drop, most: int):
    store = make_store(maintenance_max_removals=most)
    for number in range(4):
        drop(store, "weather", f"{number}.csv", WEATHER_CSV.replace("1.5", str(number)))
        drop(store, "weather", f"bad {number}.csv", f"bad {number}")
    ingest(store)

    report = run(store, now=now_micros() + 92 * DAY)

    assert (report.archived.files, len(report.discarded)) == (most, most)


def test_zero_keeps_everything(make_store: MakeStore, drop):
    store = make_store(quarantine_retention_seconds=0, landing_archive_retention_seconds=0)
    drop(store, "weather", "a.csv", WEATHER_CSV)
    drop(store, "weather", "bad.csv", "bad")
    ingest(store)

    report = run(store, now=now_micros() + 9_000 * DAY)

    assert (report.discarded, report.archived.files) == ((), 0)


def test_the_metrics_say_what_archive_and_work_take(store: Store, drop):
    drop(store, "weather", "a.csv", WEATHER_CSV)
    ingest(store)
    (store.settings.temp_path / "spilled").write_bytes(b"x" * 100_000)

    run(store)

    samples = dict(line.rsplit(" ", 1) for line in exposition(store).decode().splitlines() if not line.startswith("#"))
    archived = samples['timestore_staging_disk_usage_bytes{component="archive",dataset="weather"}']
    assert float(archived) == len(WEATHER_CSV)
    assert float(samples["timestore_work_bytes"]) >= 100_000
