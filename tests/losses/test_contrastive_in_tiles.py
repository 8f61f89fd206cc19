"""The stock contrastive loss with the margin of the batch, in tiles: equal to the host over all its pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from pytorch_metric_learning.regularizers import LpRegularizer
from torch.testing import assert_close

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, ConstantMargin, ContrastiveVDMLoss, Margin
from adaptive_margin.functional import pair_tiles

F64 = torch.float64
DISTANCES = {
    "l2": lambda: distances.LpDistance(),
    "l2 as it comes": lambda: distances.LpDistance(normalize_embeddings=False),
    "squared l2": lambda: distances.LpDistance(power=2),
    "cosine": lambda: distances.CosineSimilarity(),
}
LABELS = {
    "two groups": torch.arange(24) % 2,
    "three a class": torch.arange(24) // 3,
    "one class": torch.zeros(24).long(),
}


def rows(n: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    x = 0.4 * torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    x[n // 2] = x[0]  # a pair at distance 0
    return x.requires_grad_()


def both_ways(build: Any, *args: torch.Tensor, **kwargs: Any) -> list[list[torch.Tensor]]:
    results = []
    for way in ("tiled", "pairs"):
        loss = build(way)
        taken = [*args, *kwargs.values()]
        leaves = [x for x in taken if isinstance(x, torch.Tensor) and x.is_floating_point()]
        value = loss(*args, **kwargs)
        assert loss.pair_path == way
        results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    return results


@pytest.mark.parametrize("small", [512, 0], ids=["one-matrix", "tiles"])
@pytest.mark.parametrize("granularity", ["batch", "anchor"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("reference", [False, True])
def test_value_and_gradient_are_the_hosts(
    monkeypatch: pytest.MonkeyPatch, distance: str, labels: str, granularity: Any, reference: bool, small: int
) -> None:
    monkeypatch.setattr(pair_tiles.small, "SMALL", small)
    pos_margin = 0.95 if distance == "cosine" else 0.1

    def build(way: Any) -> AdaptiveMarginLoss:
        host = losses.ContrastiveLoss(
            pos_margin, distance=DISTANCES[distance](), embedding_regularizer=LpRegularizer(), embedding_reg_weight=0.3
        )
        return AdaptiveMarginLoss(host, AdaptiveMargin(granularity=granularity), pair_memory=way)

    more = {"ref_emb": rows(9, 1), "ref_labels": torch.arange(9) % 3} if reference else {}
    tiled, pairs = both_ways(build, rows(24), LABELS[labels], **more)
    for ours, host in zip(tiled, pairs, strict=True):
        assert_close(ours, host, rtol=1e-10, atol=1e-12)


def test_a_margin_with_gradient() -> None:
    build = lambda way: AdaptiveMarginLoss(  # noqa: E731
        losses.ContrastiveLoss(), AdaptiveMargin(detach=False), units="replace", pair_memory=way
    )
    tiled, pairs = both_ways(build, rows(24), LABELS["two groups"])
    for ours, host in zip(tiled, pairs, strict=True):
        assert_close(ours, host, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_value_and_gradient_keep_their_dtype(dtype: torch.dtype) -> None:
    x = rows(24, dtype=torch.float32).detach().to(dtype).requires_grad_()
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss())
    value = loss(x, LABELS["two groups"])
    value.backward()
    assert loss.pair_path == "tiled"
    assert (
        value.dtype == AdaptiveMarginLoss(losses.ContrastiveLoss(), pair_memory="pairs")(x, LABELS["two groups"]).dtype
    )
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert torch.isfinite(x.grad).all()


def test_automatic_choice() -> None:
    x, y = rows(24), LABELS["two groups"]

    def path(loss: Any, *args: Any, **kwargs: Any) -> str:
        wrapped = AdaptiveMarginLoss(loss, **kwargs)
        wrapped(x, y, *args)
        return wrapped.pair_path

    stock = losses.ContrastiveLoss
    assert path(stock()) == "tiled"
    assert path(stock(), margin=ConstantMargin(0.5)) == "pairs"  # to the bit
    assert path(stock(), margin=ConstantMargin(0.5), pair_memory="tiled") == "tiled"
    assert path(stock(), pair_memory="pairs") == "pairs"
    assert path(stock(reducer=reducers.MeanReducer())) == "pairs"
    assert path(stock(reducer=reducers.AvgNonZeroReducer(collect_stats=True))) == "pairs"
    assert path(stock(distance=distances.LpDistance(p=1))) == "pairs"
    assert path(stock(pos_margin=torch.tensor(0.1))) == "pairs"
    assert path(stock(), margin=AdaptiveMargin(granularity="pair")) == "pairs"
    assert path(stock(), miners.PairMarginMiner()(x, y)) == "pairs"
    assert path(losses.TripletMarginLoss()) == "pairs"
    assert path(type("Mine", (losses.ContrastiveLoss,), {})()) == "pairs"


@pytest.mark.parametrize(("queries", "references"), [(1, 1), (2, 1), (1, 2)])
def test_a_single_pair_of_each_kind_is_none_to_the_host(queries: int, references: int) -> None:
    ref = torch.randn(references, 3)
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss())
    value = loss(torch.randn(queries, 3), torch.arange(queries), None, ref, torch.arange(references))
    assert value == 0
    assert loss.pair_path == "pairs"


def test_statistics_say_which_way() -> None:
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss(), collect_stats=True)
    loss(rows(24), LABELS["two groups"])
    assert loss.in_tiles == 1.0
    loss(rows(24), LABELS["two groups"], miners.PairMarginMiner()(rows(24), LABELS["two groups"]))
    assert loss.in_tiles == 0.0


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: AdaptiveMarginLoss(losses.TripletMarginLoss(), pair_memory="tiled"), "tiles know ContrastiveLoss"),
        (lambda: AdaptiveMarginLoss(losses.ContrastiveLoss(), pair_memory="all"), "pair_memory must be one of"),
        (
            lambda: AdaptiveMarginLoss(losses.ContrastiveLoss(), pair_memory="tiled")(
                rows(24), LABELS["two groups"], (torch.tensor([0]),) * 4
            ),
            "an index tuple lists its own pairs",
        ),
        (
            lambda: AdaptiveMarginLoss(losses.ContrastiveLoss(reducer=reducers.MeanReducer()), pair_memory="tiled"),
            "a reducer of your own",
        ),
    ],
)
def test_what_cannot_be_tiled_says_why(build: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        build()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "distance",
    [distances.LpDistance(), distances.LpDistance(power=2), distances.CosineSimilarity()],
    ids=["l2", "squared", "cosine"],
)
def test_a_backward_pass_inside_autocast_is_in_float32(distance: Any, dtype: torch.dtype) -> None:
    x, labels = torch.randn(32, 8, requires_grad=True), torch.arange(32) % 4
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            value = AdaptiveMarginLoss(losses.ContrastiveLoss(distance=distance))(x, labels)
            found.append(torch.autograd.grad(value, x)[0])
    assert torch.equal(*found)


def test_an_empty_batch_is_a_zero_also_for_who_insists_on_tiles() -> None:
    x = torch.zeros(0, 8, requires_grad=True)
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss(), pair_memory="tiled")
    loss(x, torch.zeros(0, dtype=torch.int64)).backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 8)


def test_a_similarity_is_of_rows_as_its_own_norm_makes_them() -> None:
    x, labels = torch.randn(32, 8), torch.arange(32) % 4
    stock = losses.ContrastiveLoss(pos_margin=1, neg_margin=0.1, distance=distances.CosineSimilarity(p=1))
    margin = AdaptiveMargin(neighbourhood="hoeffding")
    tiled, listed = (AdaptiveMarginLoss(stock, margin, pair_memory=way)(x, labels) for way in ("tiled", "pairs"))
    torch.testing.assert_close(tiled, listed)


class Spread(Margin):
    """A margin whose gradient has no value where all rows are equal."""

    def forward(self, embeddings: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        return 0.5 + (embeddings - embeddings.mean(0)).square().sum().sqrt()


class Roots(LpRegularizer):
    """A regulariser whose gradient has no value where a row vanishes."""

    def compute_loss(self, embeddings: torch.Tensor) -> Any:
        loss = embeddings.square().sum(1).sqrt()
        return {"loss": {"losses": loss, "indices": torch.arange(len(loss)), "reduction_type": "element"}}


@pytest.mark.parametrize("beside", ["margin", "regulariser"])
@pytest.mark.parametrize("host", [losses.ContrastiveLoss, ContrastiveVDMLoss])
def test_what_has_a_gradient_beside_the_tiles_is_watched(host: Any, beside: str) -> None:
    x, labels = torch.ones(8, 3), torch.arange(8) % 4
    margin: Any = Spread()
    options: dict[str, Any] = {}
    if beside == "regulariser":
        x, margin, options = torch.randn(8, 3), 0.5, {"embedding_regularizer": Roots()}
        x[2] = 0
    if host is ContrastiveVDMLoss:
        loss = ContrastiveVDMLoss(margin, **options)
    else:
        loss = AdaptiveMarginLoss(losses.ContrastiveLoss(**options), margin, pair_memory="tiled")
    with pytest.raises(ValueError, match=f"the gradient of {host.__name__} must be finite"):
        loss(x.requires_grad_(), labels).backward()
    assert loss.pair_path == "tiled"
