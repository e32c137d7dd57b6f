"""The corrections of a dataset on their way back into the ledger, and on what they still act."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from timestore_pipeline.ledger.corrections import Correction
from timestore_pipeline.ledger.restoring import RestoredSegment
from timestore_pipeline.ledger.states import CorrectionKind
from timestore_pipeline.model.windows import Granularity, TimeRange, Window
from timestore_pipeline.restoring.evidence import Evidence
from timestore_pipeline.segments.description import staged_at_of
from timestore_pipeline.segments.identity import RETRY_MARK
from timestore_pipeline.storage.layout import correction_key
from timestore_pipeline.storage.table_folder import file_name
from timestore_pipeline.table.contents import sequence_of_file


def acknowledged_corrections(evidence: Evidence, problems: list[str]) -> list[Correction]:
    """Return the corrections that were acknowledged, in their order; of each number the one that has a file.

    What is said of another one goes to ``problems``.
    """
    found: dict[int, Correction] = {}
    for each in sorted(evidence.corrections, key=lambda each: each.file is None):
        said, batch = each.said.correction, each.said.batch
        path = each.file.key if each.file else correction_key(evidence.dataset, each.said.segment_id or "")
        new = Correction(
            evidence.dataset,
            said.number,
            said.before_sequence,
            staged_at_of(PurePosixPath(path).stem),
            kind=CorrectionKind.REPLACEMENT,
            range_start=said.range.start,
            range_end=said.range.end,
            batch_id=batch.batch_id,
            fingerprint=batch.fingerprint,
            source=batch.source,
            path=path,
        )
        if new != found.setdefault(said.number, new):
            problems.append(f"{path}: there is another correction number {said.number}; this one is left out")
    return [found[number] for number in sorted(found)]


def after_all(
    segment: RestoredSegment, corrections: Iterable[Correction], last: int, problems: list[str]
) -> RestoredSegment:
    """Return a segment that no correction acts on, where one would by its number and the segment came later by its id.

    So it is where an older ledger was put back: it staged rows beside a correction that it did not know. They were
    acknowledged, and nobody has said that they are wrong. Nor can anybody tell that from a clock that went back, or
    from a batch that was acknowledged while the correction was on its way; so it goes to ``problems``. Rows out of
    quarantine have the number of their batch, however late they come.
    """
    if all(RETRY_MARK in batch.batch_id for batch in segment.batches):
        return segment
    staged = [piece for piece in segment.slices if piece.window_start not in segment.published]
    doubtful = [
        each
        for each in corrections
        if segment.after_correction < each.number
        and each.acknowledged_at < segment.staged_at
        and any(each.may_take(piece.min_time, piece.max_time) for piece in staged)
    ]
    if not doubtful:
        return segment
    batches = ", ".join(repr(batch.batch_id) for batch in segment.batches[:3])
    first = doubtful[0]
    problems.append(
        f"segment {segment.row.id} (batches {batches}) does not know of correction {first.number}, and is younger: an "
        "older ledger was put back, or a clock went back. Its rows are kept; where they should have gone, replace "
        f"{TimeRange(first.range_start, first.range_end)} again"
    )
    return replace(segment, after_correction=last)


def windows_to_correct(
    evidence: Evidence, corrections: Iterable[Correction], granularity: Granularity
) -> dict[int, set[int]]:
    """Return the windows with files on which a correction may still act, by its number.

    A window that was corrected before has newer files. Where it has older ones besides, nothing is found in them.
    """
    found: dict[int, set[int]] = defaultdict(set)
    for file in evidence.table.files if evidence.table else ():
        window = Window.of_partition(file.window_key, granularity)
        if window is None:
            continue
        start, sequence = window.start_micros, sequence_of_file(file_name(file.path))
        for each in corrections:
            if each.may_take(start, window.end_micros - 1) and each.acts_on_file(sequence):
                found[each.number].add(start)
    return found


def last_corrections(
    corrections: Sequence[Correction], segments: Iterable[RestoredSegment], live: Collection[int]
) -> dict[int, int]:
    """Return the number of the last correction that may have taken rows of a window which was published."""
    found: dict[int, int] = {}
    for piece in (piece for segment in segments for piece in segment.slices):
        for each in corrections:
            taken = each.may_take(piece.min_time, piece.max_time)
            if taken and (piece.window_start in live or each.takes_all(piece.min_time, piece.max_time)):
                found[piece.window_start] = max(each.number, found.get(piece.window_start, 0))
    return found
