"""ptxas' word on the Hopper kernels, from a machine without a GPU: registers, spills, shared memory.

    python benchmarks/hopper_static.py                  # five minutes, writes the JSON:
        every cell and dtype at B, H = 64, 512, and the first of them at every size; several layers at
        once; sampling
    python benchmarks/hopper_static.py --size 16,2048   # every cell and dtype at this size
    python benchmarks/hopper_static.py --quick          # one of each, some seconds; writes nothing

The kernels are compiled forward and backward for an H100 ahead of time (`pip install
"jaxrnn[gpu-aot]"`), down to NVIDIA's own assembler. Nothing here runs on a GPU, and no number is a time.
So can be any function that calls Pallas kernels of Mosaic GPU:

    reports(f, jax.ShapeDtypeStruct((8, 64, 512), jnp.float32))[0].spill_stores
"""

from __future__ import annotations

import itertools
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.ahead_of_time import compiler
from benchmarks.ahead_of_time import gpu
import jax
from benchmarks import measure
from benchmarks.ahead_of_time.programs import CELLS, STEPS, Program, Size, at_once, layer, sampler
from jax.sharding import SingleDeviceSharding
from jaxlib.mlir import ir
from rich.table import Table

DTYPES = ("bfloat16", "float32", "float16")
USUAL = (64, 512)  # B, H
SIZES = tuple(itertools.product((16, 64, 128), (256, 512, 1024, 2048)))
AT_ONCE = (
    *(Size(cell, "bfloat16", *USUAL, 2) for cell in ("rnn", "lstm", "lstm-peephole", "gru-after")),
    Size("lstm", "bfloat16", 64, 256, 4),
    Size("gru-after", "bfloat16", 16, 512, 4),
    Size("lstm-peephole", "float32", 16, 128, 2),
)
SAMPLED = (
    *(Size(cell, "bfloat16", 1, 512) for cell in CELLS),
    *(Size(cell, "bfloat16", 64, 256, 2) for cell in CELLS),
    Size("lstm", "bfloat16", 8, 1024),
    Size("lstm", "float32", 1, 512),
)
OUTPUT = measure.RESULTS / "hopper_static.json"

_KERNEL = r".*?entry function '(?P<name>\w+?)(?:_mosaic_gpu_kernel)?'.*?Used [^\n]*"
_LOSS = r"Performance Loss: (.*?) in (?:the )?function"
_SAID = {  # ptxas prints of a kernel, by field of `Report`; it leaves out some that are 0
    "registers": r"Used (\d+) registers",
    "spill_stores": r"(\d+) bytes spill stores",
    "spill_loads": r"(\d+) bytes spill loads",
    "stack": r"(\d+) bytes stack frame",
    "barriers": r"used (\d+) barriers",
    "static_shared": r"(\d+) bytes smem",
}


class Report(NamedTuple):
    """What ptxas says of a Mosaic kernel, and how that is launched.

    registers: of a thread; there are 255 at most.
    spill_stores, spill_loads: bytes that a thread puts into local memory for want of registers, and
      takes back; an instruction in a loop counts once.
    stack: bytes of a thread's frame in local memory.
    barriers: hardware barriers of a block, of 16.
    static_shared: bytes of shared memory of a block that the code declares.
    losses: what ptxas warns may cost time, as that products cannot overlap ("serialized").
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
    """One for each Mosaic kernel that a function calls, compiled for an H100, in the program's order.

    args: the function's; arrays may be `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: where ptxas did not report on every kernel.
    """
    device = gpu.h100()
    fresh = jax.jit(lambda *args: function(*args))  # of another JAX keeps what it compiled before
    with jax.default_device(device):
        lowered = fresh.lower(*compiler.placed_on(SingleDeviceSharding(device), args))
        launches = _launches(lowered.compiler_ir())
        found = said(_printed(lowered.compile))
    expected, got = (sorted(each["kernel"] for each in some) for some in (launches, found))
    if expected != got:
        raise ValueError(f"kernels {expected} were compiled, ptxas reported on {got}")
    of_name = {name: [each for each in found if each["kernel"] == name] for name in got}
    return [Report(**launch | of_name[launch["kernel"]].pop(0)) for launch in launches]


def said(text: str) -> list[dict[str, Any]]:
    """The fields of a `Report` that ptxas prints, for each kernel in its text."""
    return [
        {
            "kernel": found["name"],
            "losses": sorted(set(re.findall(_LOSS, found[0]))),
            **{field: _number(pattern, found[0]) for field, pattern in _SAID.items()},
        }
        for found in re.finditer(_KERNEL, text, re.DOTALL)
    ]


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _launches(program: ir.Module) -> list[dict[str, Any]]:
    """The other fields of each kernel, read from its call in the lowered program.

    Each call also gets a hash of its own: in one process the plugin compiles only the first kernel of a
    hash, and ptxas would be silent on the others.
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
    """Of Mosaic's module of one kernel."""
    found = (o for o in _operations(module.operation) if o.name.endswith("gpu.launch"))
    _, *operands = next(found).operands  # all but a token are constants
    values = [operand.owner.attributes["value"].value for operand in operands]
    return {
        "kernel": module.operation.attributes["sym_name"].value,
        "blocks": math.prod(values[:3]),
        "threads": math.prod(values[3:6]),
        "cluster": math.prod(values[6:-1]),  # of no numbers where there are no clusters
        "shared": values[-1],
    }


