"""A cost model of the Hopper kernels, fitted to measurements, to compare tilings.

A step is a chain: publish this part's units and wait for the others', fetch what they published into the
ring, multiply, compute the gates. Its time is linear in what a tiling does:

    exchange        once for each product: at a cluster's barrier, or at a counter in L2
    chunk           for each chunk of the operand that is fetched
    refill          for each chunk whose slot of the ring is reused, alone or with a cluster's peers
    product         cycles of its wgmmas
    elements        the block's rows times the part's units
    warpgroup       for a second block of rows in a CTA

`python -m benchmarks.hopper.tiles --fit FILE` finds the coefficients by least squares from what
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

    cluster_exchange: float
    grid_exchange: float
    chunk: float
    refill: float
    shared_refill: float
    product: float
    elements: float
    warpgroup: float


# Cycles per microsecond of a multiprocessor under load.
CLOCK = 1755.0
# Bytes of shared memory that a multiprocessor reads in a cycle, by the datasheet.
READ = 128

# Fitted to 163 tilings measured on an H100 SXM (benchmarks/results/h100); the relative error of a step's
# time is 7% forward and 9% backward (root mean square). An exchange at a cluster's barrier was measured
# without the fences that it has now; those take 0.87 microseconds forward and 0.68 backward more.
MICROSECONDS: dict[Direction, Features] = {
    "forward": Features(2.235, 2.024, 0.001, 0.100, 0.121, 1.217, 4.569, 0.343),
    "backward": Features(1.249, 1.228, 0.090, 0.045, 0.107, 1.351, 4.375, 0.167),
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
    in_cluster = tiling.parts == tiling.cluster
    products = _products(cell, direction)
    exchanges = len(products) if tiling.parts > 1 else 0
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
        cluster_exchange=exchanges * in_cluster,
        grid_exchange=exchanges * (not in_cluster),
        chunk=chunks,
        refill=refills * (tiling.cluster == 1),
        shared_refill=refills * (tiling.cluster > 1),
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
