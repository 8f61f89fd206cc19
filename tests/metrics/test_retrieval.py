import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester, GlobalTwoStreamEmbeddingSpaceTester
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from torch.testing import assert_close

from adaptive_margin.functional import nearest_neighbours
from adaptive_margin.functional import neighbours as neighbours_module
from adaptive_margin.metrics import (
    RetrievalMetrics,
    adjusted_mutual_information,
    kmeans,
    normalized_mutual_information,
)
from adaptive_margin.metrics.retrieval import HOSTS

from ..references.retrieval import mutual_informations_slow, neighbours_slow, retrieval_slow

AT_R = ["r_precision", "mean_average_precision_at_r"]
small_integers = st.integers(-3, 3)


def whole_numbers(rows, features):
    """Embeddings whose distances are exact in float32 and often tie."""
    return torch.randint(-2, 3, (rows, features)).float()


def clustered(rows, classes, features=8, spread=0.6):
    labels = torch.randint(0, classes, (rows,))
    return torch.randn(classes, features)[labels] + spread * torch.randn(rows, features), labels


# ---- neighbours ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["squared_l2", "cosine"])
@pytest.mark.parametrize("own", [True, False])
def test_neighbours_match_the_loop(distance, own):
    x, y = torch.randn(9, 5), torch.randn(13, 5)
    y = x if own else y
    distances, indices = nearest_neighbours(x, None if own else y, k=6, distance=distance)
    slow = neighbours_slow(x, y, 6, distance, own)
    assert indices.tolist() == [[j for _, j in row] for row in slow]
    assert_close(distances.double(), torch.tensor([[d for d, _ in row] for row in slow]).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tile_entries", [1, 7, 64, 1 << 22])
@pytest.mark.parametrize("columns", [3, 4, 16384])
def test_ties_go_to_the_lower_index_for_every_tile_size(monkeypatch, tile_entries, columns):
    monkeypatch.setattr(neighbours_module, "_COLUMNS", columns)
    x = whole_numbers(23, 2)  # 25 possible points: many ties
    distances, indices = nearest_neighbours(x, k=11, tile_entries=tile_entries)
    slow = neighbours_slow(x, x, 11, own=True)
    assert indices.tolist() == [[j for _, j in row] for row in slow]
    assert distances.tolist() == [[d for d, _ in row] for row in slow]


@given(st.data())
def test_neighbours_of_any_shape(data):
    q, r, d = data.draw(st.integers(1, 7)), data.draw(st.integers(2, 9)), data.draw(st.integers(1, 4))
    own = data.draw(st.booleans())

    def draw(rows):
        values = data.draw(st.lists(small_integers, min_size=rows * d, max_size=rows * d))
        return torch.tensor(values).view(rows, d).float()

    y = draw(r)
    x = y[: min(q, r)] if own else draw(q)
    k = data.draw(st.integers(1, r - int(own)))
    _, indices = nearest_neighbours(
        x, y, k, ref_includes_query=own, tile_entries=data.draw(st.sampled_from([1, 5, 1000]))
    )
    assert indices.tolist() == [[j for _, j in row] for row in neighbours_slow(x, y, k, own=own)]


def test_own_index_is_left_out_and_duplicates_are_found():
    x = torch.tensor([[1.0, 2.0]]).repeat(5, 1)
    distances, indices = nearest_neighbours(x, k=4)
    assert indices.tolist() == [[j for j in range(5) if j != i] for i in range(5)]
    assert distances.tolist() == [[0.0] * 4] * 5


def test_rounding_never_takes_a_distance_below_zero():
    x = (100 * torch.randn(1, 301)).repeat(50, 1) + 1e-4 * torch.randn(50, 301)  # |x|² is 3e6, distances are 1e-5
    for distance in ("squared_l2", "cosine"):
        distances, _ = nearest_neighbours(x, k=49, distance=distance)
        assert bool((distances >= 0).all())
        assert bool((distances.diff(dim=1) >= 0).all())


def test_zero_rows():
    x = torch.zeros(3, 4)
    assert nearest_neighbours(x, k=2)[1].tolist() == [[1, 2], [0, 2], [0, 1]]
    distances, indices = nearest_neighbours(x, torch.eye(4), k=4, distance="cosine")
    assert indices.tolist() == [[0, 1, 2, 3]] * 3
    assert distances.tolist() == [[1.0] * 4] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_are_computed_in_float32(dtype):
    x = torch.randn(20, 6, dtype=dtype)
    for got, expected in zip(nearest_neighbours(x, k=5), nearest_neighbours(x.float(), k=5), strict=True):
        assert torch.equal(got, expected)


def test_neighbours_of_strided_rows_under_autocast_and_with_gradients():
    base = torch.randn(40, 12, requires_grad=True)
    x = base[::2, ::3]
    assert not x.is_contiguous()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distances, indices = nearest_neighbours(x, k=7)
    expected = nearest_neighbours(x.detach().clone(), k=7)
    assert torch.equal(indices, expected[1])
    assert torch.equal(distances, expected[0])
    assert not distances.requires_grad


def test_neighbours_of_nothing():
    distances, indices = nearest_neighbours(torch.empty(0, 3), torch.randn(4, 3), k=2)
    assert distances.shape == indices.shape == (0, 2)
    assert nearest_neighbours(torch.empty(0, 3), k=2)[1].shape == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 4}, ValueError, r"k must be an integer from 1 to the 3 references.*got 4; ask for fewer"),
        ({"k": 0}, ValueError, "k must be an integer from 1"),
        ({"k": 2.0}, ValueError, r"k must be an integer.*got 2.0"),
        ({"distance": "l2"}, ValueError, r"distance must be one of .*got 'l2'"),
        ({"tile_entries": 0}, ValueError, "tile_entries must be an integer >= 1, got 0"),
        ({"reference": torch.randn(3, 5)}, ValueError, "reference must be of the 2 features of query, got 5 features"),
        ({"reference": [1.0]}, TypeError, "reference must be a torch.Tensor, got list"),
        ({"reference": torch.ones(3, 2).long()}, TypeError, "reference must be floating point"),
        ({"reference": torch.full((3, 2), math.nan)}, ValueError, "reference must be finite, got 6 NaN"),
        ({"reference": torch.full((3, 2), 1e30)}, ValueError, r"reference must be small enough.*up to 1e\+30"),
        ({"reference": torch.randn(9, 2), "ref_includes_query": True}, ValueError, "followed by the other references"),
        ({"reference": torch.empty(0, 2)}, ValueError, "k must be an integer from 1 to the 0 references"),
        ({"query": torch.randn(4)}, ValueError, r"query must be a matrix.*got shape \(4,\)"),
    ],
)
def test_wrong_searches_say_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        nearest_neighbours(**{"query": torch.randn(4, 2), **arguments})


