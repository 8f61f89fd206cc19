"""``python -m adaptive_margin.emotion``: trains one network; under ``torchrun``, on several processes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from ..atomic import DiskSpaceError
from ..datasets.errors import CacheSpaceError, LabelFileError, LayoutError, LeakError, UnreadableError
from ..functional.checks import is_problem
from ..training.checkpoints import CheckpointError
from ..training.command_line import ConfigError, parse
from ..training.loop import NonFiniteError
from ..training.run_folder import RunFolderError
from .config import PRESETS, EmotionConfig, preset_for
from .trainer import run

EXPECTED = (
    CacheSpaceError,
    CheckpointError,
    ConfigError,
    DiskSpaceError,
    LabelFileError,
    LayoutError,
    LeakError,
    NonFiniteError,
    RunFolderError,
    UnreadableError,
    FileExistsError,  # of these three the system's own words name the file
    NotADirectoryError,
    PermissionError,
)
"""What can go wrong without a fault in the program: said in its own words, without a traceback."""

PROG = "python -m adaptive_margin.emotion"
DESCRIPTION = "Trains valence and arousal from faces, with the paper's critic or another."


def is_expected(error: BaseException) -> bool:
    """Whether an error says what its reader can do about it; any other is a fault of the program."""
    return isinstance(error, EXPECTED) or is_problem(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says.

    Args:
        argv: arguments without the program's name; those of the process unless given.

    Returns:
        0 where it came to its end, 1 where something could not be done (no space, a loss that is not finite), 2 where
        something else has to be asked for (no arguments at all, an option, a folder, a package that is missing).
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        with contextlib.suppress(SystemExit):
            parse(EmotionConfig, PRESETS, argv=["--help"], prog=PROG, description=DESCRIPTION)
        print("error: say what to train; --preset quick takes some seconds, on drawn faces", file=sys.stderr)
        return 2
    config = parse(EmotionConfig, PRESETS, argv=words, prog=PROG, description=DESCRIPTION, preset_for=preset_for)
    try:
        result = run(config)
    except Exception as error:
        if not is_expected(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, ImportError)) else 1
    figures = result.result["test"]["figures"]
    for name in ("rmse", "sagr", "pcc", "ccc"):
        print(f"{name.upper():5}" + "".join(f"  {label} {value:.4f}" for label, value in figures[name].items()))
    print(f"in {result.folder}: model.pt, result.json, evaluation.npz, scalars.csv, splits, checkpoints")
    return 0


if __name__ == "__main__":
    sys.exit(main())
