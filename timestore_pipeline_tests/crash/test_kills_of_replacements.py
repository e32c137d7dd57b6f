"""SIGKILL in builds that write windows anew: of datasets with a key, and where a column becomes wider.

Each row that wins is there once, and no other, before, during and after; and the row audit adds up all the while.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from timestore_pipeline.building.expire import expire_windows
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.crash_points import CrashPoint
from timestore_pipeline.ledger.batches import known_batches
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.reading.rows import query_rows
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.upkeep.orphans import sweep_orphans
from timestore_pipeline.upkeep.published_segments import unlink_published_segments
from timestore_pipeline.upkeep.vacuum import vacuum_table
from timestore_pipeline_tests.arrangements import Arrange
from timestore_pipeline_tests.crash import rows
from timestore_pipeline_tests.crash.child import killed_at

pytestmark = pytest.mark.crash

Row = tuple[int, int, int, int | None]
"""day, id, value, version; of a key's rows in one window, the tests tell by the value which one won."""

_START = datetime(2026, 1, 1, tzinfo=UTC)
_BIG = 1 << 40
_TABLE = "readings"


@dataclass(frozen=True)
class Case:
    """A dataset and its batches in the order in which they are staged: a and b published, c to be built, e to come.

    ``wide`` batches have a wider type of ``value`` than those before, and a column more, without a time zone.
    """

    name: str
    key: str
    batches: Mapping[str, tuple[Row, ...]]
    wide: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name

    @property
    def datasets_yaml(self) -> str:
        return f"datasets: {{{_TABLE}: {{time: at, window: day{self.key}}}}}"

    def table(self, name: str) -> pa.Table:
        """The rows of a batch."""
        found = self.batches[name]
        number = pa.int64() if name in self.wide else pa.int32()
        columns = {
            "at": pa.array(
                [_START + timedelta(days=row[0], minutes=row[1]) for row in found], pa.timestamp("us", "UTC")
            ),
            "id": pa.array([row[1] for row in found], pa.int32()),
            "value": pa.array([row[2] for row in found], number),
            "version": pa.array([row[3] for row in found], pa.int32()),
        }
        if name in self.wide:
            columns["seen"] = pa.array([_START.replace(tzinfo=None)] * len(found), pa.timestamp("us"))
        return pa.table(columns)

    def expected(self, names: Iterable[str]) -> Counter[tuple[Any, ...]]:
        """The (day, id, value) that are there once these batches are: the model of the dataset."""
        found = [row for name in sorted(names) for row in self.batches[name]]
        if not self.key:
            return Counter(row[:3] for row in found)
        winners: dict[tuple[int, int], Row] = {}
        for row in found:
            had = winners.get(row[:2])
            if had is None or "version" not in self.key or _version(row) >= _version(had):
                winners[row[:2]] = row
        return Counter(row[:3] for row in winners.values())


def _version(row: Row) -> tuple[bool, int]:
    return (row[3] is not None, row[3] or 0)


def _numbered(day: int, ids: Sequence[int], value: int, version: int | None = None) -> tuple[Row, ...]:
    return tuple((day, each, value + each, version) for each in ids)


BATCHES = {
    "a": (*_numbered(0, range(6), 100, 2), *_numbered(1, range(6), 100, 2)),
    # The third window has rows in the table only, and the first one has a second file.
    "b": (*_numbered(2, range(4), 200, 1), *_numbered(0, range(4, 8), 200, 1)),
    # Twice the same key in one batch, too; and versions that are lower, higher, equal and none.
    "c": (
        *_numbered(0, range(3, 7), 300, 1),
        *_numbered(0, (5,), 350, 2),
        *_numbered(1, range(3), 300, 3),
        *_numbered(1, (3,), 300, None),
    ),
    "e": (*_numbered(1, (0, 5, 9), 400, 2), *_numbered(3, (1,), 400, 1)),
}
WIDE_BATCHES = {
    **BATCHES,
    **{name: tuple((day, each, value + _BIG, version) for day, each, value, version in BATCHES[name]) for name in "ce"},
}
LATEST = Case("latest", ", key: {columns: [id]}", BATCHES)
HIGHEST = Case("highest version", ", key: {columns: [id], version: version}", BATCHES)
WIDER = Case("wider", "", WIDE_BATCHES, frozenset("ce"))
KEYED_AND_WIDER = Case("highest version, wider", ", key: {columns: [id], version: version}", WIDE_BATCHES, WIDER.wide)

