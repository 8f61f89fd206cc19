"""Presets, files and flags, and the errors about each."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from adaptive_margin.training.command_line import ConfigError, from_yaml, parse, to_yaml
from adaptive_margin.training.config_files import read_options


@dataclass(frozen=True, kw_only=True)
class Adam:
    """One network's optimiser."""

    lr: float = 1e-4
    """Learning rate."""
    betas: tuple[float, float] = (0.5, 0.9)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train."""

    steps: int = 1000
    """Steps in all."""
    root: Path | None = None
    margin: Literal["adaptive", "constant"] = "adaptive"
    encoder: Adam = field(default_factory=Adam)
    critic: Adam | None = None
    ks: tuple[int, ...] = (1, 2, 4)
    names: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    clip: float | None = None
    flip: bool = True
    either: int | str = 3
    anything: Any = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


PRESETS = {"quick": Config(steps=10), "paper": Config(encoder=Adam(lr=5e-5), critic=Adam(lr=1e-3))}
FULL = Config(
    steps=5,
    root=Path("a/ü"),
    margin="constant",
    encoder=Adam(lr=1e-10, betas=(0.0, float("inf"))),
    critic=Adam(),
    ks=(),
    names=["1e-4", "null", "yes", ""],
    weights={"mi": 0.5},
    clip=1.0,
    flip=False,
    either="3",
    anything=[1, {"a": None}],
)


@pytest.mark.parametrize(("written", "number"), [("3", 3), ("'3'", 3), ("3.0", 3.0), ("'0.5'", 0.5), ("1e-2", 0.01)])
def test_a_count_stays_a_count(written: str, number: float, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Allowed:
        bad: int | float = 0.001

    (tmp_path / "config.yaml").write_text(f"bad: {written}")
    found = from_yaml(Allowed, tmp_path / "config.yaml", Allowed()).bad
    assert (found, type(found)) == (number, type(number))


@pytest.mark.parametrize("config", [Config(), FULL, PRESETS["paper"]])
def test_there_and_back(tmp_path: Path, config: Config) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert from_yaml(Config, tmp_path / "config.yaml") == config
    assert from_yaml(Config, tmp_path / "config.yaml", FULL) == config


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("encoder:\n  lr: 1e-3\ncritic:\n  betas: [0, 1]\n")
    found = from_yaml(Config, file, PRESETS["paper"])
    assert found == Config(encoder=Adam(lr=1e-3), critic=Adam(lr=1e-3, betas=(0.0, 1.0)))
    file.write_text("")
    assert from_yaml(Config, file, PRESETS["quick"]) == PRESETS["quick"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "unknown option stepz; the nearest: steps"),
        ("encoder: {lrr: 3}", r"unknown option encoder\.lrr; the nearest: encoder\.lr"),
        ("qqq: 3", "unknown option qqq; known: steps, root"),
        ("steps: many", "option steps must be of type int, got 'many'"),
        ("steps: 1.5", "option steps must be of type int"),
        ("steps: true", "option steps must be of type int"),
        ("flip: 1", "option flip must be of type bool"),
        ("encoder: {lr: true}", "option encoder.lr must be of type float"),
        ("encoder: {lr: fast}", "option encoder.lr must be a number, got 'fast'"),
        ("encoder: {betas: [1]}", r"option encoder.betas must be 2 values, got \[1\]"),
        ("encoder: {betas: [1, x]}", r"option encoder.betas\[1\] must be a number"),
        ("encoder: 3", "option encoder must be a mapping of options to values"),
        ("critic: {lr: x}", "option critic.lr must be a number"),
        ("margin: norm", "option margin must be one of 'adaptive', 'constant', got 'norm'"),
        ("ks: 3", "option ks must be of type"),
        ("ks: [1, a]", r"option ks\[1\] must be of type int"),
        ("weights: {a: b}", "option weights.a must be a number"),
        ("either: [1]", "option either must be of type int | str"),
        ("steps: null", "option steps must be of type int, got None"),
        ("- steps", "must be a mapping of options"),
        ("steps: [", "is not YAML"),
    ],
)
def test_wrong_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        from_yaml(Config, file)
    assert str(error.value).startswith(str(file))
    with pytest.raises(SystemExit) as exit:
        parse(Config, PRESETS, argv=["--config", str(file)])
    assert exit.value.code == 2
    assert str(error.value) in capsys.readouterr().err


def test_a_missing_option(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Needs:
        root: str

    Needs.__annotations__["root"] = str
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="option root is missing; it has no default"):
        from_yaml(Needs, tmp_path / "config.yaml")


def test_preset_then_file_then_flags(tmp_path: Path) -> None:
    assert parse(Config, PRESETS, argv=[]) == PRESETS["quick"]
    assert parse(Config, PRESETS, argv=["--preset=paper"]) == PRESETS["paper"]
    file = tmp_path / "config.yaml"
    file.write_text("steps: 20\nmargin: constant\n")
    argv = ["--steps", "30", "--config", str(file), "--encoder.betas", "0", "1", "--preset", "paper", "--no-flip"]
    found = parse(Config, PRESETS, argv=[*argv, "--root", "here", "--clip", "None", "--ks", "1", "10"])
    assert found == Config(
        steps=30,
        margin="constant",
        encoder=Adam(lr=5e-5, betas=(0.0, 1.0)),
        critic=Adam(lr=1e-3),
        flip=False,
        root=Path("here"),
        ks=(1, 10),
    )


@pytest.mark.parametrize(
    ("argv", "messages"),
    [
        (["--stepz", "3"], ["--stepz", "--steps"]),
        (["--lr", "3"], ["--lr", "--encoder.lr"]),
        (["--preset", "papr"], ["unknown preset papr; the nearest: paper"]),
        (["--margin", "norm"], ["norm", "adaptive", "constant"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--steps", "0"], ["steps must be at least 1, got 0"]),
        (["word"], ["'word' is an unexpected argument"]),
        (["--steps", "many"], ["--steps must be a whole number, got 'many'; see train --help"]),
        (["--clip=x"], ["--clip must be a number, got 'x'; see train --help"]),
        (["--steps"], ["--steps must be a whole number, got nothing; see train --help"]),
        (["--encoder.betas", "1", "x"], ["--encoder.betas must be of the form FLOAT FLOAT, got '1 x'"]),
        (["--preset"], ["--preset must be text, got nothing"]),
        (["--qqqq"], ["unknown option --qqqq; see train --help"]),
    ],
)
def test_wrong_words(capsys: pytest.CaptureFixture[str], argv: list[str], messages: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        parse(Config, PRESETS, argv=argv, prog="train")
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert all(message in said for message in messages)
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_help_shows_what_the_preset_gives(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        parse(Config, PRESETS, argv=["--help", "--preset", "paper"], prog="train", description="Trains a thing.")
    assert error.value.code == 0
    said = capsys.readouterr().out
    for text in ("Trains a thing.", "--preset {quick,paper}", "--config FILE.yaml", "Learning rate. (default: 5e-05)"):
        assert text in said


def test_names_that_are_taken() -> None:
    @dataclass(frozen=True)
    class Wrong:
        preset: str = ""

    with pytest.raises(ValueError, match="without an option of that name, got preset"):
        parse(Wrong, {"a": Wrong()}, argv=[])
    with pytest.raises(ValueError, match="presets must be one or more"):
        parse(Config, {}, argv=[])


def test_what_yaml_has_no_words_for() -> None:
    with pytest.raises(TypeError, match="a configuration holds numbers, text"):
        to_yaml({"a": object()})


def test_the_package_needs_none_of_its_extra() -> None:
    code = """
