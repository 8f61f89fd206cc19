"""The example draws the pictures of the documentation, and they are small enough to ship."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_example_writes_its_pictures(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    example("draw_faces").main(tmp_path, size=32)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["faces-circumplex.png", "faces-contact-sheet.png", "faces-identities.png", "faces-video.png"]
    assert all(path.stat().st_size < 2**20 for path in tmp_path.iterdir())


def test_the_picture_of_what_predict_writes(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    from PIL import Image

    from adaptive_margin.emotion.model_file import Preprocessing, save_model
    from adaptive_margin.emotion.nets import emotion_net

    save_model(tmp_path / "model.pt", emotion_net("small"), Preprocessing(), config={"dataset": "faces"})
    example("predict_drawn").main(tmp_path / "model.pt", tmp_path / "predict.png")
    with Image.open(tmp_path / "predict.png") as picture:
        assert picture.size == (560 + 6 + 256, 256)
