"""Draining: intake stops, all that is staged is published, and what cannot be is said with its reason.

The stop is a row of the ledger that every process looks at in the transaction that would acknowledge a batch, so
nothing gets in behind it. It stays until somebody resumes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from timestore_pipeline.alone import alone
from timestore_pipeline.building.flush import flush_windows
from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.building.thresholds import Trigger
from timestore_pipeline.errors import BuildAborted, BuildInFlight, TimestoreError, UnknownDataset
from timestore_pipeline.ledger.builds import Build, builds_in_flight, oldest_in_flight
from timestore_pipeline.ledger.datasets import known_datasets, lock_dataset
from timestore_pipeline.ledger.limits import EVERY_DATASET, Pause, all_pauses, pause_intake, resume_intake
from timestore_pipeline.ledger.quarantine import QuarantineTotals, open_totals
from timestore_pipeline.ledger.queue import QueueState, queue_states
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.store import Store

_POLL_SECONDS = 0.2
_NOTHING_QUARANTINED = QuarantineTotals(batches=0, rows=0)


@dataclass(frozen=True)
class Remainder:
    """What is left of one dataset after a drain, and why; ``error`` is that of the last build that failed."""

    dataset: str
    declared: bool
    queue: QueueState
    quarantine: QuarantineTotals
    in_flight: Build | None = None
    error: str | None = None

    @property
    def empty(self) -> bool:
        """Whether every row of the dataset that was ever acknowledged is published, but for those taken back."""
        waiting = self.queue.pending_rows or self.queue.corrections
        return not waiting and self.in_flight is None and self.quarantine == _NOTHING_QUARANTINED

    @property
    def passes(self) -> bool:
        """Whether what is left needs nothing but time."""
        return self.declared and self.error is None and self.quarantine == _NOTHING_QUARANTINED

    @property
    def reasons(self) -> tuple[str, ...]:
        """A sentence for each thing that is left."""
        queue, totals, reasons = self.queue, self.quarantine, []
        staged = f"{queue.pending_rows:,} rows of {queue.pending_batches:,} batches are staged"
        if self.in_flight is not None:
            reasons.append(
                f"build {self.in_flight.id} of {self.in_flight.owner} is in flight with {self.in_flight.rows:,} rows"
            )
        if queue.pending_rows and not self.declared:
            reasons.append(f"{staged}, and the dataset is not declared any more: put it back into datasets.yaml")
        elif queue.pending_rows and self.error is not None:
            reasons.append(f"{staged}, and its build fails: {self.error}")
        elif queue.pending_rows and self.in_flight is None:
            reasons.append(f"{staged}, and time was up")
        if queue.corrections is not None:
            why = f", and their build fails: {self.error}" if self.error is not None and not queue.pending_rows else ""
            reasons.append(f"{queue.corrections.windows:,} published windows are to be corrected{why}")
        if totals != _NOTHING_QUARANTINED:
            reasons.append(
                f"in quarantine: {totals.batches:,} whole batches, {totals.rows:,} rows, "
                f"{totals.segments:,} damaged segments; see 'timestore quarantine list {self.dataset}'"
            )
        return tuple(reasons)


@dataclass(frozen=True)
class Drained:
    """What a drain published (rows per dataset), and what is left of each dataset that was drained."""

    published_rows: dict[str, int] = field(default_factory=dict)
    remainders: tuple[Remainder, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing is left."""
        return all(remainder.empty for remainder in self.remainders)


def stop_intake(store: Store, datasets: Collection[str], by: str, reason: str) -> list[Pause]:
    """Pause intake of datasets (none: of all, also of those declared later); return the pauses that are new.

    Raises:
        UnknownDataset: a dataset is neither declared nor known to the ledger.
    """
    now = now_micros()
    # In one order, lest two that pause the same datasets wait for each other.
    wanted = [Pause(name, by, now, reason) for name in (sorted(datasets) or [EVERY_DATASET])]

    def pause_all(tx: Connection) -> list[Pause]:
        known = known_datasets(tx)
        _check_known(store, datasets, known)
        # Whoever acknowledges just now ends before: after this returns, nobody does any more.
        for name in sorted(datasets or known):
            lock_dataset(tx, name)
        return [pause for pause in wanted if pause_intake(tx, pause)]

    return store.ledger.transact(pause_all)


