"""Which segments of a dataset hold which batches, where several say that they hold the same one.

A process that died before it had acknowledged its segment leaves it behind, and the batches came again. Without the
ledger nobody knows which of the two was acknowledged; both have the same rows, and each batch is to be taken once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from timestore_pipeline.restoring.evidence import FoundSegment


@dataclass(frozen=True)
class Choice:
    """A segment, and the ordinals of those of its batches that are taken from it; ``whole`` where that is all."""

    segment: FoundSegment
    ordinals: frozenset[int]

    @property
    def whole(self) -> bool:
        """Whether every batch of the segment is taken from it."""
        return len(self.ordinals) == len(self.segment.description.batches)


def choose(segments: Iterable[FoundSegment], published: Collection[str], taken: Collection[str] = ()) -> list[Choice]:
    """Return from which segments which batches are taken, oldest first; one of which nothing is needed is left out.

    Segments with published slices were certainly acknowledged, so they go first. Of the others the newest does: the
    one that came later was only written because the earlier one was not acknowledged. ``taken`` are ids of batches
    whose segments are gone.
    """
    order = sorted(segments, key=lambda each: each.age, reverse=True)
    order.sort(key=lambda each: each.id not in published)
    seen = set(taken)
    choices = []
    for segment in order:
        batches = segment.description.batches
        if segment.id in published:
            mine = frozenset(each.ordinal for each in batches)
        else:
            mine = frozenset(each.ordinal for each in batches if each.batch.batch_id not in seen)
        if mine:
            seen |= {each.batch.batch_id for each in batches if each.ordinal in mine}
            choices.append(Choice(segment, mine))
    return sorted(choices, key=lambda choice: choice.segment.age)
