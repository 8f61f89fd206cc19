"""Tables and lists of a report, as HTML: text that is not yet markup is escaped."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from markupsafe import Markup

from ..metrics.comparison import signed

NONE = Markup("<td class='none'>–</td>")


def table(
    caption: str, head: Sequence[str], rows: Iterable[Markup], groups: Markup | str = "", text: Collection[str] = ()
) -> Markup:
    """A table that scrolls on its own if it is wider than the screen, and so can be focused with the keyboard.

    Screen readers read the caption's first sentence. ``rows`` are of :func:`row`; ``groups`` is a row above the head;
    ``text`` names the columns of :func:`words`.
    """
    heading = Markup("<th scope='col' class='{}'>{}</th>")
    named = Markup("").join(heading.format("words" if name in text else "", name) for name in head)
    return Markup(
        "<div class='scroll' tabindex='0' role='region' aria-label='{}'><table><caption><span>{}</span></caption>"
        "<thead>{}<tr>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(Markup(caption).striptags().split(". ")[0], caption, groups, named, Markup("").join(rows))


def row(name: str, cells: Iterable[object], kind: str = "", span: int = 1, colour: str = "") -> Markup:
    """A row of a table: a heading over ``span`` columns with a square of a ``colour`` before it, and cells: finished
    ones, text, or None for an empty one. ``kind`` is its class.
    """
    made = [_cell(each) for each in cells]
    swatch = Markup("<span class='swatch' style='background:{}'></span>").format(colour) if colour else ""
    wide = Markup(" colspan='{}'").format(span) if span > 1 else ""
    return Markup("<tr class='{}'><th scope='row'{}>{}{}</th>{}</tr>").format(
        kind, wide, swatch, name, Markup("").join(made)
    )


def _cell(each: object) -> Markup:
    if isinstance(each, Markup) and each.startswith("<td"):
        return each
    return NONE if each is None else Markup("<td>{}</td>").format(each)


def words(text: str, kind: str = "") -> Markup:
    """A cell of text, which may break into lines."""
    return Markup("<td class='words {}'>{}</td>").format(kind, text)


def interval(mean: float, low: float, high: float, digits: int = 3, sign: bool = False) -> Markup:
    """A cell: a figure with its interval below, if there is one."""

    def written(x: float) -> str:
        return signed(x, digits) if sign else f"{x:.{digits}f}".replace("-", "−")

    if math.isnan(low):
        return Markup("<td>{}</td>").format(written(mean))
    between = f"{written(low)}{' to ' if sign or low < 0 else '–'}{written(high)}"
    return Markup("<td>{}<span class='ci'>{}</span></td>").format(written(mean), between)


def column_groups(groups: Iterable[tuple[str, int]]) -> Markup:
    """A row of headings, each over some columns; an empty one leaves them free."""
    cells = (
        Markup("<th scope='colgroup' colspan='{}'>{}</th>" if name else "<td colspan='{}'>{}</td>").format(span, name)
        for name, span in groups
    )
    return Markup("<tr>{}</tr>").format(Markup("").join(cells))


def notes(lines: Iterable[str]) -> Markup:
    """A list in small print."""
    items = Markup("").join(Markup("<li>{}</li>").format(line) for line in lines)
    return Markup("<ul class='notes'>{}</ul>").format(items)


def paragraph(text: str, kind: str = "") -> Markup:
    """A paragraph."""
    return Markup("<p class='{}'>{}</p>").format(kind, text)


def details(summary: str, body: str) -> Markup:
    """A block that opens on a click."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, body)


def code(text: str) -> Markup:
    """Lines of code."""
    return Markup("<pre><code>{}</code></pre>").format(text)


def grid(figures: Iterable[str], kind: str = "") -> Markup:
    """Charts side by side, as many as fit."""
    made = Markup("").join(Markup("<figure>{}</figure>").format(figure) for figure in figures)
    return Markup("<div class='grid {}'>{}</div>").format(kind, made)
