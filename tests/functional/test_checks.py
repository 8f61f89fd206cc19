"""What a caller may pass: every message names argument, expected, got, remedy."""

from __future__ import annotations

import math

import pytest
import torch

from adaptive_margin.functional import checks
from adaptive_margin.messages import problem


def test_the_sentence():
    sentence = problem("margin", "a scalar", "shape (3,)", "pass one number")
    assert sentence == "margin must be a scalar, got shape (3,); pass one number"


@pytest.mark.parametrize("shape", [(0, 1), (1, 1), (4, 7)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_matrices_pass(shape, dtype):
    checks.check_matrix("x", torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (None, TypeError, "x must be a torch.Tensor, got NoneType; convert it with torch.as_tensor"),
        ([[1.0]], TypeError, "x must be a torch.Tensor, got list; convert it with torch.as_tensor"),
        (
            torch.zeros(()),
            ValueError,
            r"x must be a matrix of shape \(rows, features\).*, got shape \(\); pass one row",
        ),
        (torch.zeros(3), ValueError, r"x must be a matrix .* got shape \(3,\); pass one row per sample"),
        (torch.zeros(2, 3, 4), ValueError, r"x must be a matrix .* got shape \(2, 3, 4\); pass one row per sample"),
        (torch.zeros(2, 0), ValueError, r"x must be .* with at least one feature, got shape \(2, 0\); pass one row"),
        (
            torch.zeros(2, 2, dtype=torch.int64),
            TypeError,
            r"x must be floating point, got torch.int64; convert .* x.float",
        ),
        (torch.zeros(2, 2, dtype=torch.complex64), TypeError, r"x must be floating point, got torch.complex64; "),
        (torch.zeros(2, 2, dtype=torch.bool), TypeError, r"x must be floating point, got torch.bool; "),
    ],
)
def test_not_a_matrix(x, error, message):
    with pytest.raises(error, match=message):
        checks.check_matrix("x", x)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_not_finite(bad, dtype):
    x = torch.ones(3, 4, dtype=dtype)
    x[1, 2] = x[2, 0] = bad
    message = (
        r"z must be finite, got 2 NaN or infinite of 12 values, the first at \(1, 2\); look for a diverged network"
    )
    with pytest.raises(ValueError, match=message):
        checks.check_finite("z", x)
    with pytest.raises(ValueError, match=message):
        checks.largest_magnitude("z", x)


def test_largest_magnitude():
    assert checks.largest_magnitude("x", torch.tensor([[1.0, -7.0], [2.0, 3.0]])) == 7
    assert checks.largest_magnitude("x", torch.zeros(2, 2)) == 0
    assert checks.largest_magnitude("x", torch.empty(0, 2)) == 0
    largest = torch.finfo(torch.float32).max
    assert (
        checks.largest_magnitude("x", torch.tensor([[-largest, largest]])) == largest
    )  # finite, though its square is not
    assert not checks.largest_magnitude("x", torch.ones(1, 1, requires_grad=True)).requires_grad


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64], ids=str)
def test_labels_pass(dtype):
    checks.check_labels("labels", torch.ones(3, dtype=dtype), 3)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 1, 0], TypeError, "labels must be a torch.Tensor, got list; convert it with torch.as_tensor"),
        (None, TypeError, "labels must be a torch.Tensor, got NoneType; "),
        (torch.zeros(3, 1).long(), ValueError, r"labels must be one-dimensional, got shape \(3, 1\); pass one integer"),
        (torch.tensor(1), ValueError, r"labels must be one-dimensional, got shape \(\); "),
        (
            torch.zeros(2).long(),
            ValueError,
            r"labels must be as long as z \(3 rows\), got 2 labels; pass one label per row of z",
        ),
        (
            torch.zeros(3),
            TypeError,
            "labels must be integers, got torch.float32; group continuous targets first, with Otsu",
        ),
        (torch.zeros(3, dtype=torch.complex64), TypeError, "labels must be integers, got torch.complex64; "),
    ],
)
def test_bad_labels(labels, error, message):
    with pytest.raises(error, match=message):
        checks.check_labels("labels", labels, 3, of="z")


def test_features_must_agree():
    checks.check_same_features("ref_emb", torch.zeros(1, 3), "embeddings", torch.zeros(5, 3))
    message = "ref_emb must be of the 3 features of embeddings, got 2 features; embed both with the same network"
    with pytest.raises(ValueError, match=message):
        checks.check_same_features("ref_emb", torch.zeros(1, 2), "embeddings", torch.zeros(5, 3))


@pytest.mark.parametrize("number", [1, 0.5, True, torch.tensor(2.0)])
def test_numbers_pass(number):
    checks.check_number("value", number, "a number", "pass one")


@pytest.mark.parametrize("number", [None, "1", [1.0], torch.ones(2), 1j])
def test_not_a_number(number):
    with pytest.raises(TypeError, match=r"value must be a positive number, got .*; pass one"):
        checks.check_number("value", number, "a positive number", "pass one")


@pytest.mark.parametrize("indices", [[], [0], [0, 4, 2, 2]])
def test_indices_pass(indices):
    checks.check_indices("indices_tuple", torch.tensor(indices, dtype=torch.int64), 5, of="embeddings")


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (torch.tensor([0, 5, 7]), ValueError, r"a must be in \[0, 5\) for the 5 rows of z, got 0 to 7; "),
        (torch.tensor([-1, 2]), ValueError, r"a must be in \[0, 5\) for the 5 rows of z, got -1 to 2; "),
        (torch.tensor([0.0]), TypeError, r"a must be a one-dimensional tensor of integers, got torch.float32 .*; "),
        (torch.tensor([True]), TypeError, r"a must be a one-dimensional tensor of integers, got torch.bool .*; "),
        (torch.tensor([[0]]), ValueError, r"a must be a one-dimensional tensor of integers, got .* \(1, 1\); "),
        ([0, 1], TypeError, r"a must be a one-dimensional tensor of integers, got list; "),
    ],
)
def test_bad_indices(indices, error, message):
    with pytest.raises(error, match=message):
        checks.check_indices("a", indices, 5, of="z")
