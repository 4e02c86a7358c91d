"""The Hopper kernels in several tilings of the same problem: right beside "xla", and how fast each is.

    python benchmarks/hopper/ladder.py                   # on an H100 or H200, two minutes
    python benchmarks/hopper/ladder.py --compile         # no card: whether they compile for an H100
    python benchmarks/hopper/ladder.py --problems lstm,64,512 gru-after,16,1024

Each problem is a cell, B and H, in bfloat16. It gets the tilings with the least time by the model, the
best ones of each number of parts and size of clusters, each with every size of chunks. Forward and
backward kernels are timed separately, without the products around them. Each is called many times in
turn with other data, and its results must be the same bit for bit. A line is printed for each tiling,
and a JSON object goes to the output, as soon as it is measured; `python benchmarks/hopper_tiles.py
--measured` takes the fastest of them into the library.

Several processes compile at once, one of them at a time runs on the card. A tiling that hangs or dies
costs its process, which starts again behind it.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.ahead_of_time import programs
import jax
import jax.numpy as jnp
from benchmarks import measure
from jax.sharding import SingleDeviceSharding

from jaxrnn.recurrence.problem import Masks
from jaxrnn.recurrence.kernels import fused, hopper, xla
from jaxrnn.recurrence.kernels.hopper import cost_model as hopper_model
from jaxrnn.recurrence.kernels.hopper import residency as hopper_residency
from jaxrnn.recurrence.kernels.hopper import search as hopper_search
from jaxrnn.recurrence.kernels.hopper.tiles import Memory, Tiles

STEPS, CALLS, ROUNDS = 256, 10, 3
AGAIN = 20  # calls that must give the same
DTYPE = jnp.dtype("bfloat16")
HANG = 20.0  # seconds that a tiling may take on the card
NONE = Masks(None, None)


class Problem(NamedTuple):
    """What is computed: a name of `hopper_programs.CELLS`, B and H."""

    cell: str
    batch: int
    hidden: int

    def make_cell(self) -> Any:
        return dataclasses.replace(programs.CELLS[self.cell](64), hidden_size=self.hidden)


USUAL = [
    Problem(cell, batch, hidden)
    for cell, batches in (
        ("lstm", (64, 16, 128, 256, 1)),
        ("gru-after", (64, 16, 128, 256, 1)),
        ("gru-before", (64, 16)),
        ("rnn", (64,)),
    )
    for batch in batches
    for hidden in (512, 1024, 256, 128, 768)
]


def tilings(problem: Problem, count: int, room: hopper_residency.Room) -> list[Tiles]:
    """The best `count` kinds by the model, each with every size of chunks."""
    cell = problem.make_cell()
    best: dict[Any, tuple[float, Tiles]] = {}
    for tiles in hopper_search.tilings(cell, problem.batch, DTYPE, room):
        time_of_step = sum(hopper_model.microseconds(cell, tiles, DTYPE).values())
        kind = tiles.parts, tiles.cluster, tiles.warpgroups
        if kind not in best or time_of_step < best[kind][0]:
            best[kind] = time_of_step, tiles
    ordered = sorted(best.values(), key=lambda pair: pair[0])
    return [each for _, tiles in ordered[:count] for each in _variants(cell, tiles)]


def _variants(cell: Any, tiles: Tiles) -> list[Tiles]:
    """A tiling with every size of chunks, in both directions at once."""
    by_chunk: dict[str, list[Memory]] = {}
    for way in WAYS:
        fastest: dict[int, tuple[float, Memory]] = {}
        for memory in hopper_search.memories(cell, way, tiles, DTYPE):
            time_of_step = hopper_model.direction_microseconds(cell, tiles, way, memory, DTYPE)
            if memory.chunk not in fastest or time_of_step < fastest[memory.chunk][0]:
                fastest[memory.chunk] = time_of_step, memory
        by_chunk[way] = [memory for _, memory in sorted(fastest.values())]
    count = max(map(len, by_chunk.values()))
    pairs = zip(*(each + each[:1] * (count - len(each)) for each in by_chunk.values()), strict=True)
    return [tiles._replace(**dict(zip(WAYS, pair, strict=True))) for pair in pairs]


# --- one process's share --------------------------------------------------------------------------


def work(problems: list[Problem], count: int, skip: int, lock: Path, compile_only: bool) -> None:
    """Measure every tiling of these problems but the first `skip`; print a JSON object for each."""
    device = None
    if compile_only:
        from benchmarks.ahead_of_time import gpu

        device = gpu.h100()
    with jax.default_device(device), ThreadPoolExecutor() as pool:
        room = hopper_residency.room()
        number = 0
        for problem in problems:
            found = tilings(problem, count, room)
            todo = found[max(0, skip - number) :]
            number += len(found) - len(todo)
            if not todo:
                continue
            given = jax.eval_shape(partial(_draw, problem))
            if compile_only:
                from benchmarks.ahead_of_time import compiler

                given = compiler.placed_on(SingleDeviceSharding(device), given)
            plain = None if compile_only else pool.submit(_plain, problem, given)
            programs = [(tiles, _programs(problem, tiles, given, pool)) for tiles in todo]
            for tiles, both in programs:
                _say({"begin": number})
                result = problem._asdict() | {"tiles": as_json(tiles), "number": number}
                try:
                    compiled = [program.result() for program in both]
                    if plain is not None:
                        result |= _measured(problem, tiles, compiled, plain.result(), lock)
                except Exception as failure:
                    result["failed"] = measure.one_line(failure)
                _say(result)
                number += 1


def _say(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)


def as_json(tiles: Tiles) -> dict[str, Any]:
    ways = {way: getattr(tiles, way)._asdict() for way in ("forward", "backward")}
    return tiles._asdict() | ways


def _draw(problem: Problem) -> Any:
    """(weights, gx, state, cotangents of the outputs), of the problem's size."""
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
    """Compiled: the outputs and the gradient of gx by "xla"."""

    def both(weights: Any, gx: Any, state: Any, d_ys: Any) -> Any:
        def run(gx: Any) -> Any:
            return xla.run(problem.make_cell(), weights, gx, state, NONE, False)[1]

        ys, pull = jax.vjp(run, gx)
        return ys, pull(d_ys)[0]

    return jax.jit(both).lower(*given).compile()


