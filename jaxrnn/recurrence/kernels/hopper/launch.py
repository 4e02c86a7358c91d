"""The launch of the persistent Hopper kernel, and its shared memory; `hopper_block` is what it does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.kernels.hopper.arrays import Arrays, Steps, gate_count
from jaxrnn.recurrence.kernels.hopper.block import Block
from jaxrnn.recurrence.kernels.hopper.mosaic import launch, smem
from jaxrnn.recurrence.kernels.hopper.tiles import STREAM, M, Memory, Tiles
from jaxrnn.shapes import Array


def call(
    steps: Steps, arrays: Arrays, tiles: Tiles, memory: Memory, reverse: bool, interpret: Any
) -> dict[str, Array]:
    """The exchanged arrays, the outputs, and the running state after the last step, by name.

    memory: of `tiles`, that of this direction.
    reverse: from the last step to the first.
    interpret: a `plgpu.InterpretGPUParams` that ignores `inline_mgpu`, or None or False for a GPU.
    """
    given, made = arrays.given, arrays.made

    def body(*refs: Any, **scratch: Any) -> None:
        named = dict(zip((*given, *made), refs, strict=True))
        refs_by_name = SimpleNamespace(**named, **scratch)
        Block(arrays, tiles, memory, steps, reverse, refs_by_name).run()

    body.__name__ = steps.name
    scratch = scratch_of(steps, arrays, tiles, memory)
    if tiles.cluster == tiles.parts > 1:
        scratch["met"] = meeting(tiles, "peer")
    return launch(
        body,
        given,
        made,
        {"group": tiles.groups, "bundle": tiles.parts // tiles.cluster},
        {"peer": tiles.cluster},
        interpret,
        scratch_types=scratch,
        num_threads=tiles.warpgroups,
        thread_name="warpgroup",
    )


def scratch_of(steps: Steps, arrays: Arrays, tiles: Tiles, memory: Memory) -> dict[str, Any]:
    """Shared memory and barriers, without those to meet at.

    What a warpgroup has to itself begins with an axis of them.
    """
    _, count, depth_k = arrays.weights.shape
    dtype, each = arrays.weights.dtype, tiles.warpgroups
    units = next(iter(arrays.initial.values())).shape[1] // tiles.parts
    wide = [name for name in arrays.outputs if name not in arrays.over]
    staged = sum(gate_count(arrays.outputs[name], arrays) for name in wide)
    scratch = {
        "kept": smem((memory.resident, count, memory.chunk), dtype),
        "ring": smem((each, tiles.ring_rows(memory.slots), memory.chunk), dtype),
        "narrow": smem((each, steps.published, M, units), dtype),
        "wide": smem((each, max(staged, len(arrays.initial)), M, units), jnp.float32),
        "loaded": plgpu.Barrier(num_arrivals=memory.resident, num_barriers=1),
        "begun": plgpu.Barrier(num_arrivals=len(arrays.initial), num_barriers=each),
        "fetched": plgpu.Barrier(num_barriers=(each, memory.slots)),
    }
    if memory.resident * memory.chunk < depth_k:
        scratch["passing"] = smem((each, STREAM, count, memory.chunk), dtype)
        scratch["passed"] = plgpu.Barrier(num_barriers=(each, STREAM))
    if tiles.cluster > 1:
        scratch["freed"] = plgpu.ClusterBarrier(
            collective_axes=("peer",), num_barriers=(each, memory.slots)
        )
    for name, x in arrays.inputs.items():
        scratch[f"slots_{name}"] = smem(
            (each, memory.depth, gate_count(x, arrays), M, units), x.dtype
        )
    arrivals = sum(gate_count(x, arrays) for x in arrays.inputs.values())
    scratch["arrived"] = plgpu.Barrier(num_arrivals=arrivals, num_barriers=(each, memory.depth))
    return scratch


def meeting(tiles: Tiles, axis: str) -> Any:
    """Where the warpgroups with the same rows meet, along an axis of the cluster."""
    return plgpu.ClusterBarrier(collective_axes=(axis,), num_barriers=tiles.warpgroups)
