"""Time and peak memory of the losses of this library, of pytorch-metric-learning and of dense torch, side by side.

    python benchmarks/speed/run.py                  # N = 128 … 65,536 in two layouts: about an hour on two cores
    python benchmarks/speed/run.py --quick          # up to 2048, a few minutes
    python benchmarks/speed/run.py --sizes 4096     # only this size; the others stay in the CSV
    python benchmarks/speed/run.py --print          # the tables of the CSV, of these --sizes; measures nothing
    python benchmarks/speed/run.py --summary        # ratios of the CSV; measures nothing
    python benchmarks/speed/run.py --device cuda --out benchmarks/speed/results/h100

Every case runs in its own process, on the same generated embeddings: 128 features that vary in four directions, so that
distances are spread out, scaled to a median squared distance of 1. The constant margin is 1, so half of all pairs lie
within it and no tile can be skipped. Labels are independent of the embeddings: no neighbourhood is ever pure, and the
adaptive margin has to look at all of it. Time is the median over several calls after a warm-up (one call, if it takes
over ten seconds). Up to 4096 rows it is the median over ``--rounds`` processes that alternate with the other cases. The
CPU time of all threads is given too, because other work on the machine affects it less. Memory is the peak of the
resident set (on CUDA of the allocator), minus its value with only the embeddings loaded. A case that exceeds
``--limit-gib`` or ``--limit-minutes`` is stopped, reported as such, and not tried with more rows.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from adaptive_margin.messages import problem, said_plainly
from adaptive_margin.processes import ends_in_order

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules in the folder above
from limited import end_with_benchmark, resident, run_limited
from script import Parser, is_figure, write_figure

SIZES = [2**power for power in range(7, 17)]
LAYOUTS = {"two groups": lambda n: torch.arange(n) % 2, "4 a class": lambda n: torch.arange(n) // 4}
CASES: dict[str, Callable[[], Loss]] = {
    "ContrastiveVDMLoss, constant": lambda: ContrastiveVDMLoss(margin=MARGIN),
    "ContrastiveVDMLoss, adaptive": lambda: ContrastiveVDMLoss(evidence()),  # rules.py measures the other rules
    "AdaptiveMarginLoss(Contrastive)": lambda: AdaptiveMarginLoss(losses.ContrastiveLoss(), evidence(), units="sqrt"),
    "PML Contrastive, squared L2": lambda: losses.ContrastiveLoss(neg_margin=MARGIN, distance=squared_l2()),
    "PML Contrastive": lambda: losses.ContrastiveLoss(),
    "PML SupCon": lambda: losses.SupConLoss(),
    "PML MultiSimilarity": lambda: losses.MultiSimilarityLoss(),
    "dense torch": lambda: dense_torch,
}
OURS = [name for name in CASES if "VDM" in name or "Adaptive" in name]


def parsed() -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--quick", action="store_true", help="sizes up to 2048")
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="all of them by default")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to repeat a case, at least 3 calls")
    parser.add_argument("--rounds", type=int, default=3, help="processes per case, alternating, up to 4096 rows")
    parser.add_argument("--limit-gib", type=float, default=8.0, help="stop a case whose process needs more memory")
    parser.add_argument("--limit-minutes", type=float, default=5.0)
    parser.add_argument("--note", default="", help="other work on the machine, for the CSV")
    parser.add_argument("--print", action="store_true", help="print the existing results and measure nothing")
    parser.add_argument("--summary", action="store_true", help="print what the project promises, as measured so far")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "speed", help="without a suffix"
    )
    parser.add_argument("--measure", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--layout", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__" and parsed().measure:  # help and mistakes are answered before PyTorch is loaded
    end_with_benchmark()

import torch
from pytorch_metric_learning import distances, losses
from torch import Tensor

import adaptive_margin
from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, ContrastiveVDMLoss
from adaptive_margin.atomic import write_atomically
from adaptive_margin.training.command_line import check_output
from adaptive_margin.training.world import device_of

FEATURES, MARGIN = 128, 1.0
MIB = 2**20

Loss = Callable[[Tensor, Tensor], Tensor]
Key = tuple[str, str, int]


def squared_l2() -> distances.LpDistance:
    return distances.LpDistance(p=2, power=2, normalize_embeddings=False)


def dense_torch(x: Tensor, labels: Tensor) -> Tensor:
    """A loss written by hand: one matrix product, two masks, two means."""
    squares = (x * x).sum(1)
    d = (squares[:, None] + squares - 2 * x @ x.T).clamp(min=0)
    same = labels[:, None] == labels
    hinge = torch.relu(MARGIN - d) * ~same
    return (d * same).sum() / (same.sum() - len(x)) + hinge.sum() / (hinge > 0).sum()


def evidence() -> AdaptiveMargin:
    """The margin of the tables, whatever the number of labels."""
    return AdaptiveMargin(neighbourhood="hoeffding")


def batch(n: int, layout: str, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4, FEATURES, generator=generator)
    x = torch.randn(n, 4, generator=generator) @ directions
    sample = x[:1024]
    x /= torch.pdist(sample).median()  # Euclidean; a median of 1 squares to 1
    return x.to(device).requires_grad_(), LAYOUTS[layout](n).to(device)


def step(loss: Loss, x: Tensor, labels: Tensor) -> None:
    x.grad = None
    loss(x, labels).backward()
    if x.is_cuda:
        torch.cuda.synchronize()


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """One case, in this process."""
    torch.set_num_threads(arguments.threads)
    loss = CASES[arguments.measure]()
    small, small_labels = batch(320, arguments.layout, arguments.device)
    step(loss, small, small_labels)  # what libraries allocate once is not the loss's
    x, labels = batch(arguments.rows, arguments.layout, arguments.device)
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = resident("VmRSS")
    wall_began, cpu_began = time.perf_counter(), time.process_time()
    step(loss, x, labels)
    first, first_cpu = time.perf_counter() - wall_began, time.process_time() - cpu_began
    peak = torch.cuda.max_memory_allocated() if x.is_cuda else resident("VmHWM")
    if first > 10:
        return {"milliseconds": 1e3 * first, "cpu_ms": 1e3 * first_cpu, "peak_mib": (peak - before) / MIB, "calls": 1}
    step(loss, x, labels)
    wall, cpu, began = [], [], time.perf_counter()
    while len(wall) < 3 or (len(wall) < 200 and time.perf_counter() - began < arguments.seconds):
        wall_began, cpu_began = time.perf_counter(), time.process_time()
        step(loss, x, labels)
        wall.append(time.perf_counter() - wall_began)
        cpu.append(time.process_time() - cpu_began)
    return {
        "milliseconds": 1e3 * statistics.median(wall),
        "cpu_ms": 1e3 * statistics.median(cpu),
        "peak_mib": (peak - before) / MIB,
        "calls": len(wall),
    }


def in_its_own_process(case: str, layout: str, rows: int, arguments: argparse.Namespace) -> dict[str, object]:
    command = [__file__, "--measure", case, "--layout", layout, "--rows", rows]
    command += ["--device", arguments.device, "--threads", arguments.threads, "--seconds", arguments.seconds]
    ended = run_limited(command, gib=arguments.limit_gib, minutes=arguments.limit_minutes)
    if ended.result:
        return {"status": "ok", **ended.result}
    if ended.stopped == "time":
        return {"status": f"over {arguments.limit_minutes:g} min"}
    words = ("out of memory", "allocate memory", "MemoryError", "INT_MAX")
    out_of_memory = ended.stopped == "memory" or any(each in ended.errors for each in words)
    return {"status": "out of memory" if out_of_memory else ended.why[:120]}


def merged(outcomes: list[dict[str, object]]) -> dict[str, object]:
    """Medians over the processes of a case."""
    if not outcomes or outcomes[-1]["status"] != "ok":
        return outcomes[-1] if outcomes else {"status": "not tried"}
    keys = ("milliseconds", "cpu_ms", "peak_mib")
    medians = {key: statistics.median(float(outcome[key]) for outcome in outcomes) for key in keys}
    return {"status": "ok", **medians, "calls": sum(int(outcome["calls"]) for outcome in outcomes)}


def stopped_at(results: dict[Key, dict[str, object]], case: str, layout: str, n: int) -> int | None:
    """The size below ``n`` at which a case ran out of memory or time; None if it did not."""
    sizes = [
        size
        for (other, where, size), row in results.items()
        if (other, where) == (case, layout) and size < n and row["status"] not in ("ok", "not tried")
    ]
    return min(sizes, default=None)


def cpu_name() -> str:
    """The name of the processor, if the system reports it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def about(threads: int | None, device: str = "cpu") -> dict[str, object]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch-metric-learning": importlib.metadata.version("pytorch-metric-learning"),
        "adaptive-margin": adaptive_margin.__version__,
        "commit": commit,
    }


