"""The unroll, the training step and the sampling loop compile for TPUs that are not there.

libtpu's compiler is the real one. What it made is read from its own text (`benchmarks/ahead_of_time`):
matrix products, memory, loops, and which arrays a loop reads from HBM. None of this ran on a TPU.
"""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxrnn
from benchmarks.ahead_of_time import compiler as aot
from jaxrnn import charlm
from jaxrnn.charlm import decoding
from jaxrnn.devices import mesh
from jaxrnn.recurrence.api import unroll_projected
from jaxrnn.training import optimizers, stepping
from jaxrnn.training.config import TrainingConfig

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(aot.missing() is not None, reason=str(aot.missing())),
]

COMPILE_SECONDS = 90  # of CPU time, for each program; seen: 1 to 44, on a slow core
SIZES = (256, 512, 1024, 2048)
T, B, D = 100, 160, 64
# B has the factor 5 and no weight does: by its size alone no array of rows passes for a weight
BYTES = {"float32": 4, "bfloat16": 2}
VOCABULARY = jaxrnn.Vocabulary.of("".join(map(chr, range(32, 97))))

every_chip = pytest.mark.parametrize("chip", aot.CHIPS)
every_size = pytest.mark.parametrize("hidden", SIZES)


def abstract(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def weight_sizes(hidden: int) -> set[int]:
    """Elements of w_h or of some of its gates."""
    return {gates * hidden * hidden for gates in (1, 2, 3, 4)}


def fetches(program: aot.Program, hidden: int) -> list[str]:
    """Return the operations that read a recurrent weight from HBM once per time step."""
    loops = [loop for loop in program.loops if loop.trips == T]
    return [o.name for loop in loops for o in loop.fetches(weight_sizes(hidden))]


def compiled(chip: str, function: Any, *args: Any, **kwargs: Any) -> aot.Program:
    """The program, made within COMPILE_SECONDS."""
    program = aot.compile(aot.devices(chip)[0], function, *args, **kwargs)
    assert program.seconds < COMPILE_SECONDS
    return program


# --- unroll, forward and backward ---------------------------------------------------------------


def mean_square(cell: Any, implementation: Any, params: Any, xs: Any) -> Any:
    _, ys = jaxrnn.unroll(cell, params, xs, implementation=implementation)
    return jnp.mean(jnp.square(ys.astype(jnp.float32)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradient(cell: Any, implementation: Any, params: Any, xs: Any) -> Any:
    return jax.value_and_grad(mean_square, argnums=2)(cell, implementation, params, xs)


def unroll_arguments(cell: Any, dtype: str = "bfloat16") -> tuple[Any, Any]:
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), D, jnp.dtype(dtype)))
    return params, abstract((T, B, D), dtype)


def most_memory(cell: Any, dtype: str = "bfloat16", arrays: int = 5) -> int:
    """Bytes beside inputs and outputs: per step and row the gates' inputs and their gradients, some
    arrays of H (five are outputs and their gradients, hidden and cell before the step, one for the
    way) and twelve more for the peepholes' gradients, in float32; w_h^T and dw_h before rounding.
    """
    width, hidden = len(cell.GATES) * cell.hidden_size, cell.hidden_size
    rows = 2 * width + (arrays + 12 * getattr(cell, "peephole", False)) * hidden
    return 4 * T * B * rows + (4 + BYTES[dtype]) * hidden * width


def flops_of_unroll(cell: Any) -> int:
    """Three products with w_h a step (forward, dh, dw_h) and two with w_x (forward, dw_x)."""
    return 2 * T * B * (3 * cell.hidden_size + 2 * D) * len(cell.GATES) * cell.hidden_size


def check_kernels(program: aot.Program, cell: Any, memory: int | None = None) -> None:
    """One kernel forward, one backward, no loop over time around them; memory and operations."""
    assert [loop.trips for loop in program.loops] == []
    assert len(program.kernels) == 2
    assert 1.0 <= program.flops / flops_of_unroll(cell) < 1.01
    assert program.temporary <= (memory or most_memory(cell))


@every_size
@every_chip
def test_unroll_forward_and_backward(chip: str, hidden: int) -> None:
    cell = jaxrnn.lstm(hidden)
    check_kernels(compiled(chip, value_and_gradient, cell, None, *unroll_arguments(cell)), cell)


def every_cell(hidden: int) -> list[Any]:
    """But for the plain LSTM."""
    return [
        jaxrnn.lstm(hidden, peephole=True),
        jaxrnn.gru(hidden, reset="before"),
        jaxrnn.gru(hidden, reset="after"),
        jaxrnn.rnn(hidden),
    ]


@pytest.mark.parametrize("cell", every_cell(512), ids=repr)
@every_chip
def test_unroll_of_every_cell(chip: str, cell: Any) -> None:
    check_kernels(compiled(chip, value_and_gradient, cell, None, *unroll_arguments(cell)), cell)


