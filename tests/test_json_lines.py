"""Files with one JSON object a line: what a killed process leaves is ended, named and left out."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import json_lines

    return json_lines


def test_a_line_that_was_cut_off_spoils_no_other(
    lines: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert lines.read_lines(path) == []
    lines.add_lines(path, [{"head": True}, {"seed": 0}])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"seed":1,"sco')
    lines.add_lines(path, [{"seed": 2}])
    assert lines.read_lines(path) == [{"head": True}, {"seed": 0}, {"seed": 2}]
    assert "rows.jsonl, line 3: not a JSON object, so this run is repeated" in capsys.readouterr().err
    assert path.read_bytes().startswith(whole)


def test_lines_are_added_to_no_file_of_others(lines: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    lines.check_lines("--results", path)
    lines.add_lines(path, [{"seed": 0}])
    lines.check_lines("--results", path)
    for content in (b"notes\n", b"\x89PNG\r\n"):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"--results must be a file with a JSON object a line, got .*; pass another"
        ):
            lines.check_lines("--results", path)
    with pytest.raises(ValueError, match="--results must be in a folder, got the file"):
        lines.check_lines("--results", path / "rows.jsonl")


def test_a_line_of_something_else_is_named(
    lines: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text('5\n{"seed": 0}\n["loss"]\n')
    assert lines.read_lines(tmp_path / "rows.jsonl") == [{"seed": 0}]
    assert capsys.readouterr().err.count("not a JSON object, so this run is repeated") == 2


def test_nothing_is_added_to_a_whole_file(lines: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines.add_lines(path, [{"name": "Σ"}])
    before = path.read_bytes()
    lines.add_lines(path, [])
    assert path.read_bytes() == before
