"""The environment of `memory_task`: it shows a cue, and asks for it after a delay."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Different symbols, each a cue and an action.
SYMBOLS = 4


class Episode(NamedTuple):
    """The state of the environment, each an int32 scalar.

    cue: the symbol to recall.
    shown: the symbol that is shown now.
    time: steps since the cue.
    last: `time` of the question.
    """

    cue: Any
    shown: Any
    time: Any
    last: Any


def begin(key: Any, delays: Any) -> Episode:
    """Return a new episode, whose delay is uniform between the two `delays`."""
    keys = jax.random.split(key)
    cue = jax.random.randint(keys[0], (), 0, SYMBOLS)
    delay = jax.random.randint(keys[1], (), delays[0], delays[1] + 1)
    return Episode(cue, cue, jnp.int32(0), delay + 1)


def observe(episode: Episode) -> Any:
    """Return the symbol as one-hot, whether it is the cue, and whether this is the question [6]."""
    flags = jnp.stack([episode.time == 0, episode.time == episode.last])
    return jnp.concatenate([jax.nn.one_hot(episode.shown, SYMBOLS), flags.astype(jnp.float32)])


def respond(episode: Episode, action: Any, key: Any, delays: Any) -> tuple[Episode, Any, Any]:
    """Return the next state, the reward and whether the episode is over; then the state is a new one."""
    keys = jax.random.split(key)
    over = episode.time == episode.last
    reward = jnp.where(over, jnp.where(action == episode.cue, 1.0, -1.0), 0.0)
    shown = jax.random.randint(keys[0], (), 0, SYMBOLS)
    later = episode._replace(shown=shown, time=episode.time + 1)
    following = jax.tree.map(functools.partial(jnp.where, over), begin(keys[1], delays), later)
    return following, reward, over
