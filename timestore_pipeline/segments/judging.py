"""Which rows of a new segment a window takes, and what is wrong with the others: all judged by one moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from timestore_pipeline.datasets import DatasetSpec, LatePolicy
from timestore_pipeline.duck.sql import quote, utc_timestamp_sql
from timestore_pipeline.errors import TooManyWindows
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import BATCH_COLUMN, Column
from timestore_pipeline.model.durations import format_duration
from timestore_pipeline.model.windows import Window, from_micros, to_micros
from timestore_pipeline.segments.description import DescribedGroup

# DuckDB keeps these as they are: what Arrow says of their values holds for the rows in a segment.
_KEPT_TYPES = {False: "TIMESTAMP", True: "TIMESTAMP WITH TIME ZONE"}

# Later ones have no window with an end.
_LAST_MOMENT = to_micros(datetime(9998, 12, 31, tzinfo=UTC))

_LATE = "late"
_PROBLEMS = {
    "null": "the time is null",
    "infinite": "the time is infinite",
    "early": "the time is before the dataset's start, {start}",
    "late": "its window closed {lateness} after its end: the time is before {first_open} UTC",
    "key": "a column of the key ({key}) is null",
    "future": "the time is after {horizon} UTC, more than TIMESTORE_STAGING_MAX_FUTURE_MS ahead",
}


@dataclass(frozen=True)
class RefusedRows:
    """Rows of one batch that no window takes, with the reason; ``late`` where that is that its window is closed."""

    reason: str
    rows: int
    late: bool = False


@dataclass(frozen=True)
class Judgement:
    """What is to be staged, and what by batch ordinal is to be set aside, or dropped because it came too late."""

    groups: tuple[DescribedGroup, ...]
    refused: Mapping[int, Sequence[RefusedRows]] = field(default_factory=dict)
    dropped: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchTimes:
    """How many rows a batch has, all with a time, and the first and last of these, in microseconds since the epoch."""

    rows: int
    low: int
    high: int


def batch_times(table: pa.Table, column: Column) -> BatchTimes | None:
    """Return a batch's times by its Arrow values; None where some are null, or only DuckDB can say what they are."""
    if not table.num_rows or len(table.schema.get_all_field_indices(column.name)) != 1:
        return None
    values = table[column.name]
    type_ = values.type
    if not pa.types.is_timestamp(type_) or type_.unit != "us" or _KEPT_TYPES[type_.tz is not None] != column.type:
        return None
    if values.null_count:
        return None
    found = pc.call_function("min_max", [values.cast(pa.int64())])
    return BatchTimes(table.num_rows, found["min"].as_py(), found["max"].as_py())


