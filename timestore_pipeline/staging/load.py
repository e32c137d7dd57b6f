"""The one way in: batches become a segment and are acknowledged, whatever their rows come from.

Known? Room? A turn? Then the rows are planned, written and acknowledged. What turns out bad gets its own answer, and
the rest is done again without it (invariant 9). A batch that is answered with a receipt is in the ledger (invariant 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import duckdb

from timestore_pipeline.errors import (
    BatchesRefused,
    BatchRejected,
    SegmentNotWritten,
    StagingQueueFull,
    TimestoreError,
    TooManyWindows,
)
from timestore_pipeline.inert import log_named
from timestore_pipeline.ledger.batches import SegmentRow
from timestore_pipeline.ledger.datasets import schema_and_corrections
from timestore_pipeline.ledger.quarantine import QuarantineEntry
from timestore_pipeline.ledger.schemas import SchemaStep
from timestore_pipeline.model.columns import Column
from timestore_pipeline.model.evolution import Schema
from timestore_pipeline.rows.culprits import attempt_by_halves
from timestore_pipeline.rows.read_plan import Growth, ReadPlan, read_through
from timestore_pipeline.rows.reasons import UnreadableFile, readable_reason
from timestore_pipeline.segments.identity import claims_given_id
from timestore_pipeline.segments.segment import SegmentDraft, WrittenSegment, write_segment
from timestore_pipeline.staging.incoming import OF_ROWS, Rows
from timestore_pipeline.staging.receipts import (
    Premises,
    Receipt,
    StagedMeanwhile,
    acknowledge_segment,
    known_of,
    reserved_id,
    settle_known,
)
from timestore_pipeline.staging.room import Admission, check_disk, over_share, room_for
from timestore_pipeline.staging.turns import turn

log = log_named(__name__)

Answer = Receipt | TimestoreError
"""What became of one batch."""


def receipt_of(answer: Answer) -> Receipt:
    """Return an answer that is a receipt.

    Raises:
        TimestoreError: the answer, where it is an error.
    """
    if isinstance(answer, TimestoreError):
        raise answer
    return answer


@dataclass(frozen=True)
class Outlook:
    """What the ledger says of a dataset: its columns, how many windows a batch may have rows in, its last correction.

    Any number of windows where ``most_windows`` is 0; ``corrections`` is the number of the last one.

    A writer passes on what its last group found, and its next one is written without asking first. The acknowledging
    transaction looks at everything anyway. Where something has changed it records nothing, and the group is done again
    after asking: a writer that meets batches which are known, or no room, asks each time.
    """

    schema: Schema | None
    most_windows: int
    corrections: int


@dataclass(frozen=True)
class Loaded:
    """What became of batches, by their numbers, and what the ledger has now because of them."""

    answers: Mapping[int, Answer] = field(default_factory=dict)
    segments: tuple[SegmentRow, ...] = ()
    quarantined: tuple[QuarantineEntry, ...] = ()
    columns: tuple[Column, ...] = ()
    outlook: Outlook | None = None

    def and_then(self, later: Loaded) -> Loaded:
        """Return this and what came later."""
        return Loaded(
            {**self.answers, **later.answers},
            (*self.segments, *later.segments),
            (*self.quarantined, *later.quarantined),
            later.columns or self.columns,
            later.outlook,
        )

    @property
    def in_order(self) -> list[Answer]:
        """The answers in the order of the batches."""
        return [self.answers[number] for number in sorted(self.answers)]


def load(rows: Rows, outlook: Outlook | None = None) -> Loaded:
    """Stage batches, as one segment where that can be; return an answer for each.

    An answer is a receipt, or one of the errors that ``stage()`` raises, or SegmentNotWritten. When there is room for
    some only, the first ones go. Of batches with one id the first one goes, and the others are its repeats.

    Raises:
        Exception: of a kind that nobody foresaw, where there is one batch only and its rows are not what is wrong.
    """
    return _Load(rows, outlook).run(range(len(rows.batches)))


class _Load:
    """One load on its way."""

    def __init__(self, rows: Rows, outlook: Outlook | None) -> None:
        self._rows = rows
        self._store = rows.store
        self._spec = rows.spec
        self._outlook = outlook

    def run(self, numbers: Sequence[int]) -> Loaded:
        done = Loaded()
        while left := [number for number in numbers if number not in done.answers]:
            try:
                found = self._attempt(left)
            except _NotTogether:
                # What the first ones bring holds for the others only once it is staged.
                middle = len(left) // 2
                found = self.run(left[:middle]).and_then(self.run(left[middle:]))
            except TimestoreError as error:
                found = Loaded(dict.fromkeys(left, error))
            except Exception as error:
                # Of a kind that nobody foresaw. Whichever batch it comes from must not take the others with it.
                found = self._rejected_alone(left[0], error) if len(left) == 1 else self._each_alone(left)
            done = done.and_then(found).and_then(self._twins_of_rejected(left, found))
        return done

    def _each_alone(self, left: Sequence[int]) -> Loaded:
        done = Loaded()
        for number in left:
            try:
                done = done.and_then(self.run([number]))
            except Exception as alone:
                source = self._rows.batches[number].source
                log.exception("dataset %r: %s could not be staged", self._spec.name, source)
                failed = TimestoreError(f"dataset {self._spec.name!r}: {source} could not be staged; see the log")
                failed.__cause__ = alone
                done = done.and_then(Loaded({number: failed}))
        return done

    def _twins_of_rejected(self, left: Sequence[int], found: Loaded) -> Loaded:
        """Answer batches as others were that have the same content, and cannot be staged."""
        batches = self._rows.batches
        reasons = {
            (batches[number].batch_id, batches[number].fingerprint): answer.reason
            for number, answer in found.answers.items()
            if isinstance(answer, BatchRejected)
        }
        twins = {number: (batches[number].batch_id, batches[number].fingerprint) for number in left}
        return Loaded(
            {
                number: self._rows.rejected(number, reasons[twin])
                for number, twin in twins.items()
                if twin in reasons and number not in found.answers
            },
            outlook=found.outlook,
        )

    def _rejected_alone(self, number: int, error: Exception) -> Loaded:
        if not isinstance(error, OF_ROWS) or isinstance(error, duckdb.OutOfMemoryException | duckdb.IOException):
            raise error
        return Loaded({number: self._rows.rejected(number, readable_reason(error), error)})

    def _attempt(self, left: Sequence[int]) -> Loaded:
        """Answer some of the batches; none where another process was in the way and it is to be tried again."""
        store, spec = self._store, self._spec
        group = self._one_of_each_id(left)
        claiming = {} if self._rows.ids_are_ours else self._claiming(group)
        outlook, self._outlook = self._outlook, None
        if outlook is not None and not claiming:
            check_disk(store)
            try:
                return self._stage(outlook, group, in_turn=False)
            except (StagedMeanwhile, StagingQueueFull):
                return Loaded()  # it is not as it was: ask
        batches = [self._rows.batches[number] for number in group]
        with store.ledger.read() as tx:
            known = known_of(tx, spec.name, batches)
            found = None
            if not known and not claiming:
                limits, admitted = room_for(tx, store, spec, batches)
                found = admitted, limits, *schema_and_corrections(tx, spec)
        if found is None:
            # What has such an id from before they were kept for us is known, and is a repeat.
            return Loaded(self._known(left) if known else claiming)
        admitted, limits, schema, corrections = found
        check_disk(store)
        admissions = dict(zip(group, admitted, strict=True))
        over = Loaded(
            {
                number: over_share(spec, limits, self._rows.batches[number])
                for number in group
                if admissions[number] is Admission.OVER_SHARE
            }
        )
        taken = [number for number in group if admissions[number] is Admission.TAKEN]
        if not taken:
            return over
        try:
            with turn(store, spec, limits) as in_turn:
                outlook = Outlook(schema, limits.max_windows, corrections)
                return over.and_then(self._stage(outlook, taken, in_turn=in_turn))
        except StagedMeanwhile:
            return Loaded()  # the ledger knows more by now
        except StagingQueueFull:
            if len(taken) == 1:
                raise
            return Loaded()  # it filled up meanwhile, but not so far that none of them fits

    def _one_of_each_id(self, left: Sequence[int]) -> list[int]:
        """Return which batches to load now: once the first of two has its answer, the ledger knows of the second.

        One that replaces a range is alone: what is acknowledged before it goes, and what comes after it stays.
        """
        first: dict[str, int] = {}
        for number in left:
            batch = self._rows.batches[number]
            if batch.replaces is not None:
                return list(first.values()) or [number]
            first.setdefault(batch.batch_id, number)
        return list(first.values())

    def _claiming(self, group: Sequence[int]) -> dict[int, Answer]:
        batches = {number: self._rows.batches[number] for number in group}
        return {
            number: reserved_id(self._spec.name, batch)
            for number, batch in batches.items()
            if claims_given_id(batch.batch_id, batch.fingerprint, batch.client)
        }

    def _known(self, left: Sequence[int]) -> dict[int, Answer]:
        settled = settle_known(self._store, self._spec, [self._rows.batches[number] for number in left])
        return {number: answer for number, answer in zip(left, settled, strict=True) if answer is not None}

    def _stage(self, outlook: Outlook, group: Sequence[int], *, in_turn: bool) -> Loaded:
        """Write and acknowledge a segment of a group; batches that turn out bad are answered, and others may be left.

        Raises:
            StagedMeanwhile, StagingQueueFull: as :func:`acknowledge_segment`; ask the ledger.
            SegmentNotWritten: it could not be written, and no batch is at fault.
        """
        schema = outlook.schema
        plan, written, answered = self._write(outlook, group)
        if written is None:
            return answered
        if withheld := self._rows.withheld(plan.order, written):
            written.discard(self._store)
            return _bad_after_all(plan, answered, Loaded(withheld))
        base = schema.version if schema else 0
        declared = [SchemaStep(schema.columns)] if schema and not base else []
        steps = (*declared, *(self._step(growth) for growth in plan.growth))
        batches = [self._rows.batches[number] for number in plan.order]
        try:
            done = acknowledge_segment(
                self._store,
                self._spec,
                Premises(base, steps, self._rows.order, in_turn, outlook.corrections),
                written,
                batches,
                self._rows.record,
            )
        except BatchesRefused as error:
            return _bad_after_all(plan, answered, self._refused(plan, error))
        as_expected = not (answered.answers or steps or in_turn or written.correction)
        return answered.and_then(
            Loaded(
                dict(zip(plan.order, done.receipts, strict=True)),
                (written.row,) if written.row else (),
                done.quarantined,
                plan.schema.columns if plan.schema else (),
                replace(outlook, schema=plan.schema) if as_expected else None,
            )
        )

    def _write(self, outlook: Outlook, group: Sequence[int]) -> tuple[ReadPlan, WrittenSegment | None, Loaded]:
        """Return what was planned and written of a group, and the answers to batches that turned out bad."""
        store, spec, rows = self._store, self._spec, self._rows
        plan, answered = ReadPlan(outlook.schema), Loaded()
        try:
            with rows.connection(group) as connection:
                try:
                    plan = rows.plan(connection, outlook.schema, group)
                    answered = Loaded({number: rows.rejected(number, why) for number, why in plan.refused.items()})
                    if plan.schema is None or not plan.order:
                        return plan, None, answered
                    draft = SegmentDraft(
                        plan.schema.columns,
                        plan.sources,
                        [rows.batches[number] for number in plan.order],
                        rows.take_late,
                        rows.times(plan),
                        outlook.most_windows,
                        rows.order.position if rows.order else None,
                        rows.order.after_correction if rows.order else outlook.corrections,
                    )
                    return plan, write_segment(store, connection, spec, draft), answered
                except TimestoreError:
                    raise  # says all that there is to say
                except OF_ROWS as error:
                    found = None
                    if not isinstance(error, duckdb.OutOfMemoryException):
                        found = self._culprits(connection, outlook.schema, group)
                    if found is None:
                        raise
                    return plan, None, _bad_after_all(plan, answered, found)
        except TooManyWindows as error:
            with store.ledger.read() as tx:
                as_before = store.policy(tx, spec).limits.max_windows == error.limit
            # If the limit is another one now, it is asked for again.
            return plan, None, _bad_after_all(plan, answered, self._refused(plan, error) if as_before else Loaded())
        except BatchesRefused as error:
            return plan, None, _bad_after_all(plan, answered, self._refused(plan, error))
        except TimestoreError:
            raise
        except (duckdb.Error, OSError) as error:
            out_of_memory = isinstance(error, duckdb.OutOfMemoryException)
            raise SegmentNotWritten(spec.name, readable_reason(error), out_of_memory=out_of_memory) from error

    def _step(self, growth: Growth) -> SchemaStep:
        batch = self._rows.batches[growth.number]
        return SchemaStep(growth.columns, batch.batch_id, batch.source)

    def _refused(self, plan: ReadPlan, error: BatchesRefused) -> Loaded:
        reasons = {plan.order[ordinal]: reason for ordinal, reason in error.reasons.items()}
        return Loaded({number: self._rows.rejected(number, reason, error) for number, reason in reasons.items()})

    def _culprits(
        self, connection: duckdb.DuckDBPyConnection, schema: Schema | None, group: Sequence[int]
    ) -> Loaded | None:
        """Answer the batches that made a segment fail; None where reading them is not what failed.

        ``schema`` is what holds without any of them: a batch that cannot be read alone is refused for what it is
        itself, and not for what another one brought.

        Raises:
            _NotTogether: each can be read alone.
        """

        def read(numbers: Sequence[int]) -> None:
            try:
                for source in self._rows.plan(connection, schema, numbers).sources:
                    read_through(connection, source)
            except duckdb.OutOfMemoryException:
                raise
            except OF_ROWS as error:
                raise UnreadableFile(readable_reason(error)) from error

        try:
            parts = list(attempt_by_halves(group, read, UnreadableFile))
        except duckdb.OutOfMemoryException:
            return None  # which says nothing of the rows
        reasons = {numbers[0]: str(error) for numbers, error in parts if error is not None}
        if not reasons:
            if len(parts) > 1:
                raise _NotTogether
            return None
        found = {
            number: self._rows.unreadable(connection, schema, number, reason) for number, reason in reasons.items()
        }
        return Loaded({number: error for number, error in found.items() if error is not None})


class _NotTogether(Exception):
    """Batches cannot be staged together, and each of them can be read alone."""


def _bad_after_all(plan: ReadPlan, answered: Loaded, bad: Loaded) -> Loaded:
    """Return the answers to batches of a plan that turn out bad when they are written, and to those that did not fit.

    What did not fit may not have fitted the columns that a bad one was to bring. Then it is planned again without that.
    """
    return bad if plan.growth else answered.and_then(bad)
