"""Figures in the documentation are those that commands print from committed files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DEMO = ("examples/demo.py", "--print", "benchmarks/demo/results.json")


def printed(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("page", "command"),
    [
        ("docs/dml.md", DEMO),
        ("docs/dml.md", ("benchmarks/dml_grid.py", "--print")),
        ("docs/units.md", ("benchmarks/dml_choose.py", "--print")),
        ("docs/memory.md", ("benchmarks/speed/rules.py", "--print")),
        ("docs/memory.md", ("benchmarks/speed/small.py", "--print")),
        ("docs/memory.md", ("benchmarks/speed/anchors.py", "--print")),
        ("docs/sentence-transformers.md", ("benchmarks/text/run.py", "--print")),
    ],
    ids=["demo", "grid", "choices", "rules", "small", "anchors", "texts"],
)
def test_tables_are_printed_by_their_command(page: str, command: tuple[str, ...]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for line in printed(*command).splitlines() if line.strip() and not line.startswith("Untuned, ")]
    assert len(lines) > 4
    missing = [line for line in lines if line not in text]
    assert not missing


FIGURE = r"[+−]\d+\.\d \[[+−]\d+\.\d, [+−]\d+\.\d\]"  # a mean with its interval


def test_the_readme_quotes_the_demo() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(FIGURE, text[text.index("| `make demo`") : text.index("| `benchmarks/dml_choose.py`")])
    assert len(quoted) >= 4
    found = printed(*DEMO).replace("-", "−")
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
    table = printed("benchmarks/dml_grid.py", "--print").replace("-", "−")
    rows = [
        line
        for line in table.split("**Every cell")[0].splitlines()
        if re.match(r"\| (default|tuned elsewhere|adaptive) ", line)
    ]
    assert not [figure for figure in quoted if not any(figure in line for line in rows)]
    cells = re.match(r"(\d+) cells", table)
    assert cells is not None
    assert f"{cells[1]} cells" in text
