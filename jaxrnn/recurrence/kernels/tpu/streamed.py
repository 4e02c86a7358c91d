"""The TPU kernel whose recurrent weights do not fit into VMEM and are streamed from HBM.

Its grid is (blocks of rows, steps of time, tiles of each sweep of a step). At every step each tile of
w_h is copied from HBM once for every block of rows, while the tile before it is computed on. A tile of
w_h has the columns of all gates of a sweep for the same hidden units (backward: of W_h^T). The same
tile of every array with a time axis is copied with it. Whole rows of these arrays stay in VMEM:

    h, c [B, H]              the running state, copied in before the first step and out after the last
    operands of products     the h that entered the step, so that the last tile sees the same h as the
                             first one; r * h of a GRU; the derivatives of the gates' inputs
    vectors                  peepholes, b_h

Every window on an array costs each turn of the grid some bundles, so gates that are used together share
a window.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrnn.recurrence.kernels.tpu.launch import MATRICES, Kernel, Operand, pallas_call
from jaxrnn.recurrence.kernels.tpu.steps import Phase, Step
from jaxrnn.recurrence.kernels.tpu.views import TileInVmem, View, Views, WholeInVmem
from jaxrnn.shapes import Array


class Window(NamedTuple):
    """The part of an array that a turn of the grid sees.

    Attributes:
      name: the array.
      gates: the gates of which it sees the tile that is being computed; empty for whole rows.
    """

    name: str
    gates: tuple[int, ...] = ()


def launch(kernel: Kernel) -> dict[str, Any]:
    """Run a kernel and return its outputs by name.

    An array with several gates is [gates, T, B, H], or a tuple of [T, B, H] if the gates are written in
    different sweeps.
    """
    grid = Grid(kernel)
    made = pallas_call(
        kernel,
        partial(_body, grid),
        grid=(grid.blocks, grid.steps, len(kernel.step.sweeps) * grid.tiles),
        inputs=_inputs(grid),
        outputs=_outputs(grid),
        scratch=_scratch(grid),
        aliases={},
    )
    return {name: _result(grid, name, made) for name in kernel.arrays.outputs}


class Grid:
    """The turns of a kernel, and which part of each array a turn sees.

    Attributes:
      kernel: the kernel.
      steps: number of time steps T.
      batch: number of rows B.
      size: number of hidden units H.
      rows: rows in a block.
      blocks: number of blocks of rows.
      width: hidden units in a tile.
      tiles: number of tiles.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.steps, self.batch = kernel.arrays.steps_and_rows
        self.size = kernel.cell.hidden_size
        self.rows = kernel.tiles.rows
        self.blocks = pl.cdiv(self.batch, self.rows)
        self.width = kernel.tiles.width
        self.tiles = self.size // self.width
        self._sweeps = _windows(kernel.step)

    def windows_on(self, name: str) -> list[Window]:
        """Return the windows on tiles of an array; none if its whole rows are in VMEM."""
        return [window for window in self._sweeps if window.name == name]

    def tile_of(self, window: Window, x: Any) -> Operand:
        """Return the operand of which a turn sees the tile that is being computed.

        Args:
          window: one with gates.
          x: the array, without gates that other windows see, where these are arrays of their own.
        """
        gates = window.gates
        place = self._place(window)
        # None is a block's axis of length 1, which the kernel does not see.
        together = len(gates) if len(gates) > 1 else None
        if window.name in MATRICES:
            block: Any = (together, self.size, self.width)
            return Operand(x, pl.BlockSpec(block, lambda b, t, i: (gates[0], 0, place(i))))
        if together:
            block = (together, None, self.rows, self.width)
            return Operand(x, pl.BlockSpec(block, lambda b, t, i: (0, self._time(t), b, place(i))))
        block = (None, self.rows, self.width)
        # The tiles of earlier gates come before, if all gates lie side by side.
        before = gates[0] * self.tiles if x.shape[-1] > self.size else 0
        return Operand(
            x, pl.BlockSpec(block, lambda b, t, i: (self._time(t), b, before + place(i)))
        )

    def whole_rows_of(self, x: Any) -> Operand:
        """Return the operand of which a turn sees whole rows: a vector's, or those of a step."""
        if len(x.shape) == 2:
            return Operand(x, pl.BlockSpec(x.shape, lambda b, t, i: (0, 0)))
        block = (None, self.rows, x.shape[-1])
        return Operand(x, pl.BlockSpec(block, lambda b, t, i: (self._time(t), b, 0)))

    def _time(self, t: Array) -> Array:
        return self.steps - 1 - t if self.kernel.reverse else t

    def _place(self, window: Window) -> Callable[[Array], Array]:
        """Return the function from a turn's number within the step to the tile that the window sees.

        In sweeps that do not use the window it stays on the nearest tile that is used, so that nothing
        is copied.
        """
        first = min(self._sweeps[window]) * self.tiles
        end = (max(self._sweeps[window]) + 1) * self.tiles

        def place(i: Array) -> Array:
            return lax.rem(jnp.clip(i - first, 0, end - first - 1), self.tiles)

        return place


