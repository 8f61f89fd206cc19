"""The processes of one run, a single one or those that torchrun started, and how they act as one.

Each holds a share of a global batch. Networks run on the share; their outputs are gathered, and every process computes
the same loss of the whole batch. The backward pass gives each process the gradient of its own rows, and the sum over
processes is the gradient that a single process would get. There is no wrapper around the networks, so inner modules,
methods, partly frozen networks and gradient penalties, which DistributedDataParallel silently handles wrongly, need
nothing special.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ..messages import problem
from ..processes import end_with_parent

T = TypeVar("T")
BUCKET_BYTES = 25 * 2**20  # large enough for full bandwidth, small enough to overlap with the copies


class MainProcessError(RuntimeError):
    """The main process could not do something that the others wait for; the message repeats its error."""


@dataclass(frozen=True)
class World(AbstractContextManager["World"]):
    """The processes of one run. As a context manager it leaves the process group at the end, if it joined the group
    itself.

    Args:
        rank: which process this is, from 0.
        size: the number of processes.
        device: the device of this process.

    Example:
        >>> with World.from_environment(device="cpu") as world:
        ...     world.size, world.is_main, world.shard(10), world.gather(torch.ones(3))
        (1, True, slice(0, 10, None), tensor([1., 1., 1.]))
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    joined: bool = field(default=False, repr=False)

    @classmethod
    def from_environment(cls, device: str | torch.device | None = None, *, timeout_minutes: float = 30) -> World:
        """Joins the processes that torchrun started; without torchrun, a single process.

        CPUs communicate through gloo, CUDA devices through NCCL. A process group that is already initialised is used
        and stays initialised at the end. A process of torchrun's ends when torchrun is gone, after it has saved.

        Args:
            device: ``"cpu"``, ``"cuda"`` (of several, the one of this local rank) or a specific one; None uses CUDA if
                available.
            timeout_minutes: how long a process waits for the others before it fails; a rank may take this long to
                prepare data while the others wait.

        Raises:
            ValueError: see :func:`device_of`.
        """
        local = int(os.environ.get("LOCAL_RANK", "0"))
        chosen = device_of(device, local)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), chosen)
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(device=chosen)
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun is the parent, and may be killed
            end_with_parent()
        limit = datetime.timedelta(minutes=timeout_minutes)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=limit)
        return cls(dist.get_rank(), size, chosen, joined=True)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints output."""
        return self.rank == 0

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.joined and dist.is_initialized():
            if error is None:
                dist.barrier()  # otherwise the first process to finish can tear down what the last one still needs
            dist.destroy_process_group()

    def shard(self, n: int) -> slice:
        """This process's rows of a global batch of ``n``: contiguous, at most one more than any other process has."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def gather(self, tensor: Tensor, total: int | None = None) -> Tensor:
        """The rows of all processes, in the order of ranks; shards may differ in length.

        The backward pass gives this process the unscaled gradient of its own rows, for a loss that every process
        computes in the same way. It cannot be differentiated twice: compute a gradient penalty on the share and gather
        its values.

        Args:
            tensor: shape ``(n, ...)``, any dtype, the same on all processes except for ``n``.
            total: length of the global batch if the shares are those of :meth:`shard`; saves a round of communication.

        Returns:
            Shape ``(N, ...)``.

        Raises:
            ValueError: a 0-dim tensor, or one that is not this process's share of ``total``.
        """
        if tensor.ndim == 0:
            raise ValueError(problem("tensor", "of one or more dimensions", "a scalar", "pass tensor[None]"))
        if total is not None:
            ends = [total * (rank + 1) // self.size for rank in range(self.size)]
            lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
            if lengths[self.rank] != len(tensor):
                expected = f"{lengths[self.rank]} rows, this rank's share of {total}"
                raise ValueError(problem("tensor", expected, len(tensor), "leave out total for other shares"))
        if self.size == 1:
            return tensor
        if total is None:
            mine = torch.tensor([len(tensor)], device=self.device)
            every = [torch.zeros_like(mine) for _ in range(self.size)]
            dist.all_gather(every, mine)
            lengths = torch.cat(every).tolist()
        gathered: Tensor = _Gather.apply(tensor, lengths, self.rank)
        return gathered

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds up the gradients of all processes, after backward: for parameters used before :meth:`gather`.

        Every process passes the same parameters in the same order. A gradient that some processes lack counts as zero
        there; one that all of them lack stays None, as with one process.

        Raises:
            TypeError: a sparse gradient.
        """
        self._reduce(parameters, 1.0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Averages gradients that every process computed whole: for parameters used after :meth:`gather`, such as
        proxies.

        They are equal except for rounding; averaging keeps the parameters of all processes equal to the bit.
        """
        self._reduce(parameters, 1.0 / self.size)

    def broadcast(self, module: nn.Module) -> None:
        """Copies rank 0's parameters and buffers to all processes."""
        if self.size == 1:
            return
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                there = tensor.detach().to(self.device).contiguous()
                dist.broadcast(there, src=0)
                tensor.copy_(there)

    def broadcast_object(self, thing: T) -> T:
        """Rank 0's object, on all of them."""
        if self.size == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def from_main(self, function: Callable[[], T]) -> T:
        """What a function returns on rank 0, where alone it is called, on all of them.

        Raises:
            MainProcessError: on the other ranks, if rank 0 raises anything, so that none of them waits forever.
        """
        if self.size == 1:
            return function()
        found: Any = None
        error: BaseException | None = None
        if self.is_main:
            try:
                found = function()
            except BaseException as raised:
                error = raised
        found, why = self.broadcast_object((found, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        if why is not None:
            raise MainProcessError(f"the main process stopped: {why}")
        return found  # type: ignore[no-any-return]

    def gather_object(self, thing: T) -> list[T]:
        """The objects of all processes, in the order of ranks, on all of them."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        number = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return bool(number.item())

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.size > 1:
            dist.barrier()

    def _reduce(self, parameters: Iterable[nn.Parameter], scale: float) -> None:
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in wanted):
            raise TypeError(problem("parameters", "with dense gradients", "a sparse one", "use sparse=False"))
        if self.size == 1:
            return
        flying = []
        for bucket in _buckets(wanted):  # the layout follows from the parameters alone: it is the same on all ranks
            flags = torch.tensor([0.0 if parameter.grad is None else 1.0 for parameter in bucket])
            parts = [torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in bucket]
            flat = torch.cat([*parts, flags.to(parts[0])])
            flying.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, handle in flying:
            handle.wait()
            sizes = [parameter.numel() for parameter in bucket]
            *pieces, flags = torch.split(flat, [*sizes, len(bucket)])
            for place, (parameter, piece) in enumerate(zip(bucket, pieces, strict=True)):
                if parameter.grad is not None:
                    parameter.grad.copy_(piece.view_as(parameter)).mul_(scale)
                elif flags[place] > 0:  # only here is the device waited for
                    parameter.grad = piece.view_as(parameter).mul(scale)


def device_of(device: str | torch.device | None = None, local: int = 0) -> torch.device:
    """The device that a name stands for, ``"cuda:1"`` for instance; None means CUDA if available.

    ``local`` is the number of this process on its machine, and of its GPU if ``device`` has none.

    Raises:
        ValueError: PyTorch does not know the device, or this machine has none; or it has more processes than GPUs.

    Example:
        >>> device_of("gpu")
        Traceback (most recent call last):
        ValueError: device must be cpu, cuda or cuda:0, got 'gpu'; pass device cpu
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if chosen.type != "cuda":
            torch.empty(1, device=chosen)
            return chosen
    except (RuntimeError, NotImplementedError, AssertionError):  # the last by builds without the device
        raise ValueError(problem("device", "cpu, cuda or cuda:0", repr(str(device)), "pass device cpu")) from None
    count, index = torch.cuda.device_count(), local if chosen.index is None else chosen.index
    if not count:
        expected = "cpu where PyTorch sees no CUDA device"
        raise ValueError(problem("device", expected, repr(str(device)), "pass device cpu"))
    if index >= count:
        remedy = f"torchrun --nproc-per-node {count}" if chosen.index is None else f"the last is cuda:{count - 1}"
        raise ValueError(problem("device", f"one of {count} CUDA devices", f"number {index}", remedy))
    return torch.device("cuda", index)


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Groups of adjacent tensors with the same dtype and device, up to :data:`BUCKET_BYTES` each."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        last = buckets[-1][0] if buckets else None
        if last is None or size > room or (last.dtype, last.device) != (parameter.dtype, parameter.device):
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(parameter)
        room -= size
    return buckets


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, lengths: list[int], rank: int) -> Tensor:
        ctx.rows = slice(sum(lengths[:rank]), sum(lengths[: rank + 1]))
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)  # bytes travel, whatever their dtype
        row = tensor.element_size() * tensor.shape[1:].numel()
        longest = torch.zeros(row * max(lengths), dtype=torch.uint8, device=tensor.device)
        longest[: raw.numel()] = raw
        every = [torch.empty_like(longest) for _ in lengths]
        dist.all_gather(every, longest)
        shards = [
            one[: row * length].view(tensor.dtype).view(length, *tensor.shape[1:])
            for one, length in zip(every, lengths, strict=True)
        ]
        return torch.cat(shards)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.rows], None, None


