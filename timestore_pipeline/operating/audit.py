"""Exactly once, proved: the rows of each window by the ledger, held against the table's own counts (invariant 2).

For every window, rows staged = rows published + in quarantine + still queued, and rows published = rows recorded for
the window and in the table's files + rows superseded by their key + rows taken back by corrections, and those that
expired or were given up. What the files hold is taken from their footers, not
from what the log says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from timestore_pipeline.datasets import DatasetSpec
from timestore_pipeline.errors import ObjectMissing, StorageError
from timestore_pipeline.ledger.accounts import WindowAccount, recorded_rows, window_accounts
from timestore_pipeline.ledger.tables import TableState, table_state
from timestore_pipeline.model.windows import Window
from timestore_pipeline.storage import Storage
from timestore_pipeline.storage.ranges import open_file
from timestore_pipeline.storage.table_folder import has_table
from timestore_pipeline.store import Store
from timestore_pipeline.table.contents import TableFile, live_files
from timestore_pipeline.table.foreign import ForeignCommit, foreign_commits
from timestore_pipeline.table.opening import open_table

# A build that commits while the audit looks moves the table under it: then it looks again.
_ATTEMPTS = 3

# So far back it is looked in the log for what other programs did; in an object store an entry is a request.
_MOST_COMMITS = 100
_MOST_STRAY = 3


@dataclass(frozen=True)
class DamagedFile:
    """A live file that is not as it was committed: how many rows it still has by its footer, and what is wrong."""

    file: TableFile
    rows: int
    problem: str


@dataclass(frozen=True)
class WindowAudit:
    """One window: its account in the ledger, the rows that the table has of it, and what is wrong with its files.

    ``account`` is None for a window of which only the number of rows in the table was looked at.
    """

    window: Window
    recorded: int
    table_rows: int
    files: int
    account: WindowAccount | None = None
    damaged: tuple[DamagedFile, ...] = ()
    changed_by: tuple[ForeignCommit, ...] = ()
    """What other programs did to its files lately; looked up only where something does not add up."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not add up, in words and numbers; empty where every row is where it should be."""
        found = self._problems
        return (*found, *(commit.in_words for commit in self.changed_by)) if found else ()

    @property
    def _problems(self) -> tuple[str, ...]:
        found = [file.problem for file in self.damaged]
        if self.table_rows != self.recorded:
            found.append(f"the table has {self.table_rows:,} rows, {self.recorded:,} are recorded for the window")
        if self.account is not None:
            found += _ledger_problems(self.account)
        return tuple(found)


@dataclass(frozen=True)
class AuditReport:
    """All windows of a dataset at one table version (None: no table yet), in time order.

    ``stray`` are files of another program in partitions that are no windows.
    """

    dataset: str
    table_version: int | None
    windows: tuple[WindowAudit, ...]
    files_opened: int
    stray: tuple[TableFile, ...] = ()

    @property
    def wrong(self) -> tuple[WindowAudit, ...]:
        """The windows in which something does not add up."""
        return tuple(window for window in self.windows if window.problems)

    @property
    def stray_in_words(self) -> str | None:
        """What lies in no window of the dataset, and is read all the same; None where nothing does."""
        if not self.stray:
            return None
        shown = ", ".join(file.path for file in self.stray[:_MOST_STRAY])
        return f"{len(self.stray):,} files of another program lie in no window of the dataset: {shown}"

    @property
    def proved(self) -> tuple[WindowAudit, ...]:
        """The windows that were audited in full: from the batches to the footers of the files."""
        return tuple(window for window in self.windows if window.account is not None)


def audit_rows(store: Store, dataset: str, windows: Iterable[Window] | None = None) -> AuditReport:
    """Hold the ledger against the table: ``windows`` in full (by default all), the others by their number of rows.

    Costs a look at the table's log, a ``stat`` of each of its files, and the footer of each file of ``windows`` and of
    each that is not as long as when it was committed.

    Raises:
        UnknownDataset: it is not declared.
        TableError, LedgerError, StorageError: they cannot be read.
    """
    spec = store.datasets[dataset]
    starts = None if windows is None else {window.start_micros for window in windows}
    state, accounts, recorded, version, files = _consistent_look(store, spec, starts)
    by_window: dict[Window, list[TableFile]] = {}
    stray = []
    for file in files:
        window = spec.window_of_partition(file.window_key)
        if window is None:
            stray.append(file)
        else:
            by_window.setdefault(window, []).append(file)
    found = set(by_window)
    found |= {spec.window_at(start) for start in (*accounts, *recorded)}
    place = store.table(dataset)
    sizes = place.sizes()
    audits, opened = [], 0
    for window in sorted(found):
        own = by_window.get(window, [])
        account = accounts.get(window.start_micros)
        if account is None and (starts is None or window.start_micros in starts):
            account = WindowAccount(window.start_micros)
        counted = [_count_file(place, sizes, file, look=account is not None) for file in own]
        opened += sum(count.opened for count in counted)
        audits.append(
            WindowAudit(
                window=window,
                recorded=recorded.get(window.start_micros, 0),
                table_rows=sum(count.rows for count in counted),
                files=len(own),
                account=account,
                damaged=tuple(
                    DamagedFile(file, count.rows, count.problem)
                    for file, count in zip(own, counted, strict=True)
                    if count.problem
                ),
            )
        )
    if any(audit.problems for audit in audits):
        audits = _with_what_others_did(place, version, audits)
    return AuditReport(dataset, version if state.version is not None else None, tuple(audits), opened, tuple(stray))


