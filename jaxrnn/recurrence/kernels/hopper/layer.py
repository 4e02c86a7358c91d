"""One layer: its arrays for the forward and the backward kernel.

    w_h [H, G]                 on the chip from the first step to the last
    gx [T, B, G]               fetched a step or more ahead
    c, h [B, H]                in registers, float32
    h, backward: dgx           published in the weights' dtype, in which every product takes it
    gates, previous c, ys      stored, the gates only where a backward pass will need them

The kernel for large widths reads gx and stores results in float32. That for small widths does so in the
weights' dtype, since with many rows the bytes of a step take as long as its arithmetic.

Products of bfloat16 and float16 accumulate in float32; products of float32 are TF32's, for which
wgmma drops all but 10 bits of the operands' mantissas.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels import fused
from jaxrnn.recurrence.kernels.fused import Call, Plan
from jaxrnn.recurrence.kernels.hopper import block, one_cta, search, steps
from jaxrnn.recurrence.kernels.hopper.launch import Arrays
from jaxrnn.recurrence.kernels.hopper.search import tiling_for
from jaxrnn.recurrence.kernels.hopper.tiles import (
    Alone,
    BuiltinCell,
    DoesNotFitError,
    M,
    Tiling,
    width,
)
from jaxrnn.recurrence.kernels.xla.rules import unsupported_cell
from jaxrnn.recurrence.problem import Masks, Problem, Residuals
from jaxrnn.shapes import Array, Bool, Float


def unsupported_reason(problem: Problem) -> str | None:
    """Return why the kernels cannot run a problem on the GPU in use, or None where they can.

    Raises:
      ValueError: for an environment variable of `search` that asks for an impossible tiling.
    """
    reason = unsupported_cell(problem.cell) or search.unsupported_here(problem.dtype)
    if reason:
        return reason
    try:
        tiling_for(problem.cell, problem.batch, problem.dtype)
    except DoesNotFitError as error:
        return f"{error}; use 'xla'"
    return None


def run(problem: Problem, *, interpret: Any = False) -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state and the outputs [T, B, H] in float32, with a hand-written derivative.

    Args:
      problem: with parameters in bfloat16, float16 or float32.
      interpret: to run as plain JAX on any device, for tests: a `plgpu.InterpretGPUParams` (JAX 0.11.2)
        that ignores `inline_mgpu`.

    Raises:
      ValueError: for a problem that the kernels cannot run.
    """
    return fused.run(KERNELS, problem, interpret)


def _plan(cell: BuiltinCell, batch: int, dtype: Any) -> Plan:
    tiling = tiling_for(cell, batch, dtype)
    return Plan(tiling.rows * tiling.blocks, width(cell.hidden_size), tiling)


