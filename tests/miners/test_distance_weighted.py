import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from scipy.stats import chi2, chisquare
from torch.testing import assert_close

from adaptive_margin.functional import distance_log_weights
from adaptive_margin.miners import TiledBatchHardMiner, TiledDistanceWeightedMiner
from adaptive_margin.miners.distance_weighted_miner import draw

from ..references.sampling import negative_log_probabilities_slow, positive_pairs_slow
from .test_batch_hard import WRONG

TOL = {torch.float64: 1e-10, torch.float32: 2e-3}  # of log-probabilities of up to 1000


def probabilities(x, labels, y=None, y_labels=None, cutoff=0.5, upper=1.4):
    """What the miner draws from, as its formula gives it."""
    y, y_labels = (x, labels) if y is None else (y, y_labels)
    distances = LpDistance(p=2)(x, y)
    different = labels[:, None] != y_labels
    return distance_log_weights(distances, different, x.shape[1], cutoff, upper).log_softmax(dim=1)


def counts(output, a, references):
    anchors, _, negatives = output
    return np.bincount(negatives[anchors == a].numpy(), minlength=references)


# ---- the weights ---------------------------------------------------------------------------------------------------


def test_weights_by_hand():
    # D = 5: 1/q = r^-3 (1 - r²/4)^-1. r = 1: 4/3. r = sqrt(2): 2^-1.5 * 2. r = 0.4 counts as 0.5: 8 / (15/16).
    distances = torch.tensor([[1.0, math.sqrt(2), 0.4, 1.0]], dtype=torch.float64)
    different = torch.tensor([[True, True, True, False]])
    weights = distance_log_weights(distances, different, 5, nonzero_loss_cutoff=None).exp()
    expected = [4 / 3, 2**-0.5, 8 * 16 / 15, 0.0]
    assert_close(weights, torch.tensor([expected], dtype=torch.float64), rtol=1e-12, atol=0)
    weights = distance_log_weights(distances, different, 5).exp()  # sqrt(2) is beyond 1.4
    assert_close(weights, torch.tensor([[4 / 3, 0, 128 / 15, 0]], dtype=torch.float64), rtol=1e-12, atol=0)


def test_density_of_distances_on_the_sphere():
    # 1 / w integrates to the share of random pairs: on the sphere in 3 dimensions q(r) = r, P(r < 1) = 1/4.
    r = torch.linspace(0.001, 1.9989, 20000, dtype=torch.float64)
    q = (-distance_log_weights(r[None], torch.ones(1, 20000).bool(), 3, 1e-4, None)).exp()[0]
    assert float(q[r < 1].sum() / q.sum()) == pytest.approx(0.25, abs=1e-3)
    x = torch.nn.functional.normalize(torch.randn(2000, 9, dtype=torch.float64), dim=1)
    distances = torch.pdist(x)
    q = (-distance_log_weights(r[None], torch.ones(1, 20000).bool(), 9, 1e-4, None)).exp()[0]
    for bound in (1.0, 1.3, 1.5):
        assert float((distances < bound).double().mean()) == pytest.approx(
            float(q[r < bound].sum() / q.sum()), abs=0.01
        )


@pytest.mark.parametrize("dtype", TOL, ids=str)
@pytest.mark.parametrize("dimension", [2, 3, 16, 512, 2048])
@pytest.mark.parametrize("upper", [1.4, 1.0, None])
def test_log_probabilities_match_the_loop(dtype, dimension, upper):
    x, labels = torch.randn(17, dimension, dtype=dtype), torch.randint(0, 4, (17,))
    x[3:9] = x[3] + 0.5 * torch.randn(6, dimension, dtype=dtype)  # near ones too
    got = probabilities(x, labels, upper=upper)
    expected = torch.from_numpy(negative_log_probabilities_slow(x, labels, x, labels, upper=upper))
    # Rounding may move a distance across the cutoff or the clip at 1.999 (where the slope is largest): not here.
    assert torch.equal(got.isinf(), expected.isinf())
    finite = expected.isfinite()
    assert_close(got.double()[finite], expected[finite], rtol=0, atol=TOL[dtype])


