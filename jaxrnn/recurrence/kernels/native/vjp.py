"""A cell over time on a CPU, in C++: each core takes rows of the batch through all of time on its own.

XLA's loop multiplies small matrices on one core, writes every intermediate of a step to memory, and
packs the weights again at each step. Here they are packed once per call, the gates are applied to a
product while it is in the first-level cache, and no core waits for another. With too few rows for all
cores, the cores share the units instead, and synchronise after each step. The C++ (recurrence.cc,
called through XLA's foreign function interface, on XLA's threads) is compiled once on the machine that
runs it (`build`).

As in `kernels.xla` the forward pass keeps the states and the activated gates, the backward pass runs the
recurrent chain alone,

    dgx^t = d(gates' inputs),    dh^{t-1} = dgx^t W_h^T + elementwise terms

and dW_h, dW_x, db and dx are large products over all T B rows after it. Second derivatives are those of
`kernels.xla`, which computes the gradients again for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp

from jaxrnn.recurrence import equations
from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels import passes, xla
from jaxrnn.recurrence.kernels.native import calls
from jaxrnn.recurrence.kernels.native.build import LIBRARY
from jaxrnn.recurrence.kernels.native.calls import Static
from jaxrnn.recurrence.kernels.passes import Passes
from jaxrnn.recurrence.kernels.rows import unroll_by_rows
from jaxrnn.recurrence.kernels.xla.rules import unsupported_cell
from jaxrnn.recurrence.problem import Dense, Inputs, Lookup, Masks, Problem, Residuals, vary
from jaxrnn.shapes import Array, Float


def unsupported_reason(problem: Problem) -> str | None:
    """Return why this cannot run a problem, or None where it can. The first call compiles the C++."""
    if reason := unsupported_cell(problem.cell):
        return reason
    if problem.dtype == jnp.float64:
        return f"its C++ has no sums wider than float32 for {problem.dtype}; use 'xla'"
    return LIBRARY.unavailable_reason


def run(problem: Problem) -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state and the outputs [T, B, H] in float32."""
    inputs, weights = problem.inputs, problem.recurrent_params
    if not problem.steps or not problem.batch:
        return problem.no_steps()
    narrow = problem.dtype == jnp.bfloat16
    if isinstance(inputs, Dense) and not (
        inputs.xs.shape[-1] and (inputs.w_x.dtype == jnp.bfloat16) == narrow
    ):
        inputs = inputs.project()
    # What is narrower than float32 is widened, but for what is multiplied as bfloat16.
    narrow_names = ("w_h", "w_x", "xs") if narrow else ()
    weights, inputs = (_widened(tree, narrow_names) for tree in (weights, inputs))
    arrays = vary((weights, inputs, problem.state, problem.masks))
    static = Static(problem.cell, problem.reverse, problem.batch_first, narrow)
    final, ys = unroll_by_rows(_run, (static,), *arrays)
    # Of bfloat16 inputs the C++ returns bfloat16 outputs. Where they are used as such, XLA leaves the
    # conversion out.
    return final, ys.astype(jnp.float32)


def _widened(arrays: Any, but: Sequence[str]) -> Any:
    """Return a named tuple of arrays, or an array, with floats as float32 but for the fields named."""
    if isinstance(arrays, tuple):
        fields = zip(arrays._fields, arrays, strict=True)  # type: ignore[attr-defined]
        return type(arrays)(*(a if name in but else _widened(a, but) for name, a in fields))
    if arrays is None or not jnp.issubdtype(arrays.dtype, jnp.floating):
        return arrays
    return arrays.astype(jnp.float32)


def _run(
    static: Static, weights: Any, inputs: Inputs, state: Any, masks: Masks
) -> tuple[Any, Array]:
    return passes.run(_PASSES, static, masks, weights, inputs, state)


def _forward(
    static: Static, keep: bool, masks: Masks, weights: Any, inputs: Inputs, state: Any
) -> tuple[tuple[Any, Array], Residuals | None]:
    final, ys, residuals = calls.forward(static, weights, inputs, state, masks, keep)
    return (final, ys), residuals


def _backward(
    static: Static, masks: Masks, given: Any, residuals: Residuals, cotangents: tuple[Any, Array]
) -> tuple[Any, Any, Any]:
    """Return the derivatives with respect to the weights, the inputs and the first state."""
    weights, inputs, _ = given
    d_gx, d_q, d_state = calls.backward(static, weights, masks, residuals, *cotangents)
    d_weights = _weight_gradients(static, weights, residuals, d_gx, d_q)
    d_inputs = _input_gradients(static, inputs, d_gx)
    if static.narrow:
        d_weights = d_weights._replace(w_h=d_weights.w_h.astype(jnp.bfloat16))
        if isinstance(d_inputs, Dense):
            d_inputs = d_inputs._replace(w_x=d_inputs.w_x.astype(jnp.bfloat16))
    return d_weights, d_inputs, d_state


def _plain(static: Static, masks: Masks, weights: Any, inputs: Inputs, state: Any) -> Any:
    final, ys = xla.run(Problem(static.cell, weights, inputs, state, masks, static.reverse))
    return final, ys.astype(inputs.xs.dtype if isinstance(inputs, Dense) else jnp.float32)


_PASSES = Passes(_forward, _backward, _plain)


def _weight_gradients(
    static: Static, weights: Any, residuals: Residuals, d_gx: Array, d_q: Array | None
) -> Any:
    outer, cell = partial(calls.outer, static), static.cell
    size, hidden = cell.hidden_size, residuals.previous_hidden
    if cell.kind is CellKind.GRU_BEFORE:
        d_zr, _ = outer(hidden, d_gx, slice(0, 2 * size))
        d_n, _ = outer(residuals.reset_hidden, d_gx, slice(2 * size, None))
        return weights._replace(w_h=jnp.concatenate([d_zr, d_n], axis=1))
    if cell.kind is CellKind.GRU_AFTER:
        assert d_q is not None
        d_zr, _ = outer(hidden, d_gx, slice(0, 2 * size))
        d_n, d_b_h = outer(hidden, d_q)
        return weights._replace(w_h=jnp.concatenate([d_zr, d_n], axis=1), b_h=d_b_h)
    d_weights = weights._replace(w_h=outer(hidden, d_gx)[0])
    if cell.kind is CellKind.LSTM and cell.peephole:
        d_i, d_f, _, d_o = jnp.split(d_gx, 4, axis=-1)
        before = residuals.previous_cell
        after = equations.lstm_cell(jnp.split(residuals.gates, 4, axis=-1), before)
        seen = (before, d_i), (before, d_f), (after, d_o)
        d_weights = d_weights._replace(w_c=jnp.stack([(c * d).sum((0, 1)) for c, d in seen]))
    return d_weights


def _input_gradients(static: Static, inputs: Inputs, d_gx: Array) -> Any:
    if isinstance(inputs, Lookup):
        d_table = calls.sum_equal(static, inputs.tokens, d_gx, inputs.table.shape[0])
        return Lookup(d_table, None)  # type: ignore[arg-type]
    if isinstance(inputs, Dense):
        d_xs = calls.back(static, d_gx, inputs.w_x, inputs.xs.dtype)
        return Dense(d_xs, *calls.outer(static, inputs.xs, d_gx))
    return d_gx
