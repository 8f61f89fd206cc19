"""Files that are there whole or not at all, whatever kills the process that writes them."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import sys
from pathlib import Path
from typing import BinaryIO

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system says where no more bytes can be written: the disk, a quota, or the largest file allowed."""
TEMPORARY = re.compile(r"\.unfinished-[0-9a-f]{16}")
"""Name of a file that is being written, or was when its process was killed; nobody else's files have such names."""


class DiskSpaceError(OSError):
    """A file could not be written for want of space; nothing of it was left, and what was there before still is.

    Attributes:
        path: the file.
        needed: its size in bytes.
        free: bytes free in its folder's file system when it failed, None if unknown.
    """

    def __init__(self, path: Path, needed: int, free: int | None, code: int = errno.ENOSPC) -> None:
        room = "an unknown amount is" if free is None else f"{free / 2**20:,.1f} MiB are"
        super().__init__(
            code,
            f"{os.strerror(code)}: {path} needs {needed / 2**20:,.1f} MiB, {room} free; nothing of it was left there "
            "and older files are intact: free some space (or raise the quota), then start the same command again",
        )
        self.path, self.needed, self.free = path, needed, free


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Writes a file so that at any moment the old content or the new one is there, whole, also after a power cut.

    The bytes go into a new file beside it, ``.unfinished-RANDOM``, and to the disk; then it takes the name, and the
    folder goes to the disk. If anything fails, that file is removed. Other writers of the same name, in this process or
    on another machine, have files of their own, each locked as long as it is written, so that
    :func:`remove_temporaries` leaves it alone.

    Args:
        path: the file; its folder has to exist.
        data: all of its content.

    Raises:
        DiskSpaceError: the disk, a quota or the process's limit is exhausted.
        OSError: anything else that the system refuses; it names the file.
    """
    temporary: Path | None = None
    try:
        temporary, file = _new(path)
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":  # which lets nobody rename an open file
                os.replace(temporary, path)
        if sys.platform == "win32":
            os.replace(temporary, path)
        flush_folder(path.parent)
    except BaseException as error:
        free = _free(path.parent)  # before the removal, which would hide what was wrong
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise DiskSpaceError(path, memoryview(data).nbytes, free, error.errno) from error
        raise


def flush_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot, and do it anyway
            raise
    finally:
        os.close(descriptor)


def temporaries(folder: Path) -> list[Path]:
    """Files in a folder that :func:`write_atomically` is writing, or was when its process was killed."""
    return [path for path in folder.glob(".unfinished-*") if TEMPORARY.fullmatch(path.name)]


def remove_temporaries(folder: Path) -> None:
    """Removes what killed processes left behind while they wrote; not what somebody is writing now."""
    for leftover in temporaries(folder):
        with contextlib.suppress(OSError):  # it is gone, or Windows keeps it for its writer
            descriptor = os.open(leftover, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if _lock(descriptor, wait=False):
                    leftover.unlink()
            finally:
                os.close(descriptor)


def _new(path: Path) -> tuple[Path, BinaryIO]:
    """A file that was not there before, beside ``path``, open and locked; what lies or links there is never opened."""
    while True:
        temporary = path.with_name(f".unfinished-{secrets.token_hex(8)}")
        file = open(temporary, "xb")  # noqa: SIM115 - the caller closes it
        _lock(file.fileno(), wait=True)
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # taken for a killed process's before it was locked


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Locks an open file until it is closed or its process dies; False where another has it, or nothing can lock."""
    if sys.platform == "win32":
        return wait
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))  # of the open file, not of the process
    except OSError:  # held, or a file system without locks: there nothing is removed
        return False
    return True


def _free(folder: Path) -> int | None:
    if not hasattr(os, "statvfs"):
        return None
    try:
        numbers = os.statvfs(folder)
    except OSError:
        return None
    return numbers.f_bavail * numbers.f_frsize
