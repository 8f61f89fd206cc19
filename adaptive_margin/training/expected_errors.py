"""Errors that are not bugs in the program: reported by their message, without a traceback."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator

from ..atomic import DiskSpaceError
from ..functional.checks import is_problem
from ..images.errors import CacheSpaceError, FetchError, LabelFileError, LayoutError, UnreadableError, UnwritableError
from ..stored import DamagedFileError
from .checkpoints import CheckpointError
from .config_files import ConfigError
from .loop import NonFiniteError
from .run_folder import RunFolderError
from .world import MainProcessError

EXPECTED = (
    CacheSpaceError,
    CheckpointError,
    ConfigError,
    DamagedFileError,
    DiskSpaceError,
    FetchError,
    LabelFileError,
    LayoutError,
    MainProcessError,  # which says itself what was wrong
    NonFiniteError,
    RunFolderError,
    UnreadableError,
    UnwritableError,
    FileExistsError,  # of these three the system's own words name the file
    NotADirectoryError,
    PermissionError,
)


def is_expected(error: BaseException) -> bool:
    """Whether an error tells users what they can do about it; any other is a bug in the program."""
    read_only = isinstance(error, OSError) and error.errno == errno.EROFS  # has no class of its own
    return read_only or isinstance(error, EXPECTED) or is_problem(error)


@contextlib.contextmanager
def said_plainly() -> Iterator[None]:
    """Ends the program after an expected error and prints only its message: with code 2 if the command has to be
    changed (an option, a folder, a missing package), with code 1 if something could not be done.
    """
    try:
        yield
    except Exception as error:
        if not is_expected(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, (ValueError, ImportError)) else 1) from None
