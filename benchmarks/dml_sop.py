"""Deep metric learning on Stanford Online Products: 11,318 products for training, 11,316 others for the test.

    python benchmarks/dml_sop.py --root DIR [--download] --loss margin --margin adaptive

Recall is measured at 1, 10, 100 and 1000, and training lasts 100 epochs instead of the preset's 150 (Roth et al. 2020);
see ``dml_cub.py`` for the options.
"""

import sys

from adaptive_margin.command import main

if __name__ == "__main__":
    sys.exit(main(["train-retrieval", "sop", *sys.argv[1:]]))
