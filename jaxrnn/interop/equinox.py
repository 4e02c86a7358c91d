"""Weights of Equinox' `eqx.nn.LSTMCell` and `eqx.nn.GRUCell`.

A cell has as attributes, with G = H times the number of gates,

    weight_ih  [G, D]    transposed w_x
    weight_hh  [G, H]    transposed w_h
    bias       [G]       b
    bias_n     [H]       b_h, only of the GRU

The gate order is i f g o for the LSTM, as in jaxrnn, and r z n for the GRU, where jaxrnn has z r n. The
GRU resets after the product. The LSTM's state is (h, c), as jaxrnn's. Written from equinox 0.13, which
is not imported here:

    weights = to_equinox(cell, params)
    places = lambda module: [getattr(module, name) for name in weights]
    module = eqx.tree_at(places, eqx.nn.LSTMCell(64, 128, key=key), list(weights.values()))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrnn.interop import arrays
from jaxrnn.interop.arrays import Reader, make_params, swap_z_r
from jaxrnn.recurrence.cells import GRU, LSTM

# In the order of the module's attributes.
NAMES = ("weight_ih", "weight_hh", "bias", "bias_n")


def unsupported_reason(cell: Any) -> str | None:
    """Return why Equinox has no cell that computes what this one does; None where it has one."""
    if isinstance(cell, LSTM) and cell.peephole:
        return "eqx.nn.LSTMCell has no peepholes"
    if isinstance(cell, GRU) and cell.reset == "before":
        return "eqx.nn.GRUCell resets after the product"
    if not isinstance(cell, LSTM | GRU):
        return f"Equinox has no cell for {type(cell).__name__}"
    return None


def to_equinox(cell: Any, params: Any) -> dict[str, np.ndarray]:
    """Return the arrays of an Equinox cell by the names of its attributes.

    Args:
      cell: of `jaxrnn.lstm` or `jaxrnn.gru`.
      params: its parameters, numpy or JAX arrays.

    Raises:
      ValueError: for a cell that Equinox does not have, and for parameters of another cell.
    """
    arrays.require_supported(unsupported_reason(cell))
    (params,) = arrays.cells_of(cell, params)
    w_x, w_h, b = params[:3]
    if isinstance(cell, GRU):
        w_x, w_h, b = swap_z_r(w_x), swap_z_r(w_h), swap_z_r(b)
    found = {"weight_ih": w_x.T, "weight_hh": w_h.T, "bias": b}
    return found | ({"bias_n": params.b_h} if isinstance(cell, GRU) else {})


def from_equinox(cell: Any, weights: Any) -> Any:
    """Return the cell's parameters from an Equinox cell, or from its arrays or their gradients by name.

    Args:
      cell: of `jaxrnn.lstm` or `jaxrnn.gru`, of the same hidden size.
      weights: the module, or a dict as `to_equinox` returns it. Without biases (`use_bias=False`) these
        are zeros.

    Raises:
      ValueError: for a cell that Equinox does not have, and for the first array that is missing or
        unexpected, or has the wrong shape.
    """
    arrays.require_supported(unsupported_reason(cell))
    if not isinstance(weights, Mapping):
        weights = {n: getattr(weights, n) for n in NAMES if getattr(weights, n, None) is not None}
    reader = Reader(weights, str(cell))
    size, gates = cell.hidden_size, len(cell.GATES) * cell.hidden_size
    w_x = reader.take("weight_ih", (gates, reader.size("weight_ih", -1))).T
    w_h = reader.take("weight_hh", (gates, size)).T
    b, b_h = np.zeros(gates, w_h.dtype), np.zeros(size, w_h.dtype)
    if "bias" in reader or "bias_n" in reader:
        b = reader.take("bias", (gates,))
        b_h = reader.take("bias_n", (size,)) if isinstance(cell, GRU) else b_h
    reader.finish()
    if isinstance(cell, GRU):
        return make_params(cell, swap_z_r(w_x), swap_z_r(w_h), swap_z_r(b), b_h)
    return make_params(cell, w_x, w_h, b)
