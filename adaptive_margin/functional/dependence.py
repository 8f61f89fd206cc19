"""The mutual information between two groups of embeddings: Eq. 5."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..messages import check_choice, problem
from .checks import (
    at_least_float32,
    check_finite,
    check_matrix,
    check_number,
    check_same_features,
    is_blind,
    largest_magnitude,
)
from .groups import group_sums, rows_at_once

Bandwidth = float | Literal["std"]
Pairing = Literal["all", "zip"]
Array = NDArray[Any]
Numbers = TypeVar("Numbers", Tensor, Array)


def check_bandwidth(bandwidth: object) -> None:
    """Raises unless ``bandwidth`` is "std" or a positive number."""
    if bandwidth == "std":
        return
    expected, remedy = "'std' or a positive number", "'std' takes the standard deviation of the batch"
    number = math.nan if isinstance(bandwidth, str) else check_number("bandwidth", bandwidth, expected, remedy)
    if not 0 < number < math.inf:
        raise ValueError(problem("bandwidth", expected, repr(bandwidth), remedy))


def gaussian_kernel(*groups: Tensor, bandwidth: Bandwidth = "std") -> tuple[Tensor, ...]:
    r"""Maps every entry through a Gaussian, :math:`g(z) = \exp(-z^2 / 2\sigma^2)`.

    Source: Kim & Song 2021, the kernel :math:`g` of Eq. (5); the paper does not give its width. Here :math:`\sigma^2`
    is the (biased) variance of all entries of all groups together, which makes :math:`g` independent of their scale.

    Args:
        groups: matrices of shape ``(rows, D)`` whose entries share one width.
        bandwidth: ``"std"``, or :math:`\sigma` itself, in the unit of the entries.

    Returns:
        One matrix per group, in float32 (float64 for float64), with values in [0, 1]; all ones if all entries of all
        groups are equal and the width would be zero.

    Raises:
        ValueError: ``bandwidth`` is neither ``"std"`` nor positive.

    Example:
        >>> gaussian_kernel(torch.tensor([[0.0, 1.0, 2.0]]), bandwidth=1.0)[0]
        tensor([[1.0000, 0.6065, 0.1353]])
    """
    check_bandwidth(bandwidth)
    groups = tuple(at_least_float32(group) for group in groups)
    largest = common_scale(*(largest_magnitude("groups", group) for group in groups))
    return scaled_gaussian_kernel(tuple(group / largest for group in groups), largest, bandwidth)


def common_scale(*largest: Tensor) -> Tensor:
    """A divisor that scales all entries to [-2, 2], where no square over- or underflows; 1 for zeros.

    It is a power of two, so the division is exact and equal distances stay equal.
    """
    scale = largest[0] if len(largest) == 1 else torch.stack(largest).amax()
    if not is_blind(scale):  # reading is free here, and faster
        return scale.new_full((), divisor_for(scale.item(), scale.dtype))
    integers, exponent_bits = (torch.int32, 0x7F800000) if scale.dtype == torch.float32 else (torch.int64, 0x7FF << 52)
    power = (scale.view(integers) & exponent_bits).view(scale.dtype)  # its bits without the fraction
    scale = torch.where(power > 0, power, scale)  # below the smallest normal number there is no exponent to keep
    return torch.where(scale > 0, scale, 1.0)


def divisor_for(largest: float, dtype: torch.dtype) -> float:
    """:func:`common_scale` of a number that was read from a tensor of ``dtype``."""
    divisor = power_of_two(largest) if largest >= torch.finfo(dtype).tiny else largest
    return divisor or 1.0


def power_of_two(number: float) -> float:
    """The largest power of two that is at most ``number``; 0 for 0."""
    return math.ldexp(0.5, math.frexp(number)[1]) if number else 0.0


def scaled_gaussian_kernel(groups: tuple[Tensor, ...], scale: Tensor, bandwidth: Bandwidth) -> tuple[Tensor, ...]:
    """:func:`gaussian_kernel` of groups that have been divided by ``scale``; checked arguments."""
    if bandwidth == "std":
        variance = _pooled_variance(groups)
        floor = (8 * torch.finfo(groups[0].dtype).eps) ** 2  # the rounding of equal entries
        exponent = torch.where(variance > floor, -0.5 / variance.clamp(min=floor), 0.0)
        return tuple(torch.exp(exponent * group * group) for group in groups)
    inverse_width = (scale / float(bandwidth)).clamp(max=1e30)  # 0 · ∞ is not a number
    return tuple(torch.exp(-0.5 * (group * inverse_width).clamp(-1e4, 1e4) ** 2) for group in groups)


def _pooled_variance(groups: tuple[Tensor, ...]) -> Tensor:
    """Biased variance of all entries of all groups together."""
    if len(groups) == 1 and groups[0].numel():
        return groups[0].var(correction=0)
    count = max(1, sum(group.numel() for group in groups))
    mean = torch.stack([group.sum() for group in groups]).sum() / count
    return torch.stack([((group - mean) ** 2).sum() for group in groups]).sum() / count


def _correlation(covariance: Numbers, variance: Numbers, other_variance: Numbers, dtype: torch.dtype) -> Numbers:
    """Pearson's quotient; 0 if either side does not vary beyond the rounding of ``dtype``. Tensors or arrays."""
    floor = (8 * torch.finfo(dtype).eps) ** 2  # entries of g lie in [0, 1]
    varies = (variance > floor) & (other_variance > floor)
    scale = (variance * other_variance * varies + ~varies) ** 0.5  # 1 where it does not
    eta: Numbers = (covariance / scale * varies).clip(-1, 1)
    return eta


