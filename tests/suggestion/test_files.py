"""Embeddings and labels from every kind of file."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from adaptive_margin.suggestion import read_embeddings

X = np.array([[0.5, -1.0], [2.0, 0.25], [1e-3, 4.0]], dtype=np.float32)
Y = np.array([7, 3, 7])
NAMES = np.array(["dog", "cat", "dog"])


def same(path: Path, labels: Path | None = None, y: list[int] | None = None) -> None:
    found, numbers = read_embeddings(path, labels)
    assert found.dtype == torch.float32
    assert numbers.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), X)
    assert numbers.tolist() == (y or Y.tolist())


@pytest.mark.parametrize("names", [("embeddings", "labels"), ("Features", "y"), ("whatever", "else")])
def test_archives(tmp_path: Path, names: tuple[str, str]) -> None:
    np.savez(tmp_path / "a.npz", **dict(zip(names, (X, Y), strict=True)))
    same(tmp_path / "a.npz")
    torch.save(dict(zip(names, (torch.tensor(X), torch.tensor(Y)), strict=True)), tmp_path / "a.pt")
    same(tmp_path / "a.pt")


def test_names_choose_among_several(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", other=np.zeros((3, 9)), embeddings=X, labels=Y, fold=np.zeros(3))
    same(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", one=X, two=X, labels=Y)
    with pytest.raises(ValueError, match="name it 'embeddings' if there are several"):
        read_embeddings(tmp_path / "b.npz")


def test_tensors_pairs_and_half_precision(tmp_path: Path) -> None:
    torch.save((torch.tensor(X), torch.tensor(Y)), tmp_path / "pair.pt")
    same(tmp_path / "pair.pt")
    torch.save({"embeddings": torch.tensor(X).bfloat16(), "labels": ["b", "a", "b"]}, tmp_path / "half.pt")
    found, labels = read_embeddings(tmp_path / "half.pt")
    assert found.dtype == torch.float32
    assert labels.tolist() == [1, 0, 1]
    torch.save(torch.tensor(X).double(), tmp_path / "x.pt")
    np.save(tmp_path / "y.npy", Y)
    assert read_embeddings(tmp_path / "x.pt", tmp_path / "y.npy")[0].dtype == torch.float64


def labels_in(folder: Path) -> dict[str, Path]:
    np.save(folder / "y.npy", NAMES)
    np.save(folder / "column.npy", Y[:, None])
    (folder / "y.txt").write_text("dog\ncat\ndog\n")
    (folder / "y.csv").write_text("label\ndog\ncat\ndog\n")
    (folder / "bare.csv").write_text("7\n3\n7\n")
    torch.save(torch.tensor(Y), folder / "y.pt")
    return {name: folder / name for name in ("y.npy", "column.npy", "y.txt", "y.csv", "bare.csv", "y.pt")}


@pytest.mark.parametrize("name", ["y.npy", "column.npy", "y.txt", "y.csv", "bare.csv", "y.pt"])
def test_labels_of_their_own(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "x.npy", X)
    same(tmp_path / "x.npy", labels_in(tmp_path)[name], [1, 0, 1] if name in ("y.npy", "y.txt", "y.csv") else None)


CSV = {
    "header": "a,b,label\n0.5,-1,7\n2,0.25,3\n1e-3,4,7\n",
    "label first": "Class,0,1\n7,0.5,-1\n3,2,0.25\n7,1e-3,4\n",
    "none": "0.5,-1,7\n2,0.25,3\n1e-3,4,7\n",
    "names": 'a,b,label\n0.5,-1,"dog, big"\n2,0.25,cat\n1e-3,4,"dog, big"\n',
    "mark": "\ufeffa,b,label\r\n0.5,-1,7\r\n2,0.25,3\r\n1e-3,4,7\r\n",
}


@pytest.mark.parametrize("kind", CSV)
def test_csv(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.csv").write_text(CSV[kind], encoding="utf-8")
    same(tmp_path / "a.csv", y=[1, 0, 1] if kind == "names" else None)


def test_csv_of_embeddings_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", Y)
    (tmp_path / "a.csv").write_text("0.5,-1\n2,0.25\n1e-3,4\n")
    same(tmp_path / "a.csv", tmp_path / "y.npy")
    (tmp_path / "b.csv").write_text("a,b,label\n0.5,-1,x\n2,0.25,y\n1e-3,4,z\n")  # others take its place
    same(tmp_path / "b.csv", tmp_path / "y.npy")


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"a": X[:, 0], "b": X[:, 1], "label": Y}), tmp_path / "wide.parquet")
    same(tmp_path / "wide.parquet")
    lists = {"id": ["p", "q", "r"], "embedding": X.tolist(), "label": NAMES}
    parquet.write_table(pa.table(lists), tmp_path / "lists.parquet")
    found, labels = read_embeddings(tmp_path / "lists.parquet")
    np.testing.assert_allclose(found.numpy(), X)
    assert labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(("odd", "got"), [([1.0], "1"), ([], "no"), (None, "no"), ([1.0, 2.0, 3.0], "3")])
def test_the_row_of_an_odd_list_is_named(tmp_path: Path, odd: list[float] | None, got: str) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lists = [[1.0, 2.0]] * 1500 + [odd]  # beyond the first thousand
    parquet.write_table(pa.table({"embedding": lists, "label": [0, 1, 2] * 500 + [0]}), tmp_path / "a.parquet")
    said = rf"a\.parquet, column 'embedding' must be lists of one length \(2\), got {got} in row 1500"
    with pytest.raises(ValueError, match=said):
        read_embeddings(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0.1"])
def test_the_index_of_a_pandas_table_is_no_feature(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{name},a,b,label\n0,0.5,-1,7\n1,2,0.25,3\n2,1e-3,4,7\n")
    with pytest.warns(UserWarning, match=rf"a\.csv: left out '{name}', the index of a pandas table"):
        same(path)
    path.write_text(f"{name},label\n0,7\n1,3\n2,7\n")
    np.save(tmp_path / "x.npy", X)
    with pytest.warns(UserWarning, match="left out"):
        same(tmp_path / "x.npy", path)


def test_numbered_columns_of_pandas_are_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("0,1,2\n0.5,-1,7\n2,0.25,3\n1e-3,4,7\n")
    with pytest.warns(UserWarning, match=r"a\.csv: its first line, 0 to 2, is taken for the header") as said:
        same(tmp_path / "a.csv")
    assert {each.filename for each in said} == {__file__}


@pytest.mark.parametrize("name", ["__index_level_0__", "picture"])
def test_the_index_in_parquet_is_no_feature(tmp_path: Path, name: str) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"a": X[:, 0], "b": X[:, 1], "label": Y, name: [5, 6, 7]})
    if name == "picture":  # an index with a name is found by what pandas writes beside the table
        table = table.replace_schema_metadata({"pandas": '{"index_columns": ["picture"], "columns": []}'})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match=f"left out '{name}', the index"):
        same(tmp_path / "a.parquet")


LARGE = [2**53, 2**53 + 1, 2**53]  # in float64 they are one number


@pytest.mark.parametrize("kind", ["csv", "txt", "npy", "list", "parquet"])
def test_large_whole_numbers_stay_exact(tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "x.npy", X)
    path = tmp_path / f"y.{'pt' if kind == 'list' else kind}"
    if kind in ("csv", "txt"):
        path.write_text("".join(f"{each}\n" for each in LARGE))
    elif kind == "npy":
        np.save(path, np.array(LARGE))
    elif kind == "list":
        torch.save({"labels": LARGE}, path)
    else:
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.table({"label": LARGE}), path)
    same(tmp_path / "x.npy", path, LARGE)


def test_numbers_beyond_int64_are_names(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "y.txt").write_text(f"{2**64 + 1}\n{2**64}\n{2**64 + 1}\n")
    same(tmp_path / "x.npy", tmp_path / "y.txt", [1, 0, 1])
    np.save(tmp_path / "y.npy", np.array([2**63 + 1, 2**63, 2**63 + 1], dtype=np.uint64))
    same(tmp_path / "x.npy", tmp_path / "y.npy", [1, 0, 1])
    (tmp_path / "y.txt").write_text("1_1\n11\n1_1\n")  # Python would read both as 11
    same(tmp_path / "x.npy", tmp_path / "y.txt", [1, 0, 1])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([0, np.inf, 1]), "whole numbers or names, got such as inf"),
        (np.array([0, np.nan, -np.inf]), "whole numbers or names, got such as nan"),
        (np.array([0, 1e300, 1]), "where float64 skips numbers; store them as int64"),
        (np.array([0, 2.0**24, 1], dtype=np.float32), "16777216, where float32 skips numbers; store them as int64"),
        (np.array(["a", "", "b"]), "one for each row, got none in row 1"),
    ],
)
def test_labels_that_cannot_be_numbered(tmp_path: Path, labels: np.ndarray, said: str) -> None:
    np.savez(tmp_path / "a.npz", embeddings=X, labels=labels)
    with pytest.raises(ValueError, match=f"LABELS must be .*{said}"):
        read_embeddings(tmp_path / "a.npz")


def test_a_missing_label_in_parquet_is_no_class(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for labels in (["a", None, "b"], [1, None, 2]):
        parquet.write_table(pa.table({"a": X[:, 0], "label": labels}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match="LABELS must be one for each row, got none in row 1"):
            read_embeddings(tmp_path / "a.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ImportError, match="pip install pyarrow"):
        read_embeddings(tmp_path / "a.parquet")


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return pytest.fail, ("it was executed",)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".pt"])
def test_nothing_is_unpickled(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    if ending == ".pt":
        torch.save({"embeddings": Bomb()}, path)
    elif ending == ".npy":
        np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    else:
        np.savez(path, embeddings=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match=f"a{ending} must be a readable {ending} file, got an error"):
        read_embeddings(path)
    for damaged in (pickle.dumps(Bomb()), path.read_bytes()[:60], b"\x93NUMPY\x01\x00\x10\x00{'descr': (("):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="must be a readable"):
            read_embeddings(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="must be a readable"):
        read_embeddings(path)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y[:2])
    np.save(tmp_path / "half.npy", np.array([0.5, 1, 2]))
    np.save(tmp_path / "words.npy", np.array([["a", "b"]] * 3))
    with pytest.raises(ValueError, match=r"LABELS must be given, got none in x\.npy"):
        read_embeddings(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="LABELS must be of 3 rows, got 2 labels"):
        read_embeddings(tmp_path / "x.npy", tmp_path / "y.npy")
    with pytest.raises(ValueError, match=r"whole numbers or names, got such as 0\.5"):
        read_embeddings(tmp_path / "x.npy", tmp_path / "half.npy")
    with pytest.raises(ValueError, match="numbers, but for the labels"):
        read_embeddings(tmp_path / "words.npy", tmp_path / "half.npy")
    with pytest.raises(ValueError, match="a file that ends in"):
        read_embeddings(tmp_path / "x.h5")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_embeddings(tmp_path / "none.npy")
