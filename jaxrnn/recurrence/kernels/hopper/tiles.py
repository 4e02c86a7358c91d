"""The division of a recurrence over the CTAs of a Hopper GPU, and the shared memory it takes.

`Alone` is that of the kernel for small widths, `Tiling` that of the kernel for large ones. There, the
units are divided over `parts`: CTAs that each keep the weights of H / parts units and exchange their
results in every step. Rows of the batch are independent of each other, so they are divided over `groups`
of such parts, in blocks of one warpgroup each. Rows that are left are computed in further `turns`.

`search` finds the tiling of a problem, and `cost_model` predicts the time of a step of it.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from jaxrnn.recurrence.cells import GRU, LSTM, RNN
from jaxrnn.recurrence.equations import CellKind

BuiltinCell = RNN | LSTM | GRU
Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")

# Rows of a wgmma.
M = 64
# Units of a warpgroup of the kernel for small widths.
UNITS = M
# Places for a row's masks of a step in its shared memory.
MASK_PLACES = 4
# Number of multiprocessors of an H100 SXM or H200.
MULTIPROCESSORS = 132
# Bytes of shared memory that a CTA may use: those of the device, less barriers and alignment.
SHARED = 232_448 - 2048
# Largest number of columns of a product: its accumulator takes 64 registers of a thread.
COLUMNS = 128
# Largest number of barriers of one kind whose phases Mosaic GPU can keep.
BARRIERS = 32


class DoesNotFitError(ValueError):
    """No tiling of a problem fits the GPU."""


class Memory(NamedTuple):
    """The shared memory of one direction.

    Attributes:
      chunk: K of one product.
      slots: number of chunks of the published operand in flight.
      depth: number of steps for which inputs are fetched ahead.
    """

    chunk: int
    slots: int
    depth: int


class Tiling(NamedTuple):
    """The division of a recurrence over CTAs.

    Attributes:
      parts: number of CTAs that share the units.
      rows: rows of a block, a multiple of 8 and at most 64.
      warpgroups: number of blocks that a CTA computes at a time, one in each warpgroup.
      groups: number of CTAs along the batch.
      turns: number of times that each warpgroup takes a block.
      forward: shared memory of the forward pass.
      backward: shared memory of the backward pass.
      packed: whether the slots of the ring are `rows` apart, so that a product reads rows of the next
        slots past the block's own. Nothing comes of those rows, but a race detector reports them; False
        places the slots 64 rows apart.
    """

    parts: int
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
        """Return the rows of a ring; the last slot is followed by rows up to the 64 of a product."""
        return slots * self.stride + M - self.stride

    def memory(self, direction: Direction) -> Memory:
        """Return the shared memory of a direction."""
        return self.forward if direction == "forward" else self.backward


class Alone(NamedTuple):
    """The division of a recurrence over CTAs that each have all of the weights.

    Attributes:
      rows: rows of a CTA, a multiple of 8.
      blocks: number of CTAs.
      forward: number of steps that have places for their inputs in shared memory, forward.
      backward: the same, backward.
    """

    rows: int
    blocks: int
    forward: int
    backward: int

    @property
    def parts(self) -> int:
        """Number of CTAs that share the units."""
        return 1


class Footprint(NamedTuple):
    """The product and the shared memory of a part in one direction.

    Attributes:
      columns: N of the part's product in a step.
      total: K of that product.
      input_bytes: bytes of shared memory for one step's inputs of a block.
      fixed_bytes: bytes of shared memory of a block for the tiles that it publishes and puts out.
    """

    columns: int
    total: int
    input_bytes: int
    fixed_bytes: int


def width(hidden_size: int) -> int:
    """Return the number of units with their padding."""
    return -(-hidden_size // 64) * 64


def footprint(cell: BuiltinCell, direction: Direction, parts: int, dtype: Any) -> Footprint:
    """Return the product and the shared memory of one part in one direction."""
    size = width(cell.hidden_size)
    units = size // parts
    gates = len(cell.GATES)
    narrow = jnp.dtype(dtype).itemsize
    wide = 4
    is_lstm = cell.kind is CellKind.LSTM
    is_gru_after = cell.kind is CellKind.GRU_AFTER
    is_gru = is_gru_after or cell.kind is CellKind.GRU_BEFORE
    states = 2 if is_lstm else 1
    tile = M * units
    if direction == "forward":
        # The outputs beside the gates, which lie over gx: y, and the previous cell or q.
        outputs = 2 if is_lstm or is_gru_after else 1
        fixed = narrow + wide * max(states, outputs)
        return Footprint(gates * units, size, tile * gates * wide, tile * fixed)
    # The gates, the previous cell or q, and d_y.
    inputs = gates * wide + (wide if is_lstm or is_gru_after else 0) + wide
    published = gates
    if is_gru:
        # The previous hidden state.
        inputs += narrow
        published = 4 if is_gru_after else 2
    fixed = published * narrow + states * wide
    return Footprint(units, gates * size, tile * inputs, tile * fixed)


def shared_bytes(
    cell: BuiltinCell, direction: Direction, tiling: Tiling, memory: Memory, dtype: Any
) -> int:
    """Return the bytes of shared memory of a CTA in one direction."""
    part = footprint(cell, direction, tiling.parts, dtype)
    narrow = jnp.dtype(dtype).itemsize
    block = tiling.ring_rows(memory.slots) * memory.chunk * narrow
    block += part.fixed_bytes + memory.depth * part.input_bytes
    return part.columns * part.total * narrow + tiling.warpgroups * block


class AloneTiles(NamedTuple):
    """The numbers of tiles of one step of a CTA that has all of the weights.

    Attributes:
      published: tiles for the products of all warpgroups, which are also results.
      inputs: tiles that are read from memory.
      outputs: the other results.
      states: tiles of the state.
    """

    published: int
    inputs: int
    outputs: int
    states: int


def alone_tiles(cell: BuiltinCell, direction: Direction) -> AloneTiles:
    """Return the numbers of tiles; forward with the outputs that the backward pass needs."""
    gates = len(cell.GATES)
    is_gru = cell.kind in (CellKind.GRU_BEFORE, CellKind.GRU_AFTER)
    # The previous cell of an LSTM, or q of a GRU that resets after its product.
    beside_gates = cell.kind in (CellKind.LSTM, CellKind.GRU_AFTER)
    states = 2 if cell.kind is CellKind.LSTM else 1
    if direction == "forward":
        published = 2 if cell.kind is CellKind.GRU_BEFORE else 1
        return AloneTiles(published, gates, gates + beside_gates + 1, states)
    published = gates + (cell.kind is CellKind.GRU_AFTER)
    return AloneTiles(published, gates + beside_gates + is_gru + 1, 0, states)


def alone_shared_bytes(
    cell: BuiltinCell, direction: Direction, rows: int, depth: int, dtype: Any
) -> int:
    """Return the bytes of shared memory of a CTA that has all of the weights.

    Args:
      cell: the cell.
      direction: the direction.
      rows: rows of the CTA.
      depth: number of steps that have places for their inputs.
      dtype: dtype of the weights.
    """
    size, narrow = width(cell.hidden_size), jnp.dtype(dtype).itemsize
    tiles = alone_tiles(cell, direction)
    count = 2 * tiles.published + depth * tiles.inputs + tiles.outputs
    of_row = size * (count * narrow + tiles.states * 4)
    masks = size // UNITS * depth * MASK_PLACES * 4
    # Those of 16 bits are in registers.
    weights = len(cell.GATES) * size**2 * narrow if narrow == 4 else 0
    return weights + rows * (of_row + masks)


def alone_most_rows(cell: BuiltinCell, dtype: Any) -> int:
    """Return the largest number of rows of a CTA for which ptxas spills no register, or 0.

    The numbers were found by compiling the kernels (benchmarks/ahead_of_time), with at most 32 rows.
    """
    size, gates = width(cell.hidden_size), len(cell.GATES)
    if jnp.dtype(dtype).itemsize == 4:
        return 32
    # A thread has its part of the weights in `gates * size / 4` registers.
    if size > 256 or gates * size > 512:
        return 0
    return {(4, 128): 16, (1, 256): 24}.get((gates, size), 32)


def swizzle(columns: int, dtype: Any) -> int:
    """Return the bytes of the widest swizzle that divides a row in shared memory.

    Raises:
      ValueError: where no swizzle divides it.
    """
    row = columns * jnp.dtype(dtype).itemsize
    for size in (128, 64, 32):
        if row % size == 0:
            return size
    raise ValueError(f"a row of {columns} {jnp.dtype(dtype)} is no multiple of 32 bytes")
