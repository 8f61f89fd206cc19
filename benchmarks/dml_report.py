"""The results of many runs: tables on the screen, and a page with curves, examples and a map.

python benchmarks/dml_report.py runs                 # writes runs/report.html
python benchmarks/dml_report.py runs --print         # tables only
python benchmarks/dml_report.py runs --print --metrics NMI r_precision recall_at_8    # other figures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from adaptive_margin.dml.report import METRICS, chosen_metrics, write_report
from adaptive_margin.dml.results import read_runs, table


def main(argv: list[str] | None = None) -> int:
    """Prints the tables and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with run folders, or with a merged grid.json")
    parser.add_argument(
        "--page", type=Path, help="the page; FOLDER/report.html unless given; an earlier report is replaced"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file there that is no earlier report")
    parser.add_argument("--print", action="store_true", help="tables only")
    parser.add_argument("--metrics", nargs="+", help=f"test metrics to print tables for (default: {' '.join(METRICS)})")
    options = parser.parse_args(argv)
    try:
        rows = read_runs(options.folder)
        metrics = chosen_metrics(rows, options.metrics) if options.metrics else METRICS
        for metric in metrics:
            print(table(rows, metric))
        if not options.print:
            page = options.page or options.folder / "report.html"
            write_report(options.folder, page, metrics, overwrite=options.overwrite)
            print(f"wrote {page}")
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
