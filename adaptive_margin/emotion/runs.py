"""Reads runs from disk and groups them into arms: seeds, means, intervals, paired differences from the baseline."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ..choices import MarginName
from ..messages import problem
from ..metrics import bootstrap_interval
from ..metrics.affect import FIGURES
from ..metrics.comparison import compared, student_interval
from ..stored import read_json
from ..training.config_files import plain, read_options
from ..training.run_folder import Curve, read_scalars
from .config import EmotionConfig, idle
from .data import DATA_OPTIONS
from .evaluation import read_predictions, read_result

ORDER = ("none", "fisher", "sphere", "gramnet", "caf")
MARGINS = get_args(MarginName)
SAME = tuple(name for name in DATA_OPTIONS if name not in ("root", "cache", "skip_unreadable", "resize", "crop"))
"""The options of the data in which two runs must agree to be compared: who is in which part, and in which pictures."""
DEFAULTS = plain(EmotionConfig())
"""Of options that are newer than a run."""
OF_RUNS = ("environment.json", "scalars.csv", "evaluation.npz")
"""Files that only the folder of a run has."""
_SEED = re.compile(r"seed[-_]?(\d+)")


@dataclass(frozen=True, kw_only=True)
class Run:
    """The existing data of one run folder."""

    folder: Path
    arm: str
    seed: int
    config: Mapping[str, Any] = field(default_factory=dict)  # of config.yaml
    environment: Mapping[str, Any] = field(default_factory=dict)  # of environment.json
    curves: Mapping[str, Curve] = field(default_factory=dict)  # of scalars.csv, by name
    result: Mapping[str, Any] = field(default_factory=dict)  # of result.json
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # of evaluation.npz

    def curve(self, *names: str) -> Curve | None:
        """The first existing curve of these names, with or without a group before a slash."""
        found = (c for name in names for key, c in self.curves.items() if key == name or key.endswith(f"/{name}"))
        return next(found, None)


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seed, in the order of their seeds."""

    name: str
    runs: tuple[Run, ...]

    @property
    def title(self) -> str:
        """The name for readers."""
        return "no critic" if self.name == "none" else self.name

    @property
    def critic(self) -> str:
        """Name of the critic; empty where no config says."""
        return str(self.runs[0].config.get("critic", ""))

    @property
    def margin(self) -> str:
        """Name of the margin; empty if no config has it."""
        return str(self.runs[0].config.get("margin", ""))

    @property
    def is_baseline(self) -> bool:
        """Whether it is plain regression: no critic, and nothing that uses who is who."""
        config = self.runs[0].config
        more = config.get("term", "none") != "none" or any(config.get(name) for name in ("person_norm", "per_person"))
        return (self.critic == "none" and not more) or (not self.critic and self.name in ("none", "baseline"))


def collapsed(run: Run) -> str:
    """The message for a run whose predictions lie on a line, because the regressor's units have died; else empty."""
    if "prediction" not in run.arrays:
        return ""
    guess = run.arrays["prediction"].astype(np.float64)
    spread = np.linalg.svd(guess - guess.mean(axis=0), compute_uv=False) / math.sqrt(max(1, len(guess)))
    if spread[0] < 1e-4:
        return "predicts one constant for all images"
    if len(spread) > 1 and spread[1] < 1e-3 * spread[0]:
        return "predicts points on one line: valence follows from arousal"
    return ""


class Measured(NamedTuple):
    """A figure of an arm: mean over n seeds and its 95% interval, whose ends are NaN if there is none."""

    mean: float
    low: float
    high: float
    n: int
    by: str  # "seed": Student's t over seeds; else the unit that a bootstrap of the single run drew


def over_seeds(values: Iterable[float | None]) -> Measured | None:
    """Mean and 95% interval (Student's t) of one number per seed; None if there are none. Undefined ones do not count.

    Example:
        >>> [round(x, 3) for x in over_seeds([0.5, 0.6, 0.7])[:3]]
        [0.6, 0.352, 0.848]
    """
    known = [v for v in values if v is not None and math.isfinite(v)]
    return Measured(*student_interval(known), len(known), "seed") if known else None


def inside(value: Any, *path: str | int) -> Any:
    """What is at a place in nested dictionaries and lists; None if it is missing."""
    for step in path:
        value = (value or {}).get(step) if isinstance(step, str) else value and value[step]
    return value


def figure(result: Mapping[str, Any], name: str, label: str) -> float | None:
    """A figure of a run's test part; None if it is missing."""
    value = inside(result, "test", "figures", name, label)
    return None if value is None else float(value)


def identity_of(result: Mapping[str, Any]) -> str:
    """The unit of a run's identities: ``"person"``, ``"actor"``, ``"video"``, ``"source video"`` or ``"picture"``.

    Older results do not record this, but say what the parts do not share, which is the same unless they share some.
    """
    kind = result.get("test", {}).get("identity") or result.get("independent")
    return "person" if kind in (None, "nothing") else str(kind)


