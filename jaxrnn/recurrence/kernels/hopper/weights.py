"""The weights of a part in the persistent Hopper kernel, and the products with what is published.

The weights stay in shared memory for all steps. The operand of a product, which the parts published,
comes chunk by chunk through a ring in shared memory.
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
from jaxrnn.recurrence.kernels.hopper.tiles import M, Memory, Tiling
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
        """Load the weights and wait for them."""
        refs, memory = self.refs, self.memory

        @pl.when(self.warpgroup == 0)
        def _() -> None:
            for k in range(self._chunks):
                columns = pl.ds(k * memory.chunk, memory.chunk)
                plgpu.copy_gmem_to_smem(
                    refs.weights_gmem.at[self._part, :, columns],
                    refs.weights_smem.at[k],
                    refs.weights_barrier.at[0],
                )

        plgpu.barrier_wait(refs.weights_barrier.at[0])

    def multiply(
        self, batch: Any, sources: Sequence[Source], gates: range, start: int
    ) -> tuple[Tile, ...]:
        """Return the gates of the product.

        Args:
          batch: the slice of rows.
          sources: summed over; the k-th is multiplied with the H of the weights' K that begin at
            (start + k) * H.
          gates: the gates of this part's units whose columns are multiplied.
          start: see `sources`.
        """
        columns = len(gates) * self._units
        rows = pl.ds(gates.start * self._units, columns)
        product = _Product(self, batch, sources, start)
        product.fetch_first()
        accumulator = plgpu.ACC((M, columns), jnp.float32)
        result = pl.run_scoped(partial(product.multiply, rows), accumulator)
        return tuple(
            lax.slice(result, (0, k * self._units), (M, (k + 1) * self._units))
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
    """

    def __init__(self, weights: Weights, batch: Any, sources: Sequence[Source], start: int) -> None:
        """Take the arguments of `Weights.multiply`."""
        self._weights = weights
        self._memory = weights.memory
        self._refs = weights.refs
        self._batch = batch
        self._runs = _runs(sources)
        # The first chunk of the weights, and the number of chunks.
        self._first = start * weights.chunks_of_gate
        self._total = len(sources) * weights.chunks_of_gate

    def fetch_first(self) -> None:
        """Start to fetch as many chunks as the ring holds."""
        count = min(self._memory.slots, self._total)
        lax.fori_loop(0, count, lambda j, _: self._fetch(j), None)

    def multiply(self, rows: Any, accumulator: Ref) -> Array:
        """Return the product; rows: the rows of the weights, which are columns of the product."""
        refs, own = self._refs, self._weights.warpgroup

        def one(j: Scalar, _: None) -> None:
            plgpu.barrier_wait(refs.operand_barrier.at[own, self._slot(j)])
            weights_smem = refs.weights_smem.at[self._first + j, rows]
            plgpu.wgmma(accumulator, self._slot_rows(j, M), transposed(weights_smem))
            # The product before this one is done.
            plgpu.wgmma_wait(1)
            self._release(j - 1)

        lax.fori_loop(0, self._total, one, None)
        result = accumulator[...]
        self._release(self._total - 1)
        return result

    def _slot(self, j: Scalar) -> Array:
        return lax.rem(j, self._memory.slots)

    def _slot_rows(self, j: Scalar, count: int) -> Ref:
        """Return the first rows of the j-th chunk's slot in the ring."""
        first_row = pl.multiple_of(self._slot(j) * self._weights.tiling.stride, 8)
        return self._refs.operand_ring_smem.at[self._weights.warpgroup, pl.ds(first_row, count)]

    def _fetch(self, j: Scalar) -> None:
        """Start to fetch the j-th chunk of the operand into its slot."""
        begin = 0
        for run in self._runs:
            end = begin + run.gates * self._weights.chunks_of_gate
            of_array = j - begin + run.gate * self._weights.chunks_of_gate
            copy = partial(self._copy, run, of_array, j)
            if len(self._runs) == 1:
                # A branch for every chunk takes time.
                copy()
            else:
                pl.when((j >= begin) & (j < end))(copy)
            begin = end

    def _copy(self, run: _Run, chunk: Scalar, j: Scalar) -> None:
        """Start to copy a chunk of a published array to the j-th slot."""
        tiling = self._weights.tiling
        columns = pl.ds(chunk * self._memory.chunk, self._memory.chunk)
        plgpu.copy_gmem_to_smem(
            self._refs.exchanged_gmem[run.array].at[run.t, self._batch, columns],
            self._slot_rows(j, tiling.rows),
            self._refs.operand_barrier.at[self._weights.warpgroup, self._slot(j)],
        )

    def _release(self, j: Scalar) -> None:
        """Fetch another chunk to where the j-th was, whose product is done."""
        later = j + self._memory.slots
        pl.when((j >= 0) & (later < self._total))(partial(self._fetch, later))
