"""The adaptive margin, slowly: plain Python loops over numbers, written from Eq. 5 and 8 and their documentation.

Samples are lists of floats, a group is a list of samples, labels are lists of integers. Nothing here imports the
package or torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

Row = Sequence[float]
Rows = Sequence[Row]
Pairs = Sequence[tuple[int, int]]
Significant = Callable[[float, int, int, int, float], bool]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    """Biased: divided by how many there are."""
    centre = mean(values)
    return mean([(v - centre) ** 2 for v in values])


def gaussian(groups: Sequence[Rows], bandwidth: float | str = "std") -> list[list[list[float]]]:
    """g(z) = exp(-z² / 2σ²), σ² the variance of all entries of all groups together, or ``bandwidth``²."""
    if bandwidth == "std":
        entries = [z for group in groups for row in group for z in row]
        squared_width = variance(entries) if entries else 0.0
    else:
        squared_width = float(bandwidth) ** 2
    if squared_width == 0:  # every entry the same: nothing to tell apart
        return [[[1.0 for _ in row] for row in group] for group in groups]
    return [[[math.exp(-z * z / (2 * squared_width)) for z in row] for row in group] for group in groups]


def correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Pearson's, 0 where a side is constant or nothing is paired."""
    if not pairs:
        return 0.0
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    if max(a) - min(a) < 1e-12 or max(b) - min(b) < 1e-12:
        return 0.0
    mean_a, mean_b = mean(a), mean(b)
    covariance = mean([(x - mean_a) * (y - mean_b) for x, y in pairs])
    return covariance / math.sqrt(variance(a) * variance(b))


def eta_of_triples(strong: Rows, weak: Rows) -> float:
    """Over every triple (strong row, weak row, feature)."""
    return correlation([(s[k], w[k]) for s in strong for w in weak for k in range(len(s))])


def eta_zipped(first: Rows, second: Rows) -> float:
    """Row i beside row i, the longer group cut."""
    return correlation([(a[k], b[k]) for a, b in zip(first, second, strict=False) for k in range(len(a))])


def eta_of_every_pairing(strong: Rows, weak: Rows) -> float:
    """Mean correlation of paired entries over all ways to pair the rows of two groups of one size."""
    return mean([eta_zipped(strong, paired) for paired in itertools.permutations(weak)])


def information(eta: float, max_mi: float = 2.5) -> float:
    """MI = -½ log(1 - η²), at most ``max_mi``."""
    if eta * eta >= 1:
        return max_mi
    return min(-0.5 * math.log(1 - eta * eta), max_mi)


def confidence_term(n: int, k: float, c: float = 0.05) -> float:
    """Δ(N, K) = log(N / c) / 2K."""
    return math.log(n / c) / (2 * k)


def hoeffding(share: float, k: int, n: int, labels: int, c: float) -> bool:
    return share - 1 / labels >= math.sqrt(math.log(n / c) / (2 * k))


def chernoff(share: float, k: int, n: int, labels: int, c: float) -> bool:
    chance = 1 / labels
    if share <= chance:
        return False
    divergence = share * math.log(share / chance)
    if share < 1:
        divergence += (1 - share) * math.log((1 - share) / (1 - chance))
    return k * divergence >= math.log(n / c)


def released(share: float, k: int, n: int, labels: int, c: float) -> bool:
    return share - 1 / labels > 0.7 / math.sqrt(k)


def neighbourhood_size(
    i: int,
    x: Rows,
    labels: Sequence[int],
    ref: Rows | None = None,
    ref_labels: Sequence[int] | None = None,
    c: float = 0.05,
    significant: Significant = hoeffding,
) -> int:
    """K_i: the smallest k at which the labels of the k nearest are significant; all of them where none is.

    Sorted by distance; in a tie other labels come first. Sample i itself is not its neighbour; of a reference set, one
    exact copy of it with its label is not.
    """
    if ref is None or ref_labels is None:
        others = [j for j in range(len(x)) if j != i]
        ref, ref_labels = x, labels
    else:
        others = list(range(len(ref)))
        copies = [j for j in others if list(ref[j]) == list(x[i]) and ref_labels[j] == labels[i]]
        if copies:
            others.remove(copies[0])
    nearest = sorted(others, key=lambda j: (math.dist(x[i], ref[j]) ** 2, ref_labels[j] == labels[i]))
    own = 0
    for k, j in enumerate(nearest, start=1):
        own += ref_labels[j] == labels[i]
        if significant(own / k, k, len(ref), len(set(ref_labels)), c):
            return k
    return max(1, len(nearest))


