"""Command lines from frozen dataclasses: fields are options, docstrings are help, mistakes are reported in one line.

Nothing here imports PyTorch, so help and mistakes are answered at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from ..messages import nearest, problem, require_extra
from ..processes import ends_with_reader
from .config_files import ENVIRONMENT, ConfigError, from_yaml, plain, to_yaml

require_extra("a command line", "train", "tyro")
import tyro  # noqa: E402 - its absence is said above

try:
    from tyro._errors import on_parse_error
except ImportError:  # another version, whose own words are printed: a box of several lines
    on_parse_error = contextlib.nullcontext  # type: ignore[assignment]

__all__ = [
    "ConfigError",
    "Positional",
    "arg",
    "check_output",
    "from_yaml",
    "json_with",
    "parse",
    "read",
    "refuse",
    "said_yes",
    "to_yaml",
]
C = TypeVar("C")
Positional, arg = tyro.conf.Positional, tyro.conf.arg
"""Annotations of a dataclass field: an argument without a flag, or another name or alias."""
MOST = 2**26
"""Bytes that are read of a file that may be replaced; no larger file is an earlier one."""
KINDS = {"INT": "a whole number", "FLOAT": "a number", "PATH": "a path", "STR": "text"}
"""tyro's names for the types of options, and ours."""


@dataclasses.dataclass(frozen=True)
class _Start:
    """The two options that the others change."""

    preset: str
    config: Path | None = None


def read(
    kind: type[C],
    *,
    prog: str,
    argv: Sequence[str] | None = None,
    description: str | None = None,
    default: C | None = None,
) -> C:
    """The options that a command line gives.

    ``--steps 100`` or ``--steps=100`` sets a field, ``--encoder.lr 1e-4`` that of an inner dataclass, ``--flag`` a
    boolean. ``--help`` shows every option with its default.

    Args:
        kind: a frozen dataclass; its docstrings become the help.
        prog: the program's name in help and messages.
        argv: the arguments after the program's name; None means those of the process.
        description: the description in the help; None means that of the docstring.
        default: options to begin with; then a boolean also has ``--no-flag``. None means the defaults of the class.

    Raises:
        SystemExit: with code 2, after one line that names the wrong option, what it expects and what it got, and the
            closest known one; with code 0 after ``--help``.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Options:
        ...     steps: int = 1000
        >>> read(Options, prog="train", argv=["--steps", "10"])
        Options(steps=10)
    """
    words = sys.argv[1:] if argv is None else list(argv)
    given: dict[str, Any] = {"config": (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff)}
    if default is not None:
        given = {"config": (tyro.conf.AvoidSubcommands,), "default": default}
    with ends_with_reader(), _one_line(words, prog, default or kind):
        try:
            chosen: C = tyro.cli(kind, args=words, prog=prog, description=description, **given)
            return chosen
        except (ValueError, ImportError) as error:  # of the class itself
            refuse(str(error))


