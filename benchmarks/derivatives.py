"""Time derivatives of `jaxrnn.unroll` by every implementation, beside those of plain JAX ("scan").

    python -m benchmarks.derivatives           # some minutes on two cores
    python -m benchmarks.derivatives --quick   # tiny sizes; writes no file

tangents: forward mode, `jax.jvp` with respect to the weights and the inputs, of the lecture's cells.
gradients: reverse mode, with respect to the same, of the cells of `jaxrnn.recurrence.variants`.

Everything is float32. Results are compared with those of "scan" before they are timed, and all
implementations of a problem run in turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp

import jaxrnn
from benchmarks import measure, tables
from benchmarks.contenders import measured
from benchmarks.peers import Contender, numpy
from benchmarks.problems import CELLS, QUICK_SIZES, SIZES, TOLERANCES, Size
from jaxrnn.devices import accelerator
from jaxrnn.recurrence import variants
from jaxrnn.recurrence.kernels import Implementation

BASE = "scan"
VARIANTS: dict[str, Callable[[int], Any]] = {
    **{name: getattr(variants, name) for name in variants.__all__},
    "projected_lstm": lambda hidden: variants.projected_lstm(hidden, cell_size=2 * hidden),
}
CELLS_OF = {"tangents": CELLS, "gradients": VARIANTS}


def tangents(run: Callable[..., Any], *arguments: Any) -> Any:
    """Return outputs and their tangents in the direction of the arguments themselves."""
    return jax.jvp(run, arguments, arguments)


def gradients(run: Callable[..., Any], *arguments: Any) -> Any:
    """Return the gradients of the sum of the squared outputs."""
    return jax.grad(lambda *given: jnp.square(run(*given)).sum(), (0, 1))(*arguments)


def contenders(cell: Any, size: Size, what: str) -> dict[str, Contender]:
    """Return a derivative by each implementation that supports the cell, by name."""
    batch, steps, inputs, _ = size
    params = cell.init(jax.random.key(0), inputs)
    xs = jax.random.normal(jax.random.key(1), (steps, batch, inputs))
    given = jax.device_put((params, xs), accelerator.device())
    derivative = {"tangents": tangents, "gradients": gradients}[what]

    def unrolled(name: Implementation, params: Any, xs: jax.Array) -> jax.Array:
        return jaxrnn.unroll(cell, params, xs, implementation=name)[1]

    made = {}
    for name in get_args(Implementation):
        try:
            jaxrnn.explain(cell, xs.shape, implementation=name)
        except ValueError:
            continue
        program = jax.jit(partial(derivative, partial(unrolled, name)))
        run = partial(_finished, program, given)
        made[name] = Contender(run, run, numpy, numpy)
    return made


def _finished(program: Callable[..., Any], given: Any) -> Any:
    return jax.block_until_ready(program(*given))


def main() -> None:
    """Run the command."""
    parser = measure.Parser(description="Time derivatives of jaxrnn.unroll by implementation.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes no file")
    parser.add_argument("--repeats", type=measure.positive, default=7, help="turns of each (7)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write")
    flags = parser.parse_args()
    console = measure.screen()
    record = _measure(flags, console.print)
    for what in CELLS_OF:
        console.print(table(record, what))
    for line in summary(record):
        console.print(line)
    if not flags.quick:
        output = flags.output or measure.RESULTS / f"derivatives-{measure.place()}.json"
        measure.write(record, output)
        console.print(f"results in {output}")
    if failed := wrong(record):
        sys.exit("error: results differ from those of scan: " + "; ".join(failed))


def _measure(flags: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    # The largest size of cell_throughput.py takes long and says nothing new.
    sizes = QUICK_SIZES if flags.quick else SIZES[1:]
    tolerance = TOLERANCES[jax.default_backend(), "float32"]
    record = {"benchmark": "derivatives"} | measure.surroundings(())
    record |= {"pause": measure.PAUSE, "tolerance": tolerance, "results": []}
    for what, cells in CELLS_OF.items():
        for name, make in cells.items():
            say(f"{what} of {name} ...")
            for size in sizes:
                entered = contenders(make(size[3]), size, what)
                found = numpy(entered[BASE].forward())
                timed = measured(entered, (found, found), tolerance, flags.repeats, "forward")
                record["results"].append(
                    {"what": what, "cell": name, "size": size, "contenders": timed}
                )
    return record


def ratios(record: dict[str, Any], what: str, name: str) -> list[float]:
    """Return the times of an implementation divided by those of "scan", one for each problem."""
    every = [tables.medians(r["contenders"]) for r in record["results"] if r["what"] == what]
    return [times[name] / times[BASE] for times in every if {name, BASE} <= times.keys()]


def table(record: dict[str, Any], what: str) -> Any:
    """Return a table with a row for each cell and size and a column for each implementation."""
    names = [name for name in get_args(Implementation) if ratios(record, what, name)]
    rows = []
    for result in record["results"]:
        if result["what"] == what:
            times = tables.medians(result["contenders"])
            cells = (f"{times[name] * 1e3:,.2f}" if name in times else "-" for name in names)
            rows.append((result["cell"], tables.joined(result["size"]), *cells))
    return tables.table(f"{what}, milliseconds", ("cell", "B, T, I, H", *names), rows, left=2)


def summary(record: dict[str, Any]) -> list[str]:
    """Return for each derivative and implementation the range of the ratios to "scan"."""
    lines = []
    for what in CELLS_OF:
        for name in get_args(Implementation):
            found = ratios(record, what, name)
            if found and name != BASE:
                mean = statistics.geometric_mean(found)
                lines.append(
                    f"{what}: {name} takes {mean:.2f} times as long as {BASE} (geometric mean of "
                    f"{len(found)} problems; {min(found):.2f} to {max(found):.2f})"
                )
    return lines


def wrong(record: dict[str, Any]) -> list[str]:
    """Return the implementations whose results differ from those of "scan", and where."""
    return [
        f"{name} at {result['what']} of {result['cell']} ({contender['left_out']})"
        for result in record["results"]
        for name, contender in result["contenders"].items()
        if "left_out" in contender
    ]


if __name__ == "__main__":
    main()
