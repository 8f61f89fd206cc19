"""What goes into a host: bad input is named, dtypes are kept, gradients that do not exist are noticed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, reducers
from torch import Tensor

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss
from adaptive_margin.losses.batch import labels_from_indices

from .cases import CLASSES, FEATURES, GUESTS, HOSTS, assert_identical, batch, call

GRANULARITIES = ("batch", "anchor", "pair")
CASES = [
    (name, granularity)
    for name, host in HOSTS.items()
    for granularity in (GRANULARITIES if host.elementwise else GRANULARITIES[:1])
]
every_case = pytest.mark.parametrize(("name", "granularity"), CASES)
NAMES_THE_PROBLEM = re.compile(r"\S+.* must be .+, got .+; .+", re.DOTALL)


def build(name: str, granularity: str = "batch", **kwargs: Any) -> AdaptiveMarginLoss:
    margin = 0.3 if granularity == "constant" else AdaptiveMargin(granularity=granularity)  # type: ignore[arg-type]
    return AdaptiveMarginLoss(HOSTS[name].build(**kwargs), margin)


def labels_for(name: str, labels: Tensor) -> Tensor | None:
    return labels if HOSTS[name].labels else None


def outcome(loss: AdaptiveMarginLoss, embeddings: Tensor, labels: Tensor | None) -> str:
    """ "finite" for a finite loss with finite gradients, "refused" for a ValueError that helps, "left to the scaler"
    for one in float16 that is not finite; else this fails.
    """
    before = dict(vars(loss.loss))
    promotes = embeddings.dtype == torch.float64 and "cast_types" in dir(loss.loss)  # as the host does
    weights = [torch.float64 if promotes else weight.dtype for weight in loss.parameters()]
    embeddings = embeddings.clone().requires_grad_()
    refusal = ""
    try:
        value = loss(embeddings, labels)
        if embeddings.dtype == torch.float16 and not torch.isfinite(value):
            return "left to the scaler"
        assert torch.isfinite(value).all()
        value.backward()
    except ValueError as error:
        refusal = str(error)
    assert vars(loss.loss) == before
    assert [weight.dtype for weight in loss.parameters()] == weights
    if refusal:
        assert NAMES_THE_PROBLEM.fullmatch(refusal)
        return "refused"
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()
    assert all(weight.grad is None or torch.isfinite(weight.grad).all() for weight in loss.parameters())
    return "finite"


# What is wrong is refused, by name


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "granularity"), [*CASES, *((name, "constant") for name in HOSTS)])
def test_nan_and_infinity_are_refused(name: str, granularity: str, broken: float) -> None:
    embeddings, labels = batch()
    embeddings = embeddings.detach().clone()
    embeddings[3, 2] = broken
    with pytest.raises(ValueError, match=r"embeddings must be finite, got 1 NaN or .* the first at \(3, 2\); "):
        build(name, granularity)(embeddings, labels_for(name, labels))


def each(names: Iterable[str]) -> Iterator[tuple[str, AdaptiveMarginLoss]]:
    """Every one of these hosts, with the margin of the batch and with a constant one."""
    for name in names:
        for granularity in ("batch", "constant"):
            yield name, build(name, granularity)


@pytest.mark.parametrize(
    ("embeddings", "error", "message"),
    [
        (torch.randn(12), ValueError, r"embeddings must be a matrix of shape \(rows, features\).*, got shape \(12,\)"),
        (torch.randn(12, 8, 1), ValueError, r"embeddings must be a matrix.*, got shape \(12, 8, 1\)"),
        (torch.randn(12, 0), ValueError, r"embeddings must be .* at least one feature, got shape \(12, 0\)"),
        (torch.ones(12, 8, dtype=torch.int64), TypeError, "embeddings must be floating point, got torch.int64"),
        ([[1.0] * 8] * 12, TypeError, "embeddings must be a torch.Tensor, got list"),
    ],
)
def test_what_is_no_matrix_is_refused(embeddings: Any, error: type[Exception], message: str) -> None:
    for name, loss in each(HOSTS):
        with pytest.raises(error, match=message):
            loss(embeddings, labels_for(name, torch.arange(12) % CLASSES))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.arange(11), ValueError, r"labels must be as long as embeddings \(12 rows\), got 11 labels"),
        (torch.zeros(12, 2).long(), ValueError, r"labels must be one-dimensional, got shape \(12, 2\)"),
        (torch.full((12,), 0.5), TypeError, "labels must be integers, got torch.float32; group continuous targets"),
        (torch.full((12,), math.inf), TypeError, "labels must be integers"),
        (torch.tensor([2**64 - 1] * 12, dtype=torch.uint64), ValueError, r"labels must be below 2\*\*63, got 184467"),
        (torch.full((12,), math.nan), TypeError, "labels must be integers"),
        ([0] * 12, TypeError, "labels must be a torch.Tensor, got list"),
        (None, ValueError, "labels must be given, got None"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Any, error: type[Exception], message: str) -> None:
    for _, loss in each(name for name, host in HOSTS.items() if host.labels):
        with pytest.raises(error, match=message):
            loss(batch()[0], labels)


@pytest.mark.parametrize(
    ("ref_emb", "ref_labels", "message"),
    [
        (torch.randn(5, 7), torch.arange(5), "ref_emb must be of the 8 features of embeddings, got 7 features"),
        (torch.randn(5), torch.arange(5), "ref_emb must be a matrix"),
        (torch.randn(5, 8), torch.arange(4), r"ref_labels must be as long as ref_emb \(5 rows\), got 4 labels"),
        (torch.randn(5, 8), torch.zeros(5, 1).long(), "ref_labels must be one-dimensional"),
        (torch.randn(5, 8), None, "ref_labels must be given with ref_emb, got None"),
        (torch.full((5, 8), math.nan), torch.arange(5), "ref_emb must be finite, got 40 NaN"),
        (torch.full((5, 8), 1e30), torch.arange(5), "ref_emb must be below .* in magnitude, .*, got 1.0e.30"),
    ],
)
def test_references_that_do_not_fit_are_refused(ref_emb: Tensor, ref_labels: Tensor | None, message: str) -> None:
    embeddings, labels = batch()
    for _, loss in each(name for name, host in HOSTS.items() if host.reference):
        with pytest.raises(ValueError, match=message):
            loss(embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels)


@pytest.mark.parametrize("name", ["ArcFaceLoss", "SoftTripleLoss", "ProxyAnchorLoss", "RankedListLoss", "ManifoldLoss"])
def test_the_host_refuses_references_that_it_cannot_use(name: str) -> None:
    embeddings, labels = batch()
    with pytest.raises(ValueError, match=r"(ref_emb is|labels are ref_labels are) not supported"):
        build(name, "constant")(embeddings, labels_for(name, labels), ref_emb=torch.randn(5, 8), ref_labels=labels[:5])


def test_a_reference_that_a_host_would_leave_unused_is_refused() -> None:
    embeddings, labels = batch()
    message = "ref_emb must be None, got a tensor; ThresholdConsistentMarginLoss takes all pairs from embeddings"
    with pytest.raises(ValueError, match=message):
        build("ThresholdConsistentMarginLoss")(embeddings, labels, ref_emb=torch.randn(5, 8), ref_labels=labels[:5])


I = torch.arange  # noqa: E741 - short, in a table


@pytest.mark.parametrize(
    ("indices_tuple", "error", "got"),
    [
        ((I(3), I(3)), ValueError, "2 tensors"),
        ((I(3),) * 5, ValueError, "5 tensors"),
        ((), ValueError, "0 tensors"),
        ((I(3), I(3), I(2)), ValueError, r"shapes \(3,\), \(3,\), \(2,\)"),
        ((I(3), I(1), I(3)), ValueError, r"shapes \(3,\), \(1,\), \(3,\)"),  # the host would broadcast it
        ((I(3), I(3), I(2), I(1)), ValueError, r"shapes \(3,\), \(3,\), \(2,\), \(1,\)"),
        ((I(4)[:, None],) * 3, ValueError, r"shapes \(4, 1\), \(4, 1\), \(4, 1\)"),
        (torch.zeros(3, 4, dtype=torch.int64), TypeError, "Tensor"),
        (((0,), (4,), (1,)), TypeError, "tuple"),
        ((["a"], ["b"], ["c"]), TypeError, "tuple"),
        (7, TypeError, "int"),
    ],
)
def test_index_tuples_that_do_not_fit_are_refused(indices_tuple: Any, error: type[Exception], got: str) -> None:
    embeddings, labels = batch()
    for _, loss in each(name for name, host in HOSTS.items() if host.tuples):
        with pytest.raises(error, match=f"indices_tuple must be .*, got {got}; "):
            loss(embeddings, labels, indices_tuple)


@pytest.mark.parametrize("granularity", ["batch", "constant"])
def test_the_manifold_loss_says_what_it_needs(granularity: str) -> None:
    loss = build("ManifoldLoss", granularity)
    few, enough = torch.randn(CLASSES - 1, FEATURES), torch.randn(6, FEATURES)
    with pytest.raises(ValueError, match="embeddings must be at least 4 rows for K proxies, got 3; lower K"):
        loss(few)
    with pytest.raises(ValueError, match=r"indices_tuple must be as long as embeddings \(6 rows\), got 5 labels"):
        loss(enough, indices_tuple=torch.arange(5) % CLASSES)
    with pytest.raises(TypeError, match=r"indices_tuple must be a torch.Tensor, got tuple"):
        loss(enough, indices_tuple=(torch.arange(3),) * 3)
    with pytest.raises(ValueError, match="labels are ref_labels are not supported"):
        loss(enough, torch.arange(6) % CLASSES)


# Norms beyond the dtype: the host would normalise such rows to zero and say nothing


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 1e25), (torch.bfloat16, 1e25), (torch.float64, 1e200), (torch.float16, 3e4)]
)
@pytest.mark.parametrize("name", ["TripletMarginLoss", "MultiSimilarityLoss", "ThresholdConsistentMarginLoss"])
@pytest.mark.parametrize("granularity", ["batch", "constant"])
def test_norms_that_overflow_are_refused(name: str, dtype: torch.dtype, scale: float, granularity: str) -> None:
    embeddings = torch.full((12, FEATURES), scale, dtype=dtype)
    assert torch.isfinite(embeddings).all()
    assert not torch.nn.functional.normalize(embeddings).any()
    with pytest.raises(
        ValueError, match=r"embeddings must be (below .* in magnitude|of rows with norms from 6e-08 to)"
    ):
        build(name, granularity)(embeddings, labels_for(name, torch.arange(12) % CLASSES))


def test_float64_that_float32_weights_could_not_hold_is_computed_as_the_host_does() -> None:
    embeddings, labels = batch(dtype=torch.float64)
    for scale in (1e25, 1e100):  # beyond float32's norms, and beyond float32
        ours, stock = build("ArcFaceLoss", "constant"), HOSTS["ArcFaceLoss"].build(margin=0.3)
        assert torch.equal(ours(embeddings * scale, labels), stock(embeddings * scale, labels))


def test_vanishing_rows_in_float16_are_refused_where_they_are_normalised() -> None:
    embeddings, labels = batch(dtype=torch.float16)
    embeddings = embeddings.detach().clone()
    embeddings[2] = 0
    assert torch.nn.functional.normalize(embeddings).isnan().any()
    for granularity in ("batch", "constant"):
        with pytest.raises(ValueError, match=r"rows with norms from 6e-08 to 65504, .*, got 0\.0e\+00 to"):
            build("TripletMarginLoss", granularity)(embeddings, labels)
    raw = losses.TripletMarginLoss(distance=distances.LpDistance(normalize_embeddings=False))
    assert outcome(AdaptiveMarginLoss(raw), embeddings, labels) == "finite"


@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if "Lifted" in name or "Triplet" in name])
def test_large_norms_within_the_dtype_are_none_of_our_business(name: str) -> None:
    embeddings, labels = batch()
    for dtype, scale in ((torch.float32, 1e17), (torch.float16, 1e3)):
        large = build(name)((embeddings * scale).to(dtype), labels)
        usual = build(name)(embeddings.to(dtype), labels)
        torch.testing.assert_close(large, usual, rtol=2e-2, atol=1e-3)


# Few samples, few classes, coinciding samples


def _edges(dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    z, labels = torch.randn(12, FEATURES, dtype=torch.float64).to(dtype), torch.arange(12) % CLASSES
    duplicates, zero_row = z.clone(), z.clone()
    duplicates[[4, 1, 8]] = z[0]  # same label and other labels
    zero_row[3] = 0
    return {
        "one sample": (z[:1], labels[:1]),
        "two of one class": (z[:2], labels[:1].expand(2)),
        "two of two classes": (z[:2], labels[:2]),
        "a pair and one": (z[:3], torch.tensor([0, 0, 1])),
        "one class": (z, torch.full((12,), 2)),
        "no two alike": (z[:4], labels[:4]),
        "group of one": (z, torch.tensor([0] * 11 + [1])),
        "all equal": (z[:1].repeat(12, 1), labels),
        "all equal along an axis": (torch.eye(FEATURES, dtype=dtype)[:1].repeat(12, 1), labels),
        "parallel": (z[:1] * torch.arange(1, 13)[:, None].to(dtype), labels),
        "opposite": (z[:1] * torch.tensor([1, -1]).repeat(6)[:, None].to(dtype), labels),
        "duplicates": (duplicates, labels),
        "zero row": (zero_row, labels),
        "zero rows": (z * 0, labels),
        "as they should be": (z, labels),
    }


EDGES = tuple(_edges(torch.float32))
MAY_HAVE_NO_VALUE = {  # the hosts' own formulas: arc cosine at 1, variance of a zero row, fewer rows than proxies
    "TupletMarginLoss": set(EDGES),
    "SignalToNoiseRatioContrastiveLoss": {"zero row", "zero rows", "all equal along an axis"},
    "ManifoldLoss": {"one sample", "two of one class", "two of two classes", "a pair and one"},
}


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_edges_give_a_finite_loss_or_a_reason(name: str, granularity: str, dtype: torch.dtype) -> None:
    refused = set()
    for edge, (embeddings, labels) in _edges(dtype).items():
        for loss in (build(name, granularity), build(name, "constant")):
            if outcome(loss, embeddings, labels_for(name, labels)) == "refused":
                refused.add(edge)
    assert refused <= MAY_HAVE_NO_VALUE.get(name, set())
    assert "as they should be" not in refused


@every_case
def test_an_empty_batch_is_a_zero_with_a_gradient(name: str, granularity: str) -> None:
    for loss in (build(name, granularity), build(name, "constant")):
        for dtype in (torch.float32, torch.float16, torch.float64):
            embeddings = torch.zeros(0, FEATURES, dtype=dtype, requires_grad=True)
            value = loss(embeddings, labels_for(name, torch.zeros(0, dtype=torch.int64)))
            assert value.shape == ()
            assert value.item() == 0
            value.backward()
            assert embeddings.grad is not None
            assert embeddings.grad.shape == (0, FEATURES)


@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss", "MarginLoss", "MultiSimilarityLoss"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_an_empty_tuple_or_reference_is_a_zero_with_a_gradient(name: str, granularity: str) -> None:
    if granularity != "batch" and not HOSTS[name].elementwise:
        return
    embeddings, labels = batch()
    none = torch.zeros(0, dtype=torch.int64)
    loss = AdaptiveMarginLoss(HOSTS[name].build(), AdaptiveMargin(granularity=granularity), collect_stats=True)
    for args in (((none,) * 3,), ((none,) * 4,), (None, embeddings.detach()[:0], none)):
        value = loss(embeddings, labels, *args)
        assert value.item() == 0
        assert math.isnan(loss.current_margin) is (granularity != "batch" or len(args) == 3)  # no pairs, no references
        (grad,) = torch.autograd.grad(value, embeddings)
        assert not grad.any()


@pytest.mark.parametrize("guest", GUESTS)
def test_guests_stand_the_edges_too(guest: str) -> None:
    for edge, (embeddings, labels) in _edges(torch.float32).items():
        loss = GUESTS[guest]()
        x = embeddings.clone().requires_grad_()
        value = loss(x, labels)
        assert math.isfinite(value.item()), edge
        value.backward()
        assert x.grad is not None, edge
        assert torch.isfinite(x.grad).all(), edge


SEEDS = st.integers(0, 2**16)
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
LABELS = st.sampled_from(["cycle", "one", "distinct", "one apart", "random", "two", "any integer"])


def _labels(pattern: str, rows: int) -> Tensor:
    random = torch.randint(0, CLASSES, (rows,))
    return {
        "cycle": torch.arange(rows) % CLASSES,
        "one": torch.zeros(rows, dtype=torch.int64),
        "distinct": torch.arange(rows),
        "one apart": (torch.arange(rows) == 0).long(),
        "random": random,
        "two": torch.arange(rows) % 2,
        "any integer": random * (2**40) - 7,
    }[pattern]


@every_case
@settings(max_examples=12)
@given(
    rows=st.integers(1, 10),
    scale=st.floats(-20, 18).map(lambda power: 10**power),
    dtype=DTYPES,
    pattern=LABELS,
    tied=st.booleans(),
    seed=SEEDS,
)
def test_never_nan(
    name: str, granularity: str, rows: int, scale: float, dtype: torch.dtype, pattern: str, tied: bool, seed: int
) -> None:
    host = HOSTS[name]
    torch.manual_seed(seed)
    labels = _labels(pattern, rows)
    if host.kwargs.get("num_classes"):
        labels = labels % CLASSES
    values = torch.randint(-1, 2, (rows, FEATURES)).double() if tied else torch.randn(rows, FEATURES).double()
    embeddings = (values * scale).to(dtype)
    result = outcome(build(name, granularity), embeddings, labels_for(name, labels))
    usual = dtype != torch.float16 or 1e-3 < scale < 1e3
    if not tied and usual and host.labels and name != "TupletMarginLoss":
        assert result == "finite"


# Dtypes: the host would turn its weights into the dtype of the batch, for good

WEIGHTY = {name: host for name, host in HOSTS.items() if host.build().state_dict()}


def test_the_hosts_with_weights_are_these() -> None:
    assert set(WEIGHTY) == {
        "CosFaceLoss",
        "ArcFaceLoss",
        "SubCenterArcFaceLoss",
        "SoftTripleLoss",
        "ProxyAnchorLoss",
        "ManifoldLoss",
    }
    stock = HOSTS["ArcFaceLoss"].build()
    embeddings, labels = batch(dtype=torch.float16)
    stock(embeddings, labels)
    assert stock.W.dtype == torch.float16  # the trap is still there


@pytest.mark.parametrize("name", WEIGHTY)
@pytest.mark.parametrize("margin", [0.3, AdaptiveMargin(), AdaptiveMargin(detach=False)], ids=["0.3", "", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_half_batch_leaves_weights_and_optimiser_alone(name: str, margin: Any, dtype: torch.dtype) -> None:
    loss = AdaptiveMarginLoss(HOSTS[name].build(), margin)
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.01)
    before = [weight.detach().clone() for weight in loss.parameters()]
    for step, current in enumerate((torch.float32, dtype, dtype, torch.float32)):
        embeddings, labels = batch(seed=step, dtype=current)
        optimiser.zero_grad()
        loss(embeddings, labels_for(name, labels)).backward()
        assert embeddings.grad is not None
        assert embeddings.grad.dtype == current
        assert embeddings.grad.any()
        optimiser.step()
    for weight, old in zip(loss.parameters(), before, strict=True):
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, old)
        assert {state.dtype for state in optimiser.state[weight].values()} == {torch.float32}


@pytest.mark.parametrize("name", WEIGHTY)
def test_float64_is_promoted_as_the_host_does_to_the_bit(name: str) -> None:
    host = HOSTS[name]
    number = host.numbers[-1]
    ours, stock = AdaptiveMarginLoss(host.build(), number), host.build(margin=number)
    for step, dtype in enumerate((torch.float32, torch.float64, torch.float64, torch.float32)):
        embeddings, labels = batch(seed=step, dtype=dtype)
        args = embeddings, labels_for(name, labels)
        assert_identical(call(ours, *args), call(stock, *args))
        for weight, theirs in zip(ours.parameters(), stock.parameters(), strict=True):
            assert weight.dtype == theirs.dtype
            assert torch.equal(weight, theirs)


@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if host.labels])
@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.float32, torch.float64], ids=str
)
def test_labels_of_any_dtype_are_classes(name: str, dtype: torch.dtype) -> None:
    embeddings, labels = batch()
    labels = labels % 2 if dtype == torch.bool else labels
    for granularity in ("batch", "constant"):
        given, expected = (call(build(name, granularity), embeddings, y) for y in (labels.to(dtype), labels))
        assert_identical(given, expected)


@pytest.mark.parametrize("name", WEIGHTY)
def test_a_half_batch_is_worked_out_in_the_weights_precision(name: str) -> None:
    embeddings, labels = batch(dtype=torch.bfloat16)
    torch.manual_seed(0)
    ours = build(name)(embeddings, labels_for(name, labels))
    torch.manual_seed(0)
    theirs = build(name)(embeddings.float(), labels_for(name, labels))
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-5 if HOSTS[name].weights else 2e-2, atol=0)


@pytest.mark.parametrize("name", WEIGHTY)
@pytest.mark.parametrize("inside", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_leaves_the_weights_alone(name: str, inside: torch.dtype) -> None:
    loss = build(name)
    embeddings, labels = batch(dtype=inside)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(embeddings, labels_for(name, labels))
    value.backward()
    assert all(weight.dtype == torch.float32 and weight.grad is not None for weight in loss.parameters())
    torch.manual_seed(0)
    precise = build(name)(embeddings.float(), labels_for(name, labels))
    torch.testing.assert_close(value.float(), precise, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("margin", [0.3, AdaptiveMargin(), AdaptiveMargin(detach=False)], ids=["0.3", "", "gradient"])
@pytest.mark.parametrize("name", WEIGHTY)
def test_weights_that_are_half_stay_half(name: str, margin: Any) -> None:
    loss = AdaptiveMarginLoss(HOSTS[name].build(torch.bfloat16), margin)
    for dtype in (torch.float32, torch.bfloat16):
        embeddings, labels = batch(dtype=dtype)
        loss(embeddings, labels_for(name, labels)).backward()
        assert all(weight.dtype == torch.bfloat16 for weight in loss.parameters())
        assert torch.isfinite(embeddings.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if not host.weights])
def test_hosts_that_cast_no_weights_get_their_batch_as_it_is(name: str) -> None:
    seen = []
    loss = build(name)
    hook = loss.loss.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    for dtype in (torch.float16, torch.float32, torch.float64):
        embeddings, labels = batch(dtype=dtype)
        loss(embeddings, labels_for(name, labels))
        assert seen.pop() == dtype
    hook.remove()


def test_a_learned_beta_does_not_cost_float64_its_precision() -> None:
    embeddings, labels = batch(dtype=torch.float64)
    stock = losses.MarginLoss(learn_beta=True, nu=0.1, margin=0.3)
    ours = AdaptiveMarginLoss(losses.MarginLoss(learn_beta=True, nu=0.1), 0.3)
    assert torch.equal(ours(embeddings, labels), stock(embeddings, labels))


@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if host.elementwise or "Lifted" in name])
def test_bfloat16_works_where_the_hosts_distance_has_no_kernel_for_it(name: str) -> None:
    embeddings, labels = batch(dtype=torch.bfloat16)
    value = build(name)(embeddings, labels)
    value.backward()
    assert embeddings.grad is not None
    assert embeddings.grad.dtype == torch.bfloat16
    assert embeddings.grad.any()
    torch.testing.assert_close(value.float(), build(name)(embeddings.float(), labels), rtol=0.05, atol=0.01)


# What comes out


def test_a_loss_without_a_value_is_refused() -> None:
    class Broken(losses.TripletMarginLoss):
        broken = math.nan

        def compute_loss(self, embeddings: Tensor, *args: Any) -> Any:
            result = super().compute_loss(embeddings, *args)
            result["loss"]["losses"] = result["loss"]["losses"] * self.broken
            return result

    embeddings, labels = batch()
    for reducer, got in (
        (reducers.MeanReducer(), "nan"),
        (reducers.DoNothingReducer(), "NaN or infinity among 216"),
        (_Unreduced(), "NaN or infinity among 216"),
    ):
        loss = AdaptiveMarginLoss(Broken(reducer=reducer))
        with pytest.raises(ValueError, match=f"the value of TripletMarginLoss must be finite, got {got}; its formula"):
            loss(embeddings, labels)
        assert loss.loss.margin == 0.05


class _Unreduced(reducers.BaseReducer):
    """One loss a triplet, as reducers of users give."""

    def triplet_reduction(self, losses: Tensor, *_: Any) -> Tensor:
        return losses


def test_a_loss_for_each_triplet_comes_through() -> None:
    embeddings, labels = batch()
    stock = losses.TripletMarginLoss(margin=0.3, reducer=_Unreduced())
    ours = AdaptiveMarginLoss(losses.TripletMarginLoss(reducer=_Unreduced()), 0.3)
    assert torch.equal(ours(embeddings, labels), stock(embeddings, labels))


class _Steep(torch.autograd.Function):
    """The identity, with a gradient that does not exist."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.slope = slope
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad * ctx.slope, None


