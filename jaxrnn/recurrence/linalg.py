"""Matrix products and sums in the dtypes of a recurrence.

Parameters may be float32, bfloat16, float16 or float64. Products take their operands in the parameters'
dtype and accumulate in float32 or wider; states, gates and projected inputs have that wider dtype.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxrnn.shapes import Array, Float


def wide(dtype: Any) -> Any:
    """Return the dtype of states and sums beside parameters of `dtype`: float32, or float64.

    Raises:
      ValueError: for a dtype that is not one of floats.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"the dtype must be one of floats, such as float32, not {dtype}")
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def product(x: Float[Array, "... K"], w: Float[Array, "K N"]) -> Float[Array, "... N"]:
    """Return x @ w, with the operands in w's dtype and the sum in the wide dtype."""
    return jnp.matmul(x.astype(w.dtype), w, preferred_element_type=wide(w.dtype))


def add(x: Float[Array, "... N"], b: Float[Array, "N"]) -> Float[Array, "... N"]:
    """Return x + b, with the vector b in x's dtype."""
    return x + jnp.expand_dims(b.astype(x.dtype), tuple(range(x.ndim - 1)))


def split_gates(gates: Float[Array, "... G"], count: int) -> list[Array]:
    """Return the gates, which lie side by side in the last axis, as `count` arrays [..., H]."""
    return jnp.split(gates, count, axis=-1)


def vectors(w: Float[Array, "K H"], axes: int) -> list[Array]:
    """Return the rows of w in the wide dtype, each broadcastable to a state with `axes` axes."""
    parts = jnp.split(w.astype(wide(w.dtype)), w.shape[0])
    return [part.reshape((1,) * (axes - 1) + part.shape[1:]) for part in parts]
