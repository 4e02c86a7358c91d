"""Equinox: eqx.nn.GRUCell (reset after) and eqx.nn.LSTMCell under vmap over rows, in a lax.scan.

Equinox has cells and no layers, so everything around the cell is written as its documentation does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.peers import Contender, Stack, jitted_layers, numpy, require, scan_layers
from jaxrnn.interop.equinox import NAMES, from_equinox, to_equinox
from jaxrnn.recurrence.cells import LSTM

NAME = "equinox"


def check() -> None:
    require("equinox", "equinox")


def layers(given: Stack) -> Contender:
    import equinox as eqx

    cell = given.cell
    kind = eqx.nn.LSTMCell if isinstance(cell, LSTM) else eqx.nn.GRUCell

    def module(params: Any) -> Any:
        make = partial(kind, params.w_x.shape[-2], cell.hidden_size)
        made = jax.eval_shape(lambda key: make(key=key), jax.random.key(0))
        weights = given.converted(partial(to_equinox, cell), params)
        arrays = [jnp.asarray(weights[name]) for name in NAMES if name in weights]
        return jax.tree.unflatten(jax.tree.structure(made), arrays)

    def run(module: Any, xs: Any, resets: Any) -> Any:
        zeros = jnp.zeros((xs.shape[1], cell.hidden_size), xs.dtype)
        start = (zeros, zeros) if isinstance(cell, LSTM) else zeros

        def step(state: Any, at: Any) -> Any:
            x, reset = at
            if reset is not None:
                state = jax.tree.map(lambda s: jnp.where(reset[:, None], 0, s), state)
            state = jax.vmap(module)(x, state)
            return state, state[0] if isinstance(cell, LSTM) else state

        return jax.lax.scan(step, start, (xs, resets))[1]

    def apply(modules: Any, xs: Any, resets: Any, lengths: Any) -> Any:
        return scan_layers(modules, run, xs, resets, lengths)

    def gradients(modules: Any) -> Any:
        convert = partial(from_equinox, cell)
        return [[given.converted(convert, numpy(m)) for m in each] for each in modules]

    modules = [[module(params) for params in directions] for directions in given.params]
    return jitted_layers(given, modules, apply, gradients)
