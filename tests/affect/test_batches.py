from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader

from adaptive_margin.affect import CachedBatches, FaceImages
from adaptive_margin.images.cache import ImageCache
from adaptive_margin.images.errors import ImageError
from adaptive_margin.images.transforms import Crops, centre, crop_flip, normalise

from ..images.test_cache import pictures

N, SIDE, SIZE = 23, 40, 32
IMAGES = np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
LABELS = np.random.default_rng(1).uniform(-1, 1, (N, 2)).astype(np.float32)


def batches(**options) -> CachedBatches:
    defaults = {"batch_size": 5, "train": True, "size": SIZE, "seed": 3}
    return CachedBatches(IMAGES, LABELS, **{**defaults, **options})


def collect(source):
    images, labels, rows = zip(*source, strict=True)
    return torch.cat(images), torch.cat(labels), torch.cat(rows)


def test_an_epoch_visits_every_row_once_with_its_own_label():
    loader = batches()
    assert len(loader) == 5
    images, labels, rows = collect(loader.epoch(0))
    assert sorted(rows.tolist()) == list(range(N))
    assert rows.tolist() != list(range(N))
    assert torch.equal(labels, torch.from_numpy(LABELS)[rows])
    assert images.shape == (N, 3, SIZE, SIZE)
    assert images.dtype == torch.float32


def test_evaluation_is_in_order_and_takes_the_centre():
    images, labels, rows = collect(batches(train=False).epoch(0))
    assert rows.tolist() == list(range(N))
    assert torch.equal(labels, torch.from_numpy(LABELS))
    assert torch.equal(images, centre(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), SIZE))


def test_seed_and_epoch_decide_everything():
    one = collect(batches().epoch(4))
    for same in (batches(), batches(prefetch=0), batches(prefetch=7)):
        assert all(torch.equal(a, b) for a, b in zip(one, collect(same.epoch(4)), strict=True))
    assert not torch.equal(one[2], collect(batches().epoch(5))[2])
    assert not torch.equal(one[2], collect(batches(seed=4).epoch(4))[2])


def test_every_batch_of_every_epoch_is_cropped_anew():
    """One picture everywhere: what differs between batches is the crops alone."""
    seen = []
    for seed in (0, 1, 2):
        loader = CachedBatches(
            IMAGES, np.zeros((16, 2)), slots=[4] * 16, batch_size=8, train=True, size=SIZE, seed=seed
        )
        seen += [batch.images for epoch in range(3) for batch in loader.epoch(epoch)]
    assert len(seen) == 18
    for place, one in enumerate(seen):
        assert not any(torch.equal(one, other) for other in seen[:place])


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_an_epoch_goes_on_where_it_stopped(start):
    whole = list(batches().epoch(2))
    rest = list(batches().epoch(2, start=start))
    assert len(rest) == 5 - start
    for a, b in zip(whole[start:], rest, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_the_very_batch_of_one(world):
    whole = list(batches().epoch(1))
    ranks = [list(batches(rank=rank, world_size=world).epoch(1)) for rank in range(world)]
    for number, batch in enumerate(whole):
        shares = [rank[number] for rank in ranks]
        for field in range(3):
            assert torch.equal(torch.cat([share[field] for share in shares]), batch[field])
        sizes = [len(share.rows) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_cropping_while_reading_is_cropping_on_the_device(monkeypatch):
    here, other = collect(batches().epoch(0)), batches()
    monkeypatch.setattr(other.pixels, "crops_while_reading", False)
    there = collect(other.epoch(0))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_each_image_is_a_crop_of_itself():
    images, _, rows = collect(batches().epoch(0))
    seen = set()
    for image, row in zip(images, rows.tolist(), strict=True):
        source = torch.from_numpy(IMAGES[row]).permute(2, 0, 1)[None]
        places = [
            (top, left, flip)
            for top in range(SIDE - SIZE + 1)
            for left in range(SIDE - SIZE + 1)
            for flip in (False, True)
            if torch.equal(
                normalise(
                    crop_flip(source, Crops(torch.tensor([top]), torch.tensor([left]), torch.tensor([flip])), SIZE)
                )[0],
                image,
            )
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > N // 2


def test_slots_and_the_last_batch():
    loader = CachedBatches(IMAGES, LABELS[:3], slots=[9, 2, 9], batch_size=2, train=False, size=SIZE)
    images, _, rows = collect(loader.epoch(0))
    assert torch.equal(images[0], images[2])
    assert rows.tolist() == [0, 1, 2]
    assert [len(batch.rows) for batch in batches(drop_last=True).epoch(0)] == [5, 5, 5, 5]
    assert len(batches(drop_last=True)) == 4


def test_a_cache_with_holes(tmp_path):
    records = pictures(tmp_path / "data", 12, damaged=(4,), missing=(7,))
    cache = ImageCache.open(records, tmp_path / "cache", size=SIDE, skip_unreadable=2)
    loader = CachedBatches.of(cache, [3, 4, 6], batch_size=2, train=False, size=SIZE)
    images, labels, rows = collect(loader.epoch(0))
    assert [record.key for record in cache.records.subset([3, 4, 6])] == ["row3", "row5", "row8"]
    assert torch.equal(labels, torch.from_numpy(cache.records.labels[[3, 4, 6]]))
    assert torch.equal(images, centre(torch.from_numpy(cache.take([3, 4, 6])).permute(0, 3, 1, 2), SIZE))
    assert rows.tolist() == [0, 1, 2]
    assert len(collect(CachedBatches.of(cache, batch_size=4, train=True, size=SIZE).epoch(0))[2]) == 10


def test_an_error_of_the_reader_reaches_the_caller(monkeypatch):
    loader = batches()
    read = loader._read

    def fail(order, epoch, number):
        if number == 2:
            raise OSError("the disk went away")
        return read(order, epoch, number)

    monkeypatch.setattr(loader, "_read", fail)
    source = loader.epoch(0)
    next(source)
    next(source)
    with pytest.raises(OSError, match="the disk went away"):
        next(source)
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


def test_the_reader_ends_with_its_caller():
    source = batches(batch_size=1).epoch(0)
    next(source)
    assert any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
    source.close()
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


def test_waiting_is_measured():
    loader = batches(prefetch=0)
    assert loader.wait_seconds == 0
    list(loader.epoch(0))
    assert loader.wait_seconds > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"world_size": 0}, "world_size must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank must be from 0 to 1"),
        ({"prefetch": -1}, "prefetch must be at least 0"),
        ({"size": 41}, "size must be from 1 to resize"),
        ({"slots": [0, 23]}, "slots must be positions from 0 to 22"),
        ({"slots": []}, "at least one"),
        ({"slots": [1, 2]}, r"labels must be of shape \(2, 2\)"),
        ({"batch_size": 24, "drop_last": True}, "batch_size must be at most 23"),
    ],
)
def test_options_out_of_range(options, says):
    with pytest.raises(ValueError, match=says):
        batches(**options)


