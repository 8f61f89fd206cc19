"""The page of a report: one HTML file in one style, which loads nothing."""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from ..atomic import write_atomically
from ..messages import problem

GENERATOR = '<meta name="generator" content="adaptive-margin">'
"""What every report has in its head, so that a later one may take its place."""


class Missing(Exception):
    """The data of a section are missing; the text says which."""


@dataclass(frozen=True)
class Section:
    """A section of a page."""

    id: str  # anchor
    title: str  # heading
    body: str = ""  # HTML
    missing: str = ""  # why the section is left out; empty if it is present

    @classmethod
    def of(cls, id: str, title: str, make: Callable[..., str], *data: object) -> Section:
        """The section that a function makes of the data; if it fails, the reason."""
        try:
            return cls(id, title, body=make(*data))
        except Missing as reason:
            return cls(id, title, missing=str(reason))
        except Exception as error:  # a partial report is better than none
            return cls(id, title, missing=f"It could not be made: {type(error).__name__}: {error}.")


def is_page(content: bytes) -> bool:
    """Whether a file that begins like this is a report."""
    head = content[: 2**12]
    older = b"<title>Metric learning on " in head or (b"<title>" in head and b":root { --page: " in head)
    return GENERATOR.encode() in head or older


def check_page(path: Path, overwrite: bool = False, *, flag: str = "--output") -> None:
    """Raises a ``ValueError`` if a report would replace a file that is not a report, unless ``overwrite`` is set.

    ``flag`` is the option, or the argument, that names the file.
    """
    if path.is_dir():
        raise ValueError(problem(flag, "a file", f"the folder {path}", "pass the name of a file in it"))
    if not os.path.lexists(path) or overwrite:
        return
    with open(path, "rb") as file:
        ours = is_page(file.read(2**12))
    if not ours:
        remedy = f"pass another {flag}, or --overwrite (overwrite=True) to replace it"
        raise ValueError(problem(flag, "a file that does not exist yet, or an earlier report", path, remedy))


def write_page(
    path: Path,
    title: str,
    lead: str,
    sections: Iterable[Section],
    *,
    facts: Iterable[tuple[str, str]] = (),
    problems: Sequence[str] = (),
) -> None:
    """Writes a report, atomically; call :func:`check_page` before any work is done.

    Its folder is created if necessary. The lead is the main result in a sentence or two; facts are names and values
    below it, of which those without a value are left out; problems describe data that could not be read or compared.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("adaptive_margin.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html.j2").render(
        generator=Markup(GENERATOR),
        title=title,
        lead=lead,
        facts=[(name, value) for name, value in facts if value],
        sections=list(sections),
        problems=problems,
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def picture(pixels: NDArray[np.uint8], alt: str, side: int | None = None) -> Markup:
    """An image inside the page: grey or RGB bytes, shape ``(H, W, 1)`` or ``(H, W, 3)``, of ``side`` pixels or its own
    size.
    """
    memory = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.save(memory, "JPEG" if side else "PNG", quality=88)
    url = f"data:image/{'jpeg' if side else 'png'};base64,{base64.b64encode(memory.getvalue()).decode()}"
    size = Markup(" width='{0}' height='{0}'").format(side) if side else ""
    return Markup("<img src='{}' alt='{}'{}>").format(url, alt, size)
