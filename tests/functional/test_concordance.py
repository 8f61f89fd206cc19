from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics
from torch.autograd import gradcheck
from torch.testing import assert_close

from adaptive_margin import functional as F
from tests.references.concordance import affect_loss_slow, ccc_slow, pcc_slow, rmse_slow, sagr_slow

TOL = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
SCALES = [1e-20, 1e-7, 1.0, 1e7, 1e18]
FIGURES = {
    F.root_mean_square_error: rmse_slow,
    F.sign_agreement: sagr_slow,
    F.pearson_correlation: pcc_slow,
    F.concordance_correlation: ccc_slow,
}
figures = pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.__name__)
with_gradient = pytest.mark.parametrize(
    "figure",
    [F.root_mean_square_error, F.pearson_correlation, F.concordance_correlation, F.affect_loss],
    ids=lambda f: f.__name__,
)
rows = st.lists(st.tuples(*[st.integers(-20, 20)] * 2), min_size=1, max_size=16)


def columns(rows: list[tuple[int, int]], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    y, p = torch.tensor(rows, dtype=dtype).T
    return y, p


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        # y = 1 2 3, p = 2 4 3: errors 1 2 0; means 2 and 3; variances 2/3 both; covariance (1 + 0 + 0)/3
        (F.root_mean_square_error, math.sqrt(5 / 3)),
        (F.sign_agreement, 1.0),
        (F.pearson_correlation, 0.5),
        (F.concordance_correlation, (2 / 3) / (4 / 3 + 1)),
        (F.affect_loss, math.sqrt(5 / 3) + 0.5 * (0.5 + 1 - 2 / 7)),
    ],
)
def test_worked_by_hand(figure, expected):
    y, p = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 4.0, 3.0]).double()
    assert figure(y, p).item() == pytest.approx(expected, rel=1e-14)


def test_signs_as_kroneckers_delta():
    y = torch.tensor([0.0, 0.0, -0.0, 0.2, -0.2, 0.2])
    p = torch.tensor([0.0, 1e-30, 0.0, 0.9, -1e-30, 0.0])
    assert F.sign_agreement(y, p) == pytest.approx(4 / 6)


@figures
@pytest.mark.parametrize("dtype", TOL, ids=str)
def test_matches_the_loop(figure, dtype):
    y, p = torch.randn(33, 3).to(dtype), torch.randn(33, 3).to(dtype)
    expected = [FIGURES[figure](a.tolist(), b.tolist()) for a, b in zip(y.T, p.T, strict=True)]
    actual = figure(y, p)
    assert actual.dtype == dtype
    assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=TOL[dtype], atol=TOL[dtype])
    assert_close(figure(y[:, 0], p[:, 0]), actual[0])


