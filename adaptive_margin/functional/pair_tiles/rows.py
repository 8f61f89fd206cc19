"""Rows relative to a centre that keeps their distances exact, and what rounding does to those distances."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...messages import problem
from ..checks import check_finite, is_blind
from .options import SMALLER, Distance, Kind, Options

UNCLEAR = 2.0**-12
"""If rounding could change a pair's distance, or the margin it is compared with, by this share, the pair is computed
again from the differences of its rows, provided that reading data is free."""


ROUNDING = 4
"""The error of a squared distance from products of coordinates, in units in the last place of the two squared norms:
the largest seen, for any number of coordinates."""


FAR_OFF = 3
"""Rows whose squared distance from the mean exceeds this many times the median have pulled the mean away from the
others."""


Numbers = Any
"""A tensor, or a numpy array of few rows."""


class Rows(NamedTuple):
    """Rows relative to a centre that makes differences exact, and their squared norms."""

    x: Numbers
    squares: Numbers
    given: Tensor  # the caller's rows, in the caller's order
    largest: float  # square; infinite where looking would wait


def rows_of(x: Tensor, given: Tensor) -> Rows:
    """Rows with their squared norms; ``given`` are the same in the caller's order and place."""
    squares = torch.linalg.vector_norm(x, dim=1).square_()
    return Rows(x, squares, given, squares.amax().item() if squares.device.type == "cpu" else math.inf)


def from_centre(
    x: Tensor, y: Tensor, given: Tensor, ref_given: Tensor, valid: Tensor | None, distance: str
) -> tuple[Rows, Rows]:
    """Rows and columns relative to the mean of the (valid) columns; for similarities, unchanged."""
    if distance == "cosine":
        rows = rows_of(x, given)
        return rows, rows if y is x else rows_of(y, ref_given)
    centre = y.mean(0) if valid is None else y.sum(0) / valid.sum().clamp_(min=1)
    cols = rows_of(y - centre, ref_given)
    near = _near_rows(cols, valid)
    if near is not None:
        centre = torch.where(near[:, None], y, 0.0).sum(0) / near.sum().clamp_(min=1)
        cols = rows_of(y - centre, ref_given)
    return cols if y is x else rows_of(x - centre, given), cols


def _near_rows(rows: Rows, valid: Tensor | None) -> Tensor | None:
    """Which rows are near, if a few others may have pulled the mean away from them; None if they have not."""
    squares: Tensor = rows.squares
    if squares.device.type == "cpu":
        median = squares.median()
        return squares <= median if rows.largest > FAR_OFF * median.item() else None
    near = squares <= FAR_OFF * (squares if valid is None else squares.masked_fill(~valid, torch.nan)).nanmedian()
    return near if valid is None else near & valid


def tie_of(squares: Numbers, margin: Numbers, distance: str, dtype: torch.dtype) -> Any:
    """How close to the margin a distance from each row counts as equal to it: the rounding error of distances there.

    If |x - y|² is m, |y|² is at most 2|x|² + 2m. A distance below half the margin never counts as equal.
    """
    rounding, tiny = ROUNDING * torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    if distance == "cosine":
        return 0 * squares + 2 * rounding
    blind = isinstance(margin, Tensor) and is_blind(margin)
    m = abs(margin).clip(min=tiny) if margin.ndim or blind else max(abs(margin.item()), tiny)
    if distance == "squared_l2":
        return (squares * (3 * rounding) + m * (2 * rounding)).clip(max=m / 2)
    return (squares * (1.5 * rounding / m) + m * rounding).clip(max=m / 2)


def ties_of_pairs(x: Tensor, y: Tensor, anchors: Tensor, margin: Tensor, distance: Distance | None) -> Tensor:
    """How close to the margin the distances of listed pairs count as equal to it, by the same rule as in tiles.

    Args:
        x: rows as the distance sees them, shape ``(B, D)``.
        y: the rows of the pairs' other ends, or ``x`` itself.
        anchors: the row of each pair, shape ``(P,)``.
        margin: margin of all pairs or of each pair, 0-dim or ``(P,)``.
        distance: as for :func:`pair_terms`; ``"dot"`` for :math:`D^2 = 2 - 2s`, None for any other.

    Returns:
        Shape ``(P,)``, or 0-dim if neither rows nor margins differ.
    """
    x, y, margin = x.detach(), y.detach(), margin.detach()
    rounding = ROUNDING * torch.finfo(x.dtype).eps
    if distance is None:
        return margin.abs() * rounding
    if distance == "dot":
        return margin.new_full((), 4 * rounding)
    rows, _ = from_centre(x, y, x, y, None, distance)
    ties: Tensor = tie_of(rows.squares[anchors], margin, distance, x.dtype)
    return ties


