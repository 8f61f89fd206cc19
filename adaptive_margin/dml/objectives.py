"""Losses, each with its sampling, and the margin of a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.utils.module_with_records import ModuleWithRecords
from torch import Tensor, nn

from ..losses import AdaptiveMarginLoss, ContrastiveVDMLoss
from ..losses.swap import LOSSES as HOSTS
from ..losses.swap import Units
from ..margins import AdaptiveMargin, ConstantMargin
from ..messages import problem
from ..miners import AdaptiveMarginMiner, TiledDistanceWeightedMiner
from .competitors import AutoMarginLoss, DynamicSoftMargin
from .config import OF_PROXIES, DMLConfig, LossName
from .lifted import PairwiseLiftedStructureLoss


@dataclass(frozen=True)
class LossRow:
    """One row of the table of losses."""

    default: float | None  # the loss's margin, in its own unit
    candidates: tuple[float, ...]  # margins for tuning, in the same unit; the same number for every loss
    host: str | None  # its class in pytorch-metric-learning, with a row in the table of hosts; None: not from there
    source: str  # of the loss and its default
    options: Mapping[str, Any] = field(default_factory=dict)  # other arguments of its class


DISTANCES = (0.2, 0.35, 0.5, 0.65, 0.8, 1.0, 1.2, 1.4)
GAPS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8)  # between distances
SIMILARITIES = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85)
COSINES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.35, 0.45, 0.6)
DEGREES = (0.0, 3.0, 6.0, 11.5, 17.0, 23.0, 28.6, 40.0)
SHIFTS = (-0.1, 0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6)  # of cosines
SMALL_SHIFTS = (0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.45)
SQUARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6)  # of distances
TEN_CENTRES = {"la": 20, "gamma": 0.1, "centers_per_class": 10}

LOSSES: dict[LossName, LossRow] = {
    "contrastive": LossRow(1.0, DISTANCES, "ContrastiveLoss", "Hadsell et al. 2006; the host's margin"),
    "contrastive-distance": LossRow(1.0, DISTANCES, "ContrastiveLoss", "the same, sampled as in Wu et al. 2017"),
    "triplet": LossRow(0.05, GAPS, "TripletMarginLoss", "every triplet; the host's margin"),
    "triplet-semihard": LossRow(0.2, GAPS, "TripletMarginLoss", "Schroff et al. 2015, margin 0.2"),
    "triplet-distance": LossRow(0.2, GAPS, "TripletMarginLoss", "Wu et al. 2017's sampling; Roth et al. 2020's 0.2"),
    "margin": LossRow(0.2, GAPS, "MarginLoss", "Wu et al. 2017"),
    "lifted": LossRow(1.0, DISTANCES, "LiftedStructureLoss", "Oh Song et al. 2016; the host's margin"),
    "multi-similarity": LossRow(0.5, SIMILARITIES, "MultiSimilarityLoss", "Wang et al. 2019", {"alpha": 2, "beta": 50}),
    "cosface": LossRow(0.35, COSINES, "CosFaceLoss", "Wang et al. 2018; the host's scale of 64"),
    "arcface": LossRow(28.6, DEGREES, "ArcFaceLoss", "Deng et al. 2019; the host's scale of 64"),
    "proxy-anchor": LossRow(0.1, SHIFTS, "ProxyAnchorLoss", "Kim et al. 2020", {"alpha": 32}),
    "soft-triple": LossRow(0.01, SMALL_SHIFTS, "SoftTripleLoss", "Qian et al. 2019", TEN_CENTRES),
    "vdm": LossRow(1.0, SQUARES, None, "Kim & Song 2021, squared distance; the host's contrastive 1"),
    "dynamic-soft-margin": LossRow(None, (), None, "Zhang & Rusinkiewicz 2019"),
    "auto-margin": LossRow(None, (), None, "Nguyen et al. 2022"),
}
"""Every available loss, with its default margin and the margins for tuning."""


class Objective(nn.Module):
    """A loss of pytorch-metric-learning's interface on a batch of embeddings, with the miner that chooses its pairs or
    triplets, without gradient; None leaves this to the loss.

    Example:
        >>> objective = build_objective(DMLConfig(loss="contrastive", margin="adaptive"), classes=4)
        >>> objective.record(True)
        >>> value = objective(torch.randn(32, 8, requires_grad=True), torch.arange(32) % 4)
        >>> sorted(objective.statistics())
        ['delta', 'k', 'margin', 'mi']
    """

    def __init__(self, loss: BaseMetricLossFunction, miner: Any = None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar; embeddings ``(B, D)`` of unit norm, labels ``(B,)`` from 0."""
        chosen = None if self.miner is None else self.miner(embeddings.detach(), labels)
        value: Tensor = self.loss(embeddings, labels, chosen)
        return value

    def record(self, on: bool) -> None:
        """Whether the next call records its margin, which synchronises with the device."""
        if isinstance(self.loss, ModuleWithRecords):
            self.loss.collect_stats = on

    def statistics(self) -> dict[str, float]:
        """The recorded margin of the last call in the loss's unit, with the parts of an adaptive margin."""
        loss, margin = self.loss, getattr(self.loss, "margin", None)
        found: dict[str, float]
        if isinstance(loss, AdaptiveMarginLoss | ContrastiveVDMLoss):
            recorded = loss.statistics() if loss.collect_stats else {}
            named = {"margin": "current_margin", "mi": "mi", "delta": "delta", "k": "k"}
            found = {name: recorded[theirs] for name, theirs in named.items() if theirs in recorded}
        else:
            rows = [HOSTS[base.__name__] for base in type(loss).__mro__ if base.__name__ in HOSTS]
            value: Any = getattr(loss, rows[0].attribute, None) if rows else margin
            found = {} if value is None else {"margin": float(value)}
        if isinstance(loss, AutoMarginLoss):
            found["beta"] = loss.beta
        beta = getattr(loss, "beta", None)
        if isinstance(beta, nn.Parameter):
            found["beta"] = float(beta.detach().mean())
        return {name: value for name, value in found.items() if value == value}  # NaN: nothing recorded yet


