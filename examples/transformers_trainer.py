"""The Trainer of Hugging Face Transformers: one margin for all processes, and its statistics in its logs.

Gather embeddings and labels before computing the loss. ``DistributedLossWrapper`` does this, and its gradients are
right for the trainer, which averages them. Without it, each process has the margin of its own rows. So does each part
of a batch with ``gradient_accumulation_steps``. The logged ``loss`` is multiplied by the number of processes.

    torchrun --nproc-per-node 2 examples/transformers_trainer.py    # as python examples/transformers_trainer.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from adaptive_margin import AdaptiveMarginLoss, MarginRecorder

OPTIMIZER = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0, "use_cpu": True}
LOGGING = {"logging_steps": 5, "save_strategy": "no", "report_to": "none", "remove_unused_columns": False}


class MarginTrainer(Trainer):  # noqa: D101
    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:  # noqa: D102
        gathered = DistributedLossWrapper(self.loss) if self.args.world_size > 1 else self.loss
        value: Tensor = gathered(model(inputs["x"]), inputs["labels"])
        self.recorder(self.loss)
        return value

    def log(self, logs: dict[str, float], *args: Any) -> None:  # noqa: D102
        super().log({**logs, **self.loss.statistics()}, *args)


def main(epochs: int = 4, out: str | Path = "runs/transformers") -> tuple[Tensor, list[float]]:
    """Returns the trained weights, and the margin of each step as this process saw it."""
    torch.manual_seed(0)
    labels = torch.randint(8, (640,))
    x = torch.randn(8, 16)[labels] + torch.randn(640, 16)
    rows = [{"x": row, "labels": int(label)} for row, label in zip(x, labels, strict=True)]
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    own = 64 // int(os.environ.get("WORLD_SIZE", "1"))
    args = TrainingArguments(str(out), per_device_train_batch_size=own, num_train_epochs=epochs, **OPTIMIZER, **LOGGING)
    trainer = MarginTrainer(model=network, args=args, train_dataset=rows)
    trainer.loss = AdaptiveMarginLoss(losses.ContrastiveLoss(), collect_stats=True)
    trainer.recorder = MarginRecorder()
    trainer.train()
    trainer.save_state()  # with what was logged
    return nn.utils.parameters_to_vector(network.parameters()).detach(), trainer.recorder["alpha"]


if __name__ == "__main__":
    main()
