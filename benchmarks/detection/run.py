"""Compares face detectors that can be installed as wheels, on drawn faces: the choice behind `adaptive-margin predict`.

    pip install 'opencv-python-headless<5' scikit-image
    python benchmarks/detection/run.py

120 people with pose, light, blur and occlusion: 60 fill their picture, 60 are somewhere in a larger one. A face counts
as found if a box overlaps the landmarks' square by more than 0.3 (intersection over union); every other box is a false
positive.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage
import torch
from PIL import Image
from skimage.data import lbp_frontal_face_cascade_filename
from skimage.feature import Cascade
from torchvision.ops import box_iou

from adaptive_margin.emotion.detect import face_detector
from adaptive_margin.faces import draw_faces, face_geometry, sample_identities, sample_labels

PEOPLE, SIDE, SEED = 120, 192, 5
Found = list[tuple[float, float, float, float]]


def scenes() -> dict[str, list[tuple[np.ndarray, tuple[float, ...]]]]:
    """Pictures, each with (left, top, right, bottom) of its face."""
    random = np.random.default_rng(0)
    people, keys = sample_identities(PEOPLE, seed=SEED), np.arange(PEOPLE)
    felt = np.concatenate([sample_labels(SEED, person, 1) for person in range(PEOPLE)])
    images = draw_faces(people, felt[:, 0], felt[:, 1], size=SIDE, nuisance_seeds=keys)
    _, boxes = face_geometry(people, felt[:, 0], felt[:, 1], size=SIDE, nuisance_seeds=keys)
    made: dict[str, list[tuple[np.ndarray, tuple[float, ...]]]] = {"filling": [], "within": []}
    for number, (image, (x, y, w, h)) in enumerate(zip(images, boxes, strict=True)):
        if number % 2 == 0:
            made["filling"].append((image, (x, y, x + w, y + h)))
            continue
        across, down = np.linspace(0, 1, 480)[None, :, None], np.linspace(0, 1, 360)[:, None, None]
        scene = 255 * (random.random(3) * (1 - across / 2) + down * random.random(3) / 2)
        scene = np.clip(scene + random.normal(0, 4, scene.shape), 0, 255).astype(np.uint8)
        side = int(random.integers(72, 192))
        left, top = int(random.integers(0, 480 - side)), int(random.integers(0, 360 - side))
        scene[top : top + side, left : left + side] = np.asarray(
            Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
        )
        s = side / SIDE
        made["within"].append((scene, (left + s * x, top + s * y, left + s * (x + w), top + s * (y + h))))
    return made


def haar(name: str) -> Callable[[np.ndarray], Found]:
    cascade = cv2.CascadeClassifier(f"{cv2.data.haarcascades}{name}.xml")

    def detect(image: np.ndarray) -> Found:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        least = max(24, min(grey.shape) // 8)
        found = cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=3, minSize=(least, least))
        return [(x, y, x + w, y + h) for x, y, w, h in found]

    return detect


def local_binary_patterns(image: np.ndarray) -> Found:
    cascade, side = Cascade(lbp_frontal_face_cascade_filename()), min(image.shape[:2])
    found = cascade.detect_multi_scale(
        img=image, scale_factor=1.1, step_ratio=1, min_size=(side // 8,) * 2, max_size=(side,) * 2
    )
    return [(f["c"], f["r"], f["c"] + f["width"], f["r"] + f["height"]) for f in found]


def main() -> None:
    detectors = {
        "used: frontalface_alt2, then equalised": face_detector(),
        "haarcascade_frontalface_alt2": haar("haarcascade_frontalface_alt2"),
        "haarcascade_frontalface_alt": haar("haarcascade_frontalface_alt"),
        "haarcascade_frontalface_default": haar("haarcascade_frontalface_default"),
        "scikit-image, local binary patterns": local_binary_patterns,
    }
    made, rows = scenes(), []
    for name, detect in detectors.items():
        row: dict[str, Any] = {"detector": name, "false": 0}
        for kind, pictures in made.items():
            row[kind] = 0
            for image, face in pictures:
                found = torch.tensor(detect(image), dtype=torch.float64).reshape(-1, 4)
                overlaps = box_iou(found, torch.tensor([face], dtype=torch.float64))[:, 0].tolist()
                row[kind] += max(overlaps, default=0.0) > 0.3
                row["false"] += sum(value <= 0.3 for value in overlaps)
        rows.append(row)
        print(f"{name:40} {row['filling']} and {row['within']} of 60 and 60, {row['false']} false")
    versions = {"opencv": cv2.__version__, "scikit-image": skimage.__version__, "python": platform.python_version()}
    result = {"rows": rows, "people": PEOPLE, "seed": SEED, "versions": versions}
    path = Path(__file__).parent / "results" / "detectors.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1, default=int) + "\n")


if __name__ == "__main__":
    main()
