"""Weights of Haiku's `hk.VanillaRNN`, `hk.LSTM` and `hk.GRU`.

The parameters of `hk.transform` are a dict of modules, each a dict of arrays. With G = H times the
number of gates,

    hk.VanillaRNN  "vanilla_rnn/linear"    w [D, H], b [H]      w_x and b
                   "vanilla_rnn/linear_1"  w [H, H], b [H]      w_h and a second bias, added to the first
    hk.LSTM        "lstm/linear"           w [D + H, G], b [G]  w_x above w_h, and b
    hk.GRU         "gru"                   w_i [D, G], w_h [H, G], b [G]

The plain RNN has the activation relu. The LSTM has the gate order i g f o and adds 1 to the input of
the forget gate, so jaxrnn's b_f is Haiku's plus 1. The GRU has jaxrnn's order and resets before the
product, and its h' is (1 - z) h + z n where jaxrnn has z h + (1 - z) n, so the weights of z change their
sign. The LSTM's state is (hidden, cell), as jaxrnn's. Written from dm-haiku 0.0.17, which is not
imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrnn.interop import arrays
from jaxrnn.interop.arrays import Reader, make_params
from jaxrnn.recurrence.cells import GRU, LSTM, RNN

# What Haiku calls a module that is given no name.
_DEFAULT = {RNN: "vanilla_rnn", LSTM: "lstm", GRU: "gru"}


def unsupported_reason(cell: Any) -> str | None:
    """Return why Haiku has no core that computes what this cell does; None where it has one."""
    if isinstance(cell, LSTM) and cell.peephole:
        return "hk.LSTM has no peepholes"
    if isinstance(cell, GRU) and cell.reset == "after":
        return "hk.GRU resets before the product"
    if isinstance(cell, RNN) and cell.activation != "relu":
        return f"hk.VanillaRNN has no {cell.activation}, only relu"
    if not isinstance(cell, RNN | LSTM | GRU):
        return f"Haiku has no core for {type(cell).__name__}"
    return None


def to_haiku(cell: Any, params: Any, name: str | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Return the parameters of a Haiku core.

    Args:
      cell: of `jaxrnn.rnn` with relu, `jaxrnn.lstm` or `jaxrnn.gru` with the reset before.
      params: its parameters, numpy or JAX arrays.
      name: the name of the module; None for "vanilla_rnn", "lstm" or "gru".

    Raises:
      ValueError: for a cell that Haiku does not have, and for parameters of another cell.
    """
    name = _checked_name(cell, name)
    (params,) = arrays.cells_of(cell, params)
    w_x, w_h, b = params[:3]
    if isinstance(cell, RNN):
        hidden = {"w": w_h, "b": np.zeros_like(b)}
        return {f"{name}/linear": {"w": w_x, "b": b}, f"{name}/linear_1": hidden}
    if isinstance(cell, LSTM):
        w, b = _swap_f_g(np.concatenate([w_x, w_h])), _swap_f_g(b - _forget_ones(cell, b.dtype))
        return {f"{name}/linear": {"w": w, "b": b}}
    return {name: {"w_i": _turn_z(w_x), "w_h": _turn_z(w_h), "b": _turn_z(b)}}


def from_haiku(cell: Any, weights: Mapping[str, Mapping[str, Any]], name: str | None = None) -> Any:
    """Return the cell's parameters from those of a Haiku core.

    Args:
      cell: of `jaxrnn.rnn` with relu, `jaxrnn.lstm` or `jaxrnn.gru` with the reset before, of the same
        hidden size.
      weights: the dict that `to_haiku` returns: the modules of this core alone.
      name: the name of the module; None for "vanilla_rnn", "lstm" or "gru".

    Raises:
      ValueError: for a cell that Haiku does not have, and for the first array that is missing or
        unexpected, or has the wrong shape.
    """
    params, second = _read(cell, weights, name)
    if isinstance(cell, RNN):
        return params._replace(b=params.b + second)
    if isinstance(cell, LSTM):
        return params._replace(b=params.b + _forget_ones(cell, params.b.dtype))
    return params


def gradients_from_haiku(
    cell: Any, gradients: Mapping[str, Mapping[str, Any]], name: str | None = None
) -> Any:
    """Return the gradients of the cell's parameters from those of a Haiku core.

    Unlike weights, the gradients of the two biases of `hk.VanillaRNN` are not added, and nothing is
    added to the forget gate's.

    Args and errors: as for `from_haiku`.
    """
    return _read(cell, gradients, name)[0]


def _read(cell: Any, weights: Mapping[str, Mapping[str, Any]], name: str | None) -> tuple[Any, Any]:
    """Return the parameters in jaxrnn's order, and the second bias of a plain RNN (or None)."""
    name = _checked_name(cell, name)
    reader = Reader(arrays.flat(weights), str(cell))
    size, gates = cell.hidden_size, len(cell.GATES) * cell.hidden_size
    second = None
    if isinstance(cell, RNN):
        inputs = reader.size(f"{name}/linear/w", 0)
        w_x, w_h = (
            reader.take(f"{name}/linear/w", (inputs, size)),
            reader.take(f"{name}/linear_1/w", (size, size)),
        )
        b = reader.take(f"{name}/linear/b", (size,))
        # double_bias=False leaves the second one out.
        absent = f"{name}/linear_1/b" not in reader
        second = np.zeros_like(b) if absent else reader.take(f"{name}/linear_1/b", (size,))
    elif isinstance(cell, LSTM):
        inputs = max(reader.size(f"{name}/linear/w", 0) - size, 0)
        w = _swap_f_g(reader.take(f"{name}/linear/w", (inputs + size, gates)))
        w_x, w_h = w[:inputs], w[inputs:]
        b = _swap_f_g(reader.take(f"{name}/linear/b", (gates,)))
    else:
        inputs = reader.size(f"{name}/w_i", 0)
        w_x = _turn_z(reader.take(f"{name}/w_i", (inputs, gates)))
        w_h = _turn_z(reader.take(f"{name}/w_h", (size, gates)))
        b = _turn_z(reader.take(f"{name}/b", (gates,)))
    reader.finish()
    return make_params(cell, w_x, w_h, b), second


def _checked_name(cell: Any, name: str | None) -> str:
    """Return the name of the module. Raise ValueError for a cell that Haiku does not have."""
    arrays.require_supported(unsupported_reason(cell))
    return name or _DEFAULT[type(cell)]


def _forget_ones(cell: Any, dtype: Any) -> np.ndarray:
    """Return ones at the forget gate, the second of four, and zeros elsewhere: [4H]."""
    return np.repeat(np.array([0, 1, 0, 0], dtype), cell.hidden_size)


def _swap_f_g(a: np.ndarray) -> np.ndarray:
    i, f, g, o = np.split(a, 4, axis=-1)
    return np.concatenate([i, g, f, o], axis=-1)


def _turn_z(a: np.ndarray) -> np.ndarray:
    z, r, n = np.split(a, 3, axis=-1)
    return np.concatenate([-z, r, n], axis=-1)
