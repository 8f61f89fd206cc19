"""What every docstring example may use without importing it."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    """Gives examples ``torch``, from a fixed random state."""
    torch.manual_seed(0)
    doctest_namespace["torch"] = torch
