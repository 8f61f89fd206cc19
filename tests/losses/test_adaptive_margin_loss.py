"""A loss with the margin of the batch: equal to the stock loss built with that margin, which is left as it was."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.functional import normalize

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, LinearMargin, Margin
from tests.references import margin_losses as slow

from .cases import ELEMENTWISE, HOSTS, Host, assert_identical, assert_near, batch, call

every_host = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
F64 = torch.float64


def inputs(host: Host, kind: str, dtype: torch.dtype = torch.float32) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Arguments of one kind of call that the host takes; none where it does not."""
    embeddings, labels = batch(dtype=dtype)
    if kind == "plain":
        return ((embeddings, labels) if host.labels else (embeddings,)), {}
    if kind == "classes" and not host.tuples and not host.labels:
        return (embeddings,), {"indices_tuple": labels}
    if kind == "triplets" and host.tuples:
        mined = miners.TripletMarginMiner(margin=0.5)(embeddings, labels)
        return (embeddings, labels), {"indices_tuple": mined}
    if kind == "pairs" and host.tuples:
        mined = miners.PairMarginMiner(pos_margin=0.6, neg_margin=1.4)(embeddings, labels)
        return (embeddings, labels), {"indices_tuple": mined}
    if kind in ("reference", "reference pairs") and host.reference:
        ref_emb, ref_labels = batch(9, seed=1, dtype=dtype)
        with torch.no_grad():
            ref_emb[1] = embeddings[0] + 0.01 * ref_emb[2]  # of another class, within any margin
        more = {"ref_emb": ref_emb, "ref_labels": ref_labels}
        if kind == "reference pairs":
            more["indices_tuple"] = miners.PairMarginMiner(0.6, 1.4)(embeddings, labels, ref_emb, ref_labels)
        return (embeddings, labels), more
    return (), {}


KINDS = ("plain", "classes", "triplets", "pairs", "reference", "reference pairs")
TAKEN = [(host, kind) for host in HOSTS.values() for kind in KINDS if inputs(host, kind)[0]]


# A constant margin is the constructor's number, to the bit


@every_host
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("units", [None, "replace"])
def test_a_constant_margin_equals_the_stock_loss_to_the_bit(host: Host, dtype: torch.dtype, units: Any) -> None:
    for kind in (kind for taker, kind in TAKEN if taker is host):
        args, kwargs = inputs(host, kind, dtype)
        default = call(host.build(dtype), *args, **kwargs)
        for number in host.numbers:
            stock = call(host.build(dtype, margin=number), *args, **kwargs)
            ours = call(AdaptiveMarginLoss(host.build(dtype), number, units), *args, **kwargs)
            assert_identical(ours, stock)
            assert not torch.equal(stock.value, default.value), f"{number} is no test of {host.name}"


@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if not host.weights])
def test_half_precision_equals_the_stock_loss_to_the_bit_where_that_keeps_it(name: str) -> None:
    host = HOSTS[name]
    args, kwargs = inputs(host, "plain", torch.float16)
    for number in host.numbers:
        stock = call(host.build(margin=number), *args, **kwargs)
        assert_identical(call(AdaptiveMarginLoss(host.build(), number), *args, **kwargs), stock)


@every_host
def test_a_linear_margin_equals_the_stock_loss_of_its_epoch_to_the_bit(host: Host) -> None:
    start, slope = host.numbers[0], 0.01
    margin = LinearMargin(start, slope)
    ours = AdaptiveMarginLoss(host.build(), margin)
    args, kwargs = inputs(host, "plain")
    for epoch in range(3):
        stock = host.build(margin=start + epoch * slope)
        assert_identical(call(ours, *args, **kwargs), call(stock, *args, **kwargs))
        margin.step_epoch()


def test_what_is_derived_from_the_margin_follows_it() -> None:
    circle, seen = losses.CircleLoss(m=0.4), {}
    circle.register_forward_pre_hook(lambda module, _: seen.update(vars(module)))
    AdaptiveMarginLoss(circle, 0.25)(*batch())
    assert [seen[name] for name in ("m", "op", "on", "delta_p", "delta_n")] == [0.25, 1.25, -0.25, 0.75, 0.25]
    assert [getattr(circle, name) for name in ("m", "op", "on", "delta_p", "delta_n")] == [0.4, 1.4, -0.4, 0.6, 0.4]


def test_a_boundary_of_the_users_own_stays() -> None:
    embeddings, labels = batch()
    kwargs = {"Tn": 4, "alpha": 1.05}
    ours = AdaptiveMarginLoss(losses.RankedListLoss(margin=0.4, **kwargs), 0.7)(embeddings, labels)
    assert torch.equal(ours, losses.RankedListLoss(margin=0.7, **kwargs)(embeddings, labels))
    assert not torch.equal(ours, losses.RankedListLoss(margin=0.7, Tn=4)(embeddings, labels))


# An adaptive margin is the stock loss built with the translated α̂


