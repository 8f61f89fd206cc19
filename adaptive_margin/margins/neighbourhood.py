"""Ways to say when a neighbourhood is pure enough to count, for :class:`~adaptive_margin.AdaptiveMargin`."""

from __future__ import annotations

from torch import Tensor

from ..functional.neighbourhood import (
    chernoff_significant,
    confidence_term,
    hoeffding_significant,
    released_confidence_term,
    released_significant,
)


class NeighbourhoodRule:
    r"""When k neighbours are evidence, and what they are worth: what ``AdaptiveMargin(neighbourhood=…)`` takes.

    Subclass and implement :meth:`significant`; override :meth:`delta` where :math:`\Delta` is not Eq. (8)'s.

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
        """Where a share of own labels among the k nearest is evidence; see :func:`F.hoeffding_significant`.

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

    def delta(self, n: int, k: Tensor, confidence: float) -> Tensor:
        r""":math:`\Delta(N, K)`, the shape of ``k``, in units of a squared distance."""
        return confidence_term(n, k, confidence)


class HoeffdingRule(NeighbourhoodRule):
    """Hoeffding's bound: the default. See :func:`~adaptive_margin.functional.hoeffding_significant`."""

    significant = staticmethod(hoeffding_significant)


class ChernoffRule(NeighbourhoodRule):
    """Chernoff's bound, for many small classes. See :func:`~adaptive_margin.functional.chernoff_significant`."""

    significant = staticmethod(chernoff_significant)


class ReleasedRule(NeighbourhoodRule):
    r"""The authors' released code: bias above :math:`0.7/\sqrt k`, and :math:`\Delta = 0.7/\sqrt K` (not Eq. 8's)."""

    significant = staticmethod(released_significant)

    def delta(self, n: int, k: Tensor, confidence: float) -> Tensor:
        """0.7/√K."""
        return released_confidence_term(k)
