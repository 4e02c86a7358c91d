"""How fast are the recurrent cells here, and against whom: jaxrnn's implementations and its peers.

    python benchmarks/cell_throughput.py                    # every cell and size: see --help
    python benchmarks/cell_throughput.py --quick            # under a minute
    python benchmarks/cell_throughput.py --write-choices    # and let `unroll` pick by the result
    python benchmarks/cell_throughput.py --from FILE --markdown    # the table of a measured file

For every cell, size (B, T, I, H) and dtype, each contender gets the same weights, inputs, initial
state and cotangent; its outputs, and the gradients of sum(ys * cotangent) for all weights, xs and the
initial state, are held against jaxrnn's plain scan in float64 (whose equations the tests prove against
numpy). Who is off is named and not timed. The others run in one process and in turns (`measure`).

The floor of a size is what this device could do at best, from a matrix product and a copy measured at
the start: the longer of FLOPs / (FLOP/s) and bytes / (bytes/s), where a forward pass counts

    FLOPs = 2 T B (I + H) G               the matrix products, G columns of gates
    bytes = weights + xs + ys             each moved once

and forward + backward three times both.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from benchmarks import tables
import jax
import jax.numpy as jnp
from benchmarks import measure
import numpy as np
from benchmarks import peers
from benchmarks.peers import Contender, Given
from rich.console import Console

import jaxrnn
from jaxrnn.devices import accelerator
from jaxrnn.recurrence.dispatch import Implementation, explain

CELLS: dict[str, Callable[[int], Any]] = {
    "rnn": jaxrnn.rnn,
    "lstm": jaxrnn.lstm,
    "lstm-peephole": lambda hidden: jaxrnn.lstm(hidden, peephole=True),
    "gru-before": lambda hidden: jaxrnn.gru(hidden, reset="before"),
    "gru-after": lambda hidden: jaxrnn.gru(hidden, reset="after"),
}
PASSES = ("forward", "forward+backward")
DTYPES = ("float32", "bfloat16")
Size = tuple[int, ...]  # B rows, T steps, I inputs, H units
SIZES: list[Size] = [
    (64, 100, 256, 1024),
    (64, 100, 256, 512),
    (50, 50, 128, 128),
    (1, 100, 128, 256),
    (16, 1000, 64, 64),
]
WIDE_SIZES: list[Size] = [  # beside them, on a GPU or a TPU
    (batch, 1024, hidden, hidden) for hidden in (256, 512, 1024, 2048) for batch in (1, 16, 64, 256)
]
QUICK: tuple[list[str], list[Size]] = (["lstm"], [(16, 20, 32, 64), (1, 50, 32, 64)])

# The largest error of an output or gradient, in units of its array's largest entry. On GPUs and TPUs
# a float32 product is made of TF32 or bfloat16 parts by default, here and with the peers.
TOLERANCES = {
    ("cpu", "float32"): 1e-4,
    ("gpu", "float32"): 1e-2,
    ("tpu", "float32"): 5e-2,
    ("cpu", "bfloat16"): 1e-1,
    ("gpu", "bfloat16"): 1e-1,
    ("tpu", "bfloat16"): 1e-1,
}


@functools.cache  # orthogonal weights take seconds at large widths
def _initial(cell: Any, inputs: int) -> Any:
    return jax.device_get(cell.init(jax.random.key(0), inputs))


def draw(cell: Any, size: Size, dtype: str) -> Given:
    """A problem of this size: only a GRU's b_h is zero, since flax nnx has none."""
    batch, steps, inputs, hidden = size
    rng = np.random.default_rng(0)
    rounded = jnp.dtype(dtype)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(rounded).astype(np.float32)

    params = _initial(cell, inputs)
    params = params._replace(b=params.b + normal(*params.b.shape, scale=0.1))
    if getattr(params, "w_c", None) is not None:
        params = params._replace(w_c=normal(3, hidden, scale=0.1))
    params = jax.tree.map(lambda w: np.asarray(w).astype(rounded).astype(np.float32), params)
    state = jax.tree.map(lambda s: normal(*s.shape, scale=0.5), cell.initial_state(batch))
    return Given(params, normal(steps, batch, inputs), state, normal(steps, batch, hidden), dtype)


