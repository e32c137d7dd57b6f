"""``timestore loss``: rows of the table that are gone, what was given up of them, and giving up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from timestore_pipeline.cli import wording
from timestore_pipeline.cli.exit_codes import ExitCode
from timestore_pipeline.cli.operator import command_has_died, operator, this_command
from timestore_pipeline.cli.options import AsJson, OneDataset, go_on_if, open_store
from timestore_pipeline.cli.output import Heading, print_json, print_table, say, warn
from timestore_pipeline.model.clock import now_micros

if TYPE_CHECKING:
    from timestore_pipeline.ledger.accounts import Loss
    from timestore_pipeline.model.windows import Window
    from timestore_pipeline.operating.losses import MissingRows
    from timestore_pipeline.store import Store

loss_app = typer.Typer(
    help="Rows of the table that are gone for good: show them, give them up.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@loss_app.command("show", short_help="Show what is missing, and what was given up.")
def show_loss(dataset: OneDataset, as_json: AsJson = False) -> None:
    """Audit all windows and show which rows are missing, and what was given up before, by whom and why.

    Exit code 1 where rows are missing that nobody has given up.
    """
    from timestore_pipeline.ledger.accounts import recorded_losses
    from timestore_pipeline.operating.audit import audit_rows
    from timestore_pipeline.operating.losses import missing_in

    with open_store() as store:
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
                        {"window": each.window.key, "rows": each.rows, "problems": list(each.problems)}
                        for each in missing
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
    raise typer.Exit(ExitCode.FAILED if missing else ExitCode.DONE)


@loss_app.command("accept", short_help="Give up rows that nothing can bring back.")
def accept_loss(
    dataset: OneDataset,
    rows: Annotated[
        int, typer.Option(metavar="N", help="Give up this many rows: all that are missing (`timestore loss show`).")
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for those who ask later.")],
    window: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Only of this window; may be given more than once.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give up rows that the row audit misses, once no backup and no retained segment has them (`build --rebuild`).

    Files that are gone or damaged leave the table, with what can still be read of them written anew, so that queries
    work again. The ledger keeps who gave up what and why; lineage, row audit and `timestore_lost_rows_total` say it.
    """
    if not reason.strip():
        raise typer.BadParameter("say why", param_hint="--reason")
    if not yes:
        go_on_if(f"{rows:,} published rows of {dataset} are given up, and damaged files leave its table. Go on?")
    from timestore_pipeline.building.order import BuildOrder
    from timestore_pipeline.building.recovery import settle_dead_builds
    from timestore_pipeline.operating.losses import accept_losses

    with open_store() as store:
        spec = store.datasets[dataset]
        try:
            windows = [spec.window_from_key(key) for key in window or ()]
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        settle_dead_builds(store, command_has_died)
        accepted = accept_losses(
            store,
            BuildOrder(dataset, owner=this_command()),
            windows or None,
            rows=rows,
            reason=reason,
            by=operator(),
        )
    if as_json:
        print_json([_as_json(loss, spec.window_at(loss.window_start)) for loss in accepted])
        return
    for loss in accepted:
        key = spec.window_at(loss.window_start).key
        say(f"{dataset} {key}: {wording.counted(loss.rows, 'row')} given up as loss {loss.id}")
    if not accepted:
        say(f"{dataset}: the table is mended; no row is lost by that")


@loss_app.command("withdraw", short_help="Take back what was given up.")
def withdraw_loss(
    ids: Annotated[list[int], typer.Argument(metavar="ID...", help="The losses, as `timestore loss show` has them.")],
) -> None:
    """Take back what was given up: the row audit reports it again. A rebuild of the window does so by itself."""
    from timestore_pipeline.ledger.accounts import withdraw_loss

    failed = False
    with open_store() as store:
        for loss_id in ids:
            with store.ledger.write() as tx:
                done = withdraw_loss(tx, loss_id, by=operator(), now=now_micros())
            if done:
                say(f"loss {loss_id} is withdrawn: the row audit reports it again")
            else:
                warn(f"there is no loss {loss_id} that holds; 'timestore loss show DATASET' lists them")
                failed = True
    raise typer.Exit(ExitCode.FAILED if failed else ExitCode.DONE)


def loss_in_words(loss: Loss) -> str:
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
