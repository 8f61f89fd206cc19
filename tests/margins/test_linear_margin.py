"""The margin that grows by the calendar."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from adaptive_margin import LinearMargin


def after(epochs: int, **kwargs: float) -> LinearMargin:
    margin = LinearMargin(**kwargs)
    for _ in range(epochs):
        margin.step_epoch()
    return margin


@pytest.mark.parametrize(("epochs", "value"), [(0, 0.1), (1, 0.105), (20, 0.2), (200, 1.1)])
def test_the_papers_line(epochs, value):
    # κ' = 0.1 + 0.005 · epoch
    margin = after(epochs)
    assert math.isclose(margin.value, value, rel_tol=1e-12)
    alpha = margin(torch.randn(3, 2, dtype=torch.float64))
    assert alpha.shape == ()
    assert alpha.item() == margin.value
    assert after(epochs, start=1.0, slope=-0.5).value == 1 - 0.5 * epochs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_in_the_embeddings_dtype(dtype):
    alpha = after(7)(torch.randn(0, 3, dtype=dtype), torch.zeros(0).long())
    assert alpha.dtype == dtype
    assert alpha == torch.tensor(after(7).value, dtype=dtype)


def test_forward_does_not_advance():
    margin = after(3)
    for _ in range(5):
        margin(torch.randn(2, 2))
    assert margin.epoch == 3


def test_the_epoch_survives_a_checkpoint():
    margin = after(13)
    assert list(margin.state_dict()) == ["epoch"]
    file = io.BytesIO()
    torch.save(margin.state_dict(), file)
    file.seek(0)
    again = LinearMargin()
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.value == margin.value
    again.step_epoch()
    assert again.value == after(14).value
    assert margin.epoch == 13
    assert copy.deepcopy(margin).value == margin.value


def test_casting_the_module_keeps_the_epoch():
    margin = after(300).half()  # the epoch is no number to round
    assert margin.value == after(300).value
    assert margin(torch.randn(1, 1)).dtype == torch.float32


@pytest.mark.parametrize("argument", ["start", "slope"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_values(argument, value):
    with pytest.raises(
        ValueError, match=f"{argument} must be finite, got {value}; the paper uses start=0.1, slope=0.005"
    ):
        LinearMargin(**{argument: value})


@pytest.mark.usefixtures("fake_cuda_works")
def test_nothing_waits_for_the_device():
    margin = LinearMargin()
    with FakeTensorMode(allow_non_fake_inputs=True):  # a look at the data of a tensor on a device raises here
        x = torch.empty(3, 2, device="cuda")
        assert margin(x).device.type == "cuda"
        margin.epoch = torch.zeros((), dtype=torch.int64, device="cuda")
        assert margin(x).device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            margin.value  # noqa: B018 - what forward must not do


def test_compiles_as_one_graph():
    margin = after(4)
    compiled = torch.compile(margin, fullgraph=True, backend="eager")
    x = torch.randn(2, 3, dtype=torch.float64)
    assert compiled(x).item() == margin.value
    margin.step_epoch()
    assert compiled(x).item() == after(5).value


def test_repr():
    assert repr(LinearMargin(0.1, 0.01)) == "LinearMargin(start=0.1, slope=0.01)"