class _SteepDistance(distances.LpDistance):
    slope, which = math.inf, 0

    def forward(self, query_emb: Tensor, ref_emb: Tensor | None = None) -> Tensor:
        both = [query_emb, query_emb if ref_emb is None else ref_emb]
        both[self.which] = _Steep.apply(both[self.which], self.slope)
        return super().forward(*both)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("slope", [math.nan, math.inf])
def test_a_gradient_that_does_not_exist_is_refused(dtype: torch.dtype, slope: float) -> None:
    embeddings, labels = batch(dtype=dtype)
    distance = _SteepDistance()
    distance.slope = slope
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(distance=distance))
    value = loss(embeddings, labels)
    with pytest.raises(ValueError, match="the gradient of TripletMarginLoss must be finite, got NaN or infinity; its"):
        value.backward()


def test_a_gradient_of_the_reference_that_does_not_exist_is_refused() -> None:
    embeddings, labels = batch()
    reference, ref_labels = batch(seed=1)
    distance = _SteepDistance()
    distance.which = 1
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(distance=distance))
    value = loss(embeddings, labels, ref_emb=reference, ref_labels=ref_labels)
    with pytest.raises(ValueError, match="the gradient of TripletMarginLoss must be finite"):
        torch.autograd.grad(value, reference)


