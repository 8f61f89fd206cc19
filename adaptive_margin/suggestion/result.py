"""What :func:`~adaptive_margin.suggest` found, as data, as text and as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from textwrap import wrap
from typing import Any

from ..messages import check_choice, counted
from ..metrics.comparison import signed
from ..metrics.thresholds import ThresholdConsistency
from ..stored import without_nan

WIDTH = 110
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class ClassSizes:
    """How many rows the classes have.

    Attributes:
        smallest: rows of the smallest class.
        median: of the class in the middle.
        largest: of the largest.
        alone: classes with one row, which have no positive pair.
        effective: exp of the entropy of the class shares: the number of equal classes that would be as mixed.
    """

    smallest: int
    median: float
    largest: int
    alone: int
    effective: float

    @property
    def imbalance(self) -> float:
        """The largest class over the smallest."""
        return self.largest / self.smallest


@dataclass(frozen=True)
class Distances:
    """Euclidean distances of pairs.

    Attributes:
        mean: mean.
        quantiles: share → the distance below which that share of the pairs is.
        pairs: number of pairs measured.
        every: whether those are all pairs; otherwise they are drawn uniformly from all.
    """

    mean: float
    quantiles: Mapping[float, float]
    pairs: int
    every: bool


@dataclass(frozen=True)
class Strategy:
    r"""The margin of one rule: :math:`\hat\alpha = \mathrm{MI} + \Delta`, a squared distance; means over the batches.

    Attributes:
        alpha: the margin.
        mi: mutual information.
        delta: confidence term.
        k: neighbourhood size (harmonic mean).
        leads: whether the margin starts large and can take a loss's own place.
    """

    alpha: float
    mi: float
    delta: float
    k: float
    leads: bool


@dataclass(frozen=True)
class LossMargins:
    """The margins for one loss, as its constructor takes them.

    Attributes:
        loss: name of the loss in pytorch-metric-learning.
        attribute: the constructor's argument.
        unit: its meaning, in words; angles are in degrees.
        rule: the strategy that ``AdaptiveMarginLoss`` has for this loss and these labels, without further options.
        margins: strategy → margin; ``"default"`` is the loss's own, NaN if it has none.
        active: ``"negative pairs"``, ``"positive pairs"`` or ``"triplets"`` → strategy → share with a loss above 0.
            Empty for losses that have no hinge for each pair or triplet.
    """

    loss: str
    attribute: str
    unit: str
    rule: str
    margins: Mapping[str, float]
    active: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Present:
    """A margin in use, beside the others.

    Attributes:
        loss: its loss.
        margin: in the unit of the loss's constructor.
        active: kind of terms → share with a loss above 0; empty if the loss has no such terms.
        differences: strategy → how far the margin is above that strategy's.
    """

    loss: str
    margin: float
    active: Mapping[str, float]
    differences: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """A part of the answer: a heading, a sentence, and figures."""

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = [
            "  ".join(
                [line[0].ljust(widths[0]), *(each.rjust(w) for each, w in zip(line[1:], widths[1:], strict=True))]
            )
            for line in (self.head, *self.rows)
        ]
        return "\n".join([self.title, *wrap(self.note, WIDTH), *(f"  {line.rstrip()}" for line in lines)])


@dataclass(frozen=True)
class Suggestion:
    """What :func:`~adaptive_margin.suggest` found. ``print`` it, or take the figures.

    Attributes:
        rows: N.
        features: D.
        classes: C.
        normalized: whether distances are those of unit vectors.
        sizes: rows of the classes.
        within: distances of pairs of one class.
        between: distances of pairs of two classes.
        misordered: share of (pair within, pair between) in which the pair within is at least as far apart.
        impurity: mean share of other classes in a row's class-sized neighbourhood
            (:func:`~adaptive_margin.functional.neighbourhood_impurity`).
        pure: share of rows whose neighbourhood has no other class.
        thresholds: whether one threshold suits every class (OPIS).
        strategies: rule → its margin.
        losses: for each loss, the margins in its own unit.
        present: the margin in use, if one was given.
        samples: what was measured → how many of it; drawn with ``seed``.
        seed: of all samples.
        seconds: that it took.
        histogram: ``"edges"`` of distances, and the shares of pairs ``"within"`` and ``"between"`` in each bin.
    """

    rows: int
    features: int
    classes: int
    normalized: bool
    sizes: ClassSizes
    within: Distances
    between: Distances
    misordered: float
    impurity: float
    pure: float
    thresholds: ThresholdConsistency
    strategies: Mapping[str, Strategy]
    losses: Sequence[LossMargins]
    present: Present | None
    samples: Mapping[str, int]
    seed: int
    seconds: float
    histogram: Mapping[str, Sequence[float]] = field(repr=False)

    def margin_for(self, loss: str, strategy: str | None = None) -> float:
        """The margin to give to a loss's constructor.

        Args:
            loss: its name in pytorch-metric-learning.
            strategy: a rule, or ``"default"`` for the loss's own margin; by default the rule that
                ``AdaptiveMarginLoss`` has.

        Raises:
            ValueError: a loss or a strategy that was not measured; the message names those that were.
        """
        of = self._of(loss)
        if strategy is None:
            return of.margins[of.rule]
        check_choice("strategy", strategy, tuple(of.margins))
        return of.margins[strategy]

    def _of(self, loss: str) -> LossMargins:
        known = {each.loss: each for each in self.losses}
        check_choice("loss", loss, tuple(known))
        return known[loss]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; NaN and infinity become ``None``."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain

    @property
    def lead(self) -> str:
        """The answer in two sentences."""
        contrastive, triplet = (self.margin_for(name) for name in ("ContrastiveLoss", "TripletMarginLoss"))
        name = self._of("ContrastiveLoss").rule
        return (
            f"AdaptiveMargin() follows '{name}' here: a squared distance of {self.strategies[name].alpha:.3f}, that is "
            f"neg_margin={contrastive:.3f} for ContrastiveLoss and margin={triplet:.3f} for TripletMarginLoss. "
            f"{self.impurity:.0%} of a row's class-sized neighbourhood belongs to other classes."
        )

    @property
    def drawn(self) -> str:
        """What was sampled, with which seed, and the time it took."""
        made = ", ".join(f"{name}: {number:,}" for name, number in self.samples.items())
        return f"Samples ({made}) with seed {self.seed}, in {self.seconds:.1f} s."

    def tables(self) -> list[Table]:
        """Every figure, in the order of the page."""
        names = ["default", *self.strategies]
        tables = [self._of_sizes(), self._of_distances(), self._of_thresholds(), self._of_strategies()]
        margins = [
            [each.loss, each.attribute, *(_figure(each.margins[name]) + "*" * (name == each.rule) for name in names)]
            for each in self.losses
        ]
        note = (
            "As constructors take them, angles in degrees; means over the batches. * is what AdaptiveMarginLoss uses."
        )
        tables.append(Table("Margin of each strategy, in each loss's own unit", note, ["loss", "", *names], margins))
        active = [
            [each.loss, kind, *(_share(shares[name]) for name in names)]
            for each in self.losses
            for kind, shares in each.active.items()
        ]
        note = "Terms with a loss above 0, with that margin; other losses weigh every pair and have no such share."
        tables.append(Table("Share of pairs and triplets kept active", note, ["loss", "", *names], active))
        if self.present is not None:
            tables.append(self._of_present(self.present))
        return tables

    def __str__(self) -> str:
        kind = "unit vectors" if self.normalized else "the embeddings as they are"
        first = f"{counted(self.rows, 'row')} × {counted(self.features, 'feature')}; distances of {kind}"
        texts = [[first, *wrap(self.lead, WIDTH)], *([str(each)] for each in self.tables()), wrap(self.drawn, WIDTH)]
        return "\n\n".join("\n".join(lines) for lines in texts)

    def _of_sizes(self) -> Table:
        s = self.sizes
        head = ["classes", "smallest", "median", "largest", "largest / smallest", "with one row", "effective"]
        row = [f"{self.classes:,}", f"{s.smallest:,}", f"{s.median:g}", f"{s.largest:,}", f"{s.imbalance:.1f}"]
        note = "Rows of a class; 'effective' is the number of equal classes that would be as mixed."
        return Table("Classes", note, head, [[*row, f"{s.alone:,}", f"{s.effective:,.1f}"]])

    def _of_distances(self) -> Table:
        rows = [
            [name, f"{of.pairs:,}{'' if of.every else ' drawn'}", f"{of.mean:.3f}"]
            + [f"{of.quantiles[q]:.3f}" for q in QUANTILES]
            for name, of in (("within classes", self.within), ("between classes", self.between))
        ]
        wrong = _share(self.misordered)
        note = f"In {wrong} of comparisons a pair within a class is at least as far apart as a pair between classes."
        return Table("Distances", note, ["", "pairs", "mean", *(f"{q:.0%}" for q in QUANTILES)], rows)

    def _of_thresholds(self) -> Table:
        t = self.thresholds
        head = ["impurity", "pure rows", "OPIS", "from", "to", "best threshold", "utility", "worst class"]
        row = [f"{self.impurity:.3f}", _share(self.pure), f"{t.opis:.2e}"]
        row += [f"{each:.3f}" for each in (t.low, t.high, t.best, t.utility, t.worst)]
        note = "OPIS: variance over classes of the utility of a threshold with 1% to 10% of false accepts; 0 is best."
        return Table("Purity, and one threshold for all classes", note, head, [row])

    def _of_strategies(self) -> Table:
        rows = [
            [name, *(f"{each:.3f}" for each in (s.alpha, s.mi, s.delta)), f"{s.k:.1f}", "leads" if s.leads else "waits"]
            for name, s in self.strategies.items()
        ]
        note = "α̂ = MI + Δ, a squared distance; K is the neighbourhood. A margin leads, or waits for evidence."
        return Table("Strategies", note, ["rule", "α̂", "MI", "Δ", "K", ""], rows)

    def _of_present(self, present: Present) -> Table:
        of = self._of(present.loss)
        rows = [
            [name, _figure(of.margins[name]), _figure(difference, sign=True)]
            for name, difference in present.differences.items()
        ]
        shares = ", ".join(f"{_share(share)} of {kind}" for kind, share in present.active.items())
        note = f"It keeps {shares} active." if shares else ""
        title = f"{present.loss}({of.attribute}={present.margin:g}), and how far it is above each"
        return Table(title, note, ["strategy", "margin", "difference"], rows)


def _figure(value: float, sign: bool = False) -> str:
    if math.isnan(value):
        return "–"
    digits = 1 if abs(value) >= 10 else 3
    return signed(value, digits) if sign else f"{value:.{digits}f}".replace("-", "−")


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}%"
