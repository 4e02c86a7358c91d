"""The real training step, compiled for several TPUs that are not present.

Its exchanges between chips are read from the compiled text (`benchmarks/ahead_of_time/traffic.py`).
Nothing ran on a TPU.
"""

from __future__ import annotations

from collections import Counter

import jax
import pytest

from benchmarks.ahead_of_time import compiler, traffic
from benchmarks.ahead_of_time.traffic import Collective
from benchmarks.scaling import cases
from benchmarks.scaling.training import LAYERS, STEPS
from jaxrnn.devices import mesh

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(compiler.missing() is not None, reason=str(compiler.missing())),
]
HIDDEN, VOCABULARY = 256, 65
COMPILE_SECONDS = 90  # of CPU time; seen: 15 to 30


def exchanged(parts: int) -> tuple[compiler.Program, Counter[Collective]]:
    """The step for four v5e chips, and all of its collectives."""
    case = cases.Case("v5e", "2x2", HIDDEN, parts, 4 * 40, "chip")
    with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in integers
        program, _ = cases.compiled(case)
    assert program.seconds < COMPILE_SECONDS
    return program, traffic.collectives(program.computations, program.operations, 4)


def test_over_rows_gradients_are_summed_once_a_step_and_nothing_in_time() -> None:
    program, found = exchanged(parts=1)
    assert {(c.kind, c.group, c.turns) for c in found} == {("all-reduce", (0, 1, 2, 3), 1)}
    assert sum(found.values()) <= 3  # many arrays in one
    assert [loop.trips for loop in program.loops] == [None]  # time is in the kernels
    gates = 4 * HIDDEN
    small = HIDDEN * VOCABULARY + gates  # w_out and b, which the compiler may widen
    matrices = 3 * HIDDEN * gates + small  # w_h twice and w_x; in bfloat16
    table = VOCABULARY * gates + VOCABULARY + 1  # float32, as are b_out and the loss
    sent = sum(n * c.bytes for c, n in found.items())
    assert 2 * matrices + 4 * table <= sent <= 2 * matrices + 4 * table + 2 * small
    done, _ = cases.work(program, bundles=1.0)
    products = 2 * STEPS * 40 * HIDDEN * gates
    assert done.recurrent_flops == LAYERS * 2 * products
    assert 5 <= done.flops / products < 5.6  # w_x thrice, dw_h twice; w_out and the table are small
    assert done.recurrent_cycles == STEPS
    assert done.bytes > 0 and done.recurrent_bytes > 4 * 40 * STEPS * gates


def test_over_units_the_state_is_gathered_and_its_gradient_scattered_at_every_step() -> None:
    program, found = exchanged(parts=2)
    in_time = Counter({c: n for c, n in found.items() if c.turns > 1})
    rows = 2 * 40  # of a device
    assert in_time == Counter(
        {
            Collective("all-gather", 2 * rows * HIDDEN, (0, 1), STEPS): LAYERS,
            Collective("reduce-scatter", 4 * rows * HIDDEN, (0, 1), STEPS): LAYERS,
        }
    )
    over_rows = [c for c in found if c.group == (0, 2)]
    assert over_rows and {c.kind for c in over_rows} == {"all-reduce"}
    assert sum(n * c.bytes for c, n in found.items() if c in over_rows) < 4 * 1e6
    assert cases.work(program, bundles=None)[0].recurrent_cycles > 0


@pytest.mark.parametrize("chip, shape", [("v5p", "4x4x4"), ("tpu7x", "4x4x4"), ("v5e", "16x16")])
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_every_slice_makes_a_mesh(chip: str, shape: str, parts: int) -> None:
    """Also where an axis of the slice must serve both of the mesh."""
    devices = compiler.devices(chip, shape)
    made = mesh.make({"data": len(devices) // parts, "model": parts}, devices)
    assert set(made.devices.flat) == set(devices)
