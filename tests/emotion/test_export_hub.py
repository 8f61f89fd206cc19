"""A folder for a hub gives the same network back, bit by bit; damaged, foreign and incomplete ones are rejected."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("safetensors")

from adaptive_margin.command import main
from adaptive_margin.emotion.export_hub import export_hub
from adaptive_margin.emotion.model_file import Preprocessing, description, load_network, read_network, save_model
from adaptive_margin.emotion.nets import EmotionNet, emotion_net
from adaptive_margin.emotion.predict import DRAWN, load_predictor
from adaptive_margin.stored import DamagedFileError, read_json, write_json
from adaptive_margin.training.checkpoints import Checkpoints
from adaptive_margin.training.model_card import described

HOW = Preprocessing(resize=48, size=40, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
NAMES = ("model.safetensors", "config.json", "README.md")
OPTIONS = {"dataset": "faces", "people": 14, "images_per_person": 6, "root": "/home/me/data", "cache": "/home/me/cache"}


def trained(**options: Any) -> EmotionNet:
    torch.manual_seed(2)
    net = emotion_net("small", leaky_slope=0.1, **options)
    net(torch.randn(8, 3, 40, 40))  # moves the running statistics
    return net.eval()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_model(tmp_path / "run" / "model.pt", trained(), HOW, config=OPTIONS)
    return tmp_path / "run"


def same(one: Path, two: Path) -> bool:
    (a, how_a), (b, how_b) = load_network(one), load_network(two)
    x = torch.randn(3, 3, 40, 40)
    states = a.state_dict(), b.state_dict()
    assert [(name, value.dtype) for name, value in states[0].items()] == [(n, v.dtype) for n, v in states[1].items()]
    with torch.no_grad():
        assert torch.equal(a(x), b(x))
    return how_a == how_b and not b.training and all(map(torch.equal, states[0].values(), states[1].values()))


@pytest.mark.parametrize("options", [{}, {"person_norm": True}, {"person_norm": True, "person_scale": True}], ids=str)
def test_a_network_comes_back_bit_by_bit(tmp_path: Path, options: dict[str, bool]) -> None:
    net = trained(**options)
    save_model(tmp_path / "run" / "model.pt", net, HOW, config=OPTIONS)
    folder = tmp_path / "deep" / "hub"
    files = export_hub(tmp_path / "run", folder)
    assert sorted(files) == sorted(folder.iterdir()) == sorted(folder / name for name in NAMES)
    assert same(tmp_path / "run", folder)
    assert same(tmp_path / "run", folder / "model.safetensors")
    norm = load_network(folder)[0].person_norm
    assert (norm is not None, norm is not None and norm.scale) == (bool(options), "person_scale" in options)
    assert read_network(folder).config()["dataset"] == "faces"
    assert load_predictor(folder, crops=True).warning == DRAWN
    shutil.move(folder, tmp_path / "elsewhere")
    export_hub(tmp_path / "elsewhere", tmp_path / "again")  # of a folder for a hub
    for name in NAMES:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "elsewhere" / name).read_bytes()


def test_nothing_is_pickled_and_no_path_of_this_machine_is_in_it(run: Path, tmp_path: Path) -> None:
    export_hub(run, tmp_path / "hub")
    weights = (tmp_path / "hub" / "model.safetensors").read_bytes()
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert set(header) == set(trained().state_dict())
    for path in (tmp_path / "hub").iterdir():
        assert b"/home/me" not in path.read_bytes()


def test_the_card_has_a_header_that_hubs_read(run: Path, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    export_hub(run, tmp_path / "hub")
    text = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    _, header, card = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "adaptive-margin",
        "license": "unknown",
        "tags": ["facial-expression-recognition", "valence-arousal", "safetensors"],
    }
    assert card.lstrip().startswith("# Valence and arousal of faces: `small`, trained on drawn faces")
    assert "14 people, 6 pictures of each" in card


def test_a_checkpoint_says_its_step(tmp_path: Path) -> None:
    net = trained()
    model = description(net, HOW) | {"dataset": "affectnet"}
    state = {"job": {"net": dict(net.state_dict()), "model": model}}
    path = Checkpoints(tmp_path / "run" / "checkpoints").save(7, state)
    export_hub(path, tmp_path / "hub")
    assert same(path, tmp_path / "hub")
    assert read_network(tmp_path / "hub").config()["dataset"] == "affectnet"
    assert "after step 7." in (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")


def test_predict_reads_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-hub", str(run / "model.pt"), str(tmp_path / "hub")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [f"wrote {tmp_path / 'hub' / name}" for name in NAMES]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(tmp_path / "face.png")
    tables = []
    for checkpoint in (run, tmp_path / "hub"):
        out = tmp_path / f"of-{checkpoint.name}"
        words = ["predict", str(tmp_path / "face.png"), "--crops", "--checkpoint", str(checkpoint)]
        assert main([*words, "--output", str(out)]) == 0
        tables.append((out / "predictions.csv").read_bytes())
    assert tables[0] == tables[1]


def test_files_of_others_are_kept(run: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        place = tmp_path / name.replace(".", "-")
        place.mkdir()
        (place / name).write_text('{"library_name": "transformers"}')
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=rf"without files of others that have these names, got .* with {name}"):
                export_hub(run, place, overwrite=overwrite)
        assert [path.read_text() for path in place.iterdir()] == ['{"library_name": "transformers"}']
    with pytest.raises(ValueError, match=r"folder must be one of its own, got .*run, which holds a run"):
        export_hub(run, run)
    clone = tmp_path / "clone"  # as a hub makes it
    clone.mkdir()
    (clone / "README.md").write_text("# Mine\n")
    (clone / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    with pytest.warns(UserWarning, match=r"README.md was changed, or not written by adaptive-margin: it is kept"):
        files = export_hub(run, clone)
    assert [path.name for path in files] == ["model.safetensors", "config.json"]
    assert (clone / "README.md").read_text() == "# Mine\n"
    assert same(run, clone)


def test_a_checkpoint_far_from_its_run(tmp_path: Path) -> None:
    """It knows its data set, and no other option; nothing is written before the card can be."""
    net = trained()
    model = {**description(net, HOW), "dataset": "faces"}
    path = Checkpoints(tmp_path / "far").save(3, {"job": {"net": net.state_dict(), "model": model}})
    export_hub(path, tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    assert "The file does not say how many" in card
    assert "after step 3" in card
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adaptive_margin.emotion.export_hub.model_card", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_hub(path, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_kept_card_is_written_as_its_warning_says(run: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "README.md").write_text("mine")
    with pytest.warns(UserWarning, match="move that file and give the same command again, an export with --overwrite"):
        export_hub(run, hub)
    (hub / "README.md").rename(tmp_path / "mine.md")
    export_hub(run, hub, overwrite=True)
    assert described(hub / "README.md") == "model.safetensors"


def test_an_earlier_export_is_replaced_when_asked(run: Path, tmp_path: Path) -> None:
    export_hub(run, tmp_path / "hub")
    net = trained()
    with torch.no_grad():
        net.regressor[-1].bias.add_(1)  # type: ignore[union-attr, operator]
    save_model(run / "model.pt", net, HOW, config=OPTIONS | {"people": 20})
    with pytest.raises(ValueError, match=r"without an earlier export, got .*; pass another folder, or --overwrite"):
        export_hub(run, tmp_path / "hub")
    export_hub(run, tmp_path / "hub", overwrite=True)
    assert same(run, tmp_path / "hub")
    readme = tmp_path / "hub" / "README.md"
    assert "20 people" in readme.read_text(encoding="utf-8")
    assert described(readme) == "model.safetensors"


def change(folder: Path, **changes: Any) -> None:
    write_json(folder / "config.json", read_json(folder / "config.json") | changes)


def rewrite(folder: Path, data: bytes) -> None:
    import hashlib

    (folder / "model.safetensors").write_bytes(data)
    change(folder, weights={"model.safetensors": hashlib.sha256(data).hexdigest()})


def without(folder: Path, name: str) -> None:
    from safetensors.torch import load_file, save

    state = load_file(folder / "model.safetensors")
    del state[name]
    rewrite(folder, save(state))


WEIGHTS, CONFIG = NAMES[:2]
BROKEN = {
    "truncated": (
        lambda folder: cut(folder / WEIGHTS),
        r"model.safetensors is damaged: its .* do not match the checksum in config.json; get the folder again",
    ),
    "empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), r"model.safetensors is damaged: its 0 bytes"),
    "a flipped bit": (lambda folder: flip(folder / WEIGHTS), r"model.safetensors is damaged"),
    "no description": (
        lambda folder: (folder / CONFIG).unlink(),
        r"hub has model.safetensors and no config.json; get the folder again",
    ),
    "a truncated description": (lambda folder: cut(folder / CONFIG), r"config.json is damaged"),
    "a changed description": (
        lambda folder: replace(folder / CONFIG, b'"size": 40', b'"size": 41'),
        r"config.json is damaged",
    ),
    "another library's": (
        lambda folder: (folder / CONFIG).write_text('{"model_type": "vit"}'),
        r"config.json does not describe a network of this library; pass a folder that adaptive-margin export-hub",
    ),
    "no digests": (lambda folder: change(folder, weights=None), r"does not describe a network of this library"),
    "a digest of another file": (lambda folder: change(folder, weights={}), r"model.safetensors is damaged"),
    "no safetensors": (
        lambda folder: rewrite(folder, b"PK\3\4 a pickle"),
        r"model.safetensors is no file of safetensors",
    ),
    "a missing tensor": (
        lambda folder: without(folder, "regressor.6.bias"),
        r"weights of this version's networks, got .*hub",
    ),
    "another encoder": (lambda folder: change(folder, encoder="alexnet"), r"weights of this version's networks"),
    "an unknown encoder": (
        lambda folder: change(folder, encoder="cat"),
        r"one that describes its network, got .*hub \(encoder",
    ),
    "a later format": (lambda folder: change(folder, format=2), r"a model file of format 1, got format 2 in .*hub"),
    "no preprocessing": (
        lambda folder: change(folder, preprocessing={}),
        r"describes its network, got .* \(no 'resize'\)",
    ),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace(path: Path, old: bytes, new: bytes) -> None:
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_damaged_or_foreign_is_rejected(run: Path, tmp_path: Path, how: str) -> None:
    export_hub(run, tmp_path / "hub")
    spoil, says = BROKEN[how]
    spoil(tmp_path / "hub")
    with pytest.raises(ValueError, match=says):
        load_network(tmp_path / "hub")
    with pytest.raises(ValueError, match=says):
        load_predictor(tmp_path / "hub", crops=True)


def test_an_empty_folder_is_no_network(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"checkpoint must be a run folder with model\.pt"):
        load_network(tmp_path)
    with pytest.raises(ValueError, match="which does not exist"):
        load_network(tmp_path / "model.safetensors")


def test_without_safetensors_it_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_hub(run, tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: export_hub(run, tmp_path / "new"), lambda: load_network(tmp_path / "hub")):
        with pytest.raises(ImportError, match=r"a folder for a hub needs safetensors: .*\[fer,hub\]"):
            call()
    assert not (tmp_path / "new").exists()
    load_network(run)  # needs none


def test_a_damaged_description_is_an_error_of_this_library(run: Path, tmp_path: Path) -> None:
    export_hub(run, tmp_path / "hub")
    cut(tmp_path / "hub" / "config.json")
    with pytest.raises(DamagedFileError, match=r"config.json is damaged: .*; get the folder again from where it came"):
        load_network(tmp_path / "hub")
