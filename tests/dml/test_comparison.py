"""Intervals and verdicts against scipy; tables and the page from run folders and from the merged file."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from adaptive_margin.command import main
from adaptive_margin.dml.config import ROTH2020, WU2017, DMLConfig
from adaptive_margin.dml.embedded import digits
from adaptive_margin.dml.report import write_report
from adaptive_margin.dml.results import by_seed, compare, read_runs, standard_pairs, table
from adaptive_margin.dml.trainer import load_embeddings, run
from adaptive_margin.metrics.comparison import compared, holm, paired
from adaptive_margin.stored import DamagedFileError, read_arrays, write_arrays, write_json
from tests.hooks import figures

from .steps import few

ROOT = Path(__file__).parents[2]


def test_the_interval_is_scipys() -> None:
    numbers = np.random.default_rng(0)
    arm, baseline = numbers.normal(51, 2, 5), numbers.normal(50, 2, 5)
    ours = paired(dict(enumerate(arm)), dict(enumerate(baseline)))
    theirs = stats.ttest_rel(arm, baseline)
    interval = theirs.confidence_interval(0.95)
    assert (ours.n, ours.p) == (5, pytest.approx(theirs.pvalue))
    assert (ours.low, ours.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_verdicts_and_pairing() -> None:
    base = {0: 50.0, 1: 40.0, 2: 60.0}
    assert paired({s: v + 1 + 0.01 * s for s, v in base.items()}, base).verdict == "better"
    assert paired({s: v - 1 - 0.01 * s for s, v in base.items()}, base).verdict == "worse"
    assert paired({0: 51.0, 1: 39.0, 2: 60.0}, base).verdict == "no difference seen"
    assert paired({**base, 9: 99.0}, base).n == 3  # a seed that one arm lacks does not count
    assert paired(base, base).p == 1
    assert paired(base, base).verdict == "identical"
    with pytest.raises(ValueError, match="two seeds in common, got 1"):
        paired({0: 1.0}, base)


def test_an_undefined_figure_is_no_difference(tmp_path: Path) -> None:
    base = {0: 50.0, 1: 40.0, 2: 60.0}
    for spoilt in (math.nan, math.inf):
        for pair in (({**base, 1: spoilt}, base), (base, {**base, 1: spoilt})):
            with pytest.raises(
                ValueError, match=r"arm, baseline must be finite, got .* of seed 1; leave that seed out"
            ):
                paired(*pair)
    for seed, figure in enumerate((0.5, math.nan, 0.25)):
        finished(tmp_path / str(seed), replace(ROTH2020, seed=seed), figure)
    (arm,) = {row["arm"] for row in read_runs(tmp_path)}
    assert by_seed(read_runs(tmp_path), "cub", "margin", arm, "recall_at_1") == {0: 50.0, 2: 25.0}


def test_verdicts_follow_the_corrected_interval() -> None:
    """Better and worse are said exactly where the interval leaves out 0, which is where Holm's p is below 0.05."""
    random = np.random.default_rng(3)
    base = dict.fromkeys(range(5), 0.0)
    arms = [{seed: float(random.normal(gain, 1.0)) for seed in base} for gain in (0, 0, 1.2, 2, -2, 3, 4, 0.5)]
    said = set()
    for many in (arms[:1], arms[:4], arms):
        found = compared((arm, base) for arm in many)
        assert [each.p for each in found] == holm([paired(arm, base).p for arm in many])
        for each in found:
            assert (each.p < 0.05) == (each.verdict in ("better", "worse")) == (each.low > 0 or each.high < 0)
            assert each.low <= each.mean <= each.high
            said.add(each.verdict)
    assert said == {"better", "worse", "no difference seen"}
    assert compared([(arms[6], base)]) == [paired(arms[6], base)]