def impurity(
    i: int, x: Rows, labels: Sequence[int], ref: Rows | None = None, ref_labels: Sequence[int] | None = None
) -> float:
    """Share of other labels among the m - 1 nearest, m the size of sample i's class; 1 - m/N where m - 1 is none.

    Sorted as in :func:`neighbourhood_size`. Of a reference set, m are its rows of that label and one exact copy of the
    sample is left out.
    """
    if ref is None or ref_labels is None:
        others = [j for j in range(len(x)) if j != i]
        ref, ref_labels = x, labels
    else:
        others = list(range(len(ref)))
        copies = [j for j in others if list(ref[j]) == list(x[i]) and ref_labels[j] == labels[i]]
        if copies:
            others.remove(copies[0])
    own = sum(ref_labels[j] == labels[i] for j in others)
    if own == 0:
        return 1 - sum(label == labels[i] for label in ref_labels) / len(ref_labels)
    nearest = sorted(others, key=lambda j: (math.dist(x[i], ref[j]) ** 2, ref_labels[j] == labels[i]))[:own]
    return 1 - sum(ref_labels[j] == labels[i] for j in nearest) / own


def remaining_delta(i: int, x: Rows, labels: Sequence[int], ref: Any = None, ref_labels: Any = None, c: float = 0.05):
    """Δ_i = μ_i² + Δ(N, N - 1)."""
    n = len(x) if ref is None else len(ref)
    return impurity(i, x, labels, ref, ref_labels) ** 2 + confidence_term(n, max(n - 1, 1), c)


def attainable_delta(i: int, x: Rows, labels: Sequence[int], ref: Any = None, ref_labels: Any = None, c: float = 0.05):
    """Δ_i = (1 - q)², q the share of sample i's class."""
    every = labels if ref_labels is None else ref_labels
    return (1 - sum(label == labels[i] for label in every) / len(every)) ** 2


def evidence_delta(significant: Significant) -> Callable[..., float]:
    """Δ_i = Δ(N, K_i), K_i where a neighbourhood is evidence."""

    def delta(i: int, x: Rows, labels: Sequence[int], ref: Any = None, ref_labels: Any = None, c: float = 0.05):
        k = neighbourhood_size(i, x, labels, ref, ref_labels, c, significant)
        return confidence_term(len(x) if ref is None else len(ref), k, c)

    return delta


def auto_delta(i: int, x: Rows, labels: Sequence[int], ref: Any = None, ref_labels: Any = None, c: float = 0.05):
    """Hoeffding's evidence for two labels, what remains for more."""
    every = set(labels) | set(labels if ref_labels is None else ref_labels)
    rule = remaining_delta if len(every) > 2 else evidence_delta(hoeffding)
    return rule(i, x, labels, ref, ref_labels, c)


DELTAS = {
    "auto": auto_delta,
    "remaining": remaining_delta,
    "attainable": attainable_delta,
    "hoeffding": evidence_delta(hoeffding),
    "chernoff": evidence_delta(chernoff),
}


def neighbourhood_sizes(x: Rows, labels: Sequence[int], *args: object, **kwargs: object) -> list[int]:
    return [neighbourhood_size(i, x, labels, *args, **kwargs) for i in range(len(x))]  # type: ignore[arg-type]


def alignment(strong: Rows, weak: Rows) -> float:
    """Root of the linear centred kernel alignment of two groups whose features correspond, from D×D kernels."""
    kernels = []
    for group in (strong, weak):
        features = len(group[0])
        centred = [[z - mean(row) for z in row] for row in group]
        kernels.append([[sum(row[k] * row[m] for row in centred) for m in range(features)] for k in range(features)])
    return _alignment_of_kernels(*kernels)


def alignment_zipped(first: Rows, second: Rows) -> float:
    """The same for groups whose rows correspond: N×N kernels of rows whose columns are centred."""
    kernels = []
    for group in (first, second):
        centres = [mean([row[k] for row in group]) for k in range(len(group[0]))]
        centred = [[z - centre for z, centre in zip(row, centres, strict=True)] for row in group]
        kernels.append([[sum(p * q for p, q in zip(a, b, strict=True)) for b in centred] for a in centred])
    return _alignment_of_kernels(*kernels)


def _alignment_of_kernels(a: Rows, b: Rows) -> float:
    def inner(p: Rows, q: Rows) -> float:
        return math.fsum(v * w for row, other in zip(p, q, strict=True) for v, w in zip(row, other, strict=True))

    norms = math.sqrt(inner(a, a) * inner(b, b))
    return math.sqrt(max(0.0, inner(a, b)) / norms) if norms > 1e-20 else 0.0


