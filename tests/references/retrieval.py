"""Retrieval figures, one query and one reference at a time, from the definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np


def neighbours_slow(query, reference, k, distance="squared_l2", own=False):
    """Distances and indices of the k nearest: every distance in float64, sorted by (distance, index)."""
    found = []
    for i, x in enumerate(np.asarray(query, dtype=np.float64)):
        ranked = []
        for j, y in enumerate(np.asarray(reference, dtype=np.float64)):
            if own and i == j:
                continue
            if distance == "squared_l2":
                d = sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
            else:
                lengths = math.sqrt(sum(x * x)) * math.sqrt(sum(y * y))
                d = 1 - (sum(x * y) / lengths if lengths > 0 else 0.0)
            ranked.append((d, j))
        found.append(sorted(ranked)[:k])
    return found


def retrieval_slow(query, query_labels, reference, reference_labels, ks, own):
    """Recall@k, R-Precision and MAP@R with squared L2, lone queries left out."""
    query_labels, reference_labels = ([int(y) for y in labels] for labels in (query_labels, reference_labels))
    recalls, precisions, averages = {k: [] for k in ks}, [], []
    for i, label in enumerate(query_labels):
        order = neighbours_slow(query[i : i + 1], reference, len(reference))[0]
        hits = [reference_labels[j] == label for _, j in order if not (own and j == i)]
        r = sum(hits)
        if r == 0:
            continue
        for k in ks:
            recalls[k].append(any(hits[:k]))
        precisions.append(sum(hits[:r]) / r)
        averages.append(sum(sum(hits[: n + 1]) / (n + 1) for n in range(r) if hits[n]) / r)
    figures = {f"recall_at_{k}": np.mean(recalls[k]) if recalls[k] else math.nan for k in ks}
    figures["r_precision"] = np.mean(precisions) if precisions else math.nan
    figures["mean_average_precision_at_r"] = np.mean(averages) if averages else math.nan
    return figures


def mutual_informations_slow(labels, clusters):
    """(NMI, AMI): the expectation with exact binomials, over every pair of groups and every overlap."""
    n = len(labels)
    rows = {y: [i for i in range(n) if labels[i] == y] for y in set(labels)}
    columns = {z: [i for i in range(n) if clusters[i] == z] for z in set(clusters)}
    information = expected = 0.0
    for of_row in rows.values():
        for of_column in columns.values():
            a, b, both = len(of_row), len(of_column), len(set(of_row) & set(of_column))
            if both:
                information += both / n * math.log(n * both / (a * b))
            for m in range(max(1, a + b - n), min(a, b) + 1):
                p = Fraction(math.comb(b, m) * math.comb(n - b, a - m), math.comb(n, a))
                expected += float(p) * m / n * math.log(n * m / (a * b))
    entropies = [-sum(len(g) / n * math.log(len(g) / n) for g in groups.values()) for groups in (rows, columns)]
    mean = sum(entropies) / 2
    return information / mean, (information - expected) / (mean - expected)