def test_identical_arms_are_marked() -> None:
    base = {0: 50.0, 1: 40.0, 2: 60.0}
    same, nearly = compared([(base, base), ({**base, 2: 60.1}, base)])
    assert (same.verdict, same.mean, same.p) == ("identical", 0.0, 1.0)
    assert nearly.verdict == "no difference seen"


def test_holm_is_monotone_and_bounded() -> None:
    values = [0.001, 0.04, 0.03, 0.8]
    corrected = holm(values)
    assert corrected == pytest.approx([0.004, 0.09, 0.09, 0.8])


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid")
    few_images = replace(digits(), labels=digits().labels[::4], pixels=digits().pixels[::4])  # a map of all takes long
    for margin in ("default", "adaptive"):
        for seed in (0, 1):
            config = few(out / margin / f"seed-{seed}", "contrastive")
            run(replace(config, seed=seed, margin=margin, epochs=2), few_images)
    return out


@pytest.mark.slow
def test_rows_tables_and_page(grid: Path, tmp_path: Path) -> None:
    rows = read_runs(grid)
    assert {(row["loss"], row["arm"], row["seed"]) for row in rows} == {
        ("contrastive", arm, seed) for arm in ("default", "auto") for seed in (0, 1)
    }
    made = compare(rows, standard_pairs(rows), "recall_at_1")
    assert [pair for pair, _ in made] == [("digits", "contrastive", "auto", "default")]
    text = table(rows, "recall_at_1")
    assert "| contrastive | " in text
    assert "One comparison. Were there no difference" in text
    page = tmp_path / "report.html"
    status, _, errors = figures.ended(["benchmarks/dml_report.py", str(grid), "--page", str(page)])
    assert status == 0, errors
    written = page.read_text()
    for wanted in ("Recall@1", "auto", "class='query'", "maps of the embeddings", "margin, in the loss"):
        assert wanted in written
    assert "http" not in written.replace("http://www.w3.org/", "")  # nothing is fetched

    place = grid / "default" / "seed-0"
    kept = read_arrays(place / "embeddings.npz")
    assert kept["pictures"].shape == (8, 7, 20, 20, 1)
    write_arrays(place / "embeddings.npz", {name: kept[name] for name in ("embeddings", "labels", "rows")})
    other = page.with_name("mine.html")
    other.write_text("mine")
    with pytest.raises(ValueError, match="or an earlier report"):
        write_report(grid, other)
    assert other.read_text() == "mine"
    write_report(grid, other, overwrite=True)
    without = other.read_text()
    assert "Without pictures: the run was made before they were kept" in without
    assert "maps of the embeddings" in without
    content = bytearray((place / "embeddings.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (place / "embeddings.npz").write_bytes(content)
    write_report(grid, page)
    assert re.search(r"<li>.*default/seed-0/embeddings\.npz is damaged.*train the run again", page.read_text())

    merged = tmp_path / "merged"
    merged.mkdir()
    plain = [{name: value for name, value in row.items() if name != "folder"} for row in rows]
    (merged / "grid.json").write_text(json.dumps({"runs": plain}))
    assert table(read_runs(merged), "recall_at_1") == text


def finished(out: Path, config: DMLConfig, figure: float = 0.5, weights: str = "none") -> None:
    """A run's result without the run."""
    result = {
        "test": {"recall_at_1": figure},
        "selected": {"by": "validation/x", "step": 9, "score": 0.5},
        "config": json.loads(json.dumps(vars(config), default=str)),
        "data": {"name": "cub"},
        "weights": weights,
        "curves": {},
        "seconds": 1.0,
    }
    out.mkdir(parents=True)
    (out / "result.json").write_text(json.dumps(result))


HOSTILE = "<img src=x onerror=alert(1)>"


def crafted(out: Path, change: dict[str, Any], config: dict[str, Any]) -> None:
    finished(out, ROTH2020)
    result = json.loads((out / "result.json").read_text())
    result["config"] |= config
    write_json(out / "result.json", result | change)


@pytest.mark.parametrize(
    ("change", "config"),
    [
        ({}, {"seed": HOSTILE}),
        ({}, {"margin": HOSTILE}),
        ({"seconds": HOSTILE}, {}),
        ({"test": {"recall_at_1": HOSTILE}}, {}),
        ({"test": HOSTILE}, {}),
        ({"weights": 3}, {}),
        ({"data": {"name": 3}}, {}),
        ({"curves": {"margin": {"values": [HOSTILE] * 4}}}, {}),
        ({"config": {"loss": "margin"}}, {}),
        ({"folds": []}, {}),
    ],
)
def test_a_crafted_result_is_named(tmp_path: Path, change: dict[str, Any], config: dict[str, Any]) -> None:
    crafted(tmp_path / "run", change, config)
    with pytest.raises(DamagedFileError, match=r"result.json does not hold the result of a run; train"):
        read_runs(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"config": null}', '{"config": ["loss"]}', '{"config": "loss"}'])
def test_a_result_of_another_program_is_passed_over(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path / "run", ROTH2020)
    foreign = tmp_path / "theirs" / "result.json"
    foreign.parent.mkdir()
    foreign.write_text(content)
    assert main(["report", str(tmp_path)]) == 0
    assert f"{foreign} is not from this library: left out" in capsys.readouterr().err
    assert f"{foreign} is not from this library: left out" in (tmp_path / "report.html").read_text()
    (tmp_path / "run" / "result.json").unlink()  # of neither trainer, then
    assert main(["report", str(tmp_path), "--overwrite"]) == 0
    assert "theirs/result.json cannot be read" in (tmp_path / "report.html").read_text()


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    crafted(tmp_path / "run", {}, {})
    path = tmp_path / "run" / "result.json"
    path.write_text(path.read_text().replace("0.5", "0.6", 1))
    with pytest.raises(DamagedFileError, match=r"result.json is damaged: .*; train the run again, or move it away"):
        read_runs(tmp_path)


def test_nothing_in_a_result_becomes_markup(tmp_path: Path) -> None:
    for seed in (0, 1):
        for arm, margin in (("one", "adaptive"), ("two", "default")):
            change = {"weights": HOSTILE, "data": {"name": HOSTILE}, "test": {"recall_at_1": 0.5, HOSTILE: 0.5}}
            config = {"seed": seed, "margin": margin, "neighbourhood": HOSTILE, "units": HOSTILE, "loss": HOSTILE}
            selected = {"selected": {"by": HOSTILE, "step": 1, "score": 0.5}}
            crafted(tmp_path / f"{arm}-{seed}", change | selected, config)
    write_report(tmp_path, tmp_path / "page.html", ["recall_at_1", HOSTILE])
    text = (tmp_path / "page.html").read_text()
    assert text.count(html.escape(HOSTILE)) > 10
    assert "<img src=x" not in text


def test_a_page_is_made_of_its_runs_alone(tmp_path: Path) -> None:
    """A stranger's run says where pictures and a cache lie: neither is looked at."""
    for number in range(6):
        (tmp_path / "private" / f"class{number}").mkdir(parents=True)
        for picture in range(4):
            pixels = np.full((20, 20, 3), 40 * number + picture, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "private" / f"class{number}" / f"{picture}.png")
    before = sorted(tmp_path.rglob("*"))
    root, cache = str(tmp_path / "private"), str(tmp_path / "planted")
    config = {"root": root, "cache": cache, "resize": 18, "size": 16, "out": root}
    runs = tmp_path / "runs"
    crafted(runs / "one", {"data": {"name": "private"}}, config)
    embeddings = {"embeddings": np.eye(12, 8, dtype=np.float16), "labels": np.arange(12) // 4, "rows": np.arange(12)}
    write_arrays(runs / "one" / "embeddings.npz", embeddings)
    write_report(runs, tmp_path / "runs" / "page.html")
    text = (runs / "page.html").read_text()
    assert "maps of the embeddings" in text
    assert "class='query'" not in text
    assert sorted(path for path in tmp_path.rglob("*") if runs not in (path, *path.parents)) == before
    row = {**read_runs(runs)[0], "folder": str(runs / "one")}
    (tmp_path / "merged").mkdir()
    write_json(tmp_path / "merged" / "grid.json", {"runs": [row]})  # its folder is one of the writer's disk
    assert "maps of the embeddings" not in _page(tmp_path / "merged")


def _page(folder: Path) -> str:
    write_report(folder, folder / "page.html")
    return (folder / "page.html").read_text()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embeddings", np.eye(12, 8)[0]),
        ("embeddings", np.full((12, 8), np.nan)),
        ("labels", np.arange(3)),
        ("examples", np.array([[0, 99]])),
        ("examples", np.array([[0, 1, 2]])),
        ("pictures", np.zeros((1, 2, 4, 4, 2), np.uint8)),
        ("pictures", np.zeros((1, 2, 4, 4, 3))),
    ],
)
def test_crafted_embeddings_are_named(tmp_path: Path, name: str, value: np.ndarray) -> None:
    whole = {"embeddings": np.eye(12, 8), "labels": np.arange(12) // 4, "examples": np.array([[0, 1]])}
    whole |= {"pictures": np.zeros((1, 2, 4, 4, 3), np.uint8)}
    write_arrays(tmp_path / "embeddings.npz", whole)
    assert load_embeddings(tmp_path)[0].shape == (12, 8)
    write_arrays(tmp_path / "embeddings.npz", whole | {name: value})
    with pytest.raises(DamagedFileError, match=r"embeddings.npz does not hold the embeddings of a run; delete"):
        load_embeddings(tmp_path)


@pytest.mark.parametrize("preset", [ROTH2020, WU2017])
@pytest.mark.parametrize("loss", ["margin", "contrastive"])
def test_adaptive_arms_are_paired_with_the_fixed_ones_of_their_configuration(
    preset: DMLConfig, loss: str, tmp_path: Path
) -> None:
    adaptive = replace(preset, loss=loss, margin="adaptive", neighbourhood="chernoff")
    fixed = [replace(preset, loss=loss, margin=margin) for margin in ("default", 0.2)]
    arms = [adaptive, replace(adaptive, units="offset"), *fixed]
    for number, arm in enumerate(arms):
        for seed in (0, 1):
            finished(tmp_path / f"{number}-{seed}", replace(arm, seed=seed), 0.5 + 0.1 * number + 0.01 * seed * number)
    rows = read_runs(tmp_path)
    tail = ", learned beta" if loss == "margin" else ""
    ours, theirs = (f"chernoff{tail}", f"chernoff, offset{tail}"), (f"default{tail}", f"margin 0.2{tail}")
    assert standard_pairs(rows) == [("cub", loss, a, b) for a in ours for b in theirs]
    assert "4 comparisons" in table(rows, "recall_at_1")


def test_other_options_make_other_arms(tmp_path: Path) -> None:
    adaptive = replace(ROTH2020, margin="adaptive", neighbourhood="chernoff")
    arms = [adaptive, replace(adaptive, max_mi=1e-6), replace(adaptive, epochs=20)]
    arms += [replace(ROTH2020, epochs=20), ROTH2020]
    for number, arm in enumerate(arms):
        for seed in (0, 1):
            finished(tmp_path / f"{number}-{seed}", replace(arm, seed=seed))
    rows = read_runs(tmp_path)
    names = list(dict.fromkeys(row["arm"] for row in rows))
    head = "chernoff, learned beta, max_mi"
    assert names == [
        f"{head} 2.5, epochs 150",
        f"{head} 1e-06, epochs 150",
        f"{head} 2.5, epochs 20",
        "default, learned beta, epochs 20",
        "default, learned beta, epochs 150",
    ]
    assert set(standard_pairs(rows)) == {
        ("cub", "margin", names[0], names[4]),
        ("cub", "margin", names[1], names[4]),
        ("cub", "margin", names[2], names[3]),
    }


def test_weights_are_told_apart(tmp_path: Path) -> None:
    for seed in (0, 1):
        config = replace(ROTH2020, seed=seed, weights="a/w.pt")
        finished(tmp_path / f"ours-{seed}", config, weights="file w.pt, sha256 1")
        finished(tmp_path / f"theirs-{seed}", config, weights="file w.pt, sha256 2")
    rows = read_runs(tmp_path)
    assert [row["weights"] for row in rows] == ["file w.pt, sha256 1"] * 2 + ["file w.pt, sha256 2"] * 2
    assert len({row["arm"] for row in rows}) == 2
    said = "Weights before training: file w.pt, sha256 1; file w.pt, sha256 2."
    assert said in table(rows, "recall_at_1")
    write_report(tmp_path, tmp_path / "page.html")
    assert said in (tmp_path / "page.html").read_text()


def test_results_of_other_trainers_are_left_out(tmp_path: Path) -> None:
    finished(tmp_path / "one", ROTH2020)
    (tmp_path / "emotion").mkdir()
    (tmp_path / "emotion" / "result.json").write_text(json.dumps({"test": {"figures": {}}, "extra": {}}))
    assert len(read_runs(tmp_path)) == 1


def test_the_options_of_a_run_decide_and_not_the_name_of_its_folder(tmp_path: Path) -> None:
    for name, config in (("a", ROTH2020), ("b", replace(ROTH2020, epochs=20))):
        for arm, margin in (("tuned", "default"), ("default", 0.5)):
            for seed in (0, 1):
                place = tmp_path / name / "cub" / "margin" / arm / f"seed-{seed}"
                finished(place, replace(config, margin=margin, seed=seed))
    finished(tmp_path / "cub" / "margin" / "fold-2", replace(ROTH2020, margin="adaptive"))
    finished(tmp_path / "cub" / "fold-2-of-4", replace(ROTH2020, seed=9))  # of a run before folds said so
    rows = read_runs(tmp_path)
    fixed = [f"{arm}, learned beta, epochs {n}" for n in (150, 20) for arm in ("margin 0.5", "default")]
    assert list(dict.fromkeys(row["arm"] for row in rows)) == [*fixed, "auto, learned beta, epochs 150"]
    assert standard_pairs(rows) == [("cub", "margin", "auto, learned beta, epochs 150", arm) for arm in fixed[1::-1]]


def test_margins_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    for name, margin in (("a", 0.2), ("b", 0.2 + 1e-9)):
        finished(tmp_path / name, replace(ROTH2020, margin=margin))
    said = r"one run of cub, margin, margin 0.2, learned beta, seed 0, got two .*margin: 0.2 there, 0.200000001 here"
    with pytest.raises(ValueError, match=said):
        read_runs(tmp_path)
    (tmp_path / "b" / "result.json").unlink()
    assert len(read_runs(tmp_path)) == 1


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"result\.json below it, or grid\.json in it"):
        read_runs(tmp_path)


def test_other_figures_are_shown_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        {"data": "digits", "loss": "margin", "arm": arm, "seed": seed, "test": test, "curves": {}}
        for seed in (0, 1)
        for arm, test in (("default", {"recall_at_1": 0.125, "NMI": 0.25}), ("pair", {"recall_at_1": 0.5, "NMI": 0.75}))
    ]
    (tmp_path / "grid.json").write_text(json.dumps({"runs": [*runs, {**runs[0], "seed": 100, "test": None}]}))
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "--page", str(page), "--metrics", "nmi"]) == 0
    for text in (capsys.readouterr().out, page.read_text()):
        assert "NMI" in text
        assert "25.0 ± 0.0" in text
        assert "12.5" not in text
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--print", "--metrics", "recall_at_1", "map"])
    assert "metric must be one of recall_at_1, NMI, got 'map'" in capsys.readouterr().err
