import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance, SNRDistance
from torch.testing import assert_close

from adaptive_margin.miners import TiledBatchHardMiner

from ..references.sampling import batch_hard_slow

DISTANCES = {
    "default": dict,
    "squared": lambda: {"distance": LpDistance(p=2, power=2, normalize_embeddings=False)},
    "l1": lambda: {"distance": LpDistance(p=1)},
    "cosine": lambda: {"distance": CosineSimilarity()},
    "dot": lambda: {"distance": DotProductSimilarity(normalize_embeddings=False)},
    "snr": lambda: {"distance": SNRDistance()},
}


def triplets(output):
    return torch.stack(output, dim=1).tolist()


def test_by_hand():
    # On a line, not normalised. Anchor 0: positives at 1 and 4, negatives at 2 and 9.
    x = torch.tensor([[0.0], [1.0], [2.0], [4.0], [9.0], [30.0]])
    labels = torch.tensor([0, 0, 1, 0, 1, 2])  # class 2 has no positive
    miner = TiledBatchHardMiner(distance=LpDistance(normalize_embeddings=False))
    assert triplets(miner(x, labels)) == [[0, 3, 2], [1, 3, 2], [2, 4, 1], [3, 0, 2], [4, 2, 3]]


@pytest.mark.parametrize("tile_entries", [1, 100, 1 << 22])
@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("mode", ["batch", "references", "batch as references"])
def test_equals_the_stock_miner(name, mode, tile_entries):
    x, labels = torch.randn(53, 16, dtype=torch.float64), torch.randint(0, 7, (53,))
    y, y_labels = torch.randn(31, 16, dtype=torch.float64), torch.randint(3, 9, (31,))
    arguments = {
        "batch": (x, labels),
        "references": (x, labels, y, y_labels),
        "batch as references": (x, labels, x, labels),
    }[mode]
    stock = miners.BatchHardMiner(**DISTANCES[name](), collect_stats=True)
    ours = TiledBatchHardMiner(**DISTANCES[name](), collect_stats=True, tile_entries=tile_entries)
    expected, got = stock(*arguments), ours(*arguments)
    assert len(expected[0]) > 20
    assert triplets(got) == triplets(expected)
    assert all(indices.dtype == torch.int64 for indices in got)
    for statistic in (
        "easiest_triplet", "hardest_triplet", "easiest_pos_pair",
        "hardest_pos_pair", "easiest_neg_pair", "hardest_neg_pair", "num_triplets",
    ):  # fmt: skip
        assert getattr(ours, statistic) == pytest.approx(getattr(stock, statistic), rel=1e-9)


@given(
    st.lists(st.tuples(st.integers(-1, 1), st.integers(-1, 1), st.integers(0, 2)), min_size=1, max_size=9),
    st.lists(st.tuples(st.integers(-1, 1), st.integers(-1, 1), st.integers(0, 2)), max_size=9),
)
def test_matches_the_loop_with_ties(batch, references):
    # Directions of a square: many equal distances, equal in both computations to 1e-7, which rounding cannot order.
    x, labels = torch.tensor([row[:2] for row in batch]).double(), torch.tensor([row[2] for row in batch])
    arguments, other, own = (x, labels), (x, labels), True
    if references:
        y = torch.tensor([row[:2] for row in references]).double()
        other, own = (y, torch.tensor([row[2] for row in references])), False
        arguments += other
    got = triplets(TiledBatchHardMiner(tile_entries=7)(*arguments))
    expected = batch_hard_slow(x, labels.tolist(), other[0], other[1].tolist(), own)
    assert [t[0] for t in got] == [t[0] for t in expected]
    unit = torch.nn.functional.normalize
    for (a, p, n), (_, q, m) in zip(got, expected, strict=True):
        assert labels[a] == other[1][p]
        assert labels[a] != other[1][n]
        assert not (own and a == p)
        d = (unit(x[a : a + 1]) - unit(other[0][[p, q, n, m]])).norm(dim=1)
        assert_close(d[::2], d[1::2], rtol=0, atol=1e-7)


