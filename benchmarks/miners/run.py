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
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import end_with_parent, ends_in_order

CASES = {
    "batch-hard, tiled": lambda: tiled.TiledBatchHardMiner(),
    "batch-hard, stock": lambda: stock.BatchHardMiner(),
    "distance-weighted, tiled": lambda: tiled.TiledDistanceWeightedMiner(),
    "distance-weighted, stock": lambda: stock.DistanceWeightedMiner(),
}


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 1024, 4096, 8192, 32768])
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--limit-gib", type=float, default=8.0, help="stop a case whose process needs more memory")
    parser.add_argument("--limit-minutes", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "miners.json")
    parser.add_argument("--print", action="store_true", help="print the table of --out, in Markdown")
    parser.add_argument("--measure", choices=list(CASES), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import torch
from pytorch_metric_learning import miners as stock

import adaptive_margin
from adaptive_margin import miners as tiled
from adaptive_margin.training.world import device_of

GIB = 2**30


def resident(pid: int | str, field: str) -> int:
    """A field of /proc/PID/status in bytes: VmRSS, or its high-water mark VmHWM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/{pid}/status")


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
        before = resident("self", "VmRSS")
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
    peak = torch.cuda.max_memory_allocated() if cuda else resident("self", "VmHWM")
    return {
        "milliseconds": round(1000 * statistics.median(times[1:]), 2),
        "cpu_milliseconds": round(1000 * statistics.median(cpu_times[1:]), 2),
        "calls": len(times) - 1,
        "mib_above_embeddings": round((peak - before) / 2**20, 1),
        "triplets": len(triplets[0]),
    }


def in_its_own_process(case: str, batch: int, arguments: argparse.Namespace) -> dict[str, object]:
    command = [sys.executable, __file__, "--measure", case, "--batches", str(batch)]
    command += ["--features", str(arguments.features), "--device", arguments.device]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    began = time.monotonic()
    try:
        while child.poll() is None:
            time.sleep(0.1)
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
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    return {
        "command": " ".join(["python", "benchmarks/miners/run.py", *sys.argv[1:]]),
        "features": arguments.features,
        "images_a_class": 4,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else f"{os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "load_average_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {
            "adaptive-margin": adaptive_margin.__version__,
            "torch": torch.__version__,
            "pytorch-metric-learning": importlib.metadata.version("pytorch-metric-learning"),
        },
        "commit": commit,
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
    if arguments.print:
        print(table(json.loads(arguments.out.read_text(encoding="utf-8"))["cases"]))
        return
    if arguments.measure:
        end_with_parent()
        print(json.dumps(measure(arguments.measure, arguments.batches[0], arguments.features, arguments.device)))
        return
    compare(arguments)


@ends_in_order("nothing is written")
def compare(arguments: argparse.Namespace) -> None:
    """Runs and writes all cases."""
    with said_plainly():
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
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**about(arguments), "cases": cases}, indent=1) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
