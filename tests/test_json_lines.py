"""Files with one JSON object a line: what a killed process leaves is ended, named and left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptive_margin.json_lines import add_lines, read_lines


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert read_lines(path) == []
    add_lines(path, [{"head": True}, {"seed": 0}])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"seed":1,"sco')
    add_lines(path, [{"seed": 2}])
    assert read_lines(path) == [{"head": True}, {"seed": 0}, {"seed": 2}]
    assert "rows.jsonl, line 3: not JSON, so this run is repeated" in capsys.readouterr().err
    assert path.read_bytes().startswith(whole)


def test_nothing_is_added_to_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    add_lines(path, [{"name": "Σ"}])
    before = path.read_bytes()
    add_lines(path, [])
    assert path.read_bytes() == before
