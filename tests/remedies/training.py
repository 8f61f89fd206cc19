"""Remedies of the training loop, its files and its processes, and of the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from torch import Tensor, distributed, nn

from adaptive_margin.command import main
from adaptive_margin.emotion.model_file import Preprocessing, save_model
from adaptive_margin.emotion.nets import emotion_net
from adaptive_margin.reports._page import check_page
from adaptive_margin.training import Checkpoints, RunFolder, World, backward_and_step, seed_everything, train
from adaptive_margin.training.checkpoints import check_plain
from adaptive_margin.training.command_line import check_output, json_with, parse, read
from adaptive_margin.training.forecast import Forecast, announce
from adaptive_margin.training.optimisation import autocast
from adaptive_margin.training.world import GlobalBatchNorm, synchronise_batch_norm

from ..training.toy import Toy
from .following import follow

CPU = torch.device("cpu")
MANY = World(rank=0, size=2)
ROWS = torch.ones(3, 2)
EVERY = {"steps": 2, "checkpoint_every": 2, "evaluate_every": 2, "log_every": 1}


@dataclasses.dataclass(frozen=True)
class Options:
    width: int = 3


@dataclasses.dataclass(frozen=True)
class Chosen:
    kind: Literal["a", "b"]


def helped(prog: str, kind: type = Options) -> str:
    """What the help says."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        read(kind, prog=prog, argv=["--help"])
    return said.getvalue()


def starts(seconds: float, yes: bool = False) -> bool:
    """Whether a run of that length starts."""
    announce(Forecast(runs=1, iterations=1, seconds=seconds), yes)
    return True


@dataclasses.dataclass(frozen=True)
class Shadowing:
    preset: str = "small"


def trained(path: Path, name: str = "run", **options: Any) -> bool:
    seed_everything(0)
    with RunFolder(path / name, {"seed": 0}, world=World(), may_change=["steps"]) as folder:
        steps = {**EVERY, **options}
        return train(Toy(World()), folder=folder, world=World(), **steps).steps == steps["steps"]


def too_short(path: Path) -> None:
    trained(path, steps=4)
    trained(path, steps=2)


def stepped(before: Callable[[nn.Linear], Any], after: Callable[[nn.Linear], Any] = lambda net: ()) -> bool:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = net(ROWS).square().mean()
    weight = net.weight.detach().clone()
    backward_and_step(
        loss, optimizer, parameters_before_gather=before(net), parameters_after_gather=after(net), world=World()
    )
    return not torch.equal(net.weight, weight)


def summed(sparse: bool) -> bool:
    table = nn.Embedding(4, 2, sparse=sparse)
    table(torch.tensor([1])).sum().backward()
    World().sum_gradients(table.parameters())
    return bool(table.weight.grad.sum() == 2)


class _Active(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


@contextlib.contextmanager
def alone_in_a_group() -> Iterator[None]:
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def normalised(rows: int) -> bool:
    with alone_in_a_group():
        return GlobalBatchNorm(2)(torch.ones(rows, 2)).shape == (rows, 2)


def placed(device: str, gpus: int = 0, rank: int = 0) -> bool:
    """Where a process of a machine with as many GPUs computes; there are none here, and nothing is put on them."""
    with (
        mock.patch("torch.cuda.device_count", return_value=gpus),
        mock.patch("torch.cuda.set_device"),
        mock.patch.dict(os.environ, {"LOCAL_RANK": str(rank)}),
    ):
        return World.from_environment(device=device).device.type == torch.device(device).type


def model(folder: Path) -> Path:
    path = folder / "model.pt"
    if not path.exists():
        torch.manual_seed(0)
        save_model(path, emotion_net("small"), Preprocessing(resize=48, size=44))
    return path


def export(folder: Path, output: str, *words: str) -> bool:
    """By the command, with an exporter that writes nothing: the real one takes long."""
    words = ("--checkpoint", str(model(folder)), "--output", str(folder / output), *words)
    with mock.patch("adaptive_margin.emotion.export_onnx.export_onnx", return_value=0.0) as exporter:
        return main(["export-onnx", *words]) == 0 and exporter.call_count == 1


def export_onto_another(folder: Path) -> None:
    (folder / "mine.onnx").write_bytes(b"mine")
    export(folder, "mine.onnx")


def occupied(folder: Path) -> Path:
    """A file that is no report."""
    (folder / "notes.txt").write_text("mine")
    return folder / "notes.txt"


def writable(folder: Path, allowed: bool) -> bool:
    """Whether an output may be there; tests may run as root, who may write anywhere."""
    with mock.patch("os.access", return_value=allowed):
        return check_output("--output", folder / "run") is None


def faces_run(folder: Path) -> Path:
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "config.yaml").write_text("critic: caf\nseed: 0\n")
    return folder / "run"


