"""The harness against what anyone would write by hand: a loop, a stock loss, an optimiser, the host's calculator.

Shared are the images of each step, their augmentation and the first weights; everything else is written again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch.nn.functional import normalize
from torch.testing import assert_close

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss
from adaptive_margin.dml.config import SMALL, DMLConfig
from adaptive_margin.dml.embedded import digits
from adaptive_margin.dml.labelled_images import split_classes
from adaptive_margin.dml.trainer import DMLJob, _number, load_embeddings, run
from adaptive_margin.miners import TiledDistanceWeightedMiner
from adaptive_margin.training import World

STEPS = 30
Loss = Callable[[int], torch.nn.Module]

CASES: dict[str, tuple[dict[str, object], Loss, object]] = {
    "contrastive": ({}, lambda classes: losses.ContrastiveLoss(pos_margin=0, neg_margin=1), None),
    "triplet-semihard": (
        {},
        lambda classes: losses.TripletMarginLoss(margin=0.2),
        miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard"),
    ),
    "multi-similarity": (
        {"margin": 0.4},
        lambda classes: losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.4),
        miners.MultiSimilarityMiner(epsilon=0.1),
    ),
    "proxy-anchor": (
        {"loss_rate": 0.02},
        lambda classes: losses.ProxyAnchorLoss(classes, 64, margin=0.1, alpha=32),
        None,
    ),
    "margin": (  # weight decay and sampling as Roth et al. have them
        {"learn_beta": True, "loss_rate": 0.05, "weight_decay": 4e-4, "triplets_per_anchor": 1}
        | {"nonzero_loss_cutoff": None, "schedule": "constant"},
        lambda classes: losses.MarginLoss(margin=0.2, beta=1.2, learn_beta=True, num_classes=classes),
        TiledDistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=None, triplets_per_anchor=1),
    ),
    "margin, boundaries by SGD": (
        {"learn_beta": True, "loss_rate": 0.05, "loss_optimizer": "sgd", "margin": "adaptive"},
        lambda classes: AdaptiveMarginLoss(
            losses.MarginLoss(margin=0.2, beta=1.2, learn_beta=True, num_classes=classes),
            AdaptiveMargin(),
        ),
        TiledDistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_harness_is_a_plain_loop(tmp_path: Path, case: str) -> None:
    torch.set_num_threads(1)
    options, build_loss, miner = CASES[case]
    config = replace(
        SMALL, loss=case.partition(",")[0], out=tmp_path, classes=16, epochs=3, steps_per_epoch=10, **options
    )  # type: ignore[arg-type]
    config = replace(config, select="last", clustering=False)
    result = run(config, digits())
    embeddings, labels = by_hand(config, build_loss, miner)
    kept, kept_labels = load_embeddings(tmp_path)
    assert torch.equal(kept_labels, labels)
    assert_close(kept, embeddings, rtol=0, atol=1e-3)  # kept in half precision
    host = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"), k="max_bin_count"
    ).get_accuracy(embeddings, labels)
    assert result["test"]["recall_at_1"] == pytest.approx(host["precision_at_1"], abs=3e-3)  # two or three queries
    assert result["test"]["r_precision"] == pytest.approx(host["r_precision"], abs=1e-3)
    assert result["test"]["mean_average_precision_at_r"] == pytest.approx(host["mean_average_precision_at_r"], abs=1e-3)


def by_hand(config: DMLConfig, build_loss: Loss, miner: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Test embeddings and classes after the run's steps."""
    data = digits()
    assert data.pixels is not None
    split = split_classes(data, validation=config.validation, seed=config.seed)
    job = DMLJob(config, data, data.pixels, split, World())  # first weights and batches, nothing else
    net, classes = copy.deepcopy(job.network), data.labels[split.train]
    names = {name: number for number, name in enumerate(sorted(set(classes.tolist())))}
    loss_function = build_loss(len(names))
    with torch.no_grad():
        for own, first in zip(loss_function.parameters(), job.objective.parameters(), strict=True):
            own.copy_(first)
    extra = list(loss_function.parameters())
    weights = [{"params": net.parameters(), "weight_decay": config.weight_decay, "lr": config.learning_rate}]
    by_sgd = config.loss_optimizer == "sgd"
    adam = torch.optim.Adam(weights + ([] if by_sgd or not extra else [{"params": extra, "lr": config.loss_rate}]))
    optimizers = [adam, torch.optim.SGD(extra, lr=config.loss_rate, momentum=0.9)] if by_sgd else [adam]
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    net.train()
    for step in range(STEPS):
        images, rows = job._batch(step)
        targets = torch.tensor([names[name] for name in classes[rows].tolist()])
        torch.manual_seed(_number(config.seed, step))
        cosine = (1 + math.cos(math.pi * step / STEPS)) / 2
        for optimizer, first_rates in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, first_rates, strict=True):
                group["lr"] = rate * cosine if config.schedule == "cosine" else rate
            optimizer.zero_grad()
        z = normalize(net.embedding(net.features(images)))
        chosen = None if miner is None else miner(z.detach(), targets)  # type: ignore[operator]
        loss_function(z, targets, chosen).backward()
        for optimizer in optimizers:
            optimizer.step()
    net.eval()
    with torch.no_grad():
        middle = torch.from_numpy(data.pixels[split.test][:, 2:18, 2:18]).permute(0, 3, 1, 2).float() / 127.5 - 1
        return normalize(net.embedding(net.features(middle))), torch.from_numpy(data.labels[split.test])
