"""The parts of `jaxrnn.unroll` on a CPU: the C++ calls, `save_every`, and the default choice.

    python -m benchmarks.unroll_parts native            # each call of the C++ recurrence
    python -m benchmarks.unroll_parts save-every        # memory and time of `save_every=k`
    python -m benchmarks.unroll_parts default-choice --output FILE

native: an LSTM in float32 and in bfloat16 at the sizes of `cell_throughput.py`. `product` is one large
  matrix product of the same dtype by `calls.back`, timed in turns with the calls; its rate is what the
  cores can do. A call's share of that rate says how much of its time is multiplication. The rest are
  gates, memory, packing of weights and waiting for the other core. The rate of XLA's product of the same
  arrays is beside it.

save-every: gradients of the weights and the inputs of an LSTM at (B, T, I, H) = (16, 1000, 64, 64), in
float32. `temporary` are the bytes that the compiled program needs besides its arguments and results, as
XLA reports them.

default-choice: how far the default implementation is from the fastest one. For a grid of steps T, rows B
and hidden sizes H, first on an idle machine and then beside busy processes, one for each core, it times
the default and every implementation chosen by name, interleaved in one process. A single step is also
compared with `cell.step`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.table import Table

import jaxrnn
from benchmarks import measure, tables
from benchmarks.problems import CELLS, SIZES, Size
from jaxrnn.recurrence.kernels.native import calls
from jaxrnn.recurrence.kernels.native.build import LIBRARY
from jaxrnn.recurrence.problem import Dense, Masks

# Side of the large matrix product of `native`.
SIDE = 2048
DTYPES = ("float32", "bfloat16")

# The problem of `save-every`, and its values of k.
SAVE_SIZE = (16, 1000, 64, 64)
SAVE_EVERY = (1, 10, 20, 50, 100)

# The grid of `default-choice`.
CHOICE_CELLS = {"lstm": CELLS["lstm"], "gru": CELLS["gru-before"]}
STEPS = (1, 4, 8, 32, 200)
BATCHES = (1, 2, 8, 64)
HIDDEN_SIZES = (32, 128, 256)
NAMES = ("native", "xla", "scan")
FEATURES = 64


# --- native -------------------------------------------------------------------------------------


def native(flags: argparse.Namespace) -> None:
    """Time each call of the C++ recurrence and write a JSON file."""
    if reason := LIBRARY.unavailable_reason:
        sys.exit(f"error: nothing to time: {reason}")
    output = flags.output or measure.RESULTS / f"native_parts-{measure.place()}.json"
    record = {"benchmark": "native_parts"} | measure.surroundings(()) | {"results": []}
    for size in SIZES:
        # The calls of all dtypes take turns, so that they can be compared.
        parts = {
            f"{dtype}: {name}": part
            for dtype in flags.dtypes
            for name, part in native_calls(size, dtype).items()
        }
        for run, _ in parts.values():
            # The first call compiles.
            run()
        times = measure.in_turns({n: run for n, (run, _) in parts.items()}, flags.repeats)
        rates = {
            n: flops / statistics.median(times[n]["seconds"]) for n, (_, flops) in parts.items()
        }
        record["results"].append({"size": size, "flops_per_second": rates, "times": times})
    measure.write(record, output)
    for dtype in flags.dtypes:
        measure.screen().print(native_table(record, dtype))
    print(f"written to {output}")


def native_calls(size: Size, dtype: str) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return each C++ call that a gradient makes, and its floating-point operations, by name."""
    batch, steps, inputs, hidden = size
    cell, masks = jaxrnn.lstm(hidden), Masks()
    narrow = dtype == "bfloat16"
    static = calls.Static(cell, reverse=False, batch_first=False, narrow=narrow)
    params = cell.init(jax.random.key(0), inputs)
    params = params._replace(w_x=params.w_x.astype(dtype), w_h=params.w_h.astype(dtype))
    xs = jax.random.normal(jax.random.key(1), (steps, batch, inputs))
    state = cell.initial_state(batch)
    weights = params._replace(w_x=None, b=None)

    @partial(jax.jit, static_argnums=0)
    def forward(keep: bool, params: Any, xs: Any, state: Any) -> Any:
        given = Dense(xs, params.w_x, params.b)
        return calls.forward(static, weights, given, state, masks, keep)

    @jax.jit
    def backward(weights: Any, residuals: Any, state: Any, d_ys: Any) -> Any:
        return calls.backward(static, weights, masks, residuals, state, d_ys)

    outer, back = (jax.jit(partial(call, static)) for call in (calls.outer, calls.back))
    product = jax.jit(jnp.matmul)
    final, ys, residuals = forward(True, params, xs, state)
    d_gx, _, _ = backward(weights, residuals, final, ys)
    square = jnp.full((SIDE, SIDE), 0.5)
    weights_of_product = square.astype(dtype)
    of_h, of_x = (2 * steps * batch * width * 4 * hidden for width in (hidden, inputs))
    runs: dict[str, tuple[Callable[[], Any], int]] = {
        "product": (lambda: back(square[None], weights_of_product), 2 * SIDE**3),
        "product by XLA": (lambda: product(weights_of_product, weights_of_product), 2 * SIDE**3),
        "forward": (lambda: forward(False, params, xs, state), of_h + of_x),
        "forward, keeping": (lambda: forward(True, params, xs, state), of_h + of_x),
        "backward": (lambda: backward(weights, residuals, final, ys), of_h),
        "dW_h": (lambda: outer(residuals.previous_hidden, d_gx), of_h),
        "dW_x, db": (lambda: outer(xs, d_gx), of_x),
        "dx": (lambda: back(d_gx, params.w_x), of_x),
    }
    return {n: (lambda run=run: jax.block_until_ready(run()), f) for n, (run, f) in runs.items()}


