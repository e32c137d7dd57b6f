"""``datasets.yaml`` → the datasets that there are (long, because a key stands with its documentation).

A dataset says what its rows look like, which of its columns is the time, how long its windows are and where
its files land. Everything is checked here, so that the rest of the project can trust a :class:`DatasetSpec`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from timestore_pipeline.errors import DatasetsFileError, TimestoreError, UnknownDataset
from timestore_pipeline.model.columns import (
    POSITION_COLUMN,
    RESERVED_NAMES,
    TIME_TYPES,
    Column,
    Kind,
    canonical_type,
    columns_from_mapping,
    kind_of,
)
from timestore_pipeline.model.durations import SHORTEST_FRESHNESS, Duration, format_duration
from timestore_pipeline.model.named_files import read_text
from timestore_pipeline.model.windows import Granularity, Window, from_micros
from timestore_pipeline.settings import MOST_LANES

NAME_PATTERN = r"^[a-z][a-z0-9_]{0,62}$"
DEFAULT_START = date(2020, 1, 1)
DEFAULT_LATENESS = timedelta(days=1)

DatasetName = Annotated[str, Field(pattern=NAME_PATTERN)]
Limit = Annotated[int, Field(ge=0)]


SCRATCH_PREFIX = "timestore_validation_"
"""How the names of scratch datasets begin, which no declared one may take."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TimeUnit(StrEnum):
    """Unit of an integer time column, counted from the Unix epoch."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    MICROSECONDS = "us"
    NANOSECONDS = "ns"


class FileFormat(StrEnum):
    """Format of landing files."""

    AUTO = "auto"
    CSV = "csv", ".csv", ".tsv", ".txt"
    JSON_LINES = "jsonl", ".jsonl", ".ndjson", ".json"
    PARQUET = "parquet", ".parquet", ".pq"
    ARROW = "arrow", ".arrow", ".arrows", ".feather", ".ipc"

    endings: tuple[str, ...]
    """How names of such files end, in lower case; after those of texts a .gz may follow."""

    def __new__(cls, value: str, *endings: str) -> Self:
        """Return the member ``value``."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.endings = endings
        return member


class LatePolicy(StrEnum):
    """What becomes of a row whose window has closed."""

    ACCEPT = "accept"
    QUARANTINE = "quarantine"
    DROP = "drop"


class TimeSpec(_Model):
    """Which column is the time, and how to read it where it is text or an integer."""

    column: str = Field(description="Name of the time column.")
    format: str | None = Field(
        default=None, description="strptime format, where the column arrives as text; no offset in it means UTC."
    )
    unit: TimeUnit | None = Field(
        default=None, description="Unit since the Unix epoch, where the column arrives as an integer."
    )

    @model_validator(mode="after")
    def _one_way_to_read_it(self) -> Self:
        if self.format and self.unit:
            raise ValueError("format (for text) and unit (for integers) exclude each other")
        return self


class CsvOptions(_Model):
    """How CSV files are written."""

    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = Field(default=",", description="Field separator.")
    quote: Annotated[str, Field(min_length=1, max_length=1)] = Field(default='"', description="Quote character.")
    escape: Annotated[str, Field(min_length=1, max_length=1)] = Field(
        default='"', description="Character that escapes a quote inside quotes."
    )
    null: tuple[str, ...] = Field(default=("",), description="Texts that mean null.")
    header: tuple[str, ...] | None = Field(
        default=None, description="Column names in file order, for files without a header line."
    )


