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
(`kernels.xla.weight_gradients`). What a step computes is in `kernels.tpu.steps`, what
fits in `tpu_tiles`, the kernel that keeps the weights in `tpu_resident`, and the one that streams them
in `tpu_stream`.

Rows of B and steps of T that do not fill the last block are cut off by Pallas; H is padded here to
whole tiles of 128 with zeros, which stay without effect on every real unit, and cropped.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp

from jaxrnn.recurrence.cells import GRU, LSTM
from jaxrnn.recurrence.inputs import Inputs, Masks
from jaxrnn.recurrence.kernels import fused
from jaxrnn.recurrence.kernels.fused import Call, Plan
from jaxrnn.recurrence.kernels.tpu import resident as tpu_resident
from jaxrnn.recurrence.kernels.tpu import streamed as tpu_stream
from jaxrnn.recurrence.kernels.tpu.tiles import LANES, round_up, tiles_for, unsupported_reason
from jaxrnn.recurrence.kernels.tpu.views import Arrays, Like
from jaxrnn.shapes import Array, Float


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
      cell, params, gx, state, masks, reverse: as for `kernels.xla.run`; params in float32 or
        bfloat16.
      interpret: run as plain JAX on any device, for tests: True, or a `pltpu.InterpretParams`.

    Raises:
      ValueError: where `unsupported_reason` names one.
    """
    return fused.run(KERNELS, cell, params, gx, state, masks, reverse, interpret)


# --- the two calls ------------------------------------------------------------------------------


def _forward(
    call: Call, weights: Any, gx: Array, state: Any, masks: Masks, keep: bool
) -> dict[str, Any]:
    cell = call.cell
    steps, batch, _ = gx.shape
    size = cell.hidden_size
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
    return _run(call, "forward", call.reverse, arrays)


def _backward(
    call: Call, weights: Any, kept: dict[str, Any], d_final: Any, d_ys: Array, masks: Masks
) -> dict[str, Any]:
    cell = call.cell
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
    out = _run(call, "backward", not call.reverse, arrays)
    return out | {"d_gx": fused.together(out["d_gx"])}


def _run(call: Call, direction: str, reverse: bool, arrays: Arrays) -> dict[str, Any]:
    """The outputs by name, from the kernel for which there is room."""
    tiles = tiles_for(call.cell, *arrays.steps_and_rows, arrays.matrix.dtype)
    assert tiles is not None  # `run` has asked
    kernel = tpu_stream if tiles.streamed else tpu_resident
    return kernel.call(call.cell, direction, reverse, call.interpret, tiles, arrays)


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


def _plan(cell: Any, batch: int, dtype: Any) -> Plan:
    """Rows as they are: Pallas cuts off those of the last block that are not there."""
    return Plan(batch, round_up(cell.hidden_size, LANES))


KERNELS = fused.Kernels(unsupported_reason, _plan, _forward, _backward)