def native_table(record: dict[str, Any], dtype: str) -> Table:
    """Return a table with a row for each call in a dtype and a column for each size."""
    prefix = f"{dtype}: "
    rates = [
        {n.removeprefix(prefix): rate for n, rate in made.items() if n.startswith(prefix)}
        for made in (result["flops_per_second"] for result in record["results"])
    ]
    headings = ["B, T, I, H", *(tables.joined(result["size"]) for result in record["results"])]
    rows = [
        [name, *(f"{r[name] / 1e9:.0f} ({r[name] / r['product']:.2f})" for r in rates)]
        for name in rates[0]
    ]
    title = f"LSTM, {dtype}: GFLOP/s of each call (share of the large product's)"
    return tables.table(title, headings, rows, left=1)


# --- save-every -----------------------------------------------------------------------------------


def save_every(flags: argparse.Namespace) -> None:
    """Measure memory and time of gradients by `save_every`, and write a JSON file."""
    batch, steps, features, hidden = SAVE_SIZE
    params = jaxrnn.lstm(hidden).init(jax.random.key(0), features)
    xs = jax.random.normal(jax.random.key(1), (steps, batch, features))
    params, xs = jax.device_put((params, xs), jax.devices()[0])
    programs = {str(every): gradient_program(every, params, xs) for every in SAVE_EVERY}
    runs = {
        every: lambda made=made: jax.block_until_ready(made(params, xs))
        for every, made in programs.items()
    }
    times = measure.in_turns(runs, flags.repeats)
    for every, made in programs.items():
        times[every]["temporary"] = made.memory_analysis().temp_size_in_bytes
    record = {"benchmark": "save_every", **measure.surroundings([])}
    record |= {"size": list(SAVE_SIZE), "results": times}
    output = flags.output or measure.RESULTS / f"save_every-{measure.place()}.json"
    measure.write(record, output)
    medians = tables.medians(times)
    rows = []
    for every, result in times.items():
        temporary, seconds = result["temporary"], medians[every]
        memory_ratio = temporary / times["1"]["temporary"]
        row = (every, f"{temporary / 1e6:.1f}", f"{memory_ratio:.2f}", f"{1e3 * seconds:.1f}")
        rows.append((*row, f"{seconds / medians['1']:.2f}"))
    headings = ("k", "temporary, MB", "x k = 1", "ms", "x k = 1")
    measure.screen().print(tables.table("gradients with save_every=k", headings, rows))
    print(f"written to {output}")


