"""From what files say to what the ledger is to hold, value by value.

A process that died before it had acknowledged its segment leaves it behind, and the batches came again. Without the
ledger nobody knows which of the two was acknowledged; both have the same rows, and each batch is to be taken once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from timestore_pipeline.ledger.batches import BatchRow, SegmentRow
from timestore_pipeline.ledger.restoring import RestoredSegment
from timestore_pipeline.ledger.slices import SliceRow
from timestore_pipeline.model.windows import Granularity, Window, from_micros
from timestore_pipeline.operating.kept_rows import origins_of_retry
from timestore_pipeline.restoring.evidence import Evidence, FoundSegment
from timestore_pipeline.segments.description import DescribedBatch, Description, IncomingBatch, staged_at_of
from timestore_pipeline.segments.identity import RETRY_MARK
from timestore_pipeline.segments.segment import slices_of
from timestore_pipeline.storage.layout import segment_key
from timestore_pipeline.table.manifests import Published


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


def restored(found: FoundSegment, parts: Iterable[Published]) -> RestoredSegment:
    """Return a segment that is on disk; ``parts`` are what manifests say of it."""
    row = SegmentRow(found.id, found.file.key, found.file.bytes, found.description.rows)
    return RestoredSegment(
        row=row,
        batches=tuple(each.row for each in found.description.batches),
        slices=slices_of(found.description.groups, row),
        staged_at=staged_at_of(found.id),
        published={part.contribution.window_start: part.published_at for part in parts},
        on_disk=True,
        columns=found.columns,
        numbers=found.numbers,
        after_correction=found.description.after_correction,
    )


def unlinked(dataset: str, segment_id: str, parts: Iterable[Published]) -> RestoredSegment:
    """A segment that is gone, as far as its published part is known from manifests."""
    slices: dict[int, SliceRow] = {}
    batches: dict[int, BatchRow] = {}
    published: dict[int, int] = {}
    staged_at = staged_at_of(segment_id)
    for part in parts:
        each = part.contribution
        staged_at = each.staged_at
        published[each.window_start] = part.published_at
        had = slices.get(each.window_start)
        slices[each.window_start] = SliceRow(
            window_start=each.window_start,
            rows=each.slice_rows,
            bytes=each.slice_bytes,
            min_time=each.min_time,
            max_time=each.max_time,
            batch_rows={**(had.batch_rows if had else {}), each.ordinal: each.rows},
        )
        batch = IncomingBatch(each.batch_id, each.fingerprint, each.source, each.source_bytes)
        batches[each.ordinal] = DescribedBatch(
            each.ordinal, batch, each.batch_rows, each.quarantined_rows, dropped_rows=each.dropped_rows
        ).row
    size, rows = (sum(getattr(piece, what) for piece in slices.values()) for what in ("bytes", "rows"))
    return RestoredSegment(
        row=SegmentRow(segment_id, segment_key(dataset, segment_id), size, rows),
        batches=tuple(batches.values()),
        slices=tuple(slices.values()),
        staged_at=staged_at,
        published=published,
        on_disk=False,
        columns=None,
    )


def each_batch_once(segments: list[RestoredSegment]) -> list[RestoredSegment]:
    """A batch that was discarded and sent again under its old id may be in two manifests; the ledger has it once."""
    seen: set[str] = set()
    found = []
    for segment in segments:
        mine = tuple(batch for batch in segment.batches if batch.batch_id not in seen)
        seen |= {batch.batch_id for batch in mine}
        found.append(replace(segment, batches=mine))
    return found


def was_retried(each: DescribedBatch, known: Iterable[str]) -> bool:
    """Whether rows of an entry of this batch were staged again: there is a batch of a later retry."""
    origins, number = origins_of_retry(each.batch.batch_id), number_of_retry(each.batch.batch_id)
    return any(
        other.partition(RETRY_MARK)[0] in origins and number_of_retry(other) > number
        for other in known
        if RETRY_MARK in other
    )


def refused(description: Description) -> int:
    """Return how many rows a file of refused rows has."""
    return sum(each.refused_rows for each in description.batches)


def unexplained(
    dataset: str, past: Mapping[int, int], granularity: Granularity, retention_micros: int, now: int
) -> list[str]:
    """Say in words which rows are not in the table, or are besides, though neither age nor a manifest accounts for it.

    The table's own count is taken for the truth in a rebuilt ledger, so no later audit would speak of them.

    Args:
        dataset: its name.
        past: window start → rows that were published and are not in the table; below zero, that it has besides.
        granularity: that of its windows.
        retention_micros: for how long after its end a window stays in the table; 0 is for ever.
        now: microseconds since the epoch.
    """
    found = []
    for start, rows in sorted(past.items()):
        window = Window(from_micros(start), granularity)
        if rows < 0:
            found.append(
                f"{dataset}: the table has {-rows:,} rows of window {window.key} of which no manifest knows: something "
                "else wrote them, or manifests are gone; look at them with 'timestore sql'"
            )
        elif not retention_micros or window.end_micros + retention_micros > now:
            found.append(
                f"{dataset}: {rows:,} rows of window {window.key} were published, are not in the table, and have not "
                "expired by the retention that it has now. They are counted as expired; unless it had a shorter "
                "retention before, restore the table from a backup and run this again with --replace"
            )
    return found


def last_retry(evidence: Evidence) -> int:
    """The highest id of an entry whose rows were staged again: a new entry must not get an id that was used."""
    ids = [each.batch.batch_id for segment in evidence.segments for each in segment.description.batches]
    ids += [each.contribution.batch_id for each in (evidence.table.published if evidence.table else ())]
    return max((number_of_retry(batch_id) for batch_id in ids), default=0)


def number_of_retry(batch_id: str) -> int:
    """Return the id of the entry whose retry made this batch, 0 where none did."""
    number = batch_id.rpartition(RETRY_MARK)[2] if RETRY_MARK in batch_id else ""
    return int(number) if number.isdecimal() else 0
