"""The hook of the documentation that runs the commands that pages quote; it is in no package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[1] / "docs" / "hooks" / "figures.py"
spec = importlib.util.spec_from_file_location("figures", FILE)
assert spec is not None
assert spec.loader is not None
figures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(figures)
