"""``benchmarks/fer_people.py`` and ``fer_headroom.py``: runs from beginning to end, and the figures of their tables."""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_margin.affect.batches import hands_of
from adaptive_margin.emotion.data import load_data
from adaptive_margin.emotion.nets import PersonNorm
from adaptive_margin.processes import Workers
from adaptive_margin.stored import read_arrays

from .cases import TINY

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _here(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A benchmark whose preset is tiny and whose workers are this process."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module(name)
    monkeypatch.setitem(module.PRESETS, "quick", TINY)
    monkeypatch.setattr(importlib.import_module("fer_people"), "start_pool", lambda jobs: Workers(0))
    importlib.import_module("fer_caf").shared_data.cache_clear()
    return module


def test_arms_are_chosen_on_validation_people_and_tested_on_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = _here("fer_people", monkeypatch)
    given = ["--arms", "person-norm", "--seeds", "2", "--iterations", "2", "--output", str(tmp_path)]
    assert people.main(["choose", *given]) == 0
    content = json.loads((tmp_path / "choose.json").read_text())
    assert content["people"] == "validation"
    first = ["none", *people.CENTRED.values(), "none-together", "none-together-8", "none-twice"]
    assert list(content["arms"]) == [*first, *("person-norm" + said for said in people.READINGS.values())]
    run = next(tmp_path.rglob("person-norm/seed0"))
    every = [read_arrays(run / f"{name}.npz")["prediction"] for name in ("alone", "by_2", "by_person")]
    assert all(not np.array_equal(one, two) for one, two in itertools.combinations(every, 2))
    assert content["options"]["person-norm"] == {"person_norm": True, "per_person": 8}  # what differs
    both = "person-norm, by all pictures of a person"
    low, high = content["differences"][both]["ccc_by_people"]
    assert low <= high
    assert "person-norm, by 2 pictures of a person" not in content["differences"]  # not one of those corrected for
    printed = capsys.readouterr().out
    assert "| `person-norm`, by all pictures of a person | " in printed
    assert (
        "| person-norm, by 4 pictures of a person | plain regression, centred by 4 pictures of a person | " in printed
    )

    asked: Any = people.parsed(["test", *given])
    chosen: Any = people.parsed(["choose", *given])
    assert people.arms_of(asked)[4:6] == ("person-norm", "person-norm-shuffled")
    one, two = people.config_of(chosen, "none", 0), people.config_of(asked, "none", 0)
    assert one.split_seed != two.split_seed  # other people
    assert one.seed != two.seed
    assert people.config_of(asked, "none-twice", 0).iterations == 2 * two.iterations
    parts = {name: set(getattr(load_data(one), name).people) for name in ("val", "test")}
    stored = read_arrays(Path(one.output) / "alone.npz")
    assert set(stored["person"]) == parts["val"]
    assert not set(stored["person"]) & parts["test"]

    runs = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert people.main(["choose", *given]) == 0  # nothing is trained again
    assert "0 runs to train" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")} == runs
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert people.main(["choose", *given[:-1], str(tmp_path / "moved")]) == 0
    assert "0 runs to train" in capsys.readouterr().out


def test_an_arm_of_ones_own_is_one_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = _here("fer_people", monkeypatch)
    file = BENCHMARKS.parent / "examples" / "own_arm.py"
    given = ["--arms", "grl", "--own", f"{file}:Alike", "--seeds", "1", "--iterations", "2", "--output", str(tmp_path)]
    for name in ("Alike", "Alike-shuffled"):
        monkeypatch.setitem(people.ARMS, name, {})
        monkeypatch.delitem(people.ARMS, name)
    assert people.main(["test", *given]) == 0
    arms = json.loads((tmp_path / "test.json").read_text())["arms"]
    assert {"grl", "grl-shuffled", "Alike", "Alike-shuffled"} <= set(arms)
    assert "| 1 seed |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        people.main(["test", "--own", f"{file}:normalize"])
    assert "normalize, which is something else" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["fer_people", "fer_headroom"])
