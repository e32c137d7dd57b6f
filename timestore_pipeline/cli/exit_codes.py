"""What the exit codes of the command mean, and which error leads to which."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from timestore_pipeline.errors import (
    BadRange,
    BuildAborted,
    BuildInFlight,
    DatasetsFileError,
    DiskFull,
    GuardrailExceeded,
    IntakePaused,
    LedgerError,
    PlaceError,
    SettingsError,
    StagingQueueFull,
    TableNotOurs,
    TimestoreError,
    TooManyIngests,
    UnknownDataset,
    UnknownEntry,
    UnknownPlace,
)


class ExitCode(IntEnum):
    """Exit codes; each one's docstring-like meaning is in :data:`MEANINGS`."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    MISCONFIGURED = 3
    TRY_LATER = 4


MEANINGS = {
    ExitCode.DONE: "Everything was done.",
    ExitCode.FAILED: "Something failed, or some of the input was refused or quarantined; the rest was done.",
    ExitCode.USAGE: "The command was called wrongly: an option, a dataset, a window or an entry that does not exist, "
    "or a range without a time in it.",
    ExitCode.MISCONFIGURED: "A setting, the datasets file, the ledger, a place of files or a table is not usable; "
    "nothing was done with it.",
    ExitCode.TRY_LATER: "Not now: the queue or the disk is full, intake is paused, or a build of the dataset is in "
    "flight. "
    "The same command may succeed later.",
}
"""What each exit code tells a script; ``docs/cli.md`` shows them."""

_BY_ERROR: tuple[tuple[type[TimestoreError], ExitCode], ...] = (
    (UnknownDataset, ExitCode.USAGE),
    (UnknownEntry, ExitCode.USAGE),
    (UnknownPlace, ExitCode.USAGE),
    (BadRange, ExitCode.USAGE),
    (SettingsError, ExitCode.MISCONFIGURED),
    (DatasetsFileError, ExitCode.MISCONFIGURED),
    (LedgerError, ExitCode.MISCONFIGURED),
    (PlaceError, ExitCode.MISCONFIGURED),
    (TableNotOurs, ExitCode.MISCONFIGURED),
    (StagingQueueFull, ExitCode.TRY_LATER),
    (DiskFull, ExitCode.TRY_LATER),
    (GuardrailExceeded, ExitCode.TRY_LATER),
    (TooManyIngests, ExitCode.TRY_LATER),
    (IntakePaused, ExitCode.TRY_LATER),
    (BuildInFlight, ExitCode.TRY_LATER),
    (BuildAborted, ExitCode.TRY_LATER),
)


def exit_code_of(error: TimestoreError) -> ExitCode:
    """Return the exit code of a command that ends with ``error``."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.FAILED)


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """Return the exit code of a command whose parts ended with ``codes``: a failure outweighs a "not now"."""
    found = set(codes) - {ExitCode.DONE}
    order = (ExitCode.MISCONFIGURED, ExitCode.USAGE, ExitCode.FAILED, ExitCode.TRY_LATER)
    return next((code for code in order if code in found), ExitCode.DONE)
