"""Draws the pictures of docs/faces.md: people, feelings, disturbances, and a video.

    python examples/draw_faces.py [FOLDER]

Needs Pillow, which comes with the extra ``train``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from adaptive_margin.faces import draw_faces, draw_video, sample_identities

# Around the circumplex: a name, valence, arousal.
FEELINGS = [
    ("neutral", 0.0, 0.0),
    ("happy", 0.9, 0.0),
    ("excited", 0.64, 0.64),
    ("surprised", 0.0, 0.9),
    ("angry, afraid", -0.64, 0.64),
    ("displeased", -0.9, 0.0),
    ("sad", -0.64, -0.64),
    ("sleepy", 0.0, -0.9),
    ("calm", 0.64, -0.64),
]


def tile(images: NDArray[np.uint8], columns: int) -> Image.Image:
    """Pictures side by side."""
    n, size = len(images), images.shape[1]
    rows = -(-n // columns)
    sheet = np.full((rows * columns, size, size, 3), 255, dtype=np.uint8)
    sheet[:n] = images
    return Image.fromarray(sheet.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(rows * size, -1, 3))


def titled(sheet: Image.Image, titles: list[str], bar: int = 16) -> Image.Image:
    """A sheet under a row of column titles."""
    out = Image.new("RGB", (sheet.width, sheet.height + bar), "white")
    out.paste(sheet, (0, bar))
    draw = ImageDraw.Draw(out)
    step = sheet.width / len(titles)
    for k, title in enumerate(titles):
        draw.text(((k + 0.5) * step - draw.textlength(title) / 2, 2), title, fill="black")
    return out


def expressions(people: list[int], seed: int, size: int, disturb: bool) -> NDArray[np.uint8]:
    """Every person with every feeling."""
    rows = np.repeat(people, len(FEELINGS))
    identities = sample_identities(max(people) + 1, seed).take(rows)
    _, v, a = (list(column) for column in zip(*(FEELINGS * len(people)), strict=True))
    return draw_faces(identities, v, a, size=size, disturb=disturb, nuisance_seeds=np.arange(len(rows)) + 189)


def circumplex(person: int, seed: int, size: int, steps: int = 7) -> Image.Image:
    """One person over the valence-arousal disc: valence to the right, arousal upwards."""
    grid = np.linspace(-0.95, 0.95, steps)
    v, a = np.meshgrid(grid, grid[::-1])
    inside = (v**2 + a**2 <= 1).ravel()
    count = int(inside.sum())
    identities = sample_identities(person + 1, seed).take([person] * count)
    pictures = np.full((steps * steps, size, size, 3), 255, dtype=np.uint8)
    pictures[inside] = draw_faces(identities, v.ravel()[inside], a.ravel()[inside], size=size, disturb=False)
    return tile(pictures, steps)


def main(folder: Path, size: int = 112) -> None:
    """Writes the four pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = [name for name, _, _ in FEELINGS]
    clean = expressions([3, 9, 13, 15, 22, 26], 1, size, disturb=False)
    disturbed = expressions([7, 14, 17], 1, size, disturb=True)
    sheet = tile(np.concatenate([clean, disturbed]), len(FEELINGS))
    titled(sheet, titles).save(folder / "faces-contact-sheet.png", optimize=True)

    people = sample_identities(36, seed=1)
    neutral = draw_faces(people, np.zeros(36), np.zeros(36), size=size, disturb=False)
    tile(neutral, 9).save(folder / "faces-identities.png", optimize=True)

    circumplex(6, 1, size).save(folder / "faces-circumplex.png", optimize=True)

    video = draw_video(people.take([29]), 241, size=size, seed=17, person=3)
    tile(video.images[::27], 9).save(folder / "faces-video.png", optimize=True)
    for path in sorted(folder.glob("faces-*.png")):
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("faces"))
    options = parser.parse_args()
    if options.folder.exists() and not options.folder.is_dir():
        parser.error(f"FOLDER must be a folder, got the file {options.folder}")
    main(options.folder)