def alpha_of(embeddings: Tensor, labels: Any = None, indices_tuple: Any = None, **kwargs: Any) -> float:
    """α̂ of normalised embeddings: what all hosts' default distances see."""
    if labels is None:
        labels, indices_tuple = indices_tuple, None
    if kwargs:
        kwargs["ref_emb"] = normalize(kwargs["ref_emb"])
    return AdaptiveMargin()(normalize(embeddings), labels, indices_tuple, **kwargs).item()


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        pytest.param(host, kind, id=f"{host.name}-{kind}")
        for host, kind in TAKEN
        if host.labels or kind == "classes"  # else classes are drawn: below
    ],
)
def test_an_adaptive_margin_equals_the_stock_loss_built_with_it(host: Host, kind: str) -> None:
    args, kwargs = inputs(host, kind, F64)
    alpha = alpha_of(*args, **kwargs)
    results = []
    chosen = host.of_chosen if "indices_tuple" in kwargs else {}
    translations = {**host.translations, **chosen}
    for units, translated in translations.items():
        stock = call(host.build(F64, margin=translated(alpha)), *args, **kwargs)
        ours = AdaptiveMarginLoss(host.build(F64), AdaptiveMargin(), units, collect_stats=True)
        assert_near(call(ours, *args, **kwargs), stock)
        own = translated(alpha)
        expected = (
            math.radians(own) if host.name in ("ArcFaceLoss", "SubCenterArcFaceLoss", "TupletMarginLoss") else own
        )
        assert ours.current_margin == pytest.approx(expected, rel=1e-12)
        results.append(stock.value.item())
        if len(results) == 1:  # the first of the units is the default
            assert_near(call(AdaptiveMarginLoss(host.build(F64), AdaptiveMargin()), *args, **kwargs), stock)
    meanings = {translated(alpha) for translated in translations.values()}
    assert len(set(results)) == len(meanings) > 1, "units that all give the same loss test nothing"


def test_the_manifold_losses_random_classes_are_the_margins_too() -> None:
    host = HOSTS["ManifoldLoss"]
    embeddings, _ = batch(dtype=F64)
    torch.manual_seed(3)  # as call() does
    classes = torch.cat((torch.arange(4), torch.randint(0, 4, (8,))))[torch.randperm(12)]
    alpha = alpha_of(embeddings, classes)
    ours = AdaptiveMarginLoss(host.build(F64))
    assert_near(call(ours, embeddings), call(host.build(F64, margin=alpha / 2), embeddings))
    assert alpha != alpha_of(embeddings, classes.roll(1))


Meaning = Callable[[float, float], float]
A: Meaning = lambda a, m: a  # noqa: E731
ROOT: Meaning = lambda a, m: math.sqrt(a)  # noqa: E731
MORE: Meaning = lambda a, m: m + a  # noqa: E731
HALF: Meaning = lambda a, m: a / 2  # noqa: E731
QUARTER: Meaning = lambda a, m: a / 4  # noqa: E731
SIMILARITY: Meaning = lambda a, m: 1 - a / 2  # noqa: E731
LESS: Meaning = lambda a, m: m - a / 2  # noqa: E731
DISTANCES: dict[str, tuple[Any, dict[str, tuple[Meaning, Meaning, Meaning]]]] = {
    # the distance, and what α̂ means with it, own margin m: {units: (threshold, gap of triplets, margin loss's)}
    "D": (
        distances.LpDistance(),
        {
            "default": (ROOT, QUARTER, ROOT),
            "sqrt": (ROOT, ROOT, ROOT),
            "replace": (A, A, A),
            "offset": (MORE, MORE, MORE),
        },
    ),
    "D squared": (
        distances.LpDistance(power=2),
        {"default": (A, A, A), "replace": (A, A, A), "sqrt": (ROOT, ROOT, ROOT), "offset": (MORE, MORE, MORE)},
    ),
    "raw D": (
        distances.LpDistance(normalize_embeddings=False),
        {"default": (ROOT, QUARTER, ROOT), "sqrt": (ROOT, ROOT, ROOT)},
    ),
    "cosine": (
        distances.CosineSimilarity(),
        {"default": (SIMILARITY, HALF, HALF), "replace": (SIMILARITY, A, A), "offset": (LESS, MORE, MORE)},
    ),
    "dot product": (
        distances.DotProductSimilarity(),
        {"default": (SIMILARITY, HALF, HALF), "replace": (SIMILARITY, A, A), "offset": (LESS, MORE, MORE)},
    ),
    "raw dot product": (
        distances.DotProductSimilarity(normalize_embeddings=False),
        {"default": (LESS, A, A), "offset": (LESS, MORE, MORE)},
    ),
    "L1": (distances.LpDistance(p=1), {"default": (MORE, ROOT, ROOT), "offset": (MORE, MORE, MORE)}),
    "noise to signal": (distances.SNRDistance(), {"default": (A, A, A), "replace": (A, A, A)}),
}
THRESHOLDS = ("ContrastiveLoss", "LiftedStructureLoss", "GeneralizedLiftedStructureLoss", "MultiSimilarityLoss")


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", [*THRESHOLDS, "TripletMarginLoss", "MarginLoss"])
def test_the_margin_means_what_the_distance_given_to_the_loss_says(name: str, distance: str) -> None:
    host, (metric, meanings) = HOSTS[name], DISTANCES[distance]
    embeddings, labels = batch(dtype=F64)
    alpha = AdaptiveMargin()(metric.maybe_normalize(embeddings), labels).item()
    own, place = 0.3, 0 if name in THRESHOLDS else 1 if name == "TripletMarginLoss" else 2
    for units, of in meanings.items():
        stock = call(host.build(distance=metric, margin=of[place](alpha, own)), embeddings, labels)
        wrapped = host.build(distance=metric, margin=own)
        ours = AdaptiveMarginLoss(wrapped, AdaptiveMargin(), units=None if units == "default" else units)  # type: ignore[arg-type]
        assert_near(call(ours, embeddings, labels), stock)