def report(folder: Path, output: str, *words: str) -> bool:
    run = faces_run(folder)
    return main(["report", str(run), "--output", str(run / output), *words]) == 0


CASES = [
    follow(
        "pass the name of a file in it",
        check_page,
        lambda folder: check_page(folder / "report.html") is None,
    ),
    follow(
        "pass another --output, or --overwrite (overwrite=True) to replace it",
        lambda folder: check_page(occupied(folder)),
        lambda folder: check_page(folder / "report.html") is None,
        lambda folder: check_page(occupied(folder), overwrite=True) is None,
    ),
    follow(
        "2 leave one to fall back to",
        lambda folder: Checkpoints(folder, keep=0),
        lambda folder: Checkpoints(folder, keep=2).latest() is None,
    ),
    follow(
        "an undefined score cannot be the best: do not save it, or pass another score",
        lambda folder: Checkpoints(folder).save_best(1, {}, float("nan")),
        lambda folder: Checkpoints(folder).save_best(1, {}, 0.5).exists(),
        lambda folder: Checkpoints(folder).save(1, {}).exists(),
    ),
    follow(
        "pass the number of steps done",
        lambda folder: Checkpoints(folder).save(-1, {}),
        lambda folder: Checkpoints(folder).save(0, {}).exists(),
    ),
    follow(
        "name it with text",
        lambda folder: Checkpoints(folder).save(1, {None: 1}),
        lambda folder: Checkpoints(folder).save(1, {"none": 1}).exists(),
    ),
    follow(
        "convert it, as float(x) does for numpy's numbers",
        lambda: check_plain({"score": np.float64(0.5)}),
        lambda: check_plain({"score": float(np.float64(0.5))}) is None,
    ),
    follow(
        "pass {'default': Config()}",
        lambda: parse(Options, {}, argv=[]),
        lambda: parse(Options, {"default": Options()}, argv=[]) == Options(),
    ),
    follow(
        "rename it",
        lambda: parse(Shadowing, {"default": Shadowing()}, argv=[]),
        lambda: parse(Options, {"default": Options()}, argv=["--width", "4"]).width == 4,
    ),
    follow(
        "count steps",
        lambda folder: trained(folder, log_every=0),
        lambda folder: trained(folder, log_every=1),
    ),
    follow(
        "ask for as many, or choose another folder",
        too_short,
        lambda folder: trained(folder, steps=4),
        lambda folder: trained(folder, "another", steps=2),
    ),
    follow(
        "name one of them",
        lambda folder: trained(folder, "wrong", score="recall"),
        lambda folder: trained(folder, score="score"),
    ),
    follow(
        "bfloat16 needs no scaler",
        lambda: autocast(CPU, "half"),
        lambda: autocast(CPU, "bfloat16").fast_dtype == torch.bfloat16,
    ),
    follow(
        "before gather, or after it",
        lambda: stepped(nn.Module.parameters, lambda net: [net.bias]),
        lambda: stepped(nn.Module.parameters),
        lambda: stepped(lambda net: [net.weight], lambda net: [net.bias]),
    ),
    follow(
        "pass all of its parameters, and no others",
        lambda: stepped(lambda net: [net.weight]),
        lambda: stepped(nn.Module.parameters),
    ),
    follow("count from 0", lambda: seed_everything(-1), lambda: seed_everything(0) is None),
    # forecast.py
    follow(
        "pass --yes to start all the same, or fewer runs or iterations",
        lambda: starts(1e6),
        lambda: starts(1e6, yes=True),
        lambda: starts(1e4),
    ),
    # world.py
    follow("torchrun --nproc-per-node 2", lambda: placed("cuda", 2, rank=2), lambda: placed("cuda", 2, rank=1)),
    follow("the last is cuda:1", lambda: placed("cuda:5", 2), lambda: placed("cuda:1", 2)),
    follow("pass device cpu", lambda: placed("cuda"), lambda: placed("cpu")),
    follow("pass device cpu", lambda: placed("gpu"), lambda: placed("cpu")),
    follow(
        "pass tensor[None]",
        lambda: World().gather(torch.tensor(1.0)),
        lambda: World().gather(torch.tensor(1.0)[None]).shape == (1,),
    ),
    follow(
        "leave out total for other shares",
        lambda: World().gather(ROWS, total=4),
        lambda: World().gather(ROWS).shape == (3, 2),
    ),
    follow("use sparse=False", lambda: summed(sparse=True), lambda: summed(sparse=False)),
    follow("pass a batch", lambda: GlobalBatchNorm(2)(torch.ones(2)), lambda: normalised(2)),
    follow("use a larger batch", lambda: normalised(1), lambda: normalised(2)),
    follow(
        "train it in one process, or choose a network with plain batch norms",
        lambda: synchronise_batch_norm(nn.Sequential(_Active(2)), MANY),
        lambda: isinstance(synchronise_batch_norm(nn.Sequential(_Active(2)), World())[0], _Active),
        lambda: isinstance(synchronise_batch_norm(nn.Sequential(nn.BatchNorm2d(2)), MANY)[0], GlobalBatchNorm),
    ),
    # command_line.py
    follow(
        "see train --help",
        lambda: read(Options, prog="train", argv=["--width", "wide"]),
        lambda: "--width INT" in helped("train"),
        lambda: read(Options, prog="train", argv=["--width", "4"]).width == 4,
    ),
    follow(
        "see train --help",
        lambda: read(Chosen, prog="train", argv=["--kind", "c"]),
        lambda: "--kind {a,b}" in helped("train", Chosen),
        lambda: read(Chosen, prog="train", argv=["--kind", "b"]).kind == "b",
    ),
    follow(
        "see train --help",
        lambda: read(Chosen, prog="train", argv=[]),
        lambda: "(required)" in helped("train", Chosen),
        lambda: read(Chosen, prog="train", argv=["--kind", "a"]).kind == "a",
    ),
    follow(
        "pass the name of a file in it",
        lambda folder: check_output("--output", folder, file=True),
        lambda folder: check_output("--output", folder / "model.onnx", file=True) is None,
    ),
    follow(
        "pass another",
        lambda folder: check_output("--output", occupied(folder)),
        lambda folder: check_output("--output", folder / "another") is None,
    ),
    follow(
        "pass another, or change permissions",
        lambda folder: writable(folder, False),
        lambda folder: check_output("--output", folder / "another") is None,
        lambda folder: writable(folder, True),
    ),
    follow(
        "pass the name of a file",
        lambda folder: check_output("--json", os.devnull, file=True),
        lambda folder: check_output("--json", folder / "a.json", file=True) is None,
    ),
    follow(
        "pass another, or move that file",
        lambda folder: check_output("--out", occupied(folder), file=True, replaces=json_with("rows")),
        lambda folder: check_output("--out", folder / "another", file=True, replaces=json_with("rows")) is None,
        lambda folder: [
            occupied(folder).rename(folder / "moved"),
            check_output("--out", folder / "notes.txt", file=True, replaces=json_with("rows")),
        ],
    ),
    # command/
    follow(
        "pass the name of a new file",
        lambda folder: report(folder, "config.yaml", "--overwrite"),
        lambda folder: report(folder, "page"),
    ),
    follow(
        "pass the --output of a run",
        lambda folder: main(["report", str(folder / "none")]),
        lambda folder: main(["report", str(faces_run(folder))]) == 0,
    ),
    follow(
        "leave both out",
        lambda folder: main(["report", str(faces_run(folder)), "--print"]),
        lambda folder: main(["report", str(faces_run(folder))]) == 0,
    ),
    follow(
        "pass a number of threads",
        lambda folder: main(["check", str(folder), "--workers", "0"]),
        lambda folder: main(["check", str(folder), "--workers", "2"]) == 1,  # this folder is no data set
    ),
    follow(
        "pass the name of a new file",
        lambda folder: export(folder, "model.pt", "--overwrite"),
        lambda folder: export(folder, "model.onnx"),
    ),
    follow(
        "pass another --output, or --overwrite to replace it",
        export_onto_another,
        lambda folder: export(folder, "another.onnx"),
        lambda folder: export(folder, "mine.onnx", "--overwrite"),
    ),
]
