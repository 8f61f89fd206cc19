"""Evaluation of a network over a data set: against its parts, over shards, and what a run folder gets."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adaptive_margin.affect.batches import CachedBatches
from adaptive_margin.emotion.evaluation import evaluate, read_predictions, read_result, small_picture, write_evaluation
from adaptive_margin.metrics import AffectMetrics, identity_leakage
from adaptive_margin.training.world import World


def read_both(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return read_result(folder), read_predictions(folder)


class TinyNet(nn.Module):
    """Stands in for an encoder with its regressor."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.regressor = nn.Linear(16, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.regressor(self.encoder(images))


N = 30


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (N, 24, 24, 3), dtype=np.uint8)
    return images, generator.uniform(-0.8, 0.8, (N, 2)).astype(np.float32), np.arange(N) % 5


def batches(**options: Any) -> CachedBatches:
    images, labels, _ = data()
    return CachedBatches(images, labels, batch_size=8, train=False, size=24, prefetch=0, **options)


def test_figures_are_those_of_all_rows() -> None:
    net, (_, labels, people) = TinyNet(), data()
    found = evaluate(net, batches(), people=people, resamples=20)
    with torch.no_grad():
        whole = torch.cat([b.images for b in batches()])
        expected = net.eval()(whole).numpy()
        features = net.encoder(whole)
    metrics = AffectMetrics()
    metrics.update(labels, expected)
    assert found.row.tolist() == list(range(N))
    np.testing.assert_allclose(found.prediction, expected, atol=1e-6)
    np.testing.assert_array_equal(found.truth, labels)
    for name, by_label in metrics.compute().items():
        assert found.figures[name] == pytest.approx(by_label, abs=1e-6)
    np.testing.assert_allclose(found.features, features.numpy(), atol=2e-3)
    assert found.leakage == identity_leakage(torch.from_numpy(found.features).float(), people, resamples=20)
    assert found.interval_by == "person"
    for name in ("rmse", "sagr", "pcc", "ccc"):
        for label in ("valence", "arousal", "mean"):
            low, high = found.intervals[name][label]
            assert low <= found.figures[name][label] <= high


def test_any_batches_and_any_order_give_the_same() -> None:
    net, (_, _, people) = TinyNet(), data()
    one = evaluate(net, batches(), people=people, resamples=5)
    single = [
        (b.images[i : i + 1], b.labels[i : i + 1], b.rows[i : i + 1]) for b in batches() for i in range(len(b.rows))
    ]
    other = evaluate(net, [*single[::-1], single[3]], people=people, resamples=5)  # one row twice
    assert other.row.tolist() == one.row.tolist()
    np.testing.assert_allclose(other.prediction, one.prediction, atol=1e-6)
    assert other.figures["ccc"] == pytest.approx(one.figures["ccc"])


class TwoWorlds(World):
    """Two processes as two threads that meet in ``gather_object``."""

    meeting: threading.Barrier
    box: list[Any]

    def gather_object(self, thing: Any) -> list[Any]:
        self.box[self.rank] = thing
        self.meeting.wait(timeout=30)
        return list(self.box)


@pytest.mark.parametrize("empty", [False, True])
def test_shards_of_a_world(empty: bool) -> None:
    """Every process gets the whole set's figures, also one that has no rows."""
    _, _, people = data()
    torch.manual_seed(1)
    nets = [TinyNet(), TinyNet()]
    nets[1].load_state_dict(nets[0].state_dict())
    alone = evaluate(nets[0], batches(), people=people, resamples=5)
    meeting, box, found = threading.Barrier(2), [None, None], [None, None]

    def process(rank: int) -> None:
        world = TwoWorlds(rank=rank, size=2)
        object.__setattr__(world, "meeting", meeting)
        object.__setattr__(world, "box", box)
        share = [batches(), []][rank] if empty else batches(rank=rank, world_size=2)
        found[rank] = evaluate(nets[rank], share, people=people, world=world, resamples=5)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for one in found:
        assert one is not None
        assert one.row.tolist() == alone.row.tolist()
        np.testing.assert_allclose(one.prediction, alone.prediction, atol=1e-6)
        assert one.figures["rmse"] == pytest.approx(alone.figures["rmse"])
        assert one.leakage.recall_at_1 == alone.leakage.recall_at_1


