"""Flax linen.RNN over OptimizedLSTMCell, time-major."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import Contender, Given, Unserved, cast, jitted, numpy, require
from jaxrnn.interop import flax

NAME = "flax linen"


def check() -> None:
    require("flax.linen", "flax")


def contender(cell: Any, given: Given) -> Contender:
    import jax.numpy as jnp
    from flax import linen

    if reason := flax.linen_unsupported_reason(cell):
        raise Unserved(reason)
    dtype = jnp.dtype(given.dtype)
    inner = linen.OptimizedLSTMCell(cell.hidden_size, dtype=dtype, param_dtype=dtype)
    layer = linen.RNN(inner, time_major=True)

    def apply(params: Any, xs: Any, state: Any) -> Any:
        variables = {"params": {"cell": params}}
        return layer.apply(variables, xs, initial_carry=(state.cell, state.hidden))

    problem = flax.to_linen(cell, given.params), given.xs, given.state, given.cotangent
    forward, backward = jitted(apply, *(cast(part, given.dtype) for part in problem))

    def gradients(result: Any) -> Any:
        d_params, d_xs, d_state = numpy(result[1])
        return flax.from_linen(cell, d_params), d_xs, d_state

    return Contender(forward, backward, numpy, gradients)
