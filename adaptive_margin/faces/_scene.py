"""One batch of pictures: who and what is in them, where things are, and the canvas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ._geometry import Camera, parts
from ._raster import F32, Extent, Grid, Ints, Window
from .expression import FaceShape
from .identity import FaceIdentity
from .nuisance import Nuisance

FINE = 112  # from this size on, details are drawn that would be lost below
NOSE, LIPS = 0.08, 0.03  # how far they stand out of the ellipsoid of the head: when it turns, they move more


def pigment(red: float, green: float, blue: float) -> F32:
    """A colour for all pictures, shape ``(1, 3, 1)``."""
    return np.array([red, green, blue], dtype=np.float32)[None, :, None]


BLACK = pigment(0.10, 0.07, 0.06)
WHITE = pigment(1.0, 0.98, 0.96)
MOUTH = pigment(0.22, 0.06, 0.06)
TONGUE = pigment(0.66, 0.28, 0.27)
TOOTH = pigment(1.0, 0.98, 0.93)


class Scene:
    """What the painters of a batch share.

    Attributes:
        c: Columns by name, float32, numbers as ``(n, 1)``, vectors as ``(n, k, 1)``: those of the person as they are,
            of its parts as ``q_...``, of the face's movements as ``s_...``, of the disturbances as ``n_...``; the
            direction of light ``lx, ly, lz``; sines of the pose.
        wide: Columns of the person in float64, shape ``(n,)``, for geometry.
        exposure: Colour of the light times gain times 255, ``(n, 3, 1)``: colours enter the canvas multiplied by it.
        canvas: The pictures, shape ``(n, 3, size, size)``, in grey levels.
        visible: Where the head is seen, shape ``(n, size, size)``; parts of the face are painted there.
        unhaired: Where no hair hangs in front.
        shade: Light on the head.
    """

    canvas: F32
    visible: F32
    unhaired: F32
    shade: F32

    def __init__(self, people: FaceIdentity, shape: FaceShape, nuisance: Nuisance, size: int) -> None:
        self.n, self.size, self.fine = len(people), size, size >= FINE
        self.people, self.nuisance = people, nuisance
        self.wide = people.columns(np.float64).__getitem__
        self.camera, self.moved = Camera(people, nuisance), parts(people, shape)
        columns = people.columns()
        for prefix, table in (("q_", self.moved), ("s_", shape.columns()), ("n_", nuisance.columns())):
            columns |= {prefix + name: column for name, column in table.items() if name != "key"}
        columns |= {name: getattr(self.camera, name) for name in ("sin_yaw", "cos_yaw", "sin_pitch", "cos_pitch")}
        norm = np.sqrt(1 + nuisance.light_x**2 + nuisance.light_y**2)
        columns |= {"lx": nuisance.light_x / norm, "ly": nuisance.light_y / norm, "lz": 1 / norm}
        floats = {name: np.asarray(values, dtype=np.float32) for name, values in columns.items()}
        self._columns = {name: x.reshape(self.n, -1, 1) if x.ndim > 1 else x[:, None] for name, x in floats.items()}
        self.c = self._columns.__getitem__
        self.exposure = self.c("n_gain")[:, :, None] * self.c("n_cast") * np.float32(255)
        self.everyone = np.arange(self.n)
        self.grid, self.coarse = Grid(size), Grid(size, 2)
        self._place_anchors()

    def of(self, rows: Ints) -> Callable[[str], F32]:
        """A function from names to columns, for some of the pictures."""
        return lambda name: self._columns[name][rows]

    def _place_anchors(self) -> None:
        """Projects all anchors of the face at once; those of pairs first on the left, then on the right."""
        eye, eye_y, zero = self.wide("eye_spacing"), self.wide("eye_y"), np.zeros(self.n)
        names, x, y, above = zip(
            *(("eyes", side * eye, eye_y, 0.0) for side in (-1, 1)),
            *(("brows", side * eye, eye_y - self.wide("brow_y"), 0.0) for side in (-1, 1)),
            ("nose", zero, self.wide("nose_y"), NOSE),
            ("mouth", zero, self.wide("mouth_y") + self.moved["mouth_drop"], LIPS),
            ("cheeks", zero, eye_y + 0.34, 0.0),
            ("mole", self.wide("mole_x"), self.wide("mole_y"), 0.0),
            strict=True,
        )
        frame = self.camera.on_face(np.concatenate(x), np.concatenate(y), np.repeat(above, self.n))
        where = np.repeat(names, self.n)
        self._anchors = {name: frame.take(where == name) for name in names} | {"ears": self.camera.ears()}

    def at(self, anchor: str, extent: Extent, rows: Ints | None = None) -> Window:
        """A window at an anchor; at a pair of anchors, windows on both sides of the face, local x pointing outwards."""
        frame, rows = self._anchors[anchor], self.everyone if rows is None else rows
        if len(frame) == self.n:
            return Window(frame.take(rows), rows, extent, self.grid)
        left, right, top, bottom = (np.tile(e, 2) if np.ndim(e) else e for e in extent)
        frame, sides = frame.take(np.concatenate([rows, rows + self.n])), np.repeat([-1.0, 1.0], len(rows))
        return Window(frame, np.concatenate([rows, rows]), (left, right, top, bottom), self.grid, sides)


class Stack:
    """Layers of colour in a window, from front to back, painted together.

    A layer costs four passes over single numbers: its weight is its own coverage times the visibility through the
    layers in front, and layers of one pigment share a sum. Colours are used only in :meth:`paint`.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self.through: F32 = np.ones(window.x.shape, dtype=np.float32)
        self._sums: dict[int, tuple[F32, F32]] = {}

    def under(self, alpha: F32, pigment: F32, shade: F32 | float | None = None) -> Stack:
        """Adds a layer of coverage ``alpha`` (``(m, pixels)``, used up) and brightness ``shade`` behind the others.

        Layers of one pigment (``(m, 3, 1)`` or ``(1, 3, 1)``) pass the same object.
        """
        alpha *= self.through
        self.through -= alpha
        if shade is not None:
            alpha *= shade
        if id(pigment) in self._sums:
            self._sums[id(pigment)][1].__iadd__(alpha)
        else:
            self._sums[id(pigment)] = (pigment, alpha)
        return self

    def paint(self, s: Scene, within: F32 | None = None) -> None:
        """Paints the stack on the canvas where a map of the whole picture lets it."""
        w, keep, exposure = self.window, self.through, s.exposure[self.window.rows]
        seen = None if within is None else w.read(within)
        colour: F32 | None = None
        for pigment, weight in self._sums.values():
            if seen is not None:
                weight *= seen
            part = (pigment * exposure) * weight[:, None]
            colour = part if colour is None else np.add(colour, part, out=colour)
        assert colour is not None  # there are layers
        if seen is not None:
            keep -= 1
            keep *= seen
            keep += 1
        colours, keep = colour.reshape(-1, 3, w.height, w.width), keep.reshape(-1, w.height, w.width)
        for part, kept, more in zip(w.views(s.canvas), keep, colours, strict=True):
            part *= kept
            part += more
