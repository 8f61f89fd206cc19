"""The demo end to end, on few steps: what it prints, writes and leaves behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}  # the checkout's own package, installed or not
pytest.importorskip("matplotlib")
MAP, RECALL = "mean_average_precision_at_r", "recall_at_1"


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["demo"]


def row(loss, margin, seed, score, recall=0.5, part="test"):
    curve = [0.9, 0.5] if margin == "adaptive" else []
    return {"loss": loss, "margin": margin, "seed": seed, "part": part, MAP: score, RECALL: recall, "curve": curve}


def outcome(demo, contrastive, triplet, margin):
    """Own, best and adaptive MAP@R of each loss, with a little noise that is the seed's; the best constant is 0.45."""
    rows = []
    for loss, means in (("contrastive", contrastive), ("triplet", triplet), ("margin", margin)):
        for arm, mean in zip((demo.LOSSES[loss].default, 0.45, "adaptive"), means, strict=True):
            noise = {"adaptive": (0.001, -0.001, 0.0)}.get(arm, (0.0, 0.0, 0.0))
            rows += [row(loss, arm, seed, mean + noise[seed]) for seed in range(3)]
    return demo.Outcome(rows, dict.fromkeys(demo.SQUARED, 0.45))


def test_one_network_learns_and_is_the_same_again(demo):
    run = demo.Run("contrastive", "adaptive", seed=0, steps=2)
    result = demo.train(run)
    assert result["part"] == "test"
    assert len(result["curve"]) == 2
    assert 0.5 < result["curve"][0] < 2  # a squared distance: 32 classes, all mixed
    again = demo.train(run)
    assert {**again, "cpu_seconds": 0} == {**result, "cpu_seconds": 0}


def test_tuning_measures_on_validation_classes(demo):
    result = demo.train(demo.Run("triplet", 0.1, demo.TUNING_SEED, steps=1))
    assert (result["part"], result["curve"]) == ("validation", [])


def test_the_best_constant_is_that_of_map_then_of_recall_then_the_smallest(demo):
    scores = {0.2: (0.3, 0.6), 0.5: (0.4, 0.6), 0.8: (0.4, 0.7), 1.0: (0.4, 0.7)}
    rows = [row("contrastive", m, demo.TUNING_SEED, *scores[m], part="validation") for m in (1.0, 0.2, 0.8, 0.5)]
    rows += [row("contrastive", 1.2, 0, 0.9), row("triplet", 0.3, demo.TUNING_SEED, 0.9, part="validation")]
    assert demo.tuned("contrastive", rows) == 0.8


@pytest.mark.parametrize(("loss", "margin"), [("contrastive", 0.7), ("triplet", 0.1), ("margin", 0.3)])
def test_a_constant_is_drawn_as_the_adaptive_margin_that_equals_it(demo, loss, margin):
    from adaptive_margin import AdaptiveMarginLoss

    host = demo.LOSSES[loss].host
    swap = AdaptiveMarginLoss.supported()[host]
    assert swap.geometry(demo.SQUARED[loss](margin), swap.scale, None) == pytest.approx(margin)


def test_gains_and_losses_are_said_alike(demo):
    found = outcome(demo, contrastive=(0.20, 0.30, 0.31), triplet=(0.30, 0.25, 0.20), margin=(0.3, 0.3, 0.3))
    gain = found.compare("adaptive", "own", MAP)["contrastive"]
    assert (gain.n, gain.mean, gain.verdict) == (3, pytest.approx(11.0), "better")
    assert 0 < gain.p < 0.05
    said = found.lesson()
    assert "\n" not in said
    assert "in MAP@R better than the loss's own for contrastive loss and worse for triplet loss" in said
    assert "better than the best of eight for contrastive loss and worse for triplet loss" in said
    assert "largest regret +5.0 points, triplet loss" in said
    assert "in Recall@1 better than the loss's own for none and worse for none" in said
    table = found.table()
    assert "20.0 (1)" in table
    assert "31.0" in table
    assert "+11.0 [" in table
    assert "−1.0 [" in table  # contrastive's regret


def test_a_margin_that_gains_everywhere_has_a_regret_below_zero(demo):
    said = outcome(demo, (0.1, 0.2, 0.3), (0.1, 0.2, 0.3), (0.1, 0.2, 0.3)).lesson()
    assert "better than the best of eight for all three losses and worse for none (largest regret −10.0 points" in said


