"""What is said on the command line, as the library takes it."""

from __future__ import annotations

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.model.windows import Window


def window_of(spec: DatasetSpec, key: str | None) -> Window | None:
    """Return the window of that key, None for none; raises ValueError where there is no such window."""
    return None if key is None else spec.window_from_key(key)
