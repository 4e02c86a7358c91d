"""What the experiments on small tasks share: one training loop, the same for every seed."""

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
    """Train a network from each seed with Adam behind global-norm clipping.

    Args:
      net: its parameters come from `net.init`.
      loss: of (params, batch), a scalar.
      task: makes a fresh batch from a key.
      steps: updates.
      seeds: of the first parameters and of the batches.
      rate: Adam's.
      clip: longest gradient, as the global norm.

    Returns:
      (params, losses): the parameters of every seed stacked [seeds, ...], and the loss before each step
      [seeds, steps].
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
