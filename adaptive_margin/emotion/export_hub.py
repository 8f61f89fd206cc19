"""Writes a trained network as a folder that a hub of models takes, and that this library reads back."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..messages import problem
from ..stored import DamagedFileError, read_json
from ..training.model_card import write_card
from .hub_folder import CONFIG, LIBRARY, WEIGHTS, require_safetensors, write_hub_folder
from .model_card import facts_of, model_card, python_loading
from .model_file import FORMAT, description, is_run, network_of, read_network

README = "README.md"
HEADER = """---
library_name: adaptive-margin
license: unknown
tags:
- facial-expression-recognition
- valence-arousal
- safetensors
---
"""
"""What hubs read of a card. The weights have no licence until their owner gives them one."""


def export_hub(
    checkpoint: str | os.PathLike[str], folder: str | os.PathLike[str], *, overwrite: bool = False
) -> tuple[Path, ...]:
    """Writes a network as ``model.safetensors``, ``config.json`` and ``README.md``, its card with a header in YAML.

    Nothing is pickled. ``config.json`` has all that is needed to build the network again, the options of its training
    without those that name files or devices, its figures, and the digests of both files.
    :func:`~adaptive_margin.emotion.model_file.load_network` reads the folder back, bit by bit.

    Args:
        checkpoint: a model file, a checkpoint, a run folder or another folder for a hub.
        folder: created if need be; other files in it are left alone.
        overwrite: replace an earlier export. A ``README.md`` that somebody else wrote, or changed, is always kept.

    Returns:
        The files that were written.

    Raises:
        ValueError: the checkpoint cannot be read; the folder is that of a run, or has weights or a description already.
        ImportError: safetensors is not installed.

    Warns:
        UserWarning: a ``README.md`` that was there before, or was changed, is kept.
    """
    require_safetensors()
    folder = Path(folder)
    _check_folder(folder, overwrite)
    source = read_network(checkpoint)
    net, preprocessing = network_of(source)
    known = facts_of(source)
    about = {
        "format": FORMAT,
        **description(net, preprocessing),
        "config": known["config"],
        "versions": known["versions"],
        "facts": {name: known[name] for name in ("rows", "independent", "result", "step")},
    }
    text = HEADER + "\n" + model_card(net, preprocessing, known, python_loading("FOLDER"))
    write_hub_folder(folder, about, net.state_dict())
    card = write_card(folder, WEIGHTS, text, README)
    return (folder / WEIGHTS, folder / CONFIG, *([card] if card else []))


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Raises unless the folder may have the files."""
    if is_run(folder):
        remedy = "pass another folder"
        raise ValueError(problem("folder", "one of its own", f"{folder}, which holds a run", remedy))
    there = [name for name in (WEIGHTS, CONFIG) if os.path.lexists(folder / name)]
    got = f"{folder} with {', '.join(there)}"
    ours = False
    with contextlib.suppress(DamagedFileError, OSError):
        ours = read_json(folder / CONFIG).get("library_name") == LIBRARY
    if there and not ours:
        expected, remedy = "one without files of others that have these names", "pass another folder"
        raise ValueError(problem("folder", expected, got, remedy))
    if there and not overwrite:
        remedy = "pass another folder, or --overwrite (overwrite=True)"
        raise ValueError(problem("folder", "one without an earlier export", got, remedy))
