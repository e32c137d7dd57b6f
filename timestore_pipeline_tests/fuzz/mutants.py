"""Good batches of every format, and what chance makes of them."""

from __future__ import annotations

import gzip
import json
import random
import struct
from dataclasses import dataclass

import pyarrow as pa

from timestore_pipeline.rows.formats.arrow_files import Arrow
from timestore_pipeline.rows.formats.csv_files import Csv
from timestore_pipeline.rows.formats.json_array import JsonArray
from timestore_pipeline.rows.formats.json_lines import JsonLines
from timestore_pipeline.rows.formats.parquet_files import Parquet
from timestore_pipeline_tests.builders import arrow_bytes, hourly, parquet_bytes, weather_csv


@dataclass(frozen=True)
class Batch:
    """A batch as a file or a body."""

    media_type: str
    ending: str
    content: bytes

    @property
    def packed(self) -> bool:
        """Whether it is in gzip."""
        return self.ending.endswith(".gz")


def _batches() -> list[Batch]:
    table = hourly(60)
    words = table.set_column(1, "station", table["station"].dictionary_encode())
    views = table.set_column(1, "station", table["station"].cast(pa.string_view()))
    nested = table.append_column("extra", pa.array([[{"a": 1}]] * 60))
    rows = [{"ts": f"2026-01-01T{hour:02}:00:00Z", "station": "JFK", "temp": hour / 2} for hour in range(20)]
    (parquet,), (stream, file), (csv,) = Parquet.media_types, Arrow.media_types, Csv.media_types
    json_lines, json_array = JsonLines.media_types[0], JsonArray.media_types[0]
    text = weather_csv(*(f"2026-01-01T{hour:02}:00:00Z,JFK,{hour}" for hour in range(20))).encode()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    zstd = pa.BufferOutputStream()
    with pa.ipc.new_stream(zstd, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    plain = {"use_dictionary": False, "compression": "none"}
    return [
        *(
            Batch(parquet, ".parquet", parquet_bytes(each, **options))
            for each in (table, nested)
            for options in (
                {},
                plain,
                {"compression": "zstd", "row_group_size": 7, "write_page_index": True},
                {"compression": "gzip", "data_page_version": "2.0"},
            )
        ),
        Batch(
            parquet,
            ".parquet",
            parquet_bytes(
                table,
                **plain,
                column_encoding={
                    "ts": "DELTA_BINARY_PACKED",
                    "station": "DELTA_BYTE_ARRAY",
                    "temp": "BYTE_STREAM_SPLIT",
                },
            ),
        ),
        *(Batch(stream, ".arrows", arrow_bytes(each, stream=True)) for each in (table, words, views, nested)),
        Batch(stream, ".arrows", zstd.getvalue().to_pybytes()),
        Batch(file, ".arrow", arrow_bytes(words)),
        Batch(csv, ".csv", text),
        Batch(csv, ".csv.gz", gzip.compress(text)),
        Batch(json_lines, ".jsonl", lines),
        Batch(json_lines, ".jsonl.gz", gzip.compress(lines)),
        Batch(json_array, ".json", json.dumps(rows).encode()),
    ]


BATCHES = _batches()

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
_TEXTS = (
    b",", b'"', b"\n", b"\r", b"\0", b"{", b"[", b"}", b"]", b'""', b"\\u0000", b"1e999", b"-0", b"NaN", b"null",
    b"\xff", b"\xef\xbb\xbf", b"9" * 40, b"[" * 2_000, b'{"a":' * 300, b",x" * 3_000, b"2026-13-45", b"infinity",
)  # fmt: skip


def mutated(batch: Batch, chance: random.Random) -> bytes:
    """Return a batch's bytes with some of them changed, left out, doubled, or made to lie about what follows."""
    data = bytearray(batch.content)
    if batch.packed and chance.random() < 0.5:
        return gzip.compress(mutated(Batch("", "", gzip.decompress(batch.content)), chance))
    footer = struct.unpack("<I", data[-8:-4])[0] + 8 if batch.ending == ".parquet" else 0
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        lowest = max(0, len(data) - footer) if footer and chance.random() < 0.5 else 0
        place = chance.randrange(lowest, len(data)) if lowest < len(data) else 0
        match chance.randrange(9):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                data[place : place + 4] = struct.pack("<I", chance.choice(_NUMBERS))
            case 2:
                data[place] = chance.randrange(256)
            case 3:
                data[place : place + 5] = b"\xff\xff\xff\xff" + bytes([chance.choice((0x01, 0x07, 0x0F))])
            case 4:
                del data[place : place + chance.randrange(1, 40)]
            case 5:
                other, size = chance.randrange(len(data)), chance.randrange(1, 60)
                data[place : place + size] = data[other : other + size]
            case 6:
                data[place:place] = chance.choice(_TEXTS)
            case 7:
                data[place:place] = data[place : place + chance.randrange(1, 400)] * chance.randrange(1, 20)
            case _:
                del data[max(1, place) :]
    return bytes(data)


_TYPES = (
    pa.timestamp("s"), pa.timestamp("ms", "UTC"), pa.timestamp("ns", "Nowhere/Land"), pa.int64(), pa.uint64(),
    pa.float64(), pa.duration("us"), pa.time64("ns"), pa.date64(),
)  # fmt: skip


def strange_frame(chance: random.Random) -> pa.Table:
    """Return a batch with columns that are called something else than they are, or lack, or come twice."""
    table = hourly(chance.randrange(1, 40))
    for name in ("ts", "temp"):
        if chance.random() < 0.6:
            number = table.column_names.index(name)
            bits = table.column(number).combine_chunks()
            table = table.set_column(number, name, bits.view(chance.choice(_TYPES)))
    match chance.randrange(5):
        case 0:
            table = table.append_column("temp", pa.nulls(table.num_rows))
        case 1:
            table = table.rename_columns(["ts", "station", chance.choice(("", "TEMP", "_batch", 'a"b', "x" * 300))])
        case 2:
            table = table.append_column("more", pa.array([{"a": [1]}] * table.num_rows))
        case 3:
            table = table.replace_schema_metadata({"pandas": chance.choice(("{", "[]", "\0"))})
        case _:
            table = table.slice(chance.randrange(table.num_rows))
    return table
