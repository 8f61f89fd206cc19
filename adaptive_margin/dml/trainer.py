"""One run of metric learning: train, select the network on classes outside the test, measure once."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..images.cache import ImageCache
from ..images.image_list import Bytes, ImageList, Integers
from ..images.pixels import read_ahead
from ..messages import printable, problem
from ..metrics import RetrievalMetrics
from ..stored import DamagedFileError, misfit, read_arrays, write_arrays, write_json
from ..training import (
    RunFolder,
    World,
    autocast,
    best_state,
    environment,
    gradient_scaler,
    read_scalars,
    seed_everything,
    synchronise_batch_norm,
    train,
)
from ..training.config_files import plain
from ..training.forecast import Work, size_of, steps_done
from ..training.loop import Parts
from ..training.model_card import write_card
from ..training.optimisation import backward_and_step
from ..training.run_folder import RunFolderError, check_same_run, locked
from ..training.world import device_of
from .backbones import EmbeddingNet, build_network
from .batches import ClassBatches, Pixels
from .config import MAY_CHANGE, DMLConfig
from .labelled_images import ClassSplit, LabelledImages, Part, fold_classes, split_classes
from .model_card import model_card
from .objectives import arm_of, build_objective
from .results import read_result

LOGS_PER_EPOCH = 4
OUTCOMES = ("result.json", "embeddings.npz")
"""Files of a finished run."""

EMBEDDINGS = {
    "embeddings": "f N D",
    "labels": "i N",
    "examples": "? i Q K <N",
    "pictures": "? u Q K H W C",
}
"""The arrays of an ``embeddings.npz``, as :func:`~adaptive_margin.stored.misfit` takes them."""


def run(config: DMLConfig, data: LabelledImages, *, world: World | None = None) -> dict[str, Any]:
    """Trains and measures; the result is also in ``config.out / "result.json"``, from which the same run reads it
    again.

    With ``config.folds`` every fold has its own folder, network and result; the result holds their mean
    (embeddings of one network) and the figures of their concatenated embeddings.

    Args:
        config: the options.
        data: the images.
        world: the processes; by default those from the environment.

    Returns:
        Test figures, figures of the selected evaluation, configuration, split, curves, versions, seconds.

    Raises:
        ValueError: a configuration for another data set, or one that its parts reject.
        RunFolderError: the folder holds another run, finished or not.
    """
    if world is None:
        with World.from_environment(None if config.device == "auto" else config.device) as joined:
            return run(config, data, world=joined)
    identity = f"{data.name} {data.fingerprint}"
    unreadable: dict[int, str] = {}
    if config.skip_unreadable:  # a run does not resume if different images are readable
        unreadable = load_images(data, config)[1]
        if unreadable:
            rows = hashlib.sha256(",".join(map(str, unreadable)).encode()).hexdigest()[:12]
            identity += f" less {len(unreadable)} images {rows}"
    if config.data not in (None, data.name, identity):
        raise ValueError(problem("data", f"{identity!r}, the data set at hand", repr(config.data), "leave it out"))
    out = config.out or default_folder(config, data)
    config = replace(config, data=identity, out=out)
    _metrics(config)  # report missing packages now, not after an epoch
    parts = networks(config, data, out, unreadable)
    if config.folds == 0:
        return run_split(config, data, parts[out], out, world=world)
    find(config, out)  # another run in this folder is an error now, not after the last fold
    with contextlib.ExitStack() as held:

        def claim() -> None:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(out) or contextlib.nullcontext())

        world.from_main(claim)
        results = []
        for number, (place, split) in enumerate(parts.items()):
            part = replace(config, folds=0, out=place, keep_embeddings=True)
            results.append(run_split(part, data, split, place, world=world, fold=number))
        if not world.is_main:
            return {}
        result: dict[str, Any] = {"test": None, "folds": results, "config": plain(config)}
        if config.measure:
            embeddings, labels = zip(*map(load_embeddings, parts), strict=True)
            together = torch.cat(embeddings, dim=1)
            names = results[0]["test"]
            result["test"] = {name: float(np.mean([each["test"][name] for each in results])) for name in names}
            result["test_concatenated"] = _metrics(config)(nn.functional.normalize(together, dim=1), labels[0])
        write_json(out / "result.json", result, indent=1)
    return result


def default_folder(config: DMLConfig, data: LabelledImages) -> Path:
    """The default folder of a run.

    Example:
        >>> from adaptive_margin.dml.embedded import digits
        >>> default_folder(DMLConfig(margin=0.2, learn_beta=True), digits()).as_posix()
        'runs/digits-margin-margin-0.2-learned-beta-seed0'
    """
    name = f"{data.name}-{config.loss}-{arm_of(vars(config))}-seed{config.seed}"
    return Path("runs") / re.sub(r"[^\w.+-]+", "-", name)


def networks(
    config: DMLConfig, data: LabelledImages, out: Path, unreadable: Iterable[int] = ()
) -> dict[Path, ClassSplit]:
    """Folder and split of each network of a run. A fold's folder names their number, which changes the division.

    Raises:
        ValueError: a division that the data set does not allow, fewer training classes than a batch has, or a part that
            would be evaluated without figures.
    """
    found = {out: split_classes(data, validation=config.validation, seed=config.seed)} if config.folds == 0 else {}
    for fold in range(config.folds):
        found[out / f"fold-{fold}-of-{config.folds}"] = fold_classes(data, fold, folds=config.folds)
    for split in found.values():
        check_split(config, data, split.without(unreadable))
    return found


def check_split(config: DMLConfig, data: LabelledImages, split: ClassSplit) -> None:
    """Raises unless there are the classes of a batch, and two images of some class in each part that is evaluated:
    without, its figures are undefined.
    """
    if config.classes > (most := len(np.unique(data.labels[split.train]))):
        remedy = f"pass --classes {most}, or {'more --folds' if config.folds else 'hold out less'}"
        raise ValueError(problem("classes", f"at most the {most} training classes", config.classes, remedy))
    uses: dict[Part, tuple[bool, str]] = {
        "test": (config.measure or config.select == "test", "--no-measure --select last"),
        "validation": (len(split.validation) > 0, "--validation 0 --folds 0 --select last"),
    }
    for part, (used, flags) in uses.items():
        if used and np.bincount(data.labels[split[part]]).max(initial=0) < 2:
            expected, remedy = "two or more of some class", f"add some, or pass {flags}"
            raise ValueError(problem(f"images of {part} classes", expected, "one of each", remedy))


def find(config: DMLConfig, out: Path) -> dict[str, Any] | None:
    """The result in a folder, if there is one.

    Raises:
        RunFolderError: it belongs to another configuration or another data set, or is a file of something else.

    Warns:
        UserWarning: it is damaged, and the run is resumed.
    """
    done = out / "result.json"
    if not done.exists():
        return None
    try:
        found = read_result(out)
    except DamagedFileError as error:
        if config.folds and not any(out.glob("fold-*")):  # of other runs the run folder says so
            remedy = "choose another folder, or move the file away"
            raise RunFolderError(f"{done} {error.why}, and no run is in its folder: {remedy}") from error
        warnings.warn(f"{done} {error.why}; the run is resumed and its result written again", stacklevel=3)
        return None
    check_same_run(out, found["config"], plain(config), _may_change(config))
    return found


def _may_change(config: DMLConfig) -> tuple[str, ...]:
    """Options in which a run that goes on may differ from what it was: also those without effect."""
    return (*MAY_CHANGE, *(name for name, *_ in config.idle()))


def run_split(
    config: DMLConfig, data: LabelledImages, split: ClassSplit, out: Path, *, world: World, fold: int | None = None
) -> dict[str, Any]:
    """One network of :func:`run`, on a given split; ``fold`` is its number if it is one of several of the run."""
    found = find(config, out)
    if found is not None:
        if world.is_main:
            print(f"{out / 'result.json'} already exists: nothing to do")
        return found
    began = time.perf_counter()
    images, unreadable = load_images(data, config)
    split = split.without(unreadable)
    job = DMLJob(config, data, images, split, world)
    with RunFolder(out, config, world=world, may_change=_may_change(config), outcomes=OUTCOMES) as folder:
        chosen_by = None if config.select == "last" else f"{config.select}/{config.score}"
        if world.is_main:
            write_own_card(folder, job, images.shape[3])
        summary = train(
            job,
            steps=config.epochs * job.epoch_steps,
            folder=folder,
            world=world,
            checkpoint_every=config.checkpoint_every or job.epoch_steps,
            evaluate_every=config.evaluate_every * job.epoch_steps,
            log_every=job.log_every,
            score=chosen_by,
        )
        if chosen_by is not None:
            remedy = (
                "restore it from a backup, or train in another folder (--out); --select last needs no best checkpoint"
            )
            best = best_state(folder, summary, world=world, remedy=remedy)
            job.network.load_state_dict(best["network"])
        test = None
        if config.measure:
            embeddings, labels = job.embed("test")
            test = _metrics(config)(embeddings, labels)
            if config.keep_embeddings and world.is_main:
                save_embeddings(out, embeddings, labels, split.test, images)
        if not world.is_main:
            return {}
        curves = {
            name: {"steps": curve.steps, "values": [round(value, 6) for value in curve.values]}
            for name, curve in read_scalars(out).items()
        }
        result = {
            "test": test,
            "selected": {
                "by": chosen_by or "the last step",
                "step": summary.best_step or summary.steps,
                "score": summary.best,
            },
            "config": plain(config),
            "data": {"name": data.name, **split.describe(data), "unreadable": list(unreadable.values())},
            "weights": job.network.weights,
            "curves": curves,
            "seconds": round(time.perf_counter() - began, 2),
            "training_seconds": round(summary.seconds, 2),
            "environment": environment(world),
        }
        if fold is not None:
            result["fold"] = fold  # by which a report knows that this is not a run of its own
        folder.write_json("result.json", result)
        write_own_card(folder, job, images.shape[3], result)
    return result


def write_own_card(folder: RunFolder, job: DMLJob, channels: int, result: Mapping[str, Any] | None = None) -> None:
    """Writes the card of a run's checkpoints; at the end with the content of ``result.json``."""
    about = {"weights": job.network.weights, "channels": channels, "result": result}
    text = model_card(job.config, job.data, job.split, **about)
    place = folder.checkpoints.folder
    place.mkdir(exist_ok=True)
    write_card(place, place.name, text)


