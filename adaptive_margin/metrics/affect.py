"""RMSE, SAGR, PCC and CCC of a whole test set: in batches, sharded, with intervals and checks of feasibility."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch import distributed as dist

from .. import functional as F
from ..functional.checks import check_finite
from ..messages import problem

FIGURES = {
    "rmse": F.root_mean_square_error,
    "sagr": F.sign_agreement,
    "pcc": F.pearson_correlation,
    "ccc": F.concordance_correlation,
}


class AffectMetrics:
    r"""RMSE, SAGR, PCC and CCC per label over all samples, independent of how they are split into batches.

    .. math:: \mathrm{RMSE} = \sqrt{E[(y - \hat y)^2]}, \quad
              \mathrm{SAGR} = \tfrac1N \textstyle\sum_i [\mathrm{sign}(y_i) = \mathrm{sign}(\hat y_i)], \quad
              \mathrm{PCC} = \frac{\mathrm{cov}(y, \hat y)}{\sigma_y \sigma_{\hat y}}, \quad
              \mathrm{CCC} = \frac{2\,\mathrm{cov}(y, \hat y)}{\sigma_y^2 + \sigma_{\hat y}^2 + (\mu_y - \mu_{\hat
              y})^2}

    with population statistics. Source: Kim & Song 2021, Evaluation metrics. There are no differences from the paper.
    The authors' released code averages the RMSE over batches of 16, which is at most the RMSE of all samples; this
    class computes the latter.

    Samples are kept, in float64 (32 bytes for each with two labels), and :mod:`~adaptive_margin.functional` computes
    the figures of all of them: any split into batches, shards or processes gives the same.

    Args:
        labels: name of each label column.

    Raises:
        ValueError: there are no names, two are equal, or one is ``"mean"``.

    Example:
        >>> metrics = AffectMetrics()
        >>> metrics.update(torch.tensor([[0.1, 0.5], [0.4, -0.2]]), torch.tensor([[0.2, 0.4], [0.3, 0.0]]))
        >>> metrics.update(torch.tensor([[-0.5, 0.3]]), torch.tensor([[-0.4, 0.2]]))
        >>> {name: round(value, 4) for name, value in metrics.compute()["ccc"].items()}
        {'valence': 0.9577, 'arousal': 0.8235, 'mean': 0.8906}
    """

    def __init__(self, labels: Sequence[str] = ("valence", "arousal")) -> None:
        self.labels = tuple(labels)
        if not self.labels or len(set(self.labels)) < len(self.labels) or "mean" in self.labels:
            expected = "one or more different names, none of them 'mean'"
            raise ValueError(problem("labels", expected, self.labels, "name each label column"))
        self.reset()

    def reset(self) -> None:
        """Forgets all samples."""
        self._seen: list[Tensor] = []  # (N, 2, L) each: targets, predictions

    @property
    def count(self) -> int:
        """Number of samples seen."""
        return sum(map(len, self._seen))

    def update(self, target: Tensor | ArrayLike, prediction: Tensor | ArrayLike) -> None:
        r"""Adds samples.

        Args:
            target: labels :math:`y`, shape ``(N, L)``, or ``(N,)`` if there is one label; tensor or array, any real
                dtype; ``N`` may be 0.
            prediction: :math:`\hat y`, same shape and unit.

        Raises:
            ValueError: a shape is wrong, or a value is NaN or infinite.
        """
        y, p = self._columns("target", target), self._columns("prediction", prediction)
        if y.shape != p.shape:
            expected = f"of target's shape {tuple(y.shape)}"
            raise ValueError(
                problem("prediction", expected, f"shape {tuple(p.shape)}", "pass one prediction per label")
            )
        self._seen.append(torch.stack([y, p], dim=1))

    def merge(self, other: AffectMetrics) -> AffectMetrics:
        """Adds the samples of another object and returns itself.

        Raises:
            ValueError: ``other`` has different labels.
        """
        if other.labels != self.labels:
            raise ValueError(problem("other", f"of the labels {self.labels}", other.labels, "merge like with like"))
        self._seen += other._seen
        return self

    def synchronize(self, group: dist.ProcessGroup | None = None) -> AffectMetrics:
        """The samples of all processes together, as a new object; this object is unchanged.

        Every process of ``group`` must call it, even one without samples. All of them get the same bits. Without an
        initialised process group the result is a copy.

        Args:
            group: processes to join; None for all of them.
        """
        joined = AffectMetrics(self.labels)
        if not (dist.is_available() and dist.is_initialized()):
            return joined.merge(self)
        shards: list[list[Tensor]] = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(shards, self._seen, group=group)
        joined._seen = [batch for shard in shards for batch in shard]  # in the order of ranks on every rank
        return joined

    def compute(self) -> dict[str, dict[str, float]]:
        """The figures of all samples seen.

        Returns:
            ``{"rmse": {...}, "sagr": {...}, "pcc": {...}, "ccc": {...}, "label_sd": {...}}``: for each figure one
            number per label, under its name, and their average under ``"mean"`` (not for ``label_sd``, the standard
            deviation of the labels, which describes the test set). RMSE and ``label_sd`` have the labels' unit. Where
            labels or predictions are constant, PCC is 0/0; it and CCC are 0, with a warning.

        Raises:
            ValueError: no sample has been seen.
        """
        if self.count == 0:
            raise ValueError(problem("compute", "called after update", "no samples", "pass it the test set first"))
        y, p = torch.cat(self._seen).unbind(dim=1)
        for i, label in enumerate(self.labels):
            for what, column in (("labels", y[:, i]), ("predictions", p[:, i])):
                if (column == column[0]).all():
                    constant = f"all {self.count} {what} of {label} are {float(column[0]):.6g}"
                    warnings.warn(f"{constant}: its PCC is undefined; PCC and CCC are reported as 0", stacklevel=2)
        figures = {name: function(y, p) for name, function in FIGURES.items()}
        scores = {name: self._named(x) | {"mean": float(x.mean())} for name, x in figures.items()}
        return scores | {"label_sd": self._named(y.std(dim=0, correction=0))}

    def _named(self, x: Tensor) -> dict[str, float]:
        return dict(zip(self.labels, x.tolist(), strict=True))

    def _columns(self, argument: str, x: Tensor | ArrayLike) -> Tensor:
        if isinstance(x, Tensor) and x.is_complex():
            raise TypeError(problem(argument, "real", x.dtype, "pass real labels and predictions"))
        x = _float64(x)
        if x.ndim == 1 and len(self.labels) == 1:
            x = x[:, None]
        if x.ndim != 2 or x.shape[1] != len(self.labels):
            expected = f"of shape (N, {len(self.labels)}), a column for each of {', '.join(self.labels)}"
            raise ValueError(problem(argument, expected, f"shape {tuple(x.shape)}", "pass one row per sample"))
        check_finite(argument, x)
        return x


def rmse_bounds(pcc: float, label_sd: float, ccc: float | None = None, rounding: float = 0.0) -> tuple[float, float]:
    r"""Least and greatest RMSE that predictions with a given correlation can have.

    .. math:: \mathrm{RMSE}^2 \ge (1 - \mathrm{PCC}^2)\,\sigma_y^2

    because predictions cannot be nearer to the labels than the best linear fit. If CCC is known too, and both are
    positive,

    .. math:: \mathrm{RMSE}^2 = 2\,\mathrm{PCC}\,\sigma_y \sigma_{\hat y} \left(\tfrac{1}{\mathrm{CCC}} - 1\right),
    \qquad
              \sigma_{\hat y} \in \sigma_y \left(t \pm \sqrt{t^2 - 1}\right), \quad t = \mathrm{PCC} / \mathrm{CCC}

    where the range of :math:`\sigma_{\hat y}` keeps :math:`(\mu_y - \mu_{\hat y})^2` positive.

    Source: derived from the definitions of Kim & Song 2021, Evaluation metrics.

    Args:
        pcc: PCC as reported, in [-1, 1].
        label_sd: population standard deviation of the labels, at least 0.
        ccc: CCC as reported; None if unknown.
        rounding: how far reported figures may be from the true ones, half a unit of their last place.

    Returns:
        The bounds, in the unit of ``label_sd``; the upper bound is infinite without CCC.

    Raises:
        ValueError: a figure is out of range, or ``ccc`` is larger than ``pcc`` allows.

    Example:
        >>> low, high = rmse_bounds(pcc=0.86, ccc=0.83, label_sd=0.466, rounding=0.005)
        >>> round(low, 3), round(high, 3)
        (0.238, 0.33)
    """
    _check_reported(pcc, label_sd, ccc, rounding)
    r = min(1.0, abs(pcc) + rounding)
    low = label_sd * math.sqrt(1 - r * r)
    if ccc is None or pcc <= rounding or ccc <= rounding:
        return low, math.inf
    least, most = ccc - rounding, min(ccc + rounding, r)
    if least > r * (1 + 1e-9):
        remedy = "no predictions have both; pass their precision as rounding, or look for a slip"
        raise ValueError(problem("ccc", f"at most pcc ({pcc})", ccc, remedy))

    def rmse(c: float, side: int) -> float:
        t = max(1.0, r / c)
        return label_sd * math.sqrt(2 * r * (1 / c - 1) * (t + side * math.sqrt(t * t - 1)))

    nearest = 2 * r * r / (1 + r * r)  # the CCC of the best linear fit, at which the lower bound is that of PCC alone
    return rmse(min(max(nearest, least), most), -1), rmse(least, 1)


def feasible(rmse: float, pcc: float, label_sd: float, rounding: float = 0.0, ccc: float | None = None) -> bool:
    r"""Whether an RMSE and correlations can have been computed from the same predictions, all samples pooled.

    Published tables can fail this check if RMSE was averaged over batches or the figures come from different labels.
    See :func:`rmse_bounds` for the formula and its source.

    Args:
        rmse: as reported, at least 0.
        pcc: as reported, in [-1, 1].
        label_sd: population standard deviation of the labels, in the unit of ``rmse``.
        rounding: how far each reported figure may be from the true one.
        ccc: as reported; None if unknown.

    Returns:
        False if no predictions for labels with this standard deviation can have these figures.

    Raises:
        ValueError: a figure is out of range.

    Example:
        >>> feasible(rmse=0.35, pcc=0.71, ccc=0.71, label_sd=0.466, rounding=0.005)
        True
        >>> feasible(rmse=0.2186, pcc=0.86, label_sd=0.466, rounding=0.005)
        False
    """
    if not 0 <= rmse < math.inf:
        raise ValueError(problem("rmse", "finite and at least 0", rmse, "pass it as reported"))
    _check_reported(pcc, label_sd, ccc, rounding)
    if ccc is not None and abs(ccc) - rounding > (abs(pcc) + rounding) * (1 + 1e-9):
        return False
    low, high = rmse_bounds(pcc, label_sd, ccc, rounding)
    return low * (1 - 1e-6) <= rmse + rounding and rmse - rounding <= high * (1 + 1e-6)


def _check_reported(pcc: float, label_sd: float, ccc: float | None, rounding: float) -> None:
    for argument, value, least, most in (
        ("pcc", pcc, -1.0, 1.0),
        ("ccc", ccc, -1.0, 1.0),
        ("label_sd", label_sd, 0.0, math.inf),
        ("rounding", rounding, 0.0, math.inf),
    ):
        if value is not None and not (least <= value <= most and math.isfinite(value)):
            raise ValueError(problem(argument, f"finite and in [{least}, {most}]", value, "pass it as reported"))


class Interval(NamedTuple):
    """A figure and its confidence interval."""

    estimate: Tensor
    low: Tensor
    high: Tensor


def bootstrap_interval(
    metric: Callable[[Tensor, Tensor], Tensor],
    target: Tensor | ArrayLike,
    prediction: Tensor | ArrayLike,
    *,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    r"""Percentile bootstrap interval of a figure: how much it would vary with other samples, or other people.

    The figure is computed on ``resamples`` samples drawn with replacement; the interval holds the middle ``confidence``
    of the results. Frames of a video, or images of one person, are not independent: pass ``groups`` to draw whole
    groups instead, each with all its rows. Such an interval is usually much wider, and the one to report.

    Source: Efron 1979; for groups, the cluster bootstrap (Davison & Hinkley 1997, section 3.8).

    Args:
        metric: ``metric(target, prediction)``, such as ``functional.concordance_correlation``; returns a tensor.
        target: labels, shape ``(N,)`` or ``(N, L)``.
        prediction: same shape.
        groups: group of each row, ``N`` numbers or names, such as the video or the person; None: every row is its own
            group.
        confidence: share of the resampled results inside the interval, between 0 and 1.
        resamples: number of resamples.
        seed: random seed; the same seed gives the same interval.

    Returns:
        The figure of the data, and the two ends of the interval: float64, each of the metric's shape.

    Raises:
        ValueError: shapes differ, there are fewer than two rows or groups, or an option is out of range.

    Example:
        >>> from adaptive_margin import functional as F
        >>> label = torch.randn(200, generator=torch.Generator().manual_seed(0))
        >>> noise = torch.randn(200, generator=torch.Generator().manual_seed(1))
        >>> ccc = bootstrap_interval(F.concordance_correlation, label, label + noise)
        >>> bool(ccc.low < ccc.estimate < ccc.high)
        True
    """
    y, p, group_of = _checked(target, prediction, groups, resamples, confidence)
    sizes = group_of.bincount()
    rows = group_of.argsort(stable=True)  # the rows of group 0, then of group 1, ...
    first = sizes.cumsum(0) - sizes
    results = []
    for drawn in _draws(len(sizes), resamples, seed):
        size = sizes[drawn]
        begins = (first[drawn] - (size.cumsum(0) - size)).repeat_interleave(size)
        sample = rows[begins + torch.arange(len(begins))]
        results.append(metric(y[sample], p[sample]).double())
    return _interval(metric(y, p).double(), torch.stack(results), confidence)


def affect_intervals(
    target: Tensor | ArrayLike,
    prediction: Tensor | ArrayLike,
    groups: ArrayLike | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """95% intervals of all four figures at once, as :func:`bootstrap_interval` gives them: fast for many rows.

    The figures of a resample follow from how many rows each group has and its sums of y, ŷ, y², ŷ², yŷ and equal
    signs. The draws are those of :func:`bootstrap_interval` with the same seed, and so is the result, up to rounding.

    Args:
        target: labels, shape ``(N, L)``.
        prediction: same shape.
        groups: group of each row, to draw whole groups.
        resamples: number of resamples.
        seed: random seed of the draws.

    Returns:
        RMSE, SAGR, PCC and CCC (rows) of each label and of their mean (last column), shape ``(4, L + 1)``.

    Raises:
        ValueError: as :func:`bootstrap_interval`.

    Example:
        >>> label = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> found = affect_intervals(label, label.roll(1, dims=1) + label)
        >>> found.estimate.shape, bool((found.low <= found.high).all())
        (torch.Size([4, 3]), True)
    """
    y, p, group_of = _checked(target, prediction, groups, resamples)
    if y.ndim != 2:
        raise ValueError(problem("target", "of shape (N, L)", f"shape {tuple(y.shape)}", "pass one column per label"))
    error, agree = (y - p).square(), (y.sign() == p.sign()).double()
    (y, y_mean, y_scale), (p, p_mean, p_scale) = map(_standard, (y, p))  # sums of squares lose no digits
    columns = torch.stack([torch.ones_like(y), y, p, y * y, p * p, y * p, error, agree], dim=1)  # (N, 8, L)
    sums = columns.new_zeros(int(group_of.max()) + 1, *columns.shape[1:]).index_add(0, group_of, columns)  # (G, 8, L)
    totals = [sums.sum(dim=0)]  # of the data themselves, then of each resample
    for drawn in _draws(len(sums), resamples, seed):
        totals.append(torch.einsum("g,gkl->kl", drawn.bincount(minlength=len(sums)).double(), sums))
    n, *rest = torch.stack(totals).unbind(dim=1)
    my, mp, yy, pp, yp, square, agreed = (total / n for total in rest)  # (R + 1, L) each
    vy, vp = (torch.where((v := of - m.square()) > 1e-14, v, 0.0) for of, m in ((yy, my), (pp, mp)))  # or rounding
    covariance = torch.where((vy > 0) & (vp > 0), yp - my * mp, 0.0)
    gap = y_mean - p_mean + my * y_scale - mp * p_scale
    spread = vy * y_scale.square() + vp * p_scale.square() + gap.square()
    figures = [
        square.sqrt(),
        agreed,
        (covariance / _or_one((vy * vp).sqrt())).clamp(-1, 1),
        2 * covariance * y_scale * p_scale / _or_one(spread),
    ]
    found = torch.stack(figures, dim=1)  # (R + 1, 4, L)
    found = torch.cat([found, found.mean(dim=2, keepdim=True)], dim=2)
    return _interval(found[0], found[1:])


def _standard(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns with mean 0 and largest deviation 1, and the mean and deviation that they had."""
    mean = x.mean(dim=0)
    scale = _or_one((x - mean).abs().amax(dim=0))
    return (x - mean) / scale, mean, scale


