"""Which due datasets ``flush_sensor`` must not ask for just now: a run is on its way, or the last ones failed.

Pure. Without it every tick would start another run while the first waits for its turn, or a run every five
seconds for a dataset that cannot be built.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from timestore_pipeline.ledger.builds import Build
from timestore_pipeline.ledger.states import BuildState

_FIRST_WAIT_SECONDS = 10
_LONGEST_WAIT_SECONDS = 600


@dataclass(frozen=True)
class FlushRun:
    """A run that flush_sensor asked for; times in seconds since the epoch."""

    run_id: str
    datasets: frozenset[str]
    started_at: float | None = None
    failed_at: float | None = None


def held_back(
    wanted: Iterable[str],
    runs: Iterable[FlushRun],
    latest: Mapping[str, Build],
    now: float,
    lease_seconds: float,
    builders: Mapping[str, Collection[str]] | None = None,
) -> dict[str, str]:
    """Return, for those of ``wanted`` that must wait, a sentence that says why.

    ``runs`` are those that have not ended, and those that failed of late.
    ``latest`` is each dataset's last ended build: a run that has built a dataset is done with it, although it may go
    on with others. So is one among its ``builders``, the owners of its builds in flight: it has claimed its part of the
    dataset, and others may have the rest. A run that has been going for longer than a lease without getting to the
    dataset does not hold it.
    """
    runs = list(runs)
    unfinished = [run for run in runs if run.failed_at is None]
    reasons: dict[str, str] = {}
    for dataset in wanted:
        build = latest.get(dataset)
        for run in unfinished:
            done = (build is not None and build.owner == run.run_id) or run.run_id in (builders or {}).get(dataset, ())
            late = run.started_at is not None and now - run.started_at > lease_seconds
            if dataset in run.datasets and not done and not late:
                state = "waits for its turn" if run.started_at is None else "is in progress"
                reasons[dataset] = f"{dataset}: run {run.run_id[:8]} {state}"
                break
        else:
            again_at, times = _again_at(dataset, runs, build)
            if now < again_at:
                reasons[dataset] = (
                    f"{dataset}: the last {times} runs failed, the sensor asks again in {again_at - now:.0f} s"
                    if times > 1
                    else f"{dataset}: the last run failed, the sensor asks again in {again_at - now:.0f} s"
                )
    return reasons


def _again_at(dataset: str, runs: list[FlushRun], build: Build | None) -> tuple[float, int]:
    published_at = build.finished_at / 1e6 if build and build.state is BuildState.PUBLISHED and build.finished_at else 0
    failures = [
        run.failed_at
        for run in runs
        if dataset in run.datasets
        and run.failed_at is not None
        and run.failed_at > published_at
        and not (published_at and build and build.owner == run.run_id)
    ]
    if not failures:
        return 0.0, 0
    return max(failures) + min(_FIRST_WAIT_SECONDS * 2 ** (len(failures) - 1), _LONGEST_WAIT_SECONDS), len(failures)
