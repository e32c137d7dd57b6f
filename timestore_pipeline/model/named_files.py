"""Files that settings name (short, because three parts read such files, and in one way).

They are read without ever waiting for them, whatever stands there under that name.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

MOST_BYTES = 16 << 20
"""No such file is larger."""


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Give a file that a setting names, opened to be read.

    Raises:
        OSError: it cannot be opened, or is a pipe or a device, on which whoever reads might wait for ever.
    """
    # Without O_NONBLOCK a pipe would keep even the opening waiting.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        yield file


def content_of(file: IO[bytes]) -> bytes:
    """Return what is in an opened file.

    Raises:
        OSError: it is larger than any such file can be.
    """
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MOST_BYTES >> 20} MiB")
    return content


def read_text(path: Path) -> str:
    """Return the text of a file that a setting names.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read.
    """
    with opened(path) as file:
        return content_of(file).decode("utf-8")
