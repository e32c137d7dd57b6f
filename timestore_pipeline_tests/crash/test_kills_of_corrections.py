"""SIGKILL in a replacement of a range and in the build after it: readers have the rows of before or of after, whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.model.windows import TimeRange
from timestore_pipeline.staging.stage import incoming_of, stage, stage_incoming
from timestore_pipeline.store import Store
from timestore_pipeline_tests.arrangements import Arrange
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import REPLACEMENT
from timestore_pipeline_tests.crash.test_kills_of_replacements import (
    BATCHES,
    EVERY_STEP,
    RECOVERY,
    WIDE_BATCHES,
    Case,
    Kill,
    Row,
    assert_all_adds_up,
    assert_recovered,
)

pytestmark = pytest.mark.crash

_TABLE = "readings"
_FIRST, _LAST = (0, 3), (1, 1)
"""(day, id) of the first and the last row in the range that is replaced: it begins and ends within a day."""


@dataclass(frozen=True)
class Corrected(Case):
    """As :class:`Case`, where batch d replaces the rows of a range that the batches before it brought."""

    def expected(self, names: Iterable[str]) -> Counter[tuple[Any, ...]]:
        """The (day, id, value) that are there once these batches are."""
        there = set(names)
        if "d" not in there:
            return super().expected(there)
        kept = {name: self._after(name) for name in there}
        return Corrected(self.name, self.key, kept, self.wide)._of_all(there)

    def _after(self, name: str) -> tuple[Row, ...]:
        before = name in "abc"
        return tuple(row for row in self.batches[name] if not (before and _FIRST <= row[:2] <= _LAST))

    def _of_all(self, names: Iterable[str]) -> Counter[tuple[Any, ...]]:
        return super().expected(names)


def _with(batches: dict[str, tuple[Row, ...]], replacement: tuple[Row, ...]) -> dict[str, tuple[Row, ...]]:
    return {**batches, "d": replacement}


_ROWS: tuple[Row, ...] = ((0, 3, 900, 5), (0, 30, 930, 5), (1, 1, 901, 5))
PLAIN = Corrected("plain", "", _with(BATCHES, _ROWS))
EMPTIED = Corrected("emptied", "", _with(BATCHES, ()))
KEYED = Corrected("keyed", ", key: {columns: [id]}", _with(BATCHES, _ROWS))
WIDER = Corrected("wider", "", _with(WIDE_BATCHES, _ROWS), frozenset("cde"))
KEYED_AND_WIDER = Corrected(
    "version, wider", ", key: {columns: [id], version: version}", _with(WIDE_BATCHES, _ROWS), frozenset("cde")
)


STAGING = [
    CrashPoint.SEGMENT_WRITTEN,
    CrashPoint.CORRECTION_IN_PLACE,
    CrashPoint.SEGMENT_IN_PLACE,
    CrashPoint.BATCHES_RECORDED,
    CrashPoint.BATCHES_ACKNOWLEDGED,
    CrashPoint.CORRECTION_KEPT,
]
DECISIVE = [(CrashPoint.TAKEN_RECORDED, 1), (CrashPoint.TABLE_COMMITTED, 1), (CrashPoint.PUBLICATION_RECORDED, 1)]
ONLY_HERE = [
    Kill(PLAIN, "replace", CrashPoint.CORRECTION_IN_PLACE),
    Kill(EMPTIED, "replace", CrashPoint.CORRECTION_KEPT),
    Kill(PLAIN, "build", CrashPoint.TAKEN_RECORDED),
]
"""At points that only corrections have: all done in every run of the tests."""
KILLS = [
    *(Kill(PLAIN, "replace", point) for point in STAGING),
    *(Kill(EMPTIED, "replace", point) for point in STAGING if point is not CrashPoint.SEGMENT_IN_PLACE),
    Kill(KEYED, "replace", CrashPoint.BATCHES_ACKNOWLEDGED),
    *(Kill(PLAIN, "build", *at) for at in (*EVERY_STEP, *DECISIVE)),
    *(Kill(case, "build", *at) for case in (EMPTIED, KEYED) for at in DECISIVE),
    *(
        Kill(case, "build", *at)
        for case in (WIDER, KEYED_AND_WIDER)
        for at in ((CrashPoint.TYPES_DECLARED, 1), (CrashPoint.WINDOWS_ADDED, 1), *DECISIVE)
    ),
    *(Kill(case, "rebuild", *at) for case in (PLAIN, KEYED) for at in DECISIVE),
    *(
        Kill(case, "settle", point, before=CrashPoint.TAKEN_RECORDED)
        for case in (PLAIN, KEYED)
        for point in (CrashPoint.RECOVERY_FENCED, CrashPoint.RECOVERY_ABORTED, CrashPoint.RECOVERY_CLEANED)
    ),
    *(
        Kill(case, "settle", CrashPoint.RECOVERY_PUBLISHED, before=CrashPoint.TABLE_COMMITTED)
        for case in (PLAIN, EMPTIED, KEYED, WIDER)
    ),
]
ON_A_SERVER = [
    Kill(PLAIN, "replace", CrashPoint.BATCHES_RECORDED),
    Kill(KEYED, "build", CrashPoint.TAKEN_RECORDED),
    Kill(EMPTIED, "build", CrashPoint.TABLE_COMMITTED),
]


def replaced(store: Store, case: Corrected) -> None:
    """Replace the range by batch d, or repeat it."""
    table, name, replaces = _replacement(case)
    stage_incoming(store, _TABLE, incoming_of(store, _TABLE, table, name, replaces=replaces))


def _replacement(case: Corrected) -> tuple[pa.Table, str, TimeRange]:
    start, last = (rows.START + timedelta(days=day, minutes=each) for day, each in (_FIRST, _LAST))
    return case.table("d"), "d", TimeRange.between(start, last + timedelta(microseconds=1))


def at_work(arrange: Arrange, case: Corrected) -> Store:
    """An installation with a and b published and c staged. Published segments stay, so that it can be rebuilt."""

    def prepare(store: Store) -> None:
        for name in ("a", "b"):
            stage(store, _TABLE, case.table(name), batch_id=name)
            RECOVERY[1](store)
        stage(store, _TABLE, case.table("c"), batch_id="c")
        table, _, replaces = _replacement(case)
        said = table.replace_schema_metadata({"start": str(replaces.start), "end": str(replaces.end)})
        with pa.ipc.new_file(store.settings.home / REPLACEMENT, said.schema) as writer:
            writer.write_table(said)

    return arrange(f"corrections {case}", case.datasets_yaml, prepare)


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("kill", ONLY_HERE, ids=str)
def test_a_correction_that_is_killed_has_happened_or_not(kill: Kill, arrange: Arrange):
    assert_survived(kill, arrange)


@pytest.mark.matrix
@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("kill", [kill for kill in KILLS if kill not in ONLY_HERE], ids=str)
def test_a_correction_that_is_killed_anywhere_has_happened_or_not(kill: Kill, arrange: Arrange):
    assert_survived(kill, arrange)


@pytest.mark.matrix
@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("kill", ON_A_SERVER, ids=str)
def test_a_correction_that_is_killed_has_happened_or_not_on_a_server(kill: Kill, arrange: Arrange):
    assert_survived(kill, arrange)


def assert_survived(kill: Kill, arrange: Arrange) -> None:
    case = kill.case
    assert isinstance(case, Corrected)
    store = at_work(arrange, case)
    if kill.job != "replace":
        replaced(store, case)
        assert_all_adds_up(store, case)
    assert_recovered(kill, store, again=lambda store: replaced(store, case))
