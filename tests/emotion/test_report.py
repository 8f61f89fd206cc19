"""The report: its figures, what it does without some data, and how a browser takes it."""

from __future__ import annotations

import contextlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from adaptive_margin.command import main
from adaptive_margin.emotion.published import TABLE_1, TABLE_2, TABLE_3, TABLE_4, published_row, published_table
from adaptive_margin.emotion.report import (
    _bound,
    _breakdown,
    _config,
    _facts,
    _figures,
    _lead,
    _leakage,
    _title,
    tell,
    write_report,
)
from adaptive_margin.emotion.runs import difference, differences, figure, read_runs
from adaptive_margin.metrics.comparison import signed
from adaptive_margin.reports._charts import curves
from adaptive_margin.reports._page import GENERATOR, Missing
from adaptive_margin.stored import read_arrays, read_json, write_arrays, write_json
from adaptive_margin.training import read_options

from .runs import PEOPLE, ablation, damage, forget, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(ablation(tmp_path_factory.mktemp("ablation")))


def section(text: str, name: str) -> str:
    return re.search(rf'<section id="{name}".*?</section>', text, re.S)[0]


def test_figures_beside_the_paper(report: Path) -> None:
    text = report.read_text()
    arms, _ = read_runs(report.parent)
    rows = section(text, "figures").split("<tr")
    for arm in arms:
        mean = sum(figure(run.result, "ccc", "mean") for run in arm.runs) / 2
        row = next(row for row in rows if f"</span>{arm.title}</th>" in row)
        assert f">{mean:.3f}<" in row
        assert "<td>2</td>" in row
    published = next(row for row in rows if "published: CAF with Δ, ResNet18" in row)
    assert "<td>0.83</td><td>0.84</td>" in published
    assert "0.2186<sup>†</sup>" in published  # and is marked: not possible with the published correlations
    assert "not comparable with ours" in text
    assert "no critic" in text
    assert "paired difference +" in text
    baseline, *others = sorted(arms, key=lambda arm: not arm.is_baseline)
    assert "2 seeds, corrected for 2 arms)" in text
    gaps = differences(others, baseline)
    assert any(gaps[arm.name].low < difference(arm, baseline).low for arm in others)
    for name, gap in gaps.items():
        row = next(row for row in rows if f"</span>{name}</th>" in row)
        assert gap is not None
        assert f"{signed(gap.low, 3)} to {signed(gap.high, 3)}" in row


@pytest.mark.parametrize("age", ["new", "old"])
@pytest.mark.parametrize(
    ("kind", "kinds"),
    [("person", "people"), ("actor", "actors"), ("video", "videos"), ("source video", "source videos")],
)
def test_what_is_counted_and_drawn_is_called_what_it_is(age: str, kind: str, kinds: str, tmp_path: Path) -> None:
    path = write_run(tmp_path, "caf", 0, critic="caf") / "result.json"
    result = read_json(path)
    assert result["test"].pop("identities") == PEOPLE
    assert (result["test"].pop("identity"), result["test"]["interval_by"]) == ("person", "person")
    if age == "new":
        result["test"] |= {"identity": kind, "identities": PEOPLE, "interval_by": kind}
    else:
        result["test"]["people"] = PEOPLE
    write_json(path, result | {"independent": kind})
    story = tell(*read_runs(tmp_path))
    assert dict(_facts(story))["tested on"] == f"30 images of 6 {kinds}"
    assert f"on {kinds} not seen in training" in _lead(story)
    assert f"a bootstrap of the one run by {kind}: " in _figures(story)
    assert f"unseen {kinds}</th>" in _leakage(story)
    if kind != "person":
        assert "people" not in "".join([_lead(story), _figures(story), _leakage(story)])


def test_a_test_part_that_shares_some_with_training_is_not_called_unseen(tmp_path: Path) -> None:
    path = write_run(tmp_path, "caf", 0, critic="caf") / "result.json"
    result = read_json(path)
    result["test"]["identity"] = "source video"
    write_json(path, result | {"independent": "nothing"})
    assert "on source videos, some of which were seen in training (" in _lead(tell(*read_runs(tmp_path)))


def test_leakage_is_compared_by_map_at_r(tmp_path: Path) -> None:
    folder = ablation(tmp_path)
    for arm, figures in (("none", (0.5, 0.7)), ("caf", (0.25, 0.40))):
        for seed, figure_of_seed in enumerate(figures):
            path = next(folder.glob(f"runs/{arm}/seed{seed}/result.json"))
            result = read_json(path)
            result["leakage"]["unseen"]["map_at_r"] = figure_of_seed
            write_json(path, result)
    rows = _leakage(tell(*read_runs(folder))).split("<tr")
    row = next(row for row in rows if "</span>" in row and "0.325" in row)  # the mean of caf's two
    assert "0.275" in row  # of -0.25 and -0.30


