"""What is asked of a build: which windows, for whom and why (short, because every kind of build takes one)."""

from __future__ import annotations

from dataclasses import dataclass, field

from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.model.windows import EVERY_WINDOW, WindowRange
from timestore_pipeline.settings import Settings


@dataclass(frozen=True)
class BuildOrder:
    """An order to build windows of a declared dataset.

    ``owner`` is who builds: a Dagster run id, or host and process; a recovery asks whether it still lives.
    ``target_file_bytes`` is the size at which the next Parquet file of a window starts, by default the settings'.
    """

    dataset: str
    windows: WindowRange = EVERY_WINDOW
    owner: str = field(kw_only=True)
    trigger: Trigger = field(kw_only=True, default=Trigger.MANUAL)
    target_file_bytes: int | None = field(kw_only=True, default=None)

    def file_bytes(self, settings: Settings) -> int:
        """Return the size at which the next Parquet file of a window starts."""
        return self.target_file_bytes or settings.build_target_file_bytes