def parse(
    config_type: type[C],
    presets: Mapping[str, C],
    *,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    description: str = "",
    preset_for: Callable[[str, C], C] | None = None,
    of_a_run: Sequence[str] = (),
) -> C:
    """The configuration given by a command line.

    ``--preset NAME`` chooses the preset (by default the first), ``--config FILE.yaml`` overrides it with the options in
    the file, and flags override both, as in :func:`read`. ``--help`` shows every option with its value after preset and
    file.

    Args:
        config_type: a frozen dataclass, inner dataclasses allowed; its docstrings become the help.
        presets: whole configurations by name.
        argv: the arguments after the program's name; None means those of the process.
        prog: the program's name in the help.
        description: the description in the help.
        preset_for: ``preset_for(name, config)``, for presets that depend on other options. It is called with the
            configuration that the unadjusted preset would give, and returns the preset that file and flags then
            override.
        of_a_run: options, such as its folder, that are not taken from a file in the folder of a run: it starts another
            run, and does not go on with that one.

    Raises:
        SystemExit: with code 2, after an error that names the wrong option or value and the closest known ones; with
            code 0 after ``--help``.
        ValueError: there is no preset, or the configuration has an option called ``preset`` or ``config``.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Config:
        ...     steps: int = 1000
        ...     lr: float = 0.1
        >>> presets = {"quick": Config(steps=10), "full": Config()}
        >>> parse(Config, presets, argv=["--preset", "full", "--lr", "0.2"])
        Config(steps=1000, lr=0.2)
    """
    if not presets:
        raise ValueError(problem("presets", "one or more", 0, "pass {'default': Config()}"))
    for each in dataclasses.fields(config_type):  # type: ignore[arg-type]
        if each.name in ("preset", "config"):
            raise ValueError(problem("config_type", "without an option of that name", each.name, "rename it"))
    name = prog or Path(sys.argv[0]).name
    words = sys.argv[1:] if argv is None else list(argv)
    with _one_line(words, name, _Start):
        start, rest = tyro.cli(
            _Start, args=words, default=_Start(next(iter(presets))), add_help=False, return_unknown_args=True
        )
    if start.preset not in presets:
        refuse(f"unknown preset {start.preset}; {nearest(start.preset, presets)}")
    intro = (
        f"{description}\n\n--preset {{{','.join(presets)}}} sets the defaults; those shown are of {start.preset}.\n"
        "--config FILE.yaml overrides options of the preset; options given here override both."
    )

    def after(preset: C) -> C:
        file, changes = start.config, {}
        if file is not None and (file.parent / ENVIRONMENT).exists():
            changes = {name: plain(getattr(preset, name)) for name in of_a_run}
        try:
            base = preset if file is None else from_yaml(config_type, file, preset, changes, check=False)
        except (ValueError, OSError, ImportError) as error:
            refuse(str(error))
        return read(config_type, argv=rest, prog=name, description=intro, default=base)

    config = after(presets[start.preset])
    return config if preset_for is None else after(preset_for(start.preset, config))


def said_yes(words: Sequence[str]) -> tuple[list[str], bool]:
    """A command line without ``--yes``, and whether it was there: that more than a day of training may start.

    It belongs to no configuration, so that a run resumes with and without it.

    Example:
        >>> said_yes(["--preset", "paper", "--yes"])
        (['--preset', 'paper'], True)
    """
    return [word for word in words if word != "--yes"], "--yes" in words


def refuse(message: str) -> NoReturn:
    """Ends the process with code 2, after a line about a wrong option."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def check_output(
    flag: str,
    path: str | Path,
    *,
    file: bool = False,
    reads: Iterable[Path] = (),
    replaces: Callable[[bytes], bool] | None = None,
    overwrite: bool | None = None,
) -> None:
    """Raises unless a folder (a file, with ``file``) can be made there; makes nothing.

    Args:
        flag: name of the option.
        path: its value.
        file: whether it is a file.
        reads: files that the command reads, none of which may be replaced.
        replaces: whether a file with this content is an earlier one of the same kind, which may be replaced; without
            it, any file may be.
        overwrite: value of the option ``--overwrite``, which allows to replace any file; None if there is no such
            option.

    Raises:
        ValueError: a file is in the way of the folder, or a folder or a device in that of the file; writing is not
            allowed; or a file of another kind, or one that is read, would be replaced.

    Example:
        >>> check_output("--output", __file__)
        Traceback (most recent call last):
        ValueError: --output must be a folder, got the file ...; pass another
    """
    path = Path(path)
    if file and path.is_dir():
        raise ValueError(problem(flag, "a file", f"the folder {path}", "pass the name of a file in it"))
    if file and path.exists() and not path.is_file():
        raise ValueError(problem(flag, "a file", f"the device {path}", "pass the name of a file"))
    if path.exists() and any(each.exists() and path.samefile(each) for each in reads):
        raise ValueError(problem(flag, "a file other than those that are read", path, "pass the name of a new file"))
    folder = path.parent if file else path
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    if not there.is_dir():
        raise ValueError(problem(flag, "in a folder" if file else "a folder", f"the file {there}", "pass another"))
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            problem(flag, "in a folder that you can write to", there, "pass another, or change permissions")
        )
    if replaces is not None and not overwrite and path.is_file():
        with open(path, "rb") as earlier:
            ours = replaces(earlier.read(MOST))
        if not ours:
            remedy = "move that file" if overwrite is None else "--overwrite to replace it"
            expected = "a file that does not exist yet, or an earlier one of this command"
            raise ValueError(problem(flag, expected, path, f"pass another, or {remedy}"))


def json_with(*names: str) -> Callable[[bytes], bool]:
    """Whether the content of a file is a JSON object with these names: for :func:`check_output`.

    Example:
        >>> json_with("rows", "seed")(b'{"rows": [], "seed": 0, "more": 1}'), json_with("rows")(b"rows")
        (True, False)
    """

    def has(content: bytes) -> bool:
        try:
            found = json.loads(content)
        except ValueError:
            return False
        return isinstance(found, dict) and set(names) <= set(found)

    return has


@contextlib.contextmanager
def _one_line(words: Sequence[str], prog: str, known: Any) -> Iterator[None]:
    """Reports tyro's errors in one line; those that are unknown here are left to tyro."""

    def say(event: Any) -> None:
        with contextlib.suppress(AttributeError):  # of another version's events
            if message := _sentence(event, words, f"see {prog} --help", known):
                refuse(message)

    with on_parse_error(say):
        yield