def test_the_network_is_left_as_it_was() -> None:
    net = TinyNet().train()
    net.encoder[1].eval()  # a frozen batch norm in a network that is trained
    before = {name: value.clone() for name, value in net.state_dict().items()}
    evaluate(net, batches(), resamples=2)
    assert [m.training for m in net.modules()] == [True, True, True, False, True, True, True]
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_intervals_by_video_and_by_sample() -> None:
    net = TinyNet()
    assert evaluate(net, batches(), resamples=2).interval_by == "sample"
    found = evaluate(net, batches(), videos=[f"v{i // 10}" for i in range(N)], frames=np.arange(N) % 10, resamples=2)
    assert found.interval_by == "video"
    assert found.leakage is None
    of_videos = evaluate(net, batches(), people=data()[2], identity="source video", resamples=2)
    assert (
        of_videos.interval_by == of_videos.to_dict()["interval_by"] == of_videos.to_dict()["identity"] == "source video"
    )


def test_frames_of_a_video_are_excluded_from_leakage() -> None:
    _, _, people = data()
    videos = [f"v{i % 10}" for i in range(N)]  # two videos a person
    found = evaluate(TinyNet(), batches(), people=people, videos=videos, resamples=5)
    expected = identity_leakage(torch.from_numpy(found.features).float(), people, exclude=videos, resamples=5)
    assert found.leakage == expected


def test_features_of_some_rows_are_kept() -> None:
    _, _, people = data()
    for given in (people, None):
        found = evaluate(TinyNet(), batches(), people=given, keep_features=7, resamples=2)
        every = evaluate(TinyNet(), batches(), people=given, resamples=2)
        assert found.features.shape == (7, 16)
        assert every.features.shape == (N, 16)
        assert len(set(found.feature_index.tolist())) == 7
        assert len(found.prediction) == N


def test_a_run_folder(tmp_path: Path) -> None:
    images, _, people = data()
    net = TinyNet()
    videos = ["short"] * 10 + ["long"] * 20
    frames = np.arange(N)[::-1].copy()
    test = evaluate(net, batches(), people=people, videos=videos, frames=frames, resamples=5)
    written = write_evaluation(
        tmp_path / "run",
        test,
        seen=test,
        pictures=lambda row: images[row],
        extra={"arm": "caf", "seed": 3, "nothing": float("nan")},
    )
    result, arrays = read_both(tmp_path / "run")
    assert result["arm"] == written["arm"] == "caf"
    assert result["nothing"] is None
    assert result["test"]["figures"]["ccc"] == test.figures["ccc"]
    assert result["leakage"]["unseen"]["recall_at_1"] == test.leakage.recall_at_1
    assert (result["test"]["identity"], result["test"]["identities"]) == ("person", 5)
    np.testing.assert_array_equal(arrays["prediction"], test.prediction)
    error = test.error
    assert arrays["best"].tolist() == np.argsort(error, kind="stable")[:12].tolist()
    assert error[arrays["worst"][0]] == error.max()
    np.testing.assert_array_equal(arrays["worst_images"][0], small_picture(images[test.row[arrays["worst"][0]]]))
    assert str(arrays["video_name"]) == "long"
    assert arrays["video_frame"].tolist() == list(range(20))  # in the order of frames, not of rows
    np.testing.assert_array_equal(arrays["video_truth"], test.truth[10:][::-1])
    assert arrays["video_images"].shape == (8, 96, 96, 3)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["evaluation.npz", "result.json"]


def test_a_video_of_its_own(tmp_path: Path) -> None:
    images, _, people = data()
    test = evaluate(TinyNet(), batches(), people=people, resamples=2)
    write_evaluation(tmp_path, test, video=test, video_pictures=lambda row: images[row])
    _, arrays = read_both(tmp_path)
    assert arrays["video_frame"].tolist() == list(range(N))
    assert "best_images" not in arrays


def test_errors(tmp_path: Path) -> None:
    net = TinyNet()
    with pytest.raises(ValueError, match="batches must be of one row or more"):
        evaluate(net, [])
    with pytest.raises(ValueError, match="people must be one for every row of the data set, up to row 29"):
        evaluate(net, batches(), people=[0, 1], resamples=2)
    with torch.no_grad():
        net.regressor.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="predictions must be finite, got 30 of 30 rows"):
        evaluate(net, batches(), resamples=2)
    with pytest.raises(ValueError, match="extra must be without"):
        write_evaluation(tmp_path, evaluate(TinyNet(), batches(), resamples=2), extra={"test": 1})
    assert read_both(tmp_path) == ({}, {})
    (tmp_path / "result.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match=r"result.json must be of format 1, got 99"):
        read_both(tmp_path)
    (tmp_path / "result.json").unlink()
    (tmp_path / "evaluation.npz").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(ValueError, match=r"evaluation.npz is damaged: .*; evaluate the run again"):
        read_both(tmp_path)
