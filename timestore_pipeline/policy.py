"""What holds for a dataset now: an operator's limit, else the dataset's own value, else the environment's.

Own values are in ``datasets.yaml``. A limit that an operator sets is a row of the ledger, so it holds at once, in every
process on every host, without a restart. Whoever asks how much, how long or how often asks here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Self

from timestore_pipeline.datasets import CompactionSpec, DatasetSpec, FlushSpec, LimitSpec, RetentionSpec
from timestore_pipeline.ledger.limits import LimitName
from timestore_pipeline.settings import Settings


class LimitSource(StrEnum):
    """Who said what a limit is."""

    OVERRIDE = "override"
    DATASETS_FILE = "datasets.yaml"
    ENVIRONMENT = "environment"


@dataclass(frozen=True)
class EffectiveLimits:
    """The limits of one dataset that hold now; 0 is no limit.

    ``max_pending`` counts staged, unpublished batches, ``max_bytes`` their bytes, ``max_windows`` the windows of one
    batch, ``concurrent_ingests`` the segments of the dataset that are written at the same time, ``concurrent_builds``
    its builds in flight (at least 1).
    """

    max_pending: int
    max_bytes: int
    concurrent_ingests: int
    concurrent_builds: int = 1
    max_windows: int = 0
    sources: tuple[tuple[LimitName, LimitSource], ...] = ()

    def value(self, name: LimitName) -> int:
        """The limit called ``name``."""
        return getattr(self, name.value)

    def source(self, name: LimitName) -> LimitSource:
        """Who said what the limit called ``name`` is."""
        return dict(self.sources)[name]


@dataclass(frozen=True)
class FlushThresholds:
    """The flush thresholds of a dataset; 0 switches one off."""

    max_rows: int
    max_bytes: int
    max_age_ms: int
    late_max_age_ms: int = 0
    """Of late rows; no less than ``max_age_ms``, and 0 is the same."""

    @property
    def late_age_ms(self) -> int:
        """The age at which late rows are flushed; 0 where the age of rows does not matter."""
        return max(self.max_age_ms, self.late_max_age_ms) if self.max_age_ms else 0

    @property
    def all_off(self) -> bool:
        """Whether no threshold is on, which means: flush whenever something is staged."""
        return not (self.max_rows or self.max_bytes or self.max_age_ms)


@dataclass(frozen=True)
class ServiceLevels:
    """What is promised of a dataset, in seconds; 0 promises nothing."""

    flush_seconds: float
    """95 % of its flushes take no longer."""
    publish_seconds: float
    """Its rows are in the table so long after they were staged."""


@dataclass(frozen=True)
class Policy:
    """What holds for one dataset now. Times are in microseconds."""

    flush: FlushThresholds
    limits: EffectiveLimits
    levels: ServiceLevels
    max_small_files: int
    """So many small files an open window may have before it is compacted; with 0 it waits until it closes."""
    staging_retention_micros: int
    """How long a segment is kept after all its rows are published."""
    table_retention_micros: int
    """How long after its end a window stays in the table; 0 is for ever."""
    freshness_micros: int
    """The table gets rows at least so often; 0 promises nothing."""

    @classmethod
    def of(cls, settings: Settings, spec: DatasetSpec | None, limits_set: Mapping[str, int] | None = None) -> Self:
        """Return what holds for a dataset, or (None) for one that is not declared any more.

        ``limits_set`` are those of its limits that an operator has set. Without them it is what holds as long as no
        operator says otherwise; that is enough for all but the limits.
        """
        flush = _flush_thresholds(settings, spec.flush if spec else FlushSpec())
        compaction = spec.compaction if spec else CompactionSpec()
        retention = spec.retention if spec else RetentionSpec()
        return cls(
            flush=flush,
            limits=_limits(settings, spec.limits if spec else LimitSpec(), limits_set or {}),
            levels=service_levels(settings, flush),
            max_small_files=_own_or(compaction.max_small_files, settings.compaction_max_small_files),
            staging_retention_micros=_own_or_micros(retention.staging, settings.staging_retention_seconds),
            table_retention_micros=_own_or_micros(retention.table, settings.table_retention_seconds),
            freshness_micros=_own_or_micros(spec.freshness if spec else None, settings.freshness_seconds),
        )


def service_levels(settings: Settings, thresholds: FlushThresholds) -> ServiceLevels:
    """Return what is promised of a dataset with these thresholds.

    Unless the environment says when rows must be published, that is after twice the age at which they are flushed,
    and a minute at least, because a run needs seconds to start however low the threshold is. Without an age threshold
    nobody said when.
    """
    by_age = max(60.0, 2 * thresholds.max_age_ms / 1e3) if thresholds.max_age_ms else 0.0
    return ServiceLevels(settings.slo_flush_seconds, settings.slo_publish_seconds or by_age)


def _flush_thresholds(settings: Settings, own: FlushSpec) -> FlushThresholds:
    """Where staging is switched off all are off: what a direct write left staged is flushed at once."""
    if not settings.staging_enabled:
        return FlushThresholds(max_rows=0, max_bytes=0, max_age_ms=0)
    return FlushThresholds(
        max_rows=_own_or(own.max_rows, settings.staging_flush_max_rows),
        max_bytes=_own_or(own.max_bytes, settings.staging_flush_max_bytes),
        max_age_ms=_own_or(own.max_age_ms, settings.staging_flush_max_age_ms),
        late_max_age_ms=_own_or(own.late_max_age_ms, settings.staging_flush_late_max_age_ms),
    )


def _limits(settings: Settings, own: LimitSpec, limits_set: Mapping[str, int]) -> EffectiveLimits:
    environment = {
        LimitName.MAX_PENDING: settings.staging_max_pending,
        LimitName.MAX_BYTES: settings.staging_max_dataset_bytes,
        LimitName.MAX_WINDOWS: settings.staging_max_windows,
        LimitName.CONCURRENT_INGESTS: settings.staging_concurrent_ingests,
        LimitName.CONCURRENT_BUILDS: settings.build_concurrent_builds,
    }
    values: dict[str, int] = {}
    sources: list[tuple[LimitName, LimitSource]] = []
    for name, default in environment.items():
        declared = getattr(own, name.value)
        if name in limits_set:
            value, source = limits_set[name], LimitSource.OVERRIDE
        elif declared is not None:
            value, source = declared, LimitSource.DATASETS_FILE
        else:
            value, source = default, LimitSource.ENVIRONMENT
        values[name.value] = value
        sources.append((name, source))
    return EffectiveLimits(**values, sources=tuple(sources))


def _own_or(own: int | None, environment: int) -> int:
    return environment if own is None else own


def _own_or_micros(own: timedelta | None, environment_seconds: float) -> int:
    return int(environment_seconds * 1e6) if own is None else own // timedelta(microseconds=1)
