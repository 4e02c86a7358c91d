"""A cell over time in plain XLA, with a backward pass written by hand.

Automatic differentiation of a scan saves every intermediate and adds up dW_h inside the reverse loop,
once per step. Here the forward scan keeps the states and the activated gates and nothing else, the
reverse scan runs only the recurrent chain

    dgx^t    = d(gates' inputs)                     [B, G], elementwise
    dh^{t-1} = dgx^t W_h^T + elementwise terms      [B, H], the one matrix product per step

and dW_h (with the peepholes' and b_h's gradients), dW_x, db and dx are single large products over all
T * B rows after it. Where the inputs are tokens (`Lookup`) each step reads its rows of the table,
nothing of size [T, B, G] is built on the way forward, and the table's gradient is the sum of dgx over
equal tokens, as one product. dgx leaves the loop in the weights' dtype, in which every product after it
takes it anyway.

The derivatives are in `kernels.xla.rules`, what depends on how a step lies in memory in `kernels.xla.layouts`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.inputs import Dense, Inputs, Lookup, Masks, vary, vary_like
from jaxrnn.recurrence.kernels.rows import unroll_by_rows
from jaxrnn.recurrence.kernels.xla.layouts import Layout, Rows
from jaxrnn.recurrence.kernels.xla.rules import RULES
from jaxrnn.shapes import Array, Float


def unsupported_reason(cell: Any, batch: int, dtype: Any) -> str | None:
    """Why this cannot run such a problem; None where it can."""
    if type(cell) not in RULES:
        return f"it has no backward pass for {cell!r}, only for rnn, lstm and gru; use 'scan'"
    return None


def run(
    cell: Any,
    params: Any,
    inputs: Inputs,
    state: Any,
    masks: Masks,
    reverse: bool,
    layout: Layout = Rows,
    unroll: int | None = None,
) -> tuple[Any, Float[Array, "T B H"]]:
    """The final state and every output [T, B, H], in the wide dtype, differentiable by hand.

    Args:
      cell: an `rnn`, `lstm` or `gru`.
      params: the cell's parameters; only the recurrent ones are used here.
      inputs: the projected inputs [T, B, G], or how to come by them at each step.
      state: the state before the first step taken.
      masks: see `Masks`; a row that stands still puts out zeros.
      reverse: run from the last step to the first.
      layout: how a step lies in memory inside the loops.
      unroll: steps of time in one turn of the loops; None for what suits the device.
    """
    steps, batch, _ = inputs.shape
    if not steps:
        return state, jnp.zeros((0, batch, cell.hidden_size), inputs.dtype)
    weights = params._replace(w_x=None, b=None)
    loop = Loop(reverse, unroll or _steps_per_turn())
    return unroll_by_rows(_run, (cell, layout, loop), *vary((weights, inputs, state, masks)))


def _step_by_step(batch: int) -> bool:
    """Whether inputs are better projected inside the loop than all at once before it.

    A CPU does better without the large array, given rows enough to make a product of each step.
    """
    return accelerator.device().platform == "cpu" and batch >= FEW_ROWS


FEW_ROWS = 8


def _steps_per_turn() -> int:
    """How many steps of time a loop takes in one turn.

    On a GPU each operation of a turn is a kernel to launch. Of several steps XLA writes the states and
    gates with one launch each, counts once, and sends the turn to the device as a whole (a command
    buffer), which it does not with one step of the way forward: `benchmarks/gpu_static.py` counts.
    """
    return GPU_UNROLL if accelerator.device().platform == "gpu" else 1


GPU_UNROLL = 8  # more saves little, and the program takes longer to compile


class Loop(NamedTuple):
    """How a loop goes over time: from the last step to the first, and steps in one turn."""

    reverse: bool
    unroll: int


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run(
    cell: Any, layout: Layout, loop: Loop, weights: Any, inputs: Any, state: Any, masks: Masks
) -> tuple[Any, Array]:
    final, states, _ = forward_scan(cell, layout, loop, weights, inputs, state, masks)
    return final, outputs(layout, states, masks)


def _forward(
    cell: Any, layout: Layout, loop: Loop, weights: Any, inputs: Any, state: Any, masks: Masks
) -> tuple[tuple[Any, Array], tuple[Any, ...]]:
    final, states, gates = forward_scan(cell, layout, loop, weights, inputs, state, masks)
    # of projected inputs the backward pass needs no more than that they were such
    source = inputs if isinstance(inputs, Lookup | Dense) else None
    return (final, outputs(layout, states, masks)), (weights, source, state, states, gates, masks)


def _backward(
    cell: Any,
    layout: Layout,
    loop: Loop,
    saved: tuple[Any, ...],
    cotangents: tuple[Any, Array],
) -> tuple[Any, Any, Any, Masks]:
    weights, source, state, states, gates, masks = saved
    d_final, d_ys = cotangents
    previous = before_each_step(layout, state, states, masks, loop.reverse)
    d_state, d_gx = backward_scan(
        cell, layout, loop, weights, previous, states, gates, masks, d_final, d_ys
    )
    d_weights = RULES[type(cell)].gradients(
        layout,
        cell,
        weights,
        layout.turn(previous.hidden),
        *jax.tree.map(layout.aligned, (previous, states, gates)),
        d_gx,
    )
    d_weights = jax.tree.map(lambda d, w: d.astype(w.dtype), d_weights, weights)
    return d_weights, to_inputs(layout, source, d_gx, d_ys.dtype), d_state, Masks(None, None)


_run.defvjp(_forward, _backward)


def backward_scan(
    cell: Any,
    layout: Layout,
    loop: Loop,
    weights: Any,
    previous: Any,
    states: Any,
    gates: tuple[Array, ...],
    masks: Masks,
    d_final: Any,
    d_ys: Float[Array, "T B H"],
) -> tuple[Any, Array]:
    """Return the gradients of the first state and of the gates' inputs, from the last step to the first.

    previous, states, gates: the state before each step, the state after it and its gates.
    """
    backward, dtype = RULES[type(cell)].backward, weights.w_h.dtype
    w_t = layout.transposed(weights.w_h)

    def body(carry: Any, slices: Any) -> tuple[Any, Any]:
        d_state, d_gx = carry
        t, before, after, activated, d_y, (reset, active) = slices
        if active is not None:
            d_y = jnp.where(layout.per_row(active), d_y, 0)
        d_after = d_state._replace(hidden=d_state.hidden + d_y)
        d_before, d_step = backward(layout, cell, weights, w_t, before, after, activated, d_after)
        if active is not None:
            d_before = _choose(layout.per_row(active), d_before, d_state)
            d_step = jnp.where(layout.per_row(active), d_step, 0)
        if reset is not None:
            zeros = jax.tree.map(jnp.zeros_like, d_before)
            d_before = _choose(layout.per_row(reset), zeros, d_before)
        d_step = _packed(d_step.astype(dtype))
        if d_gx is None:
            return (d_before, None), d_step
        d_step = jnp.expand_dims(d_step, layout.time)
        return (d_before, lax.dynamic_update_slice_in_dim(d_gx, d_step, t, layout.time)), None

    steps, batch, _ = d_ys.shape
    shape = (steps, batch, weights.w_h.shape[1])
    if layout.time:
        shape = (weights.w_h.shape[1], steps, batch)
    bits = jnp.uint16 if dtype == jnp.bfloat16 else dtype
    # of several steps in a turn scan writes dgx with one launch; of one, in place is faster
    place: Any = vary_like(jnp.zeros(shape, bits), d_ys) if loop.unroll == 1 else None
    turn = partial(jax.tree.map, layout.turn)
    slices = (jnp.arange(steps), previous, states, gates, layout.turn(d_ys), masks)
    back = loop._replace(reverse=not loop.reverse)
    (d_state, d_gx), collected = lax.scan(body, (turn(d_final), place), slices, **back._asdict())
    d_gx = _unpacked(d_gx if place is not None else jnp.moveaxis(collected, 0, layout.time))
    return turn(d_state), d_gx


def weight_gradients(
    cell: Any, weights: Any, previous: Any, states: Any, gates: Any, d_gx: Float[Array, "T B G"]
) -> Any:
    """The gradients of the recurrent weights, over all steps at once, as every kernel needs them.

    previous, states, gates: for every step the state before it, the state after it and the cell's
    activated gates, as tuples of [T, B, H]: (i, f, g, o) of an LSTM, (z, r, n) of a GRU, with
    q = h^{t-1} W_hn + b_h as a fourth where reset comes after the product, none of a plain RNN.
    d_gx: the gradient of the projected inputs, in the weights' dtype.
    """
    gradients = RULES[type(cell)].gradients
    found = gradients(Rows, cell, weights, previous.hidden, previous, states, gates, d_gx)
    return jax.tree.map(lambda d, w: d.astype(w.dtype), found, weights)


def to_inputs(layout: Layout, source: Lookup | Dense | None, d_gx: Array, dtype: Any) -> Any:
    """dgx handed on to what the inputs were made of."""
    if isinstance(source, Lookup):
        return Lookup(layout.sum_equal(source, d_gx), None)  # type: ignore[arg-type]
    if isinstance(source, Dense):
        d_xs = layout.back(d_gx, source.w_x).astype(source.xs.dtype)
        d_w_x = layout.outer(source.xs, d_gx).astype(source.w_x.dtype)
        return Dense(d_xs, d_w_x, layout.total(d_gx.astype(dtype)).astype(source.b.dtype))
    return layout.rows(d_gx).astype(dtype)


def forward_scan(
    cell: Any, layout: Layout, loop: Loop, weights: Any, inputs: Any, state: Any, masks: Masks
) -> tuple[Any, Any, tuple[Array, ...]]:
    """The final state, and for every step, in this layout, the state after it and its gates."""
    rules = RULES[type(cell)]
    if isinstance(inputs, Dense) and not _step_by_step(inputs.shape[1]):
        inputs = inputs.project()
    weights, fed, project = layout.prepare(weights, inputs, rules.joint)
    turn = partial(jax.tree.map, layout.turn)

    def body(state: Any, slices: Any) -> tuple[Any, tuple[Any, tuple[Array, ...]]]:
        x, (reset, active) = slices
        if reset is not None:
            zeros = jax.tree.map(jnp.zeros_like, state)
            state = _choose(layout.per_row(reset), zeros, state)
        after, gates = rules.forward(layout, cell, weights, *project(state, x))
        if active is not None:
            after = _choose(layout.per_row(active), after, state)
        return after, (after, gates)

    final, (states, gates) = lax.scan(body, turn(state), (fed, masks), **loop._asdict())
    return turn(final), states, gates


def before_each_step(layout: Layout, state: Any, states: Any, masks: Masks, reverse: bool) -> Any:
    """The state that went into each step: the one before it in the order taken, zeros at a reset."""

    def shift(first: Array, rest: Array) -> Array:
        first = layout.turn(first)[None]
        pieces = [rest[1:], first] if reverse else [first, rest[:-1]]
        shifted = jnp.concatenate(pieces)[: rest.shape[0]]
        if masks.reset is None:
            return shifted
        return jnp.where(jax.vmap(layout.per_row)(masks.reset), 0, shifted)

    return jax.tree.map(shift, state, states)


def outputs(layout: Layout, states: Any, masks: Masks) -> Array:
    ys = layout.turn(states.hidden)
    return ys if masks.active is None else jnp.where(masks.active[..., None], ys, 0)


def _choose(mask: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(mask, a, b), yes, no)


def _packed(x: Array) -> Array:
    """bfloat16 as its bits: XLA's CPU backend is slow to store bfloat16 in a loop."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _unpacked(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x