def let_in(store: Store, datasets: Collection[str]) -> list[str]:
    """End the pauses of datasets (none: every pause there is); return those that were paused."""
    return store.ledger.transact(
        lambda tx: [name for name in sorted(datasets or all_pauses(tx)) if resume_intake(tx, name)]
    )


def drain(
    store: Store,
    datasets: Sequence[str],
    *,
    owner: str,
    by: str,
    reason: str,
    timeout_seconds: float,
    owner_is_gone: Callable[[str], bool] = lambda owner: False,
    progress: Callable[[str], None] = lambda sentence: None,
) -> Drained:
    """Stop intake, publish all that is staged, and wait until nothing is, for ``timeout_seconds`` at most.

    Time is looked at between builds; one that has begun is not cut short. A dataset whose build fails is tried again
    until what cannot be read of it would be in quarantine, and then left.

    Args:
        store: the installation.
        datasets: those to drain; none: all, also those that are not declared any more.
        owner: who builds, see :class:`BuildOrder`.
        by: who stopped intake, for people.
        reason: why, for people.
        timeout_seconds: how long to go on.
        owner_is_gone: see :func:`settle_dead_builds`.
        progress: gets a sentence for each thing that happens.

    Raises:
        UnknownDataset: a dataset is neither declared nor known to the ledger; nothing was done.
        LedgerError: the ledger cannot be used.
    """
    for pause in stop_intake(store, datasets, by, reason):
        whole = pause.dataset == EVERY_DATASET
        progress("intake of all datasets is paused" if whole else f"{pause.dataset}: intake is paused")
    deadline = time.monotonic() + timeout_seconds
    most_failures = store.settings.build_max_attempts + 1
    failures: dict[str, int] = {}
    errors: dict[str, str] = {}
    published: dict[str, int] = {}
    waiting_for: dict[str, str] = {}
    while True:
        settle_dead_builds(store, owner_is_gone)
        with store.ledger.read() as tx:
            queued = [name for name in queue_states(tx) if not datasets or name in datasets]
            busy = {build.dataset for build in builds_in_flight(tx)}
        open_ = [name for name in queued if name in store.datasets and failures.get(name, 0) < most_failures]
        busy = {name for name in busy if not datasets or name in datasets}
        if not open_ and not (busy & set(store.datasets)):
            break
        moved = False
        for name in open_:
            try:
                with alone(name):
                    report = flush_windows(store, BuildOrder(name, owner=owner, trigger=Trigger.DRAIN))
            except (BuildInFlight, BuildAborted) as error:
                if waiting_for.get(name) != str(error):
                    waiting_for[name] = str(error)
                    progress(str(error))
                continue
            except TimestoreError as error:
                failures[name] = failures.get(name, 0) + 1
                errors[name] = str(error)
                progress(f"attempt {failures[name]} of {most_failures}: {error}")
                continue
            errors.pop(name, None)
            moved = True
            if report is not None:
                published[name] = published.get(name, 0) + report.rows
                taken = f", {report.taken:,} left out that corrections took back" if report.taken else ""
                progress(f"{name}: {report.rows:,} rows published{taken}")
            if time.monotonic() >= deadline:
                break
        if time.monotonic() >= deadline:
            break
        if not moved:
            time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
    refused = {name: str(error) for name, error in store.datasets.refused.items()}
    return Drained(published, what_remains(store, datasets, {**refused, **errors}))


def what_remains(store: Store, datasets: Sequence[str], errors: dict[str, str] | None = None) -> tuple[Remainder, ...]:
    """Return what is not published of datasets (none: of all that the ledger knows), as it stands now."""
    with store.ledger.read() as tx:
        queues = queue_states(tx)
        totals = open_totals(tx)
        in_flight = oldest_in_flight(tx)
        names = datasets or sorted(known_datasets(tx) | set(store.datasets.declared))
    return tuple(
        Remainder(
            dataset=name,
            declared=name in store.datasets.declared,
            queue=queues.get(name, QueueState(name)),
            quarantine=totals.get(name, _NOTHING_QUARANTINED),
            in_flight=in_flight.get(name),
            error=(errors or {}).get(name),
        )
        for name in names
    )


def _check_known(store: Store, datasets: Collection[str], known: Collection[str]) -> None:
    for name in datasets:
        if name not in store.datasets.declared and name not in known:
            raise UnknownDataset(name, list(store.datasets.declared))
