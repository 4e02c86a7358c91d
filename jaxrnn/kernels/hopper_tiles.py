"""How a recurrence is cut over the CTAs of a Hopper GPU: a small search over a stated cost model.

The units are shared among `parts`, CTAs that each keep the weights of H / parts units and meet after
every step; rows of the batch that need not meet go to `groups` of such parts, in blocks of one
warpgroup each. Every CTA must be on the GPU at once, or those that wait for one that is not there wait
for ever: parts * groups is at most the number of multiprocessors, and what is left of the batch takes
further `turns`.

`search` tries every such cut that fits shared memory and takes the least `microseconds` of a step, a
sum of rates that are written below and were measured on no card yet. What it found for the usual sizes
stands in `hopper_tiles.json`, by the number of multiprocessors, where a measured cut can replace it;
`python benchmarks/hopper_tiles.py` writes it.
"""

from __future__ import annotations

import functools
import itertools
import json
from importlib import resources
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrnn import accelerator
from jaxrnn.cells import GRU, LSTM, cell_name

M = 64  # rows of a wgmma
STREAM = 2  # chunks of weights on their way, of those that do not stay
SHARED = 232_448 - 2048  # bytes of shared memory that a CTA may have, less barriers and alignment
COLUMNS = 128  # of a product, at most: 64 registers of a thread
CLUSTERS = 1, 2, 4, 8, 16
PORTABLE = 8  # CTAs of a cluster that every GPU can place; 16 must be all there are
GPC = 16  # multiprocessors among which a cluster must find its place; some have 18
MULTIPROCESSORS = 132  # of an H100 or H200 with NVLink; where the device at hand does not say

# what the model takes for granted, of one multiprocessor and in bytes a microsecond
L2 = 42_000  # 5.5 TB/s shared by 132
INGEST = 100_000  # of its own shared memory, by TMA
READ = 215_000  # 128 bytes a clock, at 1.7 GHz
HBM = 25_000  # 3.35 TB/s shared by 132
TENSOR = 3_700_000  # multiply-adds a microsecond, dense bfloat16
MEET = {"cluster": 0.6, "grid": 1.3}  # microseconds to publish, to wait, and for the first data
GATES = 0.3  # microseconds of the gates' arithmetic


class Memory(NamedTuple):
    """What one direction keeps in shared memory.

    chunk: K of one product; slots: chunks of what is published, on their way.
    resident: chunks of the weights that stay; the others are fetched at every step.
    depth: steps for which inputs are fetched ahead.
    """

    chunk: int
    slots: int
    resident: int
    depth: int


class Tiles(NamedTuple):
    """A cut.

    parts: CTAs that share the units.
    cluster: neighbours among them that fetch together what is published (TMA multicast); where that is
      all parts, they meet at a cluster's barrier, else at a counter in L2.
    rows: of a block, a multiple of 8 and at most 64.
    warpgroups: blocks of a CTA at a time, one each.
    groups: CTAs along the batch.
    turns: how often each takes blocks.
    forward, backward: of the two directions.
    """

    parts: int
    cluster: int
    rows: int
    warpgroups: int
    groups: int
    turns: int
    forward: Memory
    backward: Memory

    @property
    def blocks(self) -> int:
        """Of rows, in all."""
        return self.warpgroups * self.groups * self.turns


def obstacle(cell: Any, batch: int, dtype: Any) -> str | None:
    """Why the kernels cannot run a cell on the GPU at hand; None where they can."""
    reason = unserved(dtype)
    if reason is None and tiles_for(cell, batch, dtype) is None:
        return (
            f"w_h of H = {cell.hidden} in {jnp.dtype(dtype)} does not fit: no cut over "
            f"{multiprocessors()} multiprocessors leaves room for a step; use 'xla'"
        )
    return reason


def unserved(dtype: Any) -> str | None:
    """Why no kernel takes weights of this dtype or runs on the GPU at hand; None where they do."""
    dtype = jnp.dtype(dtype)
    if dtype.name not in ("bfloat16", "float16", "float32"):
        return f"its products take bfloat16, float16 or float32 weights, not {dtype}; use 'xla'"
    device = accelerator.device()
    capability = getattr(device, "compute_capability", "9.0")
    if device.platform == "gpu" and not capability.startswith("9."):
        return (
            f"it is written for Hopper (compute capability 9.0), and this {device.device_kind} has "
            f"{capability}; use 'xla'"
        )
    return None


