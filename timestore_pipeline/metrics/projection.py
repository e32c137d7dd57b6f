"""Projects the ledger into Prometheus metric families, in one read transaction (invariant 7).

The datasets of a picture are those that are declared, and those that were taken out of ``datasets.yaml`` and have
something left that waits for somebody: staged rows, a build in flight, an entry in quarantine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Self

from prometheus_client import generate_latest, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from sqlalchemy import Connection

from timestore_pipeline.building.thresholds import oldest_due_from
from timestore_pipeline.datasets import SCRATCH_PREFIX
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.ledger.builds import Build, builds_in_flight
from timestore_pipeline.ledger.counters import Histogram, bucket_bounds, counter_values, histogram_values
from timestore_pipeline.ledger.installation import MeasuredPlace, all_disk_use, ledger_bytes
from timestore_pipeline.ledger.landing import Backlog, landing_backlogs
from timestore_pipeline.ledger.limits import all_pauses, pause_of
from timestore_pipeline.ledger.quarantine import QuarantineTotals, open_totals, quarantined_bytes
from timestore_pipeline.ledger.queue import QueueState, queue_states
from timestore_pipeline.ledger.segments import disk_usage
from timestore_pipeline.ledger.tables import refused_tables
from timestore_pipeline.ledger.windows import last_published, published_totals
from timestore_pipeline.metrics import series
from timestore_pipeline.metrics.series import SERIES, Series, SeriesType
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.operating.observed_places import Expected, observe_near_places
from timestore_pipeline.policy import Policy
from timestore_pipeline.store import Store

# (metric, dataset or "", value of the second label or "") → value
_Values = dict[tuple[str, str, str], float]

_NEVER = Histogram((), 0.0)


def collect_metrics(store: Store, now: int | None = None) -> list[Metric]:
    """Return the current value of every series, as it stands in the ledger at one moment.

    Args:
        store: the installation.
        now: the time that ages are measured at, microseconds since the epoch; the current time by default.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    moment = now_micros() if now is None else now
    with store.ledger.read() as tx:
        found = _Found.of(tx, store)
        datasets = sorted(found.waiting | set(store.datasets.declared))
        values: _Values = {
            **_gauges(tx, store, found, datasets, moment),
            **_bounds(found.policies),
            **counter_values(tx),
        }
        histograms = histogram_values(tx)
        expected = Expected.of(tx)
    values[series.PLACES_UNUSABLE, "", ""] = sum(bool(each.problem) for each in observe_near_places(store, expected))
    labels: dict[str, set[str]] = {}
    for name, _, label in (*values, *histograms):
        labels.setdefault(name, set()).add(label)
    return [_family(each, datasets, values, histograms, labels.get(each.name, set())) for each in SERIES]


def exposition(store: Store) -> bytes:
    """Return every series in the Prometheus text format.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    return generate_latest(Picture(collect_metrics(store)))


def write_exposition(store: Store, path: Path) -> None:
    """Write every series into a file, for a node exporter's textfile collector; it is never half there.

    Raises:
        LedgerError: the ledger cannot be read.
        TimestoreError: the file cannot be written; the old one is as it was.
    """
    picture = Picture(collect_metrics(store))
    try:
        write_to_textfile(str(path), picture)
    except OSError as error:
        raise TimestoreError(f"{path} cannot be written: {error.strerror or error}") from error


class Picture(Collector):
    """Families that were collected before, as the Prometheus client takes them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        """Return the families."""
        return self._families


@dataclass(frozen=True)
class _Found:
    """What waits in the ledger, and what holds, by dataset."""

    queues: dict[str, QueueState]
    in_flight: dict[str, list[Build]]
    quarantined: dict[str, QuarantineTotals]
    policies: dict[str, Policy]

    @classmethod
    def of(cls, tx: Connection, store: Store) -> Self:
        in_flight: defaultdict[str, list[Build]] = defaultdict(list)
        for build in builds_in_flight(tx):
            in_flight[build.dataset].append(build)
        return cls(queue_states(tx), dict(in_flight), open_totals(tx), store.policies(tx))

    @property
    def waiting(self) -> set[str]:
        found = {*self.queues, *self.in_flight, *self.quarantined}
        # A load that somebody tries out is no concern of those on call.
        return {name for name in found if not name.startswith(SCRATCH_PREFIX)}


