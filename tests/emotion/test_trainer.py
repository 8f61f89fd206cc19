"""Whole runs: what lies in the folder, that a broken-off run ends as an unbroken one, and what stops a run."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_margin.affect import Split
from adaptive_margin.emotion.data import load_data
from adaptive_margin.emotion.model_file import load_model, load_network
from adaptive_margin.emotion.trainer import OUTCOMES, EmotionJob, run, train_network
from adaptive_margin.stored import read_json
from adaptive_margin.training.checkpoints import CheckpointError, Checkpoints
from adaptive_margin.training.loop import NonFiniteError
from adaptive_margin.training.run_folder import RunFolderError, read_scalars
from adaptive_margin.training.world import World
from tests.platforms import needs_processes
from tests.training.processes import finish, start

from ..affect import export as exports
from ..affect.faces import samples
from .cases import tiny
from .train_tiny import train_tiny

OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "joint linear": {"order": "joint", "margin": "linear"},
    "grl": {"critic": "none", "term": "grl", "term_warm_up": 6, "per_person": 2},
    "cross-person, normalised": {"cross_person": True, "person_norm": True, "person_scale": True, "per_person": 4},
    "fisher shared dropout": {"critic": "fisher", "shared_moments": True, "dropout": 0.5, "critic_dropout": 0.2},
}


def _weights(folder: Path) -> dict[str, Any]:
    newest = Checkpoints(folder / "checkpoints").latest()
    assert newest is not None
    return newest[1]["job"]


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return set(one) == set(two) and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(_same(a, b) for a, b in zip(one, two, strict=True))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else bool(one == two)


def test_a_run_leaves_all_that_it_says(tmp_path: Path) -> None:
    config = tiny(output=str(tmp_path / "run"), keep="best")
    result = run(config, world=World())
    assert result.summary.steps == config.iterations
    names = {path.name for path in result.folder.iterdir()}
    assert names >= {
        "config.yaml",
        "environment.json",
        "splits",
        "scalars.csv",
        "model.pt",
        "MODEL_CARD.md",
        "result.json",
        "evaluation.npz",
    }

    split = Split.read(result.folder / "splits" / "split.json")
    assert split.independent == "person"
    parts = [set(people) for people in split.parts.values()]
    assert sum(map(len, parts)) == len(set().union(*parts))

    written = read_json(result.folder / "result.json")
    assert written["seed"] == config.seed
    assert set(written["test"]["figures"]) >= {"rmse", "sagr", "pcc", "ccc"}
    assert set(written["leakage"]) == {"unseen", "seen"}

    curves = read_scalars(result.folder)
    assert set(curves) >= {"loss/regression", "loss/critic", "loss/adversarial", "critic/alpha", "critic/mi", "val/ccc"}
    assert curves["critic/alpha"].steps == list(range(1, 11))
    assert curves["val/ccc"].steps == [5, 10]

    net, preprocessing = load_model(result.folder / "model.pt")
    assert (preprocessing.resize, preprocessing.size) == (32, 28)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in result.net.state_dict().items())
    best = Checkpoints(result.folder / "checkpoints").best()
    assert best is not None
    assert best[0] == result.summary.best_step
    assert _same(best[1]["net"], dict(net.state_dict()))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_that_goes_on_equals_an_unbroken_one(name: str, tmp_path: Path) -> None:
    options = OPTIONS[name]
    config = tiny(**options)
    data = load_data(config)
    run(tiny(output=str(tmp_path / "whole"), **options), data=data, world=World())
    run(tiny(output=str(tmp_path / "broken"), iterations=5, **options), data=data, world=World())
    torch.manual_seed(99)  # whatever the process did between
    np.random.seed(99)  # noqa: NPY002
    again = run(tiny(output=str(tmp_path / "broken"), **options), data=data, world=World())
    assert again.summary.resumed_from == 5
    whole, broken = _weights(tmp_path / "whole"), _weights(tmp_path / "broken")
    assert _same(whole, broken)
    curves = [read_scalars(tmp_path / run_name) for run_name in ("whole", "broken")]
    assert {name: curve.values for name, curve in curves[0].items()} == {n: c.values for n, c in curves[1].items()}


def _films(root: Path, people: range, each: int = 4) -> Path:
    """AFEW-VA with one clip a person, named and numbered after it."""
    faces = samples(each * len(people), videos=len(people), people=len(people))
    exports.export_afew_va(
        root,
        [
            dataclasses.replace(sample, identity=f"person {people[number // each]}")
            for number, sample in enumerate(faces)
        ],
    )
    return root


class _Broken(Exception):
    """Ends a run behind its last checkpoint, before the evaluation, which takes longer."""


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains on somebody's clips, in all so many iterations; returns whether it went on from a checkpoint."""
    loaded: list[bool] = []

    def broken(job: EmotionJob, part: Any) -> None:
        raise _Broken

    def resumed(job: EmotionJob, state: dict[str, Any]) -> None:
        loaded.append(True)
        load(job, state)

    load = EmotionJob.load_state_dict
    monkeypatch.setattr(EmotionJob, "evaluation", broken)
    monkeypatch.setattr(EmotionJob, "load_state_dict", resumed)

    def go(root: Path, iterations: int) -> bool:
        loaded.clear()
        options = {"output": str(tmp_path / "run"), "critic": "none", "skip_unreadable": 0.5}
        config = tiny(dataset="afew-va", root=str(root), iterations=iterations, **options)
        with pytest.raises(_Broken):
            run(config, world=World())
        return bool(loaded)

    return go


