"""The loop that writes a text: one jitted program that reads the prime, then draws.

`advance` is that loop, `launch` a kernel in its place (`kernels.hopper.sampling`). Both go from
one `State` to the next.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import charlm
from jaxrnn.devices import accelerator
from jaxrnn.shapes import Array, Bool, Float, Int, Key

Mode = Literal["categorical", "argmax", "after-space"]


class Settings(NamedTuple):
    """What shapes the draw, as arrays: changing them compiles nothing."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    whitespace: Bool[Array, "V"]


class State(NamedTuple):
    """Where a text stands.

    carry: the recurrent state of every layer.
    logits: [B, V] of the next character.
    last: [B] the character before it.
    position: characters read and drawn so far.
    keys: [B] one per row.
    """

    carry: Any
    logits: Float[Array, "B V"]
    last: Int[Array, "B"]
    position: Int[Array, ""]
    keys: Key


@partial(jax.jit, static_argnums=(0, 1, 2))
def begin(config: charlm.ModelConfig, size: int, count: int, seed: Array) -> State:
    """Where `count` texts of a vocabulary of `size` begin; each row has a key of its own."""
    key = jax.random.key(seed)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    last = jnp.zeros(count, jnp.int32)
    logits = jnp.zeros((count, size), jnp.float32)
    return State(charlm.initial_carry(config, count), logits, last, jnp.int32(0), keys)


@partial(jax.jit, static_argnums=0, static_argnames=("mode", "truncate", "size"))
def advance(
    config: charlm.ModelConfig,
    prepared: charlm.Prepared,
    state: State,
    prime: Int[Array, "P"],
    prime_length: Int[Array, ""],
    length: Int[Array, ""],
    settings: Settings,
    *,
    mode: Mode,
    truncate: bool,
    size: int,
) -> tuple[State, Int[Array, "N B"]]:
    """Read prime[:prime_length], then draw `length` characters.

    Returns the state after the last of them and the drawn tokens [size, B], of which the first
    `length` (at most `size`) count.
    """
    batch = state.last.shape[0]
    prepared = _on_chip(prepared, length)

    def body(i: Array, loop: tuple[State, Array]) -> tuple[State, Array]:
        state, drawn = loop
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.position)
        own = _draw(state, keys, settings, mode, truncate)
        read = prime[jnp.minimum(i, prime.shape[0] - 1)]
        token = jnp.where(i < prime_length, read, own)
        drawn = drawn.at[jnp.maximum(i - prime_length, 0)].set(token)
        carry, logits = charlm.step(config, prepared, state.carry, token)
        return State(carry, logits, token, state.position + 1, state.keys), drawn

    drawn = jnp.zeros((size, batch), jnp.int32)
    return lax.fori_loop(0, prime_length + length, body, (state, drawn))


@partial(jax.jit, static_argnums=0, static_argnames=("mode", "size", "interpret"))
def launch(
    config: charlm.ModelConfig,
    weights: Any,
    state: State,
    length: Int[Array, ""],
    settings: Settings,
    *,
    mode: Mode,
    size: int,
    interpret: Any = False,
) -> tuple[State, Int[Array, "N B"]]:
    """`advance` without a prime, by the sampling kernel: the same characters but for rounding.

    weights: from `hopper_sampling.arrange`. length: at least 1. interpret: as there.
    """
    from jaxrnn.recurrence.kernels.hopper import (
        sampling as hopper_sampling,  # late, since Pallas takes a second
    )

    def noise(step: Array) -> Array:
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.position + step)
        shape = state.logits.shape[1:]
        return settings.temperature * jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys)

    carry, logits, drawn = hopper_sampling.run(
        config.make_cell(),
        weights,
        state.carry,
        state.logits,
        state.last,
        length,
        None if mode == "argmax" else jax.vmap(noise)(jnp.arange(size, dtype=jnp.int32)),
        settings.whitespace if mode == "after-space" else None,
        size=size,
        interpret=interpret,
    )
    return State(carry, logits, drawn[length - 1], state.position + length, state.keys), drawn


def _on_chip(prepared: charlm.Prepared, length: Int[Array, ""]) -> charlm.Prepared:
    """The same weights, on a TPU as the result of an operation.

    XLA reads a loop's weights from HBM at every character when they come into the program from
    outside, and keeps them in fast memory (VMEM) when the program computed them.
    """
    if accelerator.device().platform != "tpu":
        return prepared

    def computed(w: Array) -> Array:  # w itself, which XLA cannot know
        return jnp.where(length >= 0, w, jnp.zeros((), w.dtype))

    layers = tuple(layer._replace(w_h=computed(layer.w_h)) for layer in prepared.layers)
    return prepared._replace(layers=layers)


def _draw(state: State, keys: Key, settings: Settings, mode: Mode, truncate: bool) -> Array:
    likeliest = jnp.argmax(state.logits, axis=-1).astype(jnp.int32)
    if mode == "argmax":
        return likeliest
    highest = jnp.max(state.logits, axis=-1, keepdims=True)  # at 0, no temperature overflows it
    logits = (state.logits - highest) / settings.temperature
    if truncate:
        logits = _truncate(logits, settings)
    drawn = jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    if mode == "after-space":
        return jnp.where(settings.whitespace[state.last], drawn, likeliest)
    return drawn


def _truncate(logits: Float[Array, "B V"], settings: Settings) -> Float[Array, "B V"]:
    """Minus infinity for all but the top k, and of those all but the top p. Equals stay together."""
    ordered = jnp.sort(logits, axis=-1, descending=True)
    rank = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None]
    ordered = jnp.where(rank < settings.top_k, ordered, -jnp.inf)
    probabilities = jax.nn.softmax(ordered)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = (rank == 0) | ((rank < settings.top_k) & (before < settings.top_p))
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)