def _programs(problem: Problem, tiles: Tiles, given: Any, pool: ThreadPoolExecutor) -> list[Any]:
    """The forward and the backward kernel, traced here and compiled in the pool."""
    call = fused.Call(problem.make_cell(), tiles, False, None)
    more = partial(fused._more_rows, to=tiles.rows * tiles.blocks)

    def padded(weights: Any, gx: Any, state: Any, d_ys: Any) -> Any:
        state = jax.tree.map(lambda s: more(s, 0), state)
        return weights, more(gx, 1), state, more(d_ys, 1)

    def forward(*given: Any) -> Any:
        weights, gx, state, _ = padded(*given)
        return hopper._forward(call, weights, gx, state, NONE, True)

    def backward(weights: Any, kept: Any, d_final: Any, d_ys: Any) -> Any:
        return hopper._backward(call, weights, kept, d_final, d_ys, NONE)

    weights, _, state, d_ys = jax.eval_shape(padded, *given)
    out = jax.eval_shape(forward, *given)
    kept = {k: out[k] for k in ("gates", "previous_hidden", "previous_cell", "q") if k in out}
    placed = jax.tree.leaves(given)[0].sharding
    described = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
        (weights, kept, state, d_ys),
    )
    lowered = [jax.jit(forward).lower(*given), jax.jit(backward).lower(*described)]
    return [pool.submit(program.compile) for program in lowered]


def _measured(
    problem: Problem, tiles: Tiles, programs: list[Any], plain: Any, lock: Path
) -> dict[str, Any]:
    """Errors and microseconds of a step, while this process alone is on the card."""
    forward, backward = programs
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        watch = threading.Timer(HANG, os._exit, [3])
        watch.start()
        given = jax.jit(partial(_draw, problem))()
        want = plain(*given)
        rows = tiles.rows * tiles.blocks
        d_ys = fused._more_rows(given[3], 1, to=rows)
        d_final = jax.tree.map(lambda s: fused._more_rows(s, 0, to=rows), given[2])
        out = forward(*given)
        kept = {k: out[k] for k in ("gates", "previous_hidden", "previous_cell", "q") if k in out}
        arguments = given[0], kept, d_final, d_ys
        back = backward(*arguments)
        other = forward(given[0], -given[1], *given[2:])
        others = given[0], {k: other[k] for k in kept}, d_final, d_ys
        errors = [
            _error(got[:, : problem.batch], truth)
            for got, truth in ((out["ys"], want[0]), (back["d_gx"], want[1]))
        ]
        moved = jnp.float32(0)
        for _ in range(AGAIN):
            forward(
                given[0], -given[1], *given[2:]
            )  # leaves other data in memory that is used again
            moved = jnp.maximum(moved, _moved(forward(*given), out))
            backward(*others)
            moved = jnp.maximum(moved, _moved(backward(*arguments), back))
        times = _timed(partial(forward, *given)), _timed(partial(backward, *arguments))
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
def _moved(got: Any, want: Any) -> Any:
    """The largest difference of any array, in units of its largest entry."""

    def one(got: Any, want: Any) -> Any:
        got, want = got.astype(jnp.float32), want.astype(jnp.float32)
        return jnp.max(jnp.abs(got - want)) / jnp.maximum(jnp.max(jnp.abs(want)), 1e-30)

    return jnp.max(jnp.stack(jax.tree.leaves(jax.tree.map(one, got, want))))


