"""How large a margin is: modules that look at the batch and say."""

from .base import Margin
from .constant_margin import ConstantMargin
from .linear_margin import LinearMargin

__all__ = ["ConstantMargin", "LinearMargin", "Margin"]
