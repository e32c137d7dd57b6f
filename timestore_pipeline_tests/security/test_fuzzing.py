"""Whatever bytes are in ``datasets.yaml`` or in a landing file, the outcome is one that the pipeline knows."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timestore_pipeline.datasets import parse_datasets
from timestore_pipeline.errors import DatasetsFileError
from timestore_pipeline.rows.bounds import Bounds
from timestore_pipeline.rows.formats.arrow_files import read_arrow
from timestore_pipeline_tests.builders import arrow_bytes, hourly, ingest, parquet_bytes, weather_csv
from timestore_pipeline_tests.conftest import DATASETS_YAML, WEATHER_CSV, MakeStore
from timestore_pipeline_tests.sampling import examples

ROUNDS = 12
FILES_PER_ROUND = 8
YAML_WORDS = [
    *DATASETS_YAML.split(),
    "!!python/object/apply:os.system",
    "&a",
    "*a",
    "<<:",
    "- ",
    "? ",
    "|",
    "\t",
    "~",
    "'",
]

SEEDS = {
    "parquet": parquet_bytes(hourly(50)),
    "zstd.parquet": parquet_bytes(hourly(50), compression="zstd", use_dictionary=False),
    "arrow": arrow_bytes(hourly(50)),
    "arrows": arrow_bytes(hourly(50), stream=True),
    "dictionary.arrow": arrow_bytes(hourly(50).set_column(1, "station", hourly(50)["station"].dictionary_encode())),
    "csv": WEATHER_CSV.encode(),
    "csv.gz": gzip.compress(WEATHER_CSV.encode()),
    "jsonl": b'{"ts": "2026-01-01T00:00:00Z", "station": "JFK", "temp": 1.5}\n' * 5,
}


@settings(max_examples=examples(300), deadline=None)
@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(st.sampled_from(YAML_WORDS), max_size=40).map(" ".join),
        st.tuples(st.integers(0, len(DATASETS_YAML)), st.integers(0, 40), st.text(max_size=8)).map(
            lambda cut: DATASETS_YAML[: cut[0]] + cut[2] + DATASETS_YAML[cut[0] + cut[1] :]
        ),
    )
)
def test_a_datasets_file_is_usable_or_says_what_is_wrong(text: str):
    try:
        datasets = parse_datasets(text)
    except DatasetsFileError:
        return
    assert all(spec.name == name for name, spec in datasets.items())


@pytest.mark.matrix
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_mutated_file_is_staged_or_quarantined_and_never_takes_a_good_one_with_it(
    make_store: MakeStore, drop, seed: int
):
    store = make_store(staging_max_pending=0)
    chance = random.Random(seed)
    for number in range(FILES_PER_ROUND):
        ending = chance.choice(list(SEEDS))
        drop(store, chance.choice(("weather", "events")), f"bad{number}.{ending}", mutated(SEEDS[ending], chance))
    drop(store, "weather", "good.csv", weather_csv(f"2026-01-01T00:00:00Z,GOOD,{seed}"))
    dropped = {path.name for path in store.settings.landing_path.rglob("*.*")}

    reports = ingest(store)

    staged = {receipt.source for report in reports.values() for receipt in report.receipts}
    quarantined = {entry.source for report in reports.values() for entry in report.quarantined}
    assert "good.csv" in staged
    assert staged | quarantined == dropped
    assert not any(report.skipped for report in reports.values())


def test_an_arrow_file_that_is_cut_short_while_it_is_used_does_no_harm(tmp_path: Path):
    path = tmp_path / "a.arrow"
    path.write_bytes(arrow_bytes(hourly(10_000)))

    table = read_arrow(path, Bounds(columns=10, metadata_bytes=1 << 20, bytes=1 << 30))
    path.write_bytes(b"")

    assert isinstance(table, pa.Table)
    assert table.equals(hourly(10_000))


def mutated(content: bytes, chance: random.Random) -> bytes:
    """``content`` with some bits flipped, bytes lost, added or made extreme."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        if not data:
            break
        # The ends of files say how to read the rest.
        place = chance.choice((chance.randrange(len(data)), max(0, len(data) - chance.randrange(1, 600))))
        match chance.randrange(5):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                data[place : place + 4] = chance.choice((b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\0\x80"))
            case 2:
                del data[place : place + chance.randrange(1, 30)]
            case 3:
                data[place:place] = chance.randbytes(chance.randrange(1, 20))
            case _:
                del data[max(10, place) :]
    return bytes(data)
