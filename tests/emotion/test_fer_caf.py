"""The benchmark as its user runs it: a table and a report, stopped and taken up, and what it says of wrong options."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from adaptive_margin.emotion.config import QUICK, EmotionConfig
from adaptive_margin.processes import Workers
from adaptive_margin.training import Checkpoints, NonFiniteError, RunFolderError, World
from tests.platforms import needs_proc, needs_processes
from tests.training.processes import in_ranks

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fer_caf.py"
TINY = """
people: 16
images_per_person: 6
batch_size: 16
evaluate_every: 12
checkpoint_every: 4
log_every: 2
"""


def start(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [sys.executable, str(SCRIPT), "--config", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "out")]
    return subprocess.Popen(
        [*command, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests may run where it is ignored
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def logged(folder: Path) -> None:
    """Waits until the first run has some rows."""
    log = folder / "runs" / "none" / "seed0" / "scalars.csv"
    until = time.monotonic() + 200
    while not (log.exists() and log.read_text().count("\n") > 2):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_stopped_ablation_goes_on_and_ends_with_its_table_and_report(tmp_path: Path) -> None:
    words = ("--arms", "caf", "--seeds", "1", "--iterations", "12", "--jobs", "1")  # none comes by itself
    stopped = start(tmp_path, *words)
    logged(tmp_path / "out")
    os.killpg(stopped.pid, signal.SIGINT)  # as a terminal does
    assert stopped.wait(60) == 130
    assert not (tmp_path / "out" / "results.json").exists()

    said, error = (going_on := start(tmp_path, *words)).communicate(timeout=400)
    assert going_on.returncode == 0, error[-2000:]
    assert "difference from 'none', seed by seed" in said
    assert "identity in the features of unseen people" in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for arm in ("none", "caf"):
        assert [one["seed"] for one in results["arms"][arm]["seeds"]] == [0]
    assert results["arms"]["caf"]["config"]["critic"] == "caf"
    caf, none = (results["arms"][arm]["seeds"][0]["test"]["figures"]["ccc"]["mean"] for arm in ("caf", "none"))
    assert results["arms"]["caf"]["difference"]["ccc"]["mean"] == pytest.approx(caf - none)
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "table.txt").read_text().strip() in said


@pytest.mark.slow
@needs_proc
def test_no_worker_goes_on_without_its_parent(tmp_path: Path) -> None:
    stopped = start(tmp_path, "--arms", "none", "--seeds", "1", "--iterations", "100000", "--jobs", "1", "--yes")
    logged(tmp_path / "out")
    assert len(session(stopped.pid)) >= 3
    stopped.kill()  # the parent alone; tests/test_processes.py has the signals that a parent hears
    assert stopped.wait(60) == -signal.SIGKILL
    until = time.monotonic() + 30
    while session(stopped.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not session(stopped.pid)
    run = tmp_path / "out" / "runs" / "none" / "seed0"
    last = int((run / "scalars.csv").read_text().splitlines()[-1].split(",")[0])
    assert Checkpoints(run / "checkpoints").files()[-1][0] >= last  # it was saved before the worker ended


@pytest.mark.slow
@needs_processes
@needs_proc
def test_processes_of_torchrun_end_with_it_and_save(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = "--preset quick --people 16 --images-per-person 6 --batch-size 16 --iterations 100000 --log-every 2 --yes"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    torchrun = subprocess.Popen(
        [*launcher, "-m", "adaptive_margin", "train-faces", *words.split(), "--device", "cpu", "--output", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])},
    )
    until = time.monotonic() + 200
    while not ((out / "scalars.csv").exists() and (out / "scalars.csv").read_text().count("\n") > 2):
        assert time.monotonic() < until
        time.sleep(0.05)
    ranks = [pid for pid, parent, _ in running() if parent == torchrun.pid]
    assert len(ranks) == 2
    torchrun.kill()
    torchrun.wait(60)
    until = time.monotonic() + 30
    while {pid for pid, *_ in running()} & set(ranks):
        assert time.monotonic() < until
        time.sleep(0.1)
    last = int((out / "scalars.csv").read_text().splitlines()[-1].split(",")[0])
    assert Checkpoints(out / "checkpoints").files()[-1][0] >= last


def running() -> Iterator[tuple[int, int, int]]:
    """Number, parent and session of the processes that run; those that have ended and that nobody waited for do not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, parent, _, leader = path.read_text().rpartition(")")[2].split()[:4]
            if state != "Z":
                yield int(path.parent.name), int(parent), int(leader)


