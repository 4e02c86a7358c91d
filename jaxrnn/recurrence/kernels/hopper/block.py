"""The persistent Hopper kernel for one layer: its launch, and what a warpgroup does in it.

A CTA ("part") keeps the weights of its units in shared memory for the whole sequence. Each of its
warpgroups has a block of rows of its own, and exchanges tiles in every step with the warpgroups that
have the same rows in the other parts. A step:

    wait until every part has published                  a cluster's barrier, or a counter in L2
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
from typing import Any, Literal

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.kernels.hopper import launch, mosaic
from jaxrnn.recurrence.kernels.hopper.launch import (
    Arrays,
    Refs,
    Results,
    State,
    StepFunctions,
    Tile,
)
from jaxrnn.recurrence.kernels.hopper.mosaic import Ref, Scalar, load
from jaxrnn.recurrence.kernels.hopper.tiles import Memory, Tiling
from jaxrnn.recurrence.kernels.hopper.weights import Source, Weights
from jaxrnn.shapes import Array


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
        Block(arrays, tiling, memory, steps, reverse, refs).run()

    scratch = launch.scratch_types(steps, arrays, tiling, memory)
    if tiling.cluster == tiling.parts > 1:
        scratch["parts_barrier"] = launch.exchange_barrier(tiling, "peer")
    return mosaic.call_kernel(
        steps.name,
        body,
        arrays.operands,
        arrays.results,
        grid={"group": tiling.groups, "bundle": tiling.parts // tiling.cluster},
        cluster={"peer": tiling.cluster},
        approximate=arrays.weights.dtype.itemsize < 4,
        interpret=interpret,
        scratch_types=scratch,
        num_threads=tiling.warpgroups,
        thread_name="warpgroup",
    )


class Block:
    """One warpgroup's block of rows and its part's units, in the current step.

    The steps of `steps` call `load_input`, `vector`, `product`, `publish`, `finish` and the two
    functions for masks.

    Attributes:
      t: time of the current step.
      next_t: time of the step that is run after it.
      has_next: whether there is one after it.
    """

    def __init__(
        self,
        arrays: Arrays,
        tiling: Tiling,
        memory: Memory,
        steps: StepFunctions,
        reverse: bool,
        refs: Refs,
    ) -> None:
        """Read the position in the grid, and load the vectors; arrays, refs: of one layer."""
        self._arrays = arrays
        self._tiling = tiling
        self._memory = memory
        self._steps = steps
        self._reverse = reverse
        self._refs = refs
        self._total = arrays.steps
        self._hidden = arrays.hidden_size
        self._units = self._hidden // tiling.parts
        self._part = lax.axis_index("bundle")
        if tiling.cluster > 1:
            self._part = self._part * tiling.cluster + lax.axis_index("peer")
        self._warpgroup = lax.axis_index("warpgroup")
        self._weights = Weights(arrays, tiling, memory, refs, self._part, self._warpgroup)
        # Number of exchanges before those of the first step.
        self._exchanges_before: Scalar = 0
        self._cluster_barriers: list[Ref] = []
        if self._exchange_by == "cluster":
            self._cluster_barriers.append(refs.parts_barrier)
        self._counters = None
        if self._exchange_by == "grid":
            self._counters = pl.get_global(plgpu.SemaphoreType.REGULAR((tiling.blocks,)))
        count = 0 if arrays.vectors is None else len(arrays.vectors)
        self._vectors = [self._in_every_row(refs.vectors_gmem, k) for k in range(count)]

    @property
    def _exchange_by(self) -> Literal["cluster", "grid"] | None:
        """The barrier of the parts: that of a cluster, a counter of the grid, or None for one part."""
        if self._tiling.parts > self._tiling.cluster:
            return "grid"
        return "cluster" if self._tiling.cluster > 1 else None

    @property
    def _participants(self) -> int:
        """Number of CTAs that synchronise."""
        return self._tiling.parts

    # --- the loop over steps ----------------------------------------------------------------------

    def run(self) -> None:
        """Run all steps of every block of this warpgroup."""
        tiling = self._tiling
        self._weights.load()

        def turn(k: Scalar, _: None) -> None:
            at_once = tiling.groups * tiling.warpgroups
            own = lax.axis_index("group") * tiling.warpgroups + self._warpgroup
            self._block = k * at_once + own
            self._run_block()

        if tiling.turns == 1:
            turn(0, None)
        else:
            lax.fori_loop(0, tiling.turns, turn, None)
        self._weights.drain()

    def _run_block(self) -> None:
        """Run all steps, from the initial state to the final one."""
        for s in range(min(self._memory.depth, self._total)):
            self._fetch_inputs(s)
        state = self._load_initial_state()
        if self._steps.begin is not None:
            self._enter(-1)
            state = self._steps.begin(self, state)

        def step(s: Array, state: State) -> State:
            self._enter(s)
            return self._steps.step(self, state)

        state = lax.fori_loop(0, self._total, step, state)
        self._leave()
        self._store_final_state(state)

    def _load_initial_state(self) -> State:
        own = self._warpgroup
        staged = self._refs.output_smem
        barrier = self._refs.initial_barrier.at[own]
        names = list(self._arrays.initial)
        for k, name in enumerate(names):
            source = self._refs.initial_gmem[name].at[self._rows, self._columns(0)]
            plgpu.copy_gmem_to_smem(source, self._own_rows(staged.at[own, k]), barrier)
        plgpu.barrier_wait(barrier)
        return {
            name: load(staged.at[own, k], layout=plgpu.Layout.WGMMA) for k, name in enumerate(names)
        }

    def _store_final_state(self, state: State) -> None:
        own = self._warpgroup
        staged = self._refs.output_smem
        names = list(self._arrays.initial)
        for k, name in enumerate(names):
            staged[own, k] = state[name]
        plgpu.commit_smem()
        for k, name in enumerate(names):
            target = self._refs.final_gmem[name].at[self._rows, self._columns(0)]
            plgpu.copy_smem_to_gmem(self._own_rows(staged.at[own, k]), target)
        plgpu.wait_smem_to_gmem(0)

    def _leave(self) -> None:
        """Do what is left to do after the last step; other layers may still be running."""

    def _enter(self, s: Scalar) -> None:
        """Begin step s of those that are run; -1 is before the first."""
        self._s = s
        self._products_done = 0
        self.t = self._time(s)
        self.next_t = self._time(s + 1)
        self.has_next = s + 1 < self._total
        self._inputs_arrived = False
        self._reset = self._active = None
        if self._arrays.masks is not None and not isinstance(s, int):
            self._reset = self._mask(0)
            self._active = self._mask(1)

    def _time(self, s: Scalar) -> Scalar:
        return self._total - 1 - s if self._reverse else s

    # --- inputs -----------------------------------------------------------------------------------

    def load_input(self, name: str) -> tuple[Tile, ...]:
        """Return the gates of an input of this step, in float32."""
        own, slot = self._warpgroup, self._input_slot(self._s)
        if not self._inputs_arrived:
            self._inputs_arrived = True
            plgpu.barrier_wait(self._refs.inputs_barrier.at[own, slot])
        source = self._refs.inputs_smem[name].at[own, slot]
        count = self._arrays.gates(self._arrays.inputs[name])
        tiles = [load(source.at[k], layout=plgpu.Layout.WGMMA) for k in range(count)]
        return tuple(tile.astype(jnp.float32) for tile in tiles)

    def vector(self, k: int) -> Tile:
        """Return the k-th vector, the same in every row."""
        return self._vectors[k]

    def where_active(self, x: Tile, otherwise: Tile) -> Tile:
        """Return x in the rows that are active in this step, and `otherwise` in the others."""
        return x if self._active is None else jnp.where(self._active, x, otherwise)

    def zero_where_reset(self, x: Tile) -> Tile:
        """Return x with zeros in the rows whose state is reset after this step."""
        return x if self._reset is None else jnp.where(self._reset, jnp.zeros_like(x), x)

    def _in_every_row(self, vectors_gmem: Ref, k: int) -> Tile:
        """Return this part's units of the k-th vector."""
        return mosaic.in_every_row(vectors_gmem.at[k, self._columns(0)], self._units)

    def _mask(self, k: int) -> Array:
        column = self._refs.masks_gmem.at[k, self.t, self._block]
        column = load(column, layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)
        return mosaic.in_every_column(column, self._units) != 0

    def _input_slot(self, s: Scalar) -> Scalar:
        return 0 if self._memory.depth == 1 else lax.rem(s, self._memory.depth)

    def _fetch_inputs(self, s: Scalar) -> None:
        """Start to fetch the inputs of step s."""
        own, slot = self._warpgroup, self._input_slot(s)
        t = self._time(s)
        barrier = self._refs.inputs_barrier.at[own, slot]
        for name, x in self._arrays.inputs.items():
            place = self._refs.inputs_smem[name].at[own, slot]
            for k in range(self._arrays.gates(x)):
                source = self._refs.inputs_gmem[name].at[t, self._rows, self._columns(k)]
                plgpu.copy_gmem_to_smem(source, self._own_rows(place.at[k]), barrier)

    # --- exchange ---------------------------------------------------------------------------------

    def publish(
        self, tiles: dict[str, dict[int, Tile]], t: Scalar, when: Scalar | bool = True
    ) -> None:
        """Publish this part's units, for every part to read at the next `product`.

        Args:
          tiles: the tiles, by array and gate.
          t: the time that they are of.
          when: false, in every part, where no product follows.
        """
        placed = [(name, gate, tile) for name, x in tiles.items() for gate, tile in x.items()]

        @pl.when(when)
        def _() -> None:
            self._stage([tile for _, _, tile in placed])
            for k, (name, gate, _) in enumerate(placed):
                self._copy_out(k, name, gate, t)
            plgpu.wait_smem_to_gmem(0)
            self._arrive()

    def _stage(self, tiles: Sequence[Tile]) -> None:
        """Write tiles to shared memory, from where `_copy_out` publishes them."""
        staged = self._refs.publish_smem
        for k, tile in enumerate(tiles):
            staged[self._warpgroup, k] = tile.astype(staged.dtype)
        plgpu.commit_smem()

    def _copy_out(self, k: int, name: str, gate: int, t: Scalar) -> None:
        """Copy the k-th staged tile to a gate of an exchanged array at time t."""
        staged = self._refs.publish_smem.at[self._warpgroup, k]
        target = self._refs.exchanged_gmem[name].at[t, self._rows, self._columns(gate)]
        plgpu.copy_smem_to_gmem(self._own_rows(staged), target)

    def _arrive(self) -> None:
        """Tell the other parts that what was copied out is in memory."""
        if self._counters is not None:
            plgpu.semaphore_signal(self._counters.at[self._block], 1, memory_scope="gpu")
        if self._cluster_barriers:
            mosaic.cluster_fence()
        for barrier in self._cluster_barriers:
            plgpu.barrier_arrive(barrier.at[self._warpgroup])

    def product(
        self, sources: Sequence[tuple[str, int]], gates: range = range(1), start: int = 0
    ) -> tuple[Tile, ...]:
        """Return what all parts published, times the columns of some gates of this part's units.

        Args:
          sources: (array, gate) pairs, whose products are summed. The k-th is multiplied with the H rows
            of the weights' K that begin at (start + k) * H.
          gates: the gates whose columns are multiplied.
          start: see `sources`.
        """
        self._wait_for_parts()
        return self._weights.multiply(self._rows, self._at_this_time(sources), gates, start)

    def _at_this_time(self, sources: Sequence[tuple[str, int]]) -> list[Source]:
        return [Source(name, gate, self.t) for name, gate in sources]

    def _wait_for_parts(self) -> None:
        """Wait until every part has published what this step's next product reads."""
        self._products_done += 1
        self._wait(self._exchanges_before + self._s * self._steps.products + self._products_done)

    def _wait(self, times: Scalar) -> None:
        """Wait until every part has arrived `times` times for this block."""
        if self._counters is not None:
            plgpu.semaphore_wait(
                self._counters.at[self._block],
                times * self._participants,
                decrement=False,
                memory_scope="gpu",
            )
        for barrier in self._cluster_barriers:
            plgpu.barrier_wait(barrier.at[self._warpgroup])
        if self._cluster_barriers:
            mosaic.cluster_fence()
        mosaic.fence()

    # --- outputs ----------------------------------------------------------------------------------

    def finish(self, outputs: dict[str, tuple[Tile, ...]]) -> None:
        """End the step: store its outputs, and fetch inputs of a later step to where its own were."""
        refs = self._refs
        own, slot = self._warpgroup, self._input_slot(self._s)
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
                place[...] = tile
                target = refs.outputs_gmem[name].at[self.t, self._rows, self._columns(k)]
                copies.append((place, target))
        plgpu.commit_smem()
        for place, target in copies:
            plgpu.copy_smem_to_gmem(self._own_rows(place), target)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

        @pl.when(self._s + self._memory.depth < self._total)
        def _() -> None:
            self._fetch_inputs(self._s + self._memory.depth)

    # --- slices -----------------------------------------------------------------------------------

    @property
    def _rows(self) -> Any:
        """The rows of this block, in the batch."""
        return pl.ds(self._block * self._tiling.rows, self._tiling.rows)

    def _columns(self, gate: int) -> Any:
        """Return the columns of this part's units, of a gate."""
        return pl.ds(gate * self._hidden + self._part * self._units, self._units)

    def _own_rows(self, tile: Ref) -> Ref:
        """Return the block's rows of the 64 of a tile."""
        return tile.at[pl.ds(0, self._tiling.rows)]
