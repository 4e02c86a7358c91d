"""Weights of PyTorch's `nn.RNN`, `nn.LSTM` and `nn.GRU`.

For each layer k PyTorch has, with G = H times the number of gates (1, 4 or 3),

    weight_ih_lk  [G, D]    transposed w_x
    weight_hh_lk  [G, H]    transposed w_h
    bias_ih_lk    [G]       b
    bias_hh_lk    [G]       zero, except for the GRU's candidate n, where it is b_h

The gate order is i f g o for the LSTM, as in jaxrnn, and r z n for the GRU, where jaxrnn has z r n. The
GRU resets after the product. Written from the documentation of torch 2.13.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrnn.interop.arrays import make_params, swap_z_r
from jaxrnn.recurrence.cells import GRU, LSTM, RNN

_NAMES = ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l")


def names(layer: int = 0) -> tuple[str, str, str, str]:
    """Return PyTorch's names of a layer's input weights, recurrent weights and two biases."""
    w_x, w_h, b, b_h = (f"{name}{layer}" for name in _NAMES)
    return w_x, w_h, b, b_h


def unsupported_reason(cell: Any) -> str | None:
    """Return why PyTorch has no layer that computes what this cell does; None where it has one."""
    if isinstance(cell, LSTM) and cell.peephole:
        return "nn.LSTM has no peepholes"
    if isinstance(cell, GRU) and cell.reset == "before":
        return "nn.GRU resets after the product"
    if isinstance(cell, RNN) and cell.activation not in ("tanh", "relu"):
        return f"nn.RNN has no {cell.activation}"
    if not isinstance(cell, RNN | LSTM | GRU):
        return f"PyTorch has no layer for {type(cell).__name__}"
    return None


def to_torch(cell: Any, params: Any, layer: int = 0) -> dict[str, np.ndarray]:
    """Return the arrays of a PyTorch layer by name, in the dtype of the parameters.

    Args:
      cell: of `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`.
      params: its parameters, numpy or JAX arrays.
      layer: number of the layer, which is part of the names.

    Raises:
      ValueError: for a cell that PyTorch does not have.
    """
    _check(cell)
    w_x, w_h, b = (np.asarray(array) for array in params[:3])
    b_h = np.zeros_like(b)
    if isinstance(cell, GRU):
        b_h[2 * cell.hidden_size :] = params.b_h
        w_x, w_h, b = swap_z_r(w_x), swap_z_r(w_h), swap_z_r(b)
    arrays = np.ascontiguousarray(w_x.T), np.ascontiguousarray(w_h.T), b, b_h
    return dict(zip(names(layer), arrays, strict=True))


def from_torch(cell: Any, weights: Mapping[str, Any], layer: int = 0) -> Any:
    """Return the cell's parameters from the arrays of a PyTorch layer.

    Both bias vectors are used. Gradients are converted in the same way with `gradients_from_torch`.

    Args:
      cell: of `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`, of the layer's hidden size.
      weights: arrays by PyTorch's names, as `to_torch` returns them.
      layer: number of the layer.

    Raises:
      ValueError: for a cell that PyTorch does not have.
    """
    _check(cell)
    w_x, w_h, b, b_h = (np.asarray(weights[name]) for name in names(layer))
    if not isinstance(cell, GRU):
        return make_params(cell, w_x.T, w_h.T, b + b_h)
    size = 2 * cell.hidden_size
    # Outside of the reset both biases of r and z act alike, and those of n do not.
    both = np.concatenate([b[:size] + b_h[:size], b[size:]])
    return make_params(cell, swap_z_r(w_x.T), swap_z_r(w_h.T), swap_z_r(both), b_h[size:])


def gradients_from_torch(cell: Any, gradients: Mapping[str, Any], layer: int = 0) -> Any:
    """Return the gradients of the cell's parameters from those of a PyTorch layer's arrays.

    Unlike weights, the gradients of PyTorch's two biases are not added: jaxrnn's `b` has the gradient of
    the first one.

    Args and errors: as for `from_torch`.
    """
    _check(cell)
    w_x, w_h, b, b_h = (np.asarray(gradients[name]) for name in names(layer))
    if not isinstance(cell, GRU):
        return make_params(cell, w_x.T, w_h.T, b)
    b_n = b_h[2 * cell.hidden_size :]
    return make_params(cell, swap_z_r(w_x.T), swap_z_r(w_h.T), swap_z_r(b), b_n)


def _check(cell: Any) -> None:
    if reason := unsupported_reason(cell):
        raise ValueError(reason)
