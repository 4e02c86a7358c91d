"""Helpers that the converters share: parameters from numpy arrays, and the GRU's gate order."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxrnn.recurrence.cells import GRU, LSTM, GRUParams, LSTMParams, RNNParams


def make_params(cell: Any, w_x: Any, w_h: Any, b: Any, b_h: Any = None) -> Any:
    """Return the parameters of a cell: `RNNParams`, `LSTMParams` or `GRUParams`.

    Args:
      cell: of `jaxrnn.rnn`, `jaxrnn.lstm` without peepholes, or `jaxrnn.gru`.
      w_x: [D, G], with the gates in jaxrnn's order.
      w_h: [H, G].
      b: [G].
      b_h: [H], only of a GRU with the reset after the product.
    """
    if isinstance(cell, GRU):
        return GRUParams(w_x, w_h, b, b_h)
    if isinstance(cell, LSTM):
        return LSTMParams(w_x, w_h, b)
    return RNNParams(w_x, w_h, b)


def swap_z_r(w: np.ndarray) -> np.ndarray:
    """Return a GRU's array with the blocks z and r of its last axis exchanged: z r n to r z n, or back.

    w: [..., 3H].
    """
    first, second, n = np.split(w, 3, axis=-1)
    return np.concatenate([second, first, n], axis=-1)
