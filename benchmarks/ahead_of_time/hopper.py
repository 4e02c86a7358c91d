"""Registers, spills and shared memory of the Hopper kernels, from a machine without a GPU.

    python -m benchmarks.ahead_of_time --target hopper                  # five minutes
    python -m benchmarks.ahead_of_time --target hopper --size 16,2048   # every cell and dtype at a size
    python -m benchmarks.ahead_of_time --target hopper --quick          # one program, some seconds

Without flags these are compiled: every cell and dtype at B, H = 64, 512, all but float16 also at every
other size. Forward and backward kernels are compiled for an H100
ahead of time (`pip install "jaxrnn[gpu-aot]"`), including NVIDIA's assembler ptxas, whose statistics are
read. Nothing here runs on a GPU, and no number is a time. Any function that calls Pallas kernels of
Mosaic GPU can be compiled in this way:

    reports(f, jax.ShapeDtypeStruct((8, 64, 512), jnp.float32))[0].spill_stores
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding
from jaxlib.mlir import ir
from rich.console import Console
from rich.table import Table

from benchmarks import measure, tables
from benchmarks.ahead_of_time import compiler, gpu
from benchmarks.ahead_of_time.programs import (
    CELL_NAMES,
    STEPS,
    Size,
    layer,
)

DTYPES = ("bfloat16", "float32", "float16")
# Batch and hidden size.
USUAL = (64, 512)
SIZES = tuple(itertools.product((16, 64, 128), (128, 256, 512, 1024)))
OUTPUT = measure.RESULTS / "hopper_static.json"
PACKAGES = ["jax-cuda13-plugin", "nvidia-cuda-nvcc"]

_KERNEL = r".*?entry function '(?P<name>\w+?)(?:_mosaic_gpu_kernel)?'.*?Used [^\n]*"
_LOSS = r"Performance Loss: (.*?) in (?:the )?function"
# What ptxas prints about a kernel, by field of `Report`. It leaves out some numbers that are 0.
_PRINTED = {
    "registers": r"Used (\d+) registers",
    "spill_stores": r"(\d+) bytes spill stores",
    "spill_loads": r"(\d+) bytes spill loads",
    "stack": r"(\d+) bytes stack frame",
    "barriers": r"used (\d+) barriers",
    "static_shared": r"(\d+) bytes smem",
}


class Report(NamedTuple):
    """Statistics of a Mosaic kernel by ptxas, and its launch.

    kernel: its name.
    registers: registers of a thread, at most 255.
    spill_stores, spill_loads: bytes that a thread stores in local memory for lack of registers, and
      loads again; an instruction in a loop counts once.
    stack: bytes of a thread's stack frame in local memory.
    barriers: hardware barriers of a block, at most 16.
    static_shared: bytes of shared memory that the code of a block declares.
    losses: warnings of ptxas that time may be lost, for example since products cannot overlap
      ("serialized").
    blocks, cluster, threads: blocks of the grid, blocks of a cluster, threads of a block.
    shared: bytes of shared memory of a block that the launch asks for.
    """

    kernel: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    barriers: int
    static_shared: int
    losses: list[str]
    blocks: int
    cluster: int
    threads: int
    shared: int


def reports(function: Callable[..., Any], *args: Any) -> list[Report]:
    """Compile a function for an H100 and return a report for each Mosaic kernel, in program order.

    Args:
      function: the function.
      args: its arguments; arrays may be `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: if ptxas did not report on every kernel.
    """
    device = gpu.h100()
    # A new function, since JAX keeps what it has compiled before.
    fresh = jax.jit(lambda *args: function(*args))
    with jax.default_device(device):
        lowered = fresh.lower(*compiler.placed_on(SingleDeviceSharding(device), args))
        launches = _launches(lowered.compiler_ir())
        found = parse(_printed(lowered.compile))
    expected, got = (sorted(each["kernel"] for each in some) for some in (launches, found))
    if expected != got:
        raise ValueError(f"kernels {expected} were compiled, ptxas reported on {got}")
    of_name = {name: [each for each in found if each["kernel"] == name] for name in got}
    return [Report(**launch | of_name[launch["kernel"]].pop(0)) for launch in launches]


def parse(text: str) -> list[dict[str, Any]]:
    """Return the fields of a `Report` that ptxas prints, for each kernel in its text."""
    return [
        {
            "kernel": found["name"],
            "losses": sorted(set(re.findall(_LOSS, found[0]))),
            **{field: _number(pattern, found[0]) for field, pattern in _PRINTED.items()},
        }
        for found in re.finditer(_KERNEL, text, re.DOTALL)
    ]


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _launches(program: ir.Module) -> list[dict[str, Any]]:
    """Return the other fields of a `Report`, read from each kernel's call in the lowered program.

    Each call also gets a new hash: in one process the plugin compiles only the first kernel of a hash,
    and ptxas would not report on the others.
    """
    found = []
    with program.context as context:
        context.allow_unregistered_dialects = True
        for operation in list(_operations(program.operation)):
            config = operation.attributes.get("mhlo.backend_config")
            if config is not None and "kernel_hash" in config:
                found.append(_launch(ir.Module.parse(config["module"].value_bytes)))
                parts = {part.name: part.attr for part in config}
                parts["kernel_hash"] = ir.StringAttr.get(os.urandom(32))
                operation.attributes["mhlo.backend_config"] = ir.DictAttr.get(parts)
    return found


def _launch(module: ir.Module) -> dict[str, Any]:
    """Return the fields that describe the launch in Mosaic's module of one kernel."""
    found = (o for o in _operations(module.operation) if o.name.endswith("gpu.launch"))
    # The first operand is a token, the others are constants.
    _, *operands = next(found).operands
    values = [operand.owner.attributes["value"].value for operand in operands]
    return {
        "kernel": module.operation.attributes["sym_name"].value,
        "blocks": math.prod(values[:3]),
        "threads": math.prod(values[3:6]),
        # Without clusters there are no such values, and their product is 1.
        "cluster": math.prod(values[6:-1]),
        "shared": values[-1],
    }


def _operations(operation: Any) -> Iterator[Any]:
    """Yield all operations inside of one, in program order."""
    for region in operation.regions:
        for block in region:
            for inner in block:
                yield inner.operation
                yield from _operations(inner)


def _printed(run: Callable[[], Any]) -> str:
    """Run a function and return what ptxas prints meanwhile to the standard output of this process."""
    sys.stdout.flush()
    standard = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"
        try:
            run()
        finally:
            del os.environ["MOSAIC_GPU_DUMP_PTXAS"]
            os.dup2(standard, 1)
            os.close(standard)
        file.seek(0)
        return file.read().decode()


def compiled(size: Size, masked: bool = False) -> dict[str, Any]:
    """Return a row of the JSON file about the kernels of a layer."""
    row = size._asdict()
    with jax.default_device(gpu.h100()):
        function, args, tiles = layer(size, masked)
    row["tiles"] = _asdict(tiles)
    begin = time.perf_counter()
    try:
        kernels = reports(function, *args)
    except Exception as failure:
        return row | {"failed": measure.one_line(failure)}
    row["seconds"] = time.perf_counter() - begin
    return row | {"kernels": [kernel._asdict() for kernel in kernels]}


def _asdict(numbers: Any) -> Any:
    """Return a `NamedTuple`, and those in it, as dicts."""
    if not hasattr(numbers, "_asdict"):
        return numbers
    return {name: _asdict(value) for name, value in numbers._asdict().items()}


def table(results: list[dict[str, Any]]) -> Table:
    """Return a table with a row for each kernel."""
    rows = []
    for row in results:
        line = [str(row[key]) for key in ("cell", "dtype", "batch", "hidden")]
        if "failed" in row:
            rows.append([*line, row["failed"]])
            continue
        for kernel in (Report(**each) for each in row["kernels"]):
            numbers = (
                kernel.kernel + "*" * bool(kernel.losses),
                str(kernel.registers),
                f"{kernel.spill_stores} + {kernel.spill_loads}",
                str(kernel.stack),
                f"{(kernel.static_shared + kernel.shared) / 1024:.1f}",
                f"{kernel.blocks} / {kernel.cluster}",
                str(kernel.threads),
            )
            rows.append([*line, *numbers])
    headings = ("cell", "dtype", "B", "H", "kernel", "registers", "spilled", "stack", "KiB shared")
    return tables.table(
        "Statistics of the kernels by ptxas, compiled for an H100. Not times.",
        (*headings, "blocks", "threads"),
        rows,
        left=5,
        caption="spilled: bytes stored + loaded. blocks: blocks of the grid / blocks of a cluster. "
        "* ptxas warns that time may be lost; the JSON file says why",
    )


def run(flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compile every program that was asked for, print the table, and return the record."""
    cells, dtypes = flags.cells or CELL_NAMES, flags.dtypes or DTYPES
    # All sizes without float16, and the usual size with it.
    sizes = [
        Size(cell, dtype, *size)
        for cell, dtype, size in (
            *itertools.product(cells, dtypes[:2], flags.size or SIZES),
            *itertools.product(cells, dtypes, flags.size or [USUAL]),
        )
    ]
    sizes = list(dict.fromkeys(sizes))
    results = []
    for size in sizes[:1] if flags.quick else sizes:
        console.print(f"{', '.join(map(str, size))} ...")
        results.append(compiled(size, flags.masked))
    console.print(table(results))
    return {"compiled_for": "H100", "steps": STEPS, "results": results}