def test_overflow_of_a_scaled_float16_loss_is_left_to_the_scaler() -> None:
    embeddings, labels = batch()
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(distance=_SteepDistance()))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimiser = torch.optim.SGD([embeddings], lr=1.0)
    before = embeddings.detach().clone()
    scaler.scale(loss(embeddings.half(), labels)).backward()
    scaler.step(optimiser)
    scaler.update()
    assert torch.equal(embeddings, before)  # the step is skipped
    assert scaler.get_scale() == 512.0


def test_the_guard_changes_no_gradient_and_allows_a_second_one() -> None:
    embeddings, labels = batch(dtype=torch.float64)
    ours = AdaptiveMarginLoss(losses.MultiSimilarityLoss(), 0.3)
    stock = losses.MultiSimilarityLoss(base=0.3)
    seconds = []
    for loss in (ours, stock):
        (first,) = torch.autograd.grad(loss(embeddings, labels), embeddings, create_graph=True)
        seconds.append(torch.autograd.grad((first**2).sum(), embeddings)[0])
    assert seconds[0].any()
    assert torch.equal(*seconds)


def test_without_gradients_nothing_is_guarded_and_no_graph_kept() -> None:
    embeddings, labels = batch()
    with torch.no_grad():
        value = AdaptiveMarginLoss(losses.TripletMarginLoss())(embeddings, labels)
    assert not value.requires_grad


