"""Numbers in label files, where a cell may hold anything, and names of files, which may too."""

from __future__ import annotations

import math
import unicodedata


def number(text: str | None) -> float:
    """The number in a cell; NaN for ``NULL``, other text, nothing, and what is not finite.

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
    """The whole number in a cell, which may be written as a decimal; ``None`` where there is none.

    Example:
        >>> [integer(text) for text in ("3", "3.0", "3.5", "x")]
        [3, 3, None, None]
    """
    value = number(text)
    return int(value) if not math.isnan(value) and value == int(value) else None


_REORDERS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(name: str) -> str:
    r"""``name`` as it can be written anywhere: what is no text becomes an escape.

    File names may hold line ends, a terminal's commands, letters that reverse those after them, and bytes that are no
    UTF-8, which Python keeps as surrogates that cannot be encoded.

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
