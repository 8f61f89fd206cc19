"""The plain PyTorch version at the head of ``docs/margin.md`` is the library's margin."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from adaptive_margin import AdaptiveMargin

PAGE = Path(__file__).parents[2] / "docs" / "margin.md"


@pytest.fixture(scope="module")
def plain() -> Any:
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    namespace: dict[str, Any] = {}
    exec(found[1], namespace)
    return namespace["adaptive_margin"]


@pytest.mark.parametrize(("rows", "classes"), [(64, 16), (48, 3), (30, 30), (50, 7)])
def test_the_page_says_what_the_library_does(plain: Any, rows: int, classes: int) -> None:
    labels = torch.randint(classes, (rows,))
    labels[:classes] = torch.arange(classes)
    embeddings = torch.nn.functional.normalize(torch.randn(rows, 8).double() + torch.randn(classes, 8)[labels], dim=1)
    assert_close(plain(embeddings, labels), AdaptiveMargin(max_mi=None)(embeddings, labels), rtol=0, atol=1e-6)
    assert_close(plain(embeddings, labels), AdaptiveMargin()(embeddings, labels), rtol=0, atol=1e-6)
