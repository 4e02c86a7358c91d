"""Where the time of the C++ recurrence goes on a CPU: each of its calls alone, beside a matrix product.

    python benchmarks/native_parts.py

An LSTM in float32 at the sizes of `cell_throughput.py`. `product` is one large matrix product of XLA's,
in turn with the calls: what the cores can do. A call's share of that rate says how much of its time is
multiplication; the rest are gates, memory, packing of weights and waiting for the other core.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from benchmarks import measure
from benchmarks.cell_throughput import SIZES
from rich.table import Table

import jaxrnn
from jaxrnn.recurrence.problem import Dense, Masks
from jaxrnn.recurrence.kernels.native import build, calls

SIDE = 2048  # of the large product


def parts(size: tuple[int, ...]) -> dict[str, tuple[Callable[[], Any], int]]:
    """Each call of a gradient, and its floating-point operations."""
    batch, steps, inputs, hidden = size
    cell, masks = jaxrnn.lstm(hidden), Masks(None, None)
    params = cell.init(jax.random.key(0), inputs)
    xs = jax.random.normal(jax.random.key(1), (steps, batch, inputs))
    state, weights = cell.initial_state(batch), params._replace(w_x=None, b=None)

    @partial(jax.jit, static_argnums=0)
    def forward(keep: bool, params: Any, xs: Any, state: Any) -> Any:
        given = Dense(xs, params.w_x, params.b)
        return calls.forward(cell, False, weights, given, state, masks, keep)

    @jax.jit
    def backward(weights: Any, kept: Any, state: Any, d_ys: Any) -> Any:
        return calls.backward(cell, False, weights, masks, kept, state, d_ys)

    outer, back, product = jax.jit(calls.outer), jax.jit(calls.back), jax.jit(jnp.matmul)
    final, ys, kept = forward(True, params, xs, state)
    d_gx, _, _ = backward(weights, kept, final, ys)
    square = jnp.full((SIDE, SIDE), 0.5)
    of_h, of_x = (2 * steps * batch * width * 4 * hidden for width in (hidden, inputs))
    runs: dict[str, tuple[Callable[[], Any], int]] = {
        "product": (lambda: product(square, square), 2 * SIDE**3),
        "forward": (lambda: forward(False, params, xs, state), of_h + of_x),
        "forward, keeping": (lambda: forward(True, params, xs, state), of_h + of_x),
        "backward": (lambda: backward(weights, kept, final, ys), of_h),
        "dW_h": (lambda: outer(kept.entered, d_gx), of_h),
        "dW_x, db": (lambda: outer(xs, d_gx), of_x),
        "dx": (lambda: back(d_gx, params.w_x), of_x),
    }
    return {n: (lambda run=run: jax.block_until_ready(run()), f) for n, (run, f) in runs.items()}


def table(record: dict[str, Any]) -> Table:
    """A row for each call, a column for each size."""
    made = Table(title="LSTM, float32: GFLOP/s of each call (share of the large product's)")
    made.add_column("B, T, I, H")
    rates = [result["flops_per_second"] for result in record["results"]]
    for result in record["results"]:
        made.add_column(", ".join(map(str, result["size"])), justify="right")
    for name in rates[0]:
        made.add_row(name, *(f"{r[name] / 1e9:.0f} ({r[name] / r['product']:.2f})" for r in rates))
    return made


def main() -> None:
    parser = measure.Parser(description="the calls of the C++ recurrence, each alone")
    parser.add_argument("--repeats", type=measure.whole, default=7, help="turns of each call (7)")
    parser.add_argument("--output", type=Path, default=None, metavar="FILE", help="of the JSON")
    flags = parser.parse_args()
    if reason := build.why_not():
        parser.error(f"nothing to time: {reason}")
    output = flags.output or measure.RESULTS / f"native_parts-{measure.place()}.json"
    record = {"benchmark": "native_parts"} | measure.surroundings(()) | {"results": []}
    for size in SIZES:
        calls_of = parts(size)
        for run, _ in calls_of.values():
            run()  # compiles
        times = measure.in_turns({n: run for n, (run, _) in calls_of.items()}, flags.repeats)
        rates = {
            n: flops / statistics.median(times[n]["seconds"]) for n, (_, flops) in calls_of.items()
        }
        record["results"].append({"size": size, "flops_per_second": rates, "times": times})
    measure.write(record, output)
    measure.screen().print(table(record))
    print(f"written to {output}")


if __name__ == "__main__":
    main()
