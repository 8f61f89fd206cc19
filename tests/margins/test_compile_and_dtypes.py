"""AdaptiveMargin in half precision, under autocast, compiled as one graph, and without waiting for a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.testing import assert_close

from adaptive_margin import AdaptiveMargin, Dependence
from adaptive_margin import functional as F

HALVES = [torch.float16, torch.bfloat16]


def batch(n: int = 40, features: int = 5, labels: int = 2, dtype: torch.dtype = torch.float32):
    y = torch.arange(n) % labels
    x = 0.7 * torch.randn(n, features) + torch.linspace(-1, 1, features)
    x[:, 0] += 2 * y
    return x.to(dtype), y


def pairs(y: torch.Tensor, ref_y: torch.Tensor):
    a, n = (y[:, None] != ref_y).nonzero(as_tuple=True)
    return a[::7], a[::7], n[::7]


# --- dtypes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
@pytest.mark.parametrize("dependence", ["gaussian", "alignment"])
def test_half_precision_is_float64_on_the_rounded_values(dtype, granularity, dependence):
    x, y = batch(200, 16, 3, dtype)
    margin = AdaptiveMargin(granularity=granularity, dependence=dependence)
    for call in ((x, y), (x, y, pairs(y, y)), (x[:50], y[:50], None, x[50:], y[50:])):
        got = margin(*call)
        want = margin(*(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in call))
        assert got.dtype == torch.float32
        assert_close(got.double(), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_sums_that_half_precision_cannot_hold(dtype):
    x, y = batch(1000, 16, 2)
    x = (x * 1e4).to(dtype)  # sums and squares beyond float16's 65 504; counts beyond bfloat16's 256
    assert_close(AdaptiveMargin()(x, y).double(), AdaptiveMargin()(x.double(), y), rtol=0, atol=2e-5)
    largest = torch.finfo(dtype).max
    alpha = AdaptiveMargin()(torch.tensor([[largest, 0], [-largest, 0], [0, largest]], dtype=dtype), torch.arange(3))
    assert alpha.isfinite()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_has_a_gradient_of_its_own_dtype(dtype):
    x, y = batch(dtype=dtype)
    want = x.double().requires_grad_()
    margin = AdaptiveMargin(detach=False)
    margin(want, y).backward()
    margin(x.requires_grad_(), y).backward()
    assert x.grad.dtype == dtype
    assert_close(x.grad.double(), want.grad, rtol=0, atol=0.01 * want.grad.abs().max().item())


def test_a_half_reference_beside_float32():
    x, y = batch()
    ref, ref_y = batch(30)
    got = AdaptiveMargin()(x, y, None, ref.half(), ref_y)
    assert_close(got, AdaptiveMargin()(x, y, None, ref.half().float(), ref_y))


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
@pytest.mark.parametrize("dependence", ["gaussian", "alignment"])
def test_autocast_changes_nothing(granularity, dependence):
    x, y = batch(60, 16)
    margin = AdaptiveMargin(granularity=granularity, dependence=dependence)
    alpha = margin(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x.T).dtype == torch.bfloat16  # it is on
        got = margin(x, y)
        assert (x @ x.T).dtype == torch.bfloat16  # and stays on
    assert torch.equal(got, alpha)


# --- compiled -------------------------------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


GRAPHS = [
    {},
    {"dependence": "alignment"},
    {"pairing": "zip", "bandwidth": 0.7},
    {"neighbourhood": "chernoff", "granularity": "anchor"},
]


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("options", "with_ref"), [*zip(GRAPHS, (False, True, True, False), strict=True)], ids=str)
def test_compiles_as_one_graph(options, with_ref):
    x, y = batch(24)
    call = (x, y, None, *batch(30)) if with_ref else (x, y)
    margin = AdaptiveMargin(**options)
    compiled = torch.compile(margin, fullgraph=True, backend="eager")
    assert_close(compiled(*call), margin(*call))


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiles_with_pairs_and_statistics_off():
    x, y = batch(24)
    for granularity in ("batch", "pair"):
        margin = AdaptiveMargin(granularity=granularity)
        compiled = torch.compile(margin, fullgraph=True, backend="eager")
        assert_close(compiled(x, y, pairs(y, y)), margin(x, y, pairs(y, y)))


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiles_with_its_gradient():
    x, y = batch(24)
    margin = AdaptiveMargin(detach=False)
    want, got = x.clone().requires_grad_(), x.clone().requires_grad_()
    margin(want, y).backward()
    torch.compile(margin, fullgraph=True, backend="aot_eager")(got, y).backward()
    assert want.grad.abs().max() > 1e-3
    assert_close(got.grad, want.grad)


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_smaller_last_batch_and_bad_batches_in_compiled_code():
    margin = AdaptiveMargin()
    compiled = torch.compile(margin, fullgraph=True, backend="eager")
    for n in (24, 17, 5):
        x, y = batch(n)
        assert_close(compiled(x, y), margin(x, y))
    x[2, 3] = torch.nan
    with pytest.raises(RuntimeError, match="embeddings must be finite, got NaN or infinity"):
        compiled(x, y)


# --- nothing waits for the device -----------------------------------------------------------------------------------


WITHOUT_WAITING = [
    {},
    {"detach": False},
    {"bandwidth": 0.7},
    {"pairing": "zip"},
    {"dependence": "alignment"},
    {"neighbourhood": "chernoff"},
    {"neighbourhood": "released"},
    {"granularity": "anchor"},
    {"granularity": "anchor", "dependence": "alignment"},
]
CASES = [(options, mined) for mined in (False, True) for options in WITHOUT_WAITING[: -1 if mined else None]]
# the last one with pairs is left out: the alignment of the pairs of each class selects them, which waits


def fake_cuda(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
    """Shape, dtype and device without data or a device: whoever looks at the data gets an exception."""
    return torch.empty(shape, dtype=dtype, device="cuda", requires_grad=grad)


@pytest.mark.usefixtures("fake_cuda_works")
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda', but CUDA is not available")
@pytest.mark.parametrize(("options", "mined"), CASES, ids=str)
@pytest.mark.parametrize("with_ref", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_look_at_the_data_on_a_device(options, with_ref, mined, dtype):
    with FakeTensorMode():
        index = torch.int64
        x, y = fake_cuda(40, 3, dtype=dtype, grad=True), fake_cuda(40, dtype=index)
        ref, ref_y = (fake_cuda(50, 3, dtype=dtype), fake_cuda(50, dtype=index)) if with_ref else (None, None)
        indices = tuple(fake_cuda(7, dtype=index) for _ in range(4)) if mined else None
        alpha = AdaptiveMargin(**options)(x, y, indices, ref, ref_y)
        assert alpha.device.type == "cuda"
        assert alpha.shape == ((40,) if options.get("granularity") == "anchor" else ())


@pytest.mark.usefixtures("fake_cuda_works")
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda', but CUDA is not available")
def test_no_look_at_the_data_for_mined_pairs_and_formulas():
    with FakeTensorMode():
        x, y = fake_cuda(40, 3), fake_cuda(40, dtype=torch.int64)
        indices = tuple(fake_cuda(7, dtype=torch.int64) for _ in range(3))
        assert AdaptiveMargin(granularity="pair")(x, y, indices).shape == (7,)
        assert F.empirical_bias_k(x, y).shape == (40,)
        assert F.gaussian_correlation(x[:9], x[9:]).shape == ()
        assert F.gaussian_correlation(x[:9], x[9:], pairing="zip").shape == ()


@pytest.mark.usefixtures("fake_cuda_works")
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda', but CUDA is not available")
def test_what_does_look_at_the_data_is_seen():
    # statistics are floats, all pairs of different labels are as many as the labels say, a plain Dependence selects
    class Plain(Dependence):
        def forward(self, strong, weak):
            return strong.mean() - weak.mean()

    with FakeTensorMode():
        x, y = fake_cuda(40, 3), fake_cuda(40, dtype=torch.int64)
        with pytest.raises(DataDependentOutputException):
            AdaptiveMargin(collect_stats=True)(x, y)
        with pytest.raises(DynamicOutputShapeException):
            AdaptiveMargin(granularity="pair")(x, y)
        with pytest.raises(DynamicOutputShapeException):
            AdaptiveMargin(dependence=Plain())(x, y)


# --- on a device ----------------------------------------------------------------------------------------------------


@pytest.fixture
def _waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_device(call: tuple) -> tuple:
    return tuple(
        tuple(b.cuda() for b in a) if isinstance(a, tuple) else a.cuda() if isinstance(a, torch.Tensor) else a
        for a in call
    )


@pytest.mark.cuda
@pytest.mark.parametrize(("options", "mined"), CASES, ids=str)
@pytest.mark.parametrize("with_ref", [False, True])
def test_on_cuda_as_on_the_cpu_without_waiting(request, options, mined, with_ref):
    x, y = batch(200, 16, 4)
    ref, ref_y = batch(150, 16, 4) if with_ref else (None, None)
    call = (x, y, pairs(y, y if ref_y is None else ref_y) if mined else None, ref, ref_y)
    margin = AdaptiveMargin(**options)
    want = margin(*call)
    moved = on_device(call)
    margin(*moved)  # first calls may set libraries up
    request.getfixturevalue("_waiting_is_an_error")
    got = margin(*moved)
    torch.cuda.set_sync_debug_mode("default")
    assert got.device.type == "cuda"
    assert_close(got.cpu(), want, rtol=0, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("options", [{}, {"dependence": "alignment"}, {"pairing": "zip"}], ids=str)
def test_gradient_on_cuda_without_waiting(request, options):
    x, y = batch(200, 16, 4)
    margin = AdaptiveMargin(detach=False, **options)
    want, got = x.clone().requires_grad_(), x.cuda().requires_grad_()
    margin(want, y).backward()
    y = y.cuda()
    torch.autograd.grad(margin(got, y), got)
    request.getfixturevalue("_waiting_is_an_error")
    margin(got, y).backward()
    torch.cuda.set_sync_debug_mode("default")
    assert_close(got.grad.cpu(), want.grad, rtol=0, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_on_cuda_in_half_precision_and_under_autocast(dtype):
    x, y = batch(200, 16, 4, dtype)
    want = AdaptiveMargin()(x.double(), y)
    with torch.autocast("cuda", dtype=dtype):
        got = AdaptiveMargin(collect_stats=True)(x.cuda(), y.cuda())
    assert_close(got.double().cpu(), want, rtol=0, atol=1e-4)


@pytest.mark.cuda
def test_labels_may_stay_on_the_cpu():
    x, y = batch()
    assert_close(AdaptiveMargin()(x.cuda(), y).cpu(), AdaptiveMargin()(x, y), rtol=0, atol=1e-4)


@pytest.mark.cuda
def test_pairs_on_another_device_are_an_error():
    x, y = batch()
    with pytest.raises(
        ValueError, match=r"indices_tuple must be on cuda:0, got cpu; move it to the embeddings' device"
    ):
        AdaptiveMargin()(x.cuda(), y, pairs(y, y))
