"""Weights of flax's recurrent cells, of nnx and of linen: where each array lies.

A flax cell keeps dense layers, each with a `kernel` and perhaps a `bias`. One layer serves one gate, or
all gates side by side. The gate order is i f g o for the LSTM, as in jaxrnn, and r z n for the GRU,
where jaxrnn has z r n. `NNX` and `LINEN` name the layers of each cell. With G = H times the number of
gates, in the cells that keep all gates side by side:

    dense_i/kernel  [D, G]    w_x
    dense_h/kernel  [H, G]    w_h
    bias            [G]       b; at dense_h in the LSTM and at dense_i in the two others

The GRU resets after the product. That of linen has a b_h, that of nnx has none. Written from flax 0.12;
flax itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrnn.interop import arrays
from jaxrnn.interop.arrays import Reader, make_params
from jaxrnn.recurrence.cells import GRU, LSTM, RNN

# Names of flax's cells.
Kind = Literal["SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell"]


class Layout(NamedTuple):
    """Names of the dense layers of a flax cell.

    Attributes:
      order: the gates in flax's order.
      inputs: the layers of the inputs: one for each gate in `order`, or one for all.
      recurrent: the layers of the hidden state, likewise.
      biases: the layers whose biases are b; those of `inputs` or those of `recurrent`.
      b_h: the layer whose bias is the b_h of a GRU, or None.
    """

    order: tuple[str, ...]
    inputs: tuple[str, ...]
    recurrent: tuple[str, ...]
    biases: tuple[str, ...]
    b_h: str | None = None

    def arrays(self) -> list[tuple[str, str]]:
        """Return the places of all arrays as (layer, "kernel" or "bias")."""
        kernels = [(name, "kernel") for name in self.inputs + self.recurrent]
        biases = self.biases if self.b_h is None else (*self.biases, self.b_h)
        return kernels + [(name, "bias") for name in biases]


_IFGO, _RZN, _ONE = ("i", "f", "g", "o"), ("r", "z", "n"), ("h",)
_HIDDEN = ("hi", "hf", "hg", "ho")
# linen's two LSTM cells have the same arrays.
_LINEN_LSTM = Layout(_IFGO, ("ii", "if", "ig", "io"), _HIDDEN, _HIDDEN)

NNX: dict[Kind, Layout] = {
    "SimpleCell": Layout(_ONE, ("dense_i",), ("dense_h",), ("dense_i",)),
    # `if` is a keyword of Python.
    "LSTMCell": Layout(_IFGO, ("ii", "if_", "ig", "io"), _HIDDEN, _HIDDEN),
    "OptimizedLSTMCell": Layout(_IFGO, ("dense_i",), ("dense_h",), ("dense_h",)),
    "GRUCell": Layout(_RZN, ("dense_i",), ("dense_h",), ("dense_i",)),
}
LINEN: dict[Kind, Layout] = {
    "SimpleCell": Layout(_ONE, ("i",), ("h",), ("i",)),
    "LSTMCell": _LINEN_LSTM,
    "OptimizedLSTMCell": _LINEN_LSTM,
    "GRUCell": Layout(_RZN, ("ir", "iz", "in"), ("hr", "hz", "hn"), ("ir", "iz", "in"), "hn"),
}


def unsupported_reason(cell: Any) -> str | None:
    """Return why flax has no cell that computes what this one does; None where it has one."""
    if isinstance(cell, LSTM) and cell.peephole:
        return "OptimizedLSTMCell has no peepholes"
    if isinstance(cell, GRU) and cell.reset == "before":
        return "GRUCell resets after the product"
    if not isinstance(cell, RNN | LSTM | GRU):
        return f"flax has no cell for {type(cell).__name__}"
    return None


def to_nnx(cell: Any, params: Any, kind: Kind | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of an nnx cell as a pure dict.

    Args:
      cell: of `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`.
      params: its parameters, numpy or JAX arrays.
      kind: the name of the flax cell; None for SimpleCell, OptimizedLSTMCell or GRUCell.

    Raises:
      ValueError: for a cell that nnx does not have, a kind that is not of this cell, and a GRU whose
        b_h is not zero.
    """
    layout = NNX[_kind(cell, kind)]
    (params,) = arrays.cells_of(cell, params)
    if isinstance(cell, GRU) and np.any(params.b_h):
        raise ValueError("GRUCell has no b_h, and the b_h of these parameters is not zero")
    return to_weights(cell, layout, params)


def from_nnx(cell: Any, weights: Mapping[str, Mapping[str, Any]], kind: Kind | None = None) -> Any:
    """Return the cell's parameters from the arrays of an nnx cell; the b_h of a GRU is zero.

    Args:
      cell: of `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`, of the same hidden size.
      weights: the pure dict that `to_nnx` returns, or the gradients of one.
      kind: as for `to_nnx`.

    Raises:
      ValueError: for a cell that nnx does not have, a kind that is not of this cell, and the first array
        that is missing or unexpected, or has the wrong shape.
    """
    return _from(cell, NNX[_kind(cell, kind)], weights)