class _Sum(torch.autograd.Function):
    """Sum over processes; its gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone().contiguous()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(gradient)
        return total


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the batch of all processes, on the CPU, where PyTorch's SyncBatchNorm does not work.

    Output, gradients and running statistics are those of one process with the whole batch. Made by
    :func:`synchronise_batch_norm`; the parameters' gradients are those of the share and must be summed like all others.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(problem("input", "of shape (n, C, ...)", tuple(input.shape), "pass a batch"))

    def forward(self, input: Tensor) -> Tensor:
        """Normalises a share, shape ``(n, C, ...)``.

        Raises:
            ValueError: there is only one value per channel in the whole batch.
        """
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None and self.running_var is not None:
            stored: Tensor = super().forward(input)  # nothing to share
            return stored
        x = input if input.dtype == torch.float64 else input.float()
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        here = x.new_tensor([x.numel() // max(1, x.shape[1])])
        sums = _Sum.apply(torch.cat([x.sum(axes), here]))
        count = sums[-1].detach()
        if self.training and count <= 1:
            raise ValueError(
                problem("input", "more than 1 value per channel over all processes", 1, "use a larger batch")
            )
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(axes)) / count
        if self.training:
            self._remember(mean.detach(), (variance * (count / (count - 1))).detach())
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        normalised: Tensor = y.to(input.dtype)
        return normalised

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def synchronise_batch_norm(module: nn.Module, world: World) -> nn.Module:
    """Makes every batch norm in a module use the statistics of the batch of all processes.

    Parameters and buffers stay the same objects with the same names, so optimisers and checkpoints are not affected. On
    CUDA this uses PyTorch's SyncBatchNorm, on the CPU :class:`GlobalBatchNorm`; in a single process nothing changes.

    Args:
        module: searched to any depth; changed in place.
        world: the processes.

    Returns:
        The module; a different one only if ``module`` itself is a batch norm.

    Raises:
        ValueError: a batch norm with a custom forward, such as timm's BatchNormAct2d, whose activation either
            replacement would drop; nothing has been changed.
    """
    if world.size == 1:
        return module
    known = (_BatchNorm.forward, nn.SyncBatchNorm.forward, GlobalBatchNorm.forward)
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm) and type(norm).forward not in known:
            got = f"{type(norm).__name__} with a forward of its own" + (f" at {name}" if name else "")
            remedy = "train it in one process, or choose a network with plain batch norms"
            raise ValueError(problem("module", "without batch norms that do more than PyTorch's", got, remedy))
    return _synchronised(module, world)


def _synchronised(module: nn.Module, world: World) -> nn.Module:
    if world.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(module, _BatchNorm) and not isinstance(module, GlobalBatchNorm):
        known = GlobalBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        known._parameters, known._buffers, known.training = module._parameters, module._buffers, module.training
        return known
    for name, child in module.named_children():
        setattr(module, name, _synchronised(child, world))
    return module
