"""The file of a trained network: only what inference needs, readable without running code."""

from __future__ import annotations

import os
import random
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptive_margin.emotion.model_file import (
    Preprocessing,
    description,
    load_model,
    load_network,
    model_details,
    read_network,
    save_model,
)
from adaptive_margin.emotion.nets import EmotionNet, emotion_net
from adaptive_margin.stored import DamagedFileError
from adaptive_margin.training.checkpoints import Checkpoints


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


def test_a_benchmarks_folder_lists_its_runs_and_one_run_is_taken(tmp_path: Path) -> None:
    """The demo announces the folder of both runs, with the runs two levels down."""
    net = emotion_net("small")
    run = tmp_path / "demo-faces" / "runs" / "caf" / "seed0"
    save_model(run / "model.pt", net, Preprocessing(resize=48, size=44), config={"dataset": "faces"})
    loaded, _ = load_network(tmp_path / "demo-faces")
    images = torch.randn(2, 3, 44, 44)
    assert torch.equal(loaded(images), net.eval()(images))
    assert {read_network(each).config()["dataset"] for each in (tmp_path / "demo-faces", run / "model.pt")} == {"faces"}
    save_model(run.parent / "seed1" / "model.pt", net, Preprocessing(resize=48, size=44))
    said = rf"demo-faces with 2 runs: runs/caf/seed0, runs/caf/seed1; pass one of them, as in --checkpoint .*{run.name}"
    with pytest.raises(ValueError, match=said):
        load_network(tmp_path / "demo-faces")
    assert read_network(run.parent / "seed1").config() == {}
    (run.parent / "seed1" / "config.yaml").write_text("dataset: affectnet\n")
    assert read_network(run.parent / "seed1").config()["dataset"] == "affectnet"


def test_a_checkpoint_says_what_its_network_was_trained_on(tmp_path: Path) -> None:
    net = emotion_net("small")
    model = description(net, Preprocessing(resize=48, size=44)) | {"dataset": "faces"}
    Checkpoints(tmp_path / "checkpoints").save(2, {"job": {"net": dict(net.state_dict()), "model": model}})
    (file,) = (tmp_path / "checkpoints").iterdir()
    alone = tmp_path / "elsewhere" / "deep" / file.name
    alone.parent.mkdir(parents=True)
    shutil.copy(file, alone)
    assert read_network(alone).config()["dataset"] == "faces"


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
    with pytest.raises(ValueError, match=r"which holds no network of valence and arousal; pass the model\.pt"):
        load_model(tmp_path / "checkpoint.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text.pt is damaged, or holds more than .*; pass the model.pt of a run"):
        load_model(tmp_path / "text.pt")
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "none.pt")


X = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
HOW = Preprocessing(resize=48, size=40)


def answer(source: Path) -> torch.Tensor:
    net, how = load_network(source)
    assert not net.training
    assert (how.resize, how.size) == (48, 40)
    with torch.no_grad():
        return net(X)


def job(net: EmotionNet) -> dict[str, Any]:
    """What a run keeps of it in a checkpoint."""
    return {"net": dict(net.state_dict()), "model": description(net, HOW)}


@pytest.fixture
def nets() -> list[EmotionNet]:
    return [emotion_net("small", leaky_slope=0.1).eval() for _ in range(3)]


@pytest.fixture
def run(tmp_path: Path, nets: list[EmotionNet]) -> Path:
    """A finished run that kept its last network: the best, the one before and the newest differ."""
    folder = tmp_path / "run"
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save_best(1, job(nets[0]), 0.5)
    checkpoints.save(2, {"job": job(nets[1])})
    checkpoints.save(3, {"job": job(nets[2])})
    (folder / "config.yaml").write_text("keep: last\nencoder: small\n")
    save_model(folder / "model.pt", nets[2], HOW)
    return folder


def test_every_file_of_a_run_can_be_given(run: Path, nets: list[EmotionNet], tmp_path: Path) -> None:
    files = [*sorted((run / "checkpoints").iterdir()), run / "model.pt"]
    for file, net in zip(files, (*nets, nets[2]), strict=True):
        expected = net(X)
        assert torch.equal(answer(file), expected)
        shutil.copy(file, tmp_path / "mine.pt")  # elsewhere, and under another name
        assert torch.equal(answer(tmp_path / "mine.pt"), expected)
    assert torch.equal(answer(run), nets[2](X))
    (run / "model.pt").unlink()
    assert torch.equal(answer(run), nets[2](X))  # it is not finished


def test_a_checkpoint_from_before_they_said_what_they_hold(tmp_path: Path) -> None:
    net = emotion_net("small").eval()
    (tmp_path / "config.yaml").write_text("encoder: small\nresize: 48\nsize: 40\ndropout: 0.5\n")
    weights = {"net": dict(net.state_dict())}
    for file in (
        Checkpoints(tmp_path / "checkpoints").save(7, {"job": weights}),
        Checkpoints(tmp_path / "checkpoints").save_best(6, weights, 0.5),
    ):
        assert torch.equal(answer(file), net(X))
    assert torch.equal(answer(tmp_path), net(X))
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"no 'encoder'.*one of its checkpoints, with config.yaml beside checkpoints/"):
        load_network(file)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.pt", "best", "step"])