def ours(cell: Any, given: Given, implementation: Any, wide: str = "float32") -> Contender:
    """`jaxrnn.unroll` by one implementation, as the peers are run."""

    def apply(params: Any, xs: Any, state: Any) -> Any:
        return jaxrnn.unroll(cell, params, xs, state, implementation=implementation)[1]

    params, xs, cotangent = (
        peers.cast(part, given.dtype) for part in (given.params, given.xs, given.cotangent)
    )
    forward, backward = peers.jitted(apply, params, xs, peers.cast(given.state, wide), cotangent)
    return Contender(forward, backward, peers.numpy, lambda result: peers.numpy(result[1]))


def reference(cell: Any, given: Given) -> tuple[Any, Any]:
    """ys and the gradients in float64, by the plain scan; on the CPU where the device has none."""
    host = jax.devices("cpu" if jax.default_backend() == "tpu" else None)[0]
    with jax.enable_x64(True), jax.default_device(host):
        exact = ours(cell, given._replace(dtype="float64"), "scan", "float64")
        return exact.outputs(exact.forward()), exact.gradients(exact.backward())


def field(cell: Any, given: Given, there: dict[str, Any]) -> tuple[dict[str, Contender], dict]:
    """Everybody who can run this, and why the others cannot."""
    entered: dict[str, Contender] = {}
    out: dict[str, str] = {}
    for name in get_args(Implementation):
        try:
            explain(cell, given.xs.shape, given.dtype, name)
            entered[f"jaxrnn {name}"] = ours(cell, given, name)
        except ValueError as why:
            out[f"jaxrnn {name}"] = str(why).partition(": ")[2]
    for name, peer in there.items():
        try:
            entered[name] = peer.contender(cell, given)
        except peers.Unserved as why:
            out[name] = str(why)
        except Exception as failure:  # a peer's own failure is reported, not ours to mend
            out[name] = measure.told(failure)
    return entered, out


def measured(
    entered: dict[str, Contender], truth: tuple[Any, Any], tolerance: float, repeats: int, what: str
) -> dict[str, dict[str, Any]]:
    """Of one pass: each contender's error, first call (it compiles) and raw seconds per call."""
    runs: dict[str, Callable[[], Any]] = {}
    record: dict[str, dict[str, Any]] = {}
    for name, contender in entered.items():
        run = contender.forward if what == "forward" else contender.backward
        try:
            first, result = measure.timed(run)
            if what == "forward":
                error = measure.error(contender.outputs(result), truth[0])
            else:
                error = measure.error(contender.gradients(result), truth[1])
        except Exception as failure:  # out of memory, a kernel that does not compile: reported
            record[name] = {"left_out": measure.told(failure)}
            continue
        record[name] = {"error": error, "first_call": first}
        if error <= tolerance:
            runs[name] = run
        else:
            record[name]["left_out"] = f"off by {error:.1e} of the largest, above {tolerance:g}"
    for name, times in measure.in_turns(runs, repeats).items():
        record[name] |= times
    return record


def floors(dtypes: list[str], quick: bool) -> dict[str, Any]:
    """The most FLOP/s and bytes/s that this device was seen to reach, by whom."""
    on_cpu = jax.default_backend() == "cpu"
    side = 1024 if quick else 2048 if on_cpu else 8192
    length = (1 << 24 if quick else 1 << 26) if on_cpu else 1 << 30  # float32 numbers
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
    """FLOPs and bytes of one call, as the top of this file counts them."""
    batch, steps, inputs, hidden = size
    gates = len(cell.GATES) * hidden
    times = 1 if what == "forward" else 3
    numbers = (inputs + hidden) * gates + steps * batch * (inputs + hidden)
    return (
        times * 2 * steps * batch * (inputs + hidden) * gates,
        times * numbers * jnp.dtype(dtype).itemsize,
    )


