"""The published backbones give embeddings of unit norm, and take a file of weights."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torchvision import models

from adaptive_margin.dml.backbones import build_network
from adaptive_margin.images.transforms import normalise


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "googlenet"])
def test_a_backbone_makes_unit_embeddings(backbone: str) -> None:
    network = build_network(backbone, weights="none", embedding_size=16).train()
    embeddings = network(torch.rand(2, 3, 64, 64))
    assert embeddings.shape == (2, 16)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    assert network.weights == "none"
    norms = [each for each in network.features.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(each.training or each.weight.requires_grad for each in norms)


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    theirs = models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pt")
    network = build_network("resnet18", weights=str(tmp_path / "resnet18.pt"), embedding_size=16)
    digest = hashlib.sha256((tmp_path / "resnet18.pt").read_bytes()).hexdigest()
    assert network.weights == f"file resnet18.pt, sha256 {digest}"
    torch.testing.assert_close(network.features.conv1.weight, theirs.conv1.weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"must be those of the whole network, got \d+ missing"):
        build_network("resnet50", weights=_without(tmp_path, theirs))
    (tmp_path / "torn.pt").write_bytes(b"half of it")
    with pytest.raises(ValueError, match="must be a state dict of the whole network"):
        build_network("resnet18", weights=str(tmp_path / "torn.pt"))


def test_googlenet_gets_what_its_weights_are_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = models.googlenet(init_weights=False).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published)
    torch.save(published, tmp_path / "googlenet.pt")
    theirs = models.googlenet(weights="IMAGENET1K_V1").eval()  # for images with ImageNet's normalisation, as ours are
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 32, 32)
    for weights in ("torchvision", str(tmp_path / "googlenet.pt")):
        network = build_network("googlenet", weights=weights, embedding_size=4).eval()
        assert torch.equal(network.features(images), theirs(images))


def _without(folder: Path, network: torch.nn.Module) -> str:
    kept = {name: value for name, value in network.state_dict().items() if name.startswith("conv1")}
    torch.save(kept, folder / "part.pt")
    return str(folder / "part.pt")


def test_vit_small_gets_images_as_timm_normalises_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Vit(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.25, 0.5)}

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images.mean((2, 3)).repeat(1, 128)

    timm = ModuleType("timm")
    timm.create_model = lambda name, pretrained, num_classes: Vit()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    bytes_ = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    build_network("vit-small", weights="none", freeze_batch_norm=False)(normalise(bytes_))
    spread = torch.tensor([0.5, 0.25, 0.5]).view(3, 1, 1)
    torch.testing.assert_close(seen[0], (bytes_ / 255 - 0.5) / spread)


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(RuntimeError, match=r"could not be fetched \(no route to host\); pass --weights FILE"):
        build_network("resnet18")
