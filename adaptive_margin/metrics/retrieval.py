"""Retrieval figures of any number of embeddings, in memory for one tile of distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from ..functional.checks import at_least_float32, check_finite, check_labels, check_matrix, largest_magnitude
from ..functional.dependence import common_scale
from ..functional.neighbours import TILE_ENTRIES, Metric, check_search, neighbour_tiles
from ..messages import pip_install, problem, refuse_broken
from .clustering import adjusted_mutual_information, kmeans, normalized_mutual_information

Search = Literal["tiled", "faiss"]
Clustering = Literal["kmeans", "faiss", "sklearn"]
ClusterFunction = Callable[[Tensor, int], Tensor]
Array = Tensor | NDArray[Any]

AT_R = ("r_precision", "mean_average_precision_at_r")
AGREEMENTS = ("NMI", "AMI")
ALIASES = {"precision_at_1": "recall_at_1"}
"""The host's name for one of ours."""

HOSTS = {"mean_average_precision", "mean_average_precision_at_r", "mean_reciprocal_rank", "precision_at_1"}
HOSTS |= {"r_precision", "NMI", "AMI"}
"""The figures of the host's AccuracyCalculator."""

SQUARED = 2.0**-40
"""Entries between this and its inverse have squares, and sums of squares, that float32 holds."""


