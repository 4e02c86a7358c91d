"""Layers of one cell on a Hopper GPU (H100, H200) in one launch: a wavefront over layers and time.

T steps of L layers take T + 2 (L - 1) ticks instead of L * T steps, in a launch forward and one back;
the inputs of all layers but the first are products in the kernel, whose W_x stays on the chip beside
W_h. `hopper_stack_block` is the kernel. Where `pays` does not say that this takes less time, one layer
after the other by `kernels.hopper` does. A char-RNN takes it by `dispatch.layers_at_once`; for a
stack of one's own there is `run`.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.cells import GRU, LSTM
from jaxrnn.recurrence.inputs import Lookup, Masks, vary
from jaxrnn.recurrence.kernels import fused, hopper
from jaxrnn.recurrence.kernels.hopper import cost_model as hopper_model
from jaxrnn.recurrence.kernels.hopper import residency as hopper_residency
from jaxrnn.recurrence.kernels.hopper import search as hopper_search
from jaxrnn.recurrence.kernels.hopper import stack_block as hopper_stack_block
from jaxrnn.recurrence.kernels.hopper.arrays import Arrays
from jaxrnn.recurrence.kernels.hopper.tiles import Tiles, width
from jaxrnn.recurrence.kernels.xla.layouts import Rows
from jaxrnn.shapes import Array, Float


def run(
    cell: Any,
    layers: tuple[Any, ...],
    gx: Float[Array, "T B G"] | Lookup,
    states: tuple[Any, ...],
    masks: Masks,
    reverse: bool,
    *,
    interpret: Any = False,
) -> tuple[tuple[Any, ...], Float[Array, "T B H"]]:
    """The final state of every layer, and the last layer's outputs [T, B, H] in float32.

    What `kernels.xla.run` gives, layer after layer, with the outputs in the weights' dtype
    between them; differentiable by hand.

    Args:
      cell: of every layer.
      layers: the cell's parameters, of the first layer first, whose w_x and b are in `gx` already; in
        bfloat16, float16 or float32.
      gx: the first layer's projected inputs.
      states: of every layer, before the first step taken.
      masks: of all layers alike; a row that stands still puts out zeros.
      reverse: from the last step to the first, in all layers.
      interpret: run as plain JAX on any device, for tests: a `plgpu.InterpretGPUParams` (JAX 0.11.2)
        that ignores `inline_mgpu`.

    Raises:
      ValueError: where `unsupported_reason` names one.
    """
    (steps, batch, _), dtype = gx.shape, layers[0].w_h.dtype
    if not steps:
        return states, jnp.zeros((0, batch, cell.hidden_size), gx.dtype)
    reason = unsupported_reason(cell, len(layers), batch, dtype)
    if reason:
        raise ValueError(f"the kernel for layers at once cannot run this: {reason}")
    tiles = tiles_for(cell, len(layers), batch, dtype)
    assert tiles is not None  # `unsupported_reason` has been asked
    padded = dataclasses.replace(cell, hidden_size=width(cell.hidden_size))
    pad = partial(fused._pad, size=cell.hidden_size, to=padded.hidden_size)
    more = partial(fused._more_rows, to=tiles.rows * tiles.blocks)
    gates = len(cell.GATES)
    gx = gx.project() if isinstance(gx, Lookup) else gx
    arguments = vary(
        (
            _stacked(layers, pad, gates),
            more(pad(gx, gates), 1),
            jax.tree.map(lambda *s: more(pad(jnp.stack(s), 1), 1), *states),
            jax.tree.map(lambda mask: more(mask, 1), masks),
        )
    )
    final, ys = _run(Call(padded, tiles, reverse, interpret), *arguments)
    cropped = jax.tree.map(lambda s: s[:, :batch, : cell.hidden_size], final)
    each = zip(*jax.tree.map(list, cropped), strict=True)
    return tuple(states[0]._make(s) for s in each), ys[:, :batch, : cell.hidden_size]


class Call(NamedTuple):
    """What of a call is known while it is traced; the cell is of the padded width."""

    cell: Any
    tiles: Tiles
    reverse: bool
    interpret: Any


def _stacked(layers: tuple[Any, ...], pad: Any, gates: int) -> Any:
    """The parameters of all layers with a first axis for them; the first layer's w_x and b are zeros."""

    def padded(layer: Any) -> Any:
        vectors = fused._vectors(layer._replace(w_x=None, b=None), pad)
        w_x, w_h = (pad(pad(w, gates).T, 1).T for w in (layer.w_x, layer.w_h))
        return vectors._replace(w_x=w_x, w_h=w_h, b=pad(layer.b, gates))

    first = layers[0]
    first = first._replace(w_x=jnp.zeros_like(first.w_h), b=jnp.zeros_like(first.b))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(padded, (first, *layers[1:])))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(call: Call, weights: Any, gx: Array, states: Any, masks: Masks) -> tuple[Any, Array]:
    return _forward(call, weights, gx, states, masks, keep=False)[0]


