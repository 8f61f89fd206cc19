"""How well clusters agree with classes: k-means in tiles, and the field's two measures of mutual information."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..functional.checks import check_labels
from ..functional.neighbours import TILE_ENTRIES, check_search, neighbour_tiles, row_tiles
from ..messages import problem

Init = Literal["random", "k-means++"]


@torch.no_grad()
def kmeans(
    x: Tensor,
    clusters: int,
    *,
    init: Init = "random",
    n_init: int = 1,
    iterations: int = 20,
    seed: int = 0,
    tile_entries: int = TILE_ENTRIES,
) -> Tensor:
    r"""Lloyd's k-means under squared L2, on the device of ``x``, in memory for one tile of distances.

    .. math:: \min_{c, z} \sum_i \lVert x_i - c_{z_i} \rVert^2

    Each iteration assigns every row to its nearest centre (ties to the lower centre) and moves the centres to
    their means, summed in float64. An empty cluster moves to the row that is farthest from its centre (several
    to the farthest ones, ties to the lower row). It stops when no assignment changes or after ``iterations``.

    Sources: Lloyd 1982; for ``"k-means++"`` Arthur & Vassilvitskii 2007, without local trials.
    pytorch-metric-learning's NMI uses faiss with ``"random"``, 20 iterations and one start. For an empty cluster faiss
    splits a large one, whereas this function moves it to the farthest row; faiss trains on at most 256 rows per
    cluster.

    Args:
        x: shape ``(N, D)``, any floating dtype; computed in float32.
        clusters: from 1 to ``N``.
        init: ``"random"``: distinct rows. ``"k-means++"``: rows far from each other, chosen one at a time: a better
            start, at the cost of ``clusters`` passes over ``x``.
        n_init: number of starts; the result with the smallest sum of squared distances is kept.
        iterations: maximum number of updates per start.
        seed: seed of a separate generator: the global random state is neither read nor changed.
        tile_entries: distances held at once.

    Returns:
        The cluster of every row, int64 ``(N,)`` in ``[0, clusters)``. With fewer distinct rows than ``clusters`` some
        clusters are empty.

    Raises:
        TypeError: ``x`` is not a floating-point tensor.
        ValueError: a wrong shape or option, or a value that is not finite.

    Example:
        >>> found = kmeans(torch.tensor([[0.0], [0.1], [5.0], [5.1], [5.2]]), clusters=2)
        >>> found == found[0]
        tensor([ True,  True, False, False, False])
    """
    check_search(x, None, "squared_l2", False, tile_entries)
    if init not in get_args(Init):
        raise ValueError(problem("init", f"one of {get_args(Init)}", repr(init), "random is cheaper"))
    for argument, number in (("clusters", clusters), ("n_init", n_init), ("iterations", iterations)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(problem(argument, "an integer >= 1", repr(number), "pass a positive count"))
    if clusters > len(x):
        remedy = "ask for fewer clusters or pass more rows"
        raise ValueError(problem("clusters", f"at most the {len(x)} rows of x", clusters, remedy))
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same start on every device
    x = x.detach().to(torch.float32)
    best: tuple[float, Tensor] | None = None
    for _ in range(n_init):
        if init == "random":
            centres = x[torch.randperm(len(x), generator=generator)[:clusters].to(x.device)]
        else:
            centres = _plus_plus(x, clusters, generator)
        labels, inertia = _lloyd(x, centres, iterations, tile_entries)
        if best is None or inertia < best[0]:
            best = inertia, labels
    assert best is not None
    return best[1]


def _plus_plus(x: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Each centre is a row, drawn with probability proportional to its squared distance from the nearest centre."""
    uniforms = torch.rand(clusters, generator=generator, dtype=torch.float64).to(x.device)
    norms = x.square().sum(dim=1)
    centres = torch.empty(clusters, x.shape[1], device=x.device)
    nearest = torch.ones(len(x), device=x.device)  # the first row is drawn uniformly
    for i in range(clusters):
        weights = nearest.double()
        weights = torch.where(weights.sum() > 0, weights, 1.0)  # every row is a centre already: any will do
        cdf = weights.cumsum(0)
        # The last row with a weight, if rounding makes the product equal to the total.
        row = torch.searchsorted(cdf, uniforms[i] * cdf[-1], right=True).clamp(max=len(x) - 1)
        centres[i] = x[row]
        to_new = (norms + norms[row] - 2 * (x @ x[row])).clamp(min=0)
        to_new[row] = 0
        nearest = to_new if i == 0 else torch.minimum(nearest, to_new)
    return centres