def row_correlation(strong: Tensor, weak: Tensor) -> Tensor:
    r"""Pearson correlation over every triple (strong row, weak row, feature), in closed form.

    .. math:: \eta = \frac{\frac1D\sum_k (\bar g_s(k) - \bar g_s)(\bar g_w(k) - \bar g_w)}
                          {\operatorname{std}(G_s)\,\operatorname{std}(G_w)}

    with :math:`\bar g(k)` the mean of column k, :math:`\bar g` the grand mean and std over all entries (biased).
    It is the mean, over random pairings of the rows, of the correlation of paired entries, at a cost of O(N·D).

    Source: Kim & Song 2021, :math:`\eta` of Eq. (8), whose pairing the paper does not specify.

    Args:
        strong: rows of :math:`g`, shape ``(S, D)``.
        weak: rows of :math:`g`, shape ``(W, D)``.

    Returns:
        A 0-dim tensor in [-1, 1]; 0 where a group is empty or constant.

    Example:
        >>> row_correlation(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 3.0]]))
        tensor(0.8944)
    """
    if strong.shape[0] == 0 or weak.shape[0] == 0:
        return strong.new_zeros(()) + 0.0 * (strong.sum() + weak.sum())
    strong_columns, weak_columns = strong.mean(0), weak.mean(0)
    covariance = ((strong_columns - strong_columns.mean()) * (weak_columns - weak_columns.mean())).mean()
    return _correlation(covariance, strong.var(correction=0), weak.var(correction=0), strong.dtype)


