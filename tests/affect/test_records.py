from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_margin.affect import concatenate
from adaptive_margin.affect.records import RecordBuilder, Records, codes
from adaptive_margin.images.image_list import strings


def make(keys="abcd", dataset="mine", root=Path("/data"), kind="actor") -> Records:
    rows = RecordBuilder(dataset, root, kind)
    for place, key in enumerate(keys):
        rows.add(
            key,
            f"dir/{key}.png",
            (0.1 * place, -0.1 * place),
            raw=(place, -place),
            identity=None if key == "d" else f"p{place % 2}",
            video="v" if place else None,
            frame=place or None,
            box=(1, 2, 3, 4) if place % 2 else None,
            expression=place or None,
        )
    return rows.build()


@given(st.lists(st.text()))
def test_strings_come_back(values):
    column = strings(values)
    assert list(column) == values
    assert column.shape == (len(values),)
    assert list(pickle.loads(pickle.dumps(column))) == values


def test_names_that_are_not_unicode_survive():
    odd = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert strings([odd])[0] == odd


@given(st.lists(st.one_of(st.none(), st.sampled_from("abc"))))
def test_codes_number_names_as_they_appear(values):
    numbers = codes(strings(values))
    names = list(dict.fromkeys(value for value in values if value is not None))
    assert [None if number < 0 else names[number] for number in numbers] == values


def test_a_record_has_what_was_added():
    records = make()
    assert len(records) == 4
    one = records[1]
    assert (one.key, one.path, one.identity, one.video, one.frame) == ("b", Path("/data/dir/b.png"), "p1", "v", 1)
    assert one.box == (1, 2, 3, 4)
    assert one.raw == (1, -1)
    assert (one.valence, one.arousal) == (float(np.float32(0.1)), float(np.float32(-0.1)))
    zero = records[0]
    assert (zero.video, zero.frame, zero.box, zero.expression) == (None, None, None, None)
    assert records.labels.dtype == np.float32
    assert [record.key for record in records] == list("abcd")


def test_subsets():
    records = make()
    assert [record.key for record in records.subset([2, 0])] == ["c", "a"]
    assert [record.key for record in records.subset(np.array([True, False, False, True]))] == ["a", "d"]
    assert len(records.subset([])) == 0
    part = records.subset([3, 1])
    assert (part[0].identity, part[1].identity) == (None, "p1")
    for positions, says in (
        ([4], "positions from 0 to 3"),
        ([-1], "positions from 0"),
        (np.ones(3, dtype=bool), "mask"),
    ):
        with pytest.raises(ValueError, match=says):
            records.subset(positions)


def test_identity_codes_refuse_the_unknown():
    with pytest.raises(ValueError, match="1 of 4 rows of mine without one"):
        make().identity_codes()
    assert make("abc").identity_codes().tolist() == [0, 1, 0]


def test_the_digest_sees_every_column():
    base = make()
    assert make().digest() == base.digest()
    assert pickle.loads(pickle.dumps(base)).digest() == base.digest()
    others = [make(dataset="other"), make("abdc"), make("abc"), base.subset([1, 0, 2, 3])]
    for name, value in (("labels", base.labels + 1), ("box", base.box + 1), ("expression", base.expression + 1)):
        changed = make()
        object.__setattr__(changed, name, value)
        others.append(changed)
    assert len({base.digest(), *(other.digest() for other in others)}) == len(others) + 1


def test_concatenation():
    both = concatenate([make("ab"), make("cd")])
    assert [record.key for record in both] == list("abcd")
    assert both.labels.shape == (4, 2)
    with pytest.raises(ValueError, match="'a' twice"):
        concatenate([make("ab"), make("a")])
    with pytest.raises(ValueError, match="keep data sets apart"):
        concatenate([make("ab"), make("c", dataset="other")])
    with pytest.raises(ValueError, match="at least one list"):
        concatenate([])


def test_columns_must_fit():
    columns = dict(vars(make()))
    with pytest.raises(ValueError, match=r"labels must be of shape \(4, 2\), got \(3, 2\)"):
        Records(**{**columns, "labels": columns["labels"][:3]})
