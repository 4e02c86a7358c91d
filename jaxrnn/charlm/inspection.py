"""The activations of the units of a char-RNN while it reads a text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import charlm
from jaxrnn.devices import modes
from jaxrnn.errors import InputError
from jaxrnn.shapes import Array, Float, Int


@modes.fixed()
def activations(
    params: charlm.Params, text: str | bytes, record: Sequence[str] = ("hidden",)
) -> list[dict[str, Float[np.ndarray, "T H"]]]:
    """Return the activations of every unit at every character of a text, read from the zero state.

    Args:
      params: the model, as for `jaxrnn.sample`.
      text: at least one character; for a model of bytes any bytes.
      record: names of the activations to return: "i", "f", "g", "o", "cell" and "hidden" for an LSTM,
        "z", "r", "n" and "hidden" for a GRU, "hidden" for a plain RNN.

    Returns:
      For each layer, from the input upwards, a float32 array [T, H] for each name.

    Raises:
      InputError: for an empty text, and for characters that the model has never seen.
      ValueError: for a name that the cell cannot record.
    """
    if not text:
        raise InputError("the text is empty; give at least one character to read")
    tokens = jnp.asarray(params.vocabulary.encode(text), jnp.int32)[:, None]
    layers = _recorded(params, tokens, tuple(record))
    return [{name: np.asarray(a[:, 0]) for name, a in layer.items()} for layer in layers]


@partial(jax.jit, static_argnums=2)
def _recorded(
    params: charlm.Params, tokens: Int[Array, "T B"], names: tuple[str, ...]
) -> list[dict[str, Float[Array, "T B H"]]]:
    carry = charlm.initial_carry(params.config, tokens.shape[1])
    _, _, recorded = charlm.record(params, tokens, carry, names)
    return recorded
