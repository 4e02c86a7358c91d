"""Kernel launches per step of time on a GPU that is not here, read from the compiled program.

    python benchmarks/gpu_static.py            # every cell and size, some minutes; writes the JSON
    python benchmarks/gpu_static.py --quick    # an LSTM in bfloat16, half a minute; writes nothing

XLA compiles forward and backward for an H100 ahead of time (`pip install "jaxrnn[gpu-aot]"`) and lists
what its runtime will do, the "thunks", with those of a loop's body under the loop. Counted is what one
turn of each loop over time puts on the device's stream, kernels and copies, and how many of these are
in command buffers: CUDA graphs, which the host launches with one call. Counts, not times. On a card that
is there XLA measures which kernel multiplies fastest, which it cannot here; another one may count
differently, and so may another card.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.ahead_of_time import compiler
import jax
import jax.numpy as jnp
from benchmarks import measure
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from rich.table import Table

import jaxrnn
from jaxrnn.recurrence.problem import Dense, Masks
from jaxrnn.recurrence.kernels import xla

CELLS = {
    "lstm": lambda hidden: jaxrnn.lstm(hidden),
    "gru-before": lambda hidden: jaxrnn.gru(hidden, reset="before"),
    "gru-after": lambda hidden: jaxrnn.gru(hidden, reset="after"),
}
DTYPES = ("bfloat16", "float32")
SIZES = ((64, 512), (1, 256))  # B, H
UNROLLS = (1, 2, 4, 8, 16)  # steps in a turn
FEATURES = 64
STEPS = 80  # of time; every one of UNROLLS divides it, so that nothing of a loop stands outside
# XLA's own choice of what goes into command buffers, and WHILE
WITH_LOOPS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE"
PASSES = ("forward", "backward")
OUTPUT = measure.RESULTS / "gpu_static.json"

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 } core_count: 132 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

_LAUNCHES = {  # the kinds of thunks that put something on the device's stream
    "kCustomKernel": "kernels",
    "kKernel": "kernels",
    "kGemm": "kernels",
    "kCublasLtMatmul": "kernels",
    "kCopy": "copies",
    "kMemset32BitValue": "copies",
    "kMemzero": "copies",
}
_NO_LAUNCH = {"kCommandBuffer", "kSequential", "kDynamicSliceFusion", "kAsyncStart", "kAsyncDone"}


class Loop(NamedTuple):
    """A loop as the runtime runs it, and what one turn of it launches.

    trips: how often it turns. Where XLA knows, the host launches no condition and waits for no answer.
    kernels, copies: how many of these.
    in_buffers: how many of both are in command buffers.
    whole: whether the loop itself is in one, so that the host launches it with all its turns.
    """

    trips: int
    kernels: int
    copies: int
    in_buffers: int
    whole: bool

    @property
    def launches(self) -> int:
        return self.kernels + self.copies


def missing() -> str | None:
    """Why nothing can be compiled for GPUs here, with what to install; None where it can."""
    for name in ("jax_cuda13_plugin", "nvidia"):
        if find_spec(name) is None:
            return f'{name} is missing: pip install "jaxrnn[gpu-aot]"'
    return None


def h100() -> jax.Device:
    """An H100 to compile for, without any being there."""
    # of the versions of libraries that take part only where a program runs
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology="1x1x1", target_config=H100
    )
    return described.devices[0]


def compiled(function: Any, *args: Any, **options: Any) -> list[Loop]:
    """The loops of a jitted function, compiled for an H100.

    args: its arguments; arrays may be `jax.ShapeDtypeStruct`s.
    options: XLA's, by name.
    """
    device = h100()
    with tempfile.TemporaryDirectory() as folder, jax.default_device(device):
        lowered = function.lower(*compiler.placed_on(SingleDeviceSharding(device), args))
        program = lowered.compile({"xla_dump_to": folder, **options})
        *_, listing = sorted(Path(folder).glob("*.thunk_sequence*.txt"))  # after the last pass
        return loops(listing.read_text(encoding="utf-8"), program.as_text())


def loops(listing: str, program: str) -> list[Loop]:
    """The loops in a listing of thunks, with their trip counts from the compiled program's text.

    Of the listing's lines, `indent number: kind [...] what`, deeper ones belong to the one above them.

    Raises:
      ValueError: for a listing of another form.
    """
    found = re.findall(r"^( *)(?:\d+: (k\w+)|(body):)", listing, re.MULTILINE)
    lines = [(len(indent), kind or part) for indent, kind, part in found]
    trips = re.findall(r'"known_trip_count":\{"n":"(\d+)"', program)
    heads = [place for place, (_, kind) in enumerate(lines) if kind == "kWhile"]
    if not heads or len(heads) != len(trips):
        raise ValueError(f"{len(heads)} loops in the listing, {len(trips)} trip counts are known")
    return [_loop(int(n), lines[place:]) for n, place in zip(trips, heads, strict=True)]


def _loop(trips: int, lines: list[tuple[int, str]]) -> Loop:
    """lines: the loop's own (how deep it stands, its kind), and all that follow it."""
    outer = lines[0][0]
    start = [kind for _, kind in lines].index("body") + 1
    launches: Counter[str] = Counter()
    in_buffers, buffer = 0, None  # how deep the command buffer stands that lines belong to
    for depth, kind in lines[start:]:
        if depth <= outer:
            break
        if buffer is not None and depth <= buffer:
            buffer = None
        if kind == "kCommandBuffer":
            buffer = depth
        elif kind in _LAUNCHES:
            launches[_LAUNCHES[kind]] += 1
            in_buffers += buffer is not None or outer > 0
        elif kind not in _NO_LAUNCH:
            raise ValueError(f"a kind of thunk that is not known here: {kind}")
    return Loop(trips, launches["kernels"], launches["copies"], in_buffers, outer > 0)


