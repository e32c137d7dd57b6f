"""A ledger with a past: as many batches as are asked for, by bulk statements, as if they had been staged and published.

A test holds what these statements write against the project's own audit, and against what its functions would write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import BigInteger, Connection, bindparam, text

from timestore_pipeline.ledger.counters import FLUSH_BATCHES, FLUSH_DURATION, FLUSH_ROWS, SEGMENT_BYTES
from timestore_pipeline.ledger.schemas import SchemaStep, add_versions
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.settings import Settings
from timestore_pipeline.store import Store
from timestore_pipeline_tests.bench.staging import START_MICROS

ROWS = 1_000
SEGMENT_BYTES_EACH = 49_152
BATCHES_PER_BUILD = 10
BATCHES_PER_WINDOW = 20
STAGED_PER_DATASET = 10
_HOUR_MICROS = 3_600_000_000
RETAINED_SHARE = 10
"""One in so many of the published segments is still on disk."""


@dataclass(frozen=True)
class Past:
    """How much a ledger has behind it: published ``batches`` in all, spread over ``datasets``, and what is staged."""

    datasets: int
    batches: int
    staged: int = STAGED_PER_DATASET

    @property
    def names(self) -> list[str]:
        """The datasets' names."""
        return [name_of(number) for number in range(self.datasets)]


def name_of(number: int) -> str:
    """Return the name of a dataset."""
    return f"dataset_{number:05d}"


def declare(folder: Path, datasets: int) -> None:
    """Write the datasets file of so many datasets."""
    declared = "\n".join(
        f"  {name_of(number)}: {{time: time, window: hour, start: 2026-01-01}}" for number in range(datasets)
    )
    (folder / "datasets.yaml").write_text(f"datasets:\n{declared}\n")


def store_with_past(folder: Path, past: Past, ledger_url: str | None = None) -> Store:
    """Return an installation whose ledger has that past; every batch is a segment of its own, the worst case."""
    folder.mkdir()
    declare(folder, past.datasets)
    url = {"ledger_url": ledger_url} if ledger_url else {}
    settings = {"staging_flush_max_rows": 0, "staging_flush_max_bytes": 0, "staging_flush_max_age_ms": 86_400_000}
    store = Store.open(Settings.model_validate({"home": folder, **settings, **url}))
    with store.ledger.write() as tx:
        fill(tx, past)
        if tx.dialect.name != "sqlite":
            # As autovacuum would have done by then. A SQLite ledger is never analysed.
            tx.execute(text("ANALYZE"))
    return store


def fill(tx: Connection, past: Past) -> None:
    """Write the past into a ledger that knows the datasets and nothing else."""
    each = past.batches // past.datasets // BATCHES_PER_BUILD * BATCHES_PER_BUILD
    now = now_micros()
    for name in past.names:
        add_versions(tx, name, 0, [SchemaStep(_COLUMNS, source="the benchmark")], now)
    values = {
        "datasets": past.datasets,
        "each": each,
        "total": each + past.staged,
        "now": now,
        "rows": ROWS,
        "bytes": SEGMENT_BYTES_EACH,
        "start": START_MICROS,
        "hour": _HOUR_MICROS,
        "minute": 60_000_000,
        "per_build": BATCHES_PER_BUILD,
        "per_window": BATCHES_PER_WINDOW,
        "gone": each - each // RETAINED_SHARE,
        "flushed": FLUSH_BATCHES,
        "flushed_rows": FLUSH_ROWS,
        "duration": FLUSH_DURATION,
        "segment_bytes": SEGMENT_BYTES,
    }
    for statement in _STATEMENTS:
        wanted = [name for name in values if re.search(rf":{name}\b", statement)]
        numbers = [bindparam(name, type_=BigInteger) for name in wanted if isinstance(values[name], int)]
        tx.execute(text(statement).bindparams(*numbers), {name: values[name] for name in wanted})
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT setval(pg_get_serial_sequence('builds', 'id'), (SELECT max(id) + 1 FROM builds))"))


_COLUMNS = (Column("time", "TIMESTAMP"), Column("id", "BIGINT"), Column("value", "DOUBLE"))

# Batch k of every dataset d. A batch is staged a minute after the one before it; ten are published together, ten
# minutes after the first; twenty fill a window. What comes first in time comes first in the tables.
_EACH = """
FROM growth_k k CROSS JOIN growth_d d ORDER BY k.n, d.n"""
_NAME = "'dataset_' || substr(CAST(100000 + d.n AS VARCHAR(6)), 2)"
_SEGMENT = "substr(CAST(10000000000 + k.n AS VARCHAR(11)), 2) || substr(CAST(100000 + d.n AS VARCHAR(6)), 2)"
_STAGED = "CAST(:now - (:total - k.n) * :minute AS BIGINT)"
_BUILD = "CASE WHEN k.n < :each THEN k.n / :per_build * :datasets + d.n + 1 END"
_PUBLISHED = "CASE WHEN k.n < :each THEN :now - (:total - (k.n / :per_build + 1) * :per_build) * :minute END"
_WINDOW = ":start + k.n / :per_window * :hour"
_BUILT = ":now - (:total - (k.n + 1) * :per_build) * :minute"

