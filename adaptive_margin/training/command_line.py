"""Builds command lines from a configuration's dataclass: presets, config files, flags, in that order."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..functional.checks import problem
from .config_files import MISSING_EXTRA, ConfigError, from_yaml, nearest, to_yaml

try:
    import tyro
except ImportError as error:
    raise ImportError(MISSING_EXTRA.format(what="a command line", package="tyro")) from error

__all__ = ["ConfigError", "from_yaml", "parse", "to_yaml"]
C = TypeVar("C")


def parse(
    config_type: type[C],
    presets: Mapping[str, C],
    *,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    description: str = "",
    preset_for: Callable[[str, C], C] | None = None,
) -> C:
    """The configuration given by a command line.

    ``--preset NAME`` chooses the preset (by default the first), ``--config FILE.yaml`` overrides it with the options in
    the file, and flags override both: ``--steps 100``, ``--encoder.lr 1e-4`` for inner dataclasses, ``--flag`` and
    ``--no-flag`` for booleans. ``--help`` shows every option with its value after preset and file.

    Args:
        config_type: a frozen dataclass, inner dataclasses allowed; its docstrings become the help.
        presets: whole configurations by name.
        argv: the arguments after the program's name; None means those of the process.
        prog: the program's name in the help.
        description: the description in the help.
        preset_for: ``preset_for(name, config)``, for presets that depend on other options. It is called with the
            configuration that the unadjusted preset would give, and returns the preset that file and flags then
            override.

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
            raise ValueError(problem("config_type", "without an option of that name", each.name, "call it otherwise"))
    words = sys.argv[1:] if argv is None else list(argv)
    first = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=next(iter(presets)))
    first.add_argument("--config", type=Path)
    chosen, rest = first.parse_known_args(words)
    if chosen.preset not in presets:
        first.error(f"unknown preset {chosen.preset}; {nearest(chosen.preset, presets)}")
    intro = (
        f"{description}\n\n--preset {{{','.join(presets)}}} says where to begin; shown is {chosen.preset}.\n"
        "--config FILE.yaml names options that differ from it; options given here go before both."
    )

    def read(preset: C) -> C:
        base = preset if chosen.config is None else from_yaml(config_type, chosen.config, preset)
        return tyro.cli(
            config_type, default=base, args=rest, prog=prog, description=intro, config=(tyro.conf.AvoidSubcommands,)
        )

    try:
        config = read(presets[chosen.preset])
        return config if preset_for is None else read(preset_for(chosen.preset, config))
    except (ValueError, OSError, ImportError) as error:  # from a config file, or from the configuration itself
        first.error(str(error))
