"""Giving up rows of the table that nothing can bring back, so that reads work and the row audit adds up again.

Files that are gone or damaged leave the table in one commit; what can still be read of them is written anew. What the
windows then lack is entered as a loss, with who accepted it and why. Killed in between, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection

from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.repair import repair_windows
from timestore_pipeline.errors import LossRefused
from timestore_pipeline.ledger.accounts import Loss, NewLoss, WindowAccount, accept_loss, window_accounts
from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import Window
from timestore_pipeline.operating.audit import AuditReport, WindowAudit, audit_rows
from timestore_pipeline.store import Store


@dataclass(frozen=True)
class MissingRows:
    """What does not add up in a window, in words, and how many of its published rows are nowhere.

    ``rows`` below zero: the table has more than was ever published into the window.
    """

    window: Window
    rows: int
    problems: tuple[str, ...]


def missing_rows(store: Store, dataset: str, windows: Collection[Window] | None = None) -> list[MissingRows]:
    """Return the windows (of ``windows``, by default all) that do not add up; audits them in full.

    Raises:
        UnknownDataset: it is not declared.
        LossRefused: the ledger contradicts itself, which is no loss of rows.
        TableError, LedgerError: they cannot be read.
    """
    return missing_in(audit_rows(store, dataset, windows), windows)


def missing_in(report: AuditReport, windows: Collection[Window] | None = None) -> list[MissingRows]:
    """Return the windows (of ``windows``, by default all) that do not add up in an audit in full.

    Raises:
        LossRefused: the ledger contradicts itself, which is no loss of rows.
    """
    return [_missing(each) for each in _wrong(report, windows)]


def accept_losses(
    store: Store,
    order: BuildOrder,
    windows: Collection[Window] | None = None,
    *,
    rows: int,
    reason: str,
    by: str,
) -> list[Loss]:
    """Give up what :func:`missing_rows` says of ``windows``, if it is just ``rows`` rows in all.

    ``order`` says of which dataset, and who builds. ``reason`` and ``by`` are for people.

    Returns:
        What is entered in the ledger, a loss per window.

    Raises:
        LossRefused: another number of rows is missing, or nothing is wrong; nothing was changed.
        BuildInFlight: another build of the dataset has not ended.
        BuildAborted, TableError, LedgerError: nothing was entered; the same again goes on where this ended.
    """
    dataset = order.dataset
    wrong = _wrong(audit_rows(store, dataset, windows), windows)
    found = sum(_missing(each).rows for each in wrong)
    if not wrong:
        raise LossRefused(dataset, "every row is where it should be", "There is nothing to accept.")
    if found != rows:
        raise LossRefused(
            dataset, f"{found:,} rows are missing, not {rows:,}", f"Look what is missing: timestore loss show {dataset}"
        )
    damaged = {each.window: {file.file: file.rows for file in each.damaged} for each in wrong}
    repair_windows(store, order, damaged)
    starts = [each.window.start_micros for each in wrong]
    now = now_micros()

    def enter(tx: Connection) -> list[Loss]:
        lock_dataset(tx, dataset)
        accounts = window_accounts(tx, dataset, starts)
        entered = []
        for start in starts:
            account = accounts.get(start, WindowAccount(start))
            gone = account.unaccounted(account.recorded)
            if not gone:
                continue
            given_up = NewLoss(
                dataset=dataset, window_start=start, rows=gone, reason=reason, accepted_by=by, accepted_at=now
            )
            loss = accept_loss(tx, given_up)
            entered += [loss] if loss else []
        return entered

    return store.ledger.transact(enter)


def _wrong(report: AuditReport, windows: Collection[Window] | None) -> list[WindowAudit]:
    wrong = [each for each in report.wrong if windows is None or each.window in windows]
    for each in wrong:
        account = _account(each)
        if account.staged != account.explained:
            raise LossRefused(
                report.dataset,
                f"window {each.window.key}: {'; '.join(each.problems)}. That is the ledger's fault and no loss",
                "Make the ledger again from the files, with the service stopped: timestore ledger rebuild --replace",
            )
    return wrong


def _missing(audit: WindowAudit) -> MissingRows:
    return MissingRows(audit.window, _account(audit).unaccounted(audit.table_rows), audit.problems)


def _account(audit: WindowAudit) -> WindowAccount:
    return audit.account or WindowAccount(audit.window.start_micros)
