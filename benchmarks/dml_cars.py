"""Deep metric learning on Cars196: 98 car models for training, 98 others for the test.

    python benchmarks/dml_cars.py --root DIR [--download] --loss margin --margin adaptive

Three common layouts are recognised; see ``dml_cub.py`` for the options.
"""

import sys

from adaptive_margin.command import main

if __name__ == "__main__":
    sys.exit(main(["train-retrieval", "cars", *sys.argv[1:]]))