def test_the_picture_where_the_own_constant_is_the_best(demo, tmp_path):
    found = outcome(demo, (0.2, 0.2, 0.2), (0.2, 0.2, 0.2), (0.2, 0.2, 0.2))
    own = {loss: demo.LOSSES[loss].default for loss in demo.SQUARED}
    same = demo.Outcome(found.rows, own)
    assert same.compare("best", "own", MAP)["triplet"].mean == 0
    demo.draw(same, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_whole_demo(demo, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--seeds", "2", "--steps", "1"]
    (tmp_path / "unfinished.json").write_text('{"rows": []}')
    run = subprocess.run(
        [*command, "--jobs", "1", "--output", str(tmp_path)],
        **{"cwd": ROOT, "env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 300},
    )
    assert run.returncode == 0, run.stderr
    assert "earlier run" not in run.stdout
    assert all(f"\n{loss} " in run.stdout for loss in demo.SQUARED)
    assert "Pixels, without any network: MAP@R 1." in run.stdout
    assert "Untuned, the adaptive margin is in MAP@R better" in run.stdout
    assert f"Wrote {tmp_path}" in run.stdout
    assert "networks: 100%" in run.stderr
    assert not (tmp_path / "unfinished.json").exists()
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["complete"]
    assert document["versions"]["torch"]
    assert "demo.py" in document["command"][1]
    changed = sum(best != demo.LOSSES[loss].default for loss, best in document["best"].items())
    assert len(document["rows"]) == 3 * 8 + 2 * 3 * 2 + 2 * changed
    parts = [row["part"] for row in document["rows"]]
    assert parts.count("validation") == 3 * 8  # and the test classes chose nothing


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--seeds", "1"], "--seeds must be from 2 to 100, got 1"),
        (["--steps", "0"], "--steps must be from 1 to 100000, got 0"),
        (["--jobs", "0"], "--jobs must be from 1 to 60, got 0"),
        (["--jobs", "two"], "invalid int value: 'two'"),
    ],
)
def test_wrong_options_are_refused(demo, given, said, capsys):
    with pytest.raises(SystemExit):
        demo.main(given)
    assert said in capsys.readouterr().err


def test_a_file_is_no_folder(demo, tmp_path, capsys):
    (tmp_path / "there").write_text("something")
    with pytest.raises(SystemExit):
        demo.main(["--output", str(tmp_path / "there")])
    assert "--output must be a folder, got the file" in capsys.readouterr().err


def test_an_interrupted_run_keeps_what_is_finished(demo, tmp_path, capsys, monkeypatch):
    def interrupted(seeds, steps, jobs, finished):
        finished.append(demo.train(demo.Run("margin", 0.2, 0, steps)))
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train_all", interrupted)
    earlier = {"demo.png": "of an earlier run", "results.json": '{"rows": []}'}
    for name, content in earlier.items():
        (tmp_path / name).write_text(content)
    assert demo.main(["--seeds", "2", "--steps", "1", "--output", str(tmp_path)]) == 130
    printed = capsys.readouterr().out
    assert "The results of an earlier run" in printed
    assert f"Stopped after 1 network. Wrote their numbers to {tmp_path / 'unfinished.json'}." in printed
    document = json.loads((tmp_path / "unfinished.json").read_text())
    assert not document["complete"]
    assert len(document["rows"]) == 1
    assert {name: (tmp_path / name).read_text() for name in earlier} == earlier
    with pytest.raises(SystemExit) as end:
        demo.main(["--print", str(tmp_path / "unfinished.json")])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --print must be the results.json of a demo that has finished, got ")
    assert said.endswith("unfinished.json; run the demo to its end, and pass that file\n")


@pytest.mark.parametrize("name", ["results.json", "unfinished.json"])
def test_files_of_others_are_not_replaced(demo, tmp_path, capsys, name):
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(SystemExit) as end:
        demo.main(["--output", str(tmp_path)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --output must be a file that does not exist yet, or an earlier one of this command")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("content", ["no JSON", "[]", "{}", '{"rows": {}, "best": [], "pixels": 1}', "\ud800"])
def test_a_file_of_something_else_is_not_printed(demo, tmp_path, capsys, content):
    (tmp_path / "other.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(SystemExit) as end:
        demo.main(["--print", str(tmp_path / "other.json")])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --print must be the results.json")
    assert said.count("\n") == 1


def test_more_than_a_day_touches_nothing(demo, tmp_path, capsys):
    (tmp_path / "demo.png").write_text("of an earlier run")
    with pytest.raises(SystemExit) as end:
        demo.main(["--seeds", "100", "--steps", "100000", "--jobs", "1", "--output", str(tmp_path)])
    assert end.value.code == 2
    assert "--yes must be given for more than a day" in capsys.readouterr().err
    assert (tmp_path / "demo.png").exists()


ENDS_WITH_PARENT = """
import os, runpy, sys
from adaptive_margin.processes import end_with_parent
end_with_parent(int(os.environ["PARENT"]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def started(output, **options):
    """A demo that would take days, in a session of its own, which gets signals as from a terminal. Workers included, it
    ends with the process that starts it, so a test that is killed leaves nothing behind."""
    words = ["--seeds", "2", "--steps", "100000", "--jobs", "1", "--yes", "--output", str(output)]
    return subprocess.Popen(
        [sys.executable, "-u", "-c", ENDS_WITH_PARENT, str(ROOT / "examples" / "demo.py"), *words],
        cwd=ROOT,
        env={**ENVIRONMENT, "PARENT": str(os.getpid())},
        start_new_session=True,
        **options,
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_it_ends_with_a_test_that_is_killed(tmp_path):
    code = f"from tests.test_demo import started; print(started({str(tmp_path)!r}).pid, flush=True); input()"
    test = subprocess.Popen(
        [sys.executable, "-c", code],
        **{"cwd": ROOT, "env": ENVIRONMENT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE},
    )
    assert int(test.stdout.readline())
    test.kill()
    test.communicate(timeout=120)  # until the demo is gone too: it holds the same pipe


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a process group")
def test_ctrl_c_ends_it_without_a_traceback(tmp_path):
    """While its workers train; tests/test_processes.py has those that are being started."""
    demo = started(
        tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests may run where it is ignored
    )
    stderr = demo.stderr.readline()
    assert stderr.startswith("42 runs, 4,200,000 iterations: about ")
    stderr += demo.stderr.read(len("\r42 networks"))  # the bar is there, so the workers are on their way
    time.sleep(8)
    os.killpg(demo.pid, signal.SIGINT)
    stdout, rest = demo.communicate(timeout=120)  # which waits for the workers too: they hold the same pipes
    assert demo.returncode == 130
    assert "Stopped after 0 networks. Nothing was written." in stdout
    assert "Traceback" not in stderr + rest
    assert not list(tmp_path.iterdir())
