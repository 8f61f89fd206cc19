"""The parts of the face, each painted in its own window, from front to back."""

from __future__ import annotations

import numpy as np

from ._raster import Window, band, bump, clip01, edge, wave
from ._scene import BLACK, MOUTH, TONGUE, TOOTH, WHITE, Scene, Stack, pigment


def paint_marks(s: Scene) -> None:
    """Blush, freckles, a mole."""
    w = s.at("cheeks", (-0.72, 0.72, -0.22, 0.22))
    c = s.c
    red, _ = bump((np.abs(w.x) - (c("eye_spacing") + 0.08)) * np.float32(1 / 0.26), w.y * np.float32(1 / 0.22))
    w.tint(s.canvas, red * (0.025 + 0.13 * c("blush")) * w.read(s.visible))

    rows = np.flatnonzero(s.people.freckles > 0)
    if len(rows):
        w = s.at("cheeks", (-0.62, 0.62, -0.24, 0.16), rows)
        spots = wave(w.x * 9.1 + w.y * 5.3 + 0.2) * wave(w.y * 11.3 - w.x * 4.1) * wave(w.x * 6.7 - w.y * 8.9 + 0.6)
        where = clip01(2.5 * bump(w.x * np.float32(1 / 0.62), (w.y + 0.04) * np.float32(1 / 0.20))[0])
        spots = clip01((spots - 0.42) * 5) * where * (0.75 * s.of(rows)("freckles"))
        Stack(w).under(spots, s.of(rows)("skin_colour") * pigment(0.72, 0.52, 0.42)).paint(s, s.visible)

    rows = np.flatnonzero(s.people.mole > 0)
    if len(rows):
        w = s.at("mole", (-0.05, 0.05, -0.05, 0.05), rows)
        spot = edge(0.016 - np.sqrt(w.x * w.x + w.y * w.y), w.per_unit)
        Stack(w).under(spot * 0.85, s.of(rows)("skin_colour") * np.float32(0.35)).paint(s, s.visible)


def paint_nose(s: Scene) -> None:
    """Nostrils, the line under the tip and the creases of the wings; the rest of the nose is relief."""
    w = s.at("nose", (-0.23, 0.23, -0.04, 0.12))
    c, pu, light = s.c, w.per_unit, w.read(s.shade)
    ax = np.abs(w.x)
    width = c("nose_width")
    dark = c("skin_colour") * pigment(0.42, 0.28, 0.26)
    stack = Stack(w)
    from_hole = ax - 0.46 * width
    x, y = from_hole / (0.34 * width), (w.y - 0.068 + 0.15 * from_hole) * np.float32(1 / 0.021)
    hole = edge((1 - np.sqrt(x * x + y * y)) * 0.025, pu)
    stack.under(hole * 0.85, dark, light)
    t = np.clip(ax / width, 0, 1.2)
    t2 = t * t
    base = band(w.y, 0.078 - 0.035 * t2, 0.092 - 0.045 * t2, pu) * clip01((1.02 - t) * 6)
    stack.under(base * 0.35, dark, light * 1.4)
    if s.fine:
        wing, _ = bump((ax - 1.02 * width) * np.float32(1 / 0.022), (w.y - 0.035) * np.float32(1 / 0.055))
        stack.under(wing * 0.55, dark, light * 1.5)
    stack.paint(s, s.visible)


