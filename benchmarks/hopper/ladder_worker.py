"""One process's share of `ladder`: compile tilings of problems, and measure their errors and times."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from benchmarks import measure
from benchmarks.problems import CELLS
from jaxrnn.recurrence.kernels import fused, xla
from jaxrnn.recurrence.kernels.hopper import cost_model, search
from jaxrnn.recurrence.kernels.hopper.layer import KERNELS
from jaxrnn.recurrence.kernels.hopper.tiles import DIRECTIONS, Alone, Direction, Memory, Tiling
from jaxrnn.recurrence.problem import Masks
from jaxrnn.recurrence.problem import Problem as Recurrence

STEPS, CALLS, ROUNDS = 256, 10, 3
# Calls whose results must be bit-identical.
AGAIN = 20
DTYPE = jnp.dtype("bfloat16")
# The most seconds of a tiling on the GPU.
HANG = 20.0


class Problem(NamedTuple):
    """A problem: a name in `problems.CELLS`, batch and hidden size."""

    cell: str
    batch: int
    hidden: int

    def make_cell(self) -> Any:
        """Return the cell."""
        return CELLS[self.cell](self.hidden)


def tilings(problem: Problem, count: int, available: int) -> list[Tiling | Alone]:
    """Return every division for small widths, and the best `count` kinds of tilings by the model.

    Each kind has a tiling for every size of chunks; available: number of multiprocessors.
    """
    cell = problem.make_cell()
    small = [a for a in search.alones(cell, problem.batch, DTYPE) if a.rows < problem.batch + 8]
    best: dict[Any, tuple[float, Tiling]] = {}
    for tiles in search.tilings(cell, problem.batch, DTYPE, available):
        time_of_step = sum(cost_model.microseconds(cell, tiles, DTYPE).values())
        kind = tiles.parts, tiles.warpgroups
        if kind not in best or time_of_step < best[kind][0]:
            best[kind] = time_of_step, tiles
    ordered = sorted(best.values(), key=lambda pair: pair[0])
    large = [each for _, tiles in ordered[:count] for each in _variants(cell, tiles)]
    return [*small, *large]


def _variants(cell: Any, tiles: Tiling) -> list[Tiling]:
    """Return a tiling with every size of chunks, the same in both directions."""
    by_chunk: dict[Direction, list[Memory]] = {}
    for way in DIRECTIONS:
        fastest: dict[int, tuple[float, Memory]] = {}
        for memory in search.memories(cell, way, tiles, DTYPE):
            time_of_step = cost_model.direction_microseconds(cell, tiles, way, memory, DTYPE)
            if memory.chunk not in fastest or time_of_step < fastest[memory.chunk][0]:
                fastest[memory.chunk] = time_of_step, memory
        by_chunk[way] = [memory for _, memory in sorted(fastest.values())]
    count = max(map(len, by_chunk.values()))
    pairs = zip(*(each + each[:1] * (count - len(each)) for each in by_chunk.values()), strict=True)
    return [tiles._replace(**dict(zip(DIRECTIONS, pair, strict=True))) for pair in pairs]


def work(problems: list[Problem], count: int, skip: int, lock: Path, compile_only: bool) -> None:
    """Measure all tilings of these problems except the first `skip`; print a JSON object for each."""
    device = None
    if compile_only:
        from benchmarks.ahead_of_time import gpu

        device = gpu.h100()
    with jax.default_device(device), ThreadPoolExecutor() as pool:
        available = search.multiprocessors()
        number = 0
        for problem in problems:
            found = tilings(problem, count, available)
            todo = found[max(0, skip - number) :]
            number += len(found) - len(todo)
            if not todo:
                continue
            given = jax.eval_shape(partial(draw, problem))
            if compile_only:
                from benchmarks.ahead_of_time import compiler

                given = compiler.placed_on(SingleDeviceSharding(device), given)
            plain = None if compile_only else pool.submit(_plain, problem, given)
            programs = [(tiles, programs_of(problem, tiles, given, pool)) for tiles in todo]
            for tiles, both in programs:
                _send({"begin": number})
                result = problem._asdict() | {"tiles": as_json(tiles), "number": number}
                try:
                    compiled = [program.result() for program in both]
                    if plain is not None:
                        result |= _measured(problem, tiles, compiled, plain.result(), lock)
                except Exception as failure:
                    result["failed"] = measure.one_line(failure)
                _send(result)
                number += 1


def _send(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)


def as_json(tiles: Tiling | Alone) -> dict[str, Any]:
    """Return a tiling as an object of a JSON file."""
    if isinstance(tiles, Alone):
        return tiles._asdict()
    return tiles._asdict() | {way: getattr(tiles, way)._asdict() for way in DIRECTIONS}


def draw(problem: Problem) -> Any:
    """Draw (weights, gx, state, cotangents of the outputs) of a problem."""
    cell, keys = problem.make_cell(), jax.random.split(jax.random.key(0), 4)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), 64, DTYPE))
    weights = jax.tree.map(
        lambda p: (jax.random.normal(keys[0], p.shape) / cell.hidden_size**0.5).astype(p.dtype),
        shapes,
    )
    columns = len(cell.GATES) * cell.hidden_size
    gx = jax.random.normal(keys[1], (STEPS, problem.batch, columns))
    d_ys = jax.random.normal(keys[2], (STEPS, problem.batch, cell.hidden_size))
    return weights._replace(w_x=None, b=None), gx, cell.initial_state(problem.batch), d_ys


def _plain(problem: Problem, given: Any) -> Any:
    """Compile the outputs and the gradient of gx by "xla"."""

    def both(weights: Any, gx: Any, state: Any, d_ys: Any) -> Any:
        def run(gx: Any) -> Any:
            return xla.run(Recurrence(problem.make_cell(), weights, gx, state))[1]

        ys, pull = jax.vjp(run, gx)
        return ys, pull(d_ys)[0]

    return jax.jit(both).lower(*given).compile()


def programs_of(
    problem: Problem, tiles: Tiling | Alone, given: Any, pool: ThreadPoolExecutor
) -> list[Any]:
    """Trace the forward and the backward kernel, and compile them in the pool.

    The forward kernel returns (ys, residuals), the backward kernel d_gx.
    """
    call = fused.Call(problem.make_cell(), tiles, False, None)
    more = partial(fused.pad_rows, to=tiles.rows * tiles.blocks)

    def padded(weights: Any, gx: Any, state: Any, d_ys: Any) -> Any:
        state = jax.tree.map(lambda s: more(s, 0), state)
        return weights, more(gx, 1), state, more(d_ys, 1)

    def forward(*given: Any) -> Any:
        weights, gx, state, _ = padded(*given)
        return KERNELS.forward(call, weights, gx, state, Masks(), True)[1:]

    def backward(weights: Any, residuals: Any, d_final: Any, d_ys: Any) -> Any:
        return KERNELS.backward(call, weights, residuals, d_final, d_ys, Masks())[0]

    weights, _, state, d_ys = jax.eval_shape(padded, *given)
    _, residuals = jax.eval_shape(forward, *given)
    sharding = jax.tree.leaves(given)[0].sharding
    described = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (weights, residuals, state, d_ys),
    )
    lowered = [jax.jit(forward).lower(*given), jax.jit(backward).lower(*described)]
    return [pool.submit(program.compile) for program in lowered]


def _measured(
    problem: Problem, tiles: Tiling | Alone, programs: list[Any], plain: Any, lock: Path
) -> dict[str, Any]:
    """Measure errors and microseconds of a step while no other process runs on the GPU."""
    forward, backward = programs
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        watch = threading.Timer(HANG, os._exit, [3])
        watch.start()
        given = jax.jit(partial(draw, problem))()
        want = plain(*given)
        rows = tiles.rows * tiles.blocks
        d_ys = fused.pad_rows(given[3], 1, to=rows)
        d_final = jax.tree.map(lambda s: fused.pad_rows(s, 0, to=rows), given[2])
        out = forward(*given)
        ys, residuals = out
        arguments = given[0], residuals, d_final, d_ys
        d_gx = backward(*arguments)
        _, other = forward(given[0], -given[1], *given[2:])
        others = given[0], other, d_final, d_ys
        errors = [
            _error(got[:, : problem.batch], truth)
            for got, truth in ((ys, want[0]), (d_gx, want[1]))
        ]
        moved = jnp.float32(0)
        for _ in range(AGAIN):
            # This leaves other data in memory that is used again.
            forward(given[0], -given[1], *given[2:])
            moved = jnp.maximum(moved, moved_by(forward(*given), out))
            backward(*others)
            moved = jnp.maximum(moved, moved_by(backward(*arguments), d_gx))
        times = (
            microseconds_of(partial(forward, *given)),
            microseconds_of(partial(backward, *arguments)),
        )
        watch.cancel()
    return {
        "errors": dict(zip(("ys", "d_gx"), errors, strict=True)),
        "moved": float(moved),
        "microseconds": dict(zip(("forward", "backward"), times, strict=True)),
    }


def _error(got: Any, want: Any) -> float:
    got, want = got.astype(jnp.float32), want.astype(jnp.float32)
    return float(jnp.max(jnp.abs(got - want)) / jnp.max(jnp.abs(want)))


@jax.jit
def moved_by(got: Any, want: Any) -> Any:
    """Return the largest difference of any array, in units of its largest entry."""

    def one(got: Any, want: Any) -> Any:
        got, want = got.astype(jnp.float32), want.astype(jnp.float32)
        return jnp.max(jnp.abs(got - want)) / jnp.maximum(jnp.max(jnp.abs(want)), 1e-30)

    return jnp.max(jnp.stack(jax.tree.leaves(jax.tree.map(one, got, want))))


def microseconds_of(run: Any) -> float:
    """Return the microseconds of a step: the least of several rounds of queued calls."""
    jax.block_until_ready(run())
    least = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(CALLS):
            result = run()
        jax.block_until_ready(result)
        least = min(least, time.perf_counter() - begin)
    return least / CALLS / STEPS * 1e6
