"""What `save_every=k` saves and costs: memory and time of an LSTM's gradients.

    python benchmarks/save_every.py    # some seconds; writes the JSON

(B, T, I, H) = (16, 1000, 64, 64), float32, gradients of the weights and the inputs. `temporary` are the
bytes that the compiled program takes beside its arguments and results, by XLA's own account.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from benchmarks import measure
from rich.table import Table

import jaxrnn

BATCH, STEPS, FEATURES, HIDDEN = 16, 1000, 64, 64
EVERY = (1, 10, 20, 50, 100)


def program(every: int, params: Any, xs: jax.Array) -> Any:
    """The compiled gradient of the outputs' squared sum."""
    cell = jaxrnn.lstm(HIDDEN)

    def loss(params: Any, xs: jax.Array) -> jax.Array:
        return jnp.square(jaxrnn.unroll(cell, params, xs, save_every=every)[1]).sum()

    return jax.jit(jax.grad(loss, (0, 1))).lower(params, xs).compile()


def main() -> None:
    parser = measure.Parser(description="memory and time of save_every")
    parser.add_argument("--repeats", type=measure.whole, default=9, help="turns of each k (9)")
    repeats = parser.parse_args().repeats
    params = jaxrnn.lstm(HIDDEN).init(jax.random.key(0), FEATURES)
    xs = jax.random.normal(jax.random.key(1), (STEPS, BATCH, FEATURES))
    params, xs = jax.device_put((params, xs), jax.devices()[0])
    programs = {str(every): program(every, params, xs) for every in EVERY}
    runs = {
        every: lambda made=made: jax.block_until_ready(made(params, xs))
        for every, made in programs.items()
    }
    times = measure.in_turns(runs, repeats)
    for every, made in programs.items():
        times[every]["temporary"] = made.memory_analysis().temp_size_in_bytes
    record = {"benchmark": "save_every", **measure.surroundings([])}
    record |= {"size": [BATCH, STEPS, FEATURES, HIDDEN], "results": times}
    output = measure.RESULTS / f"save_every-{measure.place()}.json"
    measure.write(record, output)
    table = Table("k", "temporary, MB", "x k = 1", "ms", "x k = 1")
    median = {every: sorted(t["seconds"])[repeats // 2] for every, t in times.items()}
    for every, t in times.items():
        kept, seconds = t["temporary"], median[every]
        ratios = kept / times["1"]["temporary"], seconds / median["1"]
        cells = (
            f"{kept / 1e6:.1f}",
            f"{ratios[0]:.2f}",
            f"{1e3 * seconds:.1f}",
            f"{ratios[1]:.2f}",
        )
        table.add_row(every, *cells)
    measure.screen().print(table)


if __name__ == "__main__":
    main()
