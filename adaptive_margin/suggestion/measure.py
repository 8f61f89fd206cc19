"""Measures embeddings, and what the margin of each strategy would do to them."""

from __future__ import annotations

import inspect
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_metric_learning import losses as host_losses
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor

from ..functional import neighbourhood_impurity
from ..functional.checks import at_least_float32, check_labels, check_number
from ..functional.groups import group_index, more_labels_than
from ..losses import AdaptiveMarginLoss
from ..losses.batch import Batch, as_classes, check_embeddings
from ..losses.swap import LOSSES, Swap, find_swap, in_host_unit
from ..margins import AdaptiveMargin
from ..margins.adaptive_margin import NEIGHBOURHOODS
from ..margins.neighbourhood import FEW_LABELS
from ..messages import check_count, nearest, problem
from ..metrics import operating_point_inconsistency
from .result import QUANTILES, ClassSizes, Distances, LossMargins, Present, Strategy, Suggestion

STRATEGIES = [name for name in NEIGHBOURHOODS if name != "auto"]
PAIRS = 100_000
"""Pairs measured within and between classes, if there are more."""
ANCHORS = 1024
"""Rows whose neighbourhood is looked at, in the whole set."""
CLASSES, ROWS = 256, 4096
"""At most this many classes, and rows of them together, are compared for OPIS."""
BINS = 60
KINDS = {"neg_pair": "negative pairs", "pos_pair": "positive pairs", "triplet": "triplets"}
NEEDED = {"num_classes": 2, "embedding_size": 2, "l": 2, "margin": 0.4, "Tn": 1}
"""For constructors without defaults; nothing that is measured depends on them."""

Ints = NDArray[np.int64]


