"""``adaptive-margin export-hub CHECKPOINT FOLDER``: a trained network as a folder for a hub of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..messages import printable
from ..training.command_line import Positional, arg, check_output, read


@dataclass(frozen=True, kw_only=True)
class ExportHub:
    """Writes model.safetensors, config.json and README.md, the model card; nothing is pickled or sent anywhere.

    predict --checkpoint FOLDER reads the folder back.

    Attributes:
        checkpoint: a trained network: model.pt, its run folder, one of its checkpoints, or a folder for a hub.
        folder: where to write; other files in it are left alone.
        overwrite: replace an earlier export; a changed README.md is kept.
    """

    checkpoint: Annotated[Path, Positional, arg(metavar="CHECKPOINT")]
    folder: Annotated[Path, Positional, arg(metavar="FOLDER")]
    overwrite: bool = False


def main(words: Sequence[str], prog: str) -> int:
    """Writes the folder with these options; returns 0."""
    options = read(ExportHub, argv=words, prog=prog)
    check_output("FOLDER", options.folder)

    from ..emotion.export_hub import export_hub

    for path in export_hub(options.checkpoint, options.folder, overwrite=options.overwrite):
        print(f"wrote {printable(str(path))}")
    return 0