def _with_what_others_did(place: Storage, version: int, audits: Iterable[WindowAudit]) -> list[WindowAudit]:
    commits = foreign_commits(place, range(max(0, version - _MOST_COMMITS), version + 1))
    known = [commit for commit in commits if commit.window_keys is not None and commit.data_change]
    return [
        replace(audit, changed_by=tuple(each for each in known if audit.window.key in (each.window_keys or ())))
        if audit.problems
        else audit
        for audit in audits
    ]


def _ledger_problems(account: WindowAccount) -> list[str]:
    found = []
    if account.superseded < 0:
        found.append(f"{-account.superseded:,} rows came from elsewhere: no batch brought them")
    if account.staged != account.explained:
        found.append(
            f"{account.staged:,} rows were staged, and {account.explained:,} are published ({account.published:,}), "
            f"in quarantine ({account.quarantined:,}) or queued ({account.queued:,})"
        )
    if account.unaccounted(account.recorded):
        parts = [f"{account.recorded:,} are recorded for the window"]
        parts += [f"{account.superseded:,} superseded by their key"] if account.superseded else []
        parts += [f"{account.corrected:,} were taken back by corrections"] if account.corrected else []
        parts += [f"{account.expired:,} have expired"] if account.expired else []
        parts += [f"{account.lost:,} are given up as lost"] if account.lost else []
        found.append(f"{account.published + account.pruned:,} rows were published, {' and '.join(parts)}")
    return found


def _consistent_look(
    store: Store, spec: DatasetSpec, starts: set[int] | None
) -> tuple[TableState, Mapping[int, WindowAccount], Mapping[int, int], int, Sequence[TableFile]]:
    """Return the ledger's and the table's side of one moment.

    The latest version is looked at, so that a commit of somebody else is seen too; while builds go on, the version
    that readers are given.
    """
    place = store.table(spec.name)
    for attempt in range(_ATTEMPTS):
        with store.ledger.read() as tx:
            state = table_state(tx, spec.name)
            accounts = window_accounts(tx, spec.name, starts)
            recorded = recorded_rows(tx, spec.name)
        if state.version is None and (state.in_flight is not None or not has_table(place)):
            return state, accounts, recorded, 0, ()
        settled = state.in_flight is None
        table = open_table(place, spec.name, None if settled else state.version)
        with store.ledger.read() as tx:
            unmoved = table_state(tx, spec.name) == state
        if settled and not unmoved and attempt < _ATTEMPTS - 1:
            continue
        if settled and not unmoved:
            table = open_table(place, spec.name, state.version)
        return state, accounts, recorded, table.version(), live_files(table)
    raise AssertionError("the last attempt returns")


@dataclass(frozen=True)
class _Count:
    rows: int
    opened: bool
    problem: str | None = None


def _count_file(place: Storage, sizes: Callable[[str], int | None], file: TableFile, *, look: bool) -> _Count:
    """Count the rows of a live file: by its footer if ``look``, or if it is not as long as when it was committed."""
    shown = place.shown(file.path)
    try:
        size = sizes(file.path)
    except StorageError:
        raise  # it may pass, and says nothing of the file
    except OSError as error:
        return _Count(0, False, f"{shown} cannot be read: {error.strerror or error}")
    if size is None:
        return _Count(0, False, f"{shown} cannot be read: it is not there")
    if not look and size == file.bytes:
        return _Count(file.rows, False)
    try:
        rows = _rows_of_footer(place, file.path, size)
    except StorageError as error:
        if not isinstance(error, ObjectMissing):
            raise  # it may pass, and says nothing of the file
        return _Count(0, False, str(error))
    except (OSError, pa.ArrowException) as error:
        return _Count(0, True, f"{shown} is damaged: {' '.join(str(error).split())}")
    if rows != file.rows:
        return _Count(rows, True, f"{shown} holds {rows:,} rows, it was committed with {file.rows:,}")
    if size != file.bytes:
        return _Count(rows, True, f"{shown} has {size:,} bytes, it was committed with {file.bytes:,}")
    return _Count(rows, True)


def _rows_of_footer(place: Storage, key: str, size: int) -> int:
    with open_file(place, key, size) as file:
        return pq.read_metadata(pa.PythonFile(file, mode="r")).num_rows