def _operations(operation: Any) -> Iterator[Any]:
    """All inside an operation, in the program's order."""
    for region in operation.regions:
        for block in region:
            for inner in block:
                yield inner.operation
                yield from _operations(inner)


def _printed(run: Callable[[], Any]) -> str:
    """What ptxas prints, by way of the process's own standard output, while this runs."""
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


def compiled(what: str, size: Size, make: Callable[[], Program]) -> dict[str, Any]:
    """What ptxas says of a program's kernels.

    what: "layer", "layers at once" or "sampling".
    """
    row = {"what": what, **size._asdict()}
    with jax.default_device(gpu.h100()):
        function, args, tiles = make()
    row["tiles"] = tiles and _asdict(tiles)
    begin = time.perf_counter()
    try:
        kernels = reports(function, *args)
    except Exception as failure:
        return row | {"failed": measure.one_line(failure)}
    row["seconds"] = time.perf_counter() - begin
    return row | {"kernels": [kernel._asdict() for kernel in kernels]}


def _asdict(numbers: Any) -> Any:
    """A `NamedTuple` and those in it."""
    if not hasattr(numbers, "_asdict"):
        return numbers
    return {name: _asdict(value) for name, value in numbers._asdict().items()}


def table(results: list[dict[str, Any]]) -> Table:
    """A line for each kernel."""
    made = Table(
        title="What ptxas says of the kernels, compiled for an H100. Not times.",
        caption="spilled: bytes stored + loaded. blocks: of the grid, in clusters of how many. "
        "* ptxas warns that time may be lost: why is in the JSON",
    )
    for heading in ("cell", "dtype", "B", "H", "kernel"):
        made.add_column(heading)
    for heading in ("registers", "spilled", "stack", "KiB shared", "blocks", "threads"):
        made.add_column(heading, justify="right")
    for row in results:
        line = [str(row[key]) for key in ("cell", "dtype", "batch", "hidden")]
        if row["layers"] > 1:
            line[0] = f"{row['layers']} x {line[0]}"
        if "failed" in row:
            made.add_row(*line, row["failed"])
            continue
        for kernel in (Report(**each) for each in row["kernels"]):
            made.add_row(
                *line,
                kernel.kernel + "*" * bool(kernel.losses),
                str(kernel.registers),
                f"{kernel.spill_stores} + {kernel.spill_loads}",
                str(kernel.stack),
                f"{(kernel.static_shared + kernel.shared) / 1024:.1f}",
                f"{kernel.blocks} / {kernel.cluster}",
                str(kernel.threads),
            )
    return made


def main() -> None:
    parser = measure.Parser(description="registers and spills of the Hopper kernels")
    parser.add_argument("--cells", choices=CELLS, nargs="+", default=list(CELLS))
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument(
        "--size", type=measure.sizes("B,H"), nargs="+", help="of all (default: as above)"
    )
    parser.add_argument("--masked", action="store_true", help="with resets and lengths")
    parser.add_argument("--quick", action="store_true", help="one cell and size, nothing written")
    parser.add_argument("--output", type=Path, help=f"of the JSON (default {OUTPUT.name})")
    flags = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # whatever is here takes no part
    if reason := gpu.missing():
        parser.error(reason)
    console = measure.screen()
    sizes = [
        Size(cell, dtype, *size)
        for cell, dtype, size in (
            *itertools.product(flags.cells, flags.dtypes[:2], flags.size or SIZES),
            *itertools.product(flags.cells, flags.dtypes, flags.size or [USUAL]),
        )
    ]
    asked: list[tuple[str, Size, Callable[[], Program]]] = [
        ("layer", size, partial(layer, size, flags.masked)) for size in dict.fromkeys(sizes)
    ]
    if not flags.size:
        asked += [("layers at once", size, partial(at_once, size)) for size in AT_ONCE]
        asked += [("sampling", size, partial(sampler, size)) for size in SAMPLED]
    results = []
    for what, size, make in asked[:1] if flags.quick else asked:
        console.print(f"{what}: {', '.join(map(str, size))} ...")
        results.append(compiled(what, size, make))
    console.print(table(results))
    output = flags.output or (None if flags.quick else OUTPUT)
    if output:
        packages = ["jax-cuda13-plugin", "nvidia-cuda-nvcc"]
        record = measure.surroundings(packages) | {"compiled_for": "H100", "steps": STEPS}
        measure.write(record | {"results": results}, output)
        console.print(f"written to {output}")


if __name__ == "__main__":
    main()
