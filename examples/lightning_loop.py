"""Lightning: one margin for all processes, and its statistics in Lightning's loggers.

Gather embeddings and labels before computing the loss. ``DistributedLossWrapper`` does this, and its gradients are
right for the strategy ``ddp``, which averages them. Without it, each process has the margin and pairs of its own rows.

    python examples/lightning_loop.py 2    # processes; the same weights as with 1
"""

from __future__ import annotations

import sys

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from adaptive_margin import AdaptiveMarginLoss, MarginRecorder


class Embedder(lightning.LightningModule):  # noqa: D101
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
        self.loss: nn.Module = AdaptiveMarginLoss(losses.ContrastiveLoss(), collect_stats=True)
        self.recorder = MarginRecorder()

    def setup(self, stage: str) -> None:  # noqa: D102
        if self.trainer.world_size > 1:
            self.loss = DistributedLossWrapper(self.loss)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:  # noqa: D102
        value: Tensor = self.loss(self.network(batch[0]), batch[1])  # multiplied by the number of processes
        self.log_dict({"loss": value / self.trainer.world_size, **self.recorder(self.loss)})
        return value

    def configure_optimizers(self) -> torch.optim.Optimizer:  # noqa: D102
        return torch.optim.SGD(self.parameters(), lr=0.5)


def main(epochs: int = 4, devices: int = 1, out: str = "runs/lightning") -> tuple[Tensor, list[float]]:
    """Returns the trained weights, and the margin of each step as this process saw it."""
    torch.manual_seed(0)
    labels = torch.randint(8, (640,))
    data = TensorDataset(torch.randn(8, 16)[labels] + torch.randn(640, 16), labels)
    how = {"accelerator": "cpu", "devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
    model = Embedder()
    trainer = lightning.Trainer(**how, max_epochs=epochs, logger=CSVLogger(out), log_every_n_steps=1)
    sampler = DistributedSampler(data, 1, 0) if devices == 1 else None  # Lightning's own order in several processes
    trainer.fit(model, DataLoader(data, 64 // devices, sampler=sampler))
    return nn.utils.parameters_to_vector(model.parameters()).detach(), model.recorder["alpha"]


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else "1"
    main(devices=int(given)) if given in {"1", "2", "4", "8"} else sys.exit("processes must be 1, 2, 4 or 8")
