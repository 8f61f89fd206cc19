"""A killed run ends with the same bits, two processes do what one does, and the test is looked at once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_margin.command import main
from adaptive_margin.dml import trainer
from adaptive_margin.dml.config import SMALL
from adaptive_margin.dml.datasets import load_class_folders
from adaptive_margin.dml.embedded import digits
from adaptive_margin.dml.labelled_images import split_classes
from adaptive_margin.dml.results import read_result, read_runs, row_of, said
from adaptive_margin.dml.trainer import DMLJob, default_folder, load_embeddings, run
from adaptive_margin.images.errors import UnreadableError
from adaptive_margin.stored import DamagedFileError
from adaptive_margin.training import CheckpointError, RunFolderError, World
from adaptive_margin.training.command_line import parse
from tests.platforms import needs_processes
from tests.training.processes import finish, in_ranks, start

from . import stand_ins
from .steps import few, in_world, train_slowly

ROOT = Path(__file__).parents[2]


def final(out: Path) -> tuple[dict[str, object], torch.Tensor]:
    result = json.loads((out / "result.json").read_text())
    curves = {name: curve["values"] for name, curve in result["curves"].items()}
    return {"test": result["test"], "selected": result["selected"], "curves": curves}, load_embeddings(out)[0]


@needs_processes
@pytest.mark.parametrize("loss", ["margin", "auto-margin"])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, loss: str) -> None:
    torch.set_num_threads(1)
    run(few(tmp_path / "whole", loss), digits())
    killed = start(train_slowly, tmp_path / "killed", loss)
    deadline = time.monotonic() + 50
    while not list((tmp_path / "killed" / "checkpoints").glob("step-000000005-*.pt")):
        assert killed.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    assert finish(killed) == [-signal.SIGKILL]
    assert not (tmp_path / "killed" / "result.json").exists()
    run(few(tmp_path / "killed", loss), digits())
    (one, embedded), (other, also) = final(tmp_path / "whole"), final(tmp_path / "killed")
    assert one == other
    assert torch.equal(embedded, also)


@needs_processes
def test_two_processes_are_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run(few(tmp_path / "one", "proxy-anchor"), digits())  # no draws: a draw that rounding tips over changes the run
    in_ranks(in_world, tmp_path / "ranks", tmp_path / "two", "proxy-anchor")
    (one, embedded), (two, also) = final(tmp_path / "one"), final(tmp_path / "two")
    torch.testing.assert_close(embedded, also, atol=5e-3, rtol=0)  # kept in half precision
    for name in ("loss", "margin", "mi"):
        np.testing.assert_allclose(one["curves"][name], two["curves"][name], rtol=1e-3)


def test_a_result_says_how_it_was_chosen(tmp_path: Path) -> None:
    config = few(tmp_path / "run", "contrastive")
    result = run(config, digits())
    evaluations = result["curves"]["validation/mean_average_precision_at_r"]
    assert result["selected"]["by"] == "validation/mean_average_precision_at_r"
    assert result["selected"]["score"] == pytest.approx(max(evaluations["values"]), abs=1e-6)
    assert not any(name.startswith("test/") for name in result["curves"])
    assert "classes used for neither training nor test" in said(result)
    assert result["data"]["test"] == {"images": 720, "classes": 18}
    assert set(result["test"]) == {"recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8"} | {
        "r_precision",
        "mean_average_precision_at_r",
    }
    assert run(config, digits()) == json.loads(json.dumps(result))  # found again, not trained again


def test_another_runs_result_is_not_this_ones(tmp_path: Path) -> None:
    config = replace(few(tmp_path, "contrastive"), epochs=1, measure=False)
    run(config, digits())
    with pytest.raises(RunFolderError, match=r"(?s)another configuration:.*loss: 'contrastive' there, 'vdm' now"):
        run(replace(config, loss="vdm"), digits())
    with pytest.raises(RunFolderError, match=r"(?s)data: 'digits \w+' there, 'others \w+' now\nchoose another folder"):
        run(config, replace(digits(), name="others"))
    run(replace(config, checkpoint_every=7, keep_embeddings=False), digits())  # what may change
    folded = replace(config, folds=2, classes=6)
    with pytest.raises(RunFolderError, match="folds: 0 there, 2 now"):
        run(folded, digits())


def test_a_killed_run_does_not_go_on_with_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: DMLJob, step: int) -> None:
        raise RuntimeError("killed")

    config = few(tmp_path, "contrastive")
    with monkeypatch.context() as patch:
        patch.setattr(DMLJob, "step", die)
        with pytest.raises(RuntimeError, match="killed"):
            run(config, digits())
    assert not (tmp_path / "result.json").exists()
    with pytest.raises(RunFolderError, match=r"data: 'digits \w+' there, 'others \w+' now"):
        run(config, replace(digits(), name="others"))
    with pytest.raises(ValueError, match=r"data must be 'others \w+', the data set at hand, got 'digits'"):
        run(replace(config, data="digits"), replace(digits(), name="others"))


def test_a_result_of_other_images_under_the_same_name_is_refused(tmp_path: Path) -> None:
    config = replace(few(tmp_path, "contrastive"), epochs=1, measure=False)
    run(config, digits())
    run(config, digits())  # found again
    others = digits()
    assert others.pixels is not None
    moved = [replace(others, pixels=others.pixels[::-1].copy()), replace(others, test_classes=frozenset({0, 1}))]
    for data in moved:
        with pytest.raises(RunFolderError, match=r"data: 'digits [0-9a-f]{12}' there, 'digits [0-9a-f]{12}' now"):
            run(config, data)
    with pytest.raises(ValueError, match=r"data must be 'digits \w+', the data set at hand, got 'digits elsewhere'"):
        run(replace(config, data="digits elsewhere"), others)


def test_whatever_is_damaged_or_gone_is_named(tmp_path: Path) -> None:
    config = replace(few(tmp_path, "contrastive"), epochs=1)
    result = run(config, digits())
    place, checkpoints = tmp_path / "result.json", tmp_path / "checkpoints"
    content, embedded = place.read_text(), (tmp_path / "embeddings.npz").read_bytes()

    place.write_text(content.replace('"recall_at_1": 0.', '"recall_at_1": 0.9', 1))
    with pytest.warns(UserWarning, match=r"result.json is damaged: .*; the run is resumed"):
        again = run(config, digits())
    assert again["test"] == result["test"] == read_result(tmp_path)["test"]

    spoilt = bytearray(embedded)
    spoilt[len(spoilt) // 2] ^= 4
    (tmp_path / "embeddings.npz").write_bytes(spoilt)
    with pytest.raises(DamagedFileError, match=r"embeddings.npz is damaged: .*; delete the folder and train"):
        load_embeddings(tmp_path)

    place.unlink()
    (best,) = checkpoints.glob("best-*")
    content = best.read_bytes()
    best.unlink()
    with pytest.raises(CheckpointError, match=r"best evaluation, after step 4, is not in .*; restore it from a backup"):
        run(config, digits())  # and not measure the last network as if it were the best
    best.write_bytes(content)
    assert run(config, digits())["test"] == result["test"]

    (tmp_path / "result.json").write_bytes(b"\0" * 100)
    checkpoints.rename(tmp_path / "old")
    curves = (tmp_path / "scalars.csv").read_bytes()
    message = "holds a finished run .* whose checkpoints are gone"
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(RunFolderError, match=message):
        run(config, digits())
    assert (tmp_path / "scalars.csv").read_bytes() == curves


def test_without_validation_nothing_looks_at_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    embed = DMLJob.embed
    monkeypatch.setattr(DMLJob, "embed", lambda self, part: (looked.append(part), embed(self, part))[1])
    result = run(replace(few(tmp_path), select="last", validation=0.0, epochs=1, measure=False), digits())
    assert looked == []
    assert said(result).startswith("measured after the last step (4); no figure chose it\n")


def test_another_number_of_folds_has_folders_of_its_own(tmp_path: Path) -> None:
    config = replace(few(tmp_path, "contrastive"), epochs=1, classes=6, measure=False)
    run(replace(config, folds=2), digits())
    (tmp_path / "result.json").unlink()  # as if it had been interrupted
    run(replace(config, folds=3), digits())
    assert len(list(tmp_path.glob("fold-*-of-2"))) == 2
    assert len(list(tmp_path.glob("fold-*-of-3"))) == 3


def test_runs_that_name_no_folder_do_not_share_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(few(tmp_path, "contrastive"), out=None, epochs=1, measure=False, neighbourhood="hoeffding")
    run(config, digits())
    assert (tmp_path / "runs" / "digits-contrastive-hoeffding-seed0" / "result.json").exists()
    others = [replace(config, seed=1), replace(config, loss="vdm"), replace(config, granularity="pair")]
    assert len({default_folder(each, digits()) for each in [config, *others]}) == 4
    assert default_folder(config, replace(digits(), name="a b")) == Path("runs/a-b-contrastive-hoeffding-seed0")


def test_choosing_by_the_test_is_said_aloud(tmp_path: Path) -> None:
    result = run(replace(few(tmp_path, "contrastive"), select="test", validation=0.0, epochs=1), digits())
    assert result["selected"]["by"].startswith("test/")
    assert "THE TEST ITSELF" in said(result)
    assert result["data"]["validation"]["images"] == 0


def test_tuning_does_not_look_at_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    embed = DMLJob.embed
    monkeypatch.setattr(DMLJob, "embed", lambda self, part: (looked.append(part), embed(self, part))[1])
    result = run(replace(few(tmp_path, "contrastive"), measure=False, epochs=1), digits())
    assert result["test"] is None
    assert set(looked) == {"validation"}


def test_folds_are_averaged_and_concatenated(tmp_path: Path) -> None:
    config = replace(few(tmp_path, "contrastive"), folds=2, epochs=1, classes=6)
    result = run(config, digits())
    ones = [fold["test"]["recall_at_1"] for fold in result["folds"]]
    assert result["test"]["recall_at_1"] == pytest.approx(np.mean(ones))
    assert len({json.dumps(fold["data"]) for fold in result["folds"]}) == 2
    assert "concatenated embeddings of all folds" in said(result)
    assert set(result["test_concatenated"]) == set(result["test"])
    assert result["config"]["out"] == str(tmp_path)
    assert result["config"]["folds"] == 2
    assert [row["folder"] for row in read_runs(tmp_path)] == [str(tmp_path)]  # a fold is no run of its own
    assert run(config, digits()) == json.loads(json.dumps(result))


def test_classes_of_one_image_are_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.folders(tmp_path / "in", classes=8, each=1)
    options = [*stand_ins.TINY, "--classes", "2", "--device", "cpu", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as end:
        main(["train-retrieval", "folder", "--root", str(tmp_path / "in"), *options])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: images of test classes must be two or more of some class, got one of each; "
        "add some, or pass --no-measure --select last\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_the_configuration_of_a_run_starts_another_on_other_data(tmp_path: Path) -> None:
    one, other = tmp_path / "digits", tmp_path / "fonts"
    options = ["--loss", "contrastive", "--epochs", "1", "--steps-per-epoch", "1", "--no-measure"]
    assert main(["train-retrieval", "digits", *options, "--out", str(one)]) == 0
    assert main(["train-retrieval", "fonts", "--config", str(one / "config.yaml"), "--out", str(other)]) == 0
    results = [read_result(place) for place in (one, other)]
    assert [result["data"]["name"] for result in results] == ["digits", "fonts"]
    assert [result["config"]["classes"] for result in results] == [16, 16]


def test_the_command_says_where_folds_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--folds 2 --classes 4 --per-class 4 --epochs 1 --steps-per-epoch 1 --select last --no-measure"
    assert main(["train-retrieval", "digits", *options.split(), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 folds, each measured after the last step (1); no figure chose it\n")
    assert printed.endswith(f"in {tmp_path / 'run'}: result.json; in its folders fold-*: scalars.csv, checkpoints\n")


@pytest.mark.skipif(os.name != "posix", reason="the system has no such locks")
def test_a_folder_of_folds_belongs_to_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first fold until the result is written."""
    config = replace(few(tmp_path, "contrastive"), folds=2, epochs=1, classes=6, measure=False)
    seen = []
    write = trainer.write_json

    def looked(path: Path, *content: Any, **options: Any) -> None:
        code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'ab'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        other = subprocess.run([sys.executable, "-c", code, path.parent / ".lock"], capture_output=True, text=True)
        seen.append(other.stderr.splitlines()[-1])
        write(path, *content, **options)

    monkeypatch.setattr(trainer, "write_json", looked)
    run(config, digits())
    (said_there,) = seen
    assert said_there.startswith("BlockingIOError")