@pytest.mark.parametrize("dimension", [1, 2, 3, 512, 2048])
@pytest.mark.parametrize("upper", [1.4, None])
def test_opposite_equal_and_zero_points(dimension, upper):
    x = torch.randn(4, dimension)
    x = torch.cat([x, -x, x, torch.zeros(2, dimension)])  # distances of 0, 2 and 1
    labels = torch.arange(14) % 3
    p = probabilities(x, labels, upper=upper).exp()
    assert not bool(p.isnan().any())
    assert_close(p.sum(dim=1), torch.ones(14), rtol=0, atol=1e-5)
    assert bool((p[labels[:, None] == labels] == 0).all())
    a, _, n = TiledDistanceWeightedMiner(nonzero_loss_cutoff=upper)(x, labels)
    assert len(a) == 14 * 4 - sum(labels == 2).item() + sum(labels == 2).item() - 4  # classes of 5, 5 and 4
    assert bool((labels[a] != labels[n]).all())
    assert bool((p[a, n] > 0).all())


def test_no_lower_cutoff_is_the_formula_down_to_distance_zero():
    # 1/q at 0.2 and 0.4, for D = 4: r^-2 (1 - r²/4)^-½
    x = torch.tensor([0.0, 0.2, 0.4]).mul(0.5).asin().mul(2)  # chords of these lengths
    x = torch.stack([x.cos(), x.sin(), 0 * x, 0 * x], dim=1)
    labels = torch.tensor([0, 1, 2])
    p = probabilities(x, labels, cutoff=0.0).exp()
    expected = torch.tensor([25 / 0.99**0.5, 6.25 / 0.96**0.5])
    assert_close(p[0, 1:], expected / expected.sum(), rtol=1e-5, atol=0)
    twice = torch.cat([x, x[:1]])  # and a copy of the anchor, of another class: nothing is as rare
    labels = torch.tensor([0, 1, 2, 3])
    assert_close(probabilities(twice, labels, cutoff=0.0)[0].exp(), torch.tensor([0.0, 0, 0, 1]), rtol=0, atol=1e-6)
    labels = torch.tensor([0, 1, 0, 1])
    _, _, n = TiledDistanceWeightedMiner(cutoff=0)(twice, labels)
    assert n.tolist()[0] == 3


def test_an_upper_cutoff_below_the_lower_one_draws_evenly_from_the_near_negatives():
    x = torch.tensor([0.0, 0.1, 0.2, 1.0]).mul(0.5).asin().mul(2)
    x = torch.stack([x.cos(), x.sin(), 0 * x, 0 * x], dim=1)
    p = probabilities(x, torch.tensor([0, 1, 2, 3]), cutoff=0.5, upper=0.3).exp()
    assert_close(p[0], torch.tensor([0.0, 0.5, 0.5, 0.0]), rtol=0, atol=1e-6)
    assert_close(p[3, :3], torch.full((3,), 1 / 3), rtol=0, atol=1e-6)  # none is near: all of them
    assert len(TiledDistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=0.3)(x, torch.tensor([0, 0, 1, 1]))[0]) == 4


@pytest.mark.parametrize("miner", [TiledDistanceWeightedMiner, TiledBatchHardMiner])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int16, torch.bool], ids=str)
def test_labels_of_any_dtype(miner, dtype):
    x, labels = torch.randn(8, 4), torch.arange(8) % 2
    mined = []
    for y in (labels.to(dtype), labels):
        torch.manual_seed(0)
        mined.append(miner()(x, y, x.clone(), y.clone()))
    assert all(map(torch.equal, *mined))


def test_the_stock_weights_are_not_finite_where_these_are():
    # At a distance of exactly 2 the stock miner's log-weight is infinite, and the row loses its draws.
    x = torch.eye(512)[[0, 0, 0, 0]] * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    assert len(miners.DistanceWeightedMiner(nonzero_loss_cutoff=3)(x, labels)[0]) == 0
    assert len(TiledDistanceWeightedMiner(nonzero_loss_cutoff=None)(x, labels)[0]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": -0.1}, "cutoff must be at least 0 and below 1.999.*got -0.1"),
        ({"cutoff": 2.0}, "cutoff must be at least 0 and below 1.999"),
        ({"cutoff": math.nan}, "cutoff must be at least 0"),
        ({"nonzero_loss_cutoff": math.nan}, "nonzero_loss_cutoff must be a number, or None, got nan"),
        ({"triplets_per_anchor": 0}, "triplets_per_anchor must be an integer >= 1 or None, got 0"),
        ({"triplets_per_anchor": "all"}, "triplets_per_anchor must be an integer >= 1 or None, got 'all'"),
        ({"tile_entries": 0}, "tile_entries must be an integer >= 1"),
        ({"distance": LpDistance(p=2, normalize_embeddings=False)}, "distance must be L2 between unit vectors"),
        ({"distance": LpDistance(p=1)}, "distance must be L2 between unit vectors"),
        ({"distance": LpDistance(p=2, power=2)}, "distance must be L2 between unit vectors"),
    ],
)
def test_wrong_options_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        TiledDistanceWeightedMiner(**options)


