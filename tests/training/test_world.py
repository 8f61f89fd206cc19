"""Two processes with a share each, against one with the whole batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from adaptive_margin import ContrastiveVDMLoss
from adaptive_margin.training import GlobalBatchNorm, World, backward_and_step, synchronise_batch_norm
from adaptive_margin.training.world import _buckets
from tests.platforms import needs_processes

from .processes import in_ranks

ROWS = 9  # 4 and 5
TOL = {"rtol": 0.0, "atol": 1e-12}


class Parts(nn.Module):
    """What a trainer holds: an encoder with batch norms, a critic, a head that sees the global batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6)
        )
        self.critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        self.proxies = nn.Parameter(torch.randn(3, 6))
        self.double()


OPTIMIZERS: dict[str, Any] = {  # Adam's step does not know a gradient's scale, SGD's does
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, betas=(0.5, 0.9)),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
}


def train_adversarially(world: World, optimizer: str) -> dict[str, Any]:
    """Critic steps with a gradient penalty, encoder steps against it, and a loss with proxies of the global batch."""
    parts = Parts()
    if world.rank > 0:
        nn.init.zeros_(parts.critic[0].weight)  # broadcasting has something to do
        parts.encoder[1].running_mean.fill_(3.0)
    world.broadcast(parts)
    parts.encoder = synchronise_batch_norm(parts.encoder, world)
    encoder = OPTIMIZERS[optimizer]([*parts.encoder.parameters(), parts.proxies])
    critic = OPTIMIZERS[optimizer](parts.critic.parameters())
    loss_of = ContrastiveVDMLoss()
    losses = []
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(ROWS, 2, 4, 4, generator=generator, dtype=torch.float64)
        labels = torch.tensor([0, 1, 2] * 3)
        mine = world.shard(ROWS)
        features = parts.encoder(images[mine])

        inputs = features.detach().requires_grad_()
        scores = parts.critic(inputs)
        (slopes,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
        penalties = world.gather((slopes.norm(dim=1) - 1).square(), total=ROWS)
        scores = world.gather(scores, total=ROWS)
        gap = scores[labels == 0].mean() - scores[labels != 0].mean()
        backward_and_step(
            gap + 10 * penalties.mean(), critic, parameters_before_gather=parts.critic.parameters(), world=world
        )

        gathered, adversarial = world.gather(features), world.gather(parts.critic(features))
        proxy = torch.cdist(gathered, parts.proxies).gather(1, labels[:, None]).mean()
        loss = loss_of(gathered, labels) + proxy - adversarial[labels != 0].mean()
        backward_and_step(
            loss,
            encoder,
            parameters_before_gather=parts.encoder.parameters(),
            parameters_after_gather=[parts.proxies],
            world=world,
            clip_norm=1.0,
        )
        losses.append(loss.detach())
    return {"state": dict(parts.state_dict()), "losses": torch.stack(losses)}


@needs_processes
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_ranks_train_as_one(tmp_path: Path, optimizer: str) -> None:
    alone = train_adversarially(World(), optimizer)
    first, second = in_ranks(train_adversarially, tmp_path / "ranks", optimizer)
    # A bias before a batch norm has a gradient of 0, which Adam divides by its own size: rounding grows to 1e-10.
    tolerance = {"rtol": 0.0, "atol": 1e-12 if optimizer == "sgd" else 1e-8}
    assert_close(first["losses"], alone["losses"], **tolerance)
    assert list(first["state"]) == list(alone["state"])
    assert_close(first["state"], alone["state"], **tolerance)
    for name, value in first["state"].items():
        assert torch.equal(second["state"][name], value)  # to the bit


def speak(world: World) -> dict[str, Any]:
    """Everything that the ranks tell each other."""
    rank = world.rank
    said: dict[str, Any] = {}
    lengths = {"uneven": (3, 1), "nothing from one": (0, 4), "nothing at all": (0, 0)}
    for name, each in lengths.items():
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool):
            own = (torch.arange(each[rank] * 2).reshape(-1, 2) + 10 * rank).to(dtype)
            said[f"{name} {dtype}"] = world.gather(own)
    wanted = torch.arange(4.0 + rank, requires_grad=True)
    gathered = world.gather(wanted * 2, total=ROWS)
    (gathered * torch.arange(9.0)).sum().backward()
    said["gradient"] = wanted.grad
    strided = torch.arange(12.0).reshape(3, 4).t()[:, 1:]
    said["strided"] = world.gather(strided)
    for wrong, total in ((torch.tensor(1.0), None), (torch.ones(3), ROWS)):
        with pytest.raises(ValueError, match="tensor must be"):
            world.gather(wrong, total)
    again = torch.ones(2, requires_grad=True)
    (slope,) = torch.autograd.grad(world.gather(again).square().sum(), again, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
    said["objects"] = world.gather_object({"rank": rank}), world.broadcast_object(f"from {rank}")
    said["any"] = world.any(rank == 1), world.any(False)
    said["main"] = world.is_main

    a, b, c, d = (nn.Parameter(torch.zeros(3)) for _ in range(4))
    d.requires_grad_(False)
    a.grad = torch.full((3,), 1.0 + rank)
    if rank == 1:
        b.grad = torch.ones(3)
    world.sum_gradients([a, b, c, d])
    said["sums"] = a.grad, b.grad, c.grad
    a.grad = torch.full((3,), 1.0 + rank)
    world.average_gradients([a, c])
    said["average"] = a.grad, c.grad
    large = [nn.Parameter(torch.zeros(9, dtype=torch.float64)), nn.Parameter(torch.zeros(2, 2))]
    for parameter in large:
        parameter.grad = torch.arange(parameter.numel(), dtype=parameter.dtype).reshape(parameter.shape) * (rank + 1)
    world.sum_gradients(iter(large))
    said["mixed dtypes"] = [parameter.grad for parameter in large]
    return said


@needs_processes
def test_what_ranks_tell_each_other(tmp_path: Path) -> None:
    both = in_ranks(speak, tmp_path / "ranks")
    for said in both:
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool):
            expected = torch.tensor([[0, 1], [2, 3], [4, 5], [10, 11]]).to(dtype)
            assert torch.equal(said[f"uneven {dtype}"], expected)
            assert torch.equal(said[f"nothing from one {dtype}"], torch.arange(10, 18).reshape(4, 2).to(dtype))
            assert said[f"nothing at all {dtype}"].shape == (0, 2)
            assert said[f"nothing at all {dtype}"].dtype == dtype
        assert said["objects"] == ([{"rank": 0}, {"rank": 1}], "from 0")
        assert said["any"] == (True, False)
        assert torch.equal(said["strided"], torch.arange(12.0).reshape(3, 4).t()[:, 1:].repeat(2, 1))
        assert [None if x is None else x.tolist() for x in said["sums"]] == [[3.0] * 3, [1.0] * 3, None]
        assert [None if x is None else x.tolist() for x in said["average"]] == [[1.5] * 3, None]
        assert torch.equal(said["mixed dtypes"][0], 3 * torch.arange(9.0).double())
        assert torch.equal(said["mixed dtypes"][1], 3 * torch.arange(4.0).reshape(2, 2))
    assert torch.equal(both[0]["gradient"], 2 * torch.arange(4.0))
    assert torch.equal(both[1]["gradient"], 2 * torch.arange(4.0, 9.0))
    assert [said["main"] for said in both] == [True, False]


