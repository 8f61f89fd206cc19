"""The networks: the paper's parameter totals, and every backbone by name."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from adaptive_margin.emotion.nets import (
    WindowMeans,
    build_critic_network,
    build_encoder,
    build_regressor,
    check_encoder,
    emotion_net,
    torchvision_names,
)
from adaptive_margin.images.transforms import normalise


def _parameters(*modules: torch.nn.Module) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def test_alexnet_has_the_papers_totals() -> None:
    net = emotion_net("alexnet")
    critic = build_critic_network(net.encoder.features)
    assert net.encoder.features == 9216
    assert _parameters(net.encoder) == 2_469_696
    assert _parameters(net) == 3_060_122
    assert _parameters(net, critic) == 3_652_618


def test_resnet18_has_the_papers_totals() -> None:
    net = emotion_net("resnet18")
    assert net.encoder.features == 512
    assert _parameters(net.encoder) == 11_689_512 - 513 * 1000  # published, less its classifier
    assert _parameters(net) == 11_176_512 + 513 * 64 + 65 * 8 + 9 * 2


def test_heads_have_the_papers_widths() -> None:
    linear = torch.nn.Linear
    regressor = [m for m in build_regressor(9216) if isinstance(m, linear)]
    critic = [m for m in build_critic_network(9216) if isinstance(m, linear)]
    assert [(m.in_features, m.out_features) for m in regressor] == [(9216, 64), (64, 8), (8, 2)]
    assert [(m.in_features, m.out_features) for m in critic] == [(9216, 64), (64, 32), (32, 16)]
    score = build_critic_network(512, outputs=1)
    assert score(torch.randn(3, 512)).shape == (3, 1)


def test_rectifiers_leak_when_asked() -> None:
    regressor = build_regressor(3, leaky_slope=0.25)
    with torch.no_grad():
        for layer in regressor:
            if isinstance(layer, torch.nn.Linear):
                layer.weight.fill_(-1.0)
                layer.bias.zero_()
    # 3 -> -3 of 64 units -> x 1/4 -> 64 * 0.75 = 48 of 8 units -> kept -> -8 * 48
    assert regressor(torch.ones(1, 3)).tolist() == [[-384.0, -384.0]]
    # -3 -> 3 of 64 units -> kept -> -192 of 8 units -> x 1/4 -> 8 * 48
    assert regressor(-torch.ones(1, 3)).tolist() == [[384.0, 384.0]]
    kinds = [type(layer) for layer in build_regressor(3)]
    assert kinds.count(torch.nn.ReLU) == 2


def test_small_takes_faces_of_many_sizes() -> None:
    net = emotion_net("small").eval()
    for size in (40, 44, 64, 96):
        assert net(torch.randn(2, 3, size, size)).shape == (2, 2)
        assert net.encoder(torch.randn(2, 3, size, size)).shape == (2, net.encoder.features)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_window_means_are_adaptive_average_pooling(k: int) -> None:
    for sides in itertools.product((1, 2, 3, 4, 5, 6, 7, 12, 13), repeat=2):
        maps = torch.randn(2, 3, *sides, dtype=torch.float64, requires_grad=True)
        found, expected = WindowMeans(k)(maps), torch.nn.functional.adaptive_avg_pool2d(maps, k)
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
        upstream = torch.randn_like(found)
        slopes = [torch.autograd.grad(pooled, maps, upstream)[0] for pooled in (found, expected)]
        torch.testing.assert_close(*slopes, rtol=1e-14, atol=1e-14)
    same = torch.randn(2, 3, k, k)
    assert torch.equal(WindowMeans(k)(same), same)


@pytest.mark.parametrize("name", ["small", "alexnet", "vgg11"])
def test_no_pooling_is_left_without_a_deterministic_gradient(name: str) -> None:
    """PyTorch's raises on CUDA unless it averages the whole map, where it is a mean."""
    with torch.device("meta"):
        encoder = build_encoder(name)
        assert encoder(torch.empty(2, 3, 64, 64)).shape == (2, encoder.features)
    assert any(isinstance(layer, WindowMeans) for layer in encoder.modules())
    assert not any(isinstance(layer, torch.nn.AdaptiveAvgPool2d) for layer in encoder.modules())


