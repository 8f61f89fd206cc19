"""The command ``adaptive-margin``: everything for trained networks and data except the training itself."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from . import __version__
from .functional.checks import problem


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; ``adaptive-margin --help`` explains it.

    Args:
        argv: arguments without the program's name; by default those of the process.

    Returns:
        0 on success, 1 if something could not be done, 130 after Ctrl-C. A wrong option ends the process with
        status 2.
    """
    parser = argparse.ArgumentParser(
        prog="adaptive-margin",
        description="Valence and arousal from faces: predict with a trained network, export it, report on runs, "
        "check data.",
        epilog="Train with python -m adaptive_margin.emotion. Each command has its own --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"adaptive-margin {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_predict(commands)
    _add_export(commands)
    _add_report(commands)
    _add_check(commands)
    words = list(sys.argv[1:] if argv is None else argv)
    run: Callable[[], int] = partial(_check, words[1:])
    if words[:1] != ["check"]:  # it has its own parser
        options = parser.parse_args(words)
        run = partial(options.run, options)
    try:
        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        from ._text import printable  # an error names files, whose names may hold a terminal's commands

        lines = f"adaptive-margin {words[0]}: {error}".splitlines()
        print("\n".join(map(printable, lines)), file=sys.stderr)
        return 1


def _checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help="a trained network: model.pt, the run folder that holds it, or one of its checkpoints",
    )


def _add_predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "predict",
        help="valence and arousal of the faces in images and videos",
        description="Finds faces, predicts valence and arousal of each, and writes a table (predictions.csv: a row for "
        "each face and frame) and the images and videos with the results drawn in.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IMAGE|FOLDER|VIDEO", help="the input; folders are searched to any depth")
    _checkpoint(parser)
    parser.add_argument("--output", default="predictions", metavar="DIR", help="where to write (default: predictions)")
    parser.add_argument("--crops", action="store_true", help="each image is one face, already cropped; no detection")
    parser.add_argument(
        "--margin",
        type=float,
        default=1.5,
        help="side of the network's crop, as a multiple of the detector's box (default 1.5)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write the table only")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files of these names")
    parser.add_argument(
        "--smallest-face",
        type=int,
        metavar="PX",
        help="side of the smallest face to look for, at least 24 (default: 1/32 of the picture's shorter side)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    from .emotion.predict import load_predictor, predict, summary, tell_on_stderr

    predictor = load_predictor(
        options.checkpoint,
        crops=options.crops,
        margin=options.margin,
        device=options.device,
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


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export-onnx",
        help="write a trained network as ONNX, checked against PyTorch",
        description="Writes encoder and regressor as an ONNX file for batches of any size, and compares its output in "
        "ONNX Runtime with PyTorch's before the file is written.",
        allow_abbrev=False,
    )
    _checkpoint(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help="the file to write, such as model.onnx")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference allowed (default 1e-4)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    from .emotion.export_onnx import export_onnx
    from .emotion.model_file import load_network

    output, checkpoint = Path(options.output), Path(options.checkpoint)
    sources = [path for path in (checkpoint, checkpoint / "model.pt") if path.exists()]
    if output.exists() and any(map(output.samefile, sources)):
        raise ValueError(problem("output", "another file than the checkpoint", output, "pass another --output"))
    if os.path.lexists(output) and not options.overwrite:
        remedy = "pass another --output, or --overwrite to replace it"
        raise ValueError(problem("output", "a file that is not there yet", output, remedy))
    net, preprocessing = load_network(options.checkpoint)
    worst = export_onnx(net, preprocessing, options.output, tolerance=options.tolerance)
    size = preprocessing.size
    print(f"{options.output}: images (batch, 3, {size}, {size}) to valence and arousal (batch, 2)")
    print(f"largest difference from PyTorch: {worst:.2g}")
    return 0


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "report",
        help="one HTML file about a run, or about all runs of an ablation",
        description="Writes one self-contained HTML file: figures with intervals beside the paper's, identity leakage, "
        "curves, the margin over training, a video, maps of features, best and worst predictions.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="DIR", help="a run folder, or a folder with runs/ARM/seedN")
    parser.add_argument(
        "--output", metavar="FILE", help="the file to write (default: DIR/report.html); an earlier report is replaced"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file there that is no earlier report")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from .emotion.report import write_report

    print(write_report(options.folder, options.output, overwrite=options.overwrite))
    return 0


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    commands.add_parser(
        "check",
        help="say which data set a folder contains and which of its rows can be used",
        add_help=False,
    )


def _check(words: Sequence[str]) -> int:
    from .affect.check import main as check

    return check(words, prog="adaptive-margin check")


if __name__ == "__main__":
    sys.exit(main())
