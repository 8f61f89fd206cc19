"""How much is there to win on unseen people, and the dial that sets it on drawn faces.

A quarter of the people are tested, on half of their pictures (or videos). Two networks see equally many pictures of
equally many people: one (``shared``) has the tested people's other pictures in training, the other (``held out``) has
pictures of somebody else in their place. CCC is the mean of valence and arousal:

- ``held out``: what a network reaches on people it has not seen;
- ``shared``: what it reaches on people it knows. The difference is what not knowing them costs;
- ``recentred``: the held-out predictions with each person's mean moved to the mean of that person's labels, which
  nobody knows. The difference is the most that correcting a person's offset could win.

On drawn faces this is repeated for every ``--effects``, how much the feeling behind a face depends on whose it is.

    python benchmarks/fer_headroom.py                                        # drawn faces, minutes on two cores
    python benchmarks/fer_headroom.py --preset paper --dataset afew-va --root AFEW-VA
    python benchmarks/fer_headroom.py --print benchmarks/fer_caf/results/headroom.json --figure headroom.png

Only the training part of the data set's split is used. Finished runs are kept: the same command goes on.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fer_arms import FACES_SEED, read_asked
from script import is_figure, print_results, read_results, write_figure, write_results

from adaptive_margin.emotion.config import PRESETS, DatasetName, EmotionConfig
from adaptive_margin.messages import counted, problem, said_plainly
from adaptive_margin.processes import ends_in_order
from adaptive_margin.training.command_line import check_output, json_with, refuse


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to measure.

    Attributes:
        dataset: the data set; faces need no --root.
        root: folder of the data set.
        preset: options to start from.
        effects: for drawn faces, how much the feeling behind a face depends on whose it is.
        seeds: number of seeds, each with other people held out (and, drawn, other people).
        iterations: length of each run.
        jobs: runs at the same time.
        output: folder of the runs.
        results: write the figures here too.
        yes: start although it will take more than a day.
        print: print the table of such a file and train nothing.
        figure: draw the gains of that file against the dial here, as PNG.
    """

    dataset: DatasetName = "faces"
    root: str | None = None
    preset: Literal[tuple(PRESETS)] = "quick"
    effects: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    seeds: int = 3
    iterations: int | None = None
    jobs: int = 1
    output: Path = Path("runs/fer_headroom")
    results: Path | None = None
    yes: bool = False
    print: Path | None = None
    figure: Path | None = None


def parsed(argv: Sequence[str] | None = None) -> Asked:
    """The options."""
    asked = read_asked(Asked, "fer_headroom.py", argv, __doc__)
    if asked.dataset != "faces" and asked.effects != Asked.effects:
        refuse(problem("--effects", f"left out for {asked.dataset}", asked.effects, "only faces are drawn"))
    with said_plainly():
        check_output("--output", asked.output)
        for flag, path in (("--output", asked.output / "headroom.json"), ("--results", asked.results)):
            if path is not None and asked.print is None:
                check_output(flag, path, file=True, replaces=json_with("config", "effects"))
        if asked.figure is not None:
            check_output("--figure", asked.figure, file=True, replaces=is_figure)
    return asked


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import numpy as np
from fer_caf import expect
from fer_people import base_of, ccc, finished, options_of, provenance, train_and_keep, train_here
from numpy.typing import NDArray

from adaptive_margin.emotion.data import EmotionData, Part
from adaptive_margin.emotion.runs import over_seeds
from adaptive_margin.metrics.comparison import signed
from adaptive_margin.stored import read_arrays, read_json
from adaptive_margin.training.forecast import announce

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

TRAINED = ("held out", "shared")
FIRST_SEED = FACES_SEED + 500  # drawn people that no other benchmark trains or tests on


