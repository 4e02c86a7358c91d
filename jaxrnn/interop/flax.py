"""Weights of flax's recurrent cells: nnx's `SimpleCell`, `OptimizedLSTMCell`, `GRUCell`; linen's LSTM.

nnx keeps two kernels and one bias, with G = H times the number of gates:

    dense_i/kernel  [D, G]    w_x
    dense_h/kernel  [H, G]    w_h
    bias            [G]       b; at dense_h in the LSTM and at dense_i in the two others

linen's `OptimizedLSTMCell` keeps the same numbers gate by gate: `ii if ig io` hold a kernel [D, H]
without a bias, `hi hf hg ho` a kernel [H, H] and the bias [H].

The gate order is i f g o for the LSTM, as in jaxrnn, and r z n for the GRU, where jaxrnn has z r n. The
GRU resets after the product and has no b_h. Written from flax 0.12.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrnn.interop.arrays import make_params, swap_z_r
from jaxrnn.recurrence.cells import GRU, LSTM, RNN


def unsupported_reason(cell: Any) -> str | None:
    """Return why nnx has no cell that computes what this one does; None where it has one."""
    if isinstance(cell, LSTM) and cell.peephole:
        return "OptimizedLSTMCell has no peepholes"
    if isinstance(cell, GRU) and cell.reset == "before":
        return "GRUCell resets after the product"
    if not isinstance(cell, RNN | LSTM | GRU):
        return f"flax has no cell for {type(cell).__name__}"
    return None


def linen_unsupported_reason(cell: Any) -> str | None:
    """Return why `to_linen` has no arrays for this cell; None where it has."""
    if not isinstance(cell, LSTM) or cell.peephole:
        return "OptimizedLSTMCell is an LSTM without peepholes"
    return None


def to_nnx(cell: Any, params: Any) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of an nnx cell as a pure dict.

    Args:
      cell: of `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`.
      params: its parameters, numpy or JAX arrays.

    Raises:
      ValueError: for a cell that nnx does not have, and for a GRU whose b_h is not zero.
    """
    _check(unsupported_reason(cell))
    w_x, w_h, b = (np.asarray(array) for array in params[:3])
    if isinstance(cell, GRU):
        if np.any(params.b_h):
            raise ValueError("GRUCell has no b_h, and the b_h of these parameters is not zero")
        w_x, w_h, b = swap_z_r(w_x), swap_z_r(w_h), swap_z_r(b)
    made = {"dense_i": {"kernel": w_x}, "dense_h": {"kernel": w_h}}
    made[_bias_at(cell)]["bias"] = b
    return made


def from_nnx(cell: Any, weights: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the cell's parameters from the arrays of an nnx cell; the b_h of a GRU is zero.

    Args:
      cell: of `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`, of the same hidden size.
      weights: the pure dict that `to_nnx` returns, or the gradients of one.

    Raises:
      ValueError: for a cell that nnx does not have.
    """
    _check(unsupported_reason(cell))
    w_x, w_h = (np.asarray(weights[name]["kernel"]) for name in ("dense_i", "dense_h"))
    b = np.asarray(weights[_bias_at(cell)]["bias"])
    if isinstance(cell, GRU):
        b_h = np.zeros(cell.hidden_size, b.dtype)
        return make_params(cell, swap_z_r(w_x), swap_z_r(w_h), swap_z_r(b), b_h)
    return make_params(cell, w_x, w_h, b)


def to_linen(cell: Any, params: Any) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of linen's `OptimizedLSTMCell`, gate by gate.

    Args:
      cell: of `jaxrnn.lstm`, without peepholes.
      params: its parameters, numpy or JAX arrays.

    Raises:
      ValueError: for another cell.
    """
    _check(linen_unsupported_reason(cell))
    w_x, w_h, b = (np.split(np.asarray(array), 4, axis=-1) for array in params[:3])
    made: dict[str, dict[str, np.ndarray]] = {}
    for n, gate in enumerate(LSTM.GATES):
        made[f"i{gate}"] = {"kernel": w_x[n]}
        made[f"h{gate}"] = {"kernel": w_h[n], "bias": b[n]}
    return made


def from_linen(cell: Any, weights: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the LSTM's parameters from the arrays of linen's `OptimizedLSTMCell`.

    Args:
      cell: of `jaxrnn.lstm`, without peepholes, of the same hidden size.
      weights: the dict that `to_linen` returns, or the gradients of one.

    Raises:
      ValueError: for another cell.
    """
    _check(linen_unsupported_reason(cell))

    def join(side: str, name: str) -> np.ndarray:
        arrays = [np.asarray(weights[side + gate][name]) for gate in LSTM.GATES]
        return np.concatenate(arrays, axis=-1)

    return make_params(cell, join("i", "kernel"), join("h", "kernel"), join("h", "bias"))


def _bias_at(cell: Any) -> str:
    return "dense_h" if isinstance(cell, LSTM) else "dense_i"


def _check(reason: str | None) -> None:
    if reason:
        raise ValueError(reason)
