"""What the dashboard shows: its rows and panels, and the queries behind them.

Thresholds and limits are drawn from the series that export them, so they follow every override.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

_HERE = 'dataset=~"$dataset"'


class Kind(StrEnum):
    """Types of panels, as Grafana calls them."""

    STAT = "stat"
    GRAPH = "timeseries"
    TABLE = "table"
    TEXT = "text"


@dataclass(frozen=True)
class Query:
    """One query and how its lines are named; ``legend`` of a table's query is the heading of its column."""

    expression: str
    legend: str = "{{dataset}}"


@dataclass(frozen=True)
class Panel:
    """One panel. ``warn`` and ``alarm`` colour a stat or a table's cells from these values on."""

    title: str
    queries: tuple[Query, ...] = ()
    unit: str = "short"
    kind: Kind = Kind.GRAPH
    width: int = 8
    height: int = 8
    description: str = ""
    warn: float | None = None
    alarm: float | None = None
    stacked: bool = False
    text: str = ""
    units_of_columns: dict[str, str] = field(default_factory=dict)


def _increase(series: str) -> str:
    return f"sum by (dataset) (increase({_of(series)}[$__rate_interval]))"


def _of(series: str, *matchers: str) -> str:
    return f"{series}{{{','.join((_HERE, *matchers))}}}"


def _since(series: str) -> str:
    """The age of what a series of times says; datasets where it says 0 (there is none) fall out."""
    return f"time() - ({_of(series)} > 0)"


def _stat(title: str, expression: str, *, unit: str = "short", warn: float | None = None, **more: Any) -> Panel:
    return Panel(title, (Query(expression, title),), unit, Kind.STAT, 3, 4, warn=warn, **more)


_PUBLISH = 'slo="publish"'
_OLDEST_AGE = _since("timestore_staging_oldest_timestamp_seconds")
_AGE_THRESHOLD = _of("timestore_staging_flush_threshold", 'threshold="age"')
_ROWS_THRESHOLD = _of("timestore_staging_flush_threshold", 'threshold="rows"')
_BYTES_THRESHOLD = _of("timestore_staging_flush_threshold", 'threshold="bytes"')
_FLUSH_SLO = _of("timestore_slo_seconds", 'slo="flush"')
_LATE_AFTER = f"{_of('timestore_slo_seconds', _PUBLISH)} > 0"
_QUEUE = _of("timestore_staging_queue_depth", 'metric="batches"')
_QUEUE_LIMIT = _of("timestore_staging_limit", 'limit="batches"')
_DISK = _of("timestore_staging_disk_usage_bytes", 'component="staged"')
_DISK_LIMIT = _of("timestore_staging_limit", 'limit="bytes"')
_DROPS = _of("timestore_staging_dropped_batches_total")
_FAILED = _of("timestore_staging_flush_duration_seconds_count", 'result="failure"')
_SUCCEEDED = _of("timestore_staging_flush_duration_seconds_count", 'result="success"')
_ROWS_PUBLISHED = _of("timestore_staging_flush_rows_total", 'result="success"')
_BATCHES_PUBLISHED = _of("timestore_staging_flush_batches_total", 'result="success"')
_LATE = f"({_OLDEST_AGE}) > ignoring (slo) ({_LATE_AFTER})"
_QUEUE_RATIO = f"{_QUEUE} / ignoring (metric, limit) ({_QUEUE_LIMIT} > 0)"
_DISK_RATIO = f"{_DISK} / ignoring (component, limit) ({_DISK_LIMIT} > 0)"
_QUARANTINED = " + ".join(_of(f"timestore_quarantined_{what}") for what in ("batches", "rows", "segments"))


_FLUSH_SECONDS = _of("timestore_staging_flush_duration_seconds_bucket", 'result="success"')
_SEGMENT_SIZES = _of("timestore_staging_segment_bytes_bucket")


def _quantile(of: float, buckets: str) -> str:
    return f"histogram_quantile({of}, sum by (dataset, le) (rate({buckets}[30m])))"