def test_another_distance():
    with pytest.raises(TypeError, match=r"distance must be an LpDistance, got CosineSimilarity; pass distance=LpDist"):
        TiledDistanceWeightedMiner(distance=CosineSimilarity())


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG)
def test_wrong_input_says_what_is_wrong(arguments, error, message):
    given = {"embeddings": torch.randn(3, 2), "labels": torch.zeros(3).long(), **arguments}
    with pytest.raises(error, match=message):
        TiledDistanceWeightedMiner()(**given)


# ---- the draws -----------------------------------------------------------------------------------------------------


def test_draw_inverts_the_cumulative_sum():
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.5]])
    edge = np.nextafter(1.0, 0.0)
    rows = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    uniforms = torch.tensor([0.0, np.nextafter(0.25, 0.0), 0.25, edge, 0.0, edge, 0.0, edge], dtype=torch.float64)
    assert draw(weights, rows, uniforms).tolist() == [1, 1, 3, 3, 0, 0, 4, 4]


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1e-30, 1e-9, 0.3, 1.0]), min_size=3, max_size=3), min_size=1, max_size=5),
    st.data(),
)
def test_a_weight_of_zero_is_never_drawn(weights, data):
    weights = torch.tensor(weights)
    alive = (weights.amax(dim=1) > 1e-9).nonzero().squeeze(1).tolist()
    if not alive:
        return
    rows = torch.tensor(data.draw(st.lists(st.sampled_from(alive), min_size=1, max_size=9)))
    uniforms = torch.tensor(
        data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=len(rows), max_size=len(rows))),
        dtype=torch.float64,
    )
    columns = draw(weights, rows, uniforms)
    assert bool((weights[rows, columns] > 1e-30).all())


@pytest.mark.parametrize(
    "case", ["batch", "references", "no upper cutoff", "high dimension", "none admissible", "half"]
)
def test_draws_have_the_exact_probabilities(case):
    dimension = 512 if case == "high dimension" else 6
    x, labels = torch.randn(12, dimension), torch.arange(12) % 3
    y, y_labels = x, labels
    if case == "references":
        y, y_labels = torch.randn(15, dimension), torch.arange(15) % 5
    if case == "high dimension":
        x[1:] = x[0] + 0.8 * x[1:]  # distances from 0.9 to 1.1: weights over many orders of magnitude
    if case == "none admissible":
        x[0], x[1:] = 4 * torch.eye(6)[0], -4 * torch.eye(6)[0] + torch.randn(11, 6)
    if case == "half":
        x = y = x.half()
    upper = None if case == "no upper cutoff" else 1.4
    miner = TiledDistanceWeightedMiner(nonzero_loss_cutoff=upper, triplets_per_anchor=20000, tile_entries=40)
    output = miner(x, labels) if y is x else miner(x, labels, y, y_labels)
    expected = np.exp(negative_log_probabilities_slow(x.double(), labels, y.double(), y_labels, upper=upper))
    statistic, freedom = 0.0, 0
    for a in range(12):
        observed, p = counts(output, a, len(y)), expected[a]
        assert observed.sum() == 20000
        assert observed[p == 0].sum() == 0
        likely = p * 20000 >= 5  # the chi-square approximation wants that many; the rest is one cell
        cells, share = np.append(observed[likely], observed[~likely].sum()), np.append(p[likely], p[~likely].sum())
        cells, share = cells[share > 0], share[share > 0]
        statistic += chisquare(cells, share / share.sum() * 20000).statistic
        freedom += len(cells) - 1
    assert freedom >= 12
    assert chi2.sf(statistic, freedom) > 1e-3  # at the fixed seed of these tests


