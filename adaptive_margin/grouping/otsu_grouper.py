"""Strong and weak by Otsu's threshold: the paper's grouping."""

from __future__ import annotations

from torch import Tensor

from ..functional.otsu import otsu_thresholds
from ..messages import problem
from .base import Grouper, OnEmpty


class OtsuGrouper(Grouper):
    r"""Groups samples into strong and weak by Otsu's threshold of each continuous label.

    .. math:: \delta_l = \mathrm{Otsu}(|y_l|), \qquad \delta_r = \sqrt{\textstyle\sum_l \delta_l^2}, \qquad
              \text{strong}_i \iff \delta_r \le \sqrt{\textstyle\sum_l y_{il}^2}

    Source: Kim & Song 2021, Algorithm 1, lines 3-4; Otsu 1979. It differs in three points: magnitudes instead of signed
    labels (``magnitude``), no upper limit (``max_radius``), and a policy for empty groups (``on_empty``). The literal
    reading of each is an option. The authors' released code does not compute Otsu's threshold.

    With one label column :math:`\delta_r` is Otsu's threshold of :math:`|y|` itself, so any regression target becomes
    two groups that a classification-style loss accepts. If the sign of the target matters, subtract its smallest value
    first.

    Args:
        magnitude: thresholds of :math:`|y_l|` (default), or of the signed values, the literal reading.
        on_empty: ``"median"``, ``"keep"`` or ``"raise"``, see :class:`~adaptive_margin.grouping.Grouper`.
        max_radius: samples at least this far from the origin belong to neither group; None for no limit.
        bins: None for exact thresholds; a number of bins for samples too large to sort, see
            :func:`~adaptive_margin.functional.otsu_threshold`.
        collect_stats: record the shares of the groups.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> grouper = OtsuGrouper()
        >>> grouper(torch.tensor([[0.1, 0.1], [-0.9, 0.8], [0.0, 0.2], [0.7, -0.9]]))
        tensor([0, 1, 0, 1])
        >>> grouper.thresholds
        tensor([0.4000, 0.5000])
        >>> round(grouper.radius, 4)
        0.6403
    """

    def __init__(
        self,
        magnitude: bool = True,
        on_empty: OnEmpty = "median",
        max_radius: float | None = None,
        bins: int | None = None,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(magnitude, on_empty, max_radius, collect_stats)
        if bins is not None and bins < 2:
            raise ValueError(problem("bins", "at least 2, or None", bins, "256 is the usual number"))
        self.bins = bins

    def label_thresholds(self, values: Tensor) -> Tensor:
        """Otsu's threshold of each column."""
        return otsu_thresholds(values, bins=self.bins)

    def extra_repr(self) -> str:
        """The options, for ``print(grouper)``."""
        return f"{super().extra_repr()}, bins={self.bins}"
