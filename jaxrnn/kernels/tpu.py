"""A cell over time on a TPU, as Pallas kernels.

One kernel runs the recurrence forward, one backward, each over blocks of rows of the batch and, in
order, of time:

    w_h [H, G]                 kept in VMEM, or where it is larger than that streamed, see below
    gx [T, B, G]               streamed, a block of a few steps and some rows at a time
    h, c [B, H]                in VMEM from the first step to the last
    gates, previous h and c    streamed out, only where a backward pass will want them

The gates stay in float32; the hidden state that entered each step is kept in the weights' dtype, in
which every product takes it, the cell in float32. The backward kernel walks time the other way and
runs only the recurrent chain

    dgx^t = d(gates' inputs),    dh^{t-1} = dgx^t W_h^T + elementwise terms

with W_h^T for W_h; dW_h is one large product of what the two kernels streamed out
(`jaxrnn.kernels.xla.weight_gradients`). What a step computes is in `jaxrnn.kernels.tpu_cells`, what
fits in `tpu_tiles`, the kernel that keeps the weights in `tpu_resident`, and the one that streams them
in `tpu_stream`.

Rows of B and steps of T that do not fill the last block are cut off by Pallas; H is padded here to
whole tiles of 128 with zeros, which stay without effect on every real unit, and cropped.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.cells import GRU, LSTM
from jaxrnn.kernels import tpu_resident, tpu_stream, xla
from jaxrnn.kernels.inputs import Lookup, Masks, vary
from jaxrnn.kernels.layouts import Rows
from jaxrnn.kernels.tpu_tiles import LANES, obstacle, round_up, tiles_for
from jaxrnn.kernels.tpu_views import Arrays, Like
from jaxrnn.shapes import Array, Float


def run(
    cell: Any,
    params: Any,
    gx: Float[Array, "T B G"] | Lookup,
    state: Any,
    masks: Masks,
    reverse: bool,
    *,
    interpret: Any = False,
) -> tuple[Any, Float[Array, "T B H"]]:
    """The final state and every output [T, B, H] in float32, differentiable by hand.

    Args:
      cell, params, gx, state, masks, reverse: as for `jaxrnn.kernels.xla.run`; params in float32 or
        bfloat16.
      interpret: run as plain JAX on any device, for tests: True, or a `pltpu.InterpretParams`.

    Raises:
      ValueError: where `obstacle` names one.
    """
    steps, batch, _ = gx.shape
    if not steps:
        return state, jnp.zeros((0, batch, cell.hidden), gx.dtype)
    reason = obstacle(cell, batch, params.w_h.dtype)
    if reason:
        raise ValueError(f"the TPU kernels cannot run this: {reason}")
    wide_cell = dataclasses.replace(cell, hidden=round_up(cell.hidden, LANES))
    size, gates = cell.hidden, len(cell.GATES)
    pad = partial(_pad, size=size, to=wide_cell.hidden)
    weights = _vectors(params._replace(w_x=None, b=None), pad)
    weights = weights._replace(w_h=pad(pad(params.w_h, gates).T, 1).T)
    gx = gx._replace(table=pad(gx.table, gates)) if isinstance(gx, Lookup) else pad(gx, gates)
    state = jax.tree.map(lambda s: pad(s, 1), state)
    arguments = vary((weights, gx, state, masks))
    final, ys = _run(wide_cell, reverse, interpret, *arguments)
    return jax.tree.map(lambda s: s[:, :size], final), ys[..., :size]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run(
    cell: Any,
    reverse: bool,
    interpret: Any,
    weights: Any,
    gx: Array | Lookup,
    state: Any,
    masks: Masks,
) -> tuple[Any, Array]:
    out = _forward_call(cell, reverse, interpret, weights, gx, state, masks, keep=False)
    return _state(state, out), out["ys"]


def _forward(
    cell: Any,
    reverse: bool,
    interpret: Any,
    weights: Any,
    gx: Array | Lookup,
    state: Any,
    masks: Masks,
) -> tuple[tuple[Any, Array], tuple[Any, ...]]:
    out = _forward_call(cell, reverse, interpret, weights, gx, state, masks, keep=True)
    kept = {k: out[k] for k in ("gates", "previous_hidden", "previous_cell", "q") if k in out}
    lookup = gx if isinstance(gx, Lookup) else None
    return (_state(state, out), out["ys"]), (weights, lookup, kept, masks)


def _backward(
    cell: Any, reverse: bool, interpret: Any, saved: tuple[Any, ...], cotangents: tuple[Any, Array]
) -> tuple[Any, Any, Any, Masks]:
    weights, lookup, kept, masks = saved
    d_final, d_ys = cotangents
    out = _backward_call(cell, reverse, interpret, weights, kept, d_final, d_ys, masks)
    d_weights = _weight_gradients(cell, weights, d_final, kept, out["d_gx"])
    d_state = d_final._replace(**{name: out[f"d_{name}"] for name in d_final._fields})
    if lookup is not None:
        d_table = Rows.sum_equal(lookup, out["d_gx"])
        return d_weights, Lookup(d_table, None), d_state, Masks(None, None)  # type: ignore[arg-type]
    return d_weights, out["d_gx"].astype(d_ys.dtype), d_state, Masks(None, None)


_run.defvjp(_forward, _backward)


def _weight_gradients(cell: Any, weights: Any, state: Any, kept: Any, d_gx: Array) -> Any:
    """From what the kernels streamed out, by the rules of `jaxrnn.kernels.xla`."""
    gates = _apart(kept["gates"], len(cell.GATES))
    previous = state._replace(hidden=kept["previous_hidden"].astype(jnp.float32))
    states = previous
    if isinstance(cell, LSTM):
        i, f, g, _ = gates
        previous = previous._replace(cell=kept["previous_cell"])
        states = previous._replace(cell=f * kept["previous_cell"] + i * g)
    if "q" in kept:
        gates = (*gates, kept["q"])
    return xla.weight_gradients(cell, weights, previous, states, gates, d_gx)


# --- the two calls ------------------------------------------------------------------------------


def _forward_call(
    cell: Any,
    reverse: bool,
    interpret: Any,
    weights: Any,
    gx: Array | Lookup,
    state: Any,
    masks: Masks,
    keep: bool,
) -> dict[str, Any]:
    gx = gx.project() if isinstance(gx, Lookup) else gx
    steps, batch, _ = gx.shape
    size = cell.hidden
    wide, narrow = partial(Like, dtype=jnp.float32), partial(Like, dtype=weights.w_h.dtype)
    outputs = {"ys": wide((steps, batch, size))}
    outputs |= {name: wide((batch, size)) for name in state._fields}
    scratch: dict[str, Like] = {}
    entering = {"previous_hidden": narrow((steps, batch, size))}
    if keep:
        outputs |= {"gates": wide(gx.shape)} | entering
        if isinstance(cell, LSTM):
            outputs["previous_cell"] = wide((steps, batch, size))
        if isinstance(cell, GRU) and cell.reset == "after":
            outputs["q"] = wide((steps, batch, size))
    else:
        scratch |= entering
    if isinstance(cell, GRU) and cell.reset == "before":
        scratch |= {"z": wide((batch, size)), "rh": narrow((batch, size))}
    arrays = Arrays(
        {"gx": gx} | _marks(masks),
        state._asdict(),
        _floats(weights),
        outputs,
        scratch,
        aliases={"gx": "gates"} if keep else {},
    )
    return _call(cell, "forward", reverse, interpret, arrays)


def _backward_call(
    cell: Any,
    reverse: bool,
    interpret: Any,
    weights: Any,
    kept: dict[str, Any],
    d_final: Any,
    d_ys: Array,
    masks: Masks,
) -> dict[str, Any]:
    steps, batch, size = d_ys.shape
    wide, narrow = partial(Like, dtype=jnp.float32), partial(Like, dtype=weights.w_h.dtype)
    used = {k: x for k, x in kept.items() if isinstance(cell, GRU) or k != "previous_hidden"}
    scratch: dict[str, Like] = {}
    if isinstance(cell, GRU) and cell.reset == "after":
        scratch["d_q"] = narrow((batch, size))
    transposed = _floats(weights)
    transposed["w_t"] = transposed.pop("w_h").T
    initial = {f"d_{name}": d for name, d in d_final._asdict().items()}
    outputs = {"d_gx": narrow((steps, batch, len(cell.GATES) * size))}
    outputs |= {name: wide((batch, size)) for name in initial}
    by_step = used | {"d_ys": d_ys} | _marks(masks)
    arrays = Arrays(by_step, initial, transposed, outputs, scratch, aliases={})
    out = _call(cell, "backward", not reverse, interpret, arrays)
    return out | {"d_gx": _together(out["d_gx"])}


def _call(
    cell: Any, direction: str, reverse: bool, interpret: Any, arrays: Arrays
) -> dict[str, Any]:
    """The outputs by name, from the kernel for which there is room."""
    tiles = tiles_for(cell, *arrays.steps_and_rows, arrays.matrix.dtype)
    assert tiles is not None  # `run` has asked
    kernel = tpu_stream if tiles.streamed else tpu_resident
    return kernel.call(cell, direction, reverse, interpret, tiles, arrays)


# --- arrays in and out --------------------------------------------------------------------------


def _pad(x: Array, gates: int, *, size: int, to: int) -> Array:
    """Each of the gates side by side in the last axis filled up with zeros from `size` units to `to`."""
    if size == to:
        return x
    x = x.reshape(*x.shape[:-1], gates, size)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, to - size)])
    return x.reshape(*x.shape[:-2], gates * to)


def _vectors(weights: Any, pad: Any) -> Any:
    """The cell's weights beside w_h, padded."""
    others = {k: w for k, w in weights._asdict().items() if k != "w_h" and w is not None}
    return weights._replace(**{k: pad(w, 1) for k, w in others.items()})


