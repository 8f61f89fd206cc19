"""Code blocks fit where they are read: on GitHub, and on the pages at 1280 pixels; longer lines are cut or broken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^    [^\s:-][^\n]*\n)+", re.M)
"""Not what belongs to a list, nor the options of the API's pages."""
WIDTH = {"README.md": 100, "python": 108, "text": 118}
"""Characters: the README's, and on the pages at docs/assets/site.css' sizes of Python and of other text."""


def too_long(page: Path) -> list[str]:
    """The lines of code that do not fit."""
    text = page.read_text(encoding="utf-8")
    blocks = [*FENCED.findall(text), *(("", block) for block in INDENTED.findall(FENCED.sub("", text)))]
    found = []
    for language, block in blocks:
        most = WIDTH.get(page.name) or WIDTH["python" if language == "python" else "text"]
        found += [line for line in block.splitlines() if len(line) > most]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_fits(page: Path) -> None:
    assert too_long(page) == []


def test_a_line_that_is_too_long_is_found(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    line = "x" * 101
    page.write_text(f"Words that are {line} no code.\n\n```\nshort\n{line}\n```\n\n    {line}\n")
    assert too_long(page) == [line, f"    {line}"]
