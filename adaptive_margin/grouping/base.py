"""Strong and weak groups from continuous labels, given a threshold for each label."""
# mypy: disallow-subclassing-any=False
# (the host is untyped)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_metric_learning.utils.module_with_records import ModuleWithRecords
from torch import Tensor

from ..functional.checks import check_columns, check_number, is_blind, largest_magnitude
from ..functional.otsu import wide
from ..messages import problem

Labels = Tensor | NDArray[Any] | Sequence[float] | Sequence[Sequence[float]]
OnEmpty = Literal["median", "keep", "raise"]


class Grouper(ModuleWithRecords):
    r"""Groups samples by the intensity of their continuous labels: the base class of
    :class:`~adaptive_margin.OtsuGrouper` and :class:`~adaptive_margin.KMeansGrouper`. A subclass implements
    :meth:`label_thresholds`.

    .. math:: r_i = \sqrt{\textstyle\sum_l y_{il}^2}, \qquad \delta_r = \sqrt{\textstyle\sum_l \delta_l^2}, \qquad
              Q = \{i : r_i < \delta_r\}, \quad P = \{i : \delta_r \le r_i\}

    Source: Kim & Song 2021, Algorithm 1, line 3, for any number of labels :math:`l` (two in the paper). The defaults
    differ from the paper in two points, both of which are options: thresholds are those of the magnitudes
    :math:`|y_l|`, and a label with :math:`r \ge 1` is strong.

    Args:
        magnitude: compute the thresholds :math:`\delta_l` of :math:`|y_l|`, because intensity is a magnitude. False is
            the literal reading, thresholds of the signed values; these are near zero if labels have both signs, so that
            nearly everything is strong. :math:`r` is the same for both.
        on_empty: what happens if a group of a batch is empty. ``"median"``: :math:`\delta_r` moves to the median radius
            of the batch or, if half of the radii or more are equal to the smallest, just above that one. Radii that are
            all equal cannot be split and stay one group. ``"keep"``: the group stays empty. ``"raise"``: a
            ``ValueError``; this check synchronises with a CUDA device. After :meth:`fit` the threshold is fixed, and
            ``"median"`` does not change it.
        max_radius: samples with :math:`r \ge` this belong to neither group. None: there is no limit. 1.0 is the literal
            reading of the paper.
        collect_stats: record ``share_strong``, ``share_weak`` and ``share_neither`` of the last call, as the host does.
            None: the host's global setting decides.

    Raises:
        ValueError: an option is not one of these.

    The thresholds are those of each batch, until :meth:`fit` fixes them; fitted thresholds are in ``state_dict``.

    Example:
        >>> class MedianGrouper(Grouper):
        ...     def label_thresholds(self, values):
        ...         return values.median(dim=0).values
        >>> MedianGrouper()(torch.tensor([0.0, 0.1, 0.2, 0.9]))
        tensor([0, 1, 1, 1])
    """

    fixed_thresholds: Tensor
    fixed_radius: Tensor

    def __init__(
        self,
        magnitude: bool = True,
        on_empty: OnEmpty = "median",
        max_radius: float | None = None,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__(collect_stats=collect_stats)
        if on_empty not in get_args(OnEmpty):
            expected = "one of " + ", ".join(map(repr, get_args(OnEmpty)))
            raise ValueError(problem("on_empty", expected, repr(on_empty), "'median' is the default"))
        expected, remedy = "a positive number or None", "1.0 is the paper's, None no limit"
        if max_radius is not None and not 0 < check_number("max_radius", max_radius, expected, remedy) < math.inf:
            raise ValueError(problem("max_radius", expected, max_radius, remedy))
        self.magnitude = magnitude
        self.on_empty: OnEmpty = on_empty
        self.max_radius = max_radius
        self.register_buffer("fixed_thresholds", torch.empty(0))  # (L,) once fitted
        self.register_buffer("fixed_radius", torch.zeros(()))
        self._last_thresholds, self._last_radius = torch.zeros(1), torch.zeros(())  # what the host can record
        self.add_to_recordable_attributes(list_of_names=["radius", "thresholds"], is_stat=False)
        self.add_to_recordable_attributes(list_of_names=["share_strong", "share_weak", "share_neither"], is_stat=True)

    def label_thresholds(self, values: Tensor) -> Tensor:
        r""":math:`\delta_l`, shape ``(L,)``, of labels in columns, shape ``(N, L)``; a subclass implements it."""
        raise NotImplementedError

    @property
    def fitted(self) -> bool:
        """Whether :meth:`fit`, or a loaded ``state_dict``, has fixed the thresholds."""
        return self.fixed_thresholds.numel() > 0

    @property
    def thresholds(self) -> Tensor:
        r""":math:`\delta_l`, shape ``(L,)``, in the labels' unit: fitted or of the last call; one 0 before either."""
        return self.fixed_thresholds if self.fitted else self._last_thresholds

    @property
    def radius(self) -> float:
        r""":math:`\delta_r`, in the labels' unit: fitted, or of the last call; 0 before either.

        Reading it synchronises with the device; the call itself does not.
        """
        return float(self.fixed_radius if self.fitted else self._last_radius)

    def forward(self, av: Labels) -> Tensor:
        """Groups of a batch.

        Args:
            av: labels, one row per sample, shape ``(B, L)`` or ``(B,)``, ``L >= 1``: a tensor, an array or nested
                lists; floating point or integers.

        Returns:
            int64, shape ``(B,)``, on the labels' device: 1 strong, 0 weak, -1 neither. Empty for an empty batch, which
            leaves ``thresholds`` and ``radius`` as they were.

        Raises:
            ValueError: ``av`` has another shape, contains NaN or infinity, or has other columns than the fitted data; a
                group is empty and ``on_empty="raise"``.
            TypeError: ``av`` is not numeric.
        """
        self.reset_stats()
        y = _label_matrix(av)
        if self.fitted and y.shape[1] != len(self.fixed_thresholds):
            expected = f"of the {len(self.fixed_thresholds)} label columns it was fitted on"
            raise ValueError(problem("av", expected, f"{y.shape[1]} columns", "call fit again for other labels"))
        if len(y) == 0:
            groups = torch.empty(0, dtype=torch.int64, device=y.device)
        elif self.fitted:
            groups = self._groups(_length(y), wide(self.fixed_radius.to(y.device)))
        else:
            thresholds, radius, groups = self._split(y)
            self._last_thresholds, self._last_radius = thresholds, radius
        if self.on_empty == "raise":
            self._raise_if_empty(groups)
        if self.collect_stats and len(y) > 0:
            for name, group in (("strong", 1), ("weak", 0), ("neither", -1)):
                setattr(self, f"share_{name}", (groups == group).double().mean().item())
        return groups

    def fit(self, av: Labels) -> Grouper:
        """Fixes the thresholds to those of a whole data set, so that a sample's group does not depend on its batch.

        Args:
            av: all labels, in the same form as for a call.

        Returns:
            The grouper itself. Its thresholds are now buffers: they are in ``state_dict``, which can also be loaded
            into a grouper that was never fitted.

        Raises:
            ValueError: as for a call; or there are no labels.
        """
        y = _label_matrix(av)
        if len(y) == 0:
            raise ValueError(problem("av", "of at least one row", f"shape {tuple(y.shape)}", "pass all labels"))
        thresholds, radius, groups = self._split(y)
        if self.on_empty == "raise":
            self._raise_if_empty(groups)
        device = self.fixed_thresholds.device
        self.fixed_thresholds, self.fixed_radius = thresholds.to(device), radius.to(device)
        return self

    def _split(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Thresholds, radius and groups of one set of labels, without fitted thresholds."""
        thresholds = self.label_thresholds(y.abs() if self.magnitude else y)
        r = _length(y)
        radius = _length(thresholds[None])[0]
        groups = self._groups(r, radius)
        if self.on_empty == "median":
            one_is_empty = ~((groups == 1).any() & (groups == 0).any())
            radius = torch.where(one_is_empty, _median_split(r, groups >= 0, radius), radius)
            groups = self._groups(r, radius)
        return thresholds, radius, groups

    def _groups(self, r: Tensor, radius: Tensor) -> Tensor:
        groups = (r >= radius).long()
        return groups if self.max_radius is None else groups.masked_fill(r >= self.max_radius, -1)

    def _raise_if_empty(self, groups: Tensor) -> None:
        for name, group in (("strong", 1), ("weak", 0)):
            if not bool((groups == group).any()):
                remedy = "use larger batches, or on_empty='median'"
                got = f"no {name} sample among {len(groups)}"
                raise ValueError(problem("av", "of strong and weak samples", got, remedy))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("fixed_thresholds", "fixed_radius"):  # of the saved number of labels, whatever it is here
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor):
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The options, for ``print(grouper)``."""
        return f"magnitude={self.magnitude}, on_empty={self.on_empty!r}, max_radius={self.max_radius}"


def _label_matrix(av: Labels) -> Tensor:
    """The labels as a checked floating-point matrix with one row per sample."""
    if not isinstance(av, Tensor):
        try:
            array = np.array(av, order="C")
        except ValueError as error:
            remedy = "pass as many labels for each sample"
            raise ValueError(problem("av", "of shape (B,) or (B, L)", "rows of unequal length", remedy)) from error
        if array.dtype.kind not in "biuf":
            got = f"an array of {array.dtype}"
            raise TypeError(problem("av", "numeric", got, "pass one row of numbers per sample"))
        native = array.dtype.kind == "f" and array.dtype.itemsize <= 8
        av = torch.from_numpy(array.astype(array.dtype.newbyteorder("=") if native else np.float64))
    check_columns("av", av, empty=True)
    y = av.detach()
    y = y if y.is_floating_point() else wide(y)
    largest = largest_magnitude("av", y)
    bound = math.sqrt(torch.finfo(wide(largest).dtype).max / (4 * max(1, y.numel())))
    if y.dtype == wide(largest).dtype and not is_blind(y) and largest.item() > bound:
        expected = f"below {bound:.0e} in magnitude, or sums of squares overflow {y.dtype}"
        raise ValueError(problem("av", expected, f"{largest.item():.0e}", "scale the labels"))
    return y if y.ndim == 2 else y[:, None]


def _length(rows: Tensor) -> Tensor:
    """Euclidean length of each row, in the wide dtype: squares of 1e-20 or 1e18 are outside the range of float32."""
    return wide(rows).square().sum(dim=1).sqrt()


def _median_split(r: Tensor, counted: Tensor, otherwise: Tensor) -> Tensor:
    """The median of the counted radii, or the next above the smallest if the median is the smallest.

    ``otherwise`` where they are all equal, or none is counted.
    """
    n = counted.sum()
    ordered = torch.where(counted, r, torch.inf).sort().values
    middle = torch.stack([(n - 1) // 2, n // 2]).clamp(min=0)
    median = ordered[middle].mean()
    smallest = ordered[0]
    above = torch.where(ordered > smallest, ordered, torch.inf).amin()
    split = torch.where(median > smallest, median, above)
    return torch.where(torch.isfinite(split), split, otherwise)
