"""How training should scale over TPUs that are not here, and how it does scale over what is here.

    python benchmarks/scaling.py            # all slices, then measures here: an hour on two cores
    python benchmarks/scaling.py --quick    # a v5e, 1 and 4 chips: minutes; writes nothing
    python benchmarks/scaling.py --from FILE --markdown    # the tables of a file that it wrote

Predicted: the real step (`stepping.run_steps`, a character model of two LSTM layers in bfloat16, its
state as `mesh.shardings` places it) is compiled ahead of time for every slice. From the compiled program
come the operations, bytes and exchanges of each chip, and for its kernels the bundles of a step of time
(`tpu_static`); from these the step's time by the model in `scaling_model.py`. Once with the same rows on
each chip whatever their number, once with the same rows in all. None of it ran on a TPU.

Measured: the same step on 1 and 2 devices of this CPU, a core each, in turns, and as a control two
processes of one device that have nothing to tell each other; where there are several accelerators, on 1,
2, 4 ... of them.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.ahead_of_time import compiler
import jax
import jax.numpy as jnp
from benchmarks import measure
from benchmarks.scaling import model as model
from benchmarks.scaling import report
from benchmarks.ahead_of_time import tpu
from benchmarks.ahead_of_time import traffic
from rich.console import Console
from benchmarks.scaling.worker import Worker

import jaxrnn
from jaxrnn import charlm
from jaxrnn.devices import mesh
from jaxrnn.recurrence.kernels.tpu.tiles import tiles_for
from jaxrnn.training import stepping
from jaxrnn.training.config import TrainingConfig

VOCABULARY = jaxrnn.Vocabulary.of("".join(map(chr, range(32, 97))))  # 65, as Tiny Shakespeare
LAYERS, STEPS, ROWS, TOTAL = 2, 100, 64, 1024  # STEPS of time; ROWS of a chip, or TOTAL of all
TEXT, CALL = 1_000_000, 10  # characters on each device; steps of training in one call
OUTPUT = measure.RESULTS / "scaling.json"


class Case(NamedTuple):
    """A program to compile.

    shape: chips along each axis of the slice. parts: devices that a layer's units are divided over.
    rows: of a step, on all chips together. fixed: what stays the same among its like, "chip" or "total".
    """

    chip: str
    shape: str
    hidden: int
    parts: int
    rows: int
    fixed: str

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(map(int, self.shape.split("x")))

    @property
    def chips(self) -> int:
        return math.prod(self.sizes)


SLICES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "8x8", "16x16"),
    "v5p": ("1x1x1", "2x2x1", "2x2x4", "4x4x4"),
    "tpu7x": ("1x1x1", "2x2x1", "2x2x4", "4x4x4"),
}
WIDE, PARTS = 2048, 4  # units of the wide model, and devices that they are divided over
MEASURED = 256  # units of what is measured


def cases(quick: bool) -> list[Case]:
    """All of them, those of one chip first among their like."""

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


def configured(hidden: int, rows: int, dtype: Any = "bfloat16") -> TrainingConfig:
    """The model and its training."""
    shape = charlm.ModelConfig(
        "lstm", layers=LAYERS, hidden_size=hidden, embedding_size=64, dtype=dtype
    )
    return TrainingConfig(shape, batch=rows, seq_len=STEPS, steps=1000, log_every=CALL)


def compiled(case: Case) -> tuple[compiler.Program, mesh.Mesh]:
    """The step of a case, and the mesh that it is compiled for."""
    cores = compiler.devices(case.chip, case.shape)
    sizes = {"data": len(cores) // case.parts, "model": case.parts}
    devices = mesh.make(sizes, cores)
    config = configured(case.hidden, case.rows)
    optimizer = stepping.make_optimizer(config, 1000)
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
    """One training step of one device, and the compiler's estimate of cycles outside of the recurrence.

    bundles: of a step of time in all kernels; None where there are none, for the cycles of XLA's loops.
    """
    step = program.loops[0].operations  # the outer loop turns once a training step
    over_time = [loop for loop in program.loops if loop.trips == STEPS]
    inside, outside = [], []
    for operation in step:
        loop = operation.kind == "while" and compiler.trips(program.computations, operation) == STEPS
        (inside if operation.is_kernel or loop else outside).append(operation)
    cycles = bundles if bundles is not None else sum(loop.cycles for loop in over_time)

    def both(operations: list[compiler.Operation]) -> tuple[int, int]:
        flops = compiler.flops(program.computations, operations)
        return flops, traffic.hbm_bytes(program.computations, operations)

    rest = sum(operation.cycles or 0 for operation in outside)
    return model.Work(*both(inside), STEPS * cycles, *both(outside)), rest


def bundles(case: Case) -> float | None:
    """Of one step of time: all layers, both passes. None where no kernel runs the recurrence, or its
    bundles cannot be read; then its operations and bytes alone bound it.

    On a chip whose two cores are one device, the kernel's blocks of rows are divided over both.
    """
    if case.parts > 1:
        return None
    cores = compiler.devices(case.chip, case.shape)
    rows = case.rows // len(cores)
    try:
        counted = tpu.bundles(case.chip, case.hidden, rows)
    except ValueError:  # each chip's compiler writes its own form
        return None
    with jax.default_device(cores[0]):
        tiles = tiles_for(jaxrnn.lstm(case.hidden), tpu.STEPS, rows, jnp.bfloat16)
    assert tiles is not None
    blocks = -(-rows // tiles.rows)
    at_once = 2 if case.chip == "v5p" else 1
    return LAYERS * sum(counted.values()) * -(-blocks // at_once) / blocks


def predicted(case: Case, known: dict[Any, float | None]) -> dict[str, Any]:
    """What the compiled program says, and the time that follows. known: bundles by chip and size."""
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


# --- measured -----------------------------------------------------------------------------------


def measured(hidden: int, repeats: int, say: Any) -> list[dict[str, Any]]:
    """Seconds of a step on 1, 2 ... devices of what is here, ROWS rows on each, in turns."""
    done = [on_cores(hidden, repeats, say)] if hasattr(os, "sched_setaffinity") else []
    code = "import jax, json; print(json.dumps([jax.default_backend(), jax.device_count()]))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    backend, count = json.loads(there.stdout or '["cpu", 1]')
    if backend != "cpu" and count > 1:
        counts = [n for n in (1, 2, 4, 8, 16) if n <= count]
        say(f"measuring on {counts} devices ...")
        worker = Worker(counts, hidden, ROWS)
        runs = {f"{n} devices": [(worker, n)] for n in counts}
        done.append({"device": worker.kinds[0]} | in_turns(runs, hidden, repeats))
    return done


def on_cores(hidden: int, repeats: int, say: Any) -> dict[str, Any]:
    """Of this CPU: one device on one core, two on two, and two processes of one device each."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    say(f"measuring on cores {cores} ...")
    one = Worker([1], hidden, ROWS, cores[:1])
    runs = {"1 device": [(one, 1)]}
    if len(cores) > 1:
        other, both = Worker([1], hidden, ROWS, cores[1:]), Worker([2], hidden, ROWS, cores)
        runs |= {"2 processes": [(one, 1), (other, 1)], "2 devices": [(both, 2)]}
    return {"device": "cpu", "load": os.getloadavg()[0]} | in_turns(runs, hidden, repeats)


