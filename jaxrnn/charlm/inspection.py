"""What the units of a char-RNN do while it reads a text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import charlm
from jaxrnn.devices import modes
from jaxrnn.errors import InputError
from jaxrnn.shapes import Array, Int


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