TOO_LARGE = [("v4", jaxrnn.lstm(2048))]
TOO_LARGE += [("v4", cell) for cell in every_cell(4096)]
TOO_LARGE += [(chip, jaxrnn.lstm(4096)) for chip in aot.CHIPS if chip != "v4"]
too_large = pytest.mark.parametrize(("chip", "cell"), TOO_LARGE, ids=str)


@too_large
def test_unroll_with_weights_larger_than_vmem(chip: str, cell: Any) -> None:
    """Streamed, both ways."""
    program = compiled(chip, value_and_gradient, cell, None, *unroll_arguments(cell))
    check_kernels(program, cell)
    assert all("streamed" in kernel.name for kernel in program.kernels)


@pytest.mark.parametrize(("chip", "hidden"), [("v4", 512), ("v4", 1024), ("v5e", 512)])
def test_unroll_in_float32(chip: str, hidden: int) -> None:
    """Streamed on v4 at H = 1024."""
    cell = jaxrnn.lstm(hidden)
    args = unroll_arguments(cell, "float32")
    program = compiled(chip, value_and_gradient, cell, "tpu", *args)
    check_kernels(program, cell, memory=most_memory(cell, "float32", arrays=10))


def fetches_of_kernels(chip: str, cell: Any) -> tuple[list[float], list[int]]:
    """Return how often each kernel copies all of w_h, and into how many blocks it divides the rows.

    Pallas copies a block whenever its place in the array is another than in the turn before.
    """
    with jax.default_device(aot.devices(chip)[0]):
        traced = value_and_gradient.trace(cell, "tpu", *unroll_arguments(cell))
    times, blocks_of_rows = [], []
    for call in pallas_calls(traced.jaxpr.jaxpr):
        mapping = call.params["grid_mapping"]
        turns = jnp.indices(mapping.grid, jnp.int32).reshape(len(mapping.grid), -1)
        copied = 0
        for window, operand in zip(mapping.block_mappings, call.invars, strict=False):
            if operand.aval.size == len(cell.GATES) * cell.hidden_size**2:
                place = jax.vmap(jax.extend.core.jaxpr_as_fun(window.index_map_jaxpr))(*turns)
                moves = np.diff(np.stack(place), axis=1).any(axis=0).sum()
                copied += (1 + moves) * math.prod(window.ref_aval.shape)
        times.append(copied / (len(cell.GATES) * cell.hidden_size**2))
        blocks_of_rows.append(mapping.grid[0])
    return times, blocks_of_rows


def pallas_calls(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
            continue
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from pallas_calls(inner)


@every_size
@every_chip
def test_a_kernel_fetches_its_weights_once(chip: str, hidden: int) -> None:
    if (chip, hidden) != ("v4", 2048):  # where they are larger than the core's memory
        times, _ = fetches_of_kernels(chip, jaxrnn.lstm(hidden))
        assert times == [1, 1]


@too_large
def test_weights_larger_than_vmem_are_fetched_once_a_step(chip: str, cell: Any) -> None:
    """Each block of rows runs through time separately, and reads the weights once per step."""
    times, blocks_of_rows = fetches_of_kernels(chip, cell)
    assert times == [T * blocks for blocks in blocks_of_rows]


@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_a_weight_fetched_at_every_step_is_seen(chip: str) -> None:
    """The plain scan does it where w_h is the program's argument; the check must not miss it."""
    cell = jaxrnn.lstm(1024)
    params, _ = unroll_arguments(cell)

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation: Any, params: Any, gx: Any) -> Any:
        return unroll_projected(cell, params, gx, implementation=implementation)[1]

    gx = abstract((T, B, 4 * cell.hidden_size), jnp.float32)
    assert len(fetches(compiled(chip, run, "scan", params, gx), cell.hidden_size)) == 1
    assert fetches(compiled(chip, run, "tpu", params, gx), cell.hidden_size) == []


def test_what_autodiff_of_the_scan_saves_is_over_the_limit() -> None:
    cell = jaxrnn.lstm(512)
    program = compiled("v5p", value_and_gradient, cell, "scan", *unroll_arguments(cell))
    assert program.temporary > 1.2 * most_memory(cell)


def test_static_bounds(tmp_path: Path) -> None:
    """`benchmarks/ahead_of_time/tpu.py` still reads the compiler's bundles, of either kernel."""
    sizes = ("256", "2048")
    command = ["--chips", "v4", "--hidden-size", *sizes, "--batch", "16", "--output"]
    program = [sys.executable, "-m", "benchmarks.ahead_of_time", "--target", "tpu"]
    root = Path(aot.__file__).parents[2]
    subprocess.run([*program, *command, tmp_path / "made.json"], cwd=root, check=True)
    resident, streamed = json.loads((tmp_path / "made.json").read_text())["results"]
    assert [r["tiles"]["streamed"] for r in (resident, streamed)] == [False, True]
    for kind in ("forward", "backward"):  # 64 times the weights
        assert 100 < 10 * resident["bundles"][kind] < streamed["bundles"][kind]


# --- the char-RNN -------------------------------------------------------------------------------


