"""Remedies of the functions, groupings, margins: tensors in, tensors out."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from adaptive_margin import (
    AdaptiveMargin,
    ConstantMargin,
    Dependence,
    KMeansGrouper,
    LinearMargin,
    NeighbourhoodRule,
    OtsuGrouper,
    RemainingRule,
)
from adaptive_margin import functional as F
from adaptive_margin.functional.distance_weights import check_cutoffs
from adaptive_margin.functional.pair_tiles import pair_terms

from .following import follow

X = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [-1.0, 0.0]])
Y = torch.tensor([0, 1, 0, 1, 1])
NAMES = ["cat", "dog", "cat", "dog", "dog"]
AFFECT = torch.tensor([[0.1, 0.0], [-0.9, 0.4], [0.2, 0.1], [0.7, -0.6], [0.0, 0.1]])
PAIRS = torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([1, 0])  # triplets (a, p, n)
IMPURITY = F.neighbourhood_impurity
NEAREST = F.nearest_neighbours
UINT64 = torch.uint64


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.double()).to(x)


def finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def moments(x: Tensor) -> Tensor:
    return pair_terms(x, Y, 1.0, second_moment=True).second_moment


def omega(strong: Tensor, weight: float = 12.0) -> Tensor:
    return F.vdm_contrastive_loss(strong, 0 * strong, 1.0, regularizer="chi2", regularizer_weight=weight)


def slope(x: Tensor) -> Tensor:
    """The gradient of the attraction over tiles."""
    x = x.clone().requires_grad_()
    pair_terms(x, torch.zeros(len(x), dtype=torch.long), 1.0).attraction.backward()
    assert x.grad is not None
    return x.grad


def squeezed(x: Tensor) -> bool:
    return float(F.concordance_correlation(AFFECT[:, 0], x)) == 1.0


class _EveryoneRule(NeighbourhoodRule):
    def sizes(self, x: Tensor, index: Tensor, y: Tensor, ref_index: Tensor, confidence: float) -> Tensor:
        return torch.full((len(x),), float(len(y) - 1), dtype=torch.float64)


BIG = X * 1e15
FAR = torch.tensor([[-2e9], [2e9]])
HALF = torch.tensor([[-6e4], [6e4]], dtype=torch.float16)

CASES = [
    # checks.py
    follow(
        "convert it with torch.as_tensor",
        lambda: NEAREST(np.ones((3, 2))),
        lambda: NEAREST(torch.as_tensor(np.ones((3, 2))))[0].shape == (3, 1),
    ),
    follow("pass one row per sample", lambda: NEAREST(X[:, 0]), lambda: NEAREST(X[:, :1])[0].shape == (5, 1)),
    follow(
        "convert it with query.float()",
        lambda: NEAREST(X.long()),
        lambda: NEAREST(X.long().float())[0].shape == (5, 1),
    ),
    follow(
        "look for a diverged network or a broken input",
        lambda: IMPURITY(torch.where(X == 1, torch.nan, X), Y),
        lambda: IMPURITY(X, Y).shape == (5,),
    ),
    follow(
        "convert it with torch.as_tensor",
        lambda: IMPURITY(X, [0, 1, 0, 1, 1]),
        lambda: IMPURITY(X, torch.as_tensor([0, 1, 0, 1, 1])).shape == (5,),
    ),
    follow(
        "convert it with torch.as_tensor; turn names into numbers with np.unique(names, return_inverse=True)[1]",
        lambda: IMPURITY(X, NAMES),
        lambda: IMPURITY(X, torch.as_tensor(np.unique(NAMES, return_inverse=True)[1])).shape == (5,),
    ),
    follow("pass one integer label per row", lambda: IMPURITY(X, Y[:, None]), lambda: IMPURITY(X, Y).shape == (5,)),
    follow(
        "pass one label per row of embeddings",
        lambda: IMPURITY(X, Y[:4]),
        lambda: IMPURITY(X, Y).shape == (5,),
    ),
    follow(
        "group continuous targets first, with OtsuGrouper for instance",
        lambda: IMPURITY(X, AFFECT[:, 0]),
        lambda: IMPURITY(X, OtsuGrouper()(AFFECT[:, 0])).shape == (5,),
    ),
    follow(
        "number the labels from 0",
        lambda: IMPURITY(X, torch.tensor([2**63, 1, 2**63, 1, 1], dtype=UINT64)),
        lambda: IMPURITY(X, torch.tensor([0, 1, 0, 1, 1], dtype=UINT64)).shape == (5,),
    ),
    follow(
        "embed both with the same network",
        lambda: NEAREST(X, torch.ones(4, 3)),
        lambda: NEAREST(X, torch.ones(4, 2))[0].shape == (5, 1),
    ),
    follow(
        "the paper uses 0.05",
        lambda: F.confidence_term(8, 4, confidence="low"),
        lambda: float(F.confidence_term(8, 4, confidence=0.05)) > 0,
    ),
    follow(
        "pass a number in the unit of the distance",
        lambda: pair_terms(X, Y, math.nan),
        lambda: finite(pair_terms(X, Y, 1.0).repulsion),
    ),
    follow(
        "pass granularity='anchor'",
        lambda: AdaptiveMargin(granularity="pair", dependence=Dependence()),
        lambda: AdaptiveMargin(granularity="anchor", dependence=Dependence()),
    ),
    follow(
        "the paper's best constant is 0.2",
        lambda: ConstantMargin(math.inf),
        lambda: float(ConstantMargin(0.2)(X)) == X.new_tensor(0.2),
    ),
    follow(
        "pass a miner's output",
        lambda: AdaptiveMargin(granularity="pair")(X, Y, ([0], [2], [1])),
        lambda: AdaptiveMargin(granularity="pair")(X, Y, PAIRS).shape == (2,),
    ),
    follow(
        "pass a miner's output",
        lambda: AdaptiveMargin(granularity="pair")(X, Y, tuple(each[:, None] for each in PAIRS)),
        lambda: AdaptiveMargin(granularity="pair")(X, Y, PAIRS).shape == (2,),
    ),
    follow(
        "pass a miner's output",
        lambda: AdaptiveMargin(granularity="pair")(X, Y, tuple(each.float() for each in PAIRS)),
        lambda: AdaptiveMargin(granularity="pair")(X, Y, PAIRS).shape == (2,),
    ),
    follow(
        "mine pairs of this batch and reference",
        lambda: AdaptiveMargin(granularity="pair")(X, Y, tuple(each + 4 for each in PAIRS)),
        lambda: AdaptiveMargin(granularity="pair")(X, Y, PAIRS).shape == (2,),
    ),
    # neighbours.py
    follow(
        "is a good size",
        lambda: NEAREST(X, tile_entries=0),
        lambda: NEAREST(X, tile_entries=4194304)[0].shape == (5, 1),
    ),
    follow(
        "both rank unit rows alike",
        lambda: NEAREST(unit(X), distance="l2"),
        lambda: torch.equal(NEAREST(X, distance="squared_l2")[1], NEAREST(X, distance="cosine")[1]),
    ),
    follow(
        "move one of them with .to(device)",
        lambda: NEAREST(X, X.to("meta")),
        lambda: NEAREST(X, X.clone().to("cpu"))[0].shape == (5, 1),
        lambda: NEAREST(X.to(X.device), X.clone())[0].shape == (5, 1),
    ),
    follow(
        "split it",
        lambda: NEAREST(torch.ones(1, 1), torch.ones(1, 1).expand(2**31, 1)),
        lambda: all(len(NEAREST(X[:1], part)[0]) == 1 for part in X.split(3)),
    ),
    follow(
        "put the queries first, in their order, or pass ref_includes_query=False",
        lambda: NEAREST(X[1:3], X, ref_includes_query=True),
        lambda: NEAREST(X[1:3], torch.cat([X[1:3], X[:1], X[3:]]), ref_includes_query=True)[0].shape == (2, 1),
        lambda: NEAREST(X[1:3], X, ref_includes_query=False)[0].shape == (2, 1),
    ),
    follow("scale them down", lambda: NEAREST(X * 1e20), lambda: NEAREST(X * 1e20 / 1e20)[0].shape == (5, 1)),
    follow(
        "ask for fewer neighbours or pass more references",
        lambda: NEAREST(X, k=5),
        lambda: NEAREST(X, k=4)[0].shape == (5, 4),
        lambda: NEAREST(X, torch.cat([X, X]), k=5)[0].shape == (5, 5),
    ),
    follow("pass a positive whole number", lambda: NEAREST(X, k=0), lambda: NEAREST(X, k=1)[0].shape == (5, 1)),
    # concordance.py
    follow(
        "the paper's is 0.5",
        lambda: F.affect_loss(AFFECT, AFFECT, correlation_weight=-1),
        lambda: abs(float(F.affect_loss(AFFECT, AFFECT, correlation_weight=0.5))) < 1e-6,
    ),
    follow(
        "convert it with torch.as_tensor",
        lambda: F.sign_agreement([1.0, 2.0], [1.0, -2.0]),
        lambda: float(F.sign_agreement(torch.as_tensor([1.0, 2.0]), torch.as_tensor([1.0, -2.0]))) == 0.5,
    ),
    follow(
        "pass real and imaginary part as columns",
        lambda: F.sign_agreement(AFFECT, torch.complex(AFFECT[:, 0], AFFECT[:, 1])),
        lambda: finite(F.sign_agreement(AFFECT, torch.view_as_real(torch.complex(AFFECT[:, 0], AFFECT[:, 1])))),
    ),
    follow(
        "pass one row per sample and one column per label",
        lambda: F.sign_agreement(AFFECT[None], AFFECT[None]),
        lambda: F.sign_agreement(AFFECT, AFFECT).shape == (2,),
    ),
    follow(
        "one prediction per label; squeeze a (N, 1) output",
        lambda: squeezed(AFFECT[:, :1]),
        lambda: squeezed(AFFECT[:, :1].squeeze(1)),
    ),
    # contrastive.py, pair_tiles.py
    follow(
        "the default is a good start",
        lambda: F.vdm_contrastive_loss(X[:2], X[2:], 1.0, repulsion=-1.0),
        lambda: finite(F.vdm_contrastive_loss(X[:2], X[2:], 1.0)),
    ),
    follow(
        "normalise or scale the embeddings, or pass them in float64, or lower the weights",
        lambda: omega(FAR),
        lambda: finite(omega(unit(FAR))),
        lambda: finite(omega(FAR / 2e9)),
        lambda: finite(omega(FAR.double())),
        lambda: finite(omega(FAR, weight=1.0)),
    ),
    follow(
        "normalise or scale the embeddings, or pass them in float64",
        lambda: pair_terms(X * 1e20, Y, 1.0),
        lambda: finite(pair_terms(unit(X * 1e20), Y, 1.0).attraction),
        lambda: finite(pair_terms(X * 1e20 * 1e-20, Y, 1.0).attraction),
        lambda: finite(pair_terms((X * 1e20).double(), Y, 1.0).attraction),
    ),
    follow(
        "normalise or scale the embeddings, or pass them in float64",
        lambda: moments(BIG),
        lambda: finite(moments(unit(BIG))),
        lambda: finite(moments(BIG * 1e-15)),
        lambda: finite(moments(BIG.double())),
    ),
    follow(
        "normalise or scale the embeddings, or pass them in float64",
        lambda: slope(HALF),
        lambda: finite(slope(unit(HALF))),
        lambda: finite(slope(HALF / 60000)),
        lambda: finite(slope(HALF.double())),
    ),
    follow(
        "stock losses use 0 for distances",
        lambda: pair_terms(X, Y, 1.0, pos_margin=math.nan),
        lambda: finite(pair_terms(X, Y, 1.0, pos_margin=0).attraction),
    ),
    follow(
        "pass a margin of granularity 'batch' or 'anchor'",
        lambda: pair_terms(X, Y, AdaptiveMargin(granularity="pair")(X, Y)),
        lambda: finite(pair_terms(X, Y, AdaptiveMargin(granularity="batch")(X, Y)).repulsion),
        lambda: finite(pair_terms(X, Y, AdaptiveMargin(granularity="anchor")(X, Y)).repulsion),
    ),
    follow(
        "pass the labels of ref_emb",
        lambda: pair_terms(X, Y, 1.0, ref_emb=X[:3]),
        lambda: finite(pair_terms(X, Y, 1.0, ref_emb=X[:3], ref_labels=Y[:3]).attraction),
    ),
    # dependence.py
    follow(
        "'std' takes the standard deviation of the batch",
        lambda: F.gaussian_kernel(X, bandwidth=-1.0),
        lambda: finite(F.gaussian_kernel(X, bandwidth="std")[0]),
    ),
    follow(
        "pick one of them",
        lambda: AdaptiveMargin(granularity="row"),
        lambda: AdaptiveMargin(granularity="batch").granularity == "batch",
        lambda: AdaptiveMargin(granularity="anchor").granularity == "anchor",
        lambda: AdaptiveMargin(granularity="pair").granularity == "pair",
    ),
    follow(
        "the paper's code caps at 2.5 nats",
        lambda: F.mutual_information(torch.tensor(0.5), max_mi=-1.0),
        lambda: 0 < float(F.mutual_information(torch.tensor(0.5), max_mi=2.5)) < 2.5,
    ),
    # distance_weights.py
    follow("the paper uses 0.5", lambda: check_cutoffs(3.0, 1.4), lambda: check_cutoffs(0.5, 1.4) is None),
    follow("the authors' code uses 1.4", lambda: check_cutoffs(0.5, math.nan), lambda: check_cutoffs(0.5, 1.4) is None),
    # impurity.py, neighbourhood.py
    follow(
        "pass the labels of ref_emb",
        lambda: IMPURITY(X, Y, ref_emb=X[:3]),
        lambda: IMPURITY(X, Y, ref_emb=X[:3], ref_labels=Y[:3]).shape == (5,),
    ),
    follow(
        "pass the labels of ref_emb",
        lambda: F.empirical_bias_k(X, Y, ref_emb=X[:3]),
        lambda: F.empirical_bias_k(X, Y, ref_emb=X[:3], ref_labels=Y[:3]).shape == (5,),
    ),
    follow(
        "the paper uses 0.05",
        lambda: F.confidence_term(8, 4, confidence=0),
        lambda: float(F.confidence_term(8, 4, confidence=0.05)) > 0,
    ),
    follow(
        "count samples, the anchor's own excluded for k",
        lambda: F.confidence_term(8, 0),
        lambda: float(F.confidence_term(8, 7)) > 0,
    ),
    # kmeans.py, otsu.py
    follow(
        "the paper compares 2, 3 and 5",
        lambda: F.kmeans_threshold(AFFECT[:, 0], k=1),
        *(lambda k=k: finite(F.kmeans_threshold(AFFECT[:, 0], k=k)) for k in (2, 3, 5)),
    ),
    follow(
        "pass one sample, or use otsu_thresholds for one sample a column",
        lambda: F.otsu_threshold(AFFECT),
        lambda: F.otsu_threshold(AFFECT[:, 0]).shape == (),
        lambda: F.otsu_thresholds(AFFECT).shape == (2,),
    ),
    follow(
        "256 is the usual number",
        lambda: F.otsu_thresholds(AFFECT, bins=1),
        lambda: finite(F.otsu_thresholds(AFFECT, bins=256)),
    ),
    follow(
        "convert it with torch.as_tensor",
        lambda: F.otsu_threshold([0.0, 1.0, 5.0]),
        lambda: float(F.otsu_threshold(torch.as_tensor([0.0, 1.0, 5.0]))) == 3.0,
    ),
    follow(
        "pass values.abs() for magnitudes",
        lambda: F.otsu_threshold(torch.complex(AFFECT[:, 0], AFFECT[:, 1])),
        lambda: finite(F.otsu_threshold(torch.complex(AFFECT[:, 0], AFFECT[:, 1]).abs())),
    ),
    follow(
        "pass real and imaginary part as columns",
        lambda: F.otsu_thresholds(torch.complex(AFFECT[:, :1], AFFECT[:, 1:])),
        lambda: finite(F.otsu_thresholds(torch.view_as_real(torch.complex(AFFECT[:, 0], AFFECT[:, 1])))),
    ),
    follow(
        "pass at least one number",
        lambda: F.otsu_threshold(AFFECT[:0, 0]),
        lambda: finite(F.otsu_threshold(AFFECT[:1, 0])),
    ),
    follow(
        "pass one row per sample and one column per label",
        lambda: F.otsu_thresholds(AFFECT[:, 0]),
        lambda: F.otsu_thresholds(AFFECT[:, :1]).shape == (1,),
    ),
    # grouping
    follow(
        "'median' is the default",
        lambda: OtsuGrouper(on_empty="mean"),
        lambda: OtsuGrouper(on_empty="median")(AFFECT).shape == (5,),
    ),
    follow(
        "1.0 is the paper's, None no limit",
        lambda: OtsuGrouper(max_radius=0),
        lambda: OtsuGrouper(max_radius=1.0)(AFFECT).shape == (5,),
        lambda: OtsuGrouper(max_radius=None)(AFFECT).shape == (5,),
    ),
    follow(
        "call fit again for other labels",
        lambda: OtsuGrouper().fit(AFFECT)(AFFECT[:, 0]),
        lambda: OtsuGrouper().fit(AFFECT).fit(AFFECT[:, 0])(AFFECT[:, 0]).shape == (5,),
    ),
    follow("pass all labels", lambda: OtsuGrouper().fit(AFFECT[:0]), lambda: OtsuGrouper().fit(AFFECT).fitted is True),
    follow(
        "use larger batches, or on_empty='median'",
        lambda: OtsuGrouper(on_empty="raise")(AFFECT[:1]),
        lambda: OtsuGrouper(on_empty="raise")(AFFECT).tolist() == [0, 1, 0, 1, 0],
        lambda: OtsuGrouper(on_empty="median")(AFFECT[:1]).shape == (1,),
    ),
    follow(
        "pass as many labels for each sample",
        lambda: OtsuGrouper()([[0.1, 0.2], [0.3]]),
        lambda: OtsuGrouper()([[0.1, 0.2], [0.3, 0.4]]).shape == (2,),
    ),
    follow(
        "pass one row of numbers per sample",
        lambda: OtsuGrouper()(["happy", "sad"]),
        lambda: OtsuGrouper()([[0.9, 0.2], [-0.3, 0.1]]).shape == (2,),
    ),
    follow(
        "pass real and imaginary part as columns",
        lambda: OtsuGrouper()(torch.complex(AFFECT[:, 0], AFFECT[:, 1])),
        lambda: OtsuGrouper()(torch.view_as_real(torch.complex(AFFECT[:, 0], AFFECT[:, 1]))).shape == (5,),
    ),
    follow(
        "pass one row per sample and one column per label",
        lambda: OtsuGrouper()(AFFECT[None]),
        lambda: OtsuGrouper()(AFFECT).shape == (5,),
    ),
    follow(
        "the paper compares 2, 3 and 5",
        lambda: KMeansGrouper(k=1),
        *(lambda k=k: KMeansGrouper(k=k)(AFFECT).shape == (5,) for k in (2, 3, 5)),
    ),
    follow("256 is the usual number", lambda: OtsuGrouper(bins=1), lambda: OtsuGrouper(bins=256)(AFFECT).shape == (5,)),
    # margins
    follow(
        "the margin compares groups; for continuous targets make some with OtsuGrouper",
        lambda: AdaptiveMargin()(X),
        lambda: finite(AdaptiveMargin()(X, OtsuGrouper()(AFFECT))),
    ),
    follow(
        "pass the labels of ref_emb",
        lambda: AdaptiveMargin()(X, Y, ref_emb=X[:3].clone()),
        lambda: finite(AdaptiveMargin()(X, Y, ref_emb=X[:3].clone(), ref_labels=Y[:3])),
    ),
    follow(
        "subclass adaptive_margin.NeighbourhoodRule for your own",
        lambda: AdaptiveMargin(neighbourhood=lambda *_: 4),
        lambda: finite(AdaptiveMargin(neighbourhood=_EveryoneRule())(X, Y)),
    ),
    follow(
        "pass a miner's output",
        lambda: AdaptiveMargin(granularity="pair")(X, Y, torch.stack(PAIRS)),
        lambda: AdaptiveMargin(granularity="pair")(X, Y, PAIRS).shape == (2,),
    ),
    follow(
        "pass a miner's output",
        lambda: AdaptiveMargin(granularity="pair")(X, Y, PAIRS[:2]),
        lambda: AdaptiveMargin(granularity="pair")(X, Y, PAIRS).shape == (2,),
    ),
    follow(
        "pass a miner's output",
        lambda: AdaptiveMargin(granularity="pair")(X, Y, (PAIRS[0], PAIRS[1], PAIRS[2][:1])),
        lambda: AdaptiveMargin(granularity="pair")(X, Y, PAIRS).shape == (2,),
    ),
    follow(
        "move it to the embeddings' device",
        lambda: AdaptiveMargin(granularity="pair")(X, Y, tuple(each.to("meta") for each in PAIRS)),
        lambda: AdaptiveMargin(granularity="pair")(X, Y, tuple(each.to(X.device) for each in PAIRS)).shape == (2,),
    ),
    follow(
        "the paper uses start=0.1, slope=0.005",
        lambda: LinearMargin(slope=math.nan),
        lambda: LinearMargin(start=0.1, slope=0.005).value == 0.1,
    ),
    follow(
        "1024 rows are usually enough",
        lambda: RemainingRule(anchors=0),
        lambda: RemainingRule(anchors=1024).anchors == 1024,
    ),
    # checks.py
    follow(
        "use embeddings.float() to compute in float32",
        lambda: AdaptiveMargin()(X.to(torch.float8_e4m3fn), Y),
        lambda: AdaptiveMargin()(X.to(torch.float8_e4m3fn).float(), Y) >= 0,
    ),
    follow(
        "scale the labels",
        lambda: OtsuGrouper()(AFFECT.double() * 1e300),
        lambda: OtsuGrouper()(AFFECT.double() * 1e100).shape == (5,),
    ),
    follow(
        "convert it with embeddings.to_dense()",
        lambda: AdaptiveMargin()(X.to_sparse(), Y),
        lambda: AdaptiveMargin()(X.to_sparse().to_dense(), Y) >= 0,
    ),
    follow(
        "make the batch on the CPU or a GPU",
        lambda: AdaptiveMargin()(X.to("meta"), Y),
        lambda: AdaptiveMargin()(X.cpu(), Y) >= 0,
    ),
    # label_distance.py
    follow(
        "pass one row per sample and one column per label",
        lambda: F.label_distance_margin(torch.zeros(2, 2, 2)),
        lambda: F.label_distance_margin(torch.zeros(2)).shape == (2, 2),
        lambda: F.label_distance_margin(torch.zeros(2, 3)).shape == (2, 2),
    ),
    follow(
        "convert it with torch.as_tensor",
        lambda: F.label_distance_margin([0.0, 1.0]),
        lambda: F.label_distance_margin(torch.as_tensor([0.0, 1.0])).shape == (2, 2),
    ),
    follow(
        "pass real and imaginary part as columns",
        lambda: F.label_distance_margin(torch.zeros(2, dtype=torch.complex64)),
        lambda: F.label_distance_margin(torch.view_as_real(torch.zeros(2, dtype=torch.complex64))).shape == (2, 2),
    ),
    follow(
        "1 makes distances of embeddings those of labels",
        lambda: F.label_distance_margin(torch.zeros(2), scale=0.0),
        lambda: F.label_distance_margin(torch.tensor([0.0, 2.0]), scale=1.0)[0, 1] == 2,
    ),
    follow(
        "pass the same labels of both sets",
        lambda: F.label_distance_margin(torch.zeros(2), 1.0, torch.zeros(2, 2)),
        lambda: F.label_distance_margin(torch.zeros(2), 1.0, torch.zeros(3)).shape == (2, 3),
    ),
    follow(
        "pass the labels of the same rows",
        lambda: F.label_distance_loss(torch.zeros(3, 2), torch.zeros(2)),
        lambda: F.label_distance_loss(torch.zeros(3, 2), torch.zeros(3)) == 0,
    ),
    follow(
        "leave it out for the default",
        lambda: F.label_distance_loss(torch.zeros(2, 2), torch.zeros(2), slack=-1.0),
        lambda: F.label_distance_loss(torch.zeros(2, 2), torch.zeros(2)) == 0,
    ),
]
