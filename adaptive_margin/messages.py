"""The sentence of every error of this library, and checks that need no PyTorch, for command lines that answer at once.

Every message names the argument, the expected value, the value it got and the remedy. File names in it may have
any characters, and be many.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import math
import sys
import traceback
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path

_REORDERS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Problem(str):
    """A sentence of :func:`problem`."""

    __slots__ = ()


class BrokenPackageError(ImportError):
    """A package is installed, but cannot be imported; the message has the package's own error."""

    def __init__(self, package: str, error: BaseException) -> None:
        super().__init__(f"{package} is installed, but cannot be imported: {error}")


def problem(argument: str, expected: str, got: object, remedy: str) -> Problem:
    """The sentence of every error of this library.

    Example:
        >>> problem("margin", "a scalar", "shape (3,)", "pass one number")
        'margin must be a scalar, got shape (3,); pass one number'
    """
    return Problem(f"{argument} must be {expected}, got {got}; {remedy}")


def is_problem(error: BaseException) -> bool:
    """Whether an error was worded here, so that the caller can act on it, and is not a bug in the program.

    Those are ValueErrors with a sentence of :func:`problem`, and ImportErrors that say what to
    install, or which installed package is broken.

    Example:
        >>> is_problem(ValueError(problem("margin", "a scalar", "shape (3,)", "pass one number")))
        True
        >>> is_problem(ValueError("too many values to unpack (expected 2)"))
        False
    """
    if isinstance(error, ImportError):
        return isinstance(error, BrokenPackageError) or "pip install" in str(error)
    return isinstance(error, ValueError) and any(isinstance(part, Problem) for part in error.args)


def is_expected(error: BaseException) -> bool:
    """Whether an error tells users what they can do about it; any other is a bug in the program.

    Those are the errors of :func:`is_problem`, all classes of errors that this library has, and those of the system
    whose own words name a file.
    """
    of_files = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
    other = isinstance(error, OSError) and error.errno in (
        errno.EROFS,
        errno.ENAMETOOLONG,
    )  # have no class of their own
    own = type(error).__module__.startswith("adaptive_margin.")
    return own or other or isinstance(error, of_files) or is_problem(error)


@contextlib.contextmanager
def said_plainly() -> Iterator[None]:
    """Ends the program after an expected error and prints only its message: with code 2 if the command has to be
    changed (an option, a folder, a missing package), with code 1 if something could not be done. So does a package that
    is installed and cannot be imported.
    """
    try:
        yield
    except Exception as caught:
        package = _importing(caught)
        if not is_expected(caught) and not package:
            raise
        error = BrokenPackageError(package, caught) if package else caught
        lines = f"error: {error}".splitlines()  # with names of files, which may hold a terminal's commands
        print("\n".join(map(printable, lines)), file=sys.stderr)
        raise SystemExit(2 if isinstance(error, (ValueError, ImportError)) else 1) from None


