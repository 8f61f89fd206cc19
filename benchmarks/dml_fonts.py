"""Deep metric learning without a download: distorted characters of matplotlib's fonts, 128 classes for training and 127
others for the test.

    python benchmarks/dml_fonts.py --loss margin --margin adaptive

A small network from scratch, ten seconds of one CPU core; see ``dml_cub.py`` for the options, ``dml_grid.py`` for all
losses.
"""

from adaptive_margin.dml.config import SMALL, DMLConfig
from adaptive_margin.dml.embedded import fonts
from adaptive_margin.dml.recipe import train_and_print
from adaptive_margin.training.command_line import parse
from adaptive_margin.training.expected_errors import said_plainly

if __name__ == "__main__":
    config = parse(DMLConfig, {"small": SMALL}, description=__doc__ or "")
    with said_plainly():
        train_and_print(config, fonts())
