"""Figures in the documentation are those that commands print from committed files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from adaptive_margin.emotion import published
from adaptive_margin.metrics import feasible, rmse_bounds
from tests.hooks import figures

ROOT = Path(__file__).parent.parent
DEMO = "examples/demo.py --print benchmarks/demo/results.json"
PAGES = [path.relative_to(ROOT).as_posix() for path in figures.pages()]
MARKED = [page for page in PAGES if page in figures.TABLES or figures.MARK.search((ROOT / page).read_text("utf-8"))]


LEAST = {"datasets-fer": 5, "faces": 14, "hosts": 2, "memory": 40, "miners": 5, "retrieval": 7, "predict": 2}
"""So many rows of tables are compared with what their commands print."""


@pytest.mark.parametrize("page", MARKED)
def test_a_page_quotes_what_its_sources_have_and_another_digit_is_noticed(page: str) -> None:
    """The same check ends a build of the documentation: ``docs/hooks/figures.py``. One test, as commands take time."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert figures.wrong(page, text) == []
    rows = compared_rows(page, text)
    assert len(rows) >= LEAST.get(Path(page).stem, 0)
    for row in rows[::3]:
        place = max(found.start() for found in re.finditer(r"\d", row))
        changed = f"{row[:place]}{(int(row[place]) + 1) % 10}{row[place + 1 :]}"
        assert figures.wrong(page, text.replace(row, changed, 1)), changed


def test_the_pages_with_results_are_checked() -> None:
    assert {"README.md", "docs/index.md", "docs/dml.md", "docs/units.md", "docs/emotion.md"} <= set(MARKED)
    assert len(MARKED) >= 10
    assert {f"docs/{name}.md" for name in LEAST} <= set(MARKED)


def compared_rows(page: str, text: str) -> list[str]:
    """The rows with a number of tables that the commands of a page print."""
    sources = [source for kind, found, _ in figures.marks(text) if kind == "table" for source in found]
    sources += figures.TABLES.get(page, ())
    printed = {line for source in sources for line in figures.printed(source).splitlines()}
    lines = [line for line in text.splitlines() if line.startswith("|") and figures.plain(line) in printed]
    return [line for line in dict.fromkeys(lines) if re.search(r"\d", line)]


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ("+0.9 points, 12 s", []),
        ("−0.9 points", ["page.md: -0.9 is not in {}"]),
        ("it took 13 s, 12200 ms and 90 %, for 0.25 of it", ["page.md: 13 is not in {}"]),
        ("| rows | 12 | 90 |\n| more | 13 |", ["page.md: 13 is not in {}"]),
        ("nothing", ["page.md: no figure after the mark of {}"]),
    ],
)
def test_a_figure_that_is_not_in_its_file_is_named(block: str, says: list[str], tmp_path: Path) -> None:
    source = tmp_path / "result.json"
    source.write_text(json.dumps({"gap": 0.904, "seconds": [12.2, 0.0], "note": "0.25 of it"}))
    text = f"Elsewhere 7.7.\n\n<!-- figures: {source} -->\n\n{block}\n\nand 8.8\n"
    assert figures.wrong("page.md", text) == [each.format(source) for each in says]
    assert "<!--" not in figures.on_page_markdown(text)


@pytest.mark.parametrize(
    ("quoted", "says"),
    [
        ("CCC +0.5 [0.1, 0.9] and 0.7", []),
        ("CCC 0.5 [0.1, 0.7] of 0.9", ["page.md: 0.5 [0.1, 0.7] is not in COMMAND"]),
        ("CCC 0.9 [−0.1, 0.5]", ["page.md: -0.1 is not in COMMAND", "page.md: 0.9 [-0.1, 0.5] is not in COMMAND"]),
        ("| arm | CCC |\n| --- | --- |\n| a | 0.5 [0.1, 0.9] |", []),
        ("| arm | CCC |\n| --- | --- |\n| a | 0.7 |", ["page.md: no command prints | a | 0.7 |"]),
    ],
)
def test_intervals_and_rows_are_compared_whole(monkeypatch: pytest.MonkeyPatch, quoted: str, says: list[str]) -> None:
    table = "| arm | CCC |\n| --- | --- |\n| a | 0.5 [0.1, 0.9] |\n| b | 0.7 |\n"
    monkeypatch.setattr(figures, "printed", lambda command: table)
    assert figures.wrong("page.md", f"<!-- figures: COMMAND -->\n{quoted}\n") == says


