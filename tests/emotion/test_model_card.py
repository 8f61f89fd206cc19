"""What a card says is what the run's files have, and nothing about the machine or people's names."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

from adaptive_margin.emotion.config import DATASETS
from adaptive_margin.emotion.evaluation import read_result
from adaptive_margin.emotion.model_card import DATA, facts, facts_of, model_card, python_loading
from adaptive_margin.emotion.model_file import Preprocessing, load_network, network_of, read_network, save_model
from adaptive_margin.emotion.nets import emotion_net
from adaptive_margin.emotion.predict import load_predictor
from adaptive_margin.emotion.trainer import run
from adaptive_margin.training import RunFolder, World
from adaptive_margin.training.model_card import described

from .cases import tiny

HOW = Preprocessing(resize=32, size=28)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network that normalises by person."""
    folder = tmp_path_factory.mktemp("cards") / "somebody" / "run"
    options = {"critic": "none", "person_norm": True, "per_person": 2, "iterations": 4, "keep": "best"}
    run(tiny(output=str(folder), cache=str(folder.parent / "cache"), **options), world=World())
    return folder


def section(card: str, name: str) -> str:
    return card.split(f"## {name}\n")[1].split("\n## ")[0]


def card_of(checkpoint: Path) -> str:
    source = read_network(checkpoint)
    return model_card(*network_of(source), facts_of(source), python_loading("model.pt"))