# Labels behind index tuples


def test_labels_behind_triplets_and_pairs_by_hand() -> None:
    a, p, n = torch.tensor([0, 1, 3]), torch.tensor([1, 2, 4]), torch.tensor([3, 4, 0])
    for indices in ((a, p, n), (a, p, n, n)):
        labels, ref_labels = labels_from_indices(indices, 6)
        assert labels is ref_labels or torch.equal(labels, ref_labels)
        assert (labels[:, None] == labels).int().tolist() == [
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [0, 0, 0, 1, 1, 0],
            [0, 0, 0, 1, 1, 0],
            [0, 0, 0, 0, 0, 1],
        ]


def test_labels_behind_tuples_of_two_sets_by_hand() -> None:
    a, p, n = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0])
    labels, ref_labels = labels_from_indices((a, p, n), 4, 3)
    assert (labels[:, None] == ref_labels).int().tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert labels[0] == labels[1]
    assert labels[3] not in labels[:3]


@settings(max_examples=50)
@given(rows=st.integers(1, 12), ref_rows=st.none() | st.integers(1, 9), pairs=st.integers(0, 15), seed=SEEDS)
def test_labels_behind_tuples_are_what_positive_pairs_connect(
    rows: int, ref_rows: int | None, pairs: int, seed: int
) -> None:
    torch.manual_seed(seed)
    a, p = torch.randint(0, rows, (pairs,)), torch.randint(0, ref_rows or rows, (pairs,))
    labels, ref_labels = labels_from_indices((a, p, p), rows, ref_rows)
    slow = list(range(rows + (ref_rows or 0)))  # flood: every pair takes the smaller name until nothing changes
    changed = True
    while changed:
        changed = False
        for i, j in zip(a.tolist(), (p + (rows if ref_rows else 0)).tolist(), strict=True):
            low = min(slow[i], slow[j])
            changed |= slow[i] != low or slow[j] != low
            slow[i] = slow[j] = low
    ours = torch.cat([labels, ref_labels]) if ref_rows else labels
    expected = torch.tensor(slow)
    assert torch.equal(ours[:, None] == ours, expected[:, None] == expected)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss", "MarginLoss"])