def tie_inside(rows: Rows, margin: Numbers, options: Options) -> Any:
    """:func:`tie_of` for the margin of pairs inside; at a margin of 0, for copies.

    None if it is not needed: for a mean over all pairs, and for copies under L2, whose distance is exactly 0.
    """
    if not options.over_active or (options.distance == "l2" and options.pos_margin == 0):
        return None
    if options.distance == "squared_l2":
        return rows.squares * (3 * ROUNDING * torch.finfo(rows.given.dtype).eps)
    return tie_of(rows.squares, margin, options.distance, rows.given.dtype)


def unclear_of(kind: Kind, rows: Rows, margin: Numbers, options: Options) -> Any:
    """The squared distance from each row up to which products of coordinates are too inexact.

    The error of a squared distance is the rounding error of the squared norms. For squared distances across groups the
    margin must be large compared with it; otherwise the distance itself, unless small distances hardly matter.
    """
    if options.distance == "cosine" or rows.given.device.type != "cpu":
        return None
    rounding = 2 * ROUNDING * torch.finfo(rows.given.dtype).eps
    if options.distance == "l2" or (kind == "inside" and options.over_active):
        return rows.squares * (rounding / UNCLEAR) + torch.finfo(rows.given.dtype).tiny
    if kind == "inside":
        return None
    low, high = bounds_of(margin)
    if rounding * rows.largest <= UNCLEAR * low:
        return None
    inexact = rows.squares * rounding
    matters = inexact > UNCLEAR * low
    return (inexact + high) * matters - 1.0 * ~matters


def bounds_of(margin: Numbers) -> tuple[float, float]:
    """The smallest and the largest size of a margin."""
    if margin.ndim == 0:
        return (abs(margin.item()),) * 2
    sizes = abs(margin)
    return float(sizes.min()), float(sizes.max())


def lengths_of(differences: Tensor) -> Tensor:
    """The norms of differences, also of those whose squares would vanish."""
    lengths: Tensor = torch.linalg.vector_norm(differences, dim=1)
    faint = 2.0**-50 if differences.dtype == torch.float32 else 2.0**-480
    if bool((lengths < faint).any()):
        scaled = torch.linalg.vector_norm(differences * faint**-2, dim=1) * faint**2
        lengths = torch.where(lengths < faint, scaled, lengths)
    return lengths


def over_lengths(differences: Tensor, lengths: Tensor) -> Tensor:
    """Differences divided by their norms, before a weight can overflow; 0 where the norm is."""
    quotient: Tensor = differences / lengths[:, None]
    return quotient.nan_to_num_(0.0, 0.0, 0.0)


def shortness_of(rows: Rows) -> Tensor:
    """1 - |x|², and 0 where that is the rounding of a unit row."""
    shortness: Tensor = 1 - rows.squares
    return shortness.mul_(shortness > 64 * torch.finfo(shortness.dtype).eps)


def check_squares(argument: str, rows: Rows, labels: Tensor | None, ignore_label: int | None) -> None:
    """Raises if a squared norm is not finite: because of NaN, infinity, or a number too large to be squared."""
    dtype, given = rows.given.dtype, rows.given
    limit = torch.finfo(dtype).max / 4  # no squared distance is larger than four squares
    if given.device.type != "cpu":
        message = f"{argument} must be finite and small enough to be squared in {dtype}"
        torch._assert_async(rows.squares.amax() <= limit, message)
    elif not rows.largest <= limit:  # NaN and infinity propagate
        if labels is not None and ignore_label is not None:
            given = torch.where((labels != ignore_label)[:, None], given, 0.0)
        check_finite(argument, given)
        got = f"a largest absolute value of {given.detach().abs().max().item():.3g}"
        raise ValueError(problem(argument, f"small enough to be squared in {dtype}", got, SMALLER))
