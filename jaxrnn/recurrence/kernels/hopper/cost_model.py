"""A cost model of the Hopper kernels, to compare tilings.

A step of the kernel for large widths is a chain: publish this part's units and wait for the others',
fetch what they published into the ring, multiply, compute the gates. Its time is linear in what a tiling
does, with coefficients that are fitted to measurements:

    exchange        once for each product, at a counter in L2
    chunk           for each chunk of the operand that is fetched
    refill          for each chunk whose slot of the ring is reused
    product         cycles of its wgmmas
    elements        the block's rows times the part's units
    warpgroup       for a second block of rows in a CTA

`python -m benchmarks.hopper.tiles --fit FILE ...` finds the coefficients by least squares from what
`benchmarks/hopper/ladder.py` measured on a card.

The kernel for small widths has not run on a card. Its model counts cycles: the instructions that the
warps issue one after the other, the part of the products that takes longer than the instructions issued
meanwhile, and a chain of waits. A step takes at least as long as reading its inputs from memory and
writing its results.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels.hopper.tiles import (
    DIRECTIONS,
    MULTIPROCESSORS,
    UNITS,
    Alone,
    BuiltinCell,
    Direction,
    M,
    Memory,
    Tiling,
    alone_tiles,
    footprint,
    width,
)


class Features(NamedTuple):
    """The amounts of work of a step in one direction, or the microseconds that a unit of each takes.

    The module's docstring describes them.
    """

    exchange: float
    chunk: float
    refill: float
    product: float
    elements: float
    warpgroup: float


# Cycles per microsecond of a multiprocessor under load.
CLOCK = 1755.0
# Bytes of shared memory that a multiprocessor reads in a cycle, by the datasheet.
READ = 128

# Bytes per microsecond of an H100's memory, by the datasheet.
MEMORY = 3.35e6
# Instructions that a warp of the kernel for small widths issues in a step: a constant number, a number
# for each gate, and a number for each gate and row. They were fitted to the machine code for 128 units
# with resets and lengths. With fewer units, or without masks, there are up to a third fewer
# (benchmarks/results/hopper_static.json). In float32, where tanh and exp are exact, a row takes twice as
# many.
INSTRUCTIONS, OF_GATE, OF_ROW = 120, 60, 6.3
# How many of these instructions a warp issues while the tensor cores multiply.
COVERED = 150
# The fewest cycles of a wgmma m64nNk16 with its M operand in registers: an estimate, not measured.
# From shared memory it takes 2 KB / READ = 16.
SHORTEST = 8
# Cycles in which all warps wait for barriers and results, in a step and for each of its products: an
# estimate, not measured.
WAITS, OF_PRODUCT = 200, 150

# Fitted to 39 tilings measured on an H100 SXM (`--fit` of benchmarks/results/h100/*/ladder.jsonl); the
# relative error of a step's time is 4% forward and 7% backward (root mean square).
MICROSECONDS: dict[Direction, Features] = {
    "forward": Features(2.015, 0.028, 0.121, 0.898, 4.802, 0.041),
    "backward": Features(0.985, 0.060, 0.055, 1.416, 8.409, 0.209),
}


def microseconds(
    cell: BuiltinCell, tiling: Tiling | Alone, dtype: Any, available: int = MULTIPROCESSORS
) -> dict[Direction, float]:
    """Return the predicted time of one step in each direction, for the whole batch.

    Args:
      cell: the cell.
      tiling: the division over CTAs.
      dtype: dtype of the weights.
      available: number of multiprocessors.
    """
    if isinstance(tiling, Alone):
        return _alone_microseconds(cell, tiling, dtype, available)
    return {
        direction: direction_microseconds(cell, tiling, direction, tiling.memory(direction), dtype)
        for direction in DIRECTIONS
    }


def _alone_microseconds(
    cell: BuiltinCell, alone: Alone, dtype: Any, available: int
) -> dict[Direction, float]:
    """Return what `microseconds` does, for CTAs that each have all of the weights."""
    size, gates, narrow = width(cell.hidden_size), len(cell.GATES), jnp.dtype(dtype).itemsize
    warpgroups = size // UNITS
    of_row = OF_ROW * narrow / 2
    instructions = INSTRUCTIONS + gates * (OF_GATE + of_row * alone.rows)
    shortest = SHORTEST if narrow == 2 else M * 32 / READ
    products = warpgroups * gates * size * narrow / 32 * max(alone.rows / 2, shortest)
    covered = warpgroups * COVERED
    cycles = WAITS + warpgroups * instructions + max(0, products - covered)
    turns = -(-alone.blocks // available)
    found = {}
    for direction in DIRECTIONS:
        in_turn = cycles + OF_PRODUCT * len(_products(cell, direction))
        tiles = alone_tiles(cell, direction)
        moved = tiles.published + tiles.inputs + tiles.outputs
        moved *= alone.blocks * alone.rows * size * narrow
        found[direction] = max(turns * in_turn / CLOCK, moved / MEMORY)
    return found


def direction_microseconds(
    cell: BuiltinCell, tiling: Tiling, direction: Direction, memory: Memory, dtype: Any
) -> float:
    """Return the predicted time of one step in one direction, with this shared memory."""
    work = features(cell, tiling, direction, memory, dtype)
    pairs = zip(work, MICROSECONDS[direction], strict=True)
    return tiling.turns * sum(count * time for count, time in pairs)


def features(
    cell: BuiltinCell, tiling: Tiling, direction: Direction, memory: Memory, dtype: Any
) -> Features:
    """Return the work of one turn of a step in one direction."""
    dtype = jnp.dtype(dtype)
    part = footprint(cell, direction, tiling.parts, dtype)
    units = width(cell.hidden_size) // tiling.parts
    products = _products(cell, direction)
    chunks = refills = 0
    cycles = 0.0
    for gates, share in products:
        columns = gates * units
        count = round(share * part.total / memory.chunk)
        chunks += count
        refills += max(0, count - memory.slots)
        # A wgmma m64nNk16 takes N / 2 cycles of the tensor cores, or the time to read both operands.
        cycles += share * part.total * max(columns / 2, 32 * (M + columns) / READ)
    cycles *= dtype.itemsize / 32
    return Features(
        exchange=len(products),
        chunk=chunks,
        refill=refills,
        product=tiling.warpgroups * cycles / CLOCK,
        elements=tiling.warpgroups * tiling.rows * units / (M * M),
        warpgroup=tiling.warpgroups - 1,
    )


def _products(cell: BuiltinCell, direction: Direction) -> list[tuple[int, float]]:
    """Return each product of a step, which follows an exchange: gates of its columns, its share of K."""
    gates = len(cell.GATES)
    if cell.kind is CellKind.GRU_BEFORE:
        if direction == "forward":
            return [(2, 1.0), (1, 1.0)]
        return [(1, 1 / 3), (1, 2 / 3)]
    return [(gates if direction == "forward" else 1, 1.0)]
