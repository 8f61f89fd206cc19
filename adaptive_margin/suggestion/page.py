"""The page of a suggestion: its tables, and pictures of the distances and of what each margin keeps active."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from markupsafe import Markup

from ..reports import _charts as charts
from ..reports._page import Section, write_page
from ..reports._tables import grid, row, table
from .result import LossMargins, Suggestion, Table


def write_suggestion(found: Suggestion, page: Path, name: str) -> None:
    """Writes the page, atomically; call :func:`~adaptive_margin.reports._page.check_page` before measuring.

    Args:
        found: what was measured.
        page: the file.
        name: of the embeddings.
    """
    tables = found.tables()
    pictures = Section.of("pictures", "In pictures", _pictures, found)
    sections = [Section.of(f"table-{i}", each.title, _table, each) for i, each in enumerate(tables)]
    kind = "unit vectors" if found.normalized else "embeddings as they are"
    facts = [("rows", f"{found.rows:,}"), ("features", f"{found.features:,}"), ("classes", f"{found.classes:,}")]
    facts += [("distances of", kind), ("seed", str(found.seed)), ("seconds", f"{found.seconds:.1f}")]
    facts += [(what, f"{number:,}") for what, number in found.samples.items()]
    write_page(page, f"Which margin? {name}", found.lead, [pictures, *sections], facts=facts)


def _table(each: Table) -> Markup:
    return table(each.note or each.title, each.head, [row(line[0], line[1:]) for line in each.rows])


def _pictures(found: Suggestion) -> Markup:
    return grid([_distances(found), *(_active(found, loss) for loss in found.losses if loss.active)])


def _distances(found: Suggestion) -> Markup:
    edges = np.asarray(found.histogram["edges"])
    alt = f"Medians {found.within.quantiles[0.5]:.3f} within classes and {found.between.quantiles[0.5]:.3f} between."
    with charts.drawing("Distances", alt) as chart:
        for name, colour in (("within", charts.PALETTE[0]), ("between", charts.BASELINE)):
            shares = 100 * np.asarray(found.histogram[name])
            chart.axes.stairs(shares, edges, fill=True, alpha=0.45, color=colour, label=f"{name} classes")
        chart.axes.set(xlabel="distance", ylabel="% of pairs")
        chart.axes.legend()
    return chart.svg


def _active(found: Suggestion, loss: LossMargins) -> Markup:
    alt = "; ".join(f"{rule} at {margin:.3f}" for rule, margin in loss.margins.items())
    with charts.drawing(loss.loss, f"Share active for the margin of each strategy: {alt}.") as chart:
        ((kind, shares),) = loss.active.items()
        for colour, (rule, share) in zip(charts.GROUPS, shares.items(), strict=False):
            chart.axes.scatter(loss.margins[rule], 100 * share, color=colour, label=rule, zorder=3)
        if found.present is not None and found.present.loss == loss.loss:
            chart.axes.axvline(found.present.margin, color=charts.BASELINE, linestyle="--", label="in use")
        chart.axes.set(xlabel=f"{loss.attribute} ({loss.unit})", ylabel=f"% of {kind} active", ylim=(-4, 104))
        chart.figure.legend(loc="outside lower center", ncols=4, handletextpad=0.1, columnspacing=1)
    return chart.svg
