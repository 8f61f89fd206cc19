"""One step: its order, its precision, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adaptive_margin.training import World, autocast, backward_and_step, gradient_scaler

CPU = torch.device("cpu")


def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def loss_of(model: nn.Module) -> torch.Tensor:
    value: torch.Tensor = model(torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])).square().sum()
    return value


def test_a_plain_step() -> None:
    ours, theirs = net(), net()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    other = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(3):
        norm = backward_and_step(
            loss_of(ours), optimizer, parameters_before_gather=ours.parameters(), world=World(), clip_norm=0.5
        )
        other.zero_grad()
        loss_of(theirs).backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        other.step()
        assert norm is not None
        assert torch.equal(norm, expected)
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.weight.grad is not None
    assert float(ours.weight.grad.norm()) < 0.51
    unclipped = backward_and_step(
        loss_of(ours), optimizer, parameters_before_gather=ours.parameters(), world=World(), clip_norm=None
    )
    assert unclipped is None


def test_scaled_gradients_are_unscaled_before_they_are_clipped() -> None:
    ours, theirs = net(), net()
    scaler = gradient_scaler(CPU, "float16")
    assert scaler is not None
    options = {"world": World(), "clip_norm": 0.5}
    optimizer, other = (torch.optim.SGD(x.parameters(), lr=0.1) for x in (ours, theirs))
    norm = backward_and_step(
        loss_of(ours), optimizer, parameters_before_gather=ours.parameters(), scaler=scaler, **options
    )
    expected = backward_and_step(loss_of(theirs), other, parameters_before_gather=theirs.parameters(), **options)
    assert norm is not None
    assert_close(norm, expected)
    assert_close(ours.weight, theirs.weight)


def test_two_optimisers_share_one_scaled_step() -> None:
    ours, theirs = net(), net()
    scaler = gradient_scaler(CPU, "float16")
    for model, scale in ((ours, scaler), (theirs, None)):
        optimizers = [torch.optim.Adam([model.weight], lr=0.1), torch.optim.SGD([model.bias], lr=0.1)]
        for _ in range(3):  # the second would multiply its gradients by 65,536 if nobody unscaled them
            backward_and_step(
                loss_of(model),
                optimizers,
                parameters_before_gather=[model.weight],
                parameters_after_gather=[model.bias],
                world=World(),
                scaler=scale,
            )
    assert_close(ours.weight, theirs.weight)
    assert_close(ours.bias, theirs.bias)


def test_an_optimiser_without_gradients_waits() -> None:
    model, boundary = net(), torch.nn.Parameter(torch.ones(2))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD([boundary], lr=0.1)]
    options: dict[str, Any] = {"world": World(), "scaler": gradient_scaler(CPU, "float16")}
    options |= {"parameters_before_gather": model.parameters(), "parameters_after_gather": [boundary]}
    before = model.weight.detach().clone()
    backward_and_step(loss_of(model), optimizers, **options)  # no pair was active: the loss does not know the boundary
    assert not torch.equal(model.weight, before)
    assert torch.equal(boundary, torch.ones(2))
    nothing = torch.zeros((), requires_grad=True)
    for _ in range(2):  # nobody has gradients: the scaler is not left between two steps
        backward_and_step(nothing * 1, optimizers, **(options | {"parameters_before_gather": model.parameters()}))
    backward_and_step(loss_of(model), optimizers, **(options | {"parameters_before_gather": model.parameters()}))


def test_an_overflow_leaves_the_step_out() -> None:
    model = net()
    before = model.weight.detach().clone()
    scaler = gradient_scaler(CPU, "float16")
    assert scaler is not None
    optimizer = torch.optim.Adam(model.parameters())
    backward_and_step(
        loss_of(model) * 1e38,
        optimizer,
        parameters_before_gather=model.parameters(),
        world=World(),
        scaler=scaler,
        clip_norm=1.0,
    )
    assert torch.equal(model.weight, before)
    assert scaler.state_dict()["scale"] == 2.0**15  # half of what it was


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_precisions(precision: str, dtype: torch.dtype) -> None:
    with autocast(CPU, precision):  # type: ignore[arg-type]
        assert net()(torch.ones(2, 3)).dtype == dtype
    assert (gradient_scaler(CPU, precision) is None) == (precision != "float16")  # type: ignore[arg-type]


def test_an_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision must be float32, bfloat16 or float16, got half"):
        autocast(CPU, "half")  # type: ignore[arg-type]


def test_parameters_that_would_drift_apart() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    message = "got 1 that were not given, and 0 given that it lacks"
    with pytest.raises(ValueError, match=message):
        backward_and_step(loss_of(model), optimizer, parameters_before_gather=[model.weight], world=World())
    with pytest.raises(ValueError, match="one twice"):
        backward_and_step(
            loss_of(model),
            optimizer,
            parameters_before_gather=model.parameters(),
            parameters_after_gather=[model.bias],
            world=World(),
        )
    other = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="1 given that it lacks"):
        backward_and_step(
            loss_of(model),
            optimizer,
            parameters_before_gather=model.parameters(),
            parameters_after_gather=[other],
            world=World(),
        )
