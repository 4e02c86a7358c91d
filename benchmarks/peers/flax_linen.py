"""Flax linen.RNN over OptimizedLSTMCell, time first; each gate has kernels of its own, i f g o."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxrnn.recurrence.cells import LSTM
from benchmarks.peers import Contender, Given, Unserved, cast, jitted, numpy, require

NAME = "flax linen"


def check() -> None:
    require("flax.linen", "flax")


def contender(cell: Any, given: Given) -> Contender:
    import jax.numpy as jnp
    from flax import linen

    if not isinstance(cell, LSTM) or cell.peephole:
        raise Unserved("OptimizedLSTMCell is an LSTM without peepholes")
    dtype = jnp.dtype(given.dtype)
    inner = linen.OptimizedLSTMCell(cell.hidden_size, dtype=dtype, param_dtype=dtype)
    layer = linen.RNN(inner, time_major=True)

    def apply(params: Any, xs: Any, state: Any) -> Any:
        variables = {"params": {"cell": params}}
        return layer.apply(variables, xs, initial_carry=(state.cell, state.hidden))

    problem = to_linen(given.params), given.xs, given.state, given.cotangent
    forward, backward = jitted(apply, *(cast(part, given.dtype) for part in problem))

    def gradients(result: Any) -> Any:
        d_params, d_xs, d_state = numpy(result[1])
        return from_linen(given.params, d_params), d_xs, d_state

    return Contender(forward, backward, numpy, gradients)


def to_linen(params: Any) -> dict[str, Any]:
    """jaxrnn's parameters, gate by gate."""
    w_x, w_h, b = (np.split(a, 4, axis=-1) for a in params[:3])
    made: dict[str, Any] = {}
    for n, gate in enumerate("ifgo"):
        made[f"i{gate}"] = {"kernel": w_x[n]}
        made[f"h{gate}"] = {"kernel": w_h[n], "bias": b[n]}
    return made


def from_linen(like: Any, made: dict[str, Any]) -> Any:
    """What `to_linen` made, or its gradients, as jaxrnn's parameters."""

    def join(side: str, name: str) -> np.ndarray:
        return np.concatenate([made[side + gate][name] for gate in "ifgo"], axis=-1)

    return like._replace(w_x=join("i", "kernel"), w_h=join("h", "kernel"), b=join("h", "bias"))
