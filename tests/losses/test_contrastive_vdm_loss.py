"""The paper's loss as a host loss: against numbers, the stock loss, slow loops, and itself by another path."""

from __future__ import annotations

import copy
import math
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch.testing import assert_close

from adaptive_margin import AdaptiveMargin, ConstantMargin, ContrastiveVDMLoss, LinearMargin
from adaptive_margin import functional as F
from tests.references.contrastive import pair_terms_slow

EXACT = {"rtol": 0, "atol": 1e-10}


def squared_l2(**kwargs):
    return distances.LpDistance(**{"p": 2, "power": 2, "normalize_embeddings": False, **kwargs})


def batch(rows=40, features=8, classes=4, dtype=torch.float64):
    return torch.randn(rows, features, dtype=dtype), torch.arange(rows) % classes


def value_and_gradient(loss, x, *args, **kwargs):
    x = x.clone().requires_grad_()
    value = loss(x, *args, **kwargs)
    value.backward()
    return value.detach(), x.grad


# --- numbers by hand --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair_memory", ["tiled", "pairs"])
def test_three_points_on_a_line(pair_memory):
    # strong at 0 and 1, weak at 1.5, margin 1: D² of the strong pair is 1; of the cross pairs 0.25 and 2.25, one active
    x, groups = torch.tensor([[0.0], [1.0], [1.5]]), torch.tensor([1, 1, 0])
    options = {"margin": 1.0, "compact_label": 1, "pair_memory": pair_memory}
    assert ContrastiveVDMLoss(**options)(x, groups) == 1 + 0.75
    assert ContrastiveVDMLoss(repulsion=0.5, **options)(x, groups) == 1 + 0.375
    # Ω = ½ · 1² + ½ · (0.75² + 0) / 2 = 0.640625
    assert ContrastiveVDMLoss(regularizer="chi2", **options)(x, groups) == 1.75 + 0.640625 / 4
    fisher = ContrastiveVDMLoss(regularizer="fisher", penalty=0.5, **options)
    assert_close(fisher(x, groups), torch.tensor(1.75 + 0.25 * (0.640625 - 1) ** 2))  # the multiplier starts at 0
    assert_close(fisher.multiplier_value.item(), 0.01 * (0.640625 - 1))  # and rises where Ω > 1, falls where Ω < 1
    assert_close(fisher(x, groups), torch.tensor(1.75 + 0.01 * 0.359375**2 + 0.25 * 0.359375**2))
    fisher(10 * x, groups)  # Ω is thousands, and counts as 2
    assert_close(fisher.multiplier_value.item(), 0.02 * (0.640625 - 1) + 0.01)


def test_the_weak_group_is_pulled_together_only_without_a_compact_label():
    x, groups = torch.tensor([[0.0], [10.0], [20.0]]), torch.tensor([1, 0, 0])
    assert ContrastiveVDMLoss(margin=1.0, compact_label=1)(x, groups) == 0
    assert ContrastiveVDMLoss(margin=1.0)(x, groups) == 100


# --- limits: what it must equal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair_memory", ["tiled", "pairs"])
@pytest.mark.parametrize("margin", [0.5, 9.0, 100.0])
def test_equals_the_stock_contrastive_loss_on_squared_distances(pair_memory, margin):
    x, labels = batch()
    stock = losses.ContrastiveLoss(pos_margin=0, neg_margin=margin, distance=squared_l2())
    ours = ContrastiveVDMLoss(margin, pair_memory=pair_memory)
    for got, wanted in zip(value_and_gradient(ours, x, labels), value_and_gradient(stock, x, labels), strict=True):
        assert_close(got, wanted, **EXACT)


def test_equals_the_stock_loss_with_a_reference_set_and_a_miner():
    x, labels = batch()
    ref, ref_labels = batch(30, classes=5)
    stock = losses.ContrastiveLoss(neg_margin=9.0, distance=squared_l2())
    for arguments in (
        (labels, None, ref, ref_labels),
        (labels, miners.PairMarginMiner(0.1, 1.2)(x, labels)),
        (labels, miners.BatchHardMiner()(x, labels)),
        (None, miners.BatchHardMiner()(x, labels)),
    ):
        ours = value_and_gradient(ContrastiveVDMLoss(9.0), x, *arguments)
        for got, wanted in zip(ours, value_and_gradient(stock, x, *arguments), strict=True):
            assert_close(got, wanted, **EXACT)


