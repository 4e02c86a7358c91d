"""Random masks: dropout of outputs and of recurrent weights, and zoneout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.layers.architecture import Architecture, StackedParams
from jaxrnn.recurrence.linalg import wide
from jaxrnn.shapes import Array, Bool, Float, Key

# The number of values of the 32 random bits that decide about an element.
_WORDS = 2**32


def dropout(
    x: Float[Array, "..."], rate: float, key: Key, *, variational: bool = False
) -> Float[Array, "..."]:
    """Set each element of x to 0 with probability `rate` and scale the others to keep the mean.

    Args:
      x: the array; with `variational` its first axis is time.
      rate: from 0 to below 1.
      key: PRNG key of the mask.
      variational: whether all steps share one mask (Gal & Ghahramani 2016).
    """
    shape = (1, *x.shape[1:]) if variational else x.shape
    kept = _words(1 - rate)
    # The product is rounded to x's dtype, its factor is not: in bfloat16 that would shift the mean.
    broad = wide(x.dtype)
    scaled = x.astype(broad) * jnp.asarray(_WORDS / kept, broad)
    return jnp.where(_below(kept, shape, key), scaled.astype(x.dtype), 0)


def dropout_weights(params: Any, rate: float, key: Key) -> Any:
    """Return a cell's parameters with a part of the recurrent weights dropped (Merity et al. 2018).

    Raises:
      ValueError: for parameters without recurrent weights w_h.
    """
    check_recurrent_weights(params)
    return params._replace(w_h=dropout(params.w_h, rate, key))


def check_recurrent_weights(params: Any) -> None:
    """Raise ValueError for a cell's parameters without recurrent weights w_h."""
    if getattr(params, "w_h", None) is None:
        raise ValueError(
            f"`weight_dropout` drops recurrent weights w_h, and {type(params).__name__} has none: set "
            "it to 0 for this cell"
        )


def zoneout_masks(
    rates: Sequence[float], state: Any, steps: int, key: Key
) -> tuple[Float[Array, "T B _"], ...]:
    """Return for each array of a state which units keep their old value at which step, as 0 or 1.

    Args:
      rates: for each array the probability to keep a unit's old value.
      state: a state, each array [B, H].
      steps: T.
      key: PRNG key of the masks.

    Returns:
      An array [T, B, H] for each array of the state, in its dtype.
    """
    masks = []
    for index, (rate, leaf) in enumerate(zip(rates, jax.tree.leaves(state), strict=True)):
        shape = steps, *leaf.shape
        keep = jnp.zeros(shape, leaf.dtype)
        if rate:
            keep = _below(_words(rate), shape, jax.random.fold_in(key, index)).astype(leaf.dtype)
        masks.append(keep)
    return tuple(masks)


def _words(probability: float) -> int:
    """Return how many of the 2^32 random words stand for "yes"; neither none nor all."""
    return min(max(round(probability * _WORDS), 1), _WORDS - 1)


def _below(words: int, shape: tuple[int, ...], key: Key) -> Bool[Array, "..."]:
    """Return random truth values, true with probability words / 2^32."""
    return jax.random.bits(key, shape, jnp.uint32) < jnp.uint32(words)


def with_weights_dropped(
    net: Architecture, params: StackedParams, key: Key | None
) -> StackedParams:
    """Return the parameters with a part of the recurrent weights dropped, by a mask per pseudo-layer."""
    if key is None or not net.weight_dropout:
        return params
    # The keys after those of the dropped outputs of the layers.
    cells = (
        dropout_weights(layer, net.weight_dropout, jax.random.fold_in(key, net.layers + number))
        for number, layer in enumerate(params.cells)
    )
    return params._replace(cells=tuple(cells))
