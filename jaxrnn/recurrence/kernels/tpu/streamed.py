"""The TPU kernel whose recurrent weights do not fit VMEM and are streamed, for `kernels.tpu`.

Its grid is (blocks of rows, steps of time, tiles of each sweep of a step). At every step each tile of
w_h comes from HBM once for every block of rows, the columns of all of a sweep's gates for the same
hidden units together (of W_h^T on the way back), while the tile before it is worked on; so does the
tile's part of everything that has a time axis. In VMEM stay whole rows of

    h, c [B, H]                the running state, copied in before the first step and out after the last
    what the products take     the h that entered the step, so that the last tile sees the same one as
                               the first; a GRU's r * h; the gates' gradients
    vectors                    peepholes, b_h

Every window on an array costs each turn of the grid some bundles: gates that go together share one.
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
from jaxrnn.recurrence.kernels.tpu.views import Arrays, Columns, Like, Streamed, names
from jaxrnn.shapes import Array

Window = tuple[str, tuple[int, ...]]  # on the tile at hand: of which array, which gates
Key = str | Window  # a name alone: whole rows


def call(
    cell: Any, direction: str, reverse: bool, interpret: Any, tiles: Tiles, arrays: Arrays
) -> dict[str, Any]:
    """The kernel's outputs by name. One of several gates is [gates, T, B, H], or where they come from
    different sweeps a tuple of [T, B, H].

    direction: "forward" or "backward", a function of `tpu_cells`.
    reverse: from the last step to the first.
    """
    steps, batch = arrays.steps_and_rows
    size, rows, width = cell.hidden_size, tiles.rows, tiles.width
    count, blocks = size // width, pl.cdiv(batch, rows)
    step = getattr(tpu_cells, direction)(cell)
    windows = _windows(step)

    def time(t: Array) -> Array:
        return steps - 1 - t if reverse else t

    def by_tile(window: Window, x: Any) -> pl.BlockSpec:
        """The tile at hand; in sweeps that do not use it, the nearest that is used."""
        name, gates = window
        first, last = min(windows[window]), max(windows[window])
        together = len(gates) if len(gates) > 1 else None

        def place(i: Array) -> Array:
            return lax.rem(jnp.clip(i - first * count, 0, (last + 1 - first) * count - 1), count)

        if name in _MATRICES:
            return pl.BlockSpec((together, size, width), lambda b, t, i: (gates[0], 0, place(i)))
        if together:
            block = (together, None, rows, width)
            return pl.BlockSpec(block, lambda b, t, i: (0, time(t), b, place(i)))
        before = gates[0] * count if x.shape[-1] > size else 0
        return pl.BlockSpec((None, rows, width), lambda b, t, i: (time(t), b, before + place(i)))

    def in_rows(x: Any) -> pl.BlockSpec:
        if len(x.shape) == 2:  # a vector
            return pl.BlockSpec(x.shape, lambda b, t, i: (0, 0))
        return pl.BlockSpec((None, rows, x.shape[-1]), lambda b, t, i: (time(t), b, 0))

    def on(name: str) -> list[Window]:
        return [window for window in windows if window[0] == name]

    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    inputs: dict[Key, tuple[Any, pl.BlockSpec]] = {}
    for name, x in (arrays.by_step | arrays.weights).items():
        x = _by_gate(x, name, size)
        for window in on(name):
            part = x[window[1][0]] if isinstance(x, tuple) else x
            inputs[window] = part, by_tile(window, part)
        if not on(name):
            inputs[name] = x, in_rows(x)
    for name, x in arrays.initial.items():
        whole = jnp.pad(x, [(0, blocks * rows - batch), (0, 0)])
        inputs[f"initial_{name}"] = whole.reshape(blocks, rows, size), anywhere

    outputs: dict[Key, tuple[Like, pl.BlockSpec]] = {}
    scratch = dict(arrays.scratch)
    for name, like in arrays.outputs.items():
        for window in on(name):
            together = (len(window[1]),) if len(window[1]) > 1 else ()
            part = Like((*together, steps, batch, size), like.dtype)
            outputs[window] = part, by_tile(window, part)
        if name in arrays.initial:
            outputs[f"final_{name}"] = Like((blocks, rows, size), like.dtype), anywhere
        elif not on(name):
            outputs[name] = like, in_rows(like)
        if name in arrays.initial or name == "d_gx":  # which a product takes in whole rows
            scratch[name] = like

    varying = jax.typeof(arrays.matrix).manual_axis_type
    results = pl.pallas_call(
        partial(
            _kernel,
            cell=cell,
            step=step,
            keys=(*inputs, *outputs, *scratch),
            initial=tuple(arrays.initial),
            width=width,
        ),
        grid=(blocks, steps, len(step.sweeps) * count),
        in_specs=[spec for _, spec in inputs.values()],
        out_specs=[spec for _, spec in outputs.values()],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying)
            for x, _ in outputs.values()
        ],
        scratch_shapes=[pltpu.VMEM((rows, x.shape[-1]), x.dtype) for x in scratch.values()],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=vmem() * MIB,
        ),
        cost_estimate=cost(cell, tiles, arrays),
        interpret=interpret,
        name=f"{type(cell).__name__.lower()}_{direction}_streamed",
    )(*(x for x, _ in inputs.values()))
    made = dict(zip(outputs, results, strict=True))

    def result(name: str) -> Any:
        if name in arrays.initial:
            return made[f"final_{name}"].reshape(blocks * rows, size)[:batch]
        parts = tuple(made[window] for window in sorted(on(name)))
        return made[name] if not parts else parts[0] if len(parts) == 1 else parts

    return {name: result(name) for name in arrays.outputs}


_MATRICES = ("w_h", "w_t")


def _windows(step: tpu_cells.Step) -> dict[Window, list[int]]:
    """The windows on what comes and goes by tiles, and the sweeps that use each.

    An array's gates share a window where the same sweeps use all of them and they lie one after the
    other in memory, as those of gx do not.
    """
    used: dict[str, dict[int, list[int]]] = {}
    for number, sweep in enumerate(step.sweeps):
        for name, gates in sweep.uses.items():
            for k in gates:
                used.setdefault(name, {}).setdefault(k, []).append(number)
    windows: dict[Window, list[int]] = {}
    for name, sweeps in used.items():
        alike = all(s == sweeps[0] for s in sweeps.values())
        if alike and name != "gx":
            windows[name, tuple(sweeps)] = sweeps[0]
        else:
            windows |= {(name, (k,)): s for k, s in sweeps.items()}
    return windows


def _by_gate(x: Any, name: str, size: int) -> Any:
    """The matrices as [gates, H, H], each a factor of its own product; what else there is as it is."""
    if name == "w_h":
        return x.reshape(size, -1, size).swapaxes(0, 1)
    return x.reshape(-1, size, size) if name == "w_t" else x


def _kernel(
    *refs: Any,
    cell: Any,
    step: tpu_cells.Step,
    keys: tuple[Key, ...],
    initial: tuple[str, ...],
    width: int,
) -> None:
    """One tile of one sweep of one step, and what is to do before the first and after the last."""
    named = dict(zip(keys, refs, strict=True))
    b, t, i = (pl.program_id(axis) for axis in range(3))
    first = (t == 0) & (i == 0)
    last = (t == pl.num_programs(1) - 1) & (i == pl.num_programs(2) - 1)
    ends = {name: (named.pop(f"initial_{name}"), named.pop(f"final_{name}")) for name in initial}
    marks = named.pop("marks", None)
    count = cell.hidden_size // width

    def tile(j: Array) -> Any:
        views: dict[str, Any] = {
            key: Columns(ref, cell.hidden_size, width, j)
            for key, ref in named.items()
            if isinstance(key, str)
        }
        tiles: dict[str, dict[int, Any]] = {}
        for key, ref in named.items():
            if not isinstance(key, str):
                name, gates = key
                by_gate = {k: ref.at[place] for place, k in enumerate(gates)}
                tiles.setdefault(name, {}).update(by_gate if len(gates) > 1 else {gates[0]: ref})
        views |= {name: Streamed(refs, views.get(name)) for name, refs in tiles.items()}
        return names(views, marks)

    @pl.when(first)
    def _() -> None:
        for name, (start, _) in ends.items():
            pltpu.sync_copy(start.at[b], named[name])

    if step.enter:

        @pl.when(i == 0)
        def _(enter: tpu_cells.Phase = step.enter) -> None:
            lax.fori_loop(0, count, lambda j, _: enter(cell, tile(j)), None)

    for number, sweep in enumerate(step.sweeps):

        @pl.when((i >= number * count) & (i < (number + 1) * count))
        def _(number: int = number, sweep: tpu_cells.Sweep = sweep) -> None:
            for phase in sweep.phases:
                phase(cell, tile(i - number * count))

    @pl.when(last)
    def _() -> None:
        for name, (_, end) in ends.items():
            pltpu.sync_copy(named[name], end.at[b])
