"""The share of other classes in the neighbourhood that should be a sample's own class; a leading margin follows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checks import (
    at_least_float32,
    check_labels,
    check_matrix,
    check_same_features,
    is_blind,
    largest_magnitude,
    problem,
)
from .dependence import common_scale
from .groups import class_sizes, group_index
from .neighbourhood import (
    _by_distance,
    _centred,
    _first_copies,
    _keys,
    _leave_out_copy,
    _squares,
    _tile_rows,
    _tile_squares,
    _tile_starts,
)


def neighbourhood_impurity(
    embeddings: Tensor, labels: Tensor, *, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
) -> Tensor:
    r"""Impurity of each sample's class-sized neighbourhood: the share of it that belongs to other classes.

    .. math:: \mu_i = 1 - \hat p_i(m_i - 1)

    with :math:`m_i` the size of sample i's class and :math:`\hat p_i(k)` the share of its own label among its k nearest
    others in Euclidean distance. It is 0 if the class is separate, and about :math:`1 - q_i` (:math:`q_i` is the share
    of the class in the set) if labels and embeddings are independent. A class with one row has no such neighbourhood:
    :math:`\mu_i = 1 - q_i`.

    Distances are computed for a tile of rows at a time; time is O(N²·D), memory O(N). In ties, other labels come first,
    as in :func:`empirical_bias_k`.

    Source: ours; R-precision (Musgrave et al. 2020) of the batch, subtracted from 1.

    Args:
        embeddings: shape ``(B, D)``, used without normalisation.
        labels: integers, shape ``(B,)``.
        ref_emb: neighbours and class sizes come from here instead, shape ``(R, D)``. If it is not the same tensor as
            ``embeddings``, one exact copy of a sample with the same label is left out of its neighbours. A class that
            is not in it has :math:`\mu_i = 1`.
        ref_labels: their labels, shape ``(R,)``.

    Returns:
        Shape ``(B,)``, float32, float64 for float64 embeddings, in [0, 1].

    Raises:
        ValueError: shapes that do not match, NaN or infinity.

    Example:
        >>> z = torch.tensor([[0.0], [0.1], [5.0], [5.2], [-0.2]])
        >>> neighbourhood_impurity(z, torch.tensor([0, 0, 1, 1, 1]))
        tensor([0.0000, 0.0000, 0.5000, 0.5000, 1.0000])
    """
    check_matrix("embeddings", embeddings)
    check_labels("labels", labels, len(embeddings))
    if ref_emb is None:
        ref_emb, ref_labels = embeddings, labels
    elif ref_labels is None:
        raise ValueError(problem("ref_labels", "given with ref_emb", "None", "pass the labels of ref_emb"))
    check_matrix("ref_emb", ref_emb)
    check_same_features("ref_emb", ref_emb, "embeddings", embeddings)
    assert ref_labels is not None
    check_labels("ref_labels", ref_labels, len(ref_emb), of="ref_emb")
    x = at_least_float32(embeddings)
    if ref_emb is embeddings and ref_labels is labels:
        x = y = x / common_scale(largest_magnitude("embeddings", x))
        index = ref_index = group_index(labels)
    else:
        y = at_least_float32(ref_emb).to(x)
        scale = common_scale(largest_magnitude("embeddings", x), largest_magnitude("ref_emb", y))
        x, y = x / scale, y / scale
        both = group_index(torch.cat([labels, ref_labels]))
        index, ref_index = both[: len(labels)], both[len(labels) :]
    return impurities(x, index, y, ref_index)


@torch.no_grad()
def impurities(x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, every: int = 1) -> Tensor:
    """:func:`neighbourhood_impurity` of checked embeddings scaled by a power of two, with labels as group indices.

    Args:
        x: embeddings, shape ``(B, D)``.
        index: their groups, numbered over both sets, shape ``(B,)``.
        y: the reference set, or ``x`` itself if there is none.
        ref_index: its groups.
        every: use one of this many rows.

    Returns:
        Shape ``(ceil(B / every),)``.
    """
    n = len(y)
    itself = y is x
    rows = torch.arange(0, len(x), every, device=x.device)
    sizes = class_sizes(index, ref_index)[rows]
    if n == 0 or len(x) == 0:
        return x.new_ones(len(rows))
    alone = 1 - sizes.to(x.dtype) / n  # of a class without a neighbourhood
    x, y = _centred(x, y)
    places = rows if itself else None
    if is_blind(x):
        own, wanted = _count_in_sorted_tiles(x[rows], index[rows], y, ref_index, places)
    else:
        own, wanted = _count_on_host(x[rows], index[rows], y, ref_index, sizes, places)
    return torch.where(wanted > 0, 1 - own.to(x.dtype) / wanted.clamp(min=1), alone)


Counts = tuple[Tensor, Tensor]
"""The number of own labels among the m - 1 nearest of each row, for a class of m rows, and m - 1."""


def _count_in_sorted_tiles(x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, places: Tensor | None) -> Counts:
    """For devices, without waiting for them, and for compiled code."""
    y_squares = _squares(y)
    found, wanted = [], []
    for start in _tile_starts(x, y):
        squares = _tile_squares(x, y, y_squares, start, None)
        tile = slice(start, start + len(squares))
        own = index[tile, None] == ref_index
        _leave_out(squares, own, None if places is None else places[tile])
        squares = torch.where(own, squares, _nearer(squares, _squares(x[tile])[:, None]))
        k = own.sum(1)  # without itself, or its copy
        nearest = _by_distance(squares, own).cumsum(1, dtype=torch.int32)
        found.append(nearest.gather(1, (k - 1).clamp(min=0)[:, None])[:, 0])
        wanted.append(k)
    return torch.cat(found), torch.cat(wanted)


TIE = 4
"""Rounding errors within which squared distances count as equal: of entries on a grid of 0.1, and of the products."""


def _nearer(squares: Tensor, lengths: Tensor) -> Tensor:
    """Squared distances to other labels, minus the possible rounding of equal ones: in a tie others come first."""
    eps = TIE * torch.finfo(squares.dtype).eps
    return squares.mul(1 - eps).sub_(2 * eps * lengths).clamp_(min=0)


def _leave_out(squares: Tensor, own: Tensor, places: Tensor | None) -> None:
    """Removes each row from its own neighbours, or one exact copy of it if the row is not among them."""
    if places is None:
        _leave_out_copy(squares, own)
    else:
        squares.scatter_(1, places[:, None], torch.inf)
        own.scatter_(1, places[:, None], False)


def _count_on_host(
    x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, sizes: Tensor, places: Tensor | None
) -> Counts:
    """Uses the fastest method for classes of this size: comparisons with own distances, or a partial sort."""
    y_squares = _squares(y)
    copies = _first_copies(y, y_squares)
    wanted = sizes - 1 if places is not None else sizes.clone()
    found = torch.zeros_like(sizes)
    members = _members(ref_index) if int(sizes.max()) <= FEW_OWN else None
    buffer = torch.empty(min(len(x), _tile_rows(y)), len(y), dtype=x.dtype)
    for start in _tile_starts(x, y):
        squares = _tile_squares(x, y, y_squares, start, copies, buffer)
        tile = slice(start, start + len(squares))
        if places is not None:
            squares.scatter_(1, places[tile, None], torch.inf)
        own = None if members is not None and places is not None else index[tile, None] == ref_index
        if places is None:
            assert own is not None
            _leave_out_copy(squares, own)
            wanted[tile] = own.sum(1)
        lengths = _squares(x[tile])[:, None]
        if members is None:
            assert own is not None
            key = _keys(torch.where(own, squares, _nearer(squares, lengths))).numpy()
            np.bitwise_or(key, own.numpy(), out=key)
            count = _own_of_nearest(key, wanted[tile].numpy())
        else:
            theirs = members[index[tile].numpy().clip(max=len(members) - 1)]
            count = _own_by_comparison(squares.numpy(), theirs, wanted[tile].numpy(), lengths.numpy())
        found[tile] = torch.from_numpy(count)
    return found, wanted


FEW_OWN = 16
"""Number of own labels up to which comparisons with each of their distances are faster than a partial sort."""

Array = NDArray[Any]


def _members(ref_index: Tensor) -> Array:
    """Rows of each group, shape ``(groups, largest)``, padded with -1; only for small groups."""
    groups = ref_index.numpy()
    order = np.argsort(groups, kind="stable")
    counts = np.bincount(groups)
    members = np.full((len(counts), max(1, int(counts.max()))), -1)
    place = np.arange(len(groups)) - np.repeat(counts.cumsum() - counts, counts)
    members[groups[order], place] = order
    return members


def _own_by_comparison(squares: Array, members: Array, wanted: Array, lengths: Array) -> Array:
    """How many of each row's ``members`` are among its ``wanted`` nearest; in a tie others come first.

    The t-th nearest member is, where t of the row's own and the others up to its distance are no more than wanted.
    """
    mine = np.where(members >= 0, np.take_along_axis(squares, members.clip(min=0), axis=1), np.inf)
    mine.sort(axis=1)
    eps = TIE * np.finfo(squares.dtype).eps
    reach = ((mine + 2 * eps * lengths) / (1 - eps)).astype(squares.dtype)  # as far are others that tie with it
    found = np.zeros(len(squares), dtype=np.int64)
    flags = np.empty(squares.shape, dtype=np.bool_)
    for t in range(1, int(wanted.max()) + 1):
        at = reach[:, t - 1, None]
        up_to = np.less_equal(squares, at, out=flags).sum(1, dtype=np.int32)
        others = up_to - (mine <= at).sum(1)
        inside = (t + others <= wanted) & (t <= wanted)
        if not inside.any():
            break
        found += inside
    return found


def _own_of_nearest(key: Array, wanted: Array) -> Array:
    """Flags, the last bits, among the ``wanted`` smallest keys of each row; reorders ``key``."""
    reach = int(wanted.max())
    if reach < 1:
        return np.zeros(len(key), dtype=np.int64)
    if reach < key.shape[1]:
        key.partition(reach - 1, axis=1)
    near = key[:, :reach]
    if int(wanted.min()) < reach:  # classes of several sizes
        near = np.sort(near, axis=1)
    own = np.cumsum(near & 1, axis=1)
    return np.where(wanted > 0, own[np.arange(len(key)), np.maximum(wanted, 1) - 1], 0)
