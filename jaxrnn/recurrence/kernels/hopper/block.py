"""The persistent Hopper kernel for one layer: its launch, and what a warpgroup does in it.

A CTA ("part") keeps the weights of its units in shared memory for the whole sequence. Each of its
warpgroups has a block of rows of its own, and exchanges tiles in every step with the warpgroups that
have the same rows in the other parts. A step:

    wait until every part has published                  a counter in L2 (interpreted: a barrier)
    multiply what was published, chunk by chunk          TMA into a ring, wgmma into registers
    compute the gates                                    float32, in registers
    publish this part's units of the result              registers, shared memory, TMA
    store the outputs, fetch the inputs of a later step  while the other parts publish

Rows of the batch are M of the product, 64 of them; the part's columns, gate after gate, are N, so that
all gates of a unit are in the same thread. Rows past the block's own hold whatever was in memory, do not
affect other rows, and are not stored.

README.md has a diagram of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.kernels.hopper import launch, mosaic
from jaxrnn.recurrence.kernels.hopper.context import Context
from jaxrnn.recurrence.kernels.hopper.launch import Arrays, Refs, Results, StepFunctions, Tile
from jaxrnn.recurrence.kernels.hopper.mosaic import Ref, Scalar, load
from jaxrnn.recurrence.kernels.hopper.tiles import M, Memory, Tiling
from jaxrnn.recurrence.kernels.hopper.weights import Source, Weights


def call(
    steps: StepFunctions,
    arrays: Arrays,
    tiling: Tiling,
    memory: Memory,
    reverse: bool,
    interpret: Any,
) -> Results:
    """Launch the kernel and return its results.

    Args:
      steps: what it computes.
      arrays: its operands, and the types of its results.
      tiling: the division over CTAs.
      memory: the shared memory of this direction.
      reverse: whether to run from the last step to the first.
      interpret: a `plgpu.InterpretGPUParams` that ignores `inline_mgpu`, or None or False for a GPU.
    """

    def body(operands: dict[str, Any], results: Results, scratch: dict[str, Ref]) -> None:
        refs = launch.make_refs(operands, results, scratch)
        # The initial and the final state have the place of the outputs.
        refs = refs._replace(state_smem=refs.output_smem)
        Block(steps, arrays, refs, tiling, memory, reverse).run()

    scratch_types = launch.scratch_types(steps, arrays, tiling, memory)
    grid = {"group": tiling.groups, "part": tiling.parts}
    options: dict[str, Any] = {}
    if interpret:
        # JAX's interpreter has no counters for a whole grid, but barriers of a cluster.
        del grid["part"]
        options = {"cluster": (tiling.parts,), "cluster_names": ("part",)}
        scratch_types["parts_barrier"] = plgpu.ClusterBarrier(
            collective_axes=("part",), num_barriers=tiling.warpgroups
        )
    return mosaic.call_kernel(
        steps.name,
        body,
        arrays.operands,
        arrays.results,
        grid=grid,
        approximate=arrays.weights.dtype.itemsize < 4,
        interpret=interpret,
        scratch_types=scratch_types,
        num_threads=tiling.warpgroups,
        thread_name="warpgroup",
        **options,
    )


class Block(Context):
    """One warpgroup's block of rows and its part's units, in the current step."""

    def __init__(
        self,
        steps: StepFunctions,
        arrays: Arrays,
        refs: Refs,
        tiling: Tiling,
        memory: Memory,
        reverse: bool,
    ) -> None:
        """Read the position in the grid, and load the vectors."""
        part = lax.axis_index("part")
        self._tiling = tiling
        self._ahead = memory.depth
        self._units = arrays.hidden_size // tiling.parts
        super().__init__(steps, arrays, refs, memory.depth, reverse, part * self._units)
        self._weights = Weights(arrays, tiling, memory, refs, part, self._warpgroup)
        self._barrier = refs.parts_barrier
        if self._barrier is None:
            # For each block, how many times a part has published.
            self._counters = pl.get_global(plgpu.SemaphoreType.REGULAR((tiling.blocks,)))

    def run(self) -> None:
        """Run all steps of every block of this warpgroup."""
        tiling = self._tiling
        self._weights.load()

        def turn(k: Scalar, _: None) -> None:
            at_once = tiling.groups * tiling.warpgroups
            own = lax.axis_index("group") * tiling.warpgroups + self._warpgroup
            self._block = k * at_once + own
            self._rows = pl.ds(self._block * tiling.rows, tiling.rows)
            self.run_rows()

        if tiling.turns == 1:
            turn(0, None)
        else:
            lax.fori_loop(0, tiling.turns, turn, None)

    def _enter(self, s: Scalar) -> None:
        super()._enter(s)
        self._products_done = 0

    # --- tiles [64 rows, units] -------------------------------------------------------------------

    def _read(self, place: Ref) -> Tile:
        return load(place, layout=plgpu.Layout.WGMMA)

    def _write(self, place: Ref, tile: Tile) -> None:
        place[...] = tile.astype(place.dtype)

    def _own_rows(self, place: Ref) -> Ref:
        return place.at[pl.ds(0, self._tiling.rows)]

    def _for_every_row(self, vector: Ref) -> Tile:
        row = load(vector, layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)
        return lax.broadcast_in_dim(row, (M, self._units), (1,))

    def _masks(self) -> tuple[Tile, Tile]:
        return self._mask(0), self._mask(1)

    def _mask(self, k: int) -> Tile:
        column = self._refs.masks_gmem.at[k, self.t, self._block]
        column = load(column, layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)
        return lax.broadcast_in_dim(column, (M, self._units), (0,)) != 0

    # --- exchange ---------------------------------------------------------------------------------

    def publish(self, tiles: dict[str, dict[int, Tile]], t: Scalar) -> None:
        """Publish this part's units, for every part to read at the next `product`."""
        placed = [(name, gate, tile) for name, x in tiles.items() for gate, tile in x.items()]
        places = self._refs.publish_smem.at[self._warpgroup]
        for k, (_, _, tile) in enumerate(placed):
            self._write(places.at[k], tile)
        plgpu.commit_smem()
        for k, (name, gate, _) in enumerate(placed):
            target = self._refs.exchanged_gmem[name].at[t, self._rows, self._columns(gate)]
            plgpu.copy_smem_to_gmem(self._own_rows(places.at[k]), target)
        # The other parts may read it when it is in memory.
        plgpu.wait_smem_to_gmem(0)
        if self._barrier is None:
            plgpu.semaphore_signal(self._counters.at[self._block], 1, memory_scope="gpu")
        else:
            plgpu.barrier_arrive(self._barrier.at[self._warpgroup])

    def product(
        self, sources: Sequence[tuple[str, int]], gates: range = range(1), start: int = 0
    ) -> tuple[Tile, ...]:
        """Return what all parts published, times the columns of some gates of this part's units."""
        self._wait_for_parts()
        now = [Source(name, gate, self.t) for name, gate in sources]
        return self._weights.multiply(self._rows, now, gates, start)

    def _wait_for_parts(self) -> None:
        """Wait until every part has published what this step's next product reads."""
        self._products_done += 1
        if self._barrier is None:
            times = self._s * self._steps.products + self._products_done
            plgpu.semaphore_wait(
                self._counters.at[self._block],
                times * self._tiling.parts,
                decrement=False,
                memory_scope="gpu",
            )
            mosaic.fence()
        else:
            plgpu.barrier_wait(self._barrier.at[self._warpgroup])

    # --- the end of a step ------------------------------------------------------------------------

    def finish(self, outputs: dict[str, tuple[Tile, ...]], hidden: Tile | None) -> None:
        """Publish the hidden state; store outputs and fetch later inputs while the others publish."""
        if hidden is not None:

            @pl.when(self.has_next)
            def _() -> None:
                self.publish({"previous_hidden": {0: hidden}}, self.next_t)

        refs, own, slot = self._refs, self._warpgroup, self._slot(self._s)
        if outputs:
            # The outputs of the step before have left their places.
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        staged = 0
        copies = []
        for name, tiles in outputs.items():
            overlay = self._arrays.overlays.get(name)
            for k, tile in enumerate(tiles):
                if overlay is not None:
                    place = refs.inputs_smem[overlay].at[own, slot, k]
                else:
                    place = refs.output_smem.at[own, staged]
                    staged += 1
                self._write(place, tile)
                target = refs.outputs_gmem[name].at[self.t, self._rows, self._columns(k)]
                copies.append((place, target))
        plgpu.commit_smem()
        for place, target in copies:
            plgpu.copy_smem_to_gmem(self._own_rows(place), target)
        if self._arrays.overlays:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)

        @pl.when(self._s + self._depth < self._total)
        def _() -> None:
            self._fetch_inputs(self._s + self._depth)
