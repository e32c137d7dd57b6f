"""Every series that is exported (long, because it is one table: the projection and the docs are made from it)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from timestore_pipeline.ledger.counters import (
    COMPACTED_FILES,
    COMPACTION_DURATION,
    CORRECTED_ROWS,
    CORRECTIONS,
    DIRECT_WRITE_BATCHES,
    DROPPED_BATCHES,
    EXPIRED_ROWS,
    EXPIRED_WINDOWS,
    FLUSH_BATCHES,
    FLUSH_DURATION,
    FLUSH_ROWS,
    GUARDRAIL_BREACHES,
    LANDING_FAILED_LOOKS,
    LATE_BATCHES,
    LATE_ROWS,
    LOST_ROWS,
    RETENTION_BYTES,
    RETENTION_SEGMENTS,
    RETRIED_BATCHES,
    SEGMENT_BYTES,
    VACUUMED_BYTES,
    VACUUMED_FILES,
)

LANDING_FILES = "timestore_landing_backlog_files"
LANDING_BYTES = "timestore_landing_backlog_bytes"
LANDING_AGE = "timestore_landing_backlog_oldest_age_seconds"
LANDING_TIMESTAMP = "timestore_landing_backlog_oldest_timestamp_seconds"
QUEUE_DEPTH = "timestore_staging_queue_depth"
QUEUE_BYTES = "timestore_staging_queue_bytes"
OLDEST_AGE = "timestore_staging_oldest_age_seconds"
OLDEST_TIMESTAMP = "timestore_staging_oldest_timestamp_seconds"
CORRECTIONS_PENDING = "timestore_corrections_pending_windows"
CORRECTIONS_AGE = "timestore_corrections_pending_oldest_age_seconds"
CORRECTIONS_TIMESTAMP = "timestore_corrections_pending_oldest_timestamp_seconds"
FLUSH_THRESHOLD = "timestore_staging_flush_threshold"
LIMIT = "timestore_staging_limit"
SLO = "timestore_slo_seconds"
INTAKE_PAUSED = "timestore_staging_intake_paused"
TABLE_REFUSED = "timestore_table_refused"
DATASET_REFUSED = "timestore_dataset_refused"
WORK_BYTES = "timestore_work_bytes"
SEGMENTS = "timestore_staging_segments"
DISK_USAGE = "timestore_staging_disk_usage_bytes"
FLUSH_LAST_SUCCESS = "timestore_staging_flush_last_success_timestamp_seconds"
BUILDS_IN_FLIGHT = "timestore_builds_in_flight"
BUILD_AGE = "timestore_builds_in_flight_age_seconds"
BUILD_TIMESTAMP = "timestore_builds_in_flight_oldest_timestamp_seconds"
PUBLISHED_ROWS = "timestore_published_rows"
PUBLISHED_BYTES = "timestore_published_bytes"
PUBLISHED_FILES = "timestore_published_files"
PUBLISHED_WINDOWS = "timestore_published_windows"
QUARANTINED_BATCHES = "timestore_quarantined_batches"
QUARANTINED_ROWS = "timestore_quarantined_rows"
QUARANTINED_SEGMENTS = "timestore_quarantined_segments"
LEDGER_BYTES = "timestore_ledger_bytes"
PLACES_UNUSABLE = "timestore_places_unusable"
METRICS_TIMESTAMP = "timestore_metrics_timestamp_seconds"
HTTP_REQUESTS = "timestore_http_requests_total"
HTTP_REFUSED = "timestore_http_refused_requests_total"
HTTP_DURATION = "timestore_http_request_duration_seconds"
HTTP_IN_FLIGHT = "timestore_http_requests_in_flight"


class SeriesType(StrEnum):
    """Prometheus metric types that are used."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Series:
    """One metric: every sample of it has the label ``dataset``, and ``label`` where there is a second one.

    A metric of the whole installation (``per_dataset`` is false) has one sample without labels.
    ``values`` are the values of the second label that are exported, as 0, before anything was counted;
    without the zero an alert on ``increase()`` would miss the first event.
    """

    name: str
    type: SeriesType
    unit: str
    help: str
    label: str | None = None
    values: tuple[str, ...] = ()
    per_dataset: bool = True
    own_labels: tuple[str, ...] = ()
    """All labels, of a series that says nothing of a dataset."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All label names, in the order of their values in a sample."""
        if not self.per_dataset:
            return self.own_labels
        return ("dataset", self.label) if self.label else ("dataset",)


