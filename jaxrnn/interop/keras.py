"""Weights of Keras' `SimpleRNN`, `LSTM` and `GRU`.

A layer has three arrays, in the order of `layer.get_weights()`, with G = H times the number of gates:

    kernel            [D, G]    w_x
    recurrent_kernel  [H, G]    w_h
    bias              [G]       b; for a GRU with `reset_after` [2, G], the second row zero except for
                                the candidate, where it is b_h

The gate order is i f c o for the LSTM and z r h for the GRU, as in jaxrnn. Written from Keras 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrnn.interop.arrays import make_params
from jaxrnn.recurrence.cells import GRU, LSTM, RNN


def unsupported_reason(cell: Any) -> str | None:
    """Return why Keras has no layer that computes what this cell does; None where it has one."""
    if isinstance(cell, LSTM) and cell.peephole:
        return "keras.layers.LSTM has no peepholes"
    if not isinstance(cell, RNN | LSTM | GRU):
        return f"Keras has no layer for {type(cell).__name__}"
    return None


def to_keras(cell: Any, params: Any) -> list[np.ndarray]:
    """Return the arrays of a Keras layer in the order of its variables.

    Args:
      cell: of `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`.
      params: its parameters, numpy or JAX arrays.

    Raises:
      ValueError: for a cell that Keras does not have.
    """
    _check(cell)
    w_x, w_h, bias = (np.asarray(array) for array in params[:3])
    if isinstance(cell, GRU) and cell.reset == "after":
        bias = np.stack([bias, np.zeros_like(bias)])
        bias[1, 2 * cell.hidden_size :] = params.b_h
    return [w_x, w_h, bias]


def from_keras(cell: Any, weights: Sequence[Any]) -> Any:
    """Return the cell's parameters from the arrays of a Keras layer.

    Args:
      cell: of `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`, of the layer's hidden size.
      weights: arrays in the order of the layer's variables.

    Raises:
      ValueError: for a cell that Keras does not have.
    """
    w_x, w_h, bias = (np.asarray(array) for array in weights)
    if bias.ndim == 1:
        return gradients_from_keras(cell, weights)
    size = 2 * cell.hidden_size
    # Outside of the reset both biases of z and r act alike, and those of the candidate do not.
    b = np.concatenate([bias[0, :size] + bias[1, :size], bias[0, size:]])
    return gradients_from_keras(cell, [w_x, w_h, np.stack([b, bias[1]])])


def gradients_from_keras(cell: Any, gradients: Sequence[Any]) -> Any:
    """Return the gradients of the cell's parameters from those of a Keras layer's arrays.

    Unlike weights, the gradients of the two rows of biases are not added: jaxrnn's `b` has the gradient
    of the first row.

    Args and errors: as for `from_keras`.
    """
    _check(cell)
    w_x, w_h, bias = (np.asarray(array) for array in gradients)
    if bias.ndim == 1:
        return make_params(cell, w_x, w_h, bias)
    return make_params(cell, w_x, w_h, bias[0], bias[1, 2 * cell.hidden_size :])


def _check(cell: Any) -> None:
    if reason := unsupported_reason(cell):
        raise ValueError(reason)
