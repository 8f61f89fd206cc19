"""``adaptive-margin export-onnx``: a trained network as an ONNX file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..messages import problem
from ..training.command_line import arg, check_output, read


@dataclass(frozen=True, kw_only=True)
class ExportOnnx:
    """Writes encoder and regressor as an ONNX file for batches of any size, and a model card beside it.

    Its output in ONNX Runtime is compared with PyTorch's before the file is written.

    Attributes:
        checkpoint: a trained network: model.pt, its run folder, one of its checkpoints, or a folder for a hub.
        output: the file to write, such as model.onnx.
        tolerance: largest difference allowed.
        overwrite: replace an existing file; of the files of a network none.
    """

    checkpoint: Annotated[Path, arg(metavar="FILE")]
    output: Annotated[Path, arg(metavar="FILE")]
    tolerance: float = 1e-4
    overwrite: bool = False


def main(words: Sequence[str], prog: str) -> int:
    """Writes the file with these options; returns 0."""
    options = read(ExportOnnx, argv=words, prog=prog)
    output = options.output
    check_output("--output", output, file=True, reads=[options.checkpoint])
    if os.path.lexists(output) and not options.overwrite:
        remedy = "pass another --output, or --overwrite to replace it"
        raise ValueError(problem("--output", "a file that does not exist yet", output, remedy))

    from ..emotion.export_onnx import export_onnx
    from ..emotion.hub_folder import is_hub_folder
    from ..emotion.model_card import facts_of, model_card, onnx_loading
    from ..emotion.model_file import is_run, network_of, read_network
    from ..training.model_card import write_card

    source = read_network(options.checkpoint)
    run = source.options.parent
    places = (run, run / "checkpoints") if is_run(run) or is_hub_folder(run) else ()
    own = (path for place in places for path in place.glob("*") if path.suffix != ".onnx")
    check_output("--output", output, file=True, reads=[source.path, *own])
    net, preprocessing = network_of(source)
    size = preprocessing.size
    text = model_card(net, preprocessing, facts_of(source), onnx_loading(output.name, net, size))
    worst = export_onnx(net, preprocessing, output, tolerance=options.tolerance)
    print(f"wrote {output}: images (batch, 3, {size}, {size}) to valence and arousal (batch, 2)")
    print(f"largest difference from PyTorch: {worst:.2g}")
    if card := write_card(output.parent, output.name, text):
        print(f"wrote {card}")
    return 0
