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
    ],
    ids=["demo", "grid", "choices", "rules"],
)
def test_tables_are_printed_by_their_command(page: str, command: tuple[str, ...]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for line in printed(*command).splitlines() if line.strip() and not line.startswith("Untuned, ")]
    assert len(lines) > 4
    missing = [line for line in lines if line not in text]
    assert not missing


def test_the_readme_quotes_the_demo() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Does it help?") : text.index("\n## ", text.index("## Does it help?") + 1)]
    demo = section[section.index("`make demo`") : section.index("- `benchmarks/dml_choose.py`")]
    quoted = re.findall(r"[+−]\d+\.\d \[[+−]\d+\.\d, [+−]\d+\.\d\]", demo)
    assert len(quoted) >= 4
    found = printed(*DEMO).replace("-", "−")
    assert not [figure for figure in quoted if figure not in found]
