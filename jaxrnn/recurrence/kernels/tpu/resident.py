"""The TPU kernel whose recurrent weights stay in VMEM.

Its grid is (blocks of rows, blocks of time). w_h is copied from HBM once per launch. Arrays with a time
axis are copied block by block, each block a few steps of some rows. The running state is the block of
the final state, which stays in VMEM for all of time. The gates overwrite gx.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxrnn.recurrence.kernels.tpu.launch import Arrays, Kernel, Operand, pallas_call
from jaxrnn.recurrence.kernels.tpu.steps import Phase
from jaxrnn.recurrence.kernels.tpu.views import TransposedInVmem, View, Views, WholeInVmem
from jaxrnn.shapes import Array


def launch(kernel: Kernel) -> dict[str, Array]:
    """Run a kernel and return its outputs by name."""
    arrays, tiles = kernel.arrays, kernel.tiles
    steps, batch = arrays.steps_and_rows
    blocks = pl.cdiv(steps, tiles.steps)

    def operand(name: str, x: Any) -> Operand:
        if name in arrays.weights:
            # It never changes, so one buffer is enough.
            return Operand(
                x, pl.BlockSpec(x.shape, lambda b, t: (0, 0), pipeline_mode=pl.Buffered(1))
            )
        if len(x.shape) == 2:
            return Operand(x, pl.BlockSpec((tiles.rows, x.shape[1]), lambda b, t: (b, 0)))
        block = (tiles.steps, tiles.rows, x.shape[2])
        if kernel.reverse:
            return Operand(x, pl.BlockSpec(block, lambda b, t: (blocks - 1 - t, b, 0)))
        return Operand(x, pl.BlockSpec(block, lambda b, t: (t, b, 0)))

    initial = {f"initial_{name}": x for name, x in arrays.initial.items()}
    inputs = arrays.by_step | initial | arrays.weights
    return pallas_call(
        kernel,
        partial(_body, kernel),
        grid=(pl.cdiv(batch, tiles.rows), blocks),
        inputs={name: operand(name, x) for name, x in inputs.items()},
        outputs={name: operand(name, x) for name, x in arrays.outputs.items()},
        scratch=arrays.scratch,
        aliases=arrays.aliases,
    )


def _body(kernel: Kernel, refs: dict[str, Any]) -> None:
    """Run one block of rows through one block of time: every step, every phase, every tile."""
    refs = dict(refs)
    initial = {name: refs.pop(f"initial_{name}") for name in kernel.arrays.initial}
    by_step = _names_by_step(kernel.arrays)
    turn = pl.program_id(1)

    @pl.when(turn == 0)
    def _() -> None:
        for name, ref in initial.items():
            refs[name][...] = ref[...]

    steps = _steps_of_block(kernel, turn)

    def one_step(s: Array, _: None) -> None:
        t = steps - 1 - s if kernel.reverse else s
        of_step = {name: ref.at[t] if name in by_step else ref for name, ref in refs.items()}
        for phase in kernel.step.phases:
            _over_tiles(kernel, phase, of_step)

    lax.fori_loop(0, steps, one_step, None)


def _names_by_step(arrays: Arrays) -> set[str]:
    """Return the names of the arrays with a time axis."""
    outputs = (name for name, x in arrays.outputs.items() if len(x.shape) == 3)
    return {*arrays.by_step, *outputs}


def _steps_of_block(kernel: Kernel, turn: Array) -> int | Array:
    """Return the number of steps in a turn's block of time, of which the last may have fewer."""
    total, _ = kernel.arrays.steps_and_rows
    most = kernel.tiles.steps
    if total % most == 0:
        return most
    block = pl.num_programs(1) - 1 - turn if kernel.reverse else turn
    return jnp.minimum(most, total - block * most)


def _over_tiles(kernel: Kernel, phase: Phase, refs: dict[str, Any]) -> None:
    """Run a phase for every tile, on the arrays of one step."""
    size, width = kernel.cell.hidden_size, kernel.tiles.width

    def one_tile(j: Array, _: None) -> None:
        views: dict[str, View] = {}
        for name, ref in refs.items():
            kind = TransposedInVmem if name == "w_t" else WholeInVmem
            if name != "masks":
                views[name] = kind(ref, size, width, j)
        phase(kernel.cell, Views(views, refs.get("masks")))

    lax.fori_loop(0, size // width, one_tile, None)