def test_raw_embeddings_have_another_margin_than_normalised_ones() -> None:
    embeddings, labels = batch(dtype=F64)
    margins = []
    for normal in (True, False):
        distance = distances.LpDistance(normalize_embeddings=normal)
        loss = AdaptiveMarginLoss(losses.TripletMarginLoss(distance=distance), units="replace", collect_stats=True)
        loss(embeddings, labels)
        margins.append(loss.current_margin)
    assert margins[0] == pytest.approx(AdaptiveMargin()(normalize(embeddings), labels).item())
    assert margins[1] == pytest.approx(AdaptiveMargin()(embeddings, labels).item())
    assert margins[0] != margins[1]


def test_half_precision_embeddings_are_normalised_in_float32_for_the_margin() -> None:
    embeddings, labels = batch(dtype=torch.bfloat16)
    loss = AdaptiveMarginLoss(losses.MultiSimilarityLoss(), AdaptiveMargin(), "offset", collect_stats=True)
    loss(embeddings, labels)
    alpha = AdaptiveMargin()(normalize(embeddings.float()), labels).item()
    assert loss.current_margin == pytest.approx(0.5 - alpha / 2, rel=1e-6)


# The wrapped loss is the caller's own and left as it was


@every_host
@pytest.mark.parametrize("margin", [0.3, AdaptiveMargin(), AdaptiveMargin(detach=False)], ids=["0.3", "", "gradient"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_wrapped_loss_is_left_as_it_was(host: Host, margin: Any, fails: bool) -> None:
    stock = host.build()
    own = dict(vars(stock))
    parts = {name: dict(part) for name, part in own.items() if isinstance(part, dict)}
    loss = AdaptiveMarginLoss(stock, margin)
    assert loss.loss is stock
    args, kwargs = inputs(host, "plain")
    inside = []

    def look(module: Any, _: Any) -> None:
        inside.append(getattr(module, host.attribute))
        if fails:
            raise KeyboardInterrupt

    hook = stock.register_forward_pre_hook(look)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            loss(*args, **kwargs)
    else:
        loss(*args, **kwargs).backward()
    hook.remove()
    assert inside != [own[host.attribute]], "the margin was not exchanged"
    assert loss.loss is stock
    assert vars(stock) == own
    assert all(value is own[name] for name, value in vars(stock).items())
    for name in ("_parameters", "_buffers", "_modules"):
        assert vars(stock)[name].keys() == parts[name].keys()
        assert all(vars(stock)[name][key] is value for key, value in parts[name].items())


@every_host
def test_the_wrapped_loss_is_left_as_it_was_when_the_margin_or_the_check_refuses(host: Host) -> None:
    class Failing(Margin):
        def forward(self, *args: Any) -> Tensor:
            raise ArithmeticError

    stock = host.build()
    own = dict(vars(stock))
    args, kwargs = inputs(host, "plain")
    with pytest.raises(ArithmeticError):
        AdaptiveMarginLoss(stock, Failing())(*args, **kwargs)
    with pytest.raises(ValueError, match="embeddings must be finite"):
        AdaptiveMarginLoss(stock)(args[0] * math.nan, *args[1:], **kwargs)
    assert vars(stock) == own


def test_two_wrappers_of_one_loss_do_not_see_each_other() -> None:
    stock = losses.TripletMarginLoss(reducer=reducers.MeanReducer())
    low, high = AdaptiveMarginLoss(stock, 0.0), AdaptiveMarginLoss(stock, 1.0)
    embeddings, labels = batch()
    assert low(embeddings, labels) < stock(embeddings, labels) < high(embeddings, labels)


def test_nothing_is_copied() -> None:
    distance, reducer = distances.LpDistance(), reducers.DoNothingReducer()  # the one reducer that the host keeps
    stock = losses.TripletMarginLoss(distance=distance, reducer=reducer)
    margin = AdaptiveMargin()
    loss = AdaptiveMarginLoss(stock, margin)
    assert loss.loss is stock
    assert loss.margin is margin
    assert loss.distance is stock.distance is distance
    assert loss.reducer is stock.reducer is reducer
    assert set(loss._modules) == {"loss", "margin", "embedding_regularizer"} & set(loss._modules)


def test_the_host_copies_a_reducer_and_we_add_no_copy() -> None:
    reducer = reducers.ThresholdReducer(low=0.1, collect_stats=True)
    stock = losses.TripletMarginLoss(reducer=reducer, margin=0.4)
    assert stock.reducer is not reducer  # the host's trap: it deep-copies
    loss = AdaptiveMarginLoss(stock, 0.4)
    embeddings, labels = batch()
    loss(embeddings, labels)
    assert loss.reducer is stock.reducer
    assert loss.reducer.num_past_filter > 0  # so its statistics are the wrapped loss's
    assert reducer.num_past_filter == 0
    loss.reducer = reducer  # assigning reaches the wrapped loss, without a copy
    assert loss.reducer is stock.reducer is reducer
    loss(embeddings, labels)
    assert reducer.num_past_filter > 0
    assert "reducer" not in loss._modules


# One margin an anchor or a pair, against loops


def _lists(*tensors: Tensor) -> list[tuple[int, ...]]:
    return list(zip(*(x.tolist() for x in tensors), strict=True))


@pytest.mark.parametrize("granularity", ["anchor", "pair"])
@pytest.mark.parametrize("kind", ["plain", "triplets", "pairs", "reference", "reference pairs"])
@pytest.mark.parametrize("units", ["geometry", "sqrt", "replace", "offset"])
@pytest.mark.parametrize("host", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_a_margin_for_each_anchor_or_pair_matches_the_loop(host: Host, granularity: Any, kind: str, units: Any) -> None:
    if units not in host.translations:
        with pytest.raises(ValueError, match="units must be 'geometry', 'replace' or 'offset'"):
            AdaptiveMarginLoss(host.build(), units=units)
        return
    (embeddings, labels), kwargs = inputs(host, kind, F64)
    margin = AdaptiveMargin(granularity=granularity, neighbourhood="chernoff")
    ours = AdaptiveMarginLoss(host.build(), margin, units)(embeddings, labels, **kwargs)
    reference = kwargs.get("ref_emb", embeddings)
    ref_labels = kwargs["ref_labels"].tolist() if "ref_labels" in kwargs else None
    mined = kwargs.get("indices_tuple")
    if host.name in ("TripletMarginLoss", "MarginLoss"):
        if mined is None:
            triplets = slow.all_triplets(labels.tolist(), ref_labels)
        elif len(mined) == 3:
            triplets = _lists(*mined)  # type: ignore[assignment]
        else:
            positives, negatives = _lists(*mined[:2]), _lists(*mined[2:])
            triplets = [(a, p, n) for a, p in positives for b, n in negatives if a == b]
        anchored = [(a, n) for a, _, n in triplets]
        explicit = tuple(torch.tensor(column) for column in zip(*triplets, strict=True))
    else:
        if mined is None:
            positives, negatives = slow.all_pairs(labels.tolist(), ref_labels)  # type: ignore[assignment]
        else:
            positives, negatives = _lists(*mined[:2]), _lists(mined[-2 if len(mined) == 4 else 0], mined[-1])
        anchored = negatives  # type: ignore[assignment]
        explicit = tuple(
            torch.tensor(column) for pairs in (positives, negatives) for column in zip(*pairs, strict=True)
        )
    seen, ref_seen = normalize(embeddings), normalize(reference)
    given = (ref_seen, kwargs["ref_labels"]) if ref_labels else ()
    if granularity == "pair":
        alphas = margin(seen, labels, explicit, *given).tolist()
    else:
        by_anchor = margin(seen, labels, mined, *given).tolist()
        alphas = [by_anchor[a] for a, _ in anchored]
    assert len({round(alpha, 6) for alpha in alphas}) > 1, "one margin for all tests nothing"
    translations = {**host.translations, **(host.of_chosen if mined is not None else {})}
    margins = [translations[units](alpha) for alpha in alphas]
    z, ref = embeddings.tolist(), reference.tolist()
    if host.name == "TripletMarginLoss":
        expected = slow.triplet(z, ref, triplets, margins)
    elif host.name == "MarginLoss":
        expected = slow.margin_based(z, ref, triplets, margins)
    else:
        distance = slow.noise_to_signal if "Noise" in host.name else slow.euclidean
        expected = slow.contrastive(z, ref, positives, negatives, margins, distance)  # type: ignore[arg-type]
    assert ours.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
@pytest.mark.parametrize("name", ["TripletMarginLoss", "MarginLoss"])
@pytest.mark.parametrize("with_ref", [False, True])
def test_sampled_triplets_are_those_that_have_the_margins(name: str, granularity: Any, with_ref: bool) -> None:
    embeddings, labels = batch(24, dtype=F64)
    reference, ref_labels = batch(20, seed=2, dtype=F64) if with_ref else (embeddings, labels)
    margin = AdaptiveMargin(granularity=granularity, neighbourhood="chernoff")
    ours = AdaptiveMarginLoss(HOSTS[name].build(triplets_per_anchor=5), margin, units="replace")
    given = {"ref_emb": reference, "ref_labels": ref_labels} if with_ref else {}
    torch.manual_seed(11)
    value = ours(embeddings, labels, **given)
    torch.manual_seed(11)
    sampled = lmu.get_random_triplet_indices(labels, ref_labels if with_ref else None, t_per_anchor=5)
    assert len(sampled[0]) == 24 * 5
    seen, shown = normalize(embeddings), (normalize(reference), ref_labels) if with_ref else ()
    if granularity == "pair":
        alphas = margin(seen, labels, sampled, *shown)
    else:
        alphas = margin(seen, labels, None, *shown).expand(24)[sampled[0]]
    loop = slow.triplet if name == "TripletMarginLoss" else slow.margin_based
    expected = loop(embeddings.tolist(), reference.tolist(), _lists(*sampled), alphas.tolist())  # type: ignore[arg-type]
    assert value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
@pytest.mark.parametrize("name", ["TripletMarginLoss", "MarginLoss"])
def test_an_anchor_with_more_than_a_hundred_triplets_uses_them_all(name: str, granularity: Any) -> None:
    embeddings, _ = batch(24, dtype=F64)
    labels = torch.arange(24) % 2  # 11 positives × 12 negatives an anchor: the host's converter would sample 100
    sampled = lmu.convert_to_triplets(None, labels, labels)
    assert len(sampled[0]) == 24 * 100
    triplets = slow.all_triplets(labels.tolist())
    assert len(triplets) == 24 * 132
    seen = []
    stock = HOSTS[name].build()
    stock.reducer = _Sizes(seen)
    AdaptiveMarginLoss(stock, AdaptiveMargin(granularity=granularity), units="replace")(embeddings, labels)
    assert seen[0] == 24 * 132
    first = AdaptiveMarginLoss(HOSTS[name].build(), AdaptiveMargin(granularity=granularity))(embeddings, labels)
    torch.manual_seed(1)
    assert torch.equal(
        first, AdaptiveMarginLoss(HOSTS[name].build(), AdaptiveMargin(granularity=granularity))(embeddings, labels)
    )


class _Sizes(reducers.BaseReducer):
    """Says how many losses there were."""

    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, loss_dict: Any, embeddings: Tensor, labels: Tensor) -> Tensor:
        self.seen.extend(len(part["losses"]) for part in loss_dict.values() if torch.is_tensor(part["losses"]))
        return self.zero_loss(embeddings)


@every_host
@pytest.mark.parametrize("granularity", ["anchor", "pair"])
def test_hosts_with_one_margin_a_batch_say_so(host: Host, granularity: Any) -> None:
    if host.elementwise:
        assert (
            AdaptiveMarginLoss(host.build(), AdaptiveMargin(granularity=granularity)).margin.granularity == granularity
        )
        return
    message = (
        f"margin.granularity must be 'batch', got '{granularity}'; {host.name} has one margin a batch; "
        "one an anchor or a pair goes into AdaptiveMarginLoss of ContrastiveLoss, TripletMarginLoss, MarginLoss"
    )
    with pytest.raises(ValueError, match=message):
        AdaptiveMarginLoss(host.build(), AdaptiveMargin(granularity=granularity))


def test_the_mean_of_many_margins_is_recorded() -> None:
    embeddings, labels = batch(dtype=F64)
    margin = AdaptiveMargin(granularity="anchor", neighbourhood="chernoff")
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss(), margin, collect_stats=True)
    loss(embeddings, labels)
    expected = 1 + margin(normalize(embeddings), labels).mean().item()  # every anchor has as many negatives
    assert loss.current_margin == pytest.approx(expected)


# Margins with a gradient, margins of one's own


SMOOTH = {
    "TripletMarginLoss": {"smooth_loss": True},
    "CosFaceLoss": {"scale": 4},
    "ArcFaceLoss": {"scale": 4},
    "SubCenterArcFaceLoss": {"scale": 4},
    "SoftTripleLoss": {},
    "ProxyAnchorLoss": {"alpha": 4},
    "MultiSimilarityLoss": {"beta": 4},
    "TupletMarginLoss": {"scale": 4},
}


@pytest.mark.parametrize("name", SMOOTH)
def test_a_margin_with_a_gradient_passes_it_on(name: str) -> None:
    loss = AdaptiveMarginLoss(HOSTS[name].build(F64, **SMOOTH[name]), AdaptiveMargin(detach=False), units="replace")
    embeddings, labels = batch(5, dtype=F64)
    torch.autograd.gradcheck(lambda x: loss(x, labels), (embeddings,), atol=1e-6)
    (with_gradient,) = torch.autograd.grad(loss(embeddings, labels), embeddings)
    loss.margin.detach = True
    (without,) = torch.autograd.grad(loss(embeddings, labels), embeddings)
    assert not torch.allclose(with_gradient, without)


@pytest.mark.parametrize("name", ["ArcFaceLoss", "SubCenterArcFaceLoss"])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_a_margin_with_a_gradient_passes_through_numpys_sine(name: str, dtype: torch.dtype) -> None:
    embeddings, labels = batch(dtype=dtype)
    margin = AdaptiveMargin(detach=False)
    loss = AdaptiveMarginLoss(HOSTS[name].build(dtype, margin=70.0, scale=4), margin, units="offset")
    cosines = loss.loss.get_cosine(embeddings).gather(1, labels[:, None])
    alpha = margin(normalize(embeddings), labels)
    whole = math.radians(70) + alpha
    beyond = torch.acos(cosines) > math.pi - whole
    assert beyond.any()  # there the host takes np.sin of the margin
    assert not beyond.all()
    (theirs,) = torch.autograd.grad(loss(embeddings, labels), embeddings)
    logits = loss.loss.get_cosine(embeddings)
    targets = torch.where(
        beyond, cosines - whole * torch.sin(whole), torch.cos(torch.acos(cosines) + whole)
    )  # ArcFace's own formula, and the line that continues it
    logits = 4 * logits.scatter(1, labels[:, None], targets)
    (ours,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels), embeddings)
    torch.testing.assert_close(theirs, ours, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-6)


