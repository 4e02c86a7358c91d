"""A cell over time on a TPU, as Pallas kernels.

One kernel runs the recurrence forward and one backward, each over blocks of rows of the batch and, in
order, over blocks of time:

    w_h [H, G]                 kept in VMEM, or streamed to it at every step where it is larger
    gx [T, B, G]               copied to VMEM, a block of a few steps and some rows at a time
    h, c [B, H]                in VMEM from the first step to the last
    gates, previous h and c    copied to HBM, only if a backward pass will need them

The gates stay in float32. The hidden state that entered each step is kept in the weights' dtype, in
which every product takes it, and the cell in float32. The backward kernel runs time the other way. It
computes only the recurrent chain

    dgx^t = d(gates' inputs),    dh^{t-1} = dgx^t W_h^T + elementwise terms

with W_h^T in the place of W_h. dW_h is one large product of what the two kernels put out
(`kernels.xla.weight_gradients`).

Pallas crops the rows and steps that do not fill the last block. H is padded here to whole tiles of 128
units with zeros, which have no effect on the real units, and cropped.

README.md in this folder shows one step, and in which order to read the modules.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels import fused
from jaxrnn.recurrence.kernels.fused import Call, Plan
from jaxrnn.recurrence.kernels.tpu import resident, streamed
from jaxrnn.recurrence.kernels.tpu.launch import Arrays, Kernel
from jaxrnn.recurrence.kernels.tpu.steps import BACKWARD, FORWARD, Step
from jaxrnn.recurrence.kernels.tpu.tiles import LANES, round_up, tiles_for, unsupported_reason
from jaxrnn.recurrence.problem import Masks, Problem, Residuals
from jaxrnn.shapes import Array, Float

__all__ = ["run", "unsupported_reason"]


def run(problem: Problem, *, interpret: Any = False) -> tuple[Any, Float[Array, "T B H"]]:
    """Return the final state and the outputs [T, B, H] in float32.

    Args:
      problem: of an RNN, LSTM or GRU with parameters in float32 or bfloat16.
      interpret: how to run as plain JAX on any device, for tests: True, or a `pltpu.InterpretParams`;
        False on a TPU.

    Raises:
      ValueError: for a problem that `unsupported_reason` refuses.
    """
    return fused.run(KERNELS, problem, interpret)


def _forward(
    call: Call, weights: Any, gx: Array, state: Any, masks: Masks, keep: bool
) -> tuple[Any, Array, Residuals | None]:
    kind = call.cell.kind
    steps, batch, _ = gx.shape
    of_step = batch, call.cell.hidden_size
    of_all = steps, *of_step
    wide = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    # Every product takes its operands in the weights' dtype.
    narrow = partial(jax.ShapeDtypeStruct, dtype=weights.w_h.dtype)
    outputs = {"ys": wide(of_all)}
    outputs |= {name: wide(of_step) for name in state._fields}
    scratch: dict[str, jax.ShapeDtypeStruct] = {}
    if keep:
        outputs["gates"] = wide(gx.shape)
        outputs["previous_hidden"] = narrow(of_all)
        if kind is CellKind.LSTM:
            outputs["previous_cell"] = wide(of_all)
        if kind is CellKind.GRU_AFTER:
            outputs["q"] = wide(of_all)
    else:
        scratch["previous_hidden"] = narrow(of_all)
    if kind is CellKind.GRU_BEFORE:
        scratch["z"] = wide(of_step)
        scratch["reset_hidden"] = narrow(of_step)
    arrays = Arrays(
        by_step={"gx": gx} | _masks(masks),
        initial=state._asdict(),
        weights={"w_h": weights.w_h} | _vectors(weights),
        outputs=outputs,
        scratch=scratch,
        aliases={"gx": "gates"} if keep else {},
    )
    out = _launch(call, "forward", FORWARD[kind], call.reverse, arrays)
    final = state._replace(**{name: out[name] for name in state._fields})
    if not keep:
        return final, out["ys"], None
    residuals = Residuals(
        out["previous_hidden"], out["gates"], out.get("previous_cell"), out.get("q")
    )
    return final, out["ys"], residuals


def _backward(
    call: Call, weights: Any, residuals: Residuals, d_final: Any, d_ys: Array, masks: Masks
) -> tuple[Float[Array, "T B G"], Any]:
    kind = call.cell.kind
    steps, batch, size = d_ys.shape
    wide = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    narrow = partial(jax.ShapeDtypeStruct, dtype=weights.w_h.dtype)
    kept = {name: x for name, x in residuals._asdict().items() if x is not None}
    if kind in (CellKind.RNN, CellKind.LSTM):
        # Only the product for dW_h needs it.
        del kept["previous_hidden"]
    initial = {f"d_{name}": d for name, d in d_final._asdict().items()}
    outputs = {"d_gx": narrow((steps, batch, weights.w_h.shape[1]))}
    outputs |= {name: wide((batch, size)) for name in initial}
    arrays = Arrays(
        by_step=kept | {"d_ys": d_ys} | _masks(masks),
        initial=initial,
        weights={"w_t": weights.w_h.T} | _vectors(weights),
        outputs=outputs,
        scratch={"d_q": narrow((batch, size))} if kind is CellKind.GRU_AFTER else {},
        aliases={},
    )
    out = _launch(call, "backward", BACKWARD[kind], not call.reverse, arrays)
    d_state = d_final._replace(**{name: out[f"d_{name}"] for name in d_final._fields})
    return _side_by_side(out["d_gx"]), d_state


def _launch(
    call: Call, direction: str, step: Step, reverse: bool, arrays: Arrays
) -> dict[str, Any]:
    """Return the outputs by name, of the kernel for which there is room in VMEM."""
    tiles = tiles_for(call.cell, *arrays.steps_and_rows, arrays.matrix.dtype)
    name = f"{type(call.cell).__name__.lower()}_{direction}"
    if tiles.streamed:
        name += "_streamed"
    kernel = Kernel(name, call.cell, step, tiles, reverse, call.interpret, arrays)
    return streamed.launch(kernel) if tiles.streamed else resident.launch(kernel)


def _vectors(weights: Any) -> dict[str, Array]:
    vectors = fused.recurrent_vectors(weights)
    return {} if vectors is None else {"vectors": vectors}


def _masks(masks: Masks) -> dict[str, Array]:
    """Return both masks in one array [T, B, 2] of float32, or none without masks."""
    both = fused.reset_and_active(masks, masks.reset)
    return {} if both is None else {"masks": jnp.stack(both, axis=-1).astype(jnp.float32)}


def _side_by_side(gates: Any) -> Float[Array, "T B G"]:
    """Return gates side by side; the streamed kernel may put them one after the other."""
    one_after_the_other = not isinstance(gates, tuple) and gates.ndim == 4
    return fused.join_gates(tuple(gates) if one_after_the_other else gates)


def _plan(cell: Any, batch: int, dtype: Any) -> Plan:
    # The rows stay as they are: Pallas crops those that the last block lacks.
    return Plan(batch, round_up(cell.hidden_size, LANES))


KERNELS = fused.Kernels(unsupported_reason, _plan, _forward, _backward)
