"""Ahead-of-time compilation for TPUs that are not present, and the facts to be read off the result.

libtpu contains the real compiler, which needs no chip: `devices("v5e")` describes some chips, `compile`
  traces and compiles a function for them, and `Program` holds the memory that it will take and the
  compiled text. Nothing here runs on a TPU, and no number here is a time.

    program = compile(devices("v5e")[0], jax.jit(f), jax.ShapeDtypeStruct((8, 128), jnp.bfloat16))
    program.temporary, program.flops, [loop.trips for loop in program.loops]

The text is XLA's, after its last pass: computations of scheduled operations. In it `while` is a loop,
whose body is one computation and whose trip count is the constant that its condition compares with. The
layout of each array ends in the memory that it lies in: `S(1)` is the core's VMEM, no `S` is HBM.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

# The smallest available topology of each kind of chip.
CHIPS = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}

_ENVIRONMENT = {
    # libtpu needs some type only to look for a real chip.
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    # Otherwise libtpu asks the network which host this is.
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    # Otherwise a second process dies on libtpu's lock file.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def missing() -> str | None:
    """Return why nothing can be compiled for TPUs here, and what to install; None if it can."""
    if importlib.util.find_spec("libtpu") is None:
        return 'libtpu is missing: pip install "jaxrnn[tpu-aot]"'
    return None


# Cached because a second call makes other devices, which JAX takes for another machine's.
@functools.cache
def _described(named: str, **how: Any) -> list[jax.Device]:
    return list(topologies.get_topology_desc(named, platform="tpu", **how).devices)


def devices(chip: str, shape: str | None = None) -> list[jax.Device]:
    """Return the devices of a slice of this kind of chip, without any chip being present.

    Args:
      chip: a name in CHIPS.
      shape: chips along each axis of the slice, as in "4x4" or "2x2x4"; None for the smallest slice.

    Returns:
      one device for each chip; for a tpu7x two, its cores.

    Raises:
      ValueError: for a name that is not in CHIPS.
      RuntimeError: if libtpu is missing or does not know the slice.
    """
    if chip not in CHIPS:
        raise ValueError(f"chip must be one of {', '.join(CHIPS)}, not {chip!r}")
    for name, value in _ENVIRONMENT.items():
        # libtpu reads these once, when it is loaded.
        os.environ.setdefault(name, value)
    host: dict[str, Any] = {}
    if shape and set(shape.split("x")) == {"1"}:
        # Otherwise a host has four chips.
        host = {"chips_per_host_bounds": (1, 1, 1)}
    named = f"{chip}:{shape}" if shape else CHIPS[chip]
    return list(_described(named, **host))


class Buffer(NamedTuple):
    """An array in the compiled text, such as `bf16[512,2048]`, and whether it lies in HBM."""

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Operation(NamedTuple):
    """A line of the compiled text.

    name: the name of its result.
    kind: XLA's name of the operation: "fusion", "copy-start", "custom-call", "all-reduce" ...
    results: arrays that it makes, more than one for a tuple.
    operands: arrays that it reads.
    rest: all text after the kind: operands by name, attributes, the compiler's notes.
    given: names of the operands.
    """

    name: str
    kind: str
    results: list[Buffer]
    operands: list[Buffer]
    rest: str
    given: list[str]

    @property
    def cycles(self) -> int | None:
        """Cycles by the compiler's estimate; None for a kernel."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else None

    @property
    def is_kernel(self) -> bool:
        return 'custom_call_target="tpu_custom_call"' in self.rest


class Loop(NamedTuple):
    """A loop of the compiled program.

    trips: number of iterations; None if it is known only at run time.
    operations: operations of one iteration, without those of inner loops.
    """

    trips: int | None
    operations: list[Operation]

    def fetches(self, sizes: set[int]) -> list[Operation]:
        """Return the operations that read an array of one of these sizes (in elements) from HBM."""
        return [
            operation
            for operation in self.operations
            if operation.kind not in _NO_READ
            # The "-start" of a pair has read already.
            and not operation.kind.endswith("-done")
            and any(a.in_hbm and a.size in sizes for a in operation.operands)
        ]

    @property
    def cycles(self) -> int:
        """Cycles of one iteration by the compiler's estimate: the sum over operations that have one."""
        return sum(operation.cycles or 0 for operation in self.operations)


_NO_READ = {"get-tuple-element", "tuple", "bitcast", "parameter", "while"}


class Program:
    """A compiled program.

    seconds: CPU time that tracing, lowering and compiling took.
    text: the compiled program as text.
    computations: lists of operations, by the names under which operations call them.
    arguments: bytes on the device for the inputs.
    temporary: bytes on the device besides inputs and outputs.
    memory: bytes on the device for inputs, outputs and temporary arrays; outputs may reuse inputs.
    loops: all loops, outer loops before inner ones.
    operations: the operations outside of every loop.
    flops: floating-point operations of matrix products and kernels, each counted as often as it runs;
      an inner loop whose trip count is known only at run time counts once.
    """

    def __init__(self, compiled: Any, seconds: float) -> None:
        self.seconds, self.text = seconds, compiled.as_text()
        memory = compiled.memory_analysis()
        self.arguments, self.temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        self.memory = self.arguments + self.temporary + outputs
        entry, self.computations = parse(self.text)
        self.operations = self.computations[entry]
        self.loops = list(_loops(self.computations, entry))
        self.flops = flops(self.computations, self.operations)

    def every(self, kind: str) -> list[Operation]:
        """Return the operations of this kind outside of loops."""
        return [operation for operation in self.operations if operation.kind == kind]

    @property
    def kernels(self) -> list[Operation]:
        """The Pallas kernels outside of loops."""
        return [operation for operation in self.operations if operation.is_kernel]