@figures
@given(rows, st.sampled_from(SCALES), st.sampled_from([torch.float64, torch.float32]))
def test_matches_the_loop_at_every_scale(figure, rows, scale, dtype):
    y, p = columns(rows, dtype)
    y, p = y * scale, p * scale
    expected = FIGURES[figure](y.tolist(), p.tolist())
    unit = scale if figure is F.root_mean_square_error else 1
    assert figure(y, p).item() / unit == pytest.approx(expected / unit, rel=10 * TOL[dtype], abs=TOL[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_loss_matches_the_loop(dtype):
    y, p = torch.randn(20, 2, dtype=dtype), torch.randn(20, 2, dtype=dtype)
    expected = affect_loss_slow(y.T.tolist(), p.T.tolist())
    assert F.affect_loss(y, p).item() == pytest.approx(expected, rel=TOL[dtype])
    assert F.affect_loss(y, p, correlation_weight=0.0).item() == pytest.approx(
        F.root_mean_square_error(y, p).sum().item(), rel=TOL[dtype]
    )


def test_agrees_with_scipy_and_scikit_learn():
    y, p = torch.randn(50).double(), torch.randn(50).double()
    assert F.pearson_correlation(y, p).item() == pytest.approx(stats.pearsonr(y, p).statistic, rel=1e-12)
    rmse = metrics.root_mean_squared_error(y.numpy(), p.numpy())
    assert F.root_mean_square_error(y, p).item() == pytest.approx(rmse, rel=1e-12)
    sagr = metrics.accuracy_score(y.sign().numpy(), p.sign().numpy())
    assert F.sign_agreement(y, p).item() == pytest.approx(sagr)


@given(rows)
def test_identities_between_the_figures(rows):
    y, p = columns(rows)
    rmse, pcc, ccc = (f(y, p) for f in (F.root_mean_square_error, F.pearson_correlation, F.concordance_correlation))
    variance_y, variance_p, gap = y.var(correction=0), p.var(correction=0), y.mean() - p.mean()
    if len(rows) > 1:
        total = variance_y + variance_p + gap.square()
        assert_close(rmse.square(), (1 - ccc) * total, rtol=1e-9, atol=1e-9)
    assert ccc.abs() <= pcc.abs() + 1e-12
    assert rmse.square() >= (1 - pcc.square()) * variance_y - 1e-9
    if variance_y > 0:
        assert_close(F.concordance_correlation(y, y), torch.ones_like(ccc))
        assert_close(F.concordance_correlation(y, 2 * y.mean() - y), -torch.ones_like(ccc))
        assert_close(F.pearson_correlation(y, 3 - 2 * y), -torch.ones_like(pcc))


@figures
@given(rows, st.randoms(use_true_random=False))
def test_order_and_copies_do_not_matter(figure, rows, random):
    y, p = columns(rows)
    shuffled = random.sample(range(len(rows)), len(rows))
    expected = figure(y, p)
    assert_close(figure(y[shuffled], p[shuffled]), expected, rtol=1e-12, atol=1e-12)
    assert_close(figure(y.repeat(3), p.repeat(3)), expected, rtol=1e-12, atol=1e-12)


def test_sides_are_interchangeable():
    y, p = torch.randn(12, 2).double(), torch.randn(12, 2).double()
    for figure in FIGURES:
        assert_close(figure(y, p), figure(p, y))


def test_a_large_offset_loses_nothing():
    y = torch.tensor([0.0, 1.0, 2.0, 3.0])
    p = torch.tensor([1.0, 0.0, 3.0, 2.0])
    for figure in (F.root_mean_square_error, F.pearson_correlation, F.concordance_correlation):
        assert_close(figure(y + 2**22, p + 2**22), figure(y, p))


@with_gradient
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_gradient(figure, scale):
    y = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    p = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    unit = scale if figure in (F.root_mean_square_error, F.affect_loss) else 1.0
    assert gradcheck(lambda y, p: figure(y * scale, p * scale) / unit, (y, p))


DEGENERATE = {
    "one row": ([[0.3, -0.1]], [[0.1, 0.2]]),
    "one perfect row": ([[0.3, -0.1]], [[0.3, -0.1]]),
    "constant labels": ([[0.1, 0.1]] * 5, [[0.1 * i, -0.3 * i] for i in range(5)]),
    "constant predictions": ([[0.1 * i, -0.3 * i] for i in range(5)], [[0.1, 0.1]] * 5),
    "both constant": ([[0.1, 0.7]] * 5, [[0.7, 0.1]] * 5),
    "both constant, equal": ([[0.1, 0.7]] * 5, [[0.1, 0.7]] * 5),
    "perfect": ([[0.1 * i, -0.3 * i] for i in range(5)], [[0.1 * i, -0.3 * i] for i in range(5)]),
    "opposite": ([[0.1 * i, -0.3 * i] for i in range(5)], [[-0.1 * i, 0.3 * i] for i in range(5)]),
    "zeros": ([[0.0, 0.0]] * 3, [[0.0, 0.0]] * 3),
}


@with_gradient
@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_degenerate_input_gives_finite_numbers_and_gradients(figure, case, scale, dtype):
    y, p = (torch.tensor(side, dtype=dtype) * scale for side in DEGENERATE[case])
    y.requires_grad_()
    p.requires_grad_()
    value = figure(y, p)
    gradients = torch.autograd.grad(value.sum(), (y, p))
    assert torch.isfinite(value).all()
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("case", ["one row", "constant labels", "constant predictions", "both constant", "zeros"])
def test_correlation_of_a_constant_is_zero(case):
    y, p = (torch.tensor(side) for side in DEGENERATE[case])
    assert torch.equal(F.pearson_correlation(y, p), torch.zeros(2))
    assert torch.equal(F.concordance_correlation(y, p), torch.zeros(2))


@pytest.mark.parametrize("value", [0.1, 0.7, -1 / 3, 1e-20, 1e18])
@pytest.mark.parametrize("n", [2, 3, 7, 10, 97, 1000])
def test_the_mean_of_a_constant_has_no_rounding(value, n):
    """Or else rounding errors would be correlated with the labels."""
    for dtype in (torch.float64, torch.float32):
        y, p = torch.randn(n, dtype=dtype), torch.full((n,), value, dtype=dtype)
        assert F.pearson_correlation(y, p) == F.pearson_correlation(p, y) == 0
        assert F.concordance_correlation(y, p) == 0
        assert F.concordance_correlation(p, p) == 0


def test_never_above_one():
    for n in range(2, 200):
        y = torch.randn(n)
        assert abs(F.pearson_correlation(y, 3 * y + 1)) <= 1
        assert abs(F.pearson_correlation(y, -y)) <= 1


def test_constant_predictions_are_moved_apart_by_concordance():
    y = torch.tensor([0.2, -0.4, 0.5])
    p = torch.full((3,), 0.1, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.concordance_correlation(y, p), p)
    assert F.pearson_correlation(y, gradient) > 0.99


def test_perfect_predictions_have_loss_and_gradient_zero():
    y = torch.randn(6, 2)
    p = y.clone().requires_grad_()
    loss = F.affect_loss(y, p)
    (gradient,) = torch.autograd.grad(loss, p)
    assert_close(loss, torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(gradient, torch.zeros(6, 2), atol=1e-6, rtol=0)


def test_descending_the_loss_fits_the_labels():
    y = torch.rand(32, 2) - 0.5
    p = torch.zeros(32, 2, requires_grad=True)
    optimizer = torch.optim.Adam([p], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        F.affect_loss(y, p).backward()
        optimizer.step()
    assert F.concordance_correlation(y, p).min() > 0.98


@figures
def test_dtypes(figure):
    y, p = torch.randn(9), torch.randn(9)
    assert figure(y, p.bfloat16()).dtype == torch.float32
    assert figure(y.half(), p.half()).dtype == torch.float16
    assert figure(y.double(), p).dtype == torch.float64
    for half in (torch.float16, torch.bfloat16):  # computed in float32, rounded once
        a, b = y.to(half), p.to(half)
        assert torch.equal(figure(a, b), figure(a.float(), b.float()).to(half))
    wide = figure(y, p, dtype=torch.float64)
    assert wide.dtype == torch.float64
    assert torch.equal(wide, figure(y.double(), p.double()))
    signs = y.sign()
    assert torch.equal(figure(signs.long(), p), figure(signs, p))


def test_float64_accumulation_keeps_what_float32_loses():
    y = torch.rand(200_000, generator=torch.Generator().manual_seed(1))
    p = (y + 1e-3 * torch.rand(200_000, generator=torch.Generator().manual_seed(2))).float()
    exact = F.concordance_correlation(y.double(), p.double())
    assert F.concordance_correlation(y, p, dtype=torch.float64) == exact


@figures
@pytest.mark.parametrize(
    ("y", "p", "error", "message"),
    [
        (torch.ones(3), torch.ones(4), ValueError, r"prediction must be of target's shape \(3,\), got shape \(4,\)"),
        (torch.ones(3), torch.ones(3, 1), ValueError, r"got shape \(3, 1\); one prediction per label; squeeze"),
        (torch.ones(0, 2), torch.ones(0, 2), ValueError, r"target must be of shape .* not empty, got shape \(0, 2\)"),
        (torch.ones(3, 0), torch.ones(3, 0), ValueError, "target must be of shape"),
        (torch.ones(3), torch.tensor(1.0), ValueError, r"prediction must be of shape .* got shape \(\)"),
        (torch.tensor([torch.nan, 1]), torch.ones(2), ValueError, "target must be finite, got 1 NaN"),
        (torch.ones(2), torch.tensor([1, torch.inf]), ValueError, "prediction must be finite, got 1 NaN or infinite"),
        ([1.0], torch.ones(1), TypeError, "target must be a torch.Tensor, got list"),
        (torch.ones(2), torch.ones(2) * 1j, TypeError, "prediction must be real"),
    ],
)
def test_bad_input(figure, y, p, error, message):
    with pytest.raises(error, match=message):
        figure(y, p)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_bad_weight(weight):
    with pytest.raises(ValueError, match="correlation_weight must be finite and at least 0"):
        F.affect_loss(torch.ones(2), torch.ones(2), correlation_weight=weight)


def test_loss_compiles_without_a_graph_break():
    compiled = torch.compile(F.affect_loss, backend="eager", fullgraph=True)
    y, p = torch.randn(9, 2), torch.randn(9, 2)
    assert_close(compiled(y, p), F.affect_loss(y, p))


@pytest.mark.cuda
def test_cuda_loss_agrees_and_does_not_synchronise():
    y, p = torch.randn(64, 2), torch.randn(64, 2)
    on_device = y.cuda(), p.cuda()
    F.affect_loss(*on_device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = F.affect_loss(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(loss.cpu(), F.affect_loss(y, p))


@with_gradient
@pytest.mark.parametrize("scale", [1e-6, 1e-5, 1e-2, 1e3])
def test_a_float16_gradient_fits_and_keeps_its_direction(figure, scale):
    torch.manual_seed(0)
    y, p = ((scale * torch.randn(4, 2)).half().requires_grad_() for _ in range(2))
    figure(y, p).sum().backward()
    exact = [x.detach().double().requires_grad_() for x in (y, p)]
    figure(*exact).sum().backward()
    for x, true in zip((y, p), exact, strict=True):
        largest = true.grad.abs().max()
        expected = true.grad * min(1.0, 65439 / largest.item())
        assert_close(x.grad.double(), expected, rtol=2e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_scaled_loss_overflows_for_its_scaler():
    torch.manual_seed(0)
    y, p = ((1e-6 * torch.randn(4, 2)).half() for _ in range(2))
    loss = F.affect_loss(y, p.requires_grad_())
    (loss.float() * 2.0**12).backward()
    assert not torch.isfinite(p.grad).all()
