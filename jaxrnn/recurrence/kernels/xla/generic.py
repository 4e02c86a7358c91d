"""A cell of any kind over time in plain XLA, with a backward pass made from its `step`.

JAX's own derivative of a scan adds up the gradients of the parameters inside the reverse loop, once per
step. Here, as for the cells with rules of their own (`loops`), the reverse loop runs only the recurrent
chain: the transpose of the linearized step, from the state after it to the state before it. The
gradients of the parameters are computed after the loop, for all steps at once, so that the gradient of a
weight matrix is one large product.

    forward     (state, y)^t = step(state^{t-1}, gx^t), linearized at every step
    chain       d_state^{t-1}, d_gx^t = transpose of the linearized step (d_state^t, d_y^t)
    after it    d_params = transpose of params -> (state, y)^t of all t, applied to (d_state^t, d_y^t)

What the linearized steps keep of the parameters alone, such as W_h, is computed once, not per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Var

from jaxrnn.recurrence.kernels import passes
from jaxrnn.recurrence.kernels.passes import Passes
from jaxrnn.recurrence.kernels.rows import unroll_by_rows
from jaxrnn.recurrence.kernels.xla.layouts import Rows
from jaxrnn.recurrence.kernels.xla.loops import to_inputs
from jaxrnn.recurrence.problem import Inputs, Masks, Problem, check_output, choose_rows, vary
from jaxrnn.shapes import Array, Float


def unsupported_reason(problem: Problem) -> str | None:
    """Return why a cell that is not of this library cannot run here, or None where it can."""
    cell, params = problem.cell, problem.params
    try:
        hash(cell)
    except TypeError:
        return f"{type(cell).__name__} is not hashable; use 'scan'"
    state = jax.eval_shape(lambda: cell.initial_state(problem.batch))
    leaves = jax.tree.leaves((params, state))
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        return f"{type(cell).__name__} has parameters or states that are not floats; use 'scan'"
    if any(leaf.shape[:1] != (problem.batch,) for leaf in jax.tree.leaves(state)):
        return f"the states of {type(cell).__name__} are not all of shape [B, ...]; use 'scan'"
    return None


def run(problem: Problem, unroll: int) -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state and the outputs [T, B, H].

    Args:
      problem: of any cell that `unsupported_reason` accepts.
      unroll: number of time steps in one iteration of the loops.
    """
    static = problem.cell, problem.reverse, unroll
    arrays = problem.params, problem.inputs, problem.state, problem.masks
    return unroll_by_rows(_run, static, *vary(arrays))


def _run(
    cell: Any, reverse: bool, unroll: int, params: Any, inputs: Inputs, state: Any, masks: Masks
) -> tuple[Any, Array]:
    return passes.run(_PASSES, (cell, reverse, unroll), masks, params, inputs, state)


class _Linearization(NamedTuple):
    """The linearized step as a pytree.

    Attributes:
      tree: its structure.
      by_step: for each of its arrays, whether it depends on the state or the input of the step.
    """

    tree: Any
    by_step: tuple[bool, ...]

    def of_step(self, linear: Any) -> list[Array]:
        """Return the arrays that each step has of its own."""
        return [a for a, own in zip(jax.tree.leaves(linear), self.by_step, strict=True) if own]

    def constant(self, linear: Any) -> list[Array]:
        """Return the arrays that all steps share."""
        return [a for a, own in zip(jax.tree.leaves(linear), self.by_step, strict=True) if not own]

    def join(self, constant: Sequence[Array], of_step: Sequence[Array]) -> Any:
        """Return the linearized step: a function of the tangents of params, state and gx."""
        parts = iter(constant), iter(of_step)
        return jax.tree.unflatten(self.tree, [next(parts[own]) for own in self.by_step])


def _linearize(cell: Any, params: Any, state: Any, gx: Array) -> tuple[Any, Any]:
    """Return (state, y) after a step, and the step's linearization at these arguments."""
    return jax.linearize(cell.step, params, state, gx)


