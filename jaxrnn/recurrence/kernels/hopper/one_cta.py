"""The kernel for small widths: a CTA runs its rows through all steps, and exchanges nothing.

A CTA keeps all recurrent weights in shared memory and the state of its rows in registers, from the first
step to the last. Its warpgroup w computes the units 64 w to 64 w + 63. The weights are the M operand of
the products and the rows of the batch are N, so that 8 rows need no padding:

    a^T [64 units, rows]   = W_h^T [64 units, H]  h^T [H, rows]                for each gate, forward
    d_h^T [64 units, rows] = W_h [64 units, G]    d_gx^T [G, rows]             backward

All gates of a unit are in the same thread. A step:

    wait until all warpgroups have published            a barrier in shared memory
    multiply what was published                         wgmma, both operands in shared memory
    compute the gates                                   float32, in registers
    publish this warpgroup's units of the result        registers, shared memory; TMA copies it out
    store the outputs, fetch the inputs of a later step

What is published has two places, for even and odd times. A warpgroup writes to one of them when all have
multiplied what was in it: each of them has published since.

CTAs do not wait for each other, so any number of them can be launched: of all rows, and under `jax.vmap`
of all sets of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels.hopper import launch, mosaic
from jaxrnn.recurrence.kernels.hopper.context import Context
from jaxrnn.recurrence.kernels.hopper.launch import Arrays, Refs, Results, StepFunctions, Tile
from jaxrnn.recurrence.kernels.hopper.mosaic import Like, Ref, Scalar, load, smem, transposed
from jaxrnn.recurrence.kernels.hopper.tiles import (
    DIRECTIONS,
    SHARED,
    BuiltinCell,
    Direction,
    M,
    width,
)
from jaxrnn.shapes import Array

WGMMA = plgpu.Layout.WGMMA
# Units of a warpgroup.
UNITS = M
# Largest number of rows of a CTA: with more, the gates of an LSTM take too many registers.
MOST_ROWS = 32
# Steps for which inputs are fetched ahead, where shared memory has room.
DEPTHS = 2, 1


class Alone(NamedTuple):
    """The division of a recurrence over CTAs that each have all of the weights.

    Attributes:
      rows: rows of a CTA, a multiple of 8.
      blocks: number of CTAs.
      forward: number of steps for which inputs are fetched ahead, forward.
      backward: the same, backward.
    """

    rows: int
    blocks: int
    forward: int
    backward: int

    @property
    def parts(self) -> int:
        """Number of CTAs that share the units."""
        return 1


def division(cell: BuiltinCell, batch: int, dtype: Any, multiprocessors: int) -> Alone | None:
    """Return the division of a layer over CTAs, or None where its weights do not fit in one.

    It has a CTA for each multiprocessor, or fewer where they would have less than 8 rows, or more where
    they would have more rows than fit.
    """
    most = min(MOST_ROWS, -(-batch // (8 * multiprocessors)) * 8)
    fitting = (of_rows(cell, batch, dtype, rows) for rows in range(most, 0, -8))
    return next(filter(None, fitting), None)


def of_rows(cell: BuiltinCell, batch: int, dtype: Any, rows: int) -> Alone | None:
    """Return the division with this number of rows in a CTA, or None where they do not fit."""
    if not hasattr(plgpu, "InterpretGPUParams"):
        # JAX 0.10 cannot transpose what it writes to shared memory.
        return None
    forward, backward = (_depth(cell, direction, rows, dtype) for direction in DIRECTIONS)
    return Alone(rows, -(-batch // rows), forward, backward) if forward and backward else None


def _depth(cell: BuiltinCell, direction: Direction, rows: int, dtype: Any) -> int | None:
    fit = (n for n in DEPTHS if shared_bytes(cell, direction, rows, n, dtype) <= SHARED)
    return next(fit, None)


def shared_bytes(cell: BuiltinCell, direction: Direction, rows: int, depth: int, dtype: Any) -> int:
    """Return the bytes of shared memory of a CTA in one direction.

    Args:
      cell: the cell.
      direction: forward with the outputs that the backward pass needs, or backward.
      rows: rows of the CTA.
      depth: number of steps for which inputs are fetched ahead.
      dtype: dtype of the weights.
    """
    size, gates = width(cell.hidden_size), len(cell.GATES)
    is_gru = cell.kind in (CellKind.GRU_BEFORE, CellKind.GRU_AFTER)
    # The previous cell of an LSTM, or q of a GRU that resets after its product.
    beside_gates = cell.kind in (CellKind.LSTM, CellKind.GRU_AFTER)
    states = 2 if cell.kind is CellKind.LSTM else 1
    if direction == "forward":
        published = 2 if cell.kind is CellKind.GRU_BEFORE else 1
        inputs, outputs = gates, gates + beside_gates + 1
    else:
        published = gates + (cell.kind is CellKind.GRU_AFTER)
        inputs, outputs = gates + beside_gates + is_gru + 1, 0
    tiles = 2 * published + depth * inputs + outputs
    narrow = jnp.dtype(dtype).itemsize
    masks = size // UNITS * depth * 2 * rows * 4
    return size * (gates * size * narrow + rows * (tiles * narrow + states * 4)) + masks


def call(
    steps: StepFunctions,
    arrays: Arrays,
    division: Alone,
    depth: int,
    reverse: bool,
    interpret: Any,
) -> Results:
    """Launch the kernel and return its results; under `jax.vmap`, launch it once for all.

    Args:
      steps: what it computes.
      arrays: its operands, and the types of its results; the masks are [2, T, B].
      division: the division over CTAs.
      depth: number of steps for which inputs are fetched ahead.
      reverse: whether to run from the last step to the first.
      interpret: a `plgpu.InterpretGPUParams`, or None or False for a GPU.
    """
    shapes = jax.tree.map(lambda x: Like(x.shape, x.dtype), arrays)
    scratch = _scratch_types(steps, shapes, division.rows, depth)

    @jax.custom_batching.custom_vmap
    def launch_sets(operands: dict[str, Any]) -> Results:
        """Launch the kernel for operands with a leading axis of sets."""
        sets = len(operands["weights_gmem"])

        def body(operands: dict[str, Any], results: Results, scratch: dict[str, Ref]) -> None:
            own = lax.axis_index("set")
            operands, results = jax.tree.map(lambda ref: ref.at[own], (operands, results))
            refs = launch.make_refs(operands, results, scratch)
            Warpgroup(steps, shapes, refs, division.rows, depth, reverse).run()

        return mosaic.call_kernel(
            f"{steps.name}_alone",
            body,
            operands,
            jax.tree.map(lambda x: Like((sets, *x.shape), x.dtype), shapes.results),
            grid={"set": sets, "block": division.blocks},
            approximate=shapes.weights.dtype.itemsize < 4,
            interpret=interpret,
            scratch_types=scratch,
            num_threads=shapes.hidden_size // UNITS,
            thread_name="warpgroup",
        )

    @launch_sets.def_vmap
    def launch_batch(count: int, batched: Any, operands: dict[str, Any]) -> tuple[Results, Any]:
        """Put the sets of all calls one after another."""

        def joined(x: Array, is_batched: bool) -> Array:
            x = x if is_batched else jnp.broadcast_to(x, (count, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        results = launch_sets(jax.tree.map(joined, operands, batched[0]))
        apart = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), results)
        return apart, jax.tree.map(lambda _: True, apart)

    results = launch_sets(jax.tree.map(lambda x: x[None], arrays.operands))
    return jax.tree.map(lambda x: x[0], results)


def _scratch_types(steps: StepFunctions, arrays: Arrays, rows: int, depth: int) -> dict[str, Any]:
    """Return the types of a CTA's shared memory and barriers."""
    narrow = arrays.weights.dtype
    warpgroups = arrays.hidden_size // UNITS
    tile = rows, UNITS
    outputs = sum(map(arrays.gates, arrays.outputs.values()))
    scratch = {
        "weights_smem": smem(arrays.weights.shape[1:], narrow),
        "published_smem": {
            name: smem((2, arrays.gates(x), warpgroups, *tile), narrow)
            for name, x in arrays.exchanged.items()
        },
        "output_smem": smem((warpgroups, max(outputs, 1), *tile), narrow),
        "state_smem": smem((warpgroups, len(arrays.initial), *tile), jnp.float32),
        "weights_barrier": plgpu.Barrier(num_barriers=1),
        "published_barrier": plgpu.Barrier(num_arrivals=warpgroups),
        "initial_barrier": plgpu.Barrier(num_arrivals=len(arrays.initial), num_barriers=warpgroups),
        "inputs_barrier": plgpu.Barrier(
            num_arrivals=sum(map(arrays.gates, arrays.inputs.values()))
            + (arrays.masks is not None),
            num_barriers=(warpgroups, depth),
        ),
    }
    for name, x in arrays.inputs.items():
        shape = warpgroups, depth, arrays.gates(x), *tile
        scratch[launch.input_name(name)] = smem(shape, x.dtype)
    if arrays.masks is not None:
        scratch["masks_smem"] = plgpu.SMEM((warpgroups, depth, 2, rows), jnp.float32)
    return scratch