def _lloyd(x: Tensor, centres: Tensor, iterations: int, tile_entries: int) -> tuple[Tensor, float]:
    labels, distances = _assign(x, centres, tile_entries)
    for _ in range(iterations):
        sums = torch.zeros(centres.shape, dtype=torch.float64, device=x.device)
        for start, end in row_tiles(len(x), x.shape[1], tile_entries):
            sums.index_add_(0, labels[start:end], x[start:end].double())
        counts = torch.bincount(labels, minlength=len(centres))
        centres = (sums / counts.clamp(min=1).unsqueeze(1)).float()
        empty = (counts == 0).nonzero().squeeze(1)
        if len(empty) > 0:
            farthest = distances.sort(descending=True, stable=True).indices
            centres[empty] = x[farthest[: len(empty)]]
        previous = labels
        labels, distances = _assign(x, centres, tile_entries)
        if torch.equal(labels, previous):
            break
    return labels, float(distances.double().sum())


def _assign(x: Tensor, centres: Tensor, tile_entries: int) -> tuple[Tensor, Tensor]:
    labels = torch.empty(len(x), dtype=torch.int64, device=x.device)
    distances = torch.empty(len(x), device=x.device)
    for start, found, at in neighbour_tiles(x, centres, 1, "squared_l2", False, tile_entries):
        labels[start : start + len(at)] = at.squeeze(1)
        distances[start : start + len(at)] = found.squeeze(1)
    return labels, distances


def normalized_mutual_information(labels: Tensor, clusters: Tensor) -> float:
    r"""NMI: the information that clusters and classes share, over the mean of their entropies.

    .. math:: \mathrm{NMI} = \frac{2\, I(Y; Z)}{H(Y) + H(Z)}, \qquad
              I(Y; Z) = \sum_{y, z} \frac{n_{yz}}{N} \log \frac{N n_{yz}}{n_y n_z}

    Source: Manning et al. 2008, *Introduction to Information Retrieval*, section 16.3: the arithmetic mean. Equals
    ``sklearn.metrics.normalized_mutual_info_score``, which pytorch-metric-learning calls, in O(N log N).

    Args:
        labels: classes, integers of shape ``(N,)``.
        clusters: integers of shape ``(N,)``.

    Returns:
        From 0 to 1; 1 if both consist of one group (there is nothing to get wrong), NaN for N = 0.

    Raises:
        TypeError: an argument is not a tensor of integers.
        ValueError: a wrong shape.

    Example:
        >>> y = torch.tensor([0, 0, 1, 1])
        >>> normalized_mutual_information(y, torch.tensor([0, 1, 0, 1]))
        0.0
        >>> round(normalized_mutual_information(y, torch.tensor([7, 7, 3, 4])), 4)  # ln 2 / (1.5 ln 2 + ln 2) * 2
        0.8
    """
    joint, rows, columns = _group_sizes(labels, clusters)
    if not len(joint):
        return float("nan")
    if len(joint) == 1:
        return 1.0
    both = _entropy(rows) + _entropy(columns)
    return float((2 * (both - _entropy(joint)) / both).clamp(0, 1))


