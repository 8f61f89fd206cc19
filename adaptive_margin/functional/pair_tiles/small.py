"""Few rows on a CPU: one square matrix of all pairs, in numpy.

At N = 128 most of the time goes into starting operations, which takes numpy less time than torch. Matrix products are
torch's, because numpy's use threads of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..dependence import Array
from ..small_distances import small_distances
from .layout import side_of_sizes
from .means import counts_of, mean_of, value_of
from .options import Kind, Number, Options
from .rows import (
    ROUNDING,
    UNCLEAR,
    Rows,
    bounds_of,
    check_squares,
    lengths_of,
    over_lengths,
    tie_inside,
    tie_of,
    unclear_of,
)

SMALL = 512
"""Up to this number of rows on a CPU, one square matrix of all pairs is faster than sorting rows and finding tiles."""

MOST_LISTED = 2**19
"""Largest number of entries in the differences of pairs that are measured again; in tight groups, tiles have fewer."""


def small_pairs(
    x: Tensor, y: Tensor | None, margin: Tensor, labels: Tensor | None, options: Options
) -> SmallPairs | None:
    """The terms of one small set on a CPU, without their second moment; None of other sets, and if too many distances
    need more precision than products of coordinates give, or sums of float32 overflow.
    """
    if y is not None or not 0 < len(x) <= SMALL or options.second_moment or x.device.type != "cpu":
        return None
    labels = side_of_sizes(options.sizes or (), x.device).groups if labels is None else labels
    with np.errstate(all="ignore"):  # as torch has it; an overflow is an error, which names it
        measured = SmallPairs(x, margin, labels, options)
    return None if measured.inexact else measured


class SmallPairs:
    """All pairs of a few rows in one square matrix: a few operations on it.

    Attributes:
        inexact: whether tiles are needed; then nothing else is there.
        terms: attraction and repulsion.
        counts: as :func:`measure_pairs` counts pairs.
        of_margin: the repulsion's gradient for the margin, in a list that is empty if it is not wanted.
    """

    def __init__(self, given: Tensor, margin: Tensor, labels: Tensor, options: Options) -> None:
        groups, edge, x = labels.numpy(), margin.numpy(force=True), given.numpy(force=True)
        same = np.equal(groups[:, None], groups)
        valid = None  # which pairs have no ignored row; None for all
        if options.ignore_label is not None and not (taken := groups != options.ignore_label).all():
            mean = 0 if options.distance == "cosine" else np.add.reduce(x[taken]) / max(np.count_nonzero(taken), 1)
            x, valid = np.where(taken[:, None], x, mean).astype(x.dtype, copy=False), taken[:, None] & taken
        if options.distance == "cosine":
            x = x.copy()  # the caller can change its rows before a gradient is wanted
            squares, d = np.add.reduce(x * x, axis=1), _product(x, -x.T)
        else:
            x, squares, _, d = small_distances(x)
        rows = Rows(x, squares, given, float(np.maximum.reduce(squares)))
        check_squares("embeddings", rows, labels, options.ignore_label)
        distances = _Distances(x, d, options.distance)
        closed_form = not options.over_active and options.distance == "squared_l2" and options.pos_margin == 0
        kind: Kind = "inside" if options.over_active else "across"
        near = distances.within(unclear_of(kind, rows, edge, options))
        self.inexact = False
        if near is not None:
            near = near & ~same if closed_form else near | near.T
            near = near if valid is None else near & valid
            if near.any():
                listed = options.distance == "l2" or (options.distance == "squared_l2" and options.over_active)
                rounding = 2 * ROUNDING * torch.finfo(given.dtype).eps * rows.largest
                smallest = bounds_of(edge)[0] ** (2 if options.distance == "l2" else 1)
                few = np.count_nonzero(near) * x.shape[1] <= MOST_LISTED
                self.inexact = not (listed and few) or rounding > UNCLEAR * smallest
                if self.inexact:
                    return
                distances.measure_again(near, given.numpy(force=True))

        tie = tie_of(squares, edge, options.distance, given.dtype)
        across = np.subtract((edge - tie)[:, None], distances.d)
        hinges = _active(across, ~same if valid is None else ~same & valid)  # sums over ordered pairs, here and below
        active_of = np.add.reduce(across, axis=1)
        active = float(np.add.reduce(active_of))
        repulsion, scale = mean_of(hinges + float(active_of.dot(tie)), active)
        self.of_margin = []
        if options.margin_gradients:
            self.of_margin = [torch.from_numpy(active_of * scale) if margin.ndim else value_of(active * scale, given)]
        if margin.ndim:  # a pair counts from each of its ends
            across, scale = across + across.T, 0.5 * scale

        if options.only_first:
            same &= (groups == 0)[:, None]
        if valid is not None:
            same &= valid
        rows_in = len(x) if valid is None else np.count_nonzero(valid.diagonal())
        members = np.count_nonzero(same.diagonal()) if options.only_first else rows_in
        together = np.count_nonzero(same)  # including each row with itself
        pairs = together - members
        if closed_form:
            attraction, scale_inside, inside = _inside_in_closed_form(distances, same, pairs)
            across = distances.pull(across) if options.gradients else across
        else:
            attraction, scale_inside, inside = _inside(distances, rows, same, pairs, options)
        ends = 4 if options.distance == "squared_l2" else 2  # a row is at both ends of pairs; ∂|x - y|²/∂x = 2(x - y)
        self.distances = None if closed_form else distances
        self.of_rows = inside, across  # pulls in closed form, else weights
        self.scales = ends * scale_inside, -ends * scale
        self.terms = attraction, repulsion
        limit = torch.finfo(given.dtype).max
        self.inexact = not all(abs(float(term)) <= limit for term in self.terms)  # tiles sum smaller parts
        apart = 2 * members * (rows_in - members) if options.only_first else rows_in**2 - together
        self.counts = (0.5 * pairs, 0.5 * apart, active) if options.counts else ()

    def values(self, like: Tensor) -> list[Tensor]:
        """Attraction, repulsion, second moment (0) and counts."""
        counts = counts_of(*self.counts) if self.counts else torch.from_numpy(np.zeros(3, np.int64))
        return [*(value_of(number, like) for number in (*self.terms, 0.0)), counts]

    def gradients(self) -> list[Tensor]:
        """The gradient of either term for the rows, in the place of what :meth:`saved` has."""
        pulls = self.of_rows
        if self.distances is not None:
            pulls = self.distances.pull(pulls[0]), self.distances.pull(pulls[1])
        for pull, scale in zip(pulls, self.scales, strict=True):
            pull *= scale
        return [torch.from_numpy(pull) for pull in pulls]

    def saved(self) -> list[Tensor]:
        """What :func:`late_gradient` needs; not in closed form."""
        assert self.distances is not None
        arrays = self.distances.x, self.distances.d, *self.of_rows, *self.distances.again
        return [torch.from_numpy(array) for array in arrays]


def late_gradient(
    saved: Sequence[Tensor], distance: str, scales: tuple[Any, Any], of_attraction: float, of_repulsion: float
) -> Tensor:
    """The gradient of a weighted sum of both terms, with one product of matrices.

    Args:
        saved: as :meth:`SmallPairs.saved` returned it.
        distance: as in the options.
        scales: :attr:`SmallPairs.scales`.
        of_attraction: weight of the attraction.
        of_repulsion: weight of the repulsion.
    """
    x, d, inside, across, *again = (tensor.numpy() for tensor in saved)
    with np.errstate(all="ignore"):
        weights = inside * (of_attraction * scales[0]) + across * (of_repulsion * scales[1])
        return torch.from_numpy(_Distances(x, d, distance, again).pull(weights))


def _inside_in_closed_form(distances: _Distances, same: Array, pairs: float) -> tuple[Number, Number, Array]:
    """The mean of D² over pairs of one group, with the weight of one of them and the pull on each row.

    Over the ordered pairs of a group of n, D² adds up to 2n times the sum of |x_i - mean|²; a row is pulled by n times
    that difference.
    """
    inside = same.astype(distances.x.dtype)
    pull = distances.pull(inside)
    shares = pull / np.maximum(np.add.reduce(inside, axis=1), 1)[:, None]
    shares *= pull  # numpy's product of vectors uses threads, too
    return *mean_of(2 * float(np.add.reduce(shares, axis=None)), pairs), pull


def _inside(
    distances: _Distances, rows: Rows, same: Array, pairs: float, options: Options
) -> tuple[Number, Number, Array]:
    """The mean of the hinges of pairs of one group, with the weight of one of them, and 1 where a hinge is above 0."""
    beyond = np.full((), options.pos_margin, distances.x.dtype)
    ties = tie_inside(rows, beyond, options)
    np.fill_diagonal(same, False)
    inside = np.subtract(distances.d, beyond if ties is None else (beyond + ties)[:, None])
    again = tuple(distances.again[:2]) if ties is not None else ()  # no tie: they are exact
    if again:
        inside[again] = 0
    hinges = _active(inside, same)
    if options.over_active:
        hinges = hinges if ties is None else hinges + float(np.add.reduce(inside, axis=1).dot(ties))
        if again:
            listed = distances.d[again] - beyond
            listed *= same[again] & (listed > 8 * np.finfo(listed.dtype).eps * abs(beyond))
            hinges += float(np.add.reduce(listed))
            inside[again] = listed > 0
        pairs = float(np.add.reduce(inside, axis=None))
    return *mean_of(hinges, pairs), inside


def _active(hinges: Array, counted: Array) -> float:
    """The sum of the positive entries of those counted; puts 1 in their places and 0 elsewhere."""
    np.maximum(hinges, 0, out=hinges)
    hinges *= counted
    total = float(np.add.reduce(hinges, axis=None))
    np.greater(hinges, 0, out=hinges)
    return total


class _Distances:
    """The distances of all pairs of a few rows, and gradients of sums of them."""

    def __init__(self, x: Array, d: Array, distance: str, again: Sequence[Array] = ()) -> None:
        self.x, self.d, self.distance = x, d, distance  # d: (N, N); a similarity s counts as the distance -s
        self.again = again  # pairs (i, j) that are listed, and ∂d_ij/∂x_i, of a square half of it

    def within(self, unclear: Array | None) -> Array | None:
        """The pairs of two rows whose squared distance is at most ``unclear``; takes the root under L2 after that."""
        near = None
        if unclear is not None:
            near = self.d <= unclear[:, None]
            if np.count_nonzero(near) == np.count_nonzero(near.diagonal()):
                near = None
            else:
                np.fill_diagonal(near, False)  # a row does not pair with itself
        if self.distance == "l2":
            self.d = np.sqrt(self.d)
        return near

    def measure_again(self, near: Array, given: Array) -> None:
        """Takes the distances of some pairs from the differences of their rows."""
        i, j = near.nonzero()
        differences = torch.from_numpy(given[i] - given[j])
        exact = lengths_of(differences)
        if self.distance == "l2":
            differences = over_lengths(differences, exact)
        else:
            self.d, exact = self.d.copy(), exact.square()  # they can be shared
        self.d[i, j] = exact.numpy()
        self.again = i, j, differences.numpy()

    def pull(self, weights: Array) -> Array:
        """Sums of w_ij ∂d_ij/∂x_i over j, for symmetric weights, into which it may write; half of those of a square."""
        if self.again:
            i, j, directions = self.again
            pulls = directions * weights[i, j, None]
            weights[i, j] = 0
        if self.distance == "l2":
            np.fill_diagonal(self.d, 1)  # it has no weight
            weights /= self.d if self.d.all() else np.where(self.d > 0, self.d, np.inf).astype(self.d.dtype)
        pull = _product(weights, self.x)
        if self.again:
            torch.from_numpy(pull).index_add_(0, torch.from_numpy(i), torch.from_numpy(pulls), alpha=-1)
        if self.distance == "cosine":
            np.negative(pull, out=pull)  # ∂(-x·y)/∂x = -y
        else:
            np.subtract(self.x * np.add.reduce(weights, axis=1)[:, None], pull, out=pull)
        return pull


def _product(x: Array, y: Array) -> Array:
    product: Array = torch.mm(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    return product
