r"""Agreement of predictions with continuous labels: the metrics of the affect literature, and the loss built from them.

All statistics are population statistics (divide by :math:`N`, never :math:`N - 1`), as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..messages import problem
from .checks import check_columns, check_finite


def root_mean_square_error(target: Tensor, prediction: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Root mean square error of each column, :math:`\sqrt{E[(y - \hat y)^2]}`.

    Source: Kim & Song 2021, Evaluation metrics. No differences; there is no :math:`\epsilon` inside the root.

    Args:
        target: :math:`y`, shape ``(N,)`` or ``(N, L)``, ``N >= 1``.
        prediction: :math:`\hat y`, same shape and unit.
        dtype: what to compute in and return. None: the wider dtype of the two, half precision computed in float32.

    Returns:
        0-dim for ``(N,)``, shape ``(L,)`` for ``(N, L)``, in the unit of ``target``. If every error is 0 the gradient
        is 0 (that of the root is undefined); otherwise it is finite, however small the errors.

    Raises:
        ValueError: shapes differ, are neither ``(N,)`` nor ``(N, L)``, or are empty; a value is NaN or infinite.

    Example:
        >>> root_mean_square_error(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0]))
        tensor(3.5355)
    """
    y, p, finish = _pair(target, prediction, dtype)
    return finish(_rmse(y, p))