def _gauges(tx: Connection, store: Store, found: _Found, datasets: Iterable[str], now: int) -> _Values:
    published = published_totals(tx)
    published_at = last_published(tx)
    backlogs = landing_backlogs(tx)
    pauses, refused = all_pauses(tx), refused_tables(tx)
    values: _Values = {
        (series.LEDGER_BYTES, "", ""): ledger_bytes(tx),
        (series.WORK_BYTES, "", ""): 0,
        (series.METRICS_TIMESTAMP, "", ""): now / 1e6,
    }
    for name in datasets:
        queue = found.queues.get(name, QueueState(name))
        policy = found.policies.get(name)
        oldest = oldest_due_from(queue, policy.flush) if policy else queue.oldest_at
        builds = found.in_flight.get(name, [])
        oldest_build = builds[0].claimed_at if builds else None
        backlog = backlogs.get(name, Backlog(files=0, bytes=0, oldest_modified_at=now))
        totals = found.quarantined.get(name, QuarantineTotals(batches=0, rows=0))
        to_correct = queue.corrections
        window_count, rows, size, files = published.get(name, (0, 0, 0, 0))
        values |= {
            (series.LANDING_FILES, name, ""): backlog.files,
            (series.LANDING_BYTES, name, ""): backlog.bytes,
            (series.LANDING_AGE, name, ""): _age(backlog.oldest_modified_at, now),
            (series.LANDING_TIMESTAMP, name, ""): backlog.oldest_modified_at / 1e6 if backlog.files else 0,
            (series.QUEUE_DEPTH, name, "batches"): queue.pending_batches,
            (series.QUEUE_DEPTH, name, "rows"): queue.pending_rows,
            (series.QUEUE_BYTES, name, ""): queue.pending_bytes,
            (series.OLDEST_AGE, name, ""): _age(oldest, now),
            (series.OLDEST_TIMESTAMP, name, ""): (oldest or 0) / 1e6,
            (series.CORRECTIONS_PENDING, name, ""): to_correct.windows if to_correct else 0,
            (series.CORRECTIONS_AGE, name, ""): _age(to_correct and to_correct.oldest_at, now),
            (series.CORRECTIONS_TIMESTAMP, name, ""): to_correct.oldest_at / 1e6 if to_correct else 0,
            (series.INTAKE_PAUSED, name, ""): int(pause_of(pauses, name) is not None),
            (series.TABLE_REFUSED, name, ""): int(name in refused),
            (series.DATASET_REFUSED, name, ""): int(name in store.datasets.refused),
            (series.BUILDS_IN_FLIGHT, name, ""): len(builds),
            (series.BUILD_AGE, name, ""): _age(oldest_build, now),
            (series.BUILD_TIMESTAMP, name, ""): (oldest_build or 0) / 1e6,
            (series.FLUSH_LAST_SUCCESS, name, ""): published_at.get(name, 0) / 1e6,
            (series.PUBLISHED_ROWS, name, ""): rows,
            (series.PUBLISHED_BYTES, name, ""): size,
            (series.PUBLISHED_FILES, name, ""): files,
            (series.PUBLISHED_WINDOWS, name, ""): window_count,
            (series.QUARANTINED_BATCHES, name, ""): totals.batches,
            (series.QUARANTINED_ROWS, name, ""): totals.rows,
            (series.QUARANTINED_SEGMENTS, name, ""): totals.segments,
        }
    for (name, component), found_there in disk_usage(tx).items():
        values[series.DISK_USAGE, name, component] = found_there.bytes
        values[series.SEGMENTS, name, component] = found_there.segments
    for name, size in quarantined_bytes(tx).items():
        values[series.DISK_USAGE, name, "quarantine"] = size
    for each in all_disk_use(tx):
        if each.place is MeasuredPlace.ARCHIVE:
            values[series.DISK_USAGE, each.dataset, "archive"] = each.bytes
        else:
            values[series.WORK_BYTES, "", ""] = each.bytes
    return values


def _bounds(policies: Mapping[str, Policy]) -> _Values:
    """The thresholds and limits in force, the same for all processes of an installation."""
    values: _Values = {}
    for name, policy in policies.items():
        thresholds, limits, levels = policy.flush, policy.limits, policy.levels
        values |= {
            (series.FLUSH_THRESHOLD, name, "rows"): thresholds.max_rows,
            (series.FLUSH_THRESHOLD, name, "bytes"): thresholds.max_bytes,
            (series.FLUSH_THRESHOLD, name, "age"): thresholds.max_age_ms / 1e3,
            (series.LIMIT, name, "batches"): limits.max_pending,
            (series.LIMIT, name, "bytes"): limits.max_bytes,
            (series.LIMIT, name, "windows"): limits.max_windows,
            (series.LIMIT, name, "ingests"): limits.concurrent_ingests,
            (series.LIMIT, name, "builds"): limits.concurrent_builds,
            (series.SLO, name, "flush"): levels.flush_seconds,
            (series.SLO, name, "publish"): levels.publish_seconds,
        }
    return values


def _age(since: int | None, now: int) -> float:
    # Clocks of two hosts may differ a little, and an age is never negative.
    return 0 if since is None else max(0, now - since) / 1e6


def _family(
    each: Series,
    datasets: Iterable[str],
    values: _Values,
    histograms: dict[tuple[str, str, str], Histogram],
    counted: set[str],
) -> Metric:
    second = [*each.values, *sorted(counted - set(each.values))] or [""]
    if each.type is SeriesType.HISTOGRAM:
        family = HistogramMetricFamily(each.name, each.help, labels=each.labels)
        for dataset in datasets:
            for label in second:
                observed = histograms.get((each.name, dataset, label), _NEVER)
                labels = (dataset, label) if each.label else (dataset,)
                family.add_metric(labels, _cumulative(each.name, observed), observed.sum)
        return family
    kind = CounterMetricFamily if each.type is SeriesType.COUNTER else GaugeMetricFamily
    family = kind(each.name, each.help, labels=each.labels)
    if not each.per_dataset:
        family.add_metric((), values.get((each.name, "", ""), 0))
        return family
    for dataset in datasets:
        for label in second:
            labels = (dataset, label) if each.label else (dataset,)
            family.add_metric(labels, values.get((each.name, dataset, label), 0))
    return family


def _cumulative(metric: str, observed: Histogram) -> list[tuple[str, float]]:
    bounds = _bound_texts(metric)
    return list(zip(bounds, accumulate(observed.counts or (0,) * len(bounds)), strict=True))


@cache
def _bound_texts(metric: str) -> tuple[str, ...]:
    return (*map(floatToGoString, bucket_bounds(metric)), "+Inf")
