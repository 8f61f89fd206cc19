"""A run from its options to its results, with the loop in :mod:`adaptive_margin.training`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..affect import Batch, CachedBatches, LeakError, Split
from ..affect.batches import hands_of
from ..images.errors import LabelFileError
from ..messages import problem, shorten
from ..metrics import AffectMetrics, affect_breakdown
from ..stored import DamagedFileError, read_json
from ..training.checkpoints import Checkpoints
from ..training.config_files import flat
from ..training.forecast import Work, size_of, steps_done
from ..training.loop import Parts, Summary, best_state, check_length, train
from ..training.model_card import CARD, UNDER_WAY, write_card
from ..training.optimisation import gradient_scaler
from ..training.randomness import seed_everything
from ..training.run_folder import RunFolder, RunFolderError, check_folder
from ..training.world import World, device_of, synchronise_batch_norm
from ._drawn_video import evaluate_drawn_video
from .config import AdamConfig, EmotionConfig, idle
from .critics import build_critic, build_grouper
from .data import EmotionData, Part, load_data
from .evaluation import Evaluation, evaluate, evaluating, write_predictions, write_result
from .model_card import facts, facts_of, model_card, python_loading
from .model_file import Preprocessing, description, network_of, read_network, save_model, versions
from .nets import EmotionNet, build_encoder, check_size, emotion_net
from .steps import Iteration, Optimizers, StepOptions
from .terms import build_term, term_class, warmed_up

COST: tuple[str, ...] = ("encoder", "resize", "size", "batch_size", "precision", "critic", "order", "term")
COST += ("person_norm", "per_person", "cross_person")
"""The options on which the time of a step depends."""

SEEN_ROWS = 2_000
"""Number of training pictures for the identity leakage of people in training."""

MAY_CHANGE: tuple[str, ...] = ("output", "cache", "root", "device", "iterations", "keep")
MAY_CHANGE += ("evaluate_every", "checkpoint_every", "log_every")
"""Options that may differ when a run resumes: its length, which network is kept, and options that do not affect the
weights. A different ``root`` must hold the same data: see :func:`check_same_data`."""

OUTCOMES = ("model.pt", "result.json", "evaluation.npz", CARD)
"""Files of a finished run; they must not make a longer run look finished."""

OUTCOME_OPTIONS = ("iterations", "keep", "evaluate_every")
"""The options in ``MAY_CHANGE`` on which the results depend."""


def may_change(config: EmotionConfig) -> tuple[str, ...]:
    """Options in which a run that goes on may differ from what it was: ``MAY_CHANGE``, and those without effect."""
    without = idle(vars(config))
    return (*MAY_CHANGE, *(name for name in flat(config.plain()) if name.partition(".")[0] in without))


def check_before(config: EmotionConfig, processes: int = 1) -> None:
    """Raises what a run of these options would, as far as it can be told without its data; changes nothing.

    Raises:
        RunFolderError: the folder holds something else than this run, or a longer one.
        ValueError: the encoder does not accept pictures of ``config.size``, its weights do not fit, or several
            processes cannot use an option.
    """
    check_size(config.encoder, config.size)
    check_processes(config, processes)
    if check_folder(config.output, config, may_change(config), OUTCOMES):
        done = Checkpoints(Path(config.output) / "checkpoints").files()[-1][0]
        check_length(Path(config.output), done, config.iterations, "iterations")
    if config.pretrained is not None:
        build_encoder(config.encoder, config.pretrained)


class EmotionJob(Parts):
    """The state of a run, and one step of it: a ``Job`` of :func:`adaptive_margin.training.train`.

    Args:
        config: the options.
        data: the data.
        world: the processes.
    """

    def __init__(self, config: EmotionConfig, data: EmotionData, world: World) -> None:
        self.config, self.data, self.world = config, data, world
        seed_everything(config.seed, deterministic=config.deterministic)  # all ranks: the same weights
        self._people = people_of(config, data.train, world)
        net = emotion_net(
            config.encoder,
            config.pretrained,
            dropout=config.dropout,
            leaky_slope=config.leaky_slope,
            person_norm=config.person_norm,
            person_scale=config.person_scale,
        )
        critic = build_critic(
            config.critic,
            net.encoder.features,
            margin=config.margin,
            constant=config.constant,
            repulsion=config.repulsion,
            regularizer=config.regularizer,
            penalty=config.penalty,
            dropout=config.critic_dropout,
            normalize=config.critic_normalize,
            cross_person=config.cross_person,
        )
        term = build_term(
            config.term,
            net.encoder.features,
            0 if self._people is None else int(self._people.max()) + 1,
            weight=config.term_weight,
            correlation_weight=config.correlation_weight,
        )
        seed_everything(config.seed, rank=world.rank, deterministic=config.deterministic)  # each its own dropout
        net.to(world.device)
        synchronise_batch_norm(net, world)
        if term is not None:
            term.to(world.device)
        regression = adam(net if term is None else torch.nn.ModuleList([net, term]), config.regression_adam)
        optimizers = Optimizers(None, None, regression)
        if critic is not None:
            critic.to(world.device)
            adversarial = regression if config.shared_moments else adam(net.encoder, config.adversarial_adam)
            optimizers = Optimizers(adam(critic, config.critic_adam), adversarial, regression)
        self.iteration = Iteration(
            net=net,
            critic=critic,
            grouper=build_grouper(config.grouping, magnitude=config.magnitude, max_radius=config.max_radius),
            optimizers=optimizers,
            options=StepOptions(
                adversarial_weight=config.adversarial_weight,
                correlation_weight=config.correlation_weight,
                weak_batch_norm=config.weak_batch_norm,
                precision=config.precision,
                clip_norm=config.clip_norm,
            ),
            world=world,
            scaler=gradient_scaler(world.device, config.precision),
            term=term,
        )
        self.batches = self._batches(
            data.train,
            batch_size=config.batch_size,
            train=True,
            seed=config.seed,
            people=None if self._people is None else self._people.numpy(),
            per_person=config.per_person,
            drop_last=True,  # correlations, groups and batch norm of a few left-over samples would be noise
        )
        self._reader: Iterator[Batch] = iter(())
        self._next_step = -1

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing from pictures to the network's input."""
        return Preprocessing(resize=self.config.resize, size=self.config.size)

    @property
    def waited(self) -> float:
        """Seconds spent waiting for images."""
        return self.batches.wait_seconds

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        """Takes the step after ``step`` others; this number determines the data and the learning rates."""
        config, iteration = self.config, self.iteration
        epoch, position = divmod(step, len(self.batches))
        if step != self._next_step or position == 0:
            self._reader = self.batches.epoch(epoch, start=position)
        self._next_step = step + 1
        batch = next(self._reader)

        decay = config.lr_decay ** (step // config.lr_decay_every)
        for optimizer, adam_config in self._optimizers().values():
            for group in optimizer.param_groups:
                group["lr"] = adam_config.lr * decay
        critic = iteration.critic
        recorded = (step + 1) % config.log_every == 0
        if critic is not None:
            critic.collect(recorded)
            if position == 0 and step > 0:
                critic.step_epoch()

        if iteration.term is not None:
            iteration.term.strength = warmed_up(step, config.term_warm_up)
        people = self._people[batch.rows].to(self.world.device) if self._people is not None else None
        take = iteration.paper_step if config.order == "paper" else iteration.joint_step
        adversarial = step >= config.adversarial_start
        losses = take(batch.images, batch.labels, people, adversarial=adversarial)
        named: dict[str, Tensor | float] = {f"loss/{name}": loss for name, loss in losses.items() if name != "strong"}
        if "strong" in losses:
            named["groups/strong"] = losses["strong"]
        if critic is not None and adversarial and recorded:
            named |= {f"critic/{name}": value for name, value in critic.objective.statistics().items()}
        return named

    def evaluate(self) -> Mapping[str, float]:
        """Figures of the validation part: ``val/ccc`` is the mean over both labels, ``val/ccc_valence`` that of one."""
        scores = self.scores(self.data.val)
        return {
            f"val/{figure}" if label == "mean" else f"val/{figure}_{label}": value
            for figure in ("rmse", "sagr", "pcc", "ccc")
            for label, value in scores[figure].items()
        }

    def scores(self, part: Part) -> dict[str, dict[str, float]]:
        """RMSE, SAGR, PCC and CCC of a part, over all processes, as :class:`~adaptive_margin.metrics.AffectMetrics`."""
        net = self.iteration.net
        metrics = AffectMetrics()
        with evaluating(net), torch.inference_mode():
            for batch in self.evaluation_batches(part):
                if len(batch.images):
                    metrics.update(batch.labels, net(batch.images).float())
        return metrics.synchronize().compute()

    def evaluation_batches(self, part: Part) -> CachedBatches:
        """This process's share of a part, in order, without random crops."""
        return self._batches(part, batch_size=max(2, self.config.batch_size), train=False)

    def _batches(self, part: Part, **options: Any) -> CachedBatches:
        size, world = self.config.size, self.world
        return part.batches(size=size, device=world.device, rank=world.rank, world_size=world.size, **options)

    def evaluation(self, part: Part, **options: Any) -> Evaluation:
        """Everything that is reported for a part; see :func:`~adaptive_margin.emotion.evaluation.evaluate`, whose
        options these are.
        """
        return evaluate(
            self.iteration.net, self.evaluation_batches(part), world=self.world, **(described(part) | options)
        )

    def evaluation_by_person(self, part: Part, pictures: int | None = None, **options: Any) -> Evaluation:
        """The same with features normalised by several pictures of each person, whose labels nobody knows.

        For a network with ``person_norm``; :meth:`evaluation` normalises by what training remembers, as for a single
        picture of a stranger. Leakage is that of the normalised features, which are what the regressor gets.

        Args:
            part: with known people.
            pictures: of a person that normalise each other, dealt at random; by default all.
            options: of :func:`~adaptive_margin.emotion.evaluation.evaluate`.
        """
        net = self.iteration.net
        norm = net.person_norm
        assert norm is not None
        part.check_people("person_norm")
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        with evaluating(net), torch.inference_mode():
            for batch in self.evaluation_batches(part):
                found.append((net.encoder(batch.images), batch.labels, batch.rows))
        features, labels, rows = map(torch.cat, zip(*found, strict=True))
        together = torch.from_numpy(hands_of(part.people, pictures)[rows.cpu().numpy()])
        regressor = EmotionNet(cast(Any, norm), cast(torch.nn.Sequential, net.regressor)[1:])
        with norm.known(together.to(self.world.device)):
            return evaluate(regressor, [(features, labels, rows)], **(described(part) | options))

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, the critic's multiplier and margin, the scaler, and a description of the network."""
        about = description(self.iteration.net, self.preprocessing) | {"dataset": self.config.dataset}
        return {"model": about, **super().state_dict()}

    def parts(self) -> Mapping[str, Any]:
        """Networks, optimisers and scaler by name."""
        iteration = self.iteration
        optimizers = {name: optimizer for name, (optimizer, _) in self._optimizers().items()}
        modules = {
            "net": iteration.net,
            "critic": iteration.critic,
            "grouper": iteration.grouper,
            "term": iteration.term,
        }
        return modules | optimizers | {"scaler": iteration.scaler}

    def _optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, AdamConfig]]:
        """Each optimiser once, since line 7 may use that of line 8, with its options."""
        config, optimizers = self.config, self.iteration.optimizers
        named = {
            "critic_optimizer": (optimizers.critic, config.critic_adam),
            "adversarial_optimizer": (
                None if config.shared_moments else optimizers.adversarial,
                config.adversarial_adam,
            ),
            "regression_optimizer": (optimizers.regression, config.regression_adam),
        }
        return {name: (each, options) for name, (each, options) in named.items() if each is not None}