_RESULTS = ("success", "failure")
_LATE_OUTCOMES = ("within_lateness", "accepted", "quarantined", "dropped")

SERIES = (
    Series(
        LANDING_FILES,
        SeriesType.GAUGE,
        "files",
        "Landing files that are ready and wait to be staged, as landing_sensor last saw them.",
    ),
    Series(LANDING_BYTES, SeriesType.GAUGE, "bytes", "Bytes of the landing files that wait."),
    Series(
        LANDING_AGE,
        SeriesType.GAUGE,
        "seconds",
        "Time since the oldest landing file that waits was last written to; 0 when none waits.",
    ),
    Series(
        LANDING_TIMESTAMP,
        SeriesType.GAUGE,
        "seconds since the Unix epoch",
        "When the oldest landing file that waits was last written to; 0 when none waits.",
    ),
    Series(
        LANDING_FAILED_LOOKS,
        SeriesType.COUNTER,
        "looks",
        "Looks at a landing folder in an object store that the store refused, or did not answer.",
        per_dataset=False,
    ),
    Series(
        QUEUE_DEPTH,
        SeriesType.GAUGE,
        "batches or rows",
        "What is staged and not yet published.",
        "metric",
        ("batches", "rows"),
    ),
    Series(QUEUE_BYTES, SeriesType.GAUGE, "bytes", "Bytes staged and not yet published."),
    Series(
        OLDEST_AGE,
        SeriesType.GAUGE,
        "seconds",
        "Age of the oldest staged, unpublished batch; 0 when nothing is staged. Late rows, which may wait longer, "
        "count from so much later.",
    ),
    Series(
        OLDEST_TIMESTAMP,
        SeriesType.GAUGE,
        "seconds since the Unix epoch",
        "When the oldest staged, unpublished batch was staged; 0 when nothing is staged. Take time() minus this for "
        "an age that goes on growing when nobody pushes.",
    ),
    Series(CORRECTIONS, SeriesType.COUNTER, "corrections", "Corrections that were acknowledged."),
    Series(
        CORRECTED_ROWS,
        SeriesType.COUNTER,
        "rows",
        "Rows that builds left out because corrections took them back, published before or not.",
    ),
    Series(
        CORRECTIONS_PENDING,
        SeriesType.GAUGE,
        "windows",
        "Windows whose published rows are to be corrected by a build; without those that a build has just now.",
    ),
    Series(
        CORRECTIONS_AGE,
        SeriesType.GAUGE,
        "seconds",
        "Age of the oldest correction that the table waits for; 0 when it waits for none.",
    ),
    Series(
        CORRECTIONS_TIMESTAMP,
        SeriesType.GAUGE,
        "seconds since the Unix epoch",
        "When the oldest correction that the table waits for was acknowledged; 0 when it waits for none. Take time() "
        "minus this for an age that goes on growing when nobody pushes.",
    ),
    Series(
        FLUSH_THRESHOLD,
        SeriesType.GAUGE,
        "rows, bytes or seconds (age)",
        "Effective threshold at which staged rows are flushed; 0 is off.",
        "threshold",
        ("rows", "bytes", "age"),
    ),
    Series(
        LIMIT,
        SeriesType.GAUGE,
        "batches, bytes, windows, segments (ingests) or builds",
        "Effective limit of what may be staged and unpublished, of windows of a batch, of segments written at the same "
        "time (0 is off), and of builds in flight.",
        "limit",
        ("batches", "bytes", "windows", "ingests", "builds"),
    ),
    Series(
        INTAKE_PAUSED,
        SeriesType.GAUGE,
        "0 or 1",
        "1 while an operator has stopped intake (timestore drain): batches are refused and landing files wait.",
    ),
    Series(
        TABLE_REFUSED,
        SeriesType.GAUGE,
        "0 or 1",
        "1 while the table is not written to, as its log says that it is another installation's, or has commits that "
        "the ledger does not know.",
    ),
    Series(
        DATASET_REFUSED,
        SeriesType.GAUGE,
        "0 or 1",
        "1 while datasets.yaml contradicts what the ledger has of the dataset, which is left alone: nothing of it is "
        "staged, published or read.",
    ),
    Series(
        SLO,
        SeriesType.GAUGE,
        "seconds",
        "What is promised: 95 % of flushes take no longer (flush), and rows are in the table so long after they were "
        "staged (publish); 0 promises nothing.",
        "slo",
        ("flush", "publish"),
    ),
    Series(
        SEGMENTS,
        SeriesType.GAUGE,
        "segments",
        "Segment files on disk; divide the disk usage by it for their mean size.",
        "component",
        ("staged", "retained"),
    ),
    Series(
        DISK_USAGE,
        SeriesType.GAUGE,
        "bytes",
        "Disk in the staging directory: segments with unpublished rows (staged), published segments kept until "
        "retention ends (retained), and what is in quarantine; and the archive, as maintenance last saw it.",
        "component",
        ("staged", "retained", "quarantine", "archive"),
    ),
    Series(
        WORK_BYTES,
        SeriesType.GAUGE,
        "bytes",
        "Disk that is taken by cached copies of objects and by what is being worked on (bodies of requests, fetched "
        "files, what DuckDB spills), as maintenance last saw it on its host.",
        per_dataset=False,
    ),
    Series(SEGMENT_BYTES, SeriesType.HISTOGRAM, "bytes", "Sizes of the segments that were staged."),
    Series(
        FLUSH_DURATION,
        SeriesType.HISTOGRAM,
        "seconds",
        "Time from the claim of a build to its end.",
        "result",
        _RESULTS,
    ),
    Series(
        FLUSH_BATCHES,
        SeriesType.COUNTER,
        "batches",
        "Batches with rows in builds that ended; a batch that two builds share counts in both.",
        "result",
        _RESULTS,
    ),
    Series(
        FLUSH_ROWS,
        SeriesType.COUNTER,
        "rows",
        "Rows in builds that ended, with those of them that corrections took back.",
        "result",
        _RESULTS,
    ),
    Series(
        FLUSH_LAST_SUCCESS,
        SeriesType.GAUGE,
        "seconds since the Unix epoch",
        "When rows were last published; 0 if never.",
    ),
    Series(
        DROPPED_BATCHES,
        SeriesType.COUNTER,
        "batches",
        "Batches that were refused: the caller was told, nothing acknowledged was lost.",
        "reason",
        ("queue_full", "disk_full", "guardrail", "busy", "paused", "writer_full"),
    ),
    Series(
        RETRIED_BATCHES,
        SeriesType.COUNTER,
        "batches",
        "Batches offered again after they were acknowledged (duplicate), attempts after there was no room "
        "(queue_full, disk_full, guardrail, busy, paused), and batches of a build that died (flush_abort).",
        "reason",
        ("duplicate", "flush_abort", "queue_full", "disk_full", "guardrail", "busy", "paused"),
    ),
    Series(
        GUARDRAIL_BREACHES,
        SeriesType.COUNTER,
        "batches or segments",
        "Segments staged past a size guardrail (warn), and batches and ingests that one refused (enforce).",
        "guardrail",
        ("max_dataset_bytes", "max_total_bytes"),
    ),
    Series(
        DIRECT_WRITE_BATCHES,
        SeriesType.COUNTER,
        "batches",
        "Batches written the deprecated way, with TIMESTORE_STAGING_ENABLED=false.",
    ),
    Series(BUILDS_IN_FLIGHT, SeriesType.GAUGE, "builds", "Builds that claimed rows and have not ended."),
    Series(
        BUILD_AGE,
        SeriesType.GAUGE,
        "seconds",
        "Time since the claim of the oldest build in flight; 0 when there is none.",
    ),
    Series(
        BUILD_TIMESTAMP,
        SeriesType.GAUGE,
        "seconds since the Unix epoch",
        "When the oldest build in flight claimed its rows; 0 when there is none.",
    ),
    Series(
        LOST_ROWS,
        SeriesType.COUNTER,
        "rows",
        "Published rows that are gone: somebody deleted the dataset's table and no retained segment has them, or an "
        "operator gave them up (timestore loss accept).",
    ),
    Series(
        LATE_ROWS,
        SeriesType.COUNTER,
        "rows",
        "Rows that were offered after the end of their window: the window was not closed yet (within_lateness), or it "
        "was and they were staged all the same (accepted), set aside (quarantined), or dropped.",
        "outcome",
        _LATE_OUTCOMES,
    ),
    Series(
        LATE_BATCHES,
        SeriesType.COUNTER,
        "batches",
        "Batches with such rows; a batch counts under each outcome that its rows had.",
        "outcome",
        _LATE_OUTCOMES,
    ),
    Series(
        RETENTION_SEGMENTS,
        SeriesType.COUNTER,
        "segments",
        "Published segments that were unlinked after their retention had passed.",
    ),
    Series(RETENTION_BYTES, SeriesType.COUNTER, "bytes", "Bytes that unlinking them has freed."),
    Series(
        COMPACTION_DURATION,
        SeriesType.HISTOGRAM,
        "seconds",
        "Time from the claim of a compaction to its end; the dataset is not flushed meanwhile.",
        "result",
        _RESULTS,
    ),
    Series(COMPACTED_FILES, SeriesType.COUNTER, "files", "Small files that were merged into larger ones."),
    Series(EXPIRED_WINDOWS, SeriesType.COUNTER, "windows", "Windows that were dropped from the table by age."),
    Series(EXPIRED_ROWS, SeriesType.COUNTER, "rows", "Rows that were dropped from the table with them."),
    Series(VACUUMED_FILES, SeriesType.COUNTER, "files", "Parquet files that nobody could read any more, removed."),
    Series(VACUUMED_BYTES, SeriesType.COUNTER, "bytes", "Bytes that removing them has freed."),
    Series(PUBLISHED_ROWS, SeriesType.GAUGE, "rows", "Rows in the published table."),
    Series(PUBLISHED_BYTES, SeriesType.GAUGE, "bytes", "Parquet bytes in the published table."),
    Series(PUBLISHED_FILES, SeriesType.GAUGE, "files", "Parquet files in the published table."),
    Series(PUBLISHED_WINDOWS, SeriesType.GAUGE, "windows", "Windows (partitions) that have published rows."),
    Series(QUARANTINED_BATCHES, SeriesType.GAUGE, "batches", "Whole batches in quarantine, unresolved."),
    Series(
        QUARANTINED_ROWS,
        SeriesType.GAUGE,
        "rows",
        "Single rows in quarantine, unresolved: of batches whose other rows were staged, and of damaged segments.",
    ),
    Series(
        QUARANTINED_SEGMENTS,
        SeriesType.GAUGE,
        "segments",
        "Segments in quarantine, unresolved: some of their staged rows cannot be read back.",
    ),
    Series(LEDGER_BYTES, SeriesType.GAUGE, "bytes", "Size of the ledger's tables and indexes.", per_dataset=False),
    Series(
        PLACES_UNUSABLE,
        SeriesType.GAUGE,
        "places",
        "Staging, tables, archive and single tables on a file system that are not there or belong to another "
        "installation, for the process that took this picture; `timestore installation show` names them.",
        per_dataset=False,
    ),
    Series(
        METRICS_TIMESTAMP,
        SeriesType.GAUGE,
        "seconds since the Unix epoch",
        "When this picture was taken from the ledger.",
        per_dataset=False,
    ),
)
"""All series of the ledger, in the order in which they are exported."""

SERVER_SERIES = (
    Series(
        HTTP_REQUESTS,
        SeriesType.COUNTER,
        "requests",
        "Requests that one `timestore serve` has answered, by method and path.",
        per_dataset=False,
        own_labels=("endpoint", "status"),
    ),
    Series(
        HTTP_REFUSED,
        SeriesType.COUNTER,
        "requests",
        "Those answered with a problem, by its kind: queue-full, busy, disk-full, rows-rejected and others.",
        per_dataset=False,
        own_labels=("problem",),
    ),
    Series(
        HTTP_DURATION,
        SeriesType.HISTOGRAM,
        "seconds",
        "Time from the headers of a request to its answer, so with the commit that its batch waits for.",
        per_dataset=False,
        own_labels=("endpoint",),
    ),
    Series(
        HTTP_IN_FLIGHT,
        SeriesType.GAUGE,
        "requests",
        "Requests that one `timestore serve` is answering; TIMESTORE_HTTP_MAX_REQUESTS are the most.",
        per_dataset=False,
    ),
)
"""What a server counts of its own requests. They are of a process and not of the ledger: not in the picture that is
pushed."""