NORMS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "images": (nn.BatchNorm2d(3), (3, 2, 2)),
    "vectors": (nn.BatchNorm1d(3, momentum=None), (3,)),
    "without parameters": (nn.BatchNorm1d(3, affine=False, momentum=0.3), (3,)),
    "without statistics": (nn.BatchNorm1d(3, track_running_stats=False), (3,)),
    "frozen": (nn.BatchNorm1d(3).eval(), (3,)),
    "volumes": (nn.BatchNorm3d(3), (3, 1, 2, 2)),
}


def normalise(world: World, lengths: tuple[int, int]) -> dict[str, Any]:
    """Output, gradients and statistics after two batches, and the output of evaluation."""
    results: dict[str, Any] = {}
    for name, (made, shape) in NORMS.items():
        norm = copy.deepcopy(made).double()
        if norm.weight is not None:
            nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
        norm = synchronise_batch_norm(norm, world)
        generator = torch.Generator().manual_seed(1)
        batches = [torch.randn(sum(lengths), *shape, generator=generator, dtype=torch.float64) + 5 for _ in range(2)]
        start = sum(lengths[: world.rank])
        mine = slice(start, start + lengths[world.rank]) if world.size > 1 else slice(None)
        for batch in batches:
            own = batch[mine].requires_grad_()
            output = world.gather(norm(own))
            (output * torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)).sum().backward()
        world.sum_gradients(norm.parameters())
        assert own.grad is not None
        results[name] = {
            "output": output.detach(),
            "input gradient": world.gather(own.grad),
            "gradients": [parameter.grad for parameter in norm.parameters()],
            "state": dict(norm.state_dict()),
            "evaluated": world.gather(norm.eval()(own)).detach(),
        }
    return results