Eta = Callable[[Rows, Rows], float]


def class_information(
    x: Rows,
    labels: Sequence[int],
    ref: Rows | None = None,
    ref_labels: Sequence[int] | None = None,
    bandwidth: float | str = "std",
    max_mi: float = 2.5,
    eta: Eta = eta_of_triples,
) -> dict[int, float]:
    """MI of each class against all samples of other classes; 0 where there are none."""
    if ref is None or ref_labels is None:
        (g,) = (ref_g,) = gaussian([x], bandwidth)
        ref_labels = labels
    else:
        g, ref_g = gaussian([x, ref], bandwidth)
    found = {}
    for label in set(labels):
        own = [row for row, other in zip(g, labels, strict=True) if other == label]
        rest = [row for row, other in zip(ref_g, ref_labels, strict=True) if other != label]
        found[label] = information(eta(own, rest), max_mi) if rest else 0.0
    return found


def batch_margin(
    x: Rows,
    labels: Sequence[int],
    ref: Rows | None = None,
    ref_labels: Sequence[int] | None = None,
    pairs: Pairs | None = None,
    c: float = 0.05,
    bandwidth: float | str = "std",
    max_mi: float = 2.5,
    eta: Eta = eta_of_triples,
    pair_eta: Eta = eta_zipped,
    delta: Callable[..., float] = auto_delta,
) -> float:
    """MI + Δ: MI the mean over classes weighted by their sizes (over pairs where given), Δ the samples' mean."""
    rest = x if ref is None else ref
    if pairs is not None:
        g, ref_g = gaussian([x, rest], bandwidth) if ref is not None else gaussian([x], bandwidth) * 2
        mi = information(pair_eta([g[a] for a, _ in pairs], [ref_g[n] for _, n in pairs]), max_mi) if pairs else 0.0
    else:
        of_class = class_information(x, labels, ref, ref_labels, bandwidth, max_mi, eta)
        mi = mean([of_class[label] for label in labels])
    return mi + mean([delta(i, x, labels, ref, ref_labels, c) for i in range(len(x))])


def anchor_margins(
    x: Rows,
    labels: Sequence[int],
    ref: Rows | None = None,
    ref_labels: Sequence[int] | None = None,
    pairs: Pairs | None = None,
    c: float = 0.05,
    bandwidth: float | str = "std",
    max_mi: float = 2.5,
    eta: Eta = eta_of_triples,
    pair_eta: Eta = eta_zipped,
    delta: Callable[..., float] = auto_delta,
) -> list[float]:
    """MI of the sample's class (over the pairs whose anchor has that class, where pairs are given) + Δ(N, K_i)."""
    rest = x if ref is None else ref
    if pairs is not None:
        g, ref_g = gaussian([x, rest], bandwidth) if ref is not None else gaussian([x], bandwidth) * 2
        of_class = {}
        for label in set(labels):
            own = [(a, n) for a, n in pairs if labels[a] == label]
            of_class[label] = information(pair_eta([g[a] for a, _ in own], [ref_g[n] for _, n in own]), max_mi)
    else:
        of_class = class_information(x, labels, ref, ref_labels, bandwidth, max_mi, eta)
    return [of_class[label] + delta(i, x, labels, ref, ref_labels, c) for i, label in enumerate(labels)]


def pair_margins(
    x: Rows,
    labels: Sequence[int],
    ref: Rows | None = None,
    ref_labels: Sequence[int] | None = None,
    pairs: Pairs | None = None,
    c: float = 0.05,
    bandwidth: float | str = "std",
    max_mi: float = 2.5,
    delta: Callable[..., float] = auto_delta,
) -> list[float]:
    """MI of two rows of g + Δ(N, K of the anchor), for the pairs given or all of different labels, row by row."""
    rest, rest_labels = (x, labels) if ref is None or ref_labels is None else (ref, ref_labels)
    g, ref_g = gaussian([x, rest], bandwidth) if ref is not None else gaussian([x], bandwidth) * 2
    if pairs is None:
        pairs = [(a, n) for a in range(len(x)) for n in range(len(rest)) if labels[a] != rest_labels[n]]
    deltas = [delta(i, x, labels, ref, ref_labels, c) for i in range(len(x))]
    return [information(eta_zipped([g[a]], [ref_g[n]]), max_mi) + deltas[a] for a, n in pairs]
