"""What a batch may ask of whoever reads it is looked at first: by the same code for files, bodies and frames."""

from __future__ import annotations

import gzip
import io
import struct
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timestore_pipeline.errors import BatchRejected
from timestore_pipeline.rows.bounds import MOST_MEMBERS, Bounds, unpacked
from timestore_pipeline.rows.formats.arrow_files import arrow_table
from timestore_pipeline.rows.formats.parquet_files import check_parquet
from timestore_pipeline.rows.reasons import TooLarge, UnreadableFile
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline_tests.builders import arrow_bytes, hourly, ingest, parquet_bytes, weather_csv

BOUNDS = Bounds(columns=50, metadata_bytes=1 << 16, bytes=1 << 20)


def lying_parquet(entries: int) -> bytes:
    """A file of some bytes, whose footer claims a list of so many columns."""
    size = b""
    while entries:
        size += bytes([entries & 0x7F | (0x80 if entries > 0x7F else 0)])
        entries >>= 7
    footer = b"\x15\x02\x19\xfc" + size + b"\0" * 40
    return b"PAR1" + footer + struct.pack("<I4s", len(footer), b"PAR1")


def peak_bytes() -> int:
    """The most memory that this process has had since it was asked to forget."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


@pytest.mark.parametrize("entries", [100_001, 15_000_000, 2**31 - 1])
def test_a_footer_that_claims_more_than_it_has_costs_nothing(store: Store, drop, entries: int):
    drop(store, "weather", "a.parquet", lying_parquet(entries))
    drop(store, "weather", "b.parquet", parquet_bytes(hourly(2)))
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()

    report = ingest(store)["weather"]

    assert [entry.source for entry in report.quarantined] == ["a.parquet"]
    assert report.rows == 2
    assert peak_bytes() < before + (200 << 20)


def many(columns: int) -> pa.Table:
    return pa.table({"ts": hourly(1)["ts"], **{f"c{number}": [number] for number in range(columns)}})


def csv_of(table: pa.Table) -> str:
    return ",".join(table.column_names) + "\n" + ",".join(str(column[0]) for column in table.columns) + "\n"


@pytest.mark.matrix
@pytest.mark.long
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "arrow", "csv.gz"])
@pytest.mark.parametrize("dataset", ["weather", "events"])
def test_a_file_of_too_many_columns_is_refused_early_in_each_format(store: Store, drop, ending: str, dataset: str):
    table = many(30_000) if ending in ("csv", "jsonl", "csv.gz") else many(2_100)
    row = "{" + ",".join(f'"{name}": 1' for name in table.column_names) + "}\n"
    content = {
        "csv": csv_of(table).encode(),
        "csv.gz": gzip.compress(csv_of(table).encode()),
        "jsonl": row.encode(),
        "parquet": parquet_bytes(table),
        "arrow": arrow_bytes(table),
    }[ending]
    drop(store, dataset, f"wide.{ending}", content)
    started = time.thread_time()

    (entry,) = ingest(store)[dataset].quarantined

    assert "columns, and a batch may have 2,000" in entry.reason
    assert len(entry.reason) < 1_000
    assert time.thread_time() - started < 10, "it took half a minute when it was quadratic"


LONG_LINES = {
    "a row": b"2026-01-01T00:00:00Z," + b"x" * 40_000_000 + b",1\n",
    "a row without an end": b"2026-01-01T00:00:00Z," + b"x" * 40_000_000 + b",1",
    "no separator": b"g" * 33_000_000,
    "zeros": bytes(40_000_000),
    "as long as a buffer": b"2026-01-01T00:00:00Z," + b"x" * 31_999_950 + b",1\r\n",
    "shorter": b"2026-01-01T00:00:00Z," + b"x" * 20_000_000 + b",1\n",
}


@pytest.mark.matrix
@pytest.mark.long
@pytest.mark.parametrize("content", LONG_LINES.values(), ids=LONG_LINES)
@pytest.mark.parametrize("follows", ["", "2026-01-01T01:00:00Z,JFK,2\n"], ids=["last", "in the middle"])
@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_a_line_of_csv_that_is_too_long_is_refused_with_its_file_and_never_left_out(
    store: Store, drop, ending: str, follows: str, content: bytes
):
    whole = weather_csv("2026-01-01T00:00:00Z,JFK,1").encode() + content + follows.encode()
    drop(store, "weather", f"long.{ending}", gzip.compress(whole, 1) if ending == "csv.gz" else whole)

    report = ingest(store)["weather"]

    assert (len(report.quarantined), report.batches) == (1, 0), report
    assert len(report.quarantined[0].reason) < 1_000


def test_a_frame_is_held_to_the_same(store: Store):
    with pytest.raises(BatchRejected, match="a batch may have 2,000"):
        stage(store, "weather", many(3_000))
    with pytest.raises(BatchRejected, match="TIMESTORE_BATCH_MAX_METADATA_BYTES"):
        stage(store, "weather", hourly(1).replace_schema_metadata({"k": "x" * (2 << 20)}))
    deep = pa.int64()
    for _ in range(150):
        deep = pa.list_(deep)
    with pytest.raises(BatchRejected, match="nested"):
        stage(store, "weather", hourly(1).append_column("deep", pa.nulls(1, deep)))


def test_a_batch_may_ignore_more_columns_than_a_dataset_has(make_store, drop):
    names = ", ".join(f"c{number}" for number in range(1_500))
    store = make_store(
        "datasets: {weather: {columns: {ts: timestamptz}, time: ts, window: day, "
        f"landing: {{ignore_columns: [{names}]}}}}}}"
    )
    drop(store, "weather", "a.parquet", parquet_bytes(many(1_500)))

    assert ingest(store)["weather"].rows == 1


def test_the_bounds_are_settings(make_store, drop):
    store = make_store(batch_max_columns=2, batch_max_metadata_bytes=300, landing_max_arrow_bytes=1_000)
    drop(store, "weather", "a.csv", "ts,station,temp\n2026-01-01T00:00:00Z,JFK,1\n")
    drop(store, "weather", "b.parquet", parquet_bytes(hourly(1)))
    drop(store, "weather", "c.arrow", arrow_bytes(hourly(1_000)))

    reasons = {entry.source: entry.reason for entry in ingest(store)["weather"].quarantined}

    assert "TIMESTORE_BATCH_MAX_COLUMNS" in reasons["a.csv"]
    assert "TIMESTORE_BATCH_MAX_METADATA_BYTES" in reasons["b.parquet"]
    assert "1,000 bytes" in reasons["c.arrow"]


def views(rows: int, text: str) -> bytes:
    """A stream whose rows all show the same text, which is there once."""
    place = struct.pack("<i4sii", len(text), text[:4].encode(), 0, 0)
    array = pa.Array.from_buffers(
        pa.string_view(), rows, [None, pa.py_buffer(place * rows), pa.py_buffer(text.encode())]
    )
    return arrow_bytes(pa.table({"v": array}), stream=True)


BOMBS = {
    "views of one text": views(2_000, "x" * 100_000),
    "rows without a byte": arrow_bytes(pa.table({"v": pa.nulls(1 << 24)}), stream=True),
    "a dictionary": arrow_bytes(
        pa.table({"v": pa.DictionaryArray.from_arrays(pa.array([0] * 5_000, pa.int8()), ["x" * 1_000])}), stream=True
    ),
    "runs": arrow_bytes(
        pa.table({"v": pa.RunEndEncodedArray.from_arrays(pa.array([1 << 20], pa.int32()), pa.array(["x" * 1_000]))}),
        stream=True,
    ),
    "a dictionary within": arrow_bytes(
        pa.table({"v": pa.StructArray.from_arrays([pa.array(["x"] * 9).dictionary_encode()], ["d"])}), stream=True
    ),
    "metadata": arrow_bytes(pa.table({"v": [1]}).replace_schema_metadata({"k": "x" * (1 << 17)}), stream=True),
    "a batch": arrow_bytes(pa.table({"v": list(range(200_000))}), stream=True),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_arrow_stream_that_would_become_large_is_refused(bomb: str):
    started = time.thread_time()

    with pytest.raises(UnreadableFile):
        arrow_table(BOMBS[bomb], BOUNDS)

    assert time.thread_time() - started < 5


@pytest.mark.parametrize("as_stream", [False, True])
def test_what_is_within_the_bounds_is_read_as_it_is(as_stream: bool):
    nested = pa.table({"v": [1, None], "l": [[1], [2, 3]], "s": [{"a": 1}, None], "t": ["a", "b"]})

    assert arrow_table(arrow_bytes(nested, stream=as_stream), BOUNDS).equals(nested)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=2_000), max_size=8), st.data())
def test_what_was_packed_is_unpacked_and_what_is_cut_is_refused(members: list[bytes], data: st.DataObject):
    packed = b"".join(map(gzip.compress, members))
    if not packed:
        with pytest.raises(UnreadableFile):
            list(unpacked(io.BytesIO(packed).read))
        return
    assert b"".join(unpacked(io.BytesIO(packed).read)) == b"".join(members)

    whole = {len(b"".join(map(gzip.compress, members[:number]))) for number in range(1, len(members) + 1)}
    cut = data.draw(st.integers(0, len(packed) - 1))
    if cut not in whole:
        with pytest.raises(UnreadableFile):
            list(unpacked(io.BytesIO(packed[:cut]).read))


def test_members_without_anything_in_them_are_counted():
    empty = gzip.compress(b"")

    assert list(unpacked(io.BytesIO(empty * MOST_MEMBERS).read)) == []
    with pytest.raises(TooLarge, match="members"):
        list(unpacked(io.BytesIO(empty * 200_000).read))


@pytest.mark.long
def test_an_unpacked_text_is_never_held_as_a_whole():
    packed = gzip.compress(b"x" * (64 << 20))

    assert max(map(len, unpacked(io.BytesIO(packed).read))) <= 1 << 18


@pytest.mark.parametrize("compression", ["zstd", "gzip", "none", "snappy"])
def test_a_parquet_file_is_what_it_was_whatever_it_says_of_itself(tmp_path: Path, compression: str):
    path = tmp_path / "a.parquet"
    pq.write_table(hourly(10), path, compression=compression)

    check_parquet(path, BOUNDS)
    with pytest.raises(TooLarge, match="footer"):
        check_parquet(path, Bounds(columns=50, metadata_bytes=100, bytes=1))