class DMLJob(Parts):
    """The job for :func:`adaptive_margin.training.train`: a network and an objective on batches of whole classes.

    (seed, step) determines everything random in a step, so a run can resume anywhere, and arms with one seed see the
    same images, crops and draws. With several processes, each embeds its share and all compute the loss of the whole
    batch. ``images`` are the pixels of all of ``data``.
    """

    def __init__(self, config: DMLConfig, data: LabelledImages, images: Bytes, split: ClassSplit, world: World) -> None:
        self.config, self.data, self.split, self.world = config, data, split, world
        self.labels = data.labels[split.train]
        classes, self.targets = np.unique(self.labels, return_inverse=True)  # proxies count from 0
        self.batches = ClassBatches(self.labels, classes=config.classes, per_class=config.per_class, seed=config.seed)
        self.epoch_steps = config.steps_per_epoch or max(1, len(split.train) // config.batch)
        self.log_every = max(1, self.epoch_steps // LOGS_PER_EPOCH)
        self.pixels = self._pixels(images)
        seed_everything(config.seed)
        network = self._network(images.shape[3])
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.network = network.to(world.device, memory_format=layout)  # type: ignore[call-overload]
        self.objective = build_objective(config, len(classes), epoch_steps=self.epoch_steps).to(world.device)
        synchronise_batch_norm(self.network, world)
        world.broadcast(self.network)
        world.broadcast(self.objective)
        self.own = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.shared = list(self.objective.parameters())
        self.optimizer, self.loss_optimizer = self._optimizers()
        self.scaler = gradient_scaler(world.device, config.precision)
        self.waited = 0.0
        self._ahead: tuple[int, Iterator[tuple[Tensor, Integers]]] | None = None  # step, and batches from there on

    def step(self, step: int) -> Mapping[str, Tensor | float]:
        """One step on the batch with this number."""
        images, rows = self._batch(step)
        targets = torch.from_numpy(self.targets[rows]).to(self.world.device, non_blocking=True)
        self._set_rates(step)
        self.network.train()
        self.objective.train()
        records = (step + 1) % self.log_every == 0
        self.objective.record(records)
        torch.manual_seed(_number(self.config.seed, step))  # dropout's draws, for this rank's share
        with autocast(self.world.device, self.config.precision):
            own = self.network(images)
        embeddings = self.world.gather(own, len(rows))
        torch.manual_seed(_number(self.config.seed, step))  # the miner's draws: the same on every rank and in every arm
        loss = self.objective(embeddings, targets)
        if not loss.requires_grad:  # no pair and no triplet was in reach
            loss = loss + 0 * embeddings.sum()
        backward_and_step(
            loss,
            [self.optimizer, self.loss_optimizer] if self.loss_optimizer else self.optimizer,
            parameters_before_gather=self.own,
            parameters_after_gather=self.shared,
            world=self.world,
            scaler=self.scaler,
        )
        return {"loss": loss.detach(), **(self.objective.statistics() if records else {})}

    def evaluate(self) -> Mapping[str, float]:
        """Retrieval figures of the validation classes, or of the test classes if those select the network, or none."""
        part: Part = "test" if self.config.select == "test" else "validation"
        if not len(self.split[part]):
            return {}
        embeddings, labels = self.embed(part)
        metrics = _metrics(replace(self.config, clustering=False))
        return {f"{part}/{name}": value for name, value in metrics(embeddings, labels).items()}

    @torch.no_grad()
    def embed(self, part: Part) -> tuple[Tensor, Tensor]:
        """Embeddings and classes of a part's images, on every process."""
        rows = self.split[part]
        self.network.eval()
        with autocast(self.world.device, self.config.precision):
            own = [self.network(images) for images in self.pixels.evaluation(rows[self.world.shard(len(rows))])]
        width = self.config.embedding_size
        share = torch.cat(own) if own else torch.empty(0, width, device=self.world.device)
        labels = torch.from_numpy(self.data.labels[rows]).to(self.world.device)
        return self.world.gather(share, len(rows)), labels

    def parts(self) -> Mapping[str, Any]:
        """Network, objective, optimisers and scaler."""
        return {
            "network": self.network,
            "objective": self.objective,
            "optimizer": self.optimizer,
            "loss_optimizer": self.loss_optimizer,
            "scaler": self.scaler,
        }

    def _pixels(self, images: Bytes) -> Pixels:
        return Pixels(images, self.config, self.world.device)

    def _network(self, channels: int) -> EmbeddingNet:
        return build_network(
            self.config.backbone,
            weights=self.config.weights,
            embedding_size=self.config.embedding_size,
            freeze_batch_norm=self.config.freeze_batch_norm,
            channels=channels,
        )

    def _batch(self, step: int) -> tuple[Tensor, Integers]:
        """The batch of a step; on a GPU the next one is read in the meantime."""
        began = time.perf_counter()
        if self._ahead is None or self._ahead[0] != step:
            depth = 1 if self.world.device.type == "cuda" else 0
            self._ahead = step, read_ahead(self._read, itertools.count(step), depth)
        _, batches = self._ahead
        batch, self._ahead = next(batches), (step + 1, batches)
        self.waited += time.perf_counter() - began
        return batch

    def _read(self, step: int) -> tuple[Tensor, Integers]:
        rows = self.batches.rows(step)
        generator = torch.Generator().manual_seed(_number(self.config.seed, step) + 1)
        mine = self.world.shard(len(rows))
        return self.pixels.training(self.split.train[rows], mine, generator), rows

    def _optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
        config = self.config
        body = [parameter for parameter in self.network.features.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": body, "lr": config.learning_rate * config.backbone_rate},
            {"params": list(self.network.embedding.parameters()), "lr": config.learning_rate},
        ]
        separate = config.loss_optimizer == "sgd" and self.shared
        if self.shared and not separate:
            groups.append({"params": self.shared, "lr": config.loss_rate, "weight_decay": 0.0})
        for group in groups:
            group["rate"] = group["lr"]
        optimizer: torch.optim.Optimizer
        if config.optimizer == "adam":
            optimizer = torch.optim.Adam(groups, eps=config.adam_epsilon, weight_decay=config.weight_decay)
        else:
            optimizer = torch.optim.RMSprop(groups, momentum=0.9, weight_decay=config.weight_decay)
        if not separate:
            return optimizer, None
        sgd = torch.optim.SGD([{"params": self.shared, "rate": config.loss_rate}], lr=config.loss_rate, momentum=0.9)
        return optimizer, sgd

    def _set_rates(self, step: int) -> None:
        """Sets the learning rates for a step."""
        config = self.config
        if config.schedule == "cosine":
            factor = 0.5 * (1 + float(np.cos(np.pi * step / (config.epochs * self.epoch_steps))))
        else:
            factor = 0.5 ** sum(step >= epoch * self.epoch_steps for epoch in config.halve_at)
        for optimizer in (self.optimizer, self.loss_optimizer):
            for group in optimizer.param_groups if optimizer else ():
                group["lr"] = group["rate"] * factor


def work(config: DMLConfig, data: LabelledImages, processes: int = 1) -> Work:
    """What is left of a run, for :func:`~adaptive_margin.training.forecast.forecast`; its pixels are noise."""
    parts = networks(config, data, config.out or default_folder(config, data))
    first = next(iter(parts.values()))
    steps = config.epochs * (config.steps_per_epoch or max(1, len(first.train) // config.batch))
    left = [n for place in parts if (n := steps - steps_done(place)) > 0]

    def job() -> DMLJob:
        images = data.pixels
        if images is None:
            noise = np.random.default_rng(0).integers(0, 256, (config.resize, config.resize, 3), dtype=np.uint8)
            images = np.broadcast_to(noise, (len(data), *noise.shape))
        device = device_of(None if config.device == "auto" else config.device)
        mine = replace(config, classes=max(2, config.classes // processes))
        return DMLJob(mine, data, images, first, World(device=device))

    def kept(job: DMLJob) -> int:  # two checkpoints and the best one; embeddings in half precision
        embeddings = 2 * config.embedding_size * len(first["test"]) if config.keep_embeddings or config.folds else 0
        return (2 if config.select == "last" else 3) * size_of(job.state_dict()) + embeddings

    return Work(job=job, iterations=sum(left), runs=len(left), disk=kept)


def load_images(data: LabelledImages, config: DMLConfig) -> tuple[Bytes, dict[int, str]]:
    """The images of a data set, from which the network's input is cropped, uint8, shape ``(N, resize, resize, C)``; and
    file and error for the row of each that cannot be read and is black.

    Files are decoded once, into the image cache that the face trainer also uses: the shorter side is resized to
    ``config.resize``, and the central square is kept. A benchmark with missing images is a different benchmark, so an
    image that cannot be read is an error unless ``config.skip_unreadable`` allows it.

    Raises:
        ValueError: boxes are requested but the data set has none, or a size that differs from that of images in memory.
        UnreadableError: more images are missing or damaged than allowed.
    """
    if data.pixels is not None:
        return data.pixels, {}
    if data.root is None:
        raise ValueError(problem("data", "with pixels or a root", "neither", "use one of the loaders"))
    if config.crop_to_box and data.boxes is None:
        remedy = "pass --no-crop-to-box, or a copy with its boxes"
        raise ValueError(problem("crop_to_box", "False for a data set without boxes", True, remedy))
    files = ImageList.of(f"dml-{data.name}", data.root, data.paths, data.boxes if config.crop_to_box else None)
    folder = config.cache or data.root.resolve().parent / f"cache-{data.name}"
    with tqdm(total=len(data), desc=f"decoding into {folder}", unit=" images", disable=len(data) < 1000) as bar:
        cache = ImageCache.open(
            files,
            folder,
            size=config.resize,
            skip_unreadable=config.skip_unreadable,
            progress=lambda done, _: bar.update(done - bar.n),
        )
    return cache.images, {row: printable(f"{data.paths[row]}: {why}") for row, why in cache.unreadable.items()}


def save_embeddings(folder: Path, embeddings: Tensor, labels: Tensor, rows: Integers, images: Bytes) -> None:
    """Saves test embeddings in half precision beside the result, with the pictures that a report shows.

    Embeddings ``(N, D)`` and labels ``(N,)`` belong to ``rows`` of the data set, of which ``images`` has all pixels.
    """
    half = embeddings.half().cpu()
    queries = torch.from_numpy(np.random.default_rng(0).permutation(len(half))[:8])  # the same for every network
    similarity = half[queries].float() @ half.float().T
    similarity[torch.arange(len(queries)), queries] = -torch.inf
    nearest = similarity.topk(min(6, len(half) - 1), dim=1).indices
    shown = torch.cat([queries[:, None], nearest], dim=1).numpy()  # (Q, 1 + K)
    pictures = [[small(images[rows[place]]) for place in line] for line in shown]
    kept = {"embeddings": half.numpy(), "labels": labels.cpu().numpy(), "rows": rows}
    write_arrays(folder / "embeddings.npz", kept | {"examples": shown, "pictures": np.array(pictures, dtype=np.uint8)})


def load_embeddings(folder: Path) -> tuple[Tensor, Tensor]:
    """Embeddings ``(N, D)`` and classes ``(N,)`` from :func:`save_embeddings`.

    Raises:
        DamagedFileError: the file is not what was written.
    """
    content = read_embeddings(folder)
    return torch.from_numpy(content["embeddings"]).float(), torch.from_numpy(content["labels"])


def read_embeddings(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Everything that :func:`save_embeddings` saved, by name; errors as for :func:`load_embeddings`.

    In addition to ``embeddings`` and ``labels``: ``examples``, positions of queries and of the test images nearest to
    each, shape ``(Q, 1 + K)``, and their ``pictures``, uint8, shape ``(Q, 1 + K, H, W, C)``; older runs lack these two.
    """
    path = folder / "embeddings.npz"
    remedy = "delete the folder and train the run again"
    found = read_arrays(path, remedy)
    good = not misfit(found, EMBEDDINGS) and len(found["labels"]) > 1 and ("examples" in found) == ("pictures" in found)
    if good and "pictures" in found:
        pictures = found["pictures"]
        good = pictures.dtype == np.uint8 and pictures.shape[-1] in (1, 3) and pictures.size > 0
    if not good:
        raise DamagedFileError(path, "does not hold the embeddings of a run", remedy)
    return found


def small(pixels: Bytes) -> Bytes:
    """A picture with sides of at most 96 pixels, shape ``(H, W, C)``."""
    from PIL import Image

    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    picture.thumbnail((96, 96))
    return np.asarray(picture).reshape(picture.height, picture.width, pixels.shape[-1])


def _metrics(config: DMLConfig) -> RetrievalMetrics:
    return RetrievalMetrics(
        config.ks,
        search="faiss" if config.faiss else "tiled",
        clustering=("faiss" if config.faiss else "kmeans") if config.clustering else None,
    )


def _number(seed: int, step: int) -> int:
    """A random seed for the step, below 2^63."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 2)
