"""The examples of hosts other than pytorch-metric-learning run, and do what they show."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses
from torch import Tensor
from torch.nn.functional import normalize, pairwise_distance

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, ConstantMargin, LinearMargin

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.mark.parametrize(
    ("name", "settings", "variants", "says"),
    [
        (
            "plain_torch_loop",
            {"steps": 30, "seeds": 1},
            ["margin 0.1", "margin 0.4", "margin 1.6", "adaptive"],
            "Recall@1 on 32 unseen classes, mean ± sd of 1 seeds",
        ),
        (
            "embedding_triplets",
            {"steps": 60, "seeds": 1},
            ["margin 0.05", "margin 0.2", "margin 0.8", "adaptive", "one a triplet", "adaptive, released rule"],
            "Accuracy on new triplets, mean ± sd of 1 seeds",
        ),
        (
            "open_metric_learning",
            {"steps": 20, "seeds": 1},
            ["margin 0.1", "margin 0.2", "margin 0.5", "adaptive"],
            "CMC@1 on 32 unseen classes, mean ± sd of 1 seeds",
        ),
    ],
)
def test_an_example_trains_and_prints_what_it_measured(
    name: str, settings: dict[str, int], variants: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = load(name)["main"](**settings)
    assert list(results) == ["no training", *variants]
    printed = capsys.readouterr().out
    assert says in printed
    (untrained,) = results["no training"]
    for variant in variants:
        (figure,) = results[variant]
        assert figure > untrained + 0.03, f"{variant} did not learn"
        assert f"{figure:.3f} ± 0.000" in printed
    told = [line for line in printed.splitlines() if "at the first step" in line][-1]  # of the adaptive margin
    first, last = re.search(r"(\d\.\d+) at the first step, (\d\.\d+) at the last", told).groups()  # type: ignore[union-attr]
    assert first != last, "the margin did not move"


def test_the_oml_criterion_has_the_margin_of_the_batch_and_then_its_own() -> None:
    example = load("open_metric_learning")
    features, labels = normalize(torch.randn(24, 8)), torch.arange(24) % 4
    criterion = example["TripletLossWithMiner"](margin=0.2)
    same = labels[:, None] == labels
    gaps = [
        pairwise_distance(features[a : a + 1], features[p : p + 1])
        - pairwise_distance(features[a : a + 1], features[n : n + 1])
        for a in range(24)
        for p in range(24)
        for n in range(24)
        if a != p and same[a, p] and not same[a, n]
    ]
    gap = AdaptiveMargin()(features, labels) / 4
    adaptive = example["WithAdaptiveMargin"](criterion)
    expected = torch.relu(torch.cat(gaps) + gap).mean()
    for given in (labels, labels.tolist()):  # OML takes either
        torch.testing.assert_close(adaptive(features, given), expected)
    torch.testing.assert_close(criterion(features, labels), torch.relu(torch.cat(gaps) + 0.2).mean())

    for own in (ConstantMargin(0.2), LinearMargin(0.2)):  # in OML's unit, as OML would take it
        value = example["WithAdaptiveMargin"](example["TripletLossWithMiner"](margin=0.7), own)(features, labels)
        torch.testing.assert_close(value, torch.relu(torch.cat(gaps) + 0.2).mean())
    with pytest.raises(ValueError, match="margin must be a number, got None; the soft triplet loss has no margin"):
        example["WithAdaptiveMargin"](example["TripletLossWithMiner"](margin=None))

    class Failing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tri_loss = example["TripletLoss"](0.2)

        def forward(self, features: Tensor, labels: Tensor) -> Tensor:
            assert self.tri_loss.margin == pytest.approx(gap.item())
            raise KeyboardInterrupt

    failing = Failing()
    with pytest.raises(KeyboardInterrupt):
        example["WithAdaptiveMargin"](failing)(features, labels)
    assert failing.tri_loss.margin == 0.2


# With the real libraries: the extra `hosts`


@pytest.mark.hosts
def test_the_oml_criterion_in_open_metric_learning() -> None:
    pytest.importorskip("oml")
    from oml.losses.triplet import TripletLossWithMiner
    from oml.miners.inbatch_all_tri import AllTripletsMiner
    from oml.miners.inbatch_hard_tri import HardTripletsMiner

    example = load("open_metric_learning")
    wrap = example["WithAdaptiveMargin"]
    features, labels = normalize(torch.randn(24, 8)), torch.arange(24) % 4
    gap = AdaptiveMargin()(features, labels).item() / 4
    for miner in (AllTripletsMiner(), HardTripletsMiner()):
        criterion = TripletLossWithMiner(margin=0.3, miner=miner)
        for margin, number in ((None, gap), (ConstantMargin(0.2), 0.2), (LinearMargin(0.2), 0.2)):
            expected = TripletLossWithMiner(margin=number, miner=miner)(features, labels)
            torch.testing.assert_close(wrap(criterion, margin)(features, labels), expected)
            torch.testing.assert_close(wrap(criterion, margin)(features, labels.tolist()), expected)
        assert criterion.tri_loss.margin == 0.3
    ours = example["TripletLossWithMiner"](margin=0.3)(features, labels)  # the stand-in is true to it
    torch.testing.assert_close(ours, TripletLossWithMiner(margin=0.3, miner=AllTripletsMiner())(features, labels))
    with pytest.raises(ValueError, match="the soft triplet loss has no margin"):
        wrap(TripletLossWithMiner(margin=None))


@pytest.mark.hosts
def test_a_loss_with_weights_in_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = torch.nn.Linear(8, 8)
            self.loss = AdaptiveMarginLoss(losses.ArcFaceLoss(4, 8), LinearMargin(20, 1), collect_stats=True)

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            value: Tensor = self.loss(self.network(batch[0]), batch[1])
            self.log("margin", self.loss.current_margin)
            return value

        def on_train_epoch_end(self) -> None:
            self.loss.margin.step_epoch()  # type: ignore[operator]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = torch.utils.data.TensorDataset(torch.randn(32, 8), torch.arange(32) % 4)
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    model = Model()
    before = model.loss.W.detach().clone()
    trainer = lightning.Trainer(max_epochs=2, enable_checkpointing=False, **options)
    trainer.fit(model, loader)
    assert not torch.equal(model.loss.W, before)
    assert trainer.callback_metrics["margin"].item() == pytest.approx(torch.deg2rad(torch.tensor(21.0)).item())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = Model.load_from_checkpoint(tmp_path / "model.ckpt")
    assert again.loss.margin.epoch == 2
    assert torch.equal(again.loss.W, model.loss.W)


@pytest.mark.parametrize("number", ["0", "-1", "1000000000"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("continuous_targets", ["--samples", "--steps", "--seeds"]),
        ("embedding_triplets", ["--triplets", "--steps", "--seeds"]),
        ("margin_curve", ["--steps", "--seeds"]),
        ("open_metric_learning", ["--classes", "--steps", "--seeds"]),
        ("plain_torch_loop", ["--classes", "--steps", "--seeds"]),
        ("sentence_transformers_text", ["--steps"]),
    ],
)
def test_numbers_out_of_range_are_said_at_once(
    name: str, options: list[str], number: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in options:
        monkeypatch.setattr(sys, "argv", [name, option, number])
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        last = capsys.readouterr().err.splitlines()[-1]
        assert re.fullmatch(rf".*: error: {option} must be from \d+ to \d+, got {number}", last)


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("margin_curve", ["--out", "file"], "--out must be a folder"),
        ("draw_faces", ["file"], "FOLDER must be a folder"),
        ("predict_drawn", ["run", "none/a.png"], "output must be a file in a folder that exists"),
        ("predict_drawn", ["none"], "which does not exist"),
        pytest.param("lightning_loop", ["0"], "processes must be 1, 2, 4 or 8", marks=pytest.mark.hosts),
    ],
)
def test_other_mistakes_are_one_line(
    name: str,
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name == "lightning_loop":
        pytest.importorskip("lightning")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert says in capsys.readouterr().err + str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"
