"""The arrays of a Hopper kernel, in global and in shared memory, and its barriers.

`Arrays` describes the operands and results of a launch, `scratch_types` the shared memory and the
barriers of a CTA, and `Refs` is how the kernel refers to all of them. `StepFunctions` is what the
kernel does with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.kernels.hopper.mosaic import Like, Ref, smem
from jaxrnn.recurrence.kernels.hopper.tiles import M, Memory, Tiling
from jaxrnn.shapes import Array

# [64, units of a part] float32, in the kernel for small widths [64 units, rows], in registers in the
# layout of a wgmma's accumulator.
Tile = Array
# The state between two steps (backward: its derivative), by the field names of the cell's state.
State = dict[str, Tile]


class Arrays(NamedTuple):
    """The operands and results of a kernel, by name.

    [T, B, n * H] is n gates side by side.

    Attributes:
      weights: [parts, N, K], for each part the columns of its units, gate after gate, each K long.
      initial: [B, H] float32 each, the state before the first step.
      inputs: [T, B, n * H] each, read step by step.
      vectors: [n, H] float32, the cell's parameters beside w_h; None where there are none.
      masks: [2, T, blocks, 64] float32, in the kernel for small widths [2, T, B]; masks[0] is 1 where a
        row's state is reset after the step, masks[1] where a row is active in it. None where no row is
        ever reset or inactive.
      exchanged: [T, B, n * H] each, in the weights' dtype: results that the launch multiplies as well.
      outputs: [T, B, n * H] each, the other results.
      overlays: for outputs that are written over an input in shared memory, the input's name.
    """

    weights: Array
    initial: dict[str, Array]
    inputs: dict[str, Array]
    vectors: Array | None
    masks: Array | None
    exchanged: dict[str, Like]
    outputs: dict[str, Like]
    overlays: dict[str, str]

    @property
    def hidden_size(self) -> int:
        """H, the number of units with their padding."""
        return next(iter(self.initial.values())).shape[-1]

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return next(iter(self.exchanged.values())).shape[-3]

    @property
    def operands(self) -> dict[str, Any]:
        """The operands, by the names that they have in `Refs`."""
        return {
            "weights_gmem": self.weights,
            "initial_gmem": self.initial,
            "inputs_gmem": self.inputs,
            "vectors_gmem": self.vectors,
            "masks_gmem": self.masks,
        }

    @property
    def results(self) -> Results:
        """The types of the results."""
        final = {name: Like(x.shape, x.dtype) for name, x in self.initial.items()}
        return Results(self.exchanged, self.outputs, final)

    def gates(self, x: Array | Like) -> int:
        """Return how many arrays of width H lie side by side in x."""
        return x.shape[-1] // self.hidden_size


class Results(NamedTuple):
    """The results of a kernel, by name: see `Arrays`; `final` is the state after the last step."""

    exchanged: dict[str, Any]
    outputs: dict[str, Any]
    final: dict[str, Any]


class StepFunctions(NamedTuple):
    """The work of a kernel in each step, the same for all parts.

    Attributes:
      name: name of the kernel.
      begin: called with (context, state) before the first step; returns the state. None for nothing.
      step: called with (context, state); returns the state after the step.
      products: number of times that a step waits for the other parts and multiplies.
      published: largest number of tiles that a step publishes at once.
    """

    name: str
    begin: Callable[[Any, State], State] | None
    step: Callable[[Any, State], State]
    products: int
    published: int


class Refs(NamedTuple):
    """All memory that a warpgroup refers to.

    `_gmem` is the card's memory, shared by all CTAs and cached in L2; `_smem` is the shared memory of
    the CTA. What each warpgroup of a CTA has to itself begins with an axis of warpgroups W. References
    that a kernel does not use are None.

    Attributes:
      weights_gmem: see `Arrays.weights`; likewise the other `_gmem`.
      initial_gmem: see above.
      inputs_gmem: see above.
      vectors_gmem: see above.
      masks_gmem: see above.
      exchanged_gmem: see above.
      outputs_gmem: see above.
      final_gmem: see `Results.final`.
      weights_smem: [chunks, N, chunk], a CTA's weights, for small widths [N, K]; None where they
        are in registers.
      operand_ring_smem: [W, rows, chunk], chunks of the published operand, one below the other in slots.
      inputs_smem: [W, depth, n, 64, units] each, the inputs of this step and of later ones. In the
        kernel for small widths, here and below, the tiles of 64 rows and units are [rows, 64].
      publish_smem: [W, published, 64, units], tiles on their way to `exchanged_gmem`.
      output_smem: [W, n, 64, units], tiles on their way to `outputs_gmem`.
      state_smem: [W, n, 64, units] float32, the initial and the final state.
      weights_barrier: [1], completed once `weights_smem` is loaded.
      operand_barrier: [W, slots], completed when a slot of the ring is loaded.
      inputs_barrier: [W, depth], completed when the inputs of a step are loaded.
      initial_barrier: [W], completed when the initial state is loaded.
      parts_barrier: [W], completed when every part has published; only where interpreted.
      published_smem: [2, n, H / 64, rows, 64] each, what is published, for even and odd times.
      published_barrier: [1], completed when every warpgroup has published.
      masks_smem: [W, depth, 4, rows], the masks of this step and of later ones in two of four places.
    """

    weights_gmem: Ref
    initial_gmem: dict[str, Ref]
    inputs_gmem: dict[str, Ref]
    vectors_gmem: Ref
    masks_gmem: Ref
    exchanged_gmem: dict[str, Ref]
    outputs_gmem: dict[str, Ref]
    final_gmem: dict[str, Ref]
    inputs_smem: dict[str, Ref]
    inputs_barrier: Ref
    initial_barrier: Ref
    state_smem: Ref = None
    output_smem: Ref = None
    weights_smem: Ref = None
    weights_barrier: Ref = None
    operand_ring_smem: Ref = None
    operand_barrier: Ref = None
    publish_smem: Ref = None
    parts_barrier: Ref = None
    published_smem: Ref = None
    published_barrier: Ref = None
    masks_smem: Ref = None


def make_refs(operands: dict[str, Any], results: Results, scratch: Mapping[str, Ref]) -> Refs:
    """Return the `Refs` of a warpgroup.

    Args:
      operands: references as in `Arrays.operands`.
      results: references as in `Arrays.results`.
      scratch: references as in `scratch_types`.
    """
    inputs = {name: scratch[input_name(name)] for name in operands["inputs_gmem"]}
    others = {name: ref for name, ref in scratch.items() if name in Refs._fields}
    return Refs(
        **operands,
        exchanged_gmem=results.exchanged,
        outputs_gmem=results.outputs,
        final_gmem=results.final,
        inputs_smem=inputs,
        **others,
    )


def scratch_types(
    steps: StepFunctions, arrays: Arrays, tiling: Tiling, memory: Memory
) -> dict[str, Any]:
    """Return the types of a CTA's shared memory and barriers."""
    _, columns, total = arrays.weights.shape
    dtype = arrays.weights.dtype
    warpgroups = tiling.warpgroups
    tile = M, arrays.hidden_size // tiling.parts
    staged = sum(
        arrays.gates(x) for name, x in arrays.outputs.items() if name not in arrays.overlays
    )
    chunks = total // memory.chunk
    ring = warpgroups, tiling.ring_rows(memory.slots), memory.chunk
    scratch = {
        "weights_smem": smem((chunks, columns, memory.chunk), dtype),
        "weights_barrier": plgpu.Barrier(num_arrivals=chunks, num_barriers=1),
        "operand_ring_smem": smem(ring, dtype),
        "operand_barrier": plgpu.Barrier(num_barriers=(warpgroups, memory.slots)),
        "publish_smem": smem((warpgroups, steps.published, *tile), dtype),
        "output_smem": smem((warpgroups, max(staged, len(arrays.initial)), *tile), jnp.float32),
        "initial_barrier": plgpu.Barrier(num_arrivals=len(arrays.initial), num_barriers=warpgroups),
    }
    for name, x in arrays.inputs.items():
        shape = warpgroups, memory.depth, arrays.gates(x), *tile
        scratch[input_name(name)] = smem(shape, x.dtype)
    scratch["inputs_barrier"] = plgpu.Barrier(
        num_arrivals=sum(arrays.gates(x) for x in arrays.inputs.values()),
        num_barriers=(warpgroups, memory.depth),
    )
    return scratch


def input_name(name: str) -> str:
    """Return the name in the scratch memory of an input's places."""
    return f"{name}_smem"
