"""Rules for the size of a neighbourhood, for :class:`~adaptive_margin.AdaptiveMargin`."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..functional.groups import class_sizes, more_labels_than
from ..functional.impurity import impurities
from ..functional.neighbourhood import (
    PURE,
    chernoff_significant,
    confidence_term,
    harmonic_mean,
    hoeffding_significant,
    neighbourhood_sizes,
    released_confidence_term,
    released_significant,
)
from ..functional.own_neighbours import evenly_spaced
from ..functional.small_batch import SmallBatch
from ..messages import problem

FEW_LABELS = 2
"""Up to this number of labels ``AutoRule`` waits for evidence; with more, its margin leads."""


class NeighbourhoodRule:
    r"""The neighbourhood size K of each sample and its :math:`\Delta`, for ``AdaptiveMargin(neighbourhood=…)``.

    Subclass it. Implement :meth:`significant` if K is the first k at which a neighbourhood is evidence, otherwise
    :meth:`sizes`; override :meth:`delta` if :math:`\Delta` is not that of Eq. (8).

    Example:
        >>> class AlwaysEight(NeighbourhoodRule):
        ...     def significant(self, share, k, n, labels, confidence):
        ...         return (k == 8).expand_as(share)
        >>> from adaptive_margin import AdaptiveMargin
        >>> margin = AdaptiveMargin(neighbourhood=AlwaysEight(), collect_stats=True)
        >>> alpha = margin(torch.randn(32, 4), torch.arange(32) % 2)
        >>> margin.k
        8.0
    """

    def significant(self, share: Tensor, k: Tensor, n: int, labels: Tensor, confidence: float) -> Tensor:
        """Where the share of a sample's own label among the k nearest is evidence; see :func:`F.hoeffding_significant`.

        Args:
            share: shape ``(rows, k)``, in [0, 1].
            k: 1, 2, …, shape ``(k,)``.
            n: the number of samples.
            labels: the number of labels, 0-dim.
            confidence: c.

        Returns:
            bool, the shape of ``share``.
        """
        raise NotImplementedError

    def sizes(
        self, x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, confidence: float, rows: Tensor | None = None
    ) -> Tensor:
        r"""K of each row; by default the first k at which :meth:`significant` holds.

        Args:
            x: embeddings scaled by a power of two, shape ``(B, D)``.
            index: their labels, numbered from 0 over ``x`` and ``y`` together, shape ``(B,)``.
            y: the reference set, shape ``(R, D)``; ``x`` itself where there is none.
            ref_index: its labels, shape ``(R,)``.
            confidence: c.
            rows: which rows of ``x``; None for all. Given only if :attr:`anchors` is a number.

        Returns:
            Positive numbers, shape ``(B,)`` or that of ``rows``, infinite where :math:`\Delta` is 0.
        """
        return neighbourhood_sizes(x, index, y, ref_index, confidence, self.significant, rows)

    anchors: int | Literal["all"] = "all"
    """At least how many rows :meth:`mean_size` looks at."""

    def mean_size(self, x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, confidence: float) -> Tensor:
        r"""K of the batch, 0-dim: the harmonic mean, which makes :math:`\Delta(N, K)` the mean over the rows.

        With a number of :attr:`anchors`, it is that of evenly spaced rows of each group.
        """
        rows = self._sample(index)
        more = {} if rows is None else {"rows": rows}
        return harmonic_mean(self.sizes(x, index, y, ref_index, confidence, **more))

    _has_small: ClassVar[bool] = False
    """Whether :meth:`mean_size_of_small` is of the class that has :meth:`sizes` and :meth:`mean_size`, too."""

    def __init_subclass__(cls) -> None:
        """Looks whether a subclass has its own."""
        super().__init_subclass__()
        rule: Any = next(each for each in cls.__mro__ if "mean_size_of_small" in vars(each))
        cls._has_small = cls.sizes is rule.sizes and cls.mean_size is rule.mean_size

    @property
    def suits_small(self) -> bool:
        """Whether :meth:`mean_size_of_small` is known to be :meth:`mean_size`."""
        return self._has_small and (type(self).sizes is not NeighbourhoodRule.sizes or self.significant in PURE)

    def mean_size_of_small(self, batch: SmallBatch, confidence: float) -> float:
        """:meth:`mean_size` of a small batch, in numpy."""
        sizes = batch.sizes(self.significant, confidence, self._sample(torch.from_numpy(batch.index)))
        return len(sizes) / float((1 / sizes).sum())

    def _sample(self, index: Tensor) -> Tensor | None:
        """The rows that :meth:`mean_size` looks at; None for all."""
        return None if self.anchors == "all" else evenly_spaced(index, self.anchors)

    def delta(self, n: int, k: Tensor, confidence: float) -> Tensor:
        r""":math:`\Delta(N, K)`, the shape of ``k``, in units of a squared distance."""
        return confidence_term(n, k, confidence)

    def delta_of_small(self, n: int, k: float, confidence: float, dtype: torch.dtype) -> float | Tensor:
        """:meth:`delta` of one number, without a tensor if it is not a caller's own."""
        if getattr(self.delta, "__func__", None) is NeighbourhoodRule.delta:
            return _hoeffding_scale(n, confidence) / k
        return self.delta(n, torch.tensor(k, dtype=dtype), confidence)

    may_lead: bool = False
    """Whether its margin is large from the start, for some labels at least, so that it can take a loss's own place."""

    def leads(self, labels: Tensor, ref_labels: Tensor | None = None) -> bool | Tensor:
        """Whether it leads for these labels; a 0-dim bool tensor if a Python bool would wait for a device."""
        return self.may_lead