def test_an_arm_is_broken_down_in_both_of_its_readings(tmp_path: Path) -> None:
    folder = ablation(tmp_path)
    for seed in range(2):
        path = folder / "runs" / "caf" / f"seed{seed}" / "result.json"
        result = read_json(path)
        result["breakdown"] |= {"worst_decile": 0.4, "slope": [0.61, 0.62]}
        result["by_person"] = {
            "figures": {"ccc": {"mean": 0.777}},
            "breakdown": result["breakdown"] | {"worst_decile": 0.3},
            "leakage": {"map_at_r": 0.111},
        }
        write_json(path, result)
    rows = [row for row in _breakdown(tell(*read_runs(folder))).split("<tr") if "caf<" in row or "caf," in row]
    alone, several = (row for row in rows if "constant" not in row)
    assert all(figure in alone for figure in ("0.400", "0.610", "0.620"))
    assert "by all pictures of the person" in several
    assert all(figure in several for figure in ("0.777", "0.300", "0.111"))


@pytest.mark.parametrize("option", [{"term": "grl"}, {"person_norm": True}, {"per_person": 4}])
def test_the_baseline_knows_nobody(tmp_path: Path, option: dict[str, Any]) -> None:
    folder = ablation(tmp_path, seeds=1)
    place = write_run(folder, "alone", 0, critic="none")  # before "none" in the order of names
    config = read_options(place / "config.yaml") | option
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    arms, _ = read_runs(folder)
    assert [arm.name for arm in arms if arm.is_baseline] == ["none"]
    assert tell(arms, []).baseline.name == "none"


def test_every_part_is_there(report: Path) -> None:
    text = report.read_text()
    assert "Left out" not in text
    assert "It holds for every run here" in section(text, "bound")
    assert "seen people" in section(text, "leakage")
    assert "film &lt;0&gt;" in section(text, "video")
    assert section(text, "video").count("<img") == 5
    assert section(text, "pictures").count("<img") == 24
    assert section(text, "maps").count("<svg") == 4
    assert "python" in section(text, "config")
    assert "&lt;b&gt;not markup&lt;/b&gt; &amp; more" in text


def test_it_stands_alone(report: Path) -> None:
    text = report.read_text()
    page = Page(text)
    for tag in ("script", "iframe", "object", "embed"):
        assert not page.all(tag)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    urls = [url for url in re.findall(r"https?://[^\s\"'<)]+", text) if not url.startswith("http://www.w3.org/")]
    assert urls == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#|['\"]?data:)", text)


def test_it_can_be_read_aloud_and_in_the_dark(report: Path) -> None:
    text = report.read_text()
    page = Page(text)
    assert all(image.get("alt") for image in page.all("img"))
    assert all(svg.get("aria-label") and svg.get("role") == "img" for svg in page.all("svg"))
    assert all(cell.get("scope") in ("row", "col", "colgroup") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in page.all("a")} <= {f"#{name}" for name in ids}
    assert "prefers-color-scheme: dark" in text
    assert "#0a0b0c" not in text  # ink of the charts is the page's


PARTS = {
    "training": ("scalars.csv",),
    "figures": ("result.json",),
    "scatter": ("evaluation.npz",),
    "config": ("config.yaml", "environment.json"),
}


@pytest.mark.parametrize("part", PARTS)
def test_missing_parts_are_left_out_with_a_sentence(tmp_path: Path, part: str) -> None:
    place = write_run(tmp_path, "caf", 0, critic="caf")
    forget(place, *PARTS[part])
    text = write_report(tmp_path).read_text()
    assert 'class="missing">Left out. ' in section(text, part)
    assert "It could not be made" not in text
    assert text.count("Left out.") < 10


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    damage(write_run(tmp_path, "caf", 0, critic="caf"))
    text = write_report(tmp_path).read_text()
    assert "What could not be read" in text
    assert "caf/seed0/environment.json cannot be read" in text


def test_a_single_run_elsewhere(tmp_path: Path) -> None:
    place = write_run(tmp_path, "fisher", 3, critic="fisher")
    path = write_report(place, tmp_path / "out" / "page.html")
    text = path.read_text()
    assert path == tmp_path / "out" / "page.html"
    assert "fisher reaches a mean CCC" in text
    assert "Left out. The log of fisher has no MI" in text
    assert "resampled" not in section(text, "figures")
    assert "a bootstrap of the one run by person" in section(text, "figures")


