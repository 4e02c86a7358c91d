"""How long a step of the Hopper kernels takes, by a model: a way to compare tilings, not a measurement.

A step is a chain: publish the own units, wait for the others', fetch what they published chunk by chunk
through the ring, multiply, compute the gates. `microseconds` adds it up; `_product` follows the ring
event by event. A step cannot be faster than the bytes that it exchanges with the card's memory.

The constants were measured on an H100 SXM (`benchmarks/results/h100-first-run/latencies.txt` and
`ladder.txt`), except where a comment says otherwise.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from jaxrnn.cells import GRU
from jaxrnn.kernels.hopper_tiles import M, Memory, Tiles, joined, shape, width

# Microseconds until a bulk load from L2 has arrived, and until a bulk store is complete.
FETCH, PUBLISH = 0.55, 0.20
# Microseconds until all parts have arrived, at a cluster's barrier or at a counter in L2.
ARRIVE = {"cluster": 0.50, "grid": 0.95}
# Microseconds until all peers of a cluster have released a slot of the ring.
HANDSHAKE = 0.50
# Microseconds to issue one TMA copy.
ISSUE = 0.035
# Microseconds of the gates' arithmetic and of the copies around it. Not measured on its own.
GATES = 0.30
# Cycles a microsecond, of a multiprocessor under load.
CLOCK = 1755.0
# Bytes a microsecond of one multiprocessor, its share of L2 and of the card's memory (datasheet).
L2, HBM = 42_000, 25_000
# Bytes a cycle that a multiprocessor reads from its shared memory (datasheet).
READ = 128


def microseconds(cell: Any, tiles: Tiles, dtype: Any, layers: int = 1) -> dict[str, float]:
    """The predicted time of one step in each direction, for the whole batch and all layers."""
    found = {}
    for direction in ("forward", "backward"):
        memory = getattr(tiles, direction)
        found[direction] = direction_microseconds(cell, tiles, direction, memory, dtype, layers)
    return found


def direction_microseconds(
    cell: Any, tiles: Tiles, direction: str, memory: Memory, dtype: Any, layers: int = 1
) -> float:
    """The predicted time of one step in one direction, with this shared memory."""
    dtype = jnp.dtype(dtype)
    part = shape(cell, direction, tiles.parts, dtype, layers)
    units = width(cell.hidden) // tiles.parts
    streamed = 1 - memory.resident * memory.chunk / part.total
    exchange = PUBLISH
    if tiles.parts > 1:
        exchange += ARRIVE["cluster" if joined(tiles.parts, tiles.cluster, layers) else "grid"]
    chain = GATES
    for column_gates, share in _products(cell, direction):
        columns = column_gates * units
        # wgmma m64nNk16: N / 2 cycles of the tensor cores, or what it reads of A and B
        cycles = max(columns / 2, 32 * (M + columns) / READ) * memory.chunk * dtype.itemsize / 32
        # a multicast reads once for a cluster
        moved = (tiles.rows / tiles.cluster + streamed * columns) * memory.chunk * dtype.itemsize
        product = _product(
            round(share * part.total / memory.chunk),
            memory.slots,
            cycles / CLOCK,
            tiles.warpgroups,
            tiles.cluster > 1,
            moved * tiles.warpgroups / L2,
        )
        chain += exchange + product
    block_bytes = 2 * part.input_bytes + part.fixed_bytes
    traffic = tiles.warpgroups * tiles.rows / M * block_bytes / HBM
    return tiles.turns * max(chain, traffic)


def _products(cell: Any, direction: str) -> list[tuple[int, float]]:
    """The products of a step, each after an exchange: the gates of its columns, its share of K."""
    gates = len(cell.GATES)
    if isinstance(cell, GRU) and cell.reset == "before":
        if direction == "forward":
            return [(2, 1.0), (1, 1.0)]
        return [(1, 1 / 3), (1, 2 / 3)]
    return [(gates if direction == "forward" else 1, 1.0)]


@functools.cache
def _product(
    chunks: int, slots: int, one: float, warpgroups: int, shared_ring: bool, bytes_time: float
) -> float:
    """Microseconds from the last arrival to the end of the product.

    Args:
      chunks: number of chunks that are multiplied.
      slots: slots of the ring.
      one: microseconds of the product of one chunk.
      warpgroups: rings and products of this multiprocessor at a time, which share its tensor cores.
      shared_ring: whether the peers of a cluster fetch together, so that a slot is fetched again only
        when all have released it.
      bytes_time: microseconds that one chunk's bytes take of this multiprocessor's share of L2.
    """
    now, loaded, arrives = 0.0, 0.0, []
    for _ in range(min(slots, chunks)):
        now += ISSUE
        loaded = max(loaded, now) + bytes_time
        arrives.append(loaded + FETCH)
    done: list[float] = []
    for j in range(chunks):
        now = max(now, arrives[j])
        done.append(max(now, done[-1] if done else 0.0) + one)
        if j == 0:
            continue
        now = max(now, done[j - 1])
        if j - 1 + slots < chunks:
            now += ISSUE + (HANDSHAKE if shared_ring else 0.0)
            loaded = max(loaded, now) + bytes_time
            arrives.append(loaded + FETCH)
    return max(done[-1], warpgroups * chunks * one)
