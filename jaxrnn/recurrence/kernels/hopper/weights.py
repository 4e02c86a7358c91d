"""The weights of a part in the persistent Hopper kernel, and the products with what is published.

The operand of a product, which the parts published, comes chunk by chunk through a ring in shared
memory. As many chunks of the weights as fit stay in shared memory for all steps; the others are streamed
through shared memory in every step, STREAM chunks ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.kernels.hopper.launch import Arrays, Refs, Tile
from jaxrnn.recurrence.kernels.hopper.mosaic import Ref, Scalar, transposed
from jaxrnn.recurrence.kernels.hopper.tiles import STREAM, M, Memory, Tiling
from jaxrnn.shapes import Array


class Source(NamedTuple):
    """A gate of a published array at a time: [B, H]."""

    array: str
    gate: int
    t: Scalar


class Weights:
    """The weights of one part, as one warpgroup multiplies with them."""

    def __init__(
        self,
        arrays: Arrays,
        tiling: Tiling,
        memory: Memory,
        refs: Refs,
        part: Scalar,
        warpgroup: Scalar,
    ) -> None:
        """Take what the block has; part: the part whose weights they are."""
        self.tiling = tiling
        self.memory = memory
        self.refs = refs
        self.warpgroup = warpgroup
        self._part = part
        self._units = arrays.hidden_size // tiling.parts
        self.chunks_of_gate = arrays.hidden_size // memory.chunk
        self._chunks = arrays.weights.shape[2] // memory.chunk

    def load(self) -> None:
        """Load the chunks that stay, and start to fetch the first of those that are streamed."""
        refs, memory = self.refs, self.memory

        @pl.when(self.warpgroup == 0)
        def _() -> None:
            for k in range(memory.resident):
                columns = pl.ds(k * memory.chunk, memory.chunk)
                plgpu.copy_gmem_to_smem(
                    refs.weights_gmem.at[self._part, :, columns],
                    refs.weights_smem.at[k],
                    refs.weights_barrier.at[0],
                )

        for k in self._prefetched:
            self.stream(memory.resident + k)
        plgpu.barrier_wait(refs.weights_barrier.at[0])

    def drain(self) -> None:
        """Wait for the chunks that were prefetched for a step that never runs."""
        for k in self._prefetched:
            plgpu.barrier_wait(self.refs.streamed_weights_barrier.at[self.warpgroup, k])

    def stream(self, k: Scalar) -> None:
        """Start to fetch the k-th chunk; after the last follows the first that does not stay.

        Chunks are used in this order, and fetched STREAM ahead.
        """
        memory, refs = self.memory, self.refs
        streamed = self._chunks - memory.resident
        place = lax.rem(k - memory.resident, streamed)
        slot = lax.rem(place, STREAM)
        columns = pl.ds((memory.resident + place) * memory.chunk, memory.chunk)
        plgpu.copy_gmem_to_smem(
            refs.weights_gmem.at[self._part, :, columns],
            refs.streamed_weights_smem.at[self.warpgroup, slot],
            refs.streamed_weights_barrier.at[self.warpgroup, slot],
        )

    @property
    def _prefetched(self) -> range:
        return range(min(STREAM, self._chunks - self.memory.resident))

    def multiply(
        self,
        batch: Any,
        sources: Sequence[Source],
        gates: range,
        start: int,
        neighbours: Sequence[Source] = (),
        when: Scalar | bool = True,
    ) -> tuple[Tile, ...]:
        """Return the gates of the product of `sources`, then those of the product of `neighbours`.

        Args:
          batch: the slice of rows.
          sources: summed over; the k-th is multiplied with the H of the weights' K that begin at
            (start + k) * H.
          gates: the gates of this part's units whose columns are multiplied.
          start: see `sources`.
          neighbours: sources of a second product, with the weights' K after those of `sources`; all
            weights must stay then.
          when: whether `neighbours` are multiplied; otherwise their product is zeros.
        """
        product = _Product(self, batch, sources, start, neighbours, when)
        rows = pl.ds(gates.start * self._units, len(gates) * self._units)
        accumulator = plgpu.ACC((M, len(gates) * self._units), jnp.float32)
        product.fetch_first()
        ranges: list[tuple[int, Scalar]] = [(0, product.own)] if sources else []
        if neighbours:
            ranges.append((product.own, product.total))
        results = []
        for k, (begin, end) in enumerate(ranges):
            is_last = k == len(ranges) - 1
            run = partial(product.multiply, begin, end, rows, is_last)
            results.append(pl.run_scoped(run, accumulator))
        return tuple(
            lax.slice(result, (0, k * self._units), (M, (k + 1) * self._units))
            for result in results
            for k in range(len(gates))
        )


class _Run(NamedTuple):
    """Gates that lie side by side in a published array: the first of them, and their number."""

    array: str
    gate: int
    gates: int
    t: Scalar


def _runs(sources: Sequence[Source]) -> list[_Run]:
    """Return the sources, with those that lie side by side joined."""
    runs: list[_Run] = []
    for array, gate, t in sources:
        last = runs[-1] if runs else None
        if last and last.array == array and last.gate + last.gates == gate and last.t is t:
            runs[-1] = last._replace(gates=last.gates + 1)
        else:
            runs.append(_Run(array, gate, 1, t))
    return runs


class _Product:
    """One product: its operand's chunks are fetched into the ring, multiplied, and replaced by others.

    The chunks are numbered j = 0, 1, ... in the order in which they are multiplied.

    Attributes:
      own: number of chunks of `sources`.
      total: number of chunks, with those of `neighbours`.
    """

    def __init__(
        self,
        weights: Weights,
        batch: Any,
        sources: Sequence[Source],
        start: int,
        neighbours: Sequence[Source],
        when: Scalar | bool,
    ) -> None:
        """Take the arguments of `Weights.multiply`."""
        self._weights = weights
        self._memory = memory = weights.memory
        self._refs = weights.refs
        self._batch = batch
        self._runs = _runs([*sources, *neighbours])
        # The first chunk of the weights.
        self._first = start * weights.chunks_of_gate
        self.own = len(sources) * weights.chunks_of_gate
        self.total: Scalar = self.own
        # Number of chunks whose weights are streamed, and of those fetched before the first product.
        self._streamed = 0
        self._at_once: Scalar
        if neighbours:
            every = self.own + len(neighbours) * weights.chunks_of_gate
            self.total = jnp.where(when, every, self.own)
            self._at_once = jnp.minimum(memory.slots, self.total)
        else:
            end = self._first + self.own
            self._streamed = max(0, end - max(self._first, memory.resident))
            self._at_once = min(memory.slots, self.own)

    def fetch_first(self) -> None:
        """Start to fetch as many chunks as the ring holds."""
        lax.fori_loop(0, self._at_once, lambda j, _: self._fetch(j), None)

    def multiply(
        self, begin: int, end: Scalar, rows: Any, is_last: bool, accumulator: Ref
    ) -> Array:
        """Return the product of the chunks from `begin` to `end`.

        Args:
          begin: the first chunk.
          end: the chunk after the last one.
          rows: the rows of the weights, which are columns of the product.
          is_last: whether no chunks follow.
          accumulator: of a wgmma.
        """
        refs, own = self._refs, self._weights.warpgroup

        def one(j: Scalar, weights_smem: Ref) -> None:
            plgpu.barrier_wait(refs.operand_barrier.at[own, self._slot(j)])
            plgpu.wgmma(accumulator, self._slot_rows(j, M), transposed(weights_smem))
            # The product before this one is done.
            plgpu.wgmma_wait(1)
            self._release(j - 1)

        def with_streamed_weights(j: Scalar, _: None) -> None:
            place = lax.rem(self._chunk(j) - self._memory.resident, STREAM)
            plgpu.barrier_wait(refs.streamed_weights_barrier.at[own, place])
            one(j, refs.streamed_weights_smem.at[own, place, rows])

        def with_resident_weights(j: Scalar, _: None) -> None:
            one(j, refs.weights_smem.at[self._chunk(j), rows])

        if self._streamed:
            lax.fori_loop(begin, self._streamed, with_streamed_weights, None)
        lax.fori_loop(begin + self._streamed, end, with_resident_weights, None)
        result = accumulator[...]
        if is_last:
            self._release(self.total - 1)
        return result

    def _chunk(self, j: Scalar) -> Scalar:
        """Return the chunk of the weights that is multiplied as the j-th."""
        if not self._streamed:
            return self._first + j
        # Streamed weights come first: they are there already.
        after_resident = self._first + self.own - self._streamed
        return jnp.where(j < self._streamed, after_resident + j, self._first + j - self._streamed)

    def _slot(self, j: Scalar) -> Array:
        return lax.rem(j, self._memory.slots)

    def _slot_rows(self, j: Scalar, count: int) -> Ref:
        """Return the first rows of the j-th chunk's slot in the ring."""
        first_row = pl.multiple_of(self._slot(j) * self._weights.tiling.stride, 8)
        return self._refs.operand_ring_smem.at[self._weights.warpgroup, pl.ds(first_row, count)]

    def _fetch(self, j: Scalar) -> None:
        """Start to fetch the j-th chunk of the operand into its slot."""
        chunk = self._chunk(j)
        begin = self._first
        for run in self._runs:
            end = begin + run.gates * self._weights.chunks_of_gate
            of_array = chunk - begin + run.gate * self._weights.chunks_of_gate
            copy = partial(self._copy, run, of_array, j)
            if len(self._runs) == 1:
                # A branch for every chunk takes time.
                copy()
            else:
                pl.when((chunk >= begin) & (chunk < end))(copy)
            begin = end

    def _copy(self, run: _Run, chunk: Scalar, j: Scalar) -> None:
        """Start to copy a chunk of a published array to the j-th slot."""
        tiling = self._weights.tiling
        columns = pl.ds(chunk * self._memory.chunk, self._memory.chunk)
        plgpu.copy_gmem_to_smem(
            self._refs.exchanged_gmem[run.array].at[run.t, self._batch, columns],
            self._slot_rows(j, tiling.rows),
            self._refs.operand_barrier.at[self._weights.warpgroup, self._slot(j)],
            collective_axes="peer" if tiling.cluster > 1 else None,
        )

    def _release(self, j: Scalar) -> None:
        """Fetch other chunks to where the j-th were, whose product is done."""
        weights = self._weights
        if self._streamed:
            pl.when((j >= 0) & (j < self._streamed))(
                lambda: weights.stream(self._chunk(j) + STREAM)
            )

        @pl.when((j >= 0) & (j + self._memory.slots < self.total))
        def _() -> None:
            if weights.tiling.cluster > 1:
                # Every peer writes into the rings of all of them, so all must be done with the slot.
                free = self._refs.slot_free_barrier.at[weights.warpgroup, self._slot(j)]
                # All four warps are done, of which one arrives.
                plgpu.commit_smem()
                plgpu.barrier_arrive(free)
                plgpu.barrier_wait(free)
            self._fetch(j + self._memory.slots)