class Learned(Margin):
    """A margin that an optimiser moves."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(float(start)))

    def forward(self, embeddings: Tensor, *args: Any) -> Tensor:
        return self.value


@every_host
def test_a_learned_margin_learns(host: Host) -> None:
    start = host.numbers[-1] if host.name != "TupletMarginLoss" else 30.0
    margin = Learned(start)
    ours = AdaptiveMarginLoss(host.build(), margin)
    args, kwargs = inputs(host, "plain")
    torch.manual_seed(3)
    value = ours(*args, **kwargs)
    stock = call(host.build(margin=start), *args, **kwargs)
    torch.testing.assert_close(value.detach(), stock.value, rtol=1e-4, atol=1e-6)
    value.backward()
    assert margin.value.grad is not None
    assert margin.value.grad.item() != 0


class PerAnchor(Margin):
    """A margin for each anchor in the loss's own unit: the label over ten."""

    granularity = "anchor"

    def forward(self, embeddings: Tensor, labels: Tensor | None = None, *args: Any) -> Tensor:
        assert labels is not None
        return labels / 10


def test_margins_of_ones_own_for_each_anchor() -> None:
    embeddings, labels = batch(dtype=F64)
    triplets = slow.all_triplets(labels.tolist())
    margins = [labels[a].item() / 10 for a, _, _ in triplets]
    ours = AdaptiveMarginLoss(losses.TripletMarginLoss(), PerAnchor())
    expected = slow.triplet(embeddings.tolist(), embeddings.tolist(), triplets, margins)
    assert ours(embeddings, labels).item() == pytest.approx(expected)