def test_only_an_earlier_report_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = write_run(tmp_path, "fisher", 3, critic="fisher")
    forget(place, "scalars.csv", "evaluation.npz")  # a report without charts is written sooner
    for path in (tmp_path / "mine.html", place / "report.html"):
        path.write_text("<!doctype html><title>mine</title>")
        asked = ["report", str(place), *(["--output", str(path)] if path.name == "mine.html" else [])]
        with pytest.raises(SystemExit, match="2"):
            main(asked)
        assert "or an earlier report, got" in capsys.readouterr().err
        assert path.read_text() == "<!doctype html><title>mine</title>"
        assert main([*asked, "--overwrite"]) == 0
        assert main(asked) == 0  # it is a report now
        text = path.read_text()
        path.write_text(text.replace(GENERATOR, ""))  # as older ones are
        assert main(asked) == 0
        assert GENERATOR in path.read_text()
    with pytest.raises(ValueError, match="output must be a file, got the folder"):
        write_report(place, tmp_path)


def test_published_rows_are_the_papers() -> None:
    assert published_row(TABLE_4, "none", "adaptive", "resnet18").ccc == (0.64, 0.55)
    assert published_row(TABLE_4, "caf", "linear", "alexnet").rmse == (0.2255, 0.1994)
    assert published_row(TABLE_4, "caf", "released", "resnet18") is None
    assert published_row(published_table("aff-wild"), "fisher", "adaptive", "resnet18") is None
    assert published_table("affectnet") is TABLE_4
    assert [row.method for row in TABLE_1.rows][-1] == "CAF"
    assert [len(table.rows) for table in (TABLE_1, TABLE_2, TABLE_3, TABLE_4)] == [8, 10, 5, 15]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 420])
def test_in_a_browser(report: Path, tmp_path: Path, width: int) -> None:
    """No message on the console, every picture there, nothing asked of the network, nothing wider than the screen."""
    probe = """<script>addEventListener("load", () => setTimeout(() => {
      const images = [...document.images], charts = [...document.querySelectorAll("svg[role=img]")];
      const found = {
        images: images.length, broken: images.filter(i => !i.complete || !i.naturalWidth).length,
        charts: charts.length, flat: charts.filter(c => c.getBoundingClientRect().height < 50).length,
        asked: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
        width: innerWidth, scroll: document.documentElement.scrollWidth,
      };
      parent.postMessage(found, "*");
    }, 200))</script>"""
    inner = html.escape(report.read_text().replace("</body>", probe + "</body>"), quote=True)
    page = tmp_path / "page.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><title>waiting</title><link rel="icon" href="data:,">'
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{inner}"></iframe>'
        '<script>addEventListener("message", e => document.title = JSON.stringify(e.data))</script>'
    )
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,1000",
            "--virtual-time-budget=8000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=55,
    )
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1]))
    assert found["images"] == 29
    assert found["charts"] > 12
    assert found["broken"] == found["flat"] == 0
    assert found["asked"] == []
    assert found["width"] == width
    assert found["scroll"] <= width
    assert "CONSOLE" not in done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run, to be copied and spoilt."""
    folder = tmp_path_factory.mktemp("whole")
    write_run(folder, "caf", 0, critic="caf")
    return folder


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    """A copy of that run: its own folder."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / "caf" / "seed0"


def told(folder: Path) -> tuple[list[str], str]:
    """What of the runs in a folder could not be read, and the page's parts but for its charts."""
    story = tell(*read_runs(folder))
    parts = [_title(story), _lead(story), *(value for _, value in _facts(story))]
    for part in (_figures, _leakage, _bound, _config):
        with contextlib.suppress(Missing):
            parts.append(part(story))
    return story.problems, "".join(parts)


HOSTILE = "<img src=x onerror=alert(1)>"


def test_nothing_in_a_run_becomes_markup(place: Path, tmp_path: Path) -> None:
    result = read_json(place / "result.json")
    result["test"] |= {"identity": HOSTILE, "interval_by": HOSTILE}
    write_json(place / "result.json", result | {"arm": HOSTILE, "independent": HOSTILE})
    config = yaml.safe_load((place / "config.yaml").read_text())
    config |= dict.fromkeys(("dataset", "encoder", "margin", "seed", HOSTILE), HOSTILE)
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    names = ("device", "platform", "threads", "cuda", "started", "commit")
    here = read_json(place / "environment.json") | dict.fromkeys(names, HOSTILE) | {"command": [HOSTILE]}
    write_json(place / "environment.json", here)
    place.rename(place.parent / "a <b> run")  # its seed is not in its name now
    text = write_report(tmp_path).read_text()
    assert f"a bootstrap of the one run by {html.escape(HOSTILE)}" in text
    assert text.count(html.escape(HOSTILE)) > 20
    assert "<img src=x" not in text
    assert not any("onerror" in attributes for _, attributes in Page(text).tags)
    assert "config.yaml: seed is not a whole number" in section(text, "unread")


