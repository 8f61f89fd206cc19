"""The share of other classes in the neighbourhood that should be a sample's own class; a leading margin follows it."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import is_blind
from .groups import class_sizes
from .labelled_sets import check_sets, labelled_sets
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
    sets = labelled_sets(embeddings, labels, *check_sets(embeddings, labels, ref_emb, ref_labels))
    return impurities(*sets[:4])


@torch.no_grad()
def impurities(x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, rows: Tensor | None = None) -> Tensor:
    """:func:`neighbourhood_impurity` of checked embeddings scaled by a power of two, with labels as group indices.

    ``rows`` are those of ``x`` whose impurity is wanted; None for all.
    """
    n, itself = len(y), y is x
    sizes = class_sizes(index, ref_index)
    sizes = sizes if rows is None else sizes[rows]
    alone = 1 - sizes.to(x.dtype) / max(n, 1)  # of a class without a neighbourhood
    reach = n - itself if is_blind(x) else min(n - itself, int(sizes.max()) if len(sizes) else 0)
    if len(sizes) == 0 or reach < 1:
        return alone
    found = []
    for tile in own_neighbours(x, index, y, ref_index, reach, rows):
        wanted = sizes[tile.rows] - tile.left_out  # without itself, or its copy
        own = tile.own.cumsum(1).gather(1, (wanted - 1).clamp(min=0)[:, None])[:, 0]
        found.append(torch.where(wanted > 0, 1 - own.to(x.dtype) / wanted.clamp(min=1), alone[tile.rows]))
    return torch.cat(found)
