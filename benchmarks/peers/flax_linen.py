"""Flax linen.RNN over its fastest cells: SimpleCell, OptimizedLSTMCell, GRUCell, time-major."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import (
    Contender,
    Given,
    Stack,
    Unserved,
    cast,
    jitted,
    jitted_layers,
    numpy,
    require,
)
from benchmarks.peers.flax_nnx import as_directions, as_layer
from jaxrnn.interop import flax
from jaxrnn.recurrence.cells import GRU, LSTM, RNN

NAME = "flax linen"


def check() -> None:
    require("flax.linen", "flax")


def contender(cell: Any, given: Given) -> Contender:
    from flax import linen

    if reason := flax.unsupported_reason(cell):
        raise Unserved(reason)
    kind = {RNN: linen.SimpleCell, LSTM: linen.OptimizedLSTMCell, GRU: linen.GRUCell}[type(cell)]
    dtype = jnp.dtype(given.dtype)
    inner = kind(cell.hidden_size, dtype=dtype, param_dtype=dtype)
    layer = linen.RNN(inner, time_major=True)

    def apply(params: Any, xs: Any, state: Any) -> Any:
        variables = {"params": {"cell": params}}
        carry = (state.cell, state.hidden) if isinstance(cell, LSTM) else state.hidden
        return layer.apply(variables, xs, initial_carry=carry)

    problem = flax.to_linen(cell, given.params), given.xs, given.state, given.cotangent
    forward, backward = jitted(apply, *(cast(part, given.dtype) for part in problem))

    def gradients(result: Any) -> Any:
        d_params, d_xs, d_state = numpy(result[1])
        return flax.from_linen(cell, d_params), d_xs, d_state

    return Contender(forward, backward, numpy, gradients)


def layers(given: Stack, ours: ModuleType | None = None) -> Contender:
    """Return RNN or Bidirectional for each layer, and ScannedRNN where there are resets.

    Args:
      given: the problem.
      ours: jaxrnn's module with the same names; None for flax's own.
    """
    from flax import linen

    library, cell = ours or linen, given.cell
    kind = library.OptimizedLSTMCell if isinstance(cell, LSTM) else library.GRUCell

    def direction() -> Any:
        return library.RNN(kind(cell.hidden_size), time_major=True)

    modules = [
        library.Bidirectional(direction(), direction(), time_major=True)
        if len(directions) == 2
        else direction()
        for directions in given.params
    ]
    scanned = ours.ScannedRNN if ours else _scanned_rnn()

    def apply(params: Any, xs: Any, resets: Any, lengths: Any) -> Any:
        if resets is not None:
            carry = scanned.initialize_carry(xs.shape[1], cell.hidden_size)
            return scanned().apply({"params": params}, carry, (xs, resets))[1]
        for module, variables in zip(modules, params, strict=True):
            xs = module.apply({"params": variables}, xs, seq_lengths=lengths)
        return xs

    there, back = partial(flax.to_linen, cell), partial(flax.from_linen, cell)
    made = [[given.converted(there, p) for p in directions] for directions in given.params]
    if given.resets is not None:
        # linen numbers the cells that a module makes, also those that only make a carry.
        carry = scanned.initialize_carry(1, cell.hidden_size)
        step = np.zeros((1, 1, given.xs.shape[-1]), np.float32), np.zeros((1, 1), bool)
        (inner,) = jax.eval_shape(scanned().init, jax.random.key(0), carry, step)["params"]
        params: Any = {inner: made[0][0]}
    else:
        params = [as_layer(directions) for directions in made]

    def gradients(found: Any) -> Any:
        found = numpy(found)
        if given.resets is not None:
            return [[given.converted(back, found[inner])]]
        return [[given.converted(back, d) for d in as_directions(layer)] for layer in found]

    return jitted_layers(given, params, apply, gradients)


def _scanned_rnn() -> Any:
    """Return the class that agents in flax share by copying: a GRU over time, with resets."""
    from flax import linen

    class ScannedRNN(linen.Module):
        @partial(linen.scan, variable_broadcast="params", split_rngs={"params": False})
        @linen.compact
        def __call__(self, carry: Any, step: Any) -> Any:
            x, reset = step
            carry = jnp.where(reset[:, None], self.initialize_carry(*carry.shape), carry)
            return linen.GRUCell(carry.shape[-1])(carry, x)

        @staticmethod
        def initialize_carry(batch: int, hidden: int) -> Any:
            return linen.GRUCell(hidden).initialize_carry(jax.random.key(0), (batch, hidden))

    return ScannedRNN
