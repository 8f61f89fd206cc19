"""A file with a trained network: encoder and regressor, the preprocessing of images, and the network's origin."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..atomic import write_atomically
from ..images.transforms import IMAGENET_MEAN, IMAGENET_STD
from ..messages import problem, shorten
from ..stored import DamagedFileError, read_tensors, tensors
from ..training.checkpoints import CheckpointError, Checkpoints
from ..training.config_files import ConfigError, read_options
from .hub_folder import WEIGHTS, is_hub_folder, read_hub_folder
from .nets import LABELS, EmotionNet, emotion_net

FORMAT = 1
REMEDY = "pass the model.pt of a run folder, the folder itself, or one of its checkpoints"


class Source(NamedTuple):
    """The file of a network.

    Attributes:
        path: of the file, or the folder for a hub.
        content: of :func:`save_model`, of a checkpoint, or of a folder for a hub.
        options: path of the run's ``config.yaml``, which may be missing.
    """

    path: Path
    content: Mapping[str, Any]
    options: Path

    def config(self) -> dict[str, Any]:
        """The options of the training, as far as the file or the run's ``config.yaml`` says; empty if neither does."""
        about: Mapping[str, Any] = {}
        state = self.content.get("state")
        if isinstance(state, Mapping):
            about = state.get("job", state).get("model") or {}
        config = dict(self.content.get("config") or _options(self.options))
        return {**config, **{name: about[name] for name in ("dataset",) if name in about}}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The preprocessing from a picture of a face to the network's input.

    Attributes:
        resize: size of the face's shorter side after resizing, pixels.
        size: side of the centre crop, pixels.
        mean: of red, green and blue, in [0, 1].
        std: likewise.
    """

    resize: int = 256
    size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("resize", "size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(problem(name, "a whole number of pixels, at least 1", repr(value), "256 and 224"))
        for name in ("mean", "std"):
            value = getattr(self, name)
            if len(value) != 3 or not all(type(each) in (int, float) for each in value):
                raise ValueError(problem(name, "three numbers", repr(value), "of red, green and blue"))


def description(net: EmotionNet, preprocessing: Preprocessing) -> dict[str, Any]:
    """The content of a file in addition to the weights, from which the network can be rebuilt: plain values."""
    return {
        "encoder": net.encoder.name,
        "leaky_slope": net.leaky_slope,
        **({} if net.person_norm is None else {"person_norm": True, "person_scale": net.person_norm.scale}),
        "labels": list(LABELS),
        "preprocessing": asdict(preprocessing),
    }


def save_model(
    path: str | os.PathLike[str],
    net: EmotionNet,
    preprocessing: Preprocessing,
    *,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network to a file, atomically.

    Args:
        path: the file; folders are created.
        net: encoder and regressor.
        preprocessing: of its input.
        config: the training configuration: plain numbers, strings, lists and dictionaries.
    """
    content = {
        "format": FORMAT,
        **description(net, preprocessing),
        "state_dict": {name: value.detach().cpu() for name, value in net.state_dict().items()},
        "config": dict(config or {}),
        "versions": versions(),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, tensors(content))


