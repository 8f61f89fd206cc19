"""Data sets, labels, splits and videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adaptive_margin.faces import (
    FacesDataset,
    draw_video,
    face_shape,
    sample_identities,
    sample_labels,
    split_people,
    trajectory,
    vary,
)
from adaptive_margin.faces.identity import AVERAGE, AVERAGE_GAIN

from .reference import pressed_radius


def test_arrays_and_items_agree() -> None:
    drawn, lazy = (FacesDataset(4, 3, size=32, seed=1) for _ in range(2))
    assert drawn.images.shape == (12, 32, 32, 3)
    assert drawn.av.dtype == np.float32
    assert drawn.person.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for k in (0, 5, -1):
        image, av, person = lazy[k]  # drawn one by one
        np.testing.assert_array_equal(image, drawn.images[k])
        np.testing.assert_array_equal(image, drawn[k][0])
        np.testing.assert_array_equal(av, drawn.av[k])
        assert person == drawn.person[k]
    assert "images" not in lazy.__dict__


def test_no_person_is_in_two_splits() -> None:
    sets = {split: FacesDataset(20, 2, size=32, split=split) for split in ("train", "val", "test")}
    people = [set(data.person.tolist()) for data in sets.values()]
    assert set.union(*people) == set(range(20))
    assert sum(len(p) for p in people) == 20
    assert [len(p) for p in people] == [14, 3, 3]


def test_a_split_is_a_part_of_the_whole() -> None:
    whole, part = FacesDataset(8, 3, size=32, seed=2), FacesDataset(8, 3, size=32, seed=2, split="val")
    rows = np.isin(whole.person, part.people)
    np.testing.assert_array_equal(part.images, whole.images[rows])
    np.testing.assert_array_equal(part.av, whole.av[rows])
    np.testing.assert_array_equal(part.landmarks, whole.landmarks[rows])
    np.testing.assert_array_equal(part.boxes, whole.boxes[rows])


def test_more_pictures_begin_with_the_same_ones() -> None:
    few, many = FacesDataset(3, 2, size=32), FacesDataset(5, 6, size=32)
    rows = [0, 1, 6, 7, 12, 13]
    np.testing.assert_array_equal(few.av, many.av[rows])
    np.testing.assert_array_equal(few.images, many.images[rows])


def test_seeds_give_other_data() -> None:
    one, other = FacesDataset(3, 2, size=32, seed=0), FacesDataset(3, 2, size=32, seed=1)
    assert not np.array_equal(one.av, other.av)
    assert not np.array_equal(one.images, other.images)


def test_a_data_loader_takes_it() -> None:
    loader = torch.utils.data.DataLoader(FacesDataset(3, 4, size=32), batch_size=5)
    images, av, person = next(iter(loader))
    assert images.shape == (5, 32, 32, 3)
    assert images.dtype == torch.uint8
    assert av.dtype == torch.float32
    assert person.tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("n_people", [3, 7, 10, 97])
@pytest.mark.parametrize("fractions", [(0.7, 0.15, 0.15), (0.5, 0.0, 0.5), (1.0, 0.0, 0.0)])
def test_splits_have_the_sizes_they_should(n_people: int, fractions: tuple[float, float, float]) -> None:
    splits = split_people(n_people, 3, fractions)
    everyone = np.concatenate(list(splits.values()))
    np.testing.assert_array_equal(np.sort(everyone), np.arange(n_people))
    for share, people in zip(fractions, splits.values(), strict=True):
        assert (len(people) > 0) == (share > 0)
        assert abs(len(people) - share * n_people) <= 1.5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"split": "dev"}, ValueError, "split must be one of 'train', 'val', 'test', 'all', got 'dev'"),
        ({"fractions": (0.7, 0.7, 0.1), "split": "val"}, ValueError, "fractions must be three non-negative"),
        ({"n_people": 2, "split": "val"}, ValueError, "n_people must be at least 3, one for each split, got 2"),
        ({"n_images_per_person": 0}, ValueError, "n_images_per_person must be at least 1, got 0"),
        ({"size": 500}, ValueError, "size must be between 32 and 256, got 500"),
        ({"seed": -1}, ValueError, "seed must be in"),
    ],
)
def test_errors(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FacesDataset(**({"n_people": 10} | change))  # type: ignore[arg-type]


def test_an_index_too_large() -> None:
    with pytest.raises(IndexError, match="index must be between -2 and 1, got 2; stop before len"):
        FacesDataset(1, 2, size=32)[2]


# -- labels -----------------------------------------------------------------------------------------------------------


def test_labels_are_inside_the_disc_and_lean_to_neutral_and_positive() -> None:
    labels = np.concatenate([sample_labels(0, person, 100) for person in range(200)])
    radius = np.hypot(*labels.T)
    assert radius.max() < 1
    np.testing.assert_allclose(labels.mean(axis=0), (0.09, 0.12), atol=0.02)  # docs/faces.md has these figures
    np.testing.assert_allclose(labels.std(axis=0), (0.45, 0.36), atol=0.02)
    assert (radius < 0.2).mean() == pytest.approx(0.23, abs=0.02)
    assert (labels[:, 0] > 0.1).mean() > (labels[:, 0] < -0.1).mean()
    assert (labels[:, 1] < -0.3).mean() < 0.2


def test_every_person_has_a_distribution_of_their_own() -> None:
    means = np.array([sample_labels(0, person, 400).mean(axis=0) for person in range(60)])
    assert (means.std(axis=0) > 3 * 0.45 / np.sqrt(400)).all()


def test_labels_do_not_depend_on_how_many_are_drawn() -> None:
    np.testing.assert_array_equal(sample_labels(1, 2, 5), sample_labels(1, 2, 50)[:5])
    assert not np.array_equal(sample_labels(1, 2, 5), sample_labels(1, 3, 5))


def test_radii_are_pressed_in() -> None:
    assert pressed_radius(0.5) == 0.5
    assert pressed_radius(0.8) == pytest.approx(0.8)
    assert 0.8 < pressed_radius(0.9) < 0.9
    assert pressed_radius(1e9) < 0.99 + 1e-9


# -- videos -----------------------------------------------------------------------------------------------------------


def test_a_video_is_smooth_and_one_person() -> None:
    video = draw_video(sample_identities(1, 0), 60, size=48, seed=3)
    assert len(video) == 60
    assert video.images.shape == (60, 48, 48, 3)
    assert video.landmarks.shape == (60, 68, 2)
    assert video.boxes.shape == (60, 4)
    assert abs(np.diff(video.av, axis=0)).max() < 0.2
    assert abs(np.diff(video.landmarks, axis=0)).max() < 3
    assert np.hypot(*video.av.T).max() < 1


def test_a_feeling_changes_in_a_video() -> None:
    av = trajectory(0, 1, 600)
    assert av.std(axis=0).min() > 0.1
    assert abs(np.diff(av, axis=0)).max() < 0.2
    assert (np.diff(av, axis=0) == 0).all(axis=1).mean() > 0.1  # some feelings are held


def test_a_longer_video_begins_with_the_shorter_one() -> None:
    person = sample_identities(1, 4)
    short, long = (draw_video(person, n, size=32, seed=5, person=2) for n in (10, 45))
    np.testing.assert_array_equal(short.images, long.images[:10])
    np.testing.assert_array_equal(short.av, long.av[:10])


def test_videos_differ_by_seed_and_person() -> None:
    person = sample_identities(1, 4)
    videos = [draw_video(person, 5, size=32, seed=s, person=p).images for s, p in ((0, 0), (1, 0), (0, 1))]
    assert not np.array_equal(videos[0], videos[1])
    assert not np.array_equal(videos[0], videos[2])


def test_an_undisturbed_video_holds_still() -> None:
    video = draw_video(sample_identities(1, 4), 40, size=48, disturb=False)
    held = np.flatnonzero((np.diff(video.av, axis=0) == 0).all(axis=1))
    assert len(held) > 0
    for k in held:
        np.testing.assert_array_equal(video.images[k], video.images[k + 1])


@pytest.mark.parametrize(
    ("identity", "frames", "error", "message"),
    [
        (2, 5, ValueError, "identity must be one person, got 2 rows; choose one"),
        (1, 0, ValueError, "n_frames must be at least 1, got 0"),
        (None, 5, TypeError, "identity must be a FaceIdentity, got NoneType"),
    ],
)
def test_video_errors(identity: int | None, frames: int, error: type[Exception], message: str) -> None:
    person = None if identity is None else sample_identities(identity, 0)
    with pytest.raises(error, match=message):
        draw_video(person, frames)  # type: ignore[arg-type]


# -- the point of it --------------------------------------------------------------------------------------------------


def test_the_face_says_less_about_strangers_than_about_the_known() -> None:
    """A linear reader of each person's own mouth beats one reader for all: labels depend on the person."""
    data = FacesDataset(40, 40, size=32, seed=0, disturb=False)
    lips = data.landmarks.astype(float)
    corner = (lips[:, [62, 66], 1].mean(axis=1) - lips[:, [48, 54], 1].mean(axis=1)).reshape(40, 40)
    valence = data.av[:, 0].astype(float).reshape(40, 40)
    slope, offset = np.polyfit(corner.ravel(), valence.ravel(), 1)
    pooled = np.sqrt(((slope * corner + offset - valence) ** 2).mean())
    own = [np.polyval(np.polyfit(c, v, 1), c) - v for c, v in zip(corner, valence, strict=True)]
    assert np.sqrt((np.array(own) ** 2).mean()) < 0.6 * pooled


