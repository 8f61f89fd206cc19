"""Recognises copies of AffectNet that have its name but are not the benchmark, and rejects them with a reason."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..images._layout import Folders, litter, subfolders, tree
from ..images.decode import read_image
from ..images.errors import ImageError, LayoutError

_EMOTIONS = {
    "neutral", "happy", "happiness", "sad", "sadness", "surprise", "surprised", "fear", "fearful", "disgust",
    "disgusted", "anger", "angry", "contempt",
}  # fmt: skip
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing", "affectnet", "train_class", "val_class"}
_DEMOGRAPHIC = {"valence", "arousal", "age", "gender", "race"}

WANTED = (
    "valence and arousal come with the two official releases only: the 2017 one (full images and CSV lists) and the "
    "reduced one (train_set/ and val_set/ with .npy annotations), both from http://mohammadmahoor.com/pages/databases/affectnet/"
)


class DerivedCopyError(LayoutError):
    """The folder is a derived copy that must not be mistaken for the benchmark."""


def refuse_derived_copy(root: Path) -> None:
    """Raises a :class:`DerivedCopyError` if ``root`` has the layout of one of the derived copies.

    Those are images sorted into a folder per emotion (the 96 by 96 pixel version and AffectNet-HQ among them), or a
    list with age, gender and race that splits the data differently. Call it only if neither release was found: a
    release may have such files beside it.
    """
    lists = [path for folder in (root, *subfolders(root)) for path in sorted(folder.glob("*.csv"))]
    headers = {path: _header(path) for path in lists if not litter(path.name)}
    for path, columns in headers.items():
        if columns >= _DEMOGRAPHIC:
            raise DerivedCopyError(
                f"{path} is a re-partition of AffectNet with age, gender and race: it mixes the official training and "
                f"validation images, so results on it cannot be compared. {WANTED}"
            )
    folders = _class_folders(root)
    if folders is None:
        return
    which = "a copy of AffectNet sorted into a folder per emotion"
    if _first_size(folders) == (96, 96):
        which += " (the 96x96 pixel version: about 29,042 images with class labels)"
    elif any("relfcs" in columns for columns in headers.values()):
        which += " (AffectNet-HQ or a relative of it: relabelled by a classifier)"
    raise DerivedCopyError(
        f"{root} is {which}: it has no valence and arousal and is not the benchmark. {WANTED}\nFound:\n{tree(root)}"
    )


def _header(path: Path) -> set[str]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return {name.strip().strip('"').casefold() for name in file.readline().split(",")}


def _class_folders(root: Path) -> list[Path] | None:
    """The folders named after emotions (or 0 to 7 within train/ and the like), if there are enough of them."""
    candidates = [root]
    for folder in subfolders(root):
        if folder.name.casefold() in _PARTS:
            candidates += [folder, *(inner for inner in subfolders(folder) if inner.name.casefold() in _PARTS)]
    for folder in candidates:
        inside = subfolders(folder)
        words = [inner for inner in inside if inner.name.casefold().strip("0123456789-_. ") in _EMOTIONS]
        if len(words) >= 5:
            return words
        digits = [inner for inner in inside if inner.name in set("01234567")]
        if len(digits) >= 7 and len(inside) <= 11 and folder != root:
            return digits
    return None


def _first_size(folders: list[Path]) -> tuple[int, int] | None:
    listings = Folders()
    for folder in folders:
        for name in listings.images(folder)[:1]:
            with contextlib.suppress(ImageError):
                return read_image(folder / name).size
    return None
