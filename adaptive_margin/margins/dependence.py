"""Ways to measure how dependent two groups are, for :class:`~adaptive_margin.AdaptiveMargin`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional.dependence import (
    centred_kernel_alignment,
    class_alignments,
    class_correlations,
    row_correlation,
    segment_correlations,
    zipped_correlation,
    zipped_kernel_alignment,
    zipped_partners,
)


class Dependence(nn.Module):
    r"""A correlation :math:`\eta` between two groups of rows, for ``AdaptiveMargin(dependence=…)``.

    Subclass and implement :meth:`forward`. The rows are those of :math:`g(Z)`, the Gaussian-mapped embeddings.

    Example:
        >>> class Largest(Dependence):
        ...     def forward(self, strong, weak):
        ...         return (strong.mean(0) - weak.mean(0)).abs().max()
        >>> Largest().of_classes(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([0, 1]), 2)
        tensor([1., 1.])
    """

    def forward(self, strong: Tensor, weak: Tensor) -> Tensor:
        r"""Returns :math:`\eta` in [-1, 1], 0-dim, of rows ``(S, D)`` and ``(W, D)`` that do not correspond."""
        raise NotImplementedError

    def zipped(self, first: Tensor, second: Tensor) -> Tensor:
        """The same for rows that do correspond, both ``(P, D)``; by default the correspondence is ignored."""
        return torch.as_tensor(self(first, second))

    def of_classes(self, g: Tensor, index: Tensor, ref_g: Tensor, ref_index: Tensor, classes: int) -> Tensor:
        """Each class of ``g`` against all rows of ``ref_g`` of other classes, shape ``(classes,)``.

        By default one call per class; override it if sums over classes are enough.
        """
        etas = []
        for c in range(classes):
            strong, weak = g[index == c], ref_g[ref_index != c]
            etas.append(self(strong, weak) if len(strong) and len(weak) else g.new_zeros(()))
        return torch.stack(etas) if etas else g.new_zeros(0)

    def of_zipped_classes(self, g: Tensor, index: Tensor, ref_g: Tensor, ref_index: Tensor, classes: int) -> Tensor:
        """Each class against the rows of other classes, row i with row i, the longer side cut; shape ``(classes,)``."""
        etas = []
        for c in range(classes):
            strong, weak = g[index == c], ref_g[ref_index != c]
            shorter = min(len(strong), len(weak))
            etas.append(self._zipped_or_none(strong[:shorter], weak[:shorter]))
        return torch.stack(etas)

    def of_pairs(
        self, g: Tensor, ref_g: Tensor, anchors: Tensor, negatives: Tensor, segment: Tensor, segments: int
    ) -> Tensor:
        """The rows ``g[anchors]`` with ``ref_g[negatives]``, apart for each segment of the pairs; ``(segments,)``."""
        parts = [slice(None)] if segments == 1 else [segment == s for s in range(segments)]
        return torch.stack([self._zipped_or_none(g[anchors[at]], ref_g[negatives[at]]) for at in parts])

    def _zipped_or_none(self, first: Tensor, second: Tensor) -> Tensor:
        return self.zipped(first, second) if len(first) else first.sum()  # of no rows: 0


class GaussianCorrelation(Dependence):
    """Pearson correlation over all (row, row, feature) triples: the default, O(N·D) for any number of classes.

    See :func:`~adaptive_margin.functional.row_correlation`.

    Example:
        >>> GaussianCorrelation()(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(1.)
    """

    forward = staticmethod(row_correlation)
    zipped = staticmethod(zipped_correlation)
    of_classes = staticmethod(class_correlations)
    of_pairs = staticmethod(segment_correlations)

    def of_zipped_classes(self, g: Tensor, index: Tensor, ref_g: Tensor, ref_index: Tensor, classes: int) -> Tensor:
        """All classes from one pass over the rows: those without a partner are a segment of their own."""
        partner, there = zipped_partners(index, ref_index)
        rows = torch.arange(len(index), device=index.device)
        return segment_correlations(g, ref_g, rows, partner, torch.where(there, index, classes), classes + 1)[:classes]


class CentredKernelAlignment(Dependence):
    """Root of the linear centred kernel alignment, O(N·D²) a class.

    It captures how features vary together inside each group, whereas :class:`GaussianCorrelation` captures only group
    means. See :func:`~adaptive_margin.functional.centred_kernel_alignment`.

    Example:
        >>> CentredKernelAlignment()(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]]))
        tensor(1.)
    """

    forward = staticmethod(centred_kernel_alignment)
    zipped = staticmethod(zipped_kernel_alignment)
    of_classes = staticmethod(class_alignments)


class Independence(Dependence):
    """No dependence at all: MI is 0, and the margin is its confidence term alone.

    Example:
        >>> Independence()(torch.randn(4, 2), torch.randn(3, 2))
        tensor(0.)
    """

    def forward(self, strong: Tensor, weak: Tensor) -> Tensor:
        """Zero."""
        return strong.new_zeros(())

    def of_classes(self, g: Tensor, index: Tensor, ref_g: Tensor, ref_index: Tensor, classes: int) -> Tensor:
        """Zero for every class."""
        return g.new_zeros(classes)
