"""Several layers of one cell on a Hopper GPU in one launch: a wavefront over layers and time.

T steps of L layers take T + 2 (L - 1) ticks instead of L * T steps, in one launch forward and one
backward. The inputs of all layers but the first are products in the kernel, whose W_x stays on the chip
beside W_h. `stack_block` is the kernel. Where `pays` does not say that this takes less time, layers run
one after the other. A char-RNN takes it by `dispatch.layers_at_once`; `run` is for other models.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels import fused, xla
from jaxrnn.recurrence.kernels.fused import Call
from jaxrnn.recurrence.kernels.hopper import cost_model, layer, residency, search, stack_block
from jaxrnn.recurrence.kernels.hopper.launch import Arrays
from jaxrnn.recurrence.kernels.hopper.tiles import BuiltinCell, DoesNotFitError, Tiling, width
from jaxrnn.recurrence.kernels.xla.layouts import Rows
from jaxrnn.recurrence.problem import Lookup, Masks, Problem, Residuals, vary
from jaxrnn.shapes import Array, Float


def run(
    cell: BuiltinCell,
    layers: tuple[Any, ...],
    gx: Float[Array, "T B G"] | Lookup,
    states: tuple[Any, ...],
    masks: Masks,
    reverse: bool,
    *,
    interpret: Any = False,
) -> tuple[tuple[Any, ...], Float[Array, "T B H"]]:
    """Return the final state of every layer, and the last layer's outputs [T, B, H] in float32.

    They are the results of `kernels.xla.run` layer after layer, with the outputs between layers in the
    weights' dtype, and have a hand-written derivative.

    Args:
      cell: the cell of every layer.
      layers: the parameters of each layer, the first layer first, in bfloat16, float16 or float32. The
        w_x and b of the first layer are not used, since `gx` holds the projected inputs.
      gx: the first layer's projected inputs.
      states: the state of each layer before the first step that is run.
      masks: the masks of all layers.
      reverse: whether to run from the last step to the first, in all layers.
      interpret: to run as plain JAX on any device, for tests: a `plgpu.InterpretGPUParams` (JAX 0.11.2)
        that ignores `inline_mgpu`.

    Raises:
      ValueError: for layers that the kernel cannot run.
    """
    steps, batch, _ = gx.shape
    dtype = layers[0].w_h.dtype
    if not steps:
        return states, jnp.zeros((0, batch, cell.hidden_size), gx.dtype)
    reason = unsupported_reason(cell, len(layers), batch, dtype)
    if reason:
        raise ValueError(f"the kernel for several layers cannot run this: {reason}")
    tiling = tiling_for(cell, len(layers), batch, dtype)
    padded = dataclasses.replace(cell, hidden_size=width(cell.hidden_size))
    pad = partial(fused.pad_units, size=cell.hidden_size, to=padded.hidden_size)
    more = partial(fused.pad_rows, to=tiling.rows * tiling.blocks)
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
    final, ys = _run(Call(padded, tiling, reverse, interpret), *arguments)
    cropped = jax.tree.map(lambda s: s[:, :batch, : cell.hidden_size], final)
    by_layer = zip(*jax.tree.map(list, cropped), strict=True)
    return tuple(states[0]._make(s) for s in by_layer), ys[:, :batch, : cell.hidden_size]


def _stacked(layers: tuple[Any, ...], pad: Any, gates: int) -> Any:
    """Return the padded parameters, stacked along an axis of layers; the first w_x and b are zeros."""

    def padded(params: Any) -> Any:
        recurrent = fused.pad_weights(params._replace(w_x=None, b=None), gates, pad)
        w_x = pad(pad(params.w_x, gates).T, 1).T
        return recurrent._replace(w_x=w_x, b=pad(params.b, gates))

    first = layers[0]
    first = first._replace(w_x=jnp.zeros_like(first.w_h), b=jnp.zeros_like(first.b))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(padded, (first, *layers[1:])))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(call: Call, weights: Any, gx: Array, states: Any, masks: Masks) -> tuple[Any, Array]:
    return _forward(call, weights, gx, states, masks, keep=False)[0]


def _forward(
    call: Call, weights: Any, gx: Array, states: Any, masks: Masks, keep: bool = True
) -> tuple[tuple[Any, Array], tuple[Any, ...]]:
    cell, tiling = call.cell, call.tiles
    layers, size, columns = weights.w_h.shape
    gates = len(cell.GATES)
    by_step = layers, *gx.shape[:2], size
    narrow = jax.ShapeDtypeStruct(by_step, weights.w_h.dtype)
    wide = jax.ShapeDtypeStruct(by_step, jnp.float32)
    outputs = {"ys": wide}
    if keep:
        outputs["gates"] = jax.ShapeDtypeStruct((*by_step[:-1], columns), jnp.float32)
        if cell.kind is CellKind.LSTM:
            outputs["previous_cell"] = wide
        if cell.kind is CellKind.GRU_AFTER:
            outputs["q"] = wide
    both = jnp.concatenate([weights.w_h, weights.w_x], axis=1)
    both = both.reshape(layers, 2 * size, gates, tiling.parts, size // tiling.parts)
    arrays = Arrays(
        weights=both.transpose(0, 3, 2, 4, 1).reshape(layers, tiling.parts, -1, 2 * size),
        initial=layer.reset_initial_state(states, masks, call.reverse)._asdict(),
        inputs={"gx": gx},
        vectors=fused.recurrent_vectors(weights),
        masks=layer.stacked_masks(masks, layer.reset_after_step(masks.reset, call.reverse), tiling),
        exchanged={"previous_hidden": narrow, "outputs": narrow},
        outputs=outputs,
        overlays={"gates": "gx"} if keep else {},
        bias=weights.b.reshape(layers, gates, size).astype(jnp.float32),
    )
    steps = stack_block.forward(cell, keep)
    out = stack_block.call(steps, arrays, tiling, tiling.forward, call.reverse, call.interpret)
    residuals = None
    if keep:
        residuals = Residuals(
            previous_hidden=out.exchanged["previous_hidden"],
            gates=out.outputs["gates"],
            previous_cell=out.outputs.get("previous_cell"),
            q=out.outputs.get("q"),
        )
    final = states._replace(**out.final)
    return (final, out.outputs["ys"][-1]), (weights, residuals, out.exchanged["outputs"], masks)


def _backward(
    call: Call, saved: tuple[Any, ...], cotangents: tuple[Any, Array]
) -> tuple[Any, Array, Any, Masks]:
    weights, residuals, published_outputs, masks = saved
    d_final, d_ys = cotangents
    cell, tiling = call.cell, call.tiles
    layers, size, columns = weights.w_h.shape
    dtype = weights.w_h.dtype
    exchanged = {"d_gx": jax.ShapeDtypeStruct((layers, *d_ys.shape[:2], columns), dtype)}
    if cell.kind is CellKind.GRU_AFTER:
        exchanged["d_q"] = jax.ShapeDtypeStruct((layers, *d_ys.shape), dtype)
    # Each layer multiplies the w_x of the layer above. The last one has none above it and gets zeros.
    above = jnp.roll(weights.w_x, -1, axis=0)
    both = jnp.concatenate([weights.w_h, above], axis=2)
    arrays = Arrays(
        weights=both.reshape(layers, tiling.parts, size // tiling.parts, 2 * columns),
        initial=d_final._asdict(),
        inputs=layer.backward_inputs(cell, residuals) | {"d_ys": d_ys},
        vectors=fused.recurrent_vectors(weights) if cell.kind is CellKind.LSTM else None,
        masks=layer.stacked_masks(masks, masks.reset, tiling),
        exchanged=exchanged,
        outputs={},
        overlays={},
    )
    steps = stack_block.backward(cell)
    out = stack_block.call(steps, arrays, tiling, tiling.backward, not call.reverse, call.interpret)
    d_gx = out.exchanged["d_gx"]
    recurrent = weights._replace(w_x=None, b=None)
    d_weights = jax.vmap(partial(xla.weight_gradients, cell))(recurrent, d_final, residuals, d_gx)
    d_w_x = jax.vmap(Rows.outer)(published_outputs[:-1], d_gx[1:]).astype(dtype)
    d_b = d_gx[1:].astype(jnp.float32).sum((1, 2)).astype(weights.b.dtype)
    d_weights = d_weights._replace(
        w_x=jnp.concatenate([jnp.zeros_like(weights.w_x[:1]), d_w_x]),
        b=jnp.concatenate([jnp.zeros_like(weights.b[:1]), d_b]),
    )
    return d_weights, d_gx[0].astype(d_ys.dtype), d_final._replace(**out.final), Masks()


_run.defvjp(_forward, _backward)


# --- whether it can run, and in which tiling ------------------------------------------------------


def unsupported_reason(cell: BuiltinCell, layers: int, batch: int, dtype: Any) -> str | None:
    """Return why the kernel cannot run these layers on the GPU in use, or None where it can.

    Args:
      cell: the cell of every layer.
      layers: number of layers.
      batch: number of rows.
      dtype: dtype of the parameters.
    """
    reason = search.unsupported_here(dtype)
    if reason:
        return reason
    if layers < 2:
        return f"it runs two layers or more at once, not {layers}"
    if cell.kind is CellKind.GRU_BEFORE:
        return (
            "a GRU that resets before its product exchanges twice in a step; run it layer by layer "
            "or use reset='after'"
        )
    try:
        tiling_for(cell, layers, batch, dtype)
    except DoesNotFitError as error:
        return f"{error}; run them layer by layer"
    return None


def tiling_for(cell: BuiltinCell, layers: int, batch: int, dtype: Any) -> Tiling:
    """Return the tiling of every layer with the least time by the cost model.

    Raises:
      DoesNotFitError: where none fits.
    """
    tiling = search.search(cell, batch, jnp.dtype(dtype), residency.room(), layers)
    if tiling is None:
        raise DoesNotFitError(
            f"w_h and w_x of {layers} layers of H = {cell.hidden_size} in {jnp.dtype(dtype)} do not fit "
            f"the shared memory of {search.multiprocessors()} multiprocessors"
        )
    return tiling


def pays(first: Problem, layers: int) -> bool:
    """Return whether by the cost model one launch takes less time than layer after layer.

    Args:
      first: the problem of the first layer.
      layers: the number of layers.
    """
    cell, batch, dtype = first.cell, first.batch, first.dtype
    return (
        unsupported_reason(cell, layers, batch, dtype) is None
        and gain(cell, layers, first.steps, batch, dtype) > 1
    )


def gain(cell: BuiltinCell, layers: int, steps: int, batch: int, dtype: Any) -> float:
    """Return the time layer after layer over that of one launch, forward and backward, by the model.

    It is 0 where the layers do not fit in one launch, and infinite where a single one does not fit.
    """
    try:
        at_once = tiling_for(cell, layers, batch, dtype)
    except DoesNotFitError:
        return 0.0
    try:
        one = search.tiling_for(cell, batch, dtype)
    except DoesNotFitError:
        return math.inf
    tick = sum(cost_model.microseconds(cell, at_once, dtype, layers).values())
    step = sum(cost_model.microseconds(cell, one, dtype).values())
    return layers * steps * step / (stack_block.ticks(steps, layers) * tick)
