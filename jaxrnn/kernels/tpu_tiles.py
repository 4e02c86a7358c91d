"""How much of a recurrence fits on a TPU core at once: blocks of rows, steps and hidden units."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxrnn import accelerator
from jaxrnn.cells import LSTM

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
STEPS = (8, 4, 2, 1)
WIDTHS = (1024, 512, 256, LANES)  # wider tiles take fewer bundles a step, but longer to compile


class Tiles(NamedTuple):
    """Rows of the batch and steps of time in a block, hidden units in a tile."""

    rows: int
    steps: int
    width: int


def obstacle(cell: Any, batch: int, dtype: Any) -> str | None:
    """Why these kernels cannot run a cell on the TPU at hand; None where they can."""
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"its products take float32 or bfloat16 weights, not {dtype}"
    if batch < 1:
        return f"a batch of {batch} rows has nothing to run"
    if tiles_for(cell, 1, batch, dtype) is None:
        weights = _resident(cell, dtype) / MIB
        return (
            f"w_h of H = {cell.hidden} in {dtype} takes {weights:.0f} MiB and a block of rows "
            f"{_streamed(cell, min(batch, ROWS[-1]), 1) / MIB:.1f} MiB, "
            f"more than the {vmem()} MiB of VMEM that a core of {accelerator.device().device_kind} has"
        )
    return None


def tiles_for(cell: Any, steps: int, batch: int, dtype: Any) -> Tiles | None:
    """The largest blocks whose two buffers each fit VMEM beside the weights; None where none does."""
    size = round_up(cell.hidden, LANES)
    width = next(width for width in WIDTHS if size % width == 0)
    free = (vmem() - RESERVED) * MIB - _resident(cell, dtype)
    for limit in ROWS:
        rows = batch if batch <= limit else round_up(_even(batch, limit), 16)
        for most in STEPS:
            if _streamed(cell, rows, _even(steps, most)) <= free:
                return Tiles(rows, _even(steps, most), width)
    return None


def _even(total: int, most: int) -> int:
    """The size of as few parts as can be, at most `most` each and about equal."""
    return -(-total // -(-total // most))


def _resident(cell: Any, dtype: Any) -> int:
    """Bytes of w_h."""
    return len(cell.GATES) * round_up(cell.hidden, LANES) ** 2 * jnp.dtype(dtype).itemsize


def _streamed(cell: Any, rows: int, steps: int) -> int:
    """Bytes of the blocks that come and go in the larger kernel, the forward one that keeps gates.

    A step's: gx and gates [G], the output, what entered and q [H]; in place: the state, before and
    after, and scratch. All in float32 and with two buffers.
    """
    size, gates = round_up(cell.hidden, LANES), len(cell.GATES)
    rows = round_up(rows, 16)
    return 2 * rows * 4 * (steps * ((2 * gates + 3) * size + LANES) + 5 * size)


def vmem() -> int:
    """MiB of VMEM that a core of the TPU at hand has."""
    return VMEM.get(accelerator.device().device_kind, SMALLEST)


def round_up(n: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-n // to) * to


def cost(cell: Any, steps: int, batch: int, arrays: list[Any]) -> pl.CostEstimate:
    """What one kernel does, for the compiler's schedule."""
    size, gates = cell.hidden, len(cell.GATES)
    return pl.CostEstimate(
        flops=2 * steps * batch * size * gates * size,
        transcendentals=steps * batch * (gates + isinstance(cell, LSTM)) * size,
        bytes_accessed=sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in arrays),
    )
