"""The steps that are padding, and zeros where an array must have no effect.

Masks alone do not suffice for gradients: 0 times a masked NaN is NaN.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.problem import Dense, Lookup, Problem, choose_rows
from jaxrnn.shapes import Array, Bool, Float, Int


def active_steps(lengths: Int[Array, "B"], steps: Any) -> Bool[Array, "T B"]:
    """Return whether step t of row b is a real step and not padding, for T = `steps`."""
    return jnp.arange(steps, dtype=jnp.int32)[:, None] < lengths[None, :]


def without_effect(problem: Problem, lengths: Int[Array, "B"] | None) -> Problem:
    """Return the problem with zeros in the inputs of the padding and in states that no step sees."""
    inputs, state, masks, reverse = problem.inputs, problem.state, problem.masks, problem.reverse
    if not problem.steps:
        return problem
    # The rows whose first state no step sees.
    unused = None
    if masks.reset is not None:
        unused = masks.reset[-1 if reverse else 0]
        if reverse and lengths is not None:
            last = jnp.maximum(lengths - 1, 0)
            unused = jnp.take_along_axis(masks.reset, last[None], axis=0)[0]
    if lengths is not None:
        unused = lengths == 0 if unused is None else unused | (lengths == 0)
    if unused is not None:
        state = choose_rows(unused, jax.tree.map(jnp.zeros_like, state), state)
    if isinstance(inputs, Dense):
        xs = zeros_in_padding(inputs.xs, masks.active, problem.batch_first)
        inputs = inputs._replace(xs=xs)
    elif isinstance(inputs, Lookup):
        inputs = _zeros_where_unread(inputs, masks.active)
    else:
        inputs = zeros_in_padding(inputs, masks.active, problem.batch_first)
    return problem._replace(inputs=inputs, state=state)


def zeros_in_padding(
    x: Float[Array, "T B K"], active: Bool[Array, "T B"] | None, batch_first: bool = False
) -> Float[Array, "T B K"]:
    """Return the array with zeros in the padding.

    Args:
      x: the array.
      active: from `active_steps`; None without padding.
      batch_first: as for `Problem`.
    """
    if active is None:
        return x
    if batch_first:
        # XLA cancels swapped axes that follow each other, but not those before and after `where`.
        return jnp.where(active.swapaxes(0, 1)[..., None], x.swapaxes(0, 1), 0).swapaxes(0, 1)
    return jnp.where(active[..., None], x, 0)


def _zeros_where_unread(lookup: Lookup, active: Bool[Array, "T B"] | None) -> Lookup:
    """Return the table with zeros in the rows that no token outside the padding refers to."""
    if active is None:
        return lookup
    read = jnp.zeros_like(lookup.table, bool, shape=lookup.table.shape[:1])
    read = read.at[lookup.tokens].max(active)
    return lookup._replace(table=jnp.where(read[:, None], lookup.table, 0))