@pytest.mark.parametrize("pair_memory", ["tiled", "pairs"])
@pytest.mark.parametrize("margin", [9.0, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_batch_with_labels_of_its_own_is_another_set(pair_memory, margin, dtype):
    x, labels = batch(dtype=dtype)
    loss = ContrastiveVDMLoss(margin, pair_memory=pair_memory)
    for ref_labels in (labels.clone(), (labels + torch.arange(40) % 3) % 4):
        value = loss(x, labels, None, x, ref_labels)
        assert_close(value, loss(x, labels, None, x.clone(), ref_labels))
        if margin is not None and dtype == torch.float64:
            stock = losses.ContrastiveLoss(neg_margin=margin, distance=squared_l2(), reducer=reducers.MeanReducer())
            pairs = stock.compute_loss(x, labels, None, x, ref_labels)  # with each row's pair with itself
            hinges = pairs["neg_loss"]["losses"]
            assert_close(value, pairs["pos_loss"]["losses"].mean() + hinges[hinges > 0].mean())
    for itself in ((labels,), (None,)):  # labels that are the same object, or left out, are those of the batch
        assert torch.equal(loss(x, labels, None, x, *itself), loss(x, labels))


def test_identical_pairs_stay_in_the_mean():
    x, labels = torch.tensor([[0.0], [0.0], [2.0]]), torch.zeros(3, dtype=torch.int64)
    assert_close(ContrastiveVDMLoss(1.0)(x, labels), torch.tensor(8 / 3))  # D² = 0, 4, 4
    assert losses.ContrastiveLoss(distance=squared_l2())(x, labels) == 4  # the host's reducer drops the zero


def test_equals_the_function_on_two_groups():
    x, groups = batch(classes=2)
    for regularizer in ("none", "chi2", "fisher"):
        loss = ContrastiveVDMLoss(9.0, compact_label=1, regularizer=regularizer, repulsion=0.7)
        wanted = F.vdm_contrastive_loss(x[groups == 1], x[groups == 0], 9.0, 0.7, regularizer)
        assert_close(loss(x, groups), wanted, **EXACT)


@pytest.mark.parametrize("pair_memory", ["tiled", "pairs"])
@pytest.mark.parametrize("granularity", ["batch", "anchor"])
@pytest.mark.parametrize("with_ref", [False, True])
def test_equals_the_slow_loop(pair_memory, granularity, with_ref):
    x, labels = batch(14, 3, 3)
    ref, ref_labels = batch(9, 3, 2) if with_ref else (None, None)
    margin = AdaptiveMargin(granularity=granularity)
    got = ContrastiveVDMLoss(margin, pair_memory=pair_memory)(x, labels, None, ref, ref_labels)
    alpha = margin(x, labels, None, ref, ref_labels)
    slow = pair_terms_slow(x, labels, alpha, ref, ref_labels)
    assert_close(got, slow.attraction + slow.repulsion, **EXACT)


GRID = {
    "constant": {"margin": 9.0},
    "linear": {"margin": LinearMargin(4.0)},
    "chi2": {"margin": 9.0, "regularizer": "chi2", "regularizer_weight": 0.3},
    "fisher": {"margin": 9.0, "regularizer": "fisher"},
    "adaptive": {},
    "with gradient": {"margin": AdaptiveMargin(detach=False)},
    "anchor": {"margin": AdaptiveMargin(granularity="anchor")},
    "anchor with gradient": {"margin": AdaptiveMargin(granularity="anchor", detach=False), "compact_label": 2},
    "compact": {"compact_label": 1},
    "compact chi2": {"margin": 9.0, "compact_label": 1, "regularizer": "chi2"},
    "ignored class": {"ignore_label": 3, "compact_label": 0},
    "nothing ignored": {"ignore_label": None},
    "cosine": {"distance": distances.CosineSimilarity()},
    "plain l2": {"distance": squared_l2(power=1)},
    "normalised": {"distance": distances.LpDistance(power=2)},
    "repulsion": {"repulsion": 0.5},
}


@pytest.mark.parametrize("name", GRID)
@pytest.mark.parametrize("with_ref", [False, True])
@pytest.mark.parametrize("with_ignored", [False, True])
def test_tiles_and_pairs_agree(name, with_ref, with_ignored):
    x, labels = batch()
    if with_ignored:
        labels[::7] = -1
    ref, ref_labels = batch(30, classes=5) if with_ref else (None, None)
    results = []
    for pair_memory in ("tiled", "pairs"):
        loss = ContrastiveVDMLoss(pair_memory=pair_memory, **GRID[name])
        results.append(value_and_gradient(loss, x, labels, None, ref, ref_labels))
        assert loss.pair_path == pair_memory
    for tiled, pairs in zip(*results, strict=True):
        assert_close(tiled, pairs, **EXACT)


def test_ignored_rows_are_as_good_as_gone():
    x, labels = batch()
    labels[::5] = -1
    kept = labels != -1
    for granularity in ("batch", "anchor", "pair"):
        loss = ContrastiveVDMLoss(AdaptiveMargin(granularity=granularity), ignore_label=-1)
        assert_close(loss(x, labels), loss(x[kept], labels[kept]), **EXACT)
    assert not torch.allclose(loss(x, labels), ContrastiveVDMLoss(ignore_label=None)(x, labels))


def test_minus_one_is_a_class_to_all_but_the_loss_of_two_groups():
    x, labels = batch()
    every = ContrastiveVDMLoss(9.0)(x, labels)
    assert_close(ContrastiveVDMLoss(9.0)(x, labels - 1), every, **EXACT)
    two = ContrastiveVDMLoss(9.0, compact_label=1)  # an OtsuGrouper's -1 is neither group
    groups = (labels % 3) - 1
    kept = groups != -1
    assert_close(two(x, groups), two(x[kept], groups[kept]), **EXACT)


@pytest.mark.parametrize("pair_memory", ["tiled", "pairs"])
@pytest.mark.parametrize("compact_label", [None, 1, 299])
def test_an_unsigned_label_is_none_below_zero(pair_memory, compact_label):
    x, labels = batch()
    labels[labels == 3] = 255  # of uint8 torch takes it for -1, and 43 for 299
    labels[labels == 2] = 43
    loss = ContrastiveVDMLoss(9.0, pair_memory=pair_memory, compact_label=compact_label)
    small = labels.to(torch.uint8)
    assert_close(loss(x, small), loss(x, labels), **EXACT)
    assert_close(loss(x, small, None, x, small), loss(x, labels), **EXACT)
    assert_close(loss(x, small, None, x.clone(), small), loss(x, labels, None, x.clone(), labels), **EXACT)


def test_a_margin_for_every_pair_is_each_pairs_own():
    x, labels = batch(12, 4, 3)
    x *= 0.2
    margin = AdaptiveMargin(granularity="pair")
    alphas = margin(x, labels)  # of all pairs of two labels, row by row
    hinges = []
    for i in range(12):
        for j in range(12):
            if labels[i] != labels[j]:
                hinges.append(alphas[len(hinges)] - (x[i] - x[j]).square().sum())
    active = [h for h in hinges if h > 0]
    assert active  # or the comparison shows nothing
    loss = ContrastiveVDMLoss(margin)
    attraction = ContrastiveVDMLoss(1e-9)(x, labels)
    assert_close(loss(x, labels) - attraction, torch.stack(active).mean(), **EXACT)


def test_gradcheck_and_no_second_gradient():
    x, labels = batch(9, 3, 3)
    x.requires_grad_()
    for loss in (ContrastiveVDMLoss(9.0, regularizer="chi2"), ContrastiveVDMLoss(AdaptiveMargin(detach=False))):
        assert torch.autograd.gradcheck(lambda z, loss=loss: loss(z, labels), (x,))
    (first,) = torch.autograd.grad(ContrastiveVDMLoss(9.0)(x, labels), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.square().sum().backward()


def test_listed_pairs_have_a_second_gradient():
    x, labels = batch(9, 3, 3)
    x.requires_grad_()
    (first,) = torch.autograd.grad(ContrastiveVDMLoss(9.0, pair_memory="pairs")(x, labels), x, create_graph=True)
    try:
        first.square().sum().backward()
    except NotImplementedError as error:
        pytest.skip(f"this torch has none for cdist: {error}")
    assert x.grad is not None


def test_the_order_of_the_samples_does_not_matter():
    x, labels = batch()
    order = torch.randperm(len(x))
    assert_close(ContrastiveVDMLoss()(x, labels), ContrastiveVDMLoss()(x[order], labels[order]), **EXACT)


# --- Fisher's constraint ----------------------------------------------------------------------------------------------


def omega_in_training(regularizer, margin=1.0, rate=2e-3, steps=500):
    """Ω of the last 200 steps of a critic whose groups overlap, so that neither kind of pairs vanishes."""
    torch.manual_seed(0)
    critic = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    with torch.no_grad():
        critic[2].weight *= 3  # Ω starts near 35
    loss = ContrastiveVDMLoss(margin, regularizer=regularizer, compact_label=1, collect_stats=True)
    optimizer = torch.optim.Adam(critic.parameters(), rate, betas=(0.5, 0.9))
    omegas = []
    for _ in range(steps):
        x = torch.randn(64, 8)
        groups = (x[:, :2].norm(dim=1) > 1.2) ^ (torch.rand(64) < 0.1)
        optimizer.zero_grad()
        loss(critic(x), groups.long()).backward()
        optimizer.step()
        omegas.append(loss.omega)
    return torch.tensor(omegas[-200:])


@pytest.mark.slow
@pytest.mark.parametrize(("margin", "rate"), [(0.2, 2e-3), (1.0, 5e-4), (1.0, 2e-3)])
def test_omega_stays_near_one(margin, rate):
    omega = omega_in_training("fisher", margin, rate)
    assert ((omega > 0.5) & (omega < 2)).double().mean() > 0.85  # a mean of 1 hides a cycle


def test_without_the_constraint_omega_stays_away():
    assert omega_in_training("chi2").mean() < 0.5


def test_the_multiplier_moves_in_training_only_and_is_saved():
    x, groups = batch(classes=2)
    loss = ContrastiveVDMLoss(1.0, regularizer="fisher", compact_label=1)
    loss.eval()(x, groups)
    with torch.no_grad():
        loss.train()(x, groups)
    assert loss.multiplier_value == 0
    loss(x, groups)
    assert loss.multiplier_value != 0
    other = ContrastiveVDMLoss(1.0, regularizer="fisher", compact_label=1)
    other.load_state_dict(loss.state_dict())
    assert other.multiplier_value == loss.multiplier_value
    assert_close(other(x, groups), loss(x, groups))


# --- a guest of the host ----------------------------------------------------------------------------------------------


def every_reducer():
    return [
        reducers.MeanReducer(),
        reducers.SumReducer(),
        reducers.AvgNonZeroReducer(),
        reducers.ThresholdReducer(low=0.1),
        reducers.DivisorReducer(),
        reducers.PerAnchorReducer(),
        reducers.ClassWeightedReducer(torch.rand(4)),
    ]


@pytest.mark.parametrize("reducer", every_reducer(), ids=lambda r: type(r).__name__)
def test_every_reducer_is_the_callers_own(reducer):
    x, labels = batch()
    loss = ContrastiveVDMLoss(9.0, reducer=reducer)
    assert all(inside is reducer for inside in loss.reducer.reducers.values())  # the host would have copied it
    stock_reducer = copy.deepcopy(reducer)
    stock = losses.ContrastiveLoss(neg_margin=9.0, distance=squared_l2(), reducer=stock_reducer)
    if isinstance(reducer, reducers.DivisorReducer):  # the stock loss gives it no divisor; ours its number of pairs
        stock = losses.ContrastiveLoss(neg_margin=9.0, distance=squared_l2())
    assert_close(loss(x, labels), stock(x, labels), **EXACT)
    assert loss.pair_path == "pairs"


def test_reducers_that_keep_the_dictionary_or_differ_by_sub_loss():
    x, labels = batch()
    kept = ContrastiveVDMLoss(9.0, reducer=reducers.DoNothingReducer(), regularizer="chi2")(x, labels)
    assert set(kept) == {"pos_loss", "neg_loss", "reg_loss"}
    assert len(kept["pos_loss"]["losses"]) == len(kept["pos_loss"]["indices"][0]) == 40 * 9
    both = reducers.MultipleReducers({"pos_loss": reducers.MeanReducer(), "neg_loss": reducers.AvgNonZeroReducer()})
    loss = ContrastiveVDMLoss(9.0, reducer=both)
    assert loss.reducer is both
    assert_close(loss(x, labels), ContrastiveVDMLoss(9.0)(x, labels), **EXACT)


def test_regularised_embeddings_and_other_distances():
    x, labels = batch()
    penalty = regularizers.LpRegularizer()
    loss = ContrastiveVDMLoss(9.0, embedding_regularizer=penalty, embedding_reg_weight=0.1)
    assert_close(loss(x, labels), ContrastiveVDMLoss(9.0)(x, labels) + 0.1 * penalty(x), **EXACT)
    assert loss.pair_path == "tiled"
    for distance in (distances.LpDistance(p=1), distances.SNRDistance()):
        ours = ContrastiveVDMLoss(3.0, distance=distance)
        stock = losses.ContrastiveLoss(neg_margin=3.0, distance=distance)
        assert_close(ours(x, labels), stock(x, labels), **EXACT)
        assert ours.pair_path == "pairs"


def test_a_cosine_stands_for_the_squared_distance_of_unit_vectors():
    x, labels = batch()
    unit = torch.nn.functional.normalize(x)
    cosine = ContrastiveVDMLoss(1.5, distance=distances.CosineSimilarity(), pair_memory="pairs")
    assert_close(cosine(x, labels), ContrastiveVDMLoss(1.5)(unit, labels), **EXACT)


def test_inside_the_hosts_wrappers():
    x, labels = batch(dtype=torch.float32)
    memory = losses.CrossBatchMemory(ContrastiveVDMLoss(9.0), 8, memory_size=64)
    stock = losses.CrossBatchMemory(losses.ContrastiveLoss(neg_margin=9.0, distance=squared_l2()), 8, memory_size=64)
    for _ in range(3):
        x = torch.randn_like(x)
        assert_close(memory(x, labels), stock(x, labels))
    both = losses.MultipleLosses([ContrastiveVDMLoss(9.0), ContrastiveVDMLoss(1.0)], weights=[1, 2])
    assert_close(both(x, labels), ContrastiveVDMLoss(9.0)(x, labels) + 2 * ContrastiveVDMLoss(1.0)(x, labels))
    assert losses.SelfSupervisedLoss(ContrastiveVDMLoss())(x, x + 0.1) > 0


def test_statistics_the_hosts_way():
    x, groups = batch(classes=2)
    loss = ContrastiveVDMLoss(regularizer="fisher", compact_label=1, collect_stats=True)
    loss(x, groups)
    names = {"alpha", "current_margin", "active_pairs", "omega", "multiplier", "in_tiles"}
    assert names == set(loss._record_these_stats)
    assert loss.current_margin == loss.alpha == loss.margin.alpha == pytest.approx(loss.mi + loss.delta)
    assert loss.k == loss.margin.k
    assert loss.alpha == AdaptiveMargin()(x, groups).item()
    slow = pair_terms_slow(x, 1 - groups, torch.tensor(loss.alpha), only_first=True)
    assert loss.active_pairs == slow.active
    assert_close(loss.omega, slow.second_moment.item())
    assert loss.in_tiles == 1
    loss.reset_stats()
    assert all(math.isnan(value) for value in loss.statistics().values())
    quiet = ContrastiveVDMLoss()
    quiet(x, groups)
    for name in (*names, "mi", "delta", "k"):
        with pytest.raises(AttributeError, match=f"collect_stats must be True to read {name}, .* to Contrastive"):
            getattr(quiet, name)
    assert not hasattr(quiet, "_record_these_stats") or "alpha" not in quiet._record_these_stats


def test_survives_pickle_copy_and_print():
    x, labels = batch()
    loss = ContrastiveVDMLoss(regularizer="fisher")
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert_close(other(x, labels), ContrastiveVDMLoss(regularizer="fisher")(x, labels))
    assert "regularizer='fisher'" in repr(loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x, labels = batch(dtype=torch.float32)
    x = x.to(dtype)
    value, gradient = value_and_gradient(ContrastiveVDMLoss(9.0), x, labels)
    wanted, wanted_gradient = value_and_gradient(ContrastiveVDMLoss(9.0), x.float(), labels)
    assert value.dtype == gradient.dtype == dtype
    assert_close(value, wanted.to(dtype))
    assert_close(gradient, wanted_gradient.to(dtype))


@pytest.mark.parametrize("pair_memory", ["tiled", "pairs"])
def test_a_float16_row_that_vanishes_has_a_loss_and_no_gradient(pair_memory):
    x, labels = batch(dtype=torch.float32)
    x[3] = 0  # float16 cannot normalise it, nor a row whose norm is beyond 65504
    x[5] = 6e4
    loss = ContrastiveVDMLoss(1.5, pair_memory=pair_memory, distance=distances.CosineSimilarity())
    half = x.half()
    x = half.float()
    assert_close(loss(half, labels), loss(x, labels).half())
    assert_close(loss(half[4:], labels[4:], None, half, labels), loss(x[4:], labels[4:], None, x, labels).half())
    assert torch.isfinite(value_and_gradient(loss, half[4:], labels[4:])[1]).all()
    with pytest.raises(ValueError, match="the gradient of ContrastiveVDMLoss must be finite"):
        value_and_gradient(loss, half, labels)
    with pytest.raises(ValueError, match="the gradient of ContrastiveVDMLoss must be finite"):
        loss(half[4:], labels[4:], None, half.requires_grad_(), labels).backward()


@pytest.mark.parametrize("pair_memory", ["tiled", "pairs"])
@pytest.mark.parametrize("distance", [squared_l2, distances.CosineSimilarity])
def test_autocast_changes_nothing(pair_memory, distance):
    x, labels = batch(dtype=torch.float32)
    loss = ContrastiveVDMLoss(1.0, pair_memory=pair_memory, distance=distance())
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(x, labels)
    value, gradient = value_and_gradient(loss, x.detach(), labels)
    assert_close(inside, value)
    assert_close(torch.autograd.grad(inside, x)[0], gradient)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"repulsion": -1}, ["repulsion", "at least 0", "-1"]),
        ({"regularizer": "chi3"}, ["regularizer", "'chi2'", "'chi3'"]),
        ({"pair_memory": "lots"}, ["pair_memory", "'tiled'", "'lots'"]),
        ({"compact_label": -1}, ["compact_label", "ignore_label"]),
        ({"distance": distances.DotProductSimilarity(normalize_embeddings=False)}, ["distance", "normalised"]),
        ({"pair_memory": "tiled", "reducer": reducers.MeanReducer()}, ["pair_memory", "reducer"]),
        ({"pair_memory": "tiled", "margin": AdaptiveMargin(granularity="pair")}, ["pair_memory", "margin a pair"]),
        ({"pair_memory": "tiled", "distance": distances.SNRDistance()}, ["pair_memory", "SNRDistance"]),
    ],
)
def test_options_that_are_none(change, words):
    with pytest.raises(ValueError, match="must be") as raised:
        ContrastiveVDMLoss(**change)
    assert all(word in str(raised.value) for word in words)