def _timed(run: Any) -> float:
    """Microseconds of a step, the least of some rounds of queued calls."""
    jax.block_until_ready(run())
    least = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(CALLS):
            result = run()
        jax.block_until_ready(result)
        least = min(least, time.perf_counter() - begin)
    return least / CALLS / STEPS * 1e6


# --- all processes --------------------------------------------------------------------------------


def share(flags: Any, k: int, lock: Path, until: float) -> Iterator[dict[str, Any]]:
    """What the k-th process finds, started again behind a tiling that it hung or died at."""
    skip, log = 0, tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the process
    # "xla" is there to compare with, however long its products take
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    }
    while time.monotonic() < until:
        begun = skip - 1
        command = [sys.executable, __file__, "--share", f"{k}/{flags.workers}"]
        command += ["--lock", str(lock), "--skip", str(skip), "--count", str(flags.count)]
        command += ["--problems", *(",".join(map(str, p)) for p in flags.problems)]
        command += ["--compile"] * flags.compile
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=env) as process:
            timer = threading.Timer(until - time.monotonic(), process.kill)
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                result = json.loads(line)
                begun = result.get("begin", begun)
                if "begin" not in result:
                    yield result
            timer.cancel()
        if not process.returncode or time.monotonic() >= until:
            return
        log.seek(0)
        last = " | ".join(log.read().decode(errors="replace").strip().splitlines()[-4:])
        yield {"failed": f"exit status {process.returncode} at its tiling {begun}: {last[-600:]}"}
        if begun < skip:  # it did not get as far as its first
            return
        skip = begun + 1


def main() -> None:
    flags = _flags()
    if flags.compile:
        jax.config.update("jax_platforms", "cpu")  # whatever is here takes no part
    if flags.share:
        k, of = map(int, flags.share.split("/"))
        work(flags.problems[k::of], flags.count, flags.skip, flags.lock, flags.compile)
        return
    until = time.monotonic() + flags.seconds
    if flags.output:
        flags.output.parent.mkdir(parents=True, exist_ok=True)
    writing = threading.Lock()
    with tempfile.NamedTemporaryFile() as lock, ThreadPoolExecutor(flags.workers) as pool:

        def one(k: int) -> None:
            for result in share(flags, k, Path(lock.name), until):
                with writing:
                    print(told(result), flush=True)
                    if flags.output:
                        with flags.output.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(result) + "\n")

        list(pool.map(one, range(flags.workers)))


def told(result: dict[str, Any]) -> str:
    """A result in a line."""
    if "tiles" not in result:
        return result["failed"]
    problem = Problem(*(result[name] for name in Problem._fields))
    tiles = hopper_search.read(result["tiles"])
    line = f"{problem.cell} B {problem.batch} H {problem.hidden}: {tiles.parts} x {tiles.groups}"
    line += f" cluster {tiles.cluster} rows {tiles.rows} x {tiles.warpgroups} x {tiles.turns}"
    line += "".join(f" {way[0].upper()}{tuple(getattr(tiles, way))}" for way in WAYS)
    if "failed" in result:
        return f"{line}: {result['failed']}"
    if "errors" not in result:
        return f"{line}: compiles"
    model = hopper_model.microseconds(problem.make_cell(), tiles, DTYPE)
    times = [f"{way} {result['microseconds'][way]:.2f} (model {model[way]:.2f})" for way in WAYS]
    errors = ", ".join(f"{name} {error:.1e}" for name, error in result["errors"].items())
    return f"{line}: {', '.join(times)} us; off {errors}, moved {result['moved']:.1e}"


WAYS = ("forward", "backward")


def _problem(text: str) -> Problem:
    cell, *size = text.split(",")
    if cell not in programs.CELLS or len(size) != 2:
        names = ", ".join(programs.CELLS)
        raise argparse.ArgumentTypeError(f"must be CELL,B,H with a cell of {names}, not {text!r}")
    return Problem(cell, *map(measure.positive, size))


def _flags() -> Any:
    parser = measure.Parser(description="tilings of the Hopper kernels on a card")
    say = parser.add_argument
    say("--problems", nargs="+", type=_problem, default=USUAL, metavar="CELL,B,H")
    say("--count", type=measure.positive, default=4, help="tilings of each problem (4)")
    say("--workers", type=measure.positive, default=max(1, measure.cores() // 2), help="processes")
    say("--seconds", type=measure.positive, default=3600, help="at most, in all (an hour)")
    say("--output", type=Path, help="where a JSON object goes for each tiling")
    say("--compile", action="store_true", help="only compile them, for an H100 that is not here")
    for hidden in ("--share", "--lock", "--skip"):
        kind = {"--share": str, "--lock": Path, "--skip": int}[hidden]
        say(hidden, type=kind, default=None if kind is not int else 0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
