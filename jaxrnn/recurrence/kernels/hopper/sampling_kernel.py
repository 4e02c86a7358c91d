"""The launch of the sampling kernel, and its shared memory; `hopper_sampling_part` is what it does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.kernels.hopper.mosaic import Like, launch, smem
from jaxrnn.recurrence.kernels.hopper.sampling_cta import PIECE, Arrays, Cut, Part
from jaxrnn.recurrence.kernels.hopper.tiles import M
from jaxrnn.shapes import Array


def call(cell: Any, arrays: Arrays, cut: Cut, size: int, interpret: Any) -> dict[str, Array]:
    """The state after the last character by name, `scores` [64, V] and `tokens` [size, 64] int32.

    size: of the tokens, at least `length`.
    interpret: a `plgpu.InterpretGPUParams`, or None or False for a GPU.
    """
    given = {k: x for k, x in arrays._asdict().items() if k != "state" and x is not None}
    given |= {f"initial_{k}": x for k, x in arrays.state.items()}
    layers, _, width = arrays.vectors.shape
    dtype = arrays.weights.dtype
    made = {k: Like(x.shape, x.dtype) for k, x in arrays.state.items()}
    made["scores_out"] = Like(arrays.scores.shape, jnp.float32)
    made["tokens"] = Like((size, M), jnp.int32)
    made["hidden_states"] = Like((layers, 2, M, width), dtype)
    made["reset_hidden"] = Like((M, width), dtype)

    def kernel(*refs: Any, **scratch: Any) -> None:
        named = dict(zip((*given, *made), refs, strict=True))
        Part(cell, arrays, cut, SimpleNamespace(**named, **scratch)).run()

    kernel.__name__ = f"{type(cell).__name__.lower()}_sampling"
    return launch(
        kernel,
        given,
        made,
        {"bundle": cut.parts // cut.cluster},
        {"peer": cut.cluster},
        interpret,
        scratch_types=_scratch(arrays, cut),
    )


def _scratch(arrays: Arrays, cut: Cut) -> dict[str, Any]:
    dtype, wide = arrays.weights.dtype, jnp.float32
    _, count, depth = arrays.weights.shape
    pieces, output = arrays.scores.shape[1] // PIECE, arrays.output.shape[2] // cut.chunk
    layers, states = len(arrays.vectors), len(arrays.state)
    resident = depth // cut.chunk
    swizzled = cut.units * dtype.itemsize >= 32  # narrower rows TMA moves as they are
    scratch = {
        "kept": smem((resident, count, cut.chunk), dtype),
        "kept_table": smem((2 * pieces, count, PIECE), dtype),
        "kept_output": smem((output, cut.columns, cut.chunk), dtype),
        "loaded": plgpu.Barrier(num_arrivals=resident + 2 * pieces + output, num_barriers=1),
        "states": smem((layers, states, M, cut.units), wide),
        "ring": smem((cut.slots, M, cut.chunk), dtype),
        "fetched": plgpu.Barrier(num_barriers=cut.slots),
        "seen": smem((pieces, M, PIECE), wide),
        "all_seen": plgpu.Barrier(num_arrivals=pieces, num_barriers=1),
        "one_hot": smem((pieces, M, PIECE), dtype),
        "own_units": (smem if swizzled else plgpu.SMEM)((M, cut.units), dtype),
        "own_columns": smem((M, cut.columns), wide),
    }
    if cut.cluster > 1:
        scratch["met"] = plgpu.ClusterBarrier(collective_axes=("peer",), num_barriers=1)
    return scratch


def shared(gates: int, layers: int, states: int, width: int, size: int, cut: Cut, each: int) -> int:
    """Bytes of shared memory; size: of the vocabulary with its padding, each: of a weight."""
    count = gates * cut.units
    kept = count * ((2 * layers - 1) * width + 2 * size) + cut.columns * width
    moved = M * (cut.slots * cut.chunk + size + cut.units)
    wide = M * (layers * states * cut.units + size + cut.columns)
    barriers = 8 * (cut.slots + 3)
    return each * (kept + moved) + 4 * wide + barriers