def adjusted_mutual_information(labels: Tensor, clusters: Tensor) -> float:
    r"""AMI: mutual information, corrected for the amount that random clusters of the same sizes would share.

    .. math:: \mathrm{AMI} = \frac{I - E[I]}{\tfrac12 (H(Y) + H(Z)) - E[I]}, \qquad
              E[I] = \sum_{y, z} \sum_{n} \frac{n}{N} \log \frac{N n}{n_y n_z}\;
              \frac{\binom{n_z}{n} \binom{N - n_z}{n_y - n}}{\binom{N}{n_y}}

    Source: Vinh, Epps & Bailey 2010 (JMLR 11), arithmetic mean. Equals
    ``sklearn.metrics.adjusted_mutual_info_score``, which pytorch-metric-learning calls. The expectation is summed
    over pairs of distinct *sizes*, not pairs of groups: at most :math:`\sqrt{2N}` of each.

    Args:
        labels: classes, integers of shape ``(N,)``.
        clusters: integers of shape ``(N,)``.

    Returns:
        At most 1; about 0 for random clusters, negative for worse. 1 if both consist of one group, NaN for N = 0.

    Raises:
        TypeError: an argument is not a tensor of integers.
        ValueError: a wrong shape.

    Example:
        >>> y = torch.tensor([0, 0, 1, 1])
        >>> round(adjusted_mutual_information(y, y + 7), 4)
        1.0
        >>> round(adjusted_mutual_information(y, torch.tensor([0, 1, 0, 1])), 4)
        -0.5
    """
    joint, rows, columns = _group_sizes(labels, clusters)
    n = len(labels)
    if n == 0:
        return float("nan")
    if len(joint) == 1 or len(rows) == len(columns) == n:
        return 1.0  # only one partition is possible; I, H and E[I] coincide
    both, expected = _entropy(rows) + _entropy(columns), _expected_information(rows, columns, n)
    gap = both / 2 - expected
    smallest = torch.finfo(torch.float64).eps  # away from 0 / 0, as scikit-learn does
    gap = torch.where(gap < 0, gap.clamp(max=-smallest), gap.clamp(min=smallest))
    return float((both - _entropy(joint) - expected) / gap)


def _group_sizes(labels: Tensor, clusters: Tensor) -> list[Tensor]:
    """n_yz where it is not 0, n_y and n_z, in float64 on the CPU; I = H(Y) + H(Z) - H(Y, Z)."""
    rows_of_labels = len(labels) if isinstance(labels, Tensor) and labels.ndim == 1 else -1
    check_labels("labels", labels, rows_of_labels)
    check_labels("clusters", clusters, rows_of_labels, "labels")
    _, y, rows = torch.unique(labels, return_inverse=True, return_counts=True)
    _, z, columns = torch.unique(clusters.to(labels.device), return_inverse=True, return_counts=True)
    _, joint = torch.unique(y * len(columns) + z, return_counts=True)  # at most N² < 2^63
    return [sizes.cpu().double() for sizes in (joint, rows, columns)]


def _entropy(sizes: Tensor) -> Tensor:
    p = sizes / sizes.sum()
    return -(p * p.log()).sum()


def _expected_information(rows: Tensor, columns: Tensor, n: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    row_sizes, row_times = torch.unique(rows, return_counts=True)
    column_sizes, column_times = torch.unique(columns, return_counts=True)
    for a, times in zip(row_sizes, row_times, strict=True):
        # Every possible overlap of a group of a rows with one of each size b, as one ragged vector.
        low = (a + column_sizes - n).clamp(min=1)
        overlaps = (torch.minimum(a, column_sizes) - low + 1).long()  # sums to at most N: sizes are distinct
        b, weight, first, start = (
            v.repeat_interleave(overlaps)
            for v in (column_sizes, times * column_times, low, overlaps.cumsum(0) - overlaps)
        )
        m = first + (torch.arange(len(b)) - start)
        log_p = _log_binomial(b, m) + _log_binomial(n - b, a - m) - _log_binomial(torch.full_like(b, n), a)
        total += (weight * m / n * (m * n / (a * b)).log() * log_p.exp()).sum()
    return total


def _log_binomial(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
