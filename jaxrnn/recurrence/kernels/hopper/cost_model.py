"""How long a step of the Hopper kernels takes, by a model fitted to measurements: to compare tilings.

A step is a chain: publish the own units and wait for the others', fetch what they published into the
ring, multiply, compute the gates. Its time is linear in what a tiling does:

    exchange        once for each product: at a cluster's barrier, or at a counter in L2
    chunk           for each chunk of the operand that is fetched
    refill          for each chunk whose slot of the ring is used again, alone or with a cluster's peers
    product         by the cycles of its wgmmas
    elements        of the block's rows and the part's units
    warpgroup       for a second block of rows in a CTA
    stream          bytes of weights that do not stay, by the multiprocessor's share of L2

`python benchmarks/hopper_tiles.py --fit FILE` finds the coefficients by least squares from what
`benchmarks/hopper/ladder.py` measured on a card.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrnn.recurrence.cells import GRU
from jaxrnn.recurrence.kernels.hopper.tiles import M, Memory, Tiles, joined, shape, width


class Features(NamedTuple):
    """What a step of a tiling does in one direction, or the microseconds that each of it takes."""

    cluster_exchange: float
    grid_exchange: float
    chunk: float
    refill: float
    shared_refill: float
    product: float
    elements: float
    warpgroup: float
    stream: float


# Cycles a microsecond of a multiprocessor under load; bytes a cycle that it reads of shared memory; its
# share of what L2 delivers, in bytes a microsecond (the last two by the datasheet).
CLOCK, READ, L2 = 1755.0, 128, 42_000

# Fitted to 163 tilings measured on an H100 SXM (benchmarks/results/h100); the relative error of a step's
# time is 7% forward and 9% backward (root mean square). An exchange at a cluster's barrier was measured
# without the fences that it has now; those take 0.87 microseconds forward and 0.68 backward more.
MICROSECONDS = {
    "forward": Features(2.235, 2.024, 0.001, 0.100, 0.121, 1.217, 4.569, 0.343, 0.417),
    "backward": Features(1.249, 1.228, 0.090, 0.045, 0.107, 1.351, 4.375, 0.167, 0.534),
}


def microseconds(cell: Any, tiles: Tiles, dtype: Any, layers: int = 1) -> dict[str, float]:
    """The predicted time of one step in each direction, for the whole batch and all layers."""
    return {
        direction: direction_microseconds(
            cell, tiles, direction, getattr(tiles, direction), dtype, layers
        )
        for direction in MICROSECONDS
    }


def direction_microseconds(
    cell: Any, tiles: Tiles, direction: str, memory: Memory, dtype: Any, layers: int = 1
) -> float:
    """The predicted time of one step in one direction, with this shared memory."""
    work = features(cell, tiles, direction, memory, dtype, layers)
    pairs = zip(work, MICROSECONDS[direction], strict=True)
    return tiles.turns * sum(count * time for count, time in pairs)


def features(
    cell: Any, tiles: Tiles, direction: str, memory: Memory, dtype: Any, layers: int = 1
) -> Features:
    """What one turn of a step does in one direction."""
    dtype = jnp.dtype(dtype)
    part = shape(cell, direction, tiles.parts, dtype, layers)
    units = width(cell.hidden_size) // tiles.parts
    in_cluster = joined(tiles.parts, tiles.cluster, layers)
    products = _products(cell, direction)
    exchanges = len(products) if tiles.parts > 1 else 0
    chunks = refills = 0
    cycles = 0.0
    for gates, share in products:
        columns = gates * units
        count = round(share * part.total / memory.chunk)
        chunks += count
        refills += max(0, count - memory.slots)
        # wgmma m64nNk16: N / 2 cycles of the tensor cores, or what it reads of both operands
        cycles += share * part.total * max(columns / 2, 32 * (M + columns) / READ)
    cycles *= dtype.itemsize / 32
    streamed = (part.total - memory.resident * memory.chunk) * part.columns * dtype.itemsize
    return Features(
        cluster_exchange=exchanges * in_cluster,
        grid_exchange=exchanges * (not in_cluster),
        chunk=chunks,
        refill=refills * (tiles.cluster == 1),
        shared_refill=refills * (tiles.cluster > 1),
        product=tiles.warpgroups * cycles / CLOCK,
        elements=tiles.warpgroups * tiles.rows * units / (M * M),
        warpgroup=tiles.warpgroups - 1,
        stream=tiles.warpgroups * streamed / L2,
    )


def _products(cell: Any, direction: str) -> list[tuple[int, float]]:
    """The products of a step, each after an exchange: the gates of its columns, its share of K."""
    gates = len(cell.GATES)
    if isinstance(cell, GRU) and cell.reset == "before":
        if direction == "forward":
            return [(2, 1.0), (1, 1.0)]
        return [(1, 1 / 3), (1, 2 / 3)]
    return [(gates if direction == "forward" else 1, 1.0)]