def to_linen(cell: Any, params: Any) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of linen's `SimpleCell`, `GRUCell` or, for an LSTM, both of its LSTM cells.

    Args:
      cell: of `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`.
      params: its parameters, numpy or JAX arrays.

    Raises:
      ValueError: for a cell that linen does not have.
    """
    return to_weights(cell, LINEN[_kind(cell, None)], *arrays.cells_of(cell, params))


def from_linen(cell: Any, weights: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the cell's parameters from the arrays of a linen cell.

    Args:
      cell: of `jaxrnn.rnn`, `jaxrnn.lstm` or `jaxrnn.gru`, of the same hidden size.
      weights: the dict that `to_linen` returns, or the gradients of one.

    Raises:
      ValueError: for a cell that linen does not have, and the first array that is missing or
        unexpected, or has the wrong shape.
    """
    return _from(cell, LINEN[_kind(cell, None)], weights)


def from_weights(cell: Any, layout: Layout, weights: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the cell's parameters from arrays that are all numpy's or all JAX's, traced ones included.

    Args:
      cell: a cell of jaxrnn that flax has too.
      layout: that of the flax cell.
      weights: its arrays, `weights[layer]["kernel" or "bias"]`.
    """

    def join(layers: tuple[str, ...], name: str) -> Any:
        return _join([weights[layer][name] for layer in layers], layout.order, cell.GATES)

    b_h = None
    if isinstance(cell, GRU):
        like = weights[layout.recurrent[0]]["kernel"]
        zeros = like.__array_namespace__().zeros(cell.hidden_size, like.dtype)
        b_h = zeros if layout.b_h is None else weights[layout.b_h]["bias"]
    kernels = join(layout.inputs, "kernel"), join(layout.recurrent, "kernel")
    return make_params(cell, *kernels, join(layout.biases, "bias"), b_h)


def to_weights(cell: Any, layout: Layout, params: Any) -> dict[str, dict[str, Any]]:
    """Return the arrays of a flax cell from the cell's parameters; the inverse of `from_weights`."""
    made: dict[str, dict[str, Any]] = {layer: {} for layer in layout.inputs + layout.recurrent}
    for layers, name, array in (
        (layout.inputs, "kernel", params.w_x),
        (layout.recurrent, "kernel", params.w_h),
        (layout.biases, "bias", params.b),
    ):
        xp = array.__array_namespace__()
        ordered = _join([array], cell.GATES, layout.order)
        for layer, block in zip(layers, xp.split(ordered, len(layers), axis=-1), strict=True):
            made[layer][name] = block
    if layout.b_h is not None:
        made[layout.b_h]["bias"] = params.b_h
    return made


def _join(blocks: list[Any], given: tuple[str, ...], wanted: tuple[str, ...]) -> Any:
    """Return the gates side by side in the wanted order.

    Args:
      blocks: one array for each gate in the given order, or one of all gates in this order.
      given: the gates' order in `blocks`.
      wanted: the gates' order in the result.
    """
    if len(blocks) == 1 and given == wanted:
        return blocks[0]
    xp = blocks[0].__array_namespace__()
    if len(blocks) == 1:
        blocks = xp.split(blocks[0], len(given), axis=-1)
    by_gate = dict(zip(given, blocks, strict=True))
    return xp.concatenate([by_gate[gate] for gate in wanted], axis=-1)


def _from(cell: Any, layout: Layout, weights: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return the cell's parameters from arrays of numpy or JAX, each of which is checked."""
    reader = Reader(arrays.flat(weights), str(cell))
    size = cell.hidden_size
    rows = dict.fromkeys(layout.inputs, reader.size(f"{layout.inputs[0]}/kernel", 0))
    columns = len(cell.GATES) // len(layout.inputs) * size
    made: dict[str, dict[str, Any]] = {}
    for layer, name in layout.arrays():
        shape = (columns,) if name == "bias" else (rows.get(layer, size), columns)
        made.setdefault(layer, {})[name] = reader.take(f"{layer}/{name}", shape)
    reader.finish()
    return from_weights(cell, layout, made)


def _kind(cell: Any, kind: Kind | None) -> Kind:
    """Return the name of the flax cell, checked."""
    arrays.require_supported(unsupported_reason(cell))
    kinds: tuple[Kind, ...] = ("SimpleCell",)
    if isinstance(cell, LSTM):
        kinds = ("OptimizedLSTMCell", "LSTMCell")
    elif isinstance(cell, GRU):
        kinds = ("GRUCell",)
    if kind not in (None, *kinds):
        raise ValueError(
            f"the flax cell of a {type(cell).__name__} is {' or '.join(kinds)}, not {kind}"
        )
    return kind or kinds[0]
