"""The run config of a ``partitions/<dataset>`` asset: what the launchpad shows and a sensor fills in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import dagster as dg
from pydantic import Field

from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.model.windows import Window, WindowRange
from timestore_pipeline.orchestration.logs import failure
from timestore_pipeline.policy import FlushThresholds

When = Literal["always", "due"]
TriggerName = Literal[
    "rows", "bytes", "age", "pressure", "eager", "correction", "direct", "manual", "drain", "backfill", "maintenance"
]


class BuildConfig(dg.Config):
    """How to publish what is staged of one dataset.

    Dagster checks names, types and choices when a run is launched, but values only inside the step; so values are
    checked by :meth:`checked`, whose failure is not retried.
    """

    when: When = Field(
        default="always",
        description="`always` publishes whatever is staged; `due` only if a flush threshold is (still) reached when "
        "the run starts.",
    )
    first_window: str | None = Field(
        default=None,
        description="Key of the first window to publish, for runs without partitions; by default the first with "
        "anything staged.",
    )
    last_window: str | None = Field(
        default=None,
        description="Key of the last window to publish, for runs without partitions; by default the last with "
        "anything staged.",
    )
    flush_max_rows: int | None = Field(
        default=None,
        description="With `due`: staged rows at which to flush. 0 switches it off; by default the dataset's or "
        "environment's.",
    )
    flush_max_bytes: int | None = Field(
        default=None,
        description="With `due`: staged bytes at which to flush. 0 switches it off; by default the dataset's or "
        "environment's.",
    )
    flush_max_age_ms: int | None = Field(
        default=None,
        description="With `due`: age in milliseconds of the oldest staged batch at which to flush. 0 switches it off; "
        "by default the dataset's or environment's.",
    )
    flush_late_max_age_ms: int | None = Field(
        default=None,
        description="With `due`: the same age for late rows, of windows that were closed and published already when "
        "they came. By default the dataset's or environment's.",
    )
    rebuild: bool = Field(
        default=False,
        description="Derive the windows again from the segments that are retained, and swap them in one commit. "
        "Refused where a segment of theirs is gone or damaged. Not with `due`.",
    )
    target_file_bytes: int | None = Field(
        default=None,
        description="Size at which the next Parquet file of a window is started; by default "
        "TIMESTORE_BUILD_TARGET_FILE_BYTES.",
    )
    trigger: TriggerName = Field(
        default="manual", description="Why this build was asked for; kept with the build in the ledger."
    )


@dataclass(frozen=True)
class CheckedConfig:
    """A checked :class:`BuildConfig` for one dataset."""

    only_if_due: bool
    windows: WindowRange
    thresholds: FlushThresholds
    target_file_bytes: int | None
    trigger: Trigger
    rebuild: bool = False


def checked(config: BuildConfig, spec: DatasetSpec, defaults: FlushThresholds) -> CheckedConfig:
    """Return ``config`` with its defaults filled in.

    Raises:
        dagster.Failure: a value is not allowed; not retried, because it would fail again.
    """
    problems: list[str] = []
    for name in ("flush_max_rows", "flush_max_bytes", "flush_max_age_ms", "flush_late_max_age_ms"):
        value = getattr(config, name)
        if value is not None and value < 0:
            problems.append(f"{name} is {value}: it must be 0 (off) or more")
    if config.target_file_bytes is not None and config.target_file_bytes < 1:
        problems.append(f"target_file_bytes is {config.target_file_bytes}: it must be 1 or more")
    first = _window("first_window", config.first_window, spec, problems)
    last = _window("last_window", config.last_window, spec, problems)
    if first and last and last < first:
        problems.append(f"last_window {last.key} is before first_window {first.key}")
    if config.rebuild and config.when == "due":
        problems.append("rebuild is set and when is 'due': a rebuild is not a matter of thresholds")
    if problems:
        raise failure(f"run config of partitions/{spec.name}: {'; '.join(problems)}")
    return CheckedConfig(
        only_if_due=config.when == "due",
        windows=WindowRange(first, last),
        thresholds=FlushThresholds(
            max_rows=defaults.max_rows if config.flush_max_rows is None else config.flush_max_rows,
            max_bytes=defaults.max_bytes if config.flush_max_bytes is None else config.flush_max_bytes,
            max_age_ms=defaults.max_age_ms if config.flush_max_age_ms is None else config.flush_max_age_ms,
            late_max_age_ms=(
                defaults.late_max_age_ms if config.flush_late_max_age_ms is None else config.flush_late_max_age_ms
            ),
        ),
        target_file_bytes=config.target_file_bytes,
        trigger=Trigger(config.trigger),
        rebuild=config.rebuild,
    )


def _window(name: str, key: str | None, spec: DatasetSpec, problems: list[str]) -> Window | None:
    if key is None:
        return None
    try:
        return spec.window_from_key(key)
    except ValueError as error:
        problems.append(f"{name}: {error}")
        return None
