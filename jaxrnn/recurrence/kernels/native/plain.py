"""The passes of `calls` in plain JAX, for programs that run where the C++ is not."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxrnn.recurrence.cells import GRU, LSTM
from jaxrnn.recurrence.inputs import Inputs, Masks
from jaxrnn.recurrence.kernels import xla
from jaxrnn.recurrence.kernels.xla.layouts import Rows
from jaxrnn.shapes import Array, Float


def forward(
    cell: Any, reverse: bool, weights: Any, inputs: Inputs, state: Any, masks: Masks
) -> tuple[Any, Any, Any, Any, Any]:
    """Return the last state, the outputs and the three arrays of `calls.Kept`."""
    final, states, gates = xla.forward_scan(
        cell, Rows, xla.Loop(reverse, 1), weights, inputs, state, masks
    )
    ys = xla.outputs(Rows, states, masks)
    before = xla.before_each_step(Rows, state, states, masks, reverse)
    if isinstance(cell, LSTM):
        return final, ys, before.hidden, jnp.concatenate(gates, axis=-1), before.cell
    if isinstance(cell, GRU):
        extra = gates[3] if cell.reset == "after" else gates[1] * before.hidden
        return final, ys, before.hidden, jnp.concatenate(gates[:3], axis=-1), extra
    return final, ys, before.hidden, states.hidden, None


def backward(
    cell: Any,
    reverse: bool,
    weights: Any,
    masks: Masks,
    kept: Any,
    d_final: Any,
    d_ys: Float[Array, "T B H"],
) -> tuple[Float[Array, "T B G"], Array | None, Any]:
    """Return the gradients of the gates' inputs, of q in a reset-after GRU, and of the first state."""
    before = after = d_final._replace(hidden=kept.entered)
    gates = tuple(jnp.split(kept.gates, len(cell.GATES), axis=-1))
    if isinstance(cell, LSTM):
        i, f, g, _ = gates
        before = before._replace(cell=kept.extra)
        after = before._replace(cell=f * kept.extra + i * g)
    elif isinstance(cell, GRU):
        gates = (*gates, kept.extra) if cell.reset == "after" else gates
    else:
        after, gates = after._replace(hidden=kept.gates), ()
    d_state, d_gx = xla.backward_scan(
        cell, Rows, xla.Loop(reverse, 1), weights, before, after, gates, masks, d_final, d_ys
    )
    d_q = None
    if isinstance(cell, GRU) and cell.reset == "after":
        d_q = d_gx[..., 2 * cell.hidden_size :] * gates[1]
    return d_gx, d_q, d_state
