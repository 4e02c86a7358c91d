"""The choice of a tiling for the GPU in use: the best one by the cost model, or one that was measured.

`search` tries every tiling that fits shared memory and whose CTAs are all resident at once, and takes
the one with the least time by `cost_model`. `tiles.json` has the tilings of the usual sizes, by the
number of multiprocessors, either as the search finds them or as they were measured on a card (`python -m
benchmarks.hopper.tiles` writes it).

Two environment variables are for finding a fault on a card:

    JAXRNN_HOPPER_CLUSTER=1      only tilings over several CTAs, whose clusters have this many
    JAXRNN_HOPPER_TILES=JSON     this tiling, a row's "tiles" of `tiles.json`
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
from jaxrnn.recurrence.kernels.hopper import cost_model, one_cta, residency, toolkit
from jaxrnn.recurrence.kernels.hopper.one_cta import Alone
from jaxrnn.recurrence.kernels.hopper.residency import Room
from jaxrnn.recurrence.kernels.hopper.tiles import (
    BARRIERS,
    CLUSTERS,
    COLUMNS,
    DIRECTIONS,
    SHARED,
    BuiltinCell,
    Direction,
    DoesNotFitError,
    M,
    Memory,
    Tiling,
    footprint,
    shared_bytes,
    swizzle,
    width,
)

CLUSTER_VARIABLE = "JAXRNN_HOPPER_CLUSTER"
TILES_VARIABLE = "JAXRNN_HOPPER_TILES"


def unsupported_here(dtype: Any) -> str | None:
    """Return why no Hopper kernel takes parameters of a dtype or runs on the GPU in use, or None."""
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
        residency.room()
    except RuntimeError as error:
        return f"it must know how many CTAs are resident at once, and {error}; use 'xla'"
    if device.platform == "gpu" and getattr(device, "local_hardware_id", None) is not None:
        return toolkit.missing()
    return None


def multiprocessors() -> int:
    """Return the number of multiprocessors of the GPU in use."""
    return residency.room()[0]


def tiling_for(cell: BuiltinCell, batch: int, dtype: Any) -> Tiling | Alone:
    """Return the tiling of one layer on the GPU in use: one CTA for all units where they fit.

    Raises:
      DoesNotFitError: where no tiling fits.
      ValueError: for an environment variable that asks for an impossible tiling.
    """
    room = residency.room()
    dtype = jnp.dtype(dtype)
    forced = os.environ.get(TILES_VARIABLE)
    if forced:
        return _forced(forced, cell, batch, dtype, room)
    if not os.environ.get(CLUSTER_VARIABLE):
        alone = one_cta.division(cell, batch, dtype, room[0])
        if alone is not None:
            return alone
        sizes = cell_name(cell), dtype.name, cell.hidden_size, batch
        known = _known().get((room[0], *sizes))
        if known and _is_resident(known, room):
            return known
    tiling = search(cell, batch, dtype, room)
    if tiling is None:
        raise DoesNotFitError(
            f"w_h of H = {cell.hidden_size} in {dtype} does not fit: no tiling over "
            f"{multiprocessors()} multiprocessors leaves room for a step"
        )
    return tiling


def search(cell: BuiltinCell, batch: int, dtype: Any, room: Room) -> Tiling | None:
    """Return the tiling with the least time by the cost model, or None where none fits.

    Args:
      cell: the cell.
      batch: number of rows.
      dtype: dtype of the parameters.
      room: number of CTAs that are resident at once, by the size of their clusters.
    """
    clusters: tuple[int, ...] = CLUSTERS
    if asked := os.environ.get(CLUSTER_VARIABLE):
        if asked not in map(str, CLUSTERS):
            names = ", ".join(map(str, CLUSTERS))
            raise ValueError(f"{CLUSTER_VARIABLE} must be one of {names}, not {asked!r}")
        clusters = (int(asked),)
    return _search(cell, batch, jnp.dtype(dtype), room, clusters)


@functools.cache
def _search(
    cell: BuiltinCell, batch: int, dtype: Any, room: Room, clusters: tuple[int, ...]
) -> Tiling | None:
    found = (
        (sum(cost_model.microseconds(cell, tiling, dtype).values()), tiling)
        for tiling in tilings(cell, batch, dtype, room, clusters)
    )
    return min(found, default=(0, None), key=lambda pair: pair[0])[1]


def tilings(
    cell: BuiltinCell,
    batch: int,
    dtype: Any,
    room: Room,
    clusters: tuple[int, ...] = CLUSTERS,
) -> Iterator[Tiling]:
    """Yield every tiling that can run, each with its best shared memory by the cost model.

    The arguments are those of `search`; clusters: the sizes of clusters to try.
    """
    gates = len(cell.GATES)
    size = width(cell.hidden_size)
    # A row of 32 bytes is the narrowest that TMA swizzles.
    narrowest = 32 // dtype.itemsize
    for units in range(narrowest, COLUMNS // gates + 1, narrowest):
        if size % units:
            continue
        parts = size // units
        for cluster, warpgroups in itertools.product(clusters, (1, 2)):
            if parts % cluster:
                continue
            for groups in range(1, room[CLUSTERS.index(cluster)] // parts + 1):
                tiling = _tiling(cell, batch, dtype, parts, cluster, warpgroups, groups)
                if tiling is not None:
                    yield tiling


def _tiling(
    cell: BuiltinCell,
    batch: int,
    dtype: Any,
    parts: int,
    cluster: int,
    warpgroups: int,
    groups: int,
) -> Tiling | None:
    """Return the tiling with the fewest rows in a block that a cluster's peers can fetch together."""
    turns = -(-batch // (groups * warpgroups * M))
    blocks = groups * warpgroups * turns
    fewest = -(-batch // (blocks * 8)) * 8
    for rows in range(fewest, M + 1, 8):
        if blocks > 1 and rows * (blocks - 1) >= batch:
            # A block would have no row.
            return None
        none = Memory(1, 0, 0)
        tiling = Tiling(parts, cluster, rows, warpgroups, groups, turns, none, none)
        best = {}
        for direction in DIRECTIONS:
            fitting = [
                (
                    cost_model.direction_microseconds(cell, tiling, direction, memory, dtype),
                    memory,
                )
                for memory in memories(cell, direction, tiling, dtype)
            ]
            if fitting:
                best[direction] = min(fitting, key=lambda pair: pair[0])[1]
        if len(best) == 2:
            return tiling._replace(forward=best["forward"], backward=best["backward"])
    return None


def memories(
    cell: BuiltinCell, direction: Direction, tiling: Tiling, dtype: Any
) -> Iterator[Memory]:
    """Yield the divisions of shared memory with the largest rings that fit."""
    size = width(cell.hidden_size)
    part = footprint(cell, direction, tiling.parts, dtype)
    for row in (1024, 512, 256, 128):
        chunk = row // dtype.itemsize
        if size % chunk or not _divides(tiling.cluster, tiling.rows, chunk, dtype):
            continue
        rings = _ring_sizes(part.total // chunk, BARRIERS // tiling.warpgroups)
        for depth in (2, 1):
            every = (Memory(chunk, slots, depth) for slots in rings)
            fit = (m for m in every if shared_bytes(cell, direction, tiling, m, dtype) <= SHARED)
            yield from itertools.islice(fit, 1)


def _ring_sizes(chunks: int, most: int) -> list[int]:
    """Return the sizes of a ring that are worth trying, the largest first."""
    wanted = {chunks, chunks // 2, chunks // 4, 32, 24, 16, 12, 8, 6, 5, 4, 3, 2}
    # One chunk is fetched while another is multiplied.
    least = min(2, chunks)
    return sorted((n for n in wanted if least <= n <= min(chunks, most)), reverse=True)


def _divides(cluster: int, rows: int, chunk: int, dtype: Any) -> bool:
    """Return whether each peer can fetch a part of a chunk for all, as Mosaic GPU divides it."""
    for length in (rows // 8, chunk * dtype.itemsize // swizzle(chunk, dtype), 8):
        if length % cluster == 0:
            return True
        if cluster % length:
            return False
        cluster //= length
    return cluster == 1


def _is_resident(tiling: Tiling, room: Room) -> bool:
    """Return whether all CTAs of a tiling are on the GPU at once."""
    return tiling.parts * tiling.groups <= room[CLUSTERS.index(tiling.cluster)]


def _forced(text: str, cell: BuiltinCell, batch: int, dtype: Any, room: Room) -> Tiling:
    """Return the tiling of the environment variable, or raise ValueError where it cannot run."""
    try:
        tiling = read(json.loads(text))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{TILES_VARIABLE} is no tiling: {error!r}") from None
    size = width(cell.hidden_size)
    if tiling.cluster not in CLUSTERS or size % tiling.parts or tiling.parts % tiling.cluster:
        raise ValueError(
            f"{TILES_VARIABLE}: {tiling.parts} parts in clusters of {tiling.cluster} do not divide "
            f"{size} units"
        )
    if not _is_resident(tiling, room):
        raise ValueError(
            f"{TILES_VARIABLE}: {tiling.parts * tiling.groups} CTAs in clusters of {tiling.cluster} "
            f"would wait for each other forever: {room[CLUSTERS.index(tiling.cluster)]} are "
            "resident at once"
        )
    if tiling.rows * tiling.blocks < batch or tiling.rows % 8 or tiling.rows > M:
        raise ValueError(
            f"{TILES_VARIABLE}: {tiling.blocks} blocks of {tiling.rows} rows do not hold {batch} rows"
        )
    for direction in DIRECTIONS:
        taken = shared_bytes(cell, direction, tiling, tiling.memory(direction), dtype)
        if taken > SHARED:
            raise ValueError(
                f"{TILES_VARIABLE}: {direction} takes {taken} bytes of shared memory of {SHARED}"
            )
    return tiling


@functools.cache
def table() -> list[dict[str, Any]]:
    """Return the rows of `tiles.json`: a size, its tiling, and whether it was measured on a card."""
    file = resources.files("jaxrnn.recurrence.kernels.hopper").joinpath("tiles.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


@functools.cache
def _known() -> dict[tuple[Any, ...], Tiling]:
    keys = "multiprocessors", "cell", "dtype", "hidden", "batch"
    return {tuple(row[key] for key in keys): read(row["tiles"]) for row in table()}


def read(tiles: dict[str, Any]) -> Tiling:
    """Return a tiling from the form that it has in `tiles.json`."""
    fields = dict(tiles)
    for direction in DIRECTIONS:
        fields[direction] = Memory(**tiles[direction])
    return Tiling(**fields)