@pytest.mark.parametrize("options", [{}, {"person_norm": True, "per_person": 2}])
def test_a_run_is_measured_in_another_process_as_in_its_own(options: dict[str, Any], tmp_path: Path) -> None:
    config = tiny(device="cpu", output=str(tmp_path / "here"), **options)
    there = dataclasses.replace(config, output=str(tmp_path / "there"))
    expected = run(config).result
    with World(device=torch.device("cpu")) as world:
        measurement = train_network(there, data=None, world=world)[-1]
    names = {path.name for path in (tmp_path / "there").iterdir()}
    assert {"model.pt", "evaluation.npz"} <= names
    assert not {"result.json", "MODEL_CARD.md"} & names
    result = pickle.loads(pickle.dumps(measurement))()
    assert {**result, "seconds": 0} == {**expected, "seconds": 0}
    assert ("by_person" in result) == bool(options)
    card = (tmp_path / "there" / "MODEL_CARD.md").read_text()
    assert card == (tmp_path / "here" / "MODEL_CARD.md").read_text()
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(
        path.name for path in (tmp_path / "here").iterdir()
    )


def test_the_main_process_alone_keeps_a_network_and_others_hear_of_its_errors(tmp_path: Path) -> None:
    kept = []

    class Watched(World):
        def from_main(self, function: Any) -> Any:
            kept.append(function)

    train_network(tiny(device="cpu", output=str(tmp_path)), data=None, world=Watched(device=torch.device("cpu")))
    assert not {"model.pt", "evaluation.npz"} & {path.name for path in tmp_path.iterdir()}
    kept[-1]()
    assert {"model.pt", "evaluation.npz"} <= {path.name for path in tmp_path.iterdir()}


def test_a_run_that_was_not_measured_is_measured_by_the_same_options(tmp_path: Path) -> None:
    config = tiny(device="cpu", output=str(tmp_path))
    with World(device=torch.device("cpu")) as world:
        train_network(config, data=None, world=world)
    again = run(config)
    assert again.summary.resumed_from == config.iterations
    assert read_json(tmp_path / "result.json")["test"]["figures"] == again.result["test"]["figures"]


def test_a_run_goes_on_with_the_same_data_under_another_root(films: Any, tmp_path: Path) -> None:
    assert not films(_films(tmp_path / "one", range(10)), 2)
    assert films(_films(tmp_path / "other" / "place", range(10)), 3)


@pytest.mark.parametrize("change", ["people", "rows"])
def test_a_run_does_not_go_on_with_other_data(films: Any, change: str, tmp_path: Path) -> None:
    one = _films(tmp_path / "one", range(10))
    if change == "rows":
        for picture in one.rglob("00000.png"):  # one of each clip: it is missing wherever the clip is
            picture.unlink()
    films(one, 2)
    folder = tmp_path / "run"
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    other = _films(tmp_path / "other", range(1, 11) if change == "people" else range(10))
    message = {
        "people": r"splits/test.json: of 10 identity units .*1 gone \(person 0\), 1 new \(person 10\)",
        "rows": r"run with other data:\n  train rows: 21 there, 28 now\n",
    }[change]
    with pytest.raises(RunFolderError, match=message + r"(?s:.)*--root.*another --output"):
        films(other, 3)
    assert {path: path.read_bytes() for path in kept} == kept  # nothing of the run was touched
    shutil.rmtree(folder / "checkpoints")  # nothing was trained on: it starts anew
    assert not films(other, 3)


def test_a_split_that_was_edited_stops_a_run_that_would_go_on(films: Any, tmp_path: Path) -> None:
    root = _films(tmp_path / "one", range(10))
    films(root, 2)
    split = tmp_path / "run" / "splits" / "validation.json"
    split.write_text(split.read_text().replace('"digest": "', '"digest": "0'))
    with pytest.raises(RunFolderError, match=r"splits/validation.json: .* must be unchanged since it was written"):
        films(root, 3)


