"""The program of one CTA of the sampling kernel, a char-RNN's loop with its weights on the chip.

A CTA ("part") keeps its units' weights of every layer in shared memory, and those of a few columns of
the output layer. All CTAs synchronise after every layer. There is one block of at most 64 rows. A
character:

    every part      reads all scores, takes the highest as the drawn token, and looks up its row of the
                    first layer's table: a product with the token as a one-hot row
    layer by layer  product with its own hidden state of the character before, known while the parts
                    still synchronise; product with the hidden state of the layer below; the cell's
                    arithmetic; publish this part's units
    output layer    publish this part's columns of logits + noise: the scores of the next character

The noise is Gumbel noise times the temperature, since argmax(logits + temperature * noise) draws from
softmax(logits / temperature).

What is published lies in memory that L2 caches. Hidden states have two places, used in turns, since the
one before is still read; all else is read by every part before any part writes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels.hopper import mosaic, steps
from jaxrnn.recurrence.kernels.hopper.launch import State, Tile
from jaxrnn.recurrence.kernels.hopper.mosaic import Ref, Scalar, load
from jaxrnn.recurrence.kernels.hopper.sampling_arrays import (
    SamplingArrays,
    SamplingRefs,
    SamplingTiling,
)
from jaxrnn.recurrence.kernels.hopper.tiles import BuiltinCell, M
from jaxrnn.shapes import Array

# Columns of the vocabulary that are processed together.
PIECE = 32


def exchanges(cell: BuiltinCell, layers: int) -> int:
    """Return how often the parts exchange results for one character."""
    return layers * (2 if cell.kind is CellKind.GRU_BEFORE else 1) + 1


class SamplingCTA:
    """One CTA's units of the current layer, as a `steps.ForwardContext`, and the rest of the loop.

    Attributes:
      t: the current character.
    """

    def __init__(
        self, cell: BuiltinCell, arrays: SamplingArrays, tiling: SamplingTiling, refs: SamplingRefs
    ) -> None:
        """Read the position in the grid."""
        self._cell = cell
        self._arrays = arrays
        self._tiling = tiling
        self._refs = refs
        self._gates = len(cell.GATES)
        self._layers, _, self._width = arrays.vectors.shape
        self._pieces = range(arrays.scores.shape[1] // PIECE)
        self._part = lax.axis_index("bundle")
        if tiling.cluster > 1:
            self._part = lax.axis_index("peer")
        self._counter = None
        if tiling.parts > tiling.cluster:
            self._counter = pl.get_global(plgpu.SemaphoreType.REGULAR)
        # Parts without columns of the output compute the last ones again, and do not publish them.
        owners = len(arrays.output)
        self._owns_columns = self._part < owners
        self._output = jnp.minimum(self._part, owners - 1)

    def run(self) -> None:
        """Draw all characters, from the initial state to the final one."""
        refs = self._refs
        self._load_weights()
        # Number of exchanges so far.
        self._exchanges: Scalar = 0
        self._publish_initial_state()
        scores = refs.initial_scores_gmem.at[:, self._columns]
        scores = load(scores, layout=plgpu.Layout.WGMMA, optimized=False)
        self._publish_scores(scores)
        first = self._exchanges
        length = refs.length_gmem[0]
        per_character = exchanges(self._cell, self._layers)
        step = steps.forward_step(self._cell)

        def character(t: Array, _: None) -> None:
            self.t = t
            self._exchanges = first + t * per_character
            for layer in range(self._layers):
                self._layer = layer
                after, _kept = step(self, self._state(layer))
                for k, name in enumerate(self._arrays.state):
                    refs.state_smem[layer, k] = after[name]
                place = self._hidden(layer, t + 1).at[:, self._units]
                self._copy_out(after["hidden"], refs.publish_units_smem, place)
                self._arrive()
            self._run_output_layer()

        lax.fori_loop(0, length, character, None)
        self._exchanges = first + length * per_character
        # No CTA may exit while others still need its barrier.
        self._wait_for_parts()
        self._store_final_state()

    def _load_weights(self) -> None:
        refs = self._refs
        for source, target in (
            (refs.weights_gmem.at[self._part], refs.weights_smem),
            (refs.table_gmem.at[self._part], refs.table_smem),
            (refs.output_gmem.at[self._output], refs.output_weights_smem),
        ):
            count, _, columns = target.shape
            for k in range(count):
                chunk = source.at[:, pl.ds(k * columns, columns)]
                plgpu.copy_gmem_to_smem(chunk, target.at[k], refs.weights_barrier.at[0])
        plgpu.barrier_wait(refs.weights_barrier.at[0])

    def _publish_initial_state(self) -> None:
        refs = self._refs
        for layer in range(self._layers):
            for k, name in enumerate(self._arrays.state):
                initial = refs.initial_state_gmem[name].at[layer, :, self._units]
                initial = load(initial, layout=plgpu.Layout.WGMMA, optimized=False)
                refs.state_smem[layer, k] = initial
            hidden = self._state(layer)["hidden"]
            place = self._hidden(layer, 0).at[:, self._units]
            self._copy_out(hidden, refs.publish_units_smem, place)
        self._arrive()
        self._wait_for_parts()

    def _store_final_state(self) -> None:
        plgpu.commit_smem()
        for layer in range(self._layers):
            for k, name in enumerate(self._arrays.state):
                target = self._refs.final_gmem[name].at[layer, self._rows, self._units]
                source = self._refs.state_smem.at[layer, k]
                plgpu.copy_smem_to_gmem(self._own_rows(source), target)
        plgpu.wait_smem_to_gmem(0)

    # --- what a cell's step asks for --------------------------------------------------------------

    def load_input(self, name: str) -> tuple[Tile, ...]:
        """Return the projected inputs of the current layer, by gate."""
        self._wait_for_parts()
        if not self._layer:
            return self._split(self._look_up(self._draw()), self._gates)
        below = self._hidden(self._layer - 1, self.t + 1)
        total = self._layer_product(below, 2 * self._layer - 1, self._gates)
        gates = self._split(total, self._gates)
        return tuple(x + self._layer_vector(k) for k, x in enumerate(gates))

    def product(
        self, sources: Sequence[tuple[str, int]], gates: range = range(1)
    ) -> tuple[Tile, ...]:
        """Return the hidden state of the character before, or r * h, times the weights of some gates."""
        ((name, _),) = sources
        source = self._hidden(self._layer, self.t)
        if name == "reset_hidden":
            self._wait_for_parts()
            source = self._refs.reset_hidden_gmem
        total = self._layer_product(source, 2 * self._layer, len(gates), gates.start)
        return self._split(total, len(gates))

    def publish(self, tiles: dict[str, dict[int, Tile]], t: Scalar) -> None:
        """Publish this part's units of r * h, for every part to read at the next `product`."""
        place = self._refs.reset_hidden_gmem.at[:, self._units]
        self._copy_out(tiles["reset_hidden"][0], self._refs.publish_units_smem, place)
        self._arrive()

    def vector(self, k: int) -> Tile:
        """Return the k-th vector beside the biases, the same in every row."""
        return self._layer_vector(self._gates + k)

    def _layer_vector(self, k: int) -> Tile:
        vector = self._refs.vectors_gmem.at[self._layer, k, self._units]
        return mosaic.in_every_row(vector, self._tiling.units)

    # --- the drawn character ----------------------------------------------------------------------

    def _draw(self) -> Array:
        """Return the column of each row's highest score, the first of equal ones: [64] int32."""
        refs = self._refs
        barrier = refs.scores_barrier.at[0]
        for p in self._pieces:
            scores = refs.scores_gmem.at[self._rows, pl.ds(p * PIECE, PIECE)]
            plgpu.copy_gmem_to_smem(scores, self._own_rows(refs.scores_smem.at[p]), barrier)
        plgpu.barrier_wait(barrier)
        highest, token = self._highest(0)
        for p in self._pieces[1:]:
            high, at = self._highest(p)
            token = jnp.where(high > highest, at, token)
            highest = jnp.maximum(high, highest)

        @pl.when(self._part == 0)
        def _() -> None:
            refs.tokens_gmem.at[self.t][...] = token

        return token

    def _highest(self, piece: int) -> tuple[Array, Array]:
        """Return the highest of each row's scores in a piece, and its column in the vocabulary."""
        scores = load(self._refs.scores_smem.at[piece], layout=plgpu.Layout.WGMMA)
        column = _columns_of_piece(piece)
        high = jnp.max(scores, axis=1)
        none = jnp.full_like(column, len(self._pieces) * PIECE)
        is_high = scores == mosaic.in_every_column(high, PIECE)
        return high, jnp.min(jnp.where(is_high, column, none), axis=1)

    def _look_up(self, token: Array) -> Array:
        """Return the token's row of the table, [64, gates * units]."""
        refs = self._refs
        dtype = self._arrays.table.dtype
        self._is_noisy = None
        noisy = jnp.zeros((M, PIECE), jnp.float32)
        for p in self._pieces:
            is_token = _columns_of_piece(p) == mosaic.in_every_column(token, PIECE)
            one = jnp.where(is_token, jnp.ones_like(noisy), jnp.zeros_like(noisy))
            refs.one_hot_smem[p] = one.astype(dtype)
            if refs.whitespace_gmem is not None:
                here = refs.whitespace_gmem.at[pl.ds(p * PIECE, PIECE)]
                noisy = noisy + one * mosaic.in_every_row(here, PIECE)
        if refs.whitespace_gmem is not None:
            self._is_noisy = jnp.max(noisy, axis=1)
        plgpu.commit_smem()

        def multiply(accumulator: Ref) -> Array:
            for k in range(2 * len(self._pieces)):
                one_hot = refs.one_hot_smem.at[k % len(self._pieces)]
                plgpu.wgmma(accumulator, one_hot, mosaic.transposed(refs.table_smem.at[k]))
            plgpu.wgmma_wait(0)
            return accumulator[...]

        shape = (M, self._gates * self._tiling.units)
        return pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))

    # --- the output layer -------------------------------------------------------------------------

    def _run_output_layer(self) -> None:
        """Compute the output layer, and publish the scores of the next character."""
        refs = self._refs
        columns = self._tiling.columns
        noise = None
        if refs.noise_gmem is not None:
            # Loaded while the parts synchronise.
            noise = refs.noise_gmem.at[self.t, :, self._columns]
            noise = load(noise, layout=plgpu.Layout.WGMMA, optimized=False)
        bias = mosaic.in_every_row(refs.output_bias_gmem.at[self._columns], columns)
        self._wait_for_parts()

        def weights(c: Scalar) -> Ref:
            return refs.output_weights_smem.at[c]

        hidden = self._hidden(self._layers - 1, self.t + 1)
        scores = bias + self._multiply(hidden, weights, columns)
        if noise is not None:
            if self._is_noisy is not None:
                noise = noise * mosaic.in_every_column(self._is_noisy, columns)
            scores += noise
        self._publish_scores(scores)

    def _publish_scores(self, scores: Tile) -> None:
        place = self._refs.scores_gmem.at[:, self._columns]
        staged = self._refs.publish_columns_smem
        self._copy_out(scores, staged, place, when=self._owns_columns)
        self._arrive()

    # --- products ---------------------------------------------------------------------------------

    def _layer_product(self, source: Ref, k: int, gates: int, first: int = 0) -> Array:
        """Return a hidden state times the k-th of the weights, gates side by side from the first."""
        chunks = self._width // self._tiling.chunk
        units = self._tiling.units
        rows = pl.ds(first * units, gates * units)

        def weights(c: Scalar) -> Ref:
            return self._refs.weights_smem.at[k * chunks + c, rows]

        return self._multiply(source, weights, gates * units)

    def _multiply(self, source: Ref, weights: Callable[[Scalar], Ref], count: int) -> Array:
        """Return [64, count]: a hidden state, fetched chunk by chunk, times the chunks' weights."""
        tiling, refs = self._tiling, self._refs
        chunks = self._width // tiling.chunk

        def fetch(c: Scalar) -> None:
            columns = pl.ds(c * tiling.chunk, tiling.chunk)
            slot = lax.rem(c, tiling.slots)
            place = self._own_rows(refs.operand_ring_smem.at[slot])
            barrier = refs.operand_barrier.at[slot]
            plgpu.copy_gmem_to_smem(source.at[self._rows, columns], place, barrier)

        # All four warps are done with what the ring held; one of them fetches.
        plgpu.commit_smem()
        lax.fori_loop(0, min(tiling.slots, chunks), lambda c, _: fetch(c), None)

        def multiply(accumulator: Ref) -> Array:
            def one(c: Scalar, _: None) -> None:
                slot = lax.rem(c, tiling.slots)
                plgpu.barrier_wait(refs.operand_barrier.at[slot])
                plgpu.wgmma(
                    accumulator, refs.operand_ring_smem.at[slot], mosaic.transposed(weights(c))
                )
                # The product before this one is done.
                plgpu.wgmma_wait(1)

                @pl.when((c > 0) & (c - 1 + tiling.slots < chunks))
                def refill() -> None:
                    plgpu.commit_smem()
                    fetch(c - 1 + tiling.slots)

            lax.fori_loop(0, chunks, one, None)
            return accumulator[...]

        return pl.run_scoped(multiply, plgpu.ACC((M, count), jnp.float32))

    def _split(self, total: Array, gates: int) -> tuple[Tile, ...]:
        units = self._tiling.units
        return tuple(lax.slice(total, (0, k * units), (M, (k + 1) * units)) for k in range(gates))

    # --- exchange ---------------------------------------------------------------------------------

    def _copy_out(self, tile: Tile, staged: Ref, target: Ref, when: Scalar | bool = True) -> None:
        """Copy a tile to the card's memory, through shared memory."""
        staged[...] = tile.astype(staged.dtype)
        plgpu.commit_smem()

        @pl.when(when)
        def _() -> None:
            plgpu.copy_smem_to_gmem(self._own_rows(staged), self._own_rows(target))

        plgpu.wait_smem_to_gmem(0)

    def _arrive(self) -> None:
        """Tell the other parts that what was copied is in memory. `_wait_for_parts` must follow."""
        self._exchanges = self._exchanges + 1
        if self._counter is not None:
            plgpu.semaphore_signal(self._counter, 1, memory_scope="gpu")
        elif self._tiling.cluster > 1:
            mosaic.cluster_fence()
            plgpu.barrier_arrive(self._refs.parts_barrier.at[0])

    def _wait_for_parts(self) -> None:
        """Wait until every part has arrived as often as this one."""
        if self._counter is not None:
            times = self._exchanges * self._tiling.parts
            plgpu.semaphore_wait(self._counter, times, decrement=False, memory_scope="gpu")
        elif self._tiling.cluster > 1:
            plgpu.barrier_wait(self._refs.parts_barrier.at[0])
            mosaic.cluster_fence()
        mosaic.fence()

    # --- slices -----------------------------------------------------------------------------------

    def _state(self, layer: int) -> State:
        """Return this part's units of a layer's state."""
        return {
            name: load(self._refs.state_smem.at[layer, k], layout=plgpu.Layout.WGMMA)
            for k, name in enumerate(self._arrays.state)
        }

    def _hidden(self, layer: int, t: Scalar) -> Ref:
        """Return the place of a layer's hidden state after t characters."""
        turn = t % 2 if isinstance(t, int) else lax.rem(t, 2)
        return self._refs.hidden_gmem.at[layer, turn]

    @property
    def _rows(self) -> Any:
        return pl.ds(0, self._tiling.rows)

    @property
    def _units(self) -> Any:
        return pl.ds(self._part * self._tiling.units, self._tiling.units)

    @property
    def _columns(self) -> Any:
        return pl.ds(self._output * self._tiling.columns, self._tiling.columns)

    def _own_rows(self, place: Ref) -> Ref:
        """Return the rows of 64 that are moved."""
        return place.at[self._rows]


def _columns_of_piece(piece: int) -> Array:
    """Return [64, PIECE] int32, the columns of a piece in the vocabulary."""
    layout = plgpu.Layout.WGMMA
    return plgpu.broadcasted_iota(jnp.int32, (M, PIECE), 1, layout=layout) + piece * PIECE
