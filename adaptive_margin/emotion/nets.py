"""The networks of the paper: an encoder, a regressor of valence and arousal, and a critic's perceptron.

Widths: the features of the encoder → 64 → 8 → 2 for the regressor, → 64 → 32 → 16 for the critic. With AlexNet's
convolutions, 9216 features, that makes 3,060,122 parameters without and 3,652,618 with the critic: the paper's 3.0M
and 3.6M (Table 4). The paper's supplement describes the layers but is not public; the widths are those of the released
code, which gives these totals.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import itertools
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ..images.transforms import FromImageNet
from ..messages import problem, refuse_broken
from ..stored import DamagedFileError, read_tensors

LABELS = ("valence", "arousal")
"""The columns of labels and predictions, in order."""


class Encoder(nn.Module):
    """A backbone without its classifier: from images to one row of features each.

    Attributes:
        name: the name for :func:`build_encoder`.
        features: F, the number of features per image.
        convention: converts images from ImageNet's normalisation to the one that the backbone's weights need; has no
            state.

    Shapes:
        ``encoder(images (B, 3, H, W))`` gives ``(B, F)``.
    """

    def __init__(self, name: str, body: nn.Module, features: int, convention: nn.Module | None = None) -> None:
        super().__init__()
        self.name, self.features = name, features
        self.convention = convention or nn.Identity()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch of normalised images."""
        return cast(Tensor, self.body(self.convention(images))).flatten(1)


class EmotionNet(nn.Module):
    """The network that is kept after training: encoder and regressor, without the critic.

    Attributes:
        encoder: images to features.
        regressor: features to (valence, arousal).

    Shapes:
        ``net(images (B, 3, H, W))`` gives (valence, arousal), ``(B, 2)``, in the labels' unit and not bounded.

    Example:
        >>> net = emotion_net("small")
        >>> net(torch.randn(4, 3, 64, 64)).shape
        torch.Size([4, 2])
    """

    def __init__(self, encoder: Encoder, regressor: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.regressor = regressor

    @property
    def person_norm(self) -> PersonNorm | None:
        """What normalises features by person, if anything does."""
        return next((layer for layer in self.regressor.modules() if isinstance(layer, PersonNorm)), None)

    @property
    def leaky_slope(self) -> float:
        """Slope of the regressor's ReLUs below zero."""
        leaky = (layer.negative_slope for layer in self.regressor.modules() if isinstance(layer, nn.LeakyReLU))
        return next(leaky, 0.0)

    def forward(self, images: Tensor) -> Tensor:
        """(valence, arousal) of each image."""
        return cast(Tensor, self.regressor(self.encoder(images)))


def build_encoder(name: str, pretrained: str | os.PathLike[str] | None = None) -> Encoder:
    """An encoder by name, with random weights by default.

    Args:
        name: ``"small"``, for faces of 48 to 96 pixels; ``"resnet18"`` or ``"alexnet"``, the paper's; any
            classification model of torchvision by its name (the part before the classifier); or ``"timm:NAME"`` if timm
            is installed.
        pretrained: None for random weights, as in the paper; a file with a ``state_dict`` of the same backbone, with or
            without its classifier; or the name of weights to download: those that torchvision has for its model, such
            as ``"DEFAULT"``; for timm's models only ``"DEFAULT"``.

    Returns:
        The encoder, in training mode.

    Raises:
        ValueError, ImportError: as for :func:`check_encoder`; or the file's weights do not match.

    Example:
        >>> encoder = build_encoder("resnet18")
        >>> encoder.features, encoder(torch.randn(2, 3, 64, 64)).shape
        (512, torch.Size([2, 512]))
    """
    check_encoder(name, pretrained)
    weights = None if pretrained is None or Path(pretrained).is_file() else os.fspath(pretrained)
    convention = None
    if name.startswith("timm:"):
        model = name.removeprefix("timm:")
        body = _timm(model).create_model(model, pretrained=weights is not None, num_classes=0)
        features = int(body.num_features)
        convention = FromImageNet(body.pretrained_cfg["mean"], body.pretrained_cfg["std"])
    elif name == "small":
        body, features = small_body()
    else:
        body, features = _torchvision_body(name, weights)
    encoder = Encoder(name, body, features, convention)
    if pretrained is not None and weights is None:
        _load_body(encoder, Path(pretrained))
    return encoder


def check_encoder(name: str, pretrained: str | os.PathLike[str] | None = None) -> None:
    """Raises unless the encoder and the weights exist; builds nothing and downloads nothing.

    Args:
        name: as :func:`build_encoder` takes it.
        pretrained: likewise; for a file, only its existence is checked.

    Raises:
        ValueError: an unknown name (the message has similar ones), or neither a file nor a name of weights.
        ImportError: ``"timm:..."`` without timm.

    Example:
        >>> check_encoder("resnet19")
        Traceback (most recent call last):
        ValueError: encoder must be ... got 'resnet19'; did you mean 'resnet18' ...
    """
    published: Collection[str] = ()
    prefix = ""  # torchvision takes "IMAGENET1K_V1" as well as "ResNet18_Weights.IMAGENET1K_V1"
    if name.startswith("timm:"):
        _timm(name.removeprefix("timm:"))
        published = ("DEFAULT",)
    elif name != "small" and name in torchvision_names():
        weights = _torchvision_models().get_model_weights(name)
        published, prefix = weights.__members__, f"{weights.__name__}."
    elif name != "small":
        known = ["small", *torchvision_names()]
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.5) or ["small", "resnet18", "alexnet"]
        expected = "'small', a classification model of torchvision or 'timm:NAME'"
        raise ValueError(problem("encoder", expected, repr(name), f"did you mean {' or '.join(map(repr, near))}?"))
    if pretrained is None or Path(pretrained).is_file():
        return
    asked = os.fspath(pretrained)
    if asked.removeprefix(prefix) not in published:
        remedy = f"{name!r} has {' and '.join(published) if published else 'no published weights'}"
        raise ValueError(problem("pretrained", "an existing file, or a name of weights", repr(asked), remedy))