def versions() -> dict[str, str]:
    """The versions of this library, torch, torchvision and Python."""
    import torchvision

    from .. import __version__

    found = {
        "adaptive_margin": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
    return {name: str(version) for name, version in found.items()}  # torch's is not quite a string


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[EmotionNet, Preprocessing]:
    """Reads a file of :func:`save_model` or a checkpoint of a run, under any name.

    The file may contain only tensors and plain values: loading runs no code and downloads nothing. The checksum is
    verified.

    Returns:
        The network in evaluation mode on ``device``, and how to prepare its input.

    Raises:
        DamagedFileError: it is not what was written (a ValueError).
        ValueError: a file of another kind or format.
        FileNotFoundError: there is no such file.
    """
    return network_of(_read_model(Path(path), device), device)


def _read_model(path: Path, device: str | torch.device) -> Source:
    content = read_tensors(path, device, REMEDY)
    of_run = path.parent.parent if "state" in content else path.parent
    return Source(path, content, of_run / "config.yaml")


def load_network(
    checkpoint: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[EmotionNet, Preprocessing]:
    """The network of a model file, a checkpoint, a run folder (its ``model.pt``, else its newest checkpoint), or a
    folder for a hub.

    A folder that holds one run, at most three levels down, as benchmarks make them, stands for that run. If a folder's
    ``model.pt`` is damaged, the checkpoint from which it was made is used; if that is damaged too, the
    previous one; if no other is intact, the best one.

    Raises:
        ValueError: there is none, or it is damaged; or the folder holds several runs, which the message lists.
        ImportError: a folder for a hub, and safetensors is not installed.

    Warns:
        UserWarning: a damaged file was skipped; the message names it.
    """
    return network_of(read_network(checkpoint, device), device)


def read_network(checkpoint: str | os.PathLike[str], device: str | torch.device = "cpu") -> Source:
    """The content of the file from which :func:`load_network` makes its network."""
    path = Path(checkpoint)
    if path.name == WEIGHTS and is_hub_folder(path.parent):
        path = path.parent
    if is_hub_folder(path):
        return Source(path, read_hub_folder(path, device), path / "config.yaml")
    if not path.is_dir():
        if not path.is_file():
            got = f"{path}, which does not exist"
            raise ValueError(problem("checkpoint", "a model file, a checkpoint or a run folder", got, REMEDY))
        return _read_model(path, device)
    path = _run_in(path)
    model, config = path / "model.pt", path / "config.yaml"
    best = False
    if model.is_file():
        try:
            return _read_model(model, device)
        except DamagedFileError as error:
            warnings.warn(f"{model} {error.why}; the run's checkpoint is used", stacklevel=3)
        best = _options(config).get("keep") == "best"
    step, state = _checkpoint(path, best)
    return Source(path, {"step": step, "state": state}, config)


def is_run(folder: Path) -> bool:
    """Whether a folder has a run's network or its checkpoints."""
    return (folder / "model.pt").is_file() or (folder / "checkpoints").is_dir()


def _run_in(folder: Path) -> Path:
    """The folder itself if it is a run or holds none, else the one run in it."""
    if is_run(folder):
        return folder
    below = ("*", "*/*", "*/*/*")
    runs = sorted({place for each in below for place in folder.glob(each) if place.is_dir() and is_run(place)})
    if len(runs) > 1:
        some = shorten([place.relative_to(folder).as_posix() for place in runs], most=12)
        got, remedy = f"{folder} with {len(runs)} runs: {some}", f"pass one of them, as in --checkpoint {runs[0]}"
        raise ValueError(problem("checkpoint", "one run", got, remedy))
    return runs[0] if runs else folder


def _checkpoint(folder: Path, best: bool) -> tuple[int, Mapping[str, Any]]:
    """Step and state of a run's best or newest intact checkpoint."""
    checkpoints = Checkpoints(folder / "checkpoints")
    problems = []
    for find in (checkpoints.best, checkpoints.latest) if best else (checkpoints.latest, checkpoints.best):
        try:
            found = find()
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if found is not None:
            for said in problems:
                warnings.warn(f"{said}: checkpoint of step {found[0]:,} is used", stacklevel=4)
            return found[:2]
    expected = "one that can be read" if problems else "a run folder with model.pt or checkpoints"
    raise ValueError(problem("checkpoint", expected, "; ".join(problems) or folder, REMEDY))


def _options(config: Path) -> dict[str, Any]:
    """A run's options; empty if they cannot be read."""
    try:
        return read_options(config)
    except (OSError, ConfigError):
        return {}


def network_of(source: Source, device: str | torch.device = "cpu") -> tuple[EmotionNet, Preprocessing]:
    """The network in a file, in evaluation mode, and how to prepare its input.

    The run's options describe it if a checkpoint is too old to contain a description.
    """
    path, content, config = source
    state = content.get("state")
    if isinstance(state, Mapping):
        job = state.get("job", state)  # a run's best checkpoint holds no more
        weights, about = (job.get("net"), job.get("model")) if isinstance(job, Mapping) else (None, None)
        if weights is not None and about is None:
            options = _options(config)
            about = {**options, "preprocessing": options}
    else:
        if content.get("format") != FORMAT:
            got = f"format {content.get('format')} in {path}"
            raise ValueError(problem("path", f"a model file of format {FORMAT}", got, REMEDY))
        weights, about = content.get("state_dict"), content
    if not isinstance(weights, Mapping) or not isinstance(about, Mapping):
        got = f"{path}, which holds no network of valence and arousal"
        raise ValueError(problem("path", "a model file or a checkpoint of a run", got, REMEDY))
    try:
        slope = float(about.get("leaky_slope", 0.0))
        by_person: dict[str, Any] = {name: about.get(name) is True for name in ("person_norm", "person_scale")}
        net = emotion_net(str(about["encoder"]), leaky_slope=slope, **by_person).to(device)
        plain = about["preprocessing"]
        how: dict[str, Any] = {name: plain[name] for name in ("resize", "size")}
        how |= {name: tuple(plain[name]) for name in ("mean", "std") if name in plain}
        preprocessing = Preprocessing(**how)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        beside = "" if about is content or config.is_file() else f", with {config.name} beside checkpoints/"
        expected = "one that describes its network"
        raise ValueError(problem("path", expected, f"{path} ({what})", REMEDY + beside)) from error
    try:
        net.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        remedy = "use the version of adaptive-margin that wrote it, which a model file names under versions"
        got = f"{path}: {str(error).splitlines()[0]}"
        raise ValueError(problem("path", "weights of this version's networks", got, remedy)) from error
    return net.eval(), preprocessing


def model_details(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The description in a model file: encoder, labels, preprocessing, config and versions."""
    content = read_tensors(Path(path), remedy=REMEDY)
    return {name: value for name, value in content.items() if name != "state_dict"}
