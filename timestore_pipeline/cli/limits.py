"""``timestore limits``: what bounds each dataset, who said so, and changing it at run time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.operator import operator
from timestore_pipeline.cli.output import Heading
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.ledger.builds import builds_in_flight
from timestore_pipeline.ledger.leases import slots_held
from timestore_pipeline.ledger.limits import LimitName, Override, clear_override, overrides, set_override
from timestore_pipeline.ledger.queue import QueueState, queue_states
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.policy import LimitSource
from timestore_pipeline.staging.turns import turns_of
from timestore_pipeline.store import Store

HEADINGS = (
    Heading("dataset"),
    Heading("limit"),
    Heading("now", right=True),
    Heading("at most", right=True),
    Heading("from"),
    Heading("set"),
)


@dataclass(frozen=True)
class LimitStatus:
    """A limit of a dataset, how much of it is used, and who said so; ``value`` 0 is no limit."""

    dataset: str
    name: LimitName
    used: int
    value: int
    source: LimitSource
    override: Override | None


def collect_limits(store: Store, datasets: Sequence[str] = ()) -> list[LimitStatus]:
    """Return all limits of the datasets (none: of all), as they hold now.

    Raises:
        UnknownDataset: a dataset is not declared.
    """
    specs = [store.datasets[name] for name in datasets or store.datasets]
    now = now_micros()
    with store.ledger.read() as tx:
        policies = store.policies(tx)
        queues = queue_states(tx)
        set_by_hand = {(override.dataset, override.name): override for override in overrides(tx)}
        building = Counter(build.dataset for build in builds_in_flight(tx))
        writing = {spec.name: slots_held(tx, turns_of(spec.name), now) for spec in specs}
    found = []
    for spec in specs:
        queue = queues.get(spec.name, QueueState(spec.name))
        used = {
            LimitName.MAX_PENDING: queue.pending_batches,
            LimitName.MAX_BYTES: queue.pending_bytes,
            LimitName.MAX_WINDOWS: 0,  # of a batch: nothing that is used up
            LimitName.CONCURRENT_INGESTS: writing[spec.name],
            LimitName.CONCURRENT_BUILDS: building[spec.name],
        }
        limits = policies[spec.name].limits
        for name, source in limits.sources:
            override = set_by_hand.get((spec.name, name))
            found.append(LimitStatus(spec.name, name, used[name], limits.value(name), source, override))
    return found


def set_limit(store: Store, dataset: str, name: LimitName, value: int) -> None:
    """Override a limit of a dataset, for every process and at once.

    Raises:
        UnknownDataset: the dataset is not declared.
        TimestoreError: the limit cannot have that value.
    """
    spec = store.datasets[dataset]
    least, most = name.bounds
    if value < least or (most is not None and value > most):
        raise TimestoreError(
            f"dataset {dataset!r}: {name.value} must be {least} or more{f' and at most {most}' if most else ''}, "
            f"not {value}."
        )
    override = Override(spec.name, name, value, operator(), now_micros())
    store.ledger.transact(lambda tx: set_override(tx, override))


def clear_limit(store: Store, dataset: str, name: LimitName) -> bool:
    """Take an override back; False where there was none.

    Raises:
        UnknownDataset: the dataset is not declared.
    """
    spec = store.datasets[dataset]
    with store.ledger.write() as tx:
        return clear_override(tx, spec.name, name)


def as_row(status: LimitStatus) -> list[str]:
    """Return the cells of a limit under :data:`HEADINGS`."""
    shown = wording.size if status.name is LimitName.MAX_BYTES else wording.number
    counted = status.name is not LimitName.MAX_WINDOWS and (
        status.name is not LimitName.CONCURRENT_INGESTS or status.value
    )
    override = status.override
    return [
        status.dataset,
        status.name.value,
        shown(status.used) if counted else "-",
        shown(status.value) if status.value else "no limit",
        status.source.value,
        f"{wording.moment(override.set_at)} by {override.set_by}" if override else "-",
    ]


def as_json(status: LimitStatus) -> dict[str, Any]:
    """Return a limit as ``timestore limits show --json`` prints it."""
    override = status.override
    return {
        "dataset": status.dataset,
        "limit": status.name.value,
        "used": status.used,
        "value": status.value,
        "source": status.source.value,
        "set_by": override.set_by if override else None,
        "set_at": wording.iso(override.set_at) if override else None,
    }
