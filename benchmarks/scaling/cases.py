"""The training step on slices of TPUs: the cases to compile, and the time predicted for each.

The real step (`stepping.run_steps`, a character model of two LSTM layers in bfloat16, its state placed
as `mesh.shardings` says) is compiled ahead of time for every slice. The compiled program has the
operations, bytes and exchanges of each chip, and the bundles of a step of time of its kernels
(`ahead_of_time.tpu`). `model.py` turns these into the time of a step.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn
from benchmarks.ahead_of_time import compiler, tpu, traffic
from benchmarks.problems import VOCABULARY
from benchmarks.scaling import model
from benchmarks.scaling.training import LAYERS, ROWS, STEPS, configured
from jaxrnn.devices import mesh
from jaxrnn.recurrence.kernels.tpu.tiles import tiles_for
from jaxrnn.training import optimizers, stepping

# Rows of all chips together, where they stay the same.
TOTAL = 1024
# Characters on each device, and training steps in one device call.
TEXT = 1_000_000
CALL = 10


class Case(NamedTuple):
    """A program to compile.

    chip: kind of chip, a name in `model.CHIPS`.
    shape: chips along each axis of the slice.
    hidden: hidden size.
    parts: number of devices that a layer's units are divided over.
    rows: rows of a step, on all chips together.
    fixed: whether the rows of each chip ("chip") or of all chips ("total") stay the same.
    """

    chip: str
    shape: str
    hidden: int
    parts: int
    rows: int
    fixed: str

    @property
    def sizes(self) -> tuple[int, ...]:
        """Chips along each axis."""
        return tuple(map(int, self.shape.split("x")))

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.sizes)


# The shapes of the slices of each kind of chip.
SLICES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "8x8", "16x16"),
    "v5p": ("1x1x1", "2x2x1", "2x2x4", "4x4x4"),
    "tpu7x": ("1x1x1", "2x2x1", "2x2x4", "4x4x4"),
}
# Hidden size of the wide model, and the number of devices that its units are divided over.
WIDE = 2048
PARTS = 4


def cases(quick: bool) -> list[Case]:
    """Return all cases; in each group of similar ones the case of one chip comes first."""

    def fixed(chip: str, shapes: tuple[str, ...], hidden: int, parts: int) -> list[Case]:
        each = [Case(chip, shape, hidden, parts, 0, "chip") for shape in shapes]
        return [case._replace(rows=ROWS * case.chips) for case in each]

    if quick:
        return fixed("v5e", ("1x1", "2x2"), 512, 1)
    found = []
    for chip, shapes in SLICES.items():
        each_chip = fixed(chip, shapes, 512, 1)
        found += each_chip + [case._replace(rows=TOTAL, fixed="total") for case in each_chip]
    found += fixed("v5e", ("1x1", "2x2", "16x16"), WIDE, 1)
    return found + fixed("v5e", ("2x2", "4x4", "16x16"), WIDE, PARTS)


def compiled(case: Case) -> tuple[compiler.Program, mesh.Mesh]:
    """Compile the step of a case; return the program and its mesh."""
    cores = compiler.devices(case.chip, case.shape)
    sizes = {"data": len(cores) // case.parts, "model": case.parts}
    devices = mesh.make(sizes, cores)
    config = configured(case.hidden, case.rows)
    optimizer = optimizers.make_optimizer(config, 1000)
    state = mesh.abstract(devices, lambda: stepping.create(config, optimizer, VOCABULARY))
    here = mesh.replicated(devices)
    text = jax.ShapeDtypeStruct((TEXT,), jnp.uint8, sharding=here)
    windows = jax.ShapeDtypeStruct(
        (CALL, case.rows), jnp.int32, sharding=mesh.row_sharding(devices, 1)
    )
    fresh = jax.ShapeDtypeStruct((CALL,), jnp.bool_, sharding=here)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=here)
    args = config, optimizer, devices, state, text, windows, fresh, count
    return compiler.compile_placed(cores[0], stepping.run_steps, *args), devices


def work(program: compiler.Program, bundles: float | None) -> tuple[model.Work, int]:
    """Return one training step of one device, and XLA's estimate of cycles outside of the recurrence.

    bundles: bundles of a step of time in all kernels; None if there are no kernels, and the cycles of
      XLA's loops count.
    """
    # An iteration of the outer loop is a training step.
    step = program.loops[0].operations
    over_time = [loop for loop in program.loops if loop.trips == STEPS]
    inside, outside = [], []
    for operation in step:
        loop = (
            operation.kind == "while" and compiler.trips(program.computations, operation) == STEPS
        )
        (inside if operation.is_kernel or loop else outside).append(operation)
    cycles = bundles if bundles is not None else sum(loop.cycles for loop in over_time)

    def both(operations: list[compiler.Operation]) -> tuple[int, int]:
        flops = compiler.flops(program.computations, operations)
        return flops, traffic.hbm_bytes(program.computations, operations)

    rest = sum(operation.cycles or 0 for operation in outside)
    return model.Work(*both(inside), STEPS * cycles, *both(outside)), rest


def bundles(case: Case) -> float | None:
    """Return the bundles of one step of time in all layers and both passes.

    None if no kernel runs the recurrence, or if its bundles cannot be read; then only operations and
    bytes bound it. On a chip whose two cores are one device, the kernel's blocks of rows are divided
    over both.
    """
    if case.parts > 1:
        return None
    cores = compiler.devices(case.chip, case.shape)
    rows = case.rows // len(cores)
    try:
        counted = tpu.bundles(case.chip, case.hidden, rows)
    except ValueError:
        # The compiler of each chip writes its own form.
        return None
    with jax.default_device(cores[0]):
        tiles = tiles_for(jaxrnn.lstm(case.hidden), tpu.STEPS, rows, jnp.bfloat16)
    blocks = -(-rows // tiles.rows)
    at_once = 2 if case.chip == "v5p" else 1
    return LAYERS * sum(counted.values()) * -(-blocks // at_once) / blocks


def predicted(case: Case, known: dict[Any, float | None]) -> dict[str, Any]:
    """Compile a case and predict its time.

    known: bundles by chip and size, to which this case's bundles are added.
    """
    program, devices = compiled(case)
    chip, places = model.CHIPS[case.chip], list(devices.devices.flat)
    size = case.chip, case.hidden, case.rows // len(places), case.parts
    if size not in known:
        known[size] = bundles(case)
    done, rest = work(program, known[size])
    exchanges, sent = [], 0.0
    found = traffic.collectives(program.computations, program.loops[0].operations, len(places))
    for collective, count in found.items():
        group = [places[n].coords for n in collective.group]
        cores = len(group) // len(set(map(tuple, group)))
        where = model.span(chip, [tuple(c) for c in group], case.sizes, cores)
        exchanges += [model.exchange(chip, collective, where)] * count
        groups = chip.devices / where.share
        sent += count * collective.turns * groups * model.sent(collective, where)
    terms = model.predict(chip, done, exchanges)
    return case._asdict() | {
        "chips": case.chips,
        "mesh": dict(devices.shape),
        "seconds_to_compile": program.seconds,
        "bundles_per_step_of_time": known[size],
        "flops": chip.devices * (done.recurrent_flops + done.flops),
        "hbm_bytes": chip.devices * (done.recurrent_bytes + done.bytes),
        "memory": chip.devices * program.memory,
        "sent_bytes": sent,
        "collectives": traffic.as_rows(found),
        "of_a_device": done._asdict() | {"estimated_cycles_of_the_rest": rest},
        "terms": terms._asdict(),
        "step": terms.step,
        "floor": terms.floor,
        "limit": terms.limit,
    }
