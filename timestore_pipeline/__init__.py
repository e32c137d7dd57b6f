"""Time-series batches staged in DuckDB and built into well-sized Delta Lake partitions.

Every part but :mod:`timestore_pipeline.orchestration` is a plain library that knows no Dagster. A program of one's own
starts at :class:`Timestore`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from timestore_pipeline.errors import TimestoreError
    from timestore_pipeline.settings import Settings
    from timestore_pipeline.staging.receipts import Receipt
    from timestore_pipeline.timestore import Timestore

__all__ = ["Receipt", "Settings", "Timestore", "TimestoreError"]


def __getattr__(name: str) -> object:
    # Loaded when they are asked for: whoever imports one part of the package does not pay for the others.
    from pkgutil import resolve_name

    homes = {
        "Receipt": "staging.receipts",
        "Settings": "settings",
        "Timestore": "timestore",
        "TimestoreError": "errors",
    }
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return resolve_name(f"{__name__}.{homes[name]}:{name}")