@pytest.mark.parametrize("effect", [0.0, 1.0, 3.0])
def test_the_dial_scales_how_people_differ_but_not_their_looks(effect: float) -> None:
    people, changed = sample_identities(300, 0), vary(sample_identities(300, 0), effect)
    for name in people.__dataclass_fields__:
        before, after = getattr(people, name), getattr(changed, name)
        if effect == 1 or name not in {**AVERAGE, **AVERAGE_GAIN}:
            np.testing.assert_array_equal(before, after, err_msg=name)
    assert changed.rest_corner.std() == pytest.approx(effect * people.rest_corner.std(), rel=1e-4)
    assert np.log(changed.expressivity).std() == pytest.approx(effect * np.log(people.expressivity).std(), rel=1e-4)
    for name, mean in AVERAGE.items():
        assert getattr(people, name).mean() == pytest.approx(mean, abs=0.04), name


def test_with_no_effect_all_people_show_and_feel_alike() -> None:
    data = FacesDataset(200, 20, size=32, person_effect=0.0)
    shapes = face_shape(data.identities.take(np.arange(10)), np.full(10, 0.6), np.full(10, 0.3))
    assert shapes.corner.std() == 0
    assert shapes.open.std() == 0
    means = data.av.reshape(200, 20, 2).mean(axis=1)
    assert means.std(axis=0) == pytest.approx(data.av.std(axis=0) / np.sqrt(20), rel=0.15)  # chance alone
    natural = FacesDataset(200, 20, size=32).av.reshape(200, 20, 2).mean(axis=1)
    assert (natural.std(axis=0) > 1.5 * means.std(axis=0)).all()


