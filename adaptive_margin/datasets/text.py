"""Numbers in cells of label files, and file names, both of which may contain anything."""

from __future__ import annotations

import math
import unicodedata


def number(text: str | None) -> float:
    """The number in a cell; NaN for ``NULL``, other text, an empty cell, and values that are not finite.

    Example:
        >>> [number(text) for text in (" -0.5", "1e-3", "NULL", "inf", "")]
        [-0.5, 0.001, nan, nan, nan]
    """
    try:
        value = float(text or "")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def integer(text: str | None) -> int | None:
    """The whole number in a cell, which may be written as a decimal; ``None`` if there is none.

    Example:
        >>> [integer(text) for text in ("3", "3.0", "3.5", "x")]
        [3, 3, None, None]
    """
    value = number(text)
    return int(value) if not math.isnan(value) and value == int(value) else None


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
