"""Errors of files on disk, one class for each kind, so that a caller can distinguish them; and how many are allowed."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..messages import allowed, printable
from .image_list import Strings

MISSING = "missing file"
UNDECODABLE = "undecodable"
UNREADABLE = "unreadable"
"""The reasons of an :class:`ImageError`."""


class LayoutError(ValueError):
    """The folder has no known layout; the message shows what was expected and what was found."""


class LabelFileError(ValueError):
    """A label file is not in the documented format; the message names file and line."""


class UnreadableError(RuntimeError):
    """More files are missing or damaged than ``skip_unreadable`` allows.

    Attributes:
        count: how many rows are unreadable.
        names: the first of them, each with its reason.
        limit: number allowed.
        rows: total number of rows.
    """

    def __init__(self, what: str, count: int, names: Sequence[str], limit: int, rows: int) -> None:
        super().__init__(what, count, tuple(names), limit, rows)  # all, so that a pickle can be read back
        self.what, self.count, self.names, self.limit, self.rows = what, count, tuple(names), limit, rows

    def __str__(self) -> str:
        allowed = f"at most {self.limit:,} allowed" if self.limit else "none allowed"
        head = f"{self.what}: {self.count:,} of {self.rows:,} rows unreadable, {allowed}:"
        how = "skip_unreadable= (a number of rows or a share of them) or --skip-unreadable"
        remedy = f"restore these files, or pass {how} to leave these rows out and count them"
        return "\n".join([head, *(f"  {name}" for name in self.names), remedy])


class FetchError(RuntimeError):
    """A data set or pretrained weights could not be downloaded; the message says how to proceed without the network."""


class ImageError(RuntimeError):
    """One image is missing, or cannot be read or decoded.

    Attributes:
        path: the file.
        reason: ``"missing file"``, ``"undecodable"``, or in predictions ``"unreadable"`` (permissions, a disk error).
    """

    def __init__(self, path: Path, reason: str, detail: str) -> None:
        super().__init__(path, reason, detail)  # all three, so that a pickle can be read back
        self.path, self.reason, self.detail = path, reason, detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason} ({self.detail})"


class CacheSpaceError(OSError):
    """The disk cannot hold the image cache; no part of it was left there."""

    def __init__(self, folder: Path, needed: int, free: int) -> None:
        message = (
            f"the image cache needs {needed / 2**20:,.1f} MiB in {folder}, {free / 2**20:,.1f} MiB are free; "
            "nothing was left behind: choose a folder on another disk, a smaller size, or fewer records (every=)"
        )
        super().__init__(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {message}")


class UnwritableError(OSError):
    """The folder for extracted frames cannot be written; the message says how to choose another."""

    def __init__(self, folder: Path, error: OSError) -> None:
        remedy = "pass frames_dir=, a folder that you can write to (training: --cache)"
        super().__init__(error.errno, f"{error.strerror}: frames cannot be stored in {folder}; {remedy}")


def enforce(found: Mapping[int, str], names: Strings, skip_unreadable: int | float, what: str) -> None:
    """Raises an :class:`UnreadableError` unless the rows ``found`` (position → why) are :func:`allowed`."""
    limit = allowed(skip_unreadable, len(names))
    if len(found) > limit:
        named = [printable(f"{names[row]}: {why}") for row, why in list(found.items())[:10]]
        raise UnreadableError(what, len(found), named, limit, len(names))