@needs_processes
def test_a_run_that_is_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    killed = start(train_tiny, tmp_path / "killed", {"iterations": 24})
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 50
    while not list(checkpoints.glob("step-*.pt")):
        assert killed.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.kill()
    assert finish(killed) == [-signal.SIGKILL]
    done = max(int(path.name.split("-")[1]) for path in checkpoints.glob("step-*.pt"))
    assert 0 < done < 24

    assert train_tiny(tmp_path / "killed", {"iterations": 24}) == done
    assert train_tiny(tmp_path / "whole", {"iterations": 24}) == 0
    assert _same(_weights(tmp_path / "killed"), _weights(tmp_path / "whole"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    config = tiny(output=str(tmp_path / "run"), critic="sphere")
    data = load_data(config)

    class Broken(EmotionJob):
        def step(self, step: int) -> Any:
            losses = dict(super().step(step))
            if step == 6:
                losses["loss/critic"] = torch.tensor(float("nan"))
            return losses

    from adaptive_margin.emotion import trainer

    original, trainer.EmotionJob = trainer.EmotionJob, Broken  # type: ignore[misc]
    try:
        with pytest.raises(NonFiniteError, match=r"loss/critic was not finite in step 7; .*checkpoint of step 6"):
            run(config, data=data, world=World())
    finally:
        trainer.EmotionJob = original  # type: ignore[misc]
    newest = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    assert newest is not None
    assert newest[0] == 6


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    config = tiny(output=str(tmp_path / "run"), iterations=2)
    data = load_data(config)
    run(config, data=data, world=World())
    with pytest.raises(RunFolderError, match=r"critic: 'caf' there, 'none' now"):
        run(tiny(output=str(tmp_path / "run"), iterations=2, critic="none"), data=data, world=World())


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_whatever_is_damaged_or_gone_has_a_remedy_that_works(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = tiny(output=str(folder), keep="best", iterations=6, critic="none")
    data = load_data(config)
    run(config, data=data, world=World())
    for file in [folder / "model.pt", *(folder / "checkpoints").glob("*.pt")]:
        load_network(file)  # each can be given where a trained network is asked for

    (best,) = (folder / "checkpoints").glob("best-*")
    best.rename(tmp_path / best.name)
    before = _contents(folder)
    with pytest.raises(CheckpointError, match=r"after step \d, is not in .*checkpoints; pass --keep last to take"):
        run(config, data=data, world=World())
    assert {name: before[name] for name in OUTCOMES} == {name: _contents(folder)[name] for name in OUTCOMES}
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    with pytest.raises(CheckpointError, match="pass --keep last"):
        run(dataclasses.replace(config, output=str(moved), log_every=2), data=data, world=World())
    assert {name: before[name] for name in OUTCOMES} == {name: _contents(moved)[name] for name in OUTCOMES}
    last = dataclasses.replace(config, keep="last")
    assert run(last, data=data, world=World()).summary.steps == 6

    for name in ("rows.json", "environment.json"):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
    (folder / "scalars.csv").write_bytes((folder / "scalars.csv").read_bytes().replace(b"val/ccc,", b"val/ccd,", 1))
    with pytest.warns(UserWarning, match="is damaged") as said:
        longer = run(dataclasses.replace(last, iterations=8), data=data, world=World())
    assert longer.summary.resumed_from == 6
    for name in ("rows.json", "environment.json", "scalars.csv"):
        assert any(f"{name} is damaged" in str(each.message) for each in said)
    assert read_json(folder / "rows.json") == {part: len(getattr(data, part)) for part in ("train", "val", "test")}

    shutil.rmtree(folder / "checkpoints")
    before = _contents(folder)
    with pytest.raises(RunFolderError, match=r"finished run .*model\.pt.* whose checkpoints are gone: restore"):
        run(dataclasses.replace(last, iterations=8), data=data, world=World())
    assert _contents(folder) == before


def test_step_sizes_follow_from_the_step_alone() -> None:
    config = tiny(lr_decay=0.5, lr_decay_every=3)
    job = EmotionJob(config, load_data(config), World())
    found = []
    for step in (0, 2, 3, 8):
        job.step(step)
        found.append([group["lr"] for o, _ in job._optimizers().values() for group in o.param_groups])
    assert found == [
        [a.lr * 0.5 ** (step // 3) for a in (config.critic_adam, config.adversarial_adam, config.regression_adam)]
        for step in (0, 2, 3, 8)
    ]


def test_a_linear_margin_grows_with_the_passes_over_the_data() -> None:
    config = tiny(margin="linear")
    job = EmotionJob(config, load_data(config), World())
    length = len(job.batches)
    critic = job.iteration.critic
    assert critic is not None
    for step in range(2 * length + 1):
        job.step(step)
    assert critic.objective.statistics() == {"alpha": pytest.approx(0.11)}


def test_the_same_seed_gives_the_same_start_whatever_the_critic() -> None:
    data = load_data(tiny())
    nets = [EmotionJob(tiny(critic=critic), data, World()).iteration.net.state_dict() for critic in ("none", "caf")]
    assert _same(dict(nets[0]), dict(nets[1]))


def test_evaluation_leaves_training_as_it_was() -> None:
    config = tiny()
    data = load_data(config)
    jobs = [EmotionJob(config, data, World()) for _ in range(2)]
    for step in range(4):
        jobs[0].step(step)
        if step % 2:
            jobs[0].evaluate()
    jobs[1] = EmotionJob(config, data, World())
    for step in range(4):
        jobs[1].step(step)
    assert _same(jobs[0].state_dict(), jobs[1].state_dict())
