"""Remedies of the losses and miners: what goes into a host, and what comes out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor

from adaptive_margin import (
    AdaptiveMargin,
    AdaptiveMarginLoss,
    AdaptiveMarginMiner,
    ContrastiveVDMLoss,
    LabelDistanceLoss,
    Margin,
    MarginRecorder,
    OtsuGrouper,
    TiledBatchHardMiner,
    TiledDistanceWeightedMiner,
)

from .following import follow

X = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4
REF, REF_Y = X[:6] + 0.1, Y[:6]
TRIPLETS = miners.TripletMarginMiner(margin=2.0, type_of_triplets="all")(X, Y)
CONTRASTIVE, TRIPLET = losses.ContrastiveLoss, losses.TripletMarginLoss
UNIT = torch.nn.functional.normalize
COSINE = distances.CosineSimilarity
PLAIN_COSINE = {"distance": distances.DotProductSimilarity(normalize_embeddings=False)}


def ok(loss: Any, x: Tensor = X, y: Any = Y, *args: Any, **kwargs: Any) -> bool:
    """Whether a loss of this batch has a finite value and gradient."""
    x = x.clone().requires_grad_()
    value = loss(x, y, *args, **kwargs)
    value.backward()
    return math.isfinite(value.item()) and bool(torch.isfinite(x.grad).all())


def ours(
    host: Any = CONTRASTIVE, margin: Any = None, *, host_options: dict[str, Any] | None = None, **options: Any
) -> Any:
    return AdaptiveMarginLoss(host(**(host_options or {})), margin, **options)


def tiled(margin: Any = None, **options: Any) -> Any:
    return ours(CONTRASTIVE, margin, pair_memory="tiled", **options)


def auto(margin: Any = None, **options: Any) -> Any:
    return ours(CONTRASTIVE, margin, pair_memory="auto", **options)


def seen(loss: Any) -> float:
    """α̂ of this batch, as the loss has it."""
    loss(X, Y)
    return float(loss.alpha)


def switched_on(loss: Any) -> Any:
    loss.collect_stats = True
    return loss


def recorded() -> MarginRecorder:
    loss, recorder = ours(collect_stats=True), MarginRecorder()
    loss(X, Y)
    recorder(loss)
    return recorder


def saved(path: Path) -> bool:
    recorder = recorded()
    recorder.save(path)
    return MarginRecorder.load(path).rows == recorder.rows


def other_table(path: Path) -> Path:
    path.write_text("name,size\nred,1\n", encoding="utf-8")
    return path


def mined(miner: Any, *args: Any) -> bool:
    return len(miner(*(args or (X, Y)))) in (3, 4)


class _Own(Margin):
    def forward(self, embeddings: Tensor, *_: Any, **__: Any) -> Tensor:
        return embeddings.new_full((), 0.2)


class _Ratio(TRIPLET):
    """A formula that has no value, or no gradient, where embeddings coincide."""

    root = False

    def compute_loss(self, embeddings: Tensor, *args: Any) -> Any:
        result = super().compute_loss(embeddings, *args)
        apart = (embeddings - embeddings.roll(1, 0)).square().sum()
        result["loss"]["losses"] = result["loss"]["losses"] + (apart.sqrt() if self.root else 1 / apart)
        return result


class _Root(_Ratio):
    root = True


ALIKE = torch.ones(12, 8)
HALF = X.half()


def assigned(loss: Any, name: str, value: Any) -> bool:
    target = loss
    *path, last = name.split(".")
    for part in path:
        target = getattr(target, part)
    setattr(target, last, value)
    return ok(loss) and (getattr(target, last) == value or isinstance(value, Margin | float))


CASES = [
    # batch.py
    follow(
        "pass one label per row, or, to a loss, an indices_tuple",
        lambda: ours()(X, None),
        lambda: ok(ours(), X, Y),
        lambda: ok(ours(TRIPLET, 0.2), X, None, TRIPLETS),
    ),
    follow(
        "pass the labels of ref_emb",
        lambda: ours()(X, Y, ref_emb=REF),
        lambda: ok(ours(), ref_emb=REF, ref_labels=REF_Y),
    ),
    follow(
        "number the classes from 0",
        lambda: ours()(X, torch.full((12,), 2**63, dtype=torch.uint64)),
        lambda: ok(ours(), X, Y.to(torch.uint64)),
    ),
    follow("pass a miner's output", lambda: ours()(X, Y, torch.stack(TRIPLETS)), lambda: ok(ours(), X, Y, TRIPLETS)),
    follow("pass a miner's output", lambda: ours()(X, Y, TRIPLETS[:2]), lambda: ok(ours(), X, Y, TRIPLETS)),
    follow(
        "see its miner",
        lambda: ours()(X, Y, (*TRIPLETS[:2], TRIPLETS[2][:1])),
        lambda: ok(ours(), X, Y, TRIPLETS),
    ),
    follow(
        "scale the embeddings, or normalise them before the loss",
        lambda: ours()(X * 1e25, Y),
        lambda: ok(ours(), X * 1e25 / 1e25),
        lambda: ok(ours(), UNIT(X)),
    ),
    follow(
        "scale the embeddings, or normalise them before the loss",
        lambda: ours(losses.CircleLoss)(HALF.sign() * 3e4, Y),
        lambda: ok(ours(losses.CircleLoss), HALF.sign()),
        lambda: ok(ours(losses.CircleLoss), UNIT(HALF.float()).half()),
    ),
    follow(
        "look for identical or vanishing embeddings, or too large a scale",
        lambda: ours(_Ratio, 0.2)(ALIKE, Y),
        lambda: ok(ours(_Ratio, 0.2), X),
    ),
    follow(
        "remove duplicates or add noise",
        lambda: ok(ours(_Root, 0.2), ALIKE),
        lambda: ok(ours(_Root, 0.2), X),
        lambda: ok(ours(_Root, 0.2), ALIKE + 0.01 * X),
    ),
    # adaptive_margin_loss.py
    follow(
        "tiles know ContrastiveLoss, not TripletMarginLoss",
        lambda: ours(TRIPLET, pair_memory="tiled"),
        lambda: ok(ours(TRIPLET, pair_memory="auto")),
        lambda: ok(ours(TRIPLET, pair_memory="pairs")),
        lambda: ok(ours(CONTRASTIVE, pair_memory="tiled")),
    ),
    follow(
        "tiles know L2, squared L2 and cosine, not LpDistance",
        lambda: tiled(host_options={"distance": distances.LpDistance(p=1)}),
        lambda: ok(tiled(host_options={"distance": distances.LpDistance(p=2)})),
        lambda: ok(tiled(host_options={"distance": distances.LpDistance(p=2, power=2)})),
        lambda: ok(tiled(host_options={"distance": COSINE(), "pos_margin": 1, "neg_margin": 0})),
    ),
    follow(
        "a reducer of your own, or one that collects statistics, wants the loss of every pair",
        lambda: tiled(host_options={"reducer": reducers.MeanReducer()}),
        lambda: ok(auto(host_options={"reducer": reducers.MeanReducer()})),
        lambda: ok(tiled()),
    ),
    follow(
        "a margin a pair is as large as the list of pairs",
        lambda: tiled(AdaptiveMargin(granularity="pair")),
        lambda: ok(auto(AdaptiveMargin(granularity="pair"))),
        lambda: ok(tiled(AdaptiveMargin(granularity="anchor"))),
    ),
    follow(
        "an index tuple lists its own pairs",
        lambda: tiled()(X, Y, TRIPLETS),
        lambda: ok(auto(), X, Y, TRIPLETS),
        lambda: ok(tiled(), X, Y),
    ),
    follow(
        "the host leaves some pairs out where embeddings or labels alone are their own reference",
        lambda: tiled()(X, Y, ref_emb=X, ref_labels=Y.flip(0)),
        lambda: ok(auto(), X, Y, ref_emb=X, ref_labels=Y.flip(0)),
        lambda: ok(ours(pair_memory="pairs"), X, Y, ref_emb=X, ref_labels=Y.flip(0)),
    ),
    follow(
        "tiles make their own gradient, which torch.func does not see",
        lambda: torch.func.grad(lambda x: tiled(0.5)(x, Y))(X),
        lambda: torch.func.grad(lambda x: auto(0.5)(x, Y))(X).shape == X.shape,
    ),
    follow(
        "the host takes a single pair of each kind for none",
        lambda: tiled()(X[:1], Y[:1], ref_emb=REF[:2], ref_labels=REF_Y[:2]),
        lambda: math.isfinite(auto()(X[:1], Y[:1], ref_emb=REF[:2], ref_labels=REF_Y[:2])),
    ),
    follow(
        "lower K",
        lambda: ours(losses.ManifoldLoss, host_options={"l": 8, "K": 20})(X),
        lambda: ok(ours(losses.ManifoldLoss, host_options={"l": 8, "K": 4}), X, None),
    ),
    follow(
        "ThresholdConsistentMarginLoss takes all pairs from embeddings",
        lambda: ours(losses.ThresholdConsistentMarginLoss)(X, Y, ref_emb=REF, ref_labels=REF_Y),
        lambda: ok(ours(losses.ThresholdConsistentMarginLoss), torch.cat([UNIT(X), UNIT(REF)]), torch.cat([Y, REF_Y])),
    ),
    follow(
        "use swap=False",
        lambda: ours(TRIPLET, host_options={"swap": True})(X, Y, ref_emb=REF, ref_labels=REF_Y),
        lambda: ok(ours(TRIPLET, host_options={"swap": False}), ref_emb=REF, ref_labels=REF_Y),
    ),
    follow(
        "one an anchor or a pair goes into AdaptiveMarginLoss of ContrastiveLoss, TripletMarginLoss, MarginLoss",
        lambda: ours(losses.CircleLoss, AdaptiveMargin(granularity="anchor")),
        lambda: ok(ours(losses.CircleLoss, AdaptiveMargin(granularity="batch"))),
        *(
            lambda host=host, size=size: ok(ours(host, AdaptiveMargin(granularity=size)))
            for host in (CONTRASTIVE, TRIPLET, losses.MarginLoss, losses.SignalToNoiseRatioContrastiveLoss)
            for size in ("anchor", "pair")
        ),
    ),
    # contrastive_vdm_loss.py
    follow(
        "a label cannot be pulled together and ignored",
        lambda: ContrastiveVDMLoss(compact_label=1, ignore_label=1),
        lambda: ok(ContrastiveVDMLoss(compact_label=1, ignore_label=None), X, Y % 2),
        lambda: ok(ContrastiveVDMLoss(compact_label=1, ignore_label=-1), X, Y % 2),
    ),
    follow(
        "use CosineSimilarity, or LpDistance",
        lambda: ContrastiveVDMLoss(**PLAIN_COSINE),
        lambda: ok(ContrastiveVDMLoss(distance=COSINE())),
        lambda: ok(ContrastiveVDMLoss(distance=distances.LpDistance(normalize_embeddings=False))),
    ),
    follow(
        "a reducer of your own wants the loss of every pair",
        lambda: ContrastiveVDMLoss(pair_memory="tiled", reducer=reducers.MeanReducer()),
        lambda: ok(ContrastiveVDMLoss(pair_memory="auto", reducer=reducers.MeanReducer())),
        lambda: ok(ContrastiveVDMLoss(pair_memory="pairs", reducer=reducers.MeanReducer())),
    ),
    follow(
        "an index tuple lists its own pairs",
        lambda: ContrastiveVDMLoss(pair_memory="tiled")(X, Y, TRIPLETS),
        lambda: ok(ContrastiveVDMLoss(pair_memory="auto"), X, Y, TRIPLETS),
        lambda: ok(ContrastiveVDMLoss(pair_memory="pairs"), X, Y, TRIPLETS),
    ),
    follow(
        "for continuous targets make groups with OtsuGrouper",
        lambda: ContrastiveVDMLoss().compute_loss(X, None, None, X, None),
        lambda: ok(ContrastiveVDMLoss(), X, Y),
        lambda: ok(ContrastiveVDMLoss(), X, OtsuGrouper()(X[:, 0])),
    ),
    follow(
        "pass one label per row",
        lambda: ContrastiveVDMLoss(compact_label=1)(X, None, TRIPLETS),
        lambda: ok(ContrastiveVDMLoss(compact_label=1), X, Y % 2, TRIPLETS),
    ),
    follow(
        "pass the labels of ref_emb",
        lambda: ContrastiveVDMLoss()(X, Y, tuple(index % len(REF) for index in TRIPLETS), REF),
        lambda: ok(ContrastiveVDMLoss(), X, Y, None, REF, REF_Y),
    ),
    # swap.py
    follow(
        "AdaptiveMargin() is the default; subclass adaptive_margin.Margin for your own",
        lambda: ours(margin="adaptive"),
        lambda: ok(ours(margin=AdaptiveMargin())),
        lambda: ok(ours(margin=_Own())),
    ),
    follow(
        "learned and per-class margins cannot be exchanged",
        lambda: ours(losses.MarginLoss, host_options={"margin": torch.tensor([0.1, 0.2])}),
        lambda: ok(ours(losses.MarginLoss, host_options={"margin": 0.1})),
    ),
    follow(
        "a squared distance of unit vectors means nothing there",
        lambda: ours(host_options={"distance": distances.LpDistance(p=1)}, units="geometry"),
        *(
            lambda units=units: ok(ours(host_options={"distance": distances.LpDistance(p=1)}, units=units))
            for units in ("replace", "sqrt", "offset")
        ),
    ),
    follow(
        "a squared distance of unit vectors means nothing there",
        lambda: ours(losses.MultiSimilarityLoss, host_options=PLAIN_COSINE, units="geometry"),
        lambda: ok(ours(losses.MultiSimilarityLoss, host_options=PLAIN_COSINE, units="offset")),
    ),
    follow(
        "leave units out: a number is taken as it is",
        lambda: ours(TRIPLET, 0.2, units="geometry"),
        lambda: ok(ours(TRIPLET, 0.2)),
    ),
    follow(
        "only distances and angles go with a distance's root",
        lambda: ours(losses.CosFaceLoss, host_options={"num_classes": 4, "embedding_size": 8}, units="sqrt"),
        *(
            lambda units=units: ok(
                ours(losses.CosFaceLoss, host_options={"num_classes": 4, "embedding_size": 8}, units=units)
            )
            for units in ("geometry", "replace", "offset")
        ),
    ),
    follow(
        "normalise them, or shift the loss's own margin with units='offset'",
        lambda: ours(CONTRASTIVE, host_options={**PLAIN_COSINE, "pos_margin": 1, "neg_margin": 0}, units="replace"),
        lambda: ok(
            ours(CONTRASTIVE, host_options={"distance": COSINE(), "pos_margin": 1, "neg_margin": 0}, units="replace")
        ),
        lambda: ok(ours(CONTRASTIVE, host_options={**PLAIN_COSINE, "pos_margin": 1, "neg_margin": 0}, units="offset")),
    ),
    follow(
        "use a power of 1 or 2, or say what the number means there",
        lambda: ours(TRIPLET, host_options={"distance": distances.LpDistance(power=3)}),
        lambda: ok(ours(TRIPLET, host_options={"distance": distances.LpDistance(power=1)})),
        lambda: ok(ours(TRIPLET, host_options={"distance": distances.LpDistance(power=2)})),
        *(
            lambda units=units: ok(ours(TRIPLET, host_options={"distance": distances.LpDistance(power=3)}, units=units))
            for units in ("replace", "sqrt", "offset")
        ),
    ),
    # transparent.py
    follow(
        "set .loss.mi",
        lambda: assigned(ours(), "mi", 0.5),
        lambda: assigned(ours(), "loss.mi", 0.5),
    ),
    follow(
        "set .margin, or .loss.neg_margin for what units='offset' adds to",
        lambda: assigned(ours(), "neg_margin", 0.5),
        lambda: assigned(ours(), "margin", 0.5),
        lambda: assigned(ours(units="offset"), "loss.neg_margin", 0.5),
    ),
    # statistics
    follow(
        "pass collect_stats=True to AdaptiveMarginLoss, or set .collect_stats = True before the call",
        lambda: seen(ours()),
        lambda: seen(ours(collect_stats=True)) > 0,
        lambda: seen(switched_on(ours())) > 0,
    ),
    follow(
        "call recorder(loss) after value = loss(embeddings, labels)",
        lambda: MarginRecorder()(ours(collect_stats=True)),
        lambda: recorded().rows[0]["alpha"] > 0,
    ),
    follow(
        "pass an AdaptiveMarginLoss, ContrastiveVDMLoss, AdaptiveMarginMiner or AdaptiveMargin itself",
        lambda: MarginRecorder().attach(TRIPLET()),
        *(
            lambda build=build: MarginRecorder().attach(build()) is not None
            for build in (
                ours,
                ContrastiveVDMLoss,
                lambda: AdaptiveMarginMiner(miners.TripletMarginMiner()),
                AdaptiveMargin,
            )
        ),
    ),
    follow(
        "call recorder(loss)",
        lambda: MarginRecorder().plot(),
        lambda: len(recorded().plot().axes) == 2,
    ),
    follow(
        "name it margin.csv or margin.json",
        lambda folder: recorded().save(folder / "margin.txt"),
        *(lambda folder, name=name: saved(folder / name) for name in ("margin.csv", "margin.json")),
    ),
    follow(
        "pass a file that save() of a MarginRecorder wrote",
        lambda folder: MarginRecorder.load(other_table(folder / "margin.csv")),
        lambda folder: saved(folder / "margin.csv"),
    ),
    # miners
    follow(
        "the labels of the references say which of them are positives",
        lambda: TiledBatchHardMiner()(X, Y, REF),
        lambda: mined(TiledBatchHardMiner(), X, Y, REF, REF_Y),
        lambda: mined(TiledBatchHardMiner(), X, Y),
    ),
    follow(
        "one an anchor or a pair goes into AdaptiveMarginLoss of ContrastiveLoss, TripletMarginLoss, MarginLoss",
        lambda: AdaptiveMarginMiner(miners.TripletMarginMiner(), AdaptiveMargin(granularity="anchor")),
        lambda: mined(AdaptiveMarginMiner(miners.TripletMarginMiner(), AdaptiveMargin())),
        lambda: ok(ours(TRIPLET, AdaptiveMargin(granularity="anchor"))),
        lambda: ok(ours(TRIPLET, AdaptiveMargin(granularity="pair"))),
    ),
    follow(
        "pass distance=LpDistance(p=2) or none",
        lambda: TiledDistanceWeightedMiner(distance=COSINE()),
        lambda: mined(TiledDistanceWeightedMiner(distance=distances.LpDistance(p=2))),
        lambda: mined(TiledDistanceWeightedMiner()),
    ),
    follow(
        "pass distance=LpDistance(p=2) or none",
        lambda: TiledDistanceWeightedMiner(distance=distances.LpDistance(p=1)),
        lambda: mined(TiledDistanceWeightedMiner(distance=distances.LpDistance(p=2))),
    ),
    follow(
        "None makes one for each positive",
        lambda: TiledDistanceWeightedMiner(triplets_per_anchor=0),
        lambda: mined(TiledDistanceWeightedMiner(triplets_per_anchor=None)),
    ),
    # contrastive_vdm_loss.py
    follow(
        "pass one of the labels",
        lambda: ContrastiveVDMLoss(compact_label=0.5),
        lambda: ContrastiveVDMLoss(compact_label=1).compact_label == 1,
    ),
    # label_distance_loss.py
    follow(
        "use LpDistance",
        lambda: LabelDistanceLoss(distance=distances.CosineSimilarity()),
        lambda: LabelDistanceLoss(distance=distances.LpDistance()).distance.is_inverted is False,
    ),
    follow(
        "pass one number per row, or a row of several",
        lambda: LabelDistanceLoss()(torch.zeros(2, 3)),
        lambda: LabelDistanceLoss()(torch.zeros(2, 3), torch.zeros(2)) == 0,
        lambda: LabelDistanceLoss()(torch.zeros(2, 3), torch.zeros(2, 4)) == 0,
    ),
]
