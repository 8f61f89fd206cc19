"""Files of results with one JSON object a line, which a benchmark adds to until it has everything."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, in order; none if there is no file. A line that a killed process cut off is named."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), 1):
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            print(f"{path}, line {number}: not a JSON object, so this run is repeated", file=sys.stderr)
    return found


def add_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Adds objects at the end of a file, on lines of their own even if the last one was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        cut_off = file.read(1) not in (b"", b"\n")
        lines = [json.dumps(each, separators=(",", ":")) + "\n" for each in objects]
        file.write(("\n" * cut_off + "".join(lines)).encode())
