"""Identities: everything about a drawn person that does not change with the person's feelings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..messages import check_count, problem
from ._rows import Draws, Floats, Table, check_seed, mix

# What a head of hair can be. The renderer knows none of these names: a style is a set of numbers (see _hair).
HAIR_STYLES = ("bald", "buzz", "short", "side part", "fringe", "long", "long side part", "curly", "bun")
BEARD_STYLES = ("none", "stubble", "moustache", "goatee", "full")
GLASSES_STYLES = ("none", "round", "square", "wide")

# Colours run from 0 to 1 in sRGB.
_SKIN = np.array([(0.98, 0.86, 0.78), (0.95, 0.78, 0.65), (0.84, 0.64, 0.48), (0.64, 0.44, 0.31), (0.42, 0.28, 0.20)])
_HAIR = np.array([(0.09, 0.08, 0.08), (0.20, 0.13, 0.10), (0.36, 0.23, 0.14), (0.50, 0.24, 0.12), (0.76, 0.60, 0.36)])
_IRIS = np.array([(0.20, 0.11, 0.06), (0.36, 0.21, 0.10), (0.45, 0.36, 0.16), (0.33, 0.44, 0.26), (0.33, 0.48, 0.62)])
_FRAMES = np.array([(0.08, 0.08, 0.09), (0.25, 0.14, 0.08), (0.45, 0.40, 0.36), (0.50, 0.10, 0.14), (0.12, 0.18, 0.36)])


@dataclass(frozen=True)
class FaceIdentity(Table):
    """People, one per row, created by :func:`sample_identities`.

    Lengths are in face units: the head's centre is the origin, the crown about -1 and the chin about +1, ``x`` to the
    right of the picture, ``y`` downwards. Colours are sRGB in ``[0, 1]``, shape ``(n, 3)``; all other columns have the
    shape ``(n,)``.
    """

    # geometry of the head
    head_width: Floats  # half the width at the ears
    chin: Floats  # where the chin ends
    jaw_taper: Floats  # how much narrower the jaw is than the temples
    jaw_square: Floats  # 0 an egg, 1 a square jaw
    ear_size: Floats
    neck_width: Floats
    # eyes
    eye_spacing: Floats  # centre of an eye, from the middle
    eye_y: Floats
    eye_width: Floats  # half
    eye_height: Floats  # half, at rest
    eye_tilt: Floats  # outer corner up
    iris_radius: Floats
    iris_colour: Floats
    lid_crease: Floats
    lashes: Floats
    eye_bags: Floats
    # brows
    brow_y: Floats  # above the eye
    brow_thickness: Floats
    brow_arch: Floats
    brow_length: Floats  # half
    brow_density: Floats
    # nose
    nose_y: Floats  # the tip
    nose_width: Floats  # half, at the wings
    nose_relief: Floats
    # mouth
    mouth_y: Floats
    mouth_width: Floats  # half
    lip_upper: Floats
    lip_lower: Floats
    cupid_bow: Floats
    lip_colour: Floats
    # skin
    skin_colour: Floats
    blush: Floats
    freckles: Floats
    mole: Floats  # 0 none
    mole_x: Floats
    mole_y: Floats
    age: Floats  # 0 smooth, 1 wrinkled
    # hair: a style is a set of these numbers
    hair_style: Floats  # index into HAIR_STYLES, for the record only
    hair_colour: Floats
    hair_density: Floats  # 0 bald, 1 opaque
    hair_top: Floats  # volume above the skull
    hair_side: Floats  # volume beside it
    hairline: Floats  # y of the hairline in the middle of the forehead
    hair_part: Floats  # where the parting is, in head widths
    hair_sweep: Floats  # how far hair falls over the forehead away from the parting
    hair_cover: Floats  # how much of the cheeks hair covers
    hair_side_end: Floats  # y at which hair in front of the ears ends
    hair_length: Floats  # y at which hair behind the head ends
    hair_flare: Floats  # how much wider it gets on the way down
    hair_curl: Floats
    hair_bun: Floats  # radius of a bun, 0 none
    # beard
    beard_style: Floats  # index into BEARD_STYLES, for the record only
    beard_cheeks: Floats  # opacity on cheeks and jaw
    beard_chin: Floats
    beard_lip: Floats  # the moustache
    # glasses
    glasses: Floats  # index into GLASSES_STYLES
    glasses_size: Floats
    glasses_round: Floats  # 1 round, 0 square
    glasses_thickness: Floats
    glasses_colour: Floats
    # this person's resting face
    rest_corner: Floats  # mouth corners, in units of a full smile
    rest_brow: Floats  # brows up or down
    rest_frown: Floats
    rest_lids: Floats  # upper lids up or down
    rest_open: Floats  # lips habitually apart
    # how this person shows feelings
    expressivity: Floats  # multiplies every action unit
    brow_gain: Floats
    eye_gain: Floats
    mouth_gain: Floats
    smile_closed: Floats  # 1 smiles with the lips closed
    distress_style: Floats  # negative and aroused looks like 0 fear .. 1 anger
    lopsided: Floats  # one corner of the mouth moves more


AVERAGE = {
    "rest_corner": 0.0,
    "rest_brow": 0.0,
    "rest_frown": 0.1,
    "rest_lids": 0.0,
    "rest_open": 0.04,
    "smile_closed": 0.4,
    "distress_style": 0.5,
    "lopsided": 0.0,
}
"""The average of the columns that are scaled about it by :func:`vary`."""

AVERAGE_GAIN = {"expressivity": 1.0, "brow_gain": 0.95, "eye_gain": 1.0, "mouth_gain": 0.975}
"""The same for columns that multiply movements: their logarithms are scaled."""

MOST_EFFECT = 3.0
"""The largest ``person_effect``: at more, resting faces leave what the drawing can show."""


def check_effect(person_effect: float) -> float:
    """Raises a ``ValueError`` unless the dial is in its range."""
    if not 0 <= person_effect <= MOST_EFFECT:  # also for NaN
        remedy = "0 makes everybody show feelings alike, 1 is the default"
        raise ValueError(problem("person_effect", f"from 0 to {MOST_EFFECT:g}", person_effect, remedy))
    return float(person_effect)


def vary(people: FaceIdentity, person_effect: float) -> FaceIdentity:
    r"""The same looks, with resting faces and ways of showing emotion that differ less, or more, between people.

    .. math:: x_i \leftarrow \bar x + \tau (x_i - \bar x), \qquad g_i \leftarrow \bar g\,(g_i / \bar g)^\tau

    for the resting face and style :math:`x` of person :math:`i`, and for expressivity and gains :math:`g`;
    :math:`\bar x, \bar g` are averages of all people, and shares stay in [0, 1].

    Source: ours. It sets how much the feeling behind a face depends on who it is: not at all with 0.

    Args:
        people: their looks do not change.
        person_effect: :math:`\tau`, from 0 to 3; with 1 the people are unchanged, bit by bit.

    Returns:
        As many people.

    Raises:
        ValueError: :math:`\tau` out of range.

    Example:
        >>> alike = vary(sample_identities(100, seed=0), 0.0)
        >>> float(alike.rest_corner.std()), float(alike.expressivity.std())
        (0.0, 0.0)
    """
    tau = check_effect(person_effect)
    if tau == 1:
        return people
    columns: dict[str, Floats] = {}
    for name, mean in AVERAGE.items():
        columns[name] = mean + tau * (getattr(people, name).astype(np.float64) - mean)
    for name in ("rest_frown", "rest_open", "smile_closed", "distress_style"):
        columns[name] = np.clip(columns[name], 0, 1)
    for name, mean in AVERAGE_GAIN.items():
        columns[name] = mean * (getattr(people, name).astype(np.float64) / mean) ** tau
    return people.replace(**columns)


def check_people(argument: str, people: object) -> None:
    """Raises a ``TypeError`` unless ``people`` is a :class:`FaceIdentity`."""
    if not isinstance(people, FaceIdentity):
        remedy = "make it with sample_identities, choose and repeat rows with take(index)"
        raise TypeError(problem(argument, "a FaceIdentity", type(people).__name__, remedy))


def _palette(colours: Floats, position: Floats) -> Floats:
    """Colours interpolated along a palette; ``position`` runs from 0 to 1. Shape ``(n, 3)``."""
    knots = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(position, knots, colours[:, c]) for c in range(3)], axis=1)


def _hair(d: Draws, style: NDArray[np.int64], woman: Floats) -> dict[str, Floats]:
    """A style as numbers: one row of the table per style, then varied from person to person."""
    table = {  # bald, buzz, short, side part, fringe, long, long side part, curly, bun
        "hair_density": (0.0, 0.72, 1, 1, 1, 1, 1, 1, 1),
        "hair_top": (0.0, 0.02, 0.11, 0.15, 0.12, 0.10, 0.13, 0.24, 0.06),
        "hair_side": (0.0, 0.01, 0.05, 0.05, 0.10, 0.13, 0.15, 0.26, 0.03),
        "hairline": (-0.9, -0.64, -0.60, -0.64, -0.36, -0.68, -0.66, -0.55, -0.66),
        "hair_part": (0, 0, 0, 0.45, 0, 0, 0.40, 0, 0.1),
        "hair_sweep": (0, 0, 0.03, 0.12, 0.0, 0.34, 0.24, 0.02, 0.05),
        "hair_cover": (0, 0, 0.0, 0.0, 0.10, 0.15, 0.13, 0.10, 0.0),
        "hair_side_end": (-0.2, -0.08, 0.05, 0.08, 0.62, 1.25, 1.15, 0.42, -0.02),
        "hair_length": (0, 0.25, 0.35, 0.38, 0.75, 1.45, 1.40, 0.62, 0.3),
        "hair_flare": (0, -0.3, -0.3, -0.3, 0.02, 0.10, 0.12, -0.05, -0.3),
        "hair_curl": (0, 0, 0.02, 0.02, 0.01, 0.02, 0.05, 0.10, 0.01),
        "hair_bun": (0, 0, 0, 0, 0, 0, 0, 0, 0.30),
    }
    hair: dict[str, Floats] = {name: np.asarray(row, dtype=np.float64)[style] for name, row in table.items()}
    hairy = hair["hair_density"] > 0
    hair["hair_top"] *= d.uniform(0.75, 1.3)
    hair["hair_side"] *= d.uniform(0.75, 1.3)
    hair["hairline"] += np.where(style == 4, 0.5, 1.0) * d.uniform(-0.07, 0.06) + 0.03 * woman
    hair["hair_part"] *= np.where(d.chance(0.5), -1.0, 1.0) * d.uniform(0.7, 1.2)
    hair["hair_sweep"] *= d.uniform(0.7, 1.3)
    hair["hair_cover"] *= d.uniform(0.4, 1.4)
    hair["hair_length"] += np.where(hair["hair_length"] > 0.5, d.uniform(-0.15, 0.25), 0.0)
    hair["hair_side_end"] += np.where(hair["hair_length"] > 0.5, d.uniform(-0.1, 0.15), d.uniform(-0.06, 0.1))
    hair["hair_curl"] += np.where(hairy, d.uniform(0.0, 0.02), 0.0)
    hair["hair_bun"] *= d.uniform(0.8, 1.2)
    return hair


def sample_identities(n: int, seed: int = 0) -> FaceIdentity:
    """Random people; person ``i`` of a seed is the same for every ``n``.

    Appearance is drawn with the correlations that make faces plausible (age and grey hair, skin and eye colour, beards
    and jaws); the resting face, the expressivity and the style of showing emotion are drawn independently of it, so a
    stranger's looks say nothing about how that stranger shows feelings.

    Args:
        n: Number of people.
        seed: Any integer in ``[0, 2**64)``.

    Returns:
        ``n`` rows.

    Raises:
        TypeError: ``n`` or ``seed`` is not an integer.
        ValueError: ``n < 1`` or ``seed`` out of range.

    Example:
        >>> people = sample_identities(3, seed=1)
        >>> len(people), people.skin_colour.shape
        (3, (3, 3))
        >>> bool(people.rest_corner[2] == sample_identities(100, seed=1).rest_corner[2])
        True
    """
    n = check_count("n", n, 1)
    d = Draws(mix(check_seed("seed", seed), np.arange(n)), purpose=1, uniforms=80, normals=48)

    # Two hidden variables give appearance its correlations and are not kept.
    woman = np.where(d.chance(0.5), d.uniform(0.6, 1.0), d.uniform(0.0, 0.4))
    man = 1 - woman
    age = d.uniform() ** 1.5
    tone = d.uniform()

    skin = _palette(_SKIN, tone) + 0.02 * d.normal(0, 1, -2, 2)[:, None] * np.array([0.4, 0.0, -1.0])
    lips = skin * np.array([0.86, 0.62, 0.60]) + np.array([0.06, 0.01, 0.02])
    painted = (woman * d.uniform() > 0.45)[:, None] * d.uniform(0.3, 0.9)[:, None]
    lips = lips + painted * (_palette(np.array([(0.62, 0.10, 0.16), (0.80, 0.28, 0.36)]), d.uniform()) - lips)

    # Light hair and light eyes go with light skin.
    fair = np.clip(1.15 - 1.6 * tone, 0.05, 1)
    hair_colour = _palette(_HAIR, d.uniform() * fair)
    grey = (np.clip(1.6 * (age - 0.55), 0, 1) * d.uniform(0.4, 1.2))[:, None]
    hair_colour = hair_colour + np.clip(grey, 0, 1) * (np.array([0.70, 0.69, 0.68]) - hair_colour)
    iris = _palette(_IRIS, d.uniform() * fair)

    short = 0.25 + man
    hair_style = d.choice(
        [0.25 * man * (0.5 + age), 0.4 * man, short, short, woman, 1.4 * woman, 1.2 * woman, 0.2 + 0.25 * tone, woman]
    )
    hair = _hair(d, hair_style, woman)

    bearded = np.where(woman > 0.5, 0.0, 1.0)
    beard_style = d.choice([1 + 4 * (1 - bearded), 0.5 * bearded, 0.25 * bearded, 0.3 * bearded, 0.6 * bearded])
    beard_rows = np.array([(0, 0, 0), (0.22, 0.28, 0.24), (0, 0, 0.9), (0, 0.9, 0.8), (0.85, 0.95, 0.85)])
    beard = beard_rows[beard_style] * d.uniform(0.75, 1.0)[:, None]

    glasses = d.choice([0.70, 0.10, 0.12, 0.08])

    columns: dict[str, Floats] = {
        "head_width": d.normal(0.745, 0.03, 0.68, 0.82) + 0.015 * man,
        "chin": d.normal(0.985, 0.025, 0.92, 1.05) + 0.03 * (man - 0.5),
        "jaw_taper": d.normal(0.18, 0.05, 0.06, 0.30) + 0.06 * woman,
        "jaw_square": np.clip(d.normal(0.35, 0.18, 0, 0.9) * (0.5 + man), 0, 1),
        "ear_size": d.normal(1.0, 0.12, 0.75, 1.3),
        "neck_width": d.normal(0.44, 0.03, 0.36, 0.52) + 0.07 * man,
        "eye_spacing": d.normal(0.325, 0.02, 0.285, 0.37),
        "eye_y": d.normal(-0.03, 0.025, -0.08, 0.03),
        "eye_width": d.normal(0.172, 0.012, 0.145, 0.20),
        "eye_height": d.normal(0.070, 0.009, 0.050, 0.092) + 0.006 * woman,
        "eye_tilt": d.normal(0.05, 0.07, -0.12, 0.22),
        "iris_radius": d.normal(0.081, 0.004, 0.072, 0.09),
        "iris_colour": iris,
        "lid_crease": d.uniform(0.15, 1.0),
        "lashes": 0.15 + 0.85 * woman * d.uniform(0.3, 1.0),
        "eye_bags": np.clip(0.15 + 0.6 * age + d.normal(0, 0.15, -0.3, 0.3), 0, 1),
        "brow_y": d.normal(0.205, 0.018, 0.165, 0.25) + 0.02 * woman,
        "brow_thickness": d.normal(0.026, 0.006, 0.014, 0.042) + 0.012 * man,
        "brow_arch": d.normal(0.035, 0.015, 0.0, 0.075) + 0.02 * woman,
        "brow_length": d.normal(0.185, 0.014, 0.15, 0.22),
        "brow_density": d.uniform(0.6, 0.98),
        "nose_y": d.normal(0.33, 0.03, 0.26, 0.40),
        "nose_width": d.normal(0.125, 0.016, 0.09, 0.17) + 0.02 * tone,
        "nose_relief": d.uniform(0.7, 1.3),
        "mouth_y": d.normal(0.595, 0.022, 0.55, 0.645),
        "mouth_width": d.normal(0.25, 0.02, 0.205, 0.30),
        "lip_upper": d.normal(0.044, 0.010, 0.022, 0.070) + 0.008 * tone,
        "lip_lower": d.normal(0.060, 0.011, 0.036, 0.090) + 0.010 * tone,
        "cupid_bow": d.uniform(),
        "lip_colour": np.clip(lips, 0, 1),
        "skin_colour": np.clip(skin, 0, 1),
        "blush": d.uniform(0.0, 1.0) * (1 - 0.6 * tone),
        "freckles": np.where(d.chance(0.25 * fair), d.uniform(0.4, 1.0), 0.0),
        "mole": np.where(d.chance(0.15), 1.0, 0.0),
        "mole_x": d.uniform(-0.5, 0.5),
        "mole_y": d.uniform(0.2, 0.75),
        "age": age,
        "hair_style": hair_style.astype(np.float64),
        "hair_colour": np.clip(hair_colour, 0, 1),
        **hair,
        "beard_style": beard_style.astype(np.float64),
        "beard_cheeks": beard[:, 0],
        "beard_chin": beard[:, 1],
        "beard_lip": beard[:, 2],
        "glasses": glasses.astype(np.float64),
        "glasses_size": d.uniform(0.9, 1.15) * np.array([1.0, 1.0, 1.0, 1.12])[glasses],
        "glasses_round": np.array([0.0, 1.0, 0.25, 0.6])[glasses],
        "glasses_thickness": d.uniform(0.012, 0.032),
        "glasses_colour": _palette(_FRAMES, d.uniform()),
        "rest_corner": d.normal(0.0, 0.28, -0.65, 0.65),
        "rest_brow": d.normal(0.0, 0.25, -0.6, 0.6),
        "rest_frown": np.clip(d.normal(0.0, 0.25, -0.6, 0.6), 0, 1),
        "rest_lids": d.normal(0.0, 0.25, -0.6, 0.6),
        "rest_open": np.clip(d.normal(-0.05, 0.15, -0.4, 0.4), 0, 1),
        "expressivity": np.exp(d.normal(0.0, 0.32, -0.8, 0.5)),
        "brow_gain": d.uniform(0.6, 1.3),
        "eye_gain": d.uniform(0.7, 1.3),
        "mouth_gain": d.uniform(0.7, 1.25),
        "smile_closed": np.where(d.chance(0.35), d.uniform(0.7, 1.0), d.uniform(0.0, 0.3)),
        "distress_style": d.uniform(),
        "lopsided": d.normal(0.0, 0.15, -0.4, 0.4),
    }
    return FaceIdentity(**{name: np.asarray(column, dtype=np.float32) for name, column in columns.items()})
