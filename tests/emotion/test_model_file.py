"""The file of a trained network: only what inference needs, readable without running code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adaptive_margin.emotion.model_file import Preprocessing, load_model, model_details, save_model
from adaptive_margin.emotion.nets import emotion_net


def test_a_network_comes_back_as_it_was(tmp_path: Path) -> None:
    net = emotion_net("small", dropout=0.3)
    net(torch.randn(8, 3, 44, 44))  # moves the running statistics
    how = Preprocessing(resize=48, size=44, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    save_model(tmp_path / "deep" / "model.pt", net, how, config={"critic": "caf", "adam": {"lr": 0.1}})
    loaded, found = load_model(tmp_path / "deep" / "model.pt")
    images = torch.randn(4, 3, 44, 44)
    assert found == how
    assert not loaded.training
    assert torch.equal(loaded(images), net.eval()(images))
    assert {name.partition(".")[0] for name in loaded.state_dict()} == {"encoder", "regressor"}


def test_rectifiers_that_leak_still_do(tmp_path: Path) -> None:
    net = emotion_net("small", leaky_slope=0.2).eval()
    save_model(tmp_path / "model.pt", net, Preprocessing(resize=48, size=44))
    loaded, _ = load_model(tmp_path / "model.pt")
    images = torch.randn(4, 3, 44, 44)
    assert loaded.leaky_slope == net.leaky_slope == 0.2
    assert torch.equal(loaded(images), net(images))


def test_published_weights_see_the_same_input_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import googlenet

    published = googlenet(init_weights=False)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published.state_dict())
    net = emotion_net("googlenet", "DEFAULT").eval()
    theirs = googlenet(weights="DEFAULT").eval()  # made for ImageNet's normalisation by torchvision
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 32, 32)
    save_model(tmp_path / "model.pt", net, Preprocessing(resize=32, size=32))
    loaded, _ = load_model(tmp_path / "model.pt")
    for encoder in (net.encoder, loaded.encoder):
        assert torch.equal(encoder(images), theirs(images))


def test_it_says_where_it_comes_from_in_plain_values(tmp_path: Path) -> None:
    save_model(tmp_path / "model.pt", emotion_net("small"), Preprocessing(), config={"seed": 3})
    details = model_details(tmp_path / "model.pt")
    assert details["encoder"] == "small"
    assert details["labels"] == ["valence", "arousal"]
    assert details["config"] == {"seed": 3}
    assert details["versions"]["torch"] == str(torch.__version__)


def test_another_file_is_refused(tmp_path: Path) -> None:
    torch.save({"state": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="not a checkpoint"):
        load_model(tmp_path / "checkpoint.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="path must be a model file"):
        load_model(tmp_path / "text.pt")
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "none.pt")
