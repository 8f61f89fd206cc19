"""The steps from the face to the bytes: occlusion, then blur, noise and rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._geometry import Frame
from ._raster import F32, Ints, Window, bump, clip01, edge, wave
from ._rows import Streams
from ._scene import Scene, Stack


def paint_occluder(s: Scene) -> None:
    """A hand, a block or a ball in front of the face."""
    for kind, extent in ((1, (-0.40, 0.40, -0.50, 3.0)), (2, (-0.56, 0.56, -0.2, 0.2)), (3, (-0.4, 0.4, -0.4, 0.4))):
        rows = np.flatnonzero(s.nuisance.occlusion == kind)
        if len(rows) == 0:
            continue
        col = s.of(rows)
        place = s.nuisance.occluder[rows].astype(np.float64)
        norm = np.sqrt(1 + place[:, 3] ** 2)
        cos, sin = 1 / norm, place[:, 3] / norm
        turn = np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)
        frame = Frame.of(place[:, :2], turn)
        w, big = Window(frame, rows, extent, s.grid), col("n_occluder")[:, 2]
        if kind == 1:
            cover, shade = _hand(w.x, w.y, 0.85 + 0.3 * big, w.per_unit)
        elif kind == 2:
            cover = edge(0.22 + 0.3 * big - np.abs(w.x), w.per_unit)
            cover *= edge(0.16 - np.abs(w.y), w.per_unit)
            shade = 0.9 - 0.5 * w.y + 0.1 * wave(w.x * 6)
        else:
            radius = 0.16 + 0.2 * big
            nx, ny = w.x / radius, w.y / radius
            r2 = nx * nx + ny * ny
            cover = edge((1 - np.sqrt(r2)) * radius, w.per_unit)
            shade = 0.85 - 0.2 * nx - 0.4 * ny - 0.2 * r2
        Stack(w).under(cover, col("skin_colour" if kind == 1 else "n_occluder_colour"), shade).paint(s)


def _hand(x: F32, y: F32, scale: F32, pu: F32) -> tuple[F32, F32]:
    """Four fingers and the back of a hand: capsules of different lengths."""
    x, y = x / scale, y / scale
    cover, shade = np.zeros_like(x), np.full_like(x, 0.8)
    for k, (cx, tip) in enumerate(((-0.21, -0.20), (-0.07, -0.30), (0.07, -0.27), (0.21, -0.14))):
        dx = x - np.float32(cx)
        dy = np.clip(np.float32(tip) - y, 0, 9)
        r = np.sqrt(dx * dx + dy * dy)
        finger = edge((0.068 - r) * scale, pu)
        near = np.clip(r / np.float32(0.07), 0, 1)
        nail, _ = bump(dx / np.float32(0.035), (y - np.float32(tip) + 0.015) / np.float32(0.05))
        tone = (1.02 - 0.03 * k) - 0.40 * near * near + 0.10 * np.clip(nail * 3, 0, 1)
        shade += finger * (tone - shade)
        cover = np.maximum(cover, finger)
    palm = clip01((y - 0.16) * 40 + 0.5) * edge((0.285 - np.abs(x)) * scale, pu)
    shade += palm * ((0.95 - 0.5 * x * x) - shade)
    return np.maximum(cover, palm), shade


def develop(s: Scene, out: NDArray[np.uint8], places: Ints) -> None:
    """Blur, noise, bytes."""
    for row in np.flatnonzero(s.nuisance.blur > 0).tolist():
        _blur(s.canvas[row], float(s.nuisance.blur[row]) * s.size / 96)
    count, streams = s.size * s.size, Streams()
    for row, place in enumerate(places.tolist()):
        picture = s.canvas[row]
        if s.nuisance.noise[row] > 0:
            # the sum of two bytes: a triangular distribution of mean 255 and standard deviation 104.5
            raw = streams.bytes(int(s.nuisance.key[row]), 3, 2 * count)
            grain = np.add(raw[:count], raw[-count:], dtype=np.uint16).astype(np.float32)
            strength = s.nuisance.noise[row] * np.float32(1 / 104.5)
            grain *= strength
            grain += np.float32(0.5) - 255 * strength
            picture += grain.reshape(1, s.size, s.size)
        else:
            picture += 0.5
        levels = picture.clip(0, 255, out=picture).astype(np.uint8)
        for channel in range(3):
            out[place, :, :, channel] = levels[channel]


def _blur(picture: F32, sigma: float) -> None:
    """Gaussian-like blur of one picture, shape ``(3, size, size)``, in place: (k, 1 - 2k, k) at growing distances.

    A pass at distance d adds variance 2 k d²; k stays within 1/4, so passes at 1, 2, 4 ... pixels are taken until the
    variance is used up. The border repeats.
    """
    size = picture.shape[1]
    flat = picture.reshape(-1)  # neighbours along a row and along a column are fixed distances apart in memory
    around = np.empty_like(picture)
    left, d = sigma * sigma, 1
    while left > 1e-4 and 2 * d < size:
        k = np.float32(min(0.25, left / (2 * d * d)))
        left -= 2 * float(k) * d * d
        for apart, p, a in (
            (d, picture.transpose(2, 0, 1), around.transpose(2, 0, 1)),
            (d * size, picture.transpose(1, 0, 2), around.transpose(1, 0, 2)),
        ):
            np.add(flat[2 * apart :], flat[: -2 * apart], out=around.reshape(-1)[apart:-apart])
            np.add(p[d : 2 * d], p[:1], out=a[:d])
            np.add(p[-2 * d : -d], p[-1:], out=a[-d:])
            around *= k
            picture *= 1 - 2 * k
            picture += around
        d *= 2