def plot(results: list[dict[str, object]], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    layouts = list(dict.fromkeys(str(row["layout"]) for row in results))
    names = list(dict.fromkeys(str(row["case"]) for row in results))
    figure, axes = plt.subplots(2, len(layouts), figsize=(5.6 * len(layouts), 8.4), sharex=True, squeeze=False)
    quantities = (("milliseconds", "forward + backward, ms"), ("peak_mib", "peak above the embeddings, MiB"))
    for column, layout in enumerate(layouts):
        for row, (quantity, label) in enumerate(quantities):
            axis = axes[row][column]
            for i, name in enumerate(names):
                ran = [r for r in results if (r["case"], r["layout"]) == (name, layout)]
                points = [(r["n"], max(float(r[quantity]), 0.1)) for r in ran if r["status"] == "ok"]
                ours = name in OURS
                style = {"color": f"C{i}", "lw": 2.2 if ours else 1.2, "ls": "-" if ours else "--"}
                if points:
                    axis.plot(*zip(*points, strict=True), marker="o", ms=4, label=name, **style)
                if points and any(r["status"] not in ("ok", "not tried") for r in ran):
                    axis.plot(*points[-1], marker="x", ms=12, mew=2, color=f"C{i}")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
            axis.set_ylabel(label if column == 0 else "")
            axis.set_title(layout if row == 0 else "")
            axis.set_xlabel("rows in the batch" if row == 1 else "")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=3, frameon=False, fontsize=9)
    figure.suptitle(f"{title}\n× last size before running out of memory or time", fontsize=10)
    figure.tight_layout(rect=(0, 0.08, 1, 0.98))
    write_figure(figure, path)
    plt.close(figure)