def _windows(step: Step) -> dict[Window, list[int]]:
    """Return the windows on tiles, and the numbers of the sweeps that use each.

    The gates of an array share a window if the same sweeps use all of them and they lie one after the
    other in memory, which those of gx do not.
    """
    used: dict[str, dict[int, list[int]]] = {}
    for number, sweep in enumerate(step.sweeps):
        for name, gates in sweep.uses.items():
            for k in gates:
                used.setdefault(name, {}).setdefault(k, []).append(number)
    windows: dict[Window, list[int]] = {}
    for name, sweeps_of in used.items():
        every = list(sweeps_of.values())
        if name != "gx" and all(sweeps == every[0] for sweeps in every):
            windows[Window(name, tuple(sweeps_of))] = every[0]
        else:
            windows |= {Window(name, (k,)): sweeps for k, sweeps in sweeps_of.items()}
    return windows


# The initial and the final state stay in HBM. The body copies one block of rows.
_IN_HBM = pl.BlockSpec(memory_space=pl.ANY)


def _inputs(grid: Grid) -> dict[Window, Operand]:
    arrays = grid.kernel.arrays
    inputs: dict[Window, Operand] = {}
    for name, given in (arrays.by_step | arrays.weights).items():
        x = _gates_first(given, name, grid.size)
        windows = grid.windows_on(name)
        for window in windows:
            part = x[window.gates[0]] if isinstance(x, tuple) else x
            inputs[window] = grid.tile_of(window, part)
        if not windows:
            inputs[Window(name)] = grid.whole_rows_of(x)
    for name, x in arrays.initial.items():
        whole_blocks = jnp.pad(x, [(0, grid.blocks * grid.rows - grid.batch), (0, 0)])
        by_block = whole_blocks.reshape(grid.blocks, grid.rows, grid.size)
        inputs[Window(f"initial_{name}")] = Operand(by_block, _IN_HBM)
    return inputs


def _gates_first(x: Any, name: str, size: int) -> Any:
    """Return a matrix as [gates, H, H], one factor of a product per gate; others as they are."""
    if name == "w_h":
        return x.reshape(size, -1, size).swapaxes(0, 1)
    if name == "w_t":
        return x.reshape(-1, size, size)
    return x


def _outputs(grid: Grid) -> dict[Window, Operand]:
    arrays = grid.kernel.arrays
    outputs: dict[Window, Operand] = {}
    for name, like in arrays.outputs.items():
        windows = grid.windows_on(name)
        for window in windows:
            gates = (len(window.gates),) if len(window.gates) > 1 else ()
            shape = (*gates, grid.steps, grid.batch, grid.size)
            outputs[window] = grid.tile_of(window, jax.ShapeDtypeStruct(shape, like.dtype))
        if name in arrays.initial:
            by_block = jax.ShapeDtypeStruct((grid.blocks, grid.rows, grid.size), like.dtype)
            outputs[Window(f"final_{name}")] = Operand(by_block, _IN_HBM)
        elif not windows:
            outputs[Window(name)] = grid.whole_rows_of(like)
    return outputs


