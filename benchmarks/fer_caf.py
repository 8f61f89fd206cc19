"""Does a critic help on people the network has never seen? The shape of the paper's Table 4.

Trains the same network without a critic (the baseline) and with each critic and margin, several seeds each. All are
tested on people (or videos) that none of them was trained on. Every arm's difference from the baseline is reported seed
by seed, with a 95% interval.

    python benchmarks/fer_caf.py                        # drawn faces, nothing to download, minutes on two cores
    python benchmarks/fer_caf.py --preset faces         # more of them, disturbed, all arms, five seeds
    python benchmarks/fer_caf.py --print benchmarks/fer_caf/results/faces-quick.json    # the table in docs/emotion.md
    python benchmarks/fer_caf.py --dataset affectnet --root DIR --backbone resnet18     # the paper's experiment
    torchrun --nproc-per-node 8 benchmarks/fer_caf.py --dataset affectnet --root DIR    # each run on eight GPUs

Everything goes to ``--output``: ``runs/ARM/seedN`` (checkpoints, curves, model, result of each run), ``results.json``
(every figure of every seed, options, versions, command, commit), ``table.txt`` and ``report.html``. Ctrl-C and SIGTERM
save and stop (exit status 130 and 143); the same command continues from there. The test part is not used before the end
of a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from fer_arms import ARMS, BASELINE, CRITIC_ARMS, FACES_SEED, PAPER_ARMS, QUICK_ARMS, read_asked, with_own
from script import print_results, read_results

from adaptive_margin.emotion.config import PRESETS, USED_WITH, DatasetName, EmotionConfig, idle, preset_for
from adaptive_margin.messages import counted, is_expected, problem, said_plainly
from adaptive_margin.processes import ProcessDiedError, Workers, ends_in_order
from adaptive_margin.training.command_line import check_output, json_with, refuse
from adaptive_margin.training.config_files import ConfigError, from_yaml, read_options, to_yaml

OWNED = {"output", "seed", "split_seed", "fold"}.union(*ARMS.values())
"""Options that the runs of an ablation differ in: a file cannot set them."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to train.

    Attributes:
        dataset: the data set; by default the config file's, else faces, which need no --root.
        root: folder of the data set.
        preset: options to start from; by default quick for faces, paper for data sets.
        config: YAML file that changes the preset; flags change both.
        backbone: encoder: small, resnet18, alexnet, any of torchvision's, timm:NAME.
        arms: arms to train; by default the first seven for quick, the first ten for drawn faces, none and caf for
            data sets.
        own: terms of your own, FILE.py:CLASS, each an arm more (docs/people.md, Add an arm).
        seeds: number of seeds; by default 3 for quick, else 5.
        iterations: length of each run.
        batch_size: images in a batch.
        device: cpu or cuda; by default cuda if available.
        jobs: runs at the same time; by default one per core, two at most; one on a GPU.
        output: output folder; by default runs/fer_caf/DATASET-PRESET.
        yes: start although it will take more than a day.
        results: also write results.json here.
        print: print the table of this results.json in Markdown and train nothing.
    """

    dataset: DatasetName | None = None
    root: str | None = None
    preset: Literal[tuple(PRESETS)] | None = None
    config: Path | None = None
    backbone: str | None = None
    arms: tuple[Literal[tuple(ARMS)], ...] = ()
    own: tuple[str, ...] = ()
    seeds: int | None = None
    iterations: int | None = None
    batch_size: int | None = None
    device: str | None = None
    jobs: int | None = None
    output: Path | None = None
    yes: bool = False
    results: Path | None = None
    print: Path | None = None

    @functools.cached_property
    def file(self) -> dict[str, Any]:
        """The content of the config file."""
        return {} if self.config is None else read_options(self.config)


HEAD = "mean ± standard deviation over seeds"
"""How a table begins."""


def parsed(argv: Sequence[str] | None = None) -> Asked:
    """The options, with defaults that need no PyTorch."""
    asked = read_asked(Asked, "fer_caf.py", argv, __doc__)
    try:
        owned = [name for name in asked.file if name in OWNED]
    except (ConfigError, OSError) as error:
        refuse(str(error))
    if owned:
        expected = f"without {', '.join(sorted(OWNED))}, which the runs differ in"
        remedy = "leave out options of single runs; see --arms and --seeds"
        refuse(problem(str(asked.config), expected, " and ".join(owned), remedy))
    dataset = asked.dataset or asked.file.get("dataset", "faces")
    preset = asked.preset or ("quick" if dataset == "faces" else "paper")
    arms = asked.arms or (QUICK_ARMS if preset == "quick" else CRITIC_ARMS if dataset == "faces" else PAPER_ARMS)
    asked = dataclasses.replace(
        asked,
        dataset=dataset,
        preset=preset,
        arms=arms if BASELINE in arms else (BASELINE, *arms),
        seeds=asked.seeds or (3 if preset == "quick" else 5),
        output=asked.output or Path("runs") / "fer_caf" / f"{dataset}-{preset}",
    )
    if asked.print is None:
        with said_plainly():
            config_of(asked, BASELINE, 0)
            check_output("--output", asked.output)
            for flag, path in (("--output", asked.output / "results.json"), ("--results", asked.results)):
                if path is not None:
                    check_output(flag, path, file=True, replaces=json_with("preset", "arms", "failed"))
            table = asked.output / "table.txt"
            check_output("--output", table, file=True, replaces=lambda text: text.startswith(HEAD.encode()))
    return asked


def config_of(asked: Asked, arm: str, seed: int) -> EmotionConfig:
    """The options of one run. Drawn faces are different people for each seed; AFEW-VA's seeds are its five folds.

    The file changes the preset, flags change both. Of the file, an arm leaves out what only other arms use, such as the
    weight of a term.
    """
    flags = {
        "dataset": asked.dataset,
        "root": asked.root,
        "device": asked.device,
        "encoder": asked.backbone,
        "iterations": asked.iterations,
        "batch_size": asked.batch_size,
    }
    flags = {name: value for name, value in flags.items() if value is not None} | ARMS[arm]

    def changed(preset: EmotionConfig) -> EmotionConfig:
        if asked.config is None:
            return dataclasses.replace(preset, **flags)
        waiting = [name for name in idle({**preset.plain(), **asked.file, **flags}) if OWNED & USED_WITH[name].keys()]
        return from_yaml(EmotionConfig, asked.config, preset, {name: getattr(preset, name) for name in waiting} | flags)

    base = changed(preset_for(asked.preset, changed(PRESETS[asked.preset])))
    own = {"faces": {"split_seed": FACES_SEED + seed}, "afew-va": {"fold": seed % 5}}.get(asked.dataset, {})
    output = str(asked.output / "runs" / arm / f"seed{seed}")
    places = {"output": output, "cache": base.cache or str(asked.output / "cache")}
    return dataclasses.replace(base, seed=seed, **own, **places)


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import torch
from threadpoolctl import threadpool_limits  # of scikit-learn, which the host requires
from tqdm import tqdm

from adaptive_margin.emotion.data import DATA_OPTIONS, EmotionData, check_root, load_data
from adaptive_margin.emotion.evaluation import read_result
from adaptive_margin.emotion.nets import build_encoder
from adaptive_margin.emotion.report import write_report
from adaptive_margin.emotion.runs import (
    Arm,
    Measured,
    collapsed,
    differences,
    figure,
    identity_of,
    leakage_difference,
    map_at_r,
    over_seeds,
    plural,
    read_runs,
)
from adaptive_margin.emotion.trainer import Measurement, run, train_network, works
from adaptive_margin.metrics.comparison import signed
from adaptive_margin.reports._page import is_page
from adaptive_margin.training import NonFiniteError, RunFolderError, World, write_atomically
from adaptive_margin.training.forecast import Forecast, announce, forecast, steps_done
from adaptive_margin.training.world import device_of

Done = TypeVar("Done")
FIGURES = {"rmse": "RMSE", "sagr": "SAGR", "pcc": "PCC", "ccc": "CCC"}
KEPT = ("test", "leakage", "seconds", "breakdown", "by_person")
"""What results.json has of the result of each run."""
LOWER_IS_BETTER = ("rmse",)


def options(argv: Sequence[str] | None = None) -> Asked:
    """The options, with arms of your own and the number of jobs."""
    asked = parsed(argv)
    try:
        own = with_own(asked.own)
    except (OSError, ValueError) as error:
        refuse(str(error))
    device = asked.device or asked.file.get("device")
    on_gpu = torch.cuda.is_available() if device is None else device != "cpu"
    jobs = asked.jobs or (1 if on_gpu else min(2, os.cpu_count() or 1))
    return dataclasses.replace(asked, arms=(*asked.arms, *own), jobs=jobs)


@functools.lru_cache(maxsize=1)
def shared_data(key: tuple[Any, ...], world: World | None = None) -> EmotionData:
    """Loaded once for the runs that a worker trains one after another."""
    return load_data(EmotionConfig(**dict(zip(DATA_OPTIONS, key, strict=True)), size=1), world)


def data_key(config: EmotionConfig) -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in DATA_OPTIONS)


def train_one(config: EmotionConfig) -> Measurement | str:
    """Trains or resumes one run up to its measurement, which needs no device; or what went wrong."""

    def task() -> Measurement:
        data = shared_data(data_key(config))
        with World.from_environment(config.device) as world:
            return train_network(config, data=data, world=world)[-1]

    return logged(config, task)


def logged(config: EmotionConfig, task: Callable[[], Done]) -> Done | str:
    """The result of a part of a run, whose output goes to the run's log; or what went wrong."""
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    with open(f"{config.output}.log", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            return task()
        except Exception as error:
            if is_expected(error):
                return str(error)
            traceback.print_exc()  # into the run's log: the other runs continue
            return f"{type(error).__name__}: {error} (a bug in the program; see {config.output}.log)"


def is_done(config: EmotionConfig) -> bool:
    folder = Path(config.output)
    try:
        result, options = read_result(folder), (folder / "config.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):  # it is not there, or damaged: the run is finished again
        return False
    return bool(result) and options == to_yaml(config)


def threads_of(jobs: int) -> int:
    """PyTorch's number of threads in each of so many runs at a time; ``OMP_NUM_THREADS`` is that of all together."""
    return max(1, torch.get_num_threads() // jobs)


def start_pool(jobs: int) -> Workers:
    """Processes for runs, which share the threads."""
    return Workers(jobs, threads=threads_of(jobs))


def outcome(message: str | None, error: Exception | None) -> str:
    """What went wrong with a run, or nothing."""
    if isinstance(error, ProcessDiedError):
        return f"{error} (killed, or out of memory?); the same command resumes from the last checkpoint"
    return message or "" if error is None else f"{type(error).__name__}: {error}"


def train_all(configs: Mapping[tuple[str, int], EmotionConfig], jobs: int) -> dict[tuple[str, int], str]:
    """Trains all runs that are not finished, with a progress bar; returns what went wrong in each."""
    todo = [which for which, config in configs.items() if not is_done(config)]
    open_ones = set(todo)
    failed: dict[tuple[str, int], str] = {}
    total = sum(config.iterations for config in configs.values())
    with tqdm(total=total, unit="it", smoothing=0.02, disable=None, desc="training") as bar:

        def refresh() -> None:
            bar.n = sum(steps_done(c.output) if which in open_ones else c.iterations for which, c in configs.items())
            bar.set_postfix_str(f"{len(configs) - len(open_ones)} of {len(configs)} runs")
            bar.refresh()

        with start_pool(jobs) as workers:
            try:
                items = [(configs[which],) for which in todo]
                for number, done, error in workers.outcomes(train_one, items, every_second=refresh):
                    which = todo[number]
                    open_ones.remove(which)
                    if isinstance(done, Measurement):  # here, while the next run trains; the workers have the cores
                        with threadpool_limits(1):
                            done = logged(configs[which], done)
                    if said := outcome(done if isinstance(done, str) else None, error):
                        failed[which] = said
                        bar.write(f"{'/'.join(map(str, which))}: {said}")
                    refresh()
            except (KeyboardInterrupt, SystemExit) as stop:
                bar.write("stopping: runs in progress finish their step and save; the same command resumes from there")
                raise SystemExit(stop.code if isinstance(stop, SystemExit) else 130) from None
    return failed


def train_together(configs: Mapping[tuple[str, int], EmotionConfig], world: World) -> dict[tuple[str, int], str]:
    """Under torchrun: all processes train one run after another; returns what went wrong in each. They continue after
    an error that all of them raise. An error that one may have alone, such as a full disk, ends all.
    """
    failed: dict[tuple[str, int], str] = {}
    for which, config in configs.items():
        if world.broadcast_object(is_done(config) if world.is_main else None):
            continue
        if world.is_main:
            print("/".join(map(str, which)), file=sys.stderr, flush=True)
        try:
            run(config, data=shared_data(data_key(config), world), world=world)
        except (RunFolderError, NonFiniteError) as error:
            failed[which] = str(error)
    return failed


def mean_and_std(arm: Arm, name: str, label: str) -> tuple[float, float, int]:
    values = [v for one in arm.runs if (v := figure(one.result, name, label)) is not None]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else float("nan"), len(values)


def verdict(found: Measured | None, name: str) -> str:
    """``better`` or ``worse`` if the interval excludes zero; else ``no difference seen``, or ``identical``."""
    if found is not None and found.low == found.high == 0:
        return "identical"
    if found is None or not found.low <= found.high or found.low <= 0 <= found.high:
        return "no difference seen"
    return "better" if (found.mean < 0) is (name in LOWER_IS_BETTER) else "worse"


def said(found: Measured, digits: int = 3) -> str:
    return f"{signed(found.mean, digits)} [{signed(found.low, digits)}, {signed(found.high, digits)}]"


def table(arms: Sequence[Arm]) -> str:
    """A table like Table 4, and below it each arm's difference from the baseline."""
    baseline = next((arm for arm in arms if arm.name == BASELINE), None)
    width = max(len(arm.name) for arm in arms) + 2
    kinds = plural(next((identity_of(one.result) for arm in arms for one in arm.runs if one.result), "person"))
    lines = [f"{HEAD}, {kinds} never seen in training", ""]
    head = [f"{title} {label[0].upper()}" for title in FIGURES.values() for label in ("valence", "arousal")]
    lines.append(" " * width + "".join(f"{column:>15}" for column in head) + "  seeds")
    for arm in arms:
        cells, n = "", 0
        for name in FIGURES:
            for label in ("valence", "arousal"):
                mean, std, n = mean_and_std(arm, name, label)
                cells += f"{f'{mean:.3f} ± {std:.3f}':>15}"
        lines.append(f"{arm.name:{width}}{cells}{n:7}")
    if baseline is None or len(arms) == 1:
        return "\n".join(lines)
    lines += [
        "",
        f"difference from '{BASELINE}', seed by seed, mean of both labels, with an interval corrected for the number "
        "of arms (Student's t, Holm)",
        "",
    ]
    lines.append(" " * width + f"{'RMSE':>28}{'':20}{'CCC':>28}")
    others = [arm for arm in arms if arm is not baseline]
    gaps = {name: differences(others, baseline, name) for name in ("rmse", "ccc")}
    for arm in others:
        cells = ""
        for name, by_arm in gaps.items():
            found = by_arm[arm.name]
            cells += f"{'none' if found is None else said(found, 4):>28}  {verdict(found, name):18}"
        lines.append(f"{arm.name:{width}}{cells}".rstrip())
    lines += ["", f"identity in the features of unseen {kinds}, MAP@R (chance level: see results.json)", ""]
    for arm in arms:
        if (leak := over_seeds([value for one in arm.runs if (value := map_at_r(one)) is not None])) is not None:
            gap = None if arm is baseline else leakage_difference(arm, baseline)
            text = "" if gap is None else f"  {said(gap)}"
            lines.append(f"{arm.name:{width}}{leak.mean:.3f}{text}")
    dead = [f"{arm.name}/seed{one.seed} {why}" for arm in arms for one in arm.runs if (why := collapsed(one))]
    if dead:
        lines += ["", "runs whose predictions lie on a line or a point, and whose figures say little:", *dead]
    lines += [
        "",
        "Intervals of MAP@R are each for one comparison: of twenty arms that change nothing, one would exclude 0.",
    ]
    return "\n".join(lines)


def markdown(content: Mapping[str, Any]) -> list[str]:
    """The table of a results.json: means of both labels, and differences from the baseline seed by seed."""

    def by_seed(arm: str, group: str, name: str) -> dict[int, float]:
        values = {one["seed"]: one for one in content["arms"].get(arm, {"seeds": []})["seeds"]}
        if group == "figures":
            return {seed: one["test"]["figures"][name]["mean"] for seed, one in values.items()}
        leaks = {seed: one.get("leakage", {}).get("unseen", {}).get(name) for seed, one in values.items()}
        return {seed: value for seed, value in leaks.items() if value is not None}  # none if no person is known

    columns = {
        "CCC": ("figures", "ccc"),
        "RMSE": ("figures", "rmse"),
        "identity, MAP@R": ("leakage", "map_at_r"),
        "identity, probe": ("leakage", "probe_accuracy"),
    }
    compared = ("CCC", "RMSE", "identity, MAP@R")
    lines = ["| arm | " + " | ".join([*columns, *(f"Δ {name}" for name in compared)]) + " |"]
    lines.append("|---" * (1 + len(columns) + len(compared)) + "|")
    for arm in content["arms"]:
        cells = []
        for column in columns.values():
            values = list(by_seed(arm, *column).values())
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}" if values else "")
        for name in compared:
            base = {} if arm == BASELINE else by_seed(BASELINE, *columns[name])
            pairs = [value - base[seed] for seed, value in by_seed(arm, *columns[name]).items() if seed in base]
            gap = over_seeds(pairs)
            text = "" if gap is None else said(gap)
            cells.append(f"**{text}**" if gap is not None and (gap.low > 0 or gap.high < 0) else text)
        lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    return lines


def write_results(asked: Asked, arms: Sequence[Arm], failed: Mapping[tuple[str, int], str]) -> str:
    baseline = next((arm for arm in arms if arm.name == BASELINE), None)  # it may have failed
    finished = next(one for arm in arms for one in arm.runs if one.result)
    others = [arm for arm in arms if arm is not baseline]
    gaps = {name: differences(others, baseline, name) for name in FIGURES} if baseline is not None else {}
    content = {
        "environment": finished.environment,  # of the training: these lines may be written again later
        "preset": asked.preset,
        "arms": {
            arm.name: {
                "config": config_of(asked, arm.name, 0).plain(),
                "seeds": [
                    {"seed": one.seed}
                    | {k: v for k, v in one.result.items() if k in KEPT}
                    | {"collapsed": collapsed(one)}
                    for one in arm.runs
                ],
                "difference": {
                    name: found._asdict() | {"verdict": verdict(found, name)}
                    for name, by_arm in gaps.items()
                    if (found := by_arm.get(arm.name)) is not None
                },
            }
            for arm in arms
        },
        "failed": {"/".join(map(str, which)): message for which, message in failed.items()},
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n"
    for path in [asked.output / "results.json", *([asked.results] if asked.results else [])]:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    return text


@ends_in_order()
@said_plainly()
def main(argv: Sequence[str] | None = None) -> int:
    asked = options(argv)
    if asked.print:
        print_results(asked.print, lambda: "\n".join(markdown(read_results(asked.print))))
        return 0
    began = time.perf_counter()
    configs = {(arm, seed): config_of(asked, arm, seed) for seed in range(asked.seeds) for arm in asked.arms}
    one = next(iter(configs.values()))
    device_of(one.device, int(os.environ.get("LOCAL_RANK", "0")))
    if one.pretrained is not None:  # mismatches are reported before images are decoded
        build_encoder(one.encoder, one.pretrained)
    check_output("--output", asked.output / "report.html", file=True, replaces=is_page)  # before hours of training
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        with World.from_environment(one.device) as world, said_plainly():
            if world.is_main:
                print(f"{announced(asked, configs)}, on {world.size} processes", flush=True)
            announce(world.from_main(lambda: expect(configs, processes=world.size)), asked.yes, world)
            failed = train_together(configs, world)
            if not world.is_main:
                return 1 if failed else 0
        return finish(asked, configs, failed, began)
    print(f"{announced(asked, configs)}, {asked.jobs} at a time")
    announce(expect(configs, asked.jobs), asked.yes)
    if asked.dataset != "faces":
        print(f"reading {one.dataset} in {one.root}; images are decoded once, into {one.cache}")
        print("\n".join(load_data(one).reports))
    return finish(asked, configs, train_all(configs, asked.jobs), began)


def expect(configs: Mapping[Any, EmotionConfig], jobs: int = 1, *, processes: int = 1, keeps: bool = True) -> Forecast:
    """What is left to do, measured on this device; ``keeps`` as in :func:`works`."""
    left = [config for config in configs.values() if not (keeps and is_done(config))]
    if left:
        check_root(left[0])  # a wrong root is said at once
    threads = None if processes > 1 else threads_of(jobs)
    picture = 3 * left[0].resize ** 2 if left and left[0].dataset != "faces" else 0
    return forecast(works(left, keeps=keeps, processes=processes), jobs=jobs, threads=threads, picture=picture)


def announced(asked: Asked, configs: Mapping[tuple[str, int], EmotionConfig]) -> str:
    one = next(iter(configs.values()))
    return (
        f"{counted(len(configs), 'run')} of {counted(one.iterations, 'iteration')} "
        f"({', '.join(asked.arms)}; {counted(asked.seeds, 'seed')}), encoder {one.encoder}, into {asked.output}"
    )


def finish(
    asked: Asked,
    configs: Mapping[tuple[str, int], EmotionConfig],
    failed: Mapping[tuple[str, int], str],
    began: float,
) -> int:
    """Writes table, results and report of the requested runs that did not fail; returns the exit status."""
    for which, message in failed.items():
        print(f"failed: {'/'.join(map(str, which))}: {message}")
    if len(failed) == len(configs):
        return 1
    wanted = {str(Path(config.output)) for which, config in configs.items() if which not in failed}
    arms = [
        dataclasses.replace(arm, runs=tuple(r for r in arm.runs if str(r.folder) in wanted))
        for arm in read_runs(asked.output / "runs")[0]
    ]
    arms = [arm for arm in arms if any(one.result for one in arm.runs)]
    text = table(arms)
    write_results(asked, arms, failed)
    write_atomically(asked.output / "table.txt", (text + "\n").encode())
    print(f"\n{text}\n")
    stale = [c.output for which, c in configs.items() if which in failed and Path(c.output, "result.json").is_file()]
    report = write_report(asked.output, leave_out=stale)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes; {report}, {asked.output / 'results.json'}, table.txt")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
