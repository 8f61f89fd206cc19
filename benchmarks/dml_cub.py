"""Deep metric learning on CUB-200-2011: 100 classes of birds for training, 100 others for the test.

    python benchmarks/dml_cub.py --root DIR [--download] --loss margin --margin adaptive
    python benchmarks/dml_cub.py --root DIR --preset wu2017 --loss margin --margin 0.2
    torchrun --nproc-per-node 8 benchmarks/dml_cub.py --root DIR --precision bfloat16

Runs go to ``runs/DATA-LOSS-ARM-seedN``, or to the folder of ``--out``; the same command continues where it stopped.
``--select test --validation 0`` selects the network on the test classes, as the papers did, and the output says so; by
default it is selected on held-out classes.
"""

import sys

from adaptive_margin.command import main

if __name__ == "__main__":
    sys.exit(main(["train-retrieval", "cub", *sys.argv[1:]]))
