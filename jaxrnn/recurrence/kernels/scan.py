"""`jax.lax.scan` over `cell.step`: any cell, any derivative, and the reference for the other kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.recurrence.problem import Problem, check_output, choose_rows, projected
from jaxrnn.shapes import Array, Float


def unsupported_reason(problem: Problem) -> str | None:
    """Return None, since this runs every problem."""
    return None


def run(problem: Problem) -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state and the outputs [T, B, H]."""
    return _scan(problem, None)


def record(
    problem: Problem, names: Sequence[str]
) -> tuple[Any, tuple[Float[Array, "T B H"], dict[str, Float[Array, "T B _"]]]]:
    """Return the final state, and the outputs with the cell's `activations` of these names."""
    return _scan(problem, names)


def _scan(problem: Problem, names: Sequence[str] | None) -> tuple[Any, Any]:
    cell, params = problem.cell, problem.params

    def body(state: Any, slices: Any) -> tuple[Any, Any]:
        gx_t, (reset, active) = slices
        if reset is not None:
            state = choose_rows(reset, jax.tree.map(jnp.zeros_like, state), state)
        after, y = cell.step(params, state, gx_t)
        check_output(cell, y, gx_t)
        out: Any = y
        if names is not None:
            now = cell.activations(params, state, gx_t)
            out = y, {name: now[name] for name in names}
        if active is not None:
            after = choose_rows(active, after, state)
            out = choose_rows(active, out, jax.tree.map(jnp.zeros_like, out))
        return after, out

    over_time = projected(problem.inputs), problem.masks
    return lax.scan(body, problem.state, over_time, reverse=problem.reverse)
