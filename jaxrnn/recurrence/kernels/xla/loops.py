"""A cell over time in plain XLA, with a backward pass written by hand.

Automatic differentiation of a scan saves every intermediate and adds up dW_h inside the reverse loop,
once per step. Here the forward scan keeps the states and the activated gates and nothing else, the
reverse scan runs only the recurrent chain

    dgx^t    = d(gates' inputs)                     [B, G], elementwise
    dh^{t-1} = dgx^t W_h^T + elementwise terms      [B, H], the one matrix product per step

and dW_h (with the gradients of the peepholes and of b_h), dW_x, db and dx are single large products
over all T * B rows after it. Where the inputs are tokens (`Lookup`) each step reads its rows of the
table, nothing of size [T, B, G] is built in the forward pass, and the table's gradient is the sum of
dgx over equal tokens, as one product. dgx leaves the loop in the weights' dtype, in which every product
after it takes it anyway.

`kernels.xla.rules` has a step of each cell and its derivative, `kernels.xla.layouts` what depends on
how a step lies in memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.devices import accelerator
from jaxrnn.recurrence import equations
from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels import passes
from jaxrnn.recurrence.kernels.passes import Passes
from jaxrnn.recurrence.kernels.rows import unroll_by_rows
from jaxrnn.recurrence.kernels.xla.layouts import Layout, Rows
from jaxrnn.recurrence.kernels.xla.rules import RULES, Gates, Setting, Trajectory
from jaxrnn.recurrence.problem import (
    Dense,
    Inputs,
    Lookup,
    Masks,
    Problem,
    Residuals,
    vary,
    vary_like,
)
from jaxrnn.shapes import Array, Float


def run(problem: Problem, layout: Layout, loop: Loop) -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state and the outputs [T, B, H] in the wide dtype, of an RNN, LSTM or GRU."""
    arrays = problem.recurrent_params, problem.inputs, problem.state, problem.masks
    return unroll_by_rows(_run, (problem.cell, layout, loop), *vary(arrays))


# Rows from which a CPU makes better use of a product per step than of one large array before the loop.
FEW_ROWS = 8


def _projects_in_loop(batch: int) -> bool:
    """Return whether inputs are better projected inside the loop than all at once before it."""
    return accelerator.device().platform == "cpu" and batch >= FEW_ROWS


class Loop(NamedTuple):
    """The direction of a loop over time, and its number of time steps per iteration."""

    reverse: bool
    unroll: int


def _run(
    cell: Any, layout: Layout, loop: Loop, weights: Any, inputs: Inputs, state: Any, masks: Masks
) -> tuple[Any, Array]:
    return passes.run(_PASSES, (cell, layout, loop), masks, weights, inputs, state)


def _forward(
    static: Any, keep: bool, masks: Masks, weights: Any, inputs: Inputs, state: Any
) -> tuple[tuple[Any, Array], tuple[Any, Gates] | None]:
    cell, layout, loop = static
    setting = Setting(layout, cell, weights)
    final, states, gates = forward_scan(setting, loop, inputs, state, masks)
    return (final, outputs(layout, states, masks)), (states, gates) if keep else None


def _backward(
    static: Any,
    masks: Masks,
    given: tuple[Any, Inputs, Any],
    residuals: tuple[Any, Gates],
    cotangents: tuple[Any, Array],
) -> tuple[Any, Any, Any]:
    (cell, layout, loop), (weights, inputs, state), (states, gates) = static, given, residuals
    d_final, d_ys = cotangents
    setting = Setting(layout, cell, weights)
    previous = before_each_step(layout, state, states, masks, loop.reverse)
    steps = Trajectory(previous, states, gates)
    d_state, d_gx = backward_scan(setting, loop, steps, masks, d_final, d_ys)
    aligned = jax.tree.map(layout.aligned, steps)
    hidden = layout.turn(previous.hidden)
    d_weights = RULES[cell.kind].gradients(setting, hidden, aligned, d_gx)
    d_weights = jax.tree.map(lambda d, w: d.astype(w.dtype), d_weights, weights)
    return d_weights, to_inputs(layout, inputs, d_gx, d_ys.dtype), d_state