_STATEMENTS = (
    "CREATE TEMPORARY TABLE growth_k (n BIGINT PRIMARY KEY)",
    "CREATE TEMPORARY TABLE growth_d (n BIGINT PRIMARY KEY)",
    """INSERT INTO growth_k WITH RECURSIVE k(n) AS (
       SELECT CAST(0 AS BIGINT) UNION ALL SELECT n + 1 FROM k WHERE n + 1 < :total) SELECT n FROM k""",
    """INSERT INTO growth_d WITH RECURSIVE d(n) AS (
       SELECT CAST(0 AS BIGINT) UNION ALL SELECT n + 1 FROM d WHERE n + 1 < :datasets) SELECT n FROM d""",
    f"""INSERT INTO segments (id, dataset, path, bytes, rows, schema_version, staged_at, published_at, unlinked_at)
       SELECT {_SEGMENT}, {_NAME}, {_NAME} || '/' || {_SEGMENT} || '.duckdb', :bytes, :rows, 1, {_STAGED}, {_PUBLISHED},
       CASE WHEN k.n < :gone THEN {_PUBLISHED} END {_EACH}""",
    f"""INSERT INTO batches (dataset, batch_id, fingerprint, source, source_bytes, rows, quarantined_rows, dropped_rows,
       segment_id, ordinal, staged_at, published_at)
       SELECT {_NAME}, 'blake3-' || {_SEGMENT}, '0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef',
       {_NAME} || '/' || k.n || '.csv', 30000, :rows, 0, 0, {_SEGMENT}, 0, {_STAGED}, {_PUBLISHED} {_EACH}""",
    f"""INSERT INTO builds (id, dataset, sequence, owner, kind, trigger, state, claimed_at, lease_expires_at,
       finished_at, first_window, last_window, batches, rows, bytes, files, table_version)
       SELECT k.n * :datasets + d.n + 1, {_NAME}, k.n + 1, 'the benchmark', 'flush', 'age', 'published',
       {_BUILT} - 1000000, {_BUILT}, {_BUILT}, :start + k.n * :per_build / :per_window * :hour,
       :start + k.n * :per_build / :per_window * :hour, :per_build, :per_build * :rows, :per_build * :bytes, 1, k.n
       FROM growth_k k CROSS JOIN growth_d d WHERE k.n < :each / :per_build ORDER BY k.n, d.n""",
    f"""INSERT INTO slices (segment_id, window_start, dataset, rows, bytes, min_time, max_time, staged_at, late,
       build_id, published_at)
       SELECT {_SEGMENT}, {_WINDOW}, {_NAME}, :rows, :bytes, {_WINDOW}, {_WINDOW} + 1, {_STAGED}, FALSE, {_BUILD},
       {_PUBLISHED} {_EACH}""",
    f"""INSERT INTO batch_slices (segment_id, window_start, ordinal, rows)
       SELECT {_SEGMENT}, {_WINDOW}, 0, :rows {_EACH}""",
    """INSERT INTO windows (dataset, window_start, rows, bytes, files, published_at, build_id)
       SELECT dataset, first_window, sum(rows), sum(bytes), sum(files), max(finished_at), max(id)
       FROM builds GROUP BY dataset, first_window""",
    """UPDATE datasets SET next_sequence = :each / :per_build + 1,
       table_version = CASE WHEN :each > 0 THEN :each / :per_build - 1 END""",
    """UPDATE datasets SET (published_windows, published_rows, published_bytes, published_files, published_at) =
       (SELECT count(*), coalesce(sum(w.rows), 0), coalesce(sum(w.bytes), 0), coalesce(sum(w.files), 0),
        max(w.published_at) FROM windows w WHERE w.dataset = datasets.name)""",
    *(
        f"""INSERT INTO counters (metric, dataset, label, value)
        SELECT :{metric}, {_NAME}, 'success', :each {times} FROM growth_d d WHERE :each > 0"""
        for metric, times in (("flushed", ""), ("flushed_rows", "* :rows"))
    ),
    f"""INSERT INTO histograms (metric, dataset, label, bucket, count, sum)
       SELECT :duration, {_NAME}, 'success', 4, :each / :per_build, :each / :per_build
       FROM growth_d d WHERE :each > 0""",
    f"""INSERT INTO histograms (metric, dataset, label, bucket, count, sum)
       SELECT :segment_bytes, {_NAME}, '', 2, :total, :total * :bytes FROM growth_d d""",
    "DROP TABLE growth_k",
    "DROP TABLE growth_d",
)
