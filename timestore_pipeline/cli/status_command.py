"""``timestore status``: where every dataset stands, from one moment of the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.options import Datasets, JsonForTable, each_once, open_store
from timestore_pipeline.cli.output import Heading, print_json, print_table, warn
from timestore_pipeline.model.clock import now_micros

if TYPE_CHECKING:
    from timestore_pipeline.building.thresholds import Trigger
    from timestore_pipeline.ledger.builds import Build
    from timestore_pipeline.ledger.limits import Pause
    from timestore_pipeline.ledger.quarantine import QuarantineTotals
    from timestore_pipeline.ledger.queue import QueueState
    from timestore_pipeline.ledger.tables import Refusal
    from timestore_pipeline.policy import EffectiveLimits, FlushThresholds
    from timestore_pipeline.store import Store


_HEADINGS = (
    Heading("dataset"),
    Heading("staged batches", right=True),
    Heading("staged rows", right=True),
    Heading("staged bytes", right=True),
    Heading("oldest", right=True),
    Heading("due"),
    Heading("published rows", right=True),
    Heading("files", right=True),
    Heading("windows", right=True),
    Heading("last flush"),
    Heading("quarantine"),
    Heading("landing files", right=True),
)


status_app = typer.Typer(rich_markup_mode=None)


@status_app.command(short_help="Show where every dataset stands.")
def status(datasets: Datasets = None, as_json: JsonForTable = False) -> None:
    """Show what is staged beside the thresholds that flush it, what is published, and what is in quarantine."""
    with open_store() as store:
        statuses, problems = collect_status(store, each_once(datasets))
    if as_json:
        print_json({"datasets": [status_as_json(each) for each in statuses], "problems": list(problems)})
        return
    print_table(_HEADINGS, [status_as_row(each) for each in statuses])
    for in_words in (_corrections_in_words, _pauses_in_words, _refusals_in_words):
        problems += tuple(in_words(statuses))
    for problem in problems:
        warn(problem)


@dataclass(frozen=True)
class PublishedTotals:
    """What is in the table of a dataset."""

    windows: int
    rows: int
    bytes: int
    files: int


@dataclass(frozen=True)
class DatasetStatus:
    """Where one dataset stands. A threshold or limit of 0 is off; None files are not known.

    ``contradiction`` says why nothing is done with it, where it contradicts the ledger.
    """

    dataset: str
    queue: QueueState
    oldest_age_seconds: float
    oldest_late_age_seconds: float
    thresholds: FlushThresholds
    limits: EffectiveLimits
    due: Trigger | None
    published: PublishedTotals
    last_flush: Build | None
    in_flight: Build | None
    quarantine: QuarantineTotals
    landing_files: int | None
    pause: Pause | None = None
    refusal: Refusal | None = None
    contradiction: str | None = None
    oldest_correction_age_seconds: float = 0.0


def collect_status(
    store: Store, datasets: Sequence[str] = (), now: int | None = None
) -> tuple[list[DatasetStatus], tuple[str, ...]]:
    """Return the status of each dataset (none: of all), and a sentence for each problem of places and landing folder.

    Raises:
        UnknownDataset: a dataset is not declared.
    """
    from timestore_pipeline.building.thresholds import due_trigger
    from timestore_pipeline.landing.files import scan_landing
    from timestore_pipeline.ledger.builds import oldest_in_flight
    from timestore_pipeline.ledger.history import latest_builds
    from timestore_pipeline.ledger.limits import all_pauses, pause_of
    from timestore_pipeline.ledger.quarantine import QuarantineTotals, open_totals
    from timestore_pipeline.ledger.queue import QueueState, queue_states
    from timestore_pipeline.ledger.tables import refused_tables
    from timestore_pipeline.ledger.windows import published_totals
    from timestore_pipeline.operating.observed_places import observe_places, problems_in_words

    known = store.datasets.declared  # those that are refused stand somewhere too
    specs = [known[name] for name in datasets or known]
    scan = scan_landing(store, [name for name in datasets if name in store.datasets] if datasets else None)
    waiting = Counter(file.dataset for file in scan.files)
    moment = now_micros() if now is None else now
    with store.ledger.read() as tx:
        queues = queue_states(tx)
        published = published_totals(tx)
        flushed = latest_builds(tx)
        in_flight = oldest_in_flight(tx)
        quarantined = open_totals(tx)
        policies = store.policies(tx)
        pauses = all_pauses(tx)
        refusals = refused_tables(tx)
    statuses = []
    for spec in specs:
        queue = queues.get(spec.name, QueueState(spec.name))
        policy = policies[spec.name]
        contradiction = store.datasets.refused.get(spec.name)
        statuses.append(
            DatasetStatus(
                dataset=spec.name,
                queue=queue,
                oldest_age_seconds=_age_seconds(queue.oldest_pending_at, moment),
                oldest_late_age_seconds=_age_seconds(queue.late.oldest_pending_at, moment),
                thresholds=policy.flush,
                limits=policy.limits,
                due=due_trigger(queue, policy.flush, policy.limits.max_pending, moment),
                published=PublishedTotals(*published.get(spec.name, (0, 0, 0, 0))),
                last_flush=flushed.get(spec.name),
                in_flight=in_flight.get(spec.name),
                quarantine=quarantined.get(spec.name, QuarantineTotals(batches=0, rows=0)),
                landing_files=waiting[spec.name] if scan.answered and spec.name in store.datasets else None,
                pause=pause_of(pauses, spec.name),
                refusal=refusals.get(spec.name),
                contradiction=contradiction and str(contradiction),
                oldest_correction_age_seconds=_age_seconds(queue.corrections and queue.corrections.oldest_at, moment),
            )
        )
    return statuses, (*problems_in_words(observe_places(store)), *scan.problems)


def _age_seconds(since: int | None, now: int) -> float:
    return 0.0 if since is None else max(0, now - since) / 1e6


def status_as_row(status: DatasetStatus) -> list[str]:
    """Return the cells of a status under :data:`_HEADINGS`."""
    from timestore_pipeline.ledger.limits import LimitName
    from timestore_pipeline.policy import LimitSource

    limits, max_pending = status.thresholds, status.limits.max_pending
    overridden = status.limits.source(LimitName.MAX_PENDING) is LimitSource.OVERRIDE
    queue = status.queue
    nothing = queue.oldest_pending_at is None
    late = f" ({wording.number(queue.late.rows)} late)" if queue.late.rows else ""
    return [
        status.dataset,
        _of(wording.number(queue.pending_batches), wording.number(max_pending), max_pending)
        + (" (override)" if overridden else ""),
        _of(wording.number(queue.pending_rows), wording.number(limits.max_rows), limits.max_rows) + late,
        _of(wording.size(queue.pending_bytes), wording.size(limits.max_bytes), limits.max_bytes),
        _of(
            "-" if nothing else wording.duration(status.oldest_age_seconds),
            wording.duration(limits.max_age_ms / 1e3),
            limits.max_age_ms,
        ),
        _due_in_words(status),
        wording.number(status.published.rows),
        wording.number(status.published.files),
        wording.number(status.published.windows),
        _flush_in_words(status.last_flush),
        _quarantine_in_words(status.quarantine),
        _landing_in_words(status),
    ]


def status_as_json(status: DatasetStatus) -> dict[str, Any]:
    """Return a status as ``timestore status --json`` prints it."""
    from timestore_pipeline.ledger.limits import LimitName

    queue, flush, build, pause = status.queue, status.last_flush, status.in_flight, status.pause
    return {
        "dataset": status.dataset,
        "staged": {
            "batches": queue.pending_batches,
            "rows": queue.pending_rows,
            "bytes": queue.pending_bytes,
            "oldest_age_seconds": status.oldest_age_seconds,
            "late_rows": queue.late.rows,
            "oldest_late_age_seconds": status.oldest_late_age_seconds,
        },
        "to_correct": {
            "windows": queue.corrections.windows if queue.corrections else 0,
            "oldest_age_seconds": status.oldest_correction_age_seconds,
        },
        "limits": {
            **{name.value: status.limits.value(name) for name in LimitName},
            "flush_max_rows": status.thresholds.max_rows,
            "flush_max_bytes": status.thresholds.max_bytes,
            "flush_max_age_ms": status.thresholds.max_age_ms,
            "flush_late_max_age_ms": status.thresholds.late_age_ms,
        },
        "limit_sources": {name.value: source.value for name, source in status.limits.sources},
        "due": status.due.value if status.due else None,
        "refused": status.contradiction,
        "published": {
            "rows": status.published.rows,
            "bytes": status.published.bytes,
            "files": status.published.files,
            "windows": status.published.windows,
        },
        "last_flush": flush
        and {
            "build": flush.id,
            "result": flush.state.value,
            "trigger": flush.trigger,
            "finished_at": wording.iso(flush.finished_at or flush.claimed_at),
            "duration_seconds": _seconds(flush),
            "batches": flush.batches,
            "rows": flush.rows,
            "error": flush.error,
        },
        "in_flight": build
        and {"build": build.id, "owner": build.owner, "claimed_at": wording.iso(build.claimed_at), "rows": build.rows},
        "quarantine": {
            "batches": status.quarantine.batches,
            "rows": status.quarantine.rows,
            "segments": status.quarantine.segments,
        },
        "landing_files": status.landing_files,
        "paused": pause and {"by": pause.paused_by, "since": wording.iso(pause.paused_at), "reason": pause.reason},
        "refused_table": status.refusal
        and {
            "reason": status.refusal.reason,
            "since": wording.iso(status.refusal.since),
            "message": status.refusal.message,
        },
    }


def _pauses_in_words(statuses: Sequence[DatasetStatus]) -> list[str]:
    """Return a sentence for each pause that holds for a dataset."""
    from timestore_pipeline.ledger.limits import EVERY_DATASET

    found = {status.pause.dataset: status.pause for status in statuses if status.pause}
    return [
        f"intake of {'all datasets' if name == EVERY_DATASET else name} is paused since "
        f"{wording.moment(pause.paused_at)} by {pause.paused_by}: {pause.reason}; "
        f"'timestore resume {'--all' if name == EVERY_DATASET else name}' ends it"
        for name, pause in found.items()
    ]


def _corrections_in_words(statuses: Sequence[DatasetStatus]) -> list[str]:
    """Return a sentence for each dataset whose published rows are to be corrected."""
    return [
        f"{status.dataset}: {wording.counted(status.queue.corrections.windows, 'published window')} to be corrected by "
        f"the next build, for {wording.duration(status.oldest_correction_age_seconds)}; queries are corrected already"
        for status in statuses
        if status.queue.corrections
    ]


def _refusals_in_words(statuses: Sequence[DatasetStatus]) -> list[str]:
    """Return a sentence for each table that must not be written to."""
    return [
        f"since {wording.moment(status.refusal.since)}: {status.refusal.message}"
        for status in statuses
        if status.refusal
    ]


def _due_in_words(status: DatasetStatus) -> str:
    if status.contradiction:
        return "refused"
    return "building" if status.in_flight else status.due.value if status.due else "-"


def _landing_in_words(status: DatasetStatus) -> str:
    files = "?" if status.landing_files is None else wording.number(status.landing_files)
    return f"{files} (paused)" if status.pause else files


def _of(value: str, limit_in_words: str, limit: int) -> str:
    return f"{value} / {limit_in_words}" if limit else f"{value} / off"


def _seconds(build: Build) -> float:
    return max(0, (build.finished_at or build.claimed_at) - build.claimed_at) / 1e6


def _flush_in_words(build: Build | None) -> str:
    if build is None:
        return "never"
    when = wording.moment(build.finished_at or build.claimed_at)
    return f"{build.state.value} {when} by {build.trigger} in {wording.duration(_seconds(build))}"


def _quarantine_in_words(totals: QuarantineTotals) -> str:
    if not (totals.batches or totals.rows or totals.segments):
        return "-"
    segments = f", {wording.counted(totals.segments, 'damaged segment')}" if totals.segments else ""
    return f"{wording.counted(totals.batches, 'batch', 'batches')}, {wording.counted(totals.rows, 'row')}{segments}"