class KeySpec(_Model):
    """What names a row: a window holds one row per key."""

    columns: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Columns that together name a row. A row in which one of them is null is quarantined."
    )
    version: str | None = Field(
        default=None,
        description="Column of which the highest value wins, null being the lowest; left out, and among equal values, "
        "the row wins that was staged last.",
    )

    @field_validator("columns")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a column stands in it twice")
        return names

    @model_validator(mode="after")
    def _version_is_no_name(self) -> Self:
        if self.version in self.columns:
            raise ValueError(f"version: column {self.version!r} is in the key, so rows of one key cannot differ in it")
        return self

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that every batch must have."""
        return self.columns if self.version is None else (*self.columns, self.version)


class DeleteSpec(_Model):
    """Which rows say that there is no row of their key any more: tombstones."""

    column: str = Field(description="Column by which a row says it.")
    equals: StrictBool | StrictInt | StrictStr = Field(
        description="Its value in such a row: text, a number or a boolean."
    )


class LandingSpec(_Model):
    """Where the files of a dataset land and how to read them."""

    pattern: str = Field(default="*", description="Glob that a file's name must match.")
    format: FileFormat = Field(
        default=FileFormat.AUTO,
        description="Format of the files; `auto` goes by the name: "
        f"{' '.join(ending for known in FileFormat for ending in known.endings)}; of CSV and JSON also with .gz.",
    )
    csv: CsvOptions = Field(default=CsvOptions(), description="Options for CSV files.")
    ignore_columns: tuple[str, ...] = Field(
        default=(),
        description="Columns of the files that are known and not wanted; any other extra column is an error.",
    )

    @field_validator("ignore_columns")
    @classmethod
    def _nothing_reserved(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name.lower() in RESERVED_NAMES:
                raise ValueError(f"column name {name!r} is reserved; remove the column from the files")
        return names

    @field_validator("pattern")
    @classmethod
    def _no_folders(cls, pattern: str) -> str:
        if "/" in pattern or not pattern:
            raise ValueError("a pattern matches file names, so it has no '/' and is not empty")
        return pattern

    def matches(self, file_name: str) -> bool:
        """Whether a file of that name belongs to the dataset."""
        return fnmatch.fnmatchcase(file_name, self.pattern)


class FlushSpec(_Model):
    """Flush thresholds of this dataset; a missing one is taken from the environment, 0 switches it off."""

    max_rows: Limit | None = Field(default=None, description="Staged rows.")
    max_bytes: Limit | None = Field(default=None, description="Staged bytes.")
    max_age_ms: Limit | None = Field(default=None, description="Age of the oldest staged batch, milliseconds.")
    late_max_age_ms: Limit | None = Field(
        default=None,
        description="The same for late rows, of windows that are closed and published already, milliseconds.",
    )


class LimitSpec(_Model):
    """Limits of this dataset; a missing one is taken from the environment, 0 switches it off."""

    max_pending: Limit | None = Field(default=None, description="Staged, unpublished batches.")
    max_bytes: Limit | None = Field(default=None, description="Staged, unpublished bytes.")
    max_windows: Limit | None = Field(default=None, description="Windows of one batch.")
    concurrent_ingests: Limit | None = Field(
        default=None, description="Segments that are written at the same time, over all processes."
    )
    concurrent_builds: Annotated[int, Field(ge=1, le=MOST_LANES)] | None = Field(
        default=None, description="Builds at the same time, each of other windows; over all processes."
    )


class CompactionSpec(_Model):
    """How small files of this dataset are merged; what is missing is taken from the environment."""

    max_small_files: Limit | None = Field(
        default=None,
        description="An open window with more small files is compacted; 0 waits until it closes.",
    )


class RetentionSpec(_Model):
    """How long what belongs to this dataset is kept; what is missing is taken from the environment."""

    staging: Duration | None = Field(
        default=None,
        description="How long a segment is kept after all its rows are published, such as `7d`; as long, windows can "
        "be rebuilt from it.",
    )
    table: Duration | None = Field(
        default=None,
        description="How long after its end a window stays in the table, such as `365d`; 0 is for ever.",
    )


def _fits(value: bool | int | str, type_: str) -> bool:
    """Whether a column of a type can have a value as YAML has it."""
    if type_ == "BOOLEAN":
        return isinstance(value, bool)
    if type_ == "VARCHAR":
        return isinstance(value, str)
    return kind_of(type_) is Kind.WHOLE and isinstance(value, int) and not isinstance(value, bool)


class DatasetSpec(_Model):
    """One dataset. ``columns`` is None where they are inferred from the first batch."""

    name: DatasetName = Field(description="Name of the dataset; the key in the file.")
    description: str = Field(default="", description="What the rows are; shown in the Dagster UI.")
    owners: tuple[Annotated[str, Field(pattern=r"^(team:[A-Za-z0-9_-]+|[^@\s]+@[^@\s]+)$")], ...] = Field(
        default=(), description="Owners shown in the Dagster UI: `team:name` or an e-mail address."
    )
    columns: dict[str, str] | None = Field(
        default=None, description="Column name → type; left out, they are inferred from the first batch."
    )
    time: TimeSpec = Field(description="The time column: its name, or a mapping with column, format and unit.")
    key: KeySpec | None = Field(
        default=None,
        description="The primary key: a window holds one row per key; left out, rows are appended as they are.",
    )
    delete: DeleteSpec | None = Field(
        default=None,
        description="Rows that delete their key, in a dataset that has one: where such a row wins, queries have no row "
        "of the key. The table keeps it, as an older row that comes later must not bring the key back.",
    )
    evolve: bool | None = Field(
        default=None,
        description="Whether batches may bring new columns and wider types, which are then taken up; left out: yes "
        "where columns are inferred, no where they are declared. Declaring more columns or wider types always works.",
    )
    optional: tuple[str, ...] = Field(
        default=(),
        description="Columns that a batch may lack, which are null then. Those that came later always may be.",
    )
    window: Granularity = Field(description="How long a window (partition) is.")
    start: date = Field(
        default=DEFAULT_START, description="Rows before this day are quarantined; partitions start here."
    )
    lateness: Duration = Field(
        default=DEFAULT_LATENESS,
        json_schema_extra={"default": format_duration(DEFAULT_LATENESS)},
        description="How long after its end a window stays open, such as `90m`, `36h` or `7d`: then it is closed.",
    )
    late: LatePolicy = Field(
        default=LatePolicy.ACCEPT,
        description="What becomes of rows whose window is closed when they are staged: `accept` them (backfills of old "
        "data need that), `quarantine` or `drop` them. They are counted by outcome.",
    )
    freshness: Duration | None = Field(
        default=None,
        description="Freshness that is promised, at least `1m`: Dagster warns when half of it has passed since the "
        "table last got rows, and shows the table as failing after the whole. 0 promises nothing; by default "
        "TIMESTORE_FRESHNESS_SECONDS.",
    )
    landing: LandingSpec = Field(default=LandingSpec(), description="Where files land and how they are read.")
    flush: FlushSpec = Field(default=FlushSpec(), description="Overrides of the flush thresholds.")
    limits: LimitSpec = Field(default=LimitSpec(), description="Overrides of the limits.")
    compaction: CompactionSpec = Field(default=CompactionSpec(), description="Overrides of how files are merged.")
    retention: RetentionSpec = Field(default=RetentionSpec(), description="Overrides of how long data is kept.")

    @field_validator("time", mode="before")
    @classmethod
    def _time_column_alone(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @field_validator("start", mode="before")
    @classmethod
    def _no_time_of_day(cls, value: Any) -> Any:
        if isinstance(value, datetime):
            raise ValueError("a start is a day such as 2013-01-01, without a time of day")
        return value

    @field_validator("columns")
    @classmethod
    def _known_types(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is not None:
            columns_from_mapping(value)
        return value

    @field_validator("freshness")
    @classmethod
    def _no_shorter_than_dagster_can(cls, value: timedelta | None) -> timedelta | None:
        if value and value < SHORTEST_FRESHNESS:
            raise ValueError("a freshness is at least 1m, or 0 to promise none")
        return value

    @model_validator(mode="after")
    def _time_column_is_a_time(self) -> Self:
        if self.columns is None:
            return self
        type_ = self.columns.get(self.time.column)
        if type_ is None:
            raise ValueError(f"time: column {self.time.column!r} is not among the columns")
        if canonical_type(type_) not in TIME_TYPES:
            raise ValueError(
                f"columns.{self.time.column}: the time column is kept as timestamp, timestamptz or date, not {type_}; "
                "where it arrives as text or an integer say so with time.format or time.unit"
            )
        return self

    @model_validator(mode="after")
    def _optional_columns_exist(self) -> Self:
        for name in self.optional:
            if name == self.time.column:
                raise ValueError(f"optional: {name!r} is the time column, which every row must have")
            if self.columns is not None and name not in self.columns and not self.evolves:
                raise ValueError(f"optional: column {name!r} is not among the columns")
        return self

    @model_validator(mode="after")
    def _key_columns_exist(self) -> Self:
        for name in self.key.needed if self.key else ():
            if name in self.optional:
                raise ValueError(f"key: column {name!r} is optional, and every row must have it")
            if self.columns is not None and name not in self.columns:
                raise ValueError(f"key: column {name!r} is not among the columns")
        return self

    @model_validator(mode="after")
    def _delete_can_be_told(self) -> Self:
        if self.delete is None:
            return self
        name, equals = self.delete.column, self.delete.equals
        if self.key is None:
            raise ValueError("delete: only a dataset with a key has rows that can be deleted by another one")
        if name in self.key.columns:
            raise ValueError(
                f"delete: column {name!r} is in the key, so a row that deletes would have a key of its own"
            )
        if self.columns is not None:
            if name not in self.columns:
                raise ValueError(f"delete: column {name!r} is not among the columns")
            type_ = canonical_type(self.columns[name])
            if not _fits(equals, type_):
                raise ValueError(f"delete: column {name!r} has the type {type_}, which is never {equals!r}")
        return self

    def table_columns(self, columns: Iterable[Column]) -> tuple[Column, ...]:
        """Return the columns that the dataset's table has for these: with a key the position of each row too."""
        return (*columns, Column(POSITION_COLUMN, "BIGINT")) if self.key else tuple(columns)

    @property
    def evolves(self) -> bool:
        """Whether batches may bring new columns and wider types."""
        return self.columns is None if self.evolve is None else self.evolve

    @property
    def declared_columns(self) -> tuple[Column, ...] | None:
        """The declared columns in order, or None where they are inferred."""
        return None if self.columns is None else columns_from_mapping(self.columns)

    def time_column(self, columns: Iterable[Column]) -> Column:
        """Return the time column among ``columns``."""
        return next(column for column in columns if column.name == self.time.column)

    @property
    def first_window(self) -> Window:
        """The window in which ``start`` falls; earlier ones do not exist."""
        return Window.containing(datetime(self.start.year, self.start.month, self.start.day, tzinfo=UTC), self.window)

    def first_open_window(self, now: int) -> Window:
        """Return the first window that is not closed at ``now`` (microseconds since the epoch).

        A window closes at its end plus the dataset's lateness.
        """
        return Window.containing(from_micros(now) - self.lateness, self.window)

    def window_from_key(self, key: str) -> Window:
        """Return the window named ``key``; raises ValueError as :meth:`Window.from_key`."""
        return Window.from_key(key, self.window)

    def window_of_partition(self, key: str | None) -> Window | None:
        """Return the window of a partition of the table, as :meth:`Window.of_partition`."""
        return Window.of_partition(key, self.window)

    def window_at(self, start_micros: int) -> Window:
        """Return the window that starts at ``start_micros`` (microseconds since the epoch)."""
        return Window.from_start_micros(start_micros, self.window)


