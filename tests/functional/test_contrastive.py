"""The paper's loss of two groups: numbers, slow loops, both regularisers, edges, compiled."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ContrastiveLoss
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from adaptive_margin import ContrastiveVDMLoss
from adaptive_margin.choices import Regularizer
from adaptive_margin.functional import pair_tiles, vdm_contrastive_loss
from tests.references.contrastive import pair_terms_slow


def _groups(strong: int, weak: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(n, 4, dtype=dtype).requires_grad_() for n in (strong, weak))  # type: ignore[return-value]


def _slow(strong: Tensor, weak: Tensor, margin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.tensor([0] * len(strong) + [1] * len(weak))
    terms = pair_terms_slow(torch.cat([strong, weak]), labels, margin, only_first=True)
    return terms.attraction, terms.repulsion, terms.second_moment


@pytest.fixture(params=[512, 0], ids=["one-matrix", "tiles"])
def _either_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_tiles.small, "SMALL", request.param)
    monkeypatch.setitem(pair_tiles.layout.TILE_ROWS, "cpu", 4)


@pytest.mark.usefixtures("_either_path")
def test_numbers_worked_by_hand() -> None:
    strong = torch.tensor([[0.0], [1.0], [3.0]], requires_grad=True)
    weak = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    # Inside: D² = 1, 9, 4, mean 14/3. Across: 1, 1 | 0, 4 | 4, 16; within the margin 2: hinges 1, 1, 2, mean 4/3.
    loss = vdm_contrastive_loss(strong, weak, 2.0, repulsion=0.5)
    assert_close(loss, torch.tensor(14 / 3 + 0.5 * 4 / 3))
    # Ω = ½ (1² + 9² + 4²) / 3 + ½ (1² + 1² + 2²) / 6 = 49/3 + 1/2
    omega = 49 / 3 + 0.5
    chi2 = vdm_contrastive_loss(strong, weak, 2.0, repulsion=0.5, regularizer="chi2", regularizer_weight=3.0)
    assert_close(chi2, loss + 0.75 * omega)
    fisher = vdm_contrastive_loss(strong, weak, 2.0, 0.5, "fisher", multiplier=-0.3, penalty=0.2)
    assert_close(fisher, loss - 0.3 * (omega - 1) + 0.1 * (omega - 1) ** 2)
    loss.backward()
    # d/ds: ⅔ · sum of differences; across, −½ · ⅓ · 2 (s − w) over the active: (0, 1), (0, −1), (1, 1).
    assert_close(strong.grad, torch.tensor([[-8 / 3 - (-1 + 1) / 3], [-2 / 3], [10 / 3]]))
    assert_close(weak.grad, torch.tensor([[-1 / 3], [1 / 3]]))


@pytest.mark.usefixtures("_either_path")
@pytest.mark.parametrize("per_row", [False, True], ids=["one-margin", "margin-a-row"])
@pytest.mark.parametrize("regularizer", ["none", "chi2", "fisher"])
def test_value_and_gradient_are_those_of_one_pair_at_a_time(regularizer: str, per_row: bool) -> None:
    strong, weak = _groups(6, 9)
    margin = (6 * torch.rand(15 if per_row else (), dtype=torch.float64) + 2).requires_grad_()
    loss = vdm_contrastive_loss(
        strong, weak, margin, 0.7, regularizer, regularizer_weight=0.4, multiplier=0.2, penalty=0.3
    )
    attraction, repulsion, omega = _slow(strong, weak, margin)
    expected = attraction + 0.7 * repulsion
    if regularizer == "chi2":
        expected = expected + 0.1 * omega
    if regularizer == "fisher":
        expected = expected + 0.2 * (omega - 1) + 0.15 * (omega - 1) ** 2
    assert_close(loss, expected, rtol=1e-10, atol=0)
    inputs = (strong, weak, margin)
    assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("_either_path")
@pytest.mark.parametrize("regularizer", ["none", "chi2", "fisher"])
def test_gradcheck(regularizer: str) -> None:
    strong, weak = _groups(4, 3)
    margin = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    multiplier = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def loss(strong: Tensor, weak: Tensor, margin: Tensor, multiplier: Tensor) -> Tensor:
        return vdm_contrastive_loss(strong, weak, margin, 0.7, regularizer, multiplier=multiplier, penalty=0.1)

    inputs = (strong, weak, margin, multiplier if regularizer == "fisher" else multiplier.detach())
    assert torch.autograd.gradcheck(loss, inputs)


def test_equals_the_stock_loss_on_the_pairs_of_two_groups() -> None:
    strong, weak = _groups(7, 5)
    stock = ContrastiveLoss(neg_margin=4.0, distance=LpDistance(p=2, power=2, normalize_embeddings=False))
    inside, across = torch.combinations(torch.arange(7)), torch.cartesian_prod(torch.arange(7), torch.arange(7, 12))
    expected = stock(torch.cat([strong, weak]), indices_tuple=(*inside.T, *across.T))
    loss = vdm_contrastive_loss(strong, weak, 4.0)
    assert_close(loss, expected, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(value, (strong, weak)) for value in (loss, expected)]
    assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_only_the_strong_group_is_pulled_together() -> None:
    strong, weak = torch.tensor([[0.0], [1.0]]), torch.tensor([[100.0], [200.0]])
    assert vdm_contrastive_loss(strong, weak, 1.0) == 1
    assert vdm_contrastive_loss(weak, strong, 1.0) == 10_000


@pytest.mark.usefixtures("_either_path")
@pytest.mark.parametrize("regularizer", ["none", "chi2", "fisher"])
@pytest.mark.parametrize(("rows", "others"), [(0, 0), (0, 3), (3, 0), (1, 0), (1, 1), (1, 3), (2, 0)])
def test_an_empty_group_or_a_group_of_one_leaves_the_rest(rows: int, others: int, regularizer: str) -> None:
    strong, weak = _groups(rows, others, torch.float32)
    loss = vdm_contrastive_loss(strong, weak, 1e3, 1.0, regularizer, penalty=0.5)
    loss.backward()
    assert torch.isfinite(loss)
    for group in (strong, weak):
        assert torch.isfinite(group.grad).all()
    if rows * others == 0 and rows < 2:
        assert loss == 0  # no pair of either kind
        assert not any(group.grad.any() for group in (strong, weak))
    if rows == 1 and others and regularizer != "chi2":
        hinges = 1e3 - (strong.detach() - weak.detach()).square().sum(1)
        assert_close(loss.detach(), hinges.mean())  # no pair inside: nothing is known about Ω


def test_no_pair_within_the_margin_repels_nothing() -> None:
    strong, weak = torch.zeros(2, 3, requires_grad=True), torch.full((2, 3), 5.0, requires_grad=True)
    loss = vdm_contrastive_loss(strong, weak, 1.0)
    loss.backward()
    assert loss == 0
    assert not weak.grad.any()


def test_identical_embeddings_have_a_finite_loss_and_gradient() -> None:
    strong, weak = torch.ones(4, 3, requires_grad=True), torch.ones(5, 3, requires_grad=True)
    loss = vdm_contrastive_loss(strong, weak, 0.3, regularizer="chi2")
    loss.backward()
    assert_close(loss, torch.tensor(0.3 + 0.25 * 0.5 * 0.09))
    assert not strong.grad.any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weak": torch.zeros(3, 5)}, ValueError, "weak must be of the 4 features of strong, got 5 features"),
        ({"strong": torch.zeros(3)}, ValueError, "strong must be a matrix"),
        ({"strong": torch.zeros(3, 4, dtype=torch.long)}, TypeError, "strong must be floating point"),
        ({"margin": torch.ones(3)}, ValueError, r"margin must be one number, or one per row: of shape \(\) or \(6,\)"),
        ({"margin": float("nan")}, ValueError, "margin must be finite"),
        ({"repulsion": -1.0}, ValueError, "repulsion must be a number of at least 0, got -1.0"),
        ({"penalty": float("inf")}, ValueError, "penalty must be a number of at least 0"),
        ({"regularizer": "l2"}, ValueError, "regularizer must be one of 'none', 'chi2', 'fisher', got 'l2'"),
        ({"strong": torch.full((3, 4), torch.nan)}, ValueError, "embeddings must be finite, got 12 NaN or infinite"),
    ],
)
def test_errors_name_what_is_wrong(change: dict[str, object], error: type[Exception], message: str) -> None:
    given: dict[str, object] = {"strong": torch.zeros(3, 4), "weak": torch.zeros(3, 4), "margin": 1.0, **change}
    with pytest.raises(error, match=message):
        vdm_contrastive_loss(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    strong, weak = (group.detach().to(dtype).requires_grad_() for group in _groups(5, 6))
    loss = vdm_contrastive_loss(strong, weak, 4.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert_close(loss, vdm_contrastive_loss(strong.float(), weak.float(), 4.0))
    assert strong.grad.dtype == dtype


def test_compiled_without_a_graph_break() -> None:
    strong, weak = _groups(5, 6)
    margin = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(vdm_contrastive_loss, fullgraph=True, backend="aot_eager")
    ours, expected = (f(strong, weak, margin, 0.7, "chi2") for f in (compiled, vdm_contrastive_loss))
    assert_close(ours, expected)
    inputs = (strong, weak, margin)
    assert_close(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs))


@pytest.mark.usefixtures("fake_cuda_works")
@pytest.mark.parametrize("rows", [20, 300])
def test_nothing_on_cuda_waits_for_the_device(rows: int) -> None:
    with FakeTensorMode():  # raises at whatever needs a number from the device
        strong, weak = (torch.randn(rows, 4, device="cuda", requires_grad=True) for _ in range(2))
        margin, multiplier = torch.rand((), device="cuda"), torch.rand((), device="cuda")
        for regularizer in ("none", "chi2", "fisher"):
            loss = vdm_contrastive_loss(strong, weak, margin, 1.0, regularizer, multiplier=multiplier)
            assert loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("regularizer", ["none", "chi2", "fisher"])
@pytest.mark.parametrize("exponent", range(0, 39, 2))
def test_large_groups_have_a_finite_loss_and_gradient_or_an_error(
    exponent: int, regularizer: Regularizer, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    strong = (torch.randn(5, 3) * 10.0**exponent).to(dtype).requires_grad_()
    weak = torch.zeros(4, 3, dtype=dtype)
    message = ""
    try:
        loss = vdm_contrastive_loss(strong, weak, 1.0, regularizer=regularizer)
        loss.backward()
    except ValueError as error:
        message = str(error)
    if exponent < 4 or not message:
        assert torch.isfinite(loss)
        assert strong.grad is not None
        assert torch.isfinite(strong.grad).all()
        assert exponent < 20
    else:
        assert "small enough" in message


def test_a_margin_that_its_dtype_cannot_hold_is_named() -> None:
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"margin must be finite in torch\.float32, got 1e"):
        vdm_contrastive_loss(x, x, 1e39)
    with pytest.raises(ValueError, match=r"margin must be finite in torch\.float32, got 1e"):
        ContrastiveVDMLoss(1e39)(x, torch.tensor([0, 0, 1, 1]))
