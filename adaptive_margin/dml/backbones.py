"""Networks with unit-norm embeddings: the published backbones, and a small one for the built-in data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from ..images.errors import FetchError
from ..images.transforms import FromImageNet
from ..messages import problem, refuse_broken
from ..stored import read_tensors
from .config import Backbone


class EmbeddingNet(nn.Module):
    """Features, a linear layer, unit norm.

    ``features`` makes ``(B, width)`` of images ``(B, C, H, H)``. With ``freeze_batch_norm`` its batch norms keep their
    weights and, even in training mode, their statistics. ``weights`` says what it began with, for the record.

    Example:
        >>> net = EmbeddingNet(nn.Flatten(), 16, embedding_size=4)
        >>> net(torch.ones(2, 1, 4, 4)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        features: nn.Module,
        width: int,
        embedding_size: int,
        freeze_batch_norm: bool = False,
        weights: str = "none",
    ) -> None:
        super().__init__()
        self.features = features
        self.embedding = nn.Linear(width, embedding_size)
        self.freeze_batch_norm = freeze_batch_norm
        self.weights = weights
        if freeze_batch_norm:
            for norm in self._batch_norms():
                norm.requires_grad_(False)
            self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings of unit norm, shape ``(B, embedding_size)``, float32."""
        return normalize(self.embedding(self.features(images)).float(), dim=1)

    def train(self, mode: bool = True) -> EmbeddingNet:
        """Training mode, except that frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.freeze_batch_norm:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def _batch_norms(self) -> Iterator[nn.Module]:
        return (each for each in self.features.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm))


def build_network(
    backbone: Backbone,
    *,
    weights: str = "torchvision",
    embedding_size: int = 128,
    freeze_batch_norm: bool = True,
    channels: int = 3,
) -> EmbeddingNet:
    """The network of a run.

    ``resnet50``, ``resnet18`` and ``googlenet`` (Inception with batch norm) are torchvision's without their classifier;
    ``vit-small`` is timm's ViT-S/16 of 224 pixels; ``small`` is three convolutions for images of 16 pixels.

    ``weights`` are ``"torchvision"`` for pretrained ones (timm's for ``vit-small``), which may be downloaded,
    ``"none"``, or a file with a state dict of the whole torchvision or timm network. The published backbones take 3
    ``channels``.

    Raises:
        ImportError: torchvision or timm is not installed.
        ValueError: weights that do not exist or do not match, or channels that the network does not accept.
        FetchError: pretrained weights could not be downloaded; the message says how to do without them.

    Example:
        >>> build_network("small", weights="none", embedding_size=8, channels=1)(torch.ones(2, 1, 16, 16)).shape
        torch.Size([2, 8])
    """
    if backbone == "small":
        if weights != "none":
            remedy = "pass --weights none: it is trained from scratch"
            raise ValueError(problem("weights", "'none' for the small network", repr(weights), remedy))
        return EmbeddingNet(small_features(channels), 48 * 16, embedding_size, freeze_batch_norm)
    if channels != 3:
        raise ValueError(problem("channels", f"3 for {backbone}", channels, "use the small network, or RGB images"))
    features, width, source = _published(backbone, weights)
    return EmbeddingNet(features, width, embedding_size, freeze_batch_norm, source)


def small_features(channels: int = 1, width: int = 24) -> nn.Sequential:
    """Three 3×3 convolutions with batch norm; images of 16 pixels become ``2 * width * 16`` features."""
    layers: list[nn.Module] = []
    for wide, out, pools in ((channels, width, True), (width, 2 * width, True), (2 * width, 2 * width, False)):
        layers += [nn.Conv2d(wide, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pools else []
    return nn.Sequential(*layers, nn.Flatten())


def _published(backbone: Backbone, weights: str) -> tuple[nn.Module, int, str]:
    """The network without its classifier, the width of its features, and the source of its weights."""
    fetched: dict[str, Any]
    fresh: dict[str, Any]
    if backbone == "vit-small":
        try:
            import timm
        except ImportError as error:
            refuse_broken("timm", error)
            remedy = "pip install timm, or choose resnet50"
            raise ImportError(problem("backbone", "without timm one of torchvision's", backbone, remedy)) from error
        name = "vit_small_patch16_224"
        build, source = partial(timm.create_model, name, num_classes=0), f"timm {name}"
        fetched, fresh = {"pretrained": True}, {"pretrained": False}
    else:
        from torchvision import models

        chosen = models.get_model_weights(backbone).IMAGENET1K_V1  # the initial weights of the published results
        build, source = getattr(models, backbone), f"torchvision {backbone} {chosen.name}"
        fetched, fresh = {"weights": chosen}, {"weights": None}
        if backbone == "googlenet":  # for fetched weights torchvision builds the auxiliary heads, then drops them
            fresh |= {"aux_logits": False, "init_weights": True}
    if weights == "torchvision":
        try:
            network = build(**fetched)
        except Exception as error:  # urllib, ssl, timm and huggingface each raise their own
            remedy = (
                "pass --weights FILE with a state dict, or --weights none --no-freeze-batch-norm to train from scratch"
            )
            raise FetchError(f"weights {source} could not be fetched ({error}); {remedy}") from error
    else:
        network = build(**fresh)
        source = "none" if weights == "none" else _load(network, Path(weights), backbone)
    if backbone == "vit-small":
        convention = network.pretrained_cfg
        return nn.Sequential(FromImageNet(convention["mean"], convention["std"]), network), 384, source
    if backbone == "googlenet":  # its published weights are for images of mean 0.5 and deviation 0.5; this makes them
        network.transform_input = True  # from ImageNet's normalisation, even if the weights come from a file
    width, network.fc = network.fc.in_features, nn.Identity()
    return network, width, source


def _load(network: nn.Module, path: Path, backbone: Backbone) -> str:
    remedy = f"pass {backbone}'s own state dict, or the backbone to which they belong"
    if not path.is_file():
        raise ValueError(
            problem("weights", "'torchvision', 'none' or a file", path, "pass the path of an existing one")
        )
    try:
        state = read_tensors(path)
        state = state.get("state_dict", state)
        unknown = network.load_state_dict(state, strict=False)
    except Exception as error:  # zipfile, pickle and torch each raise their own
        expected = "a state dict of the whole network"
        raise ValueError(problem(f"the weights in {path}", expected, str(error), remedy)) from error
    missing = [name for name in unknown.missing_keys if not name.startswith(("fc.", "head."))]
    if missing:
        got = f"{len(missing)} missing, such as {missing[0]}"
        raise ValueError(problem(f"the weights in {path}", "those of the whole network", got, remedy))
    return f"file {path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
