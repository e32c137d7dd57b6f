"""Why a file or a batch as a whole cannot be staged, in words for who sent it.

What is wrong with single rows is said by ``segments/judging.py``.
"""

from __future__ import annotations

from timestore_pipeline.errors import TooManyOpenFiles
from timestore_pipeline.exhaustion import out_of_files

_MOST_CHARACTERS = 4_000


class UnreadableFile(Exception):
    """A file that cannot be staged as it is; the message is the reason.

    It may have names out of the file, which may be as long as the file; what to do is said at its end.
    """

    def __init__(self, reason: str) -> None:
        if len(reason) > _MOST_CHARACTERS:
            half = _MOST_CHARACTERS // 2
            reason = f"{reason[:half]} … {reason[-half:]}"
        super().__init__(reason)


class NoRowsToInferFrom(UnreadableFile):
    """A text file without rows tells the names of columns, not their types."""

    def __init__(self) -> None:
        super().__init__(
            "it has no rows to infer the dataset's columns from; let a file with rows come first or declare the columns"
        )


class NoRows(UnreadableFile):
    """It is whole, and has neither a row nor the name of a column: nothing can be staged of it."""


class TooLarge(UnreadableFile):
    """What it would take to read it is more than it may take."""


class UnreadableRow(UnreadableFile):
    """A row of it, counted from 1, is what cannot be read."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


def readable_reason(error: BaseException) -> str:
    """Return the part of a library's message that tells a producer what is wrong, on one line.

    Raises:
        TooManyOpenFiles: nothing is wrong with what was read.
    """
    if out_of_files(error):
        raise TooManyOpenFiles("files and segments were read") from error
    lines = []
    for line in str(error).splitlines():
        text = line.strip()
        if text.lower().startswith(
            ("possible ", "* ", "try setting", "line 1:", "column ", "this type was", "file = ", "stack trace:")
        ):
            break
        if text:
            lines.append(text)
    return "; ".join(lines[:4])[:1_000] or type(error).__name__


def unreadable(error: UnreadableFile | OSError) -> str:
    """Return why a file cannot be read, be it its content or the disk.

    Raises:
        TooManyOpenFiles: nothing is wrong with either.
    """
    if out_of_files(error):
        raise TooManyOpenFiles("files were read") from error
    if isinstance(error, OSError):
        return f"it cannot be read: {error.strerror or error}"
    return str(error)
