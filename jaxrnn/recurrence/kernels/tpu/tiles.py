"""The blocks of rows, steps and hidden units that fit into the VMEM of a TPU core."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.cells import GRU, LSTM
from jaxrnn.recurrence.kernels.xla.rules import unsupported_cell
from jaxrnn.recurrence.problem import Problem

# Numbers side by side in a vector register.
LANES = 128

# Rows of an array in VMEM come in multiples of this, also in bfloat16.
SUBLANES = 16

MIB = 2**20

# MiB of VMEM of one core, by the device's name.
VMEM_MIB = {
    "TPU v4": 16,
    "TPU v5 lite": 128,
    "TPU v5e": 128,
    "TPU v5": 64,
    "TPU v5p": 64,
    "TPU v6 lite": 128,
    "TPU v6e": 128,
    "TPU7x": 64,
}

# MiB of VMEM that are assumed for a chip that is not listed.
SMALLEST_VMEM_MIB = 16

# MiB of VMEM that are left to the compiler.
RESERVED_MIB = 3

# Candidates for the largest number of rows in a block, best first; the second if w_h is streamed.
ROWS = (256, 128, 64, 32, 16)
ROWS_STREAMED = (1024, 512, *ROWS)

# Candidates for the largest number of steps in a block, best first.
STEPS = (8, 4, 2, 1)

# Candidates for the width of a tile. Wider tiles take fewer bundles per step, but longer to compile.
WIDTHS = (1024, 512, 256, LANES)


class Tiles(NamedTuple):
    """The division of a recurrence into blocks.

    Attributes:
      rows: rows of the batch in a block.
      steps: time steps in a block.
      width: hidden units in a tile.
      streamed: whether w_h does not stay in VMEM but is copied there tile by tile at every step.
    """

    rows: int
    steps: int
    width: int
    streamed: bool = False


def unsupported_reason(problem: Problem) -> str | None:
    """Return why the kernels cannot run a problem on the TPU at hand, or None where they can."""
    if reason := unsupported_cell(problem.cell):
        return reason
    if problem.dtype not in (jnp.float32, jnp.bfloat16):
        return f"its products take float32 or bfloat16 weights, not {problem.dtype}"
    if problem.batch < 1:
        return f"a batch of {problem.batch} rows has nothing to run"
    if _fitting(problem.cell, 1, problem.batch, problem.dtype) is None:
        return _too_large(problem.cell, problem.batch, problem.dtype)
    return None


def tiles_for(cell: Any, steps: int, batch: int, dtype: Any) -> Tiles:
    """Return the largest blocks that fit into VMEM with two buffers each.

    All of w_h is beside them where it fits, otherwise two tiles of w_h. In the second case every block
    of rows reads w_h once per step, so many rows matter more than a wide tile, and one step in a block
    is as good as several.

    Args:
      cell: an RNN, LSTM or GRU.
      steps: number of time steps T.
      batch: number of rows B.
      dtype: dtype of w_h.

    Raises:
      ValueError: if no blocks fit.
    """
    tiles = _fitting(cell, steps, batch, dtype)
    if tiles is None:
        raise ValueError(_too_large(cell, batch, dtype))
    return tiles


def _fitting(cell: Any, steps: int, batch: int, dtype: Any) -> Tiles | None:
    size = round_up(cell.hidden_size, LANES)
    widths = [width for width in WIDTHS if size % width == 0]
    for rows in _blocks_of(batch, ROWS):
        for most in STEPS:
            tiles = Tiles(rows, _even(steps, most), widths[0])
            if _weight_bytes(cell, dtype) + _block_bytes(cell, rows, tiles.steps) <= vmem_budget():
                return tiles
    for rows in _blocks_of(batch, ROWS_STREAMED):
        for width in widths:
            if _streamed_bytes(cell, rows, width, dtype) <= vmem_budget():
                return Tiles(rows, 1, width, streamed=True)
    return None


def _too_large(cell: Any, batch: int, dtype: Any) -> str:
    rows = min(batch, ROWS[-1])
    return (
        f"w_h of H = {cell.hidden_size} in {jnp.dtype(dtype)} takes "
        f"{_weight_bytes(cell, dtype) / MIB:.0f} MiB, and streamed by tiles of {LANES} units it still "
        f"needs {_streamed_bytes(cell, rows, LANES, dtype) / MIB:.1f} MiB with a block of {rows} rows, "
        f"more than the {vmem_mib()} MiB of VMEM that a core of {accelerator.device().device_kind} has, "
        f"less {RESERVED_MIB} for the compiler"
    )


def _blocks_of(batch: int, limits: tuple[int, ...]) -> list[int]:
    """Return, for each limit, the rows of blocks of about equal size."""
    return [batch if batch <= most else round_up(_even(batch, most), SUBLANES) for most in limits]


def _even(total: int, most: int) -> int:
    """Return the size of about equal parts, as few as possible, of at most `most` each."""
    return -(-total // -(-total // most))


def _weight_bytes(cell: Any, dtype: Any) -> int:
    """Return the bytes of w_h."""
    return len(cell.GATES) * round_up(cell.hidden_size, LANES) ** 2 * jnp.dtype(dtype).itemsize


def _block_bytes(cell: Any, rows: int, steps: int) -> int:
    """Return the bytes beside w_h in the larger resident kernel, the forward one that keeps gates.

    A step has gx and gates [G], the output and what entered [H]. The state, before and after, and
    scratch stay in place. All of it is counted in float32 and with two buffers.
    """
    size = round_up(cell.hidden_size, LANES)
    per_step = (2 * len(cell.GATES) + 3) * size + LANES
    in_place = 5 * size
    return 2 * round_up(rows, SUBLANES) * 4 * (steps * per_step + in_place)


def _streamed_bytes(cell: Any, rows: int, width: int, dtype: Any) -> int:
    """Return the bytes in VMEM of the larger kernel that streams w_h.

    Tiles have two buffers: of w_h, of gx and gates (backward: of gates and their derivatives), and of
    three arrays of H. Whole rows are the state and the operands of products: forward, in two buffers,
    the hidden state that entered (and z and r * h of a GRU); backward the derivatives of gates (and of
    q).
    """
    size = round_up(cell.hidden_size, LANES)
    gates = len(cell.GATES)
    itemsize = jnp.dtype(dtype).itemsize
    is_gru = isinstance(cell, GRU)
    weights = 2 * gates * size * width * itemsize
    tiles_of_a_row = 2 * 4 * ((2 * gates + 3) * width + LANES)
    state = 4 * (2 if isinstance(cell, LSTM) else 1)
    forward = 2 * itemsize + (4 + itemsize) * is_gru
    backward = (gates + is_gru) * itemsize
    whole_row = (state + max(forward, backward)) * size
    return weights + round_up(rows, SUBLANES) * (tiles_of_a_row + whole_row)


def vmem_budget() -> int:
    """Return the bytes of a core's VMEM that the kernels may use."""
    return (vmem_mib() - RESERVED_MIB) * MIB