def described(part: Part) -> dict[str, Any]:
    """What :func:`~adaptive_margin.emotion.evaluation.evaluate` takes of a part beside its pictures."""
    return {name: getattr(part, name) for name in ("people", "identity", "videos", "frames")}


def trial(config: EmotionConfig, processes: int = 1) -> EmotionJob:
    """A job on noise whose steps take as long as those of a run, or of one of its processes: all with the critic."""
    check_size(config.encoder, config.size)
    hand = max(2, config.per_person)
    batch = max(hand, config.batch_size // processes // hand * hand) if processes > 1 else config.batch_size
    rows = 2 * batch
    random = np.random.default_rng(0)
    noise = Part(
        images=random.integers(0, 256, (rows, config.resize, config.resize, 3), dtype=np.uint8),
        slots=np.arange(rows),
        labels=random.uniform(-0.7, 0.7, (rows, 2)).astype(np.float32),
        people=np.arange(rows) // hand,
        identity="person",
        videos=(None,) * rows,
        frames=np.full(rows, -1),
    )
    data = EmotionData(train=noise, val=noise, test=noise, splits={}, independent="")
    alone = World(device=device_of(config.device))
    return EmotionJob(replace(config, batch_size=batch, adversarial_start=0, pretrained=None), data, alone)


def works(configs: Iterable[EmotionConfig], *, keeps: bool = True, processes: int = 1) -> list[Work]:
    """What is left of some runs, for :func:`~adaptive_margin.training.forecast.forecast`: one kind for all
    runs with the same :data:`COST`.

    Args:
        configs: the runs.
        keeps: whether they keep checkpoints and a model, as those of :func:`run` do.
        processes: of each run.
    """
    kinds: dict[tuple[Any, ...], list[EmotionConfig]] = {}
    for config in configs:
        kinds.setdefault(tuple(getattr(config, name) for name in COST), []).append(config)

    def kept(job: EmotionJob) -> int:  # two checkpoints, the best one, the model
        return 3 * size_of(job.state_dict()) + size_of(job.iteration.net.state_dict())

    found = []
    for same in kinds.values():
        left = [n for config in same if (n := config.iterations - steps_done(config.output)) > 0]
        job = partial(trial, same[0], processes)
        found.append(Work(job=job, iterations=sum(left), runs=len(left), disk=kept if keeps else None))
    return found


def people_of(config: EmotionConfig, part: Part, world: World) -> Tensor | None:
    """The person of each training row, numbered from 0; None where no option uses them.

    Raises:
        ValueError: an option needs people that the data set does not identify, or several processes cannot use it.
    """
    needed = config.uses_people
    check_processes(config, world.size)
    if not needed:
        return None
    part.check_people(needed[0])
    people, codes = np.unique(part.people, return_inverse=True)
    if config.person_norm and not config.per_person and config.batch_size <= len(people):
        holds = f"a batch of {config.batch_size} rarely holds two pictures of the same of {len(people)} people"
        warnings.warn(f"person_norm without per_person: {holds}; pass --per-person 8 (per_person=8)", stacklevel=2)
    if config.shuffle_people:
        codes = np.random.default_rng(config.seed).permutation(codes)
    return torch.from_numpy(codes.astype(np.int64))


def check_processes(config: EmotionConfig, processes: int) -> None:
    """Raises a ``ValueError`` if several processes cannot use an option."""
    term = term_class(config.term)
    if processes > 1 and (config.person_norm or (term is not None and term.needs_whole_batch)):
        remedy = "train person_norm and elim with one process"
        raise ValueError(problem("processes", "1, as a person's pictures are normalised together", processes, remedy))


def adam(module: torch.nn.Module, config: AdamConfig) -> torch.optim.Adam:
    """Adam on all parameters of a module."""
    return torch.optim.Adam(module.parameters(), lr=config.lr, betas=(config.beta1, config.beta2))


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is left of a run when its network has been saved and has predicted: figures, intervals and leakage.

    It needs neither device nor data, and can be sent to another process, so that the next run need not wait.

    Attributes:
        folder: of the run.
        test: of the test part.
        seen: of training rows.
        by_person: of the test part, normalised by person, for a network with ``person_norm``.
        extra: of :func:`~adaptive_margin.emotion.evaluation.write_result`.
    """

    folder: Path
    test: Evaluation
    seen: Evaluation
    by_person: Evaluation | None
    extra: Mapping[str, Any]

    def __call__(self) -> dict[str, Any]:
        """Writes ``result.json`` and the cards; returns the content of the first."""
        extra = {**self.extra, "breakdown": _breakdown(self.test)}
        if (known := self.by_person) is not None:
            leakage = None if known.leakage is None else known.leakage.to_dict()
            extra["by_person"] = {"figures": known.figures, "leakage": leakage, "breakdown": _breakdown(known)}
        result = write_result(self.folder, self.test, seen=self.seen, extra=extra)
        source = read_network(self.folder / "model.pt")
        write_cards(self.folder, *network_of(source), facts_of(source), finished=True)
        return result


def _breakdown(found: Evaluation) -> dict[str, Any]:
    return affect_breakdown(found.truth, found.prediction, found.person).to_dict()


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run.

    Attributes:
        folder: of the run.
        summary: how it ended.
        net: the final network.
        result: the content of ``result.json``: figures of the test part with intervals, and identity leakage.
    """

    folder: Path
    summary: Summary
    net: EmotionNet
    result: dict[str, Any]


def rows_of(data: EmotionData) -> dict[str, int]:
    """The number of rows of each part."""
    return {"train": len(data.train), "val": len(data.val), "test": len(data.test)}


def check_same_data(folder: RunFolder, data: EmotionData) -> None:
    """Raises unless the data have the same split as those of the run in a folder, with the same number of rows in each
    part.

    Otherwise people from training could be in the test; and the position in the data at which a run resumes depends on
    the number of training rows. Data that an older run did not record are not compared.

    Raises:
        RunFolderError: they do not.
    """
    different = []
    for name, split in data.splits.items():
        path = folder.path / "splits" / name
        try:
            change = _change(Split.read(path), split) if path.exists() else ""
        except (LabelFileError, LeakError) as error:
            change = str(error)
        if change:
            different.append(f"  splits/{name}: {change}")
    written, here = folder.path / "rows.json", rows_of(data)
    there: Mapping[str, Any] = here
    if written.exists():
        try:
            there = read_json(written)
        except DamagedFileError as error:
            warnings.warn(f"{written} {error.why}; numbers of rows are not compared", stacklevel=2)
    found = {part: there.get(part, n) for part, n in here.items()}
    different += [f"  {part} rows: {found[part]} there, {n} now" for part, n in here.items() if found[part] != n]
    if different:
        head = f"{folder.path} holds a run with other data:"
        remedy = "use the data that it was started with (--root, all files unchanged), or choose another --output"
        raise RunFolderError("\n".join([head, *different, remedy]))


def _change(was: Split, now: Split) -> str:
    """Which units of a split have moved to another part; empty if none has."""
    before, after = ({unit: part for part, units in s.parts.items() for unit in units} for s in (was, now))
    found = {
        "in another part": [unit for unit in before if after.get(unit, before[unit]) != before[unit]],
        "gone": [unit for unit in before if unit not in after],
        "new": [unit for unit in after if unit not in before],
    }
    named = [f"{len(units):,} {how} ({shorten(units)})" for how, units in found.items() if units]
    return f"of {len(before):,} {was.unit} units " + ", ".join(named) if named else ""


def write_cards(
    folder: Path, net: EmotionNet, preprocessing: Preprocessing, known: Mapping[str, Any], *, finished: bool = False
) -> None:
    """Writes the card of a run's checkpoints, and at the end that of its network.

    Warns:
        UserWarning: a file of somebody else is in the place of a card, and kept.
    """
    status = UNDER_WAY
    if finished:
        write_card(folder, "model.pt", model_card(net, preprocessing, known, python_loading("model.pt")))
        kept = known["config"]["keep"]
        status = f"**Training is finished.** `../model.pt` is the {kept} of these; the figures are its own."
    place = folder / "checkpoints"
    place.mkdir(exist_ok=True)
    text = model_card(net, preprocessing, known, python_loading("CHECKPOINT.pt"), status=status)
    write_card(place, place.name, text)


def run(config: EmotionConfig, *, data: EmotionData | None = None, world: World | None = None) -> Result:
    """Trains, validates and tests one network; resumes an interrupted run: :func:`train_network`, then its measurement.

    In the folder ``config.output``: ``config.yaml``, ``environment.json``, ``splits/``, ``rows.json``, ``scalars.csv``,
    ``tensorboard/``, ``checkpoints/``, ``model.pt`` (encoder and regressor), ``MODEL_CARD.md``, ``result.json`` and
    ``evaluation.npz``. ``checkpoints/`` has a card of its own from the beginning.

    Args:
        config: the options.
        data: already loaded, when several runs share it; must be what :func:`load_data` makes of the options.
        world: the processes; by default those that torchrun started.

    Raises:
        NonFiniteError: a loss or weight became NaN.
        Stopped: a signal stopped the run.
        RunFolderError: the folder holds another run, a longer one, or one on other data.
        ValueError: the encoder does not accept pictures of ``config.size``; and the errors of :func:`load_data` and
            :func:`build_encoder`.
    """
    if world is None:
        with World.from_environment(config.device) as joined:
            return run(config, data=data, world=joined)
    summary, net, measurement = train_network(config, data=data, world=world)
    result = world.from_main(measurement)
    return Result(folder=measurement.folder, summary=summary, net=net, result=result)


def train_network(
    config: EmotionConfig, *, data: EmotionData | None, world: World
) -> tuple[Summary, EmotionNet, Measurement]:
    """The part of :func:`run` that needs device and data. The rest is its measurement, which one process calls.

    ``model.pt`` and ``evaluation.npz`` are written, and the folder is free for other processes again. A run without its
    measurement is not finished: :func:`run` with the same options evaluates it again.
    """
    check_size(config.encoder, config.size)
    if data is None:
        world.from_main(partial(check_before, config, world.size))  # before images are decoded
        data = load_data(config, world)
    job = EmotionJob(config, data, world)

    def check(folder: RunFolder) -> None:
        check_length(folder.path, folder.checkpoints.files()[-1][0], config.iterations, "iterations")
        check_same_data(folder, data)

    allowed: dict[str, Any] = {
        "may_change": may_change(config),
        "outcomes": OUTCOMES,
        "outcome_options": OUTCOME_OPTIONS,
    }
    with RunFolder(config.output, config, world=world, check=check, **allowed) as folder:
        for name, split in data.splits.items():
            if world.is_main:
                split.write(folder.path / "splits" / name)
        folder.write_json("rows.json", rows_of(data))
        for number, report in enumerate(data.reports):
            folder.write(f"data-{number}.txt", report + "\n")
        if world.is_main and not (folder.path / "model.pt").exists():
            known = facts(config.plain(), versions(), rows=rows_of(data), independent=data.independent)
            write_cards(folder.path, job.iteration.net, job.preprocessing, known)
        summary = train(
            job,
            steps=config.iterations,
            folder=folder,
            world=world,
            checkpoint_every=config.checkpoint_every,
            evaluate_every=config.evaluate_every,
            log_every=config.log_every,
            score="val/ccc",
        )
        if config.keep == "best":
            remedy = "pass --keep last to take the network after the last step"
            job.load_state_dict(best_state(folder, summary, world=world, remedy=remedy))
        net = job.iteration.net
        rows = np.random.default_rng(0).permutation(len(data.train))[:SEEN_ROWS]
        measurement = Measurement(
            folder=folder.path,
            test=job.evaluation(data.test),
            seen=job.evaluation(data.train.take(np.sort(rows))),
            by_person=job.evaluation_by_person(data.test) if config.person_norm else None,
            extra={"seed": config.seed, "independent": data.independent, "seconds": summary.seconds},
        )

        def keep() -> None:
            save_model(folder.path / "model.pt", net, job.preprocessing, config=config.plain())
            shown: dict[str, Any] = {"pictures": data.test.picture}
            if config.dataset == "faces":  # single pictures: a video is drawn, of somebody in no part
                shown["video"], shown["video_pictures"] = evaluate_drawn_video(
                    net,
                    people=config.people,
                    resize=config.resize,
                    size=config.size,
                    seed=config.split_seed,
                    person_effect=config.person_effect,
                )
            write_predictions(folder.path, measurement.test, **shown)

        world.from_main(keep)
    return summary, net, measurement
