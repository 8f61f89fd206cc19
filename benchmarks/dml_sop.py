"""Deep metric learning on Stanford Online Products: 11,318 products for training, 11,316 others for the test.

    python benchmarks/dml_sop.py --root DIR [--download] --loss margin --margin adaptive

Recall is measured at 1, 10, 100 and 1000, and training lasts 100 epochs instead of the preset's 150 (Roth et al. 2020);
see ``dml_cub.py`` for the options.
"""

from dataclasses import replace

from adaptive_margin.dml.config import PRESETS, DMLConfig
from adaptive_margin.dml.datasets import SOP_LAYOUT, download, load_sop
from adaptive_margin.dml.recipe import required_root, train_and_print
from adaptive_margin.training.command_line import parse
from adaptive_margin.training.expected_errors import said_plainly

if __name__ == "__main__":
    presets = {name: replace(each, ks=(1, 10, 100, 1000)) for name, each in PRESETS.items()}
    presets["roth2020"] = replace(presets["roth2020"], epochs=100, evaluate_every=5)
    presets["wu2017"] = replace(presets["wu2017"], crop_to_box=False)  # there are no boxes
    # Musgrave et al. 2020 searched beta and its rate for each data set; the margin found here is 0.0518
    presets["realitycheck"] = replace(presets["realitycheck"], loss_rate=7.1e-5, beta=0.8424)
    config = parse(DMLConfig, presets, description=__doc__ or "")
    with said_plainly():
        root = required_root(config, SOP_LAYOUT)
        if config.download:
            download("sop", root)
        train_and_print(config, load_sop(root))
