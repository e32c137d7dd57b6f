"""``timestore loss``: rows of the table that are gone, what was given up of them, and giving up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from timestore_pipeline.building.recovery import settle_dead_builds
from timestore_pipeline.cli import wording
from timestore_pipeline.cli.arguments import window_of
from timestore_pipeline.cli.exit_codes import ExitCode
from timestore_pipeline.cli.operator import command_has_died, operator, this_command
from timestore_pipeline.cli.output import Heading, print_json, print_table, say, warn
from timestore_pipeline.ledger.accounts import Loss, recorded_losses, withdraw_loss
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import Window
from timestore_pipeline.operating.audit import audit_rows
from timestore_pipeline.operating.losses import MissingRows, accept_losses, missing_in
from timestore_pipeline.store import Store


def show_losses(store: Store, dataset: str, *, as_json: bool) -> ExitCode:
    """Print what is missing of a dataset and what was given up before; FAILED where anything is missing.

    Raises:
        UnknownDataset, LossRefused, TableError, LedgerError: as they say.
    """
    spec = store.datasets[dataset]
    report = audit_rows(store, dataset)
    missing = missing_in(report)
    with store.ledger.read() as tx:
        losses = recorded_losses(tx, dataset)
    if as_json:
        print_json(
            {
                "dataset": dataset,
                "missing_rows": sum(each.rows for each in missing),
                "missing": [
                    {"window": each.window.key, "rows": each.rows, "problems": list(each.problems)} for each in missing
                ],
                "accepted": [_as_json(loss, spec.window_at(loss.window_start)) for loss in losses],
            }
        )
    else:
        _print_losses(store, losses)
        for each in missing:
            say(f"{dataset} {each.window.key}: {_missing_in_words(each)}")
        if not missing:
            say(f"{dataset}: every other row is where it should be" if losses else f"{dataset}: no row is missing")
    if report.stray_in_words is not None:
        warn(f"{dataset}: {report.stray_in_words}; they are read, and no window counts them")
    return ExitCode.FAILED if missing else ExitCode.DONE


def accept_loss_of(
    store: Store, dataset: str, window_keys: Sequence[str], *, rows: int, reason: str, as_json: bool
) -> ExitCode:
    """Give up ``rows`` rows of windows (none: of all) of a dataset.

    Raises:
        UnknownDataset, LossRefused, BuildInFlight, TableError, LedgerError: nothing was given up.
        ValueError: a key names no window of the dataset.
    """
    spec = store.datasets[dataset]
    windows = [window for window in (window_of(spec, key) for key in window_keys) if window is not None]
    settle_dead_builds(store, command_has_died)
    accepted = accept_losses(
        store, dataset, windows or None, rows=rows, reason=reason, by=operator(), owner=this_command()
    )
    if as_json:
        print_json([_as_json(loss, spec.window_at(loss.window_start)) for loss in accepted])
        return ExitCode.DONE
    for loss in accepted:
        key = spec.window_at(loss.window_start).key
        say(f"{dataset} {key}: {wording.counted(loss.rows, 'row')} given up as loss {loss.id}")
    if not accepted:
        say(f"{dataset}: the table is mended; no row is lost by that")
    return ExitCode.DONE


def withdraw_losses(store: Store, ids: Sequence[int]) -> ExitCode:
    """Take back what was given up, so that the row audit reports it again."""
    failed = False
    for loss_id in ids:
        with store.ledger.write() as tx:
            done = withdraw_loss(tx, loss_id, by=operator(), now=now_micros())
        if done:
            say(f"loss {loss_id} is withdrawn: the row audit reports it again")
        else:
            warn(f"there is no loss {loss_id} that holds; 'timestore loss show DATASET' lists them")
            failed = True
    return ExitCode.FAILED if failed else ExitCode.DONE


def in_words(loss: Loss) -> str:
    """Return a loss as a sentence, without its window."""
    given_up = f"{wording.counted(loss.rows, 'row')} given up {wording.moment(loss.accepted_at)} by {loss.accepted_by}"
    ended = "" if loss.ended_at is None else f"; ended {wording.moment(loss.ended_at)} by {loss.ended_by}"
    return f"loss {loss.id}: {given_up}: {loss.reason}{ended}"


def _missing_in_words(missing: MissingRows) -> str:
    what = f"{missing.rows:,} rows are missing" if missing.rows >= 0 else f"{-missing.rows:,} rows too many"
    return f"{what}: {'; '.join(missing.problems)}"


def _print_losses(store: Store, losses: Sequence[Loss]) -> None:
    if not losses:
        return
    headings = (
        Heading("loss"), Heading("window"), Heading("rows", right=True), Heading("by"), Heading("when"),
        Heading("reason"), Heading("ended"),
    )  # fmt: skip
    lines = [
        (
            str(loss.id),
            store.datasets[loss.dataset].window_at(loss.window_start).key,
            wording.number(loss.rows),
            loss.accepted_by,
            wording.moment(loss.accepted_at),
            loss.reason,
            "-" if loss.ended_at is None else f"{wording.moment(loss.ended_at)} by {loss.ended_by}",
        )
        for loss in losses
    ]
    print_table(headings, lines)


def _as_json(loss: Loss, window: Window) -> dict[str, Any]:
    times = {name: value and wording.iso(value) for name, value in (("accepted_at", loss.accepted_at),
                                                                    ("ended_at", loss.ended_at))}  # fmt: skip
    found = {name: value for name, value in asdict(loss).items() if name != "window_start"}
    return {**found, **times, "window": window.key}