def sign_agreement(target: Tensor, prediction: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Share of rows whose prediction has the label's sign.

    .. math:: \mathrm{SAGR} = \frac1N \sum_i [\mathrm{sign}(y_i) = \mathrm{sign}(\hat y_i)]

    The sign of 0 is 0: a label of exactly 0 agrees only with a prediction of exactly 0, by the definition with
    Kronecker's delta.

    Source: Kim & Song 2021, Evaluation metrics (SAGR). No differences.

    Args:
        target: :math:`y`, shape ``(N,)`` or ``(N, L)``, ``N >= 1``.
        prediction: :math:`\hat y`, same shape.
        dtype: of the result. None: the wider dtype of the two.

    Returns:
        A share in [0, 1], 0-dim for ``(N,)``, shape ``(L,)`` for ``(N, L)``. It has no gradient.

    Raises:
        ValueError: as :func:`root_mean_square_error`.

    Example:
        >>> sign_agreement(torch.tensor([0.3, -0.2, 0.0, 0.0]), torch.tensor([0.1, 0.1, 0.0, 0.1]))
        tensor(0.5000)
    """
    y, p, finish = _pair(target, prediction, dtype)
    return finish((y.sign() == p.sign()).to(y.dtype).mean(dim=0))


def pearson_correlation(target: Tensor, prediction: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Pearson's correlation coefficient of each column.

    .. math:: \mathrm{PCC} = \frac{E[(y - \mu_y)(\hat y - \mu_{\hat y})]}{\sigma_y \sigma_{\hat y}}

    Source: Kim & Song 2021, Evaluation metrics. One difference: if a side is constant the ratio is 0/0, and the value
    is 0 (no linear association was shown) with a gradient of 0.

    Args:
        target: :math:`y`, shape ``(N,)`` or ``(N, L)``, ``N >= 1``.
        prediction: :math:`\hat y`, same shape; its unit and offset do not matter.
        dtype: what to compute in and return. None: the wider dtype of the two, half precision computed in float32.

    Returns:
        A number in [-1, 1], 0-dim for ``(N,)``, shape ``(L,)`` for ``(N, L)``.

    Raises:
        ValueError: as :func:`root_mean_square_error`.

    Example:
        >>> pearson_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0]))
        tensor(0.5000)
    """
    y, p, finish = _pair(target, prediction, dtype)
    return finish(_pcc(y, p))


def concordance_correlation(target: Tensor, prediction: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Concordance correlation coefficient of each column: correlation, reduced by differences in scale and offset.

    .. math:: \mathrm{CCC} = \frac{2\,\sigma_y \sigma_{\hat y}\,\mathrm{PCC}}
                                  {\sigma_y^2 + \sigma_{\hat y}^2 + (\mu_y - \mu_{\hat y})^2}

    Source: Lin 1989; Kim & Song 2021, Evaluation metrics. One difference: if both sides are the same constant the ratio
    is 0/0, and the value is 0, so that :math:`|\mathrm{CCC}| \le |\mathrm{PCC}|` always holds. Some libraries divide
    only the variances by :math:`N - 1` and leave the squared offset unchanged; with population statistics for all terms
    the result differs on small samples.

    Args:
        target: :math:`y`, shape ``(N,)`` or ``(N, L)``, ``N >= 1``.
        prediction: :math:`\hat y`, same shape and unit.
        dtype: what to compute in and return. None: the wider dtype of the two, half precision computed in float32.

    Returns:
        A number in [-1, 1], 0-dim for ``(N,)``, shape ``(L,)`` for ``(N, L)``. Constant predictions give 0 with a
        gradient that moves them apart.

    Raises:
        ValueError: as :func:`root_mean_square_error`.

    Example:
        >>> concordance_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 3.0, 4.0]))
        tensor(0.5714)
    """
    y, p, finish = _pair(target, prediction, dtype)
    return finish(_ccc(y, p))


def affect_loss(
    target: Tensor, prediction: Tensor, *, correlation_weight: float = 0.5, dtype: torch.dtype | None = None
) -> Tensor:
    r"""The paper's regression loss on arousal and valence.

    .. math:: L_{AV} = \sum_l \mathrm{RMSE}_l + \epsilon\,(L_{PCC} + L_{CCC}), \qquad
              L_{PCC} = 1 - \frac1L \sum_l \mathrm{PCC}_l, \quad L_{CCC} = 1 - \frac1L \sum_l \mathrm{CCC}_l

    Source: Kim & Song 2021, Evaluation metrics, with :math:`\epsilon = 0.5`; Algorithm 1, line 8. Summing the RMSE over
    the labels follows the authors' released code; the paper does not specify it.

    Args:
        target: :math:`y`, shape ``(N, L)`` (``L = 2`` in the paper) or ``(N,)``, ``N >= 1``.
        prediction: :math:`\hat y`, same shape and unit.
        correlation_weight: :math:`\epsilon`, at least 0.
        dtype: what to compute in and return. None: the wider dtype of the two, half precision computed in float32.

    Returns:
        The loss, 0-dim. Finite with finite gradients for every finite input: a batch of one, constant labels, constant
        or perfect predictions. A gradient too large for float16, as for the correlation of float16 predictions that
        hardly differ, is scaled down to the largest size that fits and keeps its direction, unless the loss was scaled
        up.

    Raises:
        ValueError: as :func:`root_mean_square_error`; ``correlation_weight`` is negative or not finite.

    Example:
        >>> label = torch.tensor([[0.1, 0.5], [0.3, -0.2], [-0.4, 0.0]])
        >>> affect_loss(label, label + 0.1)
        tensor(0.2273)
    """
    if not 0 <= correlation_weight < math.inf:
        remedy = "the paper's is 0.5"
        raise ValueError(problem("correlation_weight", "finite and at least 0", correlation_weight, remedy))
    y, p, finish = _pair(target, prediction, dtype)
    from_correlation = 2 - _pcc(y, p).mean() - _ccc(y, p).mean()
    return finish(_rmse(y, p).sum() + correlation_weight * from_correlation)


def _pair(
    target: Tensor, prediction: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Both sides, checked, in the dtype for the computation; and a function to the dtype of the result."""
    check_columns("target", target)
    check_columns("prediction", prediction)
    if target.shape != prediction.shape:
        expected = f"of target's shape {tuple(target.shape)}"
        remedy = "one prediction per label; squeeze a (N, 1) output"
        raise ValueError(problem("prediction", expected, f"shape {tuple(prediction.shape)}", remedy))
    result = torch.promote_types(target.dtype, prediction.dtype) if dtype is None else dtype
    result = result if result.is_floating_point else torch.get_default_dtype()
    compute = torch.promote_types(result, torch.float32)
    upstream: list[Tensor] = []
    narrow = [x.dtype == torch.float16 and x.requires_grad for x in (target, prediction)]
    y, p = (
        _Widened.apply(x, compute, upstream) if fits else x.to(compute)
        for x, fits in zip((target, prediction), narrow, strict=True)
    )
    check_finite("target", y)
    check_finite("prediction", p)

    def finish(value: Tensor) -> Tensor:
        noted: Tensor = _Noted.apply(value, upstream) if any(narrow) else value
        return noted.to(result)

    return y, p, finish