def test_no_flipped_bit_gives_other_weights(run: Path, name: str) -> None:
    path = run / name if name == "model.pt" else next((run / "checkpoints").glob(f"{name}-*"))
    bits, draw = 8 * path.stat().st_size, random.Random(2)
    for place in {draw.randrange(bits - 8 * 100) for _ in range(40)}:  # before the digest and its mark
        flip(path, place)
        with pytest.raises(DamagedFileError, match=path.name):
            load_network(path)
        flip(path, place)
    flip(path, bits // 2)
    with pytest.raises(DamagedFileError, match=f"{path.name} is damaged: its .* do not match the checksum .*; pass"):
        load_model(path)
    with pytest.raises(DamagedFileError, match=f"{path.name} is damaged"):
        load_network(path)


def test_a_damaged_model_of_a_run_folder(run: Path, nets: list[EmotionNet]) -> None:
    flip(run / "model.pt", 8 * 100_000)
    with pytest.warns(UserWarning, match="model.pt is damaged: .*; the run's checkpoint is used"):
        assert torch.equal(answer(run), nets[2](X))
    (run / "config.yaml").write_text("keep: best\n")
    with pytest.warns(UserWarning, match=r"model.pt is damaged"):
        assert torch.equal(answer(run), nets[0](X))
    best, one, two = sorted((run / "checkpoints").iterdir())
    os.truncate(best, 1000)
    with pytest.warns(UserWarning, match=rf"{best.name} is damaged.*: restore it .*, or use the newest") as warned:
        assert torch.equal(answer(run), nets[2](X))
    assert any("checkpoint of step 3 is used" in str(each.message) for each in warned)
    flip(two, 8 * 100_000)
    with pytest.warns(UserWarning, match=f"{two.name} is damaged.*; trying the one before it"):
        assert torch.equal(answer(run), nets[1](X))
    one.write_bytes(bytes(one.stat().st_size))
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match=r"no checkpoint in .* can be read \(2 files"),
    ):
        load_network(run)


def test_the_best_checkpoint_stands_in_where_no_other_is_whole(run: Path, nets: list[EmotionNet]) -> None:
    (run / "model.pt").unlink()
    _, one, two = sorted((run / "checkpoints").iterdir())
    one.unlink()
    os.truncate(two, 1000)
    with pytest.warns(
        UserWarning, match=f"no checkpoint in .* can be read .1 file,.*{two.name}.*: checkpoint of step .* is used"
    ):
        assert torch.equal(answer(run), nets[0](X))
    two.unlink()
    assert torch.equal(answer(run), nets[0](X))


def test_a_folder_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint must be a run folder with model.pt or checkpoints"):
        load_network(tmp_path)
    with pytest.raises(ValueError, match="which does not exist"):
        load_network(tmp_path / "nowhere.pt")
    Checkpoints(tmp_path / "checkpoints").save(1, {"job": {"network": {}}})  # of the retrieval trainer
    with pytest.raises(ValueError, match="which holds no network of valence and arousal"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": None}, "encoder must be 'small'.*got 'None'"),
        ({"encoder": "hf-hub:someone/network"}, "encoder must be 'small'"),
        ({"encoder": "timm:hf-hub:someone/network"}, "encoder must be a model of timm|needs timm"),
        ({"encoder": "https://somewhere.example/network.pt"}, "encoder must be 'small'"),
        ({"preprocessing": {"resize": 48}}, r"\(no 'size'\)"),
        ({"preprocessing": {"resize": 48, "size": "40"}}, "size must be a whole number of pixels, at least 1"),
        ({"preprocessing": {"resize": 48, "size": 40, "mean": [0.5]}}, "mean must be three numbers"),
        ({"preprocessing": None}, "one that describes its network"),
        ({"leaky_slope": "<b>"}, "could not convert string to float"),
        ({"state_dict": None}, "which holds no network"),
        ({"state_dict": {"encoder": "x"}}, "weights of this version's networks"),
        ({"format": 99}, "a model file of format 1, got format 99"),
    ],
)
def test_a_crafted_file_is_refused_in_words_and_reaches_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    def reached(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", reached)
    monkeypatch.setattr(socket, "getaddrinfo", reached)
    save_model(tmp_path / "whole.pt", emotion_net("small"), HOW)
    content = {**torch.load(tmp_path / "whole.pt", weights_only=True), **change}
    torch.save(content, tmp_path / "crafted.pt")
    with pytest.raises((ValueError, ImportError), match=message):
        load_model(tmp_path / "crafted.pt")


@pytest.mark.parametrize("name", ["encoder", "preprocessing", "state_dict", "format"])
def test_a_file_that_lacks_something_is_named(tmp_path: Path, name: str) -> None:
    save_model(tmp_path / "whole.pt", emotion_net("small"), HOW)
    content = torch.load(tmp_path / "whole.pt", weights_only=True)
    torch.save({key: value for key, value in content.items() if key != name}, tmp_path / "crafted.pt")
    with pytest.raises(ValueError, match=r"path must be .*crafted\.pt"):
        load_model(tmp_path / "crafted.pt")
