"""Training and test splits that keep each person on one side, written to a file and read back.

A split names *units*: identities, videos, pictures or single rows. All rows of a unit are in the same part. The file
stays valid when rows are lost to unreadable images, and it says in words which units the parts do and do not share.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_atomically
from ..images.errors import LabelFileError
from ..images.image_list import Integers
from ..messages import check_choice, counted, problem, shorten
from .records import Records

FORMAT = 1

UNITS = ("identity", "video", "picture", "row")
"""The units that a split may keep together: a person, a video, a picture (its path), or nothing (single rows)."""


class LeakError(ValueError):
    """The parts of a split share a person, a video or a picture that they must not share."""


def units_of(records: Records, unit: str) -> list[str]:
    """The unit to which each row belongs.

    Args:
        records: the rows.
        unit: ``"identity"``, ``"video"``, ``"picture"`` (the path) or ``"row"`` (the key).

    Raises:
        ValueError: another unit, or a row whose identity or video is unknown.
    """
    check_choice("unit", unit, UNITS)
    columns = {"identity": records.identity, "video": records.video, "picture": records.path, "row": records.key}
    names = list(columns[unit])
    if unknown := names.count(None):
        got = f"None for {unknown:,} of {len(records):,} rows of {records.dataset}"
        remedy = (
            "a split that keeps people apart needs to know who is in every image; "
            "stratified_holdout keeps only pictures apart, and says so"
        )
        raise ValueError(problem(unit, "known for every row", got, remedy))
    return names


@dataclass(frozen=True)
class Split:
    """Parts of a data set, by unit.

    Attributes:
        dataset: the release for which it was made.
        protocol: how it was made, on one line.
        unit: the unit whose rows stay together: ``"identity"``, ``"video"``, ``"picture"`` or ``"row"``.
        independent: the unit that the parts do not share: ``"actor"``, ``"video"``, ``"picture"``; ``"nothing"`` for a
            split that leaks.
        seed: of the draw.
        parts: name of the part → its units.

    Raises:
        LeakError: a unit in two parts.
        ValueError: an unknown unit, or an empty part.
    """

    dataset: str
    protocol: str
    unit: str
    independent: str
    seed: int
    parts: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, UNITS)
        owner: dict[str, str] = {}
        for name, units in self.parts.items():
            if not units:
                raise ValueError(problem(f"part {name!r}", "not empty", "no units", "make fewer parts, or larger ones"))
            for unit in units:
                if unit in owner:
                    got = f"it in {owner[unit]!r} and {name!r}"
                    raise LeakError(
                        problem(f"{self.unit} {unit!r}", "in one part of the split", got, "make a new split")
                    )
                owner[unit] = name

    @property
    def leaks(self) -> bool:
        """Whether nearly identical rows may be in different parts."""
        return self.independent == "nothing"

    def rows(self, records: Records) -> dict[str, Integers]:
        """The rows of each part, as positions in ``records`` in their order.

        Raises:
            ValueError: records of another data set, or a unit that is in no part.
        """
        if records.dataset != self.dataset:
            remedy = "make a split for each data set"
            raise ValueError(problem("records", f"of {self.dataset}", records.dataset, remedy))
        owner = {unit: name for name, units in self.parts.items() for unit in units}
        units = units_of(records, self.unit)
        strangers = [unit for unit in units if unit not in owner]
        if strangers:
            names = sorted(set(strangers))
            got = f"{len(strangers):,} rows of {len(names):,} that no part names ({shorten(names)})"
            remedy = "the file belongs to other rows: make a new split"
            raise ValueError(problem("records", f"made of the {self.unit} units of this split", got, remedy))
        owners = np.array([owner[unit] for unit in units], dtype=object)
        return {name: np.flatnonzero(owners == name) for name in self.parts}

    def train_test(self, records: Records, test: str | Iterable[str]) -> tuple[Integers, Integers]:
        """The rows outside some parts and the rows inside them: one round of a cross-validation.

        Raises:
            ValueError: a part that does not exist, or all of them.
        """
        chosen = {test} if isinstance(test, str) else set(test)
        unknown = chosen - set(self.parts)
        if unknown or chosen == set(self.parts):
            expected = f"some of the parts {', '.join(self.parts)}, not all"
            raise ValueError(problem("test", expected, sorted(chosen), "name the parts to test on"))
        rows = self.rows(records)
        inside = np.sort(np.concatenate([rows[name] for name in rows if name in chosen]))
        outside = np.sort(np.concatenate([rows[name] for name in rows if name not in chosen]))
        return outside, inside

    def digest(self) -> str:
        """SHA-256 of the parts: two runs with the same digest have the same split."""
        plain = json.dumps({name: list(units) for name, units in self.parts.items()}, ensure_ascii=True)
        return hashlib.sha256(plain.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        parts = {name: list(units) for name, units in self.parts.items()}
        return {"format": FORMAT, **vars(self), "leaks": self.leaks, "digest": self.digest(), "parts": parts}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the split as JSON, atomically."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Split:
        """Reads a file written by :meth:`write` and restores the split exactly.

        Raises:
            LabelFileError: not such a file, or a file whose parts were changed.
            LeakError: a unit in two parts.
        """
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"))
            if plain["format"] != FORMAT:
                remedy = "update adaptive-margin, or make a new split"
                raise LabelFileError(problem(f"{path}", f"a split file of format {FORMAT}", plain["format"], remedy))
            parts = {name: tuple(units) for name, units in plain["parts"].items()}
            split = cls(**{field.name: plain[field.name] for field in fields(cls)} | {"parts": parts})
            digest = plain["digest"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            got = f"{type(error).__name__}: {error}"
            raise LabelFileError(problem(f"{path}", "a split file", got, "write it with Split.write")) from error
        if digest != split.digest():
            got = "parts with another digest than the file states"
            raise LabelFileError(problem(f"{path}", "unchanged since it was written", got, "make a new split"))
        return split


def check_apart(records: Records, parts: Mapping[str, Sequence[int] | Integers], unit: str) -> None:
    """Raises if parts of a data set share a unit; a trainer checks this before the first step.

    Args:
        records: the rows.
        parts: name → positions in ``records``.
        unit: ``"identity"``, ``"video"``, ``"picture"`` or ``"row"``.

    Raises:
        LeakError: two parts share a unit; the message names some.
    """
    units = units_of(records, unit)
    seen: dict[str, str] = {}
    shared: dict[str, tuple[str, str]] = {}
    for name, rows in parts.items():
        for row in rows:
            other = seen.setdefault(units[int(row)], name)
            if other != name:
                shared[units[int(row)]] = (other, name)
    if shared:
        first = next(iter(shared.values()))
        what = f"parts {first[0]!r} and {first[1]!r}"
        raise LeakError(problem(what, f"without a common {unit}", shorten(sorted(shared)), "split anew"))


def _independence(records: Records, unit: str) -> str:
    """The unit that parts made of these units do not share, in the data set's own terms."""
    return {"identity": records.identity_kind or unit, "row": "nothing"}.get(unit, unit)