def vmem_mib() -> int:
    """Return the MiB of VMEM that a core of the TPU at hand has."""
    return VMEM_MIB.get(accelerator.device().device_kind, SMALLEST_VMEM_MIB)


def round_up(n: int, to: int) -> int:
    """Return the smallest multiple of `to` that is not below n."""
    return -(-n // to) * to


def cost(
    cell: Any, tiles: Tiles, steps: int, batch: int, dtype: Any, arrays: list[Any]
) -> pl.CostEstimate:
    """Return what a kernel computes and moves, for the compiler's schedule.

    Args:
      cell: the cell, of the padded width.
      tiles: how the kernel divides its work.
      steps: number of time steps T.
      batch: number of rows B.
      dtype: dtype of w_h.
      arrays: all inputs and outputs.
    """
    size = cell.hidden_size
    gates = len(cell.GATES)
    moved = sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in arrays)
    if tiles.streamed:
        # w_h, which the sum has once, is read at every step by every block of rows.
        moved += (steps * -(-batch // tiles.rows) - 1) * _weight_bytes(cell, dtype)
    return pl.CostEstimate(
        flops=2 * steps * batch * size * gates * size,
        transcendentals=steps * batch * (gates + isinstance(cell, LSTM)) * size,
        bytes_accessed=moved,
    )
