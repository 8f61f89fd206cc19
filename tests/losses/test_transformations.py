"""What happens around a loss: transformations of torch.func, torch.compile, loss scalers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, ContrastiveVDMLoss

from .cases import CLASSES, ELEMENTWISE, FEATURES, HOSTS, SIZES, batch

F64 = torch.float64
MARGINS: dict[str, Callable[[], Any]] = {
    "constant": lambda: 0.3,
    "adaptive": AdaptiveMargin,
    "gradient": lambda: AdaptiveMargin(detach=False),
}


def is_possible(of: Callable[[], Any]) -> bool:
    try:
        of()
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _cdist_twice() -> None:
    x = torch.randn(3, 2, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.cdist(x, x.detach() + 1).sum(), x, create_graph=True)
    slope.sum().backward()


# what torch 2.6 cannot do yet, with stock losses either
twice = pytest.mark.skipif(not is_possible(_cdist_twice), reason="this torch differentiates cdist once")
bits = pytest.mark.skipif(
    not is_possible(lambda: vmap(lambda x: x.view(torch.int64))(torch.ones(2, dtype=F64))),
    reason="this torch's vmap cannot read the bits of a number",
)


def build(name: str, margin: str, **kwargs: Any) -> AdaptiveMarginLoss:
    return AdaptiveMarginLoss(HOSTS[name].build(F64), MARGINS[margin](), **kwargs)


def arguments(name: str, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    embeddings, labels = batch(dtype=F64, **kwargs)
    return embeddings.detach(), labels if HOSTS[name].labels else None


def seeded(loss: Any, labels: Tensor | None) -> Callable[[Tensor], Tensor]:
    def value(embeddings: Tensor) -> Tensor:
        torch.manual_seed(3)  # the manifold loss's classes
        return loss(embeddings, labels)

    return value


# torch.func


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("name", HOSTS)
def test_gradients_of_torch_func_are_autograds(name: str, margin: str) -> None:
    embeddings, labels = arguments(name)
    loss = build(name, margin, pair_memory="pairs") if name == "ContrastiveLoss" else build(name, margin)
    value = seeded(loss, labels)
    given = embeddings.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(given), given)
    assert expected.any()
    for transformed in (grad(value), jacrev(value)):
        torch.testing.assert_close(transformed(embeddings), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("granularity", ["anchor", "pair"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_margins_for_each_anchor_or_pair_under_torch_func(name: str, granularity: Any) -> None:
    embeddings, labels = arguments(name)
    loss = AdaptiveMarginLoss(HOSTS[name].build(F64), AdaptiveMargin(granularity=granularity))
    given = embeddings.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(given, labels), given)
    torch.testing.assert_close(grad(seeded(loss, labels))(embeddings), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"margin": 1.0}, {"compact_label": 1}, {"regularizer": "fisher"}], ids=str)
def test_the_papers_loss_under_torch_func(options: dict[str, Any]) -> None:
    embeddings, labels = batch(dtype=F64)
    given = embeddings.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(ContrastiveVDMLoss(**options)(given, labels), given)
    loss = ContrastiveVDMLoss(**options)
    torch.testing.assert_close(grad(lambda x: loss(x, labels))(embeddings), expected, rtol=1e-9, atol=1e-12)
    assert loss.pair_path == "pairs"
    assert loss.multiplier_value == 0  # a function changes nothing
    slope = grad(seeded(ContrastiveVDMLoss(pair_memory="tiled"), labels))
    with pytest.raises(ValueError, match=r"pair_memory must be .*; tiles make their own gradient"):
        slope(embeddings)


@twice
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss", "ArcFaceLoss", "MultiSimilarityLoss"])
def test_a_step_inside_a_step(name: str, margin: str) -> None:
    """Meta-learning: the gradient of a loss after one step of gradient descent."""
    embeddings, labels = arguments(name)
    network = torch.nn.Linear(FEATURES, FEATURES).double()
    loss = build(name, margin, pair_memory="pairs")

    def inner(weights: dict[str, Tensor]) -> Tensor:
        value: Tensor = loss(functional_call(network, weights, (embeddings,)), labels)
        return value

    def after_a_step(weights: dict[str, Tensor]) -> Tensor:
        slopes = grad(inner)(weights)
        return inner({key: weights[key] - 0.1 * slopes[key] for key in weights})

    ours = grad(after_a_step)(dict(network.named_parameters()))
    weights = list(network.parameters())
    slopes = torch.autograd.grad(inner(dict(network.named_parameters())), weights, create_graph=True)
    stepped = (weight - 0.1 * slope for weight, slope in zip(weights, slopes, strict=True))
    expected = torch.autograd.grad(inner(dict(zip(("weight", "bias"), stepped, strict=True))), weights)
    for key, theirs in zip(("weight", "bias"), expected, strict=True):
        torch.testing.assert_close(ours[key], theirs, rtol=1e-8, atol=1e-11)


@bits
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("name", ["LiftedStructureLoss", "CosFaceLoss", "ArcFaceLoss", "TupletMarginLoss"])
def test_many_batches_at_once_where_the_stock_loss_takes_them(name: str, margin: str) -> None:
    many = torch.stack([arguments(name, seed=seed)[0] for seed in range(3)])
    _, labels = arguments(name)
    value = seeded(build(name, margin), labels)
    ours = vmap(grad(value))(many)
    expected = torch.stack([grad(value)(embeddings) for embeddings in many])
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


def test_what_is_not_finite_is_refused_under_torch_func_too() -> None:
    embeddings, labels = arguments("TripletMarginLoss")
    embeddings[3, 2] = math.nan
    with pytest.raises(RuntimeError, match="embeddings must be finite"):
        grad(seeded(build("TripletMarginLoss", "adaptive"), labels))(embeddings)


# torch.compile


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compare(loss: Any, embeddings: Tensor, labels: Tensor, **options: Any) -> None:
    compiled = torch.compile(loss, **options)
    ours, theirs = (value(embeddings, labels) for value in (compiled, loss))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    grads = [torch.autograd.grad(value, embeddings)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)
    assert grads[0].any()


ONE_OF_A_KIND = (  # others differ by a formula
    "ContrastiveLoss",  # in tiles
    "TripletMarginLoss",
    "MarginLoss",  # with a boundary of its own
    "MultiSimilarityLoss",  # all pairs in one matrix
    "ArcFaceLoss",  # an angle
    "SoftTripleLoss",  # centres
)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_losses_compile(name: str) -> None:
    compare(AdaptiveMarginLoss(HOSTS[name].build()), *batch(), backend="aot_eager")


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_loss_compiles_to_machine_code() -> None:  # one of them: a C++ compiler takes up to half a minute
    compare(AdaptiveMarginLoss(losses.ContrastiveLoss()), *batch(), backend="inductor")


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    "build",
    [
        lambda: AdaptiveMarginLoss(losses.ContrastiveLoss()),
        lambda: AdaptiveMarginLoss(losses.ContrastiveLoss(), 0.4, pair_memory="tiled"),
        lambda: ContrastiveVDMLoss(),
    ],
    ids=["adaptive", "constant", "vdm"],
)
def test_tiles_compile_as_one_graph(build: Any) -> None:
    loss = build()
    if isinstance(loss, AdaptiveMarginLoss) and torch.__version__ < "2.7":
        pytest.skip("torch 2.6 breaks a graph at a generator of contextlib: it compiles, in two graphs")
    compare(loss, *batch(), backend="aot_eager", fullgraph=True)
    assert loss.pair_path == "tiled"


# Loss scalers

OVERFLOWING: dict[str, Callable[[], Any]] = {
    "contrastive": lambda: losses.ContrastiveLoss(distance=distances.LpDistance(power=2, normalize_embeddings=False)),
    "triplet": lambda: losses.TripletMarginLoss(distance=distances.LpDistance(power=2, normalize_embeddings=False)),
}
WRAPPED: dict[str, Callable[[], Any]] = {
    **{name: lambda stock=stock: AdaptiveMarginLoss(stock()) for name, stock in OVERFLOWING.items()},
    **{f"{name} 0.3": lambda stock=stock: AdaptiveMarginLoss(stock(), 0.3) for name, stock in OVERFLOWING.items()},
    "vdm": ContrastiveVDMLoss,
}


def skips(loss: Any, embeddings: Tensor, labels: Tensor) -> bool:
    """Whether a scaler skips the step of this batch."""
    scaler = torch.amp.GradScaler(embeddings.device.type, init_scale=1024.0)
    weight = embeddings.detach().float().requires_grad_()
    optimiser = torch.optim.SGD([weight], lr=1.0)
    before = weight.detach().clone()
    value = loss(weight.half(), labels)
    assert not torch.isfinite(value)
    scaler.scale(value).backward()
    scaler.step(optimiser)
    scaler.update()
    return torch.equal(weight.nan_to_num(), before.nan_to_num()) and scaler.get_scale() == 512.0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("name", WRAPPED)
def test_a_float16_loss_that_overflows_is_left_to_the_scaler(name: str, device: str) -> None:
    embeddings, labels = (x.to(device) for x in batch())
    embeddings = (embeddings.detach() * 500).half()
    if name.split()[0] in OVERFLOWING:
        assert torch.isinf(OVERFLOWING[name.split()[0]]()(embeddings, labels))  # as of the stock loss
    assert skips(WRAPPED[name](), embeddings, labels)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("broken", [math.inf, math.nan])
@pytest.mark.parametrize("name", [*WRAPPED, "ArcFaceLoss"])
def test_float16_embeddings_that_overflowed_are_left_to_the_scaler(name: str, broken: float, device: str) -> None:
    embeddings, labels = (x.to(device) for x in batch())
    embeddings = embeddings.detach().clone()
    embeddings[3, 2] = broken
    loss = WRAPPED[name]() if name in WRAPPED else AdaptiveMarginLoss(losses.ArcFaceLoss(**SIZES))
    assert skips(loss.to(device), embeddings, labels % CLASSES)


def test_under_autocast_in_float16_the_scaler_has_its_way() -> None:
    embeddings, labels = batch()
    weight = torch.nn.Parameter(torch.full((FEATURES, FEATURES), 1e4))
    with torch.autocast("cpu", dtype=torch.float16):
        value = AdaptiveMarginLoss(losses.TripletMarginLoss())(embeddings.detach() @ weight * 10, labels)
    assert torch.isnan(value)
    value.backward()
    assert weight.grad is not None
    assert torch.isnan(weight.grad).all()


def test_with_nothing_to_scale_what_is_not_finite_is_an_error() -> None:
    embeddings, labels = batch()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with pytest.raises(ValueError, match="embeddings must be finite"):
            AdaptiveMarginLoss(losses.TripletMarginLoss())(embeddings.to(dtype) * math.nan, labels)
