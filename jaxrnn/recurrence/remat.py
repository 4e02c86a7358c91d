"""A recurrence that keeps every k-th state for the backward pass and recomputes the steps in between."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.recurrence.linalg import wide
from jaxrnn.recurrence.problem import Dense, Inputs, Lookup, Problem
from jaxrnn.shapes import Array


def in_stretches(run: Any, every: int, problem: Problem) -> tuple[Any, Any]:
    """Return run(problem), computed in stretches of `every` steps that the backward pass runs again.

    The parameters that all stretches share enter the loop in the wide dtype and are cast back inside,
    because the loop adds up their gradients in the dtype in which they enter.
    """
    slices, constant, join = _split_inputs(problem.inputs)
    shared = problem.params, constant

    @jax.checkpoint
    def stretch(state: Any, shared_wide: Any, now: Any) -> tuple[Any, Any]:
        slices, masks = now
        params, constant = jax.tree.map(_as, shared_wide, shared)
        inputs = join(slices, constant)
        return run(problem._replace(params=params, inputs=inputs, state=state, masks=masks))

    over_time = slices, problem.masks
    shared_wide = jax.tree.map(_widened, shared)
    count, left = divmod(problem.steps, every)
    cut = count * every

    def stretches(state: Any) -> tuple[Any, Any]:
        blocks = jax.tree.map(lambda a: a[:cut].reshape(count, every, *a.shape[1:]), over_time)
        state, out = lax.scan(
            lambda state, now: stretch(state, shared_wide, now),
            state,
            blocks,
            reverse=problem.reverse,
        )
        return state, jax.tree.map(lambda a: a.reshape(cut, *a.shape[2:]), out)

    def remainder(state: Any) -> tuple[Any, Any]:
        return stretch(state, shared_wide, jax.tree.map(lambda a: a[cut:], over_time))

    if not left or not count:
        return (stretches if count else remainder)(problem.state)
    if problem.reverse:
        state, late = remainder(problem.state)
        state, early = stretches(state)
    else:
        state, early = stretches(problem.state)
        state, late = remainder(state)
    return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), early, late)


def _split_inputs(inputs: Inputs) -> tuple[Array, tuple[Array, ...], Any]:
    """Split inputs into a per-step part, a constant part, and a function that recombines them."""
    if isinstance(inputs, Lookup):
        return inputs.tokens, (inputs.table,), lambda tokens, constant: Lookup(constant[0], tokens)
    if isinstance(inputs, Dense):
        return inputs.xs, (inputs.w_x, inputs.b), lambda xs, constant: Dense(xs, *constant)
    return inputs, (), lambda gx, _: gx


def _widened(a: Array) -> Array:
    return a.astype(wide(a.dtype)) if jnp.issubdtype(a.dtype, jnp.floating) else a


def _as(a: Array, like: Array) -> Array:
    return a if a.dtype == like.dtype else a.astype(like.dtype)
