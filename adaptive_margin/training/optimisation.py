"""One optimiser step, the same on one process and on many, in full and in mixed precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from ..choices import Precision as Precision
from ..messages import problem
from .world import World


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which networks and losses run: PyTorch's mixed precision, or nothing for ``"float32"``.

    Example:
        >>> with autocast(torch.device("cpu"), "bfloat16"):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    if precision not in ("float32", "bfloat16", "float16"):
        raise ValueError(problem("precision", "float32, bfloat16 or float16", precision, "bfloat16 needs no scaler"))
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


def gradient_scaler(device: torch.device, precision: Precision) -> GradScaler | None:
    """The scaler that keeps small gradients from vanishing in ``"float16"``; None if none is needed.

    Its ``state_dict()`` belongs in checkpoints.
    """
    return GradScaler(device.type) if precision == "float16" else None


def backward_and_step(
    loss: Tensor,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    parameters_before_gather: Iterable[nn.Parameter],
    parameters_after_gather: Iterable[nn.Parameter] = (),
    world: World,
    scaler: GradScaler | None = None,
    clip_norm: float | None = None,
) -> Tensor | None:
    """Clears old gradients, runs the backward pass, combines the gradients of all processes, clips, and steps.

    Args:
        loss: scalar, of the global batch, the same on every process.
        optimizer: optimiser of exactly these parameters, or several optimisers that divide them among themselves.
        parameters_before_gather: parameters of networks that saw this process's share: gradients are summed over
            processes.
        parameters_after_gather: parameters used on the global batch, such as proxies or a learned margin: gradients are
            averaged.
        world: the processes.
        scaler: from :func:`gradient_scaler`. A step whose gradients overflow is skipped on all processes.
        clip_norm: maximum Euclidean norm of all gradients together, after combining and unscaling.

    Returns:
        The gradients' norm before clipping, a scalar tensor; None without ``clip_norm``.

    Raises:
        ValueError: the optimiser's parameters are not those given: with several processes, the others would silently
            diverge.

    Example:
        >>> net = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> loss = net(torch.ones(2, 3)).square().mean()
        >>> norm = backward_and_step(
        ...     loss, optimizer, parameters_before_gather=net.parameters(), world=World(), clip_norm=1.0
        ... )
    """
    before, after = list(parameters_before_gather), list(parameters_after_gather)
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    given = [id(parameter) for parameter in [*before, *after]]
    owned = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    if len(given) != len(set(given)):
        raise ValueError(problem("parameters", "given once each", "one twice", "before gather, or after it"))
    if owned != set(given):
        got = f"{len(owned - set(given))} that were not given, and {len(set(given) - owned)} given that it lacks"
        expected = "an optimiser of the parameters before and after gather"
        raise ValueError(problem("optimizer", expected, got, "pass all of its parameters, and no others"))

    scaler = scaler or GradScaler(enabled=False)
    for each in optimizers:
        each.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    world.sum_gradients(before)
    world.average_gradients(after)
    active = [o for o in optimizers if any(p.grad is not None for group in o.param_groups for p in group["params"])]
    for each in active:  # the scaler refuses an optimiser whose parameters the loss knows nothing of
        scaler.unscale_(each)
    norm = nn.utils.clip_grad_norm_([*before, *after], clip_norm) if clip_norm is not None else None
    for each in active:
        scaler.step(each)
    if active:
        scaler.update()
    return norm
