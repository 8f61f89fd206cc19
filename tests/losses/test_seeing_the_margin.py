"""One switch records the margin; print says what becomes of the host's own; one that was set in vain is a warning."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners
from pytorch_metric_learning.utils import common_functions as c_f

from adaptive_margin import (
    AdaptiveMargin,
    AdaptiveMarginLoss,
    AdaptiveMarginMiner,
    AttainableRule,
    ConstantMargin,
    ContrastiveVDMLoss,
    LinearMargin,
    Margin,
)

from .cases import HOSTS, batch

PARTS = ("alpha", "mi", "eta", "delta", "k")
TAKERS: dict[str, Any] = {
    "loss": lambda *args, **kwargs: AdaptiveMarginLoss(losses.ContrastiveLoss(), *args, **kwargs),
    "alpha of its own": lambda *args, **kwargs: AdaptiveMarginLoss(losses.MultiSimilarityLoss(), *args, **kwargs),
    "vdm": lambda *args, **kwargs: ContrastiveVDMLoss(*args, **kwargs),
    "miner": lambda *args, **kwargs: AdaptiveMarginMiner(miners.PairMarginMiner(), *args, **kwargs),
}


def warned(build: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build()
    return [str(each.message) for each in caught]


# --- one switch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taker", TAKERS)
def test_one_switch_reaches_the_margin(taker: str) -> None:
    module = TAKERS[taker](collect_stats=True)
    assert module.margin.collect_stats is True
    module(*batch())
    found = module.statistics()
    assert set(found) >= {*PARTS, "current_margin"}
    for name in PARTS:
        assert found[name] == getattr(module, name) == pytest.approx(getattr(module.margin, name), rel=1e-6)
    assert module.alpha == pytest.approx(module.mi + module.delta)
    assert module.alpha > 0


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("name", [*PARTS, "current_margin"])
def test_without_it_each_statistic_says_how_to_get_it(taker: str, name: str) -> None:
    module = TAKERS[taker]()
    module(*batch())
    said = f"collect_stats must be True to read {name}, got False; pass collect_stats=True to {type(module).__name__}"
    with pytest.raises(AttributeError, match=said):
        getattr(module, name)
    assert not hasattr(module, name)
    for other in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        with pytest.raises(AttributeError, match=said):
            getattr(other, name)
    with pytest.raises(AttributeError, match="collect_stats must be True"):
        module.statistics()


@pytest.mark.parametrize("taker", TAKERS)
def test_the_switch_works_at_any_time(taker: str) -> None:
    module = TAKERS[taker]()
    module.collect_stats = True
    assert module.margin.collect_stats is True
    assert "current_margin" in module._record_these_stats  # where the host's hooks look
    module(*batch())
    assert module.mi + module.delta > 0
    module.margin = AdaptiveMargin(neighbourhood="attainable")  # another margin collects, too
    module(*batch())
    assert module.k == module.margin.k > 0
    module.collect_stats = False
    assert module.margin.collect_stats is False
    assert "current_margin" not in module._record_these_stats
    assert not hasattr(module, "current_margin")


@pytest.mark.parametrize("taker", TAKERS)
def test_a_margin_that_collects_by_itself_goes_on(taker: str) -> None:
    module = TAKERS[taker](AdaptiveMargin(collect_stats=True))
    assert module.margin.collect_stats is True
    module(*batch())
    assert module.mi == module.margin.mi
    assert not hasattr(module, "current_margin")  # its own switch is off


def test_the_hosts_switch_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_f, "COLLECT_STATS", True)
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss())
    loss(*batch())
    assert loss.current_margin == pytest.approx(loss.alpha / 4)


def test_a_constant_has_its_margin_and_no_parts() -> None:
    loss = AdaptiveMarginLoss(losses.MultiSimilarityLoss(alpha=3), 0.4, collect_stats=True)
    loss(*batch())
    assert loss.statistics() == {"current_margin": 0.4, "in_tiles": 0.0}
    assert loss.alpha == 3  # the host's own
    with pytest.raises(AttributeError, match="no attribute 'mi'"):
        loss.mi  # noqa: B018


def test_what_a_margin_of_the_callers_own_has_is_read_through_the_loss() -> None:
    class Own(Margin):
        alpha = 0.25
        recorded = ("seen",)

        def forward(self, embeddings: torch.Tensor, *_: Any) -> torch.Tensor:
            self.seen = float(len(embeddings))
            return embeddings.new_full((), 0.25)

    loss = AdaptiveMarginLoss(losses.ContrastiveLoss(), Own(), collect_stats=True)
    loss(*batch(12))
    assert loss.alpha == 0.25
    assert loss.seen == loss.statistics()["seen"] == 12


def test_recording_changes_no_value() -> None:
    for build in (TAKERS["loss"], TAKERS["vdm"], TAKERS["alpha of its own"]):
        assert torch.equal(build()(*batch()), build(collect_stats=True)(*batch()))


# --- print --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (
            lambda: AdaptiveMarginLoss(losses.TripletMarginLoss()),
            "TripletMarginLoss.margin, units='geometry' ('sqrt' with two labels), a gap in distance\n"
            "its own margin=0.05 is not used",
        ),
        (
            lambda: AdaptiveMarginLoss(losses.ContrastiveLoss()),
            "ContrastiveLoss.neg_margin, units='geometry' ('offset' with two labels), a threshold in distance\n"
            "its own neg_margin=1 is used with two labels only",
        ),
        (
            lambda: AdaptiveMarginLoss(losses.ContrastiveLoss(), AdaptiveMargin(neighbourhood=AttainableRule())),
            "ContrastiveLoss.neg_margin, units='geometry', a threshold in distance\nits own neg_margin=1 is not used",
        ),
        (
            lambda: AdaptiveMarginLoss(losses.MultiSimilarityLoss(), units="offset"),
            "MultiSimilarityLoss.base, units='offset', a threshold in similarity\nits own base=0.5 is added to it",
        ),
        (
            lambda: AdaptiveMarginLoss(losses.ArcFaceLoss(4, 8), 20),
            "ArcFaceLoss.margin, units='replace', a gap in angle\nits own margin=28.6° is not used",
        ),
        (
            lambda: AdaptiveMarginLoss(losses.ContrastiveLoss(distance=distances.LpDistance(power=3))),
            "ContrastiveLoss.neg_margin, units='geometry', a threshold in power of a distance\n"
            "its own neg_margin=1 is not used",
        ),
        (
            lambda: AdaptiveMarginMiner(miners.MultiSimilarityMiner(), 0.2),
            "MultiSimilarityMiner.epsilon, units='replace', a gap in similarity\nits own epsilon=0.1 is not used",
        ),
        (ContrastiveVDMLoss, "margin: a threshold in squared distance\nrepulsion=1.0"),
        (
            lambda: ContrastiveVDMLoss(distance=distances.CosineSimilarity()),
            "margin: a threshold in squared distance, 2 - 2s\nrepulsion=1.0",
        ),
        (lambda: ContrastiveVDMLoss(distance=distances.LpDistance()), "margin: a threshold in distance\nrepulsion=1.0"),
    ],
)
def test_what_is_printed_says_unit_and_what_becomes_of_the_own_margin(module: Any, says: str) -> None:
    built = module()
    assert built.extra_repr().startswith(says)
    assert says.replace("\n", "\n  ") in repr(built)
    assert "(margin): " in repr(built)


# --- a setting without effect -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTS)
def test_a_default_is_never_a_warning(name: str) -> None:
    host = HOSTS[name]
    for margin in (None, 0.3, AdaptiveMargin(neighbourhood="attainable"), LinearMargin()):
        assert warned(lambda margin=margin: AdaptiveMarginLoss(host.build(), margin)) == []


@pytest.mark.parametrize("name", [name for name in HOSTS if name != "RankedListLoss"])  # which has no default
def test_a_margin_that_was_set_in_vain_is_a_warning(name: str) -> None:
    host, number = HOSTS[name], HOSTS[name].numbers[-1]
    (said,) = warned(lambda: AdaptiveMarginLoss(host.build(margin=number), AdaptiveMargin(neighbourhood="attainable")))
    assert said.startswith(f"{name}: its {host.attribute}={number:g} is not used, because AdaptiveMargin takes its")
    assert f"leave it out, or pass margin={number:g} for that constant, or units='offset' to add" in said
    assert warned(lambda: AdaptiveMarginLoss(host.build(margin=number), number)) == []  # the same number twice
    assert warned(lambda: AdaptiveMarginLoss(host.build(margin=number), units="offset")) == []
    assert len(warned(lambda: AdaptiveMarginLoss(host.build(margin=number), ConstantMargin(number / 2 + 0.01)))) == 1


def test_a_threshold_is_used_with_two_labels() -> None:
    (said,) = warned(lambda: AdaptiveMarginLoss(losses.ContrastiveLoss(neg_margin=0.5)))
    assert said.startswith("ContrastiveLoss: its neg_margin=0.5 is used with two labels only, because AdaptiveMargin")


def test_it_is_said_once_where_the_loss_is_built_and_not_by_copies() -> None:
    with pytest.warns(UserWarning, match="margin=0.3 is not used") as caught:
        loss = AdaptiveMarginLoss(losses.TripletMarginLoss(margin=0.3))
    assert caught[0].filename == __file__

    def later() -> None:
        loss(*batch())
        copy.deepcopy(loss)(*batch())
        pickle.loads(pickle.dumps(loss))

    assert warned(later) == []
    with pytest.warns(UserWarning, match=r"TripletMarginMiner: its margin=0\.3 is not used"):
        AdaptiveMarginMiner(miners.TripletMarginMiner(margin=0.3))


def test_a_module_of_any_name_is_told() -> None:
    """Plugins of their own can be called what they like."""
    code = "from adaptive_margin import AdaptiveMarginLoss\nloss = AdaptiveMarginLoss(host)"
    for name in ("adaptive_margin.of_mine", "adaptive_margin_of_mine", "__main__"):
        space = {"__name__": name, "host": losses.TripletMarginLoss(margin=0.3)}
        assert len(warned(lambda space=space: exec(code, space))) == 1


def test_a_subclass_has_the_defaults_of_its_own() -> None:
    class Wider(losses.TripletMarginLoss):
        def __init__(self, margin: float = 0.3, **kwargs: Any) -> None:
            super().__init__(margin=margin, **kwargs)

    class Plain(losses.TripletMarginLoss):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    class Fixed(losses.TripletMarginLoss):
        def __init__(self) -> None:
            super().__init__(margin=0.4)

    assert warned(lambda: AdaptiveMarginLoss(Wider())) == warned(lambda: AdaptiveMarginLoss(Fixed())) == []
    assert warned(lambda: AdaptiveMarginLoss(Plain())) == []
    assert len(warned(lambda: AdaptiveMarginLoss(Wider(0.05)))) == 1
    assert len(warned(lambda: AdaptiveMarginLoss(Plain(margin=0.3)))) == 1


def test_the_message_is_followed() -> None:
    for right in (
        lambda: AdaptiveMarginLoss(losses.TripletMarginLoss()),
        lambda: AdaptiveMarginLoss(losses.TripletMarginLoss(), margin=0.3),
        lambda: AdaptiveMarginLoss(losses.TripletMarginLoss(margin=0.3), units="offset"),
    ):
        assert warned(right) == []
