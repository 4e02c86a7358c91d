"""The weights of a CTA in the persistent Hopper kernel, and the products with what is published.

What a product multiplies comes chunk by chunk through a ring in shared memory. The weights' chunks stay
there from the first step to the last, as many as fit; the others pass by in every step, STREAM ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.kernels.hopper.arrays import Arrays, Tile
from jaxrnn.recurrence.kernels.hopper.mosaic import turned
from jaxrnn.recurrence.kernels.hopper.tiles import STREAM, M, Memory, Tiles
from jaxrnn.shapes import Array

Source = tuple[str, int, Any]  # an array that is published, its gate and its time


def _runs(sources: Sequence[Source]) -> list[tuple[str, int, int, Any]]:
    """(array, its first gate, number of gates, time): gates side by side in an array taken together."""
    runs: list[tuple[str, int, int, Any]] = []
    for array, gate, time in sources:
        if runs and runs[-1][0] == array and sum(runs[-1][1:3]) == gate and runs[-1][3] is time:
            _, begin, count, _ = runs.pop()
            runs.append((array, begin, count + 1, time))
        else:
            runs.append((array, gate, 1, time))
    return runs


class Weights:
    """Those of one CTA's units, as one warpgroup multiplies them.

    Args:
      arrays, tiles, memory, refs: of the block.
      part: which CTA's they are.
      warpgroup: of its own ring.
    """

    def __init__(
        self, arrays: Arrays, tiles: Tiles, memory: Memory, refs: Any, part: Any, warpgroup: Any
    ) -> None:
        self._tiles, self._memory, self._refs = tiles, memory, refs
        self._part, self._warpgroup = part, warpgroup
        self._hidden = next(iter(arrays.initial.values())).shape[1]
        self._units = self._hidden // tiles.parts
        self._chunks = arrays.weights.shape[2] // memory.chunk  # in all

    def begin(self) -> None:
        """Fetch what stays, and the first of what passes."""
        refs, memory = self._refs, self._memory

        @pl.when(self._warpgroup == 0)
        def _() -> None:
            for k in range(memory.resident):
                columns = pl.ds(k * memory.chunk, memory.chunk)
                plgpu.copy_gmem_to_smem(
                    refs.weights.at[self._part, :, columns], refs.kept.at[k], refs.loaded.at[0]
                )

        for k in self._ahead:
            self._pass(memory.resident + k)
        plgpu.barrier_wait(refs.loaded.at[0])

    def end(self) -> None:
        """Let arrive what was fetched for a step that does not come."""
        for k in self._ahead:
            plgpu.barrier_wait(self._refs.passed.at[self._warpgroup, k])

    def multiply(
        self,
        batch: Any,
        sources: Sequence[Source],
        gates: range,
        start: int,
        others: Sequence[Source] = (),
        when: Any = True,
    ) -> tuple[Tile, ...]:
        """The product of the sources, and after its gates those of the others' product.

        Args:
          batch: the slice of rows.
          sources: summed over; the k-th meets the H of the weights' K that come (start + k) * H after
            their beginning.
          gates: whose columns of the own units are wanted.
          others: sources too, whose K follows. All weights stay then.
          when: whether others are multiplied; else their product is zeros.
        """
        memory, refs, mine = self._memory, self._refs, self._warpgroup
        each = self._hidden // memory.chunk  # chunks of a gate
        first, own = start * each, len(sources) * each
        streamed = 0 if others else max(0, first + own - max(first, memory.resident))
        total: Any = jnp.where(when, own + len(others) * each, own) if others else own
        rows = pl.ds(gates.start * self._units, len(gates) * self._units)

        def chunk(j: Any) -> Any:
            """The j-th that is multiplied: streamed weights first, which are there already."""
            if not streamed:
                return first + j
            return jnp.where(j < streamed, first + own - streamed + j, first + j - streamed)

        def slot(j: Any) -> Any:
            return lax.rem(j, memory.slots)

        def slot_rows(j: Any, count: int) -> Any:
            """The first rows of the j-th chunk's slot in the ring."""
            first_row = pl.multiple_of(slot(j) * self._tiles.stride, 8)
            return refs.ring.at[mine, pl.ds(first_row, count)]

        runs = _runs([*sources, *others])

        def fetch(j: Any) -> None:
            begin = first
            for array, gate, count, time in runs:
                at = chunk(j) - begin + gate * each

                def copy(array: str = array, time: Any = time, at: Any = at) -> None:
                    columns = pl.ds(at * memory.chunk, memory.chunk)
                    plgpu.copy_gmem_to_smem(
                        getattr(refs, array).at[time, batch, columns],
                        slot_rows(j, self._tiles.rows),
                        refs.fetched.at[mine, slot(j)],
                        collective_axes="peer" if self._tiles.cluster > 1 else None,
                    )

                if len(runs) == 1:  # a branch for every chunk takes time
                    copy()
                else:
                    end = begin + count * each
                    pl.when((chunk(j) >= begin) & (chunk(j) < end))(copy)
                begin += count * each

        def release(j: Any) -> None:
            """The j-th product is done: what it read may be written over."""
            if streamed:
                pl.when((j >= 0) & (j < streamed))(lambda: self._pass(chunk(j) + STREAM))

            @pl.when((j >= 0) & (j + memory.slots < total))
            def _() -> None:
                if self._tiles.cluster > 1:  # in every peer, since each writes into all of them
                    freed = refs.freed.at[mine, slot(j)]
                    plgpu.commit_smem()  # all four warps are done, of which one arrives
                    plgpu.barrier_arrive(freed)
                    plgpu.barrier_wait(freed)
                fetch(j + memory.slots)

        at_once = jnp.minimum(memory.slots, total) if others else min(memory.slots, own)
        lax.fori_loop(0, at_once, lambda j, _: fetch(j), None)

        def multiply(begin: Any, end: Any, accumulator: Any) -> Array:
            def one(j: Any, weights: Any) -> None:
                plgpu.barrier_wait(refs.fetched.at[mine, slot(j)])
                plgpu.wgmma(accumulator, slot_rows(j, M), turned(weights))
                plgpu.wgmma_wait(1)
                release(j - 1)

            def passing(j: Any, _: None) -> None:
                place = lax.rem(chunk(j) - memory.resident, STREAM)
                plgpu.barrier_wait(refs.passed.at[mine, place])
                one(j, refs.passing.at[mine, place, rows])

            if streamed:
                lax.fori_loop(begin, streamed, passing, None)
            staying = lambda j, _: one(j, refs.kept.at[chunk(j), rows])  # noqa: E731
            lax.fori_loop(begin + streamed, end, staying, None)
            result = accumulator[...]
            if end is total:
                release(total - 1)
            return result

        accumulator = plgpu.ACC((M, len(gates) * self._units), jnp.float32)
        bounds = ([(0, own)] if sources else []) + ([(own, total)] if others else [])
        results = [pl.run_scoped(partial(multiply, *ends), accumulator) for ends in bounds]
        return tuple(
            lax.slice(result, (0, k * self._units), (M, (k + 1) * self._units))
            for result in results
            for k in range(len(gates))
        )

    @property
    def _ahead(self) -> range:
        return range(min(STREAM, self._chunks - self._memory.resident))

    def _pass(self, k: Any) -> None:
        """Fetch the k-th chunk of the weights; after the last comes the first that does not stay.

        They are asked for in this order, and fetched STREAM ahead.
        """
        memory, refs, mine = self._memory, self._refs, self._warpgroup
        streamed = self._chunks - memory.resident
        place = lax.rem(k - memory.resident, streamed)
        columns = pl.ds((memory.resident + place) * memory.chunk, memory.chunk)
        plgpu.copy_gmem_to_smem(
            refs.weights.at[self._part, :, columns],
            refs.passing.at[mine, lax.rem(place, STREAM)],
            refs.passed.at[mine, lax.rem(place, STREAM)],
        )