def _sentence(event: Any, words: Sequence[str], remedy: str, known: Any) -> str:
    kind = type(event).__name__
    if strange := getattr(event, "tokens", None) or getattr(event, "unrecognized_tokens", None):
        if not strange[0].startswith("-"):
            return f"{strange[0]!r} is an unexpected argument; {remedy}"
        name, options = strange[0].lstrip("-"), list(_options(known))
        inner = [f"--{option}" for option in options if option.endswith(f".{name}")]  # of an inner dataclass
        near = f"the nearest: {', '.join(inner)}" if inner else nearest(name, options, "--", otherwise=remedy)
        return f"unknown option {strange[0]}; {near}"
    if kind == "MissingArgs":
        missing = [_names(each.arg)[0] for each in event.missing_arguments]
        return problem(" and ".join(missing), "given", "nothing", remedy)
    if kind == "InstantiationFailure" and (event.argument is None or " must be " in event.message):
        return str(event.message)  # the class's own
    if kind not in ("InvalidChoice", "BadValue", "InstantiationFailure"):
        return ""
    names, form = _names(event.argument), event.argument.lowered.metavar
    if kind == "InvalidChoice":
        return problem(names[0], f"one of {', '.join(event.choices)}", repr(event.value), remedy)
    expected = KINDS.get(form.removeprefix("{None}|"), f"of the form {form}")
    return problem(names[0], expected, _given(names, words), remedy)


def _names(argument: Any) -> tuple[str, ...]:
    """The flags of an option; of an argument without one, what the help calls it."""
    return (argument.lowered.metavar,) if argument.is_positional() else argument.lowered.name_or_flags


def _given(names: Sequence[str], words: Sequence[str]) -> str:
    """What the command line gives for an option."""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in names:
            values = itertools.takewhile(lambda each: not each.startswith("--"), words[place + 1 :])
            return repr(value if equals else " ".join(values)).replace("''", "nothing")
    return "nothing"


def _options(config: Any, prefix: str = "") -> Iterator[str]:
    """The options of a configuration, those of inner ones by their full names."""
    hints = get_type_hints(config if isinstance(config, type) else type(config), include_extras=True)
    for each in dataclasses.fields(config):
        name, value = prefix + each.name.replace("_", "-"), getattr(config, each.name, None)
        if dataclasses.is_dataclass(value):
            yield from _options(value, f"{name}.")
        elif tyro.conf.Positional not in getattr(hints[each.name], "__metadata__", ()):
            yield name
