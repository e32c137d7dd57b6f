"""The environment → one validated settings object (long, because a variable stands with its documentation).

Every variable starts with ``TIMESTORE_``. Wrong values fail at start with the variable's name and what is
allowed; a name that no setting has is reported, because a typo must not pass silently.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from timestore_pipeline.errors import SettingsError
from timestore_pipeline.inert import log_named
from timestore_pipeline.model.durations import SHORTEST_FRESHNESS
from timestore_pipeline.model.locations import ObjectUrl, is_url, parse_url

PREFIX = "TIMESTORE_"
MOST_LANES = 32
"""Builds of one dataset that may be allowed at the same time; a fence against all of them names each lane."""
_RUNBOOK = "docs/runbooks/timestore-staging-operations.md"

log = log_named(__name__)


class AfterIngest(StrEnum):
    """What becomes of a landing file once its batch is acknowledged."""

    ARCHIVE = "archive"
    DELETE = "delete"
    KEEP = "keep"


class GuardrailMode(StrEnum):
    """What a size guardrail does when it is exceeded."""

    WARN = "warn"
    ENFORCE = "enforce"


# DuckDB puts ".wal" before a question mark in the name of a file that it attaches, and makes slashes of backslashes.
# delta-rs decodes what looks like a percent-encoded character, and takes no control characters.
_NOT_IN_FOLDERS = re.compile(r"[\x00-\x1f\x7f?\\\ud800-\udfff]|%[0-9A-Fa-f]{2}")

RESERVED_LABELS = frozenset(
    {
        "job", "dataset", "le", "component", "guardrail", "limit", "metric", "outcome", "reason", "result", "slo",
        "threshold",
    }
)  # fmt: skip
"""Labels that the series have themselves, so none of them can be a grouping label too."""


def _no_trailing_slash(url: str | None) -> str | None:
    return url.rstrip("/") if url else None


def _a_minute_or_none(seconds: float) -> float:
    if 0 < seconds < SHORTEST_FRESHNESS.total_seconds():
        raise ValueError("must be 0, or 60 or more")
    return seconds


def grouping_labels(text: str) -> dict[str, str]:
    """``environment=prod, site=fra`` → the labels that it names; none where it is empty.

    Raises:
        ValueError: it is no list of ``name=value``, or a name cannot be a grouping label.
    """
    labels: dict[str, str] = {}
    for pair in filter(None, (each.strip() for each in text.split(","))):
        name, sign, value = (each.strip() for each in pair.partition("="))
        if not (sign and value and re.fullmatch(r"(?!__)[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII)):
            raise ValueError(f"{pair!r} is not NAME=VALUE, as in environment=prod,site=fra")
        if name in RESERVED_LABELS or name in labels:
            raise ValueError(f"the label {name!r} is taken")
        labels[name] = value
    return labels


def _fixed(home: Path) -> Path:
    return home.expanduser().absolute()


def _fixed_url(url: SecretStr | None) -> SecretStr | None:
    """Make the path of a SQLite file absolute."""
    text = url.get_secret_value() if url else ""
    scheme, separator, path = text.partition(":///")
    if not (separator and scheme.split("+")[0] == "sqlite" and path) or path.startswith(("/", ":memory:", "file:")):
        return url
    return SecretStr(f"{scheme}:///{Path(path).absolute()}")


def _valid_grouping(text: str) -> str:
    grouping_labels(text)
    return text


Place = Annotated[str, BeforeValidator(str)]
"""A path, or the URL of a place in an object store."""

Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """All settings; the field ``staging_max_pending`` is the variable ``TIMESTORE_STAGING_MAX_PENDING``.

    Relative paths are resolved against ``home``, which is fixed when the settings are made: a process that goes to
    another folder afterwards has its files where they were. Build it with :func:`load_settings`, which turns
    validation errors into messages for people.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    home: Annotated[Path, AfterValidator(_fixed)] = Field(
        default=Path(),
        validate_default=True,
        description="Folder against which all relative paths are resolved; the current one by default.",
    )
    datasets_file: Path = Field(default=Path("datasets.yaml"), description="The declaration of all datasets.")

    landing_directory: Place = Field(
        default="data/landing",
        description="Files for a dataset are dropped in `<landing>/<dataset>/`; a folder, or a place in an object "
        "store ([object-store.md](object-store.md)).",
    )
    landing_after_ingest: AfterIngest = Field(
        default=AfterIngest.ARCHIVE,
        description="What becomes of a landing file once its batch is acknowledged: `archive`, `delete` or `keep`.",
    )
    landing_archive_directory: Place = Field(
        default="data/archive",
        description="Where archived landing files go, in `<archive>/<dataset>/<date>/`; a folder, or a place in an "
        "object store. To be set where landing is in one, best to another prefix of the same bucket.",
    )
    landing_archive_retention_seconds: Seconds = Field(
        default=7_776_000.0,
        description="How long archived landing files are kept, counted from the day in their folder's name; 0 keeps "
        "them for ever.",
    )
    landing_archive_max_dataset_bytes: Count = Field(
        default=107_374_182_400,
        description="Maximum bytes of archived landing files of one dataset, as maintenance sees them once an hour: it "
        "removes the oldest until there are no more. 0 switches the limit off.",
    )
    landing_max_files_per_run: PositiveCount = Field(
        default=10_000, description="Maximum number of landing files that one ingest run takes, over all datasets."
    )
    landing_max_bytes_per_run: PositiveCount = Field(
        default=1 << 30,
        description="Maximum bytes of landing files that one ingest run takes, over all datasets, which take turns; "
        "the first file of each dataset is taken whatever its size.",
    )
    landing_max_file_bytes: PositiveCount = Field(
        default=4_294_967_296,
        description="Maximum bytes of one landing file, as they are read and as they lie on the disk (a sparse file "
        "has less there, a preallocated one more). A larger one is quarantined unread.",
    )
    landing_max_reading_seconds: PositiveSeconds = Field(
        default=900.0,
        description="How long files that are read together may take, hashing included; then they are read in smaller "
        "groups, and one that takes longer alone is quarantined. A process in which a reader heeds no interrupt ends "
        "after twice that time.",
    )
    landing_max_attempts: PositiveCount = Field(
        default=3,
        description="A landing file is quarantined unread after this many processes have ended while they read it "
        "alone. It is tried again by itself, 10 minutes, an hour and 6 hours later.",
    )
    landing_max_arrow_bytes: PositiveCount = Field(
        default=536_870_912,
        description="Maximum bytes of an Arrow file, as it is and unpacked: such files are read into memory whole. A "
        "larger one is quarantined.",
    )
    landing_sensor_interval_seconds: PositiveCount = Field(
        default=5, description="Minimum time between two ticks of `landing_sensor`."
    )

    batch_max_columns: PositiveCount = Field(
        default=2_000,
        description="Maximum number of columns of a batch, those that the dataset ignores included: of a file, a body "
        "or a frame. A dataset has 1,000 at most.",
    )
    batch_max_metadata_bytes: PositiveCount = Field(
        default=1_048_576,
        description="Maximum bytes that a batch says of itself: the footer of a Parquet file, the schema of an Arrow "
        "stream and the description of each of its batches. To read them takes up to 200 times as much memory.",
    )

    work_directory: Path = Field(
        default=Path("data/work"),
        description="Local folder of this host for what is kept in an object store: its cached copies and what is on "
        "its way there, which may be lost at any time. Where staging is in an object store, DuckDB's temporary files "
        "and by default the ledger are here too; the ledger may not be lost.",
    )
    object_cache_bytes: Count = Field(
        default=4_294_967_296,
        description="Maximum bytes of cached copies of objects in TIMESTORE_WORK_DIRECTORY, over all processes of the "
        "host; the least recently used go first. Those of the last minute stay even beyond it.",
    )
    object_store_timeout_seconds: PositiveSeconds = Field(
        default=60.0, description="How long one request to an object store may take, 64 MiB of content included."
    )
    object_store_retry_seconds: Seconds = Field(
        default=60.0,
        description="For how long a request is made again that an object store does not answer, or answers with 5xx, "
        "429 or SlowDown, at growing random intervals; then it is an error.",
    )

    staging_enabled: bool = Field(
        default=True,
        description="Deprecated, for rollback, gone with the next release: `false` sends ingest straight to the table, "
        "without waiting for a flush trigger. See [back-pressure](back-pressure.md#the-deprecated-way).",
    )
    staging_directory: Place = Field(
        default="data/staging",
        description="Holds the segments, the quarantine and, by default, the ledger; or a place for segments and "
        "quarantine in an object store: `s3://bucket/prefix`, `gs://…` or `az://…` "
        "([object-store.md](object-store.md)).",
    )
    staging_max_dataset_bytes: Count = Field(
        default=536_870_912, description="Size guardrail: staged, unpublished bytes of one dataset; 0 switches it off."
    )
    staging_max_total_bytes: Count = Field(
        default=0,
        description="Size guardrail: staged, unpublished bytes of all datasets, and what is in quarantine; 0 switches "
        "it off.",
    )
    quarantine_max_dataset_bytes: Count = Field(
        default=268_435_456,
        description="Maximum bytes of rows of one dataset that are set aside, each entry counted as 4 KiB at least. A "
        "batch with rows for which there is no room is refused whole, and a landing file quarantined whole; other "
        "batches go on. 0 switches the limit off.",
    )
    quarantine_retention_seconds: Seconds = Field(
        default=7_776_000.0,
        description="How long files and rows are kept in quarantine before maintenance discards them; 0 keeps them for "
        "ever. Staged rows that cannot be read back are always kept.",
    )
    staging_guardrail_mode: GuardrailMode = Field(
        default=GuardrailMode.WARN, description="Whether a size guardrail logs (`warn`) or refuses (`enforce`)."
    )
    staging_max_pending: Count = Field(
        default=1_000,
        description="Maximum number of staged, unpublished batches of one dataset; 0 switches the limit off. "
        "At half of it the dataset is flushed.",
    )
    staging_max_windows: Count = Field(
        default=1_000,
        description="Maximum number of windows that one batch may have rows in, as each becomes a file of the table; "
        "more is refused, and a landing file is quarantined. 0 switches the limit off. For a backfill set it for the "
        "dataset: `timestore limits set DATASET max_windows N`.",
    )
    staging_concurrent_ingests: Count = Field(
        default=0,
        description="Maximum number of segments of one dataset that are written at the same time, over all processes; "
        "each takes up to TIMESTORE_DUCKDB_MEMORY_LIMIT. The next one waits its turn. 0 switches the limit off.",
    )
    staging_turn_timeout_seconds: Seconds = Field(
        default=30.0,
        description="How long a batch waits its turn under TIMESTORE_STAGING_CONCURRENT_INGESTS before it is refused.",
    )
    staging_flush_max_rows: Count = Field(
        default=50_000, description="Flush trigger: staged rows of a dataset; 0 switches it off."
    )
    staging_flush_max_bytes: Count = Field(
        default=134_217_728, description="Flush trigger: staged bytes of a dataset; 0 switches it off."
    )
    staging_flush_max_age_ms: Count = Field(
        default=60_000,
        description="Flush trigger: age of the oldest staged batch of a dataset, in milliseconds; 0 switches it off. "
        "With all three triggers off a dataset is flushed whenever something is staged.",
    )
    staging_flush_late_max_age_ms: Count = Field(
        default=600_000,
        description="The same age for late rows, those of windows that were closed and published already when they "
        "came: they wait longer, so that a trickle of them does not make a tiny file a minute. No less than the age of "
        "the other rows; 0 is the same. See [late data](late-data.md).",
    )
    staging_retention_seconds: Seconds = Field(
        default=3_600.0,
        description="How long a segment is kept after all its rows are published. As long, a window can be built again "
        "from what was staged (`rebuild`).",
    )
    staging_max_future_ms: Count = Field(
        default=86_400_000,
        description="Rows whose time lies further in the future than this are quarantined, in milliseconds.",
    )
    staging_min_free_disk_bytes: Count = Field(
        default=268_435_456, description="Free disk that staging and building always leave; less refuses new batches."
    )

    tables_url: str = Field(
        default="data/tables",
        description="Folder of the Delta tables, one per dataset; or a place for them in an object store: "
        "`s3://bucket/prefix`, `gs://…` or `az://…` ([object-store.md](object-store.md)).",
    )
    ledger_url: Annotated[SecretStr | None, AfterValidator(_fixed_url)] = Field(
        default=None,
        description="SQLAlchemy URL of the ledger; by default SQLite in the staging directory, or in "
        "TIMESTORE_WORK_DIRECTORY where staging is in an object store.",
    )
    ledger_busy_timeout_seconds: PositiveSeconds = Field(
        default=30.0,
        description="How long to wait for a ledger that another process is writing to, or whose server is away.",
    )
    ledger_pool_size: PositiveCount = Field(
        default=5,
        description="PostgreSQL only: connections to the ledger that a process keeps open once it needed them; at "
        "moments it opens up to twice as many. See [PostgreSQL](postgresql.md#connections).",
    )

    table_retention_seconds: Seconds = Field(
        default=0.0,
        description="How long after its end a window stays in the table; then it is dropped with all its rows. "
        "0 keeps windows for ever.",
    )

    vacuum_grace_seconds: PositiveSeconds = Field(
        default=3_600.0,
        description="How long files that compaction, a rebuild or retention took out of the table stay on disk, for "
        "readers that began before; no query may last longer.",
    )
    ledger_batch_retention_seconds: PositiveSeconds = Field(
        default=2_592_000.0,
        description="How long a batch is remembered after it is published, so that offering it again changes nothing; "
        "later the ledger forgets it, and it would be staged again. Batches of segments that are kept are remembered.",
    )
    ledger_build_retention_seconds: PositiveSeconds = Field(
        default=2_592_000.0, description="How long builds that ended are kept in the ledger, the last ones always."
    )
    maintenance_cron: str = Field(
        default="*/10 * * * *",
        pattern=r"^\S+( \S+){4}$",
        description="When the `maintenance` job runs (five cron fields, UTC); it is passed over where there is nothing "
        "to do.",
    )
    maintenance_max_removals: PositiveCount = Field(
        default=10_000,
        description="Maximum number of files that one maintenance run removes of each kind (segments, Parquet files, "
        "orphans, Dagster runs), and most segments that it lets the ledger forget of a dataset.",
    )
    dagster_run_retention_seconds: Seconds = Field(
        default=604_800.0,
        description="How long runs that sensors and schedules asked for are kept after their end; 0 keeps them by "
        "number only. The run of the latest materialization of any partition is always kept.",
    )
    dagster_keep_runs: Count = Field(
        default=1_000, description="Maximum number of runs of sensors and schedules that are kept; 0 is no limit."
    )
    maintenance_max_compacted_bytes: PositiveCount = Field(
        default=4_294_967_296, description="About how many bytes one maintenance run compacts, over all datasets."
    )

    build_target_file_bytes: Annotated[int, Field(ge=1 << 20)] = Field(
        default=134_217_728, description="Size at which a build starts the next Parquet file of a window."
    )
    build_concurrent_builds: Annotated[int, Field(ge=1, le=MOST_LANES)] = Field(
        default=1,
        description="Builds of one dataset at the same time, each of other windows, unless the dataset has its own "
        "limit. Different datasets are always built beside each other.",
    )
    build_least_shared_rows: PositiveCount = Field(
        default=250_000,
        description="Where a dataset may have several builds at the same time, none takes fewer staged rows than these "
        "in order to leave the others some: a commit costs more than it brings then.",
    )
    build_lease_seconds: PositiveSeconds = Field(
        default=120.0,
        description="A build that has not sent a heartbeat for this long may be settled by another process.",
    )
    build_max_attempts: PositiveCount = Field(
        default=3,
        description="After this many failed builds of a dataset in a row, staged rows that cannot be read are "
        "quarantined and the rest is built.",
    )
    compaction_max_small_files: Count = Field(
        default=16,
        description="An open window with more files below half of TIMESTORE_BUILD_TARGET_FILE_BYTES is compacted; "
        "0 waits until it closes. Closed windows are always compacted.",
    )
    compaction_max_bytes_per_build: PositiveCount = Field(
        default=536_870_912,
        description="About how many bytes one compaction merges, before a flush of the dataset may go in between.",
    )
    flush_sensor_interval_seconds: PositiveCount = Field(
        default=5, description="Minimum time between two ticks of `flush_sensor`."
    )

    slo_flush_seconds: Seconds = Field(
        default=30.0,
        description="Service level: 95 % of flushes take no longer, else an alert fires; 0 promises nothing.",
    )
    slo_publish_seconds: Seconds = Field(
        default=0.0,
        description="Service level: the longest time from staging to the table, else an alert fires. "
        "0: twice the dataset's age threshold, and 60 s at least.",
    )
    runbook_url: str = Field(
        default=_RUNBOOK,
        description="Where operators find the runbook: each asset page in the UI links to it. A path is shown as text.",
    )
    freshness_seconds: Annotated[float, AfterValidator(_a_minute_or_none), Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0,
        description="Freshness that is promised of every table, unless the dataset has its own: Dagster warns when "
        "half of it has passed since the table last got rows, and shows the table as failing after the whole. "
        "At least 60; 0 promises nothing.",
    )

    duckdb_threads: Count = Field(default=0, description="Threads of a DuckDB connection; 0 takes one per core.")
    duckdb_memory_limit: str = Field(
        default="384MiB", pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$", description="Memory limit of a DuckDB connection."
    )
    duckdb_temp_directory: Path | None = Field(
        default=None, description="Where DuckDB spills to; by default a folder in the staging directory."
    )

    query_max_seconds: Seconds = Field(
        default=3_600.0,
        description="How long a query may take, from its start to its last row: `timestore sql`, `Timestore.sql` and "
        "`read`, the IO manager. 0 lets it go on for ever. Where one function of DuckDB hears nothing of it, "
        "`timestore sql` ends its process 5 s later; a process of your own goes on.",
    )
    query_max_spill_bytes: Count = Field(
        default=10_737_418_240,
        description="Disk that a query may spill to. Whatever this says, it gets no more than half of what is free "
        "beyond `TIMESTORE_STAGING_MIN_FREE_DISK_BYTES`, and with 0 just that.",
    )

    pushgateway_url: Annotated[str | None, AfterValidator(_no_trailing_slash)] = Field(
        default=None, repr=False, description="Pushgateway to push metrics to; without it metrics are off."
    )
    pushgateway_job: str = Field(default="timestore", min_length=1, description="The `job` label of pushed metrics.")
    pushgateway_grouping: Annotated[str, AfterValidator(_valid_grouping)] = Field(
        default="",
        description="Further grouping labels of pushed metrics, such as `environment=prod,site=fra`. Where the job or "
        "they change, the old group stays in the gateway until somebody deletes it.",
    )
    pushgateway_timeout_seconds: PositiveSeconds = Field(
        default=2.0,
        description="How long a push may wait for its turn, and for the gateway, before it is given up with a warning.",
    )
    pushgateway_username: str | None = Field(
        default=None, pattern="^[^:]+$", description="User name for basic authentication at the Pushgateway."
    )
    pushgateway_password: SecretStr | None = Field(default=None, description="Password of that user.")
    pushgateway_password_file: Path | None = Field(
        default=None, description="File that holds the password instead; read anew for each push."
    )
    pushgateway_bearer_token: SecretStr | None = Field(
        default=None, description="Bearer token for a proxy before the Pushgateway, instead of user and password."
    )
    pushgateway_bearer_token_file: Path | None = Field(
        default=None, description="File that holds the token instead; read anew for each push, so it may be renewed."
    )
    pushgateway_ca_file: Path | None = Field(
        default=None,
        description="Certificates (PEM) of the authorities that may vouch for the Pushgateway; by default the "
        "system's.",
    )
    pushgateway_certificate_file: Path | None = Field(
        default=None, description="Client certificate (PEM) to show to the Pushgateway."
    )
    pushgateway_key_file: Path | None = Field(
        default=None, description="Its private key, where it is not in the same file; without a passphrase."
    )
    pushgateway_verify_tls: bool = Field(
        default=True,
        description="Whether the Pushgateway must prove who it is. With `false` anyone on the way can read what is "
        "pushed, passwords and tokens included: for tests only.",
    )
    metrics_sensor_interval_seconds: PositiveCount = Field(
        default=15, description="Minimum time between two pushes of `metrics_sensor`."
    )

    http_tokens_file: Path | None = Field(
        default=None,
        description="File of the tokens that `timestore serve` takes, as hashes ([http.md](http.md#tokens)); only its "
        "owner may write it, and others not read it. Read anew when it changes.",
    )
    http_tokens: SecretStr | None = Field(default=None, description="The same text, instead of the file.")
    http_max_body_bytes: PositiveCount = Field(
        default=33_554_432,
        description="Maximum bytes of a request's body, as they are sent; more is answered with 413.",
    )
    http_max_decoded_bytes: PositiveCount = Field(
        default=134_217_728,
        description="Maximum bytes that a body may become when it is unpacked and read; more is answered with 413.",
    )
    http_max_rows: PositiveCount = Field(
        default=1_000_000, description="Maximum number of rows of one request; more is answered with 413."
    )
    http_max_held_bytes: PositiveCount = Field(
        default=268_435_456,
        description="Maximum bytes that are held at the same time of all requests together: bodies, what is unpacked "
        "of them, and their rows; more is answered with 503. Of one token it is half of that, or one request.",
    )
    http_max_requests: PositiveCount = Field(
        default=256, description="Maximum number of requests at the same time; more are answered with 503 at once."
    )
    http_max_requests_per_token: PositiveCount = Field(
        default=64,
        description="Maximum number of requests of one token at the same time; more are answered with 503 at once.",
    )
    http_max_connections: PositiveCount = Field(
        default=512,
        description="Maximum number of connections at the same time. A further one takes the place of the one that has "
        "been waiting longest without a request.",
    )
    http_max_header_bytes: PositiveCount = Field(
        default=32_768, description="Maximum bytes of a request's line and headers; more is answered with 431."
    )
    http_decode_memory_limit: str = Field(
        default="192MiB",
        pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$",
        description="Memory limit of a DuckDB connection that reads a body; what needs more is answered with 413. As "
        "many bodies are read at the same time as there are cores, two at least.",
    )
    http_decode_seconds: PositiveSeconds = Field(
        default=20.0,
        description="How much processor time reading a body may take, unpacking included; more is answered with 413.",
    )
    http_body_seconds: PositiveSeconds = Field(
        default=30.0, description="How long a client may take to send its body; then it is answered with 408."
    )
    http_request_seconds: PositiveSeconds = Field(
        default=60.0,
        description="How long a request may take once its body is there; then it is answered with 503, and is to be "
        "sent again with the same key.",
    )

    @model_validator(mode="after")
    def _folders_that_libraries_can_take(self) -> Self:
        folders = {
            "home": self.home,
            "staging_directory": self.staging_location,
            "landing_directory": self.landing_location,
            "landing_archive_directory": self.archive_location,
            "tables_url": self.tables_location,
            "duckdb_temp_directory": self.temp_path,
            "work_directory": self.work_path,
        }
        for field, folder in folders.items():
            if not isinstance(folder, Path):
                continue  # looked at as a URL
            found = _NOT_IN_FOLDERS.search(str(folder))
            if found:
                # Not a ValueError: Pydantic would keep the message and forget the variable.
                raise SettingsError(
                    f"{variable_name(field)}: the folder {str(folder)!r} has {found[0]!r} in its name, which "
                    "DuckDB and Delta Lake cannot take (nor ?, \\, %-codes, control characters, non-UTF-8); rename it"
                )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [*_gateway_contradictions(self), *_landing_contradictions(self)]
        if self.http_tokens is not None and self.http_tokens_file is not None:
            problems.append(
                f"{variable_name('http_tokens')} and {variable_name('http_tokens_file')} are both set: keep one of them"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def path(self, configured: Path | str) -> Path:
        """Return ``configured`` as an absolute path, resolved against ``home``."""
        return self.home / Path(configured).expanduser()

    def location(self, field: str, configured: Path | str) -> Path | ObjectUrl:
        """Return the place that a setting names: an absolute path, or a URL of an object store.

        Raises:
            SettingsError: it is a URL of something else; names the variable.
        """
        if not is_url(str(configured)):
            return self.path(configured)
        try:
            return parse_url(str(configured))
        except ValueError as error:
            raise SettingsError(f"{variable_name(field)}: {error}") from None

    @property
    def staging_location(self) -> Path | ObjectUrl:
        """Where segments and quarantine are: a folder, absolute, or a place in an object store."""
        return self.location("staging_directory", self.staging_directory)

    @property
    def staging_path(self) -> Path:
        """The local folder of staging, absolute: the staging directory, or the work directory where that is a URL."""
        location = self.staging_location
        return location if isinstance(location, Path) else self.work_path

    @property
    def landing_location(self) -> Path | ObjectUrl:
        """Where files land: a folder, absolute, or a place in an object store."""
        return self.location("landing_directory", self.landing_directory)

    @property
    def landing_path(self) -> Path:
        """The folder in which landing files are read: the landing directory, or where objects are fetched to."""
        location = self.landing_location
        return location if isinstance(location, Path) else self.work_path / "landing"

    @property
    def archive_location(self) -> Path | ObjectUrl:
        """Where landing files are archived: a folder, absolute, or a place in an object store."""
        return self.location("landing_archive_directory", self.landing_archive_directory)

    @property
    def archive_path(self) -> Path:
        """The archive directory, absolute, where it is one of this host."""
        location = self.archive_location
        return location if isinstance(location, Path) else self.work_path / "archive"

    @property
    def tables_location(self) -> Path | ObjectUrl:
        """Where the tables are: a folder, absolute, or a place in an object store."""
        return self.location("tables_url", self.tables_url)

    def table_location(self, dataset: str) -> Path | ObjectUrl:
        """Where the table of a dataset is."""
        return self.tables_location / dataset

    @property
    def work_path(self) -> Path:
        """The local folder for what is kept in an object store, absolute."""
        return self.path(self.work_directory)

    @property
    def datasets_path(self) -> Path:
        """The datasets file, absolute."""
        return self.path(self.datasets_file)

    @property
    def temp_path(self) -> Path:
        """Where DuckDB spills to, absolute."""
        return self.path(self.duckdb_temp_directory) if self.duckdb_temp_directory else self.staging_path / "_tmp"

    @property
    def resolved_ledger_url(self) -> str:
        """The ledger's SQLAlchemy URL; may hold a password, so never print it."""
        if self.ledger_url is not None:
            return self.ledger_url.get_secret_value()
        return f"sqlite:///{self.staging_path / 'ledger.sqlite'}"


def _gateway_contradictions(settings: Settings) -> Iterator[str]:
    """Say what cannot be meant together; names variables, never values."""
    given = {name for name in settings.model_fields_set if getattr(settings, name) not in (None, "")}

    def named(*fields: str) -> list[str]:
        return [variable_name(field) for field in fields if field in given]

    for kind in ("password", "bearer_token"):
        both = named(f"pushgateway_{kind}", f"pushgateway_{kind}_file")
        if len(both) == 2:
            yield f"{both[0]} and {both[1]} are both set: keep one of them"
    passwords = named("pushgateway_password", "pushgateway_password_file")
    users = named("pushgateway_username")
    in_url = "@" in (settings.pushgateway_url or "").split("//")[-1].split("/")[0]
    tokens = named("pushgateway_bearer_token", "pushgateway_bearer_token_file")
    url = variable_name("pushgateway_url")
    if bool(passwords) != bool(users):
        missing = variable_name("pushgateway_username" if passwords else "pushgateway_password")
        yield f"{(passwords or users)[0]} is set without {missing}: a login needs both"
    logins = [*([f"the login in {url}"] if in_url else []), *users, *tokens[:1]]
    if len(logins) > 1:
        yield f"{' and '.join(logins)} contradict each other: keep one way to authenticate"
    if named("pushgateway_key_file") and not named("pushgateway_certificate_file"):
        yield f"{variable_name('pushgateway_key_file')} is set without {variable_name('pushgateway_certificate_file')}"
    tls = named("pushgateway_ca_file", "pushgateway_certificate_file")
    tls += [] if settings.pushgateway_verify_tls else [variable_name("pushgateway_verify_tls")]
    if tls and settings.pushgateway_url and urlsplit(settings.pushgateway_url).scheme != "https":
        yield f"{tls[0]} has no effect, because {url} does not begin with https://"


def _landing_contradictions(settings: Settings) -> Iterator[str]:
    landing = settings.landing_location
    if isinstance(landing, Path):
        return
    name, archive, after = map(
        variable_name, ("landing_directory", "landing_archive_directory", "landing_after_ingest")
    )
    archives = settings.landing_after_ingest is AfterIngest.ARCHIVE
    if archives and "landing_archive_directory" not in settings.model_fields_set:
        yield (
            f"{name} is {landing}, and {archive} is not set: set it to where archived files are to go, such as "
            f"{ObjectUrl(landing.scheme, landing.bucket, 'archive')}, or {after} to delete or keep"
        )
    others = {"staging_directory": settings.staging_location}
    if archives:
        others["landing_archive_directory"] = settings.archive_location
    for field, other in others.items():
        if f"{other}/".startswith(f"{landing}/"):
            yield f"{variable_name(field)} is {other}, within {name}: each look would list it; choose another prefix"


def variable_name(field: str) -> str:
    """Return the environment variable of the settings field ``field``."""
    return PREFIX + field.upper()


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Return the ``TIMESTORE_*`` names in ``environ`` that no setting has, each with the nearest real name."""
    # Compared without the prefix, which would make any two names look alike.
    known = {field.upper() for field in Settings.model_fields}
    unknown = {}
    for name in sorted(environ):
        field = name.upper().removeprefix(PREFIX)
        if name.upper().startswith(PREFIX) and field not in known:
            nearest = next(iter(difflib.get_close_matches(field, known, n=1)), None)
            unknown[name] = variable_name(nearest) if nearest else None
    return unknown


def load_settings(**overrides: Any) -> Settings:
    """Read the environment into a :class:`Settings`; keyword arguments take precedence.

    Unknown ``TIMESTORE_*`` names are logged as warnings rather than refused: orchestrators inject names of
    their own (a Kubernetes service called ``timestore`` sets ``TIMESTORE_SERVICE_HOST``).

    Raises:
        SettingsError: a value is not allowed; names every wrong variable and what is allowed.
    """
    for name, nearest in unknown_variables(os.environ).items():
        hint = f"; did you mean {nearest}?" if nearest else ""
        log.warning("environment variable %s is no setting of timestore and has no effect%s", name, hint)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(problem) for problem in error.errors())) from error


def _explain(problem: Any) -> str:
    if not problem["loc"]:  # of several settings together; the message names them, their values are nobody's business
        return problem["msg"].removeprefix("Value error, ")
    field = str(problem["loc"][0])
    known = field in Settings.model_fields
    secret = known and (
        "SecretStr" in str(Settings.model_fields[field].annotation) or not Settings.model_fields[field].repr
    )
    shown = "" if secret else f" is {problem['input']!r}, which is not allowed"
    message = problem["msg"].removeprefix("Value error, ")
    allowed = message[0].lower() + message[1:]
    return f"{variable_name(field)}{shown}: {allowed}"