def test_ties_go_to_the_lower_index():
    x = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 3)
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 1])
    miner = TiledBatchHardMiner(distance=CosineSimilarity())
    assert triplets(miner(x, labels))[:2] == [[0, 4, 2], [1, 4, 2]]
    equal = torch.ones(4, 3)
    assert triplets(miner(equal, torch.tensor([0, 1, 0, 1]))) == [[0, 2, 1], [1, 3, 0], [2, 0, 1], [3, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["default", "cosine"])
def test_half_precision_is_compared_in_float32(dtype, name):
    x, labels = torch.randn(40, 8).to(dtype), torch.randint(0, 5, (40,))
    expected = TiledBatchHardMiner(**DISTANCES[name]())(x.float(), labels)
    assert triplets(TiledBatchHardMiner(**DISTANCES[name]())(x, labels)) == triplets(expected)
    assert triplets(miners.BatchHardMiner(**DISTANCES[name]())(x.float(), labels)) == triplets(expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert triplets(TiledBatchHardMiner(**DISTANCES[name]())(x, labels)) == triplets(expected)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("labels", [[], [0], [3, 3, 3, 3], [0, 1, 2, 3]])
def test_no_triplets(name, labels):
    output = TiledBatchHardMiner(**DISTANCES[name]())(torch.randn(len(labels), 4), torch.tensor(labels).long())
    assert [len(indices) for indices in output] == [0, 0, 0]
    assert all(indices.dtype == torch.int64 for indices in output)


def test_no_references():
    output = TiledBatchHardMiner()(torch.randn(3, 4), torch.arange(3), torch.empty(0, 4), torch.empty(0).long())
    assert [len(indices) for indices in output] == [0, 0, 0]


def test_strided_rows_and_a_last_tile_of_one():
    base = torch.randn(58, 24)
    x, labels = base[::2, ::3], torch.randint(0, 4, (29,))
    assert not x.is_contiguous()
    expected = miners.BatchHardMiner()(x.contiguous(), labels)
    assert triplets(TiledBatchHardMiner(tile_entries=29 * 4)(x, labels)) == triplets(expected)  # 7 tiles of 4, one of 1


def test_in_the_place_of_the_stock_miner():
    x, labels = torch.randn(32, 8, requires_grad=True), torch.randint(0, 4, (32,))
    loss = losses.TripletMarginLoss()
    expected = loss(x, labels, miners.BatchHardMiner()(x, labels))
    value = loss(x, labels, TiledBatchHardMiner()(x, labels))
    assert value.item() == expected.item() > 0
    value.backward()
    assert bool(x.grad.isfinite().all())
    memory = losses.CrossBatchMemory(losses.TripletMarginLoss(), 8, memory_size=64, miner=TiledBatchHardMiner())
    twin = losses.CrossBatchMemory(losses.TripletMarginLoss(), 8, memory_size=64, miner=miners.BatchHardMiner())
    for _ in range(3):
        batch = torch.randn(32, 8)
        assert memory(batch, labels).item() == twin(batch, labels).item()


WRONG = [
    ({"embeddings": torch.randn(3)}, ValueError, r"embeddings must be a matrix.*got shape \(3,\)"),
    ({"embeddings": torch.ones(3, 2).long()}, TypeError, "embeddings must be floating point"),
    ({"embeddings": torch.full((3, 2), math.nan)}, ValueError, "embeddings must be finite"),
    ({"labels": torch.zeros(2).long()}, ValueError, r"labels must be as long as embeddings \(3 rows\), got 2 labels"),
    ({"labels": torch.full((3,), 0.5)}, TypeError, "labels must be integers"),
    ({"labels": None}, TypeError, "labels must be a torch.Tensor, got NoneType"),
    ({"ref_emb": torch.randn(2, 2)}, ValueError, "ref_emb, ref_labels must be given together.*only one of them"),
    ({"ref_labels": torch.zeros(2).long()}, ValueError, "ref_emb, ref_labels must be given together"),
    (
        {"ref_emb": torch.randn(2, 3), "ref_labels": torch.zeros(2).long()},
        ValueError,
        "ref_emb must be of the 2 features of embeddings, got 3 features",
    ),
    (
        {"ref_emb": torch.full((2, 2), math.inf), "ref_labels": torch.zeros(2).long()},
        ValueError,
        "ref_emb must be finite",
    ),
    ({"ref_emb": torch.randn(2, 2), "ref_labels": torch.zeros(3).long()}, ValueError, "ref_labels must be as long as"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG)
def test_wrong_input_says_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        TiledBatchHardMiner()(**{"embeddings": torch.randn(3, 2), "labels": torch.zeros(3).long(), **arguments})


def test_a_tile_of_nothing():
    with pytest.raises(ValueError, match="tile_entries must be an integer >= 1, got 0"):
        TiledBatchHardMiner(tile_entries=0)


@pytest.mark.cuda
def test_cuda_equals_the_cpu():
    x, labels = torch.randn(300, 16), torch.randint(0, 20, (300,))
    expected = triplets(TiledBatchHardMiner()(x.double(), labels))
    assert triplets(TiledBatchHardMiner(tile_entries=5000)(x.double().cuda(), labels.cuda())) == expected


def test_infinite_distances_are_distances():
    x, labels = torch.randn(12, 4), torch.arange(12) // 3
    x[0] = 1.0  # without variance: SNR's distances from it are infinite
    ours, stock = (miner(distance=SNRDistance())(x, labels) for miner in (TiledBatchHardMiner, miners.BatchHardMiner))
    assert triplets(ours)[1:] == triplets(stock)[1:]
    assert triplets(ours)[0] == [0, 1, 3]
    assert stock[2][0] == 0  # the host's own fault: an anchor that is its own negative
    beyond = 1e30 * torch.randn(12, 4)  # squares beyond float32
    anchors, positives, negatives = TiledBatchHardMiner(distance=LpDistance(normalize_embeddings=False))(beyond, labels)
    assert anchors.tolist() == list(range(12))
    assert (labels[positives] == labels[anchors]).all()
    assert (labels[negatives] != labels[anchors]).all()
    assert (positives != anchors).all()


@pytest.mark.parametrize("scale", [1e20, 1e37])
@pytest.mark.parametrize("name", DISTANCES)
def test_squares_that_overflow_leave_triplets_of_the_right_classes(name, scale):
    x, labels = scale * torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
    anchors, positives, negatives = TiledBatchHardMiner(**DISTANCES[name]())(x, labels)  # of NaN, infinities or zeros
    assert anchors.tolist() == list(range(64))
    assert (labels[positives] == labels[anchors]).all()
    assert (labels[negatives] != labels[anchors]).all()
    assert (positives != anchors).all()