def _linearization(cell: Any, params: Any, state: Any, gx: Array) -> _Linearization:
    """Trace a step to find which arrays of its linearization differ between steps."""
    tree: Any = None

    def arrays(params: Any, state: Any, gx: Array) -> list[Array]:
        nonlocal tree
        leaves, tree = jax.tree.flatten(_linearize(cell, params, state, gx)[1])
        return leaves

    jaxpr = jax.make_jaxpr(arrays)(params, state, gx).jaxpr
    own = set(jaxpr.invars[len(jax.tree.leaves(params)) :])
    for equation in jaxpr.eqns:
        if any(isinstance(v, Var) and v in own for v in equation.invars):
            own.update(equation.outvars)
    by_step = (isinstance(v, Var) and v in own for v in jaxpr.outvars)
    return _Linearization(tree, tuple(by_step))


def _forward(
    static: Any, keep: bool, masks: Masks, params: Any, inputs: Inputs, state: Any
) -> tuple[tuple[Any, Array], list[Array] | None]:
    cell, reverse, unroll = static
    _, fed, project = Rows.prepare(None, inputs, joint=False)
    first = jax.tree.map(lambda a: a[0], fed)
    linearization = _linearization(cell, params, state, project(None, first)[1]) if keep else None

    def body(before: Any, slices: Any) -> tuple[Any, tuple[Array, list[Array] | None]]:
        x, (reset, active) = slices
        if reset is not None:
            before = choose_rows(reset, jax.tree.map(jnp.zeros_like, before), before)
        gx = project(None, x)[1]
        if linearization is None:
            (after, y), kept = cell.step(params, before, gx), None
        else:
            (after, y), linear = _linearize(cell, params, before, gx)
            kept = linearization.of_step(linear)
        check_output(cell, y, gx)
        if active is not None:
            after = choose_rows(active, after, before)
            y = choose_rows(active, y, jnp.zeros_like(y))
        return after, (y, kept)

    final, (ys, kept) = lax.scan(body, state, (fed, masks), reverse=reverse, unroll=unroll)
    return (final, ys), kept


def _backward(
    static: Any, masks: Masks, given: Any, residuals: list[Array], cotangents: tuple[Any, Array]
) -> tuple[Any, Any, Any]:
    (cell, reverse, unroll), (params, inputs, state) = static, given
    d_final, d_ys = cotangents
    _, fed, project = Rows.prepare(None, inputs, joint=False)
    gx = project(None, jax.tree.map(lambda a: a[0], fed))[1]
    linearization = _linearization(cell, params, state, gx)
    # Only arrays that depend on the parameters alone are used, so any state and input will do.
    constant = linearization.constant(_linearize(cell, params, state, gx)[1])

    def chain(d_state: Any, slices: Any) -> tuple[Any, Any]:
        kept, d_y, (reset, active) = slices
        d_after = d_state
        if active is not None:
            d_after = choose_rows(active, d_after, jax.tree.map(jnp.zeros_like, d_after))
            d_y = choose_rows(active, d_y, jnp.zeros_like(d_y))
        linear = linearization.join(constant, kept)
        transposed = jax.linear_transpose(linear, params, state, gx)
        _, d_before, d_gx = transposed((d_after, d_y))
        if active is not None:
            d_before = choose_rows(active, d_before, d_state)
        if reset is not None:
            d_before = choose_rows(reset, jax.tree.map(jnp.zeros_like, d_before), d_before)
        return d_before, (d_gx, (d_after, d_y))

    slices = residuals, d_ys, masks
    d_state, (d_gx, d_results) = lax.scan(
        chain, d_final, slices, reverse=not reverse, unroll=unroll
    )

    def by_parameters(d_params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, (state, gx))
        linear = partial(linearization.join, constant)
        return jax.vmap(lambda kept: linear(kept)(d_params, *zeros))(residuals)

    (d_params,) = jax.linear_transpose(by_parameters, params)(d_results)
    return d_params, to_inputs(Rows, inputs, d_gx, inputs.dtype), d_state


def _plain(static: Any, masks: Masks, params: Any, inputs: Inputs, state: Any) -> Any:
    return _forward(static, False, masks, params, inputs, state)[0]


_PASSES = Passes(_forward, _backward, _plain)
