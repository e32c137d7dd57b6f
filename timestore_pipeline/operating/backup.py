"""A copy of the ledger, taken while it is in use (short, because it takes the ledger's file and no installation).

The copy is the ledger as it stands at one moment.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from timestore_pipeline.durable_files import TEMPORARY_SUFFIX, put_in_place
from timestore_pipeline.errors import LedgerError
from timestore_pipeline.settings import Settings
from timestore_pipeline.store import ledger_file


def back_up_ledger(settings: Settings, target: Path) -> int:
    """Copy a SQLite ledger to ``target``, durably and checked; return the size of the copy in bytes.

    Raises:
        LedgerError: it is no SQLite file or damaged, there is something at ``target``, or it cannot be written.
    """
    file = ledger_file(settings)
    if file is None:
        raise LedgerError(
            "the ledger is no SQLite file; back it up with the tools of its database (pg_dump, say) "
            "together with the staging directory"
        )
    if not file.exists():
        raise LedgerError(f"there is no ledger {file}; if it was lost, run 'timestore ledger rebuild'")
    if target.exists():
        raise LedgerError(f"{target} is there already; name another file, or move it away")
    temporary = target.with_name(target.name + TEMPORARY_SUFFIX)
    try:
        temporary.unlink(missing_ok=True)
        with (
            closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(temporary)) as copy,
        ):
            source.backup(copy)
            (answer,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        if answer != "ok":
            raise LedgerError(f"the ledger {file} is damaged: {answer}; see 'timestore doctor'")
        put_in_place(temporary, target)
        return target.stat().st_size
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(f"the ledger {file} cannot be copied to {target}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