def counted(n: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "face"), counted(1200, "face")
        ('1 face', '1,200 faces')
    """
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def duration(seconds: float) -> str:
    """How long something takes, in words.

    Example:
        >>> duration(42), duration(1080), duration(9000)
        ('42 s', '18 minutes', '2.5 hours')
    """
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "a second"
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"


def printable(name: str) -> str:
    r"""``name`` in a form that can be written anywhere: characters that are not printable text are escaped.

    File names may contain line ends, terminal commands, characters that reverse the text after them, and bytes that are
    not UTF-8, which Python keeps as surrogates that cannot be encoded.

    Example:
        >>> print(printable("a\x1b[31m\nb\udcff é.jpg"))
        a\x1b[31m\x0ab\xff é.jpg
    """

    def safe(letter: str) -> str:
        code = ord(letter)
        if 0xDC80 <= code <= 0xDCFF:
            return f"\\x{code - 0xDC00:02x}"
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in _REORDERS:
            return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
        return letter

    return name if name.isascii() and name.isprintable() else "".join(map(safe, name))


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The first few of ``names`` on one line.

    Example:
        >>> shorten(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most:,} more"


def check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(problem(argument, f"one of {', '.join(map(repr, choices))}", repr(value), "pick one of them"))


def check_count(argument: str, count: object, low: int, high: int | None = None) -> int:
    """Raises unless ``count`` is an integer in ``[low, high]``."""
    if isinstance(count, bool) or not isinstance(count, Integral):
        raise TypeError(problem(argument, "an integer", type(count).__name__, "pass a whole number"))
    if int(count) < low or (high is not None and int(count) > high):
        expected = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(problem(argument, expected, int(count), "choose a number in that range"))
    return int(count)


def allowed(skip_unreadable: int | float, rows: int) -> int:
    """How many unreadable rows of ``rows`` are allowed: a number, or a share of them rounded down.

    Raises:
        TypeError: not a number, or a bool.
        ValueError: negative, or a share above 1.

    Example:
        >>> allowed(0, 1000), allowed(3, 1000), allowed(0.01, 1000)
        (0, 3, 10)
    """
    expected = "a number of rows (int) or a share of them (float from 0 to 1)"
    remedy = "0 raises at the first, 5 skips up to five, 0.01 up to one in a hundred"
    if isinstance(skip_unreadable, bool) or not isinstance(skip_unreadable, int | float):
        raise TypeError(problem("skip_unreadable", expected, repr(skip_unreadable), remedy))
    share = isinstance(skip_unreadable, float)
    if not 0 <= skip_unreadable <= (1 if share else math.inf):  # NaN fails too
        raise ValueError(problem("skip_unreadable", expected, skip_unreadable, remedy))
    return math.floor(skip_unreadable * rows) if share else int(skip_unreadable)


def nearest(name: str, known: Collection[str], prefix: str = "", otherwise: str = "") -> str:
    """The end of an error message about an unknown name; ``otherwise`` if none is similar, by default all of them.

    Example:
        >>> nearest("learing_rate", ["learning_rate", "steps"])
        'the nearest: learning_rate'
    """
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    shown = ", ".join(f"{prefix}{each}" for each in close or known)
    return f"the nearest: {shown}" if close else otherwise or f"known: {shown}"


def require_extra(package: str, extra: str, *modules: str) -> None:
    """Raises an ``ImportError`` that says what to install unless all modules of an extra can be imported.

    Example:
        >>> require_extra("adaptive_margin.emotion", "fer", "torch", "no_such_module")
        Traceback (most recent call last):
        ImportError: adaptive_margin.emotion needs no_such_module: pip install ...[fer]'
    """
    missing = [module for module in modules if not _is_there(module)]
    if missing:
        raise ImportError(f"{package} needs {', '.join(missing)}: {pip_install(extra)}")


def refuse_broken(module: str, error: ImportError) -> None:
    """Raises a :class:`BrokenPackageError` if a module could not be imported although it is there."""
    if _is_there(module):
        raise BrokenPackageError(module, error) from error


def pip_install(extras: str) -> str:
    """The command that installs extras of this library from where the library itself came from.

    That is a clone, a folder, a file or a repository, by what pip recorded (PEP 610); only a library that came from an
    index is asked for by its name.

    Args:
        extras: their names, separated by commas.

    Example:
        >>> pip_install("fer,onnx").endswith("[fer,onnx]'")
        True
    """
    root = Path(__file__).resolve().parents[1]
    if root.name != "site-packages" and (root / "pyproject.toml").is_file():  # a clone, with -e or on the path
        return f"pip install -e '{'.' if root == Path.cwd() else root}[{extras}]'"
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = distribution("adaptive-margin")
        by_pip, record = found.read_text("INSTALLER"), json.loads(found.read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, OSError, ValueError):
        by_pip, record = None, {}
    url = str(record.get("url", ""))
    if "dir_info" in record and url.startswith("file://"):
        from urllib.request import url2pathname

        return f"pip install '{url2pathname(url.removeprefix('file://'))}[{extras}]'"
    if url:
        vcs = record.get("vcs_info", {})
        place = f"{vcs['vcs']}+{url}@{vcs.get('commit_id', 'HEAD')}" if "vcs" in vcs else url
        return f"pip install 'adaptive-margin[{extras}] @ {place}'"
    if by_pip:
        return f"pip install 'adaptive-margin[{extras}]'"
    return f"in the folder of its source, pip install '.[{extras}]'"


def _importing(error: BaseException) -> str:
    """The installed package that raised an error while it was imported; empty if none did."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        installed = {"site-packages", "dist-packages"} & set(Path(frame.f_code.co_filename).parts)
        if frame.f_code.co_name == "<module>" and installed and package != "adaptive_margin":
            return package
    return ""


def _is_there(module: str) -> bool:
    try:
        return sys.modules.get(module) is not None or find_spec(module) is not None
    except ImportError:
        return False
