"""Registers, spills and instructions of the Hopper kernels, from a machine without a GPU.

    python -m benchmarks.ahead_of_time --target hopper                  # some minutes
    python -m benchmarks.ahead_of_time --target hopper --size 16,768    # every cell and dtype at a size
    python -m benchmarks.ahead_of_time --target hopper --quick          # one program, some seconds

Without flags these are compiled: every cell and dtype at B, H = 64, 512, all but float16 also at every
other size, and bfloat16 also at the sizes of reinforcement learning. Forward and backward kernels are
compiled for an H100 ahead of time (`pip install "jaxrnn[gpu-aot]"`), including NVIDIA's assembler ptxas,
whose statistics are read, and disassembled, so that the instructions of one step of time are counted
(`sass.py`). Nothing here runs on a GPU. The times are predictions of the library's cost model, beside
cuDNN's where those were measured. Any function that calls Pallas kernels of Mosaic GPU can be compiled
in this way:

    reports(f, jax.ShapeDtypeStruct((8, 64, 512), jnp.float32))[0].spill_stores
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
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
from benchmarks.ahead_of_time.sass import Counts, counts
from benchmarks.problems import CELLS, PASSES
from jaxrnn.recurrence.kernels.hopper import cost_model
from jaxrnn.recurrence.kernels.hopper.tiles import DIRECTIONS

_TRAINING = tuple(itertools.product((16, 64, 128), (128, 256, 512, 1024)))
_REINFORCEMENT_LEARNING = ((4, 128), (64, 128), (1024, 128), (1024, 64))
# Batches and hidden sizes of each dtype.
SIZES = {
    "bfloat16": tuple(dict.fromkeys((*_TRAINING, *_REINFORCEMENT_LEARNING))),
    "float32": _TRAINING,
    "float16": ((64, 512),),
}
DTYPES = tuple(SIZES)
OUTPUT = measure.RESULTS / "hopper_static.json"
# Times of PyTorch's layers, which call cuDNN.
MEASURED = measure.RESULTS / "h100" / "3-repaired" / "hopper-nvidia-h100-80gb-hbm3.json"
PACKAGES = ["jax-cuda13-plugin", "nvidia-cuda-nvcc", "nvidia-cuda-nvdisasm"]

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
    """Statistics of a Mosaic kernel by ptxas, the instructions of a step, and its launch.

    kernel: its name.
    registers: registers of a thread, at most 255.
    spill_stores, spill_loads: bytes that a thread stores in local memory for lack of registers, and
      loads again; an instruction in a loop counts once.
    stack: bytes of a thread's stack frame in local memory.
    barriers: hardware barriers of a block, at most 16.
    static_shared: bytes of shared memory that the code of a block declares.
    losses: warnings of ptxas that time may be lost, for example since products cannot overlap
      ("serialized").
    counts: instructions of one step of time; None where nvdisasm is not installed.
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
    counts: Counts | None
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
    with jax.default_device(device), tempfile.TemporaryDirectory() as folder:
        lowered = fresh.lower(*compiler.placed_on(SingleDeviceSharding(device), args))
        launches = _launches(lowered.compiler_ir())
        os.environ["MOSAIC_GPU_DUMP_TO"] = folder
        try:
            lowered.compile()
        finally:
            del os.environ["MOSAIC_GPU_DUMP_TO"]
        found = _dumped(Path(folder))
    # Kernels of one name are compiled in program order, each once.
    kernels = sorted(dict(launches).items(), key=lambda item: item[1]["kernel"])
    expected, got = [kernel["kernel"] for _, kernel in kernels], [name for name, _ in found]
    if expected != got:
        raise ValueError(f"kernels {expected} were compiled, ptxas reported on {got}")
    of_kernel = {key: fields for (key, _), (_, fields) in zip(kernels, found, strict=True)}
    return [Report(**launch, **of_kernel[key]) for key, launch in launches]


