"""The adaptive margin: Eq. 5 and 8 of Kim & Song 2021."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from ..choices import NeighbourhoodName
from ..functional.checks import check_values
from ..functional.dependence import Bandwidth, Pairing, check_bandwidth, information_of, mutual_information
from ..functional.neighbourhood import check_confidence, harmonic_mean
from ..functional.small_batch import SmallBatch
from ..messages import check_choice, problem
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
from .prepared_batch import PreparedBatch, prepare

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
        dependence: ``"gaussian"``, ``"alignment"``, ``"none"`` (:math:`\Delta` alone) or, except for margins of pairs,
            your own :class:`Dependence`.
        neighbourhood: ``"auto"`` (``"hoeffding"`` for two labels, ``"remaining"`` for more), ``"remaining"``,
            ``"attainable"`` (leads, does not relax, needs no distances), ``"hoeffding"``, ``"chernoff"`` (evidence from
            three samples on), ``"released"`` (the only one for which a group of two is evidence), or your own
            :class:`NeighbourhoodRule`.
        collect_stats: whether to record ``mi``, ``eta``, ``delta``, ``k`` and ``alpha`` of the last call, as floats;
            by default, pytorch-metric-learning's ``COLLECT_STATS`` decides. Recording synchronises with the device.
            Without it, reading them is an error that says so. :meth:`statistics` has them all.

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
    recorded = ("mi", "eta", "delta", "k", "alpha")
    mi: float
    eta: float
    delta: float
    k: float
    alpha: float

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
        if granularity == "pair" and type(self.dependence) not in DEPENDENCES.values():
            expected, remedy = "'gaussian', 'alignment' or 'none' for margins of pairs", "pass granularity='anchor'"
            raise ValueError(problem("dependence", expected, type(self.dependence).__name__, remedy))
        self.neighbourhood: NeighbourhoodRule = _strategy(
            "neighbourhood", neighbourhood, NEIGHBOURHOODS, NeighbourhoodRule
        )
        self.add_to_recordable_attributes(list_of_names=["confidence"], is_stat=False)

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
        kind = "cpu"
        if isinstance(embeddings, Tensor):
            check_values("embeddings", embeddings)
            kind = embeddings.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
            given = embeddings, labels, indices_tuple, ref_emb, ref_labels
            batch = prepare(*given, self.detach, self.bandwidth, small=self._may_use_numpy)
            if batch.empty:
                return self._nothing(batch)
            mi = self._mi(batch)
            delta = self._delta(batch)
            self._record(mi=mi, delta=delta)
            return batch.as_tensor(mi + delta)

    @property
    def may_lead(self) -> bool:  # type: ignore[override]
        """Whether its rule may lead."""
        return self.neighbourhood.may_lead

    def leads(self, labels: Tensor, ref_labels: Tensor | None = None) -> bool | Tensor:
        """Whether its rule leads for these labels."""
        return self.neighbourhood.leads(labels, ref_labels)

    @property
    def _may_use_numpy(self) -> bool:
        plain = self.pairing == "all" and self.granularity == "batch" and type(self.dependence) is GaussianCorrelation
        return plain and self.neighbourhood.suits_small

    def _mi(self, batch: PreparedBatch | SmallBatch) -> float | Tensor:
        """MI of the batch (the mean over its rows), of each anchor, or of each pair."""
        if isinstance(batch, SmallBatch):
            etas = batch.correlations(self.bandwidth)
            share = batch.weights
            if self.collect_stats:
                self._record(eta=float(etas @ share))
            return float(information_of(etas, self.max_mi, batch.dtype) @ share)
        eta = self._eta(batch)
        self._record(eta=eta)
        mi = mutual_information(eta, self.max_mi)
        return mi.mean() if self.granularity == "batch" else mi

    def _eta(self, batch: PreparedBatch) -> Tensor:
        """η of each row, of each pair for margins a pair, or of all pairs of an index tuple together."""
        if self.granularity == "pair":
            eta = batch.pair_correlations()  # of single rows the alignment is its size, of which MI takes the square
            return torch.zeros_like(eta) if isinstance(self.dependence, Independence) else eta
        if batch.pairs is None:
            of_classes = self.dependence.of_classes if self.pairing == "all" else self.dependence.of_zipped_classes
            return of_classes(batch.g, batch.index, batch.ref_g, batch.ref_index, batch.classes)[batch.index]
        anchors, negatives = batch.pairs
        if self.granularity == "batch":
            return self.dependence.of_pairs(batch.g, batch.ref_g, anchors, negatives, torch.zeros_like(anchors), 1)
        segment = batch.index[anchors]
        return self.dependence.of_pairs(batch.g, batch.ref_g, anchors, negatives, segment, batch.classes)[batch.index]

    def _delta(self, batch: PreparedBatch | SmallBatch) -> float | Tensor:
        """Δ of the batch, of each anchor, or of the anchor of each pair."""
        rule, c = self.neighbourhood, self.confidence
        if isinstance(batch, SmallBatch):
            size = rule.mean_size_of_small(batch, c)
            self._record(k=size)
            return rule.delta_of_small(len(batch.index), size, c, batch.dtype)
        sets = batch.x, batch.index, batch.y, batch.ref_index
        k = rule.mean_size(*sets, c) if self.granularity == "batch" else rule.sizes(*sets, c)
        k = k.to(batch.g.dtype)
        if self.granularity == "pair":
            k = k[batch.anchors()]
        self._record(k=k)
        return rule.delta(len(batch.y), k, c).to(k.dtype)

    def _nothing(self, batch: PreparedBatch | SmallBatch) -> Tensor:
        """The margin of no samples, or of samples without a reference: zero."""
        assert isinstance(batch, PreparedBatch)
        pairs = 0 if batch.pairs is None else len(batch.pairs[0])
        shape = {"batch": (), "anchor": (len(batch.x),), "pair": (pairs,)}[self.granularity]
        return batch.x.new_zeros(shape)

    def _record(self, **values: float | Tensor) -> None:
        """Records means over the values that the granularity gives, NaN of none; for K the harmonic mean."""
        if not self.collect_stats:
            return
        with torch.no_grad():
            for name, x in values.items():
                mean = x if not isinstance(x, Tensor) else harmonic_mean(x) if name == "k" else x.mean()
                setattr(self, name, float(mean))
        self.alpha = self.mi + self.delta

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
