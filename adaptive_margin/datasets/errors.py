"""Errors of data sets, one class for each kind, so that a caller can distinguish them."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path


class LayoutError(ValueError):
    """The folder has no known layout; the message shows what was expected and what was found."""


class DerivedCopyError(LayoutError):
    """The folder is a derived copy that must not be mistaken for the benchmark."""


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

    def __init__(self, what: str, count: int, names: Sequence[str], limit: int, rows: int, remedy: str) -> None:
        super().__init__(what, count, tuple(names), limit, rows, remedy)  # all, so that a pickle can be read back
        self.what, self.count, self.names, self.limit, self.rows = what, count, tuple(names), limit, rows
        self.remedy = remedy

    def __str__(self) -> str:
        allowed = f"at most {self.limit:,} allowed" if self.limit else "none allowed"
        head = f"{self.what}: {self.count:,} of {self.rows:,} rows unreadable, {allowed}:"
        return "\n".join([head, *(f"  {name}" for name in self.names), self.remedy])


class FetchError(RuntimeError):
    """A data set or pretrained weights could not be downloaded; the message says how to proceed without the network."""


class ImageError(RuntimeError):
    """One image is missing or cannot be decoded.

    Attributes:
        path: the file.
        reason: ``"missing file"`` or ``"undecodable"``.
    """

    def __init__(self, path: Path, reason: str, detail: str) -> None:
        super().__init__(path, reason, detail)  # all three, so that a pickle can be read back
        self.path = path
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason} ({self.detail})"


class CacheSpaceError(OSError):
    """The disk cannot hold the image cache; no part of it was left there."""

    def __init__(self, folder: Path, needed: int, free: int) -> None:
        message = (
            f"the image cache needs {needed / 2**20:,.1f} MiB in {folder}, {free / 2**20:,.1f} MiB are free; "
            "nothing was left there: choose a folder on another disk, a smaller size, or fewer records (every=)"
        )
        super().__init__(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {message}")


class UnwritableError(OSError):
    """The folder for extracted frames cannot be written; the message says how to choose another."""

    def __init__(self, folder: Path, error: OSError) -> None:
        remedy = "pass frames_dir=, a folder that can be written (training: --cache)"
        super().__init__(error.errno, f"{error.strerror}: frames cannot be kept in {folder}; {remedy}")


class LeakError(ValueError):
    """The parts of a split share a person, a video or a picture that they must not share."""