def test_a_run_has_cards_with_its_own_figures(finished: Path) -> None:
    card = (finished / "MODEL_CARD.md").read_text(encoding="utf-8")
    test = read_result(finished)["test"]
    for name in ("rmse", "sagr", "pcc", "ccc"):
        row = next(line for line in section(card, "Figures").splitlines() if line.startswith(f"| {name.upper()} |"))
        found = [float(cell.split()[0].replace("−", "-")) for cell in row.split("|")[2:5]]
        assert found == [pytest.approx(value, abs=6e-4) for value in test["figures"][name].values()]
        low, high = test["intervals"][name]["mean"]
        assert f"[{low:.3f}, {high:.3f}]".replace("-0.000", "0.000").replace("-", "−") in row
    assert "12 pictures of 2 people" in card
    assert "normalised by all test pictures of each person" in card
    assert "| training | 60 |" in section(card, "Split")
    assert "No person is in two parts." in card
    assert "**Not valid for photographs**" in section(card, "Limits")
    assert "this project's own program" in section(card, "Licence of the data")
    assert f"{sum(p.numel() for p in load_network(finished)[0].parameters()):,} parameters" in card
    assert "somebody" not in card  # no paths
    assert described(finished / "MODEL_CARD.md") == "model.pt"

    beside = (finished / "checkpoints" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "**Training is finished.** `../model.pt` is the best of these" in beside
    assert section(beside, "Figures") == section(card, "Figures")


def test_what_files_say_is_what_the_run_said(finished: Path) -> None:
    card = (finished / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card.startswith(card_of(finished).rstrip())
    assert card.startswith(card_of(finished / "model.pt").rstrip())
    for path in (finished / "checkpoints").glob("*.pt"):
        other, step = card_of(path), int(path.name.split("-")[1])
        assert f"These are the weights after step {step}." in other
        assert "No test figures belong to these weights." in other  # they are those of another step
        assert section(other, "Split") == section(card, "Split")
        assert "Faces drawn by adaptive-margin" in other


def test_how_to_load_it_works(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (finished / "MODEL_CARD.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", section(card, "Loading it"), re.DOTALL)
    assert code
    monkeypatch.chdir(finished)
    scope: dict[str, object] = {"picture": torch.zeros(40, 40, 3, dtype=torch.uint8).numpy()}
    exec(code[1].replace('"model.pt")', '"model.pt", crops=True)'), scope)
    assert len(scope["faces"]) == 1  # type: ignore[arg-type]
    assert load_predictor(finished, crops=True).warning


def test_a_card_from_the_first_step_on(tmp_path: Path) -> None:
    """A run that was killed left checkpoints, which have a card."""
    from adaptive_margin.emotion import trainer

    class Killed(RuntimeError):
        pass

    class Broken(trainer.EmotionJob):
        def step(self, step: int):  # type: ignore[no-untyped-def]
            if step == 3:
                raise Killed
            return super().step(step)

    config = tiny(output=str(tmp_path / "run"), critic="none", iterations=4)
    place = tmp_path / "run" / "checkpoints" / "MODEL_CARD.md"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "EmotionJob", Broken)
        with pytest.raises(Killed):
            run(config, world=World())
    card = place.read_text(encoding="utf-8")
    assert "**Training is under way.**" in card
    assert "No test figures belong to these weights." in card
    assert "| test | 12 |" in card
    assert not (tmp_path / "run" / "MODEL_CARD.md").exists()

    run(config, world=World())
    assert "**Training is finished.**" in place.read_text(encoding="utf-8")
    (tmp_path / "run" / "MODEL_CARD.md").write_text("mine")
    with pytest.warns(UserWarning, match="MODEL_CARD.md was changed, or not written by adaptive-margin: it is kept"):
        run(config, world=World())
    assert (tmp_path / "run" / "MODEL_CARD.md").read_text() == "mine"


def test_a_longer_run_keeps_the_card_of_the_shorter(tmp_path: Path) -> None:
    config = tiny(output=str(tmp_path / "run"), critic="none", iterations=2)
    run(config, world=World())
    before = (tmp_path / "run" / "MODEL_CARD.md").read_bytes()
    run(tiny(output=str(tmp_path / "run"), critic="none", iterations=4), world=World())
    assert (tmp_path / "run" / "MODEL_CARD.md.before").read_bytes() == before
    assert "| `iterations` | 4 |" in (tmp_path / "run" / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("dataset", [*DATASETS, None])
def test_every_data_set_has_its_licence(dataset: str | None) -> None:
    assert set(DATA) == set(DATASETS)
    options = {"dataset": dataset, "root": "/home/me/data", "cache": "/home/me/cache", "output": "/home/me/run"}
    options |= {"same_actor": [["jane do", "jane doe"]], "annotations": "/home/me/6th", "device": "cuda:3"}
    options |= {"pretrained": "/home/me/weights.pt", "term": "/home/me/own_arm.py:Alike"}
    if dataset == "faces":
        options |= {"people": 14, "images_per_person": 6}
    known = facts(options, {}, independent="picture" if dataset == "affectnet" else "nothing")
    card = model_card(emotion_net("small"), HOW, known, python_loading("model.pt"))
    assert not re.search("/home|jane|cuda", card)
    assert all(each in section(card, "Training") for each in ("| weights.pt |", "| own_arm.py:Alike |"))
    assert "licences of their own" in section(card, "Licence of the data")
    licence = section(card, "Licence of the data")
    if dataset is None:
        assert "Unknown" in licence
    elif dataset != "faces":
        assert "what you signed decides" in licence
        assert "photographs**" not in card
    assert ("research only" in licence) == (dataset in ("affectnet", "affectnet-reduced", "afew-va"))
    assert ("No picture is in two parts" in card) == (dataset == "affectnet")
    assert ("better than they would be on others" in card) == (dataset != "affectnet")


def test_a_file_without_a_history_says_so(tmp_path: Path) -> None:
    save_model(tmp_path / "mine.pt", emotion_net("small"), HOW)
    card = card_of(tmp_path / "mine.pt")
    for name, says in (
        ("Data", "does not say what"),
        ("Split", "Not known"),
        ("Figures", "No test figures belong"),
        ("Licence of the data", "Unknown"),
    ):
        assert says in section(card, name)


def test_a_damaged_result_is_left_out_and_said(finished: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {"dataset": "faces", "people": 3, "images_per_person": 2}, world=World()):
        save_model(tmp_path / "run" / "model.pt", emotion_net("small"), HOW)
        (tmp_path / "run" / "result.json").write_text((finished / "result.json").read_text().replace("0", "1"))
        (tmp_path / "run" / "rows.json").write_text("{")
    with pytest.warns(UserWarning, match="is damaged: .* the model card is written without it") as said:
        card = card_of(tmp_path / "run")
    assert len(said) == 2
    assert "No test figures belong" in card
    assert "3 people, 2 pictures of each" in card


def test_undefined_figures_are_dashes() -> None:
    test = {"rows": 1, "identity": "picture", "identities": 0, "interval_by": "sample", "intervals": {}}
    test["figures"] = {"ccc": {"valence": None, "arousal": 0.25, "mean": None}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        card = model_card(emotion_net("small"), HOW, facts({}, {}, result={"test": test}), python_loading("x"))
    assert "| CCC | – | 0.250 | – |" in card
    assert "1 pictures with" not in card