def summary(results: list[dict[str, object]]) -> list[str]:
    """Ratios that the project promises, as measured."""
    found = {(r["case"], r["layout"], r["n"]): r for r in results if r["status"] == "ok"}
    lines = []
    for layout in LAYOUTS:
        for n in (128, 2048, 4096):
            for stock_name in ("PML Contrastive, squared L2", "PML Contrastive"):
                stock = found.get((stock_name, layout, n))
                for name in OURS:
                    ours = found.get((name, layout, n))
                    if stock and ours:
                        wall, cpu = (float(stock[key]) / float(ours[key]) for key in ("milliseconds", "cpu_ms"))
                        took = f"{wall:.1f} times as fast as {stock_name} (CPU {cpu:.1f})"
                        lines.append(f"{layout}, N = {n:,}: {name} is {took}")
        for name in OURS:
            if peak := found.get((name, layout, 32768)):
                mib = float(peak["peak_mib"])
                lines.append(f"{layout}, N = 32,768: {name} peaks at {mib:.0f} MiB above the embeddings")
            small, large = (found.get((name, layout, n)) for n in (8192, 65536))
            if small and large:
                growth = float(large["peak_mib"]) / max(float(small["peak_mib"]), 1e-9)
                lines.append(f"{layout}, 8,192 to 65,536: {name}'s peak grows {growth:.1f} times")
    return lines


def tables(results: list[dict[str, object]]) -> list[str]:
    """Milliseconds, then MiB, of every case, in Markdown."""
    lines = []
    for layout in dict.fromkeys(row["layout"] for row in results):
        rows = [row for row in results if row["layout"] == layout]
        sizes = sorted({row["n"] for row in rows})
        for what, key in (("ms, forward and backward", "milliseconds"), ("MiB above the embeddings", "peak_mib")):
            lines += [f"{layout}: {what}", "", f"| {layout} | " + " | ".join(f"{n:,}" for n in sizes) + " |"]
            lines.append("|---|" + "---:|" * len(sizes))
            for case in dict.fromkeys(row["case"] for row in rows):
                found = {row["n"]: row for row in rows if row["case"] == case}
                cells = [_cell(found[n], key) if n in found else "" for n in sizes]
                lines.append(f"| {case} | " + " | ".join(cells) + " |")
            lines.append("")
    return lines


def _cell(row: dict[str, object], key: str) -> str:
    if row["status"] != "ok":
        return {"out of memory": "memory", "not tried": "–"}.get(str(row["status"]), str(row["status"]))
    number = max(0.0, float(row[key]))
    return f"{number:,.0f}" if number >= 10 or key == "peak_mib" else f"{number:.1f}"


