"""The passes of `calls` in plain JAX, for programs that run where the C++ is not."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxrnn.recurrence import equations
from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels import xla
from jaxrnn.recurrence.kernels.xla.layouts import Rows
from jaxrnn.recurrence.kernels.xla.rules import Setting
from jaxrnn.recurrence.problem import Inputs, Masks, Residuals
from jaxrnn.shapes import Array, Float


def forward(
    cell: Any, reverse: bool, weights: Any, inputs: Inputs, state: Any, masks: Masks
) -> tuple[Any, Float[Array, "T B H"], Residuals]:
    """Return the final state, the outputs and the residuals."""
    setting = Setting(Rows, cell, weights)
    final, states, gates = xla.forward_scan(setting, xla.Loop(reverse, 1), inputs, state, masks)
    ys = xla.outputs(Rows, states, masks)
    before = xla.before_each_step(Rows, state, states, masks, reverse)
    if cell.kind is CellKind.RNN:
        return final, ys, Residuals(before.hidden, states.hidden)
    residuals = Residuals(before.hidden, jnp.concatenate(gates[: len(cell.GATES)], axis=-1))
    if cell.kind is CellKind.LSTM:
        residuals = residuals._replace(previous_cell=before.cell)
    if cell.kind is CellKind.GRU_AFTER:
        residuals = residuals._replace(q=gates[3])
    if cell.kind is CellKind.GRU_BEFORE:
        residuals = residuals._replace(reset_hidden=gates[1] * before.hidden)
    return final, ys, residuals


def backward(
    cell: Any,
    reverse: bool,
    weights: Any,
    masks: Masks,
    residuals: Residuals,
    d_final: Any,
    d_ys: Float[Array, "T B H"],
) -> tuple[Float[Array, "T B G"], Array | None, Any]:
    """Return the derivatives with respect to the gates' inputs, to q, and to the first state.

    That with respect to q is None but for a GRU that resets after the product.
    """
    setting, loop = Setting(Rows, cell, weights), xla.Loop(reverse, 1)
    # As the C++ has them in products of bfloat16, where `xla` has float32.
    before = residuals.previous_hidden.astype(jnp.float32)
    residuals, d_ys = residuals._replace(previous_hidden=before), d_ys.astype(jnp.float32)
    steps = xla.trajectory(cell, d_final, residuals)
    d_state, d_gx = xla.backward_scan(setting, loop, steps, masks, d_final, d_ys)
    d_gx = d_gx.astype(jnp.float32)
    if cell.kind is not CellKind.GRU_AFTER:
        return d_gx, None, d_state
    d_an = d_gx[..., 2 * cell.hidden_size :]
    _, d_q = equations.gru_reset_backward_after(residuals.q, steps.gates[1], d_an)
    return d_gx, d_q, d_state
