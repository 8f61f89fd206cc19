"""Exports a trained network as an ONNX file and checks it against PyTorch."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..atomic import write_atomically
from ..messages import problem, require_extra
from .model_file import Preprocessing
from .nets import LABELS, EmotionNet


class OnnxMismatchError(RuntimeError):
    """The exported network does not compute the same as PyTorch; no file was written."""


def export_onnx(
    net: EmotionNet,
    preprocessing: Preprocessing,
    path: str | os.PathLike[str],
    *,
    tolerance: float = 1e-4,
    batches: Sequence[int] = (1, 3),
) -> float:
    """Writes a network as ONNX for batches of any size, and compares its output in ONNX Runtime with PyTorch's.

    The input ``images`` is float32, ``(batch, 3, size, size)``, normalised; the output ``valence_arousal`` is float32,
    ``(batch, 2)``. Size, mean and standard deviation are in the file's metadata as JSON, under
    ``preprocessing``, beside ``labels`` and ``encoder``.

    Args:
        net: encoder and regressor; exported in evaluation mode on the CPU; the object itself is not changed.
        preprocessing: preprocessing of its input.
        path: the file; it is written atomically, and only if the check passes.
        tolerance: largest absolute difference allowed.
        batches: batch sizes to compare.

    Returns:
        The largest difference found.

    Raises:
        OnnxMismatchError: it is larger than ``tolerance``.
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    require_extra("exporting", "fer,onnx", "onnx", "onnxruntime", "onnxscript")  # torch's exporter needs the last
    import onnx
    import onnxruntime

    model = copy.deepcopy(net).cpu().float().eval()
    size = preprocessing.size
    inputs = [torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n)) for n in batches]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own internals
        program: Any = torch.onnx.export(
            model,
            (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)),),  # 1 would become a constant
            dynamo=True,
            input_names=["images"],
            output_names=["valence_arousal"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    proto = program.model_proto
    details = {"labels": list(LABELS), "preprocessing": asdict(preprocessing), "encoder": net.encoder.name}
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in details.items()})

    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = 0.0
    for images in inputs:
        with torch.inference_mode():
            expected = model(images).numpy()
        got = session.run(["valence_arousal"], {"images": images.numpy()})[0]
        worst = max(worst, float(np.abs(got - expected).max()))
    if not worst <= tolerance:
        within, remedy = f"within {tolerance:g} of PyTorch's", "allow it with a larger tolerance, or report this"
        raise OnnxMismatchError(problem("the ONNX file's output", within, f"{worst:g}", remedy))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return worst
