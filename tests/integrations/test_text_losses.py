"""The losses for text models, on features and tensors; the library itself is not needed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor, nn
from torch.nn.functional import normalize

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, ConstantMargin, ContrastiveVDMLoss, LinearMargin
from adaptive_margin.integrations.sentence_transformers import (
    AdaptiveLabelLoss,
    AdaptivePairLoss,
    AdaptiveTripletLoss,
    classes_of_columns,
    text_keys,
)
from tests.training.processes import start_together

ROWS, WIDTH = 12, 8


class Known(nn.Module):
    """A model whose features are the embeddings."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["x"]}


class Words(nn.Module):
    """A model of tokens, with dropout: one text has two embeddings."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words, self.dropout = nn.Embedding(50, WIDTH), nn.Dropout(dropout)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = features["attention_mask"][..., None]
        words = self.dropout(self.words(features["input_ids"]))
        features["token_embeddings"] = words  # as the library's do
        return {"sentence_embedding": (words * mask).sum(1) / mask.sum(1)}


def texts(*rows: list[int]) -> dict[str, Tensor]:
    """Features of texts, padded with token 0."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def test_a_margin_that_was_set_in_vain_is_a_warning_where_the_loss_is_built(recwarn: pytest.WarningsRecorder) -> None:
    AdaptiveTripletLoss(Known(), losses.TripletMarginLoss(margin=0.3))
    (said,) = recwarn
    assert str(said.message).startswith("TripletMarginLoss: its margin=0.3 is not used")
    assert said.filename == __file__
    recwarn.clear()
    for build in (AdaptivePairLoss, AdaptiveTripletLoss, AdaptiveLabelLoss):
        build(Known())
    assert len(recwarn) == 0