def test_the_stock_miner_draws_the_same_where_it_can():
    # Distances of about 1.1 to 1.4 in 8 dimensions and nothing at 2: here both follow the formula.
    x, labels = torch.randn(10, 8), torch.arange(10) // 5
    ours = TiledDistanceWeightedMiner(triplets_per_anchor=4000)(x, labels)
    stock = miners.DistanceWeightedMiner()
    theirs = [torch.cat(parts) for parts in zip(*(stock(x, labels) for _ in range(800)), strict=True)]
    anchors = theirs[0].unique().tolist()
    assert len(anchors) >= 5
    for a in anchors:
        mine, other = counts(ours, a, 10) / 4000, counts(theirs, a, 10) / 4000
        assert np.abs(mine - other).max() < 0.05


def test_one_triplet_for_each_positive():
    x, labels = torch.randn(20, 4), torch.randint(0, 5, (20,))
    a, p, n = TiledDistanceWeightedMiner(tile_entries=30)(x, labels)
    assert list(zip(a.tolist(), p.tolist(), strict=True)) == positive_pairs_slow(labels, labels, own=True)
    assert bool((labels[n] != labels[a]).all())
    y, y_labels = torch.randn(11, 4), torch.randint(2, 7, (11,))
    a, p, n = TiledDistanceWeightedMiner(tile_entries=30)(x, labels, y, y_labels)
    assert list(zip(a.tolist(), p.tolist(), strict=True)) == positive_pairs_slow(labels, y_labels, own=False)
    assert bool((y_labels[n] != labels[a]).all())
    assert a.dtype == p.dtype == n.dtype == torch.int64


@pytest.mark.parametrize("own", [True, False])
def test_positives_of_a_number_of_triplets_are_uniform(own):
    labels = torch.tensor([0, 1, 0, 1, 0, 2, 0, 1])
    x = torch.randn(8, 4)
    arguments = (x, labels) if own else (x, labels, x.clone(), labels.clone())
    a, p, _ = TiledDistanceWeightedMiner(triplets_per_anchor=3000)(*arguments)
    assert a.bincount(minlength=8).tolist() == [3000] * 5 + [0 if own else 3000] + [3000] * 2
    for anchor in range(8):
        drawn = p[a == anchor]
        if len(drawn) == 0:
            continue
        allowed = [i for i in range(8) if labels[i] == labels[anchor] and not (own and i == anchor)]
        observed = np.bincount(drawn.numpy(), minlength=8)
        assert observed.sum() == observed[allowed].sum() == 3000
        if len(allowed) > 1:
            assert chisquare(observed[allowed]).pvalue > 1e-3


