"""Every data set from its files to the trainer: exports with the real defects planted, divided without a leak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adaptive_margin.datasets import LayoutError
from adaptive_margin.datasets import export as exports
from adaptive_margin.emotion.config import EmotionConfig
from adaptive_margin.emotion.data import load_data
from adaptive_margin.emotion.trainer import run
from adaptive_margin.training.world import World

from ..datasets.faces import samples
from .cases import tiny


def _config(tmp_path: Path, dataset: str, **options: object) -> EmotionConfig:
    places = {"root": str(tmp_path / "root"), "cache": str(tmp_path / "cache"), "output": str(tmp_path / "run")}
    return tiny(dataset=dataset, skip_unreadable=0.5, iterations=2, **places, **options)


def test_drawn_people_are_in_one_part_only() -> None:
    data = load_data(tiny())
    people = [set(part.people.tolist()) for part in (data.train, data.val, data.test)]
    assert sum(map(len, people)) == len(set().union(*people)) == 14
    assert data.independent == "person"
    assert data.train.picture(3).shape == (32, 32, 3)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["affectnet", "affectnet-reduced", "afew-va", "aff-wild", "aff-wild2"])
def test_a_data_set_is_trained_on_from_its_files(dataset: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    if dataset.startswith("affectnet"):
        faces = samples(120) + samples(20, split="validation", start=120)
        write = exports.export_affectnet_2017 if dataset == "affectnet" else exports.export_affectnet_reduced
    elif dataset == "aff-wild2":
        faces = samples(120, videos=12, people=12) + samples(20, videos=2, people=2, split="validation", start=120)
        write = exports.export_aff_wild2
    else:
        faces = samples(120, videos=20, people=20)
        write = exports.export_afew_va if dataset == "afew-va" else exports.export_aff_wild
    write(root, faces, defects=True)
    config = _config(tmp_path, dataset)
    data = load_data(config)
    parts = (data.train, data.val, data.test)
    assert all(len(part) for part in parts)
    assert all(part.labels.shape == (len(part), 2) for part in parts)
    assert data.reports
    if dataset in ("afew-va", "aff-wild", "aff-wild2"):
        videos = [set(part.videos) for part in parts]
        assert sum(map(len, videos)) == len(set().union(*videos))
    if dataset == "afew-va":
        assert data.independent == "actor"
        people = [set(part.people.tolist()) for part in parts]
        assert sum(map(len, people)) == len(set().union(*people))
    result = run(config, data=data, world=World())
    assert np.isfinite(result.result["test"]["figures"]["rmse"]["mean"])
    assert {path.name for path in (result.folder / "splits").iterdir()} == set(data.splits)
    assert (result.folder / "data-0.txt").read_text().strip() == data.reports[0].strip()


def test_a_wrong_root_is_answered_with_the_layout_expected(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(LayoutError, match="Expected:"):
        load_data(_config(tmp_path, "afew-va"))