def _sizes(records: Records, unit: str) -> dict[str, int]:
    """Rows of each person or video, by name: the split must not depend on the order of the rows."""
    check_choice("unit", unit, ("identity", "video"))
    return dict(sorted(Counter(units_of(records, unit)).items()))


def _split(records: Records, protocol: str, unit: str, seed: int, parts: Mapping[str, Iterable[str]]) -> Split:
    named = {name: tuple(sorted(units)) for name, units in parts.items()}
    return Split(records.dataset, protocol, unit, _independence(records, unit), seed, named)


def group_folds(records: Records, folds: int = 5, *, seed: int = 0, unit: str = "identity") -> Split:
    """Cross-validation with every person (or video) in one fold, and folds balanced by their number of rows.

    Units are taken from large to small, shuffled among units of similar size, and each goes to the fold with the fewest
    rows so far. So no two folds differ by more rows than the largest unit has. Results on AFEW-VA are reported in this
    way, with five folds by actor (Kossaifi et al. 2017; the authors' lists were never published).

    Args:
        records: the rows.
        folds: number of folds.
        seed: random seed of the shuffle.
        unit: ``"identity"`` or ``"video"``.

    Returns:
        Parts ``fold0``, ``fold1`` and so on.

    Raises:
        ValueError: fewer than two folds, more folds than units, or an unknown identity.
    """
    sizes = _sizes(records, unit)
    if not 2 <= folds <= len(sizes):
        expected = f"from 2 to the number of {unit} units ({len(sizes)})"
        raise ValueError(problem("folds", expected, folds, "choose a number in that range"))
    rng = np.random.default_rng(seed)
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    alike = [names[first : first + folds] for first in range(0, len(names), folds)]
    order = [group[step] for group in alike for step in rng.permutation(len(group))]
    parts: list[list[str]] = [[] for _ in range(folds)]
    rows = [0] * folds
    for name in order:
        smallest = rows.index(min(rows))
        parts[smallest].append(name)
        rows[smallest] += sizes[name]
    protocol = f"{folds} folds by {_independence(records, unit)}, balanced by rows"
    return _split(records, protocol, unit, seed, {f"fold{number}": part for number, part in enumerate(parts)})