@functools.cache
def check_size(name: str, size: int) -> None:
    """Raises unless an encoder accepts pictures of a size; nothing is computed and no weights are created.

    Args:
        name: as for :func:`build_encoder`. Models of timm, and of torchvision if they cannot be built without weights,
            cannot be checked before the first batch.
        size: side of the pictures, pixels.

    Raises:
        ValueError: it does not accept them.

    Example:
        >>> check_size("alexnet", 62)
        Traceback (most recent call last):
        ValueError: size must be ... got 62; the smallest size is 63
    """
    if name == "small" or name.startswith(("timm:", "resnet")):  # averages whatever is left of the map
        return

    def takes(side: int) -> bool:
        try:
            encoder(torch.empty(1, 3, side, side, device="meta"))
        except (RuntimeError, AssertionError):
            return False
        return True

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            encoder = build_encoder(name).eval()
        except NotImplementedError:
            return
    if not takes(size):
        others = range(size + 1, 300)
        least = next((side for side in others if takes(side)), None)
        remedy = f"the smallest size is {least}" if least else "choose another encoder"
        raise ValueError(problem("size", f"one that the encoder {name} accepts", size, remedy))


def emotion_net(
    name: str,
    pretrained: str | os.PathLike[str] | None = None,
    *,
    dropout: float = 0.0,
    leaky_slope: float = 0.0,
    person_norm: bool = False,
    person_scale: bool = False,
) -> EmotionNet:
    """Encoder and regressor by the encoder's name; see :func:`build_encoder` and :func:`build_regressor`."""
    encoder = build_encoder(name, pretrained)
    regressor = build_regressor(encoder.features, dropout, leaky_slope)
    if person_norm:
        regressor = nn.Sequential(PersonNorm(encoder.features, person_scale), *regressor)
    return EmotionNet(encoder, regressor)


