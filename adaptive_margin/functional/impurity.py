"""How much of the neighbourhood that ought to be a sample's own class still is not: what a leading margin follows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .checks import check_labels, check_matrix, check_same_features, is_blind, largest_magnitude, problem
from .dependence import at_least_float32, common_scale
from .groups import class_sizes, group_index
from .neighbourhood import (
    _by_distance,
    _centred,
    _first_copies,
    _keys,
    _leave_out_copy,
    _squares,
    _tile,
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
    others in Euclidean distance. 0 where the class stands apart, about :math:`1 - q_i` (:math:`q_i` the share of the
    class in the set) where labels and embeddings have nothing to do with each other. A class of one row has no such
    neighbourhood: :math:`\mu_i = 1 - q_i`.

    Distances are computed for a tile of rows at a time; time is O(N²·D), memory O(N). Among equal distances other
    labels come first, as in :func:`empirical_bias_k`.

    Source: ours; R-precision (Musgrave et al. 2020) of the batch, subtracted from 1.

    Args:
        embeddings: shape ``(B, D)``, as they come.
        labels: integers, shape ``(B,)``.
        ref_emb: neighbours and class sizes come from here instead, shape ``(R, D)``. Where it is another tensor than
            ``embeddings``, one exact copy of a sample, with its own label, is left out of its neighbours. A class that
            is not in it has :math:`\mu_i = 1`.
        ref_labels: their labels, shape ``(R,)``.

    Returns:
        Shape ``(B,)``, float32, float64 for float64 embeddings, in [0, 1].

    Raises:
        ValueError: shapes that do not fit, NaN or infinity.

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
def impurities(x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor) -> Tensor:
    """:func:`neighbourhood_impurity` of checked embeddings scaled by a power of two, with labels as group indices."""
    n = len(y)
    sizes = class_sizes(index, ref_index)
    if n == 0 or len(x) == 0:
        return x.new_ones(len(x))
    itself = y is x
    alone = 1 - sizes.to(x.dtype) / n  # of a class without a neighbourhood
    if is_blind(x):
        own, wanted = _own_in_sorted_tiles(x, index, y, ref_index)
    else:
        own, wanted = _own_in_partial_tiles(x, index, y, ref_index, sizes, itself)
    return torch.where(wanted > 0, 1 - own / wanted.clamp(min=1), alone)


def _own_in_sorted_tiles(x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor) -> tuple[Tensor, Tensor]:
    """Own labels among as many nearest as each row's class has others, and that many; without waiting for a device."""
    x, y = _centred(x, y)
    y_squares = _squares(y)
    found, wanted = [], []
    for start in _tile_starts(x, y):
        squares, own, _ = _tile(x, index, y, y_squares, ref_index, start, None)
        k = own.sum(1)  # without itself, or its copy
        nearest = _by_distance(squares, own).cumsum(1, dtype=x.dtype)
        found.append(nearest.gather(1, (k - 1).clamp(min=0)[:, None])[:, 0])
        wanted.append(k)
    return torch.cat(found), torch.cat(wanted)


def _own_in_partial_tiles(
    x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, sizes: Tensor, itself: bool
) -> tuple[Tensor, Tensor]:
    """The same with a partial sort of each tile, no farther than the largest class."""
    x, y = _centred(x, y)
    y_squares = _squares(y)
    copies = _first_copies(y, y_squares)
    kind = np.min_scalar_type(int(ref_index.max()) + 1 + int(index.max()))
    label, ref_label = index.numpy().astype(kind), ref_index.numpy().astype(kind)
    rows = min(len(x), _tile_rows(y))
    buffer, flags = torch.empty(rows, len(y), dtype=x.dtype), np.empty((rows, len(y)), dtype=np.bool_)
    wanted = sizes.numpy() - itself
    found = np.zeros(len(x), dtype=np.int64)
    for start in _tile_starts(x, y):
        squares = _tile_squares(x, y, y_squares, start, copies, buffer)
        tile = slice(start, start + len(squares))
        flag = flags[: len(squares)]
        np.equal(label[tile, None], ref_label, out=flag)
        if not itself:
            own = torch.from_numpy(flag)
            _leave_out_copy(squares, own)
            wanted[tile] = own.sum(1).numpy()
        key = _keys(squares).numpy()
        np.bitwise_or(key, flag, out=key)
        found[tile] = _own_of_nearest(key, wanted[tile])
    return torch.from_numpy(found).to(x.dtype), torch.from_numpy(wanted)


def _own_of_nearest(key: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Flags among the ``wanted`` smallest keys of each row; reorders ``key``."""
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
