"""The persistent Hopper kernel: one block of rows and one share of the units, from first to last step.

A CTA keeps the weights of its units in shared memory for the whole sequence; each of its warpgroups has
a block of rows of its own, and meets in every step with the warpgroups that have the same rows in the
other CTAs ("parts"). A step of theirs:

    wait until every part has published                 a cluster's barrier, or a counter in L2
    product of what was published, chunk by chunk       TMA into a ring, wgmma into registers
    the gates' arithmetic, in float32 registers
    publish the own units of the result                 registers, shared memory, TMA
    put out what the caller keeps, fetch the inputs of a later step, while the others arrive

Batch rows are M of the product, 64 of them; the part's columns, gate after gate, are N, so that all
gates of a unit end in the same thread. Rows past the block's own hold whatever was in memory, meet no
other row, and go nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.kernels.hopper.arrays import Arrays, Steps, Tile, gate_count
from jaxrnn.recurrence.kernels.hopper.mosaic import cluster_fence, fence, load
from jaxrnn.recurrence.kernels.hopper.tiles import M, Memory, Tiles
from jaxrnn.recurrence.kernels.hopper.weights import Source, Weights
from jaxrnn.shapes import Array


class Block:
    """One warpgroup's block of rows, and its CTA's units, in the step at hand.

    t, next: the time of the step, and of the one that is taken after it.
    more: whether there is one after it.
    """

    def __init__(
        self,
        arrays: Arrays,
        tiles: Tiles,
        memory: Memory,
        steps: Steps,
        reverse: bool,
        refs: Any,
    ) -> None:
        self._arrays, self._tiles, self._memory, self._refs = arrays, tiles, memory, refs
        self._steps, self._reverse = steps, reverse
        self._total = next(iter(arrays.exchanged.values())).shape[0]
        self._hidden = next(iter(arrays.initial.values())).shape[1]
        self._units = self._hidden // tiles.parts
        self._part = lax.axis_index("bundle")
        if tiles.cluster > 1:
            self._part = self._part * tiles.cluster + lax.axis_index("peer")
        self._warpgroup = lax.axis_index("warpgroup")
        self._weights = Weights(arrays, tiles, memory, refs, self._part, self._warpgroup)
        self._earlier: Any = 0  # meetings before those of the first step
        self._met = [refs.met] if self._where == "cluster" else []
        self._counters = None
        if self._where == "grid":
            self._counters = pl.get_global(plgpu.SemaphoreType.REGULAR((tiles.blocks,)))
        count = 0 if arrays.vectors is None else len(arrays.vectors)
        self._vectors = [self._vector(k) for k in range(count)]

    @property
    def _where(self) -> str | None:
        """At the barrier of a "cluster" or the counter of a "grid" parts meet; None for one alone."""
        if self._tiles.parts > self._tiles.cluster:
            return "grid"
        return "cluster" if self._tiles.cluster > 1 else None

    @property
    def _meeting(self) -> int:
        """How many meet."""
        return self._tiles.parts

    def run(self) -> None:
        """All steps of every block that is this warpgroup's."""
        tiles = self._tiles
        self._weights.begin()

        def turn(k: Any, _: None) -> None:
            at_once = tiles.groups * tiles.warpgroups
            own = lax.axis_index("group") * tiles.warpgroups + self._warpgroup
            self._block = k * at_once + own
            self._run_block()

        if tiles.turns == 1:
            turn(0, None)
        else:
            lax.fori_loop(0, tiles.turns, turn, None)
        self._weights.end()

    def _run_block(self) -> None:
        """All steps, from the initial state to the final one."""
        mine, refs, names = self._warpgroup, self._refs, list(self._arrays.initial)
        for s in range(min(self._memory.depth, self._total)):
            self._fetch_inputs(s)
        for k, name in enumerate(names):
            source = getattr(refs, f"initial_{name}").at[self._rows, self._columns(0)]
            plgpu.copy_gmem_to_smem(source, self._own(refs.wide.at[mine, k]), refs.begun.at[mine])
        plgpu.barrier_wait(refs.begun.at[mine])
        state = {
            name: load(refs.wide.at[mine, k], layout=plgpu.Layout.WGMMA)
            for k, name in enumerate(names)
        }
        if self._steps.begin is not None:
            self._enter(-1)
            state = self._steps.begin(self, state)

        def step(s: Array, state: dict[str, Tile]) -> dict[str, Tile]:
            self._enter(s)
            return self._steps.step(self, state)

        state = lax.fori_loop(0, self._total, step, state)
        self._leave()
        for k, name in enumerate(names):
            refs.wide[mine, k] = state[name]
        plgpu.commit_smem()
        for k, name in enumerate(names):
            target = getattr(refs, name).at[self._rows, self._columns(0)]
            plgpu.copy_smem_to_gmem(self._own(refs.wide.at[mine, k]), target)
        plgpu.wait_smem_to_gmem(0)

    def _leave(self) -> None:
        """The steps are over, perhaps not those of others."""

    def _enter(self, s: Any) -> None:
        self._s, self._product = s, 0
        self.t, self.next = self._time(s), self._time(s + 1)
        self.more = s + 1 < self._total
        self._waited = False
        self._marks = None
        if self._arrays.marks is not None and not isinstance(s, int):
            self._marks = [self._mark(k) for k in range(2)]

    def _time(self, s: Any) -> Any:
        return self._total - 1 - s if self._reverse else s

    # --- what is read in a step -----------------------------------------------------------------

    def take(self, name: str) -> tuple[Tile, ...]:
        """The gates of an input at this time, in float32."""
        if not self._waited:
            self._waited = True
            plgpu.barrier_wait(self._refs.arrived.at[self._warpgroup, self._slot(self._s)])
        slots = getattr(self._refs, f"slots_{name}").at[self._warpgroup, self._slot(self._s)]
        count = gate_count(self._arrays.inputs[name], self._arrays)
        tiles = [load(slots.at[k], layout=plgpu.Layout.WGMMA) for k in range(count)]
        return tuple(tile.astype(jnp.float32) for tile in tiles)

    def vector(self, k: int) -> Tile:
        """The k-th vector, the same in every row."""
        return self._vectors[k]

    def moving(self, x: Tile, otherwise: Tile) -> Tile:
        """x where a row moves in this step."""
        return x if self._marks is None else jnp.where(self._marks[0], x, otherwise)

    def surviving(self, x: Tile) -> Tile:
        """x where a row's running state is kept after this step, else zeros."""
        return x if self._marks is None else jnp.where(self._marks[1], jnp.zeros_like(x), x)

    def _vector(self, k: int, name: str = "vectors") -> Tile:
        row = getattr(self._refs, name).at[k, self._columns(0)]
        row = load(row, layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)
        return lax.broadcast_in_dim(row, (M, self._units), (1,))

    def _mark(self, k: int) -> Array:
        marks = self._refs.marks.at[k, self.t, self._block]
        column = load(marks, layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)
        return lax.broadcast_in_dim(column, (M, self._units), (0,)) != 0

    def _slot(self, s: Any) -> Any:
        return 0 if self._memory.depth == 1 else lax.rem(s, self._memory.depth)

    def _fetch_inputs(self, s: Any) -> None:
        t, mine, slot = self._time(s), self._warpgroup, self._slot(s)
        for name, x in self._arrays.inputs.items():
            slots = getattr(self._refs, f"slots_{name}").at[mine, slot]
            for k in range(gate_count(x, self._arrays)):
                source = getattr(self._refs, name).at[t, self._rows, self._columns(k)]
                arrived = self._refs.arrived.at[mine, slot]
                plgpu.copy_gmem_to_smem(source, self._own(slots.at[k]), arrived)

    # --- what is exchanged ----------------------------------------------------------------------

    def publish(self, tiles: dict[str, dict[int, Tile]], t: Any, when: Any = True) -> None:
        """Own units for every part to read at the next `product`: by array and gate, at time t.

        when: false in every part where there is no product to come.
        """
        placed = [(name, gate, tile) for name, x in tiles.items() for gate, tile in x.items()]

        @pl.when(when)
        def _() -> None:
            self._stage([tile for _, _, tile in placed])
            for k, (name, gate, _) in enumerate(placed):
                self._put(k, name, gate, t)
            plgpu.wait_smem_to_gmem(0)
            self._arrive()

    def _stage(self, tiles: Sequence[Tile]) -> None:
        """To shared memory, from where they are put."""
        for k, tile in enumerate(tiles):
            narrow = self._refs.narrow
            narrow[self._warpgroup, k] = tile.astype(narrow.dtype)
        plgpu.commit_smem()

    def _put(self, k: int, name: str, gate: int, t: Any) -> None:
        """The k-th that was staged, to a gate of an array at time t."""
        target = getattr(self._refs, name).at[t, self._rows, self._columns(gate)]
        plgpu.copy_smem_to_gmem(self._own(self._refs.narrow.at[self._warpgroup, k]), target)

    def _arrive(self) -> None:
        """What was put is there."""
        if self._counters is not None:
            plgpu.semaphore_signal(self._counters.at[self._block], 1, memory_scope="gpu")
        if self._met:
            cluster_fence()
        for met in self._met:
            plgpu.barrier_arrive(met.at[self._warpgroup])

    def product(
        self, sources: Sequence[tuple[str, int]], gates: range = range(1), start: int = 0
    ) -> tuple[Tile, ...]:
        """What all parts published, times these gates' columns of the own units.

        sources: (array, its gate), summed over; the k-th meets the H of the weights' K that come
          (start + k) * H after their beginning.
        """
        self._meet()
        return self._weights.multiply(self._rows, self._now(sources), gates, start)

    def _now(self, sources: Sequence[tuple[str, int]]) -> list[Source]:
        return [(name, gate, self.t) for name, gate in sources]

    def _meet(self) -> None:
        """Wait until every part has published."""
        self._product += 1
        self._wait(self._earlier + self._s * self._steps.products + self._product)

    def _wait(self, times: Any) -> None:
        """Until all have arrived so often for this block."""
        if self._counters is not None:
            plgpu.semaphore_wait(
                self._counters.at[self._block],
                times * self._meeting,
                decrement=False,
                memory_scope="gpu",
            )
        for met in self._met:
            plgpu.barrier_wait(met.at[self._warpgroup])
        if self._met:
            cluster_fence()
        fence()

    # --- what is put out -------------------------------------------------------------------------

    def finish(self, outputs: dict[str, tuple[Tile, ...]]) -> None:
        """The step is done: put these out and fetch inputs of a later step into their place."""
        mine, slot, refs, staged = self._warpgroup, self._slot(self._s), self._refs, 0
        copies = []
        for name, tiles in outputs.items():
            over = self._arrays.over.get(name)
            for k, tile in enumerate(tiles):
                if over is not None:
                    place = getattr(refs, f"slots_{over}").at[mine, slot, k]
                else:
                    place, staged = refs.wide.at[mine, staged], staged + 1
                place[...] = tile
                target = getattr(refs, name).at[self.t, self._rows, self._columns(k)]
                copies.append((place, target))
        plgpu.commit_smem()
        for place, target in copies:
            plgpu.copy_smem_to_gmem(self._own(place), target)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

        @pl.when(self._s + self._memory.depth < self._total)
        def _() -> None:
            self._fetch_inputs(self._s + self._memory.depth)

    # --- places ----------------------------------------------------------------------------------

    @property
    def _rows(self) -> Any:
        return pl.ds(self._block * self._tiles.rows, self._tiles.rows)

    def _columns(self, gate: int) -> Any:
        return pl.ds(gate * self._hidden + self._part * self._units, self._units)

    def _own(self, place: Any) -> Any:
        """The block's rows of 64 in shared memory."""
        return place.at[pl.ds(0, self._tiles.rows)]