class PersonNorm(nn.Module):
    r"""Features centred (and scaled) by person, with what is known of all where there are few pictures of one.

    With the n pictures of a person in the batch, their mean and variance :math:`\hat\mu_p, \hat s_p^2`, the mean
    :math:`\mu` of all rows and the mean :math:`s^2` of all rows' variances about their person's mean:

    .. math::
        x - \mu_p \quad\text{or}\quad \frac{x - \mu_p}{\sqrt{s_p^2 + \epsilon}}, \qquad
        \mu_p = \frac{n \hat\mu_p + k \mu}{n + k}, \qquad s_p^2 = \frac{n \hat s_p^2 + k s^2}{n + k}

    Where people are not known: in training the mean and the variance of the batch, in evaluation :math:`\mu` and
    :math:`s^2`. In evaluation these are always those of training, as batch norm remembers them.

    Source: normalisation by speaker in speech recognition, with the shrinkage of an empirical Bayes estimate.

    Args:
        features: F.
        scale: divide by the deviation, too. It makes features that hardly vary as large as the others.
        prior: k, pictures that the averages of all count as.
        momentum: of the remembered averages.
        eps: :math:`\epsilon`.

    Example:
        >>> norm = PersonNorm(1, scale=True, prior=0.0).eval()
        >>> with norm.known(torch.tensor([0, 0, 1, 1])):
        ...     norm(torch.tensor([[1.0], [3.0], [10.0], [14.0]])).flatten().round(decimals=2)
        tensor([-1.,  1., -1.,  1.])
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, features: int, scale: bool = False, prior: float = 4.0, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.scale = scale
        self.prior, self.momentum, self.eps = prior, momentum, eps
        self.people: Tensor | None = None
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    @contextlib.contextmanager
    def known(self, people: Tensor | None) -> Iterator[None]:
        """Who is in each row of what comes next; None if nobody knows."""
        before, self.people = self.people, people
        try:
            yield
        finally:
            self.people = before

    def forward(self, features: Tensor) -> Tensor:
        """Shape and dtype of ``features``, ``(B, F)``."""
        x = features if features.dtype == torch.float64 else features.float()
        if self.people is None:
            mean, var = self.running_mean, self.running_var
            if self.training:
                mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
            return self._scaled(x - mean, var).to(features.dtype)
        _, who, counts = torch.unique(self.people, return_inverse=True, return_counts=True)
        n = counts.to(x)[:, None]
        own = x.new_zeros(len(counts), x.shape[1]).index_add(0, who, x) / n
        own_var = x.new_zeros(len(counts), x.shape[1]).index_add(0, who, (x - own[who]).square()) / n
        mean, var = self.running_mean.to(x), self.running_var.to(x)
        if self.training:
            mean, var = x.mean(dim=0), (own_var * n).sum(dim=0) / n.sum()
            with torch.no_grad():
                for buffer, value in ((self.running_mean, mean), (self.running_var, var)):
                    buffer.lerp_(value.detach().to(buffer), self.momentum)
        k = self.prior
        centre, spread = (n * own + k * mean) / (n + k), (n * own_var + k * var) / (n + k)
        return self._scaled(x - centre[who], spread[who]).to(features.dtype)

    def _scaled(self, centred: Tensor, var: Tensor) -> Tensor:
        return centred / (var + self.eps).sqrt() if self.scale else centred


def build_regressor(features: int, dropout: float = 0.0, leaky_slope: float = 0.0) -> nn.Sequential:
    """Features → 64 → 8 → (valence, arousal), with ReLUs in between and an unbounded output.

    Args:
        features: F, of the encoder.
        dropout: before each of the first two layers, in [0, 1).
        leaky_slope: slope of the ReLUs below zero, in [0, 1); the paper has 0. The second layer has only eight units:
            if most of them are zero for every image, arousal determines valence and no gradient can repair this. A
            slope keeps the units alive.

    Example:
        >>> sum(weight.numel() for weight in build_regressor(9216).parameters())
        590426
    """
    rectifiers = [nn.LeakyReLU(leaky_slope) if leaky_slope else nn.ReLU() for _ in range(2)]
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(features, 64),
        rectifiers[0],
        nn.Dropout(dropout),
        nn.Linear(64, 8),
        rectifiers[1],
        nn.Linear(8, len(LABELS)),
    )


def build_critic_network(features: int, outputs: int = 16, dropout: float = 0.0) -> nn.Sequential:
    """The critic's perceptron, :math:`f_c`: features → 64 → 32 → ``outputs``.

    It differs from the released code: there is a ReLU after both hidden layers (that code has none after the first, so
    two layers form one linear map).

    Args:
        features: F, of the encoder.
        outputs: d of the embedding: 16, or 1 for a critic whose output is a score.
        dropout: before the last layer, in [0, 1).

    Example:
        >>> sum(weight.numel() for weight in build_critic_network(9216).parameters())
        592496
    """
    return nn.Sequential(
        nn.Linear(features, 64),
        nn.ReLU(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(32, outputs),
    )


def small_body() -> tuple[nn.Module, int]:
    """Four convolutions with batch normalisation, for faces of 44 to 96 pixels: 1152 features, 98,448 parameters.

    The last map is averaged to 3 by 3 instead of a single value, because position matters: a mouth is at the bottom of
    a face.
    """
    widths = (3, 16, 32, 64, 128)
    layers: list[nn.Module] = []
    for number, (before, width) in enumerate(itertools.pairwise(widths)):
        kernel = 5 if number == 0 else 3
        layers += [
            nn.Conv2d(before, width, kernel, stride=2, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    layers.append(WindowMeans(3))
    return nn.Sequential(*layers), widths[-1] * 9


class WindowMeans(nn.Module):
    """Means of ``k * k`` windows over a map of any size: ``nn.AdaptiveAvgPool2d(k)`` with a deterministic gradient.

    Window i covers [floor(i n / k), ceil((i + 1) n / k)) of n rows, and of columns likewise. On CUDA, PyTorch's version
    sums its gradient in no fixed order, so it raises an error under ``deterministic``; this version does not.

    Args:
        k: windows along each side.

    Example:
        >>> WindowMeans(2)(torch.arange(9.0).reshape(1, 1, 3, 3))
        tensor([[[[2., 3.],
                  [5., 6.]]]])
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, maps: Tensor) -> Tensor:
        """Shape ``(B, C, H, W)`` to ``(B, C, k, k)``."""
        k, sides = self.k, maps.shape[-2:]
        if all(n % k == 0 or n == k + 1 for n in sides):  # windows of one size at equal steps
            return avg_pool2d(maps, [n // k + n % k for n in sides], [n // k for n in sides])
        for axis, n in zip((-2, -1), sides, strict=True):  # a mean of means, as a window's rows are equally long
            windows = [(i * n // k, -(-(i + 1) * n // k)) for i in range(k)]
            maps = torch.stack([maps.narrow(axis, start, end - start).mean(axis) for start, end in windows], axis)
        return maps

    def extra_repr(self) -> str:
        """For ``print``."""
        return str(self.k)


def torchvision_names() -> list[str]:
    """Names of torchvision's classification models, which :func:`build_encoder` takes."""
    models = _torchvision_models()
    return cast("list[str]", models.list_models(module=models))


def _torchvision_models() -> Any:
    """Imported when a model of it is wanted: that loads torch's compiler, for which the small network does not wait."""
    from torchvision import models

    return models


def _torchvision_body(name: str, weights: str | None) -> tuple[nn.Module, int]:
    options: dict[str, bool] = {}
    if name in ("googlenet", "inception_v3"):
        # Their published weights are for images of mean 0.5 and deviation 0.5, and images come with ImageNet's, which
        # this option turns into those. It is in no state_dict: whatever the weights, a network is rebuilt with it.
        options["transform_input"] = True
        if weights is None:
            options |= {"aux_logits": False, "init_weights": True}
    model = _torchvision_models().get_model(name, weights=weights, **options)
    if name == "alexnet" or name.startswith("vgg"):  # all others average the whole map: a plain mean
        model.avgpool = WindowMeans(model.avgpool.output_size[0])
    if name == "alexnet":  # the paper's own: all of the fully connected layers go
        model.classifier = nn.Identity()
        return model, 9216
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
        model.AuxLogits = model.aux1 = model.aux2 = None
    for attribute in ("fc", "head", "heads", "classifier"):
        if hasattr(model, attribute):
            kept, features = _before_first_weights(getattr(model, attribute))
            setattr(model, attribute, kept)
            return model, features
    raise AssertionError(f"torchvision's {name} has a classifier of another name")


def _before_first_weights(classifier: nn.Module) -> tuple[nn.Module, int]:
    """The part of a classifier before its first weights, without dropout, and the width of its input."""
    layers: Iterable[nn.Module] = classifier if isinstance(classifier, nn.Sequential) else [classifier]
    kept: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.Linear):
            return nn.Sequential(*kept), layer.in_features
        if isinstance(layer, nn.Conv2d):  # SqueezeNet classifies before it pools
            return nn.Sequential(*kept, nn.AdaptiveAvgPool2d(1)), layer.in_channels
        if not isinstance(layer, nn.Dropout):
            kept.append(layer)
    raise AssertionError("a classifier without weights")


def _timm(name: str) -> Any:
    """The package, which has a model of that name."""
    try:
        import timm  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        refuse_broken("timm", error)
        raise ImportError(f"encoder 'timm:{name}' needs timm: pip install timm") from error
    if name not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        remedy = f"did you mean {' or '.join(f'timm:{each}' for each in near)}?" if near else "see timm.list_models()"
        raise ValueError(problem("encoder", "a model of timm", repr(name), remedy))
    return timm


def _load_body(encoder: Encoder, path: Path) -> None:
    try:
        state = read_tensors(path)
        state = state.get("state_dict", state)
    except DamagedFileError as error:  # cut short, or another format
        got, remedy = f"another kind of file ({path})", "save the backbone's own state_dict with torch.save"
        raise ValueError(problem("pretrained", f"weights of {encoder.name}", got, remedy)) from error
    wanted = encoder.body.state_dict()
    missing = [key for key in wanted if key not in state]
    wrong = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or wrong:
        got = f"a file without {missing[:3]}" if missing else f"other shapes of {wrong[:3]}"
        remedy = "save the backbone's own state_dict"
        raise ValueError(problem("pretrained", f"weights of {encoder.name}", got, remedy))
    encoder.body.load_state_dict({key: state[key] for key in wanted})
