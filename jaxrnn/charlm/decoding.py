"""The loop that draws a text: one jitted program that reads the prime, then draws."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import charlm
from jaxrnn.charlm.options import Mode
from jaxrnn.devices import accelerator
from jaxrnn.shapes import Array, Bool, Float, Int, Key, Scalar


class TracedOptions(NamedTuple):
    """Sampling options that are traced, so that changing them does not recompile.

    temperature: divides the logits.
    top_k: from 1 to V; V keeps all characters.
    top_p: above 0 and at most 1; 1 keeps all characters.
    whitespace: [V], whether a character is white space.
    """

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    whitespace: Bool[Array, "V"]


class DecodingState(NamedTuple):
    """The state of texts that are being drawn, one per row.

    carry: the recurrent state of every layer.
    logits: [B, V], of the next character.
    last: [B], the character before it.
    position: number of characters read and drawn so far.
    keys: [B], one PRNG key per row.
    """

    carry: charlm.Carry
    logits: Float[Array, "B V"]
    last: Int[Array, "B"]
    position: Int[Array, ""]
    keys: Key


@partial(jax.jit, static_argnums=(0, 1, 2))
def initial_state(
    config: charlm.ModelConfig, vocabulary_size: int, count: int, seed: Array
) -> DecodingState:
    """Return the state before the first character of `count` texts.

    Row i has the key fold_in(key(seed), i), so its text does not depend on `count`.
    """
    key = jax.random.key(seed)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    last = jnp.zeros(count, jnp.int32)
    logits = jnp.zeros((count, vocabulary_size), jnp.float32)
    return DecodingState(charlm.initial_carry(config, count), logits, last, jnp.int32(0), keys)


@partial(jax.jit, static_argnums=0, static_argnames=("mode", "truncate", "size"))
def advance(
    config: charlm.ModelConfig,
    weights: charlm.StepParams,
    state: DecodingState,
    prime: Int[Array, "P"],
    prime_length: Int[Array, ""],
    length: Int[Array, ""],
    options: TracedOptions,
    *,
    mode: Mode,
    truncate: bool,
    size: Any,
) -> tuple[DecodingState, Int[Array, "N B"]]:
    """Read prime[:prime_length], then draw `length` characters.

    Args:
      config: of the model.
      weights: from `charlm.step_params`.
      state: from `initial_state` or from the call before.
      prime: [P] tokens, the same for all rows.
      prime_length: number of tokens of the prime to read, at most P.
      length: number of characters to draw, at most `size`.
      options: see there.
      mode: as in `SamplingOptions`.
      truncate: whether top_k and top_p are applied.
      size: N, the number of rows of the result: an int, or a symbol of `jax.export`.

    Returns:
      (state, tokens [N, B]): the state after the last character, and the drawn tokens, of which only
      the first `length` are meaningful.
    """
    batch = state.last.shape[0]
    weights = in_fast_memory(weights, length)

    def body(i: Array, loop: tuple[DecodingState, Array]) -> tuple[DecodingState, Array]:
        state, tokens = loop
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.position)
        drawn = draw(state.logits, state.last, keys, options, mode, truncate)
        read = prime[jnp.minimum(i, prime.shape[0] - 1)]
        token = jnp.where(i < prime_length, read, drawn)
        # While the prime is read, row 0 is overwritten until the first drawn token stays in it.
        tokens = tokens.at[jnp.maximum(i - prime_length, 0)].set(token)
        carry, logits = charlm.step(config, weights, state.carry, token, repeated=True)
        return DecodingState(carry, logits, token, state.position + 1, state.keys), tokens

    tokens = jnp.zeros((size, batch), jnp.int32)
    return lax.fori_loop(0, prime_length + length, body, (state, tokens))


def in_fast_memory(weights: charlm.StepParams, length: Int[Array, ""]) -> charlm.StepParams:
    """Return equal weights; on a TPU as the result of an operation.

    XLA reads the weights of a loop from HBM at every step if they are arguments of the program, and
    keeps them in fast memory (VMEM) if the program computed them.
    """
    if accelerator.device().platform != "tpu":
        return weights

    def computed(w: Array) -> Array:
        # The condition is always true, which XLA cannot know.
        return jnp.where(length >= 0, w, jnp.zeros((), w.dtype))

    layers = tuple(
        layer._replace(w_h=computed(layer.w_h)) if hasattr(layer, "w_h") else layer
        for layer in weights.layers
    )
    return weights._replace(layers=layers)


def draw(
    logits: Float[Array, "B V"],
    last: Int[Array, "B"],
    keys: Key,
    options: TracedOptions,
    mode: Mode,
    truncate: bool,
) -> Int[Array, "B"]:
    """Return the next character of every row.

    Args:
      logits: of the next character.
      last: the character before it.
      keys: [B], PRNG keys.
      options: see there.
      mode: as in `SamplingOptions`.
      truncate: whether top_k and top_p are applied.
    """
    most_likely = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if mode == "argmax":
        return most_likely
    # With the highest logit at 0, no temperature makes the others overflow.
    highest = jnp.max(logits, axis=-1, keepdims=True)
    logits = (logits - highest) / options.temperature
    if truncate:
        logits = truncated(logits, options.top_k, options.top_p)
    drawn = jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    if mode == "after-space":
        return jnp.where(options.whitespace[last], drawn, most_likely)
    return drawn


def truncated(
    logits: Float[Array, "B V"], top_k: Int[Array, ""], top_p: Scalar
) -> Float[Array, "B V"]:
    """Return the logits with -inf for the characters that top-k or top-p leave out.

    Of the k most likely characters those stay that are needed for a probability of p, where the
    probabilities of the k sum to 1. A character as likely as one that stays also stays.
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    rank = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None]
    ordered = jnp.where(rank < top_k, ordered, -jnp.inf)
    probabilities = jax.nn.softmax(ordered)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    stays = (rank == 0) | ((rank < top_k) & (before < top_p))
    least = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)
