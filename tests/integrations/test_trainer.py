"""The losses for text models in the library's trainer, with a small random transformer and its batch samplers."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn

from adaptive_margin import AdaptiveMargin, AdaptiveMarginLoss, ContrastiveVDMLoss, LinearMargin
from adaptive_margin.integrations.sentence_transformers import AdaptiveLabelLoss, AdaptivePairLoss, AdaptiveTripletLoss

pytestmark = pytest.mark.hosts
LOSSES: dict[str, Any] = {"pairs": AdaptivePairLoss, "triplets": AdaptiveTripletLoss, "labels": AdaptiveLabelLoss}


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def example(library: Any, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The example, with its small random model whether or not MiniLM is installed."""
    for name in ("datasets", "accelerate", "babel"):
        pytest.importorskip(name)
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    try:
        module: Any = importlib.import_module("sentence_transformers_text")
    finally:
        sys.path.pop(0)
    module.find_spec = lambda name: None
    return module


@pytest.fixture(scope="module")
def concepts(example: Any) -> Any:
    return dict(list(example.names().items())[:40])


def model_of(example: Any, concepts: Any) -> Any:
    torch.manual_seed(0)
    return example.load_model([text for each in concepts.values() for text in each])


def trained(
    library: Any, example: Any, concepts: Any, form: str, loss: Any, folder: Path, model: Any, **options: Any
) -> Any:
    options = {"max_steps": 3, "per_device_train_batch_size": 8, "save_strategy": "no", **options}
    trainer = library.SentenceTransformerTrainer(
        model=model,
        args=library.SentenceTransformerTrainingArguments(
            output_dir=str(folder), report_to="none", use_cpu=True, disable_tqdm=True, logging_steps=1, **options
        ),
        train_dataset=example.data(concepts, form, 64, seed=0),
        eval_dataset=example.data(concepts, form, 16, seed=1),
        loss=loss,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("form", LOSSES)
def test_a_loss_on_the_librarys_features_is_the_loss_on_its_embeddings(example: Any, concepts: Any, form: str) -> None:
    model = model_of(example, concepts).eval()
    rows = example.data(concepts, form, 12, seed=2)[:12]
    labels = torch.arange(12) // 3 if form == "labels" else None
    features = [model.preprocess(rows[name]) for name in rows if name != "label"]
    loss = LOSSES[form](model)
    value = loss([dict(each) for each in features], labels)
    embeddings = [model(dict(each))["sentence_embedding"] for each in features]
    torch.testing.assert_close(value, loss.compute_loss_from_embeddings(embeddings, labels))
    assert value > 0


@pytest.mark.parametrize(
    ("form", "sampler"),
    [
        ("pairs", "batch_sampler"),
        ("pairs", "no_duplicates"),
        ("triplets", "batch_sampler"),
        ("triplets", "no_duplicates"),
        ("labels", "batch_sampler"),
        ("labels", "group_by_label"),
    ],
)
def test_it_trains_evaluates_saves_and_loads(
    library: Any, example: Any, concepts: Any, form: str, sampler: str, tmp_path: Path
) -> None:
    model = model_of(example, concepts)
    before = [weight.detach().clone() for weight in model.parameters()]
    loss = LOSSES[form]  # the trainer builds it
    trainer = trained(library, example, concepts, form, loss, tmp_path, model, batch_sampler=sampler)
    assert isinstance(trainer.loss, loss)
    assert any(not torch.equal(weight, old) for weight, old in zip(model.parameters(), before, strict=True))
    assert 0 < trainer.evaluate()["eval_loss"] < 5
    model.save_pretrained(str(tmp_path / "model"))
    again = library.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    torch.testing.assert_close(*(torch.as_tensor(each.encode(["belgien", "bélgica"])) for each in (model, again)))


def test_static_embeddings_train_and_know_texts_that_occur_twice(library: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [f"{kind}{i}" for kind in ("red", "blue", "of") for i in range(20)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *words])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = library.SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=torch.randn(61, 8).numpy())], device="cpu"
    )
    rows = [
        {
            name: " ".join(f"{topic}{(7 * i + j + k) % 20}" for j in range(4)) + f" of{i % 20}"
            for k, (name, topic) in enumerate(zip(("anchor", "positive", "negative"), topics, strict=True))
        }
        for i, topics in enumerate([("red", "red", "blue"), ("blue", "blue", "red")] * 16)
    ]
    loss = AdaptiveTripletLoss(model, AdaptiveMarginLoss(losses.TripletMarginLoss(), collect_stats=True))
    features = [model.preprocess([row[name] for row in rows[:8]]) for name in ("anchor", "positive", "negative")]
    embedded = torch.cat([model(dict(feature))["sentence_embedding"] for feature in features])
    first = torch.arange(8)
    expected = AdaptiveMarginLoss(losses.TripletMarginLoss())(embedded, indices_tuple=(first, first + 8, first + 16))
    torch.testing.assert_close(loss(features), expected)
    seen: dict[str, Any] = {}
    loss.loss.register_forward_pre_hook(lambda module, arguments: seen.update(labels=arguments[1]))
    loss([model.preprocess([f"red{i} of1", "blue2", f"red{i} of1"]) for i in range(3)])
    assert seen["labels"].tolist() == [0, 1, 0, 0, 1, 0, 2, 1, 2]
    before = [weight.detach().clone() for weight in model.parameters()]
    trainer = library.SentenceTransformerTrainer(
        model=model,
        args=library.SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=8,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
            learning_rate=0.1,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        loss=loss,
    )
    trainer.train()
    assert any(not torch.equal(weight, old) for weight, old in zip(model.parameters(), before, strict=True))
    assert 0 < loss.loss.current_margin < 3


