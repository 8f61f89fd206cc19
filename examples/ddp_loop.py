"""Plain DistributedDataParallel: one margin for all processes, that of the global batch.

The margin and the pairs are of whatever rows the loss is given. ``DistributedLossWrapper`` of pytorch-metric-learning
gathers embeddings and labels of all processes first: the margin is the same everywhere, and the network learns as in
one process with the whole batch. Without it (``--ungathered``) nothing fails, but each process has the margin of its
own rows, and no pairs with those of the others: a smaller batch, with averaged gradients.

    torchrun --nproc-per-node 2 examples/ddp_loop.py    # the same weights as python examples/ddp_loop.py
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from adaptive_margin import AdaptiveMarginLoss, MarginRecorder

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29531"}


def main(epochs: int = 4, gather: bool = True) -> tuple[Tensor, list[float]]:
    """Returns the trained weights, and the margin of each step as this process saw it."""
    os.environ.update({name: value for name, value in ALONE.items() if name not in os.environ})
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    torch.manual_seed(0)
    labels = torch.randint(8, (640,))
    data = TensorDataset(torch.randn(8, 16)[labels] + torch.randn(640, 16), labels)
    sampler: DistributedSampler[TensorDataset] = DistributedSampler(data, seed=0)
    loader = DataLoader(data, 64 // dist.get_world_size(), sampler=sampler)
    network = DistributedDataParallel(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8)))
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss(), collect_stats=True)
    gathered = DistributedLossWrapper(loss) if gather else loss
    optimizer, recorder = torch.optim.SGD(network.parameters(), lr=0.5), MarginRecorder()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for x, y in loader:
            value = gathered(network(x), y)  # multiplied by the number of processes: DDP averages gradients
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            recorder(loss)
    margins = recorder["alpha"]
    print(f"process {dist.get_rank()}: margin {margins[0]:.4f} at the first step, {margins[-1]:.4f} at the last")
    dist.destroy_process_group()
    return nn.utils.parameters_to_vector(network.parameters()).detach(), margins


if __name__ == "__main__":
    main(gather="--ungathered" not in sys.argv)
