"""The purity of the neighbourhoods of a batch: the confidence term of Eq. 8 and its neighbourhood size."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..messages import problem
from .checks import check_number, is_blind
from .dependence import Array
from .groups import group_index
from .labelled_sets import check_sets, labelled_sets
from .own_neighbours import counts_of, own_neighbours

Significant = Callable[[Tensor, Tensor, int, Tensor, float], Tensor]
"""``significant(share, k, n, labels, confidence)``: whether a share of own labels among k neighbours is evidence."""


def check_confidence(confidence: float) -> None:
    """Raises unless ``confidence`` is in (0, 1]."""
    expected, remedy = "in (0, 1]", "the paper uses 0.05"
    if not 0 < check_number("confidence", confidence, expected, remedy) <= 1:
        raise ValueError(problem("confidence", expected, confidence, remedy))


def confidence_term(n: int | Tensor, k: int | float | Tensor, confidence: float = 0.05) -> Tensor:
    r"""Confidence term of the adaptive margin, :math:`\Delta(N, K) = \frac{1}{2K}\log\frac{N}{c}`.

    Source: Kim & Song 2021, Eq. (8), after Balsubramani et al. 2019. It is the square of Hoeffding's bound on the bias
    of a neighbourhood of K samples: it grows as smaller and smaller neighbourhoods become pure.

    Args:
        n: N, the number of samples, at least 1.
        k: K, the neighbourhood size, at least 1, any shape.
        confidence: c, in (0, 1].

    Returns:
        :math:`\Delta`, the shape of ``k`` (0-dim for numbers), in units of a squared distance, positive.

    Raises:
        ValueError: ``n`` or ``k`` below 1, or ``confidence`` outside (0, 1].

    Example:
        >>> confidence_term(256, 10)
        tensor(0.4270)
    """
    check_confidence(confidence)
    for argument, number in (("n", n), ("k", k)):
        if not isinstance(number, Tensor) and not number >= 1:
            raise ValueError(problem(argument, "at least 1", number, "count samples, the anchor's own excluded for k"))
    k = torch.as_tensor(k)
    k = k if k.is_floating_point() else k.to(torch.get_default_dtype())
    log_ratio = math.log(n / confidence) if not isinstance(n, Tensor) else torch.log(n / confidence)
    return log_ratio / (2 * k)


def harmonic_mean(k: Tensor) -> Tensor:
    """The neighbourhood size of a batch, whose Δ is the mean of the samples' Δ: 0-dim, float64.

    Example:
        >>> harmonic_mean(torch.tensor([1, 3]))
        tensor(1.5000, dtype=torch.float64)
    """
    return 1 / k.double().reciprocal().mean()


def released_confidence_term(k: int | float | Tensor, scale: float = 0.7) -> Tensor:
    r"""Confidence term of the authors' released code, :math:`\Delta = A/\sqrt K`, where the paper has Eq. (8).

    Args:
        k: K, the neighbourhood size, at least 1, any shape.
        scale: A.

    Returns:
        :math:`\Delta`, the shape of ``k``.

    Example:
        >>> released_confidence_term(4)
        tensor(0.3500)
    """
    k = torch.as_tensor(k)
    return scale / (k if k.is_floating_point() else k.to(torch.get_default_dtype())).sqrt()


def hoeffding_significant(share: Tensor, k: Tensor, n: int, labels: Tensor, confidence: float) -> Tensor:
    r"""Hoeffding's bound: :math:`\hat p - \frac1C \ge \sqrt{\log(N/c)\,/\,2k}`.

    It is one-sided: a sample surrounded by other labels is no evidence of a learned margin.

    Args:
        share: :math:`\hat p`, the share of the anchor's own label among its k nearest, shape ``(rows, k)``.
        k: 1, 2, …, shape ``(k,)``.
        n: N, the number of samples.
        labels: C, the number of labels, 0-dim.
        confidence: c.

    Returns:
        bool, the shape of ``share``.

    Example:
        >>> share, k = torch.ones(1, 20), torch.arange(1, 21)
        >>> int(hoeffding_significant(share, k, 128, torch.tensor(2.0), 0.05).sum())  # pure: from K = 16 on
        5
    """
    return share - 1 / labels >= torch.sqrt(math.log(n / confidence) / (2 * k))


def chernoff_significant(share: Tensor, k: Tensor, n: int, labels: Tensor, confidence: float) -> Tensor:
    r"""Chernoff's bound: :math:`k\,\mathrm{KL}(\hat p\,\|\,\tfrac1C) \ge \log(N/c)`, :math:`\hat p > \frac1C`.

    With C labels a small pure neighbourhood is far less likely by chance than Hoeffding's bound shows: a batch with
    four images per class never passes Hoeffding at N = 128; Chernoff passes at K = 3.

    Source: Chernoff 1952; Balsubramani et al. 2019 use Hoeffding's.

    Args:
        share: as for :func:`hoeffding_significant`.
        k: as for :func:`hoeffding_significant`.
        n: N.
        labels: C, 0-dim.
        confidence: c.

    Returns:
        bool, the shape of ``share``.

    Example:
        >>> share, k = torch.ones(1, 20), torch.arange(1, 21)
        >>> int(chernoff_significant(share, k, 128, torch.tensor(32.0), 0.05).sum())  # pure: from K = 3 on
        18
    """
    chance = 1 / labels
    other = (1 - chance).clamp(min=torch.finfo(share.dtype).tiny)  # one label: no share is above chance
    divergence = torch.xlogy(share, share / chance) + torch.xlogy(1 - share, (1 - share) / other)
    return (share > chance) & (k * divergence >= math.log(n / confidence))


def released_significant(share: Tensor, k: Tensor, n: int, labels: Tensor, confidence: float) -> Tensor:
    r"""The rule of the authors' released code: :math:`\hat p - \frac1C > A/\sqrt k` with A = 0.7; N and c are not used.

    The released code reads its table two places too early, so that its :math:`\Delta` is that of K − 1; here it is
    that of K.

    Args:
        share: as for :func:`hoeffding_significant`.
        k: as for :func:`hoeffding_significant`.
        n: not used.
        labels: C, 0-dim.
        confidence: not used.

    Returns:
        bool, the shape of ``share``.

    Example:
        >>> share, k = torch.ones(1, 4), torch.arange(1, 5)
        >>> released_significant(share, k, 128, torch.tensor(2.0), 0.05)
        tensor([[False,  True,  True,  True]])
    """
    return share - 1 / labels > 0.7 / torch.sqrt(k)


PURE = (hoeffding_significant, chernoff_significant, released_significant)
"""Bounds that depend only on their arguments: their requirements can be cached."""


def empirical_bias_k(
    embeddings: Tensor,
    labels: Tensor,
    confidence: float = 0.05,
    *,
    significant: Significant = hoeffding_significant,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
) -> Tensor:
    r"""Neighbourhood size of each sample: the smallest k at which its neighbours' labels are significant.

    .. math:: K_i = \min\{k \ge 1 : \hat p_i(k) - \tfrac1C \ge \sqrt{\log(N/c)/2k}\}, \qquad N - 1 \text{ where none}

    with :math:`\hat p_i(k)` the share of sample i's own label among its k nearest others in Euclidean distance, C the
    number of labels and N the number of samples of the reference set (of the batch, where none is given).

    Source: Balsubramani et al. 2019, Algorithm 1, as the K of Kim & Song 2021, Eq. (8); the paper does not specify the
    significance; Hoeffding's bound with the same confidence needs no new constant.

    Distances are computed for a tile of rows at a time; the whole matrix is never stored. In ties (copies, entries on a
    grid) other labels come first: a tie is no evidence, and the result does not depend on the order of the samples.
    Squared distances that differ by less than the rounding of the entries and of their products, a few units in the
    last place of the two squared norms from the mean, are equal: steps of 0.1, 1/3 or 1/255 are a grid too.

    Args:
        embeddings: shape ``(B, D)``, used without normalisation.
        labels: integers, shape ``(B,)``.
        confidence: c, in (0, 1].
        significant: the bound: :func:`hoeffding_significant`, :func:`chernoff_significant`,
            :func:`released_significant`, or your own function with the same signature.
        ref_emb: neighbours come from here instead, shape ``(R, D)``. If it *is* ``embeddings`` (the same tensor), each
            sample is left out of its own neighbours; otherwise one exact copy with the same label is left out.
        ref_labels: their labels, shape ``(R,)``.

    Returns:
        int64 of shape ``(B,)``, at least 1.

    Raises:
        ValueError: shapes that do not match, NaN or infinity, ``confidence`` outside (0, 1].

    Example:
        >>> z = torch.cat([torch.randn(64, 2), torch.randn(64, 2) + 100])
        >>> empirical_bias_k(z, torch.arange(128) // 64).unique()
        tensor([16])
    """
    check_confidence(confidence)
    sets = labelled_sets(embeddings, labels, *check_sets(embeddings, labels, ref_emb, ref_labels))
    return neighbourhood_sizes(*sets[:4], confidence, significant)


@torch.no_grad()
def neighbourhood_sizes(
    x: Tensor,
    index: Tensor,
    y: Tensor,
    ref_index: Tensor,
    confidence: float,
    significant: Significant = hoeffding_significant,
    rows: Tensor | None = None,
) -> Tensor:
    """:func:`empirical_bias_k` of checked embeddings scaled by a power of two, with labels as consecutive indices.

    ``rows`` are those of ``x`` whose size is wanted; None for all.
    """
    n, itself = len(y), y is x
    largest = n - itself
    sizes = torch.ones(len(x) if rows is None else len(rows), dtype=torch.int64, device=x.device)
    if largest < 1 or len(sizes) == 0:
        return sizes
    if significant in PURE and not is_blind(x):  # one comparison for the bound, and no distances but those it needs
        groups = np.bincount(ref_index.numpy())
        most = int(groups.max()) - itself  # own labels that a neighbourhood can hold
        required = required_counts(significant, largest, most, n, np.count_nonzero(groups), confidence)
        if itself and len(required) == 0:
            return sizes.fill_(n - 1)
        for tile in own_neighbours(x, index, y, ref_index, len(required), rows):
            neighbours = np.maximum(n - tile.left_out.numpy(), 1)
            sizes[tile.rows] = torch.from_numpy(first_reached(tile.own.numpy(), required, neighbours))
        return sizes
    k = torch.arange(1, largest + 1, device=x.device)
    labels = (ref_index if itself else group_index(ref_index)).amax() + 1
    found = []
    for tile in own_neighbours(x, index, y, ref_index, largest, rows):
        share = tile.own.cumsum(1, dtype=x.dtype) / k
        everybody = (n - tile.left_out).clamp(min=1)[:, None]
        passed = significant(share, k.to(x.dtype), n, labels, confidence) | (k >= everybody)  # all if there is none
        found.append(passed.to(torch.uint8).argmax(1) + 1)
    return torch.cat(found)


def first_reached(own: Array, required: Array, neighbours: Array) -> Array:
    """The first k at which the k nearest contain ``required[k - 1]`` own labels; lowers ``neighbours`` to it."""
    if len(required):
        passed = counts_of(own) >= required
        first = passed.argmax(1)
        np.minimum(neighbours, first + 1, out=neighbours, where=passed[np.arange(len(first)), first])
    return neighbours


@lru_cache(maxsize=64)
def required_counts(significant: Significant, largest: int, most: int, n: int, labels: int, confidence: float) -> Array:
    """The fewest own labels among the k nearest that are evidence, for each k up to which ``most`` own labels can be
    enough: beyond that, even all of them are no evidence. More than k if no number is enough.

    The same for every batch of one size and number of labels, and one comparison instead of the bound's arithmetic.
    """
    k = torch.arange(1, largest + 1, dtype=torch.float64)
    low, high = torch.zeros_like(k), k + 1
    for _ in range(largest.bit_length() + 1):  # bisection: more own labels are never weaker evidence
        middle = ((low + high) / 2).floor()
        enough = significant((middle / k)[None], k, n, torch.tensor(float(labels), dtype=torch.float64), confidence)[0]
        low, high = torch.where(enough, low, (middle + 1).minimum(high)), torch.where(enough, middle, high)
    within_reach = (high <= k.clamp(max=most)).nonzero()
    return high[: int(within_reach[-1]) + 1 if len(within_reach) else 0].to(torch.int32).numpy()