def test_the_model_card_has_loss_margin_and_paper(library: Any, example: Any, concepts: Any, tmp_path: Path) -> None:
    model = model_of(example, concepts)
    loss = AdaptivePairLoss(model, losses.TripletMarginLoss(), AdaptiveMargin(neighbourhood="attainable"))
    trained(library, example, concepts, "pairs", loss, tmp_path, model)
    model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "adaptive_margin.integrations.sentence_transformers.AdaptivePairLoss" in card
    assert '"margin": "AdaptiveMargin(confidence=0.05' in card
    assert "AttainableRule" in card
    assert "loss:AdaptivePairLoss" in card
    assert "#### AdaptivePairLoss" in card
    assert "kim2021contrastive" in card


def test_a_run_resumes_from_a_checkpoint(library: Any, example: Any, concepts: Any, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "seed": 3}
    whole = model_of(example, concepts)
    resumed = copy.deepcopy(whole)
    trained(library, example, concepts, "pairs", AdaptivePairLoss(whole), tmp_path / "run", whole, **options)
    trainer = library.SentenceTransformerTrainer(
        model=resumed,
        args=library.SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / "run"),
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            per_device_train_batch_size=8,
            **options,
        ),
        train_dataset=example.data(concepts, "pairs", 64, seed=0),
        loss=AdaptivePairLoss(resumed),
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for weight, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)


def test_weights_of_a_loss_are_trained(library: Any, example: Any, concepts: Any, tmp_path: Path) -> None:
    model = model_of(example, concepts)
    loss = AdaptiveLabelLoss(model, losses.CosFaceLoss(len(concepts), 64))
    before = loss.loss.W.detach().clone()
    trained(library, example, concepts, "labels", loss, tmp_path, model, batch_sampler="group_by_label")
    assert not torch.equal(loss.loss.W, before)


def test_datasets_with_losses_of_their_own(library: Any, example: Any, concepts: Any, tmp_path: Path) -> None:
    model = model_of(example, concepts)
    own: dict[str, Any] = {
        "pairs": AdaptivePairLoss(model, ContrastiveVDMLoss()),
        "labels": AdaptiveLabelLoss(model, margin=AdaptiveMargin(granularity="anchor")),
    }
    trainer = library.SentenceTransformerTrainer(
        model=model,
        args=library.SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path),
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            max_steps=4,
            per_device_train_batch_size=8,
        ),
        train_dataset={form: example.data(concepts, form, 16, seed=0) for form in own},
        loss=own,
    )
    assert 0 < trainer.train().training_loss < 10


def test_a_wrapped_model_takes_the_place_of_the_model(library: Any, example: Any, concepts: Any) -> None:
    model = model_of(example, concepts)
    loss = AdaptivePairLoss(model, AdaptiveMarginLoss(losses.ContrastiveLoss(), 0.5))
    trainer = library.SentenceTransformerTrainer(model=model, loss=loss)

    class Wrapper(nn.Module):  # such as DistributedDataParallel
        def __init__(self) -> None:
            super().__init__()
            self.module, self.calls = model, 0

        def forward(self, features: Any) -> Any:
            self.calls += 1
            return self.module(features)

    wrapper = Wrapper()
    assert trainer.override_model_in_loss(loss, wrapper) is loss
    features = [model.preprocess(["belgien", "kanada"]), model.preprocess(["bélgica", "canadá"])]
    loss(features)
    assert wrapper.calls == 2
    assert loss.loss.margin.value == 0.5


def test_it_goes_into_the_librarys_modifiers(library: Any, example: Any, concepts: Any, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss, MatryoshkaLoss

    model = model_of(example, concepts)
    inner = AdaptivePairLoss(model)
    rows = example.data(concepts, "pairs", 12, seed=2)[:12]
    model.eval()

    def features() -> list[Any]:
        return [model.preprocess(rows[name]) for name in rows]

    embeddings = [model(each)["sentence_embedding"] for each in features()]
    expected = sum(inner.compute_loss_from_embeddings([each[:, :width] for each in embeddings]) for width in (64, 32))
    torch.testing.assert_close(MatryoshkaLoss(model, inner, [64, 32])(features(), None), expected)
    trained(library, example, concepts, "pairs", MatryoshkaLoss(model, inner, [64, 32]), tmp_path / "m", model)
    trained(library, example, concepts, "pairs", AdaptiveLayerLoss(model, inner), tmp_path / "l", model)


def test_the_example_trains_and_prints_what_it_measured(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    results = example.main(steps=40, concepts=60, losses=["pairs: adaptive", "labels: adaptive"])
    printed = capsys.readouterr().out
    assert list(results) == ["untrained", "pairs: adaptive", "labels: adaptive"]
    for name, found in results.items():
        assert f"{found['mean_average_precision_at_r']:.3f}" in printed
        if name != "untrained":
            assert f"{name}: margin " in printed
            assert found["mean_average_precision_at_r"] > results["untrained"]["mean_average_precision_at_r"]


def test_the_example_lets_a_linear_margin_grow(example: Any, concepts: Any) -> None:
    def make(model: Any) -> AdaptivePairLoss:
        loss = AdaptiveMarginLoss(losses.ContrastiveLoss(), LinearMargin(0.5, 0.1), collect_stats=True)
        return AdaptivePairLoss(model, loss)

    _, logs = example.train(
        concepts, "labels", lambda model: AdaptiveLabelLoss(model, make(model).loss), seed=0, steps=10
    )
    margins = [each["margin"] for each in logs if "margin" in each]
    assert margins[0] == pytest.approx(0.5)
    assert margins[-1] == pytest.approx(0.6)  # 320 texts are five batches of 64: the second epoch
