r"""Converts a squared distance of unit vectors to the unit of each host's margin.

The adaptive margin :math:`\hat\alpha` is a squared distance. For unit vectors with cosine s it is
:math:`D^2 = 2 - 2s`, so a threshold on a distance lies at :math:`\sqrt{\hat\alpha}`, a threshold on a cosine at
:math:`1 - \hat\alpha/2`, and two cosines whose squared distances differ by :math:`\hat\alpha` differ by
:math:`\hat\alpha/2`. Every function here takes ``(alpha, scale, module)`` and returns the value for the host's
attribute. Embeddings that are not normalised have squared distances in their own unit: a threshold is still exact, and
a gap is in that unit, like the host's own default.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

Value = float | Tensor
Formula = Callable[[Value, str, Any], Value]


def root(alpha: Value) -> Value:
    """√α̂, 0 below 0."""
    return alpha.clamp(min=0).sqrt() if isinstance(alpha, Tensor) else math.sqrt(max(alpha, 0.0))


def threshold(alpha: Value, scale: str, module: Any) -> Value:
    r"""Where a pair of squared distance :math:`\hat\alpha` lies: exact for distances, their powers and cosines.

    For a ratio of variances (SNR distance) it is :math:`\hat\alpha`, for anchors of unit norm and mean 0.
    """
    if scale == "similarity":
        return 1 - alpha / 2
    if scale in ("ratio", "squared distance"):
        return alpha
    return root(alpha) if scale == "distance" else root(alpha) ** module.distance.power


def either_side(alpha: Value, scale: str, module: Any) -> Value:
    r"""How far a pair has to stay from a boundary: :math:`\sqrt{\hat\alpha}` (margin loss).

    Each pair is compared only with the boundary, as with a threshold.
    """
    return alpha / 2 if scale == "similarity" else threshold(alpha, scale, module)


def gap_of_all_triplets(alpha: Value, scale: str, module: Any) -> Value:
    r"""How much farther a negative must be than a positive, if every triplet is used.

    :math:`\hat\alpha` between squared distances, :math:`\hat\alpha/2` between cosines, :math:`\hat\alpha/4` between
    distances.

    :math:`D_n^2 - D_p^2 = (D_n - D_p)(D_n + D_p)` and the sum of two distances of unit vectors is at most 4: if squared
    distances differ by :math:`\hat\alpha`, the distances differ by at least :math:`\hat\alpha/4`. With a larger gap
    nearly all triplets stay active, and the hard ones hardly affect the mean.
    """
    if scale == "similarity":
        return alpha / 2
    return alpha / 4 if scale == "distance" else alpha


def gap_of_chosen_triplets(alpha: Value, scale: str, module: Any) -> Value:
    r"""The same for triplets that were chosen. Between distances it is :math:`\sqrt2 - \sqrt{2 - \hat\alpha}`: the gap
    between a negative at a right angle, where unrelated unit vectors lie, and a positive whose squared distance is
    smaller by :math:`\hat\alpha`.
    """
    if scale != "distance":
        return gap_of_all_triplets(alpha, scale, module)
    return 2**0.5 - root(2 - alpha)


def cosine_gap(alpha: Value, scale: str, module: Any) -> Value:
    r"""Between the cosines of the own and of other classes: :math:`\hat\alpha/2` (CosFace, SoftTriple, manifold)."""
    return alpha / 2


def half_cosine_gap(alpha: Value, scale: str, module: Any) -> Value:
    r"""On both sides of 0: :math:`\hat\alpha/4` a side, :math:`\hat\alpha/2` between them (ProxyAnchor)."""
    return alpha / 4


def circle(alpha: Value, scale: str, module: Any) -> Value:
    r"""Boundaries at 1 − m and m are :math:`1 - 2m = \hat\alpha/2` apart: :math:`m = \tfrac12 - \hat\alpha/4`."""
    return 0.5 - alpha / 4


def quarter_angle(alpha: Value, scale: str, module: Any) -> Value:
    r"""A quarter of the angle of unit vectors of squared distance :math:`\hat\alpha`, in radians: ¼ arccos(1 − α̂/2).

    It is added to an angle that starts from about 90°. The whole angle could exceed a half turn. Of a half and a
    quarter, the quarter was better on validation classes in each setting tried (ArcFace).
    """
    if isinstance(alpha, Tensor):
        return (1 - alpha / 2).clamp(-1, 1).acos() / 4
    return math.acos(min(max(1 - alpha / 2, -1.0), 1.0)) / 4


def ranked_list(alpha: Value, scale: str, module: Any) -> Value:
    r"""Boundaries of squared distances :math:`\hat\alpha` apart: at 1 ± m/2 they are :math:`m \cdot 2` apart in
    squares, so :math:`m = \hat\alpha/2`; if the user sets the negative boundary a, :math:`m = a - \sqrt{a^2 -
    \hat\alpha}`.
    """
    if scale != "distance":
        return gap_of_all_triplets(alpha, scale, module)
    if negative_boundary_is_derived(module):
        return alpha / 2
    boundary = float(module.alpha)
    return boundary - root(boundary**2 - alpha)


def negative_boundary_is_derived(module: Any) -> bool:
    """Whether a ranked-list loss's negative boundary follows from its margin, instead of being set by the user."""
    return math.isclose(float(module.alpha), 1 + float(module.margin) / 2)
