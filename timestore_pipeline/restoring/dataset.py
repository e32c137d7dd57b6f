"""One dataset on its way back into the ledger."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import duckdb
from sqlalchemy import Connection

from timestore_pipeline.building.completion import published_windows
from timestore_pipeline.building.damage import damaged_slices
from timestore_pipeline.errors import LedgerError, TimestoreError
from timestore_pipeline.ledger.datasets import Fixed, declared
from timestore_pipeline.ledger.restoring import (
    RestoredEntry,
    RestoredPublication,
    RestoredSegment,
    RestoredTable,
    finish_restoring,
    restore_batches_without_rows,
    restore_corrections,
    restore_dataset,
    restore_dead_builds,
    restore_entries,
    restore_past_rows,
    restore_publication,
    restore_segment,
)
from timestore_pipeline.ledger.slices import Slice, SliceRow
from timestore_pipeline.ledger.states import QuarantineKind
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.evolution import oldest_first
from timestore_pipeline.model.windows import Granularity, Window
from timestore_pipeline.policy import Policy
from timestore_pipeline.restoring.evidence import Evidence, FoundSegment, carve
from timestore_pipeline.restoring.restored import (
    Choice,
    choose,
    each_batch_once,
    refused,
    restored,
    unexplained,
    unlinked,
    was_retried,
)
from timestore_pipeline.restoring.taken_back import (
    acknowledged_corrections,
    after_all,
    last_corrections,
    windows_to_correct,
)
from timestore_pipeline.segments.description import DescribedBatch, staged_at_of
from timestore_pipeline.segments.identity import file_batch_id, unread_file_id
from timestore_pipeline.segments.segment import new_segment_id
from timestore_pipeline.staging.arrivals import file_fingerprint
from timestore_pipeline.storage import Entry
from timestore_pipeline.storage.layout import segment_key
from timestore_pipeline.storage.table_folder import file_name
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import sequence_of_file
from timestore_pipeline.table.manifests import Published

_UNKNOWN_REASON = "it was set aside before the ledger was lost, and the reason with it; a retry says what is wrong"
_ID_BEFORE_NAME = re.compile(r"^[0-9a-f]{16}-")


@dataclass(frozen=True)
class RestoredDataset:
    """What was found of one dataset. ``notes`` are for people, ``problems`` are what could not be restored."""

    dataset: str
    declared: bool
    batches: int = 0
    segments: int = 0
    staged_rows: int = 0
    published_rows: int = 0
    windows: int = 0
    quarantined: int = 0
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass
class Restoring:
    """One dataset on its way into the ledger."""

    store: Store
    tx: Connection
    evidence: Evidence
    by: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def restore(self, next_entry: int) -> tuple[RestoredDataset, int]:
        """Enter everything; return what it was, and the next free id of a quarantine entry."""
        name, now = self.evidence.dataset, now_micros()
        self.notes += self.evidence.notes
        granularity = self._granularity()
        if granularity is None:
            self.problems.append(f"{name}: its windows are unknown; declare it in datasets.yaml and run this again")
            return self._outcome([], {}, 0), next_entry
        corrections = acknowledged_corrections(self.evidence, self.problems)
        last = max([0, *(each.number for each in corrections)])
        # Nobody reads a segment that is gone; what came after a correction is not known of it.
        segments = [each if each.on_disk else replace(each, after_correction=last) for each in self._segments()]
        last = max([last, *(each.after_correction for each in segments)])
        segments = [after_all(each, corrections, last, self.problems) for each in segments]
        versions = self._versions(segments)
        table = self.evidence.table
        spec = self.store.datasets.get(name)
        said = None if spec is None else declared(spec)
        restored_table = RestoredTable(
            table_version=table.version if table else None,
            table_id=table.table_id if table else None,
            next_sequence=table.fenced + 1 if table else 1,
            next_position=self._first_position(now),
            corrections=last,
        )
        fixed = Fixed(granularity.value, said.key if said else None, said.time if said else None)
        restore_dataset(self.tx, name, fixed, restored_table, versions, now)
        totals = published_windows(granularity, table.files if table else ())
        published_at: dict[int, int] = {}
        for segment in segments:
            for start, moment in segment.published.items():
                published_at[start] = max(moment, published_at.get(start, 0))
        owner = f"ledger rebuild by {self.by}"
        if table:
            restore_dead_builds(self.tx, name, table.dead, owner=owner, now=now)
        build_id = None
        if table:
            batch_count = sum(len(segment.batches) for segment in segments if segment.published)
            publication = RestoredPublication(table.fenced, table.version, totals, published_at, batch_count)
            build_id = restore_publication(self.tx, name, publication, owner=owner, now=now)
        for segment in segments:
            restore_segment(self.tx, name, segment, build_id, versions, now)
        restore_corrections(self.tx, corrections, windows_to_correct(self.evidence, corrections, granularity))
        known = {batch.batch_id for segment in segments for batch in segment.batches}
        self._emptied_ranges(known)
        entries = [
            *self._damaged_segments(segments),
            *self._refused_rows(known),
            *self._bad_files(known),
            *self._unreadable_files(),
        ]
        next_entry = restore_entries(self.tx, entries, first_id=next_entry, by=self.by, now=now)
        finish_restoring(self.tx, [segment.row.id for segment in segments], now)
        past = restore_past_rows(self.tx, name, last_corrections(corrections, segments, totals), now)
        kept = Policy.of(self.store.settings, spec).table_retention_micros
        self.problems += unexplained(name, past, granularity, kept, now)
        open_entries = sum(not entry.resolved for entry in entries)
        return self._outcome(segments, totals, open_entries), next_entry

    def _first_position(self, now: int) -> int:
        """One beyond every position that was ever given: no dataset gets more rows than microseconds pass.

        But clocks go back.
        """
        table = self.evidence.table
        said = [(each.description.after or 0) + each.numbers for each in self.evidence.segments]
        return max(now, table.last_position + 1 if table else 0, *said)

    def _outcome(
        self, segments: Iterable[RestoredSegment], totals: Mapping[int, object], quarantined: int
    ) -> RestoredDataset:
        name, files = self.evidence.dataset, self.evidence.table.files if self.evidence.table else ()
        segments = list(segments)
        return RestoredDataset(
            dataset=name,
            declared=name in self.store.datasets,
            batches=sum(len(segment.batches) for segment in segments),
            segments=sum(segment.on_disk for segment in segments),
            staged_rows=sum(
                piece.rows
                for segment in segments
                for piece in segment.slices
                if piece.window_start not in segment.published
            ),
            published_rows=sum(file.rows for file in files),
            windows=len(totals),
            quarantined=quarantined,
            notes=tuple(self.notes),
            problems=tuple(self.problems),
        )

    def _granularity(self) -> Granularity | None:
        name = self.evidence.dataset
        said = {segment.description.window for segment in self.evidence.segments}
        said |= {description.window for _, description in self.evidence.refused}
        if name in self.store.datasets:
            declared = self.store.datasets[name].window
            if said - {declared.value}:
                raise LedgerError(
                    f"dataset {name!r} has windows of one {said.pop()} in its segments and of one {declared} in "
                    "datasets.yaml; restore the old declaration and run this again"
                )
            return declared
        if said:
            return Granularity(said.pop())
        files = self.evidence.table.files if self.evidence.table else ()
        ours = [file for file in files if sequence_of_file(file_name(file.path)) is not None]
        for granularity in Granularity:
            if ours and all(Window.of_partition(file.window_key, granularity) for file in ours):
                return granularity
        return None

    def _versions(self, segments: Iterable[RestoredSegment]) -> list[tuple[Column, ...]]:
        """The columns that the dataset has had: those of manifests, then those that segments have beyond them.

        Where nothing was published, the declared ones are the first: rows that brought more have them all.
        """
        table = self.evidence.table
        published = list(table.versions) if table else []
        staged = {segment.columns for segment in segments if segment.columns is not None}
        spec = self.store.datasets.get(self.evidence.dataset)
        if staged and not published and spec is not None and spec.declared_columns is not None:
            staged.add(spec.declared_columns)
        versions = published + oldest_first(staged.difference(published))
        return versions or ([table.columns] if table else [])

    def _segments(self) -> list[RestoredSegment]:
        """What is on disk, each batch once, and what manifests say of segments that are gone."""
        by_segment: dict[str, list[Published]] = defaultdict(list)
        for each in self.evidence.table.published if self.evidence.table else ():
            by_segment[each.contribution.segment_id].append(each)
        on_disk = {segment.id for segment in self.evidence.segments}
        gone = [
            self._gone(segment_id, parts)
            for segment_id, parts in sorted(by_segment.items())
            if segment_id not in on_disk
        ]
        taken = {batch.batch_id for segment in gone for batch in segment.batches}
        choices = choose(self.evidence.segments, by_segment.keys(), taken)
        for segment in self.evidence.segments:
            if not any(choice.segment is segment for choice in choices):
                self.notes.append(f"{_name(segment.file)}: its batches are in other segments; it will be swept")
        found = []
        for choice in choices:
            segment = choice.segment if choice.whole else self._carved(choice)
            found.append(restored(segment, by_segment[choice.segment.id]))
        return each_batch_once([*found, *gone])

    def _emptied_ranges(self, known: set[str]) -> None:
        """Enter the batches of corrections that brought no row, so that a repeat of one is known."""
        for each in self.evidence.corrections:
            batch, file = each.said.batch, each.file
            if each.said.segment_id is None and file is not None and batch.batch_id not in known:
                row = DescribedBatch(0, batch, 0, 0).row
                staged_at, number = staged_at_of(_name(file)), each.said.correction.number
                restore_batches_without_rows(self.tx, self.evidence.dataset, [row], staged_at, number)
                known.add(batch.batch_id)

    def _gone(self, segment_id: str, parts: list[Published]) -> RestoredSegment:
        restored = unlinked(self.evidence.dataset, segment_id, parts)
        there = sum(part.contribution.rows for part in parts)
        missing = sum(batch.rows for batch in restored.batches) - there
        if missing:
            self.problems.append(
                f"{missing:,} rows of segment {segment_id} are neither published nor on disk: they were discarded, or "
                "their file is lost"
            )
        return restored

    def _carved(self, choice: Choice) -> FoundSegment:
        """Write the batches that are needed of a segment into one of their own; the whole one is swept later."""
        whole = choice.segment
        segment_id = new_segment_id()
        staging = self.store.staging
        key = segment_key(self.evidence.dataset, segment_id)
        temporary = staging.scratch(key)
        description = whole.description.only(choice.ordinals)
        try:
            with self.store.connect(*self.store.segment_folders(self.evidence.dataset)) as connection:
                carve(connection, staging.fetch(whole.file.key), temporary, description)
            size = temporary.stat().st_size
            staging.put(temporary, key)
        except (duckdb.Error, OSError) as error:
            shown = staging.shown(whole.file.key)
            raise TimestoreError(f"{shown}: some batches of it cannot be taken out: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        self.notes.append(
            f"{_name(whole.file)}: some of its batches are in other segments; the rest is {segment_id} now"
        )
        file = replace(whole.file, key=key, bytes=size)
        return replace(whole, id=segment_id, file=file, description=description, set_aside=False)

    def _damaged_segments(self, segments: Iterable[RestoredSegment]) -> list[RestoredEntry]:
        """Entries for slices that cannot be read, of those segments that had been set aside before."""
        by_id = {segment.row.id: segment for segment in segments}
        entries = []
        for found in self.evidence.segments:
            segment = by_id.get(found.id)
            if segment is None or not found.set_aside:
                continue
            staged = [piece for piece in segment.slices if piece.window_start not in segment.published]
            damaged = self._damage(found, staged)
            if damaged:
                rows = sum(piece.rows for piece in staged if piece.window_start in damaged)
                source = ", ".join(sorted({each.batch.source for each in found.description.batches})[:3])
                reason = next(iter(damaged.values()))
                entry = self._entry(found.file, QuarantineKind.SEGMENT, found.id, source, reason, rows)
                entries.append(replace(entry, windows=tuple(damaged)))
        return entries

    def _damage(self, found: FoundSegment, staged: list[SliceRow]) -> dict[int, str]:
        name = self.evidence.dataset
        if not staged:
            return {}
        if name not in self.store.datasets:
            return dict.fromkeys((piece.window_start for piece in staged), "it was set aside before")
        spec = self.store.datasets[name]
        pieces = [
            Slice(
                name,
                found.id,
                found.file.key,
                each.window_start,
                each.rows,
                each.bytes,
                each.min_time,
                each.max_time,
                staged_at_of(found.id),
                found.columns,
            )
            for each in staged
        ]
        return {piece.window_start: reason for piece, reason in damaged_slices(self.store, spec, pieces).items()}

    def _refused_rows(self, known: set[str]) -> list[RestoredEntry]:
        entries = []
        for file, description in self.evidence.refused:
            alone = []
            for each in description.batches:
                acknowledged = each.batch.batch_id in known or not each.rows
                decided = (_name(file), each.ordinal) in self.evidence.resolved or was_retried(each, known)
                if not each.refused_rows or not acknowledged:
                    continue  # never acknowledged: its file is still in landing, or its sender was not told
                if each.batch.batch_id not in known:
                    alone.append(each.row)
                if not decided:
                    batch, rows = each.batch, each.refused_rows
                    entry = self._entry(file, QuarantineKind.ROWS, batch.batch_id, batch.source, each.reason, rows)
                    entries.append(replace(entry, bytes=file.bytes * rows // refused(description)))
            if alone:
                staged_at, after = staged_at_of(_name(file)), description.after_correction
                restore_batches_without_rows(self.tx, self.evidence.dataset, alone, staged_at, after)
                known |= {row.batch_id for row in alone}
        return entries

    def _bad_files(self, known: set[str]) -> list[RestoredEntry]:
        entries, seen = [], set()
        for file in self.evidence.bad_files:
            if file.bytes > self.store.settings.landing_max_file_bytes:
                batch_id = unread_file_id(file.key, file.bytes)  # it was set aside unread, and is not read now
            else:
                batch_id = file_batch_id(file_fingerprint(self.store.staging.fetch(file.key)))
            if batch_id not in seen:
                seen.add(batch_id)
                source = _ID_BEFORE_NAME.sub("", _name(file))
                entry = self._entry(file, QuarantineKind.BATCH, batch_id, source, _UNKNOWN_REASON, None)
                entries.append(replace(entry, resolved=batch_id in known))
        return entries

    def _unreadable_files(self) -> list[RestoredEntry]:
        entries = []
        for file, why in self.evidence.unreadable:
            shown = self.store.staging.shown(file.key)
            self.problems.append(f"{shown}: its rows are not restored: {why}")
            reason = (
                f"{why}. Its rows are not in the rebuilt ledger: restore the file from a backup and run "
                "'timestore ledger rebuild --replace', or discard it"
            )
            stem = PurePosixPath(file.key).stem
            entries.append(self._entry(file, QuarantineKind.SEGMENT, stem, _name(file), reason, None))
        return entries

    def _entry(
        self, file: Entry, kind: QuarantineKind, batch_id: str, source: str, reason: str, rows: int | None
    ) -> RestoredEntry:
        return RestoredEntry(
            dataset=self.evidence.dataset,
            kind=kind,
            batch_id=batch_id,
            source=source,
            path=file.key,
            reason=reason,
            rows=rows,
            bytes=file.bytes,
            created_at=file.modified_at,
        )


def _name(file: Entry) -> str:
    return PurePosixPath(file.key).name