# ---- Recall@k, R-Precision, MAP@R ----------------------------------------------------------------------------------


def test_by_hand():
    # Nearest first: 0 finds 1, 2, 3, 4; 1 finds 0, 2, 3, 4; 2 finds 1, 0, 3, 4; 3 finds 4, 2, 1, 0; 4 finds 3, 2, 1, 0.
    x = torch.tensor([[0.0], [1.0], [2.1], [5.0], [6.0]])
    labels = torch.tensor([0, 0, 1, 0, 1])
    # R = 2, 2, 1, 2, 1. Hits: 0: 1 0 1 0. 1: 1 0 1 0. 2: 0 0 0 1. 3: 0 0 1 1. 4: 0 1 0 0.
    assert RetrievalMetrics(ks=(1, 2, 3, 4))(x, labels) == {
        "recall_at_1": 2 / 5,
        "recall_at_2": 3 / 5,
        "recall_at_3": 4 / 5,
        "recall_at_4": 1.0,
        "r_precision": (1 / 2 + 1 / 2) / 5,
        "mean_average_precision_at_r": (1 / 2 + 1 / 2) / 5,
    }


def test_average_precision_counts_the_rank():
    # One query of R = 3 with hits 0 1 1 at ranks 1, 2, 3: RP = 2/3, MAP@R = (1/2 + 2/3) / 3.
    reference = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    figures = RetrievalMetrics(ks=[1])(torch.zeros(1, 1), torch.tensor([7]), reference, torch.tensor([3, 7, 7, 7]))
    assert figures["r_precision"] == pytest.approx(2 / 3, abs=1e-15)
    assert figures["mean_average_precision_at_r"] == pytest.approx(7 / 18, abs=1e-15)


