"""What a segment and a file of refused rows say of themselves, so that the ledger can be made again from them.

A segment has it as the comment of its table, written in the transaction that fills it: a second table would cost 16 KB
and 15 ms per segment, a comment nothing that can be measured. A file of refused rows has it in its Parquet metadata.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb

from timestore_pipeline.duck.sql import literal
from timestore_pipeline.ledger.batches import BatchRow
from timestore_pipeline.model.columns import BATCH_COLUMN, ROW_COLUMN, Column
from timestore_pipeline.model.windows import TimeRange
from timestore_pipeline.segments.identity import Client

SEGMENT_TABLE = "rows"
"""Name of the one table in every segment."""

METADATA_KEY = "timestore"
"""Key of the description in the Parquet metadata of refused rows."""

_VERSION = 1
_ID_HEX_DIGITS = 14


class NotDescribed(Exception):
    """A file does not say what it is: it is damaged, or not one of timestore's."""


@dataclass(frozen=True)
class IncomingBatch:
    """A batch on its way in: identity, content hash, and where it comes from, with its client if it has one.

    ``replaces`` is the range of times of which its rows are all that there is to be.
    """

    batch_id: str
    fingerprint: str
    source: str
    source_bytes: int
    client: Client | None = field(default=None, compare=False)
    replaces: TimeRange | None = field(default=None, compare=False)


@dataclass(frozen=True)
class DescribedBatch:
    """A batch of a file: its ordinal there, how many rows of it were staged, refused and why, and dropped."""

    ordinal: int
    batch: IncomingBatch
    rows: int
    refused_rows: int
    reason: str = ""
    dropped_rows: int = 0

    @property
    def row(self) -> BatchRow:
        """The ledger's row of it."""
        return BatchRow(
            batch_id=self.batch.batch_id,
            fingerprint=self.batch.fingerprint,
            source=self.batch.source,
            source_bytes=self.batch.source_bytes,
            rows=self.rows,
            quarantined_rows=self.refused_rows,
            ordinal=self.ordinal,
            dropped_rows=self.dropped_rows,
        )


@dataclass(frozen=True)
class DescribedCorrection:
    """The correction that comes with a segment: its number, its range, and the builds that it comes after."""

    number: int
    range: TimeRange
    before_sequence: int


@dataclass(frozen=True)
class DescribedGroup:
    """Rows of one batch in one window; times in microseconds since the epoch."""

    ordinal: int
    window_start: int
    rows: int
    min_time: int
    max_time: int