def test_a_margin_that_records_its_value_is_still_asked() -> None:
    class Recording(Margin):
        value = 9.9  # a statistic of the last call, not a constant

        def forward(self, embeddings: Tensor, *args: Any) -> Tensor:
            return embeddings.new_tensor(0.3)

    embeddings, labels = batch()
    ours = AdaptiveMarginLoss(losses.TripletMarginLoss(), Recording())
    torch.testing.assert_close(ours(embeddings, labels), losses.TripletMarginLoss(margin=0.3)(embeddings, labels))


# References, labels, devices


@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if host.labels])
@pytest.mark.parametrize("margin", [0.3, AdaptiveMargin()], ids=["0.3", ""])
def test_a_reference_that_is_the_batch_is_the_batch(name: str, margin: Any) -> None:
    host = HOSTS[name]
    embeddings, labels = batch()
    ours = AdaptiveMarginLoss(host.build(), margin)
    plain = call(ours, embeddings, labels)
    assert_identical(call(ours, embeddings, labels, None, embeddings, labels), plain)
    stock = host.build(margin=host.numbers[0])
    ours = AdaptiveMarginLoss(host.build(), host.numbers[0])
    assert_identical(
        call(ours, embeddings, labels, None, embeddings, labels),
        call(stock, embeddings, labels, None, embeddings, labels),
    )