class SampledRule(NeighbourhoodRule):
    r"""A rule whose K of a large batch comes from a sample of its rows.

    :math:`\Delta(N, K)` is the mean of :math:`\Delta(N, K_i)` over the rows. In a batch of at least twice as many rows
    as ``anchors``, the mean is over evenly spaced rows in the order of their labels: at least ``anchors`` of them, of
    each label its share. Neighbours come from the whole batch all the same, and margins per anchor or per pair always
    use every row.

    With R the largest possible :math:`\Delta_i`, the standard error of a mean over m rows is at most
    :math:`R / 2\sqrt m`: that of numbers from 0 to R, half of them at either end, if rows of one label come in no
    particular order.

    Args:
        anchors: the number of rows, or ``"all"``.

    Raises:
        ValueError: ``anchors`` is neither ``"all"`` nor at least 1.

    Example:
        >>> from adaptive_margin import AdaptiveMargin
        >>> x, labels = torch.randn(256, 8), torch.arange(256) % 2
        >>> every, some = (AdaptiveMargin(neighbourhood=HoeffdingRule(anchors)) for anchors in ("all", 64))
        >>> bool((every(x, labels) - some(x, labels)).abs() < 3 * 0.25 / (2 * 64**0.5))
        True
    """

    def __init__(self, anchors: int | Literal["all"] = 512) -> None:
        if anchors != "all" and (not isinstance(anchors, int) or anchors < 1):
            raise ValueError(problem("anchors", "'all' or at least 1", repr(anchors), "1024 rows are usually enough"))
        self.anchors = anchors


class HoeffdingRule(SampledRule):
    r"""Hoeffding's bound. See :func:`~adaptive_margin.functional.hoeffding_significant`.

    With C labels :math:`\Delta_i \le (1 - 1/C)^2`: over 256 anchors the standard error is at most 0.008 for two groups
    and 0.031 for many.
    """

    significant = staticmethod(hoeffding_significant)

    def __init__(self, anchors: int | Literal["all"] = 256) -> None:
        super().__init__(anchors)


class ChernoffRule(SampledRule):
    r"""Chernoff's bound, for many small classes. See :func:`~adaptive_margin.functional.chernoff_significant`.

    With C labels :math:`\Delta_i \le \tfrac12 \log C`: over 512 anchors the standard error is at most
    :math:`0.011 \log C`.
    """

    significant = staticmethod(chernoff_significant)


class ReleasedRule(SampledRule):
    r"""The authors' released code: bias above :math:`0.7/\sqrt k`, and :math:`\Delta = 0.7/\sqrt K` (not Eq. 8's).

    K is a harmonic mean all the same: over 512 anchors the standard error of :math:`1/K \le 1` is at most 0.022.
    """

    significant = staticmethod(released_significant)

    def delta(self, n: int, k: Tensor, confidence: float) -> Tensor:
        """0.7/√K."""
        return released_confidence_term(k)


class RemainingRule(SampledRule):
    r"""The impurity that remains: a margin that leads while classes are mixed and relaxes as they separate.

    .. math::
        \frac1{K_i} = \frac{2\mu_i^2}{\log(N/c)} + \frac1{N-1}, \qquad
        \Delta_i = \Delta(N, K_i) = \mu_i^2 + \frac{\log(N/c)}{2(N-1)}

    with :math:`\mu_i` the impurity of sample i's class-sized neighbourhood
    (:func:`~adaptive_margin.functional.neighbourhood_impurity`). The first term of :math:`1/K_i` is the number of
    neighbours at which a bias of :math:`\mu_i` would be evidence by Hoeffding's bound, the second the whole batch.

    Source: ours; the bound is from Balsubramani et al. 2019. It differs from Kim & Song's description, where
    :math:`\Delta` grows as neighbourhoods become pure.

    Args:
        anchors: as for :class:`SampledRule`; :math:`\mu_i^2 \le 1`, so over 1,024 rows the standard error is at most
            1/64.

    Example:
        >>> from adaptive_margin import AdaptiveMargin
        >>> margin, labels = AdaptiveMargin(neighbourhood="remaining"), torch.arange(64) // 4
        >>> mixed, apart = torch.randn(64, 8), torch.randn(16, 8).repeat_interleave(4, 0)
        >>> bool(margin(mixed, labels) > 5 * margin(apart, labels))
        True
    """

    may_lead = True

    def __init__(self, anchors: int | Literal["all"] = 1024) -> None:
        super().__init__(anchors)

    def sizes(
        self, x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, confidence: float, rows: Tensor | None = None
    ) -> Tensor:
        r""":math:`K_i`, at most N − 1."""
        n = len(y)
        missing = impurities(x, index, y, ref_index, rows).double().square() / _hoeffding_scale(n, confidence)
        return 1 / (missing + 1 / max(n - 1, 1))

    def mean_size_of_small(self, batch: SmallBatch, confidence: float) -> float:
        """K of the batch."""
        n, impurity = len(batch.index), batch.impurities(self._sample(torch.from_numpy(batch.index)))
        mean = float(impurity.dot(impurity)) / len(impurity)
        return 1 / (mean / _hoeffding_scale(n, confidence) + 1 / (n - 1))


