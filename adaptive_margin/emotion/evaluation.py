"""Evaluates a network on a whole data set: figures with intervals, identity leakage, and data for the report.

A run folder gets two files: ``result.json``, small, with every figure; and ``evaluation.npz``, with predictions, some
features and a few small pictures for the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..messages import problem
from ..metrics import AffectMetrics, IdentityLeakage, affect_intervals, identity_leakage
from ..metrics.affect import FIGURES
from ..metrics.identity_leakage import PROBE, RETRIEVAL
from ..stored import misfit, read_arrays, read_json, without_nan, write_arrays, write_json
from ..training.world import World
from .nets import LABELS, EmotionNet

FORMAT = 1
EXTREMES = 12  # best and worst predictions that are kept as pictures
STRIP = 8  # frames of the video that are kept as pictures
SIDE = 96  # of these pictures, pixels
AGAIN = "evaluate the run again: the command that trained it does"

_FIGURES: dict[str, Any] = {"*": {"*": float}}
_LEAKAGE: dict[str, Any] = dict.fromkeys(RETRIEVAL + PROBE, float)
_BREAKDOWN: dict[str, Any] = {"strong_ccc": float, "weak_ccc": float, "person_error": float, "worst_decile": float}
_BREAKDOWN |= {"slope": [float, float]}
RESULT = {
    "arm": str,
    "independent": str,
    "seed": int,
    "test": {
        "figures": _FIGURES,
        "intervals": {"*": {"*": [float, float]}},
        "identity": str,
        "interval_by": str,
    },
    "leakage": {"*": _LEAKAGE},
    "breakdown": _BREAKDOWN,
    "by_person": {"figures": _FIGURES, "leakage": _LEAKAGE, "breakdown": _BREAKDOWN},
}
"""The types of what is shown of a ``result.json``; a number may be None, where it is not defined."""

ARRAYS = {
    "row": "i N",
    "truth": "f N 2",
    "prediction": "f N 2",
    "person": "i N",
    "features": "? f K F",
    "feature_index": "? i K <N",
    "best": "? i best <N",
    "worst": "? i worst <N",
    "best_images": "? u best H W 3",
    "worst_images": "? u worst H W 3",
    "video_name": "? U",
    "video_frame": "? i V",
    "video_truth": "? f V 2",
    "video_prediction": "? f V 2",
    "video_strip": "? i S <V",
    "video_images": "? u S H W 3",
}
"""The arrays of an ``evaluation.npz``, as :func:`~adaptive_margin.stored.misfit` takes them."""

Pictures = Callable[[int], NDArray[np.uint8]]
"""Row → its picture, uint8, ``(H, W, 3)``."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """The results of a network on a data set, in the order of its rows.

    Figures, intervals and leakage are computed when they are first read, which needs neither network nor device: the
    slow part of an evaluation can be done in another process.

    Attributes:
        row: position in the data set, int64, shape ``(N,)``, increasing.
        truth: (valence, arousal), float32, shape ``(N, 2)``.
        prediction: likewise.
        person: number of the person, or of the unit that stands for one (``identity``), int64, shape ``(N,)``; −1 if
            unknown.
        video: name of the video of each row, shape ``(N,)``; empty for single images.
        frame: number in the video, int64, shape ``(N,)``; −1 for single images.
        features: the encoder's features of some rows, float16, shape ``(K, F)``.
        feature_index: the indices of these rows, int64, shape ``(K,)``, increasing.
        identity: the meaning of a number in ``person``: ``"person"``, ``"actor"``, ``"video"``, ``"source video"``; or
            ``"picture"`` if people are not identified.
        resamples: number of resamples for the intervals.
        seed: random seed of all draws.
    """

    row: NDArray[np.int64]
    truth: NDArray[np.float32]
    prediction: NDArray[np.float32]
    person: NDArray[np.int64]
    video: NDArray[np.str_]
    frame: NDArray[np.int64]
    features: NDArray[np.float16]
    feature_index: NDArray[np.int64]
    identity: str = "person"
    resamples: int = 1000
    seed: int = 0

    def __len__(self) -> int:
        return len(self.row)

    @property
    def error(self) -> NDArray[np.float64]:
        """Distance between label and prediction in the valence-arousal plane, shape ``(N,)``."""
        gap = self.prediction.astype(np.float64) - self.truth
        distance: NDArray[np.float64] = np.sqrt(np.square(gap).sum(axis=1))
        return distance

    @cached_property
    def figures(self) -> dict[str, dict[str, float]]:
        """As :meth:`AffectMetrics.compute` returns them."""
        metrics = AffectMetrics(LABELS)
        metrics.update(self.truth, self.prediction)
        return metrics.compute()

    @property
    def interval_by(self) -> str:
        """The unit of the bootstrap: the ``identity``, ``"video"`` or ``"sample"``."""
        return self._groups[1]

    @cached_property
    def intervals(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Figure → label or ``"mean"`` → (low, high), 95%; empty if there is nothing to draw from."""
        if len(self) < 2:
            return {}
        found = affect_intervals(
            self.truth, self.prediction, groups=self._groups[0], resamples=self.resamples, seed=self.seed
        )
        low, high = found.low.tolist(), found.high.tolist()
        return {
            name: {label: (low[i][j], high[i][j]) for j, label in enumerate((*LABELS, "mean"))}
            for i, name in enumerate(FIGURES)
        }

    @cached_property
    def leakage(self) -> IdentityLeakage | None:
        """Identity leakage of ``features``; None if no person is known."""
        if not (self.person >= 0).any():
            return None
        exclude = _video_or_row(self.video)[self.feature_index] if (self.video != "").any() else None
        return identity_leakage(
            torch.from_numpy(self.features.astype(np.float32)),
            self.person[self.feature_index],
            exclude=exclude,
            resamples=self.resamples,
            seed=self.seed,
        )

    @property
    def _groups(self) -> tuple[NDArray[np.int64], str]:
        """What the bootstrap draws, a number for each row, and its name."""
        if (self.person >= 0).all() and len(np.unique(self.person)) > 1:
            return self.person, self.identity
        if (self.video != "").all() and len(np.unique(self.video)) > 1:
            return _video_or_row(self.video), "video"
        return np.arange(len(self)), "sample"

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values, for ``result.json``."""
        return {
            "rows": len(self),
            "identity": self.identity,
            "identities": len(np.unique(self.person[self.person >= 0])),
            "figures": self.figures,
            "intervals": {name: {k: list(v) for k, v in one.items()} for name, one in self.intervals.items()},
            "interval_by": self.interval_by,
        }


def evaluate(
    net: EmotionNet,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    people: ArrayLike | None = None,
    identity: str = "person",
    videos: Iterable[str | None] | None = None,
    frames: ArrayLike | None = None,
    world: World | None = None,
    keep_features: int = 4000,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Runs a network on a data set and measures it.

    Args:
        net: encoder and regressor, on the device where they should run. It is in evaluation mode during the call, and
            its mode is restored afterwards.
        batches: (images, labels, rows) each: :class:`~adaptive_margin.affect.CachedBatches`, or a ``DataLoader``
            over :class:`~adaptive_margin.affect.FaceImages`; of any sizes, in any order. A row that occurs twice,
            such as those that ``DistributedSampler`` repeats, counts once.
        people: number of the person of every row of the data set, indexed by row; negative if unknown.
        identity: the meaning of such a number, if it is not a person: see :class:`Evaluation`.
        videos: name of the video of every row, likewise; ``None`` or ``""`` for single images.
        frames: number in the video of every row, likewise.
        world: the processes among which the rows are divided; each of them must call this, and all get the same result.
        keep_features: keep the features of at most this many rows, drawn by ``seed``; leakage is measured on them.
        resamples: number of resamples for the intervals.
        seed: random seed of all draws.

    Returns:
        Predictions, and from them figures, intervals (bootstrap by identity if known, else by video, else by sample)
        and leakage.

    Raises:
        ValueError: no rows, rows outside the columns given, or predictions that are not finite.
    """
    column = np.empty(0, dtype=np.int64) if people is None else np.asarray(_array(people), dtype=np.int64)
    names = np.array([], dtype=np.str_) if videos is None else np.array([name or "" for name in videos], dtype=np.str_)
    numbers = np.empty(0, dtype=np.int64) if frames is None else np.asarray(_array(frames), dtype=np.int64)
    total = max(len(column), len(names), len(numbers))
    kept = _drawn(total, keep_features, seed)

    row, truth, prediction, features, feature_row = _predict(net, batches, kept, world or World())
    if not len(row):
        raise ValueError(problem("batches", "of one row or more", "none", "pass a data set with rows"))
    for argument, values in (("people", column), ("videos", names), ("frames", numbers)):
        if len(values) and row[-1] >= len(values):
            expected = f"one for every row of the data set, up to row {row[-1]}"
            raise ValueError(problem(argument, expected, f"{len(values)} of them", "index it as the batches' rows"))
    if not np.isfinite(prediction).all():
        got = f"{int((~np.isfinite(prediction).all(axis=1)).sum())} of {len(row)} rows with NaN or infinity"
        raise ValueError(problem("predictions", "finite", got, "the network diverged: take an earlier checkpoint"))
    if len(feature_row) > keep_features:  # how many rows there are was not known before
        some = _drawn(len(feature_row), keep_features, seed)
        features, feature_row = features[some], feature_row[some]

    person = column[row] if len(column) else np.full(len(row), -1)
    video = names[row] if len(names) else np.zeros(len(row), dtype="<U1")
    frame = numbers[row] if len(numbers) else np.full(len(row), -1)
    index = np.searchsorted(row, feature_row)
    return Evaluation(
        row=row,
        truth=truth,
        prediction=prediction,
        person=person,
        video=video,
        frame=frame,
        features=features,
        feature_index=index,
        identity=identity,
        resamples=resamples,
        seed=seed,
    )


