"""A wheel built from the tree has everything, and works with the core dependencies alone."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Runs with the wheel's folder as its argument. Everything that the core dependencies do not bring themselves cannot be
# imported: neither an extra's package nor one that merely happens to be installed here.
STRANGER = """
import re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

core, waiting = set(), {"torch", "pytorch-metric-learning", "numpy", "scipy"}
while waiting:
    name = waiting.pop()
    core.add(name)
    try:
        needs = [need for need in requires(name) or [] if "extra ==" not in need]
    except PackageNotFoundError:  # for another platform or Python
        continue
    waiting |= {re.match(r"[\\w.-]+", need)[0].lower().replace("_", "-") for need in needs} - core
allowed = {
    module
    for module, owners in packages_distributions().items()
    if core & {owner.lower().replace("_", "-") for owner in owners}
}
blocked = set(packages_distributions()) - allowed - {"adaptive_margin"}
assert {"torchvision", "tyro", "matplotlib", "cv2", "pytest"} <= blocked, blocked


class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Block())
sys.path.insert(0, sys.argv[1])
import torch
import adaptive_margin
from pytorch_metric_learning import losses
from adaptive_margin import AdaptiveMarginLoss, ContrastiveVDMLoss, KMeansGrouper, OtsuGrouper
from adaptive_margin import functional, grouping, margins, metrics, miners

assert adaptive_margin.__file__.startswith(sys.argv[1]), adaptive_margin.__file__
torch.manual_seed(0)
embeddings, targets = torch.randn(32, 8, requires_grad=True), torch.rand(32, 2)
for grouper in (OtsuGrouper(), KMeansGrouper()):
    groups = grouper(targets)
    for loss in (AdaptiveMarginLoss(losses.TripletMarginLoss()), ContrastiveVDMLoss(compact_label=1)):
        loss(embeddings, groups).backward()
assert torch.isfinite(embeddings.grad).all() and embeddings.grad.any()

for name, says in {
    "affect": "adaptive_margin.images needs PIL: in the folder of its source, pip install '.[fer]'",
    "emotion.predict": "adaptive_margin.emotion needs PIL, matplotlib, torchvision, yaml: in the folder",
    "dml.backbones": "pip install '.[dml]'",
    "training.command_line": "a command line needs tyro: in the folder of its source, pip install '.[train]'",
}.items():
    try:
        __import__(f"adaptive_margin.{name}")
    except ImportError as error:
        assert says in str(error), error
    else:
        raise AssertionError(f"{name} does not miss its extra")
from adaptive_margin.command import main

assert main(["--version"]) == 0
for words in (["check", "."], ["report", "."], ["predict", ".", "--checkpoint", "model.pt"]):
    try:
        main(words)
    except SystemExit as end:
        assert end.code == 2, words
    else:
        raise AssertionError(words)
print(adaptive_margin.__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_has_the_whole_package_and_nothing_else(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "adaptive_margin"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    missing = set(tracked.stdout.split()) - names
    assert not missing
    assert {name.split("/")[0] for name in names} == {"adaptive_margin"}
    assert "adaptive_margin/py.typed" in names


def test_the_wheel_works_with_the_core_dependencies_alone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    command = [sys.executable, "-c", STRANGER, str(tmp_path / "installed")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    from adaptive_margin import __version__

    refusal = "error: a command line needs tyro: in the folder of its source, pip install '.[train]'\n"
    assert done.stderr == refusal * 3
    assert done.stdout.split() == ["adaptive-margin", __version__, __version__]


def test_the_oldest_constraints_are_what_pyproject_allows() -> None:
    lowest = re.search(r"^dependencies = \[(.*)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert lowest
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', lowest[1]))
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned.keys() == bounds.keys()
    for name, version in pinned.items():
        assert re.match(rf"{re.escape(bounds[name])}(\.\d+)?$", version), name
