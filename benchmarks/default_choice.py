"""How far the default choice of `unroll` on a CPU is from the fastest implementation.

For a grid of steps T, rows B and units H, first on an idle machine and then beside busy processes, one
for each core: the time of the default and of every implementation chosen by name, interleaved in one
process. A single step is compared with `cell.step` too.

    python benchmarks/default_choice.py --output benchmarks/results/default-choice.txt
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jaxrnn

CELLS = {"lstm": jaxrnn.lstm, "gru": jaxrnn.gru}
STEPS = (1, 4, 8, 32, 200)
BATCHES = (1, 2, 8, 64)
WIDTHS = (32, 128, 256)
NAMES = ("native", "xla", "scan")
FEATURES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--rounds", type=int, default=15, help="timings of each, interleaved")
    parser.add_argument("--output", help="a file for the table, beside the terminal")
    options = parser.parse_args()
    lines = [f"jax {jax.__version__}, {os.cpu_count()} cores, medians of {options.rounds} in ms"]
    header = f"{'load':5}{'cell':5}{'pass':9}{'T':>4}{'B':>4}{'H':>5}  {'choice':7}{'default':>9}"
    lines.append(header + "".join(f"{name:>9}" for name in NAMES) + f"{'step':>9}{'ratio':>7}")
    print("\n".join(lines))
    for load in (0, os.cpu_count() or 1):
        with busy_processes(load):
            for line in table(options, load):
                print(line, flush=True)
                lines.append(line)
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


def table(options: argparse.Namespace, load: int) -> Iterator[str]:
    """Yield a line for each problem, and at the end the largest ratio of default to best."""
    ratios = []
    for cell_name, make in CELLS.items():
        for hidden in options.widths:
            for batch in options.batches:
                for steps in options.steps:
                    for backward in (False, True):
                        cell = make(hidden)
                        times = measure(cell, steps, batch, backward, options.rounds)
                        best = min(time for name, time in times.items() if name != "default")
                        ratios.append(times["default"] / best)
                        chosen = jaxrnn.explain(cell, (steps, batch, FEATURES)).implementation
                        what = "gradient" if backward else "forward"
                        row = f"{load:<5}{cell_name:5}{what:9}{steps:4}{batch:4}{hidden:5}  {chosen:7}"
                        cells = [times.get(name) for name in ("default", *NAMES, "step")]
                        row += "".join(f"{1e3 * t:9.3f}" if t else f"{'-':>9}" for t in cells)
                        yield row + f"{ratios[-1]:7.2f}"
    middle, largest = statistics.median(ratios), max(ratios)
    yield f"load {load}: default / best: median {middle:.2f}, largest {largest:.2f}"


def measure(cell: Any, steps: int, batch: int, backward: bool, rounds: int) -> dict[str, float]:
    """Return the median seconds of the default, of each implementation and of `cell.step`, by name."""
    params = cell.init(jax.random.key(0), FEATURES)
    xs = jax.random.normal(jax.random.key(1), (steps, batch, FEATURES))
    runs: dict[str, Callable[..., Any]] = {
        name or "default": partial(unrolled, cell, name) for name in (None, *NAMES)
    }
    if steps == 1:
        runs["step"] = partial(stepped, cell)
    compiled = {name: jax.jit(jax.grad(run) if backward else run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in compiled}
    order, chance = list(compiled), random.Random(0)
    for turn in range(rounds + 1):
        # Each run starts with the CPU caches that the previous one left, so the order is random.
        chance.shuffle(order)
        for name in order:
            begin = time.perf_counter()
            jax.block_until_ready(compiled[name](params, xs))
            if turn:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def unrolled(cell: Any, implementation: Any, params: Any, xs: jax.Array) -> jax.Array:
    return jnp.sum(jaxrnn.unroll(cell, params, xs, implementation=implementation)[1])


def stepped(cell: Any, params: Any, xs: jax.Array) -> jax.Array:
    state = cell.initial_state(xs.shape[1])
    return jnp.sum(cell.step(params, state, cell.project(params, xs[0]))[1])


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep so many processes busy meanwhile."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
