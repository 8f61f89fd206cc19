"""Files that carry their own digest, with one way to write and one way to read each kind.

JSON has the digest of its content under ``"sha256"``. Archives, ``.pt`` and ``.npz``, have it at the end, as the
comment that the zip format allows there: ``torch.load`` and ``numpy.load`` read them like any other archive. Files are
either complete or absent. Files from before digests existed are read unchecked; a file whose digest has a damaged name
is not mistaken for one of those.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .atomic import write_atomically

MARK = b"adaptive-margin sha256:"
DIGITS = 64
NAMED = re.compile(r".+-([0-9a-f]{16})\.pt")
"""The name of a file that contains the beginning of its digest, as for checkpoints."""
RESTORE = "restore it from a backup, or write it again"


class DamagedFileError(ValueError):
    """A file does not contain what was written, or is not of the expected kind; the message names it.

    Attributes:
        path: the file.
        why: what is wrong with it, as the end of a sentence that begins with the path.
    """

    def __init__(self, path: Path, why: str, remedy: str = RESTORE) -> None:
        super().__init__(path, why, remedy)
        self.path, self.why, self.remedy = path, why, remedy

    def __str__(self) -> str:
        return f"{self.path} {self.why}; {self.remedy}"


def without_nan(value: Any) -> Any:
    """Plain values, with None in place of NaN and infinity, which JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = None) -> None:
    """Writes plain values as JSON, with their digest.

    Args:
        path: the file; its folder must exist.
        content: anything that JSON can represent, without a key ``"sha256"``.
        indent: as in :func:`json.dumps`.

    Raises:
        DiskSpaceError, OSError: as :func:`~adaptive_margin.atomic.write_atomically`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "result.json"
        >>> write_json(path, {"figure": 0.1, "classes": (3, 5)})
        >>> read_json(path)
        {'figure': 0.1, 'classes': [3, 5]}
        >>> path.write_text(path.read_text().replace("0.1", "0.2")) > 0
        True
        >>> read_json(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        adaptive_margin.stored.DamagedFileError: .../result.json is damaged: ...
    """
    plain = json.loads(json.dumps(content))  # as it will be read: tuples are lists then, and keys are text
    text = json.dumps({**plain, "sha256": _digest(plain)}, indent=indent, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode("utf-8", "backslashreplace"))  # \udc80 is JSON's word for itself


def read_json(path: Path, remedy: str = RESTORE) -> dict[str, Any]:
    """The content written by :func:`write_json`, without the digest; a file without a digest is read unchecked.

    Raises:
        DamagedFileError: it is not what was written.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # no text, no JSON, or too deep
        raise DamagedFileError(path, f"is damaged: {_in_brief(error)}", remedy) from error
    if not isinstance(content, dict):
        raise DamagedFileError(path, f"holds no mapping but {type(content).__name__}", remedy)
    damaged = "sha256" not in content and _ends_in_digest(content)
    digest = content.pop("sha256", None)
    if damaged or (digest is not None and digest != _digest(content)):
        raise DamagedFileError(path, "is damaged: its content does not match the checksum that is in it", remedy)
    return content


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes named arrays as ``.npz``, compressed, with a digest.

    Raises:
        DiskSpaceError, OSError: as :func:`~adaptive_margin.atomic.write_atomically`.
    """
    memory = io.BytesIO()
    np.savez_compressed(memory, allow_pickle=False, **arrays)
    write_atomically(path, sealed(memory))


def read_arrays(path: Path, remedy: str = RESTORE) -> dict[str, NDArray[Any]]:
    """The arrays written by :func:`write_arrays`, by name; runs no code.

    Raises:
        DamagedFileError: it is not what was written.
        OSError: it cannot be read.
    """
    data = _unsealed(path, remedy)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # numpy, zipfile and zlib each raise their own
        raise DamagedFileError(path, f"is damaged, or no archive of arrays: {_in_brief(error)}", remedy) from error


