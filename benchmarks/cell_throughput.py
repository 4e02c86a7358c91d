"""How fast are the recurrent cells on this machine, compared with other libraries?

    python benchmarks/cell_throughput.py                    # every cell and size: see --help
    python benchmarks/cell_throughput.py --quick            # under a minute
    python benchmarks/cell_throughput.py --write-choices    # let `jaxrnn.unroll` pick by the result
    python benchmarks/cell_throughput.py --from FILE --markdown    # the table of a measured file
    python benchmarks/cell_throughput.py --layers           # drop-in layers: see layer_throughput.py

For every cell, size (B, T, I, H) and dtype, each contender gets the same weights, inputs, initial state
and cotangent. First its outputs, and the gradients of sum(ys * cotangent) for all weights, xs and the
initial state, are compared with jaxrnn's plain scan in float64 (whose equations the tests compare with
numpy). A contender with wrong results is reported and not timed. The others are timed in one process and
in turns (`measure.in_turns`).

The floor of a size is the shortest time that this device could take, from the rates of a matrix product
and of a copy measured at the start: the longer of FLOPs / (FLOP/s) and bytes / (bytes/s). A forward pass
counts

    FLOPs = 2 T B (I + H) G               the matrix products, with G columns of gates
    bytes = weights + xs + ys             each moved once

and forward + backward three times both.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

if not __package__:
    # Run as a script: import from the repository and not from this folder.
    sys.path[0] = str(Path(__file__).parents[1])

import jax
import jax.numpy as jnp
from rich.console import Console

from benchmarks import layer_throughput, measure, peers, tables
from benchmarks.contenders import OURS, draw, measured, ours, reference
from benchmarks.peers import Contender, Given
from benchmarks.problems import (
    CELLS,
    DTYPES,
    PASSES,
    QUICK_SIZES,
    SIZES,
    TOLERANCES,
    WIDE_SIZES,
    Size,
)
from jaxrnn.devices import accelerator
from jaxrnn.recurrence.dispatch import explain
from jaxrnn.recurrence.kernels import Implementation


def field(
    cell: Any, given: Given, available: dict[str, Any]
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the contenders that can run this problem, and why the others cannot, by name."""
    entered: dict[str, Contender] = {}
    unserved: dict[str, str] = {}
    for name in get_args(Implementation):
        try:
            entered[OURS + name] = ours(cell, given, name)
        except ValueError as why:
            unserved[OURS + name] = str(why).partition(": ")[2]
    for name, peer in available.items():
        try:
            entered[name] = peer.contender(cell, given)
        except peers.Unserved as why:
            unserved[name] = str(why)
        except Exception as failure:
            # The failure of a peer is reported and does not end the benchmark.
            unserved[name] = measure.one_line(failure)
    return entered, unserved


def floors(dtypes: list[str], quick: bool) -> dict[str, Any]:
    """Measure the highest FLOP/s and bytes/s that XLA or PyTorch reaches on this device."""
    on_cpu = jax.default_backend() == "cpu"
    side = 1024 if quick else 2048 if on_cpu else 8192
    # Number of float32 values to copy.
    length = (1 << 24 if quick else 1 << 26) if on_cpu else 1 << 30
    torch = None
    if on_cpu:
        with contextlib.suppress(ImportError):
            import torch  # type: ignore[no-redef]

    def best(runs: dict[str, Callable[[], Any]], work: float) -> dict[str, Any]:
        for run in runs.values():
            run()
        rates = {
            name: work / min(times["seconds"])
            for name, times in measure.in_turns(runs, 3 if quick else 7).items()
        }
        name = max(rates, key=lambda each: rates[each])
        return {"rate": rates[name], "by": name, "all": rates}

    record: dict[str, Any] = {"flops_per_second": {}}
    multiply, copy = jax.jit(jnp.matmul), jax.jit(jnp.negative)
    for dtype in dtypes:
        a = jax.device_put(jnp.full((side, side), 0.5, dtype), accelerator.device())
        runs = {"XLA": lambda a=a: multiply(a, a).block_until_ready()}
        if torch is not None:
            b = torch.full((side, side), 0.5, dtype=getattr(torch, dtype))
            c = torch.empty_like(b)
            runs["torch"] = lambda b=b, c=c: torch.mm(b, b, out=c)
        record["flops_per_second"][dtype] = best(runs, 2 * side**3)
    source = jax.device_put(jnp.ones(length), accelerator.device())
    runs = {"XLA": lambda: copy(source).block_until_ready()}
    if torch is not None:
        here, other = torch.ones(length), torch.empty(length)
        runs["torch"] = lambda: other.copy_(here)
    record["bytes_per_second"] = best(runs, 2 * 4 * length)
    return record


def work(cell: Any, size: Size, dtype: str, what: str) -> tuple[int, int]:
    """Return FLOPs and bytes of one call, counted as the docstring of this file says."""
    batch, steps, inputs, hidden = size
    gates = len(cell.GATES) * hidden
    times = 1 if what == "forward" else 3
    numbers = (inputs + hidden) * gates + steps * batch * (inputs + hidden)
    return (
        times * 2 * steps * batch * (inputs + hidden) * gates,
        times * numbers * jnp.dtype(dtype).itemsize,
    )


