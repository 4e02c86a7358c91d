"""Tasks that need a memory: adding, temporal order, copying. Every batch is new.

The first two are from Hochreiter & Schmidhuber (1997), the third in the form that is common since
(Arjovsky et al. 2016), with half as many symbols. `long_memory` describes them.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Different symbols of the copy task, and how many of them are copied.
SYMBOLS = 8
COPIED = 5


def two_steps(key: Any, length: int, rows: int) -> Any:
    """Return [2, T, B] bool, true at a random step of the first half and at one of the second."""
    keys = jax.random.split(key)
    first = jax.random.randint(keys[0], (rows,), 0, length // 2)
    second = jax.random.randint(keys[1], (rows,), length // 2, length)
    return jnp.arange(length)[None, :, None] == jnp.stack([first, second])[:, None]


def adding(key: Any, length: int, rows: int) -> tuple[Any, Any]:
    """Return numbers and markers [T, B, 2], and the sum [B] of the two marked numbers."""
    keys = jax.random.split(key)
    numbers = jax.random.uniform(keys[0], (length, rows))
    marks = two_steps(keys[1], length, rows).any(0).astype(numbers.dtype)
    return jnp.stack([numbers, marks], axis=-1), (numbers * marks).sum(0)


def order(key: Any, length: int, rows: int) -> tuple[Any, Any]:
    """Return one-hot X, Y and distractors [T, B, 6], and which of XX, XY, YX, YY it was [B]."""
    keys = jax.random.split(key, 3)
    noise = jax.random.randint(keys[0], (length, rows), 2, 6)
    shown = jax.random.randint(keys[1], (2, rows), 0, 2)
    at_first, at_second = two_steps(keys[2], length, rows)
    symbols = jnp.where(at_first, shown[:1], jnp.where(at_second, shown[1:], noise))
    return jax.nn.one_hot(symbols, 6), 2 * shown[0] + shown[1]


def copy(key: Any, length: int, rows: int) -> tuple[Any, Any]:
    """Return one-hot symbols, blank and cue [T + 10, B, 10], and the wanted outputs [T + 10, B]."""
    symbols = jax.random.randint(key, (COPIED, rows), 0, SYMBOLS)
    blanks = jnp.full((length + COPIED, rows), SYMBOLS)
    shown = jnp.concatenate([symbols, blanks.at[length - 1].set(SYMBOLS + 1)])
    return jax.nn.one_hot(shown, SYMBOLS + 2), jnp.concatenate([blanks, symbols])


def squares(outputs: Any, sums: Any) -> Any:
    """Return the squared errors [B] of the last outputs."""
    return (outputs[-1, :, 0] - sums) ** 2


def entropy(outputs: Any, classes: Any) -> Any:
    """Return the cross-entropies [B] of the last outputs."""
    return entropies(outputs[-1], classes)


def copy_baseline(length: int) -> float:
    """Return the loss of copying without a memory."""
    return COPIED * math.log(SYMBOLS) / (length + 2 * COPIED)


# Cross-entropies [T, B] of all outputs.
entropies = optax.softmax_cross_entropy_with_integer_labels
