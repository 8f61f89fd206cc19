"""Small generated data sets in the exact layout of the real ones, defects included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

TINY = ["--backbone", "resnet18", "--weights", "none", "--no-freeze-batch-norm", "--resize", "32", "--size", "32"]
"""Options of a network that trains on these in seconds."""
CARS_NAMES = [
    "AM General Hummer SUV 2000",
    "Acura RL Sedan 2012",
    "Ram C/V Cargo Van 2012",
    "Audi A5",
    "BMW X3",
    "Fiat 500",
]


def picture(path: Path, klass: int, number: int, mode: str = "RGB") -> None:
    """A noisy coloured square whose place and colour are the class's."""
    numbers = np.random.default_rng([klass, number])
    pixels = numbers.integers(0, 60, (40 + number, 48, 3), dtype=np.uint8)
    pixels[8 : 24 + klass, 8:30, klass % 3] += np.uint8(120)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


def cub(root: Path, classes: int = 8, each: int = 6) -> Path:
    """``CUB_200_2011`` with a grey image and AppleDouble litter."""
    top = root / "CUB_200_2011"
    images, labels, boxes = [], [], []
    for klass in range(1, classes + 1):
        folder = f"{klass:03d}.Bird_{klass}"
        for number in range(each):
            name, key = f"{folder}/Bird_{klass}_{number:04d}_{number}.jpg", len(images) + 1
            picture(top / "images" / name, klass, number, "L" if key == 2 else "RGB")
            images.append(f"{key} {name}")
            labels.append(f"{key} {klass}")
            boxes.append(f"{key} 8.0 8.0 22.0 18.0")
        (top / "images" / folder / "._x.jpg").write_bytes(b"litter")
    for name, lines in (("images", images), ("image_class_labels", labels), ("bounding_boxes", boxes)):
        (top / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def cars(root: Path, layout: str, each: int = 4) -> Path:
    """Cars196 in layout A, B or C: the same cars, file names that are each layout's own."""
    rows = []  # class, number in class, part
    for klass in range(1, len(CARS_NAMES) + 1):
        rows += [(klass, number, "train" if number % 2 else "test") for number in range(each)]
    counts = {"train": 0, "test": 0}
    fields: dict[str, list[tuple[int, str]]] = {"train": [], "test": [], "all": []}
    for place, (klass, number, part) in enumerate(rows, 1):
        counts[part] += 1
        name = f"{counts[part]:05d}.jpg"
        if layout == "A":
            path = root / "car_ims" / f"{place:06d}.jpg"
            fields["all"].append((klass, f"car_ims/{place:06d}.jpg"))
        elif layout == "B":
            path = root / f"cars_{part}" / f"cars_{part}" / name  # unpacked to a folder of its own name
            fields[part].append((klass, name))
        else:
            path = root / "car_data" / "car_data" / part / CARS_NAMES[klass - 1].replace("/", "-") / name
            fields[part].append((klass, name))
        picture(path, klass, number, "L" if place == 3 else "RGB")
    if layout == "C":
        (root / "names.csv").write_text("\n".join(CARS_NAMES) + "\n")
        for part in ("train", "test"):
            lines = [f"{name},8,8,30,26,{klass}" for klass, name in fields[part]]
            (root / f"anno_{part}.csv").write_text("\n".join(lines) + "\n")
        return root
    names = np.array([[np.array([name]) for name in CARS_NAMES]], dtype=object)
    if layout == "A":
        savemat(root / "cars_annos.mat", {"annotations": _struct(fields["all"], "A"), "class_names": names})
        return root
    (root / "devkit").mkdir()
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": _struct(fields["train"], "B")})
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": _struct(fields["test"], "B")})
    return root


def _struct(rows: list[tuple[int, str]], layout: str) -> np.ndarray:
    """Matlab's 1×N struct array, its fields in the order of that release."""
    box = [("bbox_x1", "O"), ("bbox_y1", "O"), ("bbox_x2", "O"), ("bbox_y2", "O")]
    if layout == "A":
        kind = [("relative_im_path", "O"), *box, ("class", "O"), ("test", "O")]
        values = [(name, 8, 8, 30, 26, klass, 0) for klass, name in rows]
    else:
        kind = [*box, ("class", "O"), ("fname", "O")]
        values = [(8, 8, 30, 26, klass, name) for klass, name in rows]
    return np.array([values], dtype=kind)


def sop(root: Path, each: int = 3, packed: bool = False) -> Path:
    """``Stanford_Online_Products``; ``packed``: with Info_Files and images folders. One class has one image."""
    top = root / "Stanford_Online_Products"
    images, lists = (top / "images", top / "Info_Files") if packed else (top, top)
    key = 0
    for part, classes in (("train", range(1, 7)), ("test", range(7, 13))):
        lines = ["image_id class_id super_class_id path"]
        for klass in classes:
            for number in range(1 if klass == 2 else each):
                key += 1
                category = ("bicycle", "mug", "toaster")[klass % 3]
                path = f"{category}_final/{klass:012d}_{number}.JPG"
                picture(images / path, klass, number)
                lines.append(f"{key} {klass} {klass % 3 + 1} {path}")
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"Ebay_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def folders(root: Path, classes: int = 8, each: int = 6) -> Path:
    """Class folders, one of them with a folder inside."""
    for klass in range(classes):
        for number in range(each):
            inner = "inner/" if klass == 1 and number == 0 else ""
            picture(root / f"class {klass}" / f"{inner}{number}.png", klass, number)
    return root