@pytest.mark.parametrize("tile_entries", [1, 50, 1 << 22])
@pytest.mark.parametrize("mode", ["self", "gallery", "included"])
def test_matches_the_loop(monkeypatch, tile_entries, mode):
    monkeypatch.setattr(neighbours_module, "_COLUMNS", 8)
    x, labels = whole_numbers(31, 3), torch.randint(0, 9, (31,))
    y, y_labels = whole_numbers(17, 3), torch.randint(4, 12, (17,))  # classes 0 to 3 are lone here
    metrics = RetrievalMetrics(ks=(1, 3, 10), tile_entries=tile_entries)
    if mode == "self":
        got, expected = metrics(x, labels), retrieval_slow(x, labels, x, labels, metrics.ks, own=True)
    elif mode == "gallery":
        got = metrics(x, labels, y, y_labels)
        expected = retrieval_slow(x, labels, y, y_labels, metrics.ks, own=False)
        assert metrics.lone_queries == sum(label not in y_labels.tolist() for label in labels.tolist()) > 0
    else:
        both, both_labels = torch.cat([x, y]), torch.cat([labels, y_labels])
        got = metrics(x, labels, both, both_labels, ref_includes_query=True)
        expected = retrieval_slow(x, labels, both, both_labels, metrics.ks, own=True)
    assert got == pytest.approx(expected, abs=1e-12)


def stock(k="max_bin_count", **kwargs):
    return AccuracyCalculator(include=["precision_at_1", *AT_R], k=k, device=torch.device("cpu"), **kwargs)