class AttainableRule(NeighbourhoodRule):
    r"""The largest possible impurity: that of a batch whose embeddings are independent of its labels.

    .. math:: K_i = \frac{\log(N/c)}{2(1-q_{c(i)})^2}, \qquad \Delta_i = \Delta(N, K_i) = (1 - q_{c(i)})^2

    with :math:`q_c` the share of class c in the batch (in the reference set, where there is one). No distances are
    computed: the margin leads and does not relax. It is ¼ for two equal groups and 0.88 for 16 classes, and larger for
    a rare class than for a common one (with ``granularity="anchor"``).

    Source: ours: :class:`RemainingRule` at :math:`\mu_i = 1 - q_{c(i)}`, without its floor.

    Example:
        >>> from adaptive_margin import AdaptiveMargin
        >>> margin = AdaptiveMargin(neighbourhood="attainable", dependence="none")
        >>> margin(torch.randn(64, 8), torch.arange(64) % 16)
        tensor(0.8789)
    """

    may_lead = True

    def sizes(
        self, x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, confidence: float, rows: Tensor | None = None
    ) -> Tensor:
        r""":math:`K_i`, infinite for a class that is the whole set."""
        n = len(y)
        share = class_sizes(index, ref_index).double() / max(n, 1)
        sizes = _hoeffding_scale(n, confidence) / (1 - share).square()
        return sizes if rows is None else sizes[rows]

    def mean_size_of_small(self, batch: SmallBatch, confidence: float) -> float:
        """K of the batch."""
        mean = float(batch.weights.dot((1 - batch.weights) ** 2)) or 1e-300  # one class alone: K is infinite
        return _hoeffding_scale(len(batch.index), confidence) / mean


class AutoRule(NeighbourhoodRule):
    """The default: evidence by Hoeffding's bound for two labels, :class:`RemainingRule` for three or more.

    Two groups are the paper's setting: a critic learns to separate them, and Δ rises as it succeeds. With more classes,
    a margin that starts at its floor would demand only the distances that already exist.

    Example:
        >>> from adaptive_margin import AdaptiveMargin
        >>> x, two = torch.randn(32, 8), torch.arange(32) % 2
        >>> bool(AdaptiveMargin()(x, two) == AdaptiveMargin(neighbourhood="hoeffding")(x, two))
        True
    """

    may_lead = True

    def __init__(self, few: NeighbourhoodRule | None = None, many: NeighbourhoodRule | None = None) -> None:
        self.few = HoeffdingRule() if few is None else few
        self.many = RemainingRule() if many is None else many

    def sizes(
        self, x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, confidence: float, rows: Tensor | None = None
    ) -> Tensor:
        """K of each row, by the rule for this number of labels."""
        return self._of_either("sizes", x, index, y, ref_index, confidence)

    def mean_size(self, x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, confidence: float) -> Tensor:
        """K of the batch, likewise."""
        return self._of_either("mean_size", x, index, y, ref_index, confidence)

    @property
    def suits_small(self) -> bool:
        """If both rules do."""
        return self._has_small and self.few.suits_small and self.many.suits_small

    def mean_size_of_small(self, batch: SmallBatch, confidence: float) -> float:
        """K of the batch, likewise."""
        return (self.many if len(batch.counts) > FEW_LABELS else self.few).mean_size_of_small(batch, confidence)

    def _of_either(
        self, what: Literal["sizes", "mean_size"], x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, c: float
    ) -> Tensor:
        leads = self.leads(index, ref_index)
        if isinstance(leads, bool):
            of_one: Tensor = getattr(self.many if leads else self.few, what)(x, index, y, ref_index, c)
            return of_one
        many, few = (getattr(rule, what)(x, index, y, ref_index, c).double() for rule in (self.many, self.few))
        return torch.where(leads, many, few)  # checking first would wait for the device

    def leads(self, labels: Tensor, ref_labels: Tensor | None = None) -> bool | Tensor:
        """With three labels or more."""
        every = labels if ref_labels is None or ref_labels is labels else torch.cat([labels, ref_labels])
        return more_labels_than(FEW_LABELS, every)


def _hoeffding_scale(n: int, confidence: float) -> float:
    """log(N/c) / 2: K times the square of the bias that K neighbours make significant; above 0 also for N = c = 1."""
    return max(math.log(max(n, 1) / confidence), 1e-30) / 2