@pytest.mark.parametrize(
    ("script", "status", "error"),
    [
        ("print('rows')", 0, ""),
        ("print('rows'); raise SystemExit('no such file')", 1, "no such file"),
        ("print('rows'); raise SystemExit(3)", 3, ""),
        ("print('rows'); 1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("print('rows', flush=True); import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
    ],
    ids=["prints", "says", "status", "raises", "dies"],
)
def test_what_a_command_prints_and_how_it_ends(script: str, status: int, error: str, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(f"import sys, neighbour\nassert sys.argv == [__file__, '--print']\n{script}\n")
    (tmp_path / "neighbour.py").write_text("")  # a script imports what is beside it
    for _ in range(2):  # the next command runs as if nothing had been
        found, out, errors = figures.ended([str(path), "--print"])
        assert (found, out, errors.strip().splitlines()[-1:]) == (status, "rows\n", [error] if error else [])


def test_a_command_that_ends_what_runs_it_is_named_and_the_next_one_runs(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n")
    with pytest.raises(figures.SourceError, match=r"script\.py --print ended the process that runs commands"):
        figures.printed(f"{path} --print")
    path.write_text("print('rows')")
    assert figures.printed(f"{path}") == "rows\n"


def test_a_build_fails_with_the_figures_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("mkdocs.exceptions")
    monkeypatch.setattr(figures, "check", lambda: ["page.md: 1.2 is not in result.json"])
    with pytest.raises(errors.PluginError, match=r"figures that are not in their files:\npage\.md: 1\.2 is not"):
        figures.on_pre_build()


FIGURE = r"[+−]\d+\.\d \[[+−]\d+\.\d, [+−]\d+\.\d\]"  # a mean with its interval


def test_the_readme_quotes_the_demo() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(FIGURE, text[text.index("| `make demo`") : text.index("| `benchmarks/dml_choose.py`")])
    assert len(quoted) >= 4
    found = figures.printed(DEMO).replace("-", "−")
    assert not [figure for figure in quoted if figure not in found]


@pytest.mark.parametrize(
    ("page", "begins", "ends"),
    [
        ("README.md", "| `benchmarks/dml_grid.py`", "| `make demo`"),
        ("docs/index.md", "Does it help?", "The\n[demo]"),
    ],
    ids=["readme", "index"],
)
def test_pages_quote_the_grid(page: str, begins: str, ends: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    quoted = re.findall(FIGURE, text[text.index(begins) : text.index(ends)])
    assert len(quoted) >= 3
    table = figures.printed("benchmarks/dml_grid.py --print").replace("-", "−")
    rows = [
        line
        for line in table.split("**Every cell")[0].splitlines()
        if re.match(r"\| (default|tuned elsewhere|adaptive) ", line)
    ]
    assert not [figure for figure in quoted if not any(figure in line for line in rows)]
    cells = re.match(r"(\d+) cells", table)
    assert cells is not None
    assert f"{cells[1]} cells" in text


def test_the_published_rows_of_affect_metrics_are_judged_by_its_function() -> None:
    rows = set()
    for row in published.TABLE_1.rows:
        for i, label in enumerate(("valence", "arousal")):
            if row.rmse and row.pcc:
                ccc = row.ccc and row.ccc[i]
                low, high = rmse_bounds(row.pcc[i], published.AFFECTNET_SD[label], ccc, rounding=0.005)
                possible = feasible(row.rmse[i], row.pcc[i], published.AFFECTNET_SD[label], 0.005, ccc)
                rows.add(f"{row.rmse[i]} | {low:.3f} to {high:.3f} | {'possible' if possible else 'impossible'} |")
    page = (ROOT / "docs" / "affect-metrics.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| .+, (?:valence|arousal) \| (.+)$", page, re.M)
    assert len(quoted) == 8
    assert set(quoted) <= rows