@pytest.mark.parametrize("search", ["tiled", "faiss"])
@pytest.mark.parametrize("mode", ["self", "gallery", "included"])
@pytest.mark.parametrize("classes", [5, 120])  # 120 classes of 200 rows: some have one
def test_equals_the_stock_calculator(search, mode, classes):
    if search == "faiss":
        pytest.importorskip("faiss")
    x, labels = clustered(200, classes)
    y, y_labels = clustered(150, classes // 2 + 1)
    if mode == "self":
        arguments = (x, labels)
    elif mode == "gallery":
        arguments = (x, labels, y, y_labels)
    else:
        arguments = (x, labels, torch.cat([x, y]), torch.cat([labels, y_labels]), True)
    expected = stock().get_accuracy(*arguments)
    metrics = RetrievalMetrics(ks=(1, 5), search=search)
    got = metrics(*arguments)
    assert got["recall_at_1"] == pytest.approx(expected["precision_at_1"], abs=1e-12)
    for name in AT_R:
        assert got[name] == pytest.approx(expected[name], abs=1e-12)
    assert 0 < got["recall_at_1"] < 1
    assert metrics.counted_queries + metrics.lone_queries == 200
    assert (metrics.lone_queries > 0) == (classes == 120 or mode == "gallery")


def test_cosine_equals_the_stock_calculator():
    x, labels = clustered(150, 10)
    x = x * torch.rand(150, 1)  # lengths that L2 would see
    expected = stock(knn_func=CustomKNN(CosineSimilarity())).get_accuracy(x, labels)
    got = RetrievalMetrics(ks=(1,), distance="cosine")(x, labels)
    assert got["recall_at_1"] == pytest.approx(expected["precision_at_1"], abs=1e-12)
    for name in AT_R:
        assert got[name] == pytest.approx(expected[name], abs=1e-12)
    assert got != RetrievalMetrics(ks=(1,))(x, labels)


def test_faiss_finds_what_the_tiles_find():
    pytest.importorskip("faiss")
    x, labels = clustered(120, 7)
    for distance in ("squared_l2", "cosine"):
        tiled = RetrievalMetrics(distance=distance)(x.half(), labels)
        found = RetrievalMetrics(distance=distance, search="faiss", tile_entries=1000)(x.half(), labels)
        assert found == pytest.approx(tiled, abs=1e-12)
    # Thirty times the same row: faiss returns four of them, which need not be the row itself.
    metrics = RetrievalMetrics(ks=(3,), at_r=False, search="faiss")
    assert metrics(torch.ones(30, 3), torch.zeros(30).long()) == {"recall_at_3": 1.0}


@given(st.lists(st.tuples(small_integers, small_integers, st.integers(0, 3)), min_size=2, max_size=12))
def test_properties(rows):
    x, labels = torch.tensor([row[:2] for row in rows]).float(), torch.tensor([row[2] for row in rows])
    metrics = RetrievalMetrics(ks=(1, 2, 3, 50))
    figures = metrics(x, labels)
    if metrics.counted_queries == 0:
        assert all(math.isnan(value) for value in figures.values())
        return
    recalls = [figures[f"recall_at_{k}"] for k in metrics.ks]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1.0  # k beyond the references: all of them
    assert 0 <= figures["mean_average_precision_at_r"] <= figures["r_precision"] <= 1
    assert figures == pytest.approx(retrieval_slow(x, labels, x, labels, metrics.ks, own=True), abs=1e-12)
    # Names of classes, moving and scaling change nothing.
    assert metrics(2 * x + 3, 1000 - 7 * labels) == figures


def test_perfect_classes():
    labels = torch.arange(40) // 4
    figures = RetrievalMetrics(clustering=lambda x, n: labels + 5)(labels[:, None].float(), labels)
    assert figures == pytest.approx(dict.fromkeys(figures, 1.0), abs=1e-12)


def test_labels_that_float32_would_confuse():
    # The host turns labels into float32, where 2^24 and 2^24 + 1 are the same number.
    labels = torch.tensor([2**24, 2**24 + 1, 2**24, 2**24 + 1])
    x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    assert RetrievalMetrics(ks=(1,))(x, labels)["recall_at_1"] == 0.0


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_nothing_to_find_is_nan(rows):
    metrics = RetrievalMetrics(ks=(1,))
    figures = metrics(torch.randn(rows, 2), torch.arange(rows))
    assert set(figures) == {"recall_at_1", *AT_R}
    assert all(math.isnan(value) for value in figures.values())
    assert (metrics.counted_queries, metrics.lone_queries) == (0, rows)
    assert math.isnan(
        RetrievalMetrics(ks=(1,))(torch.randn(2, 2), torch.zeros(2).long(), torch.empty(0, 2), torch.empty(0).long())[
            "recall_at_1"
        ]
    )


def test_one_class_and_two_rows():
    assert RetrievalMetrics(ks=(1,))(torch.randn(2, 3), torch.zeros(2).long()) == {
        "recall_at_1": 1.0, "r_precision": 1.0, "mean_average_precision_at_r": 1.0
    }  # fmt: skip


def test_recall_alone():
    x, labels = clustered(60, 3)
    whole, recall = RetrievalMetrics()(x, labels), RetrievalMetrics(at_r=False)(x, labels)
    assert recall == {name: whole[name] for name in recall}
    assert not set(AT_R) & set(recall)
    assert set(RetrievalMetrics(ks=())(x, labels)) == set(AT_R)


def test_in_the_place_of_the_testers_calculator():
    x, labels = clustered(60, 6)
    data = torch.utils.data.TensorDataset(x, labels)
    metrics = RetrievalMetrics(ks=(1, 2), clustering="kmeans")
    tester = GlobalEmbeddingSpaceTester(
        normalize_embeddings=False, accuracy_calculator=metrics, dataloader_num_workers=0, data_device="cpu"
    )
    figures = tester.test({"val": data}, 1, torch.nn.Identity())["val"]
    expected = metrics(x, labels)
    assert list(expected) == metrics.get_curr_metrics()
    assert {name: figures[f"{name}_level0"] for name in expected} == expected


class TwoViews(torch.utils.data.Dataset):
    """Rows, each with another view of it: what the host's two-stream tester reads."""

    def __init__(self, x, views, labels):
        self.rows = list(zip(x, views, labels.tolist(), strict=True))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def test_in_the_hosts_two_stream_tester_whose_labels_are_floats():
    torch.manual_seed(0)
    x, labels = torch.randn(30, 4), torch.arange(30) % 5
    views = x + 0.7 * torch.randn(30, 4)
    metrics = RetrievalMetrics()
    tester = GlobalTwoStreamEmbeddingSpaceTester(
        accuracy_calculator=metrics, normalize_embeddings=False, dataloader_num_workers=0
    )
    figures = tester.test({"val": TwoViews(x, views, labels)}, 0, torch.nn.Identity())["val"]
    expected = metrics(x, labels, views, labels)
    assert {name: figures[f"{name}_level0"] for name in expected} == expected


def test_arrays_integers_and_labels_of_every_dtype():
    x, labels = torch.tensor([[0, 0], [1, 0], [1, 1], [5, 5]]), torch.tensor([0, 0, 1, 1])
    expected = RetrievalMetrics()(x.float(), labels)
    for dtype in (torch.int8, torch.uint8, torch.int32, torch.float16, torch.float64, torch.bool, torch.uint64):
        assert RetrievalMetrics()(x, labels.to(dtype)) == expected
    assert RetrievalMetrics()(x.numpy(), labels.numpy()) == expected
    assert RetrievalMetrics()(x.double().numpy(), labels.numpy(), x.numpy(), labels.float().numpy(), True) == expected


def test_included_figures_are_those_of_the_stock_calculator():
    torch.manual_seed(0)
    x, labels = torch.randn(60, 4), torch.arange(60) % 7
    everything = RetrievalMetrics(ks=(1, 2), clustering="kmeans")(x, labels)
    names = ("precision_at_1", "mean_average_precision_at_r")
    stock = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    metrics = RetrievalMetrics(include=names)
    assert metrics.get_curr_metrics() == list(names)
    assert metrics(x, labels) == pytest.approx(stock.get_accuracy(x, labels), abs=1e-12)
    assert metrics.get_accuracy(x, labels, exclude=names[1:]) == {names[0]: everything["recall_at_1"]}
    some = RetrievalMetrics(ks=(1, 2), clustering="kmeans", exclude=("recall_at_2", "r_precision", "AMI"))
    assert list(some(x, labels)) == ["recall_at_1", "mean_average_precision_at_r", "NMI"]
    assert some(x, labels) == {name: everything[name] for name in some.get_curr_metrics()}
    assert some(x, labels, include=["NMI"]) == {"NMI": everything["NMI"]}
    assert RetrievalMetrics(include=set(names)).get_curr_metrics() == sorted(names)  # as many a script of the host's
    assert metrics(x, labels, exclude={"precision_at_1"}) == {names[1]: everything[names[1]]}


def test_what_is_not_computed_can_be_excluded_as_in_the_stock_calculator():
    names = AccuracyCalculator().get_curr_metrics()
    assert set(names) == HOSTS
    assert RetrievalMetrics(ks=(1, 2), exclude=names).get_curr_metrics() == ["recall_at_2"]


@pytest.mark.parametrize("distance", ["squared_l2", "cosine"])
@pytest.mark.parametrize("search", ["tiled", "faiss"])
@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        (1e-30, torch.float32),
        (1.7e19, torch.float32),
        (1e38, torch.float32),
        (1e18, torch.float64),
        (1e300, torch.float64),
    ],
)
def test_figures_do_not_change_with_the_scale(scale, dtype, search, distance):
    torch.manual_seed(0)
    x, labels = torch.randn(60, 128, dtype=dtype), torch.arange(60) % 3
    x = (x + 0.3 * labels[:, None]) / 8
    metrics = RetrievalMetrics(ks=(1,), distance=distance, search=search, clustering="kmeans")
    expected = metrics(x, labels)
    assert 0.4 < expected["recall_at_1"] < 1
    assert metrics(x * scale, labels) == pytest.approx(expected, abs=0.02)  # another rounding
    assert metrics(x * scale, labels, x.clone() * scale, labels, True) == metrics(x * scale, labels)


