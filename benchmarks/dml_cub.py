"""Deep metric learning on CUB-200-2011: 100 classes of birds for training, 100 others for the test.

    python benchmarks/dml_cub.py --root DIR [--download] --loss margin --margin adaptive
    python benchmarks/dml_cub.py --root DIR --preset wu2017 --loss margin --margin 0.2
    torchrun --nproc-per-node 8 benchmarks/dml_cub.py --root DIR --precision bfloat16

Runs go to ``runs/DATA-LOSS-ARM-seedN``, or to the folder of ``--out``; the same command continues where it stopped.
``--select test --validation 0`` selects the network on the test classes, as the papers did, and the output says so; by
default it is selected on held-out classes.
"""

from adaptive_margin.dml.config import PRESETS, DMLConfig
from adaptive_margin.dml.datasets import CUB_LAYOUT, download, load_cub
from adaptive_margin.dml.recipe import required_root, train_and_print
from adaptive_margin.training.command_line import parse
from adaptive_margin.training.expected_errors import said_plainly

if __name__ == "__main__":
    config = parse(DMLConfig, PRESETS, description=__doc__ or "")
    with said_plainly():
        root = required_root(config, CUB_LAYOUT)
        if config.download:
            download("cub", root)
        train_and_print(config, load_cub(root))
