"""Files that are there whole or not at all, whatever kills the process that writes them."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system says where no more bytes can be written: the disk, a quota, or the largest file allowed."""


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

    The bytes go into a temporary file beside it, ``.NAME.PID.tmp``, and to the disk; then it takes the name, and the
    folder goes to the disk. If anything fails, the temporary file is removed.

    Args:
        path: the file; its folder has to exist.
        data: all of its content.

    Raises:
        DiskSpaceError: the disk, a quota or the process's limit is exhausted.
        OSError: anything else that the system refuses; it names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except BaseException as error:
        free = _free(path.parent)  # before the removal, which would hide what was wrong
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


def remove_temporaries(folder: Path) -> None:
    """Removes what a killed process left behind while it wrote."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _free(folder: Path) -> int | None:
    if not hasattr(os, "statvfs"):
        return None
    try:
        numbers = os.statvfs(folder)
    except OSError:
        return None
    return numbers.f_bavail * numbers.f_frsize
