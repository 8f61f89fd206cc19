"""Retrieval figures of 60,502 embeddings: time and memory, compared with pytorch-metric-learning's calculator.

    python benchmarks/retrieval/run.py                       # the size of Stanford Online Products' test split
    python benchmarks/retrieval/run.py --rows 5000 --classes 900 --cases tiled stock_recall_at_1
    python benchmarks/retrieval/run.py --device cuda
    python benchmarks/retrieval/run.py --print FILE...     # the table in docs/retrieval.md; measures nothing

Every case runs in its own process on the same generated embeddings. Memory is the peak of the resident set (on CUDA of
the allocator), minus its value with only the embeddings loaded. A case that exceeds ``--limit-gib`` or
``--limit-minutes`` is stopped and reported as such.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import end_with_parent, ends_in_order

KS = (1, 10, 100, 1000)


def tiled(x: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    from adaptive_margin.metrics import RetrievalMetrics

    return RetrievalMetrics(ks=KS)(x, labels)


def tiled_recall_at_1(x: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    from adaptive_margin.metrics import RetrievalMetrics

    return RetrievalMetrics(ks=(1,), at_r=False)(x, labels)


def tiled_with_clusters(x: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    from adaptive_margin.metrics import RetrievalMetrics

    return RetrievalMetrics(ks=(), at_r=False, clustering="kmeans")(x, labels)


def faiss_search(x: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    from adaptive_margin.metrics import RetrievalMetrics

    return RetrievalMetrics(ks=KS, search="faiss")(x, labels)


def stock(include: list[str], k: int | str | None, x: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    return dict(AccuracyCalculator(include=include, k=k, device=x.device).get_accuracy(x, labels))


def stock_recall_at_1(x: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    return stock(["precision_at_1"], 1, x, labels)


def stock_map_at_r(x: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    return stock(["precision_at_1", "r_precision", "mean_average_precision_at_r"], "max_bin_count", x, labels)


def stock_with_clusters(x: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    return stock(["NMI", "AMI"], None, x, labels)


CASES: dict[str, Callable[[torch.Tensor, torch.Tensor], dict[str, float]]] = {
    case.__name__: case
    for case in (
        tiled,
        tiled_recall_at_1,
        faiss_search,
        stock_recall_at_1,
        stock_map_at_r,
        tiled_with_clusters,
        stock_with_clusters,
    )
}
DEFAULT = [name for name in CASES if not name.endswith("clusters")]


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60502)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--classes", type=int, default=11316)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=DEFAULT)
    parser.add_argument("--limit-gib", type=float, default=16.0, help="stop a case whose process needs more memory")
    parser.add_argument("--limit-minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "retrieval.json")
    parser.add_argument("--print", type=Path, nargs="+", help="print the table of these files, in Markdown")
    parser.add_argument("--measure", choices=list(CASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.classes * 2 > arguments.rows:
        parser.error(
            f"--rows must be at least two per class, got {arguments.rows} rows for {arguments.classes} classes"
        )
    return arguments


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import torch

import adaptive_margin
from adaptive_margin.training.world import device_of

GIB = 2**30


def embeddings(rows: int, features: int, classes: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows around one centre per class, made in blocks so that making them adds no peak of memory."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(classes).repeat(2), torch.randint(classes, (rows,), generator=generator)])[:rows]
    labels = labels[torch.randperm(rows, generator=generator)]
    centres = torch.randn(classes, features, generator=generator)
    x = torch.empty(rows, features)
    for block, of in zip(x.split(1024), labels.split(1024), strict=True):
        block.copy_(centres[of]).add_(torch.randn(block.shape, generator=generator), alpha=3.0)
        block.div_(block.norm(dim=1, keepdim=True))
    return x.to(device), labels.to(device)


def resident(pid: int | str, field: str) -> int:
    """A field of /proc/PID/status in bytes: VmRSS, or its high-water mark VmHWM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/{pid}/status")


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """One case, in this process."""
    x, labels = embeddings(arguments.rows, arguments.features, arguments.classes, arguments.device)
    cuda = x.is_cuda
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = resident("self", "VmRSS")
    began, cpu_began = time.perf_counter(), time.process_time()
    figures = CASES[arguments.measure](x, labels)
    if cuda:
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = torch.cuda.max_memory_allocated() if cuda else resident("self", "VmHWM")
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),  # of all threads: other work on the machine does not lengthen it
        "gib_above_embeddings": round((peak - before) / GIB, 3),
        "figures": figures,
    }


