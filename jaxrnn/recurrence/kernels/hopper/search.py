"""Which tiling a problem gets on the GPU at hand: a search over the model, or what was measured.

`search` tries every tiling that fits shared memory and of which all CTAs are resident at once, and
takes the one with the least time by `hopper_model`. `hopper_tiles.json` has the tilings of the usual
sizes, by the number of multiprocessors: as the search finds them, or as they were measured on a card
(`python benchmarks/hopper_tiles.py` writes it).

Two environment variables are for looking for a fault on a card:

    JAXRNN_HOPPER_CLUSTER=1      only tilings whose clusters have this many CTAs
    JAXRNN_HOPPER_TILES=JSON     this tiling, a row's "tiles" of `hopper_tiles.json`
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jax.numpy as jnp

from jaxrnn.devices import accelerator
from jaxrnn.recurrence.cells import cell_name
from jaxrnn.recurrence.kernels.hopper import cost_model as hopper_model
from jaxrnn.recurrence.kernels.hopper import residency as hopper_residency
from jaxrnn.recurrence.kernels.hopper import toolkit as hopper_toolkit
from jaxrnn.recurrence.kernels.hopper.residency import Room
from jaxrnn.recurrence.kernels.hopper.tiles import (
    BARRIERS,
    CLUSTERS,
    COLUMNS,
    SHARED,
    STREAM,
    M,
    Memory,
    Tiles,
    shape,
    shared_bytes,
    span,
    swizzle,
    width,
)

CLUSTER_VARIABLE, TILES_VARIABLE = "JAXRNN_HOPPER_CLUSTER", "JAXRNN_HOPPER_TILES"


def unsupported_reason(cell: Any, batch: int, dtype: Any) -> str | None:
    """Why the kernels cannot run a cell on the GPU at hand; None where they can."""
    reason = unserved(dtype)
    if reason is None and tiles_for(cell, batch, dtype) is None:
        return (
            f"w_h of H = {cell.hidden_size} in {jnp.dtype(dtype)} does not fit: no tiling over "
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
    try:
        hopper_residency.room()
    except RuntimeError as error:
        return f"it must know how many CTAs are resident at once, and {error}; use 'xla'"
    if device.platform == "gpu" and getattr(device, "local_hardware_id", None) is not None:
        return hopper_toolkit.missing()
    return None


def multiprocessors() -> int:
    """The number of multiprocessors of the GPU at hand."""
    return hopper_residency.room()[0]


def tiles_for(cell: Any, batch: int, dtype: Any) -> Tiles | None:
    """The tiling of one layer on the GPU at hand; None where nothing fits.

    Raises:
      ValueError: for an environment variable that asks for a tiling that cannot run.
    """
    room, dtype = hopper_residency.room(), jnp.dtype(dtype)
    forced = os.environ.get(TILES_VARIABLE)
    if forced:
        return _forced(forced, cell, batch, dtype, room)
    if not os.environ.get(CLUSTER_VARIABLE):
        sizes = cell_name(cell), dtype.name, cell.hidden_size, batch
        known = _known().get((room[0], *sizes))
        if known and _resident(known, room):
            return known
    return search(cell, batch, dtype, room)


def search(cell: Any, batch: int, dtype: Any, room: Room, layers: int = 1) -> Tiles | None:
    """The tiling with the least time by the model; None where none fits.

    Args:
      room: CTAs that are resident at once, by the size of their clusters.
      layers: all of them at once (`kernels.hopper.stack`), each with its own parts and groups.
    """
    clusters: tuple[int, ...] = CLUSTERS
    if asked := os.environ.get(CLUSTER_VARIABLE):
        if asked not in map(str, CLUSTERS):
            names = ", ".join(map(str, CLUSTERS))
            raise ValueError(f"{CLUSTER_VARIABLE} must be one of {names}, not {asked!r}")
        clusters = (int(asked),)
    return _search(cell, batch, jnp.dtype(dtype), room, layers, clusters)


@functools.cache
def _search(
    cell: Any, batch: int, dtype: Any, room: Room, layers: int, clusters: tuple[int, ...]
) -> Tiles | None:
    found = (
        (sum(hopper_model.microseconds(cell, tiles, dtype, layers).values()), tiles)
        for tiles in tilings(cell, batch, dtype, room, layers, clusters)
    )
    return min(found, default=(0, None), key=lambda pair: pair[0])[1]


def tilings(
    cell: Any,
    batch: int,
    dtype: Any,
    room: Room,
    layers: int = 1,
    clusters: tuple[int, ...] = CLUSTERS,
) -> Iterator[Tiles]:
    """Every tiling that can run, each with the shared memory that the model finds best for it."""
    gates, size = len(cell.GATES), width(cell.hidden_size)
    narrowest = 32 // dtype.itemsize  # a row of 32 bytes is the narrowest that TMA swizzles
    for units in range(narrowest, COLUMNS // gates + 1, narrowest):
        if size % units:
            continue
        parts = size // units
        for cluster, warpgroups in itertools.product(clusters, (1, 2)):
            ctas = span(parts, cluster, layers)
            if parts % cluster or ctas not in CLUSTERS:
                continue
            for groups in range(1, room[CLUSTERS.index(ctas)] // (layers * parts) + 1):
                tiles = _tiling(cell, batch, dtype, parts, cluster, warpgroups, groups, layers)
                if tiles is not None:
                    yield tiles


def _tiling(
    cell: Any,
    batch: int,
    dtype: Any,
    parts: int,
    cluster: int,
    warpgroups: int,
    groups: int,
    layers: int,
) -> Tiles | None:
    """With the fewest rows in a block that the peers of a cluster can fetch together."""
    turns = -(-batch // (groups * warpgroups * M))
    blocks = groups * warpgroups * turns
    fewest = -(-batch // (blocks * 8)) * 8
    for rows in range(fewest, M + 1, 8):
        if blocks > 1 and rows * (blocks - 1) >= batch:
            return None  # a block would have no row
        none = Memory(1, 0, 0, 0)
        tiles = Tiles(parts, cluster, rows, warpgroups, groups, turns, none, none)
        best = {}
        for direction in ("forward", "backward"):
            fitting = [
                (
                    hopper_model.direction_microseconds(
                        cell, tiles, direction, memory, dtype, layers
                    ),
                    memory,
                )
                for memory in memories(cell, direction, tiles, dtype, layers)
            ]
            if fitting:
                best[direction] = min(fitting, key=lambda pair: pair[0])[1]
        if len(best) == 2:
            return tiles._replace(forward=best["forward"], backward=best["backward"])
    return None


def memories(
    cell: Any, direction: str, tiles: Tiles, dtype: Any, layers: int = 1
) -> Iterator[Memory]:
    """Divisions of shared memory that fit: with all weights the largest rings, otherwise every ring.

    The weights of several layers all stay.
    """
    size, warpgroups = width(cell.hidden_size), tiles.warpgroups
    part = shape(cell, direction, tiles.parts, dtype, layers)
    for row in (1024, 512, 256, 128):
        chunk = row // dtype.itemsize
        if size % chunk or not _divides(tiles.cluster, tiles.rows, chunk, dtype):
            continue
        chunks = part.total // chunk
        rings = _slots(chunks, BARRIERS // warpgroups)

        def left(memory: Memory) -> int:
            return SHARED - shared_bytes(cell, direction, tiles, memory, dtype, layers)

        whole = [
            next((memory for memory in each if left(memory) >= 0), None)
            for each in ([Memory(chunk, n, chunks, depth) for n in rings] for depth in (2, 1))
        ]
        yield from (memory for memory in whole if memory is not None)
        if layers > 1 or any(whole):
            continue
        for slots in rings:
            memory = Memory(chunk, slots, chunks, 1)
            missing = -(left(memory) // (part.columns * row)) + warpgroups * STREAM
            # so that a streamed chunk always takes the same place
            missing += missing % STREAM
            if missing < chunks:
                yield memory._replace(resident=chunks - missing)


def _slots(chunks: int, most: int) -> list[int]:
    """Sizes of a ring that are worth a try, the largest first."""
    wanted = {chunks, chunks // 2, chunks // 4, 32, 24, 16, 12, 8, 6, 5, 4, 3, 2}
    least = min(2, chunks)  # a chunk is fetched while another is multiplied
    return sorted((n for n in wanted if least <= n <= min(chunks, most)), reverse=True)


def _divides(cluster: int, rows: int, chunk: int, dtype: Any) -> bool:
    """Whether the peers can each fetch a part of a chunk for all of them, as Mosaic GPU divides it."""
    for length in (rows // 8, chunk * dtype.itemsize // swizzle(chunk, dtype), 8):
        if length % cluster == 0:
            return True
        if cluster % length:
            return False
        cluster //= length
    return cluster == 1


def _resident(tiles: Tiles, room: Room, layers: int = 1) -> bool:
    """Whether all CTAs of a tiling are on the GPU at once."""
    ctas = span(tiles.parts, tiles.cluster, layers)
    return layers * tiles.parts * tiles.groups <= room[CLUSTERS.index(ctas)]


def _forced(text: str, cell: Any, batch: int, dtype: Any, room: Room) -> Tiles:
    """The tiling of the environment variable, refused where it cannot run."""
    try:
        tiles = read(json.loads(text))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{TILES_VARIABLE} is no tiling: {error!r}") from None
    size = width(cell.hidden_size)
    if tiles.cluster not in CLUSTERS or size % tiles.parts or tiles.parts % tiles.cluster:
        raise ValueError(
            f"{TILES_VARIABLE}: {tiles.parts} parts in clusters of {tiles.cluster} do not divide "
            f"{size} units"
        )
    if not _resident(tiles, room):
        raise ValueError(
            f"{TILES_VARIABLE}: {tiles.parts * tiles.groups} CTAs in clusters of {tiles.cluster} "
            f"would wait for each other for ever: {room[CLUSTERS.index(tiles.cluster)]} are "
            "resident at once"
        )
    if tiles.rows * tiles.blocks < batch or tiles.rows % 8 or tiles.rows > M:
        raise ValueError(
            f"{TILES_VARIABLE}: {tiles.blocks} blocks of {tiles.rows} rows do not hold {batch} rows"
        )
    for direction in ("forward", "backward"):
        taken = shared_bytes(cell, direction, tiles, getattr(tiles, direction), dtype)
        if taken > SHARED:
            raise ValueError(
                f"{TILES_VARIABLE}: {direction} takes {taken} bytes of shared memory of {SHARED}"
            )
    return tiles


@functools.cache
def table() -> list[dict[str, Any]]:
    """The rows of `hopper_tiles.json`: a size, its tiling, and whether it was measured on a card."""
    file = resources.files("jaxrnn.recurrence.kernels.hopper").joinpath("tiles.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


@functools.cache
def _known() -> dict[tuple[Any, ...], Tiles]:
    keys = "multiprocessors", "cell", "dtype", "hidden", "batch"
    return {tuple(row[key] for key in keys): read(row["tiles"]) for row in table()}


def read(tiles: dict[str, Any]) -> Tiles:
    """A tiling as it is written in the table."""
    directions = {name: Memory(**tiles[name]) for name in ("forward", "backward")}
    return Tiles(**(tiles | directions))