def test_folds_without_a_test(tmp_path: Path) -> None:
    config = replace(few(tmp_path, "contrastive"), folds=2, epochs=1, classes=6, measure=False)
    result = run(config, digits())
    assert result["test"] is None
    scores = [fold["selected"]["score"] for fold in result["folds"]]
    assert row_of(result, tmp_path)["validation"] == pytest.approx(np.mean(scores), abs=1e-5)
    how = f"validation MAP@R ({np.mean(scores):.3f})"
    assert said(result).startswith(f"2 folds, each chosen by {how} on classes used for neither training nor test")


def test_arms_of_a_seed_see_the_same_batches() -> None:
    data = digits()
    split = split_classes(data, validation=0.3, seed=1)
    jobs = [
        DMLJob(replace(few(Path("unused"), "contrastive"), margin=margin, seed=1), data, data.pixels, split, World())
        for margin in ("default", "adaptive")
    ]
    for one, other in zip(jobs[0].network.parameters(), jobs[1].network.parameters(), strict=True):
        assert torch.equal(one, other)
    for step in (0, 7):
        (images, rows), (same, also) = (job._read(step) for job in jobs)
        assert torch.equal(images, same)
        np.testing.assert_array_equal(rows, also)


def test_rates_follow_the_protocol() -> None:
    data = digits()
    split = split_classes(data, validation=0.3, seed=0)
    config = replace(few(Path("unused"), "proxy-anchor"), backbone_rate=0.01, schedule="constant", halve_at=(1, 2))
    job = DMLJob(config, data, data.pixels, split, World())
    rates = {}
    for step in (0, 3, 4, 8):
        job._set_rates(step)
        rates[step] = [group["lr"] for group in job.optimizer.param_groups]
    base = [config.learning_rate * 0.01, config.learning_rate, config.loss_rate]
    assert rates[0] == rates[3] == pytest.approx(base)
    assert rates[4] == pytest.approx([rate / 2 for rate in base])
    assert rates[8] == pytest.approx([rate / 4 for rate in base])