def _check_share(share: float) -> None:
    if not 0.0 < share < 1.0:
        raise ValueError(problem("share", "above 0 and below 1", share, "0.2 holds out a fifth of the rows"))


def group_holdout(records: Records, share: float = 0.2, *, seed: int = 0, unit: str = "video") -> Split:
    """Holds out whole videos (or people) with about ``share`` of the rows.

    For Aff-Wild, whose test labels were never released: 80/20 by video. The split is video-independent; the data set
    does not say who is in a video, and some people appear in several.

    Args:
        records: the rows.
        share: share of the rows to hold out. Units are drawn until the next one would move the total further away from
            it.
        seed: of the draw.
        unit: ``"video"`` or ``"identity"``.

    Returns:
        Parts ``train`` and ``test``.

    Raises:
        ValueError: an invalid share, a single unit, or an unknown identity.
    """
    _check_share(share)
    sizes = _sizes(records, unit)
    if len(sizes) < 2:
        remedy = "pass records of more: there is nothing to hold out"
        raise ValueError(problem("records", f"of at least two {unit} units", len(sizes), remedy))
    wanted = share * len(records)
    names = list(sizes)
    held: list[str] = []
    rows = 0
    for place in np.random.default_rng(seed).permutation(len(names)):
        size = sizes[names[place]]
        if abs(rows + size - wanted) <= abs(rows - wanted) and len(held) < len(names) - 1:
            held.append(names[place])
            rows += size
    if not held:  # every unit is more than twice the share: the smallest is nearest
        held = [min(names, key=lambda name: (sizes[name], name))]
    protocol = f"hold-out of {share:g} of the rows by {_independence(records, unit)}"
    return _split(records, protocol, unit, seed, {"train": set(names) - set(held), "test": held})


LEAST = {
    "affectnet-2017": "at least 26 pictures, of which 2% are the validation part",
    "affectnet-reduced": "at least 26 pictures, of which 2% are the validation part",
    "afew-va": "clips of at least five actors, one for each fold",
    "aff-wild": "at least three videos, one for each part",
    "aff-wild2": "at least two source videos, one of them for validation",
}
"""What :func:`training_splits` needs of a data set."""


def training_splits(records: Records, *, fold: int = 0, seed: int = 0) -> tuple[Split | None, Split]:
    """How the trainer of valence and arousal divides a data set.

    Args:
        records: the rows of its only list, or of its training list.
        fold: of AFEW-VA, which is the test part.
        seed: of the draws.

    Returns:
        The split into test and rest, None where the test part is published; and the split of the rest.

    Raises:
        ValueError: too few units.
    """
    try:
        if records.dataset.startswith("affectnet"):
            return None, stratified_holdout(records, 0.02, seed=seed)
        if records.dataset == "aff-wild2":
            return None, group_holdout(records, 0.1, seed=seed, unit="identity")
        folds = records.dataset == "afew-va"
        split = group_folds(records, 5, seed=seed) if folds else group_holdout(records, 0.2, seed=seed)
        rest, _ = split.train_test(records, f"fold{fold}" if folds else "test")
        return split, group_holdout(records.subset(rest), 0.1, seed=seed, unit=split.unit)
    except ValueError as error:
        kind = records.identity_kind or "picture"
        got = counted(len(set(records.identity if records.identity_kind else records.path)), kind)
        remedy = "unpack the rest of the data set"
        raise ValueError(
            problem(f"what is usable of {records.dataset}", LEAST[records.dataset], got, remedy)
        ) from error


