"""The source cut into the files in which it would have arrived: one per day and producer, in all formats by turns.

Among them are some that no pipeline should take as they are, each with the fate that it must meet.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from examples.demo.source import Source
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.model.columns import Column

if TYPE_CHECKING:
    import pyarrow as pa


class Fate(StrEnum):
    """What must become of a file."""

    STAGED = "staged"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class Delivery:
    """A file to drop: its name, the bytes to write, and what must become of it.

    ``refused_rows`` of its rows are not in the source and must be quarantined while the others are staged.
    ``flaw`` says in words what is wrong with it, if anything is.
    """

    dataset: str
    name: str
    day: date
    content: Callable[[], bytes]
    fate: Fate = Fate.STAGED
    refused_rows: int = 0
    flaw: str = ""


def plan_deliveries(sources: Mapping[str, Source], specs: Mapping[str, DatasetSpec]) -> list[Delivery]:
    """Return all files in the order in which they arrive."""
    regular = [delivery for name, source in sources.items() for delivery in _regular(source, specs[name])]
    flawed = [delivery for name, source in sources.items() for delivery in _flawed(source, specs[name], regular)]
    replaced = {(delivery.dataset, delivery.name) for delivery in flawed if delivery.fate is Fate.STAGED}
    kept = [delivery for delivery in regular if (delivery.dataset, delivery.name) not in replaced]
    # Sorted by day only, so that a duplicate comes after the file of which it is a copy.
    return sorted([*kept, *flawed], key=lambda delivery: delivery.day)


def _regular(source: Source, spec: DatasetSpec) -> Iterator[Delivery]:
    endings = list(_ENCODERS)
    for number, ((day, producer), lines) in enumerate(sorted(source.lines.items())):
        ending = endings[number % len(endings)]
        yield _delivery(source, spec, day, f"{source.dataset}-{day}-{producer}{ending}", lines)


def _flawed(source: Source, spec: DatasetSpec, regular: Sequence[Delivery]) -> Iterator[Delivery]:
    """Yield what goes wrong in real life, spread over the days that there are."""
    files = sorted(source.lines)
    stem = f"{source.dataset}-"

    def pick(tenths: int) -> tuple[date, str]:
        return files[len(files) * tenths // 10]

    def spoilt(key: tuple[date, str], spoil: Callable[[bytes], bytes]) -> bytes:
        return spoil(_as_csv(source.header, source.lines[key], ()))

    spoils: tuple[tuple[int, str, Callable[[bytes], bytes], str], ...] = (
        (1, "cut-off.csv", lambda csv: csv[:-30], "ends in the middle of a row"),
        (2, "cut-off.csv.gz", lambda csv: gzip.compress(csv, mtime=0)[:-40], "a gzip file without its end"),
        (3, "renamed-column.csv", lambda csv: csv.replace(b"origin", b"airport", 1), "column origin is called airport"),
        (4, "word-for-number.csv", lambda csv: csv.replace(b"2013", b"last year", 1), "a word where a number belongs"),
        (5, "empty.csv", lambda _: b"", "0 bytes"),
    )
    for tenths, ending, spoil, flaw in spoils:
        key = pick(tenths)
        name = f"{stem}{key[0]}-{key[1]}-{ending}"
        yield Delivery(source.dataset, name, key[0], partial(spoilt, key, spoil), Fate.QUARANTINED, flaw=flaw)
    original = next(delivery for delivery in regular if delivery.dataset == source.dataset)
    yield replace(
        original, name=f"copy of {original.name}", fate=Fate.DUPLICATE, flaw="sent a second time, under another name"
    )
    for tenths, time, flaw in (
        (6, "NA", "a row without a time"),
        (7, "2099-01-01T00:00:00Z", "a row from the far future"),
        (8, "1970-01-01T00:00:00Z", "a row from before the dataset's start"),
    ):
        key = pick(tenths)
        number = files.index(key)
        name = f"{stem}{key[0]}-{key[1]}{list(_ENCODERS)[number % len(_ENCODERS)]}"
        # time_hour is the last column of both files.
        extra = source.lines[key][0].rpartition(",")[0] + "," + time
        yield replace(_delivery(source, spec, key[0], name, [*source.lines[key], extra]), refused_rows=1, flaw=flaw)


def _delivery(source: Source, spec: DatasetSpec, day: date, name: str, lines: Sequence[str]) -> Delivery:
    ending = name[name.index(".") :]
    encode, columns = _ENCODERS[ending], spec.declared_columns or ()
    return Delivery(source.dataset, name, day, lambda: encode(source.header, lines, columns))


def _as_csv(header: str, lines: Sequence[str], _columns: Sequence[Column]) -> bytes:
    return "".join(f"{line}\n" for line in (header, *lines)).encode()


def _as_csv_gz(header: str, lines: Sequence[str], columns: Sequence[Column]) -> bytes:
    return gzip.compress(_as_csv(header, lines, columns), compresslevel=1, mtime=0)


def _as_json_lines(header: str, lines: Sequence[str], columns: Sequence[Column]) -> bytes:
    rows = _as_table(header, lines, columns).to_pylist()
    return "".join(json.dumps(row, default=_iso_time) + "\n" for row in rows).encode()


def _as_parquet(header: str, lines: Sequence[str], columns: Sequence[Column]) -> bytes:
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(_as_table(header, lines, columns), sink)
    return sink.getvalue()


def _as_arrow(header: str, lines: Sequence[str], columns: Sequence[Column]) -> bytes:
    import pyarrow as pa

    table, sink = _as_table(header, lines, columns), io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


_ENCODERS: dict[str, Callable[[str, Sequence[str], Sequence[Column]], bytes]] = {
    ".csv": _as_csv,
    ".csv.gz": _as_csv_gz,
    ".jsonl": _as_json_lines,
    ".parquet": _as_parquet,
    ".arrow": _as_arrow,
}


def _as_table(header: str, lines: Sequence[str], columns: Sequence[Column]) -> pa.Table:
    """Parse CSV lines with pyarrow, whose reading has nothing in common with that of the pipeline."""
    import pyarrow as pa
    from pyarrow import csv

    types = {
        "VARCHAR": pa.string(),
        "INTEGER": pa.int32(),
        "DOUBLE": pa.float64(),
        "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", "UTC"),
    }
    return csv.read_csv(
        io.BytesIO(_as_csv(header, lines, columns)),
        read_options=csv.ReadOptions(use_threads=False),
        convert_options=csv.ConvertOptions(
            column_types={column.name: types[column.type] for column in columns},
            null_values=["NA"],
            strings_can_be_null=True,
        ),
    )


def _iso_time(value: object) -> str:
    if not isinstance(value, datetime):
        raise TypeError(f"{type(value).__name__} in a row")
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
