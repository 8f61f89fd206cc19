"""ONNX files compute what PyTorch does, for any batch, or do not appear."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from adaptive_margin.emotion.export_onnx import OnnxMismatchError, export_onnx
from adaptive_margin.emotion.model_file import Preprocessing
from adaptive_margin.emotion.nets import emotion_net

HOW = Preprocessing(resize=48, size=40)


@pytest.mark.slow
def test_any_batch(tmp_path: Path) -> None:
    net = emotion_net("small", dropout=0.5).train()
    worst = export_onnx(net, HOW, tmp_path / "out" / "model.onnx")
    assert worst < 1e-5
    assert net.training
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    x = torch.randn(5, 3, 40, 40)
    with torch.no_grad():
        expected = net.eval()(x).numpy()
    np.testing.assert_allclose(session.run(None, {"images": x.numpy()})[0], expected, atol=1e-5)
    details = session.get_modelmeta().custom_metadata_map
    assert json.loads(details["preprocessing"])["size"] == 40
    assert json.loads(details["labels"]) == ["valence", "arousal"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]


def test_a_mismatch_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OnnxMismatchError, match="within -1 of PyTorch's"):
        export_onnx(emotion_net("small"), HOW, tmp_path / "model.onnx", tolerance=-1)
    assert list(tmp_path.iterdir()) == []
