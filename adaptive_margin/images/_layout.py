"""Finds a release's folders in a root, and describes the expected layout if they are missing."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..messages import printable, problem
from .decode import IMAGE_SUFFIXES
from .errors import LayoutError

MOST_ENDINGS = 10
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov")


def litter(name: str) -> bool:
    """Whether a directory entry is a file that an operating system left there.

    Example:
        >>> [litter(name) for name in (".DS_Store", "._00001.jpg", "Thumbs.db", "00001.jpg")]
        [True, True, True, False]
    """
    return name.startswith(".") or name in {"Thumbs.db", "desktop.ini", "__MACOSX"}


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that orders numbers by value.

    Example:
        >>> sorted(["10.png", "9.png", "a2", "a10"], key=natural)
        ['9.png', '10.png', 'a2', 'a10']
    """
    pieces = re.findall(r"\d+|\D+", name)
    return tuple((0, int(piece), piece) if piece.isdecimal() else (1, 0, piece.casefold()) for piece in pieces)


def identity(path: Path) -> tuple[int, int]:
    """A key that all names of one file or folder share: links, or spellings on a disk that ignores case."""
    status = path.stat()
    return status.st_dev, status.st_ino


def endings(names: Iterable[str]) -> dict[str, int]:
    """The number of ``names`` with each file extension, the commonest first; ``"none"`` for no extension.

    Example:
        >>> endings(["a.heic", "notes", "b.HEIC", "c.txt"])
        {'.heic': 2, 'none': 1, '.txt': 1}
    """
    return dict(Counter(printable(os.path.splitext(name)[1].lower()) or "none" for name in names).most_common())


def said_endings(counts: Mapping[str, int]) -> str:
    """Such counts on one line.

    Example:
        >>> said_endings({".heic": 2, "none": 1})
        '2 .heic, 1 without an ending'
    """
    said = [f"{count:,} {'without an ending' if ending == 'none' else ending}" for ending, count in counts.items()]
    more = [f"{len(said) - MOST_ENDINGS:,} other endings"] if len(said) > MOST_ENDINGS else []
    return ", ".join([*said[:MOST_ENDINGS], *more])


class Folders:
    """Directory listings, each read once: a million ``exists`` calls are slow, a thousand listings are not."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}
        self._others: dict[Path, tuple[dict[str, str], dict[str, list[str]]]] = {}

    def names(self, folder: Path) -> frozenset[str]:
        """The entries of ``folder`` without litter; empty if the folder does not exist."""
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(name for name in os.listdir(folder) if not litter(name))
            except (FileNotFoundError, NotADirectoryError):
                self._names[folder] = frozenset()
        return self._names[folder]

    def find(self, folder: Path, name: str) -> str | None:
        """The entry called ``name``, or else its only spelling in another case, or else the only image of that stem."""
        names = self.names(folder)
        if name in names:
            return name
        if folder not in self._others:
            stems: dict[str, list[str]] = {}
            for image in self.images(folder):
                stems.setdefault(os.path.splitext(image)[0], []).append(image)
            self._others[folder] = {other.casefold(): other for other in names}, stems
        folded, stems = self._others[folder]
        same = stems.get(os.path.splitext(name)[0], [])
        return folded.get(name.casefold(), same[0] if len(same) == 1 else None)

    def images(self, folder: Path) -> list[str]:
        """The image files of ``folder`` in natural order."""
        found = (name for name in self.names(folder) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES)
        return sorted(found, key=natural)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether a directory entry is a folder or a link to one; a link to itself is not."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def subfolders(folder: Path) -> list[Path]:
    """The folders inside ``folder`` in natural order, without litter; empty if the folder does not exist."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if not litter(entry.name) and is_folder(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(found, key=natural)]


def nested(root: Path, *levels: str | Iterable[str]) -> Iterator[Path]:
    """Folders in ``root`` along ``levels``, each of which may have several spellings and may be doubled.

    Archives that contain a folder with their own name unpack to ``train/train``. Both depths are tried, the deeper
    first, since the outer folder then contains nothing else. Case is ignored.

    Example:
        >>> import pathlib, tempfile
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> (root / "bboxs" / "train" / "train").mkdir(parents=True)
        >>> [path.relative_to(root).as_posix() for path in nested(root, {"bboxes", "bboxs"}, "train")]
        ['bboxs/train/train', 'bboxs/train']
    """
    if not levels:
        yield root
        return
    first = levels[0]
    wanted = {first.casefold()} if isinstance(first, str) else {name.casefold() for name in first}
    for folder in subfolders(root):
        if folder.name.casefold() in wanted:
            for inner in subfolders(folder):
                if inner.name.casefold() in wanted:
                    yield from nested(inner, *levels[1:])
            yield from nested(folder, *levels[1:])


def first_nested(root: Path, *levels: str | Iterable[str]) -> Path | None:
    """The first folder of :func:`nested` that is not empty, or ``None``."""
    for folder in nested(root, *levels):
        if any(not litter(name) for name in os.listdir(folder)):
            return folder
    return None


def tree(root: Path, depth: int = 2, width: int = 6) -> str:
    """The content of ``root``, as an indented list of limited length."""
    lines: list[str] = []

    def walk(folder: Path, indent: str, left: int) -> None:
        try:
            entries = sorted(
                (entry for entry in os.scandir(folder) if not litter(entry.name)), key=lambda e: natural(e.name)
            )
        except OSError as error:
            lines.append(f"{indent}({error.strerror})")
            return
        for entry in entries[:width]:
            lines.append(f"{indent}{printable(entry.name)}{'/' if is_folder(entry) else ''}")
            if is_folder(entry) and left > 1:
                walk(Path(entry.path), indent + "  ", left - 1)
        if len(entries) > width:
            lines.append(f"{indent}… {len(entries) - width:,} more")

    walk(root, "  ", depth)
    return "\n".join(lines) if lines else "  (empty)"


def checked_root(root: str | os.PathLike[str], release: str, expected: str) -> Path:
    """``root`` as a path; a :class:`LayoutError` if there is no such folder."""
    path = Path(root)
    if not path.is_dir():
        what = "not a folder" if path.exists() else "no such folder"
        raise LayoutError(problem("root", f"the folder of {release}", f"{path} ({what})", f"expected:\n{expected}"))
    return path


def wrong_layout(root: Path, release: str, expected: str, missing: str) -> LayoutError:
    """The error for a root without ``missing``, with the expected layout and the one found."""
    return LayoutError(
        f"root must be the folder of {release}, got {root}, in which there is no {missing}.\n"
        f"Expected:\n{expected}\nFound:\n{tree(root)}"
    )


def relative(path: Path, root: Path) -> str:
    """``path`` relative to ``root``, with forward slashes."""
    return path.relative_to(root).as_posix()
