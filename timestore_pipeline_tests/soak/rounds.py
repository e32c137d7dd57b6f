"""A round of a soak: an installation does its work while faults happen to it, one after the other.

After each fault everything is settled as the sensors and the producers do it. At the end every row that was
acknowledged is in the table once, for any reader of Delta tables, and what was refused had changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from timestore_pipeline_tests.soak import inside, moves, outside
from timestore_pipeline_tests.soak.faults import Kind
from timestore_pipeline_tests.soak.site import Site

_STEPS: dict[Kind, Callable[[Site, Kind], None]] = {
    Kind.KILLED_AT_A_POINT: outside.killed_at_a_point,
    Kind.KILLED_ANYWHERE: outside.killed_anywhere,
    Kind.STOPPED: outside.stopped,
    Kind.EIO: inside.call_fails,
    Kind.ENOSPC: inside.call_fails,
    Kind.DISK_FULL: inside.disk_is_full,
    Kind.STORE_ERROR: inside.requests_fail,
    Kind.STORE_LOST: inside.requests_fail,
    Kind.STORE_SLOW: inside.requests_fail,
    Kind.DELTA_LOST: inside.delta_commit_breaks,
    Kind.DELTA_FAILED: inside.delta_commit_breaks,
    Kind.LEDGER_LOST: inside.ledger_commit_breaks,
    Kind.LEDGER_FAILED: inside.ledger_commit_breaks,
    Kind.CLOCK_FORWARD: inside.clock_jumps,
    Kind.CLOCK_BACK: inside.clock_jumps,
    Kind.RESTORED: moves.older_ledger,
    Kind.RESTORED_BOTH: moves.older_ledger_and_staging,
    Kind.COPIED: moves.copied,
    Kind.COPIED_SHARED: moves.copied_with_shared_tables,
    Kind.STRANGER: moves.second_installation,
    **dict.fromkeys(inside.PROGRAMS, inside.another_program_works),
    Kind.STAGING_AWAY: inside.place_goes_away,
    Kind.TABLES_AWAY: inside.place_goes_away,
    Kind.ARCHIVE_AWAY: inside.place_goes_away,
}

_LOCAL: dict[Kind, float] = {
    Kind.KILLED_AT_A_POINT: 6,
    Kind.KILLED_ANYWHERE: 3,
    Kind.STOPPED: 3,
    Kind.EIO: 9,
    Kind.ENOSPC: 4,
    Kind.DISK_FULL: 8,
    Kind.DELTA_LOST: 6,
    Kind.DELTA_FAILED: 6,
    Kind.LEDGER_LOST: 7,
    Kind.LEDGER_FAILED: 7,
    Kind.CLOCK_FORWARD: 4,
    Kind.CLOCK_BACK: 4,
    Kind.RESTORED: 1.2,
    Kind.RESTORED_BOTH: 0.6,
    Kind.STRANGER: 3,
    Kind.OPTIMIZED: 3,
    Kind.VACUUMED: 3,
    Kind.APPENDED: 2,
    Kind.CHECKPOINTED: 3,
    Kind.STAGING_AWAY: 6,
    Kind.TABLES_AWAY: 4,
    Kind.ARCHIVE_AWAY: 3,
}
_KINDS: dict[str, Mapping[Kind, float]] = {
    "sqlite": {**_LOCAL, Kind.COPIED: 0.6, Kind.COPIED_SHARED: 0.8},
    "postgresql": _LOCAL,
    "s3": {
        Kind.STORE_ERROR: 8,
        Kind.STORE_LOST: 8,
        Kind.STORE_SLOW: 4,
        Kind.KILLED_AT_A_POINT: 1,
        Kind.DELTA_LOST: 2,
        Kind.DELTA_FAILED: 1,
        Kind.LEDGER_LOST: 1,
    },
}


def do_round(site: Site, steps: int) -> None:
    """Let so many faults be tried on an installation, or fewer where there were enough; then count every row.

    Raises:
        Wrong: something that must not be.
    """
    kinds = _KINDS[site.kind]
    with site.resources:
        site.open()
        for _ in range(steps):
            if site.tally.enough:
                break
            kind = site.dice.choices(list(kinds), list(kinds.values()))[0]
            if kind is Kind.DISK_FULL and site.disk is None:
                kind = Kind.ENOSPC
            site.story.append(kind.name)
            _STEPS[kind](site, kind)
        site.finish()