def _plain(static: Any, masks: Masks, weights: Any, inputs: Inputs, state: Any) -> Any:
    return _forward(static, False, masks, weights, inputs, state)[0]


_PASSES = Passes(_forward, _backward, _plain)


def forward_scan(
    setting: Setting, loop: Loop, inputs: Inputs, state: Any, masks: Masks
) -> tuple[Any, Any, Gates]:
    """Return the final state, and in the layout of `setting` the state after each step and its gates."""
    layout = setting.layout
    rules = RULES[setting.cell.kind]
    if isinstance(inputs, Dense) and not _projects_in_loop(inputs.shape[1]):
        inputs = inputs.project()
    weights, fed, project = layout.prepare(setting.weights, inputs, rules.joint)
    setting = setting._replace(weights=weights)
    turn = partial(jax.tree.map, layout.turn)

    def body(state: Any, slices: Any) -> tuple[Any, tuple[Any, Gates]]:
        x, (reset, active) = slices
        if reset is not None:
            zeros = jax.tree.map(jnp.zeros_like, state)
            state = _choose(layout.per_row(reset), zeros, state)
        after, gates = rules.forward(setting, *project(state, x))
        if active is not None:
            after = _choose(layout.per_row(active), after, state)
        return after, (after, gates)

    final, (states, gates) = lax.scan(body, turn(state), (fed, masks), **loop._asdict())
    return turn(final), states, gates


def backward_scan(
    setting: Setting,
    loop: Loop,
    steps: Trajectory,
    masks: Masks,
    d_final: Any,
    d_ys: Float[Array, "T B H"],
) -> tuple[Any, Array]:
    """Return the derivatives with respect to the first state and to the gates' inputs.

    Args:
      setting: as for `forward_scan`.
      loop: that of the forward pass.
      steps: all steps, in the layout of `setting`.
      masks: those of the forward pass.
      d_final: derivative with respect to the final state.
      d_ys: derivative with respect to the outputs.
    """
    layout, cell, weights = setting
    rules, dtype = RULES[cell.kind], weights.w_h.dtype
    w_t = layout.transposed(weights.w_h)

    def body(carry: Any, slices: Any) -> tuple[Any, Any]:
        d_state, d_gx = carry
        t, step, d_y, (reset, active) = slices
        if active is not None:
            d_y = jnp.where(layout.per_row(active), d_y, 0)
        d_after = d_state._replace(hidden=d_state.hidden + d_y)
        d_before, d_step = rules.backward(setting, w_t, step, d_after)
        if active is not None:
            d_before = _choose(layout.per_row(active), d_before, d_state)
            d_step = jnp.where(layout.per_row(active), d_step, 0)
        if reset is not None:
            zeros = jax.tree.map(jnp.zeros_like, d_before)
            d_before = _choose(layout.per_row(reset), zeros, d_before)
        d_step = _as_bits(d_step.astype(dtype))
        if d_gx is None:
            return (d_before, None), d_step
        d_step = jnp.expand_dims(d_step, layout.time)
        return (d_before, lax.dynamic_update_slice_in_dim(d_gx, d_step, t, layout.time)), None

    count, batch, _ = d_ys.shape
    shape = (count, batch, weights.w_h.shape[1])
    if layout.time:
        shape = (weights.w_h.shape[1], count, batch)
    bits = jnp.uint16 if dtype == jnp.bfloat16 else dtype
    # With several steps per iteration scan writes dgx in one launch. With one, in place is faster.
    place: Any = vary_like(jnp.zeros(shape, bits), d_ys) if loop.unroll == 1 else None
    turn = partial(jax.tree.map, layout.turn)
    slices = (jnp.arange(count), steps, layout.turn(d_ys), masks)
    back = loop._replace(reverse=not loop.reverse)
    (d_state, d_gx), collected = lax.scan(body, (turn(d_final), place), slices, **back._asdict())
    d_gx = _from_bits(d_gx if place is not None else jnp.moveaxis(collected, 0, layout.time))
    return turn(d_state), d_gx


