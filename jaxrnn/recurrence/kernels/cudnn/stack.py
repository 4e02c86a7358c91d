"""Several layers of one cell in one call of cuDNN, in one direction or both.

cuDNN runs the layers as a wavefront, layer 1 at step t beside layer 2 at step t - 1, where its algorithm
can. A char-RNN takes it by `dispatch.layers_at_once`; `run_parts` is for models whose layers run in both
directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.kernels.cudnn import layer
from jaxrnn.recurrence.kernels.cudnn.setup import Setup, allows_tf32, as_state
from jaxrnn.recurrence.kernels.portable import Platform
from jaxrnn.recurrence.linalg import wide
from jaxrnn.recurrence.problem import Dense, Lookup, Masks, Problem
from jaxrnn.shapes import Array, Float


def pays(first: Problem, layers: int) -> bool:
    """Return whether one call takes less time than layer after layer: wherever cuDNN runs the first.

    Args:
      first: the problem of the first layer.
      layers: the number of layers.
    """
    return not (layer.unsupported_reason(first) or layer.refusal(first, layers))


def run(
    cell: Any,
    layers: Sequence[Any],
    inputs: Lookup | Dense,
    states: Sequence[Any],
    masks: Masks,
    reverse: bool,
    *,
    platform: Platform = "cuda",
) -> tuple[tuple[Any, ...], Float[Array, "T B H"]]:
    """Return the final state of every layer, and the last layer's outputs in float32 or float64.

    Args:
      cell: the cell of every layer.
      layers: the parameters of each layer, the first layer first. The w_x and b of the first are not
        used, since `inputs` holds them.
      inputs: the first layer's inputs.
      states: the state of each layer before the first step that is run.
      masks: no masks; layers with resets or lengths run one after the other.
      reverse: whether to run from the last step to the first, in all layers.
      platform: as for `layer.run`.

    Raises:
      ValueError: for masks, and where cuDNN refuses the sizes.
    """
    if masks != Masks():
        raise ValueError("cuDNN runs several layers at once without resets and lengths only")
    dense = layer.as_dense(inputs, layers[0].w_h.dtype)
    if reverse:
        dense = dense._replace(xs=jnp.flip(dense.xs, 0))
    parts = [layers[0]._replace(w_x=dense.w_x, b=dense.b), *layers[1:]]
    finals, ys = run_parts(cell, parts, dense.xs, states, platform=platform)
    return finals, jnp.flip(ys, 0) if reverse else ys


def run_parts(
    cell: Any,
    parts: Sequence[Any],
    xs: Float[Array, "T B D"],
    states: Sequence[Any],
    *,
    both_directions: bool = False,
    platform: Platform = "cuda",
) -> tuple[tuple[Any, ...], Array]:
    """Return the final state of every part, and the last layer's outputs in float32 or float64.

    Args:
      cell: the cell of every part.
      parts: the parameters of every layer, with `both_directions` those of layer 1 forward, layer 1
        backward, layer 2 forward, and so on. A layer's inputs are the outputs of the layer below.
      xs: the inputs of the first layer.
      states: the state of each part before its first step, in the order of `parts`.
      both_directions: whether each layer runs forward and backward through time; its outputs
        [T, B, 2 H] are those of both, side by side.
      platform: as for `layer.run`.

    Raises:
      ValueError: where cuDNN refuses the sizes.
    """
    dtype = parts[0].w_h.dtype
    layers = len(parts) // 2 if both_directions else len(parts)
    steps, batch, _ = xs.shape
    if not steps or not batch:
        width = cell.hidden_size * (2 if both_directions else 1)
        return tuple(states), jnp.zeros((steps, batch, width), wide(dtype))
    setup = Setup(cell, layers, both_directions, str(dtype), allows_tf32(), platform)
    stacked = jax.tree.map(lambda *s: jnp.stack(s), *states)
    found = layer.call(setup, list(parts), xs, stacked)
    final = as_state(type(states[0]), found.hidden, found.cell)
    finals = [
        jax.tree.map(lambda s, part=part: s[part].astype(wide(dtype)), final)
        for part in range(setup.parts)
    ]
    return tuple(finals), found.ys.astype(wide(dtype))
