"""Hills, hollows and folds of a face, as changes in the light on its skin."""

from __future__ import annotations

import bisect

import numpy as np

from ._raster import F32, Window, bump, clip01, wave
from ._scene import LIPS, NOSE, Scene

Number = F32 | float  # a column, or the same for all pictures


class _Relief:
    """Amounts of light in a window, in coordinates of the turned face.

    A dent affects few rows of pixels, determined by its centre and reach, and only those are computed.
    """

    def __init__(self, s: Scene, w: Window, u: F32, v: F32) -> None:
        self.s, self.window = s, w
        self.u, self.v = w.read(u), w.read(v)
        self.beside = np.abs(self.u)
        self.side = np.sign(self.u)
        self.amount = np.zeros_like(self.u)
        self.narrow = 1.1 / w.per_unit
        self._narrowest = float(self.narrow.max())
        square = self.v.reshape(-1, w.height, w.width)
        # heights that a row of pixels covers in any picture; both increase downwards
        self._low: list[float] = np.maximum.accumulate(square.min(axis=(0, 2))).tolist()
        self._high: list[float] = np.maximum.accumulate(square.max(axis=(0, 2))).tolist()

    def rows(self, y: Number, reach: float) -> slice:
        """Pixels, whole rows of the window, that come within ``reach`` of height ``y`` in any picture."""
        top = float(np.min(y)) - reach
        bottom = float(np.max(y)) + reach
        first, last = bisect.bisect_left(self._high, top), bisect.bisect_right(self._low, bottom)
        return slice(first * self.window.width, max(first, last) * self.window.width)

    def hollow(
        self, x: Number, y: Number, rx: Number, ry: float, depth: Number, pair: bool = False, waves: float = 0.0
    ) -> None:
        """A dent that light reaches less (more, if ``depth`` is positive), compact, of radii ``rx`` and ``ry``.

        A dent narrower than two pixels is drawn two pixels wide, but fainter. A pair has one on each side of the face;
        ``waves`` is the number of wrinkles across it, per face unit.
        """
        wide_x, wide_y = np.maximum(rx, self.narrow), np.maximum(ry, self.narrow)
        rows = self.rows(y, max(ry, self._narrowest))
        dx, dy = (self.beside if pair else self.u)[:, rows] - x, self.v[:, rows] - y
        height, _ = bump(dx * (1 / wide_x), dy * (1 / wide_y))
        height *= depth * (rx / wide_x) * (ry / wide_y)
        if waves:
            height *= wave((self.v[:, rows] - 0.15 * self.u[:, rows] * self.u[:, rows]) * waves)
        self.amount[:, rows] += height

    def hill(self, x: Number, y: Number, rx: float, ry: float, height: Number, pair: bool = False) -> None:
        """A hill: its sunny side brighter, the other darker."""
        c = self.s.c
        rows = self.rows(y, ry)
        dx = ((self.beside if pair else self.u)[:, rows] - x) * np.float32(1 / rx)
        dy = (self.v[:, rows] - y) * np.float32(1 / ry)
        _, slope = bump(dx, dy)
        steep = height * c("n_contrast")
        across = dx * (steep * c("lx") / np.float32(rx)) * (self.side[:, rows] if pair else 1)
        self.amount[:, rows] += slope * (across + dy * (steep * c("ly") / np.float32(ry)))


