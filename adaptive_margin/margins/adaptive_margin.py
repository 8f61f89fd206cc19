"""The adaptive margin: Eq. 5 and 8 of Kim & Song 2021."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from ..choices import NeighbourhoodName
from ..functional.checks import (
    at_least_float32,
    check_choice,
    check_indices,
    check_labels,
    check_matrix,
    check_same_features,
    largest_magnitude,
    problem,
)
from ..functional.dependence import (
    Bandwidth,
    Pairing,
    check_bandwidth,
    common_scale,
    information_of,
    mutual_information,
    scaled_gaussian_kernel,
    segment_correlations,
    unit_rows,
    zipped_partners,
)
from ..functional.groups import group_index, group_slots
from ..functional.neighbourhood import check_confidence, harmonic_mean
from ..functional.small_batch import SmallBatch
from .base import Granularity, IndicesTuple, Margin
from .dependence import CentredKernelAlignment, Dependence, GaussianCorrelation, Independence
from .neighbourhood import (
    AttainableRule,
    AutoRule,
    ChernoffRule,
    HoeffdingRule,
    NeighbourhoodRule,
    ReleasedRule,
    RemainingRule,
)

DEPENDENCES: dict[str, type[Dependence]] = {
    "gaussian": GaussianCorrelation,
    "alignment": CentredKernelAlignment,
    "none": Independence,
}
NEIGHBOURHOODS: dict[str, type[NeighbourhoodRule]] = {
    "auto": AutoRule,
    "remaining": RemainingRule,
    "attainable": AttainableRule,
    "hoeffding": HoeffdingRule,
    "chernoff": ChernoffRule,
    "released": ReleasedRule,
}


class AdaptiveMargin(Margin):
    r"""A margin computed from the batch: mutual information between groups plus a confidence term.

    .. math::
        \hat\alpha = \mathrm{MI}\bigl(g(Z_s), g(Z_w)\bigr) + \Delta(N, K), \qquad
        \mathrm{MI} = -\tfrac12\log(1-\eta^2), \qquad \Delta(N, K) = \tfrac{1}{2K}\log\tfrac{N}{c}

    With two labels, MI dominates early and :math:`\Delta` takes over as the groups separate. With three or more,
    :math:`\Delta` leads while classes are mixed and relaxes as they separate.

    - :math:`g(z) = \exp(-z^2/2\sigma^2)`, entry by entry; :math:`\eta` is the Pearson correlation of :math:`g(Z_s)` and
      :math:`g(Z_w)` over all rows of one group with all rows of the other.
    - K follows the rule named by ``neighbourhood``. For two labels :math:`K_i` is the smallest number of nearest
      neighbours whose labels agree with sample i's beyond chance. For more,
      :math:`1/K_i = 2\mu_i^2/\log(N/c) + 1/(N-1)` with
      :math:`\mu_i` the impurity of the neighbourhood that should contain sample i's class, so that :math:`\Delta_i` is
      :math:`\mu_i^2` plus a small floor. K is the harmonic mean of all :math:`K_i`: :math:`\Delta(N, K)` is the mean of
      the samples' own :math:`\Delta(N, K_i)`.
    - With more than two labels, every class in turn is the strong group and all other samples are the weak group; the
      batch's MI is the mean over classes, weighted by their sizes. With two labels this equals the two-group value.
    - With an ``indices_tuple``, :math:`\eta` is computed over its (anchor, negative) rows, row by row, instead.
    - With ``ref_emb``, neighbours, class sizes and the weak rows come from it, and N is its size.

    Source: Kim & Song, AAAI 2021, Eq. (5) and (8); K for two labels follows Balsubramani et al. 2019; for more labels
    it is ours, derived from the same bound. The paper does not specify the width of :math:`g`, the pairing behind
    :math:`\eta` and the rule for K: the documentation gives each choice and the reason.

    The margin is a *squared* distance between the embeddings as passed: nothing is normalised here.
    :class:`~adaptive_margin.AdaptiveMarginLoss` converts it for losses on distances, cosines and angles.

    Args:
        confidence: c, in (0, 1]; a smaller value gives a larger margin.
        bandwidth: :math:`\sigma`: ``"std"`` of the batch's entries, or a positive number in their unit.
        max_mi: cap of MI, in nats; ``None`` for no cap except that of the dtype.
        pairing: ``"all"``, or ``"zip"`` (row i with row i, the longer group truncated, as in the authors' released
            code).
        detach: whether the margin is a constant in the graph. With a gradient, a critic drives MI to zero instead of
            learning to separate; :math:`\Delta` never has a gradient.
        granularity: ``"batch"``: one margin; ``"anchor"``: :math:`\mathrm{MI}_{c(i)} + \Delta(N, K_i)` for each row;
            ``"pair"``: :math:`\mathrm{MI}_{ij} + \Delta(N, K_i)` for each (anchor, negative) pair, with
            :math:`\eta_{ij}` the correlation of the two rows of :math:`g`.
        dependence: ``"gaussian"``, ``"alignment"``, ``"none"`` (:math:`\Delta` alone) or your own :class:`Dependence`.
        neighbourhood: ``"auto"`` (``"hoeffding"`` for two labels, ``"remaining"`` for more), ``"remaining"``,
            ``"attainable"`` (leads, does not relax, needs no distances), ``"hoeffding"``, ``"chernoff"`` (evidence from
            three samples on), ``"released"`` (the only one for which a group of two is evidence), or your own
            :class:`NeighbourhoodRule`.
        collect_stats: whether to record ``mi``, ``eta``, ``delta``, ``k`` and ``alpha`` of the last call, as floats;
            by default, pytorch-metric-learning's ``COLLECT_STATS`` decides. Recording synchronises with the device.

    Shapes:
        ``margin(embeddings (B, D), labels (B,), indices_tuple=None, ref_emb=None (R, D), ref_labels=None (R,))``
        gives a 0-dim tensor (``"batch"``), ``(B,)`` (``"anchor"``) or ``(P,)`` (``"pair"``: the pairs of the tuple, or
        all pairs of different labels in row-major order), in float32, float64 for float64 embeddings. Half precision
        is computed in float32. An empty batch gives 0.

    Raises:
        ValueError: unknown options, shapes that do not match, NaN or infinity, missing labels. On CUDA and in compiled
            code NaN raises a device-side assertion instead, so that nothing waits for the device.

    Example:
        >>> margin = AdaptiveMargin(collect_stats=True)
        >>> strong, weak = torch.randn(64, 8), torch.randn(64, 8) + 20.0
        >>> alpha = margin(torch.cat([strong, weak]), torch.arange(128) // 64)
        >>> print(f"{alpha:.3f} = {margin.mi:.3f} + {margin.delta:.3f}, K = {margin.k:.0f}")
        0.245 = 0.000 + 0.245, K = 16
    """

    unit: Literal["squared distance", "own"] = "squared distance"

    def __init__(
        self,
        confidence: float = 0.05,
        bandwidth: Bandwidth = "std",
        max_mi: float | None = 2.5,
        pairing: Pairing = "all",
        detach: bool = True,
        granularity: Granularity = "batch",
        dependence: Literal["gaussian", "alignment", "none"] | Dependence = "gaussian",
        neighbourhood: NeighbourhoodName | NeighbourhoodRule = "auto",
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(collect_stats=collect_stats)
        check_confidence(confidence)
        check_bandwidth(bandwidth)
        mutual_information(torch.zeros(()), max_mi)  # raises if max_mi is not a valid cap
        check_choice("pairing", pairing, ("all", "zip"))
        check_choice("granularity", granularity, ("batch", "anchor", "pair"))
        self.confidence = confidence
        self.bandwidth = bandwidth
        self.max_mi = max_mi
        self.pairing = pairing
        self.detach = detach
        self.granularity = granularity
        self.dependence: Dependence = _strategy("dependence", dependence, DEPENDENCES, Dependence)
        self.neighbourhood: NeighbourhoodRule = _strategy(
            "neighbourhood", neighbourhood, NEIGHBOURHOODS, NeighbourhoodRule
        )
        self.mi = self.eta = self.delta = self.k = self.alpha = math.nan
        self.add_to_recordable_attributes(list_of_names=["confidence"], is_stat=False)
        self.add_to_recordable_attributes(list_of_names=["mi", "eta", "delta", "k", "alpha"], is_stat=True)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: IndicesTuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The margin of this batch; see the class."""
        self.reset_stats()
        labels, ref_emb, ref_labels = self._checked(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        kind = embeddings.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            x = at_least_float32(embeddings.detach() if self.detach else embeddings)
            if len(x) == 0 or len(ref_emb) == 0:
                return self._nothing(x, indices_tuple)
            if ref_emb is embeddings and ref_labels is labels:
                scale = common_scale(largest_magnitude("embeddings", x))
                small = self._of_small_batch(x, labels, scale) if indices_tuple is None else None
                if small is not None:
                    return small
                x = y = x / scale
                index = ref_index = group_index(labels)
                (g,) = (ref_g,) = scaled_gaussian_kernel((x,), scale, self.bandwidth)
            else:
                y = at_least_float32(ref_emb.detach() if self.detach else ref_emb).to(x)
                scale = common_scale(largest_magnitude("embeddings", x), largest_magnitude("ref_emb", y))
                x, y = x / scale, y / scale
                both = group_index(torch.cat([labels, ref_labels]))
                index, ref_index = both[: len(x)], both[len(x) :]
                g, ref_g = scaled_gaussian_kernel((x, y), scale, self.bandwidth)
            rule = self.neighbourhood.of(index, ref_index)
            of_rows = rule.mean_size if self.granularity == "batch" else rule.sizes
            k = of_rows(x, index, y, ref_index, self.confidence)
            return self._combine(g, index, ref_g, ref_index, k, indices_tuple)

    @property
    def may_lead(self) -> bool:  # type: ignore[override]
        """Whether its rule may lead."""
        return self.neighbourhood.may_lead

    def leads(self, labels: Tensor, ref_labels: Tensor | None = None) -> bool | Tensor:
        """Whether its rule leads for these labels."""
        return self.neighbourhood.leads(labels, ref_labels)

    def _of_small_batch(self, x: Tensor, labels: Tensor, scale: Tensor) -> Tensor | None:
        """The margin of a batch so small that numpy is faster than torch; None for other batches."""
        plain = self.pairing == "all" and self.granularity == "batch" and type(self.dependence) is GaussianCorrelation
        if not plain or not SmallBatch.suits(x):
            return None
        batch = SmallBatch(x, labels, scale)
        size = self.neighbourhood.mean_size_of_small(batch, self.confidence)
        if size is None:
            return None
        eta, weights, k = batch.correlations(self.bandwidth), batch.counts / len(x), x.new_full((), size)
        mi = float(information_of(eta, self.max_mi, x.dtype) @ weights)
        delta = self.neighbourhood.delta(len(x), k, self.confidence).to(x.dtype)
        if self.collect_stats:
            self._record(x.new_full((), mi), x.new_full((), float(eta @ weights)), delta, k)
        return mi + delta

    def _combine(
        self,
        g: Tensor,
        index: Tensor,
        ref_g: Tensor,
        ref_index: Tensor,
        k: Tensor,
        indices_tuple: IndicesTuple | None,
    ) -> Tensor:
        n = len(ref_g)
        if self.granularity == "pair":
            anchors, eta = self._pair_correlations(g, index, ref_g, ref_index, indices_tuple)
            k = k[anchors].to(g.dtype)
            mi = mutual_information(eta, self.max_mi)
            delta = self.neighbourhood.delta(n, k, self.confidence).to(g.dtype)
            self._record(mi, eta, delta, k)
            return mi + delta
        both = index if ref_g is g else torch.cat([index, ref_index])
        classes = max(1, group_slots(both, len(index) + len(ref_index)))
        eta = self._class_correlations(g, index, ref_g, ref_index, classes, indices_tuple)
        one_slot = indices_tuple is not None and self.granularity == "batch"
        return self._sum(eta, slice(None) if one_slot else index, k.to(eta.dtype), n)

    def _sum(self, eta: Tensor, place: Tensor | slice, k: Tensor, n: int) -> Tensor:
        """MI + Δ of η in slots and the place of each row in them: classes are weighted by size."""
        mi = mutual_information(eta, self.max_mi)
        mi = mi[place] if self.granularity == "anchor" else mi[place].mean()
        delta = self.neighbourhood.delta(n, k, self.confidence).to(eta.dtype)
        if self.collect_stats:
            self._record(mi, eta[place], delta, k)
        return mi + delta

    def _class_correlations(
        self,
        g: Tensor,
        index: Tensor,
        ref_g: Tensor,
        ref_index: Tensor,
        classes: int,
        indices_tuple: IndicesTuple | None,
    ) -> Tensor:
        """η of each class, or of the tuple's pairs: in one slot for the batch, by the anchor's class for anchors."""
        if indices_tuple is not None:
            anchors, negatives = _negative_pairs(indices_tuple)
            if isinstance(self.dependence, GaussianCorrelation):
                if self.granularity == "batch":
                    return segment_correlations(g, ref_g, anchors, negatives, torch.zeros_like(anchors), 1)
                return segment_correlations(g, ref_g, anchors, negatives, index[anchors], classes)
            parts = [slice(None)] if self.granularity == "batch" else [index[anchors] == c for c in range(classes)]
            return torch.stack([self._zipped(g[anchors[at]], ref_g[negatives[at]]) for at in parts])
        if self.pairing == "zip":
            if isinstance(self.dependence, GaussianCorrelation):
                partner, there = zipped_partners(index, ref_index)
                of_class = torch.where(there, index, classes)  # rows without a partner: a segment of their own
                rows = torch.arange(len(index), device=index.device)
                return segment_correlations(g, ref_g, rows, partner, of_class, classes + 1)[:classes]
            etas = []
            for c in range(classes):
                strong, weak = g[index == c], ref_g[ref_index != c]
                shorter = min(len(strong), len(weak))
                etas.append(self._zipped(strong[:shorter], weak[:shorter]))
            return torch.stack(etas)
        return self.dependence.of_classes(g, index, ref_g, ref_index, classes)

    def _zipped(self, first: Tensor, second: Tensor) -> Tensor:
        return self.dependence.zipped(first, second) if len(first) else first.sum()  # of no rows: 0

    def _pair_correlations(
        self, g: Tensor, index: Tensor, ref_g: Tensor, ref_index: Tensor, indices_tuple: IndicesTuple | None
    ) -> tuple[Tensor, Tensor]:
        """Anchors and η of each (anchor, negative) pair."""
        unit, ref_unit = unit_rows(g), unit_rows(ref_g)
        if indices_tuple is None:
            different = index[:, None] != ref_index
            return different.nonzero()[:, 0], (unit @ ref_unit.T)[different].clamp(-1, 1)
        anchors, negatives = _negative_pairs(indices_tuple)
        parts = zip(torch.split(anchors, 2**14), torch.split(negatives, 2**14), strict=True)
        return anchors, torch.cat([(unit[a] * ref_unit[n]).sum(1) for a, n in parts]).clamp(-1, 1)

    def _nothing(self, x: Tensor, indices_tuple: IndicesTuple | None) -> Tensor:
        """The margin of no samples, or of samples without a reference: zero."""
        if self.granularity == "batch":
            return x.new_zeros(())
        pairs = 0 if indices_tuple is None else len(_negative_pairs(indices_tuple)[0])
        return x.new_zeros(len(x) if self.granularity == "anchor" else pairs)

    def _record(self, mi: Tensor, eta: Tensor, delta: Tensor, k: Tensor) -> None:
        """Records means over the values that the granularity gives; for K the harmonic mean."""
        if not self.collect_stats:
            return
        with torch.no_grad():
            self.mi, self.eta, self.delta = (float(x.mean()) if x.numel() else 0.0 for x in (mi, eta, delta))
            self.k = float(harmonic_mean(k)) if k.numel() else 0.0
            self.alpha = self.mi + self.delta

    def _checked(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: IndicesTuple | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_matrix("embeddings", embeddings)
        if labels is None:
            remedy = "the margin compares groups; for continuous targets make some with OtsuGrouper"
            raise ValueError(problem("labels", "given", "None", remedy))
        check_labels("labels", labels, len(embeddings))
        if ref_emb is None or (ref_emb is embeddings and ref_labels is None):
            ref_emb, ref_labels = embeddings, labels
        elif ref_labels is None:
            raise ValueError(problem("ref_labels", "given with ref_emb", "None", "pass the labels of ref_emb"))
        elif ref_emb is not embeddings:
            check_matrix("ref_emb", ref_emb)
            check_same_features("ref_emb", ref_emb, "embeddings", embeddings)
        check_labels("ref_labels", ref_labels, len(ref_emb), of="ref_emb")
        if indices_tuple is not None:
            _check_indices(indices_tuple, embeddings, ref_emb)
        moved = labels.to(embeddings.device)
        return moved, ref_emb, moved if ref_labels is labels else ref_labels.to(embeddings.device)

    def extra_repr(self) -> str:
        """The options, for ``print(loss)``."""
        rule = type(self.neighbourhood).__name__
        return f"confidence={self.confidence}, granularity={self.granularity!r}, neighbourhood={rule}"


def _strategy(argument: str, chosen: Any, named: dict[str, Any], base: type) -> Any:
    if isinstance(chosen, base):
        return chosen
    if isinstance(chosen, str) and chosen in named:
        return named[chosen]()
    expected = f"one of {', '.join(map(repr, named))} or a {base.__name__}"
    raise ValueError(
        problem(argument, expected, repr(chosen), f"subclass adaptive_margin.{base.__name__} for your own")
    )


def _negative_pairs(indices_tuple: IndicesTuple) -> tuple[Tensor, Tensor]:
    """(anchor, negative) of triplets (a, p, n) or pairs (a1, p, a2, n)."""
    return indices_tuple[-2 if len(indices_tuple) == 4 else 0], indices_tuple[-1]


def _check_indices(indices_tuple: IndicesTuple, embeddings: Tensor, ref_emb: Tensor) -> None:
    expected = "triplets (a, p, n) or pairs (a1, p, a2, n)"
    if not isinstance(indices_tuple, (tuple, list)):  # torch 2.6 does not compile a union
        raise TypeError(problem("indices_tuple", expected, type(indices_tuple).__name__, "pass a miner's output"))
    if len(indices_tuple) not in (3, 4):
        raise ValueError(problem("indices_tuple", expected, f"{len(indices_tuple)} tensors", "pass a miner's output"))
    anchors, negatives = _negative_pairs(indices_tuple)
    check_indices("indices_tuple's anchors", anchors, len(embeddings))
    check_indices(
        "indices_tuple's negatives", negatives, len(ref_emb), of="embeddings" if ref_emb is embeddings else "ref_emb"
    )
    if len(anchors) != len(negatives):
        got = f"{len(anchors)} anchors and {len(negatives)} negatives"
        raise ValueError(problem("indices_tuple", "one negative an anchor", got, "pass a miner's output"))
    if anchors.device != embeddings.device:
        remedy = "move it to the embeddings' device"
        raise ValueError(problem("indices_tuple", f"on {embeddings.device}", anchors.device, remedy))