@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
def test_no_seeds_are_not_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], module: str, option: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        _here(module, monkeypatch).main([option, "0", "--iterations", "2", "--output", str(tmp_path / "out")])
    assert f"{option} must be at least 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_failed_leaves_the_other_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = _here("fer_people", monkeypatch)
    given = ["--arms", "grl", "--seeds", "2", "--iterations", "1", "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match="2"):
        people.main(["choose", *given, "--dataset", "afew-va", "--root", str(tmp_path / "nowhere")])
    assert "nowhere" in capsys.readouterr().err  # before anything is trained

    train, broken = people.train_one, {"none": [], "grl-shuffled": []}

    def train_some(config: Any, stage: str) -> str:
        arm = Path(config.output).parent.name
        return "no memory" if config.seed in broken.get(arm, [0, 1]) else str(train(config, stage))

    monkeypatch.setattr(people, "train_one", train_some)
    broken["grl"] = [1]
    assert people.main(["test", *given]) == 1
    printed = capsys.readouterr().out
    assert "failed: ('grl', 1): no memory" in printed
    assert "| `grl` (1 seed) |" in printed
    assert "shuffled people |" not in printed  # one seed has no interval
    broken = {}
    assert people.main(["test", *given, "--output", str(tmp_path / "other")]) == 1  # not one run is left
    assert "failed: ('none', 0): no memory" in capsys.readouterr().out
    assert not (tmp_path / "other" / "test.json").exists()


def test_predictions_are_centred_as_features_are(monkeypatch: pytest.MonkeyPatch) -> None:
    people = _here("fer_people", monkeypatch)
    person = np.array([3, 3, 3, 9, 9, 3])
    prediction = np.random.default_rng(0).normal(size=(6, 2))
    norm = PersonNorm(2).eval()
    norm.running_mean.copy_(torch.from_numpy(prediction.mean(axis=0)))
    for pictures in (2, None):
        found = people.centred({"person": person, "prediction": prediction}, pictures)["prediction"]
        with norm.known(torch.from_numpy(hands_of(person, pictures))):
            expected = norm(torch.from_numpy(prediction)).numpy() + prediction.mean(axis=0)
        assert np.allclose(found, expected, atol=1e-6)


def test_people_who_are_tested_again_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    people = _here("fer_people", monkeypatch)
    draw = np.random.default_rng(1)
    truth, person = draw.normal(size=(200, 2)), np.repeat(np.arange(10), 20)
    base = {"truth": truth, "prediction": truth + draw.normal(size=(200, 2)), "person": person}
    ours = base | {"prediction": truth + 0.9 * draw.normal(size=(200, 2)) + draw.normal(size=(10, 1))[person]}
    once, twice = (people.by_people([(ours, base)] * n, same_people=True) for n in (1, 2))
    assert np.allclose(once, twice, atol=2e-4)  # the same people again say nothing new
    low, high = people.by_people([(ours, base)] * 2, same_people=False)
    assert high - low < once[1] - once[0]


def test_afew_va_is_chosen_and_tested_on_different_people(monkeypatch: pytest.MonkeyPatch) -> None:
    people = _here("fer_people", monkeypatch)
    given = ["--dataset", "afew-va", "--root", "x"]
    folds = {}
    for stage in ("choose", "test"):
        asked = people.parsed(["--stage", stage, *given])
        folds[stage] = {people.config_of(asked, "none", seed).fold for seed in range(8)}
    assert folds == {"choose": {4}, "test": {0, 1, 2, 3}}


def test_headroom_is_measured_for_each_setting_of_the_dial(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    headroom = _here("fer_headroom", monkeypatch)
    given = ["--effects", "0", "2", "--seeds", "1", "--iterations", "2", "--output", str(tmp_path)]
    assert headroom.main(given) == 0
    content = json.loads((tmp_path / "headroom.json").read_text())
    assert [row["person_effect"] for row in content["effects"]] == [0, 2]
    asked: Any = headroom.parsed(given)
    for row in content["effects"]:
        folders = [headroom.config_of(asked, row["person_effect"], 0, kind).output for kind in headroom.TRAINED]
        held_out, shared = (read_arrays(Path(folder) / "alone.npz") for folder in folders)
        assert np.array_equal(held_out["truth"], shared["truth"])  # the same test
        assert not np.array_equal(held_out["prediction"], shared["prediction"])
        assert row["seeds"][0]["held out"] == headroom.ccc_of(folders[0])
        assert row["seeds"][0]["recentred"] == headroom.ccc_of(folders[0], corrected=True)
    capsys.readouterr()
    figure = tmp_path / "headroom.png"
    assert headroom.main(["--print", str(tmp_path / "headroom.json"), "--figure", str(figure)]) == 0
    assert "| 0 |" in capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_documentation_has_the_committed_headroom(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    headroom = _here("fer_headroom", monkeypatch)
    assert headroom.main(["--print", str(BENCHMARKS / "fer_caf" / "results" / "headroom.json")]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    page = (BENCHMARKS.parent / "docs" / "people.md").read_text(encoding="utf-8").splitlines()
    assert len(printed) == 4
    assert set(printed) <= set(page)
