"""What the fused kernels of every accelerator share: padding, the derivative by hand, cropping.

A `Kernels` runs a recurrence forward, putting out what the way back needs, and backward, where it runs
only the recurrent chain

    dgx^t = d(gates' inputs),    dh^{t-1} = dgx^t W_h^T + elementwise terms

and dW_h is one large product of what the two put out (`kernels.xla.weight_gradients`).

Units are padded with zeros, which stay without effect on every real unit, and rows with rows of zeros;
both are cropped.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.cells import LSTM
from jaxrnn.recurrence.inputs import Dense, Inputs, Lookup, Masks, vary
from jaxrnn.recurrence.kernels import xla
from jaxrnn.recurrence.kernels.xla.layouts import Rows
from jaxrnn.shapes import Array, Float


class Kernels(NamedTuple):
    """An accelerator's two kernels.

    unsupported_reason: of (cell, batch, dtype), why they cannot run this; None where they can.
    plan: of (cell, batch, dtype), the rows and the width they want, and what else they settle there.
    forward: of (call, weights, gx, state, masks, keep); a dict of `ys`, the final state's arrays by
      name and, where `keep`, what the way back needs: `gates` and `previous_hidden`, of an LSTM
      `previous_cell`, of a GRU that resets after the product `q`.
    backward: of (call, weights, kept, d_final, d_ys, masks); a dict of `d_gx` in the weights' dtype and
      the cotangents of the initial state as `d_hidden`, `d_cell`.
    """

    unsupported_reason: Any
    plan: Any
    forward: Any
    backward: Any


class Plan(NamedTuple):
    """rows, width: of the arrays with their padding. tiles: the kernels' own, hashable."""

    rows: int
    width: int
    tiles: Any = None


class Call(NamedTuple):
    """What of a call is known while it is traced.

    cell: of the padded width.
    reverse: from the last step to the first.
    interpret: how to run on a device that is not there, for tests; None or False for not.
    """

    cell: Any
    tiles: Any
    reverse: bool
    interpret: Any


def run(
    kernels: Kernels,
    cell: Any,
    params: Any,
    gx: Inputs,
    state: Any,
    masks: Masks,
    reverse: bool,
    interpret: Any,
) -> tuple[Any, Float[Array, "T B H"]]:
    """The final state and every output [T, B, H] in float32, differentiable by hand."""
    steps, batch, _ = gx.shape
    if not steps:
        return state, jnp.zeros((0, batch, cell.hidden_size), gx.dtype)
    reason = kernels.unsupported_reason(cell, batch, params.w_h.dtype)
    if reason:
        raise ValueError(f"the fused kernels cannot run this: {reason}")
    rows, width, tiles = kernels.plan(cell, batch, params.w_h.dtype)
    size, gates = cell.hidden_size, len(cell.GATES)
    pad = partial(_pad, size=size, to=width)
    weights = _vectors(params._replace(w_x=None, b=None), pad)
    weights = weights._replace(w_h=pad(pad(params.w_h, gates).T, 1).T)
    more = partial(_more_rows, to=rows)
    if isinstance(gx, Lookup):
        gx = Lookup(pad(gx.table, gates), more(gx.tokens, 1))
    elif isinstance(gx, Dense):
        gx = Dense(more(gx.xs, 1), pad(gx.w_x, gates), pad(gx.b, gates))
    else:
        gx = more(pad(gx, gates), 1)
    state = jax.tree.map(lambda s: more(pad(s, 1), 0), state)
    masks = jax.tree.map(lambda mask: more(mask, 1), masks)
    arguments = vary((weights, gx, state, masks))
    call = Call(dataclasses.replace(cell, hidden_size=width), tiles, reverse, interpret)
    final, ys = _run(kernels, call, *arguments)
    return jax.tree.map(lambda s: s[:batch, :size], final), ys[:, :batch, :size]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
    kernels: Kernels,
    call: Call,
    weights: Any,
    gx: Inputs,
    state: Any,
    masks: Masks,
) -> tuple[Any, Array]:
    return _forward(kernels, call, weights, gx, state, masks, keep=False)[0]


def _forward(
    kernels: Kernels,
    call: Call,
    weights: Any,
    gx: Inputs,
    state: Any,
    masks: Masks,
    keep: bool = True,
) -> tuple[tuple[Any, Array], tuple[Any, ...]]:
    source = gx if isinstance(gx, Lookup | Dense) else None
    projected = gx if source is None else source.project()
    out = kernels.forward(call, weights, projected, state, masks, keep)
    kept = {k: out[k] for k in ("gates", "previous_hidden", "previous_cell", "q") if k in out}
    final = state._replace(**{name: out[name] for name in state._fields})
    return (final, out["ys"]), (weights, source, kept, masks)


def _backward(
    kernels: Kernels, call: Call, saved: tuple[Any, ...], cotangents: tuple[Any, Array]
) -> tuple[Any, Any, Any, Masks]:
    weights, source, kept, masks = saved
    d_final, d_ys = cotangents
    out = kernels.backward(call, weights, kept, d_final, d_ys, masks)
    d_weights = _weight_gradients(call.cell, weights, d_final, kept, out["d_gx"])
    d_state = d_final._replace(**{name: out[f"d_{name}"] for name in d_final._fields})
    d_inputs = xla.to_inputs(Rows, source, out["d_gx"], d_ys.dtype)
    return d_weights, d_inputs, d_state, Masks(None, None)


_run.defvjp(_forward, _backward)


def _weight_gradients(cell: Any, weights: Any, state: Any, kept: Any, d_gx: Array) -> Any:
    """From what the kernels put out, by the rules of `kernels.xla`."""
    gates = apart(kept["gates"], len(cell.GATES))
    previous = state._replace(hidden=kept["previous_hidden"].astype(jnp.float32))
    states = previous
    if isinstance(cell, LSTM):
        i, f, g, _ = gates
        previous = previous._replace(cell=kept["previous_cell"])
        states = previous._replace(cell=f * kept["previous_cell"] + i * g)
    if "q" in kept:
        gates = (*gates, kept["q"])
    return xla.weight_gradients(cell, weights, previous, states, gates, d_gx)


def apart(x: Any, gates: int) -> tuple[Array, ...]:
    """Each gate's [T, B, H], out of [T, B, G] or where they are apart already."""
    side_by_side = not isinstance(x, tuple) and x.ndim == 3
    return tuple(jnp.split(x, gates, axis=-1) if side_by_side else x)


def together(x: Any) -> Array:
    """[T, B, G], out of the same."""
    side_by_side = not isinstance(x, tuple) and x.ndim == 3
    return x if side_by_side else jnp.concatenate(tuple(x), axis=-1)


def _pad(x: Array, gates: int, *, size: int, to: int) -> Array:
    """Each of the gates side by side in the last axis filled up with zeros from `size` units to `to`."""
    if size == to:
        return x
    x = x.reshape(*x.shape[:-1], gates, size)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, to - size)])
    return x.reshape(*x.shape[:-2], gates * to)


def _more_rows(x: Array, axis: int, *, to: int) -> Array:
    if x.shape[axis] == to:
        return x
    return jnp.pad(x, [(0, to - x.shape[axis] if at == axis else 0) for at in range(x.ndim)])


def _vectors(weights: Any, pad: Any) -> Any:
    """The cell's weights beside w_h, padded."""
    others = {k: w for k, w in weights._asdict().items() if k != "w_h" and w is not None}
    return weights._replace(**{k: pad(w, 1) for k, w in others.items()})
