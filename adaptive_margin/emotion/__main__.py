"""``python -m adaptive_margin.emotion``: trains one network; under ``torchrun``, on several processes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from ..training.command_line import parse
from ..training.expected_errors import said_plainly
from .config import PRESETS, EmotionConfig, preset_for
from .trainer import run

PROG = "python -m adaptive_margin.emotion"
DESCRIPTION = "Trains valence and arousal from faces, with the paper's critic or another."


def main(argv: Sequence[str] | None = None) -> int:
    """Trains one network with the options of the command line.

    Args:
        argv: arguments without the program's name; by default those of the process.

    Returns:
        0 if training finished, 2 if no options were given.

    Raises:
        SystemExit: from :func:`~adaptive_margin.training.expected_errors.said_plainly`, after an expected error.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        with contextlib.suppress(SystemExit):
            parse(EmotionConfig, PRESETS, argv=["--help"], prog=PROG, description=DESCRIPTION)
        print("error: say what to train; --preset quick takes some seconds, on drawn faces", file=sys.stderr)
        return 2
    config = parse(EmotionConfig, PRESETS, argv=words, prog=PROG, description=DESCRIPTION, preset_for=preset_for)
    with said_plainly():
        result = run(config)
    figures = result.result["test"]["figures"]
    for name in ("rmse", "sagr", "pcc", "ccc"):
        print(f"{name.upper():5}" + "".join(f"  {label} {value:.4f}" for label, value in figures[name].items()))
    print(f"in {result.folder}: model.pt, result.json, evaluation.npz, scalars.csv, splits, checkpoints")
    return 0


if __name__ == "__main__":
    sys.exit(main())
