"""The results of many runs: tables on the screen, and a page with curves, examples and a map.

python benchmarks/dml_report.py runs                 # writes runs/report.html
python benchmarks/dml_report.py runs --print         # tables only
python benchmarks/dml_report.py runs --print --metrics NMI r_precision recall_at_8    # other figures
"""

import sys

from adaptive_margin.command import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
