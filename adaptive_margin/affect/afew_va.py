"""AFEW-VA: 600 film clips with valence and arousal for every frame, and the actor's name (Kossaifi et al. 2017).

Labels are integers from −10 to 10 and are divided by 10; the corners are outside the unit circle ((8, 8) has r = 1.13).
There are no official splits: the literature uses five folds by actor
(:func:`~adaptive_margin.affect.splits.group_folds`).
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..images._layout import Folders, checked_root, natural, relative, subfolders, wrong_layout
from ..images.decode import read_image
from ..images.errors import MISSING, ImageError, LabelFileError
from ..images.image_list import strings
from ..messages import check_choice, counted, problem, shorten
from ._cells import landmark_box
from .records import RecordBuilder
from .report import BAD_ANNOTATION, NO_FACE, NOT_A_NUMBER, LoadedSplit, Tally, require_rows

NAME = "afew-va"
SPLITS = ("all",)
SCALE = 10.0
ANAMORPHIC = (720, 576)
ANAMORPHIC_STRETCH = 1 / 0.75  # 720x576 shown as 960x576

LAYOUT = """\
  AFEW-VA/
    001/001.json, 00000.png, 00001.png, …
    … 600/
  or, as the twelve archives unpack:
    01/001/001.json, 00000.png, …
    … 12/600/"""


def find_clips(root: Path) -> list[Path]:
    """The folders of the clips, flat or in numbered parts, in order of number; ``*_cropped`` folders are skipped."""
    found: dict[str, Path] = {}
    for folder in _clip_folders(root):
        if folder.name in found:
            got = f"{found[folder.name]} and {folder}"
            raise LabelFileError(problem(f"clip {folder.name}", "there once", got, "remove one of the two"))
        found[folder.name] = folder
    return [found[name] for name in sorted(found, key=natural)]


def _clip_folders(root: Path, parts: int = 2) -> Iterator[Path]:
    for folder in subfolders(root):
        if re.fullmatch(r"\d{3}", folder.name):
            yield folder
        elif parts and re.fullmatch(r"\d{1,2}|AFEW-VA.*", folder.name, re.IGNORECASE):
            yield from _clip_folders(folder, parts - 1)


def is_afew_va(root: Path) -> bool:
    """Whether ``root`` has a clip folder with its JSON file."""
    return any((clip / f"{clip.name}.json").is_file() for clip in _clip_folders(root))


def normalise_actor(text: object) -> str | None:
    """An actor's name without differences in case, spacing and Unicode form; ``None`` if nothing is left.

    Example:
        >>> normalise_actor("  Jane   DOE "), normalise_actor(""), normalise_actor(None)
        ('jane doe', None, None)
    """
    if not isinstance(text, str):
        return None
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain or None


def similar_names(names: list[str], closeness: float = 0.88) -> list[tuple[str, str]]:
    """Pairs of names that may be two spellings of one name; a human must decide.

    Example:
        >>> similar_names(["jane doe", "jane do", "john roe"])
        [('jane do', 'jane doe')]
    """
    ordered = sorted(names)
    return [
        (one, other)
        for place, one in enumerate(ordered, 1)
        for other in sorted(difflib.get_close_matches(one, ordered[place:], len(ordered), closeness))
    ]


def joined_names(pairs: Iterable[tuple[str, str]], known: Iterable[str]) -> dict[str, str]:
    """The replacement of each name in some pairs: names that are connected by a chain of pairs belong to one person.

    Args:
        pairs: a spelling and the spelling to use instead, in any form that :func:`normalise_actor` accepts.
        known: the existing names, normalised.

    Raises:
        ValueError: a name that is not among them; similar ones are listed.

    Example:
        >>> joined_names([("Jane Do", "Jane Doe"), ("jane  d.", "jane do")], ["jane do", "jane d.", "jane doe"])
        {'jane do': 'jane doe', 'jane doe': 'jane doe', 'jane d.': 'jane doe'}
    """
    there = sorted(set(known))
    target: dict[str, str] = {}
    for pair in pairs:
        names = [normalise_actor(text) or "" for text in pair]
        for text, name in zip(pair, names, strict=True):
            if name not in there:
                near = difflib.get_close_matches(name, there, n=3)
                which = "similar names" if near else "known names"
                remedy = f"{which} are {shorten([repr(each) for each in near or there])}"
                raise ValueError(problem("same_actor", "pairs of names that clips have", repr(text), remedy))
        spelling, other = (target.setdefault(name, name) for name in names)
        target.update({name: other for name, now in target.items() if now == spelling})
    return target


def load_afew_va(
    root: str | os.PathLike[str],
    split: str = "all",
    *,
    crop: str = "landmarks",
    margin: float = 1.3,
    aspect_fix: bool = False,
    same_actor: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    skip_unreadable: int | float = 0,
) -> LoadedSplit:
    """The usable frames of AFEW-VA.

    Labels and images are joined on the frame's name, never by position. A clip without an actor's name is a separate
    identity, counted in a note: it cannot be kept in one fold with other clips of the same person.

    Args:
        root: the folder with the clips, flat or in numbered parts.
        split: ``"all"``; there is no other.
        crop: ``"landmarks"`` for the square around the landmarks, ``"none"`` for the whole frame.
        margin: side of that square, as a multiple of the landmarks' extent; 1.25 to 1.4 are common.
        aspect_fix: widen frames of 720 by 576 pixels to 960, their intended display width. Off in published results.
        same_actor: spelling → the spelling to use for it, or pairs of these, for names that the report lists as
            similar. Compared like the names of the clips: without case, spacing and Unicode form.
        skip_unreadable: how many frames may lack their image or belong to a clip with a damaged JSON file: a number, or
            a share of the frames.

    Returns:
        ``(records, report)``; keys are ``"001/00000"``, the identity is the actor, ``frame`` counts from 0 like the
        files, ``raw`` has the integers.

    Raises:
        LayoutError: there are no clips in ``root``.
        LabelFileError: a JSON file belongs to another clip, or a clip is there twice.
        UnreadableError: more frames are unreadable than allowed.
        ValueError: an unknown option, a name in ``same_actor`` that no clip has, or no usable frame.
    """
    check_choice("split", split, SPLITS)
    check_choice("crop", crop, ("landmarks", "none"))
    if not margin >= 1:
        raise ValueError(problem("margin", "at least 1", margin, "1.3 leaves some forehead"))
    base = checked_root(root, "AFEW-VA", LAYOUT)
    clips = find_clips(base)
    if not any((clip / f"{clip.name}.json").is_file() for clip in clips):
        raise wrong_layout(base, "AFEW-VA", LAYOUT, "folder like 001/ with 001.json in it")
    tally, rows, listings = Tally(NAME, split), RecordBuilder(NAME, base, "actor"), Folders()
    nameless: list[str] = []
    actors: set[str] = set()
    unlabelled = 0
    for clip in clips:
        path = clip / f"{clip.name}.json"
        images = {os.path.splitext(name)[0]: name for name in listings.images(clip)}
        try:
            content = _read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, LabelFileError):
                raise
            tally.read(max(1, len(images)))  # how many frames it had labels for cannot be known
            what = "no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
            tally.drop(BAD_ANNOTATION, f"{relative(path, base)}: {what}", max(1, len(images)))
            continue
        actor = normalise_actor(content.get("actor"))
        if actor is None:
            nameless.append(clip.name)
            actor = f"clip {clip.name}"
        else:
            actors.add(actor)
        stretch = _stretch(clip, images) if aspect_fix else 1.0
        frames = content["frames"]
        unlabelled += len(set(images) - set(frames))
        for stem in sorted(frames, key=natural):
            tally.read()
            key = f"{clip.name}/{stem}"
            entry = frames[stem] if isinstance(frames[stem], dict) else {}
            numbers = _label(entry.get("valence")), _label(entry.get("arousal"))
            if not math.isfinite(numbers[0] + numbers[1]):
                tally.drop(NOT_A_NUMBER, f"{key}: {entry.get('valence')!r}, {entry.get('arousal')!r}")
                continue
            box = None
            if crop == "landmarks":
                box = landmark_box(entry.get("landmarks"), margin, stretch)
                if box is None:
                    tally.drop(NO_FACE, f"{key}: no landmarks")
                    continue
            if stem not in images:
                tally.drop(MISSING, f"{key}: {relative(clip, base)}/{stem}.png")
                continue
            rows.add(
                key,
                f"{relative(clip, base)}/{images[stem]}",
                (numbers[0] / SCALE, numbers[1] / SCALE),
                raw=numbers,
                identity=actor,
                video=clip.name,
                frame=int(stem) if stem.isdecimal() else None,
                box=box,
                stretch=stretch,
            )
    if nameless:
        clips_without = counted(len(nameless), "clip")
        tally.note(f"{clips_without} without an actor's name, each counted as a separate person: {shorten(nameless)}")
    same = joined_names(same_actor.items() if isinstance(same_actor, Mapping) else same_actor, actors)
    similar = similar_names(sorted({same.get(actor, actor) for actor in actors}))
    if similar:
        pairs = shorten([f"{one!r} and {other!r}" for one, other in similar])
        tally.note(f"names that may be one person's, to be joined with same_actor= (training: --same-actor): {pairs}")
    if unlabelled:
        tally.note(f"{counted(unlabelled, 'image')} without a label left out")
    parents = {clip.parent for clip in clips}
    cropped = sum(folder.name.endswith("_cropped") for parent in parents for folder in subfolders(parent))
    if cropped:
        tally.note(f"{counted(cropped, '*_cropped folder')} skipped")
    records = rows.build()
    people = strings(name if name is None else same.get(name, name) for name in records.identity)
    return require_rows(tally.finish(replace(records, identity=people), skip_unreadable))


def _read(path: Path) -> dict[str, Any]:
    """A clip's JSON; a LabelFileError if it is another clip's, any other error if it is missing or damaged."""
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict) or not isinstance(content["frames"], dict):
        raise TypeError("no frames by name")
    if str(content["video_id"]) != path.parent.name:
        got = f"video_id {content['video_id']!r}"
        raise LabelFileError(
            problem(f"{path}", f"of clip {path.parent.name}", got, "move the file to the folder of its clip")
        )
    return content


def _label(value: object) -> float:
    """A label from the JSON; NaN if it is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _stretch(clip: Path, images: Mapping[str, str]) -> float:
    """The factor by which to widen the frames of a clip, all of one size: the first readable one decides."""
    for name in sorted(images.values(), key=natural):
        with contextlib.suppress(ImageError):
            return ANAMORPHIC_STRETCH if read_image(clip / name).size == ANAMORPHIC else 1.0
    return 1.0
