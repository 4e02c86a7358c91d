"""How much of a recurrence fits on a TPU core at once: blocks of rows, steps and hidden units."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.cells import GRU, LSTM

LANES = 128  # numbers side by side in a vector register
MIB = 2**20
VMEM = {  # MiB that one core has, by the device's name
    "TPU v4": 16,
    "TPU v5 lite": 128,
    "TPU v5e": 128,
    "TPU v5": 64,
    "TPU v5p": 64,
    "TPU v6 lite": 128,
    "TPU v6e": 128,
    "TPU7x": 64,
}
SMALLEST = 16  # taken for a chip that is not listed
RESERVED = 3  # MiB that the compiler may want for itself
ROWS = (256, 128, 64, 32, 16)  # of a block, at most
ROWS_STREAMED = (1024, 512, *ROWS)
STEPS = (8, 4, 2, 1)
WIDTHS = (1024, 512, 256, LANES)  # wider tiles take fewer bundles a step, but longer to compile


class Tiles(NamedTuple):
    """Rows of the batch and steps of time in a block, hidden units in a tile.

    streamed: w_h does not stay in VMEM but comes tile by tile at every step.
    """

    rows: int
    steps: int
    width: int
    streamed: bool = False


def unsupported_reason(cell: Any, batch: int, dtype: Any) -> str | None:
    """Why these kernels cannot run a cell on the TPU at hand; None where they can."""
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"its products take float32 or bfloat16 weights, not {dtype}"
    if batch < 1:
        return f"a batch of {batch} rows has nothing to run"
    if tiles_for(cell, 1, batch, dtype) is None:
        rows = min(batch, ROWS[-1])
        return (
            f"w_h of H = {cell.hidden_size} in {dtype} takes {_weights(cell, dtype) / MIB:.0f} MiB, and "
            f"streamed by tiles of {LANES} units it still wants "
            f"{_streaming(cell, rows, LANES, dtype) / MIB:.1f} MiB with a block of {rows} rows, more "
            f"than the {vmem()} MiB of VMEM that a core of {accelerator.device().device_kind} has, "
            f"less {RESERVED} for the compiler"
        )
    return None


def tiles_for(cell: Any, steps: int, batch: int, dtype: Any) -> Tiles | None:
    """The largest blocks that fit VMEM with two buffers each; None where none does.

    Beside the whole of w_h where it fits, else beside two tiles of it. Then every block of rows reads
    w_h once a step, so that rows come before the width of a tile, and one step is as good as several.
    """
    size = round_up(cell.hidden_size, LANES)
    widths = [width for width in WIDTHS if size % width == 0]
    for rows in _blocks_of(batch, ROWS):
        for most in STEPS:
            tiles = Tiles(rows, _even(steps, most), widths[0])
            if _weights(cell, dtype) + _blocks(cell, rows, tiles.steps) <= budget():
                return tiles
    for rows in _blocks_of(batch, ROWS_STREAMED):
        for width in widths:
            if _streaming(cell, rows, width, dtype) <= budget():
                return Tiles(rows, 1, width, streamed=True)
    return None


def _blocks_of(batch: int, limits: tuple[int, ...]) -> list[int]:
    """Rows of about equal blocks, for each limit."""
    return [batch if batch <= most else round_up(_even(batch, most), 16) for most in limits]


def _even(total: int, most: int) -> int:
    """The size of as few parts as can be, at most `most` each and about equal."""
    return -(-total // -(-total // most))


def _weights(cell: Any, dtype: Any) -> int:
    """Bytes of w_h."""
    return len(cell.GATES) * round_up(cell.hidden_size, LANES) ** 2 * jnp.dtype(dtype).itemsize


def _blocks(cell: Any, rows: int, steps: int) -> int:
    """Bytes of the blocks that come and go in the larger kernel, the forward one that keeps gates.

    A step's: gx and gates [G], the output, what entered and q [H]; in place: the state, before and
    after, and scratch. All in float32 and with two buffers.
    """
    size, gates = round_up(cell.hidden_size, LANES), len(cell.GATES)
    rows = round_up(rows, 16)
    return 2 * rows * 4 * (steps * ((2 * gates + 3) * size + LANES) + 5 * size)


def _streaming(cell: Any, rows: int, width: int, dtype: Any) -> int:
    """Bytes where w_h is streamed, of the larger kernel.

    With two buffers: tiles of w_h, of gx and gates (back: gates and their gradients) and of three
    arrays of H. In whole rows: the state, and what the products take: in two buffers on the way
    forward what entered (and a GRU's z and r * h), back the gradients of the gates (and of q).
    """
    size, gates, bytes_each = (
        round_up(cell.hidden_size, LANES),
        len(cell.GATES),
        jnp.dtype(dtype).itemsize,
    )
    tiles = 2 * 4 * ((2 * gates + 3) * width + LANES)
    state = 4 * (2 if isinstance(cell, LSTM) else 1)
    forward = 2 * bytes_each + (4 + bytes_each) * isinstance(cell, GRU)
    backward = (gates + isinstance(cell, GRU)) * bytes_each
    rows = round_up(rows, 16)
    return 2 * gates * size * width * bytes_each + rows * (
        tiles + (state + max(forward, backward)) * size
    )


def budget() -> int:
    """Bytes of a core's VMEM that the kernels may plan with."""
    return (vmem() - RESERVED) * MIB


def vmem() -> int:
    """MiB of VMEM that a core of the TPU at hand has."""
    return VMEM.get(accelerator.device().device_kind, SMALLEST)


def round_up(n: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-n // to) * to


def cost(cell: Any, tiles: Tiles, arrays: Any) -> pl.CostEstimate:
    """What one kernel does, for the compiler's schedule. arrays: a `tpu_views.Arrays`."""
    size, gates, (steps, batch) = cell.hidden_size, len(cell.GATES), arrays.steps_and_rows
    moved = sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in arrays.in_and_out)
    if tiles.streamed:  # w_h, which is among them, again for every step and block of rows
        moved += (steps * -(-batch // tiles.rows) - 1) * _weights(cell, arrays.matrix.dtype)
    return pl.CostEstimate(
        flops=2 * steps * batch * size * gates * size,
        transcendentals=steps * batch * (gates + isinstance(cell, LSTM)) * size,
        bytes_accessed=moved,
    )
