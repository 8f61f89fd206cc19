"""All terms of a batch and their gradients, as a list of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import NO_GROUP, back_in_place, in_order, layout_of
from .means import check_values, counts_of, inside_of, repulsion_of, value_of
from .options import Options
from .rows import check_squares, from_centre
from .small import small_pairs
from .sums import hinge_sums


def measure_pairs(
    x: Tensor, y: Tensor | None, margin: Tensor, labels: Tensor | None, ref_labels: Tensor | None, options: Options
) -> list[Tensor]:
    """All of :func:`pair_terms` as one list of tensors, in the caller's order of rows.

    Returns:
        Attraction, repulsion, second moment and counts; then, if gradients are wanted, for each of the terms (two,
        or three with the second moment) those for the rows, those for the columns if there are two sets, and those
        for the margin. :func:`shapes_of` says the same.
    """
    small = small_pairs(x, y, margin, labels, options)
    if small is not None:
        gradients = small.gradients() if options.gradients else []
        return [*small.values(x), *gradients, *small.of_margin]
    return measure_tiles(x, y, margin, labels, ref_labels, options)


def measure_tiles(
    x: Tensor, y: Tensor | None, margin: Tensor, labels: Tensor | None, ref_labels: Tensor | None, options: Options
) -> list[Tensor]:
    """:func:`measure_pairs` of sets of any size."""
    layout = layout_of(x, y, labels, ref_labels, options)
    if len(layout.rows.groups) == 0 or len(layout.cols.groups) == 0:
        return [x.new_zeros(shape, dtype=dtype) for shape, dtype in shapes_of(x, y, margin, options)]
    xs = in_order(x, layout.rows)
    ys = xs if y is None else in_order(y, layout.cols)
    by_row = margin if margin.ndim == 0 or layout.rows.order is None else margin.index_select(0, layout.rows.order)
    valid = None if layout.cols.values is not None else layout.cols.groups != NO_GROUP
    rows, cols = from_centre(xs, ys, x, x if y is None else y, valid, options.distance)
    check_squares("embeddings", rows, labels, options.ignore_label)
    if y is not None:
        check_squares("ref_emb", cols, ref_labels, options.ignore_label)
    pairs = layout.counts()
    across = hinge_sums("across", layout, rows, cols, by_row, options)
    repulsion = repulsion_of(across, by_row, options)
    attraction, second_moment = inside_of(layout, rows, cols, pairs, across, by_row, options)
    terms = [attraction, repulsion, second_moment]
    check_values([term.value for term in terms], x.dtype)
    values = [value_of(term.value, x) for term in terms]
    active = across.active * (2 if layout.symmetric and margin.ndim == 0 else 1)
    counts = counts_of(*pairs, active) if options.counts else x.new_zeros(3, dtype=torch.int64)
    if not options.gradients:
        return [*values, counts]
    terms = terms if options.second_moment else terms[:2]
    of_rows = [back_in_place(term.gradients[0], layout.rows, x) for term in terms]
    of_cols = []
    if y is not None and options.ref_gradients:
        of_cols = [back_in_place(term.gradients[1], layout.cols, y) for term in terms]
    of_margin = []
    if options.margin_gradients:
        of_margin = [term.of_margin.to(x.dtype) for term in terms[1:] if term.of_margin is not None]
    if margin.ndim == 1:
        of_margin = [back_in_place(gradient, layout.rows, margin) for gradient in of_margin]
    return [*values, counts, *of_rows, *of_cols, *of_margin]


def shapes_of(
    x: Tensor, y: Tensor | None, margin: Tensor, options: Options
) -> list[tuple[torch.Size | tuple[int, ...], torch.dtype]]:
    """Shape and dtype of everything that :func:`measure_pairs` returns."""
    terms = 3 if options.second_moment else 2
    shapes: list[tuple[torch.Size | tuple[int, ...], torch.dtype]] = [((), x.dtype)] * 3 + [((3,), torch.int64)]
    if options.gradients:
        shapes += [(x.shape, x.dtype)] * terms
        shapes += [] if y is None or not options.ref_gradients else [(y.shape, x.dtype)] * terms
        shapes += [(margin.shape, x.dtype)] * (terms - 1) if options.margin_gradients else []
    return shapes
