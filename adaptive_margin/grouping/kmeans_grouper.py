"""Strong and weak by k-means: the paper's ablation of its grouping."""

from __future__ import annotations

from torch import Tensor

from ..functional.kmeans import kmeans_thresholds
from ..messages import problem
from .base import Grouper, OnEmpty


class KMeansGrouper(Grouper):
    r"""Groups samples into strong and weak by the mean of each label's k-means centres.

    .. math:: \delta_l = \frac1k \sum_{j=1}^k c_{lj}, \qquad \delta_r = \sqrt{\textstyle\sum_l \delta_l^2}, \qquad
              \text{strong}_i \iff \delta_r \le \sqrt{\textstyle\sum_l y_{il}^2}

    with :math:`c_{lj}` the optimal centres of :math:`|y_l|` (:func:`~adaptive_margin.functional.kmeans_centers`): the
    same for every run, without a random start.

    Source: Kim & Song 2021, Ablation Study ("Grouping of emotion samples"), k of 2, 3 and 5. It differs in two points:
    the optimum instead of the end point of an iteration, and the options of :class:`~adaptive_margin.OtsuGrouper`.

    Args:
        k: number of clusters of each label, at least 2.
        magnitude: clusters of :math:`|y_l|` (default), or of the signed values.
        on_empty: ``"median"``, ``"keep"`` or ``"raise"``, see :class:`~adaptive_margin.grouping.Grouper`.
        max_radius: samples at least this far from the origin belong to neither group; None for no limit.
        collect_stats: record the shares of the groups.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> grouper = KMeansGrouper(k=3)
        >>> grouper(torch.tensor([0.0, 0.1, 0.4, 0.5, 0.9]))
        tensor([0, 0, 0, 1, 1])
        >>> round(grouper.radius, 4)
        0.4667
    """

    def __init__(
        self,
        k: int = 2,
        magnitude: bool = True,
        on_empty: OnEmpty = "median",
        max_radius: float | None = None,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(magnitude, on_empty, max_radius, collect_stats)
        if not isinstance(k, int) or k < 2:
            raise ValueError(problem("k", "an integer of at least 2", k, "the paper compares 2, 3 and 5"))
        self.k = k

    def label_thresholds(self, values: Tensor) -> Tensor:
        """Mean of the k-means centres of each column."""
        return kmeans_thresholds(values, self.k)

    def extra_repr(self) -> str:
        """The options, for ``print(grouper)``."""
        return f"k={self.k}, {super().extra_repr()}"