def model(hidden: int) -> charlm.ModelConfig:
    return charlm.ModelConfig("lstm", hidden_size=hidden, embedding_size=D, dtype="bfloat16")


@pytest.mark.parametrize("hidden", [SIZES[0], SIZES[-1]])  # each costs seconds to compile
@every_chip
def test_training_step(chip: str, hidden: int) -> None:
    config = TrainingConfig(model(hidden), batch=B, seq_len=T, steps=1000)
    optimizer = optimizers.make_optimizer(config, 1000)
    state = jax.eval_shape(lambda: stepping.create(config, optimizer, VOCABULARY))
    text, starts = abstract((1_000_000,), jnp.uint8), abstract((10, B), jnp.int32)
    fresh, count = abstract((10,), jnp.bool_), abstract((), jnp.int32)
    on_chip = mesh.make(devices=aot.devices(chip)[:1])
    with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in integers
        program = compiled(
            chip, stepping.run_steps, config, optimizer, on_chip, state, text, starts, fresh, count
        )
    over_time = [loop for loop in program.loops if loop.trips == T]
    over_steps = program.loops[0]
    assert over_steps.trips is None  # `count` is an argument
    kernels = [operation for operation in over_steps.operations if operation.is_kernel]
    assert over_time == [] and len(kernels) == 2
    size, width = len(VOCABULARY), 4 * hidden
    rows = 2 * T * B * (3 * hidden * width + 3 * hidden * size + size * width)
    table = 2 * size * D * 3 * width
    assert 1.0 <= program.flops / (rows + table) < 1.05
    # the limit of the unroll, three logits' worth for the loss, and the gradient in float32
    logits, gradient = 3 * 4 * T * B * size, 4 * charlm.count(state.params)
    assert program.temporary <= most_memory(jaxrnn.lstm(hidden)) + logits + gradient


def sampling_loop(chip: str, hidden: int, rows: int) -> aot.Program:
    config, size = model(hidden), len(VOCABULARY)
    scalar = functools.partial(abstract, ())
    params = jax.eval_shape(lambda: charlm.init(config, VOCABULARY))
    prepared = jax.eval_shape(charlm.step_params, params)
    state = jax.eval_shape(lambda: decoding.initial_state(config, size, rows, jnp.uint32(0)))
    settings = decoding.TracedOptions(
        scalar(jnp.float32), scalar(jnp.int32), scalar(jnp.float32), abstract((size,), jnp.bool_)
    )
    prime, length = abstract((16,), jnp.int32), scalar(jnp.int32)
    return compiled(
        chip,
        decoding.advance,
        *(config, prepared, state, prime, length, length, settings),
        mode="categorical",
        truncate=False,
        size=512,
    )


def fetched_per_character(program: aot.Program, hidden: int) -> list[str]:
    return [o.name for loop in program.loops for o in loop.fetches(weight_sizes(hidden))]


@every_size
@every_chip
def test_sampling_loop(chip: str, hidden: int) -> None:
    rows, size = 8, len(VOCABULARY)
    program = sampling_loop(chip, hidden, rows)
    assert program.flops >= 2 * rows * hidden * (4 * hidden + size)  # of one character
    # beside the arguments: one copy of w_h and of w_out, and little else
    assert program.temporary <= 2 * hidden * (4 * hidden + size) + (4 << 20)
    if (chip, hidden) == ("tpu7x", 2048):  # 32 MiB of 64: not every libtpu keeps it on the chip
        assert len(fetched_per_character(program, hidden)) <= 1
    else:
        assert fetched_per_character(program, hidden) == []


@every_chip
def test_sampling_one_text(chip: str) -> None:
    """A product with one row goes another way than one with several, as it compiles."""
    assert fetched_per_character(sampling_loop(chip, 512, rows=1), 512) == []


# --- sharded over the batch ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chip", "hidden", "cores"), [("v5e", 512, 1), ("v5e", 512, 4), ("v4", 2048, 4)]
)
def test_sharded_over_rows(chip: str, hidden: int, cores: int) -> None:
    """Kernels inside `shard_map`: the weights' gradient is summed once, nothing at a step."""
    cell = jaxrnn.lstm(hidden)
    params, xs = unroll_arguments(cell)

    def step(mesh: Any, params: Any, xs: Any) -> Any:
        def loss(params: Any, xs: Any) -> Any:
            return jax.lax.pmean(mean_square(cell, "tpu", params, xs), "data")

        local = jax.shard_map(loss, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P())
        return jax.value_and_grad(local)(params, xs)

    program = aot.compile_sharded(
        aot.devices(chip)[:cores], step, (P(), P(None, "data")), params, xs
    )
    assert len(program.kernels) == 2 and program.loops == []
    sent = [a.size for o in program.every("all-reduce") for a in o.operands]
    scalar = 1  # the loss
    if cores == 1:
        assert sum(sent) <= scalar
    else:
        weights = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert weights <= sum(sent) <= weights + scalar
    assert program.flops == pytest.approx(flops_of_unroll(cell) / cores, rel=0.01)
