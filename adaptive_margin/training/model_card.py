"""Model cards: a page in Markdown beside the files of a network. What somebody else wrote, or changed, is kept."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..atomic import write_atomically

CARD = "MODEL_CARD.md"
UNDER_WAY = "**Training is under way.** Each file here has the weights after the step in its name."
"""The beginning of the card of a run's checkpoints."""
SEAL = re.compile(r"<!-- adaptive-margin: card of (.+), replaced unless you change it; sha256:([0-9a-f]{64}) -->\n")
"""The last line of a card: the name of what it describes, and the digest of the lines above."""


def write_card(folder: Path, of: str, text: str, name: str = CARD) -> Path | None:
    """Writes the card of a file, or replaces an earlier one.

    If the folder has the card of another file, this one is called ``OF.NAME``.

    Args:
        folder: of the file; it must exist.
        of: name of the file, or of the folder, that the card describes.
        text: the card, in Markdown.
        name: of the card.

    Returns:
        Path of the card; None if a file of that name is kept.

    Raises:
        DiskSpaceError, OSError: as :func:`~adaptive_margin.atomic.write_atomically`.

    Warns:
        UserWarning: the file there is no card of ours, or somebody changed it: it is kept.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_card(folder, "model.pt", "# A network").name, described(folder / "MODEL_CARD.md")
        ('MODEL_CARD.md', 'model.pt')
        >>> write_card(folder, "model.onnx", "# The same network").name
        'model.onnx.MODEL_CARD.md'
    """
    text = text.rstrip("\n") + "\n\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    seal = f"<!-- adaptive-margin: card of {of}, replaced unless you change it; sha256:{digest} -->\n"
    path = folder / name
    if described(path) not in (None, "", of):
        path = folder / f"{of}.{name}"
    if described(path) not in ("", of):
        kept = f"{path} was changed, or not written by adaptive-margin: it is kept, and no card of {of} is written"
        again = "move that file and give the same command again, an export with --overwrite"
        warnings.warn(f"{kept}; to have one, {again}", stacklevel=2)
        return None
    write_atomically(path, (text + seal).encode())
    return path


def described(path: Path) -> str | None:
    """Name of what a card describes; empty where there is no file, None for a file that is no card as we wrote it."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError):
        return None
    above, _, last = text.rpartition("\n\n")
    seal = SEAL.fullmatch(last)
    return seal[1] if seal and hashlib.sha256(f"{above}\n\n".encode()).hexdigest() == seal[2] else None


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown.

    Example:
        >>> print(markdown_table(["part", "pictures"], [["train", 12]]))
        | part | pictures |
        | --- | --- |
        | train | 12 |
    """
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))
