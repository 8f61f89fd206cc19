r"""Formulas become MathML while the site is built: no script is fetched to read them.

Markdown pages write ``\(…\)`` and ``$$…$$``; docstrings write ``:math:`…``` and ``.. math::``, which are rewritten to
the same. Cross-references of docstrings (``:class:`…``` and its kin) become code.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

ARITHMATEX = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.S)
ROLE = re.compile(r":math:(?:<code>|`)(.+?)(?:</code>|`)", re.S)
REFERENCE = re.compile(r":(?:class|func|meth|mod|data|attr):(?:<code>|`)~?([^`<]+)(?:</code>|`)")
BLOCK = re.compile(
    r"<p>\.\. math::\s*(.*?)</p>(?:\s*<div class=\"highlight\">.*?<code>(.*?)</code></pre></div>)?", re.S
)
CODE_BLOCK = re.compile(r"<(?:span|/span|a|/a)[^>]*>")


def _mathml(latex: str, display: str) -> str:
    latex = html.unescape(latex).strip()
    latex = re.sub(r"^\\[(\[]|\\[)\]]$", "", latex).strip()
    latex = latex.replace(r"\operatorname{", r"\mathrm{").replace(r"\tfrac", r"\frac")
    return convert(latex, display=display)


def on_page_content(content: str, **kwargs: Any) -> str:
    """Rewrites one rendered page."""
    content = ARITHMATEX.sub(lambda m: _mathml(m[2], "inline" if m[1] == "span" else "block"), content)

    def block(match: re.Match[str]) -> str:
        latex = match[1] or ""
        if match[2]:
            latex += CODE_BLOCK.sub("", match[2])
        return f"<div>{_mathml(latex, 'block')}</div>"

    content = BLOCK.sub(block, content)
    content = ROLE.sub(lambda m: _mathml(m[1], "inline"), content)
    return REFERENCE.sub(lambda m: f"<code>{m[1].rsplit('.', 1)[-1]}</code>", content)