def _forward(
    call: Call, weights: Any, gx: Array, state: Any, masks: Masks, keep: bool
) -> tuple[Any, Array, Residuals | None]:
    cell, tiling = call.cell, call.tiles
    size = cell.hidden_size
    by_step = *gx.shape[:2], size
    alone = isinstance(tiling, Alone)
    if alone:
        gx = gx.astype(weights.w_h.dtype)
    narrow = jax.ShapeDtypeStruct(by_step, weights.w_h.dtype)
    wide = jax.ShapeDtypeStruct(by_step, gx.dtype)
    exchanged = {"previous_hidden": narrow}
    outputs = {"ys": wide}
    if cell.kind is CellKind.GRU_BEFORE:
        exchanged["reset_hidden"] = narrow
    if keep:
        outputs["gates"] = jax.ShapeDtypeStruct(gx.shape, gx.dtype)
        if cell.kind is CellKind.LSTM:
            outputs["previous_cell"] = wide
        if cell.kind is CellKind.GRU_AFTER:
            outputs["q"] = wide
    by_part = weights.w_h.reshape(size, len(cell.GATES), tiling.parts, size // tiling.parts)
    arrays = Arrays(
        weights=by_part.transpose(2, 1, 3, 0).reshape(tiling.parts, -1, size),
        initial=_reset_initial_state(state, masks, call.reverse)._asdict(),
        inputs={"gx": gx},
        vectors=fused.recurrent_vectors(weights),
        masks=_stacked_masks(masks, _reset_after_step(masks.reset, call.reverse), tiling),
        exchanged=exchanged,
        outputs=outputs,
        overlays={"gates": "gx"} if keep and not alone else {},
    )
    launch = one_cta.call if alone else block.call
    out = launch(
        steps.forward(cell, keep), arrays, tiling, tiling.forward, call.reverse, call.interpret
    )
    residuals = None
    if keep:
        residuals = Residuals(
            previous_hidden=out.exchanged["previous_hidden"],
            gates=out.outputs["gates"],
            previous_cell=out.outputs.get("previous_cell"),
            q=out.outputs.get("q"),
        )
    return state._replace(**out.final), out.outputs["ys"].astype(jnp.float32), residuals


def _backward(
    call: Call, weights: Any, residuals: Residuals, d_final: Any, d_ys: Array, masks: Masks
) -> tuple[Array, Any]:
    cell, tiling = call.cell, call.tiles
    gates = len(cell.GATES)
    size = cell.hidden_size
    narrow = partial(jax.ShapeDtypeStruct, dtype=weights.w_h.dtype)
    exchanged = {"d_gx": narrow((*d_ys.shape[:2], gates * size))}
    if cell.kind is CellKind.GRU_AFTER:
        exchanged["d_q"] = narrow(d_ys.shape)
    order = jnp.array(steps.gate_order(cell))
    alone = isinstance(tiling, Alone)
    if alone:
        d_ys = d_ys.astype(weights.w_h.dtype)
    ordered = weights.w_h.reshape(size, gates, size)[:, order]
    arrays = Arrays(
        weights=ordered.reshape(tiling.parts, size // tiling.parts, gates * size),
        initial=d_final._asdict(),
        inputs=_backward_inputs(cell, residuals) | {"d_ys": d_ys},
        vectors=fused.recurrent_vectors(weights) if cell.kind is CellKind.LSTM else None,
        masks=_stacked_masks(masks, masks.reset, tiling),
        exchanged=exchanged,
        outputs={},
        overlays={},
    )
    launch = one_cta.call if alone else block.call
    out = launch(
        steps.backward(cell), arrays, tiling, tiling.backward, not call.reverse, call.interpret
    )
    return out.exchanged["d_gx"], d_final._replace(**out.final)


KERNELS = fused.Kernels(unsupported_reason, _plan, _forward, _backward)


def _backward_inputs(cell: BuiltinCell, residuals: Residuals) -> dict[str, Array]:
    """Return the residuals that the backward kernel reads, by name."""
    inputs = {name: x for name, x in residuals._asdict().items() if x is not None}
    if cell.kind in (CellKind.RNN, CellKind.LSTM):
        # Only a GRU's derivative depends on it.
        del inputs["previous_hidden"]
    return inputs


def _reset_initial_state(state: Any, masks: Masks, reverse: bool) -> Any:
    """Return a state with zeros in the rows that are reset at the first step."""
    if masks.reset is None:
        return state
    first = masks.reset[-1 if reverse else 0][:, None]
    return jax.tree.map(lambda s: jnp.where(first, 0, s), state)


def _reset_after_step(reset: Bool[Array, "T B"] | None, reverse: bool) -> Array | None:
    """Return [T, B], true where a row is reset at the step that is run after this one."""
    if reset is None:
        return None
    none = jnp.zeros_like(reset[:1])
    return jnp.concatenate([none, reset[:-1]] if reverse else [reset[1:], none])


def _stacked_masks(masks: Masks, reset: Array | None, tiling: Tiling | Alone) -> Array | None:
    """Return `Arrays.masks`; reset: [T, B], true where a row's state is reset after the step."""
    both = fused.reset_and_active(masks, reset)
    if both is None:
        return None
    stacked = jnp.stack(both).astype(jnp.float32)
    if isinstance(tiling, Alone):
        return stacked
    stacked = stacked.reshape(2, -1, tiling.blocks, tiling.rows)
    return jnp.pad(stacked, ((0, 0), (0, 0), (0, 0), (0, M - tiling.rows)))
