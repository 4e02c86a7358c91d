"""Recurrent networks in JAX: pure-function cells, a fast unroll, and a char-RNN.

cell = jaxrnn.lstm(512)                                   # one of rnn, lstm, gru
state, ys = jaxrnn.unroll(cell, params, xs)               # a cell over time, in any model
run = jaxrnn.fit(pathlib.Path("notes.txt"))               # a char-RNN, trained on a text
jaxrnn.sample(run, "ROMEO:")                              # text from it, or from the path of a run

`import jaxrnn` is fast: JAX is imported when the first of these names is used, or at once if the program
has imported JAX before. From then on `jax.export` can read functions with arguments such as
`jaxrnn.Params`, and XLA can run serialized executables that call the library's C++.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from jaxrnn import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxrnn.api import *  # noqa: F403
else:
    __getattr__, __dir__ = lazy.names(__name__, "jaxrnn.api")
    if "jax" in sys.modules:
        importlib.import_module("jaxrnn.api")
