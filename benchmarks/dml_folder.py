"""Deep metric learning on your own images: a folder of class folders.

    python benchmarks/dml_folder.py --root DIR --loss proxy-anchor --margin adaptive

The seed draws half of the classes for the test; a fifth of the others is held out for validation. See ``dml_cub.py``
for the options.
"""

from adaptive_margin.dml.config import PRESETS, DMLConfig
from adaptive_margin.dml.datasets import FOLDER_LAYOUT, load_class_folders
from adaptive_margin.dml.recipe import required_root, train_and_print
from adaptive_margin.training.command_line import parse
from adaptive_margin.training.expected_errors import said_plainly

if __name__ == "__main__":
    config = parse(DMLConfig, PRESETS, description=__doc__ or "")
    with said_plainly():
        train_and_print(config, load_class_folders(required_root(config, FOLDER_LAYOUT), seed=config.seed))
