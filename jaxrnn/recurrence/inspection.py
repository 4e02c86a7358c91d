"""How far back a cell's memory reaches (lecture row 4)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.api import unroll
from jaxrnn.recurrence.cells import Cell
from jaxrnn.recurrence.checks import check_lengths
from jaxrnn.recurrence.parameters import by_value
from jaxrnn.shapes import Array, Float, Given


def gradient_flow(
    cell: Cell, params: Any, xs: Float[Given, "T B D"], state: Any = None, **how: Any
) -> Float[Array, "T B"]:
    """How much of an input is left in the hidden state k steps later (lecture row 4).

        ||dh^T / dx^{T-k}||_F,    k = 0 ... T - 1

    the Frobenius norm of the Jacobian of the last hidden state by the input k steps before, of each row
    by itself. It falls by a factor with every step where gradients vanish, and grows where they explode.
    Takes H backward passes, side by side, and their memory: H arrays [T, B, D].

    Args:
      cell, params, xs, state: as for `jaxrnn.unroll`.
      how: what else `unroll` takes, as `resets` or `implementation`.

    Returns:
      [T, B]: its natural logarithm, by lag: 0 first. Minus infinity where nothing is left.
    """
    xs = jnp.asarray(xs)
    masks: dict[str, Any] = {name: how.pop(name, None) for name in ("resets", "lengths")}
    masks["lengths"] = check_lengths(masks["lengths"], xs)  # while their numbers are known
    run = _compiled_flow if by_value(cell) else _flow
    return run(cell, tuple(sorted(how.items())), params, xs, state, masks)


def _flow(
    cell: Cell,
    how: tuple[tuple[str, Any], ...],
    params: Any,
    xs: Float[Array, "T B D"],
    state: Any,
    masks: dict[str, Any],
) -> Float[Array, "T B"]:
    def last(xs: Array) -> Array:
        return unroll(cell, params, xs, state, **masks, **dict(how))[1][-1]

    hidden, back = jax.vjp(last, xs)
    rows = jnp.broadcast_to(
        jnp.expand_dims(jnp.eye(cell.hidden_size, dtype=hidden.dtype), 1),
        (cell.hidden_size, *hidden.shape),
    )
    jacobian = jax.vmap(back)(rows)[0].astype(jnp.float32)  # [H, T, B, D]
    largest = jnp.abs(jacobian).max((0, 3), keepdims=True)
    shares = jacobian / jnp.where(largest == 0, 1, largest)  # whose squares do not underflow
    return (jnp.log(largest[0, :, :, 0]) + 0.5 * jnp.log((shares**2).sum((0, 3))))[::-1]


_compiled_flow = jax.jit(_flow, static_argnums=(0, 1))
