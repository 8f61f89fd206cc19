"""Positions of the parts of a face: pose, projection, landmarks and boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._rows import Floats, Table
from .expression import FaceShape
from .identity import FaceIdentity
from .nuisance import Nuisance

DEPTH = 0.72  # of the front of the head before its middle, in face units
CHIN_LEAN = 0.22  # how far the chin follows yaw
SQUARE = 0.85  # of the squarest jaw: 0 is an ellipse, 1 a rectangle


@dataclass(frozen=True)
class Frame(Table):
    """A local coordinate system on the head and its position in the picture; one per row.

    Local coordinates are face units about ``anchor``; picture coordinates run from -1 to 1, ``y`` downwards.
    """

    origin: Floats  # (n, 2) picture coordinates of the anchor
    forward: Floats  # (n, 2, 2) local to picture
    inverse: Floats  # (n, 2, 2) picture to local

    def to_picture(self, x: Floats, y: Floats) -> Floats:
        """Local points, shape ``(n, k)`` each, as picture coordinates ``(n, k, 2)``."""
        m = self.forward
        px = self.origin[:, 0, None] + m[:, 0, 0, None] * x + m[:, 0, 1, None] * y
        py = self.origin[:, 1, None] + m[:, 1, 0, None] * x + m[:, 1, 1, None] * y
        return np.stack([px, py], axis=-1)

    @classmethod
    def of(cls, origin: Floats, forward: Floats) -> Frame:
        """The frame of an origin ``(n, 2)`` and a local-to-picture matrix ``(n, 2, 2)``."""
        a, b, c, d = forward[:, 0, 0], forward[:, 0, 1], forward[:, 1, 0], forward[:, 1, 1]
        adjoint = np.stack([np.stack([d, -b], axis=1), np.stack([-c, a], axis=1)], axis=1)
        return cls(origin, forward, adjoint / (a * d - b * c)[:, None, None])

    def per_unit(self, density: float) -> Floats:
        """Pixels per face unit, float32, shape ``(n, 1)``, for ``density`` pixels per picture unit."""
        m = self.forward
        area = np.abs(m[:, 0, 0] * m[:, 1, 1] - m[:, 0, 1] * m[:, 1, 0])
        return (np.sqrt(area) * density).astype(np.float32)[:, None]


class Camera:
    """Projects points of a head, given in face units, onto the picture (float64 throughout).

    The head is an ellipsoid of depth :data:`DEPTH` turned by yaw, then pitch; an orthographic view follows, then roll,
    scale and shift. :meth:`on_face` linearises this at an anchor, which is what every feature is drawn in.
    """

    def __init__(self, people: FaceIdentity, nuisance: Nuisance) -> None:
        columns = (nuisance.yaw, nuisance.pitch, nuisance.roll, nuisance.scale, people.head_width)
        yaw, pitch, roll, self.scale, self.width = (np.asarray(c, dtype=np.float64) for c in columns)
        self.sin_yaw, self.cos_yaw = np.sin(yaw), np.cos(yaw)
        self.sin_pitch, self.cos_pitch = np.sin(pitch), np.cos(pitch)
        self.shift = np.stack([nuisance.shift_x, nuisance.shift_y], axis=1).astype(np.float64)
        cos, sin = np.cos(roll), np.sin(roll)
        turn = np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)
        self.view_to_picture = self.scale[:, None, None] * turn
        self.head = Frame.of(self.shift, self.view_to_picture)  # of its outline: neither yaw nor pitch foreshortens it
        self.body = Frame.of(self.shift, self.scale[:, None, None] * np.eye(2))  # neck and shoulders do not turn

    def surface(self, x: Floats, y: Floats) -> Floats:
        """Depth of the face at ``(x, y)``, shape ``(k, n)``: the ellipsoid, kept off its rim."""
        inside = 1 - (x / (1.1 * self.width)) ** 2 - (y / 1.25) ** 2
        return DEPTH * np.sqrt(np.maximum(inside, 0.04))

    def view(self, x: Floats, y: Floats | float, z: Floats | float) -> Floats:
        """Points of the head after yaw and pitch, before roll: from shapes ``(k, n)`` to ``(2, k, n)``."""
        turned = x * self.cos_yaw + z * self.sin_yaw
        depth = z * self.cos_yaw - x * self.sin_yaw
        return np.stack([turned, y * self.cos_pitch + depth * self.sin_pitch])

    def _frame(self, centre: Floats, along_x: Floats, along_y: Floats) -> Frame:
        """From points and tangents in the view, shape ``(2, k, n)`` each, to the picture; rows anchor by anchor."""
        m = self.view_to_picture
        columns = [
            np.stack([m[:, i, 0] * p[0] + m[:, i, 1] * p[1] for i in range(2)], axis=-1).reshape(-1, 2)
            for p in (centre, along_x, along_y)
        ]
        columns[0] += np.tile(self.shift, (centre.shape[1], 1))
        return Frame.of(columns[0], np.stack(columns[1:], axis=2))

    def on_face(self, x: Floats, y: Floats, above: Floats | float = 0.0, flat: bool = False) -> Frame:
        """Tangent frames at points of the face, ``above`` the ellipsoid; ``flat`` ones (glasses) turn as a plane.

        Anchors have the shape ``(k * n,)``: all people's first, then all people's second, and so on.
        """
        step, n = 0.04, len(self.width)
        k = len(x) // n if n else 1
        x, y, above = (np.broadcast_to(p, x.shape).reshape(k, n) for p in (x, y, above))
        z = self.surface(x, y) + above
        zx, zy = (z, z) if flat else (self.surface(x + step, y) + above, self.surface(x, y + step) + above)
        centre = self.view(x, y, z)
        right, down = self.view(x + step, y, zx), self.view(x, y + step, zy)
        return self._frame(centre, (right - centre) / step, (down - centre) / step)

    def ears(self) -> Frame:
        """Frames of all left ears, then of all right ones; they turn with roll only."""
        centre = self.view(np.stack([-self.width, self.width]), 0.06, -0.05)
        return self._frame(centre, *(np.broadcast_to(e[:, None, None], centre.shape) for e in np.eye(2)))


def parts(people: FaceIdentity, shape: FaceShape) -> dict[str, Floats]:
    """Positions and sizes of the movable parts, in local face units, float64, shape ``(n,)``, from movements (0 .. 1).

    The renderer and the landmarks both use these, so landmarks match the drawn pixels.
    """
    p, s = people.columns(np.float64), shape.columns(np.float64)
    lids, opened = 1 + 0.75 * s["lid_upper"] - 0.10 * s["lid_lower"], np.maximum(s["open"], 0)
    thin = np.clip(1 - 0.55 * s["press"] - 0.2 * s["stretch"], 0.25, 1.2)
    return {
        "eye_up": p["eye_height"] * np.maximum(lids, 0.04),  # upper lid above the eye's centre
        "eye_down": p["eye_height"] * 0.55 * np.clip(1.0 - 0.55 * s["lid_lower"], 0.25, 1.2),  # lower lid below it
        "brow_inner": 0.085 * s["brow_inner"] - 0.050 * s["frown"],  # inner end above the brow's anchor
        "brow_outer": 0.080 * s["brow_outer"],
        "brow_shift": 0.035 * s["frown"],  # towards the nose
        "mouth_half": p["mouth_width"] * np.maximum(1 + 0.32 * s["stretch"], 0.5),  # half width
        "mouth_lift": 0.135 * s["corner"],  # corners above the middle
        "mouth_open": 0.26 * opened,  # height of the opening
        "lip_upper": p["lip_upper"] * thin,
        "lip_lower": p["lip_lower"] * thin,
        "mouth_drop": 0.015 * opened - 0.02 * s["chin_raise"],  # the whole mouth, with the jaw
        "chin": p["chin"] * (1 + 0.09 * s["jaw"]),  # y of the chin
    }


def outline_radius(people: FaceIdentity, chin: Floats, cos: Floats, sin: Floats) -> Floats:
    r"""Distance of the head's outline from its centre in a direction, face units.

    The outline is where the renderer's head function :math:`x^2 + y^2 - s\,t^3 x^2` equals 1 (``x`` and ``y`` in
    half widths and heights, the width narrowing by the jaw's taper, ``s`` its squareness, :math:`t = y_+`). Shapes:
    ``(n,)`` of the chin's y, ``(n, k)`` of the direction (``sin`` downwards) and of the result.
    """
    width = people.head_width.astype(np.float64)[:, None]
    taper, square = (c.astype(np.float64)[:, None] for c in (people.jaw_taper, people.jaw_square))
    middle, half = (chin[:, None] - 1) / 2, (chin[:, None] + 1) / 2
    radius = np.full(cos.shape, 0.9)
    for _ in range(20):
        y = (sin * radius - middle) / half
        t = np.clip(y, 0, 1)
        x2, y2 = (cos * radius / (width * (1 - taper * t * t))) ** 2, y * y
        radius = radius / np.sqrt(x2 + y2 - SQUARE * square * t**3 * np.minimum(x2, 1))
    return radius


def landmarks(people: FaceIdentity, shape: FaceShape, nuisance: Nuisance, size: int) -> NDArray[np.float32]:
    """68 points in the order of the iBUG annotation, computed from the drawn geometry.

    0-16 jaw (picture left to right), 17-21 and 22-26 brows, 27-30 bridge of the nose, 31-35 below it, 36-41 and 42-47
    eyes, 48-59 outer lips, 60-67 inner lips. Points of the jaw follow the outline as seen; all others lie on the face.

    Args:
        people: One row per picture.
        shape: One row per picture.
        nuisance: One row per picture.
        size: Side of the picture in pixels.

    Returns:
        Shape ``(n, 68, 2)``: x and y in pixels, ``(0, 0)`` the top left corner of the top left pixel.
    """
    n, camera, moved = len(people), Camera(people, nuisance), parts(people, shape)
    person, q = ({name: c[:, None] for name, c in of.items()} for of in (people.columns(np.float64), moved))

    angle = np.pi - np.linspace(-0.05, 1.05, 17) * np.pi
    cos, sin = (np.broadcast_to(f, (n, 17)) for f in (np.cos(angle), np.sin(angle)))
    radius = outline_radius(people, moved["chin"], cos, sin)
    jaw_x, jaw_y = cos * radius, sin * radius
    lean = CHIN_LEAN * camera.sin_yaw[:, None] * np.clip(jaw_y, 0, 1) ** 2
    points = [camera.head.to_picture(jaw_x + lean, jaw_y)]

    for side in (-1.0, 1.0):
        frame = camera.on_face(side * person["eye_spacing"], person["eye_y"] - person["brow_y"])
        s = np.linspace(0, 1, 5)[:: int(side)]
        x = side * (person["brow_length"] * (2 * s - 1) - q["brow_shift"] * (1 - s))
        y = q["brow_inner"] * (1 - s) + q["brow_outer"] * s + 4 * person["brow_arch"] * s * (1 - s)
        points.append(frame.to_picture(x, -y))

    zero = np.zeros((n, 1))
    for k in range(4):
        y = person["eye_y"] + (person["nose_y"] - person["eye_y"]) * k / 3
        points.append(camera.on_face(zero, y, above=0.06 + 0.04 * k).to_picture(zero, zero))
    t = np.linspace(-1, 1, 5)
    nose = camera.on_face(zero, person["nose_y"], above=0.10)
    points.append(nose.to_picture(0.75 * person["nose_width"] * t, 0.07 - 0.03 * t * t + zero))

    for side in (-1.0, 1.0):
        frame = camera.on_face(side * person["eye_spacing"], person["eye_y"])
        t = np.array([-1, -0.4, 0.4, 1, 0.4, -0.4])
        lid = np.where(np.arange(6) < 3, -q["eye_up"], q["eye_down"]) * (1 - t * t)
        tilt = person["eye_tilt"] * person["eye_width"] * t * side
        points.append(frame.to_picture(person["eye_width"] * t, lid - tilt))

    mouth = camera.on_face(zero, person["mouth_y"] + q["mouth_drop"], above=0.03)
    outer, inner = (
        [-1, -0.6, -0.25, 0, 0.25, 0.6, 1, 0.6, 0.3, 0, -0.3, -0.6],
        [-0.92, -0.4, 0, 0.4, 0.92, 0.4, 0, -0.4],
    )
    t, thick = np.array(outer + inner), np.repeat([1.0, 0.0], [12, 8])
    line = q["mouth_lift"] * (0.35 - t * t) * (1 + person["lopsided"] * t)
    above = -(0.25 * q["mouth_open"] + thick * q["lip_upper"])
    below = 0.75 * q["mouth_open"] + thick * q["lip_lower"]
    lips = np.where(np.repeat([True, False, True, False], [7, 5, 5, 3]), above, below) * (1 - t * t)
    points.append(mouth.to_picture(q["mouth_half"] * t, line + lips))
    picture = np.concatenate(points, axis=1)
    return ((picture + 1) * (size / 2)).astype(np.float32)


def boxes(points: NDArray[np.float32], size: int, margin: float = 0.12) -> NDArray[np.float32]:
    """Square face boxes ``(x, y, width, height)`` in pixels: the extent of the landmarks and a margin, in the picture.

    Args:
        points: Landmarks, shape ``(n, 68, 2)``.
        size: Side of the picture.
        margin: Added on each side, as a share of the larger extent; twice that above, as the forehead has no landmark.

    Returns:
        Shape ``(n, 4)``; the whole box is inside the picture.
    """
    low, high = points.min(axis=1).astype(np.float64), points.max(axis=1).astype(np.float64)
    extent = (high - low).max(axis=1)
    low[:, 1] -= margin * extent
    side = np.minimum((high - low).max(axis=1) + 2 * margin * extent, size)
    corner = np.clip((low + high) / 2 - side[:, None] / 2, 0, size - side[:, None])
    return np.concatenate([corner, side[:, None], side[:, None]], axis=1).astype(np.float32)
