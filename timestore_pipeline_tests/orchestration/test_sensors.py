"""What the sensors ask for, what they do not ask for, and what they say then."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.landing.files import scan_landing
from timestore_pipeline.ledger.builds import NewBuild, builds_in_flight
from timestore_pipeline.ledger.landing import begin_readings, landing_backlogs
from timestore_pipeline.ledger.limits import LimitName, Override, set_override
from timestore_pipeline.ledger.windows import published_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.operating.drain import stop_intake
from timestore_pipeline.orchestration.runs import process_is_gone
from timestore_pipeline.orchestration.sensors import bounded
from timestore_pipeline.staging.suspects import reading_id
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import claim_slices
from timestore_pipeline_tests.conftest import DATASETS_YAML, WEATHER_CSV, MakeStore
from timestore_pipeline_tests.fault_proxy import denied
from timestore_pipeline_tests.object_store import Bucket
from timestore_pipeline_tests.orchestration.conftest import Location

Drop = Callable[[Store, str, str, str | bytes], Path]
Locate = Callable[[Store], Location]

TWINS = DATASETS_YAML + DATASETS_YAML.split("datasets:")[1].split("  events:")[0].replace("weather", "climate")
EVENTS_CSV = "at,kind\n1767225600000,start\n1767312000000,stop\n"


@pytest.fixture
def here(make_store: MakeStore, location: Locate) -> Location:
    """A location whose datasets are due from the first staged row on."""
    return location(make_store(staging_flush_max_rows=1))


def requests_of(tick: tuple[Any, Any]) -> list[dg.RunRequest]:
    return list(tick[1].run_requests or [])


def words_of(tick: tuple[Any, Any]) -> str:
    assert not tick[1].run_requests
    return tick[1].skip_message or ""


def assets_of(request: dg.RunRequest) -> set[str]:
    return {"/".join(key.path) for key in request.asset_selection or ()}


def stage(here: Location, drop: Drop, dataset: str = "weather", content: str = WEATHER_CSV) -> None:
    drop(here.store, dataset, f"{uuid.uuid4()}.csv", content)
    here.materialize(f"staging/{dataset}")


def launch(here: Location, request: dg.RunRequest, sensor: str, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    """Leave behind the run that Dagster would have made of a request."""
    return here.instance.create_run_for_job(
        here.definitions.resolve_job_def(request.job_name or "ingest"),
        run_config=request.run_config,
        tags={**request.tags, "dagster/sensor_name": sensor},
        status=status,
        asset_selection=frozenset(request.asset_selection or ()),
    )


class TestLandingSensor:
    def test_one_run_for_all_datasets_with_files(self, here: Location, drop: Drop):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        drop(here.store, "events", "a.csv", EVENTS_CSV)

        (request,) = requests_of(here.tick("landing_sensor"))

        assert assets_of(request) == {"staging/weather", "staging/events"}
        assert request.tags["timestore/datasets"] == "events,weather"
        assert request.tags["timestore/trigger"] == "landing"
        assert request.tags["timestore.dataset/weather"] == request.tags["timestore.dataset/events"] == "landing"

    def test_a_dataset_with_a_file_that_may_have_ended_a_run_gets_one_of_its_own(self, here: Location, drop: Drop):
        for name in ("weather", "events"):
            drop(here.store, name, "a.csv", EVENTS_CSV)
        (suspect,) = scan_landing(here.store).of("weather")
        with here.store.ledger.write() as tx:
            begin_readings(tx, "weather", [reading_id(suspect)], 0)

        requests = requests_of(here.tick("landing_sensor"))

        assert [assets_of(request) for request in requests] == [{"staging/events"}, {"staging/weather"}]
        assert requests[1].tags["timestore/datasets"] == "weather"

    def test_a_tick_that_asks_for_a_run_says_why(self, here: Location, drop: Drop):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        drop(here.store, "weather", "b.csv", WEATHER_CSV)

        assert here.tick_log("landing_sensor") == ["weather: 2 files of 0.0 MB are ready, an ingest run is asked for"]

    def test_only_datasets_with_files_are_in_the_run(self, here: Location, drop: Drop):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        drop(here.store, "events", "a.csv.tmp", EVENTS_CSV)

        (request,) = requests_of(here.tick("landing_sensor"))

        assert assets_of(request) == {"staging/weather"}

    @pytest.mark.long
    def test_while_intake_is_paused_files_wait_and_it_says_by_whom(self, here: Location, drop: Drop):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        drop(here.store, "events", "a.csv", EVENTS_CSV)
        stop_intake(here.store, ["weather"], "ann@host", "we move")

        (request,) = requests_of(here.tick("landing_sensor"))
        assert assets_of(request) == {"staging/events"}

        stop_intake(here.store, ["events"], "ann@host", "we move")
        words = words_of(here.tick("landing_sensor"))
        assert "weather: 1 file waits, intake is paused by ann@host: we move" in words
        assert "'timestore resume events' ends it" in words

    def test_without_files_it_says_so(self, here: Location):
        here.store.settings.landing_path.mkdir(parents=True)

        assert words_of(here.tick("landing_sensor")) == "no dataset has new files"

    def test_what_is_wrong_in_landing_is_said(self, here: Location, drop: Drop):
        drop(here.store, "wether", "a.csv", WEATHER_CSV)

        assert "belongs to no declared dataset" in words_of(here.tick("landing_sensor"))

    @pytest.mark.server
    def test_an_object_store_is_looked_at_with_one_request_and_may_be_away(
        self, make_store: MakeStore, location: Locate, s3_bucket: Bucket
    ):
        here = location(make_store(landing_directory=f"{s3_bucket.url}/landing", landing_after_ingest="delete"))
        uri = here.definitions.resolve_asset_graph().get(dg.AssetKey(["landing", "weather"])).metadata["dagster/uri"]
        assert uri == f"{s3_bucket.url}/landing/weather"

        assert words_of(here.tick("landing_sensor")) == "no dataset has new files"
        s3_bucket.put("landing/weather/a.csv", WEATHER_CSV)
        with s3_bucket.proxy.spoilt(denied(times=None)):
            assert "landing cannot be looked at: LIST" in words_of(here.tick("landing_sensor"))
        (request,) = requests_of(here.tick("landing_sensor"))

        assert [request.operation for request in s3_bucket.proxy.requests] == ["LIST"] * 3
        assert assets_of(request) == {"staging/weather"}
        here.materialize("staging/weather")
        assert here.metadata("staging/weather")[None]["rows"] == 3
        assert s3_bucket.keys() == []

    def test_a_missing_landing_folder_is_said(self, here: Location):
        assert "does not exist" in words_of(here.tick("landing_sensor"))

    @pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
    def test_no_second_run_while_one_waits_or_works(self, here: Location, drop: Drop, status: dg.DagsterRunStatus):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        (request,) = requests_of(here.tick("landing_sensor"))
        launch(here, request, "landing_sensor", status)

        assert f"is {status.value.lower()}" in words_of(here.tick("landing_sensor"))

    def test_files_that_no_run_could_take_are_not_asked_for_at_every_tick(self, here: Location, drop: Drop):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        context, first = here.tick("landing_sensor")
        assert first.run_requests

        again = here.tick("landing_sensor", cursor=context.cursor)

        assert "left 1 files in place" in words_of(again)

    def test_a_new_file_is_asked_for_at_once(self, here: Location, drop: Drop):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        context, _ = here.tick("landing_sensor")
        drop(here.store, "weather", "b.csv", WEATHER_CSV)

        assert requests_of(here.tick("landing_sensor", cursor=context.cursor))

    def test_files_that_no_run_could_take_are_asked_for_again_later(
        self, here: Location, drop: Drop, monkeypatch: pytest.MonkeyPatch
    ):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        context, _ = here.tick("landing_sensor")
        later = time.time() + 31
        monkeypatch.setattr(time, "time", lambda: later)

        assert requests_of(here.tick("landing_sensor", cursor=context.cursor))

    def test_a_cursor_of_another_version_is_forgotten(self, here: Location, drop: Drop):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)

        assert requests_of(here.tick("landing_sensor", cursor='{"weather": 7}'))

    def test_a_full_queue_is_said(self, make_store: MakeStore, location: Locate, drop: Drop):
        here = location(make_store(staging_max_pending=1))
        stage(here, drop)
        drop(here.store, "weather", "b.csv", WEATHER_CSV.replace("1.5", "9.5"))

        assert "staging queue is at its limit of 1 batches" in words_of(here.tick("landing_sensor"))


class TestFlushSensor:
    def test_nothing_staged(self, here: Location):
        assert words_of(here.tick("flush_sensor")) == "nothing is staged"

    def test_a_dataset_that_is_not_due_says_how_far_it_is(self, make_store: MakeStore, location: Locate, drop: Drop):
        here = location(make_store())
        stage(here, drop)

        words = words_of(here.tick("flush_sensor"))

        assert words.startswith("weather: 3 of 50,000 rows")
        assert "of 60 s" in words

    def test_a_due_dataset_gets_a_run_that_shows_its_thresholds_and_windows(self, here: Location, drop: Drop):
        stage(here, drop)

        (request,) = requests_of(here.tick("flush_sensor"))

        assert request.job_name == "partition_build_day"
        assert assets_of(request) == {"partitions/weather"}
        assert request.partition_key is None
        assert request.run_config["ops"]["partitions__weather"]["config"] == {
            "when": "due",
            "first_window": "2026-01-01",
            "last_window": "2026-01-02",
            "flush_max_rows": 1,
            "flush_max_bytes": 134_217_728,
            "flush_max_age_ms": 60_000,
            "flush_late_max_age_ms": 600_000,
            "target_file_bytes": 134_217_728,
            "rebuild": False,
            "trigger": "rows",
        }
        assert request.tags["timestore/trigger"] == "rows"
        assert request.tags["timestore/windows"] == "2026-01-01...2026-01-02"
        assert request.tags["timestore/datasets"] == "weather"
        assert request.tags["timestore.dataset/weather"] == "rows"

    @pytest.mark.long
    def test_a_tick_that_asks_for_a_run_says_why_and_why_not_for_the_others(
        self, make_store: MakeStore, location: Locate, drop: Drop
    ):
        eager = DATASETS_YAML.replace("    window: hour", "    window: hour\n    flush: {max_rows: 2}")
        here = location(make_store(eager))
        stage(here, drop)
        stage(here, drop, "events", EVENTS_CSV)

        launched, waiting = here.tick_log("flush_sensor")

        assert launched.startswith("events: 2 of 2 rows, ")
        assert launched.endswith(": a flush by rows is asked for, windows 2026-01-01T00 … 2026-01-02T00")
        assert waiting.startswith("weather: 3 of 50,000 rows, ")

    @pytest.mark.long
    def test_datasets_that_share_a_run_are_found_by_their_own_trigger(
        self, make_store: MakeStore, location: Locate, drop: Drop
    ):
        twins = TWINS.replace("    window: day", "    window: day\n    flush: {max_age_ms: 0, max_rows: 3}", 1)
        here = location(make_store(twins, staging_flush_max_rows=0, staging_flush_max_age_ms=1))
        stage(here, drop)
        stage(here, drop, "climate")

        (request,) = requests_of(here.tick("flush_sensor"))

        assert request.tags["timestore/trigger"] == "age,rows"
        assert request.tags["timestore/datasets"] == "climate,weather"
        assert request.tags["timestore.dataset/weather"] == "rows"
        assert request.tags["timestore.dataset/climate"] == "age"

    @pytest.mark.long
    def test_the_run_that_it_asks_for_publishes(self, here: Location, drop: Drop):
        stage(here, drop)
        stage(here, drop, "events", EVENTS_CSV)

        for request in requests_of(here.tick("flush_sensor")):
            result = here.definitions.resolve_job_def(request.job_name or "").execute_in_process(
                run_config=request.run_config,
                asset_selection=list(request.asset_selection or ()),
                instance=here.instance,
                tags=dict(request.tags),
            )
            assert result.success

        with here.store.ledger.read() as tx:
            assert {name: rows for name, (_, rows, _, _) in published_totals(tx).items()} == {"weather": 3, "events": 2}
        assert set(here.metadata("partitions/events")) == {"2026-01-01T00", "2026-01-02T00"}
        assert words_of(here.tick("flush_sensor")) == "nothing is staged"

    @pytest.mark.long
    def test_datasets_of_equal_partitions_share_a_run(self, make_store: MakeStore, location: Locate, drop: Drop):
        here = location(make_store(TWINS, staging_flush_max_rows=1))
        stage(here, drop)
        stage(here, drop, "climate")

        (request,) = requests_of(here.tick("flush_sensor"))

        assert assets_of(request) == {"partitions/weather", "partitions/climate"}

    @pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING])
    def test_a_dataset_whose_run_is_on_its_way_is_not_asked_for_again(
        self, here: Location, drop: Drop, status: dg.DagsterRunStatus
    ):
        stage(here, drop)
        (request,) = requests_of(here.tick("flush_sensor"))
        run = launch(here, request, "flush_sensor", status)

        assert f"weather: run {run.run_id[:8]} waits for its turn" in words_of(here.tick("flush_sensor"))

    @pytest.mark.long
    def test_other_datasets_are_asked_for_meanwhile(self, here: Location, drop: Drop):
        stage(here, drop)
        (request,) = requests_of(here.tick("flush_sensor"))
        launch(here, request, "flush_sensor", dg.DagsterRunStatus.NOT_STARTED)
        stage(here, drop, "events", EVENTS_CSV)

        (other,) = requests_of(here.tick("flush_sensor"))

        assert assets_of(other) == {"partitions/events"}

    def test_after_a_failed_run_it_waits(self, here: Location, drop: Drop):
        stage(here, drop)
        (request,) = requests_of(here.tick("flush_sensor"))
        launch(here, request, "flush_sensor", dg.DagsterRunStatus.FAILURE)

        assert "weather: the last run failed, the sensor asks again in " in words_of(here.tick("flush_sensor"))

    @pytest.mark.long
    def test_a_success_ends_the_waiting(self, here: Location, drop: Drop):
        stage(here, drop)
        (request,) = requests_of(here.tick("flush_sensor"))
        launch(here, request, "flush_sensor", dg.DagsterRunStatus.FAILURE)
        flush_windows(here.store, BuildOrder("weather", owner="cli:here:1"))
        stage(here, drop, content=WEATHER_CSV.replace("1.5", "9.5"))

        assert requests_of(here.tick("flush_sensor"))

    @pytest.mark.long
    def test_a_build_whose_run_has_ended_is_settled_and_asked_for_again(self, here: Location, drop: Drop):
        stage(here, drop)
        (request,) = requests_of(here.tick("flush_sensor"))
        flush_windows(here.store, BuildOrder("weather", owner="cli:here:1"))
        stage(here, drop, content=WEATHER_CSV.replace("1.5", "9.5"))
        run = launch(here, request, "nobody", dg.DagsterRunStatus.FAILURE)
        claim(here.store, owner=run.run_id)

        (again,) = requests_of(here.tick("flush_sensor"))

        assert assets_of(again) == {"partitions/weather"}
        with here.store.ledger.read() as tx:
            assert builds_in_flight(tx) == []

    def test_a_build_of_an_owner_that_this_instance_does_not_know_is_left_to_its_lease(
        self, here: Location, drop: Drop
    ):
        stage(here, drop)
        claim(here.store, owner=str(uuid.uuid4()))

        assert "in flight" in words_of(here.tick("flush_sensor"))

    def test_staged_rows_of_a_dataset_that_is_gone_are_said(self, make_store: MakeStore, location: Locate, drop: Drop):
        stage(location(make_store()), drop)
        here = location(make_store("datasets: {events: {time: {column: at, unit: ms}, window: hour}}"))

        assert "weather: 3 rows are staged but the dataset is not declared any more" in words_of(
            here.tick("flush_sensor")
        )


class TestWithoutAPlace:
    def test_files_wait_without_a_run(self, here: Location, drop: Drop):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        archive = here.store.archive.root
        hidden = archive.rename(archive.with_name("hidden"))

        assert "archive: " in words_of(here.tick("landing_sensor"))
        with here.store.ledger.read() as tx:
            assert landing_backlogs(tx)["weather"].files == 1

        hidden.rename(archive)
        assert requests_of(here.tick("landing_sensor"))

    def test_what_is_staged_waits_without_a_run(self, here: Location, drop: Drop):
        stage(here, drop)
        tables = here.store.tables.root
        hidden = tables.rename(tables.with_name("hidden"))

        words = words_of(here.tick("flush_sensor"))
        assert "is not there" in words
        assert "TIMESTORE_TABLES_URL" in words

        hidden.rename(tables)
        assert requests_of(here.tick("flush_sensor"))


class TestMetricsSensor:
    def test_without_a_gateway_it_says_that_metrics_are_off(self, here: Location):
        assert "TIMESTORE_PUSHGATEWAY_URL is not set" in words_of(here.tick("metrics_sensor"))

    @pytest.mark.long
    def test_a_gateway_that_is_down_is_said_and_fails_nothing(
        self, make_store: MakeStore, location: Locate, drop: Drop, free_port: int
    ):
        here = location(make_store(pushgateway_url=f"http://127.0.0.1:{free_port}"))
        stage(here, drop)

        assert here.materialize("partitions/weather").success
        assert "were not pushed" in words_of(here.tick("metrics_sensor"))


class TestHousekeepingSensor:
    def test_a_run_without_a_process_is_ended(self, here: Location, drop: Drop, tmp_path: Path):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        (request,) = requests_of(here.tick("landing_sensor"))
        run = launch(here, with_parent(request, tmp_path / "gone"), "landing_sensor", dg.DagsterRunStatus.STARTED)

        assert f"run {run.run_id[:8]} was ended" in words_of(here.tick("housekeeping_sensor"))

        ended = here.instance.get_run_by_id(run.run_id)
        assert ended
        assert ended.status is dg.DagsterRunStatus.FAILURE


class TestRunsWithoutAProcess:
    def test_a_server_that_is_there_keeps_its_runs(self, here: Location, drop: Drop, tmp_path: Path):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        (request,) = requests_of(here.tick("landing_sensor"))
        with socket.socket(socket.AF_UNIX) as server:
            # A path in a test's folder may be longer than a socket's name may be.
            path = Path("server")
            server.bind(str(path))
            server.listen()
            run = launch(here, with_parent(request, path), "landing_sensor", dg.DagsterRunStatus.STARTED)
            assert not is_gone(here, run)

        assert is_gone(here, run)

    def test_a_run_that_only_waits_has_no_process_to_lose(self, here: Location, drop: Drop, tmp_path: Path):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        (request,) = requests_of(here.tick("landing_sensor"))
        run = launch(here, with_parent(request, tmp_path / "gone"), "landing_sensor", dg.DagsterRunStatus.NOT_STARTED)

        assert not is_gone(here, run)

    @pytest.mark.long
    def test_ingest_goes_on_after_a_crash_of_everything(self, here: Location, drop: Drop):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        context, tick = here.tick("landing_sensor")
        request = with_parent(tick.run_requests[0], Path("gone"))
        launch(here, request, "landing_sensor", dg.DagsterRunStatus.STARTED)
        drop(here.store, "weather", "b.csv", WEATHER_CSV)

        assert requests_of(here.tick("landing_sensor", cursor=context.cursor))


def is_gone(here: Location, run: dg.DagsterRun) -> bool:
    record = here.instance.get_run_record_by_id(run.run_id)
    assert record
    return process_is_gone(here.instance, record)


def with_parent(request: dg.RunRequest, path: os.PathLike[str]) -> dg.RunRequest:
    info = f'{{"host": "localhost", "socket": "{os.fspath(path)}"}}'
    return dg.RunRequest(
        job_name=request.job_name,
        run_config=request.run_config,
        tags={**request.tags, ".dagster/grpc_info": info},
        asset_selection=list(request.asset_selection or ()),
    )


def claim(store: Store, owner: str) -> None:
    with store.ledger.write() as tx:
        assert claim_slices(
            tx, NewBuild("weather", owner=owner, trigger="rows", lease_micros=600_000_000, now=now_micros())
        )


def test_the_text_of_a_tick_is_bounded():
    text = bounded([f"dataset {index}" for index in range(1_000)])

    assert len(text.splitlines()) == 41
    assert text.endswith("… and 960 more")


class TestBacklog:
    def backlog(self, here: Location) -> dict[str, int]:
        with here.store.ledger.read() as tx:
            return {name: backlog.files for name, backlog in landing_backlogs(tx).items()}

    @pytest.mark.long
    def test_files_that_wait_for_room_are_the_backlog_until_they_are_staged(
        self, make_store: MakeStore, location: Locate, drop: Drop
    ):
        here = location(make_store(staging_max_pending=1))
        for number in range(3):
            drop(here.store, "weather", f"{number}.csv", f"{WEATHER_CSV}2026-01-0{number + 1}T05:00:00Z,JFK,1\n")
        here.tick("landing_sensor")
        assert self.backlog(here) == {"weather": 3}

        here.materialize("staging/weather")
        assert "the staging queue is at its limit of 1 batches" in words_of(here.tick("landing_sensor"))
        assert self.backlog(here) == {"weather": 2}

        with here.store.ledger.write() as tx:
            set_override(tx, Override("weather", LimitName.MAX_PENDING, 9, "the test", now_micros()))
        assert requests_of(here.tick("landing_sensor")), "a raised limit is seen by the next tick"
        here.materialize("staging/weather")
        here.tick("landing_sensor")
        assert self.backlog(here) == {}

    def test_it_is_counted_while_an_ingest_run_is_on_its_way(self, here: Location, drop: Drop):
        drop(here.store, "weather", "a.csv", WEATHER_CSV)
        (request,) = requests_of(here.tick("landing_sensor"))
        launch(here, request, "landing_sensor", dg.DagsterRunStatus.STARTED)
        drop(here.store, "events", "a.csv", EVENTS_CSV)

        words_of(here.tick("landing_sensor"))

        assert self.backlog(here) == {"weather": 1, "events": 1}
