"""The example draws the pictures of the documentation, and they are small enough to ship."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "draw_faces.py"


def test_example_writes_its_pictures(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    spec = importlib.util.spec_from_file_location("draw_faces_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(tmp_path, size=32)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["faces-circumplex.png", "faces-contact-sheet.png", "faces-identities.png", "faces-video.png"]
    assert all(path.stat().st_size < 2**20 for path in tmp_path.iterdir())
