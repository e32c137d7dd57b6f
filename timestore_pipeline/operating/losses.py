"""Giving up rows of the table that nothing can bring back, so that reads work and the row audit adds up again.

Files that are gone or damaged leave the table in one commit; what can still be read of them is written anew. What the
windows then lack is entered as a loss, with who accepted it and why. Killed in between, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import duckdb
from sqlalchemy import Connection

from timestore_pipeline.building.order import BuildOrder
from timestore_pipeline.building.publication import WrittenFiles, claim_published, publishing
from timestore_pipeline.building.writing import published_columns
from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.duck.remote_files import of_the_store
from timestore_pipeline.errors import LossRefused, TableError
from timestore_pipeline.ledger.accounts import Loss, NewLoss, WindowAccount, accept_loss, window_accounts
from timestore_pipeline.ledger.datasets import lock_dataset
from timestore_pipeline.ledger.states import BuildKind
from timestore_pipeline.model.clock import now_micros
from timestore_pipeline.model.windows import Window
from timestore_pipeline.operating.audit import AuditReport, WindowAudit, audit_rows
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import ParquetFile, TableFile
from timestore_pipeline.table.own_table import OwnTable
from timestore_pipeline.table.parquet import WindowSource, parquet_relation, window_folders, write_window
from timestore_pipeline.table.replacement import read_for_replacement


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
    dataset: str,
    windows: Collection[Window] | None = None,
    *,
    rows: int,
    reason: str,
    by: str,
    owner: str,
) -> list[Loss]:
    """Give up what :func:`missing_rows` says of ``windows``, if it is just ``rows`` rows in all.

    Returns:
        What is entered in the ledger, a loss per window.

    Raises:
        LossRefused: another number of rows is missing, or nothing is wrong; nothing was changed.
        BuildInFlight: another build of the dataset has not ended.
        BuildAborted, TableError, LedgerError: nothing was entered; the same again goes on where this ended.
    """
    spec = store.datasets[dataset]
    wrong = _wrong(audit_rows(store, dataset, windows), windows)
    found = sum(_missing(each).rows for each in wrong)
    if not wrong:
        raise LossRefused(dataset, "every row is where it should be", "There is nothing to accept.")
    if found != rows:
        raise LossRefused(
            dataset, f"{found:,} rows are missing, not {rows:,}", f"Look what is missing: timestore loss show {dataset}"
        )
    _repair(store, spec, wrong, owner)
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


def _repair(store: Store, spec: DatasetSpec, wrong: Sequence[WindowAudit], owner: str) -> None:
    """Commit what can be read of the windows' files in place of those that are gone or damaged.

    The ledger's totals of the windows become those of the table, whoever has changed it.
    """
    own, place = OwnTable(store, spec.name), store.table(spec.name)
    columns = published_columns(store, spec, own.opened())
    order = BuildOrder(spec.name, owner=owner)
    claimed = claim_published(store, order, BuildKind.REPAIR, [each.window.start_micros for each in wrong], 0)
    with publishing(store, claimed, columns) as publication:
        found = read_for_replacement(own, claimed, [each.window.key for each in wrong])
        live = set(found.files)
        leaving = {each.window: [file for file in each.damaged if file.file in live] for each in wrong}
        written: list[ParquetFile] = []
        with store.connect(place) as connection, window_folders(store, claimed) as folders:
            for window, files in leaving.items():
                relations = [parquet_relation(place, [each.file.path], columns) for each in files if each.rows]
                readable = [relation for relation in relations if _can_be_read(connection, relation)]
                if readable:
                    source = _what_is_left(spec, readable, [each.file for each in files])
                    target = store.settings.build_target_file_bytes
                    written += write_window(folders, connection, spec, columns, claimed, window, source, target)
        gone = [each.file for files in leaving.values() for each in files]
        publication.commit(WrittenFiles(written, found.only(gone)))


def _can_be_read(connection: duckdb.DuckDBPyConnection, relation: str) -> bool:
    """Whether all values can be read, not only the footer."""
    try:
        connection.execute(f"SELECT count(COLUMNS(*)) FROM {relation}").fetchall()
    except duckdb.Error as error:
        if of_the_store(error):
            raise  # it may pass, and says nothing of the file
        return False
    return True


def _what_is_left(spec: DatasetSpec, relations: Sequence[str], files: Sequence[TableFile]) -> WindowSource:
    return WindowSource(
        relations=relations,
        rows=None,
        bytes=sum(file.bytes for file in files),
        one_after_the_other=False,
        counted_by="the files",
        wrong=lambda reason: TableError(f"dataset {spec.name!r}: damaged files cannot be read again: {reason}"),
    )
