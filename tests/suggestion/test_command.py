"""``adaptive-margin suggest`` from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adaptive_margin.command import main


@pytest.fixture
def file(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    np.savez(tmp_path / "a.npz", embeddings=x, labels=np.arange(60) % 6)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.arange(60) % 6)
    return tmp_path / "a.npz"


def test_terminal_page_and_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, figures = file.with_name("new") / "page.html", file.with_name("new") / "figures.json"
    words = ["suggest", str(file), "--loss", "TripletMarginLoss", "--margin", "0.2"]
    assert main([*words, "--html", str(page), "--json", str(figures)]) == 0
    printed = capsys.readouterr().out
    assert "TripletMarginLoss(margin=0.2), and how far it is above each" in printed
    assert f"wrote {page}" in printed
    assert f"wrote {figures}" in printed
    content = json.loads(figures.read_text(encoding="utf-8"))
    assert content["present"]["margin"] == 0.2
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 5  # distances, and four losses with hinges
    assert "It could not be made" not in html
    assert "Left out" not in html
    assert all(html.count(f">{rule}<") >= 5 for rule in ("remaining", "attainable", "hoeffding"))  # tables and charts
    assert "class='scroll'" in html
    assert main([*words, "--html", str(page), "--json", str(figures)]) == 0  # earlier ones give way


def test_one_name_for_two_files_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = str(file.with_name("new.html"))
    with pytest.raises(SystemExit, match="2"):
        main(["suggest", str(file), "--json", both, "--html", both])
    assert "--json and --html must be two files" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["suggest", str(file), "--html", str(file.with_name("x.npy"))])
    assert "pass another --html, or --overwrite" in capsys.readouterr().err


def test_json_on_standard_output_is_nothing_but_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = file.with_name("page.html")
    assert main(["suggest", str(file), "--json", "-", "--html", str(page)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out, parse_constant=pytest.fail)["classes"] == 6
    assert printed.err == f"wrote {page}\n"
    assert not Path("-").exists()


@pytest.mark.parametrize("content", ["notes", "[1, 2]", "3", '{"rows": 3}', "\udcff"])
def test_json_replaces_no_file_of_others(
    file: Path, content: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file.with_name("figures.json")
    path.write_text(content, errors="surrogateescape")
    kept = path.read_bytes()
    monkeypatch.setattr("adaptive_margin.suggestion.suggest", pytest.fail)  # it is said before anything is measured
    with pytest.raises(SystemExit):
        main(["suggest", str(file), "--json", str(path)])
    assert (
        "--json must be a file that does not exist yet, or an earlier one of this command, got"
        in capsys.readouterr().err
    )
    assert path.read_bytes() == kept
    monkeypatch.undo()
    assert main(["suggest", str(file), "--json", str(path), "--overwrite"]) == 0
    assert json.loads(path.read_text(encoding="utf-8"))["rows"] == 60


def test_labels_of_their_own(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suggest", str(file)]) == 0
    first = capsys.readouterr().out
    assert main(["suggest", str(file.with_name("x.npy")), str(file.with_name("y.npy"))]) == 0
    second = capsys.readouterr().out
    assert first.split("Samples")[0] == second.split("Samples")[0]


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["--margin", "0.2"], "--loss must be given with --margin, got nothing", 2),
        (["--loss", "TripletMargin"], "the nearest: TripletMarginLoss", 2),
        (["--batches", "0"], "batches must be at least 1, got 0", 2),
        (["--html", "{folder}"], "--html must be a file, got the folder", 2),
        (["--html", "{folder}/x.npy"], "an earlier report", 2),
    ],
)
def test_a_mistake_is_one_line(
    file: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str, code: int
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["suggest", str(file), *(each.format(folder=file.parent) for each in words)])
    assert end.value.code == code
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


def test_a_missing_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["suggest", str(tmp_path / "none.npy")])
    assert end.value.code == 1
    assert "none.npy does not exist" in capsys.readouterr().err
