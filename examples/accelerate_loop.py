"""Hugging Face Accelerate: one margin for all processes, and its statistics in Accelerate's trackers.

Gather embeddings and labels before computing the loss. ``DistributedLossWrapper`` does this, and its gradients are
right where ``accelerator.prepare`` averages them. ``accelerator.gather`` is no substitute: it passes no gradient on.
Without gathering, each process has the margin of its own rows, and no pairs with those of the others.

    accelerate launch --num_processes 2 --cpu examples/accelerate_loop.py    # as python examples/accelerate_loop.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adaptive_margin import AdaptiveMarginLoss, MarginRecorder


def main(epochs: int = 4, out: str | Path = "runs/accelerate") -> tuple[Tensor, list[float]]:
    """Returns the trained weights, and the margin of each step as this process saw it."""
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=out)
    accelerator.init_trackers("margin")
    torch.manual_seed(0)
    labels = torch.randint(8, (640,))
    data = TensorDataset(torch.randn(8, 16)[labels] + torch.randn(640, 16), labels)
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    network, optimizer, loader = accelerator.prepare(
        network,
        torch.optim.SGD(network.parameters(), lr=0.5),
        DataLoader(data, 64 // accelerator.num_processes),  # in random order already
    )
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss(), collect_stats=True).to(accelerator.device)
    gathered = DistributedLossWrapper(loss) if accelerator.num_processes > 1 else loss
    recorder = MarginRecorder()
    for _ in range(epochs):
        for x, y in loader:
            value = gathered(network(x), y)  # multiplied by the number of processes
            optimizer.zero_grad()
            accelerator.backward(value)
            optimizer.step()
            found = {"loss": value.item() / accelerator.num_processes, **recorder(loss)}
            accelerator.log({f"train/{name}": figure for name, figure in found.items()}, step=len(recorder.rows))
    margins = recorder["alpha"]
    accelerator.print(f"margin {margins[0]:.4f} at the first step, {margins[-1]:.4f} at the last")
    accelerator.end_training()
    return nn.utils.parameters_to_vector(network.parameters()).detach(), margins


if __name__ == "__main__":
    main()
