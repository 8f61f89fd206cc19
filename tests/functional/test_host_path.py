"""On a CPU much is left to numpy: the result must not be told from that of the code for devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_margin import AdaptiveMargin
from adaptive_margin.functional import dependence, neighbourhood, own_neighbours
from adaptive_margin.margins import GaussianCorrelation

STATS = ("mi", "eta", "delta", "k", "alpha")


def _both_ways(margin: AdaptiveMargin, *batch: Any) -> tuple[list[float], list[float]]:
    """The margin and its statistics by numpy and by torch."""
    margin.collect_stats = True
    found = [float(margin(*batch)), *(getattr(margin, name) for name in STATS)]
    with pytest.MonkeyPatch.context() as patch:
        for module in (dependence, neighbourhood, own_neighbours):
            patch.setattr(module, "is_blind", lambda x: True)
        general = [float(margin(*batch)), *(getattr(margin, name) for name in STATS)]
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
            "neighbourhood": st.sampled_from(["hoeffding", "chernoff", "released", "remaining"]),
            "bandwidth": st.sampled_from(["std", 0.5, 1e-12, 1e12]),
            "max_mi": st.sampled_from([2.5, 0.7]),  # without a cap a correlation of 1 is as large as its rounding
            "confidence": st.sampled_from([0.05, 1.0]),
        }
    ),
    reference=st.booleans(),
    copies=st.booleans(),
    seed=st.integers(0, 999),
)
def test_it_is_the_path_of_devices(
    rows: int,
    features: int,
    classes: int,
    dtype: torch.dtype,
    scale: float,
    offset: float,
    options: dict[str, Any],
    reference: bool,
    copies: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=generator) * 7 - 3
    x = torch.randn(rows, features, generator=generator) + offset + labels[:, None] % 5
    x[: rows // 3] = x[: rows // 3] if not copies else x[-1]
    if options["bandwidth"] == 0.5:  # far wider than the entries, g is 1 but for its rounding, which both paths have
        options = {**options, "bandwidth": 0.5 * scale}
    x = (x * scale).to(dtype)
    given_reference = (None, x[rows // 2 :].clone(), labels[rows // 2 :]) if reference else ()
    found, general = _both_ways(AdaptiveMargin(**options), x, labels, *given_reference)
    assert found == pytest.approx(general, rel=1e-4, abs=1e-5)


def _batch(rows: int = 64, features: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, features, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(rows) % 2
    return x + 3.0 * labels[:, None], labels


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


def test_a_margin_with_a_gradient_has_the_same_value() -> None:
    x, labels = _batch()
    x.requires_grad_()
    alpha = AdaptiveMargin(detach=False)(x, labels)
    (gradient,) = torch.autograd.grad(alpha, x)
    assert gradient.isfinite().all()
    assert float(alpha.detach()) == pytest.approx(float(AdaptiveMargin()(x, labels)), rel=1e-4)