def plural(kind: str, n: int = 2) -> str:
    """A noun for ``n`` of them.

    Example:
        >>> plural("person"), plural("source video"), plural("actor", 1)
        ('people', 'source videos', 'actor')
    """
    return kind if n == 1 else "people" if kind == "person" else kind + "s"


def measured(arm: Arm, name: str, label: str) -> Measured | None:
    """A figure of an arm on the test set: over seeds, or with the bootstrap interval of its one run."""
    found = over_seeds(figure(run.result, name, label) for run in arm.runs)
    if found is None or found.n > 1:
        return found
    run = next(run for run in arm.runs if figure(run.result, name, label) is not None)
    test = run.result["test"]
    ends = test.get("intervals", {}).get(name, {}).get(label, (None, None))
    low, high = (math.nan if end is None else float(end) for end in ends)
    by = str(test.get("interval_by", "sample"))
    return found._replace(low=low, high=high, by=identity_of(run.result) if by == "person" else by)


def difference(arm: Arm, baseline: Arm, name: str = "ccc") -> Measured | None:
    """An arm's figure minus the baseline's, of both labels, paired: by seed, or by person for one common seed.

    Runs that were not tested on the same data are not compared: see :func:`apart`.
    """
    gaps = _gaps(arm, baseline, lambda run: figure(run.result, name, "mean"))
    found = over_seeds(gap for gap, *_ in gaps)
    if found is None or found.n > 1:
        return found
    low, high, by = next(_paired_bootstrap(one, two, name) for gap, one, two in gaps if math.isfinite(gap))
    return found._replace(low=low, high=high, by=by)


def pairs(arm: Arm, baseline: Arm) -> list[tuple[Run, Run]]:
    """Runs of an arm and of the baseline with the same seed."""
    return [(one, two) for one in arm.runs for two in baseline.runs if one.seed == two.seed]


def apart(one: Run, two: Run) -> str:
    """How the data differ on which two runs were trained and tested, as far as is known; empty if they do not."""
    if one.config and two.config:
        ours, theirs = ({**DEFAULTS, **run.config} for run in (one, two))
        used = [name for name in SAME if name not in idle(ours) or name not in idle(theirs)]
        if differing := [f"{name}: {ours[name]} and {theirs[name]}" for name in used if ours[name] != theirs[name]]:
            return ", ".join(differing)
    rows = [inside(run.result, "test", "rows") for run in (one, two)]
    if None not in rows and rows[0] != rows[1]:
        return f"{rows[0]} and {rows[1]} test images"
    known = one.arrays and two.arrays
    same = not known or all(np.array_equal(one.arrays[name], two.arrays[name]) for name in ("row", "truth"))
    return "" if same else "other test images"


def _gaps(arm: Arm, baseline: Arm, value: Callable[[Run], float | None]) -> list[tuple[float, Run, Run]]:
    """How much more the arm has than the baseline, for each pair of runs on the same data that have it."""
    both = [(value(one), value(two), one, two) for one, two in pairs(arm, baseline) if not apart(one, two)]
    return [(ours - theirs, one, two) for ours, theirs, one, two in both if ours is not None and theirs is not None]


def differences(arms: Sequence[Arm], baseline: Arm, name: str = "ccc") -> dict[str, Measured | None]:
    """:func:`difference` of several arms by name; over seeds, the intervals are corrected for the number of arms.

    See :func:`~adaptive_margin.metrics.compared`.
    """
    found = {arm.name: _gaps(arm, baseline, lambda run: figure(run.result, name, "mean")) for arm in arms}
    every = {arm: dict(enumerate(gap for gap, *_ in gaps)) for arm, gaps in found.items()}
    several = {arm: gaps for arm, gaps in every.items() if len(gaps) > 1}
    each_one = zip(several, compared((gaps, dict.fromkeys(gaps, 0.0)) for gaps in several.values()), strict=True)
    corrected = {arm: Measured(each.mean, each.low, each.high, each.n, "seed") for arm, each in each_one}
    return {arm.name: corrected.get(arm.name) or difference(arm, baseline, name) for arm in arms}


def map_at_r(run: Run, side: str = "unseen") -> float | None:
    """MAP@R of finding the same person by the encoder's features; None if people are not known."""
    value = inside(run.result, "leakage", side, "map_at_r")
    return None if value is None else float(value)


def leakage_difference(arm: Arm, baseline: Arm, side: str = "unseen") -> Measured | None:
    """An arm's MAP@R minus the baseline's, seed by seed: the one leakage figure that changes."""
    return over_seeds(gap for gap, *_ in _gaps(arm, baseline, lambda run: map_at_r(run, side)))