def test_inputs_that_do_not_fit():
    x, labels = batch()
    loss = ContrastiveVDMLoss()
    broken = x.clone()
    broken[3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"embeddings must be finite.*\(3, 2\)"):
        loss(broken, labels)
    with pytest.raises(ValueError, match="labels must be as long as embeddings"):
        loss(x, labels[:-1])
    with pytest.raises(ValueError, match="labels must be given"):
        loss(x)
    with pytest.raises(ValueError, match="ref_labels must be given"):
        loss(x, labels, None, x[:5].clone())
    with pytest.raises(ValueError, match="pair_memory must be"):
        ContrastiveVDMLoss(pair_memory="tiled")(x, labels, miners.BatchHardMiner()(x, labels))
    with pytest.raises(ValueError, match="labels must be given with compact_label"):
        ContrastiveVDMLoss(compact_label=1)(x, None, miners.BatchHardMiner()(x, labels))
    with pytest.raises(TypeError, match="labels must be integers"):
        loss(x, labels + 0.5)
    assert_close(loss(x, labels.double()), loss(x, labels), **EXACT)


@pytest.mark.parametrize("pair_memory", ["tiled", "pairs"])
@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        (0, []),
        (1, [0]),
        (2, [0, 1]),
        (2, [0, 0]),
        (3, [0, 0, 0]),
        (4, [1, 0, 0, 0]),
        (3, [-1, -1, -1]),
        (3, [-1, 0, 1]),
    ],
)
@pytest.mark.parametrize("compact_label", [None, 1])
@pytest.mark.parametrize("equal", [False, True])
def test_small_and_degenerate_batches_have_a_finite_loss_and_gradient(pair_memory, rows, labels, compact_label, equal):
    x = torch.ones(rows, 3) if equal else torch.randn(rows, 3)
    loss = ContrastiveVDMLoss(compact_label=compact_label, pair_memory=pair_memory, regularizer="fisher")
    value, gradient = value_and_gradient(loss, x, torch.tensor(labels, dtype=torch.int64))
    assert torch.isfinite(value)
    assert gradient is not None
    assert torch.isfinite(gradient).all()


