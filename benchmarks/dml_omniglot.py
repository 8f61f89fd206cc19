"""Deep metric learning on handwriting: the characters of half of Omniglot's alphabets for training, those of the other
half for the test.

    python benchmarks/dml_omniglot.py --root DIR --loss contrastive --margin adaptive

DIR contains the published archives or the folders unpacked from them; nothing is written there. A small network from
scratch, ten seconds of one CPU core; see ``dml_cub.py`` for the options.
"""

import sys

from adaptive_margin.command import main

if __name__ == "__main__":
    sys.exit(main(["train-retrieval", "omniglot", *sys.argv[1:]]))