@pytest.mark.parametrize(
    ("name", "crafted"),
    [
        ("prediction", np.zeros((3, 2), np.float32)),
        ("prediction", np.full((30, 2), np.nan, np.float32)),
        ("prediction", np.full((30, 2), "x")),
        ("truth", np.zeros((30, 3), np.float32)),
        ("person", np.zeros(30)),
        ("row", np.zeros((), np.int64)),
        ("feature_index", np.array([10**9])),
        ("best", np.array([-1])),
        ("best_images", np.zeros((12, 96, 96), np.uint8)),
        ("worst_images", np.zeros((12, 96, 96, 3))),
        ("video_name", np.array(["a", "b"])),
        ("video_strip", np.array([0, 1, 2, 3, 400])),
        ("row", None),
    ],
)
def test_a_crafted_archive_is_named_and_the_rest_told(
    place: Path, tmp_path: Path, name: str, crafted: np.ndarray | None
) -> None:
    shutil.copytree(place, tmp_path / "runs" / "none" / "seed0")  # one seed each: compared row by row
    (tmp_path / "runs" / "none" / "seed0" / "config.yaml").write_text("critic: none\n")
    none = tmp_path / "runs" / "none" / "seed0" / "result.json"
    write_json(none, read_json(none) | {"arm": "none"})
    arrays = read_arrays(place / "evaluation.npz")
    arrays.pop(name)
    write_arrays(place / "evaluation.npz", arrays | ({} if crafted is None else {name: crafted}))
    (problem,), text = told(tmp_path)
    assert re.match(rf"caf/seed0/evaluation.npz cannot be read: .*got .*{name}", problem)
    assert "one pair, no interval" in text  # the figures of result.json, which is whole


@pytest.mark.parametrize(
    "change",
    [
        {"test": []},
        {"test": {"figures": {"ccc": {"mean": "0.5"}}}},
        {"test": {"figures": {"ccc": 0.5}}},
        {"test": {"figures": {"ccc": {"mean": 10**400}}}},
        {"test": {"intervals": {"ccc": {"mean": [0.1]}}}},
        {"test": {"intervals": None}},
        {"leakage": {"unseen": {"map_at_r": "x"}}},
        {"breakdown": {"slope": [0.5]}},
        {"by_person": {"breakdown": {"worst_decile": "x"}}},
        {"seed": "0"},
        {"arm": 3},
    ],
)
def test_a_crafted_result_is_named_and_the_rest_told(place: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    write_json(place / "result.json", read_json(place / "result.json") | change)
    (problem,), text = told(tmp_path)
    assert re.match(rf"caf/seed0/result.json cannot be read: .*got {next(iter(change))}", problem)
    assert "No run here has been evaluated yet." in text


def test_an_interval_that_is_not_defined(place: Path, tmp_path: Path) -> None:
    result = read_json(place / "result.json")
    result["test"]["intervals"]["ccc"]["mean"] = [None, None]  # as NaN is written
    write_json(place / "result.json", result)
    problems, text = told(tmp_path)
    assert problems == []
    assert f"<td>{result['test']['figures']['ccc']['mean']:.3f}</td>" in text


def test_a_flipped_bit_is_named_and_the_rest_told(place: Path, tmp_path: Path) -> None:
    names = ("environment.json", "result.json", "evaluation.npz")
    for name in names:
        data = bytearray((place / name).read_bytes())
        data[len(data) // 2] ^= 1
        (place / name).write_bytes(data)
    problems, text = told(tmp_path)
    assert len(problems) == 3
    for name, problem in zip(names, problems, strict=True):
        assert re.match(rf"caf/seed0/{name} cannot be read: .*{name} is damaged", problem)
    assert "not markup" in text  # of config.yaml


def test_a_curve_of_one_point_is_seen() -> None:
    for values, points in (([0.4], 1), ([0.4, 0.5], 0)):
        drawn = curves("CCC", [("caf", "#123456", [(range(len(values)), values)])], y="CCC", alt="a line")
        assert len(re.findall(r"<use [^>]*#123456", drawn)) == points