EVERY_STEP = [
    (CrashPoint.SLICES_RECORDED, 1),
    (CrashPoint.SLICES_CLAIMED, 1),
    (CrashPoint.PARQUET_WRITTEN, 1),
    (CrashPoint.PARQUET_SYNCED, 1),
    (CrashPoint.PARQUET_RENAMED, 2),
    (CrashPoint.PARQUET_IN_PLACE, 1),
    (CrashPoint.PARQUET_IN_PLACE, 2),
    (CrashPoint.MANIFEST_WRITTEN, 1),
    (CrashPoint.TABLE_CHECKED, 1),
    (CrashPoint.TABLE_COMMITTED, 1),
    (CrashPoint.TABLE_SYNCED, 1),
    (CrashPoint.MANIFEST_KEPT, 1),
    (CrashPoint.PUBLICATION_RECORDED, 1),
    (CrashPoint.PUBLICATION_COMMITTED, 1),
]
WIDENING = [(CrashPoint.TYPES_DECLARED, 1), (CrashPoint.WINDOWS_ADDED, 1), (CrashPoint.PARQUET_IN_PLACE, 3)]
DECISIVE = [(CrashPoint.PARQUET_IN_PLACE, 2), (CrashPoint.MANIFEST_WRITTEN, 1), (CrashPoint.TABLE_COMMITTED, 1)]


@dataclass(frozen=True)
class Kill:
    """A job killed where it reaches a point for the ``times``-th time; ``before``: a build is killed there first."""

    case: Case
    job: str
    point: CrashPoint
    times: int = 1
    before: CrashPoint | None = None

    def __str__(self) -> str:
        return f"{self.case}: {self.job} at {self.point}:{self.times}" + (
            f" after {self.before}" if self.before else ""
        )


WIDENED = [Kill(WIDER, "build", *at) for at in WIDENING]
"""At points that only such builds have: all done in every run of the tests."""
KILLS = [
    *(Kill(LATEST, "build", *at) for at in EVERY_STEP),
    *(Kill(HIGHEST, "build", *at) for at in DECISIVE),
    *(Kill(WIDER, "build", *at) for at in DECISIVE),
    *(Kill(KEYED_AND_WIDER, "build", *at) for at in (*DECISIVE, *WIDENING)),
    *(
        Kill(LATEST, "settle", point, before=CrashPoint.PARQUET_IN_PLACE)
        for point in (CrashPoint.TABLE_COMMITTED, CrashPoint.RECOVERY_ABORTED, CrashPoint.RECOVERY_CLEANED)
    ),
    Kill(WIDER, "settle", CrashPoint.RECOVERY_ABORTED, before=CrashPoint.PARQUET_IN_PLACE),
    *(
        Kill(case, "settle", CrashPoint.RECOVERY_PUBLISHED, before=CrashPoint.TABLE_COMMITTED)
        for case in (LATEST, KEYED_AND_WIDER)
    ),
    *(Kill(HIGHEST, "rebuild", *at) for at in DECISIVE),
    Kill(KEYED_AND_WIDER, "rebuild", CrashPoint.TABLE_COMMITTED),
    *(Kill(WIDER, "compact", *at) for at in ((CrashPoint.PARQUET_IN_PLACE, 1), (CrashPoint.TABLE_COMMITTED, 1))),
]
ON_A_SERVER = [
    Kill(LATEST, "build", CrashPoint.TABLE_COMMITTED),
    Kill(KEYED_AND_WIDER, "build", CrashPoint.WINDOWS_ADDED),
    Kill(WIDER, "build", CrashPoint.PUBLICATION_RECORDED),
]


def acknowledged(store: Store, case: Case) -> set[str]:
    with store.ledger.read() as tx:
        return set(known_batches(tx, _TABLE, case.batches))


def readable(store: Store) -> Counter[tuple[Any, ...]]:
    """Every (day, id, value) as the read API has them, staged and published."""
    return _counted(query_rows(store, f"SELECT * FROM {_TABLE}").to_arrow())


def published(store: Store) -> Counter[tuple[Any, ...]]:
    """Every (day, id, value) as any reader of Delta tables has them."""
    return _counted(DeltaTable(str(store.table(_TABLE).root)).to_pyarrow_table())


def _counted(table: pa.Table) -> Counter[tuple[Any, ...]]:
    return Counter(((row["at"] - _START).days, row["id"], row["value"]) for row in table.to_pylist())


def types_in_files(store: Store) -> set[str]:
    """The types of ``value`` in the live files of the table."""
    uris = DeltaTable(str(store.table(_TABLE).root)).file_uris()
    return {str(pq.read_schema(uri.removeprefix("file://")).field("value").type) for uri in uris}