def _paired_bootstrap(one: Run, two: Run, name: str) -> tuple[float, float, str]:
    """95% interval of the difference of two runs on the same rows, drawn by identity if known."""
    a, b = one.arrays, two.arrays
    nothing = (math.nan, math.nan, "seed")
    if not a or not b:
        return nothing
    known = bool((a["person"] >= 0).all()) and len(np.unique(a["person"])) > 1
    groups = a["person"] if known else np.arange(len(a["row"]))
    if len(groups) < 2:
        return nothing

    def gap(truth: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
        ours, theirs = FIGURES[name](truth, both).chunk(2)
        return (ours - theirs).mean()

    truth = np.concatenate([a["truth"], a["truth"]], axis=1)
    both = np.concatenate([a["prediction"], b["prediction"]], axis=1)
    found = bootstrap_interval(gap, truth, both, groups=groups, resamples=500)
    return float(found.low), float(found.high), identity_of(one.result) if known else "sample"


def read_runs(folder: str | Path, leave_out: Collection[str | Path] = ()) -> tuple[list[Arm], list[str]]:
    """The runs in a folder as arms in the order of the paper's Table 4 (baseline first), and a sentence for each part
    that is damaged.

    Args:
        folder: folder of one run; or of many, as ``ARM/seedN`` at any depth up to ``runs/ARM/seedN``.
        leave_out: folders of runs not to read.

    Raises:
        ValueError: there is no run.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(problem("folder", "a folder of runs", root, "pass the --output of benchmarks/fer_caf.py"))
    wanted = ("config.yaml", "result.json")
    places = sorted(
        {p.parent for name in wanted for depth in ("", "*/", "*/*/", "*/*/*/") for p in root.glob(depth + name)}
    )
    runs_there = {place for place in places if any((place / name).exists() for name in OF_RUNS)}
    places = [p for p in places if not runs_there.intersection(p.parents)]  # not the copies that a run folder holds
    above = {folder for place in places for folder in place.parents}
    places = [p for p in places if p in runs_there or p not in above]  # a folder of runs may have its own summary
    ignored = {Path(place).resolve() for place in leave_out}
    places = [place for place in places if place.resolve() not in ignored]
    if not places:
        expected = "a run, or runs as ARM/seedN, with config.yaml or result.json"
        raise ValueError(problem("folder", f"one that holds {expected}", root, "pass the --output of a run"))
    problems: list[str] = []
    runs = [_read(place, problems) for place in places]
    names = dict.fromkeys(run.arm for run in runs)
    arms = [Arm(name, tuple(sorted((r for r in runs if r.arm == name), key=lambda r: r.seed))) for name in names]
    return sorted(arms, key=_rank), problems


def _rank(arm: Arm) -> tuple[int, int, int, str]:
    critic, margin = ((*known, name).index(name) for known, name in ((ORDER, arm.critic), (MARGINS, arm.margin)))
    return (0 if arm.is_baseline else 1, critic, margin if arm.critic == "caf" else 0, arm.name)


def _read(place: Path, problems: list[str]) -> Run:
    """Reads one run, each part separately: a damaged or missing part does not affect the others."""
    named = Path(os.path.abspath(place))  # "." has no name

    def attempt(name: str, read: Callable[[], Any]) -> Any:
        try:
            return read() if (place / name).exists() else {}
        except Exception as error:  # a report lists everything that it could not read
            problems.append(f"{named.parent.name}/{named.name}/{name} cannot be read: {str(error).splitlines()[0]}")
            return {}

    config = attempt("config.yaml", lambda: read_options(place / "config.yaml"))
    parts = {
        "environment": attempt("environment.json", lambda: read_json(place / "environment.json")),
        "curves": attempt("scalars.csv", lambda: _curves(named, problems)),
        "result": attempt("result.json", lambda: read_result(place)),
        "arrays": attempt("evaluation.npz", lambda: read_predictions(place)),
    }
    if (place / "config.yaml").exists() and type(config.get("seed", 0)) is not int:
        problems.append(f"{named.parent.name}/{named.name}/config.yaml: seed is not a whole number: {config['seed']!r}")
        config = {name: value for name, value in config.items() if name != "seed"}
    seed_of, result = _SEED.fullmatch(named.name), parts["result"]
    seed = int(seed_of[1]) if seed_of else int(config.get("seed") or result.get("seed") or 0)
    arm = str(result.get("arm") or (named.parent.name if seed_of else named.name))
    return Run(folder=place, arm=arm, seed=seed, config=config, **parts)


def _curves(place: Path, problems: list[str]) -> dict[str, Curve]:
    """The curves of a run; damaged rows are reported and left out."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        curves = read_scalars(place)
    problems += [f"{place.parent.name}/{place.name}/{each.message}" for each in said]
    return curves
