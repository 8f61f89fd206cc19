"""Time and memory of the tiled miners compared with pytorch-metric-learning's, 4 images per class.

    python benchmarks/miners/run.py
    python benchmarks/miners/run.py --batches 256 1024 --device cuda
    python benchmarks/miners/run.py --print      # the table in docs/miners.md; measures nothing

Every case runs in its own process, on the same generated embeddings. Time is the median over a few calls after a first
one. Memory is the peak of the resident set (on CUDA of the allocator), minus its value with only the embeddings loaded.
A case whose process grows beyond ``--limit-gib`` or runs longer than ``--limit-minutes`` is stopped, and reported as
such.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import ends_in_order

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules in the folder above
from limited import end_with_benchmark, resident, run_limited
from script import Parser, print_results, read_results, write_results

CASES = {
    "batch-hard, tiled": lambda: tiled.TiledBatchHardMiner(),
    "batch-hard, stock": lambda: stock.BatchHardMiner(),
    "distance-weighted, tiled": lambda: tiled.TiledDistanceWeightedMiner(),
    "distance-weighted, stock": lambda: stock.DistanceWeightedMiner(),
}


def parsed() -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__, Path(__file__).parent / "results" / "miners.json")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 1024, 4096, 8192, 32768])
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--limit-gib", type=float, default=8.0, help="stop a case whose process needs more memory")
    parser.add_argument("--limit-minutes", type=float, default=5.0)
    parser.add_argument("--measure", choices=list(CASES), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__" and parsed().measure:  # help and mistakes are answered before PyTorch is loaded
    end_with_benchmark()

import torch
from pytorch_metric_learning import miners as stock

from adaptive_margin import miners as tiled
from adaptive_margin.training import World, environment
from adaptive_margin.training.command_line import check_output, json_with
from adaptive_margin.training.world import device_of


def measure(case: str, batch: int, features: int, device: str) -> dict[str, object]:
    """One case, in this process."""
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(batch, features), dim=1).to(device)
    labels = torch.arange(batch, device=device) // 4
    miner = CASES[case]()
    cuda = x.is_cuda
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = resident("VmRSS")
    times: list[float] = []
    cpu_times: list[float] = []  # of all threads: other work on the machine does not lengthen it
    began = time.perf_counter()
    while len(times) < 2 or (len(times) < 50 and time.perf_counter() - began < 5):
        start, cpu_start = time.perf_counter(), time.process_time()
        triplets = miner(x, labels)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    return {
        "milliseconds": round(1000 * statistics.median(times[1:]), 2),
        "cpu_milliseconds": round(1000 * statistics.median(cpu_times[1:]), 2),
        "calls": len(times) - 1,
        "mib_above_embeddings": round((peak - before) / 2**20, 1),
        "triplets": len(triplets[0]),
    }


def in_its_own_process(case: str, batch: int, arguments: argparse.Namespace) -> dict[str, object]:
    command = [__file__, "--measure", case, "--batches", batch]
    command += ["--features", arguments.features, "--device", arguments.device]
    ended = run_limited(command, gib=arguments.limit_gib, minutes=arguments.limit_minutes)
    return ended.result or {"stopped": ended.why}


def about(arguments: argparse.Namespace) -> dict[str, object]:
    load = round(os.getloadavg()[0], 1)
    return {
        **environment(World(device=device_of(arguments.device))),
        "features": arguments.features,
        "images_a_class": 4,
        "load_average_before": load,
    }


def table(cases: list[dict[str, Any]]) -> str:
    """CPU time of a call and memory, in Markdown."""
    lines = ["| batch | " + " | ".join(CASES) + " |"]
    lines.append("|---" * (1 + len(CASES)) + "|")
    for batch in dict.fromkeys(row["batch"] for row in cases):
        found = {row["case"]: row for row in cases if row["batch"] == batch}
        lines.append(f"| {batch:,} | " + " | ".join(cell(found[case]) for case in CASES) + " |")
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    if "stopped" in row:
        return f"stopped: {row['stopped']}"
    ms = row["cpu_milliseconds"]
    time = f"{ms / 1000:.1f} s" if ms >= 1000 else f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms"
    return f"{time}, {row['mib_above_embeddings']:,.0f} MiB"


def main() -> None:
    arguments = parsed()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.batches[0], arguments.features, arguments.device)))
        return
    compare(arguments)


@ends_in_order("nothing is written")
@said_plainly()
def compare(arguments: argparse.Namespace) -> None:
    """Runs and writes all cases."""
    if arguments.print:
        print_results(arguments.out, lambda: table(read_results(arguments.out)["cases"]))
        return
    check_output("--out", arguments.out, file=True, replaces=json_with("features", "cases"))
    device_of(arguments.device)
    cases: list[dict[str, object]] = []
    for batch in arguments.batches:
        for case in CASES:
            outcome = in_its_own_process(case, batch, arguments)
            cases.append({"batch": batch, "case": case, **outcome})
            numbers = (
                f"stopped: {outcome['stopped']}"
                if "stopped" in outcome
                else f"{outcome['milliseconds']:10.2f} ms {outcome['cpu_milliseconds']:10.2f} CPU ms "
                f"{outcome['mib_above_embeddings']:8.1f} MiB"
            )
            print(f"{batch:6} {case:26} {numbers}", flush=True)
    write_results(arguments.out, {**about(arguments), "cases": cases})


if __name__ == "__main__":
    main()
