"""The miners' rules, one anchor and one reference at a time, in float64."""

from __future__ import annotations

import math

import numpy as np


def unit_rows(x):
    x = np.asarray(x, dtype=np.float64)
    return x / np.maximum(np.sqrt((x * x).sum(axis=1, keepdims=True)), 1e-12)


def log_weight_slow(r, dimension):
    """-log q(r), the first equation of section 4 of Wu et al. 2017."""
    return -((dimension - 2) * math.log(r) + (dimension - 3) / 2 * math.log(1 - r * r / 4))


def negative_log_probabilities_slow(embeddings, labels, references, ref_labels, cutoff=0.5, upper=1.4):
    """log P(n | a): -inf for the anchor's class, rows of -inf where there is no other class."""
    x, y = unit_rows(embeddings), unit_rows(references)
    result = np.full((len(x), len(y)), -math.inf)
    for a in range(len(x)):
        others = [n for n in range(len(y)) if labels[a] != ref_labels[n]]
        if not others:
            continue
        distance = {n: math.sqrt(((x[a] - y[n]) ** 2).sum()) for n in others}
        near = [n for n in others if upper is None or distance[n] < upper]
        logs = {n: log_weight_slow(min(max(distance[n], cutoff), 1.999), x.shape[1]) for n in near}
        if not near:  # none that could have a loss: any other class, evenly
            logs = dict.fromkeys(others, 0.0)
        top = max(logs.values())
        log_sum = top + math.log(sum(math.exp(v - top) for v in logs.values()))
        for n, v in logs.items():
            result[a, n] = v - log_sum
    return result


def positive_pairs_slow(labels, ref_labels, own):
    """Every (anchor, positive), of the anchors that have a sample of another class too."""
    pairs = []
    for a in range(len(labels)):
        if all(label == labels[a] for label in ref_labels):
            continue
        pairs += [(a, p) for p in range(len(ref_labels)) if labels[a] == ref_labels[p] and not (own and a == p)]
    return pairs


def batch_hard_slow(embeddings, labels, references, ref_labels, own):
    """(a, p, n) by L2 distance between unit vectors, ties to the lower index."""
    x, y = unit_rows(embeddings), unit_rows(references)
    triplets = []
    for a in range(len(x)):
        distance = [math.sqrt(((x[a] - row) ** 2).sum()) for row in y]
        positives = [p for p in range(len(y)) if labels[a] == ref_labels[p] and not (own and a == p)]
        negatives = [n for n in range(len(y)) if labels[a] != ref_labels[n]]
        if positives and negatives:
            triplets.append((a, max(positives, key=distance.__getitem__), min(negatives, key=distance.__getitem__)))
    return triplets
