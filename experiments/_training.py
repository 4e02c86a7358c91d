"""The training loop of the experiments on small tasks, the same for every seed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn


class State(NamedTuple):
    """The state of a training, which each step replaces.

    params: the parameters.
    memory: the state of the optimizer.
    key: the key of the batches to come.
    """

    params: Any
    memory: Any
    key: Any


class Training(NamedTuple):
    """A network and what it learns, trained with global-norm clipping and Adam.

    net: the network, initialised by `net.init`.
    loss: function of (params, batch) that returns a scalar.
    task: function of a key that returns a new batch.
    clip: largest global norm of the gradient.
    """

    net: jaxrnn.Network
    loss: Callable[[Any, Any], Any]
    task: Callable[[Any], Any]
    clip: float = 1.0

    def begin(self, seed: int) -> State:
        """Return the state before the first step."""
        key = jax.random.key(seed)
        params = self.net.init(key)
        return State(params, self._optimizer(0).init(params), jax.random.fold_in(key, 1))

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def advance(self, state: State, rate: Any, steps: int) -> tuple[State, Any]:
        """Return the state after some training steps, and the loss before each of them [steps]."""
        return self._advance(state, rate, steps)

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def advance_all(self, states: State, rates: Any, steps: int) -> tuple[State, Any]:
        """Do the same for several states and rates at once; this is faster for networks of few units."""
        return jax.vmap(functools.partial(self._advance, steps=steps))(states, rates)

    def _advance(self, state: State, rate: Any, steps: int) -> tuple[State, Any]:
        optimizer = self._optimizer(rate)

        def step(now: tuple[Any, Any], key: Any) -> tuple[tuple[Any, Any], Any]:
            params, memory = now
            loss, gradient = jax.value_and_grad(self.loss)(params, self.task(key))
            updates, memory = optimizer.update(gradient, memory)
            return (optax.apply_updates(params, updates), memory), loss

        keys = jax.random.split(state.key, steps)
        (params, memory), losses = jax.lax.scan(step, (state.params, state.memory), keys)
        return State(params, memory, jax.random.fold_in(state.key, steps)), losses

    def _optimizer(self, rate: Any) -> Any:
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(rate))


def train(
    net: jaxrnn.Network,
    loss: Callable[[Any, Any], Any],
    task: Callable[[Any], Any],
    steps: int,
    seeds: Sequence[int],
    rate: float = 3e-3,
    clip: float = 1.0,
) -> tuple[Any, Any]:
    """Train a network from each seed.

    Args:
      net, loss, task, clip: as in `Training`.
      steps: number of training steps.
      seeds: random seeds of the initial parameters and the batches.
      rate: learning rate of Adam.

    Returns:
      (params, losses): the final parameters of all seeds, stacked [seeds, ...], and the loss before each
      step [seeds, steps].
    """
    training = Training(net, loss, task, clip)
    runs = []
    for seed in seeds:
        state, losses = training.advance(training.begin(seed), rate, steps)
        runs.append(jax.device_get((state.params, losses)))
    params, losses = stack(runs)
    return params, losses


def best_rate(rates: Sequence[float], losses: Any) -> float:
    """Return the learning rate with the smallest loss; NaN and None count as the largest."""
    return rates[int(np.nan_to_num(np.array(losses, float), nan=np.inf).argmin())]


def grid(rates: Sequence[float], budget: int | str, seeds: int = 1) -> str:
    """Return the heading of a column of chosen learning rates: which ones were tried, and for how long.

    Args:
      rates: the learning rates that each contender tried.
      budget: number of training steps of a trial, or a string such as "8 passes".
      seeds: number of trials of each rate.
    """
    tried = ", ".join(f"{rate:g}" for rate in rates)
    each = f"{budget:,} steps" if isinstance(budget, int) else budget
    each += f", {seeds} seeds" if seeds > 1 else ""
    return f"learning rate (tried: {tried}; {each} each)"


def stack(trees: Sequence[Any]) -> Any:
    """Return trees of arrays as one, with a new first axis."""
    return jax.tree.map(lambda *each: jnp.stack(each), *trees)
