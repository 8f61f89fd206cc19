"""The whole picture: hair, head, ears, neck, clothes and background, and the light on the head.

It is built from front to back: a map says how much of each pixel is not yet covered, and every layer takes its share of
it. Layers are single numbers per pixel, coverage times brightness; colours enter once, when the sums of all layers of a
pigment are known. The parts of the face are then painted in their own small windows, where the head is visible.

Smooth quantities (distances to outlines, light, tones) are computed at half the resolution and interpolated; coverage
is then computed from the interpolated distance at full resolution, so that outlines stay sharp.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._geometry import CHIN_LEAN, DEPTH, SQUARE
from ._raster import F32, Whole, Window, band, bump, clip01, edge, enlarge, scallop, wave
from ._relief import add_relief
from ._scene import Scene, pigment

WARM = pigment(0.80, 1.0, 1.0)  # shadows on skin are warm: red falls less


class _Patch(NamedTuple):
    """Coverage and brightness of something in a rectangle of one picture."""

    ys: slice
    xs: slice
    weight: F32
    shade: F32


def paint_layers(s: Scene) -> None:
    """Paints everything except the parts of the face, and stores the maps that those need in the scene."""
    n, side = s.n, len(s.coarse.at)
    half = Whole(s.camera.head, s.coarse)
    u, v = _on_turned_face(s, half)
    light = _light(s, half)
    in_front, shadow = _hair_in_front(s, half, u, v)
    add_relief(s, u.reshape(n, side, side), v.reshape(n, side, side), light.reshape(n, side, side))
    light.clip(0.22, 1.32, out=light)
    light *= shadow
    # Distances become coverage when they are pressed into [0, 1], which has to wait until they are interpolated.
    per_unit = half.per_unit * 2
    outline = _hair_outline(s, half)
    hair, head = _hair_mass(s, half, *outline), _head(s, half)
    for distance, softness in ((hair, per_unit), (in_front, np.minimum(per_unit * 0.8, 26)), (head, per_unit)):
        distance *= softness  # hair in front of skin has no sharp end
        distance += 0.5
    smooth = (hair, in_front, _hair_tone(s, half, *outline), head, light, _background(s))
    fields = np.stack(smooth, axis=1).reshape(n, len(smooth), side, side)
    beards = _beards(s, half, u, v)
    bare: list[list[_Patch]] = [[] for _ in range(n)]
    for row, patch in (*_ears(s), *_neck(s)):
        bare[row].append(patch)
    _compose(s, fields, beards, bare, dict(_clothes(s)))


def _compose(
    s: Scene, fields: F32, beards: dict[int, F32], bare: list[list[_Patch]], clothes: dict[int, _Patch]
) -> None:
    """Pictures from the hair in front to the background: the weights of every pigment, then their colours.

    Picture by picture: what one needs at full resolution stays in the processor's nearest cache.
    """
    n, size, c = s.n, s.size, s.c
    s.canvas, layer = np.empty((n, 3, size, size), dtype=np.float32), np.empty((3, size, size), dtype=np.float32)
    s.visible, s.unhaired, s.shade = (np.empty((n, size, size), dtype=np.float32) for _ in range(3))
    density = np.minimum(1.2 * c("hair_density")[:, 0], 1)
    lit, glow = c("skin_colour") * WARM, (c("skin_colour") * (1 - WARM) * s.exposure)[:, 0, 0]
    behind, blobs = c("n_background").reshape(-1, 2, 3, 1).swapaxes(0, 1)
    colours = (behind, blobs, c("hair_colour"), lit, c("n_clothes"))
    for row, pigments in enumerate(zip(*((colour * s.exposure)[..., None] for colour in colours), strict=True)):
        hair, front, tone, skin, shaded, mixed = enlarge(fields[row], size)
        hair.clip(0, density[row], out=hair)
        clip01(front)
        front *= hair
        unseen = 1 - front
        s.unhaired[row] = unseen
        front *= tone  # from here on the weight of the hair's colour
        # the head
        clip01(skin)
        skin *= unseen
        unseen -= skin
        s.visible[row], s.shade[row] = skin, shaded
        shaded *= skin
        if row in beards:
            weight, brightness = enlarge(beards[row], size)
            weight *= skin
            skin -= weight
            weight *= s.shade[row]
            shaded -= weight
            weight *= brightness
            front += weight
        # ears and neck
        for ys, xs, weight, shade in bare[row]:
            seen = weight * unseen[ys, xs]
            unseen[ys, xs] -= seen
            skin[ys, xs] += seen
            seen *= shade
            shaded[ys, xs] += seen
        # hair behind
        hair *= unseen
        unseen -= hair
        tone *= 0.72
        hair *= tone
        front += hair
        # clothes and background
        ys, xs, weight, shade = clothes[row]
        worn = weight * unseen[ys, xs]
        unseen[ys, xs] -= worn
        worn *= shade
        mixed *= unseen
        unseen -= mixed
        # colours; skin in light l is colour * (1 + WARM (l - 1)); only red has a remainder
        background, blob, hair_colour, skin_colour, clothes_colour = pigments
        picture = np.multiply(background, unseen, out=s.canvas[row])
        for colour, weight in ((blob, mixed), (hair_colour, front), (skin_colour, shaded)):
            picture += np.multiply(colour, weight, out=layer)
        skin *= glow[row]
        picture[0] += skin
        picture[:, ys, xs] += clothes_colour * worn


def _on_turned_face(s: Scene, w: Whole) -> tuple[F32, F32]:
    """Coordinates on the turned face of pixels whose coordinates as seen are ``w.x`` and ``w.y``.

    Inverts the camera on the ellipsoid of the head, to 0.02 face units up to the largest turns.
    """
    c = s.c
    across = w.x * (DEPTH / c("head_width"))
    depth = np.sqrt(clip01(DEPTH * DEPTH - (across * across + (w.y * w.y) * np.float32(DEPTH * DEPTH / 1.2))))
    return w.x * c("cos_yaw") - depth * c("sin_yaw"), w.y * c("cos_pitch") - depth * c("sin_pitch")


def _light(s: Scene, w: Whole) -> F32:
    """Light on the smooth head: 1 in front, more towards the light, less away from it."""
    c = s.c
    nx = w.x / c("head_width")
    nz = np.sqrt(clip01(1 - (nx * nx + (w.y * w.y) * np.float32(1 / 1.2))))
    light = nx * c("lx") + np.clip(w.y, -1, 1) * (0.9 * c("ly")) + nz * c("lz")
    return (light.clip(-0.1, 1) - c("lz")) * (0.52 * c("n_contrast")) + 1


def _hair_outline(s: Scene, w: Whole) -> tuple[F32, F32]:
    """Coordinates in which the mass of hair is the unit disc: an ellipse above, a curtain with round ends below."""
    c = s.c
    side = c("head_width") + c("hair_side")
    hx = w.x / (np.clip(w.y, 0, 2) * (c("hair_flare") * side) + side)
    below = (w.y * np.float32(1 / 0.3) - (c("hair_length") - 0.3) * np.float32(1 / 0.3)).clip(0, 9)
    return hx, below + np.clip(w.y, -9, 0) * (1 / (1 + c("hair_top")))


def _hair_mass(s: Scene, w: Whole, hx: F32, hy: F32) -> F32:
    """Distance into the mass of hair, behind and in front of the head, face units."""
    c = s.c
    # Curls: scallops along the outline, counted by the diamond angle x / (|x| + |y|), which needs no trigonometry.
    around = np.abs(w.x) + np.abs(w.y - 0.2) + 0.2
    curls = (scallop(w.x / around * 7.3 + w.y) - 0.6) * (1.7 * c("hair_curl"))
    f = (1 - (hy * hy + hx * hx - curls)) * 0.45  # squared: its slope at the edge is about 2
    bun = np.flatnonzero(s.people.hair_bun > 0)
    if len(bun):
        radius = c("hair_bun")[bun]
        x, y = w.x[bun], w.y[bun] + (1 + c("hair_top")[bun] + 0.3 * radius)
        f[bun] = np.maximum(f[bun], radius - np.sqrt(x * x + y * y))
    return f


def _hair_tone(s: Scene, w: Whole, hx: F32, hy: F32) -> F32:
    """Brightness of hair: light on a dome, strands that fan out from the parting, a band of gloss."""
    c = s.c
    strength = 0.5 * c("n_contrast")
    hx2 = hx * hx
    tone = np.sqrt(clip01(1 - (hy * hy + hx2))) * (c("lz") * strength) + hx * (c("lx") * strength)
    tone = tone + np.clip(hy, -1, 0.3) * (c("ly") * strength) + (0.95 - 0.6 * strength)
    fan = (w.x - c("hair_part") * c("head_width")) / (np.clip(w.y, -1.2, 0.6) + 1.55)
    strands = wave(fan * 6.7) + wave(fan * 15.1 + w.y * (0.5 + 18 * c("hair_curl"))) - 1
    gloss = w.y + (0.35 * hx2 + 0.74)
    tone = tone + strands * (0.11 + 0.6 * c("hair_curl")) + clip01(1 - gloss * gloss * (1 / 0.24**2)) * 0.16
    return tone.clip(0.25, 1.6, out=tone)


def _hair_in_front(s: Scene, w: Whole, u: F32, v: F32) -> tuple[F32, F32]:
    """Distance into what of the hair lies above the hairline or beside the cheeks, and its shadow (a factor)."""
    c = s.c
    t = u / c("head_width")
    temples = (t * t).clip(0, 1.3)
    temples *= temples
    fringe = scallop(u * 7.3) * (0.02 + 0.9 * c("hair_curl"))
    t -= c("hair_part")
    above = t * t * c("hair_sweep") + temples * temples * (0.12 - c("hairline")) + fringe - v
    above += c("hairline") - 0.5 * (0.02 + 0.9 * c("hair_curl"))  # the height above the hairline
    density = c("hair_density")
    shadow = clip01(above * (-2.5 * density) + (1 - 0.25 * density))
    beside = np.abs(w.x) - c("head_width") * (1 - c("hair_cover"))
    return np.maximum(above, np.minimum(beside, (c("hair_side_end") - w.y) * 0.4)), shadow  # strands thin out


def _head(s: Scene, w: Whole) -> F32:
    """Distance into the head: an ellipse whose lower half narrows to the chin and may be square."""
    c = s.c
    y = (w.y - (c("q_chin") - 1) * 0.5) * (2 / (c("q_chin") + 1))  # from -1 at the crown to 1 at the chin
    t = np.clip(y, 0, 1)
    t2 = t * t
    x = (t2 * (-CHIN_LEAN * c("sin_yaw")) + w.x) / (t2 * (-c("jaw_taper") * c("head_width")) + c("head_width"))
    x *= x
    inside: F32 = 1 - (y * y + x - t * t2 * x.clip(0, 1) * (SQUARE * c("jaw_square")))
    return inside * 0.42  # squared: its slope at the edge is about 2


def _beards(s: Scene, w: Whole, u: F32, v: F32) -> dict[int, F32]:
    """Coverage and brightness of beards by picture, shape ``(2, h, h)``; the lips are painted later."""
    rows = np.flatnonzero(np.maximum(s.people.beard_cheeks, s.people.beard_lip) > 0)
    if len(rows) == 0:
        return {}
    col, side = s.of(rows), len(s.coarse.at)
    u, v = u[rows], v[rows]
    t = u / col("head_width")
    t2 = clip01(t * t)
    mouth = col("mouth_y")
    lips = mouth + col("q_mouth_drop")
    grain: F32 = np.zeros_like(u)
    if s.fine:
        grain = (wave(u * 13 + v * 3) + wave(u * 17.3 - v * 9 + 0.4) + wave(v * 15.7 + u * 7.9)) * 0.6 - 0.9
    rest = 1 - t2
    line = (mouth - 0.02) - 0.58 * t2 * t2 + 0.10 * rest * rest
    cheeks = clip01((v - line + 0.03 * grain) * 14) * col("beard_cheeks")
    cx, cy = u * np.float32(1 / 0.30), (v - (mouth + 0.30)) * np.float32(1 / 0.26)
    chin = clip01((1 - np.sqrt(cx * cx + cy * cy)) * 4 + 0.2 * grain) * col("beard_chin")
    m = u / (col("q_mouth_half") + 0.05)
    m2 = m * m
    lip = band(v, (lips - 0.135) + 0.05 * m2, (lips - 0.03) + 0.10 * m2, np.minimum(w.per_unit[rows], 30))
    lip = lip * clip01((1 - m2) * 4) * col("beard_lip")
    alpha = clip01(np.maximum(np.maximum(cheeks, chin), lip) * (0.89 - 0.22 * grain))
    both = np.stack([alpha, 0.74 + 0.10 * grain], axis=1).reshape(len(rows), 2, side, side)
    return dict(zip(rows.tolist(), both, strict=True))


def _patches(w: Window, weight: F32, shade: F32) -> list[tuple[int, _Patch]]:
    """The patches computed in windows, by picture."""
    shape = (-1, w.height, w.width)
    parts = zip(w.places, weight.reshape(shape), shade.reshape(shape), strict=True)
    return [(row, _Patch(ys, xs, one, other)) for (row, ys, xs), one, other in parts]


def _ears(s: Scene) -> list[tuple[int, _Patch]]:
    """The ears of people whose hair does not cover them."""
    rows = np.flatnonzero((s.people.hair_side_end < 0.5) | (s.people.hair_density == 0))
    if len(rows) == 0:
        return []
    soft = 1 + 0.5 / (0.12 * s.camera.scale[rows] * s.grid.density)  # where coverage ends, in radii
    large = s.wide("ear_size")[rows]
    reach = (-0.105 * large * soft, 0.105 * large * (soft + 0.5), -0.20 * large * soft, 0.20 * large * soft)
    w = s.at("ears", reach, rows)
    col = s.of(w.rows)
    size = col("ear_size")
    y = w.y * (1 / (0.20 * size))
    x = w.x * (1 / (0.105 * size)) + 0.25 * np.clip(y, -1, 1) - 0.25  # wider at the top
    r = np.sqrt(x * x + y * y)
    if s.fine:
        shade = bump((x + 0.15) * np.float32(1 / 0.62), (y + 0.08) * np.float32(1 / 0.66))[0] * -0.42
    else:
        shade = np.clip(r, 0, 1) * 0.42 - 0.42
    shade += 0.92 + 0.30 * col("lx") * w.sides.astype(np.float32)[:, None]
    return _patches(w, edge(1 - r, 0.12 * w.per_unit), shade)


def _neck(s: Scene) -> list[tuple[int, _Patch]]:
    c = s.c
    w = Window(s.camera.body, s.everyone, (-0.75, 0.75, 0.50, 1.30), s.grid)
    x, y = w.x, w.y
    spread = np.clip(y - 0.95, 0, 1)
    half = spread * spread * 2.7 + c("neck_width")
    t = x / half
    t2 = t * t
    weight = edge(half - np.abs(x), w.per_unit) * edge((1.30 - 0.30 * t2) - y, w.per_unit)
    chin = clip01(y * np.float32(-1 / 0.30) + (c("q_chin") + 0.34) * np.float32(1 / 0.30) - t2)  # its shadow
    shade = chin * chin * -0.34 + t2 * -0.28 + t * (0.25 * c("lx")) + 0.90
    return _patches(w, weight * edge(y - 0.58, w.per_unit), shade)


def _clothes(s: Scene) -> list[tuple[int, _Patch]]:
    c = s.c
    w = Window(s.camera.body, s.everyone, (-9.0, 9.0, 1.0, 9.0), s.grid)
    ax = np.abs(w.x)
    slope, far = clip01(ax * 2 - 2 * c("neck_width")), np.clip(ax - 0.7, 0, 3)
    weight = edge(w.y - 1.06 - 0.16 * (slope * slope) - 0.22 * (far * far), w.per_unit)
    return _patches(w, weight, wave(w.x * 2.3 + 0.4 * w.y) * -0.06 + 0.92 + (0.25 * c("lx")) * w.x)


def _background(s: Scene) -> F32:
    """Share of the second colour, at half the resolution: a gradient and two soft discs."""
    g, at = s.c("n_gradient"), s.coarse.at
    x, y = at[None, None, :], at[None, :, None]
    mixed = (g[:, :1] * x + 0.5) + g[:, 1:] * y
    for k, sign in ((0, 1), (1, -1)):
        bx, by, radius = (s.c("n_blobs")[:, 3 * k + j : 3 * k + j + 1] for j in range(3))
        dx, dy = (x - bx) / radius, (y - by) / radius
        disc = (1 - dx * dx) - dy * dy
        mixed += disc.clip(0, 0.5, out=disc) * sign
    return clip01(mixed).reshape(s.n, -1)
