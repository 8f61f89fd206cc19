"""Docstring examples as code.

The docstrings head their examples ``Example:``, a heading that Griffe's Google style knows in the plural alone: it
takes the singular for prose, where ``>>>`` is a quotation and a printed list a link.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

HEADING = re.compile(r"^( *)Example:$", re.M)


class Doctests(Extension):
    """Calls every example's section what the parser calls it."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Before the docstring is parsed, which happens when it is first read."""
        if obj.docstring is not None:
            obj.docstring.value = HEADING.sub(r"\1Examples:", obj.docstring.value)
