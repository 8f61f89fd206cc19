"""What to install is said by where the library came from, since no index has it."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adaptive_margin import messages
from adaptive_margin.emotion.detect import face_detector
from adaptive_margin.emotion.nets import build_encoder
from adaptive_margin.images.video import opencv
from adaptive_margin.messages import pip_install
from adaptive_margin.metrics import RetrievalMetrics
from adaptive_margin.suggestion import read_embeddings

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


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Installs packages that cannot be imported, as if a system library were missing."""
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))

    def install(name: str) -> None:
        folder = tmp_path / "site-packages" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
        for module in [each for each in sys.modules if each.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)

    return install


def test_a_broken_package_is_not_a_missing_one(broken: Callable[[str], None]) -> None:
    """Installing it again would not help, and the package's own error says why."""
    said = "is installed, but cannot be imported: libGL.so.1: cannot open shared object file"
    for name, use in (
        ("cv2", opencv),
        ("cv2", face_detector),
        ("pyarrow", lambda: read_embeddings(Path(sys.path[0]) / "x.parquet")),
        ("timm", lambda: build_encoder("timm:resnet18")),
        ("faiss", lambda: RetrievalMetrics(search="faiss")(torch.eye(4), torch.arange(4) // 2)),
    ):
        if not Path(sys.path[0], name).exists():
            broken(name)
        Path(sys.path[0], "x.parquet").touch()
        with pytest.raises(ImportError, match=f"{name} {said}") as caught:
            use()
        assert "pip install" not in str(caught.value)
        assert messages.is_expected(caught.value)


def test_a_command_says_in_one_line_what_is_broken(
    broken: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    broken("nobodys")
    with pytest.raises(SystemExit) as caught, messages.said_plainly():
        importlib.import_module("nobodys")
    assert caught.value.code == 2
    said = "error: nobodys is installed, but cannot be imported: libGL.so.1: cannot open shared object file\n"
    assert capsys.readouterr().err == said
    with pytest.raises(ModuleNotFoundError), messages.said_plainly():  # of a bug
        importlib.import_module("no_such_module")
