"""Whether the process has run out of open files (short, because errors of every library are asked by it).

An error that says so says nothing of the file that it names.
"""

from __future__ import annotations

import errno
import resource

_OF_THE_SYSTEM = frozenset({errno.EMFILE, errno.ENFILE})
# Libraries tell it in words: DuckDB and SQLite in those of the system, Rust with the number.
_IN_WORDS = ("Too many open files", f"(os error {errno.EMFILE})", f"(os error {errno.ENFILE})")


def out_of_files(error: BaseException) -> bool:
    """Whether an error, of whatever library, is that no more files can be opened."""
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        return True
    return any(words in str(error) for words in _IN_WORDS)


def most_open_files() -> int:
    """Return how many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
