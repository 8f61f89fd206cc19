"""Runs gathered into arms, and what is computed over seeds."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from adaptive_margin.emotion.config import EmotionConfig
from adaptive_margin.emotion.evaluation import read_result
from adaptive_margin.emotion.report import _lead, tell
from adaptive_margin.emotion.runs import (
    Arm,
    Run,
    collapsed,
    difference,
    differences,
    figure,
    measured,
    over_seeds,
    read_runs,
)
from adaptive_margin.stored import write_json

from .runs import ablation, damage, write_run


def test_interval_over_seeds_is_students() -> None:
    values = [0.41, 0.47, 0.43, 0.52]
    found = over_seeds(values)
    low, high = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found is not None
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((np.mean(values), low, high, 4))
    assert over_seeds([]) is None
    assert over_seeds([math.nan]) is None
    single = over_seeds([0.5])
    assert single is not None
    assert math.isnan(single.low)


def test_arms_in_the_order_of_table_4(tmp_path: Path) -> None:
    arms, problems = read_runs(ablation(tmp_path))
    assert [arm.name for arm in arms] == ["none", "caf", "caf-constant"]
    assert [run.seed for run in arms[0].runs] == [0, 1]
    assert arms[0].is_baseline
    assert arms[0].title == "no critic"
    assert problems == []
    assert arms[1].runs[0].curve("mi").values[0] == 0.6
    assert arms[1].runs[0].curve("ccc").values == [0.3, 0.6]
    same, _ = read_runs(tmp_path / "runs")
    assert [arm.name for arm in same] == ["none", "caf", "caf-constant"]
    one, _ = read_runs(tmp_path / "runs" / "caf" / "seed1")
    assert [(arm.name, arm.runs[0].seed) for arm in one] == [("caf", 1)]


def test_difference_is_paired_by_seed(tmp_path: Path) -> None:
    arms, _ = read_runs(ablation(tmp_path, seeds=3))
    baseline, caf = arms[:2]
    gaps = [
        figure(a.result, "ccc", "mean") - figure(b.result, "ccc", "mean")
        for a, b in zip(caf.runs, baseline.runs, strict=True)
    ]
    found = difference(caf, baseline)
    assert (found.mean, found.n, found.by) == (pytest.approx(np.mean(gaps)), 3, "seed")
    fewer = Arm("none", baseline.runs[1:])
    assert difference(caf, fewer).mean == pytest.approx(np.mean(gaps[1:]))
    assert difference(caf, Arm("none", ())) is None


def test_several_differences_are_corrected_for_their_number(tmp_path: Path) -> None:
    arms, _ = read_runs(ablation(tmp_path, seeds=3))
    baseline, *others = arms
    found = differences(others, baseline)
    for arm in others:
        alone, corrected = difference(arm, baseline), found[arm.name]
        assert (corrected.mean, corrected.n) == (pytest.approx(alone.mean), alone.n)
        assert corrected.low <= alone.low
        assert corrected.high >= alone.high
    assert any(found[arm.name].low < difference(arm, baseline).low for arm in others)
    single = Arm("none", baseline.runs[:1])
    assert differences(others, single) == {arm.name: difference(arm, single) for arm in others}  # by person: no p


def test_one_seed_is_compared_person_by_person(tmp_path: Path) -> None:
    arms, _ = read_runs(ablation(tmp_path, seeds=1))
    found = difference(arms[1], arms[0])
    own = measured(arms[1], "ccc", "mean")
    assert found.by == own.by == "person"
    assert found.low < found.mean < found.high
    assert (own.low, own.high) == tuple(arms[1].runs[0].result["test"]["intervals"]["ccc"]["mean"])
    gap = figure(arms[1].runs[0].result, "ccc", "mean") - figure(arms[0].runs[0].result, "ccc", "mean")
    assert found.mean == pytest.approx(gap)
    other = arms[0].runs[0]
    unlike = Run(folder=other.folder, arm="none", seed=0, result=other.result, arrays={})
    assert math.isnan(difference(arms[1], Arm("none", (unlike,))).low)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Arm]:
    return read_runs(ablation(tmp_path_factory.mktemp("three"), seeds=3))[0]


def _changed(arm: Arm, seeds: Sequence[int], **options: object) -> Arm:
    """The arm whose runs with these seeds had other options."""
    runs = [dataclasses.replace(run, config={**run.config, **options}) for run in arm.runs]
    return Arm(arm.name, tuple(new if old.seed in seeds else old for old, new in zip(arm.runs, runs, strict=True)))


@pytest.mark.parametrize(
    ("option", "value"),
    [("split_seed", 7), ("dataset", "afew-va"), ("people", 99), ("disturb", False)],
)
def test_runs_on_other_data_are_not_compared_and_named(three: list[Arm], option: str, value: object) -> None:
    baseline, caf, constant = three
    some, all_ = (_changed(caf, seeds, **{option: value}) for seeds in ([1], [0, 1, 2]))
    gaps = [difference(Arm("caf", (run,)), baseline).mean for run in caf.runs]
    found = differences([some, constant], baseline)
    assert (found["caf"].n, found["caf-constant"].n) == (2, 3)
    assert found["caf"].mean == pytest.approx((gaps[0] + gaps[2]) / 2)
    assert tell([baseline, some, constant], []).problems == [
        "caf, seed 1, is not compared with no critic, because their data differ "
        f"({option}: {value} and {EmotionConfig().plain()[option]})"
    ]
    assert differences([all_], baseline) == {"caf": None}
    assert "there is no baseline with the same seed and data" in _lead(tell([baseline, all_], []))


def test_places_preprocessing_and_options_without_effect_may_differ(three: list[Arm]) -> None:
    baseline, caf, _ = three
    other = _changed(caf, [1], root="elsewhere", cache="there", resize=300, crop="none", fold=3, every=5)
    assert difference(other, baseline).n == 3
    assert tell([baseline, other], []).problems == []


@pytest.mark.parametrize("name", ["row", "truth"])
def test_without_options_predictions_say_whether_the_data_are_the_same(three: list[Arm], name: str) -> None:
    baseline, caf, _ = three
    first, *rest = (dataclasses.replace(run, config={}) for run in caf.runs)
    assert difference(Arm("caf", (first, *rest)), baseline).n == 3
    arrays = {**first.arrays, name: first.arrays[name][::-1]}
    other = Arm("caf", (dataclasses.replace(first, arrays=arrays), *rest))
    assert difference(other, baseline).n == 2
    (said,) = tell([baseline, other], []).problems
    assert said.endswith("seed 0, is not compared with no critic, because their data differ (other test images)")


@pytest.mark.parametrize("below", ["", "runs", "runs/caf/seed0"])
def test_copies_in_a_run_folder_are_no_runs(tmp_path: Path, below: str) -> None:
    place = write_run(tmp_path, "caf", 0, critic="caf")
    write_run(tmp_path, "caf", 1, critic="caf")
    write_run(tmp_path, "aa", 0, critic="caf")  # the first of all
    for run in (place, tmp_path / "runs" / "aa" / "seed0"):
        for name in ("backup", "checkpoints"):
            shutil.copytree(run, run.parent.with_name("copy"))
            shutil.move(run.parent.with_name("copy"), run / name)
    arms, problems = read_runs(tmp_path / below)
    found = sorted((arm.name, run.seed, run.folder) for arm in arms for run in arm.runs)
    every = [("aa", 0), ("caf", 0), ("caf", 1)]
    wanted = every if below in ("", "runs") else [("caf", 0)]
    assert found == [(arm, seed, tmp_path / "runs" / arm / f"seed{seed}") for arm, seed in wanted]
    assert problems == []


def test_a_folder_of_runs_may_have_files_of_its_own(tmp_path: Path) -> None:
    folder = ablation(tmp_path, seeds=1)
    for place in (folder, folder / "runs", folder / "runs" / "caf"):
        (place / "config.yaml").write_text("critic: caf\n")
    assert [arm.name for arm in read_runs(folder)[0]] == ["none", "caf", "caf-constant"]


def test_a_run_is_called_by_its_folder_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = write_run(tmp_path, "caf", 3, critic="caf")
    write_json(place / "result.json", {name: value for name, value in read_result(place).items() if name != "arm"})
    damage(place)
    monkeypatch.chdir(place)
    (arm,), problems = read_runs(".")
    assert (arm.name, arm.runs[0].seed) == ("caf", 3)
    assert problems
    assert all(text.startswith("caf/seed3/") for text in problems)
    monkeypatch.chdir(place.rename(tmp_path / "alone"))
    (arm,), _ = read_runs(".")
    assert arm.name == "alone"


def test_damaged_parts_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    place = write_run(tmp_path, "caf", 0, critic="caf")
    damage(place)
    arms, problems = read_runs(tmp_path)
    assert len(problems) == 2
    assert any("environment.json" in text for text in problems)
    assert arms[0].runs[0].curves
    assert arms[0].runs[0].config["critic"] == "caf"


def test_no_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folder must be one that holds a run"):
        read_runs(tmp_path)
    with pytest.raises(ValueError, match="folder must be a folder of runs"):
        read_runs(tmp_path / "nowhere")


def test_collapsed_networks_are_named(tmp_path: Path) -> None:
    def run(prediction: np.ndarray) -> Run:
        return Run(folder=tmp_path, arm="caf", seed=0, arrays={"prediction": prediction.astype(np.float32)})

    random = np.random.default_rng(0)
    assert collapsed(run(random.normal(0, 0.3, (50, 2)))) == ""
    assert "one constant" in collapsed(run(np.full((50, 2), 0.2)))
    assert "one line" in collapsed(run(random.normal(0, 0.3, (50, 1)) * [[0.5, -1.0]] + 0.1))
    assert collapsed(Run(folder=tmp_path, arm="caf", seed=0)) == ""