def _dumped(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return name and fields of each kernel, by name and then in the order of compilation.

    Mosaic writes what ptxas printed about a kernel into NAME_NUMBER.ptxas, with growing numbers, and its
    machine code into NAME_NUMBER.sass_ctrl if there is nvdisasm.
    """
    found = []
    for file in folder.glob("*.ptxas"):
        name, _, number = file.stem.rpartition("_")
        code = file.with_suffix(".sass_ctrl")
        fields = parse(file.read_text(encoding="utf-8"))
        fields["counts"] = counts(code.read_text(encoding="utf-8")) if code.exists() else None
        found.append((name, int(number), fields))
    found.sort(key=lambda kernel: kernel[:2])
    return [(name, fields) for name, _, fields in found]


def parse(text: str) -> dict[str, Any]:
    """Return the fields of a `Report` that ptxas prints about a kernel."""
    numbers = {field: _number(pattern, text) for field, pattern in _PRINTED.items()}
    return {"losses": sorted(set(re.findall(_LOSS, text))), **numbers}


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _launches(program: ir.Module) -> list[tuple[bytes, dict[str, Any]]]:
    """Return hash and other fields of a `Report` for each call of a kernel in the lowered program.

    Each kernel also gets a new hash: in one process the plugin compiles only the first kernel of a hash,
    and ptxas would not report on a kernel that was compiled before.
    """
    found = []
    # The other half of a hash still tells the kernels of this program apart.
    new = os.urandom(16)
    with program.context as context:
        context.allow_unregistered_dialects = True
        for operation in list(_operations(program.operation)):
            config = operation.attributes.get("mhlo.backend_config")
            if config is not None and "kernel_hash" in config:
                key = config["kernel_hash"].value_bytes
                found.append((key, _launch(ir.Module.parse(config["module"].value_bytes))))
                parts = {part.name: part.attr for part in config}
                parts["kernel_hash"] = ir.StringAttr.get(new + key[len(new) :])
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


def compiled(size: Size, masked: bool = False) -> dict[str, Any]:
    """Return a row of the JSON file about the kernels of a layer."""
    row = size._asdict()
    begin = time.perf_counter()
    try:
        with jax.default_device(gpu.h100()):
            function, args, tiles = layer(size, masked)
        kernels = reports(function, *args)
    except Exception as failure:
        return row | {"failed": measure.one_line(failure)}
    row["tiles"] = _asdict(tiles)
    row["predicted"] = cost_model.microseconds(CELLS[size.cell](size.hidden), tiles, size.dtype)
    row["seconds"] = time.perf_counter() - begin
    return row | {"kernels": [_asdict(kernel) for kernel in kernels]}


def _asdict(numbers: Any) -> Any:
    """Return a `NamedTuple`, and those in it, as dicts."""
    if not hasattr(numbers, "_asdict"):
        return numbers
    return {name: _asdict(value) for name, value in numbers._asdict().items()}


def table(results: list[dict[str, Any]]) -> Table:
    """Return a table with a row for each kernel."""
    rows = []
    counted = True
    measured = _cudnn()
    for row in results:
        line = [str(row[key]) for key in ("cell", "dtype", "batch", "hidden")]
        if "failed" in row:
            rows.append([*line, row["failed"]])
            continue
        cudnn = measured.get((row["cell"], row["batch"], row["hidden"]), {})
        for direction, fields in zip(DIRECTIONS, row["kernels"], strict=True):
            kernel = Report(**fields)
            counted = counted and kernel.counts is not None
            numbers = (
                kernel.kernel + "*" * bool(kernel.losses),
                str(kernel.registers),
                f"{kernel.spill_stores} + {kernel.spill_loads}",
                f"{(kernel.static_shared + kernel.shared) / 1024:.1f}",
                f"{kernel.blocks} x {kernel.threads}",
            )
            times = f"{row['predicted'][direction]:.2f}", cudnn.get(direction, "")
            rows.append([*line, *numbers, *_shown(kernel.counts), *times])
    caption = (
        "spilled: bytes stored + loaded. CTAs: their number x threads of each. "
        "* ptxas warns that time may be lost; the JSON file says why.\n"
        "In the loop over time, each counted once: code, all instructions; HGMMA (those in loops inside "
        "of it); BAR, barriers (BAR.SYNC); TMA, loads + stores\n"
        "model: microseconds of a step, predicted; cuDNN: those of PyTorch's layer in float16 with its "
        "products of the inputs, measured on an H100"
    )
    if not counted:
        caption += "\n-: not counted for lack of nvdisasm; pip install nvidia-cuda-nvdisasm"
    headings = ("cell", "dtype", "B", "H", "kernel", "registers", "spilled", "KiB", "CTAs")
    return tables.table(
        "The kernels as ptxas compiles them for an H100, and predicted times.",
        (*headings, "code", "HGMMA", "MUFU", "BAR", "TMA", "model", "cuDNN"),
        rows,
        left=5,
        caption=caption,
    )


def _cudnn() -> dict[tuple[str, int, int], dict[str, str]]:
    """Return cuDNN's measured microseconds of a step by cell, batch and hidden size, and direction."""
    found = {}
    for result in json.loads(MEASURED.read_text(encoding="utf-8"))["results"]:
        job = result["job"]
        if job["stage"] == "table" and "passes" in result:
            batch, steps, _, hidden = job["size"]
            forward, both = (
                tables.medians(result["passes"][what])["torch float16"] * 1e6 / steps
                for what in PASSES
            )
            times = {"forward": f"{forward:.1f}", "backward": f"{both - forward:.1f}"}
            found[job["cell"], batch, hidden] = times
    return found


def _shown(numbers: Any) -> list[str]:
    """Return a row's columns of counts from `Counts` as a dict, or None."""
    if numbers is None:
        return ["-"] * 5
    found = Counts(**numbers)
    inner = f" ({found.inner_hgmma})" if found.inner_hgmma else ""
    return [
        str(found.instructions),
        f"{found.hgmma}{inner}",
        str(found.mufu),
        str(found.bar_sync),
        f"{found.utmaldg} + {found.utmastg}",
    ]


def run(flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compile every program that was asked for, print the table, and return the record."""
    cells, dtypes = flags.cells or CELL_NAMES, flags.dtypes or DTYPES
    sizes = [
        Size(cell, dtype, *size)
        for cell, dtype in itertools.product(cells, dtypes)
        for size in flags.size or SIZES[dtype]
    ]
    results = []
    for size in sizes[:1] if flags.quick else sizes:
        console.print(f"{', '.join(map(str, size))} ...")
        results.append(compiled(size, flags.masked))
    console.print(table(results))
    return {"compiled_for": "H100", "steps": STEPS, "results": results}