def weight_gradients(
    cell: Any, weights: Any, state: Any, residuals: Residuals, d_gx: Float[Array, "T B G"]
) -> Any:
    """Return the derivative with respect to the recurrent parameters, for a kernel's residuals.

    Args:
      cell: an RNN, LSTM or GRU.
      weights: its recurrent parameters.
      state: a state of the cell, of which only the type is used.
      residuals: what the kernel's forward pass kept.
      d_gx: derivative with respect to the projected inputs, in the weights' dtype.
    """
    steps = trajectory(cell, state, residuals)
    setting = Setting(Rows, cell, weights)
    found = RULES[cell.kind].gradients(setting, steps.before.hidden, steps, d_gx)
    return jax.tree.map(lambda d, w: d.astype(w.dtype), found, weights)


def trajectory(cell: Any, state: Any, residuals: Residuals) -> Trajectory:
    """Return all steps [T, B, ...] from what a kernel's forward pass kept.

    state: a state of the cell, of which only the type is used.
    """
    gates: Any = residuals.gates
    if not isinstance(gates, tuple):
        # Side by side in [T, B, G], or one after the other in [gates, T, B, H].
        side_by_side = gates.ndim == 3
        gates = tuple(jnp.split(gates, len(cell.GATES), axis=-1) if side_by_side else gates)
    hidden = residuals.previous_hidden.astype(gates[0].dtype)
    before = after = state._replace(hidden=hidden)
    if cell.kind is CellKind.RNN:
        # Its one gate is its output.
        return Trajectory(before, after._replace(hidden=gates[0]), ())
    if cell.kind is CellKind.LSTM:
        before = before._replace(cell=residuals.previous_cell)
        after = before._replace(cell=equations.lstm_cell(gates, residuals.previous_cell))
    if cell.kind is CellKind.GRU_AFTER:
        gates = (*gates, residuals.q)
    return Trajectory(before, after, gates)


def to_inputs(layout: Layout, source: Inputs, d_gx: Array, dtype: Any) -> Any:
    """Return the derivative with respect to the inputs.

    Args:
      layout: that of d_gx.
      source: the inputs.
      d_gx: derivative with respect to the projected inputs, in the weights' dtype.
      dtype: dtype of the projected inputs.
    """
    if isinstance(source, Lookup):
        return Lookup(layout.sum_equal(source, d_gx), None)  # type: ignore[arg-type]
    if isinstance(source, Dense):
        d_xs = layout.back(d_gx, source.w_x).astype(source.xs.dtype)
        d_w_x = layout.outer(source.xs, d_gx).astype(source.w_x.dtype)
        return Dense(d_xs, d_w_x, layout.total(d_gx.astype(dtype)).astype(source.b.dtype))
    return layout.rows(d_gx).astype(dtype)


def before_each_step(layout: Layout, state: Any, states: Any, masks: Masks, reverse: bool) -> Any:
    """Return the state that entered each step: that after the step run before it, zeros at a reset."""

    def shift(first: Array, rest: Array) -> Array:
        first = layout.turn(first)[None]
        pieces = [rest[1:], first] if reverse else [first, rest[:-1]]
        shifted = jnp.concatenate(pieces)[: rest.shape[0]]
        if masks.reset is None:
            return shifted
        return jnp.where(jax.vmap(layout.per_row)(masks.reset), 0, shifted)

    return jax.tree.map(shift, state, states)


def outputs(layout: Layout, states: Any, masks: Masks) -> Array:
    """Return the outputs [T, B, H] from the states: zeros in the padding."""
    ys = layout.turn(states.hidden)
    return ys if masks.active is None else jnp.where(masks.active[..., None], ys, 0)


def _choose(mask: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(mask, a, b), yes, no)


def _as_bits(x: Array) -> Array:
    """Return bfloat16 as its bits: XLA's CPU backend is slow to store bfloat16 in a loop."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _from_bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x