def frame_split(records: Records, share: float = 0.2, *, seed: int = 0) -> Split:
    """Holds out single frames at random. It leaks: neighbouring frames are nearly the same picture.

    Use it only to compare with papers that did the same. Every metric is too good; the split and its file say so
    (``leaks`` is true, ``independent`` is ``"nothing"``), and a warning is issued.

    Args:
        records: the rows.
        share: of the rows, to hold out.
        seed: of the draw.

    Returns:
        Parts ``train`` and ``test``.

    Raises:
        ValueError: an invalid share, or one that leaves a part empty.
    """
    _check_share(share)
    warnings.warn(
        "frame_split leaks: frames of one video lie in train and test, so every metric comes out too good; "
        "group_holdout keeps videos apart",
        UserWarning,
        stacklevel=2,
    )
    keys = sorted(records.key)
    count = round(share * len(keys))
    held = {keys[place] for place in np.random.default_rng(seed).permutation(len(keys))[:count]}
    protocol = f"LEAKING hold-out of {share:g} of the frames at random"
    return _split(records, protocol, "row", seed, {"train": set(keys) - held, "test": held})


def quadrant(valence: float, arousal: float) -> int:
    """The quadrant of the valence–arousal plane: 0 positive/active, 1 negative/active, 2 negative/passive, 3 the last.

    Zero counts as positive.

    Example:
        >>> [quadrant(*label) for label in ((0.5, 0.5), (-0.5, 0.0), (-0.1, -0.1), (0.0, -0.1))]
        [0, 1, 2, 3]
    """
    return (0 if valence >= 0 else 1) if arousal >= 0 else (3 if valence >= 0 else 2)


def stratified_holdout(
    records: Records,
    share: float = 0.02,
    *,
    seed: int = 0,
    same_picture: Mapping[str, str] | None = None,
) -> Split:
    """A separate validation set for AffectNet, whose published validation set is used as the test set by everybody.

    Rows are stratified by expression and quadrant of the valence–arousal plane; each stratum gives ``share`` of its
    pictures, rounded so that the total is right. All rows of one picture (several faces) are on one side. AffectNet
    does not say who is in a picture, so this split is not person-independent, and ``independent`` is ``"picture"``.

    Args:
        records: the rows.
        share: share of the pictures to hold out.
        seed: of the draw.
        same_picture: path → a name for its content, if copies of a picture under several paths must stay together: see
            :func:`same_content`.

    Returns:
        Parts ``train`` and ``validation``.

    Raises:
        ValueError: an invalid share, or one that leaves a part empty.
    """
    _check_share(share)
    pictures = [(same_picture or {}).get(path, path) for path in records.path]
    stratum: dict[str, tuple[int, int]] = {}
    labels = records.labels.tolist()
    for row in sorted(range(len(records)), key=list(records.key).__getitem__):  # whatever the order of the rows
        stratum.setdefault(pictures[row], (int(records.expression[row]), quadrant(*labels[row])))
    members: dict[tuple[int, int], list[str]] = {}
    for picture in sorted(stratum):
        members.setdefault(stratum[picture], []).append(picture)
    # the largest remainder: whole numbers whose sum is the rounded share of all
    exact = np.array([share * len(members[key]) for key in sorted(members)])
    quota = exact.astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: round(share * len(stratum)) - int(quota.sum())]] += 1
    rng = np.random.default_rng(seed)
    chosen: set[str] = set()
    for key, count in zip(sorted(members), quota.tolist(), strict=True):
        chosen.update(members[key][place] for place in rng.permutation(len(members[key]))[:count])
    held = {path for path, picture in zip(records.path, pictures, strict=True) if picture in chosen}
    protocol = f"hold-out of {share:g} of the pictures, stratified by expression and valence-arousal quadrant"
    return _split(records, protocol, "picture", seed, {"train": set(records.path) - held, "validation": held})


def same_content(records: Records) -> dict[str, str]:
    """Finds files with the same bytes under different paths.

    Only files of equal length are read.

    Returns:
        Path → the first path with that content, for every file that has a copy.
    """
    paths = sorted(set(records.path))
    size = {path: (records.root / path).stat().st_size for path in paths}
    alike = Counter(size.values())
    content = {
        path: hashlib.sha256((records.root / path).read_bytes()).digest() for path in paths if alike[size[path]] > 1
    }
    copies, first = Counter(content.values()), {digest: path for path, digest in reversed(content.items())}
    return {path: first[digest] for path, digest in content.items() if copies[digest] > 1}
