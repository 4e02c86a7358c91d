"""The kernel for small widths: a CTA runs its rows through all steps, and exchanges nothing.

A CTA keeps all recurrent weights and the state of its rows in registers from the first step to the last
(float32 weights in shared memory). Warpgroup w computes the units 64 w to 64 w + 63. The weights are the
M operand of the products and the rows of the batch are N, so that 8 rows need no padding:

    a^T [64 units, rows]   = W_h^T [64 units, H]  h^T [H, rows]                for each gate, forward
    d_h^T [64 units, rows] = W_h [64 units, G]    d_gx^T [G, rows]             backward

All gates of a unit are in the same thread. A step:

    wait until all warpgroups have published            a barrier in shared memory
    begin to multiply what was published                wgmma, from registers and shared memory
    copy results of the step before, fetch inputs       TMA, while the tensor cores multiply
    compute the gates                                   float32, in registers
    write the results to shared memory, and publish     16 bits, or float32 where the weights are

What is published has two places, for even and odd times. A warpgroup writes to one of them when all have
multiplied what was in it: each of them has published since.

CTAs do not wait for each other, so any number of them can be launched: of all rows, and under `jax.vmap`
of all sets of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.recurrence.kernels.hopper import launch, mosaic
from jaxrnn.recurrence.kernels.hopper.context import Context
from jaxrnn.recurrence.kernels.hopper.launch import (
    Arrays,
    Refs,
    Results,
    State,
    StepFunctions,
    Tile,
)
from jaxrnn.recurrence.kernels.hopper.mosaic import Like, Ref, Scalar, load, smem, transposed
from jaxrnn.recurrence.kernels.hopper.tiles import MASK_PLACES, UNITS, Alone
from jaxrnn.shapes import Array

WGMMA = plgpu.Layout.WGMMA
# JAX 0.10 cannot transpose what it writes to shared memory.
AVAILABLE = hasattr(plgpu, "InterpretGPUParams")


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
      depth: number of steps that have places for their inputs.
      reverse: whether to run from the last step to the first.
      interpret: a `plgpu.InterpretGPUParams`, or None or False for a GPU.
    """
    shapes = jax.tree.map(lambda x: Like(x.shape, x.dtype), arrays)
    is_narrow = shapes.weights.dtype.itemsize == 2
    # wgmma takes weights of 16 bits from registers; JAX's interpreter takes none from there.
    scratch = scratch_types(shapes, division.rows, depth, is_narrow and not interpret)

    @jax.custom_batching.custom_vmap
    def launch_sets(operands: dict[str, Any]) -> Results:
        """Launch the kernel for operands with a leading axis of sets."""
        sets = len(operands["weights_gmem"])

        def body(operands: dict[str, Any], results: Results, scratch: dict[str, Ref]) -> None:
            cta = lax.axis_index("cta")
            own = cta // division.blocks
            operands, results = jax.tree.map(lambda ref: ref.at[own], (operands, results))
            refs = launch.make_refs(operands, results, scratch)
            rows = pl.ds(cta % division.blocks * division.rows, division.rows)
            Warpgroup(steps, shapes, refs, rows, depth, reverse).run()

        return mosaic.call_kernel(
            f"{steps.name}_alone",
            body,
            operands,
            jax.tree.map(lambda x: Like((sets, *x.shape), x.dtype), shapes.results),
            # One axis, since only the first one of a grid may be longer than 65,535.
            grid={"cta": sets * division.blocks},
            approximate=is_narrow,
            interpret=interpret,
            # Between a write to shared memory by threads and a read by TMA or wgmma, and between a
            # write by TMA and a read by threads, there is always a `commit_smem` or a barrier. Only the
            # state is both read and written by threads, in different steps.
            synchronized=False,
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


def scratch_types(
    arrays: Arrays, rows: int, depth: int, weights_in_registers: bool
) -> dict[str, Any]:
    """Return the types of a CTA's shared memory and barriers."""
    narrow = arrays.weights.dtype
    warpgroups = arrays.hidden_size // UNITS
    tile = rows, UNITS
    outputs = sum(map(arrays.gates, arrays.outputs.values()))
    scratch = {
        "published_smem": {
            name: smem((2, arrays.gates(x), warpgroups, *tile), narrow)
            for name, x in arrays.exchanged.items()
        },
        "state_smem": smem((warpgroups, len(arrays.initial), *tile), jnp.float32),
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
    if outputs:
        scratch["output_smem"] = smem((warpgroups, outputs, *tile), narrow)
    if not weights_in_registers:
        scratch["weights_smem"] = smem(arrays.weights.shape[1:], narrow)
        scratch["weights_barrier"] = plgpu.Barrier(num_barriers=1)
    if arrays.masks is not None:
        # TMA writes to multiples of 128 bytes, but the two masks of 8 rows take only 64.
        scratch["masks_smem"] = plgpu.SMEM((warpgroups, depth, MASK_PLACES, rows), jnp.float32)
    return scratch


class Warpgroup(Context):
    """A warpgroup's units of the CTA's rows, in the current step."""

    def __init__(
        self,
        steps: StepFunctions,
        arrays: Arrays,
        refs: Refs,
        rows: Any,
        depth: int,
        reverse: bool,
    ) -> None:
        """Load the vectors; rows: the slice of the CTA's rows."""
        self._units = UNITS
        self._shape = UNITS, rows.size
        self._ahead = depth - 1
        self._rows = rows
        first_unit = lax.axis_index("warpgroup") * UNITS
        super().__init__(steps, arrays, refs, depth, reverse, first_unit)

    def run(self) -> None:
        """Load the weights, and run all steps."""
        self._weights = self._load_weights()
        self.run_rows()

    def _load_weights(self) -> dict[tuple[int, int], Any]:
        """Return the weights of the own units, [64, 64] each, by gate and the first of their columns.

        They are in registers, or places in shared memory.
        """
        refs, (_, rows, total) = self._refs, self._arrays.weights.shape
        in_registers = refs.weights_smem is None
        weights = refs.weights_gmem.at[0] if in_registers else refs.weights_smem
        if not in_registers:

            @pl.when(self._warpgroup == 0)
            def _() -> None:
                plgpu.copy_gmem_to_smem(
                    refs.weights_gmem.at[0], weights, refs.weights_barrier.at[0]
                )

            plgpu.barrier_wait(refs.weights_barrier.at[0])
        places = {
            (gate, column): weights.at[self._columns(gate), pl.ds(column, UNITS)]
            for gate in range(rows // self._arrays.hidden_size)
            for column in range(0, total, UNITS)
        }
        if not in_registers:
            return places
        return {at: load(place, layout=WGMMA, optimized=False) for at, place in places.items()}

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
            place = self._refs.masks_smem.at[self._warpgroup, slot, pl.ds(0, 2)]
            barrier = self._refs.inputs_barrier.at[self._warpgroup, slot]
            plgpu.copy_gmem_to_smem(masks, place, barrier)

    # --- a step -----------------------------------------------------------------------------------

    def _enter(self, s: Scalar) -> None:
        super()._enter(s)
        self._is_first_product = True
        # What is published, and not yet copied out: the state before this step.
        self._published = [("previous_hidden", 0, self.t)] if self._steps.begin else []

    def product(
        self, sources: Sequence[tuple[str, int]], gates: range = range(1), start: int = 0
    ) -> tuple[Tile, ...]:
        """Return what all warpgroups published, times the columns of some gates of the own units."""
        plgpu.barrier_wait(self._refs.published_barrier)
        size = self._arrays.hidden_size
        parts = [
            (self._refs.published_smem[name].at[self.t & 1, gate, group], column)
            for k, (name, gate) in enumerate(sources)
            for group, column in enumerate(range((start + k) * size, (start + k + 1) * size, UNITS))
        ]

        def multiply(*accumulators: Ref) -> tuple[Tile, ...]:
            for gate, accumulator in zip(gates, accumulators, strict=True):
                for published, column in parts:
                    plgpu.wgmma(accumulator, self._weights[gate, column], transposed(published))
            self._copy_meanwhile()
            plgpu.wgmma_wait(0)
            return tuple(accumulator[...] for accumulator in accumulators)

        accumulator = plgpu.ACC(self._shape, jnp.float32)
        return pl.run_scoped(multiply, *[accumulator] * len(gates))

    def publish(self, tiles: dict[str, dict[int, Tile]], t: Scalar) -> None:
        """Publish the own units, for all warpgroups to read at the next `product`."""
        # What was published two steps ago has left its places.
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        self._write_and_arrive(tiles, t)

    def finish(self, outputs: dict[str, tuple[Tile, ...]], hidden: Tile | None) -> None:
        """Publish the hidden state, and leave the outputs to be copied out during the next product."""
        if hidden is not None:
            # The outputs of the step before have left their places as well.
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            tiles = [tile for name in self._arrays.outputs for tile in outputs[name]]
            for k, tile in enumerate(tiles):
                self._write(self._refs.output_smem.at[self._warpgroup, k], tile)
            self._write_and_arrive({"previous_hidden": {0: hidden}}, self.next_t)

    def _write_and_arrive(self, tiles: dict[str, dict[int, Tile]], t: Scalar) -> None:
        for name, gates in tiles.items():
            for gate, tile in gates.items():
                place = self._refs.published_smem[name].at[t & 1, gate, self._warpgroup]
                self._write(place, tile)
                self._published.append((name, gate, t))
        plgpu.commit_smem()
        plgpu.barrier_arrive(self._refs.published_barrier)

    # --- copies between shared memory and memory --------------------------------------------------

    def _copy_meanwhile(self) -> None:
        """Copy out what is published and the outputs of the step before, and fetch later inputs."""
        for name, gate, t in self._published:
            place = self._refs.published_smem[name].at[t & 1, gate, self._warpgroup]
            target = self._refs.exchanged_gmem[name].at[t, self._rows, self._columns(gate)]
            plgpu.copy_smem_to_gmem(place, target)
        self._published = []
        if self._is_first_product:
            self._is_first_product = False
            later = self._s + self._ahead
            pl.when(self._s > 0)(partial(self._store_outputs, self._s - 1))
            pl.when(later < self._total)(partial(self._fetch_inputs, later))

    def _store_outputs(self, s: Scalar) -> None:
        """Copy out the outputs of step s."""
        t, k = self._time(s), 0
        for name, x in self._arrays.outputs.items():
            for gate in range(self._arrays.gates(x)):
                place = self._refs.output_smem.at[self._warpgroup, k]
                target = self._refs.outputs_gmem[name].at[t, self._rows, self._columns(gate)]
                plgpu.copy_smem_to_gmem(place, target)
                k += 1

    def _store_final_state(self, state: State) -> None:
        self._store_outputs(self._total - 1)
        if self._steps.begin:
            # The state after the last step was published too, though no product follows.
            plgpu.barrier_wait(self._refs.published_barrier)
        super()._store_final_state(state)
