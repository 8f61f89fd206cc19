"""The share of other classes in the neighbourhood that should be a sample's own class; a leading margin follows it."""

from __future__ import annotations

import torch
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
from .own_neighbours import own_neighbours


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
def impurities(x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, rows: Tensor | None = None) -> Tensor:
    """:func:`neighbourhood_impurity` of checked embeddings scaled by a power of two, with labels as group indices.

    ``rows`` are those of ``x`` whose impurity is wanted; None for all.
    """
    n, itself = len(y), y is x
    sizes = class_sizes(index, ref_index)
    sizes = sizes if rows is None else sizes[rows]
    impurity = 1 - sizes.to(x.dtype) / max(n, 1)  # of a class without a neighbourhood
    if n == 0 or len(sizes) == 0:
        return impurity
    reach = n - itself if is_blind(x) else min(n - itself, int(sizes.max()))
    for tile in own_neighbours(x, index, y, ref_index, reach, rows) if reach else ():
        wanted = sizes[tile.rows] - tile.left_out  # without itself, or its copy
        own = tile.own.cumsum(1).gather(1, (wanted - 1).clamp(min=0)[:, None])[:, 0]
        pure = own.to(x.dtype) / wanted.clamp(min=1)
        impurity[tile.rows] = torch.where(wanted > 0, 1 - pure, impurity[tile.rows])
    return impurity
