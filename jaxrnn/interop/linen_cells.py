"""The cells of `jaxrnn.interop.linen`, and which cells of linen the recurrence can run, and how."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from jaxrnn.interop import flax_recurrence
from jaxrnn.interop.flax import LINEN, Kind, from_weights
from jaxrnn.recurrence.cells import GRU, LSTM, RNN

RecurrenceCell = RNN | LSTM | GRU

LSTMCell = nn.LSTMCell
OptimizedLSTMCell = nn.OptimizedLSTMCell
GRUCell = nn.GRUCell
SimpleCell = nn.SimpleCell

KINDS: dict[Any, Kind] = {
    LSTMCell: "LSTMCell",
    OptimizedLSTMCell: "OptimizedLSTMCell",
    GRUCell: "GRUCell",
    SimpleCell: "SimpleCell",
}


def cell_reason(cell: Any) -> str | None:
    """Return why the recurrence cannot run a cell, or None where it can."""
    kind = KINDS.get(type(cell))
    if kind is None:
        return f"the cell is {type(cell).__name__}, not one of {', '.join(KINDS.values())}"
    gate_fn, residual = getattr(cell, "gate_fn", None), getattr(cell, "residual", False)
    return flax_recurrence.functions_reason(kind, gate_fn, cell.activation_fn, residual)


def recurrence_cell(cell: Any, hidden_size: int) -> RecurrenceCell:
    """Return jaxrnn's cell for a cell that the recurrence can run."""
    activation: Any = flax_recurrence.activation_name(cell.activation_fn)
    return flax_recurrence.make_cell(KINDS[type(cell)], hidden_size, activation)


def created(cell: Any, step: tuple[int, ...], dtype: Any) -> tuple[RecurrenceCell, Any]:
    """Return jaxrnn's cell and parameters for a cell, and create them where they are not there yet.

    Args:
      cell: the cell.
      step: the shape of a step's inputs, (*batch, D).
      dtype: that of the inputs.
    """
    known = _cell_and_params(cell)
    if known is None:
        # One step of the cell creates its parameters, or raises flax's error that there are none.
        cell(cell.initialize_carry(jax.random.key(0), step), jnp.zeros(step, dtype))
        known = _cell_and_params(cell)
        assert known is not None
    return known


def _cell_and_params(cell: Any) -> tuple[RecurrenceCell, Any] | None:
    """Return jaxrnn's cell and parameters for a bound cell; None where its parameters are not there."""
    layout = LINEN[KINDS[type(cell)]]
    weights = meta.unbox(cell.variables.get("params", {}))
    if any(name not in weights.get(layer, {}) for layer, name in layout.arrays()):
        return None
    weights = jax.tree.map(jnp.asarray, weights)
    hidden_size = weights[layout.recurrent[0]]["kernel"].shape[0]
    made = recurrence_cell(cell, hidden_size)
    return made, from_weights(made, layout, weights)
