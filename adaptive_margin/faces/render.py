"""Paints faces, a batch of pictures at a time.

The picture is built from the front to the back: a map says how much of each pixel is still unseen, and every layer
(hair, head, ears, neck, hair behind, clothes, background) takes its share of it. Layers are single numbers per pixel,
coverage times brightness; colours enter once, when the sums of all layers of a pigment are known. Eyes, brows, nose,
mouth, beard and glasses are then painted in their own small windows, where the head is seen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .expression import FaceShape
from .geometry import CHIN_LEAN, DEPTH, SQUARE, Camera, Frame, parts
from .identity import FaceIdentity
from .nuisance import Nuisance
from .raster import (
    F32,
    Columns,
    Extent,
    Grid,
    Ints,
    Stack,
    Whole,
    Window,
    band,
    bump,
    clip01,
    edge,
    enlarge,
    scallop,
    wave,
)
from .rows import Floats, Streams

# Pixels of one batch: many pictures at a time hide numpy's overhead, too many leave the processor's cache. No byte
# depends on it.
BATCH_PIXELS = 294912
FINE = 112  # from this size on, details are drawn that would be lost below


def render(people: FaceIdentity, shape: FaceShape, nuisance: Nuisance, size: int) -> NDArray[np.uint8]:
    """Paints one picture per row.

    Args:
        people: Who; ``n`` rows.
        shape: What the face does; ``n`` rows.
        nuisance: What disturbs; ``n`` rows.
        size: Side of the picture in pixels.

    Returns:
        Shape ``(n, size, size, 3)``, sRGB. A row's bytes depend on that row and ``size`` only.
    """
    out = np.empty((len(people), size, size, 3), dtype=np.uint8)
    step = max(1, BATCH_PIXELS // (size * size))
    # A batch's windows are as large as its most tilted picture needs: put pictures of like tilt together.
    order = np.argsort(np.abs(nuisance.roll), kind="stable")
    for start in range(0, len(people), step):
        rows = order[start : start + step]
        _Scene(people.take(rows), shape.take(rows), nuisance.take(rows), size).picture(out, rows)
    return out


def _pigment(red: float, green: float, blue: float) -> F32:
    return np.array([red, green, blue], dtype=np.float32)[None, :, None]


# Shadows on skin are warm: red falls less than green and blue.
WARM = _pigment(0.80, 1.0, 1.0)
BLACK = _pigment(0.10, 0.07, 0.06)
WHITE = _pigment(1.0, 0.98, 0.96)
MOUTH = _pigment(0.22, 0.06, 0.06)
TONGUE = _pigment(0.66, 0.28, 0.27)
TOOTH = _pigment(1.0, 0.98, 0.93)


class _Scene:
    """One batch: its canvas and everything its layers read."""

    def __init__(self, people: FaceIdentity, shape: FaceShape, nuisance: Nuisance, size: int) -> None:
        self.n, self.size, self.fine = len(people), size, size >= FINE
        self.people, self.nuisance = people, nuisance
        self.camera, self.moved = Camera(people, nuisance), parts(people, shape)
        columns = {name: getattr(people, name) for name in people.__dataclass_fields__}
        columns |= {f"q_{name}": getattr(self.moved, name) for name in self.moved.__dataclass_fields__}
        columns |= {f"s_{name}": getattr(shape, name) for name in shape.__dataclass_fields__}
        columns |= {f"n_{name}": getattr(nuisance, name) for name in nuisance.__dataclass_fields__ if name != "key"}
        columns |= {name: getattr(self.camera, name) for name in ("sin_yaw", "cos_yaw", "sin_pitch", "cos_pitch")}
        norm = np.sqrt(1 + nuisance.light_x**2 + nuisance.light_y**2)
        columns |= {"lx": nuisance.light_x / norm, "ly": nuisance.light_y / norm, "lz": 1 / norm}
        self.columns = Columns(columns)
        self.c = self.columns.take(slice(None))
        # colours are multiplied by the light's colour and the camera's gain, and scaled to grey levels, as they enter
        self.exposure = self.c("n_gain")[:, :, None] * self.c("n_cast") * np.float32(255)  # (n, 3, 1)
        self.everyone = np.arange(self.n)
        self.sides = np.repeat([-1.0, 1.0], self.n)
        self.both = np.concatenate([self.everyone, self.everyone])
        self.grid, self.coarse = Grid.of(size), Grid.of(size, 2)
        self._place_anchors()
        self.square = (self.n, size, size)
        self.canvas = np.empty((self.n, 3, size, size), dtype=np.float32)

    def picture(self, out: NDArray[np.uint8], places: Ints) -> None:
        """Paints everything and writes the bytes to ``out[places]``."""
        self._layers()
        self._beard()
        self._marks()
        self._nose()
        self._eyes()
        self._mouth()
        self._brows()
        self._glasses()
        self._occluder()
        self._develop(out, places)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _col(self, name: str) -> Floats:
        return np.asarray(getattr(self.people, name), dtype=np.float64)

    def _place_anchors(self) -> None:
        """Projects all anchors of the face at once; those of pairs first on the left, then on the right."""
        eye, eye_y, mouth = self._col("eye_spacing"), self._col("eye_y"), self._col("mouth_y") + self.moved.mouth_drop
        zero = np.zeros(self.n)
        pairs = {
            "eyes": (eye, eye_y),
            "cheeks": (eye + 0.10, eye_y + 0.36),
            "blush": (eye + 0.08, eye_y + 0.34),
            "brows": (eye, eye_y - self._col("brow_y")),
        }
        singles = {
            "nose": (zero, self._col("nose_y"), 0.08),
            "forehead": (zero, eye_y - 0.36, 0.0),
            "mouth": (zero, mouth, 0.03),
            "freckles": (zero, eye_y + 0.30, 0.0),
            "mole": (self._col("mole_x"), self._col("mole_y"), 0.0),
        }
        points = [(side * x, y, 0.0) for x, y in pairs.values() for side in (-1, 1)] + list(singles.values())
        x, y = (np.concatenate([p[k] for p in points]) for k in (0, 1))
        frame = self.camera.on_face(x, y, np.repeat([p[2] for p in points], self.n))
        self._anchors: dict[str, Frame] = {}
        start = 0
        for name in (*pairs, *singles):
            stop = start + (2 if name in pairs else 1) * self.n
            self._anchors[name] = frame.take(slice(start, stop))
            start = stop

    def _at(self, anchor: str, extent: Extent, grid: Grid, rows: Ints | None = None) -> Window:
        """A window at an anchor; at a pair of anchors, windows on both sides of the face, local x pointing outwards."""
        frame = self._anchors[anchor]
        if len(frame.origin) > self.n:
            return Window(frame, self.both, extent, grid, self.sides)
        return (
            Window(frame, self.everyone, extent, grid) if rows is None else Window(frame.take(rows), rows, extent, grid)
        )

    def _paint(self, stack: Stack, within: F32 | None = None) -> None:
        """Paints a window's layers where a map of the whole picture lets them."""
        window = stack.window
        stack.paint(self.canvas, self.exposure[window.rows], None if within is None else window.read(within))

    # -- the whole picture --------------------------------------------------------------------------------------------

    def _light(self, w: Whole) -> F32:
        """Light on the head and its relief, at half the resolution: it is smooth."""
        c = self.c
        nx = w.x / c("head_width")
        nz = nx * nx
        nz += (w.y * w.y) * np.float32(1 / 1.2)
        np.subtract(1, nz, out=nz)
        np.sqrt(clip01(nz), out=nz)
        light = nx * c("lx")
        light += np.clip(w.y, -1, 1) * (0.9 * c("ly"))
        light += nz * c("lz")
        light.clip(-0.1, 1, out=light)
        light -= c("lz")
        light *= 0.52 * c("n_contrast")
        light += 1
        count = len(self.coarse.at)
        shade = light.reshape(self.n, count, count)
        self._relief(shade)
        return shade.clip(0.22, 1.45, out=shade)

    def _layers(self) -> None:
        """From the hair in front to the background: the weights of every pigment, then their colours."""
        c, n, size = self.c, self.n, self.size
        w = Whole(self.camera.head(), self.grid)
        u, v = self._on_turned_face(c, w)
        coarse = Whole(self.camera.head(), self.coarse)
        self.shade = enlarge(self._light(coarse), size)  # light on the head
        # hair in front of the head, and its shadow on the forehead
        hair = self._hair(w)
        front, shadow = self._hair_in_front(w, u, v, hair)
        tone = enlarge(self._hair_tone(coarse), size).reshape(n, -1)
        unseen = 1 - front
        self.unhaired = unseen.reshape(self.square).copy()  # where no hair hangs in front
        front *= tone
        # the head
        skin = self._head(w)
        skin *= unseen
        self.visible = skin.reshape(self.square).copy()  # where the head is seen
        shaded = shadow
        shaded *= skin
        shaded *= self.shade.reshape(n, -1)
        unseen -= skin
        # ears and neck, in windows
        maps = [m.reshape(self.square) for m in (unseen, skin, shaded)]
        self._ears(*maps)
        self._neck(*maps)
        # hair behind
        hair *= unseen
        unseen -= hair
        tone *= 0.72
        hair *= tone
        front += hair
        # clothes, and a background of two colours
        worn, worn_from = self._clothes(unseen.reshape(self.square))
        mixed = self._background()
        mixed *= unseen
        unseen -= mixed
        skin_colour = c("skin_colour") * self.exposure
        behind = c("n_background").reshape(-1, 2, 3, 1) * self.exposure[:, None]
        pigments = (
            (behind[:, 1], mixed),
            (c("hair_colour") * self.exposure, front),
            (skin_colour * WARM, shaded),
        )
        glow = (skin_colour * (1 - WARM))[:, 0]  # skin in light s: colour * (1 + WARM (s - 1)); only red has a rest
        cloth = c("n_clothes") * self.exposure
        layer = np.empty((3, size * size), dtype=np.float32)
        for row in range(n):
            picture = self.canvas[row].reshape(3, -1)
            np.multiply(behind[row, 0], unseen[row], out=picture)
            for pigment, weight in pigments:
                np.multiply(pigment[row], weight[row], out=layer)
                picture += layer
            picture[0] += glow[row] * skin[row]
            picture[:, worn_from * size :] += cloth[row] * worn[row]

    @staticmethod
    def _on_turned_face(c: Callable[[str], F32], w: Whole | Window) -> tuple[F32, F32]:
        """Coordinates of every pixel on the turned face: ``w`` has them as seen."""
        depth = w.x * (DEPTH / c("head_width"))
        depth *= depth
        depth += (w.y * w.y) * np.float32(DEPTH * DEPTH / 1.2)
        np.subtract(DEPTH * DEPTH, depth, out=depth)
        depth.clip(0, 1, out=depth)
        np.sqrt(depth, out=depth)
        v = w.y * c("cos_pitch")
        v -= depth * c("sin_pitch")
        depth *= c("sin_yaw")
        u = w.x * c("cos_yaw")
        u -= depth
        return u, v

    def _hair_outline(self, w: Whole) -> tuple[F32, F32]:
        """Coordinates in which the mass of hair is the unit disc: an ellipse above, a curtain with round ends below."""
        c = self.c
        side = c("head_width") + c("hair_side")
        hx = np.clip(w.y, 0, 2)
        hx *= c("hair_flare") * side
        hx += side
        np.divide(w.x, hx, out=hx)
        hy = w.y * np.float32(1 / 0.3)
        hy -= (c("hair_length") - 0.3) * np.float32(1 / 0.3)
        hy.clip(0, 9, out=hy)
        above = np.clip(w.y, -9, 0)
        above *= 1 / (1 + c("hair_top"))
        hy += above
        return hx, hy

    def _hair(self, w: Whole) -> F32:
        """Coverage of the whole mass of hair, behind and in front of the head."""
        c = self.c
        hx, f = self._hair_outline(w)
        hx *= hx
        f *= f
        f += hx
        # Curls: scallops along the outline, counted by the diamond angle x / (|x| + |y|), which needs no trigonometry.
        around = np.abs(w.x)
        around += np.abs(w.y - 0.2)
        around += 0.2
        curls = np.divide(w.x, around, out=around)
        curls *= 7.3
        curls += w.y
        curls = scallop(curls)
        curls -= 0.6
        curls *= 1.7 * c("hair_curl")
        f -= curls
        np.subtract(1, f, out=f)
        cover = edge(f, w.per_unit * 0.45)  # f is squared: its slope at the edge is about 2
        bun = np.flatnonzero(self.people.hair_bun > 0)
        if len(bun):
            radius = c("hair_bun")[bun]
            x, y = w.x[bun], w.y[bun] + (1 + c("hair_top")[bun] + 0.3 * radius)
            knot = edge(radius - np.sqrt(x * x + y * y), w.per_unit[bun])
            cover[bun] = np.maximum(cover[bun], knot)
        cover *= np.minimum(1.2 * c("hair_density"), 1)
        return cover

    def _hair_tone(self, w: Whole) -> F32:
        """Brightness of hair: light on a dome, strands that fan out from the parting, a band of gloss."""
        c = self.c
        hx, hy = self._hair_outline(w)
        strength = 0.5 * c("n_contrast")
        hx2 = hx * hx
        hz = hy * hy
        hz += hx2
        np.subtract(1, hz, out=hz)
        tone = np.sqrt(clip01(hz))
        tone *= c("lz") * strength
        tone += hx * (c("lx") * strength)
        tone += np.clip(hy, -1, 0.3) * (c("ly") * strength)
        tone += 0.95 - 0.6 * strength
        fan = (w.x - c("hair_part") * c("head_width")) / (np.clip(w.y, -1.2, 0.6) + 1.55)
        strands = wave(fan * 6.7)
        strands += wave(fan * 15.1 + w.y * (0.5 + 18 * c("hair_curl")))
        strands -= 1
        strands *= 0.11 + 0.6 * c("hair_curl")
        tone += strands
        gloss = w.y + (0.35 * hx2 + 0.74)
        gloss *= gloss
        gloss *= 1 / 0.24**2
        np.subtract(1, gloss, out=gloss)
        tone += clip01(gloss) * 0.16
        count = len(self.coarse.at)
        return tone.clip(0.25, 1.6, out=tone).reshape(-1, count, count)

    def _hair_in_front(self, w: Whole, u: F32, v: F32, hair: F32) -> tuple[F32, F32]:
        """What of the hair lies above the hairline or beside the cheeks, and a factor for its shadow on the skin."""
        c = self.c
        soft = np.minimum(w.per_unit * 0.8, 26)  # no hair ends sharply
        t = u / c("head_width")
        sides = t * t
        sides.clip(0, 1.3, out=sides)
        t -= c("hair_part")
        t *= t
        t *= c("hair_sweep")
        sides *= sides
        sides *= sides
        sides *= 0.12 - c("hairline")
        t += sides
        fringe = scallop(u * 7.3)
        fringe *= 0.02 + 0.9 * c("hair_curl")
        t += fringe
        t -= v
        t += c("hairline") - 0.5 * (0.02 + 0.9 * c("hair_curl"))  # now the height above the hairline
        density = c("hair_density")
        shadow = t * (-2.5 * density)
        shadow += 1 - 0.25 * density
        clip01(shadow)
        front = edge(t, soft)
        beside = np.abs(w.x)
        beside -= c("head_width") * (1 - c("hair_cover"))
        beside = edge(beside, soft)
        end = w.y * -9
        end += 9 * c("hair_side_end") + 0.5
        beside *= clip01(end)
        np.maximum(front, beside, out=front)
        front *= hair
        return front, shadow

    def _head(self, w: Whole) -> F32:
        """Coverage of the head: an ellipse whose lower half narrows to the chin and may be square."""
        c = self.c
        y = w.y - (c("q_chin") - 1) * 0.5
        y *= 2 / (c("q_chin") + 1)  # from -1 at the crown to 1 at the chin
        t = np.clip(y, 0, 1)
        t2 = t * t
        x = t2 * (-CHIN_LEAN * c("sin_yaw"))
        x += w.x
        t *= t2
        t2 *= -c("jaw_taper") * c("head_width")
        t2 += c("head_width")
        x /= t2
        x *= x
        y *= y
        y += x
        t *= clip01(x)
        t *= SQUARE * c("jaw_square")
        y -= t
        np.subtract(1, y, out=y)
        return edge(y, w.per_unit * 0.42)

    def _ears(self, unseen: F32, skin: F32, shaded: F32) -> None:
        width, depth, y = self._col("head_width"), np.full(self.n, -0.05), np.full(self.n, 0.06)
        frame = Frame.join(self.camera.at(-width, y, depth), self.camera.at(width, y, depth))
        w = Window(frame, self.both, (-0.15, 0.19, -0.25, 0.25), self.grid, self.sides)
        col = self.columns.take(w.rows)
        size = col("ear_size")
        x, y2 = w.x * (1 / (0.105 * size)), w.y * (1 / (0.20 * size))
        x += 0.25 * np.clip(y2, -1, 1)
        x -= 0.25  # wider at the top
        if self.fine:
            shade, _ = bump((x + 0.15) * np.float32(1 / 0.62), (y2 + 0.08) * np.float32(1 / 0.66))
            shade *= -0.42
        x *= x
        y2 *= y2
        x += y2
        r = np.sqrt(x, out=x)
        if not self.fine:
            shade = np.clip(r, 0, 1) * 0.42 - 0.42
        shade += 0.92 + 0.30 * col("lx") * self.sides.astype(np.float32)[:, None]
        np.subtract(1, r, out=r)
        self._skin_layer(w, edge(r, 0.12 * w.per_unit), shade, unseen, skin, shaded)

    def _neck(self, unseen: F32, skin: F32, shaded: F32) -> None:
        c = self.c
        w = Window(self.camera.body(), self.everyone, (-0.75, 0.75, 0.55, 1.30), self.grid)
        x, y = w.x, w.y
        spread = np.clip(y - 0.95, 0, 1)
        spread *= spread
        spread *= 2.7
        spread += c("neck_width")  # half the width of the neck
        t = x / spread
        spread -= np.abs(x)
        weight = edge(spread, w.per_unit)
        t2 = t * t
        weight *= edge((1.30 - 0.30 * t2) - y, w.per_unit)
        shadow = y * np.float32(-1 / 0.30)
        shadow += (c("q_chin") + 0.34) * np.float32(1 / 0.30)
        shadow -= t2
        clip01(shadow)
        shadow *= shadow
        shadow *= -0.34
        t2 *= -0.28
        shadow += t2
        t *= 0.25 * c("lx")
        shadow += t
        shadow += 0.90
        self._skin_layer(w, weight, shadow, unseen, skin, shaded)

    @staticmethod
    def _skin_layer(w: Window, weight: F32, shade: F32, unseen: F32, skin: F32, shaded: F32) -> None:
        weight *= w.read(unseen)
        w.add(skin, weight)
        shade *= weight
        w.add(shaded, shade)
        w.add(unseen, np.negative(weight, out=weight))

    def _clothes(self, unseen: F32) -> tuple[F32, int]:
        """Weight times brightness of the clothes, for the rows of pixels from the one that is returned too."""
        c = self.c
        w = Window(self.camera.body(), self.everyone, (-9.0, 9.0, 1.0, 9.0), self.grid)
        ax = np.abs(w.x)
        slope = np.clip((ax - c("neck_width")) * 2, 0, 1)
        slope *= slope
        far = np.clip(ax - 0.7, 0, 3)
        far *= far
        weight = edge(w.y - 1.06 - 0.16 * slope - 0.22 * far, w.per_unit)
        shade = wave(w.x * 2.3 + 0.4 * w.y) * -0.06
        shade += 0.92
        shade -= 0.25 * np.clip(ax - 0.5, 0, 1)
        shade += (0.25 * c("lx")) * w.x
        weight *= w.read(unseen)
        w.add(unseen, -weight)
        shade *= weight
        worn = np.zeros((self.n, self.size - w.top, self.size), dtype=np.float32)
        w.add(worn, shade, w.top)
        return worn.reshape(self.n, -1), w.top

    def _background(self) -> F32:
        """Share of the second colour: a gradient and two soft discs."""
        g, at = self.c("n_gradient"), self.grid.at
        x, y = at[None, None, :], at[None, :, None]
        mixed = ((g[:, :1] * x + 0.5) + g[:, 1:] * y).reshape(self.n, -1)
        for k in range(2):
            bx, by, radius = (self.c("n_blobs")[:, 3 * k + j : 3 * k + j + 1] for j in range(3))
            dx, dy = (x - bx) / radius, (y - by) / radius
            disc = ((1 - dx * dx) - dy * dy).reshape(self.n, -1)
            disc.clip(0, 0.5, out=disc)
            if k == 0:
                mixed += disc
            else:
                mixed -= disc
        return clip01(mixed)

    # -- the relief of the face ---------------------------------------------------------------------------------------

    def _hill(
        self, x: F32, y: F32, w: Window, rx: float, ry: float, height: F32 | float, side: Floats | None = None
    ) -> F32:
        """Light on a hill of the face: its sunny side brighter, the other darker. ``x`` and ``y`` from its top."""
        col = self.columns.take(w.rows)
        dx, dy = x * np.float32(1 / rx), y * np.float32(1 / ry)
        _, slope = bump(dx, dy)
        steep = height * col("n_contrast")
        dx *= steep * col("lx") / np.float32(rx) * (1 if side is None else side.astype(np.float32)[:, None])
        dy *= steep * col("ly") / np.float32(ry)
        dx += dy
        slope *= dx
        return slope

    @staticmethod
    def _hollow(x: F32, y: F32, w: Window, rx: F32 | float, ry: F32 | float, depth: F32 | float) -> F32:
        """A dent that light reaches less. One narrower than two pixels is drawn that wide, and fainter."""
        narrow = 1.1 / w.per_unit
        wide_x, wide_y = np.maximum(rx, narrow), np.maximum(ry, narrow)
        height, _ = bump(x * (1 / wide_x), y * (1 / wide_y))
        height *= depth * (rx / wide_x) * (ry / wide_y)
        return height

    def _relief(self, shade: F32) -> None:
        """Sockets, nose, cheeks, folds and chin, added to the light of the head."""
        c, hill, hollow = self.c, self._hill, self._hollow
        grid = self.coarse

        # sockets, bags, crow's feet
        w = self._at("eyes", (-0.32, 0.35, -0.28, 0.26), grid)
        col = self.columns.take(w.rows)
        cheek = np.clip(col("s_cheek"), 0, 2)
        amount = hollow(w.x + 0.05, w.y + 0.08, w, 0.27, 0.20, -0.13)
        amount += hollow(w.x, w.y - 0.145, w, 0.18, 0.055, -0.05 - 0.13 * col("eye_bags") - 0.06 * cheek)
        crow = hollow(w.x - 0.27, w.y - 0.03, w, 0.08, 0.10, -0.06 * col("age") - 0.10 * cheek)
        crow *= wave(w.y * 15)
        amount += crow
        w.add(shade, amount)

        # cheeks: lifted by AU6
        w = self._at("cheeks", (-0.27, 0.27, -0.30, 0.20), grid)
        lifted = np.clip(self.columns.take(w.rows)("s_cheek"), 0, 2)
        w.add(shade, hill(w.x, w.y + 0.05 * lifted, w, 0.27, 0.20, 0.022 + 0.03 * lifted, self.sides))

        # nose: both sides at once, by the distance from the middle
        w = self._at("nose", (-0.22, 0.22, -0.50, 0.155), grid)
        relief, width = c("nose_relief"), c("nose_width")
        ax = np.abs(w.x)
        amount = hill(w.x, w.y + 0.16, w, 0.10, 0.34, 0.030 * relief)
        amount += hill(w.x, w.y, w, 0.105, 0.10, 0.030 * relief)
        amount += hollow(ax - (width + 0.01), w.y - 0.03, w, 0.035, 0.07, -0.20)
        amount += hollow(ax - 0.09, w.y + 0.22, w, 0.06, 0.03, -0.16 * c("s_nose_wrinkle"))
        amount += hollow(ax - 0.115, w.y + 0.26, w, 0.07, 0.16, -0.10)
        amount += hollow(w.x + 0.02, w.y + 0.015, w, 0.05, 0.05, 0.12)
        amount += hollow(w.x, w.y + 0.2, w, 0.035, 0.2, 0.06)
        amount += hollow(w.x, w.y - 0.105, w, 0.6 * width + 0.05, 0.05, -0.17)
        w.add(shade, amount)

        # forehead lines (brows up) and frown lines (brows together)
        w = self._at("forehead", (-0.40, 0.40, -0.20, 0.29), grid)
        raised = np.clip(c("s_brow_inner") + c("s_brow_outer"), 0, 2)
        frown = np.clip(c("s_frown"), 0, 2)
        amount = hollow(np.abs(w.x) - 0.045, w.y - 0.20, w, 0.018, 0.09, -0.05 * c("age") - 0.24 * frown)
        lines = hollow(w.x, w.y + 0.05, w, 0.40, 0.15, -0.06 * c("age") - 0.06 * raised)
        across = w.y - 0.15 * w.x * w.x
        across *= 10.5
        lines *= wave(across)
        amount += lines
        w.add(shade, amount)

        # folds from the nose to the mouth's corners, the hollow under the lip, the chin
        w = self._at("mouth", (-0.42, 0.42, -0.25, 0.45), grid)
        lift, half = c("q_mouth_lift"), c("q_mouth_half")
        ax = np.abs(w.x)
        along = np.clip((w.y + 0.24) * np.float32(1 / 0.30), 0, 1)
        fold = along * (half + 0.03 - width)
        fold += width + 0.05
        fold -= ax
        line = np.abs(fold, out=fold)
        line *= np.float32(-1 / 0.04)
        line += 1
        clip01(line)
        along -= along * along
        along *= 4
        line *= along
        cheek = np.clip(c("s_cheek"), 0, 2)
        line *= -0.05 - 0.10 * c("age") - 0.18 * cheek - 0.12 * c("s_nose_wrinkle")
        amount = line
        depth = -0.10 - 0.14 * np.clip(np.abs(c("s_corner")), 0, 1.2)
        amount += hollow(ax - (half + 0.015), w.y + 0.65 * lift, w, 0.05, 0.05, depth)
        low = 0.75 * c("q_mouth_open") + c("q_lip_lower")
        amount += hollow(w.x, w.y - (low + 0.055), w, 0.17, 0.055, -0.15)
        chin_y = w.y - (low + 0.17 - 0.03 * c("s_chin_raise"))
        amount += hill(w.x, chin_y, w, 0.17, 0.12, 0.020)
        pucker = hollow(w.x, chin_y, w, 0.13, 0.10, -0.10 * np.clip(c("s_chin_raise"), 0, 2))
        pucker *= wave(w.x * 14 + w.y * 9)
        amount += pucker
        amount += hollow(w.x, w.y + 0.14, w, 0.035, 0.08, -0.05)
        w.add(shade, amount)

    # -- the parts of the face; every stack from the front to the back ------------------------------------------------

    def _eyes(self) -> None:
        w = self._at("eyes", (-0.24, 0.25, -0.24, 0.13), self.grid)
        col, pu = self.columns.take(w.rows), w.per_unit
        side = self.sides.astype(np.float32)[:, None]
        light = np.clip(w.read(self.shade), 0.45, 1.2)
        width, up, down = col("eye_width"), col("q_eye_up"), col("q_eye_down")
        y = w.x * col("eye_tilt")
        y += w.y
        t = w.x / width
        t2 = t * t
        arch = np.clip(1 - t2, -0.6, 1)
        upper = (arch * -up) * (1 - 0.12 * t)
        lower = (arch * down) * (1 + 0.15 * t)
        inside = band(y, upper, lower, pu)
        inside *= edge(width - np.abs(w.x), pu)
        near = 1.15 - t2
        stack = Stack(w)

        # lashes: the dark line that reads as "eye" at any size
        thick = (0.011 + 0.016 * col("lashes")) * (0.45 + 0.55 * clip01(0.75 + 0.5 * t))
        lash = band(y, upper - thick, upper + 0.006, pu)
        lash *= clip01((1.12 - np.abs(t - 0.06)) * 6)
        lash *= 0.72 + 0.26 * col("lashes")
        stack.under(lash, BLACK)
        if self.fine:
            lash = band(y, lower - 0.003, lower + 0.006, pu)
            lash *= clip01(np.clip(near, 0, 0.2) * 5)
            lash *= 0.25 + 0.35 * col("lashes")
            stack.under(lash, BLACK, 2.0)

        # eyeball: glint, shadow of the lid, pupil, iris, inner corner, white
        gaze = col("n_gaze")
        iris_radius = col("iris_radius")
        dx = w.x - 0.030 * gaze[:, 0] * side
        dy = y - (0.012 * gaze[:, 1] - 0.10 * up)
        gx, gy = dx - side * 0.35 * iris_radius * np.sign(col("lx")), dy + 0.40 * iris_radius
        stack.under(edge(0.24 * iris_radius - np.sqrt(gx * gx + gy * gy), pu) * inside, WHITE)
        if self.fine:
            lid_shadow = clip01((upper + 0.045 - y) * np.float32(1 / 0.045))
            lid_shadow *= inside
            lid_shadow *= 0.35
            stack.under(lid_shadow, BLACK, 1.2)
        r = np.sqrt(dx * dx + dy * dy)
        stack.under(edge(0.42 * iris_radius - r, pu) * inside, BLACK, 0.4)
        rim = np.clip(r / iris_radius, 0, 1)
        rim *= rim
        rim *= rim
        glow = np.clip(dy / iris_radius, -0.6, 1) * 0.45
        glow -= 0.65 * rim
        glow += 0.95
        glow *= 0.5 * light + 0.55
        stack.under(edge(iris_radius - r, pu) * inside, col("iris_colour"), glow)
        skin = col("skin_colour")
        if self.fine:
            pink, _ = bump((w.x + 0.92 * width) * np.float32(1 / 0.035), y * np.float32(1 / 0.03))
            pink *= inside
            pink *= 0.9
            stack.under(pink, _pigment(0.80, 0.50, 0.46) * (0.4 + 0.6 * skin[:, :1]), light)
        ball = np.clip(upper + 0.035 - y, 0, 0.2) * -4.5
        ball -= 0.22 * t2
        ball += 1
        ball *= np.clip(0.45 + 0.55 * light, 0, 1.05)
        stack.under(inside, WHITE, ball * 0.96)

        # skin about the eye: crease, lid, lower rim
        red = skin * _pigment(0.86, 0.66, 0.62)
        crease_at = np.minimum(upper - 0.055 - 0.25 * (col("eye_height") - up), upper - 0.02)
        crease = band(y, crease_at - 0.013, crease_at + 0.005, pu)
        crease *= clip01(near * 2)
        crease *= 0.25 + 0.45 * col("lid_crease")
        stack.under(crease, red, 0.62 * light)
        if self.fine:
            lid = band(y, crease_at, upper, pu)
            lid *= clip01(near * 3)
            lid *= 0.55
            stack.under(lid, skin, 0.88 * light)
            below = band(y, lower, lower + 0.014, pu)
            below *= clip01(near * 1.5)
            below *= 0.5
            stack.under(below, red, light)
        self._paint(stack, self.visible)

    def _brows(self) -> None:
        w = self._at("brows", (-0.28, 0.26, -0.24, 0.15), self.grid)
        col, pu = self.columns.take(w.rows), w.per_unit
        length, shift = col("brow_length"), col("q_brow_shift")
        s = (w.x + (length + shift)) / (2 * length + shift)
        s1 = np.clip(s, 0, 1)
        middle = s1 * (1 - s1)
        middle *= -4 * col("brow_arch")
        middle -= s1 * (col("q_brow_outer") - col("q_brow_inner"))
        middle -= col("q_brow_inner")
        thick = 1.12 - 0.85 * s1 * s1
        thick *= col("brow_thickness")
        thick *= np.clip(0.55 + 5 * s1, 0, 1)
        hairs = wave(w.x * 17 - w.y * 9) if self.fine else np.float32(0.5)
        cover = band(w.y, middle - thick, middle + thick * (0.85 - 0.1 * hairs), pu)
        cover *= clip01(s * 9 + 0.4)
        cover *= clip01((1 - s) * 9 + 0.4)
        cover *= col("brow_density")
        cover *= 0.96 - 0.2 * hairs
        stack = Stack(w)
        stack.under(cover, 0.62 * col("hair_colour") + 0.06 * col("skin_colour"), np.clip(w.read(self.shade), 0.5, 1.2))
        self._paint(stack, self.visible)

    def _nose(self) -> None:
        w = self._at("nose", (-0.23, 0.23, -0.04, 0.12), self.grid)
        c, pu, light = self.c, w.per_unit, w.read(self.shade)
        ax = np.abs(w.x)
        width = c("nose_width")
        dark = c("skin_colour") * _pigment(0.42, 0.28, 0.26)
        stack = Stack(w)
        from_hole = ax - 0.46 * width
        x, y = from_hole / (0.34 * width), (w.y - 0.068 + 0.15 * from_hole) * np.float32(1 / 0.021)
        hole = edge((1 - np.sqrt(x * x + y * y)) * 0.025, pu)
        stack.under(hole * 0.85, dark, light)
        t = np.clip(ax / width, 0, 1.2)
        t2 = t * t
        base = band(w.y, 0.078 - 0.035 * t2, 0.092 - 0.045 * t2, pu) * clip01((1.02 - t) * 6)
        stack.under(base * 0.35, dark, light * 1.4)
        if self.fine:
            wing, _ = bump((ax - 1.02 * width) * np.float32(1 / 0.022), (w.y - 0.035) * np.float32(1 / 0.055))
            stack.under(wing * 0.55, dark, light * 1.5)
        self._paint(stack, self.visible)

    def _beard(self) -> None:
        rows = np.flatnonzero(np.maximum(self.people.beard_cheeks, self.people.beard_lip) > 0)
        if len(rows) == 0:
            return
        w = Window(self.camera.head().take(rows), rows, (-0.95, 0.95, -0.15, 1.15), self.grid)
        col = self.columns.take(rows)
        u, v = self._on_turned_face(col, w)
        t2 = u / col("head_width")
        t2 *= t2
        clip01(t2)
        mouth = col("mouth_y")
        lips = mouth + col("q_mouth_drop")
        grain = wave(u * 19 + v * 3)
        grain += wave(u * 31.3 - v * 11 + 0.4)
        grain += wave(v * 13.7 + u * 7.9)
        grain *= 0.6
        grain -= 0.9
        rest = 1 - t2
        line = (mouth - 0.02) - 0.58 * t2 * t2 + 0.10 * rest * rest
        alpha = clip01((v - line + 0.03 * grain) * 14) * col("beard_cheeks")
        cx, cy = u * np.float32(1 / 0.30), (v - (mouth + 0.30)) * np.float32(1 / 0.26)
        chin = clip01((1 - np.sqrt(cx * cx + cy * cy)) * 4 + 0.2 * grain)
        chin *= col("beard_chin")
        m2 = u / (col("q_mouth_half") + 0.05)
        m2 *= m2
        lip = band(v, (lips - 0.135) + 0.05 * m2, (lips - 0.03) + 0.10 * m2, np.minimum(w.per_unit, 30))
        lip *= clip01((1 - m2) * 4)
        lip *= col("beard_lip")
        alpha = np.maximum(np.maximum(alpha, chin), lip)
        alpha *= 0.89 - 0.22 * grain
        clip01(alpha)
        shade = np.clip(w.read(self.shade), 0.4, 1.2)
        shade *= 0.86 + 0.12 * grain
        stack = Stack(w)
        stack.under(alpha, 0.80 * col("hair_colour") + 0.05 * col("skin_colour"), shade)
        self._paint(stack, self.visible)

    def _mouth(self) -> None:
        w = self._at("mouth", (-0.44, 0.44, -0.22, 0.40), self.grid)
        c, pu = self.c, w.per_unit
        light = w.read(self.shade)
        half, lift, opening = c("q_mouth_half"), c("q_mouth_lift"), c("q_mouth_open")
        t = w.x / half
        at = np.abs(t)
        t1 = np.clip(t, -1.05, 1.05)
        t2 = t1 * t1
        q = np.clip(1 - t2, 0, 1)
        line = (0.35 - t2) * lift
        line *= 1 + c("lopsided") * t1
        upper_in = line - (0.25 * opening) * q
        lower_in = line + (0.75 * opening) * q
        full = np.sqrt(q)
        dip = clip01(1 - t2 * np.float32(1 / 0.22**2))
        dip *= dip
        upper_out = upper_in - c("q_lip_upper") * (0.45 * q + 0.55 * full) * (1 - (0.15 + 0.30 * c("cupid_bow")) * dip)
        lower_out = lower_in + c("q_lip_lower") * (0.35 * q + 0.65 * full)
        within = clip01((1.0 - at) * (half * pu) + 0.5)
        lips = c("lip_colour")
        dark = lips * _pigment(0.46, 0.30, 0.32)
        stack = Stack(w)

        # the line between closed lips, and the corners
        closed = band(w.y, line - 0.007, line + 0.006, pu)
        closed *= clip01((1.06 - at) * 8)
        closed *= 0.85 * np.clip(1 - opening / 0.03, 0, 1)
        stack.under(closed, dark, light)
        if self.fine:
            corner_y = (-0.65 * lift) * (1 + c("lopsided") * np.sign(t))
            ends, _ = bump((np.abs(w.x) - half) * np.float32(1 / 0.03), (w.y - corner_y) * np.float32(1 / 0.022))
            ends *= 0.35
            stack.under(ends, dark, light)

        # what an open mouth shows: teeth, tongue, dark
        hole = band(w.y, upper_in, lower_in, pu)
        hole *= within
        inside_light = np.clip(light, 0.45, 1.08)
        bite = upper_in + np.minimum(0.085, 0.62 * opening) * np.clip(q * 1.6, 0, 1)
        teeth = band(w.y, upper_in, bite, pu)
        teeth *= hole
        teeth *= 0.96 * clip01((0.86 - at) * 5)
        tooth = 0.93 - 0.22 * t2
        if self.fine:
            tooth -= 0.10 * clip01(1 - wave(w.x * 13 + 0.5) * 9)
        tooth *= inside_light
        stack.under(teeth, TOOTH, tooth)
        tongue, _ = bump(t1 * np.float32(1 / 0.75), (w.y - lower_in - 0.02) / (0.45 * opening + 0.01))
        tongue = clip01(tongue * 2)
        tongue *= hole
        tongue *= 0.8
        stack.under(tongue, TONGUE, inside_light)
        stack.under(hole, MOUTH, inside_light)

        # lips
        lower = band(w.y, lower_in - 0.004, lower_out, pu)
        lower *= within
        lower *= 0.92
        plump = 0.45 * c("q_lip_lower")
        sheen, _ = bump((t1 + 0.12) * 2, (w.y - lower_in - plump) / (plump + 0.01))
        sheen *= lower
        sheen *= 0.30
        stack.under(sheen, np.clip(lips * 1.1 + 0.25, 0, 1), light)
        stack.under(lower, lips, light)
        upper = band(w.y, upper_out, upper_in + 0.004, pu)
        upper *= within
        upper *= 0.92
        stack.under(upper, lips, light * 0.88)
        self._paint(stack, self.visible)

    def _marks(self) -> None:
        """Blush, freckles, a mole."""
        w = self._at("blush", (-0.26, 0.26, -0.22, 0.22), self.grid)
        col = self.columns.take(w.rows)
        red, _ = bump(w.x * np.float32(1 / 0.26), w.y * np.float32(1 / 0.22))
        red *= 0.025 + 0.13 * col("blush")
        red *= w.read(self.visible)
        w.tint(self.canvas, red)

        rows = np.flatnonzero(self.people.freckles > 0)
        if len(rows):
            w = self._at("freckles", (-0.62, 0.62, -0.20, 0.20), self.grid, rows)
            spots = wave(w.x * 9.1 + w.y * 5.3 + 0.2)
            spots *= wave(w.y * 11.3 - w.x * 4.1)
            spots *= wave(w.x * 6.7 - w.y * 8.9 + 0.6)
            spots = clip01((spots - 0.42) * 5)
            spots *= clip01(2.5 * bump(w.x * np.float32(1 / 0.62), w.y * np.float32(1 / 0.20))[0])
            spots *= 0.75 * self.columns.take(rows)("freckles")
            stack = Stack(w)
            stack.under(spots, self.columns.take(rows)("skin_colour") * _pigment(0.72, 0.52, 0.42))
            self._paint(stack, self.visible)

        rows = np.flatnonzero(self.people.mole > 0)
        if len(rows):
            w = self._at("mole", (-0.05, 0.05, -0.05, 0.05), self.grid, rows)
            stack = Stack(w)
            spot = edge(0.016 - np.sqrt(w.x * w.x + w.y * w.y), w.per_unit)
            stack.under(spot * 0.85, self.columns.take(rows)("skin_colour") * np.float32(0.35))
            self._paint(stack, self.visible)

    def _glasses(self) -> None:
        rows = np.flatnonzero(self.people.glasses > 0)
        if len(rows) == 0:
            return
        frame = self.camera.on_face(np.zeros(self.n), self._col("eye_y") + 0.03, above=0.04, flat=True).take(rows)
        w = Window(frame, rows, (-0.85, 0.85, -0.27, 0.27), self.grid)
        col, pu = self.columns.take(rows), w.per_unit
        thick, size, round_ = col("glasses_thickness"), col("glasses_size"), col("glasses_round")
        centre = col("eye_spacing") + 0.01
        rx, ry = (0.245 - 0.015 * round_) * size, (0.170 + 0.045 * round_) * size
        ax = np.abs(w.x)
        x, y = (ax - centre) / rx, w.y / ry
        x2, y2 = x * x, y * y
        distance = np.sqrt(x2 + y2)
        x2 *= x2
        y2 *= y2
        box = np.sqrt(np.sqrt(x2 + y2))
        distance -= box
        distance *= round_
        distance += box
        distance -= 1
        distance *= 0.5 * (rx + ry)
        stack = Stack(w)
        cover = edge((0.5 * thick + 0.006) - np.abs(distance), pu)
        bridge_y = 0.3 * ax * ax - 0.045
        bridge = band(w.y, bridge_y - thick, bridge_y + 0.004, pu)
        bridge *= edge((centre - rx) - ax, pu)
        temple = edge((0.5 * thick + 0.003) - np.abs(w.y + 0.075), pu)
        temple *= edge(ax - (centre + rx), pu)
        temple *= w.read(self.visible)
        cover = np.maximum(np.maximum(cover, bridge), temple)
        cover *= 0.96
        stack.under(cover, col("glasses_colour"), 0.9 + 0.35 * np.clip(-y, 0, 1))
        glare = clip01(1 - np.abs(x * 0.8 + y - 0.55) * np.float32(1 / 0.30)) * clip01(0.6 - y)
        lens = edge(-distance, pu)
        lens *= 0.05 + 0.20 * glare
        stack.under(lens, WHITE, 0.95)
        self._paint(stack, self.unhaired)

    # -- in front of the face -----------------------------------------------------------------------------------------

    def _occluder(self) -> None:
        for kind in (1, 2, 3):
            rows = np.flatnonzero(self.nuisance.occlusion == kind)
            if len(rows) == 0:
                continue
            col = self.columns.take(rows)
            place = self.nuisance.occluder[rows].astype(np.float64)
            norm = np.sqrt(1 + place[:, 3] ** 2)
            cos, sin = 1 / norm, place[:, 3] / norm
            turn = np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)
            frame = Frame.of(place[:, :2], turn)
            big = col("n_occluder")[:, 2]
            if kind == 1:
                w = Window(frame, rows, (-0.40, 0.40, -0.50, 3.0), self.grid)
                cover, shade = self._hand(w.x, w.y, 0.85 + 0.3 * big, w.per_unit)
                pigment = col("skin_colour")
            elif kind == 2:
                w = Window(frame, rows, (-0.56, 0.56, -0.2, 0.2), self.grid)
                cover = edge(0.22 + 0.3 * big - np.abs(w.x), w.per_unit)
                cover *= edge(0.16 - np.abs(w.y), w.per_unit)
                shade = 0.9 - 0.5 * w.y + 0.1 * wave(w.x * 6)
                pigment = col("n_occluder_colour")
            else:
                w = Window(frame, rows, (-0.4, 0.4, -0.4, 0.4), self.grid)
                radius = 0.16 + 0.2 * big
                nx, ny = w.x / radius, w.y / radius
                r2 = nx * nx + ny * ny
                cover = edge((1 - np.sqrt(r2)) * radius, w.per_unit)
                shade = 0.85 - 0.2 * nx - 0.4 * ny - 0.2 * r2
                pigment = col("n_occluder_colour")
            stack = Stack(w)
            stack.under(cover, pigment, shade)
            self._paint(stack)

    @staticmethod
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

    # -- the lens -----------------------------------------------------------------------------------------------------

    def _develop(self, out: NDArray[np.uint8], places: Ints) -> None:
        """Blur, noise, bytes."""
        for row in np.flatnonzero(self.nuisance.blur > 0).tolist():
            _blur(self.canvas[row], float(self.nuisance.blur[row]) * self.size / 96)
        count, streams = self.size * self.size, Streams()
        for row, place in enumerate(places.tolist()):
            picture = self.canvas[row]
            if self.nuisance.noise[row] > 0:
                # the sum of two bytes: a triangular distribution of mean 255 and standard deviation 104.5
                raw = streams.bytes(int(self.nuisance.key[row]), 3, 2 * count)
                grain = np.add(raw[:count], raw[-count:], dtype=np.uint16).astype(np.float32)
                strength = self.nuisance.noise[row] * np.float32(1 / 104.5)
                grain *= strength
                grain += np.float32(0.5) - 255 * strength
                picture += grain.reshape(1, self.size, self.size)
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
