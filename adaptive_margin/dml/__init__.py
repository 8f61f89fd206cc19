"""Deep metric learning: data sets, published protocols, losses with fixed and adaptive margins, one trainer,
statistics.

Needs the extra ``dml``: ``pip install -e '.[dml]'`` in a clone.
"""

from ..messages import require_extra

require_extra("adaptive_margin.dml", "dml", "PIL", "filelock", "matplotlib", "torchvision", "yaml")
