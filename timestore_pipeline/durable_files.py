"""Files that are either wholly there or not at all, also after a power cut (invariants 1 and 6).

Neither DuckDB, pyarrow nor delta-rs syncs what it writes, so everything that an acknowledgement rests on
passes through here.
"""

from __future__ import annotations

import errno
import fcntl
import filecmp
import os
import secrets
import shutil
import signal
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from timestore_pipeline.crash_points import CrashPoint, reach

PRIVATE_FILE = 0o660
PRIVATE_FOLDER = 0o770
"""Modes of what is created here, whatever the umask: for owner and group. A stricter umask holds."""

TEMPORARY_SUFFIX = ".tmp"
"""Ends the names of files that are not whole yet; an old one is an orphan."""

_AT_ONCE = 8


def fsync_path(path: Path) -> None:
    """Make a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def side_by_side() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Give a function that lets other threads do work; when the block ends, all of it is done.

    For work that waits for the disk: a file system makes durable together what several threads wait for, and the next
    file is written meanwhile.

    Raises:
        Exception: what the work raised that failed first; what had not begun by then is not done.
    """
    with ThreadPoolExecutor(_AT_ONCE, "side-by-side") as pool:
        begun: deque[Future[object]] = deque()

        def begin(work: Callable[[], object]) -> None:
            while begun and begun[0].done():
                begun.popleft().result()
            begun.append(pool.submit(work))

        try:
            yield begin
            for future in begun:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, durably, for owner and group only."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    path.mkdir(exist_ok=True)  # says so where something else is in its place
    for folder in missing:
        fsync_path(folder.parent)


def nearest_there(path: Path) -> Path:
    """Return ``path``, or the nearest of its parents that is there: on its disk ``path`` is or would be made."""
    return next(each for each in (path, *path.parents) if each.exists())


def sync_private(path: Path) -> None:
    """Make a file durable, and close it to all but owner and group: the libraries that wrote it asked the umask only.

    A link in its place is refused.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & ~PRIVATE_FOLDER:
            os.fchmod(descriptor, mode & PRIVATE_FOLDER)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(temporary: Path, final: Path) -> None:
    """Give a complete file its final name, durably: sync, rename, sync the folder.

    Raises:
        FileExistsError: there is another file of that name, which stays as it is.
    """
    sync_private(temporary)
    reach(CrashPoint.FILE_SYNCED)
    rename_new(temporary, final)
    reach(CrashPoint.FILE_RENAMED)
    fsync_path(final.parent)
    reach(CrashPoint.FILE_IN_PLACE)


def rename_new(temporary: Path, final: Path) -> None:
    """Give a file a name that nothing else has; that a file with the same content has it already is fine.

    Raises:
        FileExistsError: there is another file of that name, which stays as it is.
    """
    try:
        # A rename would take the place of whatever is there.
        final.hardlink_to(temporary)
    except FileExistsError:
        if not filecmp.cmp(temporary, final, shallow=False):
            raise
    temporary.unlink()


@contextmanager
def held_alone(path: Path) -> Iterator[Callable[[], bool]]:
    """Give a function that says whether nobody else can change a file: none has it open, or had since the block began.

    Whoever opens it waits until the block has ended. A file with a second name is nobody's alone, and neither is
    one for which the kernel gives no lease: it gives them to a file's owner only, and not on every file system.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    def alone() -> bool:
        return os.fstat(descriptor).st_nlink == 1 and fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_WRLCK

    try:
        try:
            # Sent when somebody opens it; the default one would end this process.
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except (OSError, AttributeError):  # refused, or Linux alone has leases
            yield lambda: False
        else:
            yield alone
    finally:
        os.close(descriptor)


def move_file(source: Path, target: Path) -> None:
    """Move a file into an existing folder, also to another file system; ``target`` is never half there.

    The move is durable once the caller has synced the target's folder; until then a power cut may undo it.
    """
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        temporary = target.with_name(f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
        try:
            shutil.copyfile(source, temporary)
            sync_private(temporary)
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)
        source.unlink()
