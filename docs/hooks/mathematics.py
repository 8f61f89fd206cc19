r"""Converts formulas to MathML while the site is built, so that readers need no script.

Pages use ``\(…\)`` and ``$$…$$``, and docstrings are rewritten in this form (``docstrings.py``). Cross-references in
docstrings (``:class:`…``` and similar roles) become code.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FUNCTION = re.compile(r"(?<=[A-Za-z0-9)}]) ?(?=\\(?:operatorname|log|exp|arctan|arccos|min|max)\b)")
ARITHMATEX = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.S)
REFERENCE = re.compile(r":(?:class|func|meth|mod|data|attr):(?:<code>|`)~?([^`<]+)(?:</code>|`)")


def _mathml(latex: str, display: str) -> str:
    latex = html.unescape(latex).strip()
    latex = re.sub(r"^\\[(\[]|\\[)\]]$", "", latex).strip()
    latex = FUNCTION.sub(r"\\,", latex)  # the space that TeX puts before the name of a function
    latex = (
        latex.replace(r"\operatorname{", r"\mathrm{").replace(r"\arg", r"\mathrm{arg}\,").replace(r"\tfrac", r"\frac")
    )
    return convert(latex, display=display)


def on_page_content(content: str, **kwargs: Any) -> str:
    """Rewrites one rendered page."""
    content = ARITHMATEX.sub(lambda m: _mathml(m[2], "inline" if m[1] == "span" else "block"), content)
    return REFERENCE.sub(lambda m: f"<code>{m[1].rsplit('.', 1)[-1]}</code>", content)