def session(leader: int) -> list[int]:
    return [pid for pid, _, number in running() if number == leader]


def main_in_world(world: World, words: list[str]) -> str:
    """What the benchmark prints as one process of several; a forked process loads nothing again."""
    os.environ["WORLD_SIZE"] = str(world.size)
    sys.path.insert(0, str(SCRIPT.parent))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert importlib.import_module("fer_caf").main(words) == 0
    return said.getvalue()


@needs_processes
def test_two_processes_train_one_run_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = ["--config", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "out"), "--arms", "none", "caf"]
    words += ["--seeds", "1", "--iterations", "4", "--device", "cpu"]
    said, of_the_other = in_ranks(main_in_world, tmp_path / "ranks", words)
    assert of_the_other == ""
    assert said.count("difference from 'none', seed by seed") == 1
    assert "on 2 processes" in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [len(results["arms"][arm]["seeds"]) for arm in ("none", "caf")] == [1, 1]
    assert results["environment"]["processes"] == 2
    assert (tmp_path / "out" / "report.html").exists()


@pytest.fixture
def fer_caf(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("fer_caf")


def test_runs_share_the_threads_that_pytorch_has(fer_caf: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of ``OMP_NUM_THREADS``, or the cores that a batch system grants; the machine can have more."""
    asked: list[int | None] = []
    monkeypatch.setattr(fer_caf, "forecast", lambda works, *, threads, **_: asked.append(threads))
    for threads, jobs, each in ((6, 1, 6), (6, 2, 3), (6, 4, 1), (1, 2, 1)):
        monkeypatch.setattr(fer_caf.torch, "get_num_threads", lambda n=threads: n)
        assert fer_caf.start_pool(jobs).threads == each
        fer_caf.expect({}, jobs)
        assert asked.pop() == each


def test_a_root_that_is_no_data_set_is_said(
    fer_caf: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        fer_caf.main(["--dataset", "afew-va", "--root", str(tmp_path), "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert str(tmp_path) in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "-1"], "--seeds must be at least 1, got -1"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--config", "no/such.yaml"], "no/such.yaml"),
        (["--arms", "none", "cof"], "--arms must be one of none, caf, caf-constant"),
        (["--seed", "1"], "unknown option --seed; the nearest: --seeds"),
        (["--preset", "quik"], "--preset must be"),
    ],
)
def test_wrong_options_are_said(
    fer_caf: ModuleType, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        fer_caf.options(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["critic: none", "margin: linear", "grouping: otsu", "seed: 3", "split_seed: 1"])
def test_a_file_cannot_set_what_the_runs_differ_in(
    fer_caf: ModuleType, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(f"iterations: 5\n{option}\n")
    with pytest.raises(SystemExit) as stopped:
        fer_caf.options(["--config", str(tmp_path / "mine.yaml")])
    assert stopped.value.code == 2
    assert f"got {option.split(':')[0]}; leave out" in capsys.readouterr().err


def test_the_file_changes_the_preset_and_flags_change_both(fer_caf: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"

    def config(*words: str) -> EmotionConfig:
        return fer_caf.config_of(fer_caf.options(["--config", str(file), *words]), "caf", 2)

    file.write_text("iterations: 5\nencoder: alexnet\ndevice: cpu\nbatch_size: 7\nlog_every: 3\n")
    found = config()
    assert (found.iterations, found.encoder, found.device, found.batch_size) == (5, "alexnet", "cpu", 7)
    found = config("--iterations", "6", "--backbone", "resnet18", "--device", "cuda", "--batch-size", "9")
    assert (found.iterations, found.encoder, found.device, found.batch_size) == (6, "resnet18", "cuda", 9)
    assert found.log_every == 3
    assert found.people == QUICK.people
    assert (found.seed, found.split_seed) == (2, fer_caf.FACES_SEED + 2)

    file.write_text(f"dataset: afew-va\nroot: {tmp_path}\n")
    found = config()
    assert (found.dataset, found.root, found.fold, found.encoder) == ("afew-va", str(tmp_path), 2, "resnet18")
    file.write_text("dataset: afew-va\n")
    assert config("--root", "elsewhere").root == "elsewhere"
    file.write_text("root: here\n")
    assert config("--dataset", "affectnet").root == "here"


def test_an_arm_leaves_out_what_the_file_has_for_other_arms(fer_caf: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("term_weight: 0.5\nconstant: 0.3\nrepulsion: 0.7\n")
    asked = fer_caf.options(["--config", str(file), "--arms", "caf-constant", "fisher", "grl"])
    found = {arm: fer_caf.config_of(asked, arm, 0) for arm in asked.arms}
    assert {arm: (one.term_weight, one.constant, one.repulsion) for arm, one in found.items()} == {
        "none": (1.0, 0.2, 0.7),  # the baseline has the critic's options
        "caf-constant": (1.0, 0.3, 0.7),
        "fisher": (1.0, 0.2, 1.0),
        "grl": (0.5, 0.2, 0.7),
    }
    file.write_text("every: 5\n")
    with pytest.raises(SystemExit):
        fer_caf.options(["--config", str(file)])


def test_the_paper_preset_follows_backbone_and_data_set(fer_caf: ModuleType, tmp_path: Path) -> None:
    def numbers(*words: str) -> tuple[int, int]:
        asked = fer_caf.options(["--preset", "paper", "--root", str(tmp_path), *words])
        config = fer_caf.config_of(asked, "caf", 0)
        return config.batch_size, config.iterations

    assert numbers("--dataset", "affectnet") == (128, 50_000)
    assert numbers("--dataset", "affectnet", "--backbone", "alexnet") == (256, 50_000)
    assert numbers("--dataset", "aff-wild") == (128, 100_000)
    given = ("--batch-size", "128", "--iterations", "50000")
    assert numbers("--dataset", "aff-wild", "--backbone", "alexnet", *given) == (128, 50_000)
    (tmp_path / "mine.yaml").write_text("batch_size: 64\nencoder: alexnet\niterations: 9\n")
    assert numbers("--dataset", "aff-wild", "--config", str(tmp_path / "mine.yaml")) == (64, 9)


def test_the_papers_experiment_is_the_baseline_and_the_papers_arm(fer_caf: ModuleType, tmp_path: Path) -> None:
    assert fer_caf.options(["--dataset", "affectnet", "--root", str(tmp_path)]).arms == ("none", "caf")
    assert set(fer_caf.QUICK_ARMS) < set(fer_caf.options(["--preset", "faces"]).arms)
    assert fer_caf.options([]).arms == fer_caf.QUICK_ARMS


def test_what_takes_more_than_a_day_has_to_be_wanted(
    fer_caf: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before anything is read or written: runs, iterations, hours, disk."""
    words = ["--arms", "none", "--seeds", "1", "--iterations", "90000000", "--device", "cpu", "--jobs", "1"]
    words += ["--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as end:
        fer_caf.main(words)
    said = capsys.readouterr()
    assert end.value.code == 2
    assert re.search(
        r"1 run, 90,000,000 iterations: about [\d,.]+ hours on this device \(.*\); disk: \d+ MiB", said.err
    )
    assert "error: --yes must be given for more than a day of training, got about" in said.err
    assert not (tmp_path / "out").exists()
    trained: list[object] = []
    monkeypatch.setattr(
        fer_caf, "train_all", lambda configs, jobs: trained.append(configs) or dict.fromkeys(configs, "no")
    )
    assert fer_caf.main([*words, "--yes"]) == 1
    assert len(trained) == 1


def test_an_unknown_backbone_is_said_before_anything_is_trained(
    fer_caf: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        fer_caf.main(["--backbone", "resnet19", "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: encoder must be")
    assert "did you mean 'resnet18'" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_said_before_anything_starts(
    fer_caf: ModuleType, tmp_path: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        fer_caf.main(["--output", str(tmp_path / "out"), "--device", device])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: device must be ")
    assert (said.err.count("\n"), said.out) == (1, "")
    assert not (tmp_path / "out").exists()


def test_a_fault_in_a_run_is_its_message_and_its_log_has_the_rest(
    fer_caf: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_network(*_: object, **__: object) -> None:
        raise KeyError("nobody expected this")

    monkeypatch.setattr(fer_caf, "train_network", train_network)
    monkeypatch.setattr(fer_caf, "shared_data", lambda key: None)
    config = dataclasses.replace(QUICK, output=str(tmp_path / "caf" / "seed0"), device="cpu")
    assert "KeyError: 'nobody expected this'" in fer_caf.train_one(config)
    assert "Traceback" in (tmp_path / "caf" / "seed0.log").read_text()


@pytest.mark.slow
def test_runs_that_cannot_go_on_as_asked_are_in_no_table(
    fer_caf: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fer_caf, "start_pool", lambda jobs: Workers(0))
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = ["--config", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "out"), "--arms", "none"]
    assert fer_caf.main([*words, "--seeds", "1", "--iterations", "4"]) == 0
    assert fer_caf.main([*words, "--seeds", "2", "--iterations", "2"]) == 1  # seed 0 has done more already
    assert "failed: none/0: iterations must be at least the 4 that" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["seed"] for one in results["arms"]["none"]["seeds"]] == [1]
    assert json.loads((tmp_path / "out" / "runs" / "none" / "seed0" / "result.json").read_text())["test"]  # still there


@pytest.mark.parametrize("name", ["faces-quick", "faces-faces"])
def test_the_tables_in_the_docs_are_those_of_the_results(
    fer_caf: ModuleType, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = SCRIPT.parent / "fer_caf" / "results" / f"{name}.json"
    assert fer_caf.main(["--print", str(results)]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed.count("\n") > 2
    assert printed in (SCRIPT.parents[1] / "docs" / "emotion.md").read_text(encoding="utf-8")


def test_one_seed_and_nobody_known_make_a_table_too(fer_caf: ModuleType) -> None:
    test = {"figures": {"ccc": {"mean": 0.5}, "rmse": {"mean": 0.25}}}
    lines = fer_caf.markdown({"arms": {"caf": {"seeds": [{"seed": 0, "test": test}]}}})
    assert lines[-1] == "| `caf` | 0.500 | 0.250 |  |  |  |  |  |"


def test_under_torchrun_only_what_all_processes_raise_is_survived(
    fer_caf: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = {("none", n): dataclasses.replace(QUICK, output=str(tmp_path / f"seed{n}"), device="cpu") for n in (0, 1)}
    raised: list[Exception] = [RunFolderError("another run"), NonFiniteError(3, "loss", "")]
    monkeypatch.setattr(fer_caf, "shared_data", lambda key, world: None)

    def run(*_: object, **__: object) -> None:
        raise raised.pop(0)

    monkeypatch.setattr(fer_caf, "run", run)
    assert list(fer_caf.train_together(configs, World())) == list(configs)
    raised += [PermissionError(13, "of one process alone")]
    with pytest.raises(PermissionError):
        fer_caf.train_together(configs, World())


def dies(config: EmotionConfig) -> str:
    """In place of training: the baseline's process ends without a word, as the kernel ends one that wants memory."""
    if config.critic == "none":
        os._exit(1)
    return f"trained {config.critic}"


@pytest.mark.slow
def test_a_process_that_dies_leaves_the_other_runs(
    fer_caf: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fer_caf, "train_one", dies)
    configs = {
        (arm, 0): dataclasses.replace(QUICK, critic=arm, output=str(tmp_path / arm / "seed0"))  # type: ignore[arg-type]
        for arm in ("none", "caf")
    }
    failed = fer_caf.train_all(configs, 1)
    assert failed["none", 0].startswith("a process died")
    assert failed["caf", 0] == "trained caf"


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["caf", "none"])
def test_a_run_that_fails_is_reported_and_the_others_go_on(
    fer_caf: ModuleType,
    tmp_path: Path,
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fer_caf, "start_pool", lambda jobs: Workers(0))
    (tmp_path / "out" / "runs").mkdir(parents=True)
    (tmp_path / "out" / "runs" / broken).write_text("in the way")
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = ["--config", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert fer_caf.main([*words, "--arms", "none", "caf", "--seeds", "1", "--iterations", "4"]) == 1
    said = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["failed"]) == [f"{broken}/0"]
    assert list(results["arms"]) == ["none" if broken == "caf" else "caf"]
    assert f"failed: {broken}/0: " in said
