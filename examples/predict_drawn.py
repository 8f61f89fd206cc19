"""Draws the picture of docs/predict.md: what ``adaptive-margin predict`` writes for three drawn faces and for a video.

python benchmarks/fer_caf.py --arms none --seeds 1 --output runs/one
python examples/predict_drawn.py runs/one predict.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", nargs="?", type=Path, default=Path("predict.png"))
    options = parser.parse_args()
    if options.output.is_dir() or not options.output.parent.is_dir():
        parser.error(f"output must be a file in a folder that exists, got {options.output}")

import numpy as np
from PIL import Image

from adaptive_margin.emotion.predict import Predictor, annotated, followed, load_predictor
from adaptive_margin.faces import draw_faces, draw_video, sample_identities
from adaptive_margin.messages import said_plainly

HEIGHT, SIDE = 256, 112


def three_faces(predictor: Predictor) -> Image.Image:
    """Three drawn faces in one picture, found and rated."""
    people = sample_identities(30, seed=1).take([3, 14, 26])
    faces = draw_faces(people, [0.6, -0.5, 0.1], [0.1, -0.3, 0.7], size=SIDE, disturb=True, nuisance_seeds=[1, 2, 3])
    page = Image.new("RGB", (560, HEIGHT), "#98a293")
    for place, face in zip([(120, 105), (275, 70), (425, 45)], faces, strict=True):
        page.paste(Image.fromarray(face), place)
    picture = np.asarray(page)
    return Image.fromarray(annotated(picture, predictor(picture), warning=predictor.warning))


def last_frame(predictor: Predictor) -> Image.Image:
    """The last of 24 frames of a drawn video, with the trail of all."""
    video = draw_video(sample_identities(30, seed=1).take([29]), 24, size=HEIGHT, seed=17, person=3)
    before, trails = [], []
    for frame in video.images:
        before, trails = followed(predictor(frame), before, trails)
    return Image.fromarray(annotated(video.images[-1], before, trails, warning=predictor.warning))


@said_plainly()
def main(checkpoint: Path, output: Path) -> None:
    """Writes both side by side."""
    predictor = load_predictor(checkpoint)
    parts = [three_faces(predictor), last_frame(predictor)]
    whole = Image.new("RGB", (sum(part.width for part in parts) + 6, HEIGHT), "white")
    whole.paste(parts[0], (0, 0))
    whole.paste(parts[1], (parts[0].width + 6, 0))
    whole.save(output, optimize=True)
    print(f"wrote {output}")


if __name__ == "__main__":
    main(options.checkpoint, options.output)
