"""Every option that a message of the package tells a reader to pass is one that somebody can pass."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import adaptive_margin
from adaptive_margin.command.check import Check
from adaptive_margin.command.export_hub import ExportHub
from adaptive_margin.command.export_onnx import ExportOnnx
from adaptive_margin.command.predict import Predict
from adaptive_margin.command.report import Report
from adaptive_margin.command.suggest import Suggest
from adaptive_margin.dml.config import DMLConfig
from adaptive_margin.emotion.config import EmotionConfig

PACKAGE = Path(adaptive_margin.__file__).parent
OTHERS_FLAGS = {"--nproc-per-node", "--always", "--exclude", "--abbrev", "--dirty"}  # torchrun's, git's
OTHERS_PARAMETERS = {"power", "sparse", "return_inverse"}  # of the host's distances, torch's embeddings, np.unique


@functools.cache
def files() -> list[tuple[Path, ast.Module]]:
    """The package's, parsed."""
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(PACKAGE.rglob("*.py"))]


def messages() -> Iterator[tuple[str, str]]:
    """File and text of every string but docstrings."""
    for path, tree in files():
        documented = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                yield path.relative_to(PACKAGE).as_posix(), node.value


def flags() -> set[str]:
    """The options of all commands: the fields of their data classes and of the trainers' configurations."""
    kinds = (DMLConfig, EmotionConfig, Report, Predict, ExportOnnx, ExportHub, Check, Suggest)
    fields = {field.name.replace("_", "-") for kind in kinds for field in dataclasses.fields(kind)}
    others = {
        "--preset",
        "--config",
        "--page",
        "--help",
        "--version",
        "--smallest-face",
        "--yes",
    }  # an alias; fer_caf.py's
    return {f"--{name}" for name in fields} | {f"--no-{name}" for name in fields} | others | OTHERS_FLAGS


def parameters() -> set[str]:
    """Names of what functions, methods and data classes take."""
    found: set[str] = set()
    for _, tree in files():
        for node in ast.walk(tree):
            if isinstance(node, ast.arguments):
                found |= {each.arg for each in (*node.posonlyargs, *node.args, *node.kwonlyargs)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


def test_every_flag_of_a_message_is_an_option() -> None:
    known, unknown = flags(), []
    mentioned = 0
    for file, text in messages():
        for flag in re.findall(r"(?<![\w(-])--[a-z][a-z-]+(?![\w:-])", text):  # not CSS
            mentioned += 1
            if flag not in known:
                unknown.append(f"{file}: {flag}")
    assert mentioned > 50
    assert unknown == []


def test_every_keyword_of_a_message_is_a_parameter() -> None:
    known, unknown = parameters() | OTHERS_PARAMETERS, []
    mentioned = 0
    for file, text in messages():
        for name in re.findall(r"(?<![\w.])([a-z][a-z_]+)=(?!=)(?=[\s,;:.)]|\w|$)", text):
            if " " in text:  # not HTML or a format
                mentioned += 1
                if name not in known:
                    unknown.append(f"{file}: {name}= in {text[:80]!r}")
    assert mentioned > 10
    assert unknown == []


def test_every_extra_of_a_message_can_be_installed() -> None:
    written = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    extras = written.split("[project.optional-dependencies]")[1].split("\n[")[0]
    known, asked = set(re.findall(r"^(\w+) = \[", extras, re.M)), []
    for path, tree in files():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                place = {"pip_install": 0, "require_extra": 1}.get(node.func.id)
                if place is not None and isinstance(node.args[place], ast.Constant):
                    asked += [(path.name, extra) for extra in str(node.args[place].value).split(",")]
    assert len(asked) > 7
    assert [(file, extra) for file, extra in asked if extra not in known] == []


def test_no_message_or_page_installs_by_a_name_that_no_index_has() -> None:
    """An extra is installed from where the library came from: see ``messages.pip_install``."""
    by_name = [(file, text) for file, text in messages() if "adaptive-margin[" in text and file != "messages.py"]
    root = PACKAGE.parent
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md")]
    assert len(pages) > 20
    pages += [
        path for folder in ("adaptive_margin", "benchmarks", "examples") for path in root.glob(f"{folder}/**/*.py")
    ]
    told = re.compile(r"pip3? install\b[^`\n]*?[ '\"=](adaptive[-_]margin\b(?!/).*)")
    for path in pages:
        found = told.findall(path.read_text(encoding="utf-8"))
        by_name += [(path.name, each) for each in found if path.name != "messages.py" and " @ " not in each]
    assert by_name == []
