"""Writes files that are either complete or absent, even if the writing process is killed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import BinaryIO

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""System errors when no more bytes can be written: the disk, a quota, or the largest file size is exhausted."""
TEMPORARY = f".unfinished-{'[0-9a-f]' * 16}"
"""Name pattern of a file that is being written, or was when its process was killed; no other files have such names."""


class DiskSpaceError(OSError):
    """A file could not be written because there is no space; no part of it remains, and a previous file is unchanged.

    Attributes:
        path: the file.
        needed: its size in bytes.
        free: bytes free in its folder's file system when it failed, None if unknown.
    """

    def __init__(self, path: Path, needed: int, free: int | None, code: int = errno.ENOSPC) -> None:
        room = "an unknown amount is" if free is None else f"{free / 2**20:,.1f} MiB are"
        super().__init__(
            code,
            f"{os.strerror(code)}: {path} needs {needed / 2**20:,.1f} MiB, {room} free; no part of it was left there "
            "and older files are intact: free some space (or raise the quota), then start the same command again",
        )
        self.path, self.needed, self.free = path, needed, free


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Writes a file so that at any moment either the old or the new content is there, complete, even after a power cut.

    The bytes are written to a new file beside it, ``.unfinished-RANDOM``, and synced to disk; then the file is renamed,
    and the folder is synced. If anything fails, the temporary file is removed. Other writers of the same name, in this
    process or on another machine, use their own temporary files. Each is locked while it is written, so that
    :func:`remove_temporaries` does not remove it.

    Args:
        path: the file; its folder must exist.
        data: all of its content.

    Raises:
        DiskSpaceError: the disk, a quota or the process's limit is exhausted.
        OSError: any other error of the system; it names the file.
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
        free = _free(path.parent)  # before the removal, which would hide the cause
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise DiskSpaceError(path, memoryview(data).nbytes, free, error.errno) from error
        raise


def flush_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut, if the system can do so."""
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
    """Files in a folder that :func:`write_atomically` is writing, or was writing when its process was killed."""
    return list(folder.glob(TEMPORARY))


def remove_temporaries(folder: Path) -> None:
    """Removes temporary files that killed processes left behind, but not files that are being written now."""
    for leftover in temporaries(folder):
        with contextlib.suppress(OSError):  # it is gone, or Windows keeps it for its writer
            descriptor = os.open(leftover, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if _lock(descriptor, wait=False):
                    leftover.unlink()
            finally:
                os.close(descriptor)


def _new(path: Path) -> tuple[Path, BinaryIO]:
    """A newly created file beside ``path``, open and locked; existing files and links are never opened."""
    while True:
        temporary = path.with_name(f".unfinished-{secrets.token_hex(8)}")
        file = open(temporary, "xb")  # noqa: SIM115 - the caller closes it
        _lock(file.fileno(), wait=True)
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # mistaken for that of a killed process before it was locked


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Locks an open file until it is closed or its process ends; False if another has it or locks are not supported."""
    if sys.platform == "win32":
        return wait
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))  # of the open file, not of the process
    except OSError:  # held, or a file system without locks: there nothing is removed
        return False
    return True


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
