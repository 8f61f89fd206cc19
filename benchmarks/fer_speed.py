"""The cost of a CAF iteration compared with a plain regression iteration, and of the critic's own arithmetic.

    python benchmarks/fer_speed.py [--encoder resnet18] [--batch-size 128] [--size 224] [--device cuda] [--json FILE]

Same networks, same batch, same device; rounds alternate between the arms, and the median is reported. A third of the
images is weak, about as many as among drawn faces. Aims: 2.3 times the plain iteration for ``order="paper"``, 1.2 times
for ``"joint"``; grouping, margin and critic loss 5% of a plain iteration.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from script import Parser, write_results

from adaptive_margin.emotion.config import PAPER
from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import ends_in_order


def parsed() -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("--encoder", default=PAPER.encoder)
    parser.add_argument("--batch-size", type=int, default=PAPER.batch_size)
    parser.add_argument("--size", type=int, default=PAPER.size, help="side of the images, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", help="cuda if available")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import torch

from adaptive_margin.emotion.critics import build_critic, build_grouper
from adaptive_margin.emotion.nets import emotion_net
from adaptive_margin.emotion.steps import Iteration, Optimizers, StepOptions
from adaptive_margin.training import World, environment
from adaptive_margin.training.command_line import check_output, json_with
from adaptive_margin.training.world import device_of


def iteration(critic_name: str, encoder: str, mode: str, device: torch.device) -> Iteration:
    torch.manual_seed(0)
    net = emotion_net(encoder).to(device)
    critic = build_critic(critic_name, net.encoder.features)  # type: ignore[arg-type]
    optimizers = Optimizers(None, None, torch.optim.Adam(net.parameters(), 1e-4))
    if critic is not None:
        critic.to(device)
        adams = [torch.optim.Adam(module.parameters(), 1e-4) for module in (critic, net.encoder)]
        optimizers = dataclasses.replace(optimizers, critic=adams[0], adversarial=adams[1])
    options = StepOptions(weak_batch_norm=mode)  # type: ignore[arg-type]
    return Iteration(net, critic, build_grouper("otsu"), optimizers, options, World(device=device))


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


@ends_in_order("nothing is written")
@said_plainly()
def main() -> None:
    asked = parsed()
    if asked.json:
        check_output("--json", asked.json, file=True, replaces=json_with("weak_share", "ratios"))
    device = device_of(asked.device)
    asked.device = asked.device or device.type
    images = torch.randn(asked.batch_size, 3, asked.size, asked.size, device=device)
    angle = torch.rand(asked.batch_size, device=device) * 6.28
    radius = torch.where(torch.arange(asked.batch_size, device=device) % 3 == 0, 0.1, 0.7)
    labels = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)

    plain = iteration("none", asked.encoder, "weak", device)
    arms: dict[str, Callable[[], Any]] = {"plain": lambda: plain.paper_step(images, labels)}
    for mode in ("weak", "whole", "running"):
        paper = iteration("caf", asked.encoder, mode, device)
        arms[f"paper, {mode}"] = lambda paper=paper: paper.paper_step(images, labels)  # type: ignore[misc]
    joint = iteration("caf", asked.encoder, "whole", device)
    arms["joint"] = lambda: joint.joint_step(images, labels)

    assert joint.critic is not None
    critic, grouper = joint.critic, joint.grouper
    z = torch.randn(asked.batch_size, critic.objective.outputs, device=device, requires_grad=True)
    arms["grouping, margin and critic loss"] = lambda: critic.objective.critic_loss(z, grouper(labels)).backward()

    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(asked.rounds + 1):
        for name, work in arms.items():
            spent = seconds(work, device)
            if number:  # the first round warms up
                times[name].append(spent)
    medians = {name: statistics.median(each) for name, each in times.items()}
    share = float((grouper(labels) == 0).float().mean())
    print(
        f"{asked.encoder}, batch {asked.batch_size}, {asked.size} px, {device}, {share:.0%} weak, {asked.rounds} rounds"
    )
    for name, median in medians.items():
        low, high = min(times[name]), max(times[name])
        print(f"{name:34}{median * 1e3:10.2f} ms [{low * 1e3:.2f}, {high * 1e3:.2f}]{median / medians['plain']:9.3f} ×")
    if asked.json:
        content = {"environment": environment(World(device=device)), "options": vars(asked) | {"json": None}}
        content |= {
            "weak_share": share,
            "seconds": times,
            "ratios": {n: m / medians["plain"] for n, m in medians.items()},
        }
        write_results(asked.json, content)


if __name__ == "__main__":
    main()
