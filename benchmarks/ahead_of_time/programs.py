"""Functions that call the Hopper kernels, with the shapes of their arguments, to be compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.problems import CELLS
from jaxrnn.recurrence.kernels import hopper
from jaxrnn.recurrence.kernels.hopper.search import tiling_for
from jaxrnn.recurrence.problem import Masks, Problem

# Names in `problems.CELLS`; the first one is compiled with --quick.
CELL_NAMES = ("lstm", "lstm-peephole", "gru-before", "gru-after", "rnn")
# Steps of time.
STEPS = 80


class Size(NamedTuple):
    """The cell, by its name in `problems.CELLS`, and the size of a problem."""

    cell: str
    dtype: str
    batch: int
    hidden: int


class Program(NamedTuple):
    """A function, its arguments as `jax.ShapeDtypeStruct`s, and the tiling of its kernels."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    tiles: Any


def layer(size: Size, masked: bool = False) -> Program:
    """Return forward and backward pass of one layer; masked: with resets and inactive rows."""
    cell, params, gx, state, ys = _described(size)
    mask = jax.ShapeDtypeStruct((STEPS, size.batch), bool) if masked else None

    def both(params: Any, gx: Any, state: Any, masks: Any, d_results: Any) -> Any:
        def run(*given: Any) -> Any:
            return hopper.run(Problem(cell, *given, masks))

        results, pull = jax.vjp(run, params, gx, state)
        return results, pull(d_results)

    args = (params, gx, state, Masks(mask, mask), (state, ys))
    return Program(both, args, tiling_for(cell, size.batch, size.dtype))


def _described(size: Size) -> tuple[Any, ...]:
    """Return the cell and the shapes of a layer's parameters, inputs, state and outputs."""
    cell = CELLS[size.cell](size.hidden)
    gx, ys = (
        jax.ShapeDtypeStruct((STEPS, size.batch, n), jnp.float32)
        for n in (len(cell.GATES) * size.hidden, size.hidden)
    )
    dtype = jnp.dtype(size.dtype)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), size.hidden, dtype))
    return cell, params, gx, jax.eval_shape(lambda: cell.initial_state(size.batch)), ys