class RetrievalMetrics:
    r"""Recall@k, R-Precision, MAP@R, NMI and AMI, without an N×N matrix or N lists of neighbours.

    For a query of class :math:`y` let :math:`g_i = 1` if its :math:`i`-th nearest reference has the same class, and
    :math:`R` the number of references of that class, without the query itself. Averaged over the queries with :math:`R
    > 0`:

    .. math:: \mathrm{Recall@}k = [\textstyle\sum_{i \le k} g_i > 0], \qquad
              \mathrm{RP} = \frac1R \sum_{i \le R} g_i, \qquad
              \mathrm{MAP@R} = \frac1R \sum_{i \le R} g_i\, \frac1i \sum_{j \le i} g_j

    Sources: Oh Song et al. 2016 (after Jégou et al. 2011) for Recall@k as used in metric learning: found at all, not
    the share found; Musgrave et al. 2020, *A Metric Learning Reality Check*, for RP and MAP@R. Equal to
    pytorch-metric-learning's ``AccuracyCalculator``: its ``precision_at_1`` is ``recall_at_1``, the other names are the
    same.

    **Lone queries**, whose class has no (other) reference, are left out of all retrieval figures, as in the host;
    ``counted_queries`` and ``lone_queries`` of the last call say how many. A figure over no query is NaN. **Ties** go
    to the lower reference index. A query that is also a reference never finds its own index, but it does find its
    duplicates. ``k`` beyond the references finds all of them: the figure is then 1 by definition, not an error.

    Args:
        ks: the ``k`` of every Recall@k.
        at_r: also compute RP and MAP@R. They need the ``max(R)`` nearest references of every query: with few classes,
            this can be half the data.
        distance: ``"squared_l2"`` or ``"cosine"``.
        clustering: the method that splits the queries into as many clusters as they have classes, for NMI and AMI: None
            leaves both out; ``"kmeans"`` is :func:`~adaptive_margin.metrics.kmeans` with its defaults; ``"faiss"`` and
            ``"sklearn"`` use those libraries (20 iterations from random rows, 10 from k-means++); or any
            ``function(embeddings, clusters)``, the host's ``kmeans_func`` for instance. With ``distance="cosine"`` its
            input rows have unit norm.
        search: ``"tiled"`` on the embeddings' device, or ``"faiss"``: its flat index on the CPU, which copies the
            references and leaves ties as faiss finds them.
        seed: random seed of ``"kmeans"``, ``"faiss"`` and ``"sklearn"``.
        tile_entries: distances held at once by ``"tiled"``.
        include: names of the figures to compute; by default all. Nothing else is computed. The host's
            ``"precision_at_1"`` is ``recall_at_1`` under another name.
        exclude: names of figures to leave out; figures of the host that are not computed anyway are allowed.

    Raises:
        TypeError: embeddings or labels are neither a tensor nor an array of numbers, or labels are not whole.
        ValueError: a wrong option, shape or device, an unknown figure, or an embedding that is not finite.
        ImportError: faiss or scikit-learn was requested and is not installed.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [1.1], [3.0], [9.0]])
        >>> metrics = RetrievalMetrics(ks=(1, 2))
        >>> metrics(x, torch.tensor([0, 0, 1, 1, 2]))
        {'recall_at_1': 0.5, 'recall_at_2': 0.75, 'r_precision': 0.5, 'mean_average_precision_at_r': 0.5}
        >>> metrics.counted_queries, metrics.lone_queries
        (4, 1)
    """

    def __init__(
        self,
        ks: Sequence[int] = (1, 2, 4, 8),
        *,
        at_r: bool = True,
        distance: Metric = "squared_l2",
        clustering: Clustering | ClusterFunction | None = None,
        search: Search = "tiled",
        seed: int = 0,
        tile_entries: int = TILE_ENTRIES,
        include: Collection[str] = (),
        exclude: Collection[str] = (),
    ) -> None:
        if not isinstance(ks, Sequence):
            raise TypeError(
                problem("ks", "a sequence of integers >= 1", repr(ks), "ks=(1, 10, 100, 1000) for instance")
            )
        for k in ks:
            if isinstance(k, bool) or not isinstance(k, int) or k < 1:
                raise ValueError(problem("ks", "integers >= 1", repr(k), "ks=(1, 10, 100, 1000) for instance"))
        if search not in get_args(Search):
            raise ValueError(problem("search", f"one of {get_args(Search)}", repr(search), "tiled needs no package"))
        if not (clustering is None or callable(clustering) or clustering in get_args(Clustering)):
            expected = f"None, one of {get_args(Clustering)} or a function"
            raise ValueError(problem("clustering", expected, repr(clustering), "kmeans needs no package"))
        check_search(torch.zeros(1, 1), None, distance, False, tile_entries)
        if "faiss" in (search, clustering):
            _faiss()
        self.ks = tuple(dict.fromkeys(ks))  # each once
        self.at_r = at_r
        self.distance: Metric = distance
        self.clustering = clustering
        self.search = search
        self.seed = seed
        self.tile_entries = tile_entries
        self.counted_queries = 0
        self.lone_queries = 0
        self._names = [*(f"recall_at_{k}" for k in self.ks), *(AT_R if at_r else ())]
        self._names += AGREEMENTS if clustering is not None else ()
        self._names = self._chosen(include, exclude)

    @torch.no_grad()
    def __call__(
        self,
        query: Array,
        query_labels: Array,
        reference: Array | None = None,
        reference_labels: Array | None = None,
        ref_includes_query: bool = False,
        include: Collection[str] = (),
        exclude: Collection[str] = (),
    ) -> dict[str, float]:
        """The figures of these embeddings.

        Args:
            query: shape ``(Q, D)``, a tensor or an array of numbers of any dtype and scale; computed in float32.
            query_labels: shape ``(Q,)``, whole numbers of any dtype.
            reference: shape ``(R, D)``, a gallery. Without it every query searches the other queries.
            reference_labels: shape ``(R,)``.
            ref_includes_query: the first ``Q`` references are the queries, in their order, as in the host.
            include: the figures of this object to compute in this call; by default all.
            exclude: figures to leave out.

        Returns:
            Python floats: ``recall_at_<k>`` for every k, ``r_precision``, ``mean_average_precision_at_r``, and with
            ``clustering`` ``NMI`` and ``AMI``, over all queries, lone ones too.
        """
        if (reference is None) != (reference_labels is None):
            got = "only one of them"
            raise ValueError(problem("reference, reference_labels", "given together or not at all", got, "pass both"))
        names = self._chosen(include, exclude)
        exclude_self = reference is None or ref_includes_query
        query, reference = _scaled(_rows("query", query), None if reference is None else _rows("reference", reference))
        check_search(query, reference, self.distance, ref_includes_query, self.tile_entries)
        query_labels = _classes("query_labels", query_labels, query, "query")
        if reference is None or reference_labels is None:
            reference, reference_labels = query, query_labels
        else:
            reference_labels = _classes("reference_labels", reference_labels, reference, "reference")
        if ref_includes_query and not torch.equal(query_labels, reference_labels[: len(query)]):
            expected = "query_labels followed by the other references' labels when ref_includes_query is True"
            remedy = "put the queries first, in their order, or pass ref_includes_query=False"
            raise ValueError(problem("reference_labels", expected, "another beginning", remedy))

        # Labels become 0 … C - 1, so that the size of each query's class is one look-up.
        classes, codes = torch.unique(torch.cat([query_labels, reference_labels]), return_inverse=True)
        query_codes, reference_codes = codes[: len(query)], codes[len(query) :]
        relevant = torch.bincount(reference_codes, minlength=len(classes))[query_codes] - int(exclude_self)  # (Q,), R
        figures = self._retrieval(names, query, query_codes, reference, reference_codes, relevant, exclude_self)
        if not {*AGREEMENTS}.isdisjoint(names):
            figures |= self._agreement(query, query_codes)
        return {name: figures[ALIASES.get(name, name)] for name in names}

    get_accuracy = __call__  # the method that the host's testers call on their ``accuracy_calculator``

    def get_curr_metrics(self) -> list[str]:
        """The names of the figures, for the host's testers."""
        return list(self._names)

    def _chosen(self, include: Collection[str], exclude: Collection[str]) -> list[str]:
        """The included figures, or all, without the excluded ones."""
        known = {*self._names, *(alias for alias, name in ALIASES.items() if name in self._names)}
        for argument, names, allowed in (("include", include, known), ("exclude", exclude, known | HOSTS)):
            if isinstance(names, str) or not isinstance(names, Collection):
                raise TypeError(problem(argument, "a collection of names", repr(names), "('recall_at_1',) say"))
            if unknown := [name for name in names if name not in allowed]:
                remedy = "ks, at_r and clustering say which figures there are"
                raise ValueError(problem(argument, f"among {', '.join(sorted(allowed))}", ", ".join(unknown), remedy))
        wanted = sorted(include) if isinstance(include, Set) else include  # a set is unordered
        left_out = {ALIASES.get(name, name) for name in exclude}
        return [name for name in dict.fromkeys(wanted or self._names) if ALIASES.get(name, name) not in left_out]

    def description(self) -> str:
        """The text that the host's testers add to the name of their results: empty."""
        return ""

    def _retrieval(
        self,
        names: Sequence[str],
        query: Tensor,
        query_codes: Tensor,
        reference: Tensor,
        reference_codes: Tensor,
        relevant: Tensor,
        exclude_self: bool,
    ) -> dict[str, float]:
        counted = relevant > 0
        self.counted_queries = int(counted.sum())
        self.lone_queries = len(query) - self.counted_queries
        wanted = {ALIASES.get(name, name) for name in names}
        ks = [k for k in self.ks if f"recall_at_{k}" in wanted]
        at_r = not wanted.isdisjoint(AT_R)
        figures = dict.fromkeys([*(f"recall_at_{k}" for k in ks), *(AT_R if at_r else ())], math.nan)
        deepest = int(relevant.max()) if at_r and len(query) > 0 else 0
        k = min(max([*ks, deepest], default=0), len(reference) - int(exclude_self))
        if self.counted_queries == 0 or k < 1:
            return figures
        # Ranks are 1-based. Sums stay on the device, in float64, until every tile is done.
        sums = torch.zeros(len(figures), dtype=torch.float64, device=query.device)
        rank = torch.arange(1, k + 1, device=query.device)
        cut = torch.tensor(ks, device=query.device)
        search = neighbour_tiles if self.search == "tiled" else _faiss_tiles
        for start, _, indices in search(query, reference, k, self.distance, exclude_self, self.tile_entries):
            rows = slice(start, start + len(indices))
            hits = reference_codes[indices] == query_codes[rows].unsqueeze(1)  # (r, k)
            keep = counted[rows].unsqueeze(1)
            first = torch.where(hits.any(dim=1), hits.int().argmax(dim=1) + 1, k + 1).unsqueeze(1)
            found = (first <= cut) & keep  # (r, ks); a k beyond the references is 1 for every kept row
            sums[: len(ks)] += found.sum(dim=0)
            if at_r:
                r = relevant[rows].unsqueeze(1)
                upto, within = rank[:deepest], hits[:, :deepest]
                within = within & (upto <= r)
                precision = within.cumsum(dim=1).double() / upto
                scores = torch.stack([within.sum(dim=1).double(), (precision * within).sum(dim=1)], dim=1) / r.clamp(
                    min=1
                )
                sums[len(ks) :] += scores.sum(dim=0)  # 0 for a lone query, whose r is 0
        return dict(zip(figures, (sums / self.counted_queries).tolist(), strict=True))

    def _agreement(self, query: Tensor, query_codes: Tensor) -> dict[str, float]:
        classes = len(torch.unique(query_codes))
        if classes == 0:
            return {"NMI": math.nan, "AMI": math.nan}
        x = normalize(query.detach().float(), dim=1) if self.distance == "cosine" else query.detach()
        if callable(self.clustering):
            clusters = self.clustering(x, classes)
            check_labels("the clusters of clustering(query, classes)", clusters, len(query), "query")
        elif self.clustering == "kmeans":
            clusters = kmeans(x, classes, seed=self.seed, tile_entries=self.tile_entries)
        elif self.clustering == "faiss":
            from pytorch_metric_learning.utils.inference import FaissKMeans  # which imports faiss, if it is installed

            clusters = FaissKMeans(niter=20, seed=self.seed)(x.float(), classes)
        else:
            from sklearn.cluster import KMeans  # pytorch-metric-learning requires scikit-learn

            found = KMeans(classes, n_init=10, random_state=self.seed).fit_predict(x.float().cpu().numpy())
            clusters = torch.from_numpy(found).long()
        return {
            "NMI": normalized_mutual_information(query_codes, clusters),
            "AMI": adjusted_mutual_information(query_codes, clusters),
        }


