"""Every host of AdaptiveMarginLoss, ready to be built with a margin, and every loss of ours that goes into hosts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_metric_learning import losses
from torch import Tensor

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, ContrastiveVDMLoss

CLASSES, FEATURES = 4, 8
SIZES: dict[str, Any] = {"num_classes": CLASSES, "embedding_size": FEATURES}
Translation = Callable[[float], float]  # from α̂, a squared distance, to the number that the constructor takes


def _same(alpha: float) -> float:
    return alpha


def _plus(own: float) -> Translation:
    return lambda alpha: own + alpha


def _similarity(alpha: float) -> float:
    return 1 - alpha / 2


def _less_similar(own: float) -> Translation:
    return lambda alpha: own - alpha / 2


def _part(of: float) -> Translation:
    return lambda alpha: alpha / of


def _angle(part: float) -> Translation:
    return lambda alpha: math.degrees(math.acos(1 - alpha / 2)) / part


def _on_distance(own: float, geometry: Translation) -> dict[str, Translation]:
    return {"geometry": geometry, "sqrt": math.sqrt, "replace": _same, "offset": _plus(own)}


def _at_distance(own: float) -> dict[str, Translation]:
    return {"geometry": math.sqrt, "offset": _plus(own), "sqrt": math.sqrt, "replace": _same}


def _on_angle(own_degrees: float) -> dict[str, Translation]:
    return {
        "geometry": _angle(4),
        "offset": lambda alpha: own_degrees + math.degrees(alpha),
        "replace": math.degrees,
        "sqrt": lambda alpha: math.degrees(math.sqrt(alpha)),
    }


def _on_cosine(own: float, geometry: Translation) -> dict[str, Translation]:
    return {"geometry": geometry, "offset": _plus(own), "replace": _same}


def _at_ratio(own: float) -> dict[str, Translation]:
    return {"geometry": _same, "offset": _plus(own), "replace": _same}


def _at_similarity(own: float) -> dict[str, Translation]:
    return {"geometry": _similarity, "offset": _less_similar(own), "replace": _similarity}


@dataclass(frozen=True)
class Host:
    """A loss of pytorch-metric-learning and what its constructor's margin must be for an adaptive margin α̂.

    ``translations`` is written from docs/units.md and the hosts' papers, not from the table under test; its
    first entry is the default of a margin that leads, its second of one that waits for evidence.
    ``numbers`` are margins as the constructor takes them, none of them the default.
    """

    name: str
    attribute: str
    translations: dict[str, Translation]
    numbers: tuple[float, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    labels: bool = True  # takes them
    tuples: bool = True  # takes a miner's output
    reference: bool = False  # takes another set of embeddings to compare with
    weights: str | None = None  # the parameter that is cast to the dtype of each batch
    elementwise: bool = False
    of_chosen: dict[str, Translation] = field(default_factory=dict)  # what differs where the caller lists triplets

    def build(self, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
        """The stock loss: the same weights every time; ``margin=`` is given under its own name."""
        torch.manual_seed(7)
        if "margin" in kwargs:
            kwargs[self.attribute] = kwargs.pop("margin")
        return getattr(losses, self.name)(**{**self.kwargs, **kwargs}).to(dtype)


_CHOSEN: dict[str, Translation] = {"geometry": lambda alpha: math.sqrt(2) - math.sqrt(max(2 - alpha, 0))}
_PAIRS: dict[str, Any] = {"reference": True}
_CLASSES: dict[str, Any] = {"kwargs": SIZES}
HOSTS = {
    host.name: host
    for host in (
        Host("ContrastiveLoss", "neg_margin", _at_distance(1), (0.7, 2), elementwise=True, **_PAIRS),
        Host(
            "TripletMarginLoss",
            "margin",
            _on_distance(0.05, _part(4)),
            (0.0, 0.3, 1),
            elementwise=True,
            of_chosen=_CHOSEN,
            **_PAIRS,
        ),
        Host(
            "MarginLoss", "margin", _on_distance(0.2, math.sqrt), (0.0, 0.4), {"beta": 1.25}, elementwise=True, **_PAIRS
        ),  # the host holds beta in float32: 1.25 is the same number there
        Host("LiftedStructureLoss", "neg_margin", _at_distance(1), (0.5, 1.5), **_PAIRS),
        Host("GeneralizedLiftedStructureLoss", "neg_margin", _at_distance(1), (0.5, 1.5), **_PAIRS),
        Host("SignalToNoiseRatioContrastiveLoss", "neg_margin", _at_ratio(1), (2.5, 4), elementwise=True, **_PAIRS),
        Host("CosFaceLoss", "margin", _on_cosine(0.35, _part(2)), (0.0, 0.1, 1), weights="W", **_CLASSES),
        Host("ArcFaceLoss", "margin", _on_angle(28.6), (0.0, 10, 57.3, 150.0), weights="W", **_CLASSES),
        Host("SubCenterArcFaceLoss", "margin", _on_angle(28.6), (0.0, 10, 150.0), weights="W", **_CLASSES),
        Host("SoftTripleLoss", "margin", _on_cosine(0.01, _part(2)), (0.0, 0.3), weights="fc", **_CLASSES),
        Host("ProxyAnchorLoss", "margin", _on_cosine(0.1, _part(4)), (0.0, 0.3), weights="proxies", **_CLASSES),
        Host("MultiSimilarityLoss", "base", _at_similarity(0.5), (0.0, 0.8), **_PAIRS),
        Host("CircleLoss", "m", _on_cosine(0.4, lambda alpha: 0.5 - alpha / 4), (0.1, 0.25), **_PAIRS),
        Host("TupletMarginLoss", "margin", _on_angle(5.73), (0.0, 30, 57.3), **_PAIRS),
        Host(
            "RankedListLoss", "margin", _on_distance(0.4, _part(2)), (0.1, 0.7), {"margin": 0.4, "Tn": 4}, tuples=False
        ),  # the host has no default margin
        Host("ThresholdConsistentMarginLoss", "margin_minus", _at_similarity(0.5), (-0.5, 0.2)),
        Host(
            "ManifoldLoss",
            "margin",
            _on_cosine(5e-4, _part(2)),
            (0.1, 0.3),
            {"l": FEATURES, "K": CLASSES},
            labels=False,
            tuples=False,
        ),
    )
}
ELEMENTWISE = {name: host for name, host in HOSTS.items() if host.elementwise}

GUESTS: dict[str, Callable[[], Any]] = {  # what goes into the hosts' wrappers, trainers, reducers and regularisers
    "contrastive": lambda: AdaptiveMarginLoss(losses.ContrastiveLoss()),
    "triplet": lambda: AdaptiveMarginLoss(losses.TripletMarginLoss()),
    "margin": lambda: AdaptiveMarginLoss(losses.MarginLoss(), AdaptiveMargin(neighbourhood="chernoff")),
    "multi_similarity": lambda: AdaptiveMarginLoss(losses.MultiSimilarityLoss()),
    "anchors": lambda: AdaptiveMarginLoss(losses.ContrastiveLoss(), AdaptiveMargin(granularity="anchor")),
    "pairs": lambda: AdaptiveMarginLoss(losses.TripletMarginLoss(), AdaptiveMargin(granularity="pair")),
    "vdm": lambda: ContrastiveVDMLoss(),
}


def batch(
    rows: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32, spread: float = 1.5
) -> tuple[Tensor, Tensor]:
    """Embeddings, partly gathered by class, that take a gradient, and their labels.

    The second lies beside the first, of another class: a pair within any margin.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    labels = torch.arange(rows) % CLASSES
    noise = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
    embeddings = centres[labels] + spread * noise
    embeddings[1:2] = embeddings[:1] + 0.05 * noise[1:2]
    return embeddings.to(dtype).requires_grad_(), labels