def _array(values: ArrayLike) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _drawn(total: int, most: int, seed: int) -> NDArray[np.int64]:
    """At most ``most`` of ``total`` rows, drawn at random and sorted; all of them if there are no more."""
    if total <= most:
        return np.arange(total, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).permutation(total)[:most]).astype(np.int64)


def _video_or_row(video: NDArray[np.str_]) -> NDArray[np.int64]:
    """The number of the video; for a single image a unique number."""
    _, codes = np.unique(video, return_inverse=True)
    single = np.flatnonzero(video == "")
    codes = codes.astype(np.int64)
    codes[single] = len(video) + single
    return codes


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Sets evaluation mode and afterwards restores the mode of every module: some may be frozen during training."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _predict(
    net: EmotionNet, batches: Iterable[tuple[Tensor, Tensor, Tensor]], kept: NDArray[np.int64], world: World
) -> tuple[NDArray[Any], ...]:
    """Row, truth, prediction of all rows; features and row of those ``kept`` (of all, if that is empty)."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    wanted = torch.from_numpy(kept)
    columns: list[list[NDArray[Any]]] = [[], [], [], [], []]
    with evaluating(net), torch.inference_mode():
        for images, labels, rows in batches:
            if not len(images):  # this process's share of a small batch
                continue
            features = net.encoder(images.to(device, non_blocking=True))  # (B, F)
            prediction = net.regressor(features)  # (B, 2)
            keep = torch.isin(rows.cpu(), wanted) if len(kept) else torch.ones(len(rows), dtype=torch.bool)
            half = features[keep.to(device)].float().clamp(-65504, 65504).half()
            parts = (rows, labels.float(), prediction.float(), half, rows.cpu()[keep])
            for column, part in zip(columns, parts, strict=True):
                column.append(part.cpu().numpy())
    shares = [share for share in world.gather_object(columns) if share[0]]
    if not shares:
        return (*(np.empty(0, dtype=np.int64) for _ in range(5)),)
    row, truth, prediction, features, feature_row = (
        np.concatenate([part for share in shares for part in share[place]]) for place in range(5)
    )
    row, first = np.unique(row, return_index=True)
    feature_row, of_features = np.unique(feature_row, return_index=True)
    return row, truth[first], prediction[first], features[of_features], feature_row


def write_evaluation(
    folder: str | Path,
    test: Evaluation,
    *,
    pictures: Pictures | None = None,
    seen: Evaluation | None = None,
    video: Evaluation | None = None,
    video_pictures: Pictures | None = None,
    extra: Mapping[str, Any] | None = None,
    keep_features: int = 1000,
) -> dict[str, Any]:
    """Writes ``result.json`` and ``evaluation.npz`` to a run's folder, each atomically.

    Args:
        folder: of the run; made if need be.
        test: people the network was not trained on.
        pictures: the picture of a row of ``test``, of which those predicted best and worst are kept.
        seen: people it was trained on, on other pictures of them if there are any.
        video: frames of one video in order; without it the video with most frames is taken from ``test``.
        video_pictures: the picture of a row of ``video``.
        extra: additional content for ``result.json``: arm, seed, other measurements. Plain values.
        keep_features: rows of ``test`` whose features are kept for the report's map.

    Returns:
        The content of ``result.json``.

    Raises:
        ValueError: ``extra`` has a key that is used here.
    """
    result = _result(test, seen, extra)
    shown: dict[str, Any] = {"pictures": pictures, "video": video, "video_pictures": video_pictures}
    write_predictions(folder, test, **shown, keep_features=keep_features)
    write_json(Path(folder) / "result.json", without_nan(result), indent=1)
    return result


def write_result(
    folder: str | Path, test: Evaluation, *, seen: Evaluation | None = None, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Writes the ``result.json`` of :func:`write_evaluation`, without pictures; returns its content."""
    result = _result(test, seen, extra)
    write_json(Path(folder) / "result.json", without_nan(result), indent=1)
    return result


