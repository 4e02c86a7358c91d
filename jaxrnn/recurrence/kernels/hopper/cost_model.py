"""A cost model of the Hopper kernels, fitted to measurements, to compare tilings.

A step is a chain: publish this part's units and wait for the others', fetch what they published into the
ring, multiply, compute the gates. Its time is linear in what a tiling does:

    exchange        once for each product, at a counter in L2
    chunk           for each chunk of the operand that is fetched
    refill          for each chunk whose slot of the ring is reused
    product         cycles of its wgmmas
    elements        the block's rows times the part's units
    warpgroup       for a second block of rows in a CTA

`python -m benchmarks.hopper.tiles --fit FILE ...` finds the coefficients by least squares from what
`benchmarks/hopper/ladder.py` measured on a card.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrnn.recurrence.equations import CellKind
from jaxrnn.recurrence.kernels.hopper.tiles import (
    DIRECTIONS,
    BuiltinCell,
    Direction,
    M,
    Memory,
    Tiling,
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

# Fitted to 39 tilings measured on an H100 SXM (`--fit` of benchmarks/results/h100/*/ladder.jsonl); the
# relative error of a step's time is 4% forward and 7% backward (root mean square).
MICROSECONDS: dict[Direction, Features] = {
    "forward": Features(2.015, 0.028, 0.121, 0.898, 4.802, 0.041),
    "backward": Features(0.985, 0.060, 0.055, 1.416, 8.409, 0.209),
}


def microseconds(cell: BuiltinCell, tiling: Tiling, dtype: Any) -> dict[Direction, float]:
    """Return the predicted time of one step in each direction, for the whole batch."""
    return {
        direction: direction_microseconds(cell, tiling, direction, tiling.memory(direction), dtype)
        for direction in DIRECTIONS
    }


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
