"""Every loss with its own, a given and an adaptive margin; the same tuning budget for all; competitors by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pytorch_metric_learning import losses
from torch.nn.functional import normalize

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, ContrastiveVDMLoss
from adaptive_margin.dml.competitors import AutoMarginLoss, DynamicSoftMargin
from adaptive_margin.dml.config import PRESETS, SMALL, DMLConfig
from adaptive_margin.dml.objectives import LOSSES, build_objective
from adaptive_margin.dml.results import arm_of
from adaptive_margin.losses.swap import LOSSES as SWAPS
from adaptive_margin.margins.adaptive_margin import NEIGHBOURHOODS

CONFIG = replace(SMALL, embedding_size=8)
LABELS = torch.arange(24) % 6
WITH_MARGIN = [name for name, row in LOSSES.items() if row.default is not None]


def batch(seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(24, 8, generator=torch.Generator().manual_seed(seed)), dim=1).requires_grad_()


def value_and_gradient(config: DMLConfig, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    objective = build_objective(config, 6)
    torch.manual_seed(1)
    value = objective(embeddings, LABELS)
    return value, torch.autograd.grad(value, embeddings)[0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("margin", ["default", "adaptive"])
def test_every_loss_trains(loss: str, margin: str) -> None:
    if margin == "adaptive" and loss not in WITH_MARGIN:
        with pytest.raises(ValueError, match=f"margin must be 'default' for {loss}"):
            build_objective(replace(CONFIG, loss=loss, margin="adaptive"), 6)
        return
    value, gradient = value_and_gradient(replace(CONFIG, loss=loss, margin=margin), batch())
    assert torch.isfinite(value)
    assert gradient.abs().sum() > 0 or loss == "auto-margin"  # its margins are 0 and 1 in the first epoch


@pytest.mark.parametrize("loss", WITH_MARGIN)
def test_the_default_is_the_margin_in_the_table(loss: str) -> None:
    own, given = (
        value_and_gradient(replace(CONFIG, loss=loss, margin=margin), batch())
        for margin in ("default", LOSSES[loss].default)
    )
    torch.testing.assert_close(own, given, rtol=0, atol=0)


@pytest.mark.parametrize("loss", WITH_MARGIN)
def test_another_margin_is_another_loss(loss: str) -> None:
    values = {
        float(value_and_gradient(replace(CONFIG, loss=loss, margin=margin), batch())[0].detach())
        for margin in (LOSSES[loss].candidates[0], LOSSES[loss].candidates[-1])
    }
    assert len(values) == 2


def test_every_loss_has_the_same_tuning_budget_and_its_default_in_reach() -> None:
    for name in WITH_MARGIN:
        row = LOSSES[name]
        assert len(set(row.candidates)) == 8
        assert row.default in row.candidates


@pytest.mark.parametrize(
    ("loss", "stock"),
    [
        ("contrastive", losses.ContrastiveLoss(neg_margin=1.0)),
        ("lifted", losses.LiftedStructureLoss(neg_margin=1)),
        ("vdm", ContrastiveVDMLoss(1.0)),
    ],
)
def test_plain_losses_are_the_hosts(loss: str, stock: torch.nn.Module) -> None:
    embeddings = batch()
    value, _ = value_and_gradient(replace(CONFIG, loss=loss), embeddings)
    rounding = 1e-6 if loss == "lifted" else 0  # its sums are taken in another order
    torch.testing.assert_close(value, stock(embeddings, LABELS), rtol=rounding, atol=0)


def adaptive_margin_of(objective: torch.nn.Module) -> AdaptiveMargin:
    return next(module for module in objective.modules() if isinstance(module, AdaptiveMargin))


def test_the_default_rule_leads() -> None:
    for loss in WITH_MARGIN:
        rule = "attainable" if loss == "multi-similarity" else "remaining"  # its one threshold must not relax
        config = replace(CONFIG, loss=loss, margin="adaptive")
        found, said = (value_and_gradient(each, batch()) for each in (config, replace(config, neighbourhood=rule)))
        torch.testing.assert_close(found, said, rtol=0, atol=0)
        assert type(adaptive_margin_of(build_objective(config, 6)).neighbourhood) is NEIGHBOURHOODS["auto"]
        asked = build_objective(replace(config, neighbourhood="released"), 6)
        assert type(adaptive_margin_of(asked).neighbourhood) is NEIGHBOURHOODS["released"]
        assert arm_of(vars(config)) == "auto"
        assert arm_of(vars(replace(config, neighbourhood="released"))) == "released"


def test_hosts_in_the_table_are_what_is_built() -> None:
    for loss, row in LOSSES.items():
        built = build_objective(replace(CONFIG, loss=loss), 6).loss
        names = {kind.__name__ for kind in type(built).__mro__}
        assert row.host in names if row.host else not names & set(SWAPS)


def test_statistics_are_what_the_loss_saw() -> None:
    for loss in WITH_MARGIN:
        objective = build_objective(replace(CONFIG, loss=loss, margin="adaptive", neighbourhood="hoeffding"), 6)
        objective.record(True)
        objective(batch(), LABELS)
        found = objective.statistics()
        assert found["mi"] + found["delta"] > 0
        if isinstance(objective.loss, AdaptiveMarginLoss):
            assert found["margin"] == objective.loss.current_margin
    assert build_objective(replace(CONFIG, loss="contrastive", margin=0.3), 6).statistics() == {"margin": 0.3}
    assert build_objective(replace(CONFIG, learn_beta=True), 6).statistics()["beta"] == pytest.approx(1.2)


@pytest.mark.filterwarnings("error")
def test_a_default_that_an_adaptive_margin_replaces_is_no_warning() -> None:
    for loss in WITH_MARGIN:
        build_objective(replace(CONFIG, loss=loss, margin="adaptive"), 6)


@pytest.mark.parametrize("granularity", ["anchor", "pair"])
def test_granularity_goes_where_the_loss_takes_it(granularity: str) -> None:
    for loss in ("contrastive", "triplet-distance", "margin", "vdm"):
        value_and_gradient(replace(CONFIG, loss=loss, margin="adaptive", granularity=granularity), batch())
    with pytest.raises(ValueError, match=r"margin\.granularity must be 'batch'"):
        build_objective(replace(CONFIG, loss="proxy-anchor", margin="adaptive", granularity=granularity), 6)


def test_auto_margin_by_hand() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    loss = AutoMarginLoss(epoch=1).double()
    # triplets (0, 1, 2) and (1, 0, 2): positives 0.6, negatives 0 and 0.8, gaps 0.6 and -0.2; margins still 0 and 1
    assert float(loss(embeddings, labels)) == pytest.approx(0.2)
    assert loss.margin == pytest.approx(0.2 / 2)
    assert loss.beta == pytest.approx(1 - (1 - 0.4) / 2)
    # now gaps below 0.1: 0.3; negatives above 0.7: 0.1
    assert float(loss(embeddings, labels)) == pytest.approx(0.3 + 0.1)


def test_auto_margin_moves_at_the_end_of_an_epoch_and_survives_a_checkpoint() -> None:
    first, second = AutoMarginLoss(epoch=3), AutoMarginLoss(epoch=3)
    for seed in range(2):
        first(batch(seed), LABELS)
    assert first.beta == 1.0
    second.load_state_dict(first.state_dict())
    first(batch(2), LABELS)
    second(batch(2), LABELS)
    assert first.beta == second.beta < 1
    first.eval()
    before = first.state.clone()
    first(batch(3), LABELS)
    assert torch.equal(first.state, before)


def test_the_dynamic_soft_margin_is_the_hosts_with_a_memory() -> None:
    ours, theirs = DynamicSoftMargin(), losses.DynamicSoftMarginLoss()
    for seed in range(3):
        embeddings = batch(seed)
        torch.testing.assert_close(ours(embeddings, LABELS), theirs(embeddings, LABELS))
    again = DynamicSoftMargin()
    again.load_state_dict(ours.state_dict())
    torch.testing.assert_close(again(batch(9), LABELS), ours(batch(9), LABELS))


def test_presets_are_the_published_numbers() -> None:
    roth, wu, check = (PRESETS[name] for name in ("roth2020", "wu2017", "realitycheck"))
    assert (roth.batch, roth.per_class, roth.learning_rate, roth.weight_decay, roth.loss_rate) == (
        112,
        2,
        1e-5,
        4e-4,
        5e-4,
    )
    assert (roth.epochs, roth.freeze_batch_norm, roth.nonzero_loss_cutoff, roth.backbone) == (
        150,
        True,
        None,
        "resnet50",
    )
    assert (wu.batch, wu.per_class, wu.epochs * wu.steps_per_epoch, wu.halve_at) == (70, 5, 4000, (12, 14, 16, 18))
    assert (wu.learning_rate, wu.backbone_rate, wu.loss_rate, wu.loss_optimizer) == (1e-4, 0.01, 0.1, "sgd")
    assert (check.batch, check.per_class, check.size, check.area, check.folds) == (32, 4, 227, 0.16, 4)
    assert {each.select for each in PRESETS.values()} == {"validation"}


def test_choosing_without_validation_has_to_be_said() -> None:
    with pytest.raises(ValueError, match="select must be"):
        replace(SMALL, validation=0.0)
    assert replace(SMALL, validation=0.0, select="last").select == "last"
