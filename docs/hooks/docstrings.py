r"""Rewrites docstrings, before they are parsed, in the dialect that the site renders.

- ``Example:`` becomes ``Examples:``, the only form that Griffe's Google style knows. It treats the singular as prose,
  in which ``>>>`` becomes a quotation and a printed list a link.
- ``.. math::`` becomes ``$$…$$`` and ``:math:`…``` becomes ``\(…\)``, which Markdown does not change: otherwise two
  underscores in a formula would be read as emphasis.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object

HEADING = re.compile(r"^( *)Example:$", re.M)
BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +\S.*| *(?=\n\1 +\S)))*)", re.M)
ROLE = re.compile(r":math:`(.+?)`", re.S)


def _block(match: re.Match[str]) -> str:
    formula = " ".join(match[2].split())
    return textwrap.indent(f"\n$$\n{formula}\n$$\n", match[1])


def rewritten(docstring: str) -> str:
    """A docstring as the site reads it."""
    docstring = BLOCK.sub(_block, HEADING.sub(r"\1Examples:", docstring))
    return ROLE.sub(lambda match: rf"\({match[1]}\)", docstring)


class Docstrings(Extension):
    """Rewrites every docstring, which is parsed when it is first read."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Before the docstring is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)