def add_relief(s: Scene, u: F32, v: F32, shade: F32) -> None:
    """Adds sockets, nose, cheeks, folds and chin to the light ``shade``.

    All at half the resolution, shape ``(n, h, h)``; ``u`` and ``v`` (downwards) are coordinates on the turned face.
    """
    c = s.c
    w = Window(s.camera.head, s.everyone, (-0.92, 0.92, -1.0, 1.35), s.coarse)  # beyond the head nothing shows
    face = _Relief(s, w, u, v)
    age, cheek = c("age"), np.clip(c("s_cheek"), 0, 2)

    # sockets, bags, crow's feet
    eye, eye_y = c("eye_spacing"), c("eye_y")
    face.hollow(eye - 0.05, eye_y - 0.08, 0.27, 0.20, -0.13, pair=True)
    face.hollow(eye, eye_y + 0.145, 0.18, 0.055, -0.05 - 0.13 * c("eye_bags") - 0.06 * cheek, pair=True)
    face.hollow(eye + 0.27, eye_y + 0.03, 0.08, 0.10, -0.06 * age - 0.10 * cheek, pair=True, waves=15)

    # cheeks: lifted by AU6
    face.hill(eye + 0.10, eye_y + 0.36 - 0.05 * cheek, 0.27, 0.20, 0.022 + 0.03 * cheek, pair=True)

    # forehead lines (brows up) and frown lines (brows together)
    raised = np.clip(c("s_brow_inner") + c("s_brow_outer"), 0, 2)
    face.hollow(0.0, eye_y - 0.41, 0.40, 0.15, -0.06 * age - 0.06 * raised, waves=10.5)
    face.hollow(0.045, eye_y - 0.16, 0.018, 0.09, -0.05 * age - 0.24 * np.clip(c("s_frown"), 0, 2), pair=True)

    # nose
    x, y = NOSE * c("sin_yaw"), c("nose_y") + NOSE * c("sin_pitch")
    face.u += -x
    np.abs(face.u, out=face.beside)
    relief, width = c("nose_relief"), c("nose_width")
    face.hill(0.0, y - 0.16, 0.10, 0.34, 0.030 * relief)
    face.hill(0.0, y, 0.105, 0.10, 0.030 * relief)
    face.hollow(width + 0.01, y + 0.03, 0.035, 0.07, -0.20, pair=True)
    face.hollow(0.09, y - 0.22, 0.06, 0.03, -0.16 * c("s_nose_wrinkle"), pair=True)
    face.hollow(0.115, y - 0.26, 0.07, 0.16, -0.10, pair=True)
    face.hollow(-0.02, y - 0.015, 0.05, 0.05, 0.12)
    face.hollow(0.0, y - 0.2, 0.035, 0.2, 0.06)
    face.hollow(0.0, y + 0.105, 0.6 * width + 0.05, 0.05, -0.17)

    # folds from the nose to the mouth's corners, the hollow under the lip, the chin
    shift = x - LIPS * c("sin_yaw")
    face.u += shift
    np.abs(face.u, out=face.beside)
    y = c("mouth_y") + c("q_mouth_drop") + LIPS * c("sin_pitch")
    lift, half = c("q_mouth_lift"), c("q_mouth_half")
    rows = face.rows(y - 0.09, 0.15)
    along = clip01((face.v[:, rows] - (y - 0.24)) * np.float32(1 / 0.30))
    fold = np.abs(along * (half + 0.03 - width) + (width + 0.05) - face.beside[:, rows])
    line = clip01(fold * np.float32(-1 / 0.04) + 1) * (along - along * along)
    face.amount[:, rows] += line * (-4 * (0.05 + 0.10 * age + 0.18 * cheek + 0.12 * c("s_nose_wrinkle")))
    depth = -0.10 - 0.14 * np.clip(np.abs(c("s_corner")), 0, 1.2)
    face.hollow(half + 0.015, y - 0.65 * lift, 0.05, 0.05, depth, pair=True)
    low = y + 0.75 * c("q_mouth_open") + c("q_lip_lower")
    face.hollow(0.0, low + 0.055, 0.17, 0.055, -0.15)
    chin_y = low + 0.17 - 0.03 * c("s_chin_raise")
    face.hill(0.0, chin_y, 0.17, 0.12, 0.020)
    face.hollow(0.0, chin_y, 0.13, 0.10, -0.08 * np.clip(c("s_chin_raise"), 0, 2), waves=16)
    face.hollow(0.0, y - 0.14, 0.035, 0.08, -0.05)
    w.add(shade, face.amount)