import sys
for name in ("yaml", "tyro", "tensorboard", "torchvision"):
    sys.modules[name] = None
import adaptive_margin.training as training
try:
    training.to_yaml({})
except ImportError as error:
    assert "needs yaml: pip install -e '" in str(error) and "[train]'" in str(error), error
else:
    raise SystemExit("no error")
try:
    import adaptive_margin.training.command_line
except ImportError as error:
    assert "a command line needs tyro: pip install -e '" in str(error) and "[train]'" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_preset_may_follow_from_what_is_asked_for(tmp_path: Path) -> None:
    def preset_for(name: str, config: Config) -> Config:
        return dataclasses.replace(PRESETS[name], steps=77) if config.margin == "constant" else PRESETS[name]

    def steps(*words: str) -> int:
        return parse(Config, PRESETS, argv=["--preset", "quick", *words], preset_for=preset_for).steps

    file = tmp_path / "config.yaml"
    assert steps() == 10
    assert steps("--margin", "constant") == 77
    assert steps("--margin", "constant", "--steps", "10") == 10
    file.write_text("margin: constant\n")
    assert steps("--config", str(file)) == 77
    assert steps("--config", str(file), "--margin", "adaptive") == 10
    file.write_text("margin: constant\nsteps: 10\n")
    assert steps("--config", str(file)) == 10


def test_what_belongs_to_a_run_is_not_taken_from_its_folder(tmp_path: Path) -> None:
    def root(*words: str) -> Path | None:
        found = parse(Config, PRESETS, argv=["--config", str(file), *words], of_a_run=["root"])
        assert found.steps == 3
        return found.root

    file = tmp_path / "config.yaml"
    file.write_text("steps: 3\nroot: there\n")
    assert root() == Path("there")
    (tmp_path / "environment.json").write_text("{}")
    assert root() == next(iter(PRESETS.values())).root
    assert root("--root", "here") == Path("here")


def test_changes_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("steps: -3\nclip: 2.0\n")
    assert from_yaml(Config, file, PRESETS["quick"], {"steps": 4}) == Config(steps=4, clip=2.0)
    assert read_options(file) == {"steps": -3, "clip": 2.0}
    with pytest.raises(ConfigError, match="unknown option stepz"):
        from_yaml(Config, file, changes={"stepz": 4})


def test_a_package_that_a_configuration_misses_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needy:
        model: str = "plain"

        def __post_init__(self) -> None:
            if self.model != "plain":
                raise ImportError(f"{self.model} needs a package: pip install package")

    with pytest.raises(SystemExit) as stopped:
        parse(Needy, {"plain": Needy()}, argv=["--model", "fancy"])
    assert stopped.value.code == 2
    assert "fancy needs a package" in capsys.readouterr().err
