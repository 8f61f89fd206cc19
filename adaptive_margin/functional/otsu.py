"""Otsu's threshold, exact: splits a sample of numbers into two groups."""

from __future__ import annotations

import torch
from torch import Tensor

from ..messages import problem
from .checks import check_columns, check_finite


def otsu_threshold(values: Tensor, *, bins: int | None = None) -> Tensor:
    r"""Otsu's threshold of a sample: the split that maximises the variance between its two groups.

    .. math:: \sigma_B^2(i) = \frac{i\,(N-i)}{N^2} \left(\mu_{>i} - \mu_{\le i}\right)^2, \qquad
              \delta = \tfrac12 \left(x_{(i^*)} + x_{(i^*+1)}\right), \quad i^* = \arg\max_i \sigma_B^2(i)

    with :math:`x_{(1)} \le \dots \le x_{(N)}` the sorted sample. Only splits between *distinct* values are considered,
    and splits whose variances agree to rounding (to 1e-12 of the largest) are ties: the lowest wins. The threshold is
    half way between its two neighbours, so ``values < threshold`` is the lower group and ``values >= threshold`` the
    upper one, even if rounding leaves no number between the neighbours.

    Source: Otsu 1979; Kim & Song 2021, Algorithm 1, line 3 (:math:`\delta_a`, :math:`\delta_v`). One difference from
    Otsu 1979: the sorted sample is used instead of a histogram of grey levels, unless ``bins`` is given.

    Args:
        values: :math:`x`, shape ``(N,)``, any unit; integers are taken in torch's default floating dtype.
        bins: None for the exact threshold, :math:`O(N \log N)`. A number of bins for the best split that lies on an
            edge of that many equal bins, :math:`O(N)`, for samples too large to sort (256 is Otsu's). The threshold is
            half way between its two neighbours in the sample here too.

    Returns:
        :math:`\delta`, 0-dim, in the unit and dtype of ``values``, without a gradient. A constant sample (one value,
        for instance) has no split: its threshold is its value, so all of it is the upper group.

    Raises:
        ValueError: ``values`` is not one-dimensional, is empty, or holds NaN or infinity; ``bins`` is below 2.

    Accumulates in float64, centred and scaled first. Does not synchronise with a CUDA device.

    Example:
        >>> otsu_threshold(torch.tensor([0.1, 0.2, 0.1, 0.9, 0.8]))
        tensor(0.5000)
    """
    if isinstance(values, Tensor) and values.ndim != 1:
        remedy = "pass one sample, or use otsu_thresholds for one sample a column"
        raise ValueError(problem("values", "one-dimensional", f"shape {tuple(values.shape)}", remedy))
    x = sample_columns("values", values, ndim=1)
    return otsu_thresholds(x, bins=bins)[0]


def otsu_thresholds(values: Tensor, *, bins: int | None = None) -> Tensor:
    r"""Otsu's threshold of every column, :func:`otsu_threshold` batched.

    Source: Otsu 1979; Kim & Song 2021, Algorithm 1, line 3.

    Args:
        values: one sample per column, shape ``(N, L)``.
        bins: as in :func:`otsu_threshold`.

    Returns:
        One threshold per column, shape ``(L,)``, dtype of ``values``.

    Raises:
        ValueError: as :func:`otsu_threshold`, for a ``values`` that is not two-dimensional.

    Example:
        >>> otsu_thresholds(torch.tensor([[0.0, 7.0], [1.0, 9.0], [5.0, 9.0]]))
        tensor([3., 8.])
    """
    x = sample_columns("values", values, ndim=2)
    if bins is not None and bins < 2:
        raise ValueError(problem("bins", "at least 2, or None", bins, "256 is the usual number"))
    if len(x) == 1:
        return x[0].clone()
    lower, upper = _neighbours(x) if bins is None else _neighbours_in_histogram(x, bins)
    return _halfway(lower, upper)