@settings(max_examples=60)
@given(
    rows=st.integers(0, 9),
    features=st.integers(1, 6),
    exponent=st.integers(-20, 18),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    classes=st.integers(1, 4),
    pair_memory=st.sampled_from(["tiled", "pairs"]),
    regularizer=st.sampled_from(["none", "chi2", "fisher"]),
    seed=st.integers(0, 2**16),
)
def test_finite_or_an_error_at_any_scale(rows, features, exponent, dtype, classes, pair_memory, regularizer, seed):
    torch.manual_seed(seed)
    x = (torch.randn(rows, features, dtype=torch.float64) * 10.0**exponent).to(dtype)
    labels = torch.randint(-1, classes, (rows,))
    loss = ContrastiveVDMLoss(ConstantMargin(1.0), pair_memory=pair_memory, regularizer=regularizer)
    try:
        value, gradient = value_and_gradient(loss, x, labels)
    except ValueError as error:
        assert "must be" in str(error)  # noqa: PT017 - either outcome is right
        return
    if dtype == torch.float16 and not torch.isfinite(value):
        return  # the loss scaler's business
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


# --- rows of no direction, pairs on the margin ------------------------------------------------------------------------


@pytest.mark.parametrize("pair_memory", ["tiled", "pairs"])
@pytest.mark.parametrize("with_ref", [False, True])
@pytest.mark.parametrize("regularizer", ["none", "chi2"])
def test_a_zero_row_is_at_squared_distance_2_under_cosine(pair_memory, with_ref, regularizer):
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0], [4e-13, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    loss = ContrastiveVDMLoss(
        3.0, distance=distances.CosineSimilarity(), pair_memory=pair_memory, regularizer=regularizer
    )
    ref = (None, x.clone(), labels.clone()) if with_ref else ()
    value, gradient = value_and_gradient(loss, x, labels, *ref)
    # The host divides a row by 1e-12 at least: 2 - 2s is 2, 2 inside and 2, 2, 2 and 2 - 0.8 across.
    inside, across = [2.0, 2.0], [1.0, 1.0, 1.0, 1.8]
    if with_ref:
        inside = [*inside, *inside, 2.0, 0.0, 0.0, 2 - 2 * 0.16]  # and of each row with itself
        across = [*across, *across]
    expected = sum(inside) / len(inside) + sum(across) / len(across)
    if regularizer == "chi2":
        squares = [sum(d * d for d in kind) / len(kind) for kind in (inside, across)]
        expected += 0.25 * 0.5 * sum(squares)
    assert_close(value.item(), expected, rtol=1e-12, atol=0)
    listed = ContrastiveVDMLoss(
        3.0, distance=distances.CosineSimilarity(), pair_memory="pairs", regularizer=regularizer
    )
    assert_close(gradient, value_and_gradient(listed, x, labels, *ref)[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pair_memory", ["tiled", "pairs"])
@pytest.mark.parametrize("power", [1, 2])
def test_a_pair_on_the_margin_is_not_within_it(pair_memory, power):
    x = torch.eye(6).repeat(4, 1) / 2**0.5  # copies, and pairs at distance 1, as far as float32 has it
    distance = squared_l2(power=power)
    loss = ContrastiveVDMLoss(1.0, distance=distance, pair_memory=pair_memory, collect_stats=True)
    labels = torch.arange(24) % 5
    copies = (x[:, None] == x).all(2)[labels[:, None] != labels]
    loss(x, labels)
    assert loss.active_pairs == copies.sum()  # and not one of the others
    assert_close(loss(x, labels), torch.tensor(1.0 + 1.0))  # no copies inside the groups: at 1, and across at 0
