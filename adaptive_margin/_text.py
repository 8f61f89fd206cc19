"""File names in messages: they may contain anything, and there may be many."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_REORDERS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(name: str) -> str:
    r"""``name`` in a form that can be written anywhere: characters that are not printable text are escaped.

    File names may contain line ends, terminal commands, characters that reverse the text after them, and bytes that are
    not UTF-8, which Python keeps as surrogates that cannot be encoded.

    Example:
        >>> print(printable("a\x1b[31m\nb\udcff é.jpg"))
        a\x1b[31m\x0ab\xff é.jpg
    """

    def safe(letter: str) -> str:
        code = ord(letter)
        if 0xDC80 <= code <= 0xDCFF:
            return f"\\x{code - 0xDC00:02x}"
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in _REORDERS:
            return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
        return letter

    return name if name.isascii() and name.isprintable() else "".join(map(safe, name))


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The first few of ``names`` on one line.

    Example:
        >>> shorten(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most:,} more"
