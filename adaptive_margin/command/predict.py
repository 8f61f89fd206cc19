"""``adaptive-margin predict IMAGE|FOLDER|VIDEO``: a table, and pictures and videos with the results drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..training.command_line import Positional, arg, check_output, read


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Finds faces, predicts valence and arousal of each, and writes a table and the pictures with the results drawn in.

    The table is predictions.csv: a row for each face and frame. Videos are written with the results too.

    Attributes:
        source: the input; folders are searched to any depth.
        checkpoint: a trained network: model.pt, the run folder that holds it, or one of its checkpoints.
        output: where to write.
        crops: each image is one face, already cropped; no detection.
        margin: side of the network's crop, as a multiple of the detector's box.
        no_pictures: write the table only.
        overwrite: replace existing files of these names.
        smallest_face: side of the smallest face to look for, at least 24 pixels; by default 1/32 of the picture's
            shorter side.
        device: cpu or cuda.
    """

    source: Annotated[Path, Positional, arg(metavar="IMAGE|FOLDER|VIDEO")]
    checkpoint: Annotated[Path, arg(metavar="FILE")]
    output: Annotated[Path, arg(metavar="DIR")] = Path("predictions")
    crops: bool = False
    margin: float = 1.5
    no_pictures: bool = False
    overwrite: bool = False
    smallest_face: Annotated[int | None, arg(metavar="PX")] = None
    device: str = "cpu"


def main(words: Sequence[str], prog: str) -> int:
    """Predicts with these options; returns 0, 1 if no file could be read, 130 after Ctrl-C."""
    options = read(Predict, argv=words, prog=prog)
    check_output("--output", options.output)

    from ..emotion.predict import load_predictor, predict, summary, tell_on_stderr
    from ..training.world import device_of

    predictor = load_predictor(
        options.checkpoint,
        crops=options.crops,
        margin=options.margin,
        device=str(device_of(options.device)),
        smallest=options.smallest_face,
    )
    outcome = predict(
        options.source,
        predictor,
        options.output,
        annotate=not options.no_pictures,
        overwrite=options.overwrite,
        tell=tell_on_stderr,
    )
    print(summary(outcome))
    if outcome.interrupted:
        return 130
    return 0 if outcome.pictures else 1
