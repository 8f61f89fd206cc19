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
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import ends_in_order

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules in the folder above
from limited import GIB, end_with_benchmark, resident, run_limited
from script import Parser, print_results, read_results, write_results

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
    parser = Parser(__doc__)
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


if __name__ == "__main__" and parsed().measure:  # help and mistakes are answered before PyTorch is loaded
    end_with_benchmark()

import torch

from adaptive_margin.training import World, environment
from adaptive_margin.training.command_line import check_output, json_with
from adaptive_margin.training.world import device_of


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
        before = resident("VmRSS")
    began, cpu_began = time.perf_counter(), time.process_time()
    figures = CASES[arguments.measure](x, labels)
    if cuda:
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),  # of all threads: other work on the machine does not lengthen it
        "gib_above_embeddings": round((peak - before) / GIB, 3),
        "figures": figures,
    }


def in_its_own_process(case: str, arguments: argparse.Namespace) -> dict[str, object]:
    command = [__file__, "--measure", case, "--device", arguments.device]
    for size in ("rows", "features", "classes"):
        command += [f"--{size}", getattr(arguments, size)]
    ended = run_limited(command, gib=arguments.limit_gib, minutes=arguments.limit_minutes)
    return ended.result or {"stopped": ended.why}


def about(arguments: argparse.Namespace) -> dict[str, object]:
    sizes = {name: getattr(arguments, name) for name in ("rows", "features", "classes")}
    load = round(os.getloadavg()[0], 1)
    return {**environment(World(device=device_of(arguments.device))), **sizes, "ks": KS, "load_average_before": load}


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
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    compare(arguments)


@ends_in_order("nothing is written")
@said_plainly()
def compare(arguments: argparse.Namespace) -> None:
    """Runs and writes all cases."""
    if arguments.print:

        def tables() -> str:
            files = [read_results(path)["cases"] for path in arguments.print]
            return table({name: case for cases in files for name, case in cases.items()})

        print_results(" ".join(map(str, arguments.print)), tables)
        return
    check_output("--out", arguments.out, file=True, replaces=json_with("ks", "cases"))
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
    write_results(arguments.out, result)


if __name__ == "__main__":
    main()