@pytest.mark.parametrize("with_ref", [False, True])
def test_without_labels_the_tuple_says_which_classes_there_are(name: str, granularity: str, with_ref: bool) -> None:
    embeddings, labels = batch()
    reference, ref_labels = batch(8, seed=5) if with_ref else (None, None)
    others = labels if ref_labels is None else ref_labels
    same = labels[:, None] == others
    if not with_ref:
        same.fill_diagonal_(False)
    a, p = torch.where(same)
    different = labels[:, None] != others
    n = different[a].int().argmax(1)
    loss = build(name, granularity)
    told = loss(embeddings, labels, (a, p, n), reference, ref_labels)
    guessed = loss(embeddings, None, (a, p, n), reference)
    torch.testing.assert_close(guessed, told)


def test_without_labels_a_reference_that_is_the_batch_is_the_batch() -> None:
    rows = torch.arange(12)
    partners = rows ^ 1  # six pairs
    embeddings = torch.randn(6, FEATURES).repeat_interleave(2, dim=0) + 0.01 * torch.randn(12, FEATURES)
    found = []
    for reference in (None, embeddings):
        margin = AdaptiveMargin(neighbourhood="released", collect_stats=True)
        loss = AdaptiveMarginLoss(losses.TripletMarginLoss(), margin)
        loss(embeddings, None, (rows, partners, rows.roll(2)), reference)
        assert margin.k == 1  # everyone's nearest is its partner
        found.append(margin.alpha)
    assert found[0] == found[1]
