"""``python -m adaptive_margin.emotion``: trains one network; under ``torchrun``, on several processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..atomic import DiskSpaceError
from ..datasets.errors import CacheSpaceError, LabelFileError, LayoutError, LeakError, UnreadableError
from ..training.command_line import parse
from ..training.loop import NonFiniteError
from ..training.run_folder import RunFolderError
from .config import PRESETS, EmotionConfig
from .trainer import run

EXPECTED = (
    CacheSpaceError,
    DiskSpaceError,
    LabelFileError,
    LayoutError,
    LeakError,
    NonFiniteError,
    RunFolderError,
    UnreadableError,
)
"""What can go wrong without a fault in the program: said in its own words, without a traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says; 0 where it came to its end."""
    description = "Trains valence and arousal from faces, with the paper's critic or another."
    config = parse(EmotionConfig, PRESETS, argv=argv, prog="python -m adaptive_margin.emotion", description=description)
    try:
        result = run(config)
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    figures = result.result["test"]["figures"]
    for name in ("rmse", "sagr", "pcc", "ccc"):
        print(f"{name.upper():5}" + "".join(f"  {label} {value:.4f}" for label, value in figures[name].items()))
    print(f"in {result.folder}: model.pt, result.json, evaluation.npz, scalars.csv, splits, checkpoints")
    return 0


if __name__ == "__main__":
    sys.exit(main())
