"""Cards are replaced only while they are as they were written."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from adaptive_margin.training.model_card import described, write_card


def test_a_card_replaces_its_own_earlier_one(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in ("# One\n\n− and é\n", "# Two"):
            path = write_card(tmp_path, "model.pt", text)
            assert path == tmp_path / "MODEL_CARD.md"
            assert path.read_text(encoding="utf-8").startswith(text)
            assert described(path) == "model.pt"
    assert [each.name for each in tmp_path.iterdir()] == ["MODEL_CARD.md"]


@pytest.mark.parametrize("change", ["edited", "foreign", "truncated", "sealed twice", "not text", "a folder", "empty"])
def test_what_is_not_ours_is_kept(tmp_path: Path, change: str) -> None:
    path = write_card(tmp_path, "model.pt", "# A network\n\nof mine")
    assert path is not None
    ours = path.read_bytes()
    changed = {
        "edited": ours.replace(b"mine", b"ours"),
        "foreign": b"# Somebody's\n",
        "truncated": ours[:-1],
        "sealed twice": ours + b"\nmore\n",
        "not text": b"\xff" + ours,
        "empty": b"",
    }
    if change == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(changed[change])
    assert described(path) is None
    with pytest.warns(UserWarning, match=r"MODEL_CARD.md was changed, or not written by adaptive-margin: it is kept"):
        assert write_card(tmp_path, "model.pt", "# Another") is None
    assert path.is_dir() or path.read_bytes() == changed[change]
    path.rename(tmp_path / "mine.md")  # the remedy
    assert write_card(tmp_path, "model.pt", "# Another") == path


def test_a_second_network_in_the_folder_has_a_card_of_its_own(tmp_path: Path) -> None:
    first = write_card(tmp_path, "model.pt", "# One")
    second = write_card(tmp_path, "model.onnx", "# Two")
    assert first is not None
    assert second == tmp_path / "model.onnx.MODEL_CARD.md"
    assert "# One" in first.read_text()
    second.write_text("mine")
    with pytest.warns(UserWarning, match="no card of model.onnx is written"):
        assert write_card(tmp_path, "model.onnx", "# Two") is None
    assert second.read_text() == "mine"
