"""Claims by 1, 2 and 4 processes on PostgreSQL, near and a network away: on datasets of their own, and in lanes of one.

What is measured is whether workers wait for one another: a server on the same two cores shares those with them, so the
network's round trip is put in between, by a proxy that holds back what it passes on.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import make_url

from timestore_pipeline.staging.stage import stage
from timestore_pipeline_tests.bench.ledger import WORKERS, claim_and_give_back, declare, store_in
from timestore_pipeline_tests.bench.staging import START_MICROS
from timestore_pipeline_tests.postgresql import ROW_LOCKS, URL_VARIABLE, PostgresqlServer, running_server

ROUND_TRIPS_MS = (0.0, 1.0, 5.0)
_SECONDS = 3.0
_WINDOWS = 20
_HOUR = 3_600_000_000
# Of a worker's process: where all of them begin.
_begin: Any = None
_OWN = [f"dataset_{number}" for number in range(max(WORKERS))]
_SHARED = "shared"


def run(repeats: int, workspace: Path) -> list[str]:
    """Return the lines of the report. Every commit is synced."""
    home = workspace / "claims"
    home.mkdir()
    names = [*_OWN, _SHARED]
    declare(home, names)
    rates: dict[tuple[float, bool, int], float] = {}
    strong: set[str] = set()
    with running_server() as server:
        direct = server.url(server.create_database(), socket=False)
        with _ledger_at(direct), store_in(home) as store:
            for name in names:
                times = [START_MICROS + _HOUR * number for number in range(_WINDOWS)]
                stage(store, name, pa.table({"time": pa.array(times, pa.timestamp("us", "UTC"))}))
        for _ in range(repeats):
            for delay in ROUND_TRIPS_MS:
                with _at_a_distance(server.port, delay) as port:
                    url = make_url(direct).set(port=port).render_as_string(hide_password=False)
                    for shared in (False, True):
                        for workers in WORKERS:
                            rate = _rate(home, url, workers, shared, server, strong)
                            rates[delay, shared, workers] = max(rate, rates.get((delay, shared, workers), 0.0))
    lines = [
        "| round trip to the server | each worker claims | 1 worker, claims/s | 2 workers | 4 workers |",
        "|---|---|---|---|---|",
    ]
    for delay in ROUND_TRIPS_MS:
        for shared in (False, True):
            one = rates[delay, shared, 1]
            more = [f"{rates[delay, shared, workers] / one:.2f} ×" for workers in WORKERS[1:]]
            of = "a window of one dataset, in lanes" if shared else "a dataset of its own"
            place = f"{delay:g} ms more" if delay else "none, same cores"
            lines.append(f"| {place} | {of} | {one:,.0f} | {' | '.join(more)} |")
    held = ", ".join(sorted(strong)) or "none"
    return [
        *lines,
        "",
        f"Locks on tables stronger than ROW EXCLUSIVE, in samples of pg_locks all along: {held}. "
        f"Load average at the end: {os.getloadavg()[0]:.1f}.",
    ]


@contextmanager
def _ledger_at(url: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(URL_VARIABLE, url)
        yield


def _rate(home: Path, url: str, workers: int, shared: bool, server: PostgresqlServer, strong: set[str]) -> float:
    weak = ", ".join(f"'{mode}'" for mode in sorted(ROW_LOCKS))
    query = (
        "SELECT DISTINCT mode FROM pg_locks JOIN pg_stat_activity AS those USING (pid) WHERE locktype = 'relation' "
        f"AND those.application_name = 'timestore' AND mode NOT IN ({weak})"
    )
    context = get_context("spawn")
    begin = context.Barrier(workers)
    with (
        _ledger_at(url),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_keep, initargs=(begin,)) as pool,
    ):
        done = [pool.submit(_repeat, home, number, shared) for number in range(workers)]
        while not all(each.done() for each in done):
            strong.update(row[0] for row in server.execute(query, make_url(url).database or ""))
            time.sleep(0.05)
        return sum(each.result() for each in done)


def _keep(begin: Any) -> None:
    global _begin  # noqa: PLW0603
    _begin = begin


def _repeat(home: Path, number: int, shared: bool) -> float:
    """Claim for some seconds, beginning together with the others, and give back; return how often a second."""
    dataset = _SHARED if shared else _OWN[number]
    # In lanes each has windows of its own, as a backfill that is divided has.
    window = START_MICROS + number * _HOUR if shared else None
    with store_in(home) as store:
        _begin.wait()
        started, count = time.perf_counter(), 0
        while time.perf_counter() < started + _SECONDS:
            claim_and_give_back(store, dataset, f"{os.getpid()}-{count}", window, lanes=max(WORKERS))
            count += 1
        return count / (time.perf_counter() - started)


@contextmanager
def _at_a_distance(port: int, round_trip_ms: float) -> Iterator[int]:
    """Give a port that leads to ``port``, so much later; the port itself for no delay."""
    if not round_trip_ms:
        yield port
        return
    context = get_context("spawn")
    told = context.SimpleQueue()
    proxy = context.Process(target=_proxy, args=(port, round_trip_ms / 2e3, told), daemon=True)
    proxy.start()
    try:
        yield told.get()
    finally:
        proxy.terminate()
        proxy.join()


def _proxy(port: int, delay: float, told: Any) -> None:
    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(1 << 16):
            # As a network does: what comes meanwhile is on its way, too.
            loop.call_later(delay, writer.write, data)
        loop.call_later(delay, writer.close)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(passed_on(reader, onward[1]), passed_on(onward[0], writer))

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1")
        told.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())