@dataclass(frozen=True)
class Judge:
    """Judges rows by the moment ``now``. Times are microseconds since the epoch.

    ``horizon`` is the latest time that a row may have; rows before ``first_open`` are late, where late rows are not
    taken like others. One batch may have rows in ``most_windows``; 0 is no limit.
    """

    spec: DatasetSpec
    time: Column
    now: int
    horizon: int
    first_open: int | None
    most_windows: int = 0

    @classmethod
    def of(
        cls,
        spec: DatasetSpec,
        columns: Sequence[Column],
        max_future_ms: int,
        *,
        take_late: bool,
        most_windows: int = 0,
    ) -> Judge:
        """Return the judge of this moment; with ``take_late`` rows of closed windows are like others."""
        now = now_micros()
        horizon = min(now + max_future_ms * 1_000, _LAST_MOMENT) // 1_000_000 * 1_000_000
        everything = take_late or spec.late is LatePolicy.ACCEPT
        first_open = None if everything else spec.first_open_window(now).start_micros
        return cls(spec, spec.time_column(columns), now, horizon, first_open, most_windows)

    @property
    def problem(self) -> str:
        """The SQL expression for what is wrong with a row; null where nothing is."""
        column, time, key = quote(self.time.name), utc_timestamp_sql(self.time), self._null_in_key()
        return (
            f"CASE WHEN {column} IS NULL THEN 'null' WHEN NOT isfinite({column}) THEN 'infinite' "
            f"WHEN {time} < make_timestamp({self.spec.first_window.start_micros}) THEN 'early' "
            + ("" if self.first_open is None else f"WHEN {time} < make_timestamp({self.first_open}) THEN '{_LATE}' ")
            + (f"WHEN {key} THEN 'key' " if key else "")
            + f"WHEN {time} > make_timestamp({self.horizon}) THEN 'future' END"
        )

    @property
    def too_late(self) -> str:
        """The SQL condition for rows that came too late."""
        return f"{self.problem} = '{_LATE}'"

    def look(
        self, connection: duckdb.DuckDBPyConnection, table: str, times: Sequence[BatchTimes] | None = None
    ) -> Judgement:
        """Judge the rows of ``table``, which has the ordinal of each row's batch.

        Almost always there is no problem, and small batches have one window each: then it costs least, and nothing is
        read where ``times`` says by ordinal what the rows have.

        Raises:
            TooManyWindows: a batch has rows in more windows than one may.
        """
        if times is None or self.spec.key:
            batches = self._batches(connection, table)
        else:
            batches = self._without_problem(
                [(ordinal, each.rows, each.low, each.high) for ordinal, each in enumerate(times)]
            )
        if batches is None:
            return self._judged(connection, table)
        windows = {ordinal: self._window(low) for ordinal, _, low, _ in batches}
        if all(high < windows[ordinal].end_micros for ordinal, _, _, high in batches):
            return Judgement(
                tuple(
                    DescribedGroup(ordinal, windows[ordinal].start_micros, rows, low, high)
                    for ordinal, rows, low, high in batches
                )
            )
        time = utc_timestamp_sql(self.time)
        found = connection.execute(
            f"SELECT {BATCH_COLUMN}, epoch_us(date_trunc('{self.spec.window}', {time})), count(*), "
            f"epoch_us(min({time})), epoch_us(max({time})) FROM {table} GROUP BY ALL"
        ).fetchall()
        return Judgement(self._bounded([DescribedGroup(*row) for row in found]))

    def _batches(self, connection: duckdb.DuckDBPyConnection, table: str) -> list[tuple[int, int, int, int]] | None:
        """Return ordinal, rows, first and last time of each batch; None where a row has a problem."""
        column, key = quote(self.time.name), self._null_in_key()
        wrong = f"count(*) FILTER (WHERE {key})" if key else "0"
        low, high = (f"epoch_us(CAST({edge}({column}) AS TIMESTAMP))" for edge in ("min", "max"))
        if self.time.type == "TIMESTAMP WITH TIME ZONE":
            low, high = f"epoch_us(min({column}))", f"epoch_us(max({column}))"
        found = connection.execute(
            f"SELECT {BATCH_COLUMN}, count(*), CASE WHEN isfinite(min({column})) AND isfinite(max({column})) "
            f"THEN {low} END, {high}, count({column}), {wrong} FROM {table} GROUP BY {BATCH_COLUMN}"
        ).fetchall()
        if any(times < rows or nulls_in_key or first is None for _, rows, first, _, times, nulls_in_key in found):
            return None
        return self._without_problem([row[:4] for row in found])

    def _without_problem(self, batches: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]] | None:
        # What Arrow has for infinities lies beyond these too.
        earliest = max(self.spec.first_window.start_micros, self.first_open or self.spec.first_window.start_micros)
        fine = all(first >= earliest and last <= self.horizon for _, _, first, last in batches)
        return batches if fine else None

    def _judged(self, connection: duckdb.DuckDBPyConnection, table: str) -> Judgement:
        time = utc_timestamp_sql(self.time)
        found = connection.execute(
            f"SELECT {BATCH_COLUMN}, problem, epoch_us(window_start), count(*), "
            f"epoch_us(min(time)), epoch_us(max(time)) FROM ("
            f"SELECT {BATCH_COLUMN}, problem, CASE WHEN problem IS NULL THEN time END AS time, "
            f"CASE WHEN problem IS NULL THEN date_trunc('{self.spec.window}', time) END AS window_start FROM ("
            f"SELECT {BATCH_COLUMN}, {time} AS time, {self.problem} AS problem FROM {table})) GROUP BY ALL"
        ).fetchall()
        groups: list[DescribedGroup] = []
        refused: dict[int, list[RefusedRows]] = {}
        dropped: dict[int, int] = {}
        for ordinal, problem, window, rows, low, high in found:
            if problem is None:
                groups.append(DescribedGroup(ordinal, window, rows, low, high))
            elif problem == _LATE and self.spec.late is LatePolicy.DROP:
                dropped[ordinal] = rows
            else:
                refused.setdefault(ordinal, []).append(RefusedRows(self._reason(problem), rows, late=problem == _LATE))
        return Judgement(self._bounded(groups), refused, dropped)

    def _bounded(self, groups: Sequence[DescribedGroup]) -> tuple[DescribedGroup, ...]:
        """Return ``groups``, which are one for each window of a batch, unless a batch has too many of them."""
        if self.most_windows:
            counted = Counter(group.ordinal for group in groups)
            if found := {ordinal: windows for ordinal, windows in counted.items() if windows > self.most_windows}:
                raise TooManyWindows(self.spec.name, found, self.most_windows)
        return tuple(groups)

    def _reason(self, problem: str) -> str:
        return _PROBLEMS[problem].format(
            # Not by strftime, which writes the year 24 with two digits.
            start=self.spec.first_window.start.date().isoformat(),
            horizon=from_micros(self.horizon).replace(tzinfo=None).isoformat(" ", "seconds"),
            first_open=self.spec.first_open_window(self.now).start.replace(tzinfo=None).isoformat(" ", "minutes"),
            lateness=format_duration(self.spec.lateness),
            key=", ".join(self.spec.key.columns) if self.spec.key else "",
        )

    def _window(self, moment: int) -> Window:
        return Window.containing(from_micros(moment), self.spec.window)

    def _null_in_key(self) -> str:
        return " OR ".join(f"{quote(name)} IS NULL" for name in self.spec.key.columns) if self.spec.key else ""


def reason_in_words(parts: Iterable[RefusedRows]) -> str:
    """Return why rows of one batch were refused."""
    return "; ".join(f"{part.rows} rows: {part.reason}" for part in parts)