def _rows(argument: str, x: Array) -> Tensor:
    """A matrix of floats; the host takes arrays and integers too."""
    x = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
    if isinstance(x, Tensor) and not x.is_floating_point() and not x.is_complex():
        x = x.float()
    check_matrix(argument, x)
    return x


def _classes(argument: str, labels: Array, rows: Tensor, of: str) -> Tensor:
    """One class per row; the host's testers pass them as floats."""
    labels = torch.from_numpy(labels) if isinstance(labels, np.ndarray) else labels
    if isinstance(labels, Tensor) and labels.is_floating_point() and bool((labels == labels.trunc()).all()):
        check_finite(argument, labels)
        labels = labels.long()
    check_labels(argument, labels, len(rows), of)
    return labels.to(rows.device).long()


def _scaled(query: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both divided by one power of two if their squares could leave float32: the figures do not depend on the scale."""
    largest = [largest_magnitude("query", query).double()]
    if reference is not None:
        largest.append(largest_magnitude("reference", reference).double().to(query.device))
    scale = common_scale(*largest)
    if SQUARED <= scale.item() <= 1 / SQUARED or max(each.item() for each in largest) == 0:
        return query, reference
    x, *y = ((at_least_float32(rows) / scale).float() for rows in (query, reference) if rows is not None)
    return x, (y[0] if y else None)


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        refuse_broken("faiss", error)
        remedy = f"{pip_install('eval')}, or use search='tiled' and clustering='kmeans'"
        raise ImportError(
            problem("faiss", "installed when it is asked for", "no module of that name", remedy)
        ) from error
    module: ModuleType = faiss
    return module


def _faiss_tiles(
    query: Tensor, reference: Tensor, k: int, distance: Metric, exclude_self: bool, tile_entries: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The same as :func:`neighbour_tiles`, from faiss' flat index on the CPU, which orders ties differently."""
    x, y = (v.detach().float().cpu() for v in (query, reference))
    if distance == "cosine":
        x, y = normalize(x, dim=1), normalize(y, dim=1)
    index: Any = _faiss().IndexFlatL2(y.shape[1])
    index.add(y.contiguous().numpy())
    step = max(1, tile_entries // max(k + 1, 256))
    for start in range(0, len(x), step):
        rows = x[start : start + step].contiguous().numpy()
        distances, indices = (torch.from_numpy(v) for v in index.search(rows, k + int(exclude_self)))
        if exclude_self:
            own = indices == torch.arange(start, start + len(rows)).unsqueeze(1)
            own[:, -1] |= ~own.any(dim=1)  # among many duplicates it may be absent: then drop the last
            distances, indices = distances[~own].view(-1, k), indices[~own].view(-1, k)
        yield start, distances.to(query.device), indices.to(query.device)
