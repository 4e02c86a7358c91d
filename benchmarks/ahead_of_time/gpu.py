"""Kernel launches per step of time on a GPU that is not present, read from the compiled program.

    python -m benchmarks.ahead_of_time --target gpu            # every cell and size, some minutes
    python -m benchmarks.ahead_of_time --target gpu --quick    # an LSTM in bfloat16, half a minute

XLA compiles forward and backward for an H100 ahead of time (`pip install "jaxrnn[gpu-aot]"`) and lists
the actions of its runtime, the "thunks", with those of a loop's body under the loop. The table counts
the kernels and copies that one iteration of each loop over time launches, and how many of them are in
command buffers (CUDA graphs, which the host launches with one call). These are counts and not times. On
a real GPU XLA measures which kernel multiplies fastest; another kernel, or another GPU, may change a
count.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from rich.console import Console
from rich.table import Table

import jaxrnn
from benchmarks import measure, tables
from benchmarks.ahead_of_time import compiler
from benchmarks.problems import CELLS
from jaxrnn.recurrence.kernels import xla
from jaxrnn.recurrence.problem import Dense, Problem

CELL_NAMES = ("lstm", "gru-before", "gru-after")
DTYPES = ("bfloat16", "float32")
# Batch and hidden size.
SIZES = ((64, 512), (1, 256))
# Steps of time in one iteration of a loop.
UNROLLS = (1, 2, 4, 8, 16)
FEATURES = 64
# Every one of UNROLLS divides this number of steps, so no step is outside of a loop.
STEPS = 80
# XLA's default choice for command buffers, and WHILE.
WITH_LOOPS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE"
PASSES = ("forward", "backward")
OUTPUT = measure.RESULTS / "gpu_static.json"
PACKAGES = ["jax-cuda13-pjrt", "nvidia-cuda-nvcc"]

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

# The kinds of thunks that launch something on the device.
_LAUNCHES = {
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
    """A loop as the runtime runs it, and the launches of one iteration.

    trips: number of iterations. Since XLA knows it, the host launches no condition and waits for none.
    kernels, copies: launches of each kind.
    in_buffers: number of both that are in command buffers.
    whole: whether the loop itself is in a command buffer, so that the host launches all iterations at
      once.
    """

    trips: int
    kernels: int
    copies: int
    in_buffers: int
    whole: bool

    @property
    def launches(self) -> int:
        """Kernels and copies together."""
        return self.kernels + self.copies


def missing() -> str | None:
    """Return why nothing can be compiled for GPUs here, and what to install; None if it can."""
    for name in ("jax_cuda13_plugin", "nvidia"):
        if find_spec(name) is None:
            return f'{name} is missing: pip install "jaxrnn[gpu-aot]"'
    return None


def h100() -> jax.Device:
    """Return an H100 to compile for, without one being present."""
    return h100s(1)[0]


def h100s(count: int) -> list[jax.Device]:
    """Return several H100s of one host to compile for, without one being present."""
    # The check is about libraries that only a running program needs.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology=f"1x1x{count}", target_config=H100
    )
    return described.devices


def compiled(function: Any, *args: Any, **options: Any) -> list[Loop]:
    """Return the loops of a jitted function, compiled for an H100.

    Args:
      function: the jitted function.
      args: its arguments; arrays may be `jax.ShapeDtypeStruct`s.
      options: XLA's options, by name.
    """
    device = h100()
    with tempfile.TemporaryDirectory() as folder, jax.default_device(device):
        lowered = function.lower(*compiler.placed_on(SingleDeviceSharding(device), args))
        program = lowered.compile({"xla_dump_to": folder, **options})
        # The last listing is that after the last pass.
        *_, listing = sorted(Path(folder).glob("*.thunk_sequence*.txt"))
        return loops(listing.read_text(encoding="utf-8"), program.as_text())


def loops(listing: str, program: str) -> list[Loop]:
    """Return the loops in a listing of thunks, with trip counts from the compiled program's text.

    The listing has lines `indent number: kind [...] what`; deeper lines belong to the line above them.

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
    """Read a loop from its line (indent, kind) and all lines that follow it."""
    outer = lines[0][0]
    start = [kind for _, kind in lines].index("body") + 1
    launches: Counter[str] = Counter()
    in_buffers = 0
    # The indent of the command buffer that lines belong to.
    buffer: int | None = None
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
            raise ValueError(f"an unknown kind of thunk: {kind}")
    return Loop(trips, launches["kernels"], launches["copies"], in_buffers, outer > 0)


def counted(
    name: str, implementation: str, dtype: str, size: tuple[int, int], unroll: int, **options: Any
) -> dict[str, Any]:
    """Count the launches of both passes for xs [T, B, D]: outputs, and gradients of params and xs.

    unroll: steps in an iteration of the loops of "xla".
    """
    batch, hidden = size
    cell = CELLS[name](hidden)

    def run(params: Any, xs: Any) -> Any:
        if implementation == "scan":
            return jaxrnn.unroll(cell, params, xs, implementation="scan")[1]
        inputs, state = Dense(xs, params.w_x, params.b), cell.initial_state(batch)
        return xla.run(Problem(cell, params, inputs, state), unroll=unroll)[1].astype(dtype)

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
    """Return launches of forward + backward, with a star if not all are in command buffers."""
    passes = [row[what] for what in PASSES]
    outside = [p["in_buffers"] < p["kernels"] + p["copies"] for p in passes]
    return " + ".join(
        f"{p['per_step']:.2f}{'*' * out}" for p, out in zip(passes, outside, strict=True)
    )


def table(results: list[dict[str, Any]]) -> Table:
    """Return a table with a row for each cell, dtype and size, a column for each implementation."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in results:
        line = tuple(str(row[key]) for key in ("cell", "dtype", "batch", "hidden"))
        steps = f", {row['unroll']} steps" if row["implementation"] == "xla" else ""
        lines.setdefault(line, {})[row["implementation"] + steps] = shown(row)
    columns = list(dict.fromkeys(column for line in lines.values() for column in line))
    return tables.table(
        "Launches per step of time, forward + backward, compiled for an H100. Not times.",
        ("cell", "dtype", "B", "H", *columns),
        [(*line, *(cells.get(column, "") for column in columns)) for line, cells in lines.items()],
        left=4 + len(columns),
        caption="xla, N steps: N steps of time in an iteration. * some are outside of command buffers",
    )


def run(flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compile every cell, dtype and size that was asked for, print the tables, return the record."""
    usual = [("scan", 1), ("xla", 1), ("xla", xla.GPU_UNROLL)]
    cells = ["lstm"] if flags.quick else flags.cells or list(CELL_NAMES)
    dtypes = DTYPES[:1] if flags.quick else flags.dtypes or DTYPES
    sizes = flags.size or SIZES
    results = []
    for name, dtype, size in itertools.product(cells, dtypes, sizes[:1] if flags.quick else sizes):
        console.print(f"{name}, {dtype}, B, H = {tables.joined(size)} ...")
        results += [counted(name, how, dtype, size, unroll) for how, unroll in usual]
    console.print(table(results))
    first = results[0]["cell"], "xla", dtypes[0], sizes[0]
    unrolls = [counted(*first, unroll) for unroll in UNROLLS]
    console.print(table(unrolls))
    whole = counted(*first, xla.GPU_UNROLL, xla_gpu_enable_command_buffer=WITH_LOOPS)
    record = {"compiled_for": "H100", "steps": STEPS, "results": results, "unrolls": unrolls}
    return record | {"with_while_in_command_buffer": whole}