def main() -> None:
    arguments = parsed()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    compare(arguments)


@ends_in_order("the sizes before this one are in the CSV")
@said_plainly()
def compare(arguments: argparse.Namespace) -> None:
    """Runs and writes all cases."""
    sizes = [n for n in sorted(arguments.sizes) if n <= 2048 or not arguments.quick]
    cases = arguments.cases or list(CASES)
    if not (arguments.print or arguments.summary):
        names = ",".join(LEADING[:3]).encode()
        table, figure = (arguments.out.with_suffix(suffix) for suffix in (".csv", ".png"))
        check_output("--out", table, file=True, replaces=lambda content: content.startswith(names))
        check_output("--out", figure, file=True, replaces=is_figure)
    results = read(arguments.out)
    if arguments.print or arguments.summary:
        if not (rows := in_order(results)):
            raise ValueError(problem("--out", "CSV and JSON of results", arguments.out, "leave out --print to measure"))
        chosen = tables([row for row in rows if row["n"] in sizes]) if arguments.print else []
        print("\n".join([*chosen, *(summary(rows) if arguments.summary else [])]))
        return
    device_of(arguments.device)
    facts = about(arguments.threads, arguments.device)
    for layout in arguments.layouts:
        for n in sizes:
            tried = {case: stopped_at(results, case, layout, n) for case in cases}
            outcomes: dict[str, list[dict[str, object]]] = {case: [] for case in cases}
            for _ in range(arguments.rounds if n <= 4096 else 1):
                for case in (case for case in cases if tried[case] is None):
                    if all(outcome["status"] == "ok" for outcome in outcomes[case]):
                        outcomes[case].append(in_its_own_process(case, layout, n, arguments))
            for case in cases:
                outcome = merged(outcomes[case])
                load = round(os.getloadavg()[0], 1)
                row = {"case": case, "layout": layout, "n": n, **outcome, "load": load, "note": arguments.note, **facts}
                results[case, layout, n] = row
                said = outcome["status"] if tried[case] is None else f"stopped at {tried[case]:,} rows"
                if outcome["status"] == "ok":
                    said = f"{outcome['milliseconds']:10.2f} ms {outcome['cpu_ms']:10.2f} CPU ms"
                    said += f" {outcome['peak_mib']:9.1f} MiB"
                print(f"{layout:10} {n:6} {case:36} {said}", flush=True)
            write(results, arguments.out)
    rows = in_order(results)
    plot(rows, arguments.out.with_suffix(".png"), measured_on(rows))
    print("\n".join([*tables(rows), *summary(rows)]))
    print(f"in {arguments.out.with_suffix('.csv')} and {arguments.out.with_suffix('.png')}")


def measured_on(rows: list[dict[str, object]]) -> str:
    """Devices and versions; if there are several, the sizes measured on each."""
    sizes: dict[str, list[int]] = {}
    for row in rows:
        machine = f"{row['device']}, {row['threads']} threads, torch {row['torch']}"
        sizes.setdefault(machine, []).append(int(str(row["n"])))
    if len(sizes) == 1:
        return next(iter(sizes))
    return "\n".join(f"{machine}: {min(found):,} to {max(found):,} rows" for machine, found in sizes.items())


def in_order(results: dict[Key, dict[str, object]]) -> list[dict[str, object]]:
    names = list(CASES), list(LAYOUTS)
    return [results[key] for key in sorted(results, key=lambda k: (names[1].index(k[1]), k[2], names[0].index(k[0])))]


def read(out: Path) -> dict[Key, dict[str, object]]:
    """The results of earlier runs."""
    if not out.with_suffix(".csv").exists():
        return {}
    with out.with_suffix(".csv").open(newline="") as file:
        rows = [{**row, "n": int(row["n"])} for row in csv.DictReader(file)]
    return {(row["case"], row["layout"], row["n"]): row for row in rows}


def write(results: dict[Key, dict[str, object]], out: Path) -> None:
    """Writes all results so far, so that an interrupted run keeps what it has measured."""
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = in_order(results)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns.sort(key=[*LEADING, *columns].index)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.5g}" if isinstance(v, float) and math.isfinite(v) else v for k, v in row.items()})
    write_atomically(out.with_suffix(".csv"), text.getvalue().encode())


LEADING = ["case", "layout", "n", "status", "milliseconds", "cpu_ms", "peak_mib", "calls", "load", "note"]


if __name__ == "__main__":
    main()
