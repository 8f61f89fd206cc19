"""Labels as indices, sums of groups: against torch.unique and loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.testing import assert_close

from adaptive_margin.functional.groups import group_index, group_slots, group_sums


def test_index_by_hand():
    assert group_index(torch.tensor([7, -1, 7, 40, -1])).tolist() == [1, 0, 1, 2, 0]
    assert group_index(torch.tensor([5])).tolist() == [0]
    assert group_index(torch.tensor([3, 3])).tolist() == [0, 0]


@given(st.lists(st.sampled_from([-(2**62), -3, -1, 0, 1, 2, 7, 2**62]), max_size=12))
def test_index_is_the_inverse_of_unique(labels):
    y = torch.tensor(labels, dtype=torch.int64)
    index = group_index(y)
    assert index.dtype == torch.int64
    assert torch.equal(index, torch.unique(y, return_inverse=True)[1])
    assert group_slots(index, len(index)) == len(set(labels))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_index_of_narrow_labels(dtype):
    y = (torch.arange(700) % 2).to(dtype)  # more rows than a byte can count
    assert torch.equal(group_index(y), torch.arange(700) % 2)
    y = torch.arange(120).flip(0).to(dtype) if dtype != torch.bool else torch.tensor([True, False])
    assert torch.equal(group_index(y), torch.arange(len(y)).flip(0))


def test_index_of_nothing():
    index = group_index(torch.empty(0, dtype=torch.int32))
    assert index.shape == (0,)
    assert index.dtype == torch.int64
    assert group_slots(index, 0) == 0


@pytest.mark.parametrize("shape", [(5,), (5, 3)])
def test_sums_match_the_loop(shape):
    x, index = torch.randn(shape, dtype=torch.float64), torch.tensor([2, 0, 2, 2, 0])
    sums = group_sums(x, index, 4)
    for c in range(4):
        want = torch.zeros(shape[1:], dtype=torch.float64)
        for i in range(5):
            if index[i] == c:
                want = want + x[i]
        assert_close(sums[c], want)


def test_sums_are_exact_enough_to_subtract():
    # in float32 the ones are lost beside 2²⁵
    x = torch.cat([torch.full((1, 1), 2.0**25), torch.ones(10, 1)])
    sums = group_sums(x, torch.zeros(11, dtype=torch.int64), 1)
    assert sums.dtype == torch.float64
    assert sums.item() - 2.0**25 == 10


def test_sums_of_more_than_one_part():
    x, index = torch.rand(5, 400_000), torch.tensor([0, 1, 0, 1, 1])  # two rows a part, the last part of one
    sums = group_sums(x, index, 2)
    assert_close(sums, torch.stack([x[index == c].double().sum(0) for c in range(2)]))


def test_sums_of_nothing():
    assert torch.equal(group_sums(torch.empty(0, 2), torch.empty(0, dtype=torch.int64), 3), torch.zeros(3, 2).double())
    assert group_sums(torch.rand(3, 2), torch.zeros(3, dtype=torch.int64), 1, torch.float32).dtype == torch.float32


def test_sums_have_a_gradient():
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda v: group_sums(v, torch.tensor([0, 2, 0, 1, 2]), 3), (x,))