def test_mixed_precision_and_faiss(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    config = replace(few(tmp_path / "32", "contrastive"), epochs=1, clustering=True)
    plain = run(config, data=digits())
    mixed = run(
        replace(config, out=tmp_path / "16", precision="bfloat16", faiss=True, channels_last=True), data=digits()
    )
    assert mixed["curves"]["loss"]["values"] == pytest.approx(plain["curves"]["loss"]["values"], rel=0.05)
    assert mixed["test"]["recall_at_8"] == pytest.approx(plain["test"]["recall_at_8"], abs=0.1)
    assert mixed["test"].keys() == plain["test"].keys() >= {"NMI", "AMI"}


def test_frozen_batch_norm_stays(tmp_path: Path) -> None:
    data = digits()
    split = split_classes(data, validation=0.3, seed=0)
    job = DMLJob(replace(few(tmp_path, "contrastive"), freeze_batch_norm=True), data, data.pixels, split, World())
    before = {name: value.clone() for name, value in job.network.state_dict().items()}
    job.step(0)
    for name, value in job.network.state_dict().items():
        frozen = ".1." in name or ".5." in name or ".9." in name  # the batch norms of the small network
        assert torch.equal(value, before[name]) == frozen, name


def test_network_options_are_checked() -> None:
    from adaptive_margin.dml.backbones import build_network

    with pytest.raises(ValueError, match="weights must be 'none'"):
        build_network("small")
    with pytest.raises(ValueError, match="channels must be 3"):
        build_network("resnet18", weights="none", channels=1)
    with pytest.raises(ValueError, match="a file"):
        build_network("resnet18", weights="nowhere.pt")
    assert SMALL.batch == 128


def test_unreadable_images_are_left_out_if_asked(tmp_path: Path) -> None:
    """The message's remedy, followed: the run trains without them, counts and names them."""
    stand_ins.folders(tmp_path / "in", classes=12, each=8)
    data = load_class_folders(tmp_path / "in")
    split = split_classes(data, validation=0.3)
    row = int(split.train[0])
    (tmp_path / "in" / data.paths[row]).write_bytes(b"no picture")
    config = replace(few(tmp_path / "out"), classes=2, resize=20, epochs=1, cache=tmp_path / "cache")
    with pytest.raises(UnreadableError, match=r"1 of 96 rows unreadable.*none allowed(?s:.*) --skip-unreadable "):
        run(config, data)
    assert not (tmp_path / "out").exists()
    allowed = parse(type(config), {"same": config}, argv=["--preset", "same", "--skip-unreadable", "0.02"])
    result = run(allowed, data)
    assert result["data"]["train"]["images"] == len(split.train) - 1
    (named,) = result["data"]["unreadable"]
    assert named.startswith(f"{data.paths[row]}: undecodable")
    assert f"1 unreadable image left out: {data.paths[row]}: undecodable" in said(result)
    assert result["config"]["data"].startswith(f"{data.name} {data.fingerprint} less 1 images ")
    assert run(allowed, data)["data"] == result["data"]  # found again


def test_checkpoints_have_a_card_that_says_how_to_load_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    place = tmp_path / "run" / "checkpoints" / "MODEL_CARD.md"
    step = DMLJob.step

    def first(self: DMLJob, number: int) -> Any:
        started.append(place.read_text(encoding="utf-8"))
        return step(self, number)

    monkeypatch.setattr(DMLJob, "step", first)
    result = run(few(tmp_path / "run", "margin"), digits())
    step_done = result["selected"]["step"]
    card = place.read_text(encoding="utf-8")
    assert "**Training is under way.**" in started[0]
    assert "There are no test figures yet." in started[0]
    assert f"The figures are those of the weights after step {step_done} (chosen by" in card
    assert f"| Recall@1 | {100 * result['test']['recall_at_1']:.1f} |" in card
    assert "| test | 18 | 720 |" in card
    assert "scikit-learn" in card
    assert str(tmp_path) not in card

    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path / "run")
    for file in place.parent.glob("*.pt"):
        scope: dict[str, Any] = {"images": torch.zeros(2, 1, 16, 16)}
        exec(code[1].replace("CHECKPOINT.pt", file.name), scope)
        assert scope["embeddings"].shape[0] == 2


def test_folds_replace_no_file_of_others(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"mine": "three weeks of work"}')
    with pytest.raises(RunFolderError, match="no run is in its folder: choose another folder, or move the file away"):
        run(replace(few(tmp_path, "contrastive"), epochs=1, folds=2, classes=8), digits())
    assert "three weeks" in (tmp_path / "result.json").read_text()
    assert len(list(tmp_path.iterdir())) == 1