def test_the_names_of_weights_stay() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    small = [f"{3 * n + m}.{w}" for n in range(4) for m, names in ((0, norm[:1]), (1, norm)) for w in names]
    assert list(build_encoder("small").body.state_dict()) == small
    assert _parameters(build_encoder("small")) == 98_448
    alexnet = [f"features.{n}.{w}" for n in (0, 3, 6, 8, 10) for w in ("weight", "bias")]
    with torch.device("meta"):
        assert list(build_encoder("alexnet").body.state_dict()) == alexnet


NOT_ON_META = ("regnet",)  # their constructors look at numbers


def number_of_parameters(name: str) -> int:
    from torchvision.models import get_model_weights

    return int(get_model_weights(name).DEFAULT.meta["num_params"])


def module_of(name: str) -> str:
    from torchvision.models import get_model_builder

    return get_model_builder(name).__module__


KINDS = {module_of(name): name for name in sorted(torchvision_names(), key=number_of_parameters, reverse=True)}
"""The smallest network of each of torchvision's modules: a module builds all of its classifiers alike."""


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS.values())
def test_every_kind_of_torchvision_classifier_gives_the_features_it_says(name: str) -> None:
    side = 299 if name == "inception_v3" else 224
    with torch.device("cpu" if name.startswith(NOT_ON_META) else "meta"):
        encoder = build_encoder(name).eval()
        assert encoder(torch.empty(2, 3, side, side)).shape == (2, encoder.features)


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(ValueError, match=r"encoder must be .* got 'resnet81'; did you mean 'resnet18'"):
        build_encoder("resnet81")
    with pytest.raises(ValueError, match="did you mean 'small' or 'resnet18' or 'alexnet'"):
        build_encoder("zzzzzz")


def test_timm_is_asked_for_by_prefix() -> None:
    try:
        import timm  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install timm"):
            build_encoder("timm:resnet10t")
        return
    encoder = build_encoder("timm:resnet10t").eval()
    assert encoder(torch.randn(2, 3, 64, 64)).shape == (2, encoder.features)
    with pytest.raises(ValueError, match="did you mean"):
        build_encoder("timm:resnet10tt")


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    whole = resnet18()
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "whole.pt")
    encoder = build_encoder("resnet18", tmp_path / "whole.pt")
    assert torch.equal(encoder.body.conv1.weight, whole.conv1.weight)  # type: ignore[union-attr]
    assert torch.equal(encoder.body.layer4[1].bn2.running_var, whole.layer4[1].bn2.running_var)  # type: ignore[union-attr,index]
    with pytest.raises(ValueError, match=r"weights of alexnet, got a file without \['features.0.weight'"):
        build_encoder("alexnet", tmp_path / "whole.pt")


def test_small_knows_no_published_weights() -> None:
    with pytest.raises(ValueError, match="'small' has no published weights"):
        build_encoder("small", "DEFAULT")


def test_weights_are_checked_without_building() -> None:
    check_encoder("resnet18", "DEFAULT")
    check_encoder("resnet18", "IMAGENET1K_V1")
    check_encoder("resnet18", "ResNet18_Weights.IMAGENET1K_V1")
    with pytest.raises(ValueError, match="got 'IMAGENET1K_V7'; 'resnet18' has IMAGENET1K_V1 and DEFAULT"):
        check_encoder("resnet18", "IMAGENET1K_V7")
    with pytest.raises(ValueError, match=r"got 'ResNet50_Weights\.DEFAULT'"):
        check_encoder("resnet18", "ResNet50_Weights.DEFAULT")


def test_timm_gets_images_as_its_weights_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Vit(nn.Module):
        num_features = 3

        def __init__(self) -> None:
            super().__init__()
            self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.25, 0.5)}
            self.head = nn.Linear(3, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images.mean((2, 3))

    timm = ModuleType("timm")
    timm.list_models = lambda: ["vit"]  # type: ignore[attr-defined]
    timm.create_model = lambda name, pretrained, num_classes: Vit()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    encoder = build_encoder("timm:vit")
    bytes_ = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    encoder(normalise(bytes_))
    torch.testing.assert_close(seen[0], (bytes_ / 255 - 0.5) / torch.tensor([0.5, 0.25, 0.5]).view(3, 1, 1))
    assert set(encoder.state_dict()) == {"body.head.weight", "body.head.bias"}  # it follows from the name


def test_timm_takes_a_file_or_its_default_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = ModuleType("timm")
    timm.list_models = lambda: ["resnet10t"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    check_encoder("timm:resnet10t", "DEFAULT")
    with pytest.raises(ValueError, match=r"got 'mistyped.pt'; 'timm:resnet10t' has DEFAULT"):
        check_encoder("timm:resnet10t", "mistyped.pt")