def in_its_own_process(case: str, arguments: argparse.Namespace) -> dict[str, object]:
    command = [sys.executable, __file__, "--measure", case, "--device", arguments.device]
    for size in ("rows", "features", "classes"):
        command += [f"--{size}", str(getattr(arguments, size))]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    began = time.monotonic()
    try:
        while child.poll() is None:
            time.sleep(0.5)
            try:
                used = resident(child.pid, "VmRSS")
            except (OSError, RuntimeError):  # it has just ended
                continue
            late = time.monotonic() - began > 60 * arguments.limit_minutes
            if late or used > GIB * arguments.limit_gib:
                why = f"more than {arguments.limit_minutes:g} min" if late else f"more than {arguments.limit_gib:g} GiB"
                return {"stopped": why}
    finally:
        child.kill()  # unless it has ended
        child.wait()
    output = child.communicate()[0]
    return json.loads(output.splitlines()[-1]) if child.returncode == 0 else {"stopped": f"exit {child.returncode}"}


def about(arguments: argparse.Namespace) -> dict[str, object]:
    packages = {"adaptive-margin": adaptive_margin.__version__}
    for package in ("torch", "pytorch-metric-learning", "faiss-cpu", "scikit-learn", "numpy"):
        try:
            packages[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            packages[package] = "not installed"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    return {
        "command": " ".join(["python", "benchmarks/retrieval/run.py", *sys.argv[1:]]),
        "rows": arguments.rows,
        "features": arguments.features,
        "classes": arguments.classes,
        "ks": KS,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else f"{os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "load_average_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": packages,
        "commit": commit,
    }


SAID = {
    "tiled": "RetrievalMetrics(ks=(1, 10, 100, 1000))",
    "tiled_recall_at_1": "RetrievalMetrics(ks=(1,), at_r=False)",
    "faiss_search": 'RetrievalMetrics(..., search="faiss")',
    "stock_recall_at_1": "AccuracyCalculator(k=1)",
    "stock_map_at_r": 'AccuracyCalculator(k="max_bin_count")',
    "tiled_with_clusters": 'RetrievalMetrics(clustering="kmeans")',
    "stock_with_clusters": 'AccuracyCalculator(include=["NMI", "AMI"])',
}
FIGURES = {
    "recall_at_1": "Recall@1",
    "recall_at_10": "10",
    "recall_at_100": "100",
    "recall_at_1000": "1000",
    "precision_at_1": "Recall@1",
    "r_precision": "RP",
    "mean_average_precision_at_r": "MAP@R",
    "NMI": "NMI",
    "AMI": "AMI",
}


def table(cases: dict[str, Any]) -> str:
    """Figures, CPU time and memory of each case, in Markdown."""
    lines = ["| | figures | CPU time | memory |", "|---|---|---|---|"]
    for name in CASES:
        if name in cases and "stopped" not in cases[name]:
            case = cases[name]
            figures = ", ".join(said for figure, said in FIGURES.items() if figure in case["figures"])
            figures = figures.replace(", 10", "/10")
            cells = f"{figures} | {case['cpu_seconds']:.0f} s | {case['gib_above_embeddings']:.2f} GiB"
            lines.append(f"| `{SAID[name]}` | {cells} |")
    return "\n".join(lines)


def main() -> None:
    arguments = parsed()
    if arguments.print:
        files = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.print]
        print(table({name: case for file in files for name, case in file["cases"].items()}))
        return
    if arguments.measure:
        end_with_parent()
        print(json.dumps(measure(arguments)))
        return
    compare(arguments)


@ends_in_order("nothing is written")
def compare(arguments: argparse.Namespace) -> None:
    """Runs and writes all cases."""
    with said_plainly():
        device_of(arguments.device)
    result = {**about(arguments), "cases": {}}
    for case in arguments.cases:
        outcome = in_its_own_process(case, arguments)
        result["cases"][case] = outcome
        if "stopped" in outcome:
            print(f"{case:22} stopped: {outcome['stopped']}", flush=True)
            continue
        figures = ", ".join(f"{name} {value:.4f}" for name, value in outcome["figures"].items())
        took = f"{outcome['seconds']:8.1f} s {outcome['cpu_seconds']:8.1f} CPU s"
        print(f"{case:22} {took} {outcome['gib_above_embeddings']:7.3f} GiB  {figures}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