@pytest.mark.parametrize("pair_memory", ["auto", "pairs"])
def test_the_margin_of_the_batch_with_labels_of_its_own_is_that_of_another_set(pair_memory: Any) -> None:
    embeddings, labels = batch(dtype=F64)
    loss = AdaptiveMarginLoss(losses.ContrastiveLoss(), pair_memory=pair_memory, collect_stats=True)
    margins = []
    for reference in (embeddings, embeddings.clone()):
        loss(embeddings, labels, None, reference, labels.roll(1))
        margins.append(loss.current_margin)
    loss(embeddings, labels)
    assert margins[0] == pytest.approx(margins[1])
    assert margins[0] != pytest.approx(loss.current_margin)


@pytest.mark.parametrize("granularity", ["batch", "anchor", "pair"])
def test_labels_of_no_reference_mean_nothing_as_in_the_host(granularity: Any) -> None:
    embeddings, labels = batch()
    stray = {"ref_labels": labels.roll(1)}
    stock = losses.ContrastiveLoss()
    assert torch.equal(stock(embeddings, labels, **stray), stock(embeddings, labels))
    loss = AdaptiveMarginLoss(stock, AdaptiveMargin(granularity=granularity))
    assert torch.equal(loss(embeddings, labels, **stray), loss(embeddings, labels))


def test_the_margin_sees_the_reference() -> None:
    embeddings, labels = batch(dtype=F64)
    margins = []
    for seed in (1, 2):
        ref_emb, ref_labels = batch(9, seed=seed, dtype=F64)
        loss = AdaptiveMarginLoss(losses.MultiSimilarityLoss(), AdaptiveMargin(), "replace", collect_stats=True)
        loss(embeddings, labels, None, ref_emb, ref_labels)
        expected = AdaptiveMargin()(normalize(embeddings), labels, None, normalize(ref_emb), ref_labels)
        assert loss.current_margin == pytest.approx(1 - expected.item() / 2)
        margins.append(loss.current_margin)
    assert margins[0] != margins[1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.int16])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    embeddings, _ = batch()
    labels = torch.arange(12) % 2
    for name in ("ContrastiveLoss", "TripletMarginLoss", "MultiSimilarityLoss"):
        loss = AdaptiveMarginLoss(HOSTS[name].build())
        assert torch.equal(loss(embeddings, labels.to(dtype)), loss(embeddings, labels))


