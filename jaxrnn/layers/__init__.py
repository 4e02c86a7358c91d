"""Several recurrent layers as pure functions, for a model of your own."""

from jaxrnn.layers.architecture import StackedParams
from jaxrnn.layers.stack import Stacked, stacked

__all__ = ["Stacked", "StackedParams", "stacked"]
