"""Run several layers of one cell in one cuDNN call, in one direction or in both.

Depending on the algorithm, cuDNN can compute step t of a layer in parallel with step t + 1 of the layer
below. `jaxrnn.layers` and the char-RNN use both functions, through `dispatch.layers_at_once`;
`run_pseudo_layers` also supports layers that run in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.kernels.cudnn import layer
from jaxrnn.recurrence.kernels.cudnn.config import CallConfig, allows_tf32, make_state
from jaxrnn.recurrence.kernels.portable import Platform
from jaxrnn.recurrence.linalg import wide
from jaxrnn.recurrence.problem import Dense, Lookup, Masks, Problem
from jaxrnn.shapes import Array, Float


def pays(first: Problem, layers: int) -> bool:
    """Return whether to run all layers in one call, which is the case whenever cuDNN supports it.

    Args:
      first: the problem of the first layer.
      layers: the number of layers.
    """
    return not (layer.unsupported_reason(first) or layer.rejection_reason(first, layers))


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
    """Return the final state of every layer, and the outputs of the last layer.

    Args:
      cell: the cell of every layer.
      layers: the parameters of each layer, first layer first. The w_x and b of the first layer are not
        used, because `inputs` contains them.
      inputs: the inputs of the first layer.
      states: the state of each layer before the first step that is run.
      masks: must be empty. Layers with resets or lengths have to be run one after the other.
      reverse: whether all layers run from the last step to the first.
      platform: as for `layer.run`.

    Returns:
      (states, ys): in float64 for float64 weights, else in float32.

    Raises:
      ValueError: for masks, and if cuDNN does not support the layers.
    """
    if masks != Masks():
        raise ValueError("cuDNN runs several layers in one call only without resets and lengths")
    dense = layer.to_dense(inputs, layers[0].w_h.dtype)
    if reverse:
        dense = dense._replace(xs=jnp.flip(dense.xs, 0))
    params = [layers[0]._replace(w_x=dense.w_x, b=dense.b), *layers[1:]]
    finals, ys = run_pseudo_layers(cell, params, dense.xs, states, platform=platform)
    return finals, jnp.flip(ys, 0) if reverse else ys


def run_pseudo_layers(
    cell: Any,
    params: Sequence[Any],
    xs: Float[Array, "T B D"],
    states: Sequence[Any],
    *,
    both_directions: bool = False,
    platform: Platform = "cuda",
) -> tuple[tuple[Any, ...], Array]:
    """Return the final state of every pseudo-layer, and the outputs of the last layer.

    A pseudo-layer is one direction of one layer. Each layer's inputs are the outputs of the layer below.

    Args:
      cell: the cell of every pseudo-layer.
      params: the parameters of every pseudo-layer. With `both_directions` the order is layer 1 forward,
        layer 1 backward, layer 2 forward, and so on.
      xs: the inputs of the first layer.
      states: the state of every pseudo-layer before its first step, in the order of `params`.
      both_directions: whether each layer runs forward and backward through time. The outputs are then
        [T, B, 2 H], those of both directions side by side.
      platform: as for `layer.run`.

    Returns:
      (states, ys): in float64 for float64 weights, else in float32.

    Raises:
      ValueError: if cuDNN does not support the layers.
    """
    dtype = params[0].w_h.dtype
    layers = len(params) // 2 if both_directions else len(params)
    config = CallConfig(cell, layers, both_directions, str(dtype), allows_tf32(), platform)
    steps, batch, _ = xs.shape
    if not steps or not batch:
        width = config.directions * cell.hidden_size
        return tuple(states), jnp.zeros((steps, batch, width), wide(dtype))
    stacked = jax.tree.map(lambda *s: jnp.stack(s), *states)
    outputs = layer.run_call(config, list(params), xs, stacked)
    final = make_state(type(states[0]), outputs.hidden, outputs.cell)
    finals = [
        jax.tree.map(lambda s, index=index: s[index].astype(wide(dtype)), final)
        for index in range(config.pseudo_layers)
    ]
    return tuple(finals), outputs.ys.astype(wide(dtype))