def test_compute_loss_is_the_wrapped_losses_dictionary() -> None:
    embeddings, labels = batch(dtype=F64)
    stock = losses.ContrastiveLoss()
    loss = AdaptiveMarginLoss(stock)
    alpha = AdaptiveMargin()(normalize(embeddings), labels).item()
    ours = loss.compute_loss(embeddings, labels, None, embeddings, labels)
    expected = losses.ContrastiveLoss(neg_margin=math.sqrt(alpha)).compute_loss(
        embeddings, labels, None, embeddings, labels
    )
    assert ours.keys() == expected.keys() == set(loss.sub_loss_names())
    for name, part in ours.items():
        torch.testing.assert_close(part["losses"], expected[name]["losses"])
    assert stock.neg_margin == 1


# As a module


@every_host
def test_state_is_the_wrapped_losses_and_the_margins(host: Host) -> None:
    loss = AdaptiveMarginLoss(host.build(), LinearMargin(host.numbers[0], 0.01))
    loss.margin.step_epoch()  # type: ignore[operator]
    state = loss.state_dict()
    assert set(state) == {f"loss.{name}" for name in host.build().state_dict()} | {"margin.epoch"}
    assert {id(x) for x in loss.parameters()} == {id(x) for x in loss.loss.parameters()}
    torch.manual_seed(123)
    other = AdaptiveMarginLoss(host.build(), LinearMargin(host.numbers[0], 0.01))
    for weight in other.parameters():
        torch.nn.init.normal_(weight)
    args, kwargs = inputs(host, "plain")
    assert not torch.equal(call(other, *args, **kwargs).value, call(loss, *args, **kwargs).value)
    other.load_state_dict(state)
    assert_identical(call(other, *args, **kwargs), call(loss, *args, **kwargs))


@every_host
def test_copies_by_pickle_and_deepcopy_are_whole_and_apart(host: Host) -> None:
    loss = AdaptiveMarginLoss(host.build(), AdaptiveMargin(confidence=0.5), units="offset")
    args, kwargs = inputs(host, "plain")
    expected = call(loss, *args, **kwargs)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other.loss is not loss.loss
        assert other.units == "offset"
        assert_identical(call(other, *args, **kwargs), expected)
        setattr(other.loss, host.attribute, getattr(other.loss, host.attribute) + 0.1)
        assert_identical(call(loss, *args, **kwargs), expected)
        assert not torch.equal(call(other, *args, **kwargs).value, expected.value)


@every_host
def test_moving_a_loss_moves_what_it_holds(host: Host) -> None:
    loss = AdaptiveMarginLoss(host.build(), LinearMargin(0.1)).double()
    assert all(weight.dtype == F64 for weight in loss.parameters())
    args, kwargs = inputs(host, "plain", F64)
    assert loss(*args, **kwargs).dtype == F64
    loss.to("meta")
    assert all(x.device.type == "meta" for x in (*loss.parameters(), *loss.buffers()))


@every_host
def test_printing_says_what_is_exchanged(host: Host) -> None:
    text = repr(AdaptiveMarginLoss(host.build(), 0.3))
    assert text.startswith("AdaptiveMarginLoss(")
    assert f"{host.name}.{host.attribute}, units='replace'" in text
    assert "(margin): ConstantMargin(value=0.3)" in text
    assert f"(loss): {host.name}(" in text


def test_statistics_are_recorded_where_asked_for() -> None:
    embeddings, labels = batch()
    quiet = AdaptiveMarginLoss(losses.TripletMarginLoss(), 0.3)
    quiet(embeddings, labels)
    for name in ("current_margin", "in_tiles"):
        with pytest.raises(AttributeError, match=f"collect_stats must be True to read {name}, got False; pass collect"):
            getattr(quiet, name)
    loss = AdaptiveMarginLoss(losses.TripletMarginLoss(), collect_stats=True)
    assert loss._record_these_stats == ["current_margin", "in_tiles"]
    assert math.isnan(loss.current_margin)  # no call yet
    loss(embeddings, labels)
    assert loss.current_margin == pytest.approx(loss.margin.alpha / 4)  # type: ignore[arg-type]
    assert loss.margin.alpha == pytest.approx(loss.margin.mi + loss.margin.delta)  # type: ignore[operator]
    with pytest.raises(ValueError, match="embeddings must be finite"):
        loss(embeddings * math.nan, labels)
    assert math.isnan(loss.current_margin)  # not that of the call before


WAITS_FOR_NOTHING = {  # with a reducer that does not look at its losses the host itself does not synchronise either
    "ContrastiveLoss": ("batch", "anchor", "pair"),
    "TripletMarginLoss": ("batch", "anchor", "pair"),
    "MarginLoss": ("batch", "anchor", "pair"),
    "SignalToNoiseRatioContrastiveLoss": ("batch", "anchor", "pair"),
}