def _floats(weights: Any) -> dict[str, Array]:
    """w_h as it is; vectors as float32 [., H], ready to meet the gates."""
    rest = {k: w for k, w in weights._asdict().items() if w is not None and k != "w_h"}
    rest = {k: jnp.atleast_2d(w.astype(jnp.float32)) for k, w in rest.items()}
    return {"w_h": weights.w_h} | rest


def _marks(masks: Masks) -> dict[str, Array]:
    """[T, B, 2] float32: whether a row starts afresh, whether it moves; none where all are alike."""
    if masks.reset is None and masks.active is None:
        return {}
    known: Any = masks.reset if masks.reset is not None else masks.active
    reset = jnp.zeros_like(known) if masks.reset is None else masks.reset
    active = jnp.ones_like(known) if masks.active is None else masks.active
    return {"marks": jnp.stack([reset, active], axis=-1).astype(jnp.float32)}


def _apart(x: Any, gates: int) -> tuple[Array, ...]:
    """Each gate's [T, B, H], out of [T, B, G] or of what `tpu_stream.call` gives."""
    side_by_side = not isinstance(x, tuple) and x.ndim == 3
    return tuple(jnp.split(x, gates, axis=-1) if side_by_side else x)


def _together(x: Any) -> Array:
    """[T, B, G], out of the same."""
    side_by_side = not isinstance(x, tuple) and x.ndim == 3
    return x if side_by_side else jnp.concatenate(tuple(x), axis=-1)


def _state(like: Any, out: dict[str, Array]) -> Any:
    return like._replace(**{name: out[name] for name in like._fields})
