"""Omniglot: characters of many alphabets, each drawn by twenty people, as small grey images for a small network.

Source: Lake, Salakhutdinov & Tenenbaum 2015, *Human-level concept learning through probabilistic program induction*;
the images are under the MIT licence.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from scipy.ndimage import maximum_filter

from ..images._layout import checked_root, litter, wrong_layout
from ..images.errors import LayoutError
from ..images.image_list import Bytes
from ..messages import problem
from .embedded import STORED
from .labelled_images import LabelledImages

OMNIGLOT_COUNTS = {
    "images_background": (19_280, 964),
    "images_evaluation": (13_180, 659),
    "images_background_small1": (2_720, 136),
    "images_background_small2": (3_120, 156),
}
"""Images and characters of each published archive."""

OMNIGLOT_LAYOUT = """  some of these archives or the folders that they unpack to, here, in python/ or in omniglot-py/:
    images_background.zip, images_evaluation.zip, images_background_small1.zip, images_background_small2.zip
  each with <its name>/<alphabet>/character<number>/<character id>_<drawer>.png:
    images_background_small1/Balinese/character01/0108_01.png, ..."""

DRAWN = 105
"""Side of the published images, pixels."""

FACTOR = 6
"""Pixels of the published image per stored pixel: ``STORED`` of them hold the largest drawing with room around it."""

Counts = Mapping[str, tuple[int, int]]
Key = tuple[str, int, int]
"""Alphabet, number of the character in it, drawer."""


def omniglot(root: str | os.PathLike[str], *, counts: Counts | None = OMNIGLOT_COUNTS) -> LabelledImages:
    r"""Omniglot with a class for each character of each alphabet; whole alphabets are for test, validation or training.

    Alphabets are sorted by name. The first half is for training (the smaller half if the number is odd), the others are
    for the test. ``groups`` numbers the alphabets, so that :func:`split_classes` holds out whole alphabets for
    validation. An image that is in several archives is used once. ``drawers`` has the number from the file name; the
    published numbering identifies people only within one alphabet.

    Archives are read in place; nothing is unpacked. For an image of 105×105 pixels with ink :math:`I \in \{0, 1\}`, the
    rectangle around the ink is centred in 120×120, strokes grow by one pixel on each side, and squares of 6×6 pixels
    are averaged to one:

    .. math::
        P_{uv} = \frac{255}{36} \sum_{0 \le a, b < 6} \; \max_{-1 \le s, t \le 1} I_{6u + a + s,\, 6v + b + t}

    A pen stroke is 2 to 3 pixels wide: averaged without growing, it would be at most half white. The centre crop of 16
    pixels for evaluation covers 96 of the 120 pixels and fully contains 98% of the drawings of the small sets.

    Args:
        root: the folder with the archives or with the folders unpacked from them.
        counts: expected images and characters of each archive; None accepts any.

    Returns:
        Images in the order of alphabet, character and drawer; white on black, shape ``(N, 20, 20, 1)``.

    Raises:
        LayoutError: Omniglot was not found, an archive is damaged, its paths or counts differ from the published ones,
            two archives differ in an image, or an image is not a black drawing of 105×105 pixels on white.

    Example:
        >>> import tempfile, zipfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> drawing = Image.new("1", (105, 105), 1)
        >>> drawing.paste(0, (30, 20, 33, 80))
        >>> memory = io.BytesIO()
        >>> drawing.save(memory, "PNG")
        >>> with zipfile.ZipFile(root / "images_background_small1.zip", "w") as archive:
        ...     for alphabet in ("Greek", "Latin"):
        ...         name = f"images_background_small1/{alphabet}/character01/0001_07.png"
        ...         archive.writestr(name, memory.getvalue())
        >>> data = omniglot(root, counts=None)
        >>> data.class_names, data.test_classes, data.drawers.tolist(), data.pixels.shape
        (('Greek/character01', 'Latin/character01'), frozenset({1}), [7, 7], (2, 20, 20, 1))
    """
    top = checked_root(root, "Omniglot", OMNIGLOT_LAYOUT)
    images: dict[Key, tuple[str, bytes]] = {}
    for name, source in _sources(top):
        found: set[Key] = set()
        for where, parts, content in _folder(source) if source.is_dir() else _archive(source):
            if any(litter(part) for part in parts if part not in (".", "..")):
                continue
            key = _key(where, parts, name)
            found.add(key)
            if images.setdefault(key, (where, content))[1] != content:
                remedy = "keep the one of the original archive"
                raise LayoutError(problem(where, f"the same image as {images[key][0]}", "another", remedy))
        got = (len(found), len({key[:2] for key in found}))
        if counts is not None and name in counts and got != counts[name]:
            expected = "{:,} images of {:,} characters".format(*counts[name])
            raise LayoutError(problem(str(source), expected, "{:,} of {:,}".format(*got), "get the original archive"))
    keys = sorted(images)
    alphabets = sorted({alphabet for alphabet, _, _ in keys})
    if len(alphabets) < 2:
        raise wrong_layout(top, "Omniglot", OMNIGLOT_LAYOUT, "second alphabet: whole alphabets are split")
    characters = sorted({key[:2] for key in keys})
    number = {character: position for position, character in enumerate(characters)}
    groups = np.array([alphabets.index(alphabet) for alphabet, _ in characters], dtype=np.int64)
    return LabelledImages(
        "omniglot",
        np.array([number[key[:2]] for key in keys], dtype=np.int64),
        tuple(f"{alphabet}/character{position:02d}" for alphabet, position in characters),
        frozenset(np.flatnonzero(groups >= len(alphabets) // 2).tolist()),
        pixels=np.stack([_reduced(_ink(*images[key])) for key in keys])[..., None],
        groups=groups,
        drawers=np.array([drawer for _, _, drawer in keys], dtype=np.int64),
    )


def _sources(top: Path) -> list[tuple[str, Path]]:
    """The existing archives and folders, by the name of the archive."""
    for place in (top, top / "python", top / "omniglot-py"):
        paths = [(name, place / f"{name}{suffix}") for name in OMNIGLOT_COUNTS for suffix in (".zip", "")]
        if found := [(name, path) for name, path in paths if path.exists()]:
            return found
    raise wrong_layout(top, "Omniglot", OMNIGLOT_LAYOUT, "archive or folder of Omniglot's")


def _archive(path: Path) -> Iterator[tuple[str, list[str], bytes]]:
    """Name for messages, path components and content of each file in an archive."""
    packed = io.BytesIO(path.read_bytes())  # from here on, errors come from the content, not from the system
    try:
        with zipfile.ZipFile(packed) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    yield f"{path}: {member.filename}", member.filename.split("/"), archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:  # Runtime: needs a password
        got = f"another file, or a damaged one ({type(error).__name__}: {error})"
        raise LayoutError(problem(str(path), "a zip archive", got, "get the original archive")) from error


def _folder(path: Path) -> Iterator[tuple[str, list[str], bytes]]:
    """The same for each file in a folder."""
    for file in sorted(path.rglob("*")):
        if not file.is_dir():
            yield str(file), list(file.relative_to(path.parent).parts), file.read_bytes()


def _key(where: str, parts: list[str], name: str) -> Key:
    """The information in the path of an image."""
    match = re.fullmatch(r"([^/]+)/character(\d+)/\d+_(\d+)\.png", "/".join(parts[1:]))
    if parts[0] != name or match is None or litter(match[1]):
        expected = f"{name}/<alphabet>/character<number>/<character id>_<drawer>.png"
        raise LayoutError(problem(where, expected, "another path", "remove it, or get the original archive"))
    return match[1], int(match[2]), int(match[3])


def _ink(where: str, content: bytes) -> Bytes:
    """1 where there is ink, shape ``(105, 105)``."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("L"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors for damaged files
        raise LayoutError(problem(where, "an image", f"no such ({error})", "get the original archive")) from error
    if pixels.shape != (DRAWN, DRAWN):
        got = f"{pixels.shape[1]}×{pixels.shape[0]}"
        raise LayoutError(problem(where, f"{DRAWN}×{DRAWN} pixels", got, "get the original archive"))
    ink: Bytes = (pixels < 128).astype(np.uint8)
    if not 0 < ink.mean() < 0.5:
        got = f"black on {ink.mean():.0%} of the pixels"
        raise LayoutError(problem(where, "a black drawing on white", got, "get the original archive"))
    return ink


def _reduced(ink: Bytes) -> Bytes:
    """The centred drawing with strokes two pixels wider, averaged over squares of ``FACTOR`` pixels."""
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    drawing = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = FACTOR * STORED
    top, left = ((side - length) // 2 for length in drawing.shape)
    canvas = np.zeros((side, side), dtype=np.uint8)
    canvas[top : top + drawing.shape[0], left : left + drawing.shape[1]] = drawing
    wide = maximum_filter(canvas, 3, mode="constant")  # (side, side)
    shares = wide.reshape(STORED, FACTOR, STORED, FACTOR).mean(axis=(1, 3))
    pixels: Bytes = np.round(255 * shares).astype(np.uint8)
    return pixels