def misfit(arrays: Mapping[str, NDArray[Any]], expected: Mapping[str, str]) -> str:
    """What is wrong with arrays of which one is missing or has another type, shape or range; empty if nothing is.

    Args:
        arrays: of :func:`read_arrays`.
        expected: by name, numpy's letter for the kind of number, and the sides: numbers, or names that stand for one
            number each. ``"? "`` in front: the array may be missing. ``" <N"`` at the end: its values are places in N.

    Example:
        >>> misfit({"x": np.zeros((3, 2)), "best": np.array([4])}, {"x": "f N 2", "best": "i K <N", "y": "? f N"})
        'best outside of its 3 rows'
    """
    sizes: dict[str, int] = {}
    for name, words in expected.items():
        array = arrays.get(name)
        if array is None:
            if words.startswith("?"):
                continue
            return f"none called {name}"
        shape, _, within = words.removeprefix("? ").partition(" <")
        kind, *sides = shape.split()
        fits = array.ndim == len(sides) and all(
            n == (int(side) if side.isdigit() else sizes.setdefault(side, n))
            for side, n in zip(sides, array.shape, strict=True)
        )
        if array.dtype.kind != kind or not fits:
            return f"{name} of type {array.dtype} and shape {array.shape}"
        if kind == "f" and not np.isfinite(array).all():
            return f"{name} with NaN or infinity"
        if within and array.size and not 0 <= array.min() <= array.max() < sizes.get(within, 0):
            return f"{name} outside of its {sizes.get(within, 0)} rows"
    return ""


def tensors(content: Mapping[str, Any]) -> memoryview:
    """The bytes of a file: the ``torch.save`` format for tensors and plain values, with a digest."""
    memory = io.BytesIO()
    torch.save(dict(content), memory)
    return sealed(memory)


def read_tensors(path: Path, device: str | torch.device = "cpu", remedy: str = RESTORE) -> dict[str, Any]:
    """Reads a file made by :func:`tensors`, or by ``torch.save`` of a mapping; accepts nothing else and runs no code.

    If the file name ends in a digest, as for checkpoints, the file must match that one too.

    Args:
        path: the file.
        device: device for the tensors.
        remedy: what to do about a damaged file.

    Raises:
        DamagedFileError: it is not what was written, or holds something else.
        OSError: it cannot be read.
    """
    data = _unsealed(path, remedy)
    named = NAMED.fullmatch(path.name)
    if named is not None and short_digest(data) != named[1]:
        what = f"is damaged: its {len(data):,} bytes do not match the checksum in its name"
        raise DamagedFileError(path, what, remedy)
    try:
        content = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except Exception as error:  # torch, pickle and zipfile each raise their own
        why = f"is damaged, or holds more than tensors and plain values ({type(error).__name__}: {_in_brief(error)})"
        raise DamagedFileError(path, why, remedy) from error
    if not isinstance(content, dict):
        raise DamagedFileError(path, f"holds no mapping but {type(content).__name__}", remedy)
    return content


def short_digest(data: bytes | memoryview) -> str:
    """The beginning of a file's SHA-256, for its name: 16 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()[:16]


def sealed(archive: io.BytesIO) -> memoryview:
    """Adds a comment to a zip archive that has none: the digest of everything before it.

    Raises:
        ValueError: the archive has a comment, or the bytes are not an archive.
    """
    if not _ends_without_comment(archive.getbuffer()):
        raise ValueError("not a zip archive without a comment")
    archive.seek(-2, os.SEEK_END)
    archive.write(struct.pack("<H", len(MARK) + DIGITS) + MARK)
    archive.write(hashlib.sha256(archive.getbuffer()).hexdigest().encode())
    return archive.getbuffer()


def _ends_without_comment(data: bytes | memoryview) -> bool:
    end = bytes(data[-22:])  # the record at a zip's end; its last two bytes: how long the comment is
    return end.startswith(b"PK\5\6") and end.endswith(b"\0\0")


def _unsealed(path: Path, remedy: str) -> bytes:
    """The bytes of an archive, verified if it has a digest."""
    data = path.read_bytes()
    head, digest = memoryview(data)[:-DIGITS], data[-DIGITS:]
    if head[-len(MARK) :] == MARK:
        damaged = hashlib.sha256(head).hexdigest().encode() != digest
    else:  # from before digests existed; or the end is truncated or overwritten, which torch.load accepts
        damaged = data.startswith(b"PK") and not _ends_without_comment(data)
    if damaged:
        what = f"is damaged: its {len(data):,} bytes do not match the checksum that is in them"
        raise DamagedFileError(path, what, remedy)
    return data


def _ends_in_digest(content: Mapping[str, Any]) -> bool:
    """Whether the last value looks like a digest: one whose key is damaged, for no older file ends so."""
    last = list(content.values())[-1] if content else None
    return isinstance(last, str) and len(last) == DIGITS and set(last) <= set("0123456789abcdef")


def _digest(content: Mapping[str, Any]) -> str:
    """The digest of plain values, independent of spacing and order in the file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _in_brief(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
