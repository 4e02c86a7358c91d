"""Convert weights from and to karpathy's min-char-rnn, a plain tanh RNN over one-hot characters.

    Wxh [H, V]    transposed w_x          bh [H, 1]    b
    Whh [H, H]    transposed w_h          by [V, 1]    b_out
    Why [V, H]    transposed w_out

Source: https://gist.github.com/karpathy/d4dee566867f8291f086, whose names these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxrnn import charlm
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.formats import models
from jaxrnn.interop.arrays import Reader, make_params
from jaxrnn.recurrence import cells


def from_min_char_rnn(weights: Mapping[str, Any], vocabulary: Vocabulary | str) -> charlm.Params:
    """Return the char-RNN of min-char-rnn's weights.

    Args:
      weights: Wxh, Whh, Why, bh and by by name, for example from `np.load("weights.npz")`.
      vocabulary: the vocabulary, or its characters in the order of the program's `ix_to_char`.

    Raises:
      ValueError: for the first array that is missing or unexpected, or has the wrong shape; V is the
        size of the vocabulary.
    """
    reader = Reader(weights, "min-char-rnn")
    vocabulary = models.vocabulary_of(vocabulary)
    size = len(vocabulary)
    hidden = reader.size("bh", 0)
    w_x, w_h = reader.take("Wxh", (hidden, size)).T, reader.take("Whh", (hidden, hidden)).T
    w_out = reader.take("Why", (size, hidden)).T
    b, b_out = reader.take("bh", (hidden, 1))[:, 0], reader.take("by", (size, 1))[:, 0]
    reader.finish()
    cell = cells.rnn(hidden)
    return models.make(vocabulary, cell, None, [make_params(cell, w_x, w_h, b)], w_out, b_out)


def to_min_char_rnn(params: charlm.Params) -> dict[str, np.ndarray]:
    """Return the weights of min-char-rnn by name.

    Raises:
      ValueError: for another model than one plain RNN with tanh over one-hot characters.
    """
    config = params.config
    found = config.cell, config.activation, config.layers, config.embedding_size
    if found != ("rnn", "tanh", 1, 0):
        raise ValueError(
            "min-char-rnn is one plain RNN with tanh over one-hot characters: cell='rnn', layers=1, "
            "embedding_size=0"
        )
    _, w_out, b_out = models.parts_of(params)
    layer = jax.tree.map(np.asarray, params.layers[0])
    matrices = {"Wxh": layer.w_x.T, "Whh": layer.w_h.T, "Why": w_out.T}
    return matrices | {"bh": layer.b[:, None], "by": b_out[:, None]}
