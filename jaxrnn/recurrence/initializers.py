"""Initial weights that are bit-identical on every machine."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.shapes import Array, Float, Key


@partial(jax.jit, static_argnums=(1, 2))
def orthogonal(key: Key, shape: tuple[int, int], dtype: Any) -> Float[Array, "H H"]:
    """Return a random orthogonal matrix [H, H], bit-identical for any number of cores.

    The identity passes through 4 log2(H) rounds. Each rotates every row of the first half and its
    partner in the second half by a random angle, and interleaves the halves. After log2(H) rounds
    every row holds a part of every other, and after four times as many the entries are distributed
    like those of the QR decomposition of a normal matrix. LAPACK's QR is not used, because it divides
    its sums among the cores, and so rounds them differently on another machine.
    """
    size, _ = shape
    half = size // 2
    points = jax.random.normal(key, (4 * (size - 1).bit_length(), 2, half, 1), dtype)
    # Cosines and sines.
    turns = points / jnp.sqrt((points**2).sum(1, keepdims=True))

    def turn(q: Array, turns: Array) -> tuple[Array, None]:
        c, s = turns
        first, second, odd = jnp.split(q, [half, 2 * half])
        turned = jnp.stack([c * first - s * second, s * first + c * second], axis=1)
        return jnp.concatenate([odd, turned.reshape(2 * half, size)]), None

    return lax.scan(turn, jnp.eye(size, dtype=dtype), turns)[0]
