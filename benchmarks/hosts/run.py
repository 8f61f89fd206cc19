"""Runs pytorch-metric-learning's own tests with its losses and miners wrapped.

The tests run three times: unchanged (``stock``), with this library imported (``imported``, which must change nothing),
and with every supported loss and miner replaced by a wrapped one with a constant margin (``wrapped``, see
``wrapped.py``). They are the tests of everything that can be wrapped and everything that takes a loss. They come from a
checkout of the host's repository, given by path; the library they test is that of the checkout, or the installed
release.

    git clone https://github.com/KevinMusgrave/pytorch-metric-learning
    python benchmarks/hosts/run.py --checkout pytorch-metric-learning [--installed]
    python benchmarks/hosts/run.py --print FILE...     # the table in docs/hosts.md

Prints counts and the tests that pass unchanged but not wrapped; writes them to ``results/<version>.json``.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import ends_in_order
from adaptive_margin.training.command_line import check_output, json_with

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules in the folder above
from script import Parser, print_results, read_results, write_results

HERE = Path(__file__).parent
OUTCOMES = ("passed", "failed", "skipped")
MODES = ("stock", "imported", "wrapped")
TESTS = [
    *(
        f"tests/losses/test_{name}.py"
        for name in [
            "arcface_loss",
            "circle_loss",
            "contrastive_loss",
            "cosface_loss",
            "cross_batch_memory",
            "lifted_structure_loss",
            "losses_without_labels",
            "manifold_loss",
            "margin_loss",
            "multi_similarity_loss",
            "multiple_losses",
            "ranked_list_loss",
            "self_supervised_loss",
            "signal_to_noise_ratio_losses",
            "soft_triple_loss",
            "subcenter_arcface_loss",
            "tcm_loss",
            "triplet_margin_loss",
            "tuplet_margin_loss",
            "proxy_anchor_loss",
        ]
    ),
    *(f"tests/miners/test_{name}_miner.py" for name in ("multi_similarity", "pair_margin", "triplet_margin")),
    "tests/distances/test_custom_check_shape.py",
    "tests/reducers",
    "tests/regularizers",
    "tests/utils/test_module_with_records_and_reducer.py",
]
"""Tests of everything that can be wrapped, and of everything that takes a loss."""


def outcomes(folder: Path, tests: list[str], mode: str, dtypes: str) -> dict[str, str]:
    """``"passed"``, ``"failed"`` or ``"skipped"`` for each test."""
    report = folder / f"{mode}.xml"
    paths = [str(HERE), *([str(folder / "src")] if (folder / "src").exists() else []), str(HERE.parents[1])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        "TEST_DEVICE": "cpu",
        "TEST_DTYPES": dtypes,
        "ADAPTIVE_MARGIN_HOSTS": mode,
    }
    plugin = [] if mode == "stock" else ["-p", "wrapped"]
    quick = ["-k", "not distance_weighted"]  # a miner of the host's that takes minutes on a CPU
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    child = "import adaptive_margin.processes as ours, pytest; ours.end_with_parent(); pytest.console_main()"
    command = [sys.executable, "-c", child, *plugin, *quick, *options, *tests]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if not report.exists():
        raise SystemExit(finished.stdout + finished.stderr)
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[f"{case.get('classname')}.{case.get('name')}"] = outcome
    return found


def table(reports: list[dict[str, Any]]) -> str:
    """How many tests pass in each mode, in Markdown."""
    lines = ["| host | as it is | with this library imported | wrapped |", "|---|---|---|---|"]
    for report in reports:
        counts = report["counts"]
        cells = [", ".join(f"{counts[mode][how]} {how}" for how in OUTCOMES if how in counts[mode]) for mode in MODES]
        cells[1] = "the same" if not report["differs"]["imported"] else cells[1]
        lines.append(f"| {report['host']}, {report['of']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@ends_in_order("nothing is written")
@said_plainly()
def main() -> None:
    """Runs the tests and reports."""
    parser = Parser(__doc__)
    parser.add_argument("--checkout", type=Path, help="a clone of the host's repository")
    parser.add_argument("--installed", action="store_true", help="test the installed release instead of the checkout")
    parser.add_argument("--dtypes", default="float32,float64")
    parser.add_argument(
        "--tests", nargs="*", help="files or folders of its tests; by default those that concern wrapped classes"
    )
    parser.add_argument("--output", type=Path, help="a JSON file")
    parser.add_argument("--print", type=Path, nargs="+", help="print the table of these files; tests nothing")
    arguments = parser.parse_args()
    if arguments.print:
        names = " ".join(map(str, arguments.print))
        print_results(names, lambda: table([read_results(path) for path in arguments.print]))
        return
    if arguments.checkout is None:
        parser.error("--checkout must be a clone of the host's repository, got nothing")
    if arguments.output is not None:
        check_output("--output", arguments.output, file=True, replaces=json_with("host", "counts"))
    source = (arguments.checkout / "src/pytorch_metric_learning/__init__.py").read_text()
    host = version("pytorch-metric-learning") if arguments.installed else re.findall(r"\"(.+)\"", source)[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("tests",) if arguments.installed else ("tests", "src"):
            shutil.copytree(arguments.checkout / part, folder / part)
        tests = arguments.tests or [test for test in TESTS if (folder / test).exists()]
        results = {mode: outcomes(folder, tests, mode, arguments.dtypes) for mode in MODES}
    counts = {mode: dict(Counter(results[mode].values())) for mode in MODES}
    differs = {
        mode: sorted(test for test, how in results["stock"].items() if how != results[mode].get(test))
        for mode in MODES[1:]
    }
    for mode in MODES:
        print(f"{mode:<10}", "  ".join(f"{count} {outcome}" for outcome, count in sorted(counts[mode].items())))
    for mode, names in differs.items():
        for test in names:
            print(f"{mode}: {test}: {results['stock'][test]} as it is, {results[mode].get(test)} here")
    output = arguments.output or HERE / "results" / f"{host}{'-installed' if arguments.installed else '-snapshot'}.json"
    versions = {package: version(package) for package in ("torch", "numpy", "pytest", "adaptive-margin")}
    report = {
        "host": host,
        "of": "the installed release" if arguments.installed else "the checkout",
        "versions": {"python": platform.python_version(), **versions},
        "dtypes": arguments.dtypes,
        "tests": tests,
        "counts": counts,
        "differs": differs,
    }
    print(f"pytorch-metric-learning {host}")
    write_results(output, report)


if __name__ == "__main__":
    main()