def paint_eyes(s: Scene) -> None:
    """Lashes, eyeballs and lids, both eyes at once."""
    person, moved = s.people, s.moved
    # the highest thing is the crease of the lid, the lowest the rim; a tilted eye moves both
    tilted = 1.2 * np.abs(person.eye_tilt) * person.eye_width
    top = moved["eye_up"] + np.maximum(0.055 + 0.25 * (person.eye_height - moved["eye_up"]), 0.045) + 0.02 + tilted
    bottom = 1.2 * moved["eye_down"] + 0.02 + tilted
    reach = 1.2 * person.eye_width
    w = s.at("eyes", (-reach, reach, -top, bottom))
    col, pu = s.of(w.rows), w.per_unit
    side = w.sides.astype(np.float32)[:, None]
    light = np.clip(w.read(s.shade), 0.45, 1.2)
    width, up, down = col("eye_width"), col("q_eye_up"), col("q_eye_down")
    y = w.x * col("eye_tilt") + w.y
    t = w.x / width
    t2 = t * t
    arch = np.clip(1 - t2, -0.6, 1)
    upper = (arch * -up) * (1 - 0.12 * t)
    lower = (arch * down) * (1 + 0.15 * t)
    inside = band(y, upper, lower, pu) * edge(width - np.abs(w.x), pu)
    near = 1.15 - t2
    stack = Stack(w)

    # lashes: the dark line that reads as "eye" at any size
    thick = (0.011 + 0.016 * col("lashes")) * (0.45 + 0.55 * clip01(0.75 + 0.5 * t))
    lash = band(y, upper - thick, upper + 0.006, pu) * clip01((1.12 - np.abs(t - 0.06)) * 6)
    stack.under(lash * (0.72 + 0.26 * col("lashes")), BLACK)
    if s.fine:
        lash = band(y, lower - 0.003, lower + 0.006, pu) * clip01(np.clip(near, 0, 0.2) * 5)
        stack.under(lash * (0.25 + 0.35 * col("lashes")), BLACK, 2.0)

    # eyeball: glint, shadow of the lid, pupil, iris, inner corner, white
    gaze = col("n_gaze")
    iris_radius = col("iris_radius")
    dx = w.x - 0.030 * gaze[:, 0] * side
    dy = y - (0.012 * gaze[:, 1] - 0.10 * up)
    gx, gy = dx - side * 0.35 * iris_radius * np.sign(col("lx")), dy + 0.40 * iris_radius
    stack.under(edge(0.24 * iris_radius - np.sqrt(gx * gx + gy * gy), pu) * inside, WHITE)
    if s.fine:
        lid_shadow = clip01((upper + 0.045 - y) * np.float32(1 / 0.045))
        stack.under(lid_shadow * inside * 0.35, BLACK, 1.2)
    r = np.sqrt(dx * dx + dy * dy)
    stack.under(edge(0.42 * iris_radius - r, pu) * inside, BLACK, 0.4)
    rim = np.clip(r / iris_radius, 0, 1)
    rim *= rim
    glow = (np.clip(dy / iris_radius, -0.6, 1) * 0.45 - 0.65 * (rim * rim) + 0.95) * (0.5 * light + 0.55)
    stack.under(edge(iris_radius - r, pu) * inside, col("iris_colour"), glow)
    skin = col("skin_colour")
    if s.fine:
        pink, _ = bump((w.x + 0.92 * width) * np.float32(1 / 0.035), y * np.float32(1 / 0.03))
        stack.under(pink * inside * 0.9, pigment(0.80, 0.50, 0.46) * (0.4 + 0.6 * skin[:, :1]), light)
    ball = np.clip(upper + 0.035 - y, 0, 0.2) * -4.5 - 0.22 * t2 + 1
    ball *= np.clip(0.45 + 0.55 * light, 0, 1.05)
    stack.under(inside, WHITE, ball * 0.96)

    # skin about the eye: crease, lid, lower rim
    red = skin * pigment(0.86, 0.66, 0.62)
    crease_at = np.minimum(upper - 0.055 - 0.25 * (col("eye_height") - up), upper - 0.02)
    crease = band(y, crease_at - 0.013, crease_at + 0.005, pu) * clip01(near * 2)
    stack.under(crease * (0.25 + 0.45 * col("lid_crease")), red, 0.62 * light)
    if s.fine:
        stack.under(band(y, crease_at, upper, pu) * clip01(near * 3) * 0.55, skin, 0.88 * light)
        stack.under(band(y, lower, lower + 0.014, pu) * clip01(near * 1.5) * 0.5, red, light)
    stack.paint(s, s.visible)