def test_a_search_refuses_distances_beyond_float32():
    x = 1.7e19 * torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # squared norms of 2.9e38, and a squared distance of 1.2e39
    with pytest.raises(ValueError, match="query must be small enough for squared distances in float32"):
        nearest_neighbours(x)


@pytest.mark.parametrize("distance", ["squared_l2", "cosine"])
@pytest.mark.parametrize("clustering", ["kmeans", "faiss", "sklearn"])
def test_no_query_or_no_reference(distance, clustering):
    metrics = RetrievalMetrics(distance=distance, clustering=clustering)
    x, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    nothing, none = x[:0], labels[:0]
    for sets in ((nothing, none), (nothing, none, x, labels), (nothing, none, nothing, none, True)):
        assert all(math.isnan(figure) for figure in metrics(*sets).values())
    figures = metrics(x, labels, nothing, none)
    assert {name for name in figures if not math.isnan(figures[name])} == {"NMI", "AMI"}


@pytest.mark.parametrize(
    ("options", "arguments", "error", "message"),
    [
        ({"ks": 5}, {}, TypeError, "ks must be a sequence of integers >= 1, got 5"),
        ({"ks": (1, 0)}, {}, ValueError, "ks must be integers >= 1, got 0"),
        ({"distance": "dot"}, {}, ValueError, "distance must be one of"),
        ({"search": "annoy"}, {}, ValueError, "search must be one of"),
        ({"clustering": "dbscan"}, {}, ValueError, "clustering must be None, one of"),
        ({"tile_entries": 0}, {}, ValueError, "tile_entries must be an integer >= 1"),
        ({}, {"query": torch.full((4, 2), math.inf)}, ValueError, "query must be finite"),
        ({}, {"query_labels": torch.zeros(3).long()}, ValueError, r"query_labels must be as long as query \(4 rows\)"),
        ({}, {"query_labels": torch.full((4,), 0.5)}, TypeError, "query_labels must be integers"),
        ({}, {"query_labels": torch.full((4,), torch.inf)}, ValueError, "query_labels must be finite"),
        ({}, {"query_labels": torch.tensor([2**64 - 1] * 4, dtype=torch.uint64)}, ValueError, r"below 2\*\*63"),
        ({"include": ("recall",)}, {}, ValueError, "include must be among .*precision_at_1.*, got recall;"),
        ({"exclude": ("NMY",)}, {}, ValueError, "exclude must be among .*, got NMY; .* clustering"),
        ({}, {"include": "recall_at_1"}, TypeError, "include must be a collection of names"),
        ({}, {"query_labels": [0, 0, 1, 1]}, TypeError, "query_labels must be a torch.Tensor, got list"),
        ({}, {"reference": torch.randn(2, 2)}, ValueError, "reference, reference_labels must be given together"),
        ({}, {"reference_labels": torch.zeros(2).long()}, ValueError, "must be given together"),
        (
            {},
            {"reference": torch.ones(4, 2), "reference_labels": torch.ones(4).long(), "ref_includes_query": True},
            ValueError,
            "reference_labels must be query_labels followed by",
        ),
        ({"clustering": lambda x, n: torch.zeros(2).long()}, {}, ValueError, r"clustering\(query, classes\)"),
    ],
)
def test_wrong_evaluations_say_what_is_wrong(options, arguments, error, message):
    given = {"query": torch.ones(4, 2), "query_labels": torch.tensor([0, 0, 1, 1])}
    with pytest.raises(error, match=message):
        RetrievalMetrics(**options)(**{**given, **arguments})