@needs_processes
@pytest.mark.parametrize("lengths", [(4, 4), (2, 7), (0, 5)])
def test_batch_norm_over_two_ranks(tmp_path: Path, lengths: tuple[int, int]) -> None:
    alone = normalise(World(), lengths)
    for found in in_ranks(normalise, tmp_path / "ranks", lengths):
        for name, expected in alone.items():
            assert_close(found[name], expected, **TOL, msg=lambda text, name=name: f"{name}: {text}")


def normalise_too_little(world: World) -> str:
    norm = synchronise_batch_norm(nn.BatchNorm1d(2), world)
    with pytest.raises(ValueError, match="more than 1 value per channel over all processes") as error:
        norm(torch.zeros(world.rank, 2))
    with pytest.raises(ValueError, match="of shape"):
        norm(torch.zeros(2))
    return str(error.value)


@needs_processes
def test_batch_norm_of_a_single_row(tmp_path: Path) -> None:
    assert len(in_ranks(normalise_too_little, tmp_path / "ranks")) == 2


def test_synchronising_keeps_parameters_and_names() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2).eval(), nn.BatchNorm2d(4)))
    names, parameters = list(net.state_dict()), list(net.parameters())
    assert synchronise_batch_norm(net, World()) is net
    assert type(net[1][0]) is nn.BatchNorm1d
    many = World(rank=0, size=2)
    assert synchronise_batch_norm(synchronise_batch_norm(net, many), many) is net
    assert [type(layer) for layer in net[1]] == [GlobalBatchNorm] * 2
    assert [layer.training for layer in net[1]] == [False, True]
    assert list(net.state_dict()) == names
    assert all(one is other for one, other in zip(net.parameters(), parameters, strict=True))
    assert type(synchronise_batch_norm(nn.BatchNorm1d(2), many)) is GlobalBatchNorm


class NormAndRectifier(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: one module, whose forward does more than normalise."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class NamedNorm(nn.BatchNorm2d):
    """PyTorch's in all but its name."""


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # nothing is moved there
def test_a_batch_norm_that_does_more_is_refused(device: str) -> None:
    many = World(rank=0, size=2, device=torch.device(device))
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(NamedNorm(2), NormAndRectifier(2)))
    with pytest.raises(ValueError, match=r"got NormAndRectifier with a forward of its own at 1\.1; train it in one"):
        synchronise_batch_norm(net, many)
    assert [type(layer) for layer in (net[0], *net[1])] == [nn.BatchNorm2d, NamedNorm, NormAndRectifier]
    assert synchronise_batch_norm(net, World()) is net
    net[1][1] = nn.ReLU()
    kind = GlobalBatchNorm if device == "cpu" else nn.SyncBatchNorm
    synchronise_batch_norm(synchronise_batch_norm(net, many), many)
    assert [type(layer) for layer in (net[0], net[1][0])] == [kind, kind]


def test_half_precision_is_normalised_in_full() -> None:
    norm = synchronise_batch_norm(nn.BatchNorm1d(2).eval(), World(rank=0, size=2))
    assert norm(torch.zeros(3, 2, dtype=torch.bfloat16)).shape == (3, 2)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shards_cover_a_batch(n: int, size: int) -> None:
    rows = list(range(n))
    shares = [rows[World(rank=rank, size=size).shard(n)] for rank in range(size)]
    assert [row for share in shares for row in share] == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with World.from_environment(device="cpu") as world:
        x = torch.ones(3, requires_grad=True)
        assert world.gather(x, total=3) is x
        assert world.gather_object("a") == ["a"]
        assert (world.any(True), world.any(False), world.broadcast_object(3)) == (True, False, 3)
        world.barrier()
    with pytest.raises(ValueError, match="3 rows, this rank's share of 3, got 2"):
        world.gather(torch.ones(2), total=3)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device must be cpu where PyTorch sees no CUDA device, got 'cuda'; pass"):
            World.from_environment(device="cuda")


def test_a_sparse_gradient_is_refused() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="dense gradients"):
        World().sum_gradients(table.parameters())


def test_buckets_hold_neighbours_of_a_kind() -> None:
    shapes: list[tuple[int, torch.dtype]] = [
        (10, torch.float32),
        (10, torch.float32),
        (5, torch.float64),
        (10, torch.float32),
        (7_000_000, torch.float32),
        (3, torch.float32),
    ]
    parameters = [nn.Parameter(torch.empty(n, dtype=dtype)) for n, dtype in shapes]
    assert [len(bucket) for bucket in _buckets(parameters)] == [2, 1, 1, 1, 1]
    flat: list[Tensor] = [parameter for bucket in _buckets(parameters) for parameter in bucket]
    assert all(one is other for one, other in zip(flat, parameters, strict=True))