def paint_mouth(s: Scene) -> None:
    """Lips, and the inside of an open mouth."""
    m = s.moved
    reach, tilted = 1.06 * m["mouth_half"] + 0.03, 0.35 + 1.11 * np.abs(s.people.lopsided)
    line = np.abs(m["mouth_lift"]) * (0.76 + tilted)  # no point of the line between the lips is further from its middle
    top = line + 0.25 * m["mouth_open"] + m["lip_upper"] + 0.02
    bottom = line + 0.75 * m["mouth_open"] + m["lip_lower"] + 0.02
    w = s.at("mouth", (-reach, reach, -top, bottom))
    c, pu = s.c, w.per_unit
    light = w.read(s.shade)
    half, lift, opening = c("q_mouth_half"), c("q_mouth_lift"), c("q_mouth_open")
    t = w.x / half
    at = np.abs(t)
    t1 = np.clip(t, -1.05, 1.05)
    t2 = t1 * t1
    q = np.clip(1 - t2, 0, 1)
    line = (0.35 - t2) * lift * (1 + c("lopsided") * t1)
    upper_in = line - (0.25 * opening) * q
    lower_in = line + (0.75 * opening) * q
    full = np.sqrt(q)
    dip = clip01(1 - t2 * np.float32(1 / 0.22**2))
    dip *= dip
    upper_out = upper_in - c("q_lip_upper") * (0.45 * q + 0.55 * full) * (1 - (0.15 + 0.30 * c("cupid_bow")) * dip)
    lower_out = lower_in + c("q_lip_lower") * (0.35 * q + 0.65 * full)
    within = clip01((1.0 - at) * (half * pu) + 0.5)
    lips = c("lip_colour")
    dark = lips * pigment(0.46, 0.30, 0.32)
    stack = Stack(w)

    # the line between closed lips, and the corners
    closed = band(w.y, line - 0.007, line + 0.006, pu) * clip01((1.06 - at) * 8)
    stack.under(closed * (0.85 * np.clip(1 - opening / 0.03, 0, 1)), dark, light)
    if s.fine:
        corner_y = (-0.65 * lift) * (1 + c("lopsided") * np.sign(t))
        ends, _ = bump((np.abs(w.x) - half) * np.float32(1 / 0.03), (w.y - corner_y) * np.float32(1 / 0.022))
        stack.under(ends * 0.35, dark, light)

    # inside an open mouth: teeth, tongue, dark
    hole = band(w.y, upper_in, lower_in, pu) * within
    inside_light = np.clip(light, 0.45, 1.08)
    bite = upper_in + np.minimum(0.085, 0.62 * opening) * np.clip(q * 1.6, 0, 1)
    teeth = band(w.y, upper_in, bite, pu) * hole * (0.96 * clip01((0.86 - at) * 5))
    tooth = 0.93 - 0.22 * t2
    if s.fine:
        tooth -= 0.10 * clip01(1 - wave(w.x * 13 + 0.5) * 9)
    stack.under(teeth, TOOTH, tooth * inside_light)
    if s.fine:
        tongue, _ = bump(t1 * np.float32(1 / 0.75), (w.y - lower_in - 0.02) / (0.45 * opening + 0.01))
        stack.under(clip01(tongue * 2) * hole * 0.8, TONGUE, inside_light)
    stack.under(hole, MOUTH, inside_light)

    # lips
    lower = band(w.y, lower_in - 0.004, lower_out, pu) * within * 0.92
    if s.fine:
        plump = 0.45 * c("q_lip_lower")
        sheen, _ = bump((t1 + 0.12) * 2, (w.y - lower_in - plump) / (plump + 0.01))
        stack.under(sheen * lower * 0.30, np.clip(lips * 1.1 + 0.25, 0, 1), light)
    stack.under(lower, lips, light)
    stack.under(band(w.y, upper_out, upper_in + 0.004, pu) * within * 0.92, lips, light * 0.88)
    stack.paint(s, s.visible)