@pytest.mark.parametrize("option", ["search", "clustering"])
def test_faiss_that_is_not_there(monkeypatch, option):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"faiss must be installed.*pip install -e '.*\[eval\]'.*search='tiled'"):
        RetrievalMetrics(**{option: "faiss"})
    x, labels = clustered(30, 3)
    assert RetrievalMetrics(clustering="kmeans")(x, labels)["recall_at_1"] > 0


# ---- k-means, NMI, AMI ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, 60])
def test_mutual_informations_equal_the_stock_calculator_given_the_clusters(classes):
    x, labels = clustered(200, classes)
    clusters = kmeans(x, len(labels.unique()))
    calculator = AccuracyCalculator(
        include=["NMI", "AMI"], kmeans_func=lambda x, n: clusters, device=torch.device("cpu")
    )
    got = RetrievalMetrics(clustering=lambda x, n: clusters)(x, labels)
    for name, value in calculator.get_accuracy(x, labels).items():
        assert got[name] == pytest.approx(value, abs=1e-10)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=25))
def test_mutual_informations_equal_scikit_learn(pairs):
    y, z = torch.tensor(pairs).unbind(1)
    assert normalized_mutual_information(y, z) == pytest.approx(normalized_mutual_info_score(y, z), abs=1e-12)
    adjusted = adjusted_mutual_information(y, z)
    if len(set(y.tolist())) == len(set(z.tolist())) == len(y) or abs(adjusted) > 1e6:
        return  # 0 / 0: the next test
    assert adjusted == pytest.approx(adjusted_mutual_info_score(y, z), abs=1e-9)


