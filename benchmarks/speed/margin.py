"""The cost of the adaptive margin, compared with a ResNet18 training step and with a loop over sorted neighbours.

    python benchmarks/speed/margin.py        # a few minutes on two cores; writes results/margin.json

The loop computes the margin one sample at a time, as in the authors' released code: sort a sample's distances, then
walk outwards until the labels are evidence. The script checks that it gives the same K.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import ends_in_order

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules in the folder above
from script import Parser, write_results


def parsed() -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "margin.json")
    return parser.parse_args()


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import torch
from run import about, batch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

from adaptive_margin import AdaptiveMargin
from adaptive_margin import functional as F
from adaptive_margin.training.command_line import check_output, json_with

CONFIDENCE = 0.05


def k_by_loop(x: Tensor, labels: Tensor) -> list[int]:
    """K of every sample, one sample and one neighbour at a time."""
    n, classes = len(x), len(labels.unique())
    sizes = []
    for i in range(n):
        squares = (x - x[i]).square().sum(1)
        squares[i] = math.inf
        own = (labels[squares.argsort()[:-1]] == labels[i]).tolist()
        count, size = 0, n - 1
        for k, is_own in enumerate(own, start=1):
            count += is_own
            if count / k - 1 / classes >= math.sqrt(math.log(n / CONFIDENCE) / (2 * k)):
                size = k
                break
        sizes.append(size)
    return sizes


def margin_by_loop(x: Tensor, labels: Tensor) -> Tensor:
    """The margin with K from the loop; the mutual information takes no loop."""
    k = torch.tensor(k_by_loop(x, labels), dtype=x.dtype)
    eta = F.gaussian_correlation(x[labels == 1], x[labels == 0])
    return F.mutual_information(eta) + F.confidence_term(len(x), 1 / (1 / k).mean(), CONFIDENCE)


def milliseconds(call: Callable[[], object], calls: int) -> float:
    """Median time of a call after a warm-up."""
    call()
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def training_step(rows: int) -> Callable[[], None]:
    """ResNet18 at 224 pixels: forward, backward and an SGD update."""
    network = resnet18(num_classes=128)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    images, targets = torch.randn(rows, 3, 224, 224), torch.arange(rows) % 128

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(network(images), targets).backward()
        optimizer.step()

    return step


@ends_in_order("nothing is written")
@said_plainly()
def main() -> None:
    arguments = parsed()
    check_output("--out", arguments.out, file=True, replaces=json_with("resnet18_step_ms"))
    torch.set_num_threads(arguments.threads)
    margin, sizes = AdaptiveMargin(), {}
    for n in (128, 256, 1024):
        x, labels = batch(n, "two groups", "cpu")
        x = x.detach()
        assert F.empirical_bias_k(x, labels).tolist() == k_by_loop(x, labels)
        torch.testing.assert_close(margin(x, labels), margin_by_loop(x, labels))
        ours = milliseconds(lambda x=x, labels=labels: margin(x, labels), 100)
        loop = milliseconds(lambda x=x, labels=labels: margin_by_loop(x, labels), 3)
        sizes[n] = {"margin_ms": ours, "loop_ms": loop, "times_faster": loop / ours}
        print(f"N = {n:4}: margin {ours:.2f} ms, loop {loop:.1f} ms, {loop / ours:.0f} times", flush=True)
    step = milliseconds(training_step(128), 2)
    share = sizes[128]["margin_ms"] / step
    print(f"ResNet18 step of 128 images: {step:.0f} ms; the margin is {100 * share:.3f}% of it")
    result = {"sizes": sizes, "resnet18_step_ms": step, "margin_share_of_step": share, **about(arguments.threads)}
    write_results(arguments.out, result)


if __name__ == "__main__":
    main()
