"""A folder as hubs of models have it: weights in ``safetensors``, a description in JSON, a card; nothing pickled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..atomic import write_atomically
from ..messages import require_extra
from ..stored import DamagedFileError, read_json, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
LIBRARY = "adaptive-margin"
AGAIN = "get the folder again from where it came, or write it again with adaptive-margin export-hub"


def require_safetensors() -> None:
    """Raises an ``ImportError`` that says what to install unless safetensors can be imported."""
    require_extra("a folder for a hub", "fer,hub", "safetensors")


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder has weights in ``safetensors``."""
    return (folder / WEIGHTS).is_file()


def write_hub_folder(folder: Path, about: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Writes weights and description, each atomically; the description has the digest of the weights.

    Args:
        folder: created if need be.
        about: plain values.
        weights: tensors by name.

    Raises:
        ImportError: safetensors is not installed.
    """
    require_safetensors()
    from safetensors.torch import save

    own = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    data = save(own, metadata={"format": "pt"})
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, data)
    digest = hashlib.sha256(data).hexdigest()
    write_json(folder / CONFIG, {"library_name": LIBRARY, **about, "weights": {WEIGHTS: digest}}, indent=2)


def read_hub_folder(folder: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """What :func:`write_hub_folder` wrote: the description, with the weights as ``state_dict``. Runs no code.

    Raises:
        DamagedFileError: the folder is another library's, incomplete, or not what was written (a ValueError).
        ImportError: safetensors is not installed.
    """
    require_safetensors()
    from safetensors import SafetensorError
    from safetensors.torch import load

    description, path = folder / CONFIG, folder / WEIGHTS
    if not description.is_file():
        raise DamagedFileError(folder, f"has {WEIGHTS} and no {CONFIG}", AGAIN)
    about = read_json(description, AGAIN)
    digests = about.get("weights")
    if about.get("library_name") != LIBRARY or not isinstance(digests, Mapping):
        remedy = "pass a folder that adaptive-margin export-hub wrote"
        raise DamagedFileError(description, "does not describe a network of this library", remedy)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digests.get(WEIGHTS):
        why = f"is damaged: its {len(data):,} bytes do not match the checksum in {CONFIG}"
        raise DamagedFileError(path, why, AGAIN)
    try:
        weights = load(data)
    except SafetensorError as error:  # written and described so by somebody else
        raise DamagedFileError(path, f"is no file of safetensors ({error})", AGAIN) from error
    return {**about, "state_dict": {name: value.to(device) for name, value in weights.items()}}