def test_mutual_informations_from_exact_binomials():
    y, z = torch.randint(0, 4, (15,)), torch.randint(0, 5, (15,))
    nmi, ami = mutual_informations_slow(y.tolist(), z.tolist())
    assert normalized_mutual_information(y, z) == pytest.approx(nmi, abs=1e-14)
    assert adjusted_mutual_information(y, z) == pytest.approx(ami, abs=1e-13)


def test_mutual_informations_without_a_choice():
    same, apart, none = torch.zeros(5).long(), torch.arange(5), torch.empty(0).long()
    assert normalized_mutual_information(same, same) == adjusted_mutual_information(same, same) == 1.0
    assert normalized_mutual_information(apart, apart) == pytest.approx(1.0)
    assert adjusted_mutual_information(apart, apart) == pytest.approx(adjusted_mutual_info_score(apart, apart)) == 1.0
    assert normalized_mutual_information(same, apart) == adjusted_mutual_information(same, apart) == 0.0
    assert math.isnan(normalized_mutual_information(none, none))
    assert math.isnan(adjusted_mutual_information(none, none))


def test_more_pairs_of_groups_than_an_int32_counts():
    # 46,400² cells: as 32-bit numbers different cells would fall together.
    apart = torch.arange(46_400)
    assert normalized_mutual_information(apart, apart.flip(0)) == pytest.approx(1.0)
    assert adjusted_mutual_information(apart, apart.flip(0)) == 1.0


def test_mutual_information_wants_labels():
    with pytest.raises(ValueError, match=r"clusters must be as long as labels \(3 rows\), got 2 labels"):
        normalized_mutual_information(torch.zeros(3).long(), torch.zeros(2).long())
    with pytest.raises(TypeError, match=r"labels must be a torch.Tensor, got list"):
        adjusted_mutual_information([0, 1], torch.zeros(2).long())
    with pytest.raises(TypeError, match="clusters must be integers"):
        adjusted_mutual_information(torch.zeros(2).long(), torch.zeros(2))


def lloyd_slow(x, centres, iterations):
    """Lloyd's iterations in float64 for clusters that stay occupied."""
    x, centres = np.asarray(x, dtype=np.float64), np.asarray(centres, dtype=np.float64)
    for _ in range(iterations):
        labels = np.array([np.argmin([((row - c) ** 2).sum() for c in centres]) for row in x])
        centres = np.stack([x[labels == j].mean(axis=0) for j in range(len(centres))])
    return np.array([np.argmin([((row - c) ** 2).sum() for c in centres]) for row in x])


@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_kmeans_matches_the_loop(iterations):
    x, _ = clustered(80, 4)
    start = torch.randperm(80, generator=torch.Generator().manual_seed(3))[:4]
    assert kmeans(x, 4, iterations=iterations, seed=3).tolist() == lloyd_slow(x, x[start], iterations).tolist()


