"""``timestore limits``: what bounds each dataset, who said so, and changing it at run time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.operator import operator
from timestore_pipeline.cli.options import Datasets, JsonForTable, OneDataset, each_once, open_store
from timestore_pipeline.cli.output import Heading, print_json, print_table, say
from timestore_pipeline.errors import TimestoreError
from timestore_pipeline.model.clock import now_micros

if TYPE_CHECKING:
    from timestore_pipeline.ledger.limits import Override
    from timestore_pipeline.policy import LimitSource
    from timestore_pipeline.store import Store

_HEADINGS = (
    Heading("dataset"),
    Heading("limit"),
    Heading("now", right=True),
    Heading("at most", right=True),
    Heading("from"),
    Heading("set"),
)

limits_app = typer.Typer(
    help="What bounds each dataset, changed at run time.", no_args_is_help=True, rich_markup_mode=None
)


class Limit(StrEnum):
    """Limits that can be changed: those of the ledger, which is not loaded to show help."""

    MAX_PENDING = "max_pending"
    MAX_BYTES = "max_bytes"
    MAX_WINDOWS = "max_windows"
    CONCURRENT_INGESTS = "concurrent_ingests"
    CONCURRENT_BUILDS = "concurrent_builds"


OneLimit = Annotated[
    Limit, typer.Argument(metavar="NAME", help="The limit: " + ", ".join(f"`{each.value}`" for each in Limit) + ".")
]


@dataclass(frozen=True)
class LimitStatus:
    """A limit of a dataset, how much of it is used, and who said so; ``value`` 0 is no limit."""

    dataset: str
    name: str
    used: int
    value: int
    source: LimitSource
    override: Override | None


@limits_app.command("show")
def show_limits(datasets: Datasets = None, as_json: JsonForTable = False) -> None:
    """Show the limits that hold now, how much of each is used, and who said so."""
    with open_store() as store:
        found = _collect_limits(store, each_once(datasets))
    if as_json:
        print_json([_as_json(each) for each in found])
    else:
        print_table(_HEADINGS, [_as_row(each) for each in found])


@limits_app.command("set")
def set_limit(
    dataset: OneDataset,
    name: OneLimit,
    value: Annotated[int, typer.Argument(min=0, metavar="N", help="The limit; 0 switches it off.")],
) -> None:
    """Change a limit at once, in every process and on every host, until it is cleared."""
    from timestore_pipeline.ledger.limits import LimitName, Override, set_override

    limit = LimitName(name.value)
    least, most = limit.bounds
    with open_store() as store:
        spec = store.datasets[dataset]
        if value < least or (most is not None and value > most):
            raise TimestoreError(
                f"dataset {dataset!r}: {name.value} must be {least} or more{f' and at most {most}' if most else ''}, "
                f"not {value}."
            )
        override = Override(spec.name, limit, value, operator(), now_micros())
        store.ledger.transact(lambda tx: set_override(tx, override))
    say(f"{dataset}: {name.value} is {value or 'no limit'} now")


@limits_app.command("clear")
def clear_limit(dataset: OneDataset, name: OneLimit) -> None:
    """Let a limit be again what datasets.yaml or the environment says."""
    from timestore_pipeline.ledger.limits import LimitName, clear_override

    with open_store() as store:
        spec = store.datasets[dataset]
        with store.ledger.write() as tx:
            cleared = clear_override(tx, spec.name, LimitName(name.value))
    say(f"{dataset}: {name.value} is no longer overridden" if cleared else f"{dataset}: nothing to clear")


def _collect_limits(store: Store, datasets: Sequence[str]) -> list[LimitStatus]:
    from timestore_pipeline.ledger.builds import builds_in_flight
    from timestore_pipeline.ledger.leases import slots_held
    from timestore_pipeline.ledger.limits import LimitName, overrides
    from timestore_pipeline.ledger.queue import QueueState, queue_states
    from timestore_pipeline.staging.turns import turns_of

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
            found.append(LimitStatus(spec.name, name.value, used[name], limits.value(name), source, override))
    return found


def _as_row(status: LimitStatus) -> list[str]:
    shown = wording.size if status.name == Limit.MAX_BYTES else wording.number
    counted = status.name != Limit.MAX_WINDOWS and (status.name != Limit.CONCURRENT_INGESTS or status.value)
    override = status.override
    return [
        status.dataset,
        status.name,
        shown(status.used) if counted else "-",
        shown(status.value) if status.value else "no limit",
        status.source.value,
        f"{wording.moment(override.set_at)} by {override.set_by}" if override else "-",
    ]


def _as_json(status: LimitStatus) -> dict[str, Any]:
    override = status.override
    return {
        "dataset": status.dataset,
        "limit": status.name,
        "used": status.used,
        "value": status.value,
        "source": status.source.value,
        "set_by": override.set_by if override else None,
        "set_at": wording.iso(override.set_at) if override else None,
    }
