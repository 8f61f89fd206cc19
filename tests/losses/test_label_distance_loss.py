"""The loss of continuous labels, as a guest of pytorch-metric-learning."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning import losses, reducers, regularizers
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor
from torch.testing import assert_close

from adaptive_margin import LabelDistanceLoss
from adaptive_margin.functional import label_distance_loss


def _batch(rows: int = 9, labels: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    return z, torch.rand(rows, labels, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"scale": 3.0, "attraction": 0.5, "slack": 0.3}])
def test_it_is_the_formula(options: dict[str, float]) -> None:
    z, y = _batch()
    scale = options.get("scale", 1.0)
    rest = {name: value for name, value in options.items() if name != "scale"}
    assert_close(LabelDistanceLoss(**options)(z, y), label_distance_loss(z, y, scale, **rest))
    assert_close(LabelDistanceLoss(**options)(z, y[:, 0]), label_distance_loss(z, y[:, 0], scale, **rest))


def test_labels_of_two_values_far_apart_are_the_stock_contrastive_loss() -> None:
    z, _ = _batch()
    classes = torch.arange(9) % 3
    corners = 0.7 / 2**0.5 * torch.eye(3, dtype=torch.float64)[classes]  # 0.7 apart, or at one point
    stock = losses.ContrastiveLoss(
        pos_margin=0.0, neg_margin=0.7, distance=LpDistance(normalize_embeddings=False), reducer=reducers.MeanReducer()
    )
    ours = LabelDistanceLoss()
    pos = classes[:, None] == classes
    pos.fill_diagonal_(False)
    a, p = pos.nonzero(as_tuple=True)
    b, n = (classes[:, None] != classes).nonzero(as_tuple=True)
    assert_close(ours(z, corners, (a, p, b[:0], n[:0])), stock(z, classes, (a, p, b[:0], n[:0])))
    pushed = LabelDistanceLoss(attraction=0.0)
    assert_close(pushed(z, corners, (a[:0], p[:0], b, n)), stock(z, classes, (a[:0], p[:0], b, n)))


def test_references_and_pairs() -> None:
    z, y = _batch()
    ref, ref_y = _batch(4, seed=1)
    loss = LabelDistanceLoss(scale=2.0)
    margin, distance = 2 * torch.cdist(y, ref_y), torch.cdist(z, ref)
    assert_close(loss(z, y, ref_emb=ref, ref_labels=ref_y), (margin - distance).abs().mean())
    pairs = tuple(torch.tensor(i) for i in ([0, 1], [2, 3], [4], [0]))
    found = loss(z, y, pairs, ref, ref_y)
    assert_close(found, torch.stack([(margin - distance)[i, j].abs() for i, j in ((0, 2), (1, 3), (4, 0))]).mean())
    triplets = tuple(torch.tensor(i) for i in ([0], [2], [3]))
    assert_close(loss(z, y, triplets, ref, ref_y), (margin - distance)[0, [2, 3]].abs().mean())


def test_the_callers_distance_reducer_and_regularizer_work() -> None:
    z, y = _batch()
    loss = LabelDistanceLoss(
        distance=LpDistance(p=1, normalize_embeddings=False),
        reducer=reducers.SumReducer(),
        embedding_regularizer=regularizers.LpRegularizer(),
    )
    gap = (torch.cdist(y, y) - torch.cdist(z, z, p=1)).abs()
    assert_close(loss(z, y), gap.sum() + z.norm(dim=1).mean())  # its own reducer: the mean


@pytest.mark.parametrize("rows", [0, 1])
def test_without_pairs_it_is_zero_with_a_gradient(rows: int) -> None:
    z = torch.zeros(rows, 3, requires_grad=True)
    loss = LabelDistanceLoss()(z, torch.zeros(rows))
    loss.backward()
    assert float(loss) == 0


def test_gradients_and_embeddings_at_one_point() -> None:
    z, y = _batch(5)
    assert torch.autograd.gradcheck(lambda x: LabelDistanceLoss()(x, y), z.requires_grad_())
    same = torch.ones(4, 3, requires_grad=True)
    LabelDistanceLoss()(same, torch.arange(4.0)).backward()
    assert torch.isfinite(same.grad).all()  # type: ignore[arg-type]


def test_half_precision_and_print() -> None:
    z, y = _batch()
    found = LabelDistanceLoss()(z.bfloat16(), y.bfloat16())
    assert_close(found.double(), LabelDistanceLoss()(z, y), rtol=3e-2, atol=3e-2)
    assert "scale=2.0" in repr(LabelDistanceLoss(scale=2.0))


NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"labels": [0.0] * 9}, TypeError, r"labels must be a torch\.Tensor, got list"),
        ({"labels": torch.full((9,), NAN)}, ValueError, "labels must be finite"),
        ({"labels": torch.zeros(8)}, ValueError, r"labels must be as many as embeddings \(9\), got 8"),
        ({"labels": None}, ValueError, "labels must be one for each of 9 rows, got None"),
        ({"embeddings": torch.full((9, 4), NAN)}, ValueError, "embeddings must be finite"),
        ({"embeddings": [[0.0] * 4] * 9}, TypeError, r"embeddings must be a torch\.Tensor, got list"),
        ({"ref_emb": torch.zeros(5, 3), "ref_labels": torch.zeros(5, 2)}, ValueError, "ref_emb must be of the 5 feat"),
        ({"ref_emb": torch.zeros(5, 5)}, ValueError, "ref_labels must be one for each of 5 rows, got None"),
        (
            {"ref_emb": torch.zeros(5, 5), "ref_labels": torch.zeros(4, 2)},
            ValueError,
            r"as ref_emb \(5\), got 4",
        ),
        ({"ref_emb": torch.zeros(5, 5), "ref_labels": [0.0] * 5}, TypeError, r"ref_labels must be a torch\.Tensor"),
        ({"indices_tuple": (torch.tensor([0]),) * 2}, ValueError, "indices_tuple must be triplets"),
        (
            {"indices_tuple": (torch.tensor([0]), torch.tensor([1]), torch.tensor([9]))},
            ValueError,
            r"in \[0, 9\)",
        ),
    ],
)
def test_bad_input_is_named(changes: dict[str, object], error: type[Exception], said: str) -> None:
    embeddings, labels = _batch()
    given = {"embeddings": embeddings, "labels": labels, **changes}
    with pytest.raises(error, match=said):
        LabelDistanceLoss()(**given)


@pytest.mark.parametrize("scale", [NAN, float("inf"), 0.0, -1.0])
def test_a_scale_out_of_range_is_named(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be above 0 and finite"):
        LabelDistanceLoss(scale)


def test_an_index_tuple_of_lists_as_in_the_stock_losses() -> None:
    embeddings, labels = _batch()
    tensors = (torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4, 5]))
    lists = tuple(index.tolist() for index in tensors)
    assert LabelDistanceLoss()(embeddings, labels, lists) == LabelDistanceLoss()(embeddings, labels, tensors)
