"""Runs gathered into arms, and what is computed over seeds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

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