def test_other_arguments():
    with pytest.raises(TypeError, match="images must be uint8"):
        CachedBatches(IMAGES.astype(np.float32), LABELS, batch_size=2, train=True)
    with pytest.raises(ValueError, match=r"images must be of shape \(slots, H, H, C\)"):
        CachedBatches(IMAGES[:, :30], LABELS, batch_size=2, train=True)
    for arguments in ((-1, 0), (0, 6), (0, -1)):
        with pytest.raises(ValueError, match="epoch and start must be"):
            next(batches().epoch(*arguments))


def test_the_image_path_does_not_depend_on_its_workers(tmp_path):
    data = FaceImages(pictures(tmp_path, 9), train=True, resize=SIDE, size=SIZE, seed=5)
    alone = [data[row][0] for row in range(9)]
    assert data[4][0].shape == (3, SIZE, SIZE)
    assert data[4][2] == 4
    assert_close(data[4][1], torch.tensor([0.004, -0.004]))
    loader = DataLoader(data, batch_size=3, num_workers=2, persistent_workers=True, multiprocessing_context="fork")
    images = torch.cat([batch[0] for batch in loader])
    assert torch.equal(images, torch.stack(alone))
    data.set_epoch(1)  # workers that persist see it
    later = torch.cat([batch[0] for batch in loader])
    assert torch.equal(later, torch.stack([data[row][0] for row in range(9)]))
    assert not torch.equal(later, images)


def test_the_image_path_names_what_it_cannot_read(tmp_path):
    data = FaceImages(pictures(tmp_path, 3, damaged=(1,)), train=False)
    assert data[0][0].shape == (3, 224, 224)
    with pytest.raises(ImageError, match=r"1\.png: undecodable"):
        data[1]


def test_cached_and_decoded_evaluation_agree(tmp_path):
    records = pictures(tmp_path / "data", 4)
    decoded = FaceImages(records, train=False, resize=SIDE, size=SIZE)
    cache = ImageCache.open(records, tmp_path / "cache", size=SIDE)
    cached, _, _ = collect(CachedBatches.of(cache, batch_size=3, train=False, size=SIZE).epoch(0))
    assert torch.equal(cached, torch.stack([decoded[row][0] for row in range(4)]))


@pytest.mark.cuda
def test_a_gpu_gets_the_same_batches():
    here = collect(batches().epoch(0))
    there = collect(batches(device="cuda").epoch(0))
    assert there[0].is_cuda
    assert there[1].is_cuda
    assert_close(there[0].cpu(), here[0], rtol=0, atol=1e-6)
    assert torch.equal(there[2], here[2])


def test_pictures_of_a_person_stand_together():
    people = np.array([0] * 9 + [1] * 6 + [2] * 8)
    loader = batches(people=people, per_person=3, batch_size=6)
    order = loader.order(4)
    assert sorted(order.tolist()) == list(range(N))
    hands = people[order][:21].reshape(-1, 3)
    assert (hands == hands[:, :1]).all()
    assert sorted(hands[:, 0].tolist()) == [0, 0, 0, 1, 1, 2, 2]
    assert people[order][21:].tolist() == [2, 2]  # a hand that is not full
    assert order.tolist() != batches(people=people, per_person=3, batch_size=6).order(5).tolist()
    assert order.tolist() == batches(people=people, per_person=3, batch_size=6).order(4).tolist()
    _, labels, rows = collect(loader.epoch(4))
    assert rows.tolist() == order.tolist()
    assert torch.equal(labels, torch.from_numpy(LABELS)[rows])


def test_evaluation_keeps_its_order_whoever_is_in_it():
    loader = batches(train=False, people=np.arange(N) % 3, per_person=5)
    assert loader.order(0).tolist() == list(range(N))
