"""Pictures that carry a number, so that a test can see which picture came out of a pipeline."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .export import Sample

BITS = 8


def numbered(number: int, size: int = 64) -> np.ndarray:
    """A picture of eight bars, dark or bright: it survives JPEG, video and resizing."""
    image = np.zeros((size, size, 3), dtype=np.uint8)
    for bit in range(BITS):
        bright = number >> bit & 1
        image[:, bit * size // BITS : (bit + 1) * size // BITS] = 215 if bright else 40
    return image


def number_of(image: np.ndarray | Image.Image) -> int:
    """The number in a picture."""
    pixels = np.asarray(image).astype(np.float64).mean(axis=2)
    height, width = pixels.shape
    number = 0
    for bit in range(BITS):
        centre = (2 * bit + 1) * width // (2 * BITS)
        bar = pixels[height // 3 : 2 * height // 3, centre - width // 40 : centre + width // 40 + 1].mean()
        assert bar < 90 or bar > 165, f"bar {bit} is neither dark nor bright: {bar}"
        number |= int(bar > 128) << bit
    return number


def samples(count: int, *, videos: int = 0, people: int = 3, split: str = "train", start: int = 0) -> list[Sample]:
    """Faces numbered from ``start`` on, with labels that differ for each."""
    made = []
    for index in range(count):
        number = start + index
        video = f"v{start + index * videos // count}" if videos else None
        made.append(
            Sample(
                image=numbered(number),
                valence=round(-0.6 + 0.01 * number, 6),
                arousal=round(0.7 - 0.01 * number, 6),
                identity=f"Person {(int(video[1:]) - start) % people}" if video else None,
                video=video,
                split=split,
            )
        )
    return made


def forbid_writing(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Nothing can be made below a folder, as on a disk that is mounted for reading; root's own powers do not help."""
    make, opened = os.mkdir, os.open

    def refuse(path: object) -> None:
        if Path(os.fsdecode(path)).is_relative_to(root) and not os.path.lexists(path):  # type: ignore[arg-type]
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fsdecode(path))  # type: ignore[arg-type]

    def mkdir(path: str, *others: Any, **named: Any) -> None:
        refuse(path)
        make(path, *others, **named)

    def open_(path: str, flags: int, *others: Any, **named: Any) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY and Path(os.fsdecode(path)).is_relative_to(root):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fsdecode(path))
        return opened(path, flags, *others, **named)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "open", open_)
