"""The hinge of all pairs in one kernel: distances, losses and gradients of a tile stay on the chip.

Optional: importing this module needs Triton, which comes with PyTorch's CUDA builds; :mod:`.pair_tiles` imports it only
if ``ADAPTIVE_MARGIN_TRITON=1`` is set. It has not been measured on a GPU yet. ``TRITON_INTERPRET=1`` runs the kernel on
a CPU, slowly; the tests use this.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_FEATURES = 256
"""Wider rows do not fit into the registers of one program beside their gradient."""


@triton.jit  # type: ignore[untyped-decorator]
def _hinge_kernel(  # type: ignore[no-untyped-def]
    x, y, x_group, y_group, margin, tie, loss, active, weighted,
    rows, columns, features, no_group,
    MARGIN_OF: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # rows · features can leave 32 bits
    feature = tl.arange(0, WIDTH)
    row_in, feature_in = row < rows, feature < features
    x_tile = tl.load(x + row[:, None] * features + feature[None, :], row_in[:, None] & feature_in[None, :], 0.0)
    x_square = tl.sum(x_tile * x_tile, 1)
    own = tl.load(x_group + row, row_in, no_group)
    if MARGIN_OF == "batch":
        bound = tl.load(margin) + tl.zeros((BLOCK, 1), tl.float32)
    else:
        bound = tl.load(margin + row, row_in & (MARGIN_OF == "row"), 0.0)[:, None]
    least = tl.load(tie + row, row_in & (MARGIN_OF != "column"), 0.0)[:, None]
    loss_sum = tl.zeros((BLOCK,), tl.float32)
    active_sum = tl.zeros((BLOCK,), tl.int32)
    gradient = tl.zeros((BLOCK, WIDTH), tl.float32)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK).to(tl.int64)
        column_in = column < columns
        inside = column_in[:, None] & feature_in[None, :]
        y_tile = tl.load(y + column[:, None] * features + feature[None, :], inside, 0.0)
        y_square = tl.sum(y_tile * y_tile, 1)
        other = tl.load(y_group + column, column_in, no_group)
        product = tl.dot(x_tile, tl.trans(y_tile), input_precision="ieee")
        square = tl.maximum(x_square[:, None] + y_square[None, :] - 2.0 * product, 0.0)
        if MARGIN_OF == "column":
            bound = tl.load(margin + column, column_in, 0.0)[None, :]
            least = tl.load(tie + column, column_in, 0.0)[None, :]
        gap = bound - square
        pair = (own[:, None] != other[None, :]) & (own != no_group)[:, None] & (other != no_group)[None, :]
        on = pair & (gap > least)
        loss_sum += tl.sum(tl.where(on, gap, 0.0), 1)
        active_sum += tl.sum(on.to(tl.int32), 1)
        gradient += tl.dot(on.to(tl.float32), y_tile, input_precision="ieee")
    tl.store(loss + row, loss_sum, row_in)
    tl.store(active + row, active_sum, row_in)
    tl.store(weighted + row[:, None] * features + feature[None, :], gradient, row_in[:, None] & feature_in[None, :])


class RowSums(NamedTuple):
    """Sums over a row's active hinges."""

    loss: Tensor  # (N,) of the hinges
    active: Tensor  # (N,) int32, their number
    weighted: Tensor  # (N, D), of their columns


def hinge_rows(
    x: Tensor,
    y: Tensor,
    x_group: Tensor,
    y_group: Tensor,
    margin: Tensor,
    tie: Tensor,
    no_group: int,
    margin_of: Literal["batch", "row", "column"] = "batch",
) -> RowSums:
    r"""Sums over j of the active hinges :math:`(\alpha - |x_i - y_j|^2)_+` of different groups, for each row i.

    Args:
        x: shape ``(N, D)``, float32, D at most :data:`MOST_FEATURES`.
        y: shape ``(R, D)``; may be ``x`` itself: then every pair is visited twice, once from each row.
        x_group: int64 of shape ``(N,)``.
        y_group: int64 of shape ``(R,)``.
        margin: :math:`\alpha`, 0-dim, ``(N,)`` or ``(R,)``.
        tie: how far below its margin a squared distance must be, at least 0, ``(N,)``, or ``(R,)`` for ``"column"``.
        no_group: rows of this group are left out of everything.
        margin_of: whose margin it is: ``"batch"``, ``"row"`` or ``"column"``.

    Returns:
        :class:`RowSums`: the gradient for row i is :math:`-2(\text{active}_i x_i - \text{weighted}_i)`.
    """
    rows, features = x.shape
    width = max(16, triton.next_power_of_2(features))
    block = 64 if width <= 128 else 32
    loss = torch.empty(rows, device=x.device)
    active = torch.empty(rows, dtype=torch.int32, device=x.device)
    weighted = torch.empty(rows, features, device=x.device)
    launch: Any = _hinge_kernel[(triton.cdiv(rows, block),)]
    launch(
        x.contiguous(), y.contiguous(), x_group.contiguous(), y_group.contiguous(), margin.contiguous(),
        tie.contiguous(), loss, active, weighted, rows, len(y), features, no_group,
        MARGIN_OF=margin_of, BLOCK=block, WIDTH=width,
    )  # fmt: skip
    return RowSums(loss, active, weighted)