def sample_columns(argument: str, values: Tensor, ndim: int) -> Tensor:
    """``values`` as a checked floating-point matrix with one sample per column, for the computation of thresholds."""
    check_columns(argument, values, (ndim,))
    x = values.detach()
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    check_finite(argument, x)
    return x if ndim == 2 else x[:, None]


def wide(x: Tensor) -> Tensor:
    """``x`` in the widest floating dtype of its device: float64, or float32 on MPS, which has no float64."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def rounding(x: Tensor) -> float:
    """The difference of two sums over a sample, relative to the largest, up to which they count as equal."""
    return 4096 * float(torch.finfo(x.dtype).eps)  # 9e-13 in float64


def standardise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns shifted to mean 0 and scaled to magnitudes of at most 1, with scale and shift to undo it: ``x * scale +
    shift``.

    One value is subtracted first, so that no precision is lost if the spread is small compared with the offset.
    """
    first = x[:1]
    x = x - first
    mean = x.mean(dim=0, keepdim=True)
    x = x - mean
    scale = x.abs().amax(dim=0, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return x / scale, scale, mean + first


def _neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value below and the smallest above the best split of each column, from the sorted sample."""
    n = len(x)
    x = x.sort(dim=0).values  # (N, L)
    deviations, _, _ = standardise(wide(x))
    below = torch.arange(1, n, dtype=deviations.dtype, device=x.device)[:, None]  # (N - 1, 1)
    split = _best_split(deviations.cumsum(dim=0)[:-1], below, n, allowed=x[1:] > x[:-1])
    return x.gather(0, split)[0], x.gather(0, split + 1)[0]


def _neighbours_in_histogram(x: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The same, from the counts, sums and extremes of equal bins between the smallest and the largest value."""
    n, columns = x.shape
    deviations, _, _ = standardise(wide(x))
    low, high = deviations.amin(dim=0), deviations.amax(dim=0)
    width = torch.where(high > low, high - low, torch.ones_like(high))
    bin_of = ((deviations - low) / width * bins).long().clamp_(0, bins - 1)  # (N, L)
    zeros = deviations.new_zeros(bins, columns)
    counts = zeros.scatter_add(0, bin_of, torch.ones_like(deviations)).cumsum(dim=0)[:-1]  # (bins - 1, L)
    sums = zeros.scatter_add(0, bin_of, deviations).cumsum(dim=0)[:-1]
    largest = torch.full_like(zeros, -torch.inf, dtype=x.dtype).scatter_reduce(0, bin_of, x, "amax")
    smallest = torch.full_like(zeros, torch.inf, dtype=x.dtype).scatter_reduce(0, bin_of, x, "amin")
    largest = largest[:-1]  # of the bin below the edge: the first of tied edges never follows an empty bin
    smallest = smallest.flip(0).cummin(dim=0).values.flip(0)[1:]  # of all bins above it
    split = _best_split(sums, counts, n, allowed=(counts > 0) & (counts < n))
    lower, upper = largest.gather(0, split)[0], smallest.gather(0, split)[0]
    return lower, torch.where(high > low, upper, lower)  # a constant column has no bin above


def _best_split(sums: Tensor, counts: Tensor, n: int, allowed: Tensor) -> Tensor:
    """The first split, per column, whose between-class variance is the largest; shape ``(1, L)``.

    With deviations from the mean, of which those below the split sum to :math:`S`, the variance is
    :math:`S^2 / (i (N - i))` up to a constant factor.
    """
    variance = sums.square() / (counts * (n - counts)).clamp(min=1)
    variance = torch.where(allowed, variance, -torch.ones_like(variance))
    best = variance.amax(dim=0, keepdim=True)
    tied = allowed & (variance >= best * (1 - rounding(variance)))
    return tied.to(torch.uint8).argmax(dim=0, keepdim=True)  # the first of them; 0 if no split is allowed


def _halfway(lower: Tensor, upper: Tensor) -> Tensor:
    """A number in ``(lower, upper]``, as near to half way as the dtype allows; ``lower`` if they are equal."""
    middle = (wide(lower) / 2 + wide(upper) / 2).to(lower.dtype)
    return torch.where(middle > lower, middle, upper)
