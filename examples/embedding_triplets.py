"""The margin for sentence-transformers-style triplets: anchor, positive and negative embeddings, no labels.

Trainers of sentence embeddings call a loss with the features of the anchors, of the positives and of the negatives, and
the loss runs the model on each. ``AdaptiveTripletLoss`` has the same interface and can replace such a triplet loss, for
any model with the interface; neither the loss nor this example needs sentence-transformers. The margin needs no labels:
rows that a triplet connects as anchor and positive belong together.

The sentences are generated: a few words of a topic among uninformative words, embedded by a bag of words.

    python examples/embedding_triplets.py      # under a minute on a CPU, no download
"""

from __future__ import annotations

import argparse
import time

if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="training steps of each margin")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--triplets", type=int, default=64, help="triplets per batch")
    options = parser.parse_args()
    for name, least, most in (("steps", 1, 10**6), ("seeds", 1, 10**4), ("triplets", 2, 2048)):
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name} must be from {least} to {most}, got {getattr(options, name)}")

import torch
from pytorch_metric_learning import losses
from torch import Tensor, nn

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss
from adaptive_margin.integrations.sentence_transformers import AdaptiveTripletLoss

Features = dict[str, Tensor]


class BagOfWords(nn.Module):
    """The mean of the embeddings of a sentence's words, in the call shape of a sentence transformer."""

    def __init__(self, words: int, width: int = 32) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(words, width)

    def forward(self, features: Features) -> Features:
        """Features with ``"input_ids"`` of shape (sentences, length)."""
        return {**features, "sentence_embedding": self.words(features["input_ids"])}


class Language:
    """Topics with words of their own, and many words that go with any topic."""

    def __init__(self, topics: int, seed: int, words_each: int = 20, idle: int = 200, length: int = 12) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.topics, self.words_each, self.idle, self.length = topics, words_each, idle, length
        self.words = topics * words_each + idle

    def sentences(self, topics: Tensor) -> Features:
        """A sentence on each of these topics: a quarter of its words are about it."""
        shape = (len(topics), self.length)
        about = topics[:, None] * self.words_each + torch.randint(self.words_each, shape, generator=self.generator)
        idle = self.topics * self.words_each + torch.randint(self.idle, shape, generator=self.generator)
        tells = torch.rand(shape, generator=self.generator) < 0.25
        return {"input_ids": torch.where(tells, about, idle)}

    def triplets(self, count: int) -> tuple[Features, Features, Features]:
        """Anchors, positives on their topics and negatives on others."""
        topics = torch.randint(self.topics, (count,), generator=self.generator)
        others = (topics + torch.randint(1, self.topics, (count,), generator=self.generator)) % self.topics
        return self.sentences(topics), self.sentences(topics), self.sentences(others)


def triplet_accuracy(model: nn.Module, triplets: tuple[Features, Features, Features]) -> float:
    """How often the positive is nearer to the anchor, by cosine similarity, than the negative is."""
    with torch.no_grad():
        a, p, n = (nn.functional.normalize(model(features)["sentence_embedding"]) for features in triplets)
    return ((a * p).sum(1) > (a * n).sum(1)).double().mean().item()


def main(steps: int = 200, seeds: int = 3, triplets: int = 64) -> dict[str, list[float]]:
    """Prints, and returns, the accuracy on new triplets, one figure a seed, for constant margins and adaptive ones."""
    start = time.perf_counter()
    results: dict[str, list[float]] = {}
    for seed in range(seeds):
        for name, margin in {
            "margin 0.05": 0.05,
            "margin 0.2": 0.2,
            "margin 0.8": 0.8,
            # Without labels a group is a pair, and what is missing is the share of sentences whose nearest neighbour is
            # not their partner...
            "adaptive": AdaptiveMargin(),
            "one a triplet": AdaptiveMargin(granularity="pair"),
            # ... and of the rules that wait for evidence the authors' released one alone is satisfied with a pair.
            "adaptive, released rule": AdaptiveMargin(neighbourhood="released"),
        }.items():
            torch.manual_seed(seed)
            language = Language(topics=40, seed=seed)
            model = BagOfWords(language.words)
            new = language.triplets(2000)
            results.setdefault("no training", []).append(triplet_accuracy(model, new))
            loss = AdaptiveTripletLoss(
                model, AdaptiveMarginLoss(losses.TripletMarginLoss(), margin, collect_stats=True)
            )
            optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
            margins = []
            for _ in range(steps):
                optimizer.zero_grad()
                loss(language.triplets(triplets)).backward()
                optimizer.step()
                margins.append(loss.loss.current_margin)
            results.setdefault(name, []).append(triplet_accuracy(model, new))
            print(
                f"seed {seed}  {name:<24} accuracy {results[name][-1]:.3f}  "
                f"margin {margins[0]:.3f} at the first step, {margins[-1]:.3f} at the last",
                flush=True,
            )
    results["no training"] = results["no training"][:: len(results) - 1]
    print(f"\nAccuracy on new triplets, mean ± sd of {seeds} seeds")
    for name, figures in results.items():
        column = torch.tensor(figures, dtype=torch.float64)
        print(f"{name:<24}{column.mean():.3f} ± {column.std(correction=min(1, seeds - 1)):.3f}")
    print(f"{time.perf_counter() - start:.0f} s")
    return results


if __name__ == "__main__":
    main(**vars(options))
