"""Commits that replace all files of some windows: in one step, of exactly what was read, and totals to match."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from deltalake import DeltaTable, write_deltalake

from timestore_pipeline.building.completion import published_windows
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.errors import TableError
from timestore_pipeline.ledger.builds import NewBuild, mark_published
from timestore_pipeline.ledger.claims import Claim
from timestore_pipeline.ledger.windows import window_totals
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import windows_between
from timestore_pipeline.segments.slices import attach_segment, segment_table
from timestore_pipeline.staging.stage import stage
from timestore_pipeline.store import Store
from timestore_pipeline.table.commit import commit_build, commit_fence
from timestore_pipeline.table.contents import ParquetFile, live_files
from timestore_pipeline.table.opening import open_table
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.parquet import slices_as_source, window_folders, write_window
from timestore_pipeline.table.replacement import Replacement, SequenceTaken, read_for_replacement
from timestore_pipeline_tests.builders import (
    NEW_YEAR,
    build,
    claim_slices,
    hourly,
    published,
    readable,
    rows_of,
    weather,
)

WINDOWS = ("2026-01-01", "2026-01-02")


@pytest.fixture
def two_windows(store: Store) -> Store:
    """Windows of two files each, and one row staged for both of them."""
    for number in range(2):
        stage(store, "weather", hourly(48, station=f"S{number}"))
        build(store)
    stage(store, "weather", hourly(3, start=NEW_YEAR + timedelta(days=2)))
    build(store)
    stage(store, "weather", replacing_rows())
    return store


def replacing_rows():
    return weather((NEW_YEAR, "NEW", 1.0), (NEW_YEAR + timedelta(days=1), "NEW", 2.0))


def claim_replacement(store: Store) -> Claim:
    with store.ledger.write() as tx:
        claim = claim_slices(
            tx, NewBuild("weather", owner="the test", trigger="manual", lease_micros=1, now=now_micros(), replaces=True)
        )
    assert claim is not None
    return claim


def write(store: Store, claim: Claim) -> list[ParquetFile]:
    """Write the claimed slices only, so that what was in the windows before is to go."""
    spec = store.datasets["weather"]
    files = []
    with (
        store.connect(store.table("weather").root, *store.segment_folders("weather")) as connection,
        window_folders(store, claim.build, spec.declared_columns or ()) as folders,
    ):
        attach_segment(store, connection, claim.slices[0])
        for piece in claim.slices:
            window = spec.window_at(piece.window_start)
            files += write_window(
                folders, connection, window,
                slices_as_source(store, [piece], [segment_table(piece.segment_id)]), 1 << 30,
            )  # fmt: skip
    return files


def read(store: Store, claim: Claim) -> Replacement:
    return read_for_replacement(OwnTable(store, "weather"), claim.build, WINDOWS)


def commit(store: Store, claim: Claim, files: list[ParquetFile], replacement: Replacement) -> int:
    columns = store.datasets["weather"].declared_columns or ()
    return commit_build(OwnTable(store, "weather"), claim.build, columns, files, replacement)


def totals(store: Store) -> list[tuple[str, int, int]]:
    """(window, rows, files) as the ledger has them."""
    spec = store.datasets["weather"]
    with store.ledger.read() as tx:
        return [
            (spec.window_at(window.window_start).key, window.rows, window.files)
            for window in window_totals(tx, "weather")
        ]


def expected(store: Store):
    return rows_of(replacing_rows(), hourly(3, start=NEW_YEAR + timedelta(days=2)))


def test_several_windows_are_replaced_in_one_commit_and_readers_see_it_with_the_ledger(two_windows: Store):
    store = two_windows
    before = readable(store)
    version = open_table(store.table("weather"), "weather").version()
    claim = claim_replacement(store)
    files = write(store, claim)

    after = commit(store, claim, files, read(store, claim))

    assert after == version + 1
    assert published(store) == expected(store)
    assert readable(store) == before
    with store.ledger.write() as tx:
        contents = published_windows(store.datasets["weather"].window, files)
        assert mark_published(tx, claim.build, table_version=after, published=contents, now=now_micros())
    assert readable(store) == expected(store)
    assert totals(store) == [("2026-01-01", 1, 1), ("2026-01-02", 1, 1), ("2026-01-03", 3, 1)]


def test_a_window_that_is_replaced_by_nothing_is_gone(two_windows: Store):
    store = two_windows
    claim = claim_replacement(store)
    files = [file for file in write(store, claim) if file.window_key == WINDOWS[1]]

    version = commit(store, claim, files, read(store, claim))
    with store.ledger.write() as tx:
        contents = published_windows(store.datasets["weather"].window, files)
        mark_published(tx, claim.build, table_version=version, published=contents, now=now_micros())

    assert [window for window, _, _ in totals(store)] == ["2026-01-02", "2026-01-03"]
    assert {file.window_key for file in live_files(open_table(store.table("weather"), "weather"))} == {
        "2026-01-02", "2026-01-03",
    }  # fmt: skip


def test_recovery_of_a_committed_replacement_sets_the_totals_of_its_windows(two_windows: Store):
    store = two_windows
    claim = claim_replacement(store)
    commit(store, claim, write(store, claim), read(store, claim))

    settled = settle_dead_builds(store, owner_is_gone=lambda owner: True)

    assert [build.published for build in settled] == [True]
    assert readable(store) == expected(store)
    assert totals(store) == [("2026-01-01", 1, 1), ("2026-01-02", 1, 1), ("2026-01-03", 3, 1)]


@pytest.mark.long
def test_recovery_of_a_replacement_before_its_commit_leaves_everything_as_it_was(two_windows: Store):
    store = two_windows
    before, had = readable(store), totals(store)
    claim = claim_replacement(store)
    write(store, claim)
    replacement = read(store, claim)

    settle_dead_builds(store, owner_is_gone=lambda owner: True)

    with pytest.raises(SequenceTaken):  # its files are gone, so it can only try to remove
        commit(store, claim, [], replacement)
    with pytest.raises(SequenceTaken):
        read(store, claim)
    assert readable(store) == before
    assert totals(store) == had


def optimize(store: Store, claim: Claim) -> None:
    """Somebody merges small files with another tool."""
    DeltaTable(str(store.table("weather").root)).optimize.compact()


def append(store: Store, claim: Claim, window_key: str = WINDOWS[0]) -> None:
    """Somebody adds a row to a window with another tool."""
    path = str(store.table("weather").root)
    rows = DeltaTable(path).to_pyarrow_table(filters=[("window_key", "=", window_key)])
    write_deltalake(path, rows.slice(0, 1), mode="append")


def fence(store: Store, claim: Claim) -> None:
    """A recovery takes the build for dead."""
    commit_fence(OwnTable(store, "weather"), claim.build, store.datasets["weather"].declared_columns or ())


@pytest.mark.parametrize(("meanwhile", "error"), [(optimize, TableError), (append, TableError), (fence, SequenceTaken)])
def test_nothing_is_replaced_once_the_table_has_moved_on(
    two_windows: Store, meanwhile: Callable[[Store, Claim], None], error: type[Exception]
):
    store = two_windows
    claim = claim_replacement(store)
    files, replacement = write(store, claim), read(store, claim)
    meanwhile(store, claim)
    before = published(store)

    with pytest.raises(error):
        commit(store, claim, files, replacement)

    assert published(store) == before


def test_a_commit_to_other_windows_that_came_in_between_does_not_matter(two_windows: Store):
    store = two_windows
    claim = claim_replacement(store)
    files, replacement = write(store, claim), read(store, claim)
    append(store, claim, "2026-01-03")

    commit(store, claim, files, replacement)

    one_more = [row for row in published(store) if row not in rows_of(replacing_rows())]
    assert len(one_more) == 3 + 1
    assert [row for row in published(store) if row not in one_more] == rows_of(replacing_rows())


def test_files_of_another_tool_are_replaced_too_whatever_their_names(two_windows: Store):
    store = two_windows
    path = store.table("weather").root
    DeltaTable(str(path)).optimize.compact()
    claim = claim_replacement(store)

    commit(store, claim, write(store, claim), read(store, claim))

    assert published(store) == expected(store)


def test_windows_in_between_are_left_alone(two_windows: Store):
    store = two_windows
    spec = store.datasets["weather"]
    claim = claim_replacement(store)
    keys = [window.key for window in windows_between(*(spec.window_from_key(key) for key in WINDOWS))]

    replacement = read_for_replacement(OwnTable(store, "weather"), claim.build, keys)

    assert {file.window_key for file in replacement.files} == set(WINDOWS)
    assert len(replacement.files) == 4
