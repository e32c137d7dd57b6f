"""Whether every row of the source is where it must be, found out without asking the pipeline.

For each month the source CSV files are summed up by DuckDB, straight from the package, and so are the Parquet files
that the Delta log names, and what the read API answers. All three must agree: rows, for each column its values that
are not null and the sum of their hashes, and the sum of the hashes of whole rows. Sums of hashes do not depend on the
order of rows, and unlike sums of the numbers themselves they are exact and see every value, text or number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import duckdb

from examples.demo.source import FIRST_DAY
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.sql import column_list, literal, quote, utc_timestamp_sql
from timestore_pipeline.model.columns import Column
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.store import Store

Sums = Mapping[str, tuple[int, ...]]
"""Month → rows, hash of rows, then count and hash of each column."""


@dataclass(frozen=True)
class TableFiles:
    """The Parquet files of a published table, as its Delta log names them."""

    paths: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """Their size."""
        return sum(path.stat().st_size for path in self.paths)


def table_files(store: Store, dataset: str) -> TableFiles:
    """Return the live files of a dataset's table."""
    from deltalake import DeltaTable

    folder = store.table(dataset).location
    return TableFiles(tuple(Path(path.removeprefix("file://")) for path in DeltaTable(folder).file_uris()))


def sums_of_source(spec: DatasetSpec, path: Path, days: int) -> Sums:
    """Return the sums of the first ``days`` days of a source file."""
    columns = spec.declared_columns or ()
    types = ", ".join(f"{literal(column.name)}: {literal(column.type)}" for column in columns)
    relation = f"read_csv({literal(str(path))}, header = true, types = {{{types}}}, nullstr = 'NA')"
    until = (FIRST_DAY + timedelta(days=days)).isoformat()
    where = f"WHERE make_date(year, month, day) < DATE {literal(until)}"
    return _run(_sums_sql(spec, columns, f"(SELECT * FROM {relation} {where})"))


def sums_of_table(spec: DatasetSpec, files: TableFiles) -> Sums:
    """Return the sums of the published Parquet files."""
    paths = ", ".join(literal(str(path)) for path in files.paths)
    relation = f"read_parquet([{paths}], hive_partitioning = false)"
    return _run(_sums_sql(spec, spec.declared_columns or (), relation))


def sums_of_reader(store: Store, spec: DatasetSpec) -> Sums:
    """Return the sums of what the read API answers."""
    table = query_rows(store, _sums_sql(spec, spec.declared_columns or (), quote(spec.name))).to_arrow()
    return _by_month(list(zip(*table.to_pydict().values(), strict=True)))


def differences(spec: DatasetSpec, place: str, expected: Sums, found: Sums) -> list[str]:
    """Return a sentence for each month in which ``found`` is not ``expected``."""
    names = [column.name for column in spec.declared_columns or ()]
    sentences = []
    for month in sorted(expected.keys() | found.keys()):
        wanted, got = expected.get(month), found.get(month)
        if wanted == got:
            continue
        if wanted is None or got is None:
            sentences.append(f"{spec.name}: {month} is only in {'the source' if got is None else place}")
        elif wanted[0] != got[0]:
            sentences.append(f"{spec.name}: {month} has {wanted[0]:,} rows in the source and {got[0]:,} in {place}")
        else:
            different = [name for i, name in enumerate(names) if wanted[2 + 2 * i :][:2] != got[2 + 2 * i :][:2]]
            sentences.append(f"{spec.name}: {month} has other values in {place}, columns {', '.join(different)}")
    return sentences


def _sums_sql(spec: DatasetSpec, columns: Sequence[Column], relation: str) -> str:
    month = f"strftime({utc_timestamp_sql(spec.time_column(columns))}, '%Y-%m')"
    parts = ["count(*)", f"sum(CAST(hash({column_list(columns)}) AS HUGEINT))"]
    for column in columns:
        name = quote(column.name)
        parts += [f"count({name})", f"coalesce(sum(CAST(hash({name}) AS HUGEINT)) FILTER ({name} IS NOT NULL), 0)"]
    # Numbered because Arrow has no place for two columns of one name; as text because it has none for huge integers.
    numbered = ", ".join(f"CAST({part} AS VARCHAR) AS c{number}" for number, part in enumerate(parts))
    return f"SELECT {month} AS in_month, {numbered} FROM {relation} GROUP BY in_month"


def _run(sql: str) -> Sums:
    with duckdb.connect() as connection:
        return _by_month(connection.execute(sql).fetchall())


def _by_month(rows: Sequence[Sequence[str]]) -> Sums:
    return {month: tuple(map(int, values)) for month, *values in rows}
