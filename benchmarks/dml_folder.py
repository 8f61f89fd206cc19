"""Deep metric learning on your own images: a folder of class folders.

    python benchmarks/dml_folder.py --root DIR --loss proxy-anchor --margin adaptive

The seed draws half of the classes for the test; a fifth of the others is held out for validation. See ``dml_cub.py``
for the options.
"""

import sys

from adaptive_margin.command import main

if __name__ == "__main__":
    sys.exit(main(["train-retrieval", "folder", *sys.argv[1:]]))
