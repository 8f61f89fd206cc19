"""The results of the grid: gains over each loss's own default, and regret against the tuned constant.

``python benchmarks/dml_grid.py --print`` prints the tables of all networks together; ``--figure FILE`` draws a dot for
every cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from script import write_figure

from adaptive_margin.dml.results import named
from adaptive_margin.metrics.comparison import Comparison, compared, signed, student_interval

if TYPE_CHECKING:
    from dml_grid import Cell, Results

METRICS = ("mean_average_precision_at_r", "recall_at_1")
ARMS = ("default", "tuned elsewhere", "adaptive", "remaining", "attainable", "evidence")
"""The margins compared with the constant that was tuned here."""


@dataclass(frozen=True)
class Measured:
    """A cell in which every seed of every arm is finished.

    Attributes:
        network: what was trained.
        cell: which.
        margins: the margin of each arm.
        rows: by arm and seed.
    """

    network: str
    cell: Cell
    margins: Mapping[str, float | str]
    rows: Mapping[str, Mapping[int, dict[str, Any]]]

    def figures(self, arm: str, metric: str) -> dict[int, float]:
        """Test figures of an arm by seed, per cent."""
        return {seed: 100 * row["test"][metric] for seed, row in self.rows[arm].items()}

    def mean(self, arm: str, metric: str) -> float:
        """Over seeds."""
        return float(np.mean(list(self.figures(arm, metric).values())))

    def fall(self, arm: str) -> float:
        """How much lower validation MAP@R is at the end than at its best, mean over seeds, per cent."""
        curves = [[scores[0] for scores in row["validation"]] for row in self.rows[arm].values()]
        return 100 * float(np.mean([max(curve) - curve[-1] for curve in curves]))


def measured_cells(results: Results, network: str = "small") -> list[Measured]:
    """The finished cells of a network, in the order of rounds."""
    from dml_grid import GRID_LOSSES, SEEDS, SETTINGS, Run, arms, cell_of

    found = []
    for number in range(len(SETTINGS)):
        for loss in GRID_LOSSES:
            cell = cell_of(loss, number)
            here, elsewhere = results.tuned(cell), results.tuned(cell_of(loss, number + 1))
            if here is None or elsewhere is None:
                continue
            margins = arms(cell, here, elsewhere)
            runs = {arm: {seed: Run(cell, margin, seed) for seed in SEEDS} for arm, margin in margins.items()}
            if all(results.has(run) for by_seed in runs.values() for run in by_seed.values()):
                rows = {
                    arm: {seed: results.rows[run.key] for seed, run in by_seed.items()} for arm, by_seed in runs.items()
                }
                found.append(Measured(network, cell, margins, rows))
    return found


def report(cells: Sequence[Measured]) -> str:
    """Every table, in Markdown."""
    if not cells:
        return "No cell is finished yet."
    seeds = len(cells[0].rows["default"])
    networks = [each.network for each in cells]
    parts = " and ".join(f"{networks.count(name)} with the {name} network" for name in dict.fromkeys(networks))
    lines = [f"{len(cells)} cells, {parts}; {seeds} seeds each; figures of test classes, per cent.", ""]
    for metric in METRICS:
        lines += [*headline(cells, metric), "", *gains(cells, metric), ""]
    lines += [*falls(cells), "", *every_cell(cells, METRICS[0])]
    return "\n".join(lines)


def headline(cells: Sequence[Measured], metric: str) -> list[str]:
    """Mean regret of each arm against the constant tuned in the same cell, with an interval over cells."""
    lines = [f"**Regret against the constant tuned here, {named(metric)}**", ""]
    lines += ["| margin | cells | mean regret [95 %] | worst cell |", "|---|---|---|---|"]
    for arm in ARMS:
        regrets = [cell.mean("tuned here", metric) - cell.mean(arm, metric) for cell in cells if arm in cell.rows]
        if regrets:
            mean, low, high = map(signed, student_interval(regrets))
            interval = f"{mean} [{low}, {high}]"
            lines.append(f"| {arm} | {len(regrets)} | {interval} | {signed(max(regrets))} |")
    return lines


def gains(cells: Sequence[Measured], metric: str, baseline: str = "default") -> list[str]:
    """In how many cells each arm is better or worse than the loss's own default, after correction."""
    lines = [f"**Against the loss's own default, {named(metric)}**", ""]
    verdicts = ("better", "no difference seen", "identical", "worse")
    lines += [f"| margin | cells | mean gain [95 %] | {' | '.join(verdicts)} |", "|---" * 7 + "|"]
    for arm in ("tuned here", *ARMS[1:]):
        differing = [cell for cell in cells if arm in cell.rows]
        if not differing:
            continue
        found = corrected(differing, arm, baseline, metric)
        mean, low, high = student_interval([each.mean for each in found])
        counts = [sum(each.verdict == verdict for each in found) for verdict in verdicts]
        lines.append(
            f"| {arm} | {len(found)} | {signed(mean)} [{signed(low)}, {signed(high)}] | "
            + " | ".join(map(str, counts))
            + " |"
        )
    return [*lines, "", "Better and worse: Holm's p below 0.05 over the cells of a row."]


