"""``python -m adaptive_margin``: the command ``adaptive-margin``, for ``torchrun -m adaptive_margin train-faces``."""

import sys

from .command import main

sys.exit(main())
