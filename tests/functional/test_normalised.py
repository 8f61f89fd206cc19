"""Rows of length 1: torch's own, with a gradient that says that it has none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.testing import assert_close

from adaptive_margin.functional.normalised import normalised


@given(
    rows=st.integers(0, 9),
    features=st.integers(1, 9),
    power=st.integers(-30, 15),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_it_is_torchs_own_at_any_scale(rows: int, features: int, power: int, dtype: torch.dtype) -> None:
    x = torch.randn(rows, features, dtype=dtype) * 10.0**power
    x[:1] = 0
    weights = torch.randn(rows, features, dtype=dtype)
    found = []
    for function in (normalised, normalize):
        given = x.clone().requires_grad_()
        unit = function(given)
        found.append((unit, *torch.autograd.grad((unit * weights).sum(), given)))
    scale = max(1.0, 10.0**-power)
    assert_close(found[0][0], found[1][0])
    assert_close(found[0][1] / scale, found[1][1] / scale, atol=1e-5, rtol=1e-4)


def test_its_gradient_is_checked_by_differences() -> None:
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalised, x)


def test_gradients_of_many_rows_at_once_and_of_infinity() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    unit, many = normalised(x), torch.randn(4, 5, 3)
    (found,) = torch.autograd.grad(unit, x, many, is_grads_batched=True, retain_graph=True)
    for each, grad in zip(found, many, strict=True):
        assert_close(each, torch.autograd.grad(unit, x, grad, retain_graph=True)[0])
    with np.errstate(all="raise"):
        (unit * math.inf).sum().backward()
    assert x.grad is not None
    assert x.grad.isnan().all()


def test_a_second_derivative_is_an_error() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(normalised(x)[:, 0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.square().sum().backward()


def test_a_view_with_a_pending_sign_is_read_as_it_is() -> None:
    x = torch.randn(5, 3, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    assert_close(normalised(x), normalize(x.clone()))