@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_kmeans_finds_clear_groups_and_repeats_itself(init):
    labels = torch.arange(90) % 6
    x = 50 * torch.eye(6)[labels] + torch.randn(90, 6)
    before = torch.get_rng_state()
    found = kmeans(x, 6, init=init, n_init=20, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert normalized_mutual_information(labels, found) == pytest.approx(1.0)
    assert torch.equal(found, kmeans(x, 6, init=init, n_init=20, seed=1))
    in_tiles = kmeans(
        x, 6, init=init, n_init=20, seed=1, tile_entries=10
    )  # of starts that end alike rounding takes one
    assert normalized_mutual_information(found, in_tiles) == pytest.approx(1.0)
    assert torch.equal(kmeans(x, 6, init=init, seed=1), kmeans(x, 6, init=init, seed=1, tile_entries=10))
    assert torch.equal(kmeans(x.half(), 6, seed=1), kmeans(x.half().float(), 6, seed=1))


def test_more_starts_are_never_worse():
    x, _ = clustered(120, 15)

    def inertia(labels):
        return sum(float((x[labels == j] - x[labels == j].mean(0)).square().sum()) for j in labels.unique())

    one, many = inertia(kmeans(x, 15, seed=5)), inertia(kmeans(x, 15, seed=5, n_init=10))
    assert many < one


def test_an_empty_cluster_moves_to_the_farthest_row():
    # Rows 0 to 8 are equal: whichever two of them start, one cluster is empty until it takes the lone row 9.
    x = torch.cat([torch.full((9, 2), 5.0), torch.full((1, 2), 9.0)])
    for seed in range(5):
        found = kmeans(x, 2, seed=seed)
        assert len(found[:9].unique()) == 1
        assert found[9] != found[0]


@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_kmeans_of_equal_rows_ends(init):
    assert kmeans(torch.ones(5, 3), 3, init=init).unique().tolist() == [0]
    assert kmeans(torch.randn(1, 3), 1, init=init).tolist() == [0]
    assert sorted(kmeans(torch.randn(6, 3), 6, init=init).tolist()) == list(range(6))


def test_plus_plus_draws_in_proportion_to_squared_distance():
    # From 0 the second centre is 1 with probability 1/10 and 3 with 9/10; all three starts are equally likely.
    from adaptive_margin.metrics.clustering import _plus_plus

    x = torch.tensor([[0.0], [1.0], [3.0]])
    seconds, generator = [], torch.Generator().manual_seed(0)
    for _ in range(3000):
        first, second = _plus_plus(x, 2, generator).flatten().tolist()
        assert first != second
        if first == 0.0:
            seconds.append(second == 3.0)
    assert len(seconds) == pytest.approx(1000, abs=120)
    assert np.mean(seconds) == pytest.approx(0.9, abs=0.04)
    # A row is never drawn twice, far from the origin too, where its distance from itself is rounding.
    far = 1000 + torch.randn(6, 16)
    for _ in range(200):
        assert len(_plus_plus(far, 6, generator).unique(dim=0)) == 6


@pytest.mark.parametrize("name", ["kmeans", "faiss", "sklearn"])
def test_each_clustering_finds_clear_groups(name):
    if name == "faiss":
        pytest.importorskip("faiss")
    labels = torch.arange(80) % 2
    x = 20 * torch.eye(4)[labels] + torch.randn(80, 4)
    figures = RetrievalMetrics(clustering=name)(x, labels)
    assert figures["NMI"] == pytest.approx(1.0)
    assert figures["AMI"] == pytest.approx(1.0)


def test_clusters_of_the_cosine_see_directions():
    labels = torch.arange(60) % 2
    x = torch.tensor([[1.0, 0.05], [0.05, 1.0]])[labels] * torch.logspace(-2, 2, 60)[:, None]
    assert RetrievalMetrics(distance="cosine", clustering="kmeans")(x, labels)["NMI"] == pytest.approx(1.0)
    assert RetrievalMetrics(clustering="kmeans")(x, labels)["NMI"] < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 5}, "clusters must be at most the 4 rows of x, got 5"),
        ({"clusters": 0}, "clusters must be an integer >= 1, got 0"),
        ({"clusters": 2, "init": "farthest"}, "init must be one of"),
        ({"clusters": 2, "n_init": 0}, "n_init must be an integer >= 1"),
        ({"clusters": 2, "iterations": 0}, "iterations must be an integer >= 1"),
    ],
)
def test_wrong_clusterings_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        kmeans(torch.randn(4, 2), **options)


@pytest.mark.cuda
def test_cuda_equals_the_cpu():
    x, labels = clustered(500, 20, features=32)
    metrics = RetrievalMetrics(ks=(1, 10, 100), clustering="kmeans")
    assert metrics(x.cuda(), labels.cuda()) == pytest.approx(metrics(x, labels), abs=1e-6)
    ties = whole_numbers(300, 3)
    assert torch.equal(nearest_neighbours(ties.cuda(), k=50)[1].cpu(), nearest_neighbours(ties, k=50)[1])


def test_faiss_is_imported_by_those_who_ask_for_it() -> None:
    code = "import sys, adaptive_margin.metrics; print('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_k_that_is_given_twice_counts_once():
    x, y = torch.tensor([[0.0], [1.0], [1.1], [3.0]]), torch.tensor([0, 0, 1, 1])
    assert RetrievalMetrics(ks=(1, 2, 1))(x, y) == RetrievalMetrics(ks=(1, 2))(x, y)
    assert RetrievalMetrics(ks=(2, 1, 2)).get_curr_metrics()[:2] == ["recall_at_2", "recall_at_1"]
