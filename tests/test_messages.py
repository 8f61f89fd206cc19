"""What to install is said by where the library came from, since no index has it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from adaptive_margin import messages
from adaptive_margin.messages import pip_install

ROOT = Path(__file__).resolve().parents[1]


class Recorded:
    """An installed library, by what pip wrote beside it."""

    def __init__(self, installer: str | None, url: dict[str, object] | None) -> None:
        self.files = {"INSTALLER": installer, "direct_url.json": None if url is None else json.dumps(url)}

    def read_text(self, name: str) -> str | None:
        return self.files[name]


def test_in_a_clone_it_is_the_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert pip_install("fer") == "pip install -e '.[fer]'"
    monkeypatch.chdir(tmp_path)
    assert pip_install("fer,onnx") == f"pip install -e '{ROOT}[fer,onnx]'"


@pytest.mark.parametrize(
    ("installer", "url", "says"),
    [
        ("pip", {"url": "file:///a%20b/margin", "dir_info": {}}, "pip install '/a b/margin[fer]'"),
        (
            "pip",
            {"url": "file:///w/adaptive_margin-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'adaptive-margin[fer] @ file:///w/adaptive_margin-0.1.0-py3-none-any.whl'",
        ),
        (
            "uv",
            {"url": "https://host/margin.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install 'adaptive-margin[fer] @ git+https://host/margin.git@abc'",
        ),
        ("pip", None, "pip install 'adaptive-margin[fer]'"),  # it came from an index, which has it then
        (None, None, "in the folder of its source, pip install '.[fer]'"),
    ],
    ids=["folder", "wheel", "repository", "index", "unpacked"],
)
def test_elsewhere_it_is_what_pip_recorded(
    installer: str | None,
    url: dict[str, object] | None,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(messages, "__file__", str(tmp_path / "site-packages" / "adaptive_margin" / "messages.py"))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Recorded(installer, url))
    assert pip_install("fer") == says


def test_not_installed_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(messages, "__file__", str(tmp_path / "adaptive_margin" / "messages.py"))
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert pip_install("dml") == "in the folder of its source, pip install '.[dml]'"
