"""Looking inside: how far back a network's memory reaches, and what its units do while it reads.

    gradient_flow(cell, params, xs)              # ln ||dh^T / dx^{T-k}|| for every lag k
    activations(params, "ROMEO:\\n")             # of a char-RNN, layer by layer

For the gates of a cell in a model of your own there is `jaxrnn.unroll(..., record=...)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import charlm, modes
from jaxrnn.cells import Cell
from jaxrnn.checks import check_lengths
from jaxrnn.errors import InputError
from jaxrnn.parameters import by_value
from jaxrnn.shapes import Array, Float, Given, Int
from jaxrnn.unroll import unroll


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
        jnp.expand_dims(jnp.eye(cell.hidden, dtype=hidden.dtype), 1), (cell.hidden, *hidden.shape)
    )
    jacobian = jax.vmap(back)(rows)[0].astype(jnp.float32)  # [H, T, B, D]
    largest = jnp.abs(jacobian).max((0, 3), keepdims=True)
    shares = jacobian / jnp.where(largest == 0, 1, largest)  # whose squares do not underflow
    return (jnp.log(largest[0, :, :, 0]) + 0.5 * jnp.log((shares**2).sum((0, 3))))[::-1]


_compiled_flow = jax.jit(_flow, static_argnums=(0, 1))


@modes.fixed()
def activations(
    params: charlm.Params, text: str | bytes, record: Sequence[str] = ("hidden",)
) -> list[dict[str, np.ndarray]]:
    """What every unit of a char-RNN does at every character of a text it reads from the zero state.

    Args:
      params: from `jaxrnn.load(run)`, `jaxrnn.init(...)` or training.
      text: at least one character, or any bytes for a model of bytes.
      record: names of the cell's `activations`, as for `jaxrnn.unroll`.

    Returns:
      For each layer, from the input upwards, an array [T, H] float32 by name.

    Raises:
      InputError: for an empty text, or characters that the model has never seen.
      ValueError: for a name that the cell cannot record.
    """
    if not text:
        raise InputError("the text is empty; give at least one character to read")
    tokens = jnp.asarray(params.vocabulary.encode(text), jnp.int32)[:, None]
    layers = _read(params, tokens, tuple(record))
    return [{name: np.asarray(a[:, 0]) for name, a in layer.items()} for layer in layers]


@partial(jax.jit, static_argnums=2)
def _read(
    params: charlm.Params, tokens: Int[Array, "T B"], record: tuple[str, ...]
) -> list[dict[str, Array]]:
    carry = charlm.initial_carry(params.config, tokens.shape[1])
    return charlm.forward(params, tokens, carry, record=record)[2]
