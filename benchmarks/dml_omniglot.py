"""Deep metric learning on handwriting: the characters of half of Omniglot's alphabets for training, those of the other
half for the test.

    python benchmarks/dml_omniglot.py --root DIR --loss contrastive --margin adaptive

DIR contains the published archives or the folders unpacked from them; nothing is written there. A small network from
scratch, ten seconds of one CPU core; see ``dml_cub.py`` for the options.
"""

from adaptive_margin.dml.config import SMALL, DMLConfig
from adaptive_margin.dml.omniglot import OMNIGLOT_LAYOUT, omniglot
from adaptive_margin.dml.recipe import required_root, train_and_print
from adaptive_margin.training.command_line import parse
from adaptive_margin.training.expected_errors import said_plainly

if __name__ == "__main__":
    config = parse(DMLConfig, {"small": SMALL}, description=__doc__ or "")
    with said_plainly():
        train_and_print(config, omniglot(required_root(config, OMNIGLOT_LAYOUT)))