def _or_one(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1.0)


def _checked(
    target: Tensor | ArrayLike,
    prediction: Tensor | ArrayLike,
    groups: ArrayLike | None,
    resamples: int,
    confidence: float = 0.95,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both sides in float64, and the number of each row's group from 0."""
    y, p = (_float64(x) for x in (target, prediction))
    if y.shape != p.shape or y.ndim not in (1, 2):
        got = f"shapes {tuple(y.shape)} and {tuple(p.shape)}"
        raise ValueError(problem("target and prediction", "of one shape, (N,) or (N, L)", got, "one row per sample"))
    for argument, x in (("target", y), ("prediction", p)):
        check_finite(argument, x)
    if not 0 < confidence < 1:
        raise ValueError(problem("confidence", "between 0 and 1", confidence, "0.95 is usual"))
    if resamples < 1:
        raise ValueError(problem("resamples", "at least 1", resamples, "1000 is usual"))
    names = np.arange(len(y)) if groups is None else np.asarray(groups)
    if names.shape != (len(y),):
        raise ValueError(problem("groups", f"one for each of {len(y)} rows", f"shape {names.shape}", "name each row's"))
    different, group_of = np.unique(names, return_inverse=True)
    if len(different) < 2:
        what = "target" if groups is None else "groups"
        remedy = "one says nothing about the variation"
        raise ValueError(problem(what, "two or more to draw from", len(different), remedy))
    return y, p, torch.from_numpy(group_of.astype(np.int64))


def _draws(groups: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """The groups of each resample."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(resamples):
        yield torch.randint(groups, (groups,), generator=generator)


def _interval(estimate: Tensor, results: Tensor, confidence: float = 0.95) -> Interval:
    tail = (1 - confidence) / 2
    low, high = torch.quantile(results, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    return Interval(estimate, low, high)


def _float64(x: Tensor | ArrayLike) -> Tensor:
    if isinstance(x, Tensor):
        return x.detach().to("cpu", torch.float64)
    array: np.ndarray[Any, np.dtype[np.float64]] = np.array(x, dtype=np.float64)
    return torch.from_numpy(array)
