"""Losses for the trainer of sentence-transformers, with the margin of each batch.

A loss of that library takes the features of each column of a batch, runs the model on them and returns a number. The
three here do that with a loss of pytorch-metric-learning and a margin of this library:

- :class:`AdaptivePairLoss`: columns anchor, positive and any number of negatives; compares every text of the batch with
  every other.
- :class:`AdaptiveTripletLoss`: columns anchor, positive and one negative or more; the triplets that are listed, as in
  the library's ``TripletLoss``.
- :class:`AdaptiveLabelLoss`: one column of texts, and whole-number labels; as in its ``BatchAllTripletLoss``.

Any module with the library's call shape is a model: features in, a dictionary with ``"sentence_embedding"`` out. So
this file does not import the library.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss, TripletMarginLoss
from pytorch_metric_learning.losses.mixins import WeightMixin
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather

from ..losses import AdaptiveMarginLoss, ContrastiveVDMLoss
from ..losses.batch import labels_from_indices
from ..losses.swap import Units
from ..margins import Margin
from ..messages import problem

Features = Mapping[str, Any]

_NOT_TEXT = ("pixel_values", "input_features", "input_values")
"""Features of images and sound, in the library's own names: two rows can have one text and differ in these."""

CITATION = """
@inproceedings{kim2021contrastive,
    title={Contrastive Adversarial Learning for Person Independent Facial Emotion Recognition},
    author={Kim, Daeha and Song, Byung Cheol},
    booktitle={Proceedings of the AAAI Conference on Artificial Intelligence},
    volume={35},
    year={2021},
    doi={10.1609/aaai.v35i7.16743}
}
"""