def config_of(asked: Asked, effect: float, seed: int, kind: str) -> EmotionConfig:
    """The options of one run: plain regression."""
    own: dict[str, Any] = {"split_seed": FIRST_SEED + seed, "person_effect": effect} if asked.dataset == "faces" else {}
    folder = asked.output / f"{asked.dataset}-{asked.preset}"
    output = folder / f"effect{effect:g}" / kind.replace(" ", "-") / f"seed{seed}"
    return dataclasses.replace(
        base_of(asked), **own, critic="none", seed=seed, output=str(output), cache=str(folder / "cache")
    )


def divided(part: Part, *, share: float = 0.25, seed: int = 0) -> tuple[dict[str, Rows], Rows]:
    """Two training sets, with and without the people who are tested, and the rows to test on.

    Tested people are drawn, and half of the pictures of each (of the videos, where a person has several) are the test.
    ``"shared"`` trains on the other half; ``"held out"`` has as many pictures of another person in its place, whom
    ``"shared"`` lacks. All others are in both.

    Args:
        part: rows with known people.
        share: of the people who are tested, above 0 and at most a half.
        seed: of the draw.

    Returns:
        Name → training rows, of equal number; and the test rows, all sorted.

    Raises:
        ValueError: unknown people, a share out of range, or nobody with two pictures.
    """
    part.check_people("headroom")
    if not 0 < share <= 0.5:
        raise ValueError(problem("share", "above 0 and at most 0.5", share, "0.25 tests a quarter of the people"))
    draw = np.random.default_rng(seed)
    people = draw.permutation(np.unique(part.people))
    count = min(max(1, round(share * len(people))), len(people) // 2)
    videos = np.array([video or f"\0{row}" for row, video in enumerate(part.videos)])
    known, instead, tested = [], [], []
    for person, other in zip(people[:count], people[count : 2 * count], strict=True):
        rows, theirs = np.flatnonzero(part.people == person), np.flatnonzero(part.people == other)
        units = draw.permutation(np.unique(videos[rows]))
        if len(units) < 2:  # a single video: its first frames and its last
            half = np.arange(len(rows)) < len(rows) // 2
        else:
            half = np.isin(videos[rows], units[: len(units) // 2])
        size = min(int(half.sum()), len(theirs))
        known.append(draw.permutation(rows[half])[:size])
        instead.append(draw.permutation(theirs)[:size])
        tested.append(rows[~half])
    if count == 0 or not sum(map(len, known)):
        got = f"{len(people)} people, {len(part)} pictures"
        raise ValueError(problem("part", "of two people with two pictures each, or more", got, "use more pictures"))
    common = np.flatnonzero(np.isin(part.people, people[2 * count :]))
    training = {
        name: np.sort(np.concatenate([common, *own])) for name, own in (("held out", instead), ("shared", known))
    }
    return training, np.sort(np.concatenate(tested))


def recentred(truth: Floats, prediction: Floats, people: Rows) -> Floats:
    r"""Predictions of which each person's mean is moved to that of the person's labels, which nobody knows.

    .. math:: \hat y_i \leftarrow \hat y_i - \bar{\hat y}_{p(i)} + \bar y_{p(i)}

    Source: ours; the most that a correction by a constant per person could win.

    Args:
        truth: labels, shape ``(N, L)``.
        prediction: of these, likewise.
        people: of each row, shape ``(N,)``.

    Returns:
        Shape ``(N, L)``.
    """
    moved = np.array(prediction, dtype=np.float64)
    for person in np.unique(people):
        mine = people == person
        moved[mine] += (truth[mine].astype(np.float64) - moved[mine]).mean(axis=0)
    return moved


def train_one(config: EmotionConfig, seed: int, kind: str) -> str:
    """Trains one network and keeps its predictions. Returns what went wrong, or nothing."""

    def parts(whole: EmotionData) -> tuple[EmotionData, Part]:
        training, test = divided(whole.train, seed=seed)
        tested = whole.train.take(test)
        return dataclasses.replace(whole, train=whole.train.take(training[kind]), test=tested), tested

    return train_and_keep(config, parts, lambda job, part: {"alone": job.evaluation(part)})


def ccc_of(folder: str, corrected: bool = False) -> float:
    """Mean CCC of both labels, of predictions as they are or recentred by person."""
    arrays = read_arrays(Path(folder) / "alone.npz")
    moved = recentred(arrays["truth"], arrays["prediction"], arrays["person"])
    return ccc(arrays["truth"], moved if corrected else arrays["prediction"])


def table(content: Mapping[str, Any]) -> str:
    """The figures in Markdown, mean over seeds and 95% interval (Student's t) of the differences."""

    def shown(values: Sequence[float]) -> str:
        found = over_seeds(values)
        assert found is not None
        ends = "" if found.n < 2 else f" [{signed(found.low, 3)}, {signed(found.high, 3)}]"
        return f"{signed(found.mean, 3)}{ends}"

    lines = [
        "| person_effect | held out | shared | recentred | known people | right offsets |",
        "|---|---|---|---|---|---|",
    ]
    for row in content["effects"]:
        runs = row["seeds"]
        means = [sum(one[name] for one in runs) / len(runs) for name in (*TRAINED, "recentred")]
        gains = [[one[name] - one["held out"] for one in runs] for name in ("shared", "recentred")]
        cells = [f"{row['person_effect']:g}", *(f"{mean:.3f}" for mean in means), *map(shown, gains)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Both gains against the dial, a dot for each seed and a line through the means."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.0, 3.6), layout="constrained")
    effects = [row["person_effect"] for row in content["effects"]]
    for name, label, colour in (
        ("shared", "their other pictures in training", "#3b82c4"),
        ("recentred", "each person's offset right", "#bf7430"),
    ):
        gains = [[one[name] - one["held out"] for one in row["seeds"]] for row in content["effects"]]
        axes.plot(effects, [sum(values) / len(values) for values in gains], color=colour, label=label)
        for effect, values in zip(effects, gains, strict=True):
            axes.plot([effect] * len(values), values, "o", color=colour, markersize=4, alpha=0.6)
    axes.axhline(0, color="#8a8f98", linewidth=0.8)
    axes.set_xlabel("how much people differ in showing emotion (person_effect)")
    axes.set_ylabel("gain in CCC over held-out people")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, path)
    plt.close(figure)


@ends_in_order()
@said_plainly()
def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing, then writes and prints all figures."""
    asked = parsed(argv)
    if asked.print:
        print_results(asked.print, lambda: table(read_results(asked.print)))
        if asked.figure:
            draw(read_results(asked.print), asked.figure)
        return 0
    effects = asked.effects if asked.dataset == "faces" else (1.0,)
    configs = {
        (effect, seed, kind): config_of(asked, effect, seed, kind)
        for effect in effects
        for seed in range(asked.seeds)
        for kind in TRAINED
    }
    todo = {which: config for which, config in configs.items() if not finished(config)}
    print(f"{counted(len(todo), 'run')} to train, {asked.jobs} at a time, into {asked.output}", flush=True)
    announce(expect(todo, asked.jobs, keeps=False), asked.yes)
    failed = train_here({which: (config, *which[1:]) for which, config in todo.items()}, asked.jobs, train_one)
    for which, message in failed.items():
        print(f"failed: {which}: {message}")
    if failed:
        return 1
    documents = {which: read_json(Path(config.output) / "run.json") for which, config in configs.items()}
    content = {
        **provenance(documents.values()),
        "config": options_of(next(iter(configs.values()))),
        "effects": [
            {
                "person_effect": effect,
                "seeds": [
                    {"seed": seed}
                    | {kind: ccc_of(configs[effect, seed, kind].output) for kind in TRAINED}
                    | {"recentred": ccc_of(configs[effect, seed, "held out"].output, corrected=True)}
                    | {"cpu_seconds": documents[effect, seed, "held out"]["cpu_seconds"]}
                    for seed in range(asked.seeds)
                ],
            }
            for effect in effects
        ],
    }
    for path in [asked.output / "headroom.json", *([asked.results] if asked.results else [])]:
        write_results(path, content)
    print(table(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
