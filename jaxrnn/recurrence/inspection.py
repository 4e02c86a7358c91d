"""The gradient flow of a cell, which shows how far back its memory reaches (lecture row 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.api import unroll
from jaxrnn.recurrence.cells import Cell
from jaxrnn.recurrence.checks import check_lengths
from jaxrnn.recurrence.kernels import Implementation
from jaxrnn.recurrence.parameters import by_value
from jaxrnn.shapes import Array, Bool, Float, Given, Integer


def gradient_flow(
    cell: Cell,
    params: Any,
    xs: Float[Given, "T B D"],
    state: Any = None,
    *,
    resets: Bool[Given, "T B"] | None = None,
    lengths: Integer[Given, "B"] | Sequence[int] | None = None,
    reverse: bool = False,
    implementation: Implementation | None = None,
) -> Float[Array, "T B"]:
    """Return how much of an input is left in the hidden state k steps later (lecture row 4).

        ln ||dh^T / dx^{T-k}||_F,    k = 0 ... T - 1

    is the logarithm of the Frobenius norm of the Jacobian of the last hidden state with respect to the
    input k steps before, for each row separately. The norm falls by a factor with every step where
    gradients vanish, and grows where they explode. This runs H backward passes side by side, and takes
    their memory: H arrays [T, B, D].

    Args:
      cell: as for `jaxrnn.unroll`.
      params: as for `jaxrnn.unroll`.
      xs: as for `jaxrnn.unroll`.
      state: as for `jaxrnn.unroll`.
      resets: as for `jaxrnn.unroll`.
      lengths: as for `jaxrnn.unroll`.
      reverse: as for `jaxrnn.unroll`.
      implementation: as for `jaxrnn.unroll`.

    Returns:
      [T, B]: the natural logarithm of the norm by lag, lag 0 first, minus infinity where nothing is
        left.

    Raises:
      ValueError: as `jaxrnn.unroll`.
    """
    xs = jnp.asarray(xs)
    # The range of lengths can be checked here, before they are traced.
    masks = {"resets": resets, "lengths": check_lengths(lengths, xs)}
    run = _compiled_flow if by_value(cell) else _flow
    return run(cell, reverse, implementation, params, xs, state, masks)


def _flow(
    cell: Cell,
    reverse: bool,
    implementation: Implementation | None,
    params: Any,
    xs: Float[Array, "T B D"],
    state: Any,
    masks: dict[str, Any],
) -> Float[Array, "T B"]:
    def last(xs: Array) -> Array:
        static: dict[str, Any] = {"reverse": reverse, "implementation": implementation}
        return unroll(cell, params, xs, state, **masks, **static)[1][-1]

    hidden, back = jax.vjp(last, xs)
    rows = jnp.broadcast_to(
        jnp.expand_dims(jnp.eye(cell.hidden_size, dtype=hidden.dtype), 1),
        (cell.hidden_size, *hidden.shape),
    )
    # [H, T, B, D]
    jacobian = jax.vmap(back)(rows)[0].astype(jnp.float32)
    largest = jnp.abs(jacobian).max((0, 3), keepdims=True)
    # The squares of these do not underflow.
    shares = jacobian / jnp.where(largest == 0, 1, largest)
    return (jnp.log(largest[0, :, :, 0]) + 0.5 * jnp.log((shares**2).sum((0, 3))))[::-1]


_compiled_flow = jax.jit(_flow, static_argnums=(0, 1, 2))