def test_the_largest_effect_is_drawn() -> None:
    data = FacesDataset(10, 4, size=48, person_effect=3.0)
    plain = FacesDataset(10, 4, size=48)
    assert data.images.std(axis=(1, 2, 3)).min() > 20  # a picture, not a blank
    assert not np.array_equal(data.images, plain.images)
    assert np.isfinite(data.landmarks).all()


def test_kept_pictures_are_those_that_were_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"n_people": 4, "n_images_per_person": 2, "size": 32}
    drawn = FacesDataset(**data).images
    assert np.array_equal(FacesDataset(**data, cache=tmp_path).images, drawn)
    (file,) = tmp_path.iterdir()
    with monkeypatch.context() as patched:
        patched.setattr("adaptive_margin.faces.dataset.draw_faces", None)
        assert np.array_equal(FacesDataset(**data, cache=tmp_path).images, drawn)
    for other in ({"seed": 1}, {"disturb": False}, {"person_effect": 2.0}, {"split": "train"}):
        assert FacesDataset(**{**data, **other}, cache=tmp_path).images.shape[1:] == drawn.shape[1:]
    assert len(list(tmp_path.iterdir())) == 5
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    assert np.array_equal(FacesDataset(**data, cache=tmp_path).images, drawn)
    file.write_bytes(b"cut")
    assert np.array_equal(FacesDataset(**data, cache=tmp_path).images, drawn)


def test_kept_pictures_can_be_changed_as_drawn_ones_can(tmp_path: Path) -> None:
    """The first time and later; what is kept does not change."""
    found = [FacesDataset(4, 2, size=32, cache=tmp_path).images for _ in range(2)]
    drawn = found[0].copy()
    for images in found:
        images[0] = 255 - images[0]
        assert not np.array_equal(images, drawn)
    assert np.array_equal(FacesDataset(4, 2, size=32, cache=tmp_path).images, drawn)


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="not kept") as said:
        images = FacesDataset(4, 1, size=32, cache=tmp_path / "file").images
    assert said[0].filename == __file__
    assert len(images) == 4
