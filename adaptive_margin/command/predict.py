"""``adaptive-margin predict FILE|FOLDER ...``: a table, and pictures and videos with the results drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..choices import DetectorName
from ..training.command_line import Positional, arg, check_output, read


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Finds faces, predicts valence and arousal of each, and writes a table and the pictures with the results drawn in.

    The table is predictions.csv: a row for each face and frame. Videos are written with the results too.

    Attributes:
        source: the input; folders are searched to any depth.
        more: further inputs.
        checkpoint: a trained network: model.pt, its run folder, one of its checkpoints, or a folder for a hub.
        output: where to write.
        crops: each image is one face, already cropped; no detection.
        margin: side of the network's crop, as a multiple of the detector's box.
        no_pictures: write the tables only.
        json: write the table as predictions.json too.
        overwrite: replace existing files of these names.
        detector: what finds the faces; auto is mtcnn where its package is installed, else haar.
        min_face: side of the smallest face to look for, at least 24 pixels; by default 1/32 of the picture's shorter
            side.
        batch_size: pictures or frames whose faces go through the network at once.
        same_person: all inputs show one person, whose features are then normalised by each other; for networks trained
            with --person-norm.
        device: cpu or cuda.
    """

    source: Annotated[Path, Positional, arg(metavar="IMAGE|FOLDER|VIDEO")]
    more: Annotated[tuple[Path, ...], Positional, arg(metavar="...")] = ()
    checkpoint: Annotated[Path, arg(metavar="FILE")]
    output: Annotated[Path, arg(metavar="DIR")] = Path("predictions")
    crops: bool = False
    margin: float = 1.5
    no_pictures: bool = False
    json: bool = False
    overwrite: bool = False
    detector: DetectorName = "auto"
    min_face: Annotated[int | None, arg(metavar="PX", aliases=["--smallest-face"])] = None
    batch_size: int = 16
    same_person: bool = False
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
        detector=options.detector,
        min_face=options.min_face,
    )
    outcome = predict(
        (options.source, *options.more),
        predictor,
        options.output,
        annotate=not options.no_pictures,
        as_json=options.json,
        overwrite=options.overwrite,
        batch_size=options.batch_size,
        same_person=options.same_person,
        tell=tell_on_stderr,
    )
    print(summary(outcome))
    if outcome.interrupted:
        return 130
    return 0 if outcome.pictures else 1