def build_objective(config: DMLConfig, classes: int, *, epoch_steps: int = 1) -> Objective:
    """The objective of a run, for ``classes`` training classes; AutoMargin updates its margins every ``epoch_steps``.

    Raises:
        ValueError: a margin or granularity that the loss does not support.
    """
    row = LOSSES[config.loss]
    if row.default is None and config.margin != "default":
        remedy = "leave it out: it has no margin to compare"
        raise ValueError(problem("margin", f"'default' for {config.loss}", repr(config.margin), remedy))
    value = config.margin if isinstance(config.margin, float) else row.default
    loss = _build_loss(config, classes, value, epoch_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the margins of LOSSES are not used
        if config.margin == "adaptive" and config.loss != "vdm":
            loss = AdaptiveMarginLoss(loss, _adaptive(config), units=_units(config))
        return Objective(loss, _build_miner(config))


def arm_of(config: Mapping[str, Any]) -> str:
    """An arm's name from its configuration.

    Example:
        >>> arm_of({"margin": "default", "learn_beta": True, "loss": "margin"})
        'default, learned beta'
    """
    margin = config["margin"]
    if margin == "adaptive":
        grain = "" if config["granularity"] == "batch" else f", {config['granularity']}"
        units = "" if config["units"] == "default" else f", {config['units']}"
        name = f"{config['neighbourhood']}{grain}{units}"
    else:
        name = margin if isinstance(margin, str) else f"margin {margin:g}"
    return f"{name}, learned beta" if config["learn_beta"] and config.get("loss") == "margin" else name


def _adaptive(config: DMLConfig) -> AdaptiveMargin:
    """The adaptive margin of a run; the rule ``auto`` is the default of the loss."""
    host = LOSSES[config.loss].host
    rule = HOSTS[host].rule if config.neighbourhood == "auto" and host is not None else config.neighbourhood
    return AdaptiveMargin(
        confidence=config.confidence,
        max_mi=config.max_mi,
        dependence=config.dependence,
        neighbourhood=rule,
        granularity=config.granularity,
    )


def _units(config: DMLConfig) -> Units | None:
    return None if config.units == "default" else config.units


def _build_loss(config: DMLConfig, classes: int, margin: Any, epoch_steps: int) -> Any:
    if config.loss == "vdm":
        return ContrastiveVDMLoss(_adaptive(config) if config.margin == "adaptive" else ConstantMargin(margin))
    if config.loss == "dynamic-soft-margin":
        return DynamicSoftMargin()
    row = LOSSES[config.loss]
    if row.host is None:
        return AutoMarginLoss(epoch_steps)
    options = {HOSTS[row.host].attribute: margin, **row.options}
    if config.loss in OF_PROXIES:
        options |= {"num_classes": classes, "embedding_size": config.embedding_size}
    if config.loss == "margin":
        learned = bool(config.learn_beta)
        options |= {"beta": config.beta, "learn_beta": learned, "num_classes": classes if learned else None}
    return PairwiseLiftedStructureLoss(**options) if config.loss == "lifted" else getattr(losses, row.host)(**options)


def _build_miner(config: DMLConfig) -> Any:
    if config.loss in ("margin", "triplet-distance", "contrastive-distance"):
        return TiledDistanceWeightedMiner(
            cutoff=0.5, nonzero_loss_cutoff=config.nonzero_loss_cutoff, triplets_per_anchor=config.triplets_per_anchor
        )
    if config.loss == "triplet-semihard":
        margin = config.margin if isinstance(config.margin, float) else LOSSES["triplet-semihard"].default
        miner = miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard")  # a band as wide as the margin
        if config.margin != "adaptive":
            return miner
        return AdaptiveMarginMiner(miner, _adaptive(replace(config, granularity="batch")), units=_units(config))
    if config.loss == "multi-similarity":
        return miners.MultiSimilarityMiner(epsilon=0.1)
    if config.loss == "dynamic-soft-margin":
        return miners.BatchHardMiner()
    return None
