"""Which margin suits given embeddings: :func:`suggest` measures them, and says what each strategy's margin would do."""

from .files import read_embeddings
from .measure import suggest
from .result import Suggestion

__all__ = ["Suggestion", "read_embeddings", "suggest"]