def compile(device: jax.Device, function: Any, *args: Any, **kwargs: Any) -> Program:
    """Compile a jitted function for one device.

    Args:
      device: one of `devices`.
      function: the result of `jax.jit`.
      args, kwargs: its arguments; arrays may be `jax.ShapeDtypeStruct`s.
    """
    placed, named = placed_on(SingleDeviceSharding(device), (args, kwargs))
    return compile_placed(device, function, *placed, **named)


def compile_sharded(
    cores: list[jax.Device], function: Any, specs: tuple[Any, ...], *args: Any
) -> Program:
    """Compile a function of (mesh, *args) for several devices along one mesh axis, `data`.

    Args:
      cores: the devices.
      function: takes a mesh and `args`.
      specs: the `PartitionSpec` of the arrays of each argument.
      args: the arguments; arrays may be `jax.ShapeDtypeStruct`s.
    """
    mesh = Mesh(np.array(cores), ("data",))
    placed = [placed_on(NamedSharding(mesh, s), a) for s, a in zip(specs, args, strict=True)]
    return compile_placed(cores[0], jax.jit(lambda *args: function(mesh, *args)), *placed)


def placed_on(sharding: Any, tree: Any) -> Any:
    """Replace every array of a tree by a placed `jax.ShapeDtypeStruct`."""

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree)


def compile_placed(device: jax.Device, function: Any, *args: Any, **kwargs: Any) -> Program:
    """Compile a jitted function for the devices that its arguments lie on, which include `device`."""
    begin = time.process_time()
    # Traced code can ask on which device it will run.
    with jax.default_device(device):
        compiled = function.lower(*args, **kwargs).compile()
    return Program(compiled, time.process_time() - begin)


# --- the compiled text --------------------------------------------------------------------------


def parse(text: str) -> tuple[str, dict[str, list[Operation]]]:
    """Return the name of the program's entry computation, and the operations of all by name."""
    entry, computations = "", {}
    operations: list[Operation] = []
    buffers: dict[str, list[Buffer]] = {}
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
            operations, buffers = [], {}
            computations[header[2]] = operations
            entry = header[2] if header[1] else entry
        elif found := re.match(r"  (?:ROOT )?%([\w.\-]+) = (.*)", line):
            results, rest = _split(found[2])
            kind, _, rest = rest.partition("(")
            operands, _ = _split("(" + rest)
            buffers[found[1]] = [_buffer(a) for a in re.findall(_BUFFER, results)]
            given = re.findall(r"%([\w.\-]+)", operands)
            arrays = [a for name in given for a in buffers[name]]
            operations.append(
                Operation(found[1], kind.strip(), buffers[found[1]], arrays, rest, given)
            )
    if not entry:
        raise ValueError("the compiled text has no entry computation")
    return entry, computations


# For example bf16[512,2048]{1,0:T(8,128)S(1)}
_BUFFER = r"\b[a-z]+\d*(?:e\d\w+)?\[[\d,]*\](?:\{[^}]*\})?"


def _buffer(text: str) -> Buffer:
    dtype, _, rest = text.partition("[")
    shape, _, layout = rest.partition("]")
    return Buffer(dtype, tuple(map(int, shape.split(",") if shape else ())), "S(" not in layout)


def _split(text: str) -> tuple[str, str]:
    """Split a line at the first space or comma outside of parentheses."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "({[") - (letter in ")}]")
        if depth == 0 and letter in " ,":
            return text[:place], text[place + 1 :]
    return text, ""


def attribute(operation: Operation, name: str) -> str | None:
    """Return the computation that an operation names in an attribute such as "body" or "calls"."""
    found = re.search(rf"\b{name}=%([\w.\-]+)", operation.rest)
    return found[1] if found else None


def trips(computations: dict[str, list[Operation]], loop: Operation) -> int | None:
    """Return the constant up to which a loop counts from 0; None if there is no such constant."""
    condition = attribute(loop, "condition")
    assert condition is not None
    root = computations[condition][-1]
    constants = [o for o in computations[condition] if o.kind == "constant"]
    if root.kind != "compare" or "direction=LT" not in root.rest or len(constants) != 1:
        return None
    value = re.match(r"\d+", constants[0].rest)
    return int(value[0]) if value else None


def _loops(computations: dict[str, list[Operation]], name: str) -> Any:
    for operation in computations[name]:
        if operation.kind == "while":
            body = attribute(operation, "body")
            assert body is not None
            yield Loop(trips(computations, operation), computations[body])
            yield from _loops(computations, body)


def flops(computations: dict[str, list[Operation]], operations: list[Operation]) -> int:
    """Return the floating-point operations of products and kernels here and in called computations."""
    total = 0
    for operation in operations:
        if operation.kind == "convolution":
            # Every entry of the result is a sum over all axes of the kernel except its output's.
            order = re.search(r"dim_labels=\w+_(\w+)->", operation.rest)
            assert order is not None
            kernel = operation.operands[1]
            summed = kernel.size // kernel.shape[order[1].index("o")]
            total += 2 * operation.results[0].size * summed
        elif operation.is_kernel:
            total += estimate(operation, "flops") or 0
        elif operation.kind == "while":
            body = attribute(operation, "body")
            assert body is not None
            total += (trips(computations, operation) or 1) * flops(computations, computations[body])
        elif inner := attribute(operation, "calls"):
            total += flops(computations, computations[inner])
    return total


def estimate(kernel: Operation, what: str) -> int | None:
    """Return a number of the kernel's `pl.CostEstimate`; None if it has none."""
    cost = re.search(r'"cost_estimate":(\{[^}]*\})', kernel.rest)
    return int(json.loads(cost[1])[what]) if cost else None
