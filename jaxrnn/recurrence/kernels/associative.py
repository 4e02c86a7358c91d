"""All steps at once, by an associative scan, of cells whose state is linear in its past.

Such a cell, minGRU for example, has a method `coefficients(params, gx) -> (a, b)` with

    h^t = a^t * h^{t-1} + b^t

where a and b do not depend on h. Two steps in a row are again such a step, (a2 a1, a2 b1 + b2), and so
`jax.lax.associative_scan` computes all T states in about 2 log2(T) passes over arrays [T, B, H]. The
backward pass is the same recurrence in the other direction:

    d_h^t = d_y^t + a^{t+1} * d_h^{t+1},    d_a^t = d_h^t * h^{t-1},    d_b^t = d_h^t

A reset sets a to 0, and in the padding a is 1 and b is 0.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxrnn.recurrence.kernels import passes
from jaxrnn.recurrence.kernels.passes import Passes
from jaxrnn.recurrence.problem import Problem, projected, vary
from jaxrnn.shapes import Array, Float


def unsupported_reason(problem: Problem) -> str | None:
    """Return why this cannot run a problem, or None where it can."""
    if not hasattr(problem.cell, "coefficients"):
        return f"the state of {problem.cell!r} is not linear in its past (it has no `coefficients`)"
    return None


def run(problem: Problem) -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state and the outputs [T, B, H]."""
    if not problem.steps or not problem.batch:
        return problem.no_steps()
    reset, active = problem.masks
    a, b = problem.cell.coefficients(problem.params, projected(problem.inputs))
    if reset is not None:
        a = jnp.where(reset[..., None], 0, a)
    if active is not None:
        a = jnp.where(active[..., None], a, 1)
        b = jnp.where(active[..., None], b, 0)
    (first,) = problem.state
    given = vary((a, b, first))
    states = passes.run(_PASSES, problem.reverse, None, *given)
    ys = states if active is None else jnp.where(active[..., None], states, 0)
    return type(problem.state)(states[0 if problem.reverse else -1]), ys


def _states(
    a: Float[Array, "T B H"], b: Float[Array, "T B H"], first: Float[Array, "B H"], reverse: bool
) -> Float[Array, "T B H"]:
    """Return h^t = a^t * h^{t-1} + b^t for every step; `first` is the state before the first step."""
    at = -1 if reverse else 0
    b = b.at[at].add(a[at] * first)
    return lax.associative_scan(_join, (a, b), reverse=reverse)[1]


def _join(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the step that has the effect of two steps in a row."""
    return earlier[0] * later[0], later[0] * earlier[1] + later[1]


def _forward(
    reverse: bool, keep: bool, _: None, a: Array, b: Array, first: Array
) -> tuple[Array, Array | None]:
    states = _states(a, b, first, reverse)
    return states, states if keep else None


def _backward(
    reverse: bool, _: None, given: Any, states: Array, d_states: Array
) -> tuple[Array, Array, Array]:
    a, _, first = given
    # The coefficient of the step that is run after each one; the last step has none after it.
    following = jnp.roll(a, 1 if reverse else -1, axis=0)
    d_b = _states(following, d_states, jnp.zeros_like(first), not reverse)
    at, back = (-1, -1) if reverse else (0, 1)
    before = jnp.roll(states, back, axis=0).at[at].set(first)
    return d_b * before, d_b, a[at] * d_b[at]


def _plain(reverse: bool, _: None, a: Array, b: Array, first: Array) -> Array:
    return _states(a, b, first, reverse)


_PASSES = Passes(_forward, _backward, _plain)
