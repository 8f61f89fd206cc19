"""Deep metric learning without a download: distorted digits in several orientations, 32 classes for training and 18
others for the test.

    python benchmarks/dml_digits.py --loss margin --margin adaptive

A small network from scratch, ten seconds of one CPU core; see ``dml_cub.py`` for the options, ``dml_grid.py`` for all
losses.
"""

from dataclasses import replace

from adaptive_margin.dml.config import SMALL, DMLConfig
from adaptive_margin.dml.embedded import digits
from adaptive_margin.dml.recipe import train_and_print
from adaptive_margin.training.command_line import parse
from adaptive_margin.training.expected_errors import said_plainly

if __name__ == "__main__":
    presets = {"small": replace(SMALL, classes=16, per_class=8)}
    config = parse(DMLConfig, presets, description=__doc__ or "")
    with said_plainly():
        train_and_print(config, digits())