def columns(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    x = torch.randn(count, ROWS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [{"x": each.requires_grad_()} for each in x]


def stacked(features: list[dict[str, Tensor]]) -> Tensor:
    return torch.cat([each["x"] for each in features])


def pair_labels(count: int) -> Tensor:
    rows = torch.arange(ROWS)
    return torch.cat([rows, rows, *(rows + (k + 1) * ROWS for k in range(count - 2))])


def listed(negatives: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    first = torch.arange(ROWS).repeat(negatives)
    return first, first + ROWS, torch.arange(2 * ROWS, (2 + negatives) * ROWS)


MARGINS: dict[str, Any] = {
    "default": lambda: None,
    "number": lambda: 0.3,
    "constant": lambda: ConstantMargin(0.4),
    "linear": lambda: LinearMargin(0.2),
    "anchor": lambda: AdaptiveMargin(granularity="anchor"),
    "pair": lambda: AdaptiveMargin(granularity="pair"),
    **{rule: lambda rule=rule: AdaptiveMargin(neighbourhood=rule) for rule in ("attainable", "hoeffding", "released")},
}


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_pairs_are_the_loss_of_all_texts_with_a_class_a_row(margin: str, count: int) -> None:
    features, make = columns(count), MARGINS[margin]
    value = AdaptivePairLoss(Known(), losses.ContrastiveLoss(), make())(features)
    expected = AdaptiveMarginLoss(losses.ContrastiveLoss(), make())(stacked(features), pair_labels(count))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    value.backward()
    assert all(each["x"].grad.isfinite().all() for each in features)  # type: ignore[union-attr]
    assert all(each["x"].grad.any() for each in features[:2])  # type: ignore[union-attr]


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("negatives", [1, 2])
def test_triplets_are_those_that_are_listed(margin: str, negatives: int) -> None:
    features, make = columns(2 + negatives), MARGINS[margin]
    value = AdaptiveTripletLoss(Known(), margin=make())(features)
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(), make())
    expected = loss(stacked(features), pair_labels(2 + negatives), listed(negatives))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    value.backward()
    assert all(each["x"].grad.isfinite().all() and each["x"].grad.any() for each in features)  # type: ignore[union-attr]


@pytest.mark.parametrize("margin", MARGINS)
def test_labels_are_taken_as_they_are(margin: str) -> None:
    (features,), make = columns(1), MARGINS[margin]
    labels = torch.arange(ROWS) % 3
    value = AdaptiveLabelLoss(Known(), margin=make())([features], labels)
    expected = AdaptiveMarginLoss(losses.TripletMarginLoss(), make())(features["x"], labels)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


def test_with_a_number_they_are_stock_losses() -> None:
    features = columns(3)
    rows, labels = stacked(features), pair_labels(3)
    assert AdaptivePairLoss(Known(), margin=0.7)(features) == losses.MultiSimilarityLoss(base=0.7)(rows, labels)
    contrastive = AdaptivePairLoss(Known(), losses.ContrastiveLoss(), 0.7)
    assert contrastive(features) == losses.ContrastiveLoss(neg_margin=0.7)(rows, labels)
    stock = losses.TripletMarginLoss(margin=0.7)
    assert AdaptiveTripletLoss(Known(), margin=0.7)(features) == stock(rows, labels, listed())
    classes = torch.arange(3 * ROWS) % 4
    assert AdaptiveLabelLoss(Known(), margin=0.7)([{"x": rows}], classes) == stock(rows, classes)


def test_pairs_by_default_are_multi_similarity() -> None:
    features, labels = columns(2), pair_labels(2)
    expected = AdaptiveMarginLoss(losses.MultiSimilarityLoss())(stacked(features), labels)
    torch.testing.assert_close(AdaptivePairLoss(Known())(features), expected, rtol=1e-12, atol=0)


def test_triplets_by_hand() -> None:
    a, p, n = (each["x"] for each in columns(3))
    unit = [normalize(x) for x in (a, p, n)]
    gap = torch.linalg.norm(unit[0] - unit[1], dim=1) - torch.linalg.norm(unit[0] - unit[2], dim=1)
    alpha = AdaptiveMargin()(torch.cat(unit), pair_labels(3), listed())
    hinge = torch.relu(gap + 2**0.5 - (2 - alpha).sqrt())
    value = AdaptiveTripletLoss(Known())([{"x": x} for x in (a, p, n)])
    torch.testing.assert_close(value, hinge[hinge > 0].mean())


def test_any_loss_of_the_table_and_the_papers_own() -> None:
    features, labels = columns(2), pair_labels(2)
    rows = stacked(features)
    for make in (
        losses.MultiSimilarityLoss,
        losses.CircleLoss,
        losses.MarginLoss,
        lambda: losses.TripletMarginLoss(distance=LpDistance(power=2)),
    ):
        expected = AdaptiveMarginLoss(make())(rows, labels)
        torch.testing.assert_close(AdaptivePairLoss(Known(), make())(features), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            AdaptivePairLoss(Known(), AdaptiveMarginLoss(make()))(features), expected, rtol=1e-12, atol=0
        )
    offset = AdaptiveMarginLoss(losses.ContrastiveLoss(), units="offset")(rows, labels)
    assert AdaptivePairLoss(Known(), losses.ContrastiveLoss(), units="offset")(features) == offset
    assert AdaptivePairLoss(Known(), ContrastiveVDMLoss())(features) == ContrastiveVDMLoss()(rows, labels)
    groups = torch.arange(ROWS) % 2
    two = AdaptiveLabelLoss(Known(), ContrastiveVDMLoss(compact_label=1))(features[:1], groups)
    assert two == ContrastiveVDMLoss(compact_label=1)(features[0]["x"], groups)
    memory = losses.CrossBatchMemory(AdaptiveMarginLoss(losses.ContrastiveLoss()), WIDTH, memory_size=2 * ROWS)
    first, second = (AdaptiveLabelLoss(Known(), memory)([{"x": rows[:ROWS].float()}], groups) for _ in range(2))
    assert first != second


def test_class_weights_learn_from_labels() -> None:
    loss = AdaptiveLabelLoss(Known(), losses.CosFaceLoss(3, WIDTH))
    (features,) = columns(1)
    loss([{"x": features["x"].float()}], torch.arange(ROWS) % 3).backward()
    weights = dict(loss.named_parameters())
    assert list(weights) == ["loss.loss.W"]
    assert weights["loss.loss.W"].grad.any()  # type: ignore[union-attr]


# Texts that occur twice


def test_classes_join_where_texts_are_equal() -> None:
    assert classes_of_columns(torch.arange(6), 2).tolist() == [0, 1, 2, 0, 1, 2]
    assert classes_of_columns(torch.arange(6), 3).tolist() == [0, 1, 0, 1, 2, 3]
    twice = torch.tensor([0, 1, 0, 2, 3, 4])  # the first and the third anchor
    assert classes_of_columns(twice, 2).tolist() == [0, 1, 0, 0, 1, 0]
    negative = torch.tensor([0, 1, 2, 3, 3, 4])  # the first row's negative is the second row's positive
    assert classes_of_columns(negative, 3).tolist() == [0, 1, 0, 1, 1, 2]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_text_that_occurs_twice_is_no_negative_of_itself(dropout: float) -> None:
    model = Words(dropout)
    anchors, positives = texts([1, 2], [3], [1, 2], [4, 5]), texts([6, 7, 8], [9], [10], [11])
    loss = AdaptivePairLoss(model, losses.ContrastiveLoss(), 1.0)
    seen = {}
    loss.loss.register_forward_pre_hook(lambda module, args: seen.update(labels=args[1]))
    loss([anchors, positives])
    assert seen["labels"].tolist() == [0, 1, 0, 2, 0, 1, 0, 2]
    loss([dict(anchors), {**positives, "input_ids": positives["input_ids"].roll(1, 0)}])  # no text of an anchor moved
    assert seen["labels"].tolist() == [0, 1, 0, 2, 0, 1, 0, 2]


def test_padding_says_nothing_about_a_text() -> None:
    short, long = texts([1, 2]), texts([1, 2], [1, 2, 3])
    left = {name: value.flip(1) for name, value in texts([2, 1], [3, 2, 1]).items()}
    key = int(text_keys(short)[0])  # type: ignore[index]
    assert [int(text_keys(each)[0]) for each in (long, left)] == [key, key]  # type: ignore[index]
    assert int(text_keys(long)[1]) != key  # type: ignore[index]
    flat = {"input_ids": torch.tensor([9, 1, 2, 1]), "offsets": torch.tensor([0, 1, 3])}
    assert text_keys(flat).tolist()[1] == key  # type: ignore[union-attr]
    bare = {"input_ids": torch.tensor([[1, 2], [2, 1]])}
    assert text_keys(bare).tolist()[0] == key != text_keys(bare).tolist()[1]  # type: ignore[union-attr]


def test_images_with_one_caption_are_not_one_text() -> None:
    assert text_keys({**texts([1], [1]), "pixel_values": torch.randn(2, 3)}) is None
    assert text_keys({"x": torch.randn(2, 3)}) is None


def test_equal_embeddings_are_equal_texts_where_there_are_no_tokens() -> None:
    (anchors, positives), loss = columns(2), AdaptivePairLoss(Known(), losses.ContrastiveLoss(), 1.0)
    anchors["x"] = torch.cat([anchors["x"][:6], anchors["x"][:6]])
    labels = torch.cat([torch.arange(6)] * 4)
    expected = losses.ContrastiveLoss()(stacked([anchors, positives]), labels)
    torch.testing.assert_close(loss([anchors, positives]), expected)
    torch.testing.assert_close(loss.compute_loss_from_embeddings([anchors["x"], positives["x"]]), expected)


def test_a_triplet_whose_negative_is_its_positive_is_left_out() -> None:
    a, p, n = columns(3)
    with torch.no_grad():
        n["x"][3], n["x"][5] = p["x"][3], a["x"][5]
    kept = torch.tensor([i for i in range(ROWS) if i not in (3, 5)])
    rows = stacked([a, p, n])
    expected = losses.TripletMarginLoss(margin=0.5)(rows, indices_tuple=(kept, kept + ROWS, kept + 2 * ROWS))
    torch.testing.assert_close(AdaptiveTripletLoss(Known(), margin=0.5)([a, p, n]), expected)
    for margin in (0.5, None):
        value = AdaptiveTripletLoss(Known(), margin=margin)([a, p, p])  # all of them
        value.backward()
        assert value == 0
    assert not a["x"].grad.any()  # type: ignore[union-attr]


# What a trainer does with them


def test_batches_without_negatives_and_with_one_class_are_zero() -> None:
    one = [{"x": torch.randn(1, WIDTH, requires_grad=True)} for _ in range(2)]
    value = AdaptivePairLoss(Known(), losses.TripletMarginLoss())(one)
    value.backward()
    assert value == 0
    labelled = [{"x": torch.randn(4, WIDTH, requires_grad=True)}]
    for labels in (torch.zeros(4), torch.arange(4)):
        value = AdaptiveLabelLoss(Known())(labelled, labels.long())
        value.backward()
        assert value == 0
    with torch.no_grad():  # evaluation
        assert AdaptivePairLoss(Known())(columns(2)) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    for build, count, labels in (
        (AdaptivePairLoss, 2, None),
        (AdaptiveTripletLoss, 3, None),
        (AdaptiveLabelLoss, 1, torch.arange(ROWS) % 3),
    ):
        full = [each["x"].detach().to(dtype).float() for each in columns(count)]
        half = [x.to(dtype).requires_grad_() for x in full]
        value = build(Known())([{"x": x} for x in half], labels)
        expected = build(Known())([{"x": x} for x in full], labels)
        torch.testing.assert_close(value.float(), expected, rtol=3e-2, atol=0)
        value.backward()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in half)


@pytest.mark.parametrize("build", [AdaptivePairLoss, AdaptiveTripletLoss, AdaptiveLabelLoss])
def test_the_model_card_is_told_loss_and_margin(build: Any) -> None:
    config = build(Known(), margin=AdaptiveMargin(neighbourhood="attainable")).get_config_dict()
    pairs = build is AdaptivePairLoss
    assert json.loads(json.dumps(config)) == {
        "loss": "MultiSimilarityLoss" if pairs else "TripletMarginLoss",
        "margin": "AdaptiveMargin(confidence=0.05, granularity='batch', neighbourhood=AttainableRule)",
        "distance": "CosineSimilarity" if pairs else "LpDistance",
        "units": "geometry",
        "gather_across_devices": False,
    }
    loss = build(Known(), ContrastiveVDMLoss(0.5))
    assert loss.get_config_dict()["loss"] == "ContrastiveVDMLoss"
    assert loss.get_config_dict()["margin"] == "ConstantMargin(value=0.5)"
    assert "Person Independent Facial Emotion Recognition" in loss.citation


def test_state_goes_through_a_state_dict() -> None:
    loss = AdaptiveLabelLoss(Words(), losses.CosFaceLoss(3, WIDTH), LinearMargin(0.2, 0.1))
    loss.loss.margin.step_epoch()
    again = AdaptiveLabelLoss(Words(), losses.CosFaceLoss(3, WIDTH), LinearMargin(0.2, 0.1))
    again.load_state_dict(loss.state_dict())
    batch = texts(*([1 + i, 20 + i] for i in range(ROWS)))
    labels = torch.arange(ROWS) % 3
    assert again([dict(batch)], labels) == loss([dict(batch)], labels)


def test_wrong_use_is_named() -> None:
    (one,) = columns(1)
    two, rows = columns(2), torch.arange(ROWS)
    with pytest.raises(ValueError, match=r"sentence_features must be of 2 or more columns.*got 1"):
        AdaptivePairLoss(Known())([one])
    with pytest.raises(ValueError, match=r"sentence_features must be of 3 or more columns.*got 2"):
        AdaptiveTripletLoss(Known())(two)
    with pytest.raises(ValueError, match="of one column for AdaptiveLabelLoss, got 2"):
        AdaptiveLabelLoss(Known())(two, rows)
    with pytest.raises(ValueError, match="labels must be given for AdaptiveLabelLoss"):
        AdaptiveLabelLoss(Known())([one])
    with pytest.raises(ValueError, match="every row is a positive pair"):
        AdaptivePairLoss(Known())(two, rows % 2)
    AdaptivePairLoss(Known())(two, torch.zeros(ROWS))  # what a trainer passes where there are none
    for host in (losses.CosFaceLoss(3, WIDTH), losses.ManifoldLoss(WIDTH, K=3)):
        with pytest.raises(ValueError, match=f"got {type(host).__name__}; class weights and proxies"):
            AdaptivePairLoss(Known(), host)
    with pytest.raises(ValueError, match=r"margin must be left out .* its own, got 0\.0; pass margin"):
        AdaptivePairLoss(Known(), ContrastiveVDMLoss(), margin=0.0)
    with pytest.raises(ValueError, match="margin must be left out where loss is ContrastiveVDMLoss"):
        AdaptivePairLoss(Known(), ContrastiveVDMLoss(), 0.3)
    with pytest.raises(ValueError, match="units must be left out where loss is AdaptiveMarginLoss"):
        AdaptivePairLoss(Known(), AdaptiveMarginLoss(losses.ContrastiveLoss()), units="sqrt")
    with pytest.raises(
        TypeError, match="cannot exchange the margin of CrossBatchMemory"
    ):  # rows are classes of a batch
        AdaptivePairLoss(Known(), losses.CrossBatchMemory(losses.ContrastiveLoss(), WIDTH))
    for build in (AdaptivePairLoss, AdaptiveTripletLoss, AdaptiveLabelLoss):
        with pytest.raises(TypeError, match="cannot exchange the margin"):
            build(Known(), losses.ContrastiveLoss)  # not an object
    with pytest.raises(TypeError, match="cannot exchange the margin of NTXentLoss"):
        AdaptivePairLoss(Known(), losses.NTXentLoss())


# Several processes


def _losses(gather: bool) -> dict[str, nn.Module]:
    torch.manual_seed(3)
    model = Words().double()
    return {
        "pairs": AdaptivePairLoss(model, gather_across_devices=gather),
        "triplets": AdaptiveTripletLoss(model, gather_across_devices=gather),
        "labels": AdaptiveLabelLoss(model, gather_across_devices=gather),
    }


def _batch(name: str, part: slice) -> tuple[list[dict[str, Tensor]], Tensor | None]:
    ids = torch.randint(1, 9, (3, 8, 2), generator=torch.Generator().manual_seed(4))  # some occur in both halves
    count = {"pairs": 2, "triplets": 3, "labels": 1}[name]
    features = [{"input_ids": each[part], "attention_mask": torch.ones_like(each[part])} for each in ids[:count]]
    return features, (torch.arange(8) % 3)[part] if name == "labels" else None


def _worker(rank: int, folder: str) -> None:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name, loss in _losses(gather=True).items():
        loss.zero_grad()
        value = loss(*_batch(name, slice(4 * rank, 4 * rank + 4)))
        value.backward()
        (grad,) = (weight.grad for weight in loss.parameters())
        dist.all_reduce(grad)  # the mean over processes, as DistributedDataParallel's
        found[name] = value.detach(), grad / 2
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_that_gather_equal_one(tmp_path: Path) -> None:
    start_together(_worker, str(tmp_path))
    for name, loss in _losses(gather=True).items():  # without processes the option changes nothing
        loss.zero_grad()
        value = loss(*_batch(name, slice(0, 8)))
        value.backward()
        (grad,) = (weight.grad for weight in loss.parameters())
        assert grad is not None
        assert grad.any()
        for rank in range(2):
            found, found_grad = torch.load(tmp_path / f"{rank}.pt")[name]
            torch.testing.assert_close(found, value.detach(), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(found_grad, grad, rtol=1e-9, atol=1e-12)
