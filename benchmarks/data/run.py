"""Images per second: decoding with Pillow every epoch, compared with the image cache with augmentation in batches.

    python benchmarks/data/run.py
    python benchmarks/data/run.py --print      # the table in docs/datasets-fer.md; measures nothing

Both produce the same result: normalised float32 batches of 224-pixel crops on the training device. The pictures are
generated: JPEG files of 425 pixels (about the size of AffectNet's) with a face box, smooth with a little grain, so
that they compress as photographs do. The cases are:

    pillow, one process       FaceImages in the process itself
    pillow, workers           FaceImages under a DataLoader, as many workers as processors
    cache, one thread         CachedBatches without reading ahead, torch on one thread
    cache                     CachedBatches as a trainer uses it: a thread reads ahead, torch on all processors

Each case is repeated, and the median is taken; the spread is in the results file. Reading from the page cache favours
the files and the cache equally: the sizes of both are reported.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import ends_in_order

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules in the folder above
from script import Parser, print_results, read_results, write_results


def parsed() -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__, Path(__file__).parent / "results" / "cpu.json")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--side", type=int, default=425, help="side of the JPEG files, pixels")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", help="cuda if available")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", help="where to put files and cache (default: a temporary folder)")
    return parser.parse_args()


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import numpy as np
import PIL
import torch
from PIL import Image
from torch.utils.data import DataLoader

from adaptive_margin.affect import CachedBatches, FaceImages, Records
from adaptive_margin.affect.records import RecordBuilder
from adaptive_margin.images.cache import ImageCache
from adaptive_margin.training import World, environment
from adaptive_margin.training.command_line import check_output, json_with
from adaptive_margin.training.world import device_of

CPU_SECONDS: dict[str, float] = {}
"""Processor time of the process itself per image: the fairer figure on a machine with other work."""


def photographs(root: Path, count: int, side: int) -> tuple[Records, int]:
    """JPEG files that compress as photographs do; returns the records and the bytes of all files."""
    root.mkdir()
    rng = np.random.default_rng(0)
    rows = RecordBuilder("generated", root)
    total = 0
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.float32)
        grain = smooth + rng.normal(0, 5, (side, side, 1))
        path = root / f"{number:06d}.jpg"
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(path, quality=92)
        total += path.stat().st_size
        margin = 0.08 * side
        rows.add(str(number), path.name, (0.1, -0.1), box=(margin, margin, side - margin, side - margin))
    return rows.build(), total


def rates(what: str, images: int, repeats: int, epoch: Callable[[int], Iterable[Any]]) -> list[float]:
    """Images per second of several epochs, without the first."""
    found, busy = [], []
    for number in range(repeats + 1):
        began, spent = time.perf_counter(), time.process_time()
        for _ in epoch(number):
            pass
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(images / (time.perf_counter() - began))
        busy.append((time.process_time() - spent) / images)
    found = found[1:]
    CPU_SECONDS[what] = statistics.median(busy[1:])
    print(
        f"{what:28s} {statistics.median(found):9,.0f} images/s   {min(found):,.0f} to {max(found):,.0f}"
        f"   {1e3 * CPU_SECONDS[what]:.2f} ms of this process per image"
    )
    return found


def table(result: dict[str, Any]) -> str:
    """Images per second and processor time, in Markdown."""
    workers, rates, seconds = result["config"]["workers"], result["median"], result["cpu_seconds_per_image"]
    said = {
        "pillow, one process": "Pillow every epoch, one process",
        "pillow, workers": f"Pillow every epoch, {workers} workers",
        "build": "building the cache, once",
        "cache, one thread": "cache, one thread",
        "cache": "cache, reading ahead",
    }
    rates = {**rates, "build": result["build_images_per_second"]}
    repeats = result["config"]["repeats"]
    lines = [f"| | images/s (median of {repeats}) | ms of processor time per image |", "|---|---|---|"]
    for case, name in said.items():
        lines.append(f"| {name} | {rates[case]:,.0f} | " + (f"{1e3 * seconds[case]:.2f} |" if case in seconds else "|"))
    return "\n".join(lines)


@ends_in_order("nothing is written")
@said_plainly()
def main() -> None:
    options = parsed()
    if options.print:
        print_results(options.out, lambda: table(read_results(options.out)))
        return
    check_output("--out", options.out, file=True, replaces=json_with("images_per_second", "ratios"))
    device = device_of(options.device)
    options.device = options.device or device.type

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        records, bytes_of_files = photographs(root / "files", options.images, options.side)
        count, size, repeats = len(records), options.batch_size, options.repeats

        decoded = FaceImages(records, train=True)
        threads = torch.get_num_threads()

        def to_device(loader: Iterable[Any], epoch: int) -> Iterable[Any]:
            decoded.set_epoch(epoch)
            for images, labels, _ in loader:
                yield images.to(options.device, non_blocking=True), labels.to(options.device, non_blocking=True)

        found: dict[str, list[float]] = {}
        torch.set_num_threads(1)
        alone = DataLoader(decoded, batch_size=size, shuffle=True, num_workers=0)
        found["pillow, one process"] = rates("pillow, one process", count, repeats, lambda e: to_device(alone, e))
        shared: Any = DataLoader(
            decoded,
            batch_size=size,
            shuffle=True,
            num_workers=options.workers,
            persistent_workers=True,
            pin_memory=False,
        )
        what = f"pillow, {options.workers} workers"
        found["pillow, workers"] = rates(what, count, repeats, lambda e: to_device(shared, e))
        shared = None  # its workers end here
        CPU_SECONDS.pop(what)  # the work is its workers'

        began = time.perf_counter()
        cache = ImageCache.open(records, root / "cache", workers=options.workers)
        build = count / (time.perf_counter() - began)
        print(f"{'building the cache':28s} {build:9,.0f} images/s   once; {cache.bytes_on_disk / 2**20:,.0f} MiB")

        one = CachedBatches.of(cache, batch_size=size, train=True, device=options.device, prefetch=0)
        found["cache, one thread"] = rates("cache, one thread", count, repeats, one.epoch)
        torch.set_num_threads(threads)
        full = CachedBatches.of(cache, batch_size=size, train=True, device=options.device)
        found["cache"] = rates("cache", count, repeats, full.epoch)

        median = {name: statistics.median(values) for name, values in found.items()}
        ratios = {
            "one thread against one process": median["cache, one thread"] / median["pillow, one process"],
            "all processors against all processors": median["cache"] / median["pillow, workers"],
            "one thread, processor time": CPU_SECONDS["pillow, one process"] / CPU_SECONDS["cache, one thread"],
        }
        for name, ratio in ratios.items():
            print(f"{name}: {ratio:.1f} times")
        result = {
            "environment": environment(World(device=device)),
            "pillow": PIL.__version__,
            "config": {key: value for key, value in vars(options).items() if key not in ("out", "folder")},
            "images_per_second": found,
            "median": median,
            "ratios": ratios,
            "cpu_seconds_per_image": CPU_SECONDS,
            "build_images_per_second": build,
            "bytes": {"files": bytes_of_files, "cache": cache.bytes_on_disk},
            "load_average": list(os.getloadavg()),
        }
        write_results(options.out, result)


if __name__ == "__main__":
    main()
