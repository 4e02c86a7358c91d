"""The training loop of the experiments on small tasks, the same for every seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxrnn


def train(
    net: jaxrnn.Network,
    loss: Callable[[Any, Any], Any],
    task: Callable[[Any], Any],
    steps: int,
    seeds: Sequence[int],
    rate: float = 3e-3,
    clip: float = 1.0,
) -> tuple[Any, Any]:
    """Train a network from each seed, with global-norm clipping and Adam.

    Args:
      net: the network, initialised by `net.init`.
      loss: function of (params, batch) that returns a scalar.
      task: function of a key that returns a new batch.
      steps: number of updates.
      seeds: random seeds of the initial parameters and the batches.
      rate: learning rate of Adam.
      clip: largest global norm of the gradient.

    Returns:
      (params, losses): the final parameters of all seeds, stacked [seeds, ...], and the loss before each
      step [seeds, steps].
    """
    optimizer = optax.chain(optax.clip_by_global_norm(clip), optax.adam(rate))

    def step(state: Any, key: Any) -> Any:
        params, memory = state
        now, gradient = jax.value_and_grad(loss)(params, task(key))
        updates, memory = optimizer.update(gradient, memory)
        return (optax.apply_updates(params, updates), memory), now

    @jax.jit
    def run(params: Any, key: Any) -> Any:
        keys = jax.random.split(key, steps)
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return params, losses

    runs = []
    for seed in seeds:
        key = jax.random.key(seed)
        runs.append(jax.device_get(run(net.init(key), jax.random.fold_in(key, 1))))
    return jax.tree.map(lambda *each: jnp.stack(each), *runs)