@torch.no_grad()
def suggest(
    embeddings: Tensor,
    labels: Tensor,
    *,
    loss: str | BaseMetricLossFunction | None = None,
    margin: float | None = None,
    batch_size: int = 128,
    samples_per_class: int = 4,
    batches: int = 16,
    seed: int = 0,
) -> Suggestion:
    """Which margin suits embeddings: their distances and purity, and what each strategy's margin would do in training.

    A margin depends on the batch, so margins and active shares are those of batches like the ones of training: at
    random, ``batch_size // samples_per_class`` classes with ``samples_per_class`` rows each (more rows of each where
    there are fewer classes). A set that is no larger than a batch is one batch. For each of the rules of
    ``AdaptiveMargin(neighbourhood=…)`` the margin is the mean over the batches, in the unit of each loss as
    :class:`~adaptive_margin.AdaptiveMarginLoss` uses it by default, and the active share is that of the loss with
    this margin: its terms above 0, of all terms of all batches.

    Everything else is measured on the whole set: 100,000 pairs within and between classes, drawn uniformly from all of
    them; the neighbourhoods of 1,024 rows in the whole set; OPIS on at most 256 classes and 4,096 rows of them.
    Smaller sets are measured completely.

    Args:
        embeddings: shape ``(N, D)``. Distances are those of unit vectors, unless ``loss`` has a distance that does not
            normalise.
        labels: whole numbers, shape ``(N,)``: at least two classes, one of them with two rows.
        loss: the loss in use: one of :meth:`~adaptive_margin.AdaptiveMarginLoss.supported`, by name, or the object
            itself with its own distance.
        margin: its margin, in the unit of its constructor; by default the one that it has.
        batch_size: rows of a batch.
        samples_per_class: rows of a class in a batch, at least 2.
        batches: number of batches.
        seed: of all samples; the same seed gives the same figures.

    Returns:
        What was found; ``print`` it.

    Raises:
        TypeError: the loss has no margin that can be exchanged, or something has the wrong type.
        ValueError: shapes that do not match, NaN or infinity, too few classes, an unknown loss, options out of range.

    Example:
        >>> x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> found = suggest(x, torch.arange(200) % 10, loss="TripletMarginLoss", margin=0.2)
        >>> found.classes, found.losses[1].rule
        (10, 'remaining')
        >>> f"{found.margin_for('TripletMarginLoss', 'attainable'):.3f}"  # MI + 0.81, a quarter of it
        '0.2...'
        >>> found.present.differences["default"]
        0.15000000000000002
    """
    began = time.perf_counter()
    labels, _ = as_classes(labels)
    check_embeddings("embeddings", embeddings)
    check_labels("labels", labels, len(embeddings))
    for name, value, least in (
        ("batch_size", batch_size, 4),
        ("samples_per_class", samples_per_class, 2),
        ("batches", batches, 1),
        ("seed", seed, 0),
    ):
        check_count(name, value, least)
    with torch.random.fork_rng(devices=[]):  # class weights are drawn when a loss is built
        hosts = {name: _build(name) for name in LOSSES}
    defaults = {name: _own(host, LOSSES[name]) for name, host in hosts.items() if _has_default(name, LOSSES[name])}
    present = _present(hosts, loss, margin)
    x, given = at_least_float32(embeddings.detach().cpu()), labels.cpu()
    index = group_index(given)
    counts = torch.bincount(index).numpy() if len(index) else np.zeros(0, np.int64)
    if len(counts) < 2 or counts.max() < 2:
        got = f"{len(counts)} with at most {counts.max(initial=0)}"
        remedy = "a margin needs pairs within a class and between classes"
        raise ValueError(problem("labels", "two classes or more, one of them with two rows or more", got, remedy))

    reference: Any = hosts["ContrastiveLoss"] if present is None else hosts[present[0]]
    normalized = bool(reference.distance.normalize_embeddings)
    z = Batch(reference, x, index).seen().embeddings
    rng, by_class = np.random.default_rng(seed), _Rows(index.numpy(), counts)
    within, between = _distances(z, by_class, rng, own=True), _distances(z, by_class, rng, own=False)
    anchors = torch.from_numpy(np.sort(rng.permutation(len(x))[:ANCHORS]))
    everyone = len(anchors) == len(x)
    impurity = (
        neighbourhood_impurity(z, index)
        if everyone
        else neighbourhood_impurity(z[anchors], index[anchors], ref_emb=z, ref_labels=index)
    )
    compared = torch.from_numpy(by_class.sample(CLASSES, ROWS // min(CLASSES, len(counts)), rng))
    drawn = by_class.batches(batch_size, samples_per_class, batches, rng)
    parts = [(x[rows], given[rows]) for rows in map(torch.from_numpy, drawn)]
    strategies, found = _margins(hosts, defaults, parts)
    edges = np.linspace(0, max(within[1].max(), between[1].max()) or 1.0, BINS + 1)
    histogram = {"edges": edges.tolist()}
    for name, (_, values) in (("within", within), ("between", between)):
        histogram[name] = (np.histogram(values, edges)[0] / len(values)).tolist()
    return Suggestion(
        rows=len(x),
        features=x.shape[1],
        classes=len(counts),
        normalized=normalized,
        sizes=_sizes(counts),
        within=within[0],
        between=between[0],
        misordered=float(1 - np.searchsorted(np.sort(within[1]), between[1], "left").mean() / len(within[1])),
        impurity=float(impurity.mean()),
        pure=float((impurity == 0).double().mean()),
        thresholds=operating_point_inconsistency(z[compared], index[compared]),
        strategies=strategies,
        losses=found,
        present=None if present is None else _beside(*present, hosts, found, parts),
        samples={
            "pairs within": within[0].pairs,
            "pairs between": between[0].pairs,
            "neighbourhoods": len(anchors),
            "rows for OPIS": len(compared),
            "batches": len(parts),
            "rows a batch": len(parts[0][0]),
        },
        seed=seed,
        seconds=time.perf_counter() - began,
        histogram=histogram,
    )


class _Rows:
    """Rows in the order of their classes, from which pairs, classes and batches are drawn."""

    def __init__(self, index: Ints, counts: Ints) -> None:
        self.order = np.argsort(index, kind="stable")
        self.counts = counts
        self.starts = np.cumsum(counts) - counts
        self.place = index[self.order]  # class of each row in that order

    def pairs(self, own: bool, rng: np.random.Generator) -> tuple[Ints, Ints, bool]:
        """Pairs (i, j) of one class, or of two, and whether they are all of them (each once).

        If there are more than :data:`PAIRS`, so many are drawn uniformly, with replacement.
        """
        n, m = len(self.order), self.counts[self.place]
        partners = (m - 1 if own else n - m).astype(np.float64)  # of each row
        if partners.sum() / 2 <= PAIRS and n <= 8 * ANCHORS:
            mates = [i + 1 + np.flatnonzero((self.place[i + 1 :] == self.place[i]) == own) for i in range(n)]
            first, second = np.repeat(np.arange(n), [len(each) for each in mates]), np.concatenate(mates)
            return self.order[first], self.order[second], True
        first = np.searchsorted(np.cumsum(partners), rng.random(PAIRS) * partners.sum(), "right").clip(max=n - 1)
        start, size = self.starts[self.place[first]], m[first]
        step = (rng.random(PAIRS) * partners[first]).astype(np.int64)
        if own:  # one of the class, the row itself left out
            second = start + step
            second += second >= first
        else:  # one of the others, the class left out
            second = np.where(step >= start, step + size, step)
        return self.order[first], self.order[second], False

    def sample(self, classes: int, rows: int, rng: np.random.Generator) -> Ints:
        """At most so many classes, those with two rows or more first, and at most so many rows of each."""
        mixed = rng.permutation(len(self.counts))
        chosen = mixed[np.argsort(self.counts[mixed] < 2, kind="stable")][:classes]
        picked = [self.starts[c] + rng.permutation(self.counts[c])[:rows] for c in chosen]
        rows_of_all: Ints = self.order[np.concatenate(picked)]
        return rows_of_all

    def batches(self, size: int, samples: int, number: int, rng: np.random.Generator) -> list[Ints]:
        """Rows of each batch, the whole set if it is no larger than one."""
        if len(self.order) <= size:
            return [np.arange(len(self.order))]
        usable = int((self.counts >= 2).sum())
        classes = max(2, min(usable, size // samples))
        return [self.sample(classes, max(size // classes, 2), rng) for _ in range(number)]


def _sizes(counts: Ints) -> ClassSizes:
    share = counts / counts.sum()
    return ClassSizes(
        smallest=int(counts.min()),
        median=float(np.median(counts)),
        largest=int(counts.max()),
        alone=int((counts == 1).sum()),
        effective=float(np.exp(-(share * np.log(share)).sum())),
    )


def _distances(z: Tensor, rows: _Rows, rng: np.random.Generator, own: bool) -> tuple[Distances, NDArray[np.float64]]:
    first, second, every = rows.pairs(own, rng)
    chunks = (slice(a, a + 2**14) for a in range(0, len(first), 2**14))
    values = np.concatenate([(z[first[c]] - z[second[c]]).norm(dim=1).double().numpy() for c in chunks])
    quantiles = dict(zip(QUANTILES, np.quantile(values, QUANTILES).tolist(), strict=True))
    return Distances(float(values.mean()), quantiles, len(values), every), values


def _build(name: str) -> Any:
    """A loss with the defaults of its constructor; what has none does not matter here."""
    kind = getattr(host_losses, name)
    constructors = [base.__init__ for base in kind.__mro__ if "__init__" in vars(base)]  # which pass on what they get
    parameters = [each for init in constructors for each in inspect.signature(init).parameters.values()]
    given = {each.name for each in parameters if each.default is not each.empty}
    needed = {each.name for each in parameters if each.default is each.empty} - given
    return kind(**{key: value for key, value in NEEDED.items() if key in needed})


def _own(host: Any, swap: Swap) -> float:
    """A loss's own margin, in the unit of its constructor."""
    own = float(getattr(host, swap.attribute))
    return math.degrees(own) if swap.scale == "angle" else own


def _has_default(name: str, swap: Swap) -> bool:
    parameter = inspect.signature(getattr(host_losses, name)).parameters.get(swap.attribute)
    return parameter is None or parameter.default is not parameter.empty  # the base's, or its own


def _present(hosts: dict[str, Any], loss: Any, margin: float | None) -> tuple[str, float] | None:
    """Name and margin of the loss in use, which takes its place among the hosts."""
    if loss is None:
        if margin is not None:
            remedy = "name the loss, for instance loss='TripletMarginLoss'"
            raise ValueError(problem("loss", "given with margin", "None", remedy))
        return None
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(problem("loss", "the name of a loss with a margin", repr(loss), nearest(loss, LOSSES)))
        if margin is None and not _has_default(loss, LOSSES[loss]):
            remedy = "pass the margin in use"
            raise ValueError(problem("margin", f"given for {loss}, which has no default", "None", remedy))
        swap = LOSSES[loss]
    else:
        swap = find_swap(loss, LOSSES, "suggest")
        hosts[swap.host] = loss
    host = hosts[swap.host]
    if margin is None:
        return swap.host, _own(host, swap)
    number = check_number("margin", margin, "a number", "pass it in the unit of the loss's constructor")
    if not math.isfinite(number):
        raise ValueError(problem("margin", "finite", number, "pass it in the unit of the loss's constructor"))
    return swap.host, number


def _margins(
    hosts: Mapping[str, Any], defaults: Mapping[str, float], parts: Sequence[tuple[Tensor, Tensor]]
) -> tuple[dict[str, Strategy], list[LossMargins]]:
    """Each strategy's own figures, and its margins in the unit of each loss."""
    rules: dict[str, Any] = {name: AdaptiveMargin(neighbourhood=name, collect_stats=True) for name in STRATEGIES}  # type: ignore[arg-type]
    known: dict[Any, dict[str, list[Any]]] = {}

    def of_batches(host: Any) -> dict[str, list[Any]]:
        """(α̂, MI, Δ, K) of each batch, as the loss's distance sees it."""
        seen = host.distance.normalize_embeddings and host.distance.p
        if seen not in known:
            rows = [Batch(host, *part).seen() for part in parts]
            known[seen] = {
                name: [(rule(batch.embeddings, batch.labels), rule.mi, rule.delta, rule.k) for batch in rows]
                for name, rule in rules.items()
            }
        return known[seen]

    found = []
    few = not more_labels_than(FEW_LABELS, parts[0][1])
    for name, host in hosts.items():
        swap = LOSSES[name]
        margins = {"default": defaults.get(name, math.nan)}
        for rule_name, batches in of_batches(host).items():
            rule = rules[rule_name]
            values = [
                float(in_host_unit(float(figures[0]), None, rule, swap, host, labels))
                for figures, (_, labels) in zip(batches, parts, strict=True)
            ]
            mean = float(np.mean(values))
            margins[rule_name] = math.degrees(mean) if swap.scale == "angle" else mean
        active = {rule_name: _active(host, swap, value, parts) for rule_name, value in margins.items()}
        kinds = {kind: {each: shares[kind] for each, shares in active.items()} for kind in active["remaining"]}
        followed = swap.rule.few if few else swap.rule.many
        own_rule = next(each for each, kind in NEIGHBOURHOODS.items() if type(followed) is kind)
        unit = swap.unit.replace(" (degrees at construction, radians inside)", " (degrees)")
        found.append(LossMargins(name, swap.attribute, unit, own_rule, margins, kinds))
    strategies = {}
    for name, batches in of_batches(hosts["ContrastiveLoss"]).items():
        alpha, mi, delta = (float(np.mean([float(each[i]) for each in batches])) for i in range(3))
        k = 1 / float(np.mean([1 / each[3] for each in batches]))
        leads = bool(rules[name].leads(parts[0][1]))
        strategies[name] = Strategy(alpha, mi, delta, k, leads)
    return strategies, found


def _active(host: Any, swap: Swap, margin: float, parts: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Kind of terms → share of them above 0, if the loss has a hinge for each pair or triplet and this margin in it."""
    if not swap.elementwise:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the host's own margin is not used
        loss = AdaptiveMarginLoss(host, margin)
    active: dict[str, int] = {}
    total: dict[str, int] = {}
    for x, labels in parts:
        for terms in loss.compute_loss(x, labels, None, x, labels).values():
            kind = KINDS.get(terms["reduction_type"])
            own = swap.attribute != "neg_margin" or kind == "negative pairs"  # positives have a margin of their own
            if kind is not None and own and isinstance(terms["losses"], Tensor):
                active[kind] = active.get(kind, 0) + int((terms["losses"] > 0).sum())
                total[kind] = total.get(kind, 0) + terms["losses"].numel()
    return {kind: active[kind] / total[kind] if total[kind] else math.nan for kind in active}


def _beside(
    name: str,
    margin: float,
    hosts: Mapping[str, Any],
    found: Sequence[LossMargins],
    parts: Sequence[tuple[Tensor, Tensor]],
) -> Present:
    margins = {each.loss: each for each in found}[name].margins
    differences = {strategy: margin - value for strategy, value in margins.items() if not math.isnan(value)}
    return Present(name, margin, _active(hosts[name], LOSSES[name], margin, parts), differences)
