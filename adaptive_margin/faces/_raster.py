"""Painting with correctly rounded arithmetic only.

Every operation on pixels here is an addition, multiplication, division, square root, comparison or rounding in float32,
which IEEE 754 rounds correctly: a picture's bytes do not depend on how many others are painted with it, nor on the
width of the machine's vector unit. Pixels never go through a sine, an exponential or a matrix product.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._geometry import Frame
from ._rows import Floats

F32 = Floats  # float32 throughout; numpy's annotations lose track of the width
Ints = NDArray[np.int64]
Bound = Floats | float  # of a window on one side, local coordinates: one per row, or the same for all
Extent = tuple[Bound, Bound, Bound, Bound]  # left, right, top, bottom


def clip01(x: F32) -> F32:
    """Clips ``x`` to ``[0, 1]``, in place."""
    return x.clip(0, 1, out=x)


def edge(inside: F32, per_unit: F32 | float) -> F32:
    """Coverage of a pixel by a shape whose signed distance is ``inside`` (positive within), in place.

    This is a one-pixel box filter: coverage rises linearly over one pixel around the edge, or over more if
    ``per_unit`` is less than the pixels per face unit.
    """
    inside *= per_unit
    inside += 0.5
    return clip01(inside)


def band(y: F32, top: F32, bottom: F32, per_unit: F32) -> F32:
    """Coverage of pixels by the area between two curves, by exact integration over the pixel's height.

    A band thinner than a pixel gets its share of the pixel: a thin line fades instead of breaking up.
    """
    half = 0.5 / per_unit
    cover = np.minimum(bottom, y + half)
    cover -= np.maximum(top, y - half)
    cover *= per_unit
    return clip01(cover)


def bump(x: F32, y: F32) -> tuple[F32, F32]:
    r"""A hill of compact support about the origin, radius 1: its height :math:`(1 - r^2)_+^2` and slope factor.

    The gradient of the height is ``-4 * slope * (x, y)``.
    """
    slope = x * x
    slope += y * y
    np.subtract(1, slope, out=slope)
    clip01(slope)
    return slope * slope, slope


def wave(x: F32) -> F32:
    """A triangle wave of period 1 between 0 and 1."""
    x = x - np.rint(x)
    np.abs(x, out=x)
    x *= 2
    return x


def scallop(x: F32) -> F32:
    """A wave of period 1 between 0 and 1 with round crests and sharp troughs."""
    x = wave(x)
    x *= 2 - x
    return x


class Grid:
    """Pixel centres along one side of a picture, in picture coordinates (-1 to 1), and pixels per picture unit.

    The picture may have ``coarse`` times fewer pixels; the last may reach over the border then.
    """

    def __init__(self, size: int, coarse: int = 1) -> None:
        count = -(-size // coarse)
        self.at: F32 = ((coarse * (2 * np.arange(count) + 1)) / size - 1).astype(np.float32)
        self.density = size / (2 * coarse)


def enlarge(coarse: F32, size: int) -> F32:
    """Twice as many pixels along each side, linearly interpolated: ``(n, h, h)`` to ``(n, size, size)``."""
    n, h, _ = coarse.shape
    quarter = coarse * 0.25
    most = coarse - quarter
    # Sums over the array as one line are fast; across the ends of its rows they are wrong, and replaced.
    left, right = np.empty_like(coarse), np.empty_like(coarse)
    np.add(most.reshape(-1)[1:], quarter.reshape(-1)[:-1], out=left.reshape(-1)[1:])
    np.add(most.reshape(-1)[:-1], quarter.reshape(-1)[1:], out=right.reshape(-1)[:-1])
    left[:, :, 0], right[:, :, -1] = coarse[:, :, 0], coarse[:, :, -1]
    wide = np.empty((n, h, 2 * h), dtype=np.float32)
    wide[:, :, ::2], wide[:, :, 1::2] = left, right
    quarter = wide * 0.25
    most = np.subtract(wide, quarter, out=wide)
    tall = np.empty((n, 2 * h, 2 * h), dtype=np.float32)
    np.add(most[:, 1:], quarter[:, :-1], out=tall[:, 2::2])
    np.add(most[:, :-1], quarter[:, 1:], out=tall[:, 1:-1:2])
    np.add(most[:, 0], quarter[:, 0], out=tall[:, 0])
    np.add(most[:, -1], quarter[:, -1], out=tall[:, -1])
    return tall if size == 2 * h else np.ascontiguousarray(tall[:, :size, :size])


class Whole:
    """Local coordinates of every pixel of every picture; named as in :class:`Window`."""

    def __init__(self, frame: Frame, grid: Grid) -> None:
        size = len(grid.at)
        gx, gy = np.tile(grid.at, size)[None, :], np.repeat(grid.at, size)[None, :]
        i, origin = frame.inverse.astype(np.float32)[:, :, :, None], frame.origin.astype(np.float32)[:, :, None]
        self.x, self.y = (
            i[:, k, 0] * gx + (i[:, k, 1] * gy - (i[:, k, 0] * origin[:, 0] + i[:, k, 1] * origin[:, 1]))
            for k in range(2)
        )
        self.per_unit = frame.per_unit(grid.density)


class Window:
    """A rectangle of pixels around one part of the face, and local coordinates in it.

    All pictures of a batch get the same height and width, large enough for the largest. Code that paints in a window
    gives an extent outside which the painting is exactly zero, so that the size of the window changes no pixel.

    Attributes:
        rows: Which picture each entry belongs to, shape ``(m,)``.
        sides: -1 where ``x`` is mirrored, else 1, shape ``(m,)``.
        x: Local coordinate, shape ``(m, height * width)``.
        y: Local coordinate, downwards.
        per_unit: Pixels per face unit, shape ``(m, 1)``.
        places: The picture and the rows and columns of its pixels, for each entry.
    """

    def __init__(self, frame: Frame, rows: Ints, extent: Extent, grid: Grid, sides: Floats | None = None) -> None:
        size = len(grid.at)
        self.sides = np.ones(len(rows)) if sides is None else sides
        left, right, top, bottom = extent
        m = frame.forward
        middle_x, reach_x, middle_y, reach_y = (
            np.broadcast_to(e, (len(rows),))[:, None]
            for e in ((left + right) / 2, (right - left) / 2, (top + bottom) / 2, (bottom - top) / 2)
        )
        middle_x = middle_x * self.sides[:, None]
        centre = frame.origin + m[:, :, 0] * middle_x + m[:, :, 1] * middle_y + 1
        reach = np.abs(m[:, :, 0]) * reach_x + np.abs(m[:, :, 1]) * reach_y
        # half a pixel more: a foreshortened edge is soft over more than its own pixel
        low = np.floor((centre - reach) * grid.density - 0.5).astype(np.int64)
        high = np.ceil((centre + reach) * grid.density + 0.5).astype(np.int64)
        np.clip(low, 0, size - 1, out=low)
        np.clip(high, 1, size, out=high)
        w, h = (int(e) for e in (high - low).max(axis=0))
        self.rows, self.width, self.height = rows, w, h
        x0, y0 = np.minimum(low[:, 0], size - w), np.minimum(low[:, 1], size - h)
        origin = frame.origin.astype(np.float32)
        gx = grid.at[x0[:, None] + np.arange(w)] - origin[:, :1]
        gy = grid.at[y0[:, None] + np.arange(h)] - origin[:, 1:]
        i = frame.inverse.astype(np.float32)[:, :, :, None]
        i[:, 0] *= self.sides.astype(np.float32)[:, None, None]
        self.x = ((i[:, 0, 0] * gx)[:, None, :] + (i[:, 0, 1] * gy)[:, :, None]).reshape(-1, h * w)
        self.y = ((i[:, 1, 0] * gx)[:, None, :] + (i[:, 1, 1] * gy)[:, :, None]).reshape(-1, h * w)
        self.per_unit = frame.per_unit(grid.density)
        at = zip(rows.tolist(), y0.tolist(), x0.tolist(), strict=True)
        self.places = [(row, slice(y, y + h), slice(x, x + w)) for row, y, x in at]

    def views(self, field: F32) -> list[F32]:
        """The parts of a field of shape ``(n, ..., size, size)`` that the entries cover."""
        return [field[row, ..., ys, xs] for row, ys, xs in self.places]

    def read(self, field: F32) -> F32:
        """A copy of a field of shape ``(n, size, size)`` in this window, shape ``(m, height * width)``."""
        return np.stack(self.views(field)).reshape(len(self.rows), -1)

    def add(self, field: F32, amount: F32) -> None:
        """Adds to a field of shape ``(n, size, size)``."""
        for part, more in zip(self.views(field), amount.reshape(-1, self.height, self.width), strict=True):
            part += more

    def tint(self, canvas: F32, amount: F32) -> None:
        """Removes a share of the green and the blue of the canvas."""
        keep = 1 - amount.reshape(-1, 1, self.height, self.width)
        for part, kept in zip(self.views(canvas[:, 1:]), keep, strict=True):
            part *= kept
