"""The margin over a run: recorded beside the training loop, kept in a file, plotted."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .atomic import write_atomically
from .losses.transparent import TakesMargin
from .margins import Margin
from .messages import problem, require_extra

STEP = "step"


class MarginRecorder:
    r"""Collects the margin of each call of a loss: :math:`\hat\alpha`, MI, :math:`\Delta`, the margin in the loss's
    unit.

    Call it after the loss, or :meth:`attach` it once. Either way it returns or keeps what ``loss.statistics()`` has.

    Args:
        rows: what to continue from, one mapping per recorded call; by default nothing.

    Attributes:
        rows: one dictionary per recorded call: ``step`` and the statistics by name.

    Example:
        >>> from pytorch_metric_learning import losses
        >>> from adaptive_margin import AdaptiveMarginLoss
        >>> loss, recorder = AdaptiveMarginLoss(losses.TripletMarginLoss(), collect_stats=True), MarginRecorder()
        >>> for step in range(3):
        ...     value = loss(torch.randn(32, 8), torch.arange(32) % 4)
        ...     row = recorder(loss)
        >>> recorder["step"], len(recorder["alpha"])
        ([0, 1, 2], 3)
        >>> bool(row["alpha"] == loss.alpha)
        True
    """

    def __init__(self, rows: list[dict[str, float]] | None = None) -> None:
        self.rows: list[dict[str, float]] = [dict(row) for row in rows or ()]

    def __call__(self, loss: nn.Module, step: int | None = None) -> dict[str, float]:
        """Records the last call of a loss.

        Args:
            loss: a loss, miner or margin of this library whose ``collect_stats`` is on, or a module with exactly one
                inside, such as a ``DistributedLossWrapper``.
            step: its number; by default the one after the last.

        Returns:
            The statistics by name, for a logger; without those that the call did not compute. An empty batch has none,
            and leaves a gap.

        Raises:
            AttributeError: ``collect_stats`` is off.
            ValueError: there is no such module inside, or more than one, or it has not been called.
        """
        module = _with_statistics(loss)
        found = {name: value for name, value in module.statistics().items() if math.isfinite(value)}
        if not found and not module.called:
            remedy = "call recorder(loss) after value = loss(embeddings, labels)"
            raise ValueError(problem("loss", "called before it is recorded", "no call with collect_stats", remedy))
        number = self.rows[-1][STEP] + 1 if step is None and self.rows else step or 0
        self.rows.append({STEP: int(number), **found})
        return found

    def attach(self, loss: nn.Module) -> RemovableHandle:
        """Turns on ``collect_stats`` and records every call from now on that is made with gradients enabled.

        Calls under ``torch.no_grad()``, for validation, are left out. Call ``remove()`` of the returned handle to stop.

        Example:
            >>> from adaptive_margin import ContrastiveVDMLoss
            >>> loss, recorder = ContrastiveVDMLoss(), MarginRecorder()
            >>> handle = recorder.attach(loss)
            >>> value = loss(torch.randn(32, 8), torch.arange(32) % 4)
            >>> handle.remove()
            >>> len(recorder.rows)
            1
        """
        module: Any = _with_statistics(loss)
        module.collect_stats = True

        def record(*_: Any) -> None:
            if torch.is_grad_enabled():
                self(module)

        handle: RemovableHandle = module.register_forward_hook(record)
        return handle

    def __getitem__(self, name: str) -> list[float]:
        """A column: the values of one statistic, or of ``"step"``; NaN where a call had none."""
        if name not in self.columns:
            raise KeyError(name)
        return [row.get(name, math.nan) for row in self.rows]

    @property
    def columns(self) -> tuple[str, ...]:
        """``"step"`` and the names of the statistics."""
        return tuple(dict.fromkeys([STEP, *(name for row in self.rows for name in row)]))

    def save(self, path: str | Path) -> None:
        """Writes a ``.csv`` with a row per call, or a ``.json`` with a list per column.

        Raises:
            ValueError: another ending.
            DiskSpaceError, OSError: it cannot be written.
        """
        path = Path(path)
        if _ending(path) == ".json":
            text = json.dumps({name: [row.get(name) for row in self.rows] for name in self.columns}) + "\n"
        else:
            lines = io.StringIO()
            writer = csv.DictWriter(lines, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            text = lines.getvalue()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: str | Path) -> MarginRecorder:
        """What :meth:`save` wrote, to plot it or to continue: the next step is the one after the last.

        Raises:
            ValueError: another ending, or another content.
            FileNotFoundError: it is not there.

        Example:
            >>> import tempfile
            >>> recorder = MarginRecorder([{"step": 0, "alpha": 0.5}, {"step": 1, "alpha": 0.25}])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     recorder.save(f"{folder}/margin.csv")
            ...     MarginRecorder.load(f"{folder}/margin.csv").rows == recorder.rows
            True
        """
        path = Path(path)
        ending, text = _ending(path), path.read_text(encoding="utf-8")
        try:
            if ending == ".json":
                columns = json.loads(text)
                rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            else:
                rows = list(csv.DictReader(io.StringIO(text)))
            return cls([_numbers(row) for row in rows])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            remedy = "pass a file that save() of a MarginRecorder wrote"
            raise ValueError(problem(str(path), "a recorded margin", f"other content ({error})", remedy)) from error

    def plot(self, path: str | Path | None = None) -> Any:
        r"""A figure over the steps: :math:`\hat\alpha` and its parts, and the margin in the loss's unit.

        Args:
            path: where to write it, in a format of matplotlib (``.png``, ``.svg``, ``.pdf``); by default nowhere.

        Returns:
            The figure, which a notebook shows.

        Raises:
            ImportError: matplotlib is missing.
            ValueError: nothing has been recorded.
        """
        require_extra("MarginRecorder.plot", "train", "matplotlib")
        from matplotlib.figure import Figure

        units = {"squared distance": PARTS, "in the loss's unit": ("current_margin",)}
        known = ((label, [name for name in names if name in self.columns]) for label, names in units.items())
        panels = [(label, names) for label, names in known if names]
        if not panels:
            raise ValueError(problem("rows", "recorded before they are plotted", "none", "call recorder(loss)"))
        figure = Figure(figsize=(6.4, 2.6 * len(panels)), layout="constrained")
        for axes, (label, names) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
            for name in names:
                width = 3.2 if name == "alpha" else 1.4  # it shows below the part that it is nearly all of
                axes.plot(self[STEP], self[name], label=PARTS.get(name, "margin"), linewidth=width)
            axes.set(xlabel=STEP, ylabel=label)
            axes.margins(x=0)
            axes.legend(frameon=False)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=160)
        return figure


PARTS = {"alpha": "α̂ = MI + Δ", "mi": "MI", "delta": "Δ"}


def _with_statistics(module: nn.Module) -> Any:
    """The module that has a margin's statistics: the outermost, or the only one inside."""
    if isinstance(module, TakesMargin | Margin):
        return module
    found = [each for each in module.modules() if isinstance(each, TakesMargin)]
    if len(found) != 1:
        remedy = "pass an AdaptiveMarginLoss, ContrastiveVDMLoss, AdaptiveMarginMiner or AdaptiveMargin itself"
        got = f"{type(module).__name__} with {len(found)}"
        raise ValueError(problem("loss", "a module with one loss or miner of this library inside", got, remedy))
    return found[0]


def _ending(path: Path) -> str:
    if path.suffix not in (".csv", ".json"):
        remedy = "name it margin.csv or margin.json"
        raise ValueError(problem("path", "one that ends in .csv or .json", repr(str(path)), remedy))
    return path.suffix


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    numbers = {name: float(value) for name, value in row.items() if value not in ("", None)}
    return {STEP: int(numbers.pop(STEP)), **numbers}