def _result(test: Evaluation, seen: Evaluation | None, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    leakage = {"unseen": test.leakage, "seen": None if seen is None else seen.leakage}
    result: dict[str, Any] = {
        "format": FORMAT,
        "labels": list(LABELS),
        "test": test.to_dict(),
        **({} if seen is None else {"seen": seen.to_dict()}),
        "leakage": {name: one.to_dict() for name, one in leakage.items() if one is not None},
    }
    if taken := result.keys() & (extra or {}).keys():
        raise ValueError(problem("extra", f"without {', '.join(result)}", f"the key {min(taken)!r}", "rename it"))
    return result | dict(extra or {})


def write_predictions(
    folder: str | Path,
    test: Evaluation,
    *,
    pictures: Pictures | None = None,
    video: Evaluation | None = None,
    video_pictures: Pictures | None = None,
    keep_features: int = 1000,
) -> None:
    """Writes the ``evaluation.npz`` of :func:`write_evaluation`."""
    some = _drawn(len(test.feature_index), keep_features, seed=0)
    order = np.argsort(test.error, kind="stable")
    best, worst = order[:EXTREMES], order[::-1][:EXTREMES]
    arrays: dict[str, NDArray[Any]] = {
        **{name: getattr(test, name) for name in ("row", "truth", "prediction", "person")},
        "features": test.features[some],
        "feature_index": test.feature_index[some],
        "best": best,
        "worst": worst,
    }
    if pictures is not None:
        for name, which in (("best", best), ("worst", worst)):
            arrays[f"{name}_images"] = np.stack([small_picture(pictures(int(test.row[i]))) for i in which])
    arrays |= _video_arrays(test, pictures) if video is None else _video_arrays(video, video_pictures, whole=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_arrays(Path(folder) / "evaluation.npz", arrays)


def _video_arrays(found: Evaluation, pictures: Pictures | None, whole: bool = False) -> dict[str, NDArray[Any]]:
    """Labels and predictions over the frames of one video, and a strip of them; empty where there is no video."""
    if whole:
        where, name = np.arange(len(found)), str(found.video[0]) or "video"
    else:
        names, counts = np.unique(found.video[found.video != ""], return_counts=True)
        if not len(names):
            return {}
        name = str(names[counts.argmax()])
        where = np.flatnonzero(found.video == name)
    number = found.frame[where] if (found.frame[where] >= 0).all() else found.row[where]
    order = np.argsort(number, kind="stable")
    where, number = where[order], number[order]
    arrays: dict[str, NDArray[Any]] = {
        "video_name": np.array(name),
        "video_frame": number,
        "video_truth": found.truth[where],
        "video_prediction": found.prediction[where],
    }
    if pictures is not None:
        at = np.unique(np.linspace(0, len(where) - 1, min(STRIP, len(where))).round().astype(np.int64))
        arrays["video_strip"] = at
        arrays["video_images"] = np.stack([small_picture(pictures(int(found.row[where[i]]))) for i in at])
    return arrays


def small_picture(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture resized to a square of :data:`SIDE` pixels, from its middle."""
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("RGB")
    return np.asarray(ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.LANCZOS))


def read_result(folder: str | Path) -> dict[str, Any]:
    """The content of a run's ``result.json``; empty if there is none.

    Raises:
        ValueError: it is damaged, has another format, or has something else in place of a figure.
    """
    path = Path(folder) / "result.json"
    if not path.is_file():
        return {}
    result = read_json(path, AGAIN)
    if result.get("format") != FORMAT:
        raise ValueError(problem(str(path), f"of format {FORMAT}", result.get("format"), AGAIN))
    wrong = _wrong(result, RESULT)
    if wrong:
        raise ValueError(problem(str(path), "a run's result", wrong, AGAIN))
    return result


def read_predictions(folder: str | Path) -> dict[str, NDArray[Any]]:
    """The arrays of a run's ``evaluation.npz`` by name; empty if there is none.

    Raises:
        ValueError: it is damaged, or has arrays whose names, types or shapes differ from those that are written.
    """
    path = Path(folder) / "evaluation.npz"
    if not path.is_file():
        return {}
    arrays = read_arrays(path, AGAIN)
    wrong = misfit(arrays, ARRAYS)
    if wrong:
        raise ValueError(problem(str(path), "the predictions of a run", wrong, AGAIN))
    return arrays


def _wrong(value: Any, kind: Any, name: str = "") -> str:
    """Which part of a result does not have the expected type; empty if all have. ``"*"`` stands for every key."""
    if isinstance(kind, type):
        undefined = value is None and kind is not dict
        numbers = (int, float) if kind is float else (kind,)
        too_large = type(value) is int and abs(value) >= 2**63
        return "" if undefined or (type(value) in numbers and not too_large) else f"{name}: {type(value).__name__}"
    if type(value) is not type(kind):
        return f"{name}: {type(value).__name__}"
    if isinstance(kind, list):
        if len(value) != len(kind):
            return f"{name}: {len(value)} ends of an interval"
        value, kind = dict(enumerate(value)), dict(enumerate(kind))
    inner = dict.fromkeys(value, kind.get("*")) | {key: kind[key] for key in kind if key in value}
    parts = (_wrong(value[key], each, f"{name}.{key}" if name else str(key)) for key, each in inner.items() if each)
    return next(filter(None, parts), "")