@dataclass
class Result:
    """A loss and every gradient that it leaves."""

    value: Tensor
    grads: list[Tensor]


def call(loss: Any, embeddings: Tensor, *args: Any, seed: int = 3, **kwargs: Any) -> Result:
    """Value and gradients of one call: of the embeddings, of those in ``ref_emb`` and of the loss's own weights."""
    torch.manual_seed(seed)
    ref_emb = kwargs.get("ref_emb")
    inputs = [embeddings] + ([ref_emb] if ref_emb is not None and ref_emb is not embeddings else [])
    inputs = [x for x in inputs if x.requires_grad] + list(loss.parameters())
    value = loss(embeddings, *args, **kwargs)
    grads = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
    return Result(value.detach(), list(grads))


def assert_identical(ours: Result, theirs: Result) -> None:
    """Equal to the bit, in value and in every gradient."""
    assert ours.value.dtype == theirs.value.dtype
    assert torch.equal(ours.value, theirs.value), f"{ours.value.item()!r} != {theirs.value.item()!r}"
    assert len(ours.grads) == len(theirs.grads)
    for ours_grad, theirs_grad in zip(ours.grads, theirs.grads, strict=True):
        assert torch.equal(ours_grad, theirs_grad)


def assert_near(ours: Result, theirs: Result, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Equal up to the rounding of float64."""
    torch.testing.assert_close(ours.value, theirs.value, rtol=rtol, atol=atol)
    assert len(ours.grads) == len(theirs.grads)
    for ours_grad, theirs_grad in zip(ours.grads, theirs.grads, strict=True):
        torch.testing.assert_close(ours_grad, theirs_grad, rtol=rtol, atol=atol)
