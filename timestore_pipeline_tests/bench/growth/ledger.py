"""What sensors, pushes, claims and reads cost the ledger, by datasets and by history, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from timestore_pipeline.building.due import plan_flushes
from timestore_pipeline.cli.status_command import collect_status
from timestore_pipeline.landing.files import scan_landing
from timestore_pipeline.landing.found import record_backlog
from timestore_pipeline.ledger.batches import BatchRow, NewSegment, SegmentRow, acknowledge
from timestore_pipeline.ledger.builds import NewBuild, mark_published
from timestore_pipeline.ledger.claims import Claim
from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.ledger.history import latest_builds
from timestore_pipeline.ledger.slices import SliceRow
from timestore_pipeline.ledger.windows import PublishedWindow
from timestore_pipeline.metrics.projection import exposition
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.reading.relations import take_snapshots
from timestore_pipeline.segments.description import IncomingBatch
from timestore_pipeline.staging.room import check_disk, room_for
from timestore_pipeline.store import Store
from timestore_pipeline_tests.bench.growth.cost import cost_of
from timestore_pipeline_tests.bench.growth.history import Past, name_of, store_with_past
from timestore_pipeline_tests.builders import claim_slices
from timestore_pipeline_tests.postgresql import LEDGERS, running_server

ROUNDS = 3


def measure(
    datasets: tuple[int, ...], batches: tuple[int, ...], workspace: Path, say: Callable[[str], object]
) -> list[dict[str, Any]]:
    """Return a row per ledger and size: what each operation costs. Sizes vary one at a time."""
    common = sorted(datasets)[len(datasets) // 3], sorted(batches)[0]
    pasts = [Past(number, common[1]) for number in sorted(datasets)]
    pasts += [Past(common[0], number) for number in sorted(batches) if number != common[1]]
    found = []
    for past in pasts:
        for kind in LEDGERS:
            size = {"datasets": past.datasets, "batches": past.batches}
            found.append({"ledger": kind, **size, **_row(kind, past, workspace)})
            say(f"{kind}, {past.datasets:,} datasets, {past.batches:,} batches: measured")
    return found


def _row(kind: str, past: Past, workspace: Path) -> dict[str, Any]:
    with _store(kind, past, workspace / f"{kind}-{past.datasets}-{past.batches}") as (store, pids):
        for name in past.names:
            folder = store.settings.landing_path / name
            folder.mkdir(parents=True)
            (folder / "waiting.csv").write_text("time,id,value\n2026-01-01,1,1\n")
        costs = {name: asdict(cost_of(action, ROUNDS, pids)) for name, action in operations(store, past).items()}
        return {"push_bytes": len(exposition(store)), "costs": costs}


@contextmanager
def _store(kind: str, past: Past, folder: Path) -> Iterator[tuple[Store, Callable[[], list[int]]]]:
    if kind == "sqlite":
        with store_with_past(folder, past) as store:
            yield store, list
        return
    with running_server() as server, store_with_past(folder, past, server.url(server.create_database())) as store:

        def pids() -> list[int]:
            rows = server.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'timestore'")
            return [row[0] for row in rows]

        yield store, pids


def operations(store: Store, past: Past) -> dict[str, Callable[[int], object]]:
    """Return the operations by name; each is given the number of its round, and may take a dataset of its own."""
    claims: dict[int, Claim] = {}
    for number in range(past.datasets):
        store.places.mark_segments(name_of(number))  # there are no files to the segments of the past

    def landing(_: int) -> None:
        record_backlog(store, scan_landing(store))

    def last_builds(_: int) -> None:
        with store.ledger.read() as tx:
            latest_builds(tx)

    def claim(number: int) -> None:
        found = store.ledger.transact(
            lambda tx: claim_slices(
                tx,
                NewBuild(name_of(number), owner="the benchmark", trigger="age", lease_micros=10**10, now=now_micros()),
            )
        )
        assert found is not None
        claims[number] = found

    def publish(number: int) -> None:
        found = claims[number]
        rows = {piece.window_start: 0 for piece in found.slices}
        for piece in found.slices:
            rows[piece.window_start] += piece.rows
        written = {start: PublishedWindow(start, count, 48 * count, 1) for start, count in rows.items()}
        version = 10**6 + number
        store.ledger.transact(
            lambda tx: mark_published(tx, found.build, table_version=version, published=written, now=now_micros())
        )

    def stage(number: int) -> None:
        name = name_of(past.datasets - 1)
        spec = store.datasets[name]
        check_disk(store)
        with store.ledger.read() as tx:
            room_for(tx, store, spec, [IncomingBatch(f"load/{number}", "0" * 64, "bench", 1)])

        def record(tx: Any) -> None:
            lock_dataset(tx, name)
            segment = SegmentRow(f"new-{number}", f"{name}/new-{number}.duckdb", 45_056, 100)
            batch = BatchRow(f"new-{number}", "0" * 64, "new.csv", 30_000, 100, 0, 0)
            start = spec.first_open_window(now_micros()).start_micros
            piece = SliceRow(start, 100, 1_000, start, start + 1, {0: 100})
            acknowledge(tx, name, NewSegment(segment, [batch], [piece], schema_version=1), now_micros())

        store.ledger.transact(record)

    return {
        "flush evaluation": lambda _: plan_flushes(store),
        "landing look": landing,
        "last flush of each": last_builds,
        "metrics, whole picture": lambda _: exposition(store),
        "status": lambda _: collect_status(store),
        "read planning, one dataset": lambda number: take_snapshots(store, [name_of(number)]),
        "acknowledge a batch": stage,
        "claim 10 slices": claim,
        "publish them": publish,
    }
