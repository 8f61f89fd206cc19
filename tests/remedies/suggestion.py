"""Remedies of the suggestion of a margin: its options and the files that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptive_margin import suggest
from adaptive_margin.command import main
from adaptive_margin.suggestion import read_embeddings
from adaptive_margin.suggestion.files import _check_lengths

from .following import follow

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 4


def suggested(labels: torch.Tensor = Y, **options: Any) -> bool:
    return len(str(suggest(X, labels, **options))) > 0


def stored(folder: Path, *names: str, ending: str = "npz", **arrays: Any) -> bool:
    """Whether what is stored can be read: an archive with these arrays, and labels of their own if they are named."""
    given = {"embeddings": X.numpy(), "labels": Y.numpy(), **arrays}
    path, labels = folder / f"a.{ending}", None
    with open(path, "wb") as file:
        np.savez(file, **{name: each for name, each in given.items() if each is not None})
    if names:
        labels = folder / names[0]
        np.save(labels, Y.numpy())
    return len(read_embeddings(path, labels)[1]) == 24


def command(folder: Path, *words: str) -> bool:
    stored(folder)
    return main(["suggest", str(folder / "a.npz"), *words]) == 0


def notes(folder: Path) -> Path:
    """A file of somebody else."""
    (folder / "notes.json").write_text("[]")
    return folder / "notes.json"


def spoilt(folder: Path) -> None:
    (folder / "a.npz").write_bytes(b"no archive")
    read_embeddings(folder / "a.npz")


def endless(folder: Path) -> None:
    """A file that says of itself that it is too large for any memory."""
    with (folder / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**48, 8)})
    read_embeddings(folder / "a.npy")


def table(folder: Path, text: str) -> bool:
    (folder / "a.csv").write_text(text)
    return len(read_embeddings(folder / "a.csv")[1]) == 2


CASES = [
    follow("choose a number in that range", lambda: suggested(batches=0), lambda: suggested(batches=1)),
    follow(
        "a margin needs pairs within a class and between classes",
        lambda: suggested(torch.arange(24)),
        lambda: suggested(torch.arange(24) // 2),
    ),
    follow(
        "name the loss, for instance loss='TripletMarginLoss'",
        lambda: suggested(margin=0.2),
        lambda: suggested(margin=0.2, loss="TripletMarginLoss"),
    ),
    follow(
        "the nearest: TripletMarginLoss",
        lambda: suggested(loss="TripletMargin"),
        lambda: suggested(loss="TripletMarginLoss"),
    ),
    follow(
        "pass the margin in use",
        lambda: suggested(loss="RankedListLoss"),
        lambda: suggested(loss="RankedListLoss", margin=0.4),
    ),
    follow(
        "pass it in the unit of the loss's constructor",
        lambda: suggested(loss="ArcFaceLoss", margin=float("inf")),
        lambda: suggested(loss="ArcFaceLoss", margin=28.6),
    ),
    follow(
        "name it, as in --loss ContrastiveLoss",
        lambda folder: command(folder, "--margin", "0.5"),
        lambda folder: command(folder, "--margin", "0.5", "--loss", "ContrastiveLoss"),
    ),
    follow(
        "pass another, or --overwrite to replace it",
        lambda folder: command(folder, "--json", str(notes(folder))),
        lambda folder: command(folder, "--json", str(folder / "b.json")),
        lambda folder: command(folder, "--json", str(folder / "notes.json"), "--overwrite"),
    ),
    follow(
        "pass another name for one",
        lambda folder: command(folder, "--json", str(folder / "b"), "--html", str(folder / "b")),
        lambda folder: command(folder, "--json", str(folder / "c.json"), "--html", str(folder / "c.html")),
    ),
    follow(
        "store one row per sample, and name it 'embeddings' if there are several",
        lambda folder: stored(folder, embeddings=None, one=X, two=X),
        lambda folder: stored(folder, other=X),
    ),
    follow(
        "pass a file of labels, too, or store them as 'labels' beside the embeddings",
        lambda folder: stored(folder, labels=None),
        lambda folder: stored(folder, "y.npy", labels=None),
        stored,
    ),
    follow(
        "leave out columns that are no features",
        lambda folder: stored(folder, embeddings=np.array([["a", "b"]] * 24)),
        stored,
    ),
    follow("store one label per row", lambda folder: stored(folder, labels=Y[:5]), stored),
    follow(
        "group continuous targets first, with OtsuGrouper for instance",
        lambda folder: stored(folder, labels=np.linspace(0, 1, 24)),
        lambda folder: stored(folder, labels=(np.linspace(0, 1, 24) > 0.5).astype(float)),
    ),
    follow(
        "save it with numpy.savez(FILE, embeddings=…, labels=…)",
        lambda folder: stored(folder, ending="h5"),
        lambda folder: stored(folder, ending="npz"),
    ),
    follow(
        "store them as int64, or as text",
        lambda folder: stored(folder, labels=Y.numpy() + 2.0**60),
        lambda folder: stored(folder, labels=Y.numpy() + 2**60),
        lambda folder: stored(folder, labels=(Y.numpy() + 2**60).astype(str)),
    ),
    follow(
        "leave out rows whose embedding is missing or cut off",
        lambda: _check_lengths("column", [4, 4, None, 4, 3]),
        lambda: _check_lengths("column", [4, 4, 4]) is None,
    ),
    follow(
        "leave out rows without a label",
        lambda folder: stored(folder, labels=np.array(["a", ""] * 12)),
        lambda folder: stored(folder, labels=np.array(["a"] * 12 + ["b"] * 12)),
    ),
    follow("save arrays or tensors of numbers again, without other objects", spoilt, stored),
    follow(
        "leave out columns of text other than the labels, and rows that are cut off",
        lambda folder: table(folder, "a,b,name,label\n1,2,x,0\n3,4,y,1\n"),
        lambda folder: table(folder, "a,b,label\n1,2,0\n3,4,1\n"),
    ),
    follow(
        "leave out columns of text other than the labels, and rows that are cut off",
        lambda folder: table(folder, "a,b,label\n1,2,0\n3,4,1\n5"),
        lambda folder: table(folder, "a,b,label\n1,2,0\n3,4,1\n"),
    ),
    follow("pass fewer rows, or save the file again if this is not its size", endless, stored),
]