def tiles_for(cell: Any, batch: int, dtype: Any) -> Tiles | None:
    """From the table where it has this size, else by search; None where nothing fits."""
    sizes = cell_name(cell), jnp.dtype(dtype).name, cell.hidden, batch
    known = _known().get((multiprocessors(), *sizes))
    return known or search(cell, batch, jnp.dtype(dtype), multiprocessors())


def width(hidden: int) -> int:
    """The units with their padding."""
    return -(-hidden // 64) * 64


def multiprocessors() -> int:
    """Of the GPU at hand."""
    return getattr(accelerator.device(), "core_count", None) or MULTIPROCESSORS


def joined(parts: int, cluster: int, layers: int = 1) -> bool:
    """Whether one cluster holds all parts of all layers, which then meet at its barrier."""
    return parts == cluster and layers * parts <= max(CLUSTERS)


@functools.cache
def search(cell: Any, batch: int, dtype: Any, processors: int, layers: int = 1) -> Tiles | None:
    """The cut with the least time by the model; None where none fits.

    layers: all of them at once (`jaxrnn.kernels.hopper_stack`), each with its own parts and groups.
    """
    found = [
        (sum(microseconds(cell, tiles, dtype, layers).values()), tiles)
        for tiles in _cuts(cell, batch, dtype, processors, layers)
    ]
    return min(found, default=(0, None), key=lambda pair: pair[0])[1]


def _cuts(cell: Any, batch: int, dtype: Any, processors: int, layers: int) -> Any:
    gates, size = len(cell.GATES), width(cell.hidden)
    least = 32 // dtype.itemsize  # a row of 32 bytes is the narrowest that TMA swizzles
    for units in range(least, COLUMNS // gates + 1, least):
        if size % units or layers * size // units > processors:
            continue
        parts = size // units
        for cluster, warpgroups in itertools.product(CLUSTERS, (1, 2)):
            span = cluster * layers if joined(parts, cluster, layers) else cluster
            if parts % cluster or (span > PORTABLE and layers * parts > span):
                continue
            at_most = processors // GPC * (GPC // span) * span if span > 1 else processors
            forward = _memory(cell, "forward", units, warpgroups, size, dtype, layers)
            backward = _memory(cell, "backward", units, warpgroups, size, dtype, layers)
            if not (forward and backward):
                continue
            for groups in range(1, at_most // (layers * parts) + 1):
                at_once = groups * warpgroups
                turns = -(-batch // (at_once * M))
                blocks = at_once * turns
                rows = -(-batch // (blocks * 8)) * 8
                for more in range(rows, M + 1, 8):  # the least that the peers can fetch together
                    chunks = {memory.chunk for memory in (forward, backward)}
                    if all(_divides(cluster, more, chunk, dtype) for chunk in chunks):
                        break
                else:
                    continue
                if blocks == 1 or more * (blocks - 1) < batch:  # or a block would have none
                    yield Tiles(parts, cluster, more, warpgroups, groups, turns, forward, backward)


def _divides(cluster: int, rows: int, chunk: int, dtype: Any) -> bool:
    """Whether the peers can each fetch a part of a chunk for all of them, as Mosaic GPU divides it."""
    for length in (rows // 8, chunk * dtype.itemsize // swizzle(chunk, dtype), 8):
        if length % cluster == 0:
            return True
        if cluster % length:
            return False
        cluster //= length
    return cluster == 1


def _memory(
    cell: Any, direction: str, units: int, warpgroups: int, size: int, dtype: Any, layers: int
) -> Memory | None:
    """The most resident weights, then the deepest rings, that fit; None where nothing does.

    The weights of several layers all stay.
    """
    for slots, depth, length in ((4, 2, 256), (4, 2, 128), (3, 1, 128), (2, 1, 128)):
        chunk = length // dtype.itemsize
        if size % chunk:
            continue
        columns, total, tile = _shape(cell, direction, units, size, dtype, layers)
        ring = warpgroups * slots * M * chunk * dtype.itemsize
        left = SHARED - ring - warpgroups * (tile.fixed + depth * tile.input)
        per_chunk = columns * chunk * dtype.itemsize
        chunks = total // chunk
        if chunks * per_chunk <= left:
            return Memory(chunk, slots, chunks, depth)
        if layers > 1:
            continue
        resident = (left - warpgroups * STREAM * per_chunk) // per_chunk
        if slots == 2 and resident >= 1:
            resident -= (chunks - resident) % STREAM  # so that a chunk always takes the same place
            return Memory(chunk, slots, resident, depth) if resident >= 1 else None
    return None


class _Tile(NamedTuple):
    """Bytes of shared memory for a block: of inputs fetched for a step, and beside them."""

    input: int
    fixed: int


def _shape(
    cell: Any, direction: str, units: int, size: int, dtype: Any, layers: int
) -> tuple[int, int, _Tile]:
    """The product's columns of one part, its K, and a block's tiles.

    One of several layers has a second product, of what its neighbour hands on, and forward hands on
    its output.
    """
    sources = 1 if layers == 1 else 2
    gates, is_lstm, wide, narrow = len(cell.GATES), isinstance(cell, LSTM), 4, dtype.itemsize
    after = isinstance(cell, GRU) and cell.reset == "after"
    states = 2 if is_lstm else 1
    each = M * units
    if direction == "forward":  # beside gx and the gates: y, and what enters or q
        fixed = sources * narrow + wide * max(states, 2 if is_lstm or after else 1)
        return gates * units, sources * size, _Tile(each * gates * wide, each * fixed)
    kept = gates * wide + (wide if is_lstm or after else 0) + wide  # and d_y
    published = gates
    if isinstance(cell, GRU):
        kept, published = kept + narrow, 4 if after else 2
    fixed = published * narrow + states * wide
    return units, sources * gates * size, _Tile(each * kept, each * fixed)


def microseconds(cell: Any, tiles: Tiles, dtype: Any, layers: int = 1) -> dict[str, float]:
    """The model's time of one step in each direction, the whole batch; all layers take it at once.

    A step meets, then takes as long as the slowest of: what its multiprocessor fetches from L2 (a
    multicast reads once for a cluster), writes to its shared memory, reads back from there for the
    products, multiplies, and exchanges with the card's memory.
    """
    size, dtype = width(cell.hidden), jnp.dtype(dtype)
    where = "cluster" if joined(tiles.parts, tiles.cluster, layers) else "grid"
    before = isinstance(cell, GRU) and cell.reset == "before"
    found = {}
    for direction, memory in (("forward", tiles.forward), ("backward", tiles.backward)):
        columns, total, tile = _shape(cell, direction, size // tiles.parts, size, dtype, layers)
        streamed = (total // memory.chunk - memory.resident) * memory.chunk * columns
        published = tiles.rows * (total if direction == "backward" else total * (1 + before))
        each = dtype.itemsize * tiles.warpgroups
        rates = (
            each * (published / tiles.cluster + streamed) / L2,
            each * (published + streamed) / INGEST,
            each * total * (columns + M) / READ,
            tiles.warpgroups * M * columns * total * (dtype.itemsize / 2) / TENSOR,
            tiles.warpgroups * tiles.rows / M * (2 * tile.input + tile.fixed) / HBM,
        )
        meet = MEET[where] * (1 + before)
        found[direction] = tiles.turns * (meet + GATES + max(rates))
    return found


def swizzle(columns: int, dtype: Any) -> int:
    """Bytes of the widest swizzle that divides a row in shared memory; a ValueError where none does."""
    row = columns * jnp.dtype(dtype).itemsize
    for size in (128, 64, 32):
        if row % size == 0:
            return size
    raise ValueError(f"a row of {columns} {jnp.dtype(dtype)} is no multiple of 32 bytes")


@functools.cache
def table() -> list[dict[str, Any]]:
    """The rows of `hopper_tiles.json`: a size, its cut, and whether that was measured on a card."""
    file = resources.files("jaxrnn.kernels").joinpath("hopper_tiles.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


@functools.cache
def _known() -> dict[tuple[Any, ...], Tiles]:
    keys = "multiprocessors", "cell", "dtype", "hidden", "batch"
    return {tuple(row[key] for key in keys): read(row["tiles"]) for row in table()}


def read(tiles: dict[str, Any]) -> Tiles:
    """A cut as it stands in the table."""
    directions = {name: Memory(**tiles[name]) for name in ("forward", "backward")}
    return Tiles(**(tiles | directions))
