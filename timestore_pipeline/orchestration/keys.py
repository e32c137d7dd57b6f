"""What the assets of a dataset are called."""

from __future__ import annotations

import dagster as dg


def landing_key(dataset: str) -> dg.AssetKey:
    """Return the key of the dataset's landing folder."""
    return dg.AssetKey(["landing", dataset])


def staging_key(dataset: str) -> dg.AssetKey:
    """Return the key of the dataset's staging queue."""
    return dg.AssetKey(["staging", dataset])


def partitions_key(dataset: str) -> dg.AssetKey:
    """Return the key of the dataset's table."""
    return dg.AssetKey(["partitions", dataset])


def partitions_op(dataset: str) -> str:
    """Return the name under which run config speaks of the asset ``partitions/<dataset>``."""
    return f"partitions__{dataset}"
