"""Remedies of the drawn faces."""

from __future__ import annotations

import dataclasses

import numpy as np

from adaptive_margin.faces import (
    FacesDataset,
    draw_faces,
    draw_frames,
    draw_video,
    face_shape,
    sample_identities,
    sample_nuisance,
    split_people,
)

from .following import follow

PEOPLE = sample_identities(2, seed=0)
FEELS = [0.5, -0.5], [0.1, 0.2]
SMALL = {"size": 32}
DATA = FacesDataset(n_people=4, n_images_per_person=2, size=32)


def seeds(*numbers: object) -> bool:
    return len(draw_faces(PEOPLE, *FEELS, nuisance_seeds=numbers, size=32)) == 2


CASES = [
    follow(
        "pass shares such as (0.7, 0.15, 0.15)",
        lambda: split_people(20, 0, (1, 1, 1)),
        lambda: sum(map(len, split_people(20, 0, (0.7, 0.15, 0.15)).values())) == 20,
    ),
    follow(
        "ask for more people, or give a split the share 0",
        lambda: split_people(2, 0),
        lambda: sum(map(len, split_people(3, 0).values())) == 3,
        lambda: sum(map(len, split_people(2, 0, (0.7, 0.3, 0)).values())) == 2,
    ),
    follow(
        "choose one of them",
        lambda: FacesDataset(4, 2, split="training"),
        lambda: len(FacesDataset(4, 2, split="train")) >= 2,
        lambda: len(FacesDataset(4, 2, split="all")) == 8,
    ),
    follow("stop before len(dataset)", lambda: DATA[8], lambda: len([DATA[i] for i in range(len(DATA))]) == 8),
    follow(
        "repeat people with identities.take(index)",
        lambda: draw_faces(PEOPLE, [0.5] * 4, [0.1] * 4, **SMALL),
        lambda: len(draw_faces(PEOPLE.take([0, 0, 1, 1]), [0.5] * 4, [0.1] * 4, **SMALL)) == 4,
    ),
    follow("pass one seed per picture", lambda: seeds(1, 2, 3), lambda: seeds(1, 2)),
    follow(
        "draw one row per picture",
        lambda: draw_frames(PEOPLE, *FEELS, sample_nuisance([1]), **SMALL),
        lambda: len(draw_frames(PEOPLE, *FEELS, sample_nuisance([1, 2]), **SMALL)) == 2,
    ),
    follow(
        "pass one number per picture",
        lambda: draw_faces(PEOPLE, [[0.5, -0.5]], [[0.1, 0.2]], **SMALL),
        lambda: len(draw_faces(PEOPLE, [0.5, -0.5], [0.1, 0.2], **SMALL)) == 2,
    ),
    follow(
        "pass one pair per picture",
        lambda: draw_faces(PEOPLE, [0.5, -0.5], [0.1], **SMALL),
        lambda: len(draw_faces(PEOPLE, [0.5, -0.5], [0.1, 0.2], **SMALL)) == 2,
    ),
    follow(
        "divide both labels by the radius, or drop the row",
        lambda: draw_faces(PEOPLE, [0.8, 0.1], [0.8, 0.1], **SMALL),
        lambda: len(draw_faces(PEOPLE, [0.8 / np.hypot(0.8, 0.8), 0.1], [0.8 / np.hypot(0.8, 0.8), 0.1], **SMALL)) == 2,
        lambda: len(draw_faces(PEOPLE.take([1]), [0.1], [0.1], **SMALL)) == 1,
    ),
    follow(
        "repeat people with people.take(index)",
        lambda: face_shape(PEOPLE, [0.5] * 4, [0.1] * 4),
        lambda: len(face_shape(PEOPLE.take([0, 1, 0, 1]), [0.5] * 4, [0.1] * 4)) == 4,
    ),
    follow(
        "make it with sample_identities, choose and repeat rows with take(index)",
        lambda: draw_faces([0, 1], *FEELS, **SMALL),
        lambda: len(draw_faces(sample_identities(5).take([3, 3]), *FEELS, **SMALL)) == 2,
    ),
    follow(
        "pass one integer per picture",
        lambda: sample_nuisance([[1, 2]]),
        lambda: len(sample_nuisance([1, 2])) == 2,
    ),
    follow(
        "pass for instance np.arange(n)",
        lambda: sample_nuisance([0.5, 0.7]),
        lambda: len(sample_nuisance(np.arange(2))) == 2,
    ),
    follow(
        "pass for instance np.arange(n)",
        lambda: sample_nuisance([-1, 2]),
        lambda: len(sample_nuisance(np.arange(2))) == 2,
    ),
    follow(
        "pass a number such as 0",
        lambda: sample_identities(2, seed="zero"),
        lambda: len(sample_identities(2, seed=0)) == 2,
    ),
    follow(
        "choose a number in that range",
        lambda: sample_identities(2, seed=2**64),
        lambda: len(sample_identities(2, seed=2**64 - 1)) == 2,
    ),
    follow("pass a whole number", lambda: sample_identities(2.0), lambda: len(sample_identities(2)) == 2),
    follow(
        "choose a number in that range",
        lambda: FacesDataset(4, 2, size=8),
        lambda: DATA.images.shape == (8, 32, 32, 3),
    ),
    follow(
        "give every column one entry per row",
        lambda: dataclasses.replace(PEOPLE, expressivity=np.float32([0.5])),
        lambda: len(dataclasses.replace(PEOPLE, expressivity=np.float32([0.5, 0.6]))) == 2,
    ),
    follow(
        "correct the name",
        lambda: PEOPLE.replace(expresivity=[0.5, 0.6]),
        lambda: len(PEOPLE.replace(expressivity=[0.5, 0.6])) == 2,
    ),
    follow(
        "choose one with take([index])",
        lambda: draw_video(PEOPLE, 2, size=32),
        lambda: len(draw_video(PEOPLE.take([1]), 2, size=32)) == 2,
    ),
    follow(
        "0 makes everybody show feelings alike, 1 is the default",
        lambda: FacesDataset(4, 2, person_effect=4.0),
        lambda: FacesDataset(4, 2, person_effect=0.0).identities.rest_corner.std() == 0,
        lambda: FacesDataset(4, 2, person_effect=1.0).person_effect == 1,
    ),
]