def _forward(
    call: Call, weights: Any, gx: Array, states: Any, masks: Masks, keep: bool = True
) -> tuple[tuple[Any, Array], tuple[Any, ...]]:
    cell, tiles, reverse, _ = call
    layers, size, columns = weights.w_h.shape
    dtype, gates = weights.w_h.dtype, len(cell.GATES)
    by_step = layers, *gx.shape[:2], size
    narrow = jax.ShapeDtypeStruct(by_step, dtype)
    wide = jax.ShapeDtypeStruct(by_step, jnp.float32)
    outputs = {"ys": wide}
    if keep:
        outputs["gates"] = jax.ShapeDtypeStruct((*by_step[:-1], columns), jnp.float32)
        if isinstance(cell, LSTM):
            outputs["previous_cell"] = wide
        if isinstance(cell, GRU):
            outputs["q"] = wide
    if masks.reset is not None:
        first = masks.reset[-1 if reverse else 0][:, None]
        states = jax.tree.map(lambda s: jnp.where(first, 0, s), states)
    both = jnp.concatenate([weights.w_h, weights.w_x], axis=1)
    both = both.reshape(layers, 2 * size, gates, tiles.parts, size // tiles.parts)
    arrays = Arrays(
        weights=both.transpose(0, 3, 2, 4, 1).reshape(layers, tiles.parts, -1, 2 * size),
        initial=states._asdict(),
        inputs={"gx": gx},
        vectors=_vectors(weights),
        marks=hopper._marks(masks, hopper._next(masks.reset, reverse), tiles),
        exchanged={"previous_hidden": narrow, "outputs": narrow},
        outputs=outputs,
        over={"gates": "gx"} if keep else {},
    )
    bias = weights.b.reshape(layers, gates, size).astype(jnp.float32)
    step = hopper_stack_block.forward(cell, keep)
    out = hopper_stack_block.call(step, arrays, bias, tiles, tiles.forward, reverse, call.interpret)
    names = "gates", "previous_hidden", "previous_cell", "q", "outputs"
    kept = {k: out[k] for k in names if k in out}
    final = states._replace(**{name: out[name] for name in states._fields})
    return (final, out["ys"][-1]), (weights, kept, masks)


def _backward(
    call: Call, saved: tuple[Any, ...], cotangents: tuple[Any, Array]
) -> tuple[Any, Array, Any, Masks]:
    (weights, kept, masks), (d_final, d_ys) = saved, cotangents
    cell, tiles, reverse, _ = call
    (layers, size, columns), dtype = weights.w_h.shape, weights.w_h.dtype
    below = kept["outputs"][:-1]
    used = {k: x for k, x in kept.items() if k != "outputs"}
    exchanged = {"d_gx": jax.ShapeDtypeStruct((layers, *d_ys.shape[:2], columns), dtype)}
    if isinstance(cell, GRU):
        exchanged["d_q"] = jax.ShapeDtypeStruct((layers, *d_ys.shape), dtype)
    above = jnp.roll(weights.w_x, -1, axis=0)  # the last layer's, zeros, are of no layer above
    both = jnp.concatenate([weights.w_h, above], axis=2)
    arrays = Arrays(
        weights=both.reshape(layers, tiles.parts, size // tiles.parts, 2 * columns),
        initial=d_final._asdict(),
        inputs=hopper._used(cell, used) | {"d_ys": d_ys},
        vectors=_vectors(weights) if isinstance(cell, LSTM) else None,
        marks=hopper._marks(masks, masks.reset, tiles),
        exchanged=exchanged,
        outputs={},
        over={},
    )
    step = hopper_stack_block.backward(cell)
    out = hopper_stack_block.call(
        step, arrays, None, tiles, tiles.backward, not reverse, call.interpret
    )
    d_gx = out["d_gx"]
    gradients = partial(fused._weight_gradients, cell)
    recurrent = weights._replace(w_x=None, b=None)
    d_weights = jax.vmap(gradients)(recurrent, d_final, used, d_gx)
    d_w_x = jax.vmap(Rows.outer)(below, d_gx[1:]).astype(dtype)
    d_b = d_gx[1:].astype(jnp.float32).sum((1, 2)).astype(weights.b.dtype)
    none = [jnp.zeros_like(w[:1]) for w in (weights.w_x, weights.b)]
    d_weights = d_weights._replace(
        w_x=jnp.concatenate([none[0], d_w_x]), b=jnp.concatenate([none[1], d_b])
    )
    d_states = d_final._replace(**{name: out[name] for name in d_final._fields})
    return d_weights, d_gx[0].astype(d_ys.dtype), d_states, Masks(None, None)


_run.defvjp(_forward, _backward)


def _vectors(weights: Any) -> Array | None:
    """[L, n, H] float32: `hopper._vectors` of every layer."""
    for name in ("w_c", "b_h"):
        vectors = getattr(weights, name, None)
        if vectors is not None:
            return vectors.reshape(len(vectors), -1, vectors.shape[-1]).astype(jnp.float32)
    return None


# --- whether, and in which cut --------------------------------------------------------------------


def unsupported_reason(cell: Any, layers: int, batch: int, dtype: Any) -> str | None:
    """Why the kernel cannot run these layers on the GPU at hand; None where it can."""
    reason = hopper_search.unserved(dtype)
    if reason:
        return reason
    if layers < 2:
        return f"it runs two layers or more at once, not {layers}"
    if isinstance(cell, GRU) and cell.reset == "before":
        return (
            "a GRU that resets before its product exchanges twice in a step; run it layer by layer "
            "or use reset='after'"
        )
    if tiles_for(cell, layers, batch, dtype) is None:
        return (
            f"w_h and w_x of {layers} layers of H = {cell.hidden_size} in {jnp.dtype(dtype)} do not fit "
            f"the shared memory of {hopper_search.multiprocessors()} multiprocessors; run them layer "
            "by layer"
        )
    return None


def tiles_for(cell: Any, layers: int, batch: int, dtype: Any) -> Tiles | None:
    """The cut of every layer with the least time by the model; None where none fits."""
    room = hopper_residency.room()
    return hopper_search.search(cell, batch, jnp.dtype(dtype), room, layers)


def pays(cell: Any, layers: int, steps: int, batch: int, dtype: Any) -> bool:
    """Whether by the model all layers at once take less time than one by one."""
    return (
        unsupported_reason(cell, layers, batch, dtype) is None
        and gain(cell, layers, steps, batch, dtype) > 1
    )


def gain(cell: Any, layers: int, steps: int, batch: int, dtype: Any) -> float:
    """By the model, how many times as long the recurrence takes layer by layer, there and back.

    0 where the layers do not fit at once, infinity where one does not fit alone.
    """
    at_once = tiles_for(cell, layers, batch, dtype)
    one = hopper_search.tiles_for(cell, batch, dtype)
    if at_once is None or one is None:
        return 0.0 if at_once is None else math.inf
    tick, step = (
        sum(hopper_model.microseconds(cell, tiles, dtype, n).values())
        for tiles, n in ((at_once, layers), (one, 1))
    )
    return layers * steps * step / (hopper_stack_block.ticks(steps, layers) * tick)