def main() -> None:
    """Run the command."""
    if "--layers" in sys.argv:
        layer_throughput.main()
        return
    flags = _flags()
    console = measure.screen(stderr=flags.markdown)
    record = measure.read(flags.source) if flags.source else _measure(flags, console)
    output = flags.source or flags.output or _output(flags.quick)
    if flags.markdown:
        print(tables.markdown(record))
    else:
        console.print(tables.tables(record))
        console.print(tables.summary(record), markup=False, soft_wrap=True)
    if output:
        tables.draw(record, output.with_suffix(".png"))
        console.print(f"results in {output}, picture beside it")
    if flags.write_choices:
        count = tables.write_choices(record)
        console.print(f"{count} choices written to {tables.CHOICES}")
    if wrong := tables.wrong(record):
        sys.exit("error: results differ from the reference: " + "; ".join(wrong))


def _measure(flags: Any, console: Console) -> dict[str, Any]:
    """Measure everything that was asked for. The file is rewritten after every size."""
    quick, on_cpu = flags.quick, jax.default_backend() == "cpu"
    cells = flags.cells or (["lstm"] if quick else list(CELLS))
    sizes = flags.size or (QUICK_SIZES if quick else SIZES if on_cpu else SIZES + WIDE_SIZES)
    dtypes, passes = flags.dtype or ["float32"], flags.passes or list(PASSES)
    output = flags.output or _output(quick)
    available, missing = peers.load()
    for name, why in missing.items():
        console.print(f"without {name}: {why}", markup=False)
    record: dict[str, Any] = {"benchmark": "cell_throughput"}
    record |= measure.surroundings(("torch", "flax", "dm-haiku", "keras", "flashrnn"))
    record |= {"pause": measure.PAUSE, "missing": missing, "floor": floors(dtypes, quick)}
    record["tolerances"] = {d: TOLERANCES[jax.default_backend(), d] for d in dtypes}
    record["results"] = []
    # JAX has no float64 on a TPU, so the CPU computes the reference there.
    device = jax.devices("cpu" if jax.default_backend() == "tpu" else None)[0]
    for name, size, dtype in itertools.product(cells, sizes, dtypes):
        console.print(f"{name}, B, T, I, H = {tables.joined(size)}, {dtype} ...")
        cell = CELLS[name](size[3])
        given = draw(cell, size, dtype)
        truth = reference(cell, given, device=device)
        entered, unserved = field(cell, given, available)
        for what in passes:
            flops, moved = work(cell, size, dtype, what)
            rate, width = record["floor"]["flops_per_second"], record["floor"]["bytes_per_second"]
            tolerance = record["tolerances"][dtype]
            record["results"].append(
                {"cell": name, "size": size, "dtype": dtype, "pass": what}
                | {"flops": flops, "bytes": moved}
                | {"floor": max(flops / rate[dtype]["rate"], moved / width["rate"])}
                | {"default": OURS + explain(cell, given.xs.shape, dtype).implementation}
                | {"contenders": measured(entered, truth, tolerance, flags.repeats, what)}
                | {"unserved": unserved}
            )
        if output:
            measure.write(record, output)
    return record


def _output(quick: bool) -> Path | None:
    return None if quick else measure.RESULTS / f"cell_throughput-{measure.place()}.json"


def _flags() -> Any:
    parser = measure.Parser(description="Time recurrent cells: jaxrnn beside other libraries.")
    add = parser.add_argument
    add("--cells", nargs="+", choices=CELLS, metavar="CELL", help=f"cells: {', '.join(CELLS)}")
    add("--size", type=measure.sizes("B,T,I,H"), nargs="+", metavar="B,T,I,H", help="sizes")
    add("--dtype", nargs="+", choices=DTYPES, help="dtypes of weights and inputs (float32)")
    add("--passes", nargs="+", choices=PASSES, help="passes to time (both)")
    add("--repeats", type=measure.positive, help="turns of each contender (7; with --quick 3)")
    add("--quick", action="store_true", help="two small sizes of the lstm; writes no file")
    add("--output", type=Path, metavar="FILE", help="JSON file to write, with a picture beside it")
    add("--from", dest="source", type=Path, metavar="FILE", help="report this file; time nothing")
    add("--markdown", action="store_true", help="print the table as Markdown")
    add("--layers", action="store_true", help="time drop-in layers; --layers --help has its flags")
    add("--write-choices", action="store_true", help="update the table that `unroll` picks from")
    flags = parser.parse_args()
    flags.repeats = flags.repeats or (3 if flags.quick else 7)
    if flags.write_choices and not flags.source and PASSES[1] not in (flags.passes or PASSES):
        parser.error(f"--write-choices needs the times of {PASSES[1]}")
    return flags


if __name__ == "__main__":
    main()