class _TextLoss(nn.Module):
    """What the three have in common: the model, the loss, processes, and what a model card says."""

    _default: type[nn.Module] = TripletMarginLoss

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module | None = None,
        margin: Margin | float | None = None,
        units: Units | None = None,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.loss = self._with_margin(self._default() if loss is None else loss, margin, units)
        for each in said:
            warnings.warn(each.message, stacklevel=2)
        self.gather_across_devices = gather_across_devices

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch: the features of each column, and labels if there are any."""
        features = list(sentence_features)
        self._check(len(features), labels)
        keys = [text_keys(column) for column in features]  # first: the model may add to the features
        embeddings = [self.model(column)["sentence_embedding"] for column in features]
        known = [key for key, rows in zip(keys, embeddings, strict=True) if key is not None and len(key) == len(rows)]
        return self._of_embeddings(embeddings, labels, torch.stack(known) if len(known) == len(keys) else None)

    def compute_loss_from_embeddings(self, embeddings: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """The loss of embeddings that are there already, one matrix per column. Equal rows are equal texts."""
        self._check(len(embeddings), labels)
        return self._of_embeddings(list(embeddings), labels, None)

    def get_config_dict(self) -> dict[str, Any]:
        """The options, for the model card."""
        config: dict[str, Any] = {"loss": type(getattr(self.loss, "loss", self.loss)).__name__}
        if isinstance(self.loss, AdaptiveMarginLoss | ContrastiveVDMLoss):
            margin: Any = self.loss.margin
            config["margin"] = f"{type(margin).__name__}({margin.extra_repr()})"
            config["distance"] = type(self.loss.distance).__name__
        if isinstance(self.loss, AdaptiveMarginLoss):
            config["units"] = self.loss.units
        return {**config, "gather_across_devices": self.gather_across_devices}

    @property
    def citation(self) -> str:
        """The paper of the margin as BibTeX, for the model card."""
        return CITATION

    def _check(self, columns: int, labels: Tensor | None) -> None:
        """Raises a ``ValueError`` for a batch of another form."""
        raise NotImplementedError

    def _of_embeddings(self, embeddings: list[Tensor], labels: Tensor | None, keys: Tensor | None) -> Tensor:
        """The loss of one matrix per column; ``keys`` (columns, rows) are equal where texts are, None if unknown."""
        raise NotImplementedError

    def _admits(self, loss: nn.Module) -> bool:
        """Whether a loss can be used as it is, without a margin from here."""
        return isinstance(loss, AdaptiveMarginLoss | ContrastiveVDMLoss)

    def _with_margin(self, loss: nn.Module, margin: Margin | float | None, units: Units | None) -> nn.Module:
        if not self._admits(loss):
            return AdaptiveMarginLoss(loss, margin, units)  # its own errors for what has no margin
        if margin is not None or units is not None:
            name, value = ("margin", margin) if margin is not None else ("units", units)
            expected = f"left out where loss is {type(loss).__name__}, which has its own"
            raise ValueError(problem(name, expected, repr(value), f"pass {name} to that loss instead"))
        return loss

    def _gathered(self, x: Tensor) -> Tensor:
        """Rows of all processes, with gradient; just these without processes."""
        if not (self.gather_across_devices and distributed.is_available() and distributed.is_initialized()):
            return x
        return torch.cat(all_gather(x.contiguous()))


class _ColumnLoss(_TextLoss):
    """Batches whose classes follow from their columns: a row's anchor and positive, and what equals one of them."""

    _least = 2  # columns

    def _with_margin(self, loss: nn.Module, margin: Margin | float | None, units: Units | None) -> nn.Module:
        made = super()._with_margin(loss, margin, units)
        host = getattr(made, "loss", made)
        exchange = getattr(made, "exchange", None)
        if isinstance(host, WeightMixin) or (exchange is not None and exchange.draws is not None):
            expected = "one that compares texts with texts"
            remedy = "class weights and proxies need the same classes in every batch: use AdaptiveLabelLoss"
            raise ValueError(problem("loss", expected, type(host).__name__, remedy))
        return made

    def _check(self, columns: int, labels: Tensor | None) -> None:
        if columns < self._least:
            expected = f"of {self._least} or more columns for {type(self).__name__}"
            remedy = "texts of one column and a label go with AdaptiveLabelLoss, pairs with AdaptivePairLoss"
            raise ValueError(problem("sentence_features", expected, columns, remedy))
        if labels is not None and labels.numel() and bool((labels != labels.flatten()[0]).any()):
            expected = f"the same for all rows, or None: for {type(self).__name__} every row is a positive pair"
            remedy = "remove the label column, or keep only the rows that are positive pairs"
            raise ValueError(problem("labels", expected, "different ones", remedy))

    def _classes(self, embeddings: list[Tensor], keys: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of all columns, one below the other, the class of each, and equal numbers where texts are equal."""
        columns = [self._gathered(column) for column in embeddings]
        rows = torch.cat(columns)
        if keys is None:
            texts = rows.detach().unique(dim=0, return_inverse=True)[1]
        else:
            keys = torch.cat([self._gathered(column) for column in keys.to(rows.device)])
            texts = keys.unique(return_inverse=True)[1]
        return rows, classes_of_columns(texts, len(columns)), texts


class AdaptivePairLoss(_ColumnLoss):
    r"""Pulls anchors and positives together and all other texts of the batch apart, to the margin of the batch.

    .. math:: \ell_{\hat\alpha}(Z, y), \qquad y_{a_i} = y_{p_i} = i, \quad y_{n_i} \text{ of its own},
        \qquad \hat\alpha = \mathrm{MI} + \Delta

    Every text of the batch is a sample, and :math:`\ell` is any loss on pairs or triplets: by default multi-similarity,
    whose threshold between positives and negatives lies at a cosine of :math:`1 - \hat\alpha/2`. Of three losses it was
    the best on validation data (``benchmarks/text``).

    Source: the margin is that of Kim & Song, AAAI 2021; negatives from the batch are those of the library's
    ``MultipleNegativesRankingLoss``, of which this differs in comparing anchors with anchors and positives with
    positives as well.

    **Texts that occur twice are no negatives of each other**, with any batch sampler: rows that share a text are one
    class. Texts are the same if their tokens are, after truncation and with the prompt. Where features are no tokens
    (images), equal embeddings are. Classes join: if a positive has two anchors, both are one class with all that
    belongs to either. So a negative that is also an anchor or a positive of its row's class does not count as a
    negative.

    Args:
        model: a ``SentenceTransformer``, or any module that returns a dictionary with ``"sentence_embedding"``.
        loss: a loss of pytorch-metric-learning that :meth:`adaptive_margin.AdaptiveMarginLoss.supported` lists, an
            ``AdaptiveMarginLoss`` or a ``ContrastiveVDMLoss``; by default ``MultiSimilarityLoss()``. Losses with class
            weights or proxies have no meaning here.
        margin: of a stock loss, as for ``AdaptiveMarginLoss``: a :class:`~adaptive_margin.Margin`, or a number for a
            constant one; by default that of ``AdaptiveMarginLoss``.
        units: of a stock loss, as for ``AdaptiveMarginLoss``.
        gather_across_devices: compares the texts of all processes, as the library's option of this name. Otherwise
            loss and margin are those of each process's own rows.

    Shapes:
        ``loss(sentence_features, labels=None)``: a dictionary of features for each of two or more columns, each of B
        rows; a 0-dim tensor. Without negatives it is what the loss gives then: attraction alone, or 0 for a loss on
        triplets.

    Raises:
        ValueError: fewer than two columns; labels that differ, which this loss would ignore; a loss with class weights.
        TypeError: a loss without a margin.

    Example:
        >>> class Words(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words = nn.Embedding(100, 16)
        ...     def forward(self, features):
        ...         return {"sentence_embedding": self.words(features["input_ids"]).mean(1)}
        >>> loss = AdaptivePairLoss(Words())
        >>> anchors, positives = ({"input_ids": torch.randint(100, (8, 5))} for _ in range(2))
        >>> loss([anchors, positives]).backward()
        >>> loss.get_config_dict()["loss"]
        'MultiSimilarityLoss'
    """

    _default = MultiSimilarityLoss

    def _of_embeddings(self, embeddings: list[Tensor], labels: Tensor | None, keys: Tensor | None) -> Tensor:
        rows, classes, _ = self._classes(embeddings, keys)
        return self.loss(rows, classes)


class AdaptiveTripletLoss(_ColumnLoss):
    r"""The triplet loss of the library with the margin of the batch.

    .. math:: \operatorname{mean}_{i:\ \ell_i > 0} \ell_i, \qquad
        \ell_i = \max(0,\ d(a_i, p_i) - d(a_i, n_i) + m(\hat\alpha))

    Only the triplets that the rows list are used. The margin is that of the whole batch, in which a row's anchor and
    positive are one class and its negative another. :math:`m(\hat\alpha) = \sqrt2 - \sqrt{2 - \hat\alpha}` for
    distances of unit vectors. It differs from the library's ``TripletLoss`` also with a constant margin: embeddings are
    normalised, and the mean is over triplets with a loss above 0 (a ``TripletMarginLoss`` with another ``distance`` or
    ``reducer`` changes that).

    Source: the margin of Kim & Song, AAAI 2021, in the loss of Schroff et al., CVPR 2015.

    A row whose negative has the text of its anchor or positive is left out; see :class:`AdaptivePairLoss` for texts
    that occur twice. With further columns each is another negative of its row.

    Args:
        model: as for :class:`AdaptivePairLoss`.
        loss: likewise; by default ``TripletMarginLoss()``.
        margin: likewise. ``AdaptiveMargin(granularity="pair")`` gives each triplet its own.
        units: likewise.
        gather_across_devices: likewise.

    Shapes:
        ``loss(sentence_features, labels=None)``: a dictionary of features for each of three or more columns, each of B
        rows; a 0-dim tensor.

    Raises:
        ValueError: fewer than three columns; labels that differ, which this loss would ignore; a loss with class
            weights.
        TypeError: a loss without a margin.

    Example:
        >>> class Known(nn.Module):
        ...     def forward(self, features):
        ...         return {"sentence_embedding": features["x"]}
        >>> loss = AdaptiveTripletLoss(Known(), margin=0.2)
        >>> a, p, n = ({"x": torch.tensor([x])} for x in ([1.0, 0.0], [0.0, 1.0], [0.0, -1.0]))
        >>> loss([a, p, n])  # √2 - √2 + 0.2
        tensor(0.2000)
    """

    _least = 3

    def _of_embeddings(self, embeddings: list[Tensor], labels: Tensor | None, keys: Tensor | None) -> Tensor:
        rows, classes, texts = self._classes(embeddings, keys)
        count = len(rows) // len(embeddings)
        first = torch.arange(count, device=rows.device).repeat(len(embeddings) - 2)
        negatives = torch.arange(2 * count, len(rows), device=rows.device)
        differs = (texts[negatives] != texts[first]) & (texts[negatives] != texts[first + count])
        first, negatives = first[differs], negatives[differs]
        return self.loss(rows, classes, (first, first + count, negatives))


class AdaptiveLabelLoss(_TextLoss):
    r"""Any loss on labelled texts with the margin of the batch; by default the triplet loss over all triplets.

    .. math:: \operatorname{mean}_{(i,j,k):\ \ell_{ijk} > 0} \ell_{ijk}, \qquad
        \ell_{ijk} = \max(0,\ d_{ij} - d_{ik} + m(\hat\alpha)), \qquad y_i = y_j \ne y_k

    Takes what the library's ``BatchAllTripletLoss`` takes: one column of texts and a whole-number label for each, two
    or more texts of a class in a batch (its batch sampler ``GROUP_BY_LABEL``). :math:`m(\hat\alpha) = \hat\alpha/4` for
    distances of unit vectors. It differs from ``BatchAllTripletLoss`` also with a constant margin: embeddings are
    normalised.

    Source: the margin of Kim & Song, AAAI 2021; all triplets of a batch: Hermans et al. 2017.

    Args:
        model: as for :class:`AdaptivePairLoss`.
        loss: likewise; by default ``TripletMarginLoss()``. Losses with class weights work: the trainer trains the
            weights, but saves only the model. So do the host's wrappers of a loss of this library
            (``CrossBatchMemory``, ``MultipleLosses``).
        margin: as for :class:`AdaptivePairLoss`.
        units: likewise.
        gather_across_devices: likewise.

    Shapes:
        ``loss(sentence_features, labels)``: the features of B texts in a list, and B labels; a 0-dim tensor. A batch
        without a pair of one class, or of one class alone, gives 0 with a gradient of 0.

    Raises:
        ValueError: more than one column; no labels, or labels that are not whole numbers.
        TypeError: a loss without a margin.

    Example:
        >>> class Known(nn.Module):
        ...     def forward(self, features):
        ...         return {"sentence_embedding": features["x"]}
        >>> loss = AdaptiveLabelLoss(Known())
        >>> value = loss([{"x": torch.randn(12, 8, requires_grad=True)}], torch.arange(12) % 4)
        >>> value.backward()
    """

    def _admits(self, loss: nn.Module) -> bool:
        inside = loss.modules() if isinstance(loss, nn.Module) else ()
        return any(super(AdaptiveLabelLoss, self)._admits(module) for module in inside)

    def _check(self, columns: int, labels: Tensor | None) -> None:
        if columns != 1:
            remedy = "pairs go with AdaptivePairLoss, triplets with AdaptiveTripletLoss"
            raise ValueError(problem("sentence_features", "of one column for AdaptiveLabelLoss", columns, remedy))
        if labels is None:
            remedy = "add a column 'label' of whole numbers to the data set, or use AdaptivePairLoss for pairs of texts"
            raise ValueError(problem("labels", "given for AdaptiveLabelLoss", "None", remedy))

    def _of_embeddings(self, embeddings: list[Tensor], labels: Tensor | None, keys: Tensor | None) -> Tensor:
        assert labels is not None
        return self.loss(self._gathered(embeddings[0]), self._gathered(labels))


def text_keys(features: Features) -> Tensor | None:
    """A number for each text of a column, the same where the model gets the same tokens; None if it gets others.

    Args:
        features: ``"input_ids"`` of shape ``(B, length)`` with their ``"attention_mask"``, or ``"input_ids"`` of all
            texts in a row with ``"offsets"`` (static embeddings).

    Returns:
        int64, shape ``(B,)``, the same in each process.

    Example:
        >>> ids, mask = torch.tensor([[5, 6, 0], [5, 6, 7]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
        >>> first, second = text_keys({"input_ids": ids, "attention_mask": mask}).tolist()
        >>> flat = {"input_ids": torch.tensor([5, 6, 5]), "offsets": torch.tensor([0, 2])}
        >>> first == int(text_keys(flat)[0]), first == second
        (True, False)
    """
    ids = features.get("input_ids")
    if not isinstance(ids, Tensor) or any(name.startswith(_NOT_TEXT) for name in features):
        return None
    ids, mask = ids.cpu(), features.get("attention_mask")
    if "offsets" in features:
        texts = ids.tensor_split(features["offsets"][1:].cpu())
    elif ids.ndim != 2:
        return None
    else:
        kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.cpu().bool()
        texts = tuple(row[those] for row, those in zip(ids, kept, strict=True))
    return torch.tensor([hash(tuple(text.tolist())) for text in texts], dtype=torch.int64)


def classes_of_columns(texts: Tensor, columns: int) -> Tensor:
    """Classes of anchors, positives and negatives: a row's anchor and positive, and equal texts, belong together.

    Args:
        texts: int64, equal numbers where texts are equal, shape ``(columns * B,)``: all anchors, then all positives,
            then the negatives of each further column.
        columns: at least 2.

    Returns:
        int64, of the same shape.

    Example:
        >>> classes_of_columns(torch.tensor([0, 1, 2, 3, 1, 4]), 3)  # the first row's negative is the second anchor
        tensor([0, 1, 0, 1, 1, 2])
    """
    everything = torch.arange(len(texts), device=texts.device)
    first = torch.full_like(texts, len(texts)).scatter_reduce(0, texts, everything, "amin")
    rows = len(texts) // columns
    links = torch.cat([everything[:rows], everything]), torch.cat([everything[:rows] + rows, first[texts]])
    return labels_from_indices((*links, everything), len(texts))[0]
