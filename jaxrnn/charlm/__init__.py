"""The char-RNN: its model, and text drawn from it."""

from typing import TYPE_CHECKING

from jaxrnn import lazy
from jaxrnn.charlm.config import ModelConfig as ModelConfig

if TYPE_CHECKING:
    from jaxrnn.charlm.model import *  # noqa: F403
else:
    __getattr__, __dir__ = lazy.names(__name__, "jaxrnn.charlm.model")
