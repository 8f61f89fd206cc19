"""The numpy path of small batches against the general one, which it must not be told from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_margin import AdaptiveMargin
from adaptive_margin.functional import small_batch as module
from adaptive_margin.functional.neighbourhood import hoeffding_significant
from adaptive_margin.functional.small_batch import MOST_ENTRIES, small_batch
from adaptive_margin.margins import GaussianCorrelation

STATS = ("mi", "eta", "delta", "k", "alpha")


def _both_ways(margin: AdaptiveMargin, x: torch.Tensor, labels: torch.Tensor) -> tuple[list[float], list[float]]:
    """The margin and its statistics on the numpy path and on the general one."""
    margin.collect_stats = True
    found = [float(margin(x, labels)), *(getattr(margin, name) for name in STATS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_ENTRIES", 0)
        general = [float(margin(x, labels)), *(getattr(margin, name) for name in STATS)]
    return found, general


@given(
    rows=st.integers(2, 90),
    features=st.integers(1, 40),
    classes=st.integers(1, 30),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
    offset=st.sampled_from([0.0, 5.0]),
    options=st.fixed_dictionaries(
        {
            "neighbourhood": st.sampled_from(["hoeffding", "chernoff", "released"]),
            "bandwidth": st.sampled_from(["std", 0.5, 1e-12, 1e12]),
            "max_mi": st.sampled_from([2.5, 0.7]),  # without a cap a correlation of 1 is as large as its rounding
            "confidence": st.sampled_from([0.05, 1.0]),
        }
    ),
    seed=st.integers(0, 999),
)
def test_it_is_the_general_path(
    rows: int,
    features: int,
    classes: int,
    dtype: torch.dtype,
    scale: float,
    offset: float,
    options: dict[str, Any],
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=generator) * 7 - 3
    x = torch.randn(rows, features, generator=generator) + offset + labels[:, None] % 5
    if options["bandwidth"] == 0.5:  # far wider than the entries, g is 1 but for its rounding, which both paths have
        options = {**options, "bandwidth": 0.5 * scale}
    found, general = _both_ways(AdaptiveMargin(**options), (x * scale).to(dtype), labels)
    assert found == pytest.approx(general, rel=1e-4, abs=1e-5)


def _batch(rows: int = 64, features: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, features, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(rows) % 2
    return x + 3.0 * labels[:, None], labels


def _found(x: torch.Tensor, labels: torch.Tensor, **changes: Any) -> module.SmallBatch | None:
    options = {"bandwidth": "std", "confidence": 0.05, "significant": hoeffding_significant, **changes}
    return small_batch(x, labels, torch.tensor(8.0, dtype=x.dtype), **options)


def test_it_takes_a_plain_batch() -> None:
    x, labels = _batch()
    found = _found(x, labels)
    assert found is not None
    assert found.weights.tolist() == [0.5, 0.5]
    assert found.sizes.min() < 63  # two heaps, three deviations apart: neighbourhoods are pure somewhere


@pytest.mark.parametrize("why", ["copies", "too near", "gradient", "own bound", "one row", "many entries"])
def test_it_leaves_to_the_general_path(why: str) -> None:
    x, labels = _batch()
    changes: dict[str, Any] = {}
    if why == "copies":
        x[5] = x[9]
    elif why == "too near":
        x[5] = x[9] * (1 + torch.finfo(x.dtype).eps)
    elif why == "gradient":
        x.requires_grad_()
    elif why == "own bound":
        changes["significant"] = lambda share, k, n, labels, confidence: share > 0.5
    elif why == "one row":
        x, labels = x[:1], labels[:1]
    else:
        x, labels = _batch(2, MOST_ENTRIES // 2 + 1)
    assert _found(x, labels, **changes) is None
    if why not in ("own bound", "gradient"):
        assert torch.isfinite(AdaptiveMargin()(x, labels))


def test_a_subclass_of_the_correlation_is_asked() -> None:
    class Nothing(GaussianCorrelation):
        def of_classes(
            self, g: torch.Tensor, index: torch.Tensor, ref_g: torch.Tensor, ref_index: torch.Tensor, classes: int
        ) -> torch.Tensor:
            return g.new_zeros(classes)

    x, labels = _batch()
    margin = AdaptiveMargin(dependence=Nothing(), collect_stats=True)
    margin(x, labels)
    assert margin.mi == 0.0
    assert margin.delta > 0.0


def test_it_changes_nothing_it_is_given() -> None:
    x, labels = _batch()
    before, labels_before = x.clone(), labels.clone()
    AdaptiveMargin()(x, labels)
    assert torch.equal(x, before)
    assert torch.equal(labels, labels_before)


def test_the_gradient_of_a_margin_that_has_one_goes_the_general_way() -> None:
    x, labels = _batch()
    x.requires_grad_()
    alpha = AdaptiveMargin(detach=False)(x, labels)
    (gradient,) = torch.autograd.grad(alpha, x)
    assert np.isfinite(gradient.numpy()).all()
    assert float(alpha.detach()) == pytest.approx(float(AdaptiveMargin()(x, labels)), rel=1e-4)
