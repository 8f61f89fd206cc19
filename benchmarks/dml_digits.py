"""Deep metric learning without a download: distorted digits in several orientations, 32 classes for training and 18
others for the test.

    python benchmarks/dml_digits.py --loss margin --margin adaptive

A small network from scratch, ten seconds of one CPU core; see ``dml_cub.py`` for the options, ``dml_grid.py`` for all
losses.
"""

import sys

from adaptive_margin.command import main

if __name__ == "__main__":
    sys.exit(main(["train-retrieval", "digits", *sys.argv[1:]]))