def in_turns(
    runs: dict[str, list[tuple[Worker, int]]], hidden: int, repeats: int
) -> dict[str, Any]:
    """Every contender once in each round, another first in each; ends the workers.

    A contender of several workers is as slow as the slowest of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(repeats):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            time.sleep(measure.PAUSE)
            for worker, count in runs[name]:
                worker.begin(count)
            seconds[name].append(max(worker.end() for worker, _ in runs[name]))
    for worker in {id(w): w for pairs in runs.values() for w, _ in pairs}.values():
        worker.stop()
    return {"hidden": hidden, "rows": ROWS, "seconds": seconds}


def main() -> None:
    flags = _flags()
    console = measure.screen(stderr=flags.markdown)
    record = measure.read(flags.source) if flags.source else _run(flags, console)
    if flags.markdown:
        print(report.markdown(record))
    else:
        report.show(record, console)


def _run(flags: Any, console: Console) -> dict[str, Any]:
    jax.config.update("jax_platforms", "cpu")  # of this process; what is here runs in others
    output = flags.output or (None if flags.quick else OUTPUT)
    record: dict[str, Any] = {"benchmark": "scaling"} | measure.surroundings(["libtpu", "flax"])
    record |= {
        "layers": LAYERS,
        "steps": STEPS,
        "chips": {},
        "predicted": [],
        "measured": [],
        "left_out": [],
    }
    record["hop"], record["collective"] = model.HOP, model.COLLECTIVE
    record["chips"] = {name: c._asdict() | {"clock": c.clock} for name, c in model.CHIPS.items()}
    if not flags.quick:
        record["measured"] = measured(MEASURED, flags.repeats, console.print)
    known: dict[Any, float | None] = {}
    for case in cases(flags.quick):
        same = [
            row
            for row in record["predicted"]
            if case == Case(**{name: row[name] for name in Case._fields})._replace(fixed=case.fixed)
        ]
        console.print(f"{case.chip} {case.shape}, H = {case.hidden}, {case.rows} rows ...")
        try:
            row = same[0] | {"fixed": case.fixed} if same else predicted(case, known)
        except Exception as failure:  # of the compiler, or a text in a form not known here
            record["left_out"].append(case._asdict() | {"why": measure.one_line(failure)})
            console.print(f"left out: {measure.one_line(failure)}", markup=False)
            continue
        record["predicted"].append(row)
        if output:
            measure.write(record, output)
    if output:
        console.print(f"written to {output}")
    return record


def _flags() -> Any:
    parser = measure.Parser(description="how training scales over chips")
    say = parser.add_argument
    say("--quick", action="store_true", help="a v5e, 1 and 4 chips, nothing measured or written")
    say("--repeats", type=measure.positive, default=7, help="turns of each that is measured (7)")
    say("--output", type=Path, metavar="FILE", help=f"of the JSON ({OUTPUT.name})")
    say("--from", dest="source", type=Path, metavar="FILE", help="report this, compile nothing")
    say("--markdown", action="store_true", help="print the tables as Markdown")
    flags = parser.parse_args()
    if not flags.source and (reason := compiler.missing()):
        parser.error(reason)
    return flags


if __name__ == "__main__":
    main()
