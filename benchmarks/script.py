"""What scripts of benchmarks do alike: they read options before PyTorch is loaded, and write a file of results."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_margin.atomic import write_atomically
from adaptive_margin.messages import problem
from adaptive_margin.processes import ends_with_reader

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Parser(argparse.ArgumentParser):
    """Options whose help begins with the script's docstring.

    Args:
        description: the docstring.
        results: what ``--out`` is by default; ``--print`` prints its tables. None: it has neither option.
    """

    def __init__(self, description: str | None, results: Path | None = None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        if results is not None:
            self.add_argument("--out", type=Path, default=results, help="file of results, JSON")
            self.add_argument("--print", action="store_true", help="print the tables of --out; measures nothing")

    def parse_known_args(self, *given: Any, **more: Any) -> Any:
        """Also ends well where nobody reads the help to its end."""
        with ends_with_reader():
            return super().parse_known_args(*given, **more)

    def at_least_one(self, given: argparse.Namespace, *names: str) -> None:
        """Ends with an error if one of these numbers is below 1."""
        for name in names:
            if (number := getattr(given, name)) < 1:
                self.error(f"--{name} must be at least 1, got {number}")


def print_results(path: object, tables: Callable[[], str]) -> None:
    """Prints the tables of a file of results; one that this script has not written to its end is said in one line."""
    try:
        text = tables()
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # no JSON, or something is missing in it
        expected, got = "results that this script has written and finished", f"others ({type(error).__name__}: {error})"
        raise ValueError(problem(str(path), expected, got, "pass another file, or measure again")) from error
    print(text)


def read_results(path: Path) -> Any:
    """What :func:`write_results` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_results(path: Path, content: Mapping[str, Any], **options: Any) -> None:
    """Writes a file of results, in a folder that is made if need be, and says where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1, **options) + "\n").encode())
    print(f"written to {path}")


def is_figure(content: bytes) -> bool:
    """Whether this is a figure of :func:`write_figure`."""
    return b"matplotlib" in content.lower()


def write_figure(figure: Figure, path: Path) -> None:
    """Writes a figure of matplotlib, as its ending says, in a folder that is made if need be."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:] or "png", dpi=130)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, drawn.getvalue())
