"""Helpers to build `charlm.Params` from the parts of another program's char-RNN, and the reverse."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import charlm
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.layers import Stacked, StackedParams, stacked
from jaxrnn.recurrence.cells import GRU, LSTM, RNN


def config_of(cell: Any, layers: int, embedding_size: int) -> charlm.ModelConfig:
    """Return the configuration of a char-RNN of one of the three cells of the lecture.

    Raises:
      ValueError: for another cell, which no configuration describes.
    """
    sizes: dict[str, Any] = {
        "hidden_size": cell.hidden_size,
        "layers": layers,
        "embedding_size": embedding_size,
    }
    if type(cell) is RNN:
        return charlm.ModelConfig(cell="rnn", activation=cell.activation, **sizes)
    if type(cell) is LSTM:
        return charlm.ModelConfig(cell="lstm", peephole=cell.peephole, **sizes)
    if type(cell) is GRU:
        return charlm.ModelConfig(cell="gru", reset=cell.reset, **sizes)
    raise ValueError(f"a char-RNN cannot use the cell {cell}")


def vocabulary_of(given: Vocabulary | str) -> Vocabulary:
    """Return a vocabulary that was given as one, or as its characters in the order of the tokens.

    Raises:
      ValueError: for anything else, and for characters that occur twice.
    """
    if isinstance(given, str):
        return Vocabulary(given)
    if not isinstance(given, Vocabulary):
        raise ValueError(
            "vocabulary must be a jaxrnn.Vocabulary, or a str of its characters in the order of the "
            f"tokens, not {type(given).__name__}"
        )
    return given


def make(
    vocabulary: Vocabulary, cell: Any, embedding: Any, layers: Any, w_out: Any, b_out: Any
) -> charlm.Params:
    """Return a char-RNN of float32 parameters, to which those of wider dtypes are rounded.

    Args:
      vocabulary: the meaning of the tokens.
      cell: the cell of every layer.
      embedding: [V, E], or None if characters are fed one-hot.
      layers: the parameters of the cells, from the input upwards.
      w_out: [H, V].
      b_out: [V].

    Raises:
      ValueError: for a cell that no configuration describes.
    """
    config = config_of(cell, len(layers), 0 if embedding is None else embedding.shape[1])
    embedding, layers, w_out, b_out = jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float32), (embedding, tuple(layers), w_out, b_out)
    )
    return charlm.Params(embedding, layers, w_out, b_out, config, vocabulary)


def parts_of(params: charlm.Params) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return (embedding, w_out, b_out) of a char-RNN as numpy arrays.

    The embedding is None where characters are fed one-hot; tied output weights are the embedding's
    transpose, a second time.
    """
    w_out = params.embedding.T if params.w_out is None else params.w_out
    return jax.tree.map(np.asarray, (params.embedding, w_out, params.b_out))


def stack_of(params: charlm.Params) -> tuple[Stacked, StackedParams]:
    """Return the layers of a char-RNN as a stack, whose inputs are embedded or one-hot characters."""
    config = params.config
    inputs = config.embedding_size or len(params.vocabulary)
    net = stacked(config.make_cell(), inputs, layers=config.layers)
    return net, StackedParams(params.layers)