class DatasetsFile(_Model):
    """The whole file."""

    start: date = Field(default=DEFAULT_START, description="Default `start` of every dataset.")
    datasets: dict[DatasetName, DatasetSpec] = Field(description="Dataset name → dataset.")

    @model_validator(mode="before")
    @classmethod
    def _names_and_starts(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(value.get("datasets"), Mapping):
            return value
        if reserved := [name for name in value["datasets"] if str(name).startswith(SCRATCH_PREFIX)]:
            raise ValueError(f"datasets: {reserved[0]} has a name that is reserved for validations; take another")
        start = value.get("start", DEFAULT_START)
        specs = {
            name: {"start": start, **spec, "name": name} if isinstance(spec, Mapping) else spec
            for name, spec in value["datasets"].items()
        }
        return {**value, "datasets": specs}


class Datasets(Mapping[str, DatasetSpec]):
    """The datasets that may be worked with, by name, in file order; an unknown name raises :class:`UnknownDataset`.

    ``refused`` are those of the file that must be left alone, each with the error that says why, and that asking for
    it raises.
    """

    def __init__(self, specs: Mapping[str, DatasetSpec], refused: Mapping[str, TimestoreError] | None = None) -> None:
        self.refused: Mapping[str, TimestoreError] = dict(refused or {})
        self._declared = dict(specs)
        self._specs = {name: spec for name, spec in specs.items() if name not in self.refused}

    @property
    def declared(self) -> Datasets:
        """All datasets of the file: for what is done with none of their rows."""
        return Datasets(self._declared)

    def refusing(self, refused: Mapping[str, TimestoreError]) -> Datasets:
        """Return the same datasets, of which these are left alone."""
        return Datasets(self._declared, refused)

    def __getitem__(self, name: str) -> DatasetSpec:
        if name in self.refused:
            raise self.refused[name].with_traceback(None)
        try:
            return self._specs[name]
        except KeyError:
            raise UnknownDataset(name, list(self._declared)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


class _Loader(yaml.SafeLoader):
    """YAML without two of its traps: a repeated key is an error, and a key is its text as written.

    So ``null:``, ``on:`` and ``2013:`` are the names of keys here, not nothing, true and a number.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} occurs twice", key_node.start_mark
                )
            seen.add(key_node.value)
            if key_node.tag != "tag:yaml.org,2002:merge":
                key_node.tag = "tag:yaml.org,2002:str"
        return node


def load_datasets(path: Path) -> Datasets:
    """Read and check ``datasets.yaml``.

    Raises:
        DatasetsFileError: the file is missing, is not YAML or breaks a rule; names file, dataset and key.
    """
    return parse_datasets(read_datasets_file(path), path)


def read_datasets_file(path: Path) -> str:
    """Return the text of a datasets file.

    Raises:
        DatasetsFileError: it is missing or cannot be read.
    """
    try:
        return read_text(path)
    except FileNotFoundError as error:
        raise DatasetsFileError(
            path, ["there is no such file; set TIMESTORE_DATASETS_FILE or TIMESTORE_HOME, or create it"]
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetsFileError(path, [f"it cannot be read: {error}"]) from error


def parse_datasets(text: str, path: object = "datasets.yaml") -> Datasets:
    """Check the text of a datasets file; ``path`` only names it in errors.

    Raises:
        DatasetsFileError: as :func:`load_datasets`.
    """
    try:
        content = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise DatasetsFileError(path, [f"it is not valid YAML: {_one_line(error)}"]) from error
    if not isinstance(content, Mapping):
        raise DatasetsFileError(path, ["the file must be a mapping with the key 'datasets'"])
    try:
        parsed = DatasetsFile.model_validate(content)
    except ValidationError as error:
        raise DatasetsFileError(path, [_explain(problem) for problem in error.errors()]) from error
    return Datasets(parsed.datasets)


def _one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__


def _explain(problem: Any) -> str:
    where = [str(part) for part in problem["loc"]]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "there is no such key; correct or remove it"
    elif problem["type"] == "string_pattern_mismatch" and "[key]" in where:
        message = "a dataset name is a lower-case letter, then at most 62 of a-z, 0-9 and _"
    if where[:1] == ["datasets"] and len(where) > 1:
        key = ".".join(part for part in where[2:] if part != "[key]")
        return f"dataset {where[1]!r}{', key ' + repr(key) if key else ''}: {message}"
    return f"key {'.'.join(where)!r}: {message}" if where else message
