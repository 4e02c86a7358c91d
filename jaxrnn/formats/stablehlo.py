"""The sampling function of a char-RNN as a file of StableHLO, which JAX runs without jaxrnn.

    write(params, "model.stablehlo")
    sampler = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    text = sampler.call(text, given, seed, temperature, top_p, top_k)

The arguments are those of `sampler`, and the README of this folder has the program that calls it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxrnn import charlm
from jaxrnn.charlm.decoder import TEMPERATURE_RANGE
from jaxrnn.charlm.decoding import TracedOptions, advance, initial_state
from jaxrnn.data.vocabulary import Vocabulary, code_points
from jaxrnn.devices import modes
from jaxrnn.devices.storage import atomic_write
from jaxrnn.errors import InputError
from jaxrnn.shapes import Array

# The platforms that the file holds the program for.
PLATFORMS = ("cpu", "cuda", "tpu")

Sampler = Callable[[Array, Array, Array, Array, Array, Array], Array]


@modes.fixed()
def write(params: charlm.Params, path: str | os.PathLike[str]) -> None:
    """Write the sampling function of a model to a file, for the platforms cpu, cuda and tpu.

    The file is what `jax.export` serializes. It holds the parameters and the vocabulary, and the length
    of the text is a symbol, so that one file serves texts of every length.

    Args:
      params: the model.
      path: the file. It is replaced as a whole or not at all.

    Raises:
      InputError: if flatbuffers is not installed.
      OSError: if the file cannot be written.
    """
    require_flatbuffers()
    atomic_write(Path(path), bytes(exported(params).serialize()))


def require_flatbuffers() -> None:
    """Raise InputError if flatbuffers, with which JAX writes such files, is not installed."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise InputError('writing StableHLO needs: pip install "jaxrnn[stablehlo]"') from None


@modes.fixed()
def exported(params: charlm.Params) -> export.Exported:
    """Return the program that `write` serializes."""
    (size,) = export.symbolic_shape("N")
    kinds = (jnp.int32, jnp.uint32, jnp.float32, jnp.float32, jnp.int32)
    scalars = [jax.ShapeDtypeStruct((), kind) for kind in kinds]
    text = jax.ShapeDtypeStruct((size,), jnp.int32)
    return export.export(jax.jit(sampler(params)), platforms=PLATFORMS)(text, *scalars)


def sampler(params: charlm.Params) -> Sampler:
    """Return the function that the file holds.

    It has these arguments, and returns the text [N] int32 with all places filled:

      text: [N] int32, the Unicode code points of the prime, then anything; bytes for a model of bytes,
        and tokens, the numbers 0 to V - 1, for a vocabulary with a pattern.
      given: int32, the length of the prime, from 1 to N.
      seed: uint32.
      temperature: float32, at least 0; 0 takes the most likely character.
      top_p: float32, above 0 and at most 1; 1 keeps all characters.
      top_k: int32, at least 0; 0 keeps all characters.

    A seed gives the characters that `jaxrnn.sample` draws with it, up to rounding. A compiled program
    cannot raise errors: for an argument out of its range and for a prime with a character that the
    model does not know, every place of the result is -1.
    """
    config, vocabulary = params.config, params.vocabulary
    weights = jax.jit(charlm.step_params)(params)
    points = _points(vocabulary)
    order = np.argsort(points).astype(np.int32)
    whitespace = vocabulary.whitespace()

    def sample(
        text: Array, given: Array, seed: Array, temperature: Array, top_p: Array, top_k: Array
    ) -> Array:
        size = text.shape[0]
        places = jnp.arange(size, dtype=jnp.int32)
        tokens, known = _encoded(text, jnp.asarray(points[order]), jnp.asarray(order))
        length = jnp.asarray(size, jnp.int32)
        valid = (given >= 1) & (given <= length) & (known | (places >= given)).all()
        # These comparisons also fail for NaN.
        valid &= (temperature >= 0) & (temperature < jnp.inf)
        valid &= (top_p > 0) & (top_p <= 1) & (top_k >= 0)
        given = jnp.where(valid, given, 0)
        k = jnp.where(top_k == 0, len(points), jnp.minimum(top_k, len(points)))
        # Probabilities that should sum to 1 may exceed it by rounding, and then a p of 1 would leave out
        # characters. `jaxrnn.sample` does not sum them where nothing is to be left out.
        p = jnp.where((k == len(points)) & (top_p == 1), 2.0, top_p)
        _, drawn = advance(
            config,
            weights,
            initial_state(config, len(points), 1, seed),
            tokens,
            given,
            jnp.where(valid, length - given, 0),
            TracedOptions(
                temperature=jnp.clip(temperature, *TEMPERATURE_RANGE),
                top_k=k.astype(jnp.int32),
                top_p=p.astype(jnp.float32),
                whitespace=jnp.asarray(whitespace),
            ),
            mode="categorical",
            truncate=True,
            size=size,
        )
        new = jnp.asarray(points)[drawn[jnp.maximum(places - given, 0), 0]]
        return jnp.where(valid, jnp.where(places < given, text, new), -1)

    return sample


def _points(vocabulary: Vocabulary) -> np.ndarray:
    """Return the number that stands for each token in a text, [V] int32.

    It is the code point of its character, and the token itself where it is a byte or a string.
    """
    if vocabulary.by_bytes or vocabulary.pattern:
        return np.arange(len(vocabulary), dtype=np.int32)
    return code_points(vocabulary.characters).astype(np.int32)


def _encoded(text: Array, ordered: Array, order: Array) -> tuple[Array, Array]:
    """Return the tokens of a text [N], and which of its characters are known, [N] bool.

    Args:
      text: [N].
      ordered: [V], the numbers of all tokens in ascending order.
      order: [V], their tokens.
    """
    ranks = jnp.minimum(jnp.searchsorted(ordered, text).astype(jnp.int32), len(order) - 1)
    return order[ranks], ordered[ranks] == text