def counted(
    name: str, implementation: str, dtype: str, size: tuple[int, int], unroll: int, **options: Any
) -> dict[str, Any]:
    """Launches of both passes for xs [T, B, D]: outputs, and the gradients of params and xs.

    unroll: of "xla", the steps in a turn of its loops.
    """
    batch, hidden = size
    cell = CELLS[name](hidden)

    def run(params: Any, xs: Any) -> Any:
        if implementation == "scan":
            return jaxrnn.unroll(cell, params, xs, implementation="scan")[1]
        inputs, state = Dense(xs, params.w_x, params.b), cell.initial_state(batch)
        none = Masks(None, None)
        return xla.run(cell, params, inputs, state, none, False, unroll=unroll)[1].astype(dtype)

    def both(params: Any, xs: Any, d_ys: Any) -> Any:
        ys, pull = jax.vjp(run, params, xs)
        return ys, pull(d_ys)

    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), FEATURES, jnp.dtype(dtype)))
    xs, d_ys = (jax.ShapeDtypeStruct((STEPS, batch, n), dtype) for n in (FEATURES, hidden))
    begin = time.process_time()
    found = compiled(jax.jit(both), params, xs, d_ys, **options)
    seconds = time.process_time() - begin
    row = {"cell": name, "dtype": dtype, "batch": batch, "hidden": hidden}
    row |= {"implementation": implementation, "unroll": unroll, "compile_cpu_seconds": seconds}
    for what, loop in zip(PASSES, found, strict=True):
        row[what] = loop._asdict() | {"per_step": loop.launches * loop.trips / STEPS}
    return row


def shown(row: dict[str, Any]) -> str:
    """Forward + backward, a star where not everything is in command buffers."""
    passes = [row[what] for what in PASSES]
    outside = [p["in_buffers"] < p["kernels"] + p["copies"] for p in passes]
    return " + ".join(
        f"{p['per_step']:.2f}{'*' * out}" for p, out in zip(passes, outside, strict=True)
    )


def table(results: list[dict[str, Any]]) -> Table:
    """A line for each cell, dtype and size, a column for each implementation and unroll."""
    made = Table(
        title="Launches per step of time, forward + backward, compiled for an H100. Not times.",
        caption="* some of them outside of command buffers",
    )
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in results:
        line = tuple(str(row[key]) for key in ("cell", "dtype", "batch", "hidden"))
        steps = f", {row['unroll']} a turn" if row["implementation"] == "xla" else ""
        lines.setdefault(line, {})[row["implementation"] + steps] = shown(row)
    columns = list(dict.fromkeys(column for line in lines.values() for column in line))
    for heading in ("cell", "dtype", "B", "H", *columns):
        made.add_column(heading)
    for line, cells in lines.items():
        made.add_row(*line, *(cells.get(column, "") for column in columns))
    return made


def main() -> None:
    parser = measure.Parser(description="launches per step of the recurrence on a GPU")
    parser.add_argument("--cells", choices=CELLS, nargs="+", default=list(CELLS))
    parser.add_argument("--size", type=measure.sizes("B,H"), nargs="+", default=SIZES)
    parser.add_argument("--quick", action="store_true", help="one cell and size, nothing written")
    parser.add_argument("--output", type=Path, help=f"of the JSON (default {OUTPUT.name})")
    flags = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # whatever is here takes no part
    if reason := missing():
        parser.error(reason)
    console = measure.screen()
    usual = [("scan", 1), ("xla", 1), ("xla", xla.GPU_UNROLL)]
    results = []
    for name in ["lstm"] if flags.quick else flags.cells:
        for dtype in DTYPES[:1] if flags.quick else DTYPES:
            for size in flags.size[:1] if flags.quick else flags.size:
                console.print(f"{name}, {dtype}, B, H = {size} ...")
                results += [counted(name, how, dtype, size, unroll) for how, unroll in usual]
    console.print(table(results))
    first = results[0]["cell"], "xla", DTYPES[0], flags.size[0]
    unrolls = [counted(*first, unroll) for unroll in UNROLLS]
    console.print(table(unrolls))
    whole = counted(*first, xla.GPU_UNROLL, xla_gpu_enable_command_buffer=WITH_LOOPS)
    output = flags.output or (None if flags.quick else OUTPUT)
    if output:
        packages = ["jax-cuda13-pjrt", "nvidia-cuda-nvcc"]
        record = measure.surroundings(packages) | {"compiled_for": "H100", "steps": STEPS}
        record |= {"results": results, "unrolls": unrolls, "with_while_in_command_buffer": whole}
        measure.write(record, output)
        console.print(f"written to {output}")


if __name__ == "__main__":
    main()