def assert_all_adds_up(store: Store, case: Case) -> None:
    """What is acknowledged is readable as the model has it, and the row audit finds nothing wrong."""
    assert readable(store) == case.expected(acknowledged(store, case))
    assert audit_rows(store, _TABLE).wrong == ()


def _settle(store: Store) -> None:
    settle_dead_builds(store, owner_is_gone=lambda owner: True)


def _build(store: Store) -> None:
    flush_windows(store, BuildOrder(_TABLE, owner="the test"))


RECOVERY: list[Callable[[Store], object]] = [
    _settle,
    _build,
    unlink_published_segments,
    lambda store: sweep_orphans(store, older_than_seconds=0),
    lambda store: vacuum_table(store, _TABLE, now=rows.far_in_the_future()),
]


def at_work(arrange: Arrange, case: Case, **settings: Any) -> Store:
    """An installation with a and b published and c staged. Published segments stay, so that it can be rebuilt."""

    def prepare(store: Store) -> None:
        for name in ("a", "b"):
            stage(store, _TABLE, case.table(name), batch_id=name)
            _build(store)
        stage(store, _TABLE, case.table("c"), batch_id="c")
        assert_all_adds_up(store, case)

    return arrange(f"replacements {case}", case.datasets_yaml, prepare, compaction_max_small_files=1, **settings)


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("kill", WIDENED, ids=str)
def test_a_killed_widening_leaves_one_row_where_one_is_to_be(kill: Kill, arrange: Arrange):
    assert_survived(kill, arrange)


@pytest.mark.matrix
@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("kill", KILLS, ids=str)
def test_a_killed_replacement_leaves_one_row_where_one_is_to_be(kill: Kill, arrange: Arrange):
    assert_survived(kill, arrange)


@pytest.mark.matrix
@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("kill", ON_A_SERVER, ids=str)
def test_a_killed_replacement_leaves_one_row_where_one_is_to_be_on_a_server(kill: Kill, arrange: Arrange):
    assert_survived(kill, arrange)


def assert_survived(kill: Kill, arrange: Arrange) -> None:
    store = at_work(arrange, kill.case)
    assert_recovered(kill, store)
    assert types_in_files(store) == {"int64" if kill.case.wide else "int32"}


def assert_recovered(kill: Kill, store: Store, again: Callable[[Store], object] = lambda store: None) -> None:
    """All adds up after each step of a recovery, what was killed done ``again``, and more staged and built."""
    case = kill.case
    if kill.before:
        killed_at(store, "build", kill.before)
        assert_all_adds_up(store, case)

    killed_at(store, kill.job, kill.point, kill.times)

    assert_all_adds_up(store, case)
    for step in (*RECOVERY, again):
        step(store)
        assert_all_adds_up(store, case)
    stage(store, _TABLE, case.table("e"), batch_id="e")
    assert_all_adds_up(store, case)
    _build(store)
    assert_all_adds_up(store, case)
    assert acknowledged(store, case) == set(case.batches)
    assert published(store) == case.expected(case.batches)
    vacuum_table(store, _TABLE, now=rows.far_in_the_future())
    rows.assert_table_has_no_strays(store)


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize(
    ("point", "reached_the_table"),
    [
        (CrashPoint.SLICES_CLAIMED, False),
        (CrashPoint.TABLE_CHECKED, False),
        (CrashPoint.TABLE_COMMITTED, True),
        (CrashPoint.PUBLICATION_RECORDED, True),
    ],
    ids=str,
)
def test_a_killed_expiry_drops_all_windows_or_none(point: CrashPoint, reached_the_table: bool, arrange: Arrange):
    store = at_work(arrange, WIDER, table_retention_seconds=1)
    everything, staged = WIDER.expected("abc"), WIDER.expected("c")

    killed_at(store, "expire", point)

    assert_all_adds_up(store, WIDER)
    assert readable(store) == everything
    _settle(store)
    assert readable(store) == (staged if reached_the_table else everything)
    assert audit_rows(store, _TABLE).wrong == ()
    expire_windows(store, BuildOrder(_TABLE, owner="the test"))
    for step in (_build, lambda store: vacuum_table(store, _TABLE, now=rows.far_in_the_future())):
        step(store)
        assert readable(store) == published(store) == staged
        assert audit_rows(store, _TABLE).wrong == ()
    rows.assert_table_has_no_strays(store)