def main() -> None:
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
        sys.exit("error: not what the reference computes: " + "; ".join(wrong))


def _measure(flags: Any, console: Console) -> dict[str, Any]:
    """Everything that was asked for; the file is written anew after every size."""
    quick, on_cpu = flags.quick, jax.default_backend() == "cpu"
    cells = flags.cells or (QUICK[0] if quick else list(CELLS))
    sizes = flags.size or (QUICK[1] if quick else SIZES if on_cpu else SIZES + WIDE_SIZES)
    dtypes, passes = flags.dtype or ["float32"], flags.passes or list(PASSES)
    output = flags.output or _output(quick)
    there, missing = peers.load()
    for name, why in missing.items():
        console.print(f"without {name}: {why}", markup=False)
    record: dict[str, Any] = {"benchmark": "cell_throughput"}
    record |= measure.surroundings(("torch", "flax", "dm-haiku", "keras", "flashrnn"))
    record |= {"pause": measure.PAUSE, "missing": missing, "floor": floors(dtypes, quick)}
    record["tolerances"] = {d: TOLERANCES[jax.default_backend(), d] for d in dtypes}
    record["results"] = []
    for name, size, dtype in itertools.product(cells, sizes, dtypes):
        console.print(f"{name}, B, T, I, H = {', '.join(map(str, size))}, {dtype} ...")
        cell = CELLS[name](size[3])
        given = draw(cell, size, dtype)
        truth = reference(cell, given)
        entered, out = field(cell, given, there)
        for what in passes:
            flops, moved = work(cell, size, dtype, what)
            rate, width = record["floor"]["flops_per_second"], record["floor"]["bytes_per_second"]
            tolerance = record["tolerances"][dtype]
            record["results"].append(
                {"cell": name, "size": size, "dtype": dtype, "pass": what}
                | {"flops": flops, "bytes": moved}
                | {"floor": max(flops / rate[dtype]["rate"], moved / width["rate"])}
                | {"default": "jaxrnn " + explain(cell, given.xs.shape, dtype).implementation}
                | {"contenders": measured(entered, truth, tolerance, flags.repeats, what)}
                | {"unserved": out}
            )
        if output:
            measure.write(record, output)
    return record


def _output(quick: bool) -> Path | None:
    return None if quick else measure.RESULTS / f"cell_throughput-{measure.place()}.json"


def _flags() -> Any:
    parser = measure.Parser(description="recurrent cells: jaxrnn against its peers")
    say = parser.add_argument
    say("--cells", nargs="+", choices=CELLS, metavar="CELL", help=f"of {', '.join(CELLS)}")
    say("--size", type=measure.sizes("B,T,I,H"), nargs="+", metavar="B,T,I,H", help="to measure")
    say("--dtype", nargs="+", choices=DTYPES, help="of weights and inputs (float32)")
    say("--passes", nargs="+", choices=PASSES, help="(both)")
    say("--repeats", type=measure.whole, help="turns of each contender (7; quick 3)")
    say("--quick", action="store_true", help="two small sizes of the lstm, nothing written")
    say("--output", type=Path, metavar="FILE", help="of the JSON, the picture beside it")
    say("--from", dest="source", type=Path, metavar="FILE", help="report this, measure nothing")
    say("--markdown", action="store_true", help="print the table as Markdown")
    say("--write-choices", action="store_true", help="update the table that `unroll` picks from")
    flags = parser.parse_args()
    flags.repeats = flags.repeats or (3 if flags.quick else 7)
    if flags.write_choices and not flags.source and PASSES[1] not in (flags.passes or PASSES):
        parser.error(f"--write-choices needs the times of {PASSES[1]}")
    return flags


if __name__ == "__main__":
    main()