def paint_brows(s: Scene) -> None:
    """Both brows, from the inner to the outer end."""
    person, moved = s.people, s.moved
    end = 1.1 * person.brow_length + 0.02
    thickest = 1.15 * person.brow_thickness
    top = np.maximum(np.maximum(moved["brow_inner"], moved["brow_outer"]), 0) + person.brow_arch + thickest
    bottom = thickest - np.minimum(np.minimum(moved["brow_inner"], moved["brow_outer"]), 0)
    w = s.at("brows", (-end - 1.1 * moved["brow_shift"], end, -top, bottom))
    col, pu = s.of(w.rows), w.per_unit
    length, shift = col("brow_length"), col("q_brow_shift")
    along = (w.x + (length + shift)) / (2 * length + shift)
    inner_to_outer = np.clip(along, 0, 1)
    middle = inner_to_outer * (1 - inner_to_outer) * (-4 * col("brow_arch"))
    middle = middle - inner_to_outer * (col("q_brow_outer") - col("q_brow_inner")) - col("q_brow_inner")
    thick = (1.12 - 0.85 * inner_to_outer * inner_to_outer) * col("brow_thickness")
    thick *= np.clip(0.55 + 5 * inner_to_outer, 0, 1)
    hairs = wave(w.x * 17 - w.y * 9) if s.fine else np.float32(0.5)
    cover = band(w.y, middle - thick, middle + thick * (0.85 - 0.1 * hairs), pu)
    cover = cover * clip01(along * 9 + 0.4) * clip01((1 - along) * 9 + 0.4)
    cover = cover * col("brow_density") * (0.96 - 0.2 * hairs)
    colour = 0.62 * col("hair_colour") + 0.06 * col("skin_colour")
    Stack(w).under(cover, colour, np.clip(w.read(s.shade), 0.5, 1.2)).paint(s, s.visible)


def paint_glasses(s: Scene) -> None:
    """Rims, bridge, temples, and a glare on the lenses."""
    rows = np.flatnonzero(s.people.glasses > 0)
    if len(rows) == 0:
        return
    frame = s.camera.on_face(np.zeros(s.n), s.wide("eye_y") + 0.03, above=0.04, flat=True).take(rows)
    people, camera = s.people.take(rows), s.camera
    rim = people.eye_spacing + 0.27 * people.glasses_size + people.glasses_thickness  # furthest, outwards
    high = 0.23 * people.glasses_size + people.glasses_thickness
    # temples reach to the outline of the head, which the plane of the glasses meets far out on the side turned here
    middle = camera.view(np.zeros(s.n), s.wide("eye_y"), camera.surface(np.zeros(s.n), s.wide("eye_y")) + 0.04)[0]
    left, right = ((s.wide("head_width") + sign * middle)[rows] / camera.cos_yaw[rows] + 0.03 for sign in (1, -1))
    w = Window(frame, rows, (-np.maximum(left, rim), np.maximum(right, rim), -high, high), s.grid)
    col, pu = s.of(rows), w.per_unit
    thick, size, round_ = col("glasses_thickness"), col("glasses_size"), col("glasses_round")
    centre = col("eye_spacing") + 0.01
    rx, ry = (0.245 - 0.015 * round_) * size, (0.170 + 0.045 * round_) * size
    ax = np.abs(w.x)
    x, y = (ax - centre) / rx, w.y / ry
    x2, y2 = x * x, y * y
    box = np.sqrt(np.sqrt(x2 * x2 + y2 * y2))
    distance = ((np.sqrt(x2 + y2) - box) * round_ + box - 1) * (0.5 * (rx + ry))
    stack = Stack(w)
    cover = edge((0.5 * thick + 0.006) - np.abs(distance), pu)
    bridge_y = 0.3 * ax * ax - 0.045
    bridge = band(w.y, bridge_y - thick, bridge_y + 0.004, pu) * edge((centre - rx) - ax, pu)
    temple = edge((0.5 * thick + 0.003) - np.abs(w.y + 0.075), pu) * edge(ax - (centre + rx), pu) * w.read(s.visible)
    cover = np.maximum(np.maximum(cover, bridge), temple) * 0.96
    stack.under(cover, col("glasses_colour"), 0.9 + 0.35 * np.clip(-y, 0, 1))
    glare = clip01(1 - np.abs(x * 0.8 + y - 0.55) * np.float32(1 / 0.30)) * clip01(0.6 - y)
    stack.under(edge(-distance, pu) * (0.05 + 0.20 * glare), WHITE, 0.95)
    stack.paint(s, s.unhaired)
