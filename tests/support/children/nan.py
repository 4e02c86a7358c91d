"""The training command, in which the rows of process 1, and of no other, turn into NaN once.

python tests/support/children/nan.py FLAGS    # of jaxrnn.train
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import train
from jaxrnn.commands import running
from jaxrnn.training import loop

STEP = 20  # from which on it may happen
run_steps = loop.run_steps


def spoiled(leaf: jax.Array) -> jax.Array:
    here = jax.process_index() == 1
    parts = [shard.data for shard in leaf.addressable_shards]
    parts = [jnp.full_like(part, math.nan) if here else part for part in parts]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)


class SpoilOnce:
    """Stands in for run_steps: the first call from step STEP on gets a spoiled state."""

    # fit() lowers the program before the first step, to learn how much memory it needs.
    lower = staticmethod(run_steps.lower)

    def __call__(self, config: Any, optimizer: Any, devices: Any, state: Any, *rest: Any) -> Any:
        if int(state.step) >= STEP:
            loop.run_steps = run_steps
            state = state.replace(carry=jax.tree.map(spoiled, state.carry))
        return run_steps(config, optimizer, devices, state, *rest)


loop.run_steps = SpoilOnce()  # type: ignore[assignment]
running.leave(train.main())
