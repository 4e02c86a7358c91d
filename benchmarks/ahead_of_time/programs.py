"""Functions that call the Hopper kernels, with the shapes of their arguments, to be compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.problems import CELLS, VOCABULARY
from jaxrnn import charlm
from jaxrnn.charlm import decoding
from jaxrnn.recurrence.kernels import hopper
from jaxrnn.recurrence.kernels.hopper import sampling as hopper_sampling
from jaxrnn.recurrence.kernels.hopper import stack as hopper_stack
from jaxrnn.recurrence.kernels.hopper.search import tiling_for
from jaxrnn.recurrence.problem import Masks, Problem

# Names in `problems.CELLS`; the first one is compiled with --quick.
CELL_NAMES = ("lstm", "lstm-peephole", "gru-before", "gru-after", "rnn")
# Steps of time of a layer, and characters that a sampler draws.
STEPS = 80
CHARACTERS = 256


class Size(NamedTuple):
    """The cell, by its name in `problems.CELLS`, and the size of a problem."""

    cell: str
    dtype: str
    batch: int
    hidden: int
    layers: int = 1


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


def at_once(size: Size) -> Program:
    """Return forward and backward pass of all layers in one launch."""
    cell, params, gx, state, ys = _described(size)

    def both(params: Any, gx: Any, states: Any, d_results: Any) -> Any:
        def run(*given: Any) -> Any:
            return hopper_stack.run(cell, *given, Masks(), False)

        results, pull = jax.vjp(run, params, gx, states)
        return results, pull(d_results)

    states = (state,) * size.layers
    args = ((params,) * size.layers, gx, states, (states, ys))
    return Program(both, args, hopper_stack.tiling_for(cell, size.layers, size.batch, size.dtype))


def sampler(size: Size) -> Program:
    """Return a char-RNN that draws characters for all rows."""
    kind, _, variant = size.cell.partition("-")
    how = {"peephole": True} if variant == "peephole" else {"reset": variant} if variant else {}
    config = charlm.ModelConfig(kind, size.layers, size.hidden, dtype=size.dtype, **how)
    cell = config.make_cell()
    params = jax.eval_shape(lambda: charlm.init(config, VOCABULARY))
    state = jax.eval_shape(
        lambda: decoding.initial_state(config, len(VOCABULARY), size.batch, jnp.uint32(0))
    )

    def draw(params: Any, state: Any) -> Any:
        one, white = jnp.float32(1), jnp.asarray(VOCABULARY.whitespace())
        options = decoding.TracedOptions(one, jnp.int32(len(VOCABULARY)), one, white)
        weights = hopper_sampling.arrange(cell, charlm.step_params(params), size.batch)
        how = {"mode": "after-space", "size": CHARACTERS}
        length = jnp.int32(CHARACTERS)
        return decoding.draw_by_kernel(config, weights, state, length, options, **how)

    cut = hopper_sampling.tiling_for(cell, size.layers, len(VOCABULARY), size.batch, size.dtype)
    return Program(draw, (params, state), cut)


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