class Warpgroup(Context):
    """A warpgroup's units of the CTA's rows, in the current step."""

    def __init__(
        self,
        steps: StepFunctions,
        arrays: Arrays,
        refs: Refs,
        rows: int,
        depth: int,
        reverse: bool,
    ) -> None:
        """Read the position in the grid, and load the vectors; rows: the number of rows."""
        self._units = UNITS
        self._shape = UNITS, rows
        self._rows = pl.ds(lax.axis_index("block") * rows, rows)
        first_unit = lax.axis_index("warpgroup") * UNITS
        super().__init__(steps, arrays, refs, depth, reverse, first_unit)

    def run(self) -> None:
        """Load the weights, and run all steps."""
        refs = self._refs

        @pl.when(self._warpgroup == 0)
        def _() -> None:
            weights = refs.weights_gmem.at[0]
            plgpu.copy_gmem_to_smem(weights, refs.weights_smem, refs.weights_barrier.at[0])

        plgpu.barrier_wait(refs.weights_barrier.at[0])
        self.run_rows()

    # --- tiles [64 units, rows], in shared memory [rows, 64 units] --------------------------------

    def _read(self, place: Ref) -> Tile:
        if place.dtype.itemsize == 2:
            return load(transposed(place), layout=WGMMA)
        tile = load(transposed(place), layout=plgpu.Layout.WGMMA_TRANSPOSED)
        return plgpu.layout_cast(tile, WGMMA)

    def _write(self, place: Ref, tile: Tile) -> None:
        tile = tile.astype(place.dtype)
        if place.dtype.itemsize == 4:
            tile = plgpu.layout_cast(tile, plgpu.Layout.WGMMA_TRANSPOSED)
        transposed(place)[...] = tile

    def _own_rows(self, place: Ref) -> Ref:
        return place

    def _for_every_row(self, vector: Ref) -> Tile:
        column = load(vector, layout=WGMMA.reduce(1), optimized=False)
        return lax.broadcast_in_dim(column, self._shape, (0,))

    def _masks(self) -> tuple[Tile, Tile]:
        self._wait_for_inputs()
        return self._mask(0), self._mask(1)

    def _mask(self, k: int) -> Tile:
        row = self._refs.masks_smem.at[self._warpgroup, self._slot(self._s), k]
        row = load(row, layout=WGMMA.reduce(0), optimized=False)
        return lax.broadcast_in_dim(row, self._shape, (1,)) != 0

    def _fetch_inputs(self, s: Scalar) -> None:
        super()._fetch_inputs(s)
        if self._arrays.masks is not None:
            slot = self._slot(s)
            masks = self._refs.masks_gmem.at[:, self._time(s), self._rows]
            place = self._refs.masks_smem.at[self._warpgroup, slot]
            barrier = self._refs.inputs_barrier.at[self._warpgroup, slot]
            plgpu.copy_gmem_to_smem(masks, place, barrier)

    # --- exchange between warpgroups --------------------------------------------------------------

    def publish(
        self, tiles: dict[str, dict[int, Tile]], t: Scalar, when: Scalar | bool = True
    ) -> None:
        """Publish the own units, for all warpgroups to read at the next `product`."""

        @pl.when(when)
        def _() -> None:
            # What was published two steps ago has left its places.
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            copies = []
            for name, gates in tiles.items():
                places = self._refs.published_smem[name].at[lax.rem(t, 2)]
                for gate, tile in gates.items():
                    place = places.at[gate, self._warpgroup]
                    self._write(place, tile)
                    target = self._refs.exchanged_gmem[name]
                    copies.append((place, target.at[t, self._rows, self._columns(gate)]))
            plgpu.commit_smem()
            plgpu.barrier_arrive(self._refs.published_barrier)
            for place, target in copies:
                plgpu.copy_smem_to_gmem(place, target)

    def product(
        self, sources: Sequence[tuple[str, int]], gates: range = range(1), start: int = 0
    ) -> tuple[Tile, ...]:
        """Return what all warpgroups published, times the columns of some gates of the own units."""
        plgpu.barrier_wait(self._refs.published_barrier)
        size = self._arrays.hidden_size
        parts = [
            (self._refs.published_smem[name].at[lax.rem(self.t, 2), gate, group], column)
            for k, (name, gate) in enumerate(sources)
            for group, column in enumerate(range((start + k) * size, (start + k + 1) * size, UNITS))
        ]

        def multiply(*accumulators: Ref) -> tuple[Tile, ...]:
            for gate, accumulator in zip(gates, accumulators, strict=True):
                weights = self._refs.weights_smem.at[self._columns(gate)]
                for published, column in parts:
                    chunk = weights.at[:, pl.ds(column, UNITS)]
                    plgpu.wgmma(accumulator, chunk, transposed(published))
            plgpu.wgmma_wait(0)
            return tuple(accumulator[...] for accumulator in accumulators)

        accumulator = plgpu.ACC(self._shape, jnp.float32)
        return pl.run_scoped(multiply, *[accumulator] * len(gates))
