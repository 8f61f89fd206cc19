r"""Computes the action units of a feeling, and how a person's face shows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..messages import problem
from ._rows import Floats, Table
from .identity import FaceIdentity


@dataclass(frozen=True)
class ActionUnits(Table):
    """Intensities of facial action units (Ekman & Friesen's numbers), one row per expression, each in ``[0, 1]``."""

    au1: Floats  # inner brow raiser
    au2: Floats  # outer brow raiser
    au4: Floats  # brow lowerer
    au5: Floats  # upper lid raiser
    au6: Floats  # cheek raiser
    au7: Floats  # lid tightener
    au9: Floats  # nose wrinkler
    au12: Floats  # lip corner puller
    au15: Floats  # lip corner depressor
    au17: Floats  # chin raiser
    au20: Floats  # lip stretcher
    au24: Floats  # lip pressor
    au25: Floats  # lips part
    au26: Floats  # jaw drop
    au43: Floats  # eyes close


@dataclass(frozen=True)
class FaceShape(Table):
    """The movable parts of a face that are drawn, one row per picture.

    0 is the average resting face, 1 a full movement; ``corner``, the brows and ``lid_upper`` are signed.
    """

    corner: Floats  # mouth corners up
    stretch: Floats  # mouth wider
    open: Floats  # distance of the lips
    jaw: Floats  # chin down
    press: Floats  # lips thinner
    chin_raise: Floats  # lower lip pushed up
    brow_inner: Floats  # inner ends up
    brow_outer: Floats  # outer ends up
    frown: Floats  # brows together
    lid_upper: Floats  # upper lids up
    lid_lower: Floats  # lower lids up
    cheek: Floats
    nose_wrinkle: Floats


def check_felt(valence: ArrayLike, arousal: ArrayLike) -> tuple[Floats, Floats]:
    """Valence and arousal as equally long float64 vectors inside the unit disc; all else is a ``ValueError``."""
    v, a = np.asarray(valence, dtype=np.float64), np.asarray(arousal, dtype=np.float64)
    for argument, x in (("valence", v), ("arousal", a)):
        if x.ndim != 1:
            raise ValueError(problem(argument, "one-dimensional", f"shape {x.shape}", "pass one number per picture"))
    if len(v) != len(a):
        raise ValueError(problem("arousal", f"as long as valence ({len(v)})", len(a), "pass one pair per picture"))
    radius = np.sqrt(v * v + a * a)
    if not (radius <= 1 + 1e-6).all():  # also false for NaN
        at = int(np.flatnonzero(~(radius <= 1 + 1e-6))[0])
        remedy = "divide both labels by the radius, or drop the row"
        expected = "with arousal, finite and inside the unit disc"
        raise ValueError(problem("valence", expected, f"({v[at]:g}, {a[at]:g}) in row {at}", remedy))
    return v, a


def action_units(valence: ArrayLike, arousal: ArrayLike, distress_style: ArrayLike = 0.5) -> ActionUnits:
    r"""The action units of a feeling.

    With :math:`p = v_+,\ n = v_-,\ u = a_+,\ d = a_-` (positive parts) and the share of anger
    :math:`s` in negative arousal (:math:`1 - s` is fear), the intensities are

    .. math::
        \begin{aligned}
        AU_1 &= \tfrac12 u (1 - s n) + n (0.5 - 0.4 s u), &
        AU_2 &= 0.8 u (1 - s n), \\
        AU_4 &= n (0.45 + 0.55 s u), &
        AU_5 &= u (0.5 + 0.5 u), \\
        AU_6 &= p (0.4 + 0.6 p), &
        AU_7 &= 0.6 s n u, \\
        AU_9 &= s n (0.3 + 0.7 u), &
        AU_{12} &= p, \\
        AU_{15} &= n (0.9 - 0.3 u), &
        AU_{17} &= n (0.5 + 0.5 d) (1 - u), \\
        AU_{20} &= (1 - s) n u, &
        AU_{24} &= s n u, \\
        AU_{25} &= 0.55 u (1 - 0.3 s n) + 0.45 p, &
        AU_{26} &= u^2 (1 - 0.4 n), \\
        AU_{43} &= d.
        \end{aligned}

    Source: which units go with which emotion follows the prototypes of Ekman & Friesen's Facial Action Coding System
    (happiness 6+12, surprise 1+2+5+26, fear 1+2+4+5+20+26, anger 4+5+7+24, sadness 1+4+15+17) placed at their usual
    positions on Russell's circumplex; the coefficients are this package's own.

    Args:
        valence: :math:`v`, shape ``(n,)``.
        arousal: :math:`a`, shape ``(n,)``; :math:`v^2 + a^2 \le 1`.
        distress_style: :math:`s`, a number or shape ``(n,)``.

    Returns:
        One row per feeling. At fixed arousal ``au12 - au15`` increases with valence; at fixed valence ``au5 - au43``
        and ``au25`` increase with arousal.

    Raises:
        ValueError: wrong shapes, not finite, or outside the unit disc.

    Example:
        >>> happy = action_units([0.8], [0.2])
        >>> float(happy.au12[0]), float(happy.au15[0])
        (0.8, 0.0)
    """
    v, a = check_felt(valence, arousal)
    s = np.broadcast_to(np.asarray(distress_style, dtype=np.float64), v.shape)
    p, n, u, d = np.maximum(v, 0), np.maximum(-v, 0), np.maximum(a, 0), np.maximum(-a, 0)
    return ActionUnits(
        au1=0.5 * u * (1 - s * n) + n * (0.5 - 0.4 * s * u),
        au2=0.8 * u * (1 - s * n),
        au4=n * (0.45 + 0.55 * s * u),
        au5=u * (0.5 + 0.5 * u),
        au6=p * (0.4 + 0.6 * p),
        au7=0.6 * s * n * u,
        au9=s * n * (0.3 + 0.7 * u),
        au12=p,
        au15=n * (0.9 - 0.3 * u),
        au17=n * (0.5 + 0.5 * d) * (1 - u),
        au20=(1 - s) * n * u,
        au24=s * n * u,
        au25=0.55 * u * (1 - 0.3 * s * n) + 0.45 * p,
        au26=u * u * (1 - 0.4 * n),
        au43=d,
    )


def _saturate(x: Floats) -> Floats:
    """Strictly increasing, slope 1 at 0, flatter for strong movements, because muscles have a limited range."""
    return x / (1 + 0.3 * np.abs(x))


def face_shape(people: FaceIdentity, valence: ArrayLike, arousal: ArrayLike) -> FaceShape:
    r"""The shape of a person's face when the person feels ``(valence, arousal)``.

    Each movable part is :math:`m = \mathrm{sat}(\text{rest}_i + e_i\, g_i \cdot AU(v, a; s_i))`: the resting face of
    person :math:`i`, plus the action units times the person's expressivity :math:`e_i`, gain :math:`g_i` of that
    region, and style :math:`s_i`; :math:`\mathrm{sat}(x) = x / (1 + 0.3 |x|)`.

    Args:
        people: One row per picture.
        valence: Felt valence, shape ``(n,)``.
        arousal: Felt arousal, shape ``(n,)``.

    Returns:
        One row per picture, float32.

    Raises:
        ValueError: lengths differ, or labels outside the unit disc.

    Example:
        >>> from adaptive_margin.faces import sample_identities
        >>> person = sample_identities(1, seed=0)
        >>> sad, happy = (face_shape(person, [v], [0.0]) for v in (-0.9, 0.9))
        >>> bool(happy.corner[0] > sad.corner[0])
        True
    """
    au = action_units(valence, arousal, people.distress_style if len(people) == len(np.atleast_1d(valence)) else 0.5)
    if len(people) != len(au):
        remedy = "repeat people with people.take(index)"
        raise ValueError(problem("people", f"as many as labels ({len(au)})", f"{len(people)} rows", remedy))
    e, brow, eye, mouth = people.expressivity, people.brow_gain, people.eye_gain, people.mouth_gain
    parted = au.au25 - 0.45 * people.smile_closed * au.au12  # AU25 holds 0.45 AU12: some smile with closed lips
    shape = {
        "corner": people.rest_corner + e * mouth * (au.au12 - au.au15),
        "stretch": e * mouth * (0.6 * au.au12 + 0.7 * au.au20 - 0.3 * au.au24 - 0.35 * au.au26),
        "open": people.rest_open + e * mouth * (0.7 * parted + 0.75 * au.au26),
        "jaw": e * mouth * au.au26,
        "press": e * mouth * au.au24,
        "chin_raise": e * mouth * au.au17,
        "brow_inner": people.rest_brow + e * brow * (au.au1 - 0.8 * au.au4 * people.distress_style),
        "brow_outer": people.rest_brow + e * brow * (au.au2 - 0.5 * au.au4),
        "frown": people.rest_frown + e * brow * au.au4,
        "lid_upper": people.rest_lids + e * eye * (au.au5 - 0.9 * au.au43),
        "lid_lower": e * eye * (0.6 * au.au6 + 0.8 * au.au7),
        "cheek": e * mouth * au.au6,
        "nose_wrinkle": e * brow * au.au9,
    }
    return FaceShape(**{name: _saturate(np.asarray(x)).astype(np.float32) for name, x in shape.items()})