def _scratch(grid: Grid) -> dict[Window, jax.ShapeDtypeStruct]:
    arrays = grid.kernel.arrays
    scratch = {Window(name): like for name, like in arrays.scratch.items()}
    for name, like in arrays.outputs.items():
        # The running state, and an output that a product takes in whole rows.
        if name in arrays.initial or name == "d_gx":
            scratch[Window(name)] = like
    return scratch


def _result(grid: Grid, name: str, made: dict[Window, Array]) -> Any:
    """Return an output of the kernel by its name, from the results by window."""
    if name in grid.kernel.arrays.initial:
        by_block = made[Window(f"final_{name}")]
        return by_block.reshape(grid.blocks * grid.rows, grid.size)[: grid.batch]
    windows = sorted(grid.windows_on(name))
    if not windows:
        return made[Window(name)]
    if len(windows) == 1:
        return made[windows[0]]
    return tuple(made[window] for window in windows)


def _body(grid: Grid, refs: dict[Window, Any]) -> None:
    """Compute one tile of one sweep of one step; copy the state before the first and after the last."""
    kernel = grid.kernel
    refs = dict(refs)
    names = tuple(kernel.arrays.initial)
    initial_hbm = {name: refs.pop(Window(f"initial_{name}")) for name in names}
    final_hbm = {name: refs.pop(Window(f"final_{name}")) for name in names}
    state_vmem = {name: refs[Window(name)] for name in names}
    block, t, i = (pl.program_id(axis) for axis in range(3))

    @pl.when((t == 0) & (i == 0))
    def _() -> None:
        for name in names:
            pltpu.sync_copy(initial_hbm[name].at[block], state_vmem[name])

    if kernel.step.enter is not None:
        pl.when(i == 0)(partial(_enter, grid, refs, kernel.step.enter))

    for number, sweep in enumerate(kernel.step.sweeps):
        first = number * grid.tiles
        now = (i >= first) & (i < first + grid.tiles)
        pl.when(now)(partial(_sweep, grid, refs, sweep.phases, i, first))

    @pl.when((t == pl.num_programs(1) - 1) & (i == pl.num_programs(2) - 1))
    def _() -> None:
        for name in names:
            pltpu.sync_copy(state_vmem[name], final_hbm[name].at[block])


def _enter(grid: Grid, refs: dict[Window, Any], phase: Phase) -> None:
    """Run the phase that comes before the sweeps for every tile."""

    def one_tile(j: Array, _: None) -> None:
        phase(grid.kernel.cell, _views(grid, refs, j))

    lax.fori_loop(0, grid.tiles, one_tile, None)


def _sweep(
    grid: Grid, refs: dict[Window, Any], phases: tuple[Phase, ...], i: Array, first: int
) -> None:
    """Run the phases of a sweep, whose first turn in the step is `first`, for the tile of turn i."""
    for phase in phases:
        phase(grid.kernel.cell, _views(grid, refs, i - first))


def _views(grid: Grid, refs: dict[Window, Any], j: Array) -> Views:
    """Return the views on tile j."""
    whole: dict[str, WholeInVmem] = {}
    tiles: dict[str, dict[int, Any]] = {}
    for (name, gates), ref in refs.items():
        if not gates:
            whole[name] = WholeInVmem(ref, grid.size, grid.width, j)
        elif len(gates) == 1:
            tiles.setdefault(name, {})[gates[0]] = ref
        else:
            tiles.setdefault(name, {}).update({k: ref.at[n] for n, k in enumerate(gates)})
    views: dict[str, View] = {**whole}
    views |= {name: TileInVmem(by_gate, whole.get(name)) for name, by_gate in tiles.items()}
    return Views(views, refs.get(Window("masks")))
