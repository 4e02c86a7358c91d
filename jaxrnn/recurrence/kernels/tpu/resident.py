"""The TPU kernel whose recurrent weights stay in VMEM, for `kernels.tpu`.

Its grid is (blocks of rows, blocks of time). w_h is fetched from HBM once a call; what has a time axis
comes and goes by blocks of a few steps and some rows; the running state is the final state's block,
which stays in place while time goes by. The gates overwrite gx.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrnn.recurrence.kernels.tpu import steps as tpu_cells
from jaxrnn.recurrence.kernels.tpu.tiles import MIB, Tiles, cost, vmem
from jaxrnn.recurrence.kernels.tpu.views import Arrays, Columns, Transposed, names
from jaxrnn.shapes import Array


def call(
    cell: Any, direction: str, reverse: bool, interpret: Any, tiles: Tiles, arrays: Arrays
) -> dict[str, Array]:
    """The kernel's outputs by name.

    direction: "forward" or "backward", a function of `tpu_cells`.
    reverse: from the last step to the first.
    """
    steps, batch = arrays.steps_and_rows
    blocks = pl.cdiv(steps, tiles.steps)
    first = {f"initial_{name}": x for name, x in arrays.initial.items()}
    inputs = {**arrays.by_step, **first, **arrays.weights}
    outputs, scratch = arrays.outputs, arrays.scratch

    def block(name: str, x: Any) -> pl.BlockSpec:
        if name in arrays.weights:
            return pl.BlockSpec(x.shape, lambda b, t: (0, 0), pipeline_mode=pl.Buffered(1))
        if len(x.shape) == 2:
            return pl.BlockSpec((tiles.rows, x.shape[1]), lambda b, t: (b, 0))
        return pl.BlockSpec(
            (tiles.steps, tiles.rows, x.shape[2]),
            lambda b, t: (blocks - 1 - t if reverse else t, b, 0),
        )

    varying = jax.typeof(arrays.matrix).manual_axis_type
    results = pl.pallas_call(
        partial(
            _kernel,
            cell=cell,
            step=getattr(tpu_cells, direction)(cell),
            names_of_refs=(*inputs, *outputs, *scratch),
            by_step=(*arrays.by_step, *(k for k, x in outputs.items() if len(x.shape) == 3)),
            initial=tuple(arrays.initial),
            total=steps,
            tiles=tiles,
            reverse=reverse,
        ),
        grid=(pl.cdiv(batch, tiles.rows), blocks),
        in_specs=[block(name, x) for name, x in inputs.items()],
        out_specs=[block(name, x) for name, x in outputs.items()],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying)
            for x in outputs.values()
        ],
        scratch_shapes=[pltpu.VMEM((tiles.rows, x.shape[-1]), x.dtype) for x in scratch.values()],
        input_output_aliases={
            list(inputs).index(i): list(outputs).index(o) for i, o in arrays.aliases.items()
        },
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem() * MIB
        ),
        cost_estimate=cost(cell, tiles, arrays),
        interpret=interpret,
        name=f"{type(cell).__name__.lower()}_{direction}",
    )(*inputs.values())
    return dict(zip(outputs, results, strict=True))


def _kernel(
    *refs: Any,
    cell: Any,
    step: tpu_cells.Step,
    names_of_refs: tuple[str, ...],
    by_step: tuple[str, ...],
    initial: tuple[str, ...],
    total: int,
    tiles: Tiles,
    reverse: bool,
) -> None:
    """One block of rows over one block of time: every phase of every step, tile by tile."""
    named = dict(zip(names_of_refs, refs, strict=True))
    now, blocks = pl.program_id(1), pl.num_programs(1)
    first = [named.pop(f"initial_{name}") for name in initial]

    @pl.when(now == 0)
    def _() -> None:
        for name, ref in zip(initial, first, strict=True):
            named[name][...] = ref[...]

    block = blocks - 1 - now if reverse else now
    here = (
        tiles.steps
        if total % tiles.steps == 0
        else jnp.minimum(tiles.steps, total - block * tiles.steps)
    )

    def one(s: Array, _: None) -> None:
        t = here - 1 - s if reverse else s
        rows = {name: ref.at[t] if name in by_step else ref for name, ref in named.items()}
        marks = rows.pop("marks", None)

        def over_tiles(phase: tpu_cells.Phase) -> None:
            def tile(j: Array, _: None) -> None:
                views = {
                    name: (Transposed if name == "w_t" else Columns)(
                        ref, cell.hidden_size, tiles.width, j
                    )
                    for name, ref in rows.items()
                }
                phase(cell, names(views, marks))

            lax.fori_loop(0, cell.hidden_size // tiles.width, tile, None)

        for phase in step.phases:
            over_tiles(phase)

    lax.fori_loop(0, here, one, None)