def gradient_program(every: int, params: Any, xs: jax.Array) -> Any:
    """Return the compiled gradient of the sum of the squared outputs."""
    cell = jaxrnn.lstm(SAVE_SIZE[3])

    def loss(params: Any, xs: jax.Array) -> jax.Array:
        return jnp.square(jaxrnn.unroll(cell, params, xs, save_every=every)[1]).sum()

    return jax.jit(jax.grad(loss, (0, 1))).lower(params, xs).compile()


# --- default-choice -------------------------------------------------------------------------------


def default_choice(flags: argparse.Namespace) -> None:
    """Print the times of the default choice beside every implementation, and write them to a file."""
    lines = [f"jax {jax.__version__}, {os.cpu_count()} cores, medians of {flags.rounds} in ms"]
    header = f"{'load':5}{'cell':5}{'pass':9}{'T':>4}{'B':>4}{'H':>5}  {'choice':7}{'default':>9}"
    lines.append(header + "".join(f"{name:>9}" for name in NAMES) + f"{'step':>9}{'ratio':>7}")
    print("\n".join(lines))
    for load in (0, os.cpu_count() or 1):
        with busy_processes(load):
            for line in choice_lines(flags, load):
                print(line, flush=True)
                lines.append(line)
    if flags.output:
        flags.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def choice_lines(flags: argparse.Namespace, load: int) -> Iterator[str]:
    """Yield a line for each problem, and at the end the largest ratio of default to best."""
    ratios = []
    for cell_name, make in CHOICE_CELLS.items():
        for hidden in flags.hidden_sizes:
            for batch in flags.batches:
                for steps in flags.steps:
                    for backward in (False, True):
                        cell = make(hidden)
                        times = choice_times(cell, steps, batch, backward, flags.rounds)
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


def choice_times(
    cell: Any, steps: int, batch: int, backward: bool, rounds: int
) -> dict[str, float]:
    """Return the median seconds of the default, of each implementation and of `cell.step`, by name."""
    params = cell.init(jax.random.key(0), FEATURES)
    xs = jax.random.normal(jax.random.key(1), (steps, batch, FEATURES))
    runs: dict[str, Callable[..., Any]] = {
        name or "default": partial(_unrolled, cell, name) for name in (None, *NAMES)
    }
    if steps == 1:
        runs["step"] = partial(_stepped, cell)
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


def _unrolled(cell: Any, implementation: Any, params: Any, xs: jax.Array) -> jax.Array:
    return jnp.sum(jaxrnn.unroll(cell, params, xs, implementation=implementation)[1])


def _stepped(cell: Any, params: Any, xs: jax.Array) -> jax.Array:
    state = cell.initial_state(xs.shape[1])
    return jnp.sum(cell.step(params, state, cell.project(params, xs[0]))[1])


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep this many processes busy inside of the block."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    """Run the command."""
    parser = measure.Parser(description="Time the parts of jaxrnn.unroll on a CPU.")
    kinds = parser.add_subparsers(required=True, metavar="PART")

    part = kinds.add_parser("native", help="each call of the C++ recurrence")
    part.add_argument("--repeats", type=measure.positive, default=7, help="turns of each call (7)")
    part.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=DTYPES, metavar="DTYPE", help="dtypes"
    )
    part.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write")
    part.set_defaults(run=native)

    part = kinds.add_parser("save-every", help="memory and time of save_every=k")
    part.add_argument("--repeats", type=measure.positive, default=9, help="turns of each k (9)")
    part.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write")
    part.set_defaults(run=save_every)

    part = kinds.add_parser("default-choice", help="the default beside every implementation")
    numbers: dict[str, Any] = {"type": measure.positive, "nargs": "+"}
    part.add_argument("--steps", **numbers, default=STEPS, metavar="T", help="numbers of steps")
    part.add_argument("--batches", **numbers, default=BATCHES, metavar="B", help="numbers of rows")
    part.add_argument(
        "--hidden-sizes", **numbers, default=HIDDEN_SIZES, metavar="H", help="hidden sizes"
    )
    part.add_argument("--rounds", type=measure.positive, default=15, help="timings of each (15)")
    part.add_argument("--output", type=Path, metavar="FILE", help="text file to write")
    part.set_defaults(run=default_choice)

    flags = parser.parse_args()
    flags.run(flags)


if __name__ == "__main__":
    main()