def test_an_anchor_without_an_admissible_negative_draws_evenly_among_the_other_classes():
    x = torch.tensor([[1.0, 0.0]] * 3 + [[-1.0, 0.1], [-1.0, -0.1], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    output = TiledDistanceWeightedMiner(triplets_per_anchor=3000)(x, labels)
    for a in range(6):
        observed = counts(output, a, 6)
        others = (labels != labels[a]).numpy()
        assert observed[~others].sum() == 0
        assert chisquare(observed[others]).pvalue > 1e-3
    assert len(miners.DistanceWeightedMiner()(x, labels)[0]) == 0  # the stock miner drops them


@given(st.lists(st.integers(0, 3), max_size=10), st.lists(st.integers(0, 4), max_size=10), st.booleans(), st.booleans())
def test_properties(labels, ref_labels, own, counted):
    labels, x = torch.tensor(labels).long(), torch.randint(-1, 2, (len(labels), 3)).float()
    y_labels, y = torch.tensor(ref_labels).long(), torch.randint(-1, 2, (len(ref_labels), 3)).float()
    arguments = (x, labels) if own else (x, labels, y, y_labels)
    y_labels = labels if own else y_labels
    a, p, n = TiledDistanceWeightedMiner(triplets_per_anchor=2 if counted else None, tile_entries=11)(*arguments)
    assert len(a) == len(p) == len(n)
    assert bool((labels[a] == y_labels[p]).all())
    assert bool((labels[a] != y_labels[n]).all())
    assert not (own and bool((a == p).any()))
    pairs = positive_pairs_slow(labels.tolist(), y_labels.tolist(), own)
    if counted:
        assert a.tolist() == sorted(2 * [*{pair[0] for pair in pairs}])
    else:
        assert list(zip(a.tolist(), p.tolist(), strict=True)) == pairs


def test_a_seed_repeats_the_draws_for_every_tile_size():
    x, labels = torch.randn(61, 16), torch.randint(0, 9, (61,))
    for options in ({}, {"triplets_per_anchor": 3}):
        outputs = []
        for tile_entries in (1 << 21, 1 << 21, 61 * 30, 61, 1):
            torch.manual_seed(4)
            outputs.append(torch.stack(TiledDistanceWeightedMiner(**options, tile_entries=tile_entries)(x, labels)))
        assert all(torch.equal(output, outputs[0]) for output in outputs)
        assert not torch.equal(torch.stack(TiledDistanceWeightedMiner(**options)(x, labels)), outputs[0])


@pytest.mark.parametrize("labels", [[], [0], [3, 3, 3, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("triplets_per_anchor", [None, 5])
def test_no_triplets(labels, triplets_per_anchor):
    miner = TiledDistanceWeightedMiner(triplets_per_anchor=triplets_per_anchor)
    output = miner(torch.randn(len(labels), 4), torch.tensor(labels).long())
    assert [len(indices) for indices in output] == [0, 0, 0]
    assert all(indices.dtype == torch.int64 for indices in output)
    nothing = miner(torch.randn(3, 4), torch.arange(3), torch.empty(0, 4), torch.empty(0).long())
    assert [len(indices) for indices in nothing] == [0, 0, 0]


def test_equal_embeddings():
    a, _, n = TiledDistanceWeightedMiner(triplets_per_anchor=2000)(torch.ones(4, 512), torch.tensor([0, 0, 1, 1]))
    for anchor in range(4):
        others = n[a == anchor].bincount(minlength=4)
        assert sorted(others.tolist())[:2] == [0, 0]
        assert chisquare(others[others > 0].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dimension", [4, 512, 2048])
def test_half_precision_is_computed_in_float32(dtype, dimension):
    x, labels = torch.randn(48, dimension).to(dtype), torch.randint(0, 6, (48,))
    torch.manual_seed(1)
    expected = TiledDistanceWeightedMiner()(x.float(), labels)
    torch.manual_seed(1)
    got = TiledDistanceWeightedMiner()(x, labels)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_autocast = TiledDistanceWeightedMiner()(x, labels)
    for these in (got, in_autocast):
        assert torch.equal(torch.stack(these), torch.stack(expected))
    assert len(expected[0]) > 48


def test_strided_rows():
    base, labels = torch.randn(60, 9), torch.randint(0, 4, (20,))
    torch.manual_seed(2)
    expected = TiledDistanceWeightedMiner()(base[::3, ::2].clone(), labels)
    torch.manual_seed(2)
    assert torch.equal(torch.stack(TiledDistanceWeightedMiner()(base[::3, ::2], labels)), torch.stack(expected))


def test_in_the_place_of_the_stock_miner():
    x, labels = torch.randn(32, 8, requires_grad=True), torch.randint(0, 4, (32,))
    miner = TiledDistanceWeightedMiner(collect_stats=True)
    value = losses.MarginLoss()(x, labels, miner(x, labels))
    value.backward()
    assert bool(x.grad.isfinite().all())
    assert miner.num_triplets == sum(size * (size - 1) for size in labels.bincount().tolist())
    memory = losses.CrossBatchMemory(losses.MarginLoss(), 8, memory_size=64, miner=TiledDistanceWeightedMiner())
    for _ in range(3):
        assert memory(torch.randn(32, 8), labels).item() > 0


@pytest.mark.cuda
def test_cuda():
    x, labels = torch.randn(200, 64).cuda(), torch.randint(0, 20, (200,)).cuda()
    a, p, n = TiledDistanceWeightedMiner(tile_entries=5000)(x, labels)
    pairs = positive_pairs_slow(labels.tolist(), labels.tolist(), own=True)
    assert list(zip(a.tolist(), p.tolist(), strict=True)) == pairs
    expected = probabilities(x.cpu(), labels.cpu())
    assert bool((expected[a.cpu(), n.cpu()] > -math.inf).all())