def zipped_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation of the entries of two matrices of the same shape, row i with row i.

    Args:
        first: rows of g, shape ``(P, D)``.
        second: rows of g, shape ``(P, D)``.

    Returns:
        A 0-dim tensor in [-1, 1]; 0 where a side is empty or constant.

    Example:
        >>> zipped_correlation(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
        tensor(-1.)
    """
    if first.numel() == 0:
        return first.new_zeros(()) + 0.0 * (first.sum() + second.sum())
    covariance = ((first - first.mean()) * (second - second.mean())).mean()
    return _correlation(covariance, first.var(correction=0), second.var(correction=0), first.dtype)


def class_correlations(g: Tensor, index: Tensor, ref_g: Tensor, ref_index: Tensor, classes: int) -> Tensor:
    r""":func:`row_correlation` of each class against the rest of the reference set, from per-class sums.

    Args:
        g: rows of :math:`g`, shape ``(B, D)``.
        index: the class of each row, int64 of shape ``(B,)``, in ``[0, classes)``.
        ref_g: rows of the reference set, shape ``(R, D)``; the batch itself where there is no other.
        ref_index: their classes, shape ``(R,)``.
        classes: C.

    Returns:
        :math:`\eta_c`, shape ``(C,)``; 0 for a class without rows, without a rest, or whose g is constant.

    Example:
        >>> g, index = torch.rand(6, 4), torch.tensor([0, 1, 0, 1, 1, 0])
        >>> eta = class_correlations(g, index, g, index, 2)
        >>> torch.allclose(eta, row_correlation(g[index == 0], g[index == 1]).expand(2), atol=1e-6)
        True
    """
    centre = ref_g.mean()  # correlations ignore a shift; the differences below are more precise
    own = _class_moments(g - centre, index, classes)
    every = own if ref_g is g else _class_moments(ref_g - centre, ref_index, classes)
    eta: Tensor = correlations_of_moments(own, every, g.dtype).to(g.dtype)
    return eta


Moments = tuple[Any, Any]
"""Of each class, in float64: column sums (C, D); and the sum of squares and the number of rows (2, C). Tensors or
arrays."""


def correlations_of_moments(own: Moments, every: Moments, dtype: torch.dtype) -> Any:
    """η of each class against the rest, from the moments of both sets; ``dtype`` is that of the entries of g."""
    rest = every[0].sum(0) - every[0], every[1].sum(1)[:, None] - every[1]
    rows, mean, variance = _statistics(own)
    rest_rows, rest_mean, rest_variance = _statistics(rest)
    covariance = (own[0] * rest[0]).sum(1) / (rows * rest_rows * own[0].shape[1]) - mean * rest_mean
    return _correlation(covariance, variance, rest_variance, dtype)  # 0 where there are no rows


def _statistics(moments: Moments) -> tuple[Any, Any, Any]:
    """The number of rows of each class, at least 1, and mean and variance of its entries.

    A variance that is less than a few thousand times the rounding of its two terms is 0.
    """
    columns, (squares, rows) = moments
    rows = rows.clip(min=1)
    entries = rows * columns.shape[1]
    mean, mean_square = columns.sum(1) / entries, squares / entries
    variance = mean_square - mean * mean
    return rows, mean, variance * (variance > 2**13 * torch.finfo(torch.float64).eps * mean_square)


def _class_moments(x: Tensor, index: Tensor, classes: int) -> Moments:
    parts = torch.split(x, rows_at_once(x))  # of a few rows: each is widened
    squares = torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts]).square()
    columns, squares, counts = (group_sums(part, index, classes) for part in (x, squares, torch.ones_like(squares)))
    return columns, torch.stack([squares, counts])


def segment_correlations(
    g: Tensor, ref_g: Tensor, anchors: Tensor, negatives: Tensor, segment: Tensor, segments: int
) -> Tensor:
    """:func:`zipped_correlation` of the rows ``g[anchors]`` and ``ref_g[negatives]`` of each segment of the pairs.

    Args:
        g: shape ``(B, D)``.
        ref_g: shape ``(R, D)``.
        anchors: int64 of shape ``(P,)``.
        negatives: int64 of shape ``(P,)``.
        segment: the segment of each pair, int64 of shape ``(P,)``, in ``[0, segments)``.
        segments: S.

    Returns:
        Shape ``(S,)``; 0 for a segment without pairs.

    Example:
        >>> g = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> segment_correlations(g, g, torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), 1)
        tensor([-1.])
    """
    features = g.shape[1]
    centre = torch.cat([g.detach().flatten(), ref_g.detach().flatten()]).mean()
    g, ref_g = g - centre, ref_g - centre
    pairs = group_sums(torch.ones_like(segment, dtype=torch.float64), segment, segments)
    entries = pairs.clamp(min=1) * features

    def mean_of(x: Tensor, rows: Tensor) -> Tensor:  # of one number per row, over the pairs of each segment
        return group_sums(x[rows], segment, segments) / entries

    # in parts: P·D numbers are never held at once
    parts = zip(torch.split(anchors, 2**14), torch.split(negatives, 2**14), strict=True)
    products = torch.cat([(g[a].double() * ref_g[n].double()).sum(1) for a, n in parts])
    mean, other_mean = mean_of(g.double().sum(1), anchors), mean_of(ref_g.double().sum(1), negatives)
    covariance = group_sums(products, segment, segments) / entries - mean * other_mean
    variance = mean_of((g.double() ** 2).sum(1), anchors) - mean**2
    other_variance = mean_of((ref_g.double() ** 2).sum(1), negatives) - other_mean**2
    eta = _correlation(covariance, variance, other_variance, g.dtype)
    return torch.where(pairs > 0, eta, 0.0).to(g.dtype)


def zipped_partners(index: Tensor, ref_index: Tensor) -> tuple[Tensor, Tensor]:
    """The partner of each row, from another class, when its class and the rest are zipped, both in order.

    Args:
        index: the class of each row, int64 of shape ``(B,)``, at least 0.
        ref_index: the classes of the reference set, shape ``(R,)``, R >= 1.

    Returns:
        The partner of each row, in ``[0, R)``, and whether there is one (the rest is not shorter), both ``(B,)``.

    Example:
        >>> index = torch.tensor([0, 1, 0, 0])
        >>> zipped_partners(index, index)
        (tensor([1, 0, 3, 3]), tensor([ True,  True, False, False]))
    """
    rows, refs = len(index), len(ref_index)
    by_class = torch.argsort(index, stable=True)
    ranks = torch.arange(rows, device=index.device) - torch.searchsorted(index[by_class], index[by_class])
    rank = torch.empty_like(index).scatter_(0, by_class, ranks)  # of a row in its class
    by_class = torch.argsort(ref_index, stable=True)
    classes = ref_index[by_class]
    # The r-th row of other classes comes after r others and those own rows that have at most r others before them.
    others_before = by_class - (torch.arange(refs, device=index.device) - torch.searchsorted(classes, classes))
    own_before = torch.searchsorted(classes * (refs + 1) + others_before, index * (refs + 1) + rank, right=True)
    partner = rank + own_before - torch.searchsorted(classes, index)
    return partner.clamp(max=refs - 1), partner < refs


def unit_rows(g: Tensor) -> Tensor:
    """Rows centred over their features and scaled to length 1: the dot product of two is their correlation.

    A constant row becomes zeros.

    Example:
        >>> unit_rows(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
        tensor([[-0.7071,  0.7071], [ 0.0000,  0.0000]])
    """
    centred = g - g.mean(1, keepdim=True)
    squares = (centred**2).sum(1, keepdim=True)
    floor = g.shape[1] * (8 * torch.finfo(g.dtype).eps) ** 2
    return torch.where(squares > floor, centred / torch.where(squares > floor, squares, 1.0).sqrt(), 0.0)


def centred_kernel_alignment(strong: Tensor, weak: Tensor) -> Tensor:
    r"""Square root of the linear centred kernel alignment of two groups, with features as the shared axis.

    The rows of the two groups do not correspond, but their features do: each group's kernel is the D×D Gram matrix of
    its columns, :math:`M = A^\top A` with the rows of :math:`A` centred, and

    .. math:: \eta = \sqrt{\frac{\langle M_s, M_w\rangle_F}{\lVert M_s\rVert_F\,\lVert M_w\rVert_F}} .

    With one row per group it is the absolute correlation of the two rows. It ignores the order of the rows, and the
    groups may differ in size; O(N·D²).

    Source: Cortes, Mohri & Rostamizadeh 2012 (JMLR 13), Eq. (2), and Kornblith et al. 2019, who interpret it as a
    squared correlation: hence the root, so that :math:`-\frac12\log(1-\eta^2)` is the mutual information in the
    Gaussian case.

    Args:
        strong: rows of :math:`g`, shape ``(S, D)``.
        weak: rows of :math:`g`, shape ``(W, D)``.

    Returns:
        A 0-dim tensor in [0, 1]; 0 where a group is empty or its rows are constant.

    Example:
        >>> centred_kernel_alignment(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[4.0, 2.0, 0.0]]))
        tensor(1.)
    """
    strong = strong - strong.mean(1, keepdim=True)
    weak = weak - weak.mean(1, keepdim=True)
    strong_kernel, weak_kernel = strong.T @ strong, weak.T @ weak  # (D, D)
    return _alignment((strong_kernel * weak_kernel).sum(), strong_kernel.norm(), weak_kernel.norm(), strong)


def class_alignments(g: Tensor, index: Tensor, ref_g: Tensor, ref_index: Tensor, classes: int) -> Tensor:
    r""":func:`centred_kernel_alignment` of each class against the rest of the reference set.

    The Gram matrix of the rest is that of all rows minus that of the class: O(N·D²) per class, and nothing waits for
    the device. Arguments and result are those of :func:`class_correlations`.

    Example:
        >>> g, index = torch.rand(6, 4), torch.tensor([0, 1, 0, 1, 1, 0])
        >>> eta = class_alignments(g, index, g, index, 2)
        >>> torch.allclose(eta, centred_kernel_alignment(g[index == 0], g[index == 1]).expand(2), atol=1e-6)
        True
    """
    itself = ref_g is g
    rows, ref_rows = ((x - x.mean(1, keepdim=True)).double() for x in (g, ref_g))
    whole = ref_rows.T @ ref_rows  # (D, D)
    rounding = 64 * torch.finfo(torch.float64).eps * whole.norm()  # of the difference
    etas = [g.new_zeros(0)]
    for some in torch.split(
        torch.arange(classes, device=g.device), max(1, 2**20 // max(ref_rows.numel(), whole.numel()))
    ):
        own = ref_index == some[:, None]  # (c, R)
        ref_kernels = (ref_rows.T * own[:, None]) @ ref_rows  # (c, D, D)
        kernels = ref_kernels if itself else (rows.T * (index == some[:, None])[:, None]) @ rows
        rest = whole - ref_kernels
        norms, rest_norms = kernels.flatten(1).norm(dim=1), rest.flatten(1).norm(dim=1)
        rest_norms = torch.where((rest_norms > rounding) & ~own.all(1), rest_norms, 0.0)
        etas.append(_alignment((kernels * rest).sum((1, 2)), norms, rest_norms, g).to(g.dtype))
    return torch.cat(etas)


def zipped_kernel_alignment(first: Tensor, second: Tensor) -> Tensor:
    """:func:`centred_kernel_alignment` of matrices whose rows correspond: columns are centred, rows are shared.

    Args:
        first: rows of g, shape ``(P, D)``.
        second: rows of g, shape ``(P, D)``.

    Returns:
        A 0-dim tensor in [0, 1]; 0 where a side is empty or its columns are constant.

    Example:
        >>> zipped_kernel_alignment(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[6.0], [4.0], [0.0]]))
        tensor(1.)
    """
    if first.numel() == 0:
        return first.new_zeros(()) + 0.0 * (first.sum() + second.sum())
    first = first - first.mean(0)
    second = second - second.mean(0)
    cross = (first.T @ second).square().sum()
    return _alignment(cross, (first.T @ first).norm(), (second.T @ second).norm(), first)


def _alignment(cross: Tensor, norm: Tensor, other_norm: Tensor, like: Tensor) -> Tensor:
    floor = like.shape[1] * (8 * torch.finfo(like.dtype).eps) ** 2
    varies = (norm > floor) & (other_norm > floor) & (cross > 0)
    share = torch.where(varies, cross / torch.where(varies, norm * other_norm, 1.0), 1.0)
    return torch.where(varies, share.clamp(max=1).sqrt(), 0.0)


def gaussian_correlation(
    strong: Tensor, weak: Tensor, bandwidth: Bandwidth = "std", pairing: Pairing = "all"
) -> Tensor:
    r"""Correlation :math:`\eta` of the Gaussian-mapped embeddings of two groups.

    .. math:: \eta = \operatorname{corr}\bigl(g(Z_s),\, g(Z_w)\bigr), \qquad g(z) = \exp(-z^2/2\sigma^2)

    Source: Kim & Song 2021, Eq. (5) and (8). The paper does not say how the rows of two groups of unequal size are
    paired; here every strong row is paired with every weak row (:func:`row_correlation`).

    Args:
        strong: embeddings of one group, shape ``(S, D)``.
        weak: embeddings of the other, shape ``(W, D)``.
        bandwidth: :math:`\sigma`: ``"std"`` of all entries of both groups, or a positive number.
        pairing: ``"all"``, or ``"zip"``: row i with row i, the longer group truncated, as in the authors' released
            code.

    Returns:
        A 0-dim tensor in [-1, 1], float32 (float64 for float64); 0 where a group is empty or constant.

    Raises:
        ValueError: not matrices of one width, NaN or infinity, or an unknown option.

    Example:
        >>> strong = torch.tensor([[0.0, 1.0, 2.0]])
        >>> gaussian_correlation(strong, strong)
        tensor(1.)
    """
    check_matrix("strong", strong)
    check_matrix("weak", weak)
    check_same_features("weak", weak, "strong", strong)
    check_finite("strong", strong)
    check_finite("weak", weak)
    check_choice("pairing", pairing, ("all", "zip"))
    g_strong, g_weak = gaussian_kernel(strong, weak, bandwidth=bandwidth)
    if pairing == "zip":
        rows = min(len(g_strong), len(g_weak))
        return zipped_correlation(g_strong[:rows], g_weak[:rows])
    return row_correlation(g_strong, g_weak)


def mutual_information(eta: Tensor, max_mi: float | None = 2.5) -> Tensor:
    r"""Mutual information of two jointly Gaussian variables, :math:`\mathrm{MI} = -\tfrac12\log(1-\eta^2)`, in nats.

    Source: Kim & Song 2021, Eq. (8), after Gel'fand & Yaglom 1959. The cap follows the authors' released code: without
    a cap, equal groups have infinite information.

    Args:
        eta: correlation, any shape, in [-1, 1].
        max_mi: the cap, in nats; ``None`` leaves only the dtype's own floor of :math:`1-\eta^2`.

    Returns:
        The shape of ``eta``, in ``[0, max_mi]``, always finite.

    Raises:
        ValueError: ``max_mi`` is not positive.

    Example:
        >>> mutual_information(torch.tensor([0.0, 0.8, 1.0]))
        tensor([0.0000, 0.5108, 2.5000])
    """
    if max_mi is not None:
        expected, remedy = "positive or None", "the paper's code caps at 2.5 nats"
        if not check_number("max_mi", max_mi, expected, remedy) > 0:
            raise ValueError(problem("max_mi", expected, max_mi, remedy))
    information: Tensor = information_of(eta, max_mi, eta.dtype)
    return information


def information_of(eta: Any, max_mi: float | None, dtype: torch.dtype) -> Any:
    """:func:`mutual_information` of a checked tensor or array whose entries have at most the precision of ``dtype``."""
    floor = torch.finfo(dtype).eps
    if max_mi is not None:
        floor = max(floor, math.exp(-2 * max_mi))
    log = torch.log if isinstance(eta, Tensor) else np.log
    return -0.5 * log((1 - eta * eta).clip(floor, 1)) + 0.0  # no negative zero