@pytest.mark.usefixtures("fake_cuda_works")
@pytest.mark.parametrize("name", WAITS_FOR_NOTHING)
@pytest.mark.parametrize("units", [None, "offset"])
def test_on_cuda_nothing_waits_for_the_device(name: str, units: Any) -> None:
    host = HOSTS[name]
    with FakeTensorMode(allow_non_fake_inputs=True):  # raises where a value is read from a tensor on the device
        embeddings = torch.randn(12, 8, device="cuda", requires_grad=True)
        labels = torch.zeros(12, dtype=torch.int64)  # on the CPU: they are moved
        mined = (torch.zeros(5, dtype=torch.int64),) * 3  # on the CPU: EmbeddingsAlreadyPackagedAsTriplets makes such
        for margin in (*map(_of, WAITS_FOR_NOTHING[name]), 0.3, AdaptiveMargin(detach=False)):
            loss = AdaptiveMarginLoss(host.build(reducer=reducers.MeanReducer()), margin, units)
            for indices in (mined, (*mined, mined[0])):
                if name in ("TripletMarginLoss", "MarginLoss") and len(indices) == 4:
                    continue  # the host looks for the pairs that make a triplet
                value = loss(embeddings, labels, indices)
                assert value.device.type == "cuda"
                assert value.requires_grad


def _of(granularity: Any) -> AdaptiveMargin:
    return AdaptiveMargin(granularity=granularity)


@pytest.mark.usefixtures("fake_cuda_works")
def test_a_reference_that_is_the_batch_stays_so_on_its_way_to_the_device() -> None:
    seen: list[Any] = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        embeddings = torch.randn(12, 8, device="cuda", requires_grad=True)
        labels = torch.zeros(12, dtype=torch.int64)  # on the CPU
        loss = AdaptiveMarginLoss(losses.TripletMarginLoss(reducer=reducers.MeanReducer()))
        loss.loss.register_forward_pre_hook(lambda _, args: seen.extend(args))
        loss(embeddings, labels, (labels[:5],) * 3, embeddings, labels)
    batch_seen, labels_seen, _, ref_emb, ref_labels = seen
    assert ref_emb is batch_seen
    assert ref_labels is labels_seen  # the host tells a batch from a reference by this
    assert labels_seen.device.type == "cuda"


@pytest.mark.usefixtures("fake_cuda_works")
def test_the_check_for_synchronisation_sees_one() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        embeddings = torch.randn(12, 8, device="cuda")
        labels = torch.zeros(12, dtype=torch.int64, device="cuda")
        loss = AdaptiveMarginLoss(losses.TripletMarginLoss(), collect_stats=True)
        with pytest.raises(Exception, match=r"(?i)data.?dependent|item|_local_scalar_dense"):
            loss(embeddings, labels, (labels[:5],) * 3)


@pytest.mark.cuda
@every_host
def test_cuda_agrees_with_the_cpu(host: Host) -> None:
    for kind in (kind for taker, kind in TAKEN if taker is host and (host.labels or kind == "classes")):
        args, kwargs = inputs(host, kind, F64)
        expected = call(AdaptiveMarginLoss(host.build(F64)), *args, **kwargs)
        on_device = AdaptiveMarginLoss(host.build(F64)).cuda()
        embeddings = args[0].detach().cuda().requires_grad_()
        if "ref_emb" in kwargs:
            kwargs["ref_emb"] = kwargs["ref_emb"].detach().cuda().requires_grad_()
        result = call(on_device, embeddings, *args[1:], **kwargs)  # labels and index tuples stay on the CPU
        torch.testing.assert_close(result.value.cpu(), expected.value, rtol=1e-6, atol=1e-8)
        for ours, theirs in zip(result.grads, expected.grads, strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.cuda
@every_host
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_cuda_autocast_leaves_weights_alone(host: Host, dtype: torch.dtype) -> None:
    for margin in (0.3, AdaptiveMargin(), AdaptiveMargin(detach=False)):
        loss = AdaptiveMarginLoss(host.build(), margin).cuda()
        embeddings, labels = batch()
        embeddings = embeddings.detach().cuda().to(dtype).requires_grad_()
        with torch.autocast("cuda", dtype=dtype):
            value = loss(embeddings, labels.cuda() if host.labels else None)
        value.backward()
        assert all(weight.dtype == torch.float32 for weight in loss.parameters())
        assert torch.isfinite(embeddings.grad).all()  # type: ignore[arg-type]


def test_a_hook_of_the_wrapped_loss_changes_what_the_tiles_see() -> None:
    embeddings, labels = batch(dtype=F64)

    def halved(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] / 2, *args[1:])

    values = []
    for memory in ("tiled", "pairs"):
        host = losses.ContrastiveLoss(distance=distances.LpDistance(normalize_embeddings=False))
        host.register_forward_pre_hook(halved)
        loss = AdaptiveMarginLoss(host, pair_memory=memory)
        values.append(call(loss, embeddings, labels))
        assert loss.pair_path == memory
    assert_near(values[0], values[1])
