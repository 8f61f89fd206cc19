"""``adaptive-margin report DIR``: the page of a run, or of many, of faces or of retrieval."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..messages import printable, problem, require_extra
from ..training.command_line import Positional, arg, check_output, read


@dataclass(frozen=True, kw_only=True)
class Report:
    """Writes one self-contained HTML file about the runs in a folder.

    Faces: figures with intervals beside the paper's, identity leakage, curves, the margin over training, a video, maps
    of features, best and worst predictions. Retrieval: tables of each metric, comparisons, margins, examples and a map.

    Attributes:
        folder: a run folder, a folder of them, or a folder with a merged grid.json.
        output: the file to write, by default report.html in the folder; an earlier report is replaced.
        overwrite: replace a file there that is no earlier report; of the runs' own files none.
        print: print the tables and write nothing (retrieval).
        metrics: test figures that get tables (retrieval), such as recall_at_8.
    """

    folder: Annotated[Path, Positional, arg(metavar="DIR")]
    output: Annotated[Path | None, arg(aliases=["--page"], metavar="FILE")] = None
    overwrite: bool = False
    print: bool = False
    metrics: tuple[str, ...] = ()


def main(words: Sequence[str], prog: str) -> int:
    """Writes the page with these options; returns 0."""
    options = read(Report, argv=words, prog=prog)
    page = options.output or options.folder / "report.html"
    if not options.folder.is_dir():
        raise ValueError(problem("DIR", "a folder of runs", options.folder, "pass the --output of a run"))
    if not options.print:
        flag = "--page" if any(word.partition("=")[0] == "--page" for word in words) else "--output"
        check_output(flag, page, file=True)
        require_extra("adaptive-margin report", "train", "PIL", "jinja2")
        from ..reports._page import check_page, is_page

        of_runs = page.suffix.lower() not in (".html", ".htm") and options.folder.resolve() in page.resolve().parents
        if of_runs and page.exists() and not is_page(page.read_bytes()):
            expected = "a new file, or one that ends in .html, in a folder of runs"
            raise ValueError(problem(flag, expected, page, "pass the name of a new file"))
        check_page(page, options.overwrite, flag=flag)
    trainers = _trainers(options.folder)
    if "retrieval" in trainers:
        from ..dml.report import METRICS, chosen_metrics, write_report
        from ..dml.results import read_runs, table

        problems: list[str] = []
        rows = read_runs(options.folder, problems)
        for said in problems:
            print(printable(said), file=sys.stderr)
        metrics = chosen_metrics(rows, options.metrics) if options.metrics else METRICS
        for metric in metrics:
            print(table(rows, metric))
        if not options.print:
            write_report(options.folder, page, metrics, overwrite=options.overwrite)
    elif options.print or options.metrics:
        expected = "left out for runs on faces, which have one page and no tables to print"
        raise ValueError(problem("--print and --metrics", expected, "one", "leave both out"))
    else:
        from ..emotion.report import write_report as write_page

        write_page(options.folder, page, overwrite=options.overwrite)
    if not options.print:
        print(f"wrote {page}")
    if len(trainers) > 1:
        print("runs on faces are left out: they have a report of their own, in their folder", file=sys.stderr)
    return 0


def _trainers(folder: Path) -> set[str]:
    """Whose runs are in a folder: only those for retrieval have a loss to choose."""
    from ..stored import read_json
    from ..training.config_files import read_options

    found = {"retrieval"} if (folder / "grid.json").exists() else set()
    for name in ("config.yaml", "result.json"):
        for file in folder.rglob(name):
            try:
                options = read_options(file) if name == "config.yaml" else read_json(file).get("config")
            except ValueError:  # damaged: the report says so
                continue
            if not isinstance(options, Mapping):  # of another program
                continue
            found |= {trainer for trainer, option in (("retrieval", "loss"), ("faces", "critic")) if option in options}
    return found
