"""What the rows of an asset do to those that are there: they take the place of the partition's, or come to them.

A partition of time says for which times an asset has all rows there are to be; no other kind of partition does. The
day of a partition by day and station has the rows of other stations too, so that such an asset never takes its place.
"""

from __future__ import annotations

from typing import Literal, get_args

import dagster as dg

from timestore_pipeline.model.windows import TimeRange
from timestore_pipeline.orchestration.logs import failure
from timestore_pipeline.orchestration.time_ranges import in_words, times_of

WRITE_MODE_METADATA = "timestore/write_mode"
"""Metadata of an asset: what its rows do to those that are there. It counts more than what the IO manager says."""

WriteMode = Literal["auto", "replace", "append"]

WRITE_MODES = (
    "What the rows of an asset do to those that are there. `replace`: they take the place of all rows of the time of "
    "the partitions that they are of; `append`: they come to them; `auto`: they replace where the asset has partitions "
    "of time and of nothing else, and are appended otherwise. An asset's metadata `timestore/write_mode` counts more."
)


def range_to_replace(context: dg.OutputContext, mode: WriteMode) -> TimeRange | None:
    """Return the range of times whose rows an output replaces; None where its rows are appended.

    ``mode`` holds where the asset does not say another one itself.

    Raises:
        dagster.Failure: the mode is none, or it cannot be told which one range is to be replaced.
    """
    mode = _own_mode(context) or mode
    if mode == "append":
        return None
    asset = context.asset_key.to_user_string()
    definition = context.asset_partitions_def if context.has_asset_partitions else None
    if not isinstance(definition, dg.TimeWindowPartitionsDefinition):
        if mode == "auto":
            return None
        raise failure(
            f"{asset} is to replace rows, and is not run for partitions of time alone, which would say the times of "
            f"these: give it such partitions, or metadata {{{WRITE_MODE_METADATA!r}: 'append'}}"
        )
    ranges = times_of(definition, context.asset_partition_keys) or []
    if len(ranges) != 1:
        raise failure(
            f"{asset}: the partitions of this run are not one after the other, so that there is no one range to "
            f"replace, but {in_words(ranges)}. Run each part by itself, or give the asset metadata "
            f"{{{WRITE_MODE_METADATA!r}: 'append'}}"
        )
    return TimeRange.between(*ranges[0])


def _own_mode(context: dg.OutputContext) -> WriteMode | None:
    """Return what the asset's own metadata says."""
    value = context.definition_metadata.get(WRITE_MODE_METADATA)
    if value is None:
        return None
    named = getattr(value, "value", value)
    for mode in get_args(WriteMode):
        if named == mode:
            return mode
    raise failure(
        f"{context.asset_key.to_user_string()} has metadata {{{WRITE_MODE_METADATA!r}: {str(named)[:100]!r}}}; it is "
        f"one of {', '.join(map(repr, get_args(WriteMode)))}"
    )