def corrected(cells: Sequence[Measured], arm: str, baseline: str, metric: str) -> list[Comparison]:
    """Paired comparisons of all cells, corrected for their number."""
    return compared((cell.figures(arm, metric), cell.figures(baseline, metric)) for cell in cells)


def falls(cells: Sequence[Measured]) -> list[str]:
    """The cost of long training: how far validation MAP@R at the end is below its best."""
    long = [cell for cell in cells if cell.cell.steps == max(each.cell.steps for each in cells)]
    lines = [f"**Validation MAP@R after {long[0].cell.steps} steps, below its best on the way**", ""]
    lines += ["| margin | cells | mean fall | largest |", "|---|---|---|---|"]
    for arm in ("default", "tuned here", *ARMS[1:]):
        found = [cell.fall(arm) for cell in long if arm in cell.rows]
        if found:
            lines.append(f"| {arm} | {len(found)} | {np.mean(found):.1f} | {max(found):.1f} |")
    return lines


def every_cell(cells: Sequence[Measured], metric: str) -> list[str]:
    """One line per cell."""
    arms = ("default", "tuned here", *(arm for arm in ARMS[1:] if arm != "adaptive"))
    lines = [f"**Every cell, {named(metric)}: mean over seeds**", ""]
    lines += ["| loss, network | data, batches, steps | " + " | ".join(arms) + " |", "|---" * (2 + len(arms)) + "|"]
    for cell in sorted(cells, key=lambda each: (each.cell.loss, each.network, *vars(each.cell).values())):
        where = cell.cell
        figures = []
        for arm in arms:
            margin = cell.margins.get(arm)
            constant = f" ({margin:g})" if isinstance(margin, float) else ""
            figures.append(f"{cell.mean(arm, metric):.1f}{constant}" if arm in cell.rows else "")
        begins = f"| {where.loss}, {cell.network} | {where.data}, {where.batches}, {where.steps} | "
        lines.append(begins + " | ".join(figures) + " |")
    return lines


def draw(cells: Sequence[Measured], path: Path) -> None:
    """A dot for every cell: regret against the constant tuned there, for each margin that nobody tuned there."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arms = ("default", "tuned elsewhere", "adaptive")
    losses = list(dict.fromkeys(cell.cell.loss for cell in cells))
    networks = list(dict.fromkeys(cell.network for cell in cells))
    shapes = dict(zip(networks, "o^", strict=False))
    colours = dict(zip(losses, plt.get_cmap("tab10").colors, strict=False))
    figure, panels = plt.subplots(1, len(METRICS), figsize=(10, 4.4), layout="constrained")
    spread = np.random.default_rng(0)
    for panel, metric in zip(panels, METRICS, strict=True):
        for place, arm in enumerate(arms):
            for cell in cells:
                regret = cell.mean("tuned here", metric) - cell.mean(arm, metric)
                at = place + spread.uniform(-0.2, 0.2)
                shape = shapes[cell.network]
                panel.plot(at, regret, shape, color=colours[cell.cell.loss], markersize=5, alpha=0.8)
            regrets = [cell.mean("tuned here", metric) - cell.mean(arm, metric) for cell in cells]
            panel.plot([place - 0.3, place + 0.3], [np.mean(regrets)] * 2, color="black", linewidth=2)
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.set_xticks(range(len(arms)), [arm.replace("tuned elsewhere", "tuned\nelsewhere") for arm in arms])
        panel.set_ylabel(f"regret in {named(metric)}, points")
        panel.set_title(f"{named(metric)}: below 0 is better than tuning here", fontsize=10)
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=colours[loss], label=loss) for loss in losses]
    for network in networks if len(networks) > 1 else ():
        label = f"{network} network"
        handles.append(
            plt.Line2D([], [], marker=shapes[network], linestyle="", color="black", fillstyle="none", label=label)
        )
    handles.append(plt.Line2D([], [], color="black", linewidth=2, label="mean of the cells"))
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)
    write_figure(figure, path)
    plt.close(figure)
