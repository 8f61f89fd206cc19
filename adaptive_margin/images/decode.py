"""Reads one image from a file: decoded by content, in RGB, cropped to the face; or an error with file and reason."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile

from ..messages import problem
from .errors import MISSING, UNDECODABLE, ImageError
from .image_list import Box, ImageList, StoredImage

_STUBS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # recognised, but only other programs can open them
Image.init()
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in _STUBS
)
"""File extensions of pictures, in lower case: all that Pillow can open here."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Progress = Callable[[int, int], None]
"""Called with (done, total) as work progresses."""

# What the machine lacks, not the file: such an error must stop the run, never drop a row.
_OUR_FAULT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EINTR}


def check_decoder() -> None:
    """Raises unless Pillow reports truncated files.

    Some libraries set ``ImageFile.LOAD_TRUNCATED_IMAGES``, after which the missing part of a picture comes out grey.

    Raises:
        RuntimeError: it is set.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        what = "PIL.ImageFile.LOAD_TRUNCATED_IMAGES"
        raise RuntimeError(problem(what, "False", True, "set it back, or damaged pictures are read as grey"))


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` converted to RGB from any mode; an alpha channel is dropped, 16-bit grey is scaled to 8.

    Grey of 32 bits does not say what white is: the least of 255, 65,535 and, for floats, 1 that no value exceeds.

    Raises:
        ValueError: values of 32 bits that are negative, larger than 65,535 or not finite.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):  # Pillow's own conversion clips at 255
        grey = np.asarray(image)
        low, high = grey.min(), grey.max()
        white = next((most for most in (1, 255, 65535) if high <= most and (most > 1 or image.mode == "F")), None)
        if white is None or not low >= 0:
            got, remedy = f"from {low:g} to {high:g}", "save it with 8 or 16 bits"
            raise ValueError(
                problem("a grey picture of more than 8 bits", "of values from 0 to 1, 255 or 65,535", got, remedy)
            )
        eight = grey.astype(np.int64) >> 8 if white == 65535 else np.rint(grey * (255 / white))
        return Image.fromarray(eight.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def read_image(path: Path, box: Box | None = None, stretch: float = 1.0, exif: bool = False) -> Image.Image:
    """Decodes an image file to RGB and crops the face.

    The decoder uses the content, never the extension. A file of a few kilobytes can contain a picture that fills the
    memory: a picture with more pixels than Pillow's limit for warnings (``PIL.Image.MAX_IMAGE_PIXELS``, 89 million by
    default) is rejected before it is decoded. A box is rounded to whole pixels and clamped to the image, since
    published boxes extend beyond it by a few pixels.

    Args:
        path: the file.
        box: (left, top, right, bottom) in pixels of the file; ``None`` for the whole image.
        stretch: widens the result by this factor, for pixels that are not square.
        exif: rotate the image according to its EXIF orientation before applying the box; published results do not.

    Returns:
        The RGB image.

    Raises:
        ImageError: the file is missing or cannot be decoded, or the box is outside the image.
        OSError: the machine failed (permissions, too many open files, a disk error).
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            most = Image.MAX_IMAGE_PIXELS
            if most is not None and image.width * image.height > most:
                remedy, size = "raise PIL.Image.MAX_IMAGE_PIXELS if it can be trusted", f"{image.width}x{image.height}"
                raise ValueError(problem("the picture", f"of at most {most:,} pixels", size, remedy))
            image.load()
            result = to_rgb(_turned(image) if exif else image)  # of the whole: a part does not show what white is
            if box is not None:
                result = result.crop(_inside(box, result.size))
            if result is image:  # the with statement is about to close it
                result = image.copy()
    except FileNotFoundError as error:
        raise ImageError(path, MISSING, "no such file") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything: SyntaxError, struct.error, EOFError
        if isinstance(error, OSError) and error.errno in _OUR_FAULT:
            raise
        detail = str(error).replace(str(path), path.name) or type(error).__name__
        raise ImageError(path, UNDECODABLE, detail) from error
    if stretch != 1.0:
        result = result.resize((max(1, round(result.width * stretch)), result.height), Image.Resampling.BILINEAR)
    return result


def _turned(image: Image.Image) -> Image.Image:
    """``image`` rotated according to EXIF tag 274; other tags, even damaged ones, are ignored."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF that cannot be parsed makes Pillow raise nearly anything
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _inside(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """``box`` in whole pixels within an image of ``size`` (width, height)."""
    left, top = max(0, round(box[0])), max(0, round(box[1]))
    right, bottom = min(size[0], round(box[2])), min(size[1], round(box[3]))
    if right - left < 2 or bottom - top < 2:
        raise ValueError(f"the box {box} is outside the image of {size[0]}x{size[1]} pixels")
    return left, top, right, bottom


def read_face(record: StoredImage, exif: bool = False) -> Image.Image:
    """The image of a record: :func:`read_image` of its path and box."""
    return read_image(record.path, record.box, record.stretch, exif)


def square_box(points: npt.NDArray[np.float64], margin: float, stretch: float = 1.0) -> Box:
    """The enlarged square around landmarks. It is square as displayed, so narrower in pixels that will be widened.

    Args:
        points: x and y in pixels, shape ``(P, 2)``.
        margin: side of the square, as a multiple of the larger extent of the points, at least 1; 1.25 to 1.4 are
            common.
        stretch: how much wider than stored a pixel is to be shown.

    Returns:
        (left, top, right, bottom), which may extend beyond the image.

    Raises:
        ValueError: no points, a point that is not finite, or all points in one place.

    Example:
        >>> square_box(np.array([[10.0, 20.0], [30.0, 60.0]]), margin=1.5)
        (-10.0, 10.0, 50.0, 70.0)
    """
    if points.ndim != 2 or points.shape[0] == 0 or points.shape[1] != 2 or not np.isfinite(points).all():
        got = f"shape {points.shape}" if points.ndim != 2 or points.shape[-1:] != (2,) else "none, or one not finite"
        raise ValueError(problem("points", "finite, of shape (P, 2) with at least one", got, "drop faces without them"))
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    half = margin * max((right - left) * stretch, bottom - top) / 2
    if half <= 0:
        raise ValueError(problem("points", "spread out", "all on one spot", "drop faces without landmarks"))
    x, y = (left + right) / 2, (top + bottom) / 2
    return float(x - half / stretch), float(y - half), float(x + half / stretch), float(y + half)


def unreadable_rows(
    records: ImageList,
    positions: Iterable[int] | None = None,
    *,
    workers: int = 1,
    exif: bool = False,
    progress: Progress | None = None,
) -> dict[int, str]:
    """Decodes images and returns those that cannot be decoded.

    Args:
        records: the rows.
        positions: which of them; by default all.
        workers: threads; Pillow decodes outside Python's lock.
        exif: as in :func:`read_image`.
        progress: called with (done, total).

    Returns:
        Position of the row → ``"missing file: …"`` or ``"undecodable: …"``, in the order of the rows.
    """
    check_decoder()
    rows = list(range(len(records)) if positions is None else positions)

    def reason(row: int) -> str | None:
        try:
            read_face(records[row], exif)
        except ImageError as error:
            return f"{error.reason}: {error.detail}"
        return None

    found: dict[int, str] = {}
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for done, (row, why) in enumerate(zip(rows, pool.map(reason, rows), strict=True), 1):
            if why is not None:
                found[row] = why
            if progress is not None:
                progress(done, len(rows))
    return found
