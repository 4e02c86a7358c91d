"""A cell over time on a Hopper GPU (H100, H200), as persistent kernels in Pallas Mosaic GPU.

One launch runs all steps forward, one backward. The recurrent weights stay in the shared memory of the
GPU's multiprocessors, each holding those of some units; the hidden state goes from one to all at every
step, published in memory that L2 caches:

    w_h [H, G]                 in shared memory from the first step to the last
    gx [T, B, G]               fetched a step or two ahead
    c, h [B, H]                in registers, float32
    h, or back dgx             published in the weights' dtype, in which every product takes it
    gates, previous c, ys      put out in float32, gates only where a backward pass will want them

`hopper_tiles` cuts the problem, `hopper_kernel` launches the kernel, `hopper_block` is what a warpgroup
does in it, `hopper_cells` what a step of each cell is. bfloat16 and float16 products accumulate in
float32; float32 products are TF32's, with 10 bits of mantissa.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.cells import GRU, LSTM
from jaxrnn.recurrence.inputs import Inputs, Masks
from jaxrnn.recurrence.kernels import fused
from jaxrnn.recurrence.kernels.fused import Call, Plan
from jaxrnn.recurrence.kernels.hopper import launch as hopper_kernel
from jaxrnn.recurrence.kernels.hopper import steps as hopper_cells
from jaxrnn.recurrence.kernels.hopper.arrays import Arrays
from jaxrnn.recurrence.kernels.hopper.search import tiles_for, unsupported_reason
from jaxrnn.recurrence.kernels.hopper.tiles import M, Tiles, width
from jaxrnn.shapes import Array, Bool, Float


def run(
    cell: Any,
    params: Any,
    gx: Inputs,
    state: Any,
    masks: Masks,
    reverse: bool,
    *,
    interpret: Any = False,
) -> tuple[Any, Float[Array, "T B H"]]:
    """The final state and every output [T, B, H] in float32, differentiable by hand.

    Args:
      cell, params, gx, state, masks, reverse: as for `kernels.xla.run`; params in bfloat16,
        float16 or float32.
      interpret: run as plain JAX on any device, for tests: a `plgpu.InterpretGPUParams` (JAX 0.11.2)
        that ignores `inline_mgpu`.

    Raises:
      ValueError: where `unsupported_reason` names one.
    """
    return fused.run(KERNELS, cell, params, gx, state, masks, reverse, interpret)


def _plan(cell: Any, batch: int, dtype: Any) -> Plan:
    tiles = tiles_for(cell, batch, dtype)
    assert tiles is not None  # `unsupported_reason` has been asked
    return Plan(tiles.rows * tiles.blocks, width(cell.hidden_size), tiles)


def _forward(
    call: Call, weights: Any, gx: Array, state: Any, masks: Masks, keep: bool
) -> dict[str, Array]:
    cell, tiles, reverse, _ = call
    (steps, batch, _), size, dtype = gx.shape, cell.hidden_size, weights.w_h.dtype
    narrow = partial(jax.ShapeDtypeStruct, dtype=dtype)
    wide = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    by_step = steps, batch, size
    exchanged, outputs = {"previous_hidden": narrow(by_step)}, {"ys": wide(by_step)}
    if isinstance(cell, GRU) and cell.reset == "before":
        exchanged["reset_hidden"] = narrow(by_step)
    if keep:
        outputs["gates"] = wide(gx.shape)
        if isinstance(cell, LSTM):
            outputs["previous_cell"] = wide(by_step)
        if isinstance(cell, GRU) and cell.reset == "after":
            outputs["q"] = wide(by_step)
    if masks.reset is not None:
        first = masks.reset[-1 if reverse else 0][:, None]
        state = jax.tree.map(lambda s: jnp.where(first, 0, s), state)
    apart = weights.w_h.reshape(size, len(cell.GATES), tiles.parts, size // tiles.parts)
    arrays = Arrays(
        weights=apart.transpose(2, 1, 3, 0).reshape(tiles.parts, -1, size),
        initial=state._asdict(),
        inputs={"gx": gx},
        vectors=_vectors(weights),
        marks=_marks(masks, _next(masks.reset, reverse), tiles),
        exchanged=exchanged,
        outputs=outputs,
        over={"gates": "gx"} if keep else {},
    )
    step = hopper_cells.forward(cell, keep)
    return hopper_kernel.call(step, arrays, tiles, tiles.forward, reverse, call.interpret)


def _backward(
    call: Call, weights: Any, kept: dict[str, Array], d_final: Any, d_ys: Array, masks: Masks
) -> dict[str, Array]:
    cell, tiles, reverse, _ = call
    (steps, batch, size), gates, dtype = d_ys.shape, len(cell.GATES), weights.w_h.dtype
    narrow = partial(jax.ShapeDtypeStruct, dtype=dtype)
    exchanged = {"d_gx": narrow((steps, batch, gates * size))}
    if isinstance(cell, GRU) and cell.reset == "after":
        exchanged["d_q"] = narrow((steps, batch, size))
    order = jnp.array(hopper_cells.order_of_gates(cell))
    ordered = weights.w_h.reshape(size, gates, size)[:, order]
    arrays = Arrays(
        weights=ordered.reshape(tiles.parts, size // tiles.parts, gates * size),
        initial=d_final._asdict(),
        inputs=_used(cell, kept) | {"d_ys": d_ys},
        vectors=_vectors(weights) if isinstance(cell, LSTM) else None,
        marks=_marks(masks, masks.reset, tiles),
        exchanged=exchanged,
        outputs={},
        over={},
    )
    step = hopper_cells.backward(cell)
    out = hopper_kernel.call(step, arrays, tiles, tiles.backward, not reverse, call.interpret)
    return {"d_gx": out["d_gx"]} | {f"d_{state}": out[state] for state in d_final._fields}


def _used(cell: Any, kept: dict[str, Array]) -> dict[str, Array]:
    """Of what the forward kernel put out, what the backward kernel reads."""
    return {k: x for k, x in kept.items() if k != "previous_hidden" or isinstance(cell, GRU)}


def _vectors(weights: Any) -> Array | None:
    """[n, H] float32 beside w_h: an LSTM's peepholes, or b_h; None where the cell has none."""
    for name in ("w_c", "b_h"):
        vectors = getattr(weights, name, None)
        if vectors is not None:
            return jnp.atleast_2d(vectors).astype(jnp.float32)
    return None


def _next(reset: Bool[Array, "T B"] | None, reverse: bool) -> Array | None:
    """Whether a row starts afresh in the step that is taken after this one."""
    if reset is None:
        return None
    none = jnp.zeros_like(reset[:1])
    return jnp.concatenate([none, reset[:-1]] if reverse else [reset[1:], none])


def _marks(masks: Masks, dropped: Array | None, tiles: Tiles) -> Array | None:
    """[2, T, blocks, 64] float32: whether a row moves, and whether its state is dropped after it."""
    known = masks.active if masks.active is not None else dropped
    if known is None:
        return None
    active = jnp.ones_like(known) if masks.active is None else masks.active
    dropped = jnp.zeros_like(known) if dropped is None else dropped
    marks = jnp.stack([active, dropped]).astype(jnp.float32)
    marks = marks.reshape(2, -1, tiles.blocks, tiles.rows)
    return jnp.pad(marks, ((0, 0), (0, 0), (0, 0), (0, M - tiles.rows)))


KERNELS = fused.Kernels(unsupported_reason, _plan, _forward, _backward)
