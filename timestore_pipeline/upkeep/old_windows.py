"""Windows that are older than the dataset's table keeps them leave it (short, because each chore has a file)."""

from __future__ import annotations

from timestore_pipeline.building.expire import ExpiredWindows, expire_windows, expired_windows
from timestore_pipeline.upkeep.chores import ChoreOfDatasets, Round


def _find(round_: Round, dataset: str) -> ExpiredWindows:
    old = expired_windows(round_.store, round_.store.datasets[dataset], round_.now)
    return ExpiredWindows(
        dataset,
        windows=len(old),
        rows=sum(total.rows for total in old),
        files=sum(total.files for total in old),
        bytes=sum(total.bytes for total in old),
    )


def _drop(round_: Round, dataset: str) -> ExpiredWindows:
    return expire_windows(round_.store, round_.order(dataset), now=round_.now)


OLD_WINDOWS = ChoreOfDatasets("expired", "dropping old windows", ExpiredWindows, _find, _drop)
