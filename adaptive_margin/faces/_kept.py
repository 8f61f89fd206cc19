"""Drawn pictures, kept on disk between runs: drawing them again would give the same bytes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import write_atomically


@functools.cache
def _drawing() -> str:
    """A hash of this package's source: what another version drew is drawn again."""
    state = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        state.update(path.read_bytes())
    return state.hexdigest()


def kept(
    folder: str | os.PathLike[str],
    what: tuple[Any, ...],
    shape: tuple[int, ...],
    draw: Callable[[], NDArray[np.uint8]],
) -> NDArray[np.uint8]:
    """Pictures from ``folder``, else drawn and left there.

    The file's name holds what is drawn, by which version of the drawing, and a checksum of its bytes: a damaged file is
    drawn again. Several processes may draw at once; they write the same bytes.

    Args:
        folder: made if need be.
        what: everything that decides the bytes, but the drawing itself.
        shape: of the pictures.
        draw: gives them.

    Warns:
        UserWarning: they could not be written, and will be drawn again next time.
    """
    key = hashlib.sha256(repr((what, _drawing())).encode()).hexdigest()[:20]
    for path in sorted(Path(folder).glob(f"faces-{key}-*.npy")):
        with contextlib.suppress(OSError, ValueError, EOFError):
            pictures: NDArray[np.uint8] = np.load(path, mmap_mode="r")
            if pictures.shape == shape and path.stem.endswith(f"-{zlib.crc32(pictures.data):08x}"):
                return pictures
    drawn = draw()
    data = io.BytesIO()
    np.save(data, drawn)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(folder, f"faces-{key}-{zlib.crc32(drawn.data):08x}.npy"), data.getvalue())
    except OSError as error:
        warnings.warn(f"drawn faces are not kept in {folder}: {error}", stacklevel=3)
    return drawn
