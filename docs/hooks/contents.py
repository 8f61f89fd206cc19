"""Leaves methods with two underscores, such as ``__call__``, out of a page's contents; the page itself has them."""

from __future__ import annotations

from typing import Any


def without(items: list[Any]) -> list[Any]:
    """The entries, and theirs, whose name does not begin with two underscores."""
    kept = [item for item in items if not item.title.startswith("__")]
    for item in kept:
        item.children = without(item.children)
    return kept


def on_page_content(html: str, page: Any, **kwargs: Any) -> str:
    """After the contents were made, before they are shown."""
    page.toc.items = without(page.toc.items)
    return html