@dataclass(frozen=True)
class Description:
    """What a file holds. ``window`` is the dataset's granularity; ``groups`` are those of staged rows.

    ``after`` is the position that the dataset's next row would have had when the file was begun: whatever was
    acknowledged before that has lower ones. None without a key, and in files of versions that did not say it.
    ``after_correction`` is the number of the last correction that does not act on the rows, which is ``correction``
    where the batch came with one.
    """

    dataset: str
    window: str
    batches: tuple[DescribedBatch, ...]
    groups: tuple[DescribedGroup, ...]
    after: int | None = None
    after_correction: int = 0
    correction: DescribedCorrection | None = None

    @property
    def rows(self) -> int:
        """How many staged rows there are."""
        return sum(group.rows for group in self.groups)

    def only(self, ordinals: Collection[int]) -> Description:
        """Return the description of some of the batches."""
        return replace(
            self,
            batches=tuple(each for each in self.batches if each.ordinal in ordinals),
            groups=tuple(each for each in self.groups if each.ordinal in ordinals),
        )

    def as_text(self) -> str:
        """Return it as text of one line, for :meth:`from_text`."""
        batches = [
            [
                each.ordinal,
                each.batch.batch_id,
                each.batch.fingerprint,
                each.batch.source,
                each.batch.source_bytes,
                each.rows,
                each.refused_rows,
                each.reason,
                each.dropped_rows,
            ]
            for each in self.batches
        ]
        groups = [[each.ordinal, each.window_start, each.rows, each.min_time, each.max_time] for each in self.groups]
        return json.dumps(
            {
                "version": _VERSION,
                "dataset": self.dataset,
                "window": self.window,
                "batches": batches,
                "groups": groups,
                **({} if self.after is None else {"after": self.after}),
                **({"after_correction": self.after_correction} if self.after_correction else {}),
                **({"correction": correction_as_list(self.correction)} if self.correction else {}),
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_text(cls, text: str) -> Description:
        """Read what :meth:`as_text` wrote.

        Raises:
            NotDescribed: it is something else.
        """
        try:
            found = json.loads(text)
            if found["version"] != _VERSION:
                raise NotDescribed(f"it was written by another version of timestore (description {found['version']})")
            return cls(
                dataset=found["dataset"],
                window=found["window"],
                batches=tuple(
                    DescribedBatch(ordinal, IncomingBatch(*batch), rows, refused, reason, dropped)
                    for ordinal, *batch, rows, refused, reason, dropped in found["batches"]
                ),
                groups=tuple(DescribedGroup(*group) for group in found["groups"]),
                after=found.get("after"),
                after_correction=found.get("after_correction", 0),
                correction=correction_from_list(found["correction"]) if "correction" in found else None,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise NotDescribed("it does not say which batches it holds") from error


def correction_as_list(correction: DescribedCorrection) -> list[int]:
    """Return a correction as JSON has it, for :func:`correction_from_list`."""
    return [correction.number, correction.range.start, correction.range.end, correction.before_sequence]


def correction_from_list(values: Sequence[int]) -> DescribedCorrection:
    """Read what :func:`correction_as_list` returned; raises ValueError or TypeError where it is something else."""
    number, start, end, sequence = values
    return DescribedCorrection(number, TimeRange(start, end), sequence)


def described_batches(
    batches: Sequence[IncomingBatch],
    rows: Mapping[int, int],
    refused_rows: Mapping[int, int],
    reasons: Mapping[int, str],
    dropped_rows: Mapping[int, int],
) -> tuple[DescribedBatch, ...]:
    """Return how batches are described, by ordinal."""
    return tuple(
        DescribedBatch(
            ordinal,
            batch,
            rows.get(ordinal, 0),
            refused_rows.get(ordinal, 0),
            reasons.get(ordinal, ""),
            dropped_rows.get(ordinal, 0),
        )
        for ordinal, batch in enumerate(batches)
    )


def describe_segment(connection: duckdb.DuckDBPyConnection, database: str, description: Description) -> None:
    """Write a description into the attached segment ``database``, within the transaction that fills it."""
    connection.execute(f"COMMENT ON TABLE {database}.{SEGMENT_TABLE} IS {literal(description.as_text())}")


def read_segment(connection: duckdb.DuckDBPyConnection, path: Path) -> tuple[Description, tuple[Column, ...], int]:
    """Return what a segment says of itself, the columns of its rows, and how many row numbers it needs.

    That it has as many rows as it says is made sure of. Rows that were taken out of another segment keep their numbers.

    Raises:
        NotDescribed: it cannot be read, says nothing, or holds another number of rows than it says.
    """
    try:
        connection.execute(f"ATTACH {literal(str(path))} AS described (READ_ONLY)")
    except duckdb.Error as error:
        raise NotDescribed(str(error).splitlines()[0]) from error
    try:
        tables = connection.execute(
            "SELECT comment FROM duckdb_tables() WHERE database_name = 'described' AND table_name = ?", [SEGMENT_TABLE]
        ).fetchall()
        description = Description.from_text(tables[0][0] or "" if tables else "")
        columns = connection.execute(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE database_name = 'described' "
            "AND table_name = ? ORDER BY column_index",
            [SEGMENT_TABLE],
        ).fetchall()
        numbered = any(name == ROW_COLUMN for name, _ in columns)
        found, numbers = connection.execute(
            f"SELECT count(*), {f'max({ROW_COLUMN}) + 1' if numbered else 0} FROM described.{SEGMENT_TABLE}"
        ).fetchall()[0]
        if found != description.rows:
            raise NotDescribed(f"it has {found} rows and says that it has {description.rows}")
        own = tuple(Column(name, type_) for name, type_ in columns if name not in (BATCH_COLUMN, ROW_COLUMN))
        return description, own, numbers or 0
    except duckdb.Error as error:
        raise NotDescribed(str(error).splitlines()[0]) from error
    finally:
        connection.execute("DETACH described")


def read_refused_rows(connection: duckdb.DuckDBPyConnection, path: Path) -> Description:
    """Return what a file of refused rows says of itself.

    Raises:
        NotDescribed: it cannot be read, or says nothing.
    """
    try:
        found = connection.execute(
            f"SELECT decode(value) FROM parquet_kv_metadata({literal(str(path))}) WHERE decode(key) = ?",
            [METADATA_KEY],
        ).fetchall()
    except duckdb.Error as error:
        raise NotDescribed(str(error).splitlines()[0]) from error
    return Description.from_text(found[0][0] if found else "")


def staged_at_of(segment_id: str) -> int:
    """Return when a segment was written, in microseconds since the epoch, as its id says; 0 where it does not."""
    try:
        return int(segment_id[:_ID_HEX_DIGITS], 16)
    except ValueError:
        return 0
