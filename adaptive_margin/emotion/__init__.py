"""Contrastive adversarial learning of valence and arousal from faces: the paper's system, and its ablations.

Needs the extra ``fer``: ``pip install -e '.[fer]'`` in a clone.
"""

from ..messages import require_extra

require_extra("adaptive_margin.emotion", "fer", "PIL", "filelock", "jinja2", "matplotlib", "torchvision", "yaml")
