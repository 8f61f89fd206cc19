"""The file a trained network is kept in: encoder and regressor, how to prepare images, and where it comes from."""

from __future__ import annotations

import io
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..atomic import write_atomically
from ..datasets.transforms import IMAGENET_MEAN, IMAGENET_STD
from ..functional.checks import problem
from .nets import EmotionNet, emotion_net

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture of a face becomes the network's input.

    Attributes:
        resize: side that the face's shorter side is brought to, pixels.
        size: side of the crop, from the middle, pixels.
        mean: of red, green and blue, in [0, 1].
        std: likewise.
    """

    resize: int = 256
    size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def save_model(
    path: str | os.PathLike[str],
    net: EmotionNet,
    preprocessing: Preprocessing,
    *,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network to a file that appears whole or not at all.

    Args:
        path: where; folders are made.
        net: encoder and regressor.
        preprocessing: of its input.
        config: how it was trained: plain numbers, strings, lists and dictionaries.
    """
    import torchvision

    from .. import __version__

    versions = {
        "adaptive_margin": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
    content = {
        "format": FORMAT,
        "encoder": net.encoder.name,
        "leaky_slope": net.leaky_slope,
        "labels": ["valence", "arousal"],
        "state_dict": {name: value.detach().cpu() for name, value in net.state_dict().items()},
        "preprocessing": asdict(preprocessing),
        "config": dict(config or {}),
        "versions": {name: str(version) for name, version in versions.items()},  # torch's is not quite a string
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    memory = io.BytesIO()
    torch.save(content, memory)
    write_atomically(path, memory.getbuffer())


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[EmotionNet, Preprocessing]:
    """Reads what :func:`save_model` wrote. The file can hold tensors and plain values only: it runs no code.

    Returns:
        The network in evaluation mode on ``device``, and how to prepare its input.

    Raises:
        ValueError: a file of another kind or format.
        FileNotFoundError: none there.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        remedy = "pass the model.pt of a run folder"
        raise ValueError(problem("path", "a model file", f"{path} ({error})", remedy)) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT or "encoder" not in content:
        remedy = "pass the model.pt of a run folder, not a checkpoint"
        raise ValueError(problem("path", f"a model file of format {FORMAT}", f"format {found} in {path}", remedy))
    net = emotion_net(content["encoder"], leaky_slope=content.get("leaky_slope", 0.0)).to(device)
    try:
        net.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        remedy = "use the version of adaptive-margin that wrote it, which the file names under versions"
        got = f"{path}: {str(error).splitlines()[0]}"
        raise ValueError(problem("path", "weights of this version's networks", got, remedy)) from error
    how = content["preprocessing"]
    preprocessing = Preprocessing(
        resize=how["resize"], size=how["size"], mean=tuple(how["mean"]), std=tuple(how["std"])
    )
    return net.eval(), preprocessing


def model_details(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a model file says of itself: encoder, labels, preprocessing, config and versions."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value for name, value in content.items() if name != "state_dict"}
