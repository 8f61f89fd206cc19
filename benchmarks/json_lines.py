"""Files of results with one JSON object a line, which a benchmark adds to until it has everything."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adaptive_margin.messages import problem
from adaptive_margin.training.command_line import check_output


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, in order; none if there is no file. A line that a killed process cut off is named."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), 1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            print(f"{path}, line {number}: not a JSON object, so this run is repeated", file=sys.stderr)
    return found


def check_lines(flag: str, path: Path) -> None:
    """Raises a ``ValueError`` if lines cannot be added to a file, or if its first line is none of ours."""
    check_output(flag, path, file=True)
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        if (first := file.readline(2**20)) and not first.startswith("{"):
            remedy = "pass another, or move that file"
            raise ValueError(problem(flag, "a file with a JSON object a line", path, remedy))


def add_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Adds objects at the end of a file, on lines of their own even if the last one was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        cut_off = file.read(1) not in (b"", b"\n")
        lines = [json.dumps(each, separators=(",", ":")) + "\n" for each in objects]
        file.write(("\n" * cut_off + "".join(lines)).encode())