class _Widened(torch.autograd.Function):
    """float16 in a wider dtype. A gradient that float16 cannot hold is scaled down to the largest size and keeps its
    direction.

    If the loss was scaled up, overflow remains, because it tells the loss scaler to reduce its scale.
    """

    @staticmethod
    def forward(x: Tensor, dtype: torch.dtype, upstream: list[Tensor]) -> Tensor:
        return x.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, ctx.upstream = inputs
        ctx.dtype = x.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        limit = 0.999 * torch.finfo(ctx.dtype).max  # minus what rounding could add
        factor = (limit / gradient.abs().amax()).clamp(max=1)
        scaled = ctx.upstream[-1] > 1
        return (gradient * torch.where(scaled, 1.0, factor)).to(ctx.dtype), None, None


class _Noted(torch.autograd.Function):
    """The identity, which records the size of its gradient."""

    @staticmethod
    def forward(x: Tensor, upstream: list[Tensor]) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.upstream = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.upstream.append(gradient.detach().abs().amax())
        return gradient, None


# Squares of labels near 1e-20 underflow in float32 and those near 1e18, summed, overflow. So each formula divides by
# the largest deviation first. The formulas do not change when their input is shifted or scaled (the RMSE is scaled
# back), for any fixed shift and scale: these carry no gradient, and the gradient is still exact.


def _deviations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations from the mean, exactly 0 for a constant column, and the largest magnitude among them."""
    x = x - x[:1].detach()  # no loss of precision if the spread is small compared with the offset
    x = x - x.mean(dim=0, keepdim=True)
    return x, x.detach().abs().amax(dim=0)


def _or_one(x: Tensor, zero: Tensor) -> Tensor:
    """``x``, with 1 where it is zero: a denominator or radicand whose result is then not used."""
    return torch.where(zero, torch.ones_like(x), x)


def _rmse(y: Tensor, p: Tensor) -> Tensor:
    error = y - p
    largest = error.detach().abs().amax(dim=0)
    none = largest == 0
    mean_square = (error / _or_one(largest, none)).square().mean(dim=0)  # in [1/N, 1]
    return largest * _or_one(mean_square, none).sqrt()


def _pcc(y: Tensor, p: Tensor) -> Tensor:
    dy, y_scale = _deviations(y)
    dp, p_scale = _deviations(p)
    constant = (y_scale == 0) | (p_scale == 0)
    dy, dp = dy / _or_one(y_scale, y_scale == 0), dp / _or_one(p_scale, p_scale == 0)
    variances = dy.square().mean(dim=0) * dp.square().mean(dim=0)
    ratio = (dy * dp).mean(dim=0) / _or_one(variances, constant).sqrt()
    return torch.where(constant, torch.zeros_like(ratio), ratio.clamp(-1, 1))


def _ccc(y: Tensor, p: Tensor) -> Tensor:
    dy, y_scale = _deviations(y)
    dp, p_scale = _deviations(p)
    gap = (y - p).mean(dim=0)
    scale = torch.maximum(torch.maximum(y_scale, p_scale), gap.detach().abs())
    equal = scale == 0
    scale = _or_one(scale, equal)
    dy, dp, gap = dy / scale, dp / scale, gap / scale
    covariance = (dy * dp).mean(dim=0)
    spread = dy.square().mean(dim=0) + dp.square().mean(dim=0) + gap.square()  # at least 1/N unless equal
    return 2 * covariance / _or_one(spread, equal)
