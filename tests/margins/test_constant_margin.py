"""The margin that stays."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.utils import common_functions as c_f

from adaptive_margin import ConstantMargin, Margin


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_is_its_value_in_the_embeddings_dtype(dtype):
    margin = ConstantMargin(0.3)
    for rows in (0, 1, 5):
        alpha = margin(torch.randn(rows, 3, dtype=dtype), torch.zeros(rows).long())
        assert alpha.shape == ()
        assert alpha.dtype == dtype
        assert alpha == torch.tensor(0.3, dtype=dtype)
    assert ConstantMargin()(torch.randn(2, 3, dtype=torch.float64)).item() == 0.2  # the paper's best
    assert ConstantMargin(-1)(torch.randn(2, 3)).item() == -1


def test_is_a_margin_of_the_losss_own_unit():
    margin = ConstantMargin(0.3)
    assert isinstance(margin, Margin)
    assert margin.unit == "own"
    assert margin.granularity == "batch"
    assert repr(margin) == "ConstantMargin(value=0.3)"
    assert margin._record_these == ["value"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_value(value):
    with pytest.raises(ValueError, match=f"value must be finite, got {value}; the paper's best constant is 0.2"):
        ConstantMargin(value)


@pytest.mark.parametrize("collect", [True, False])
def test_collects_as_the_host_says(monkeypatch, collect):
    monkeypatch.setattr(c_f, "COLLECT_STATS", collect)
    assert ConstantMargin().collect_stats is collect
    assert ConstantMargin(collect_stats=not collect).collect_stats is not collect


def test_has_nothing_to_save():
    assert ConstantMargin(0.7).state_dict() == {}
