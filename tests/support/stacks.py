"""A stack of layers in plain numpy float64: row by row, episode by episode, step by step.

The random masks are the library's own, drawn with the same keys, and tested on their own.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.layers import Stacked, StackedParams, dropping
from tests.support.oracle import STEPS

State = tuple[np.ndarray, ...]


class Masks:
    """The masks of a call of `apply` with this key, as factors; ones and zeros without a key."""

    def __init__(self, net: Stacked, params: StackedParams, key: Any, steps: int, batch: int):
        count = net.pseudo_layers
        shapes = [leaf.shape for leaf in jax.tree.leaves(net.cell.initial_state(batch))]
        self.weights = [np.ones_like(p.w_h) for p in params.cells]
        self.outputs = [np.ones((steps, batch, net.width)) for _ in range(net.layers)]
        expected = net.rates or (0.0,) * len(shapes)
        self.keep = [
            [np.full((steps, *s), rate) for s, rate in zip(shapes, expected, strict=True)]
            for _ in range(count)
        ]
        if key is None:
            return

        def fold(number: int) -> Any:
            return jax.random.fold_in(key, number)

        state = net.cell.initial_state(batch, jnp.float64)
        for number in range(count):
            if net.weight_dropout:
                ones = jnp.asarray(self.weights[number])
                dropped = dropping.dropout(ones, net.weight_dropout, fold(net.layers + number))
                self.weights[number] = np.asarray(dropped)
            if net.rates:
                masks = dropping.zoneout_masks(
                    net.rates, state, steps, fold(net.layers + count + number)
                )
                self.keep[number] = [np.asarray(mask) for mask in masks]
        for layer in range(net.layers if net.drop_last else net.layers - 1):
            if net.dropout:
                ones = jnp.asarray(self.outputs[layer])
                self.outputs[layer] = np.asarray(
                    dropping.dropout(ones, net.dropout, fold(layer), variational=net.variational)
                )


def whole(net: Stacked, params: Any) -> Any:
    """The parameters of a pseudo-layer's cell; of several blocks with a block-diagonal w_h."""
    if net.blocks == 1:
        return params
    gates = len(net.cell.GATES)
    size = net.cell.hidden_size // net.blocks

    def beside(a: np.ndarray) -> np.ndarray:
        """The blocks' arrays [n, ..., gates * h] as [..., gates * H]."""
        parts = a.reshape(*a.shape[:-1], gates, size)
        return np.moveaxis(parts, 0, -2).reshape(*a.shape[1:-1], -1)

    w_h = np.zeros((net.cell.hidden_size, gates, net.cell.hidden_size))
    for n, block in enumerate(params.w_h):
        units = slice(n * size, (n + 1) * size)
        w_h[units, :, units] = block.reshape(size, gates, size)
    return params._replace(
        w_x=beside(params.w_x), b=beside(params.b), w_h=w_h.reshape(net.cell.hidden_size, -1)
    )


def reference(
    net: Stacked,
    params: StackedParams,
    xs: np.ndarray,
    state: Sequence[State],
    key: Any = None,
    resets: np.ndarray | None = None,
    lengths: Sequence[int] | None = None,
) -> tuple[tuple[State, ...], np.ndarray]:
    """The states and the outputs of `apply`, time first. A state is a tuple of arrays [B, H]."""
    steps, batch, _ = xs.shape
    masks = Masks(net, params, key, steps, batch)
    lengths = [steps] * batch if lengths is None else lengths
    finals: list[State] = []
    for layer in range(net.layers):
        ys = np.zeros((steps, batch, net.width))
        for direction in range(net.directions):
            number = layer * net.directions + direction
            cell = params.cells[number]
            cell = whole(net, cell._replace(w_h=cell.w_h * masks.weights[number]))
            initial = tuple(np.zeros(s.shape[1:]) for s in state[number])
            if params.initial is not None:
                initial = tuple(params.initial[number])
            final = tuple(s.copy() for s in state[number])
            for row, length in enumerate(lengths):
                firsts = [t for t in range(1, length) if resets is not None and resets[t, row]]
                cuts = [0, *firsts, length]
                episodes = [range(*ends) for ends in itertools.pairwise(cuts)]
                if direction:
                    episodes = [episode[::-1] for episode in episodes[::-1]]
                now = tuple(s[row] for s in final)
                if length and not direction and resets is not None and resets[0, row]:
                    now = initial
                for count, episode in enumerate(episodes):
                    now = initial if count else now
                    for t in episode:
                        keep = [k[t, row] for k in masks.keep[number]]
                        computed = STEPS[type(net.cell)](net.cell, cell, now, xs[t, row])
                        after = list(computed.values())[: len(now)]
                        now = tuple(
                            k * old + (1 - k) * new
                            for k, old, new in zip(keep, now, after, strict=True)
                        )
                        size = net.cell.hidden_size
                        ys[t, row, direction * size : (direction + 1) * size] = now[0]
                for leaf, s in zip(final, now, strict=True):
                    leaf[row] = s
            finals.append(final)
        ys = ys * masks.outputs[layer]
        if net.residual and xs.shape[-1] == net.width:
            active = np.arange(steps)[:, None] < np.asarray(lengths)
            ys = ys + np.where(active[..., None], xs, 0)
        xs = ys
    return tuple(finals), xs
