"""The choice of a kernel and its tiling for the GPU in use.

Where all weights fit in one CTA, the kernel of `one_cta` runs. Elsewhere `search` tries every tiling
that fits shared memory and takes the one with the least time by `cost_model`. `tiles.json` has the
tilings of the usual sizes, by the number of multiprocessors, either as the search finds them or as they
were measured on a card (`python -m benchmarks.hopper.tiles` writes it).

An environment variable forces a tiling, to find a fault on a card. Its value is the "tiles" of a row of
`tiles.json`, or the fields of `one_cta.Alone`:

    JAXRNN_HOPPER_TILES='{"rows": 8, "blocks": 8, "forward": 1, "backward": 1}'
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
from jaxrnn.recurrence.kernels.hopper import cost_model, one_cta, toolkit
from jaxrnn.recurrence.kernels.hopper.tiles import (
    BARRIERS,
    COLUMNS,
    DIRECTIONS,
    MULTIPROCESSORS,
    SHARED,
    Alone,
    BuiltinCell,
    Direction,
    DoesNotFitError,
    M,
    Memory,
    Tiling,
    alone_most_rows,
    alone_shared_bytes,
    footprint,
    shared_bytes,
    width,
)

VARIABLE = "JAXRNN_HOPPER_TILES"
# For how many steps such a CTA has places for their inputs, the best first. The inputs of a step are
# fetched during an earlier one, so there are at least two.
DEPTHS = 4, 3, 2


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
    if device.platform == "gpu" and getattr(device, "local_hardware_id", None) is not None:
        return toolkit.missing()
    return None


def multiprocessors() -> int:
    """Return the number of multiprocessors of the GPU in use, or of an H100 where there is none.

    Each runs one CTA or more, so as many CTAs are on the GPU at once. With more, some would wait forever
    for others that are not there.
    """
    return getattr(accelerator.device(), "core_count", None) or MULTIPROCESSORS


def tiling_for(cell: BuiltinCell, batch: int, dtype: Any) -> Tiling | Alone:
    """Return the tiling of one layer on the GPU in use: one CTA for all units where they fit.

    Raises:
      DoesNotFitError: where no tiling fits.
      ValueError: for an environment variable that asks for an impossible tiling.
    """
    dtype = jnp.dtype(dtype)
    available = multiprocessors()
    forced = os.environ.get(VARIABLE)
    if forced:
        return _forced(forced, cell, batch, dtype)

    def time(alone: Alone) -> float:
        return sum(cost_model.microseconds(cell, alone, dtype, available).values())

    if alone := min(alones(cell, batch, dtype), default=None, key=time):
        return alone
    known = _known().get((available, cell_name(cell), dtype.name, cell.hidden_size, batch))
    tiling = known or search(cell, batch, dtype, available)
    if tiling is None:
        raise DoesNotFitError(
            f"w_h of H = {cell.hidden_size} in {dtype} does not fit: no tiling over {available} "
            "multiprocessors leaves room for a step"
        )
    return tiling


def alones(cell: BuiltinCell, batch: int, dtype: Any) -> Iterator[Alone]:
    """Yield the divisions over CTAs that each have all of the weights, by their number of rows."""
    most = alone_most_rows(cell, dtype) if one_cta.AVAILABLE else 0
    for rows in range(8, most + 1, 8):
        forward, backward = (_depth(cell, direction, rows, dtype) for direction in DIRECTIONS)
        if forward and backward:
            yield Alone(rows, -(-batch // rows), forward, backward)


def _depth(cell: BuiltinCell, direction: Direction, rows: int, dtype: Any) -> int | None:
    fit = (n for n in DEPTHS if alone_shared_bytes(cell, direction, rows, n, dtype) <= SHARED)
    return next(fit, None)


@functools.cache
def search(cell: BuiltinCell, batch: int, dtype: Any, available: int) -> Tiling | None:
    """Return the tiling with the least time by the cost model, or None where none fits.

    Args:
      cell: the cell.
      batch: number of rows.
      dtype: dtype of the parameters.
      available: number of multiprocessors.
    """
    found = (
        (sum(cost_model.microseconds(cell, tiling, dtype).values()), tiling)
        for tiling in tilings(cell, batch, dtype, available)
    )
    return min(found, default=(0, None), key=lambda pair: pair[0])[1]


def tilings(cell: BuiltinCell, batch: int, dtype: Any, available: int) -> Iterator[Tiling]:
    """Yield every tiling that can run, each with its best shared memory by the cost model.

    The arguments are those of `search`.
    """
    gates = len(cell.GATES)
    size = width(cell.hidden_size)
    # A row of 32 bytes is the narrowest that TMA swizzles.
    narrowest = 32 // jnp.dtype(dtype).itemsize
    for units in range(narrowest, COLUMNS // gates + 1, narrowest):
        if size % units:
            continue
        parts = size // units
        for warpgroups, groups in itertools.product((1, 2), range(1, available // parts + 1)):
            tiling = _tiling(cell, batch, dtype, parts, warpgroups, groups)
            if tiling is not None:
                yield tiling


def _tiling(
    cell: BuiltinCell, batch: int, dtype: Any, parts: int, warpgroups: int, groups: int
) -> Tiling | None:
    """Return the tiling with the fewest rows in a block and its best shared memory."""
    turns = -(-batch // (groups * warpgroups * M))
    blocks = groups * warpgroups * turns
    rows = -(-batch // (blocks * 8)) * 8
    if rows * (blocks - 1) >= batch and blocks > 1:
        # A block would have no row.
        return None
    none = Memory(1, 0, 0)
    tiling = Tiling(parts, rows, warpgroups, groups, turns, none, none)
    forward, backward = (_best_memory(cell, direction, tiling, dtype) for direction in DIRECTIONS)
    return tiling._replace(forward=forward, backward=backward) if forward and backward else None


def _best_memory(
    cell: BuiltinCell, direction: Direction, tiling: Tiling, dtype: Any
) -> Memory | None:
    """Return the shared memory with the least time by the cost model, or None where none fits."""

    def time(memory: Memory) -> float:
        return cost_model.direction_microseconds(cell, tiling, direction, memory, dtype)

    return min(memories(cell, direction, tiling, dtype), default=None, key=time)


def memories(
    cell: BuiltinCell, direction: Direction, tiling: Tiling, dtype: Any
) -> Iterator[Memory]:
    """Yield the divisions of shared memory with the largest rings that fit."""
    size = width(cell.hidden_size)
    part = footprint(cell, direction, tiling.parts, dtype)
    for row in (1024, 512, 256, 128):
        chunk = row // dtype.itemsize
        if size % chunk:
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


def _forced(text: str, cell: BuiltinCell, batch: int, dtype: Any) -> Tiling | Alone:
    """Return the tiling of the environment variable, or raise ValueError where it cannot run."""
    try:
        tiling = read(json.loads(text))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{VARIABLE} is no tiling: {error!r}") from None
    size = width(cell.hidden_size)
    if size % tiling.parts:
        raise ValueError(f"{VARIABLE}: {tiling.parts} parts do not divide {size} units")
    available = multiprocessors()
    if isinstance(tiling, Tiling) and tiling.parts * tiling.groups > available:
        raise ValueError(
            f"{VARIABLE}: {tiling.parts * tiling.groups} CTAs would wait for each other forever: "
            f"{available} are on the GPU at once"
        )
    if tiling.rows * tiling.blocks < batch or tiling.rows % 8:
        raise ValueError(
            f"{VARIABLE}: {tiling.blocks} blocks of {tiling.rows} rows do not hold {batch} rows"
        )
    most = M if isinstance(tiling, Tiling) else alone_most_rows(cell, dtype)
    if tiling.rows > most:
        raise ValueError(f"{VARIABLE}: rows must be at most {most} here, not {tiling.rows}")
    for direction in DIRECTIONS:
        if isinstance(tiling, Tiling):
            taken = shared_bytes(cell, direction, tiling, tiling.memory(direction), dtype)
        else:
            depth = getattr(tiling, direction)
            if depth < DEPTHS[-1]:
                raise ValueError(
                    f"{VARIABLE}: {direction} must be at least {DEPTHS[-1]}, not {depth}"
                )
            taken = alone_shared_bytes(cell, direction, tiling.rows, depth, dtype)
        if taken > SHARED:
            raise ValueError(
                f"{VARIABLE}: {direction} takes {taken} bytes of shared memory of {SHARED}"
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
    return {tuple(row[key] for key in keys): read_tiling(row["tiles"]) for row in table()}


def read(tiles: dict[str, Any]) -> Tiling | Alone:
    """Return a tiling of either kernel from the form that it has in a JSON file."""
    return read_tiling(tiles) if "parts" in tiles else Alone(**tiles)


def read_tiling(tiles: dict[str, Any]) -> Tiling:
    """Return a tiling from the form that it has in `tiles.json`."""
    return Tiling(**tiles | {direction: Memory(**tiles[direction]) for direction in DIRECTIONS})
