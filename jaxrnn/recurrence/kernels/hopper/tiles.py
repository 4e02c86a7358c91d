"""How a recurrence is divided over the CTAs of a Hopper GPU: the terms, and the shared memory it takes.

The units are shared among `parts`, CTAs that each keep the weights of H / parts units and synchronise
after every step. Rows of the batch that need not synchronise go to `groups` of such parts, in blocks of
one warpgroup each. What is left of the batch takes further `turns`.

`hopper_search` finds the tiling of a problem, `hopper_model` predicts the time of a step of it, and
`hopper_residency` knows how many CTAs are on the GPU at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrnn.recurrence.cells import GRU, LSTM

# Rows of a wgmma.
M = 64
# Chunks of weights in flight, of those that do not stay in shared memory.
STREAM = 2
# Bytes of shared memory that a CTA may use: those of the device, less barriers and alignment.
SHARED = 232_448 - 2048
# Columns of a product at most: 64 registers of a thread for its accumulator.
COLUMNS = 128
CLUSTERS = 1, 2, 4, 8, 16
# Barriers of one kind that Mosaic GPU can keep the phases of.
BARRIERS = 32


class Memory(NamedTuple):
    """What one direction keeps in shared memory.

    chunk: K of one product.
    slots: chunks of the published operand in flight.
    resident: chunks of the weights that stay; the others are fetched at every step.
    depth: number of steps for which inputs are fetched ahead.
    """

    chunk: int
    slots: int
    resident: int
    depth: int


class Tiles(NamedTuple):
    """A tiling.

    parts: CTAs that share the units.
    cluster: neighbours among them that fetch the published operand together (TMA multicast). Where it
      holds all parts, they synchronise at the cluster's barrier, otherwise at a counter in L2.
    rows: rows of a block, a multiple of 8 and at most 64.
    warpgroups: blocks of a CTA at a time, one each.
    groups: CTAs along the batch.
    turns: number of times that each takes blocks.
    forward, backward: shared memory of the two directions.
    packed: whether the slots of the ring are `rows` apart, so that a product reads, in the rows past
      the block's own, what belongs to the next slots. Nothing comes of those rows, but a detector of
      races reports them; False sets the slots 64 rows apart.
    """

    parts: int
    cluster: int
    rows: int
    warpgroups: int
    groups: int
    turns: int
    forward: Memory
    backward: Memory
    packed: bool = True

    @property
    def blocks(self) -> int:
        """Number of blocks of rows."""
        return self.warpgroups * self.groups * self.turns

    @property
    def stride(self) -> int:
        """Rows from one slot of the ring to the next."""
        return self.rows if self.packed else M

    def ring_rows(self, slots: int) -> int:
        """Rows of a ring; the last slot is followed by what completes it to the 64 of a product."""
        return slots * self.stride + M - self.stride


class Shape(NamedTuple):
    """What one direction multiplies and holds in a part.

    columns, total: N and K of the part's product in a step.
    input_bytes: shared memory for one step's inputs of a block.
    fixed_bytes: shared memory of a block for what it publishes and puts out.
    """

    columns: int
    total: int
    input_bytes: int
    fixed_bytes: int


def width(hidden: int) -> int:
    """The number of units with their padding."""
    return -(-hidden // 64) * 64


def joined(parts: int, cluster: int, layers: int = 1) -> bool:
    """Whether one cluster holds all parts of all layers, which then synchronise at its barrier."""
    return parts == cluster and layers * parts <= max(CLUSTERS)


def span(parts: int, cluster: int, layers: int = 1) -> int:
    """Number of CTAs of a cluster as it is launched: all layers' where they are joined."""
    return cluster * layers if joined(parts, cluster, layers) else cluster


def shape(cell: Any, direction: str, parts: int, dtype: Any, layers: int = 1) -> Shape:
    """The product and the shared memory of one part in one direction.

    One of several layers has a second product, of what its neighbour hands on, and a forward pass also
    publishes its output.
    """
    size, dtype = width(cell.hidden_size), jnp.dtype(dtype)
    units, sources = size // parts, 1 if layers == 1 else 2
    gates, is_lstm, wide, narrow = len(cell.GATES), isinstance(cell, LSTM), 4, dtype.itemsize
    after = isinstance(cell, GRU) and cell.reset == "after"
    states = 2 if is_lstm else 1
    each = M * units
    if direction == "forward":  # beside gx and the gates: y, and what enters or q
        fixed = sources * narrow + wide * max(states, 2 if is_lstm or after else 1)
        return Shape(gates * units, sources * size, each * gates * wide, each * fixed)
    kept = gates * wide + (wide if is_lstm or after else 0) + wide  # and d_y
    published = gates
    if isinstance(cell, GRU):
        kept, published = kept + narrow, 4 if after else 2
    fixed = published * narrow + states * wide
    return Shape(units, sources * gates * size, each * kept, each * fixed)


def shared_bytes(
    cell: Any, direction: str, tiles: Tiles, memory: Memory, dtype: Any, layers: int = 1
) -> int:
    """Bytes of shared memory of a CTA in one direction."""
    part = shape(cell, direction, tiles.parts, dtype, layers)
    row = memory.chunk * jnp.dtype(dtype).itemsize
    block = tiles.ring_rows(memory.slots) * row
    block += part.fixed_bytes + memory.depth * part.input_bytes
    weights = memory.resident
    if memory.resident * memory.chunk < part.total:
        weights += STREAM * tiles.warpgroups
    return weights * part.columns * row + tiles.warpgroups * block


def swizzle(columns: int, dtype: Any) -> int:
    """Bytes of the widest swizzle that divides a row in shared memory; a ValueError where none does."""
    row = columns * jnp.dtype(dtype).itemsize
    for size in (128, 64, 32):
        if row % size == 0:
            return size
    raise ValueError(f"a row of {columns} {jnp.dtype(dtype)} is no multiple of 32 bytes")