_ACTIONS = """\
| what you see | what it is called | first command |
| --- | --- | --- |
| batches refused | [drops](${runbook}#timestorebatchesdropped) | `timestore limits show DATASET` |
| late rows | [staged rows late](${runbook}#timestorestagedrowslate) | `timestore status DATASET` |
| failed builds | [flush failing](${runbook}#timestoreflushfailing) | `timestore status DATASET --json` |
| a build in flight for long | [stuck build](${runbook}#stuck-build) | `timestore status DATASET --json` |
| a long queue | [queue filling](${runbook}#timestorequeuefilling) | `timestore flush DATASET` |
| little room on disk | [disk filling](${runbook}#timestorediskfilling) | `timestore flush --all` |
| something in quarantine | [poison batch](${runbook}#poison-batch) | `timestore quarantine list DATASET` |
| a promise that is hard to keep | thresholds, replayed | `timestore simulate DATASET --max-age 10m` |
| rows of unknown origin | lineage of a window | `timestore lineage DATASET WINDOW` |
| an old picture | [metrics stale](${runbook}#timestoremetricsstale) | `timestore metrics` |

`timestore flush DATASET` publishes what is staged now and is safe at any time. Never delete files in the staging
directory by hand.
"""

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Is anything lost or late?",
        (
            _stat(
                "Rows lost",
                f"sum({_of('timestore_lost_rows_total')})",
                alarm=1,
                description="Of a table that somebody deleted, where no retained segment has them; since ever.",
            ),
            _stat(
                "Batches refused, 15 min",
                f"sum(increase({_DROPS}[15m]))",
                alarm=1,
                warn=0.5,
                description="Their senders were told; nothing acknowledged is lost.",
            ),
            _stat("In quarantine", f"sum({_QUARANTINED})", warn=1, description="Batches, rows and segments."),
            _stat(
                "Damaged segments",
                f"sum({_of('timestore_quarantined_segments')})",
                alarm=1,
                description="Acknowledged rows that cannot be read back.",
            ),
            _stat(
                "Late datasets",
                f"count({_LATE}) or vector(0)",
                warn=1,
                description="Their oldest batch is staged for more than twice the age threshold, and over a minute.",
            ),
            _stat("Failed builds, 15 min", f"sum(increase({_FAILED}[15m]))", warn=0.5, alarm=2.5),
            _stat(
                "Age of this picture",
                "time() - max(timestore_metrics_timestamp_seconds)",
                unit="s",
                warn=90,
                alarm=180,
                description="Beyond 3 minutes nobody has pushed, and all but ages shows the past.",
            ),
        ),
    ),
    (
        "Which dataset?",
        (
            Panel(
                "Datasets",
                (
                    Query(f"max by (dataset) ({_QUEUE_RATIO})", "queue"),
                    Query(f"max by (dataset) ({_OLDEST_AGE})", "oldest"),
                    Query(f"max by (dataset) ({_LATE_AFTER})", "late after"),
                    Query(f"max by (dataset) ({_DISK_RATIO})", "disk"),
                    Query(f"sum by (dataset) (increase({_DROPS}[15m]))", "refused"),
                    Query(f"sum by (dataset) (increase({_FAILED}[15m]))", "failed builds"),
                    Query(f"max by (dataset) ({_QUARANTINED})", "quarantine"),
                    Query(
                        f"max by (dataset) ({_since('timestore_staging_flush_last_success_timestamp_seconds')})",
                        "last published",
                    ),
                    Query(f"max by (dataset) ({_of('timestore_landing_backlog_files')})", "landing files"),
                ),
                kind=Kind.TABLE,
                width=16,
                height=9,
                description="Queue and disk as a share of the dataset's own limits.",
                units_of_columns={
                    "queue": "percentunit",
                    "disk": "percentunit",
                    "oldest": "s",
                    "late after": "s",
                    "last published": "s",
                },
            ),
            Panel(
                "Alerts that fire",
                (Query('ALERTS{alertname=~"Timestore.*",alertstate="firing",dataset=~"$dataset|"}', "alerts"),),
                kind=Kind.TABLE,
                height=9,
                description="Needs timestore-rules.yml in Prometheus.",
            ),
            Panel("Queue, share of its limit", (Query(_QUEUE_RATIO),), "percentunit", width=12, warn=0.5, alarm=0.8),
            Panel(
                "Unpublished segments, share of the limit of bytes",
                (Query(_DISK_RATIO),),
                "percentunit",
                width=12,
                warn=0.75,
                alarm=0.9,
            ),
        ),
    ),
    (
        "Why?",
        (
            Panel(
                "Age of the oldest staged batch",
                (
                    Query(_OLDEST_AGE),
                    Query(f"{_AGE_THRESHOLD} > 0", "threshold {{dataset}}"),
                    Query(_LATE_AFTER, "late after {{dataset}}"),
                ),
                "s",
            ),
            Panel("Staged batches", (Query(_QUEUE), Query(f"{_QUEUE_LIMIT} > 0", "limit {{dataset}}"))),
            Panel(
                "Staged rows",
                (
                    Query(_of("timestore_staging_queue_depth", 'metric="rows"')),
                    Query(f"{_ROWS_THRESHOLD} > 0", "threshold {{dataset}}"),
                ),
            ),
            Panel(
                "Staged bytes",
                (
                    Query(_of("timestore_staging_queue_bytes")),
                    Query(f"{_BYTES_THRESHOLD} > 0", "threshold {{dataset}}"),
                    Query(f"{_DISK_LIMIT} > 0", "limit {{dataset}}"),
                ),
                "bytes",
            ),
            Panel(
                "Landing files that wait",
                (Query(_of("timestore_landing_backlog_files")),),
                description="They wait for the next run, or for room in the queue.",
            ),
            Panel(
                "Intake paused",
                (Query(_of("timestore_staging_intake_paused")),),
                description="1 from timestore drain to timestore resume: batches are refused and landing files wait.",
            ),
            Panel("Bytes of landing files", (Query(_of("timestore_landing_backlog_bytes")),), "bytes"),
            Panel(
                "Oldest landing file that waits",
                (Query(_since("timestore_landing_backlog_oldest_timestamp_seconds")),),
                "s",
            ),
            Panel(
                "Landing looks that failed",
                (Query("max(increase(timestore_landing_failed_looks_total[$__rate_interval]))", "looks"),),
                description="The object store in which files land refused, or did not answer; files wait there.",
            ),
            Panel(
                "Late rows, by what became of them",
                (
                    Query(
                        f"sum by (dataset, outcome) (increase({_of('timestore_late_rows_total')}[$__rate_interval]))",
                        "{{dataset}} {{outcome}}",
                    ),
                ),
                description="Rows offered after the end of their window; closed windows take what the dataset says.",
            ),
            Panel(
                "Batches with late rows",
                (
                    Query(
                        "sum by (dataset, outcome) "
                        f"(increase({_of('timestore_late_batches_total')}[$__rate_interval]))",
                        "{{dataset}} {{outcome}}",
                    ),
                ),
            ),
            Panel(
                "Batches refused, by reason",
                (Query(f"sum by (dataset, reason) (increase({_DROPS}[$__rate_interval]))", "{{dataset}} {{reason}}"),),
            ),
            Panel(
                "Batches retried, by reason",
                (
                    Query(
                        "sum by (dataset, reason) "
                        f"(increase({_of('timestore_staging_retried_batches_total')}[$__rate_interval]))",
                        "{{dataset}} {{reason}}",
                    ),
                ),
            ),
            Panel(
                "Guardrail breaches",
                (
                    Query(
                        "sum by (dataset, guardrail) "
                        f"(increase({_of('timestore_staging_guardrail_breaches_total')}[$__rate_interval]))",
                        "{{dataset}} {{guardrail}}",
                    ),
                ),
            ),
            Panel(
                "Batches written directly, past staging",
                (
                    Query(
                        f"sum by (dataset) (increase({_of('timestore_direct_write_batches_total')}[$__rate_interval]))"
                    ),
                ),
                description="The deprecated way, TIMESTORE_STAGING_ENABLED=false: see who still goes it.",
            ),
            Panel(
                "Duration of builds, 30 min",
                (
                    Query(_quantile(0.5, _FLUSH_SECONDS), "median {{dataset}}"),
                    Query(_quantile(0.95, _FLUSH_SECONDS), "95 % {{dataset}}"),
                    Query(f"{_FLUSH_SLO} > 0", "SLO for 95 % {{dataset}}"),
                ),
                "s",
            ),
            Panel(
                "Builds, by result",
                (
                    Query(
                        "sum by (dataset, result) "
                        f"(increase({_of('timestore_staging_flush_duration_seconds_count')}[$__rate_interval]))",
                        "{{dataset}} {{result}}",
                    ),
                ),
            ),
            Panel(
                "Build in flight, since",
                (Query(_since("timestore_builds_in_flight_oldest_timestamp_seconds")),),
                "s",
            ),
            Panel(
                "Rows published per second",
                (Query(f"sum by (dataset) (rate({_ROWS_PUBLISHED}[$__rate_interval]))"),),
            ),
            Panel(
                "Batches per build, 30 min",
                (
                    Query(
                        "sum by (dataset) "
                        f"(increase({_BATCHES_PUBLISHED}[30m])) / "
                        "sum by (dataset) (increase("
                        f"{_SUCCEEDED}[30m]))"
                    ),
                ),
                description="How much staging saves: without it every batch would be a file.",
            ),
            Panel(
                "Mean size of a published file",
                (Query(f"{_of('timestore_published_bytes')} / ({_of('timestore_published_files')} > 0)"),),
                "bytes",
            ),
            Panel(
                "Staging directory, by component",
                (
                    Query(
                        f"sum by (component) ({_of('timestore_staging_disk_usage_bytes')})",
                        "{{component}}",
                    ),
                ),
                "bytes",
                stacked=True,
            ),
            Panel(
                "Segments on disk",
                (Query(f"sum by (component) ({_of('timestore_staging_segments')})", "{{component}}"),),
                stacked=True,
            ),
            Panel(
                "Size of a segment, 30 min",
                (
                    Query(_quantile(0.5, _SEGMENT_SIZES), "median {{dataset}}"),
                    Query(_quantile(0.95, _SEGMENT_SIZES), "95 % {{dataset}}"),
                ),
                "bytes",
                description="Of those that were staged meanwhile.",
            ),
            Panel(
                "Disk freed by retention",
                (Query(f"sum by (dataset) (rate({_of('timestore_retention_freed_bytes_total')}[$__rate_interval]))"),),
                "Bps",
            ),
            Panel(
                "Segments unlinked by retention",
                (
                    Query(
                        "sum by (dataset) "
                        f"(increase({_of('timestore_retention_unlinked_segments_total')}[$__rate_interval]))"
                    ),
                ),
            ),
            Panel(
                "Small files merged",
                (Query(_increase("timestore_compaction_merged_files_total")),),
                description="By compaction. Files published grow, and this stays 0: is the maintenance job running?",
            ),
            Panel(
                "Compaction time, p95",
                (
                    Query(
                        "histogram_quantile(0.95, sum by (le, dataset) "
                        f"(rate({_of('timestore_compaction_duration_seconds_bucket')}[$__rate_interval])))"
                    ),
                ),
                "s",
                description="A dataset is not flushed while it is compacted.",
            ),
            Panel(
                "Disk freed by vacuum",
                (Query(f"sum by (dataset) (rate({_of('timestore_vacuum_freed_bytes_total')}[$__rate_interval]))"),),
                "Bps",
            ),
            Panel(
                "Parquet files removed by vacuum",
                (Query(_increase("timestore_vacuum_removed_files_total")),),
            ),
            Panel(
                "Rows taken back",
                (
                    Query(_increase("timestore_corrections_total"), "{{dataset}} corrections"),
                    Query(_increase("timestore_corrected_rows_total"), "{{dataset}} rows left out"),
                    Query(_of("timestore_corrections_pending_windows"), "{{dataset}} windows to correct"),
                ),
                description="Corrections, the rows that builds left out for them, and what the table waits for.",
            ),
            Panel(
                "Oldest correction that the table waits for",
                (Query(_since("timestore_corrections_pending_oldest_timestamp_seconds")),),
                "s",
            ),
            Panel(
                "Dropped by age",
                (
                    Query(
                        _increase("timestore_expired_windows_total"),
                        "{{dataset}} windows",
                    ),
                    Query(
                        _increase("timestore_expired_rows_total"),
                        "{{dataset}} rows",
                    ),
                ),
                description="Windows that are older than the dataset keeps them, and their rows.",
            ),
            Panel(
                "Requests per second",
                (Query("sum by (endpoint) (rate(timestore_http_requests_total[$__rate_interval]))", "{{endpoint}}"),),
                "reqps",
                description="To all `timestore serve` that are scraped, whatever the dataset.",
            ),
            Panel(
                "Requests answered with a problem",
                (
                    Query(
                        "sum by (problem) (increase(timestore_http_refused_requests_total[$__rate_interval]))",
                        "{{problem}}",
                    ),
                ),
                description="rows-rejected is for the sender to mend; queue-full, busy and disk-full want room.",
            ),
            Panel(
                "Time of a request, p95, and requests in flight",
                (
                    Query(
                        "histogram_quantile(0.95, sum by (le, endpoint) "
                        "(rate(timestore_http_request_duration_seconds_bucket[$__rate_interval])))",
                        "{{endpoint}}",
                    ),
                    Query("sum(timestore_http_requests_in_flight)", "in flight (number)"),
                ),
                "s",
            ),
            Panel(
                "Ledger and work directory",
                (
                    Query("max(timestore_ledger_bytes)", "ledger"),
                    Query("max(timestore_work_bytes)", "work, as maintenance last saw it"),
                ),
                "bytes",
            ),
            Panel(
                "Places that cannot be used",
                (Query("max(max_over_time(timestore_places_unusable[5m]))", "places"),),
                description="Not mounted, emptied, or another installation's; timestore installation show names them.",
            ),
            Panel(
                "Tables that are not written to",
                (Query(_of("timestore_table_refused")),),
                description="Another installation's, or the ledger does not know all of it; see timestore doctor.",
            ),
            Panel(
                "Datasets that are left alone",
                (Query(_of("timestore_dataset_refused")),),
                description="datasets.yaml contradicts what the ledger has of them; timestore doctor says in what.",
            ),
            Panel("Published rows", (Query(_of("timestore_published_rows")),)),
            Panel("Published files", (Query(_of("timestore_published_files")),)),
            Panel("Published windows", (Query(_of("timestore_published_windows")),)),
        ),
    ),
    (
        "What to do?",
        (Panel("From here to the command", kind=Kind.TEXT, width=24, height=10, text=_ACTIONS),),
    ),
)
"""Title → panels, from left to right and down."""
