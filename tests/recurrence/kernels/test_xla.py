"""The loops of "xla": conformance; several steps per iteration, as on GPUs, give the same results; and
facts about the program that is compiled for an H100 without one. Nothing here ran on a GPU."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.ahead_of_time import compiler as aot
from benchmarks.ahead_of_time import gpu as gpu_static
from jaxrnn import lstm, unroll
from jaxrnn.devices import accelerator
from jaxrnn.recurrence import problem as recurrence
from jaxrnn.recurrence.kernels import xla
from jaxrnn.recurrence.kernels.xla import GPU_UNROLL
from jaxrnn.recurrence.kernels.xla.layouts import Columns, Rows
from jaxrnn.recurrence.problem import Dense, Masks
from tests.support.conformance import Conformance, SecondDerivative
from tests.support.fakes import fake
from tests.support.oracle import TOLERANCES, assert_close
from tests.support.problems import CELLS, HIDDEN, Problem, library, problem

STEPS, BATCH = 5, 3
RESETS = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0]], bool)
LENGTHS = np.array([STEPS, 0, 3], np.int32)
ACTIVE = np.arange(STEPS)[:, None] < LENGTHS

gpu_aot = [
    pytest.mark.gpu_aot,
    pytest.mark.skipif(gpu_static.missing() is not None, reason=str(gpu_static.missing())),
]


# --- several steps a turn -----------------------------------------------------------------------


@partial(jax.jit, static_argnames=("cell", "layout", "reverse", "steps", "masked"))
def in_turns(
    cell: Any, given: Problem, layout: Any, reverse: bool, steps: int | None, masked: bool
) -> tuple[Any, Any]:
    """Return what `library` returns, by loops with `steps` steps per iteration."""

    def loss(params: Any, xs: Any, state: Any) -> Any:
        inputs = Dense(xs, params.w_x, params.b)
        masks = Masks(jnp.asarray(RESETS) & ACTIVE, jnp.asarray(ACTIVE)) if masked else Masks()
        whole = recurrence.Problem(cell, params, inputs, state, masks, reverse)
        results = xla.run(whole, layout, unroll=steps)
        pairs = zip(*map(jax.tree.leaves, (given.weights, results)), strict=True)
        return sum((w * r).sum() for w, r in pairs), results

    (_, results), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*given.inputs)
    return results, gradients


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "reverse"), [(2, False), (2, True), (8, False)])
@pytest.mark.parametrize("layout", [Rows, Columns])
@pytest.mark.parametrize("name", ["lstm-peephole", "gru-before", "gru-after"])
def test_turns_of_several_steps_are_the_plain_loop(
    name: str, layout: Any, steps: int, reverse: bool
) -> None:
    """Values and gradients in float64, where of 5 steps one is left over or a turn is never full."""
    with jax.enable_x64(True):
        given = problem(CELLS[name], STEPS, BATCH).cast("float64")
        masks = jnp.asarray(RESETS), jnp.asarray(LENGTHS)
        want = library(CELLS[name], given, *masks, reverse=reverse, implementation="scan")
        got = in_turns(CELLS[name], given, layout, reverse, steps, masked=True)
    assert_close(got, want, TOLERANCES["float64"])


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 8])
def test_turns_of_several_steps_in_bfloat16(steps: int) -> None:
    """dgx is stored as bits in one case and as scan's own output in the other."""
    given = problem(CELLS["lstm"], STEPS, BATCH).cast("bfloat16")
    got, plain = (in_turns(CELLS["lstm"], given, Rows, False, n, masked=False) for n in (steps, 1))
    assert_close(got, plain, TOLERANCES["bfloat16"])


def steps_a_turn() -> list[str]:
    """Return the steps per iteration of the forward and the backward loop on the device at hand."""
    given = problem(CELLS["lstm"], STEPS, BATCH).cast("float32")
    how = {"layout": Rows, "reverse": False, "steps": None, "masked": False}
    run = partial(in_turns.__wrapped__, CELLS["lstm"], **how)  # not a trace kept from before
    return re.findall(r"unroll=(\d+)", str(jax.make_jaxpr(run)(given)))


def test_the_device_decides_how_many_steps_a_turn_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPU_UNROLL on a GPU, from NVIDIA or AMD, and one step elsewhere."""
    for platform, steps in [("cpu", "1"), ("tpu", "1"), ("gpu", str(GPU_UNROLL))]:
        monkeypatch.setattr(accelerator, "device", lambda p=platform: fake(p))
        assert steps_a_turn() == [steps, steps]


# --- compiled for an H100 ---------------------------------------------------------------------------


class TestCompiled:
    """Compile with JAX's CUDA plugin and NVIDIA's assembler; neither needs a GPU."""

    pytestmark = gpu_aot

    @pytest.mark.parametrize("name", ["lstm-peephole", "gru-before", "gru-after"])
    def test_a_gradient_over_divided_rows_gathers_nothing(self, name: str) -> None:
        """Each GPU computes its own rows, and only the gradients of the weights are exchanged."""
        mesh = Mesh(np.array(gpu_static.h100s(4)), ("data",))
        given = jax.eval_shape(lambda: problem(CELLS[name], STEPS, 8).cast("float32").inputs)
        over = P(), P(None, "data"), P("data")
        placed = [
            aot.placed_on(NamedSharding(mesh, spec), part)
            for spec, part in zip(over, given, strict=True)
        ]

        def loss(params: Any, xs: Any, state: Any) -> Any:
            _, ys = unroll(CELLS[name], params, xs, state, implementation="xla")
            return (ys**2).sum()

        text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*placed).compile().as_text()
        assert "all-reduce" in text and f"f32[{STEPS},2,{HIDDEN}]" in text
        assert not re.search("all-gather|all-to-all|collective-permute", text)

    @pytest.mark.parametrize("dtype", gpu_static.DTYPES)
    @pytest.mark.parametrize(
        ("name", "most"),
        [("lstm", (3.25, 3.75)), ("gru-before", (5.25, 5)), ("gru-after", (3.25, 3.75))],
    )
    def test_launches_per_step(self, name: str, most: tuple[float, float], dtype: str) -> None:
        """At most these, all in command buffers, and fewer than with one step a turn."""
        size = gpu_static.SIZES[0]
        one, several = (gpu_static.counted(name, "xla", dtype, size, n) for n in (1, GPU_UNROLL))
        for what, limit in zip(gpu_static.PASSES, most, strict=True):
            assert several[what]["trips"] == gpu_static.STEPS // GPU_UNROLL
            assert several[what]["per_step"] <= limit
            launches = several[what]["kernels"] + several[what]["copies"]
            assert several[what]["in_buffers"] == launches
        assert several["forward"]["per_step"] < 0.6 * one["forward"]["per_step"]
        assert several["backward"]["per_step"] < one["backward"]["per_step"]

    def test_unroll_picks_it_on_a_gpu(self) -> None:
        """XLA runs a cell that cuDNN does not support."""
        cell = lstm(64, peephole=True)
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), HIDDEN))
        xs = jax.ShapeDtypeStruct((gpu_static.STEPS, BATCH, HIDDEN), jnp.float32)
        (loop,) = gpu_static.compiled(jax.jit(lambda p, x: unroll(cell, p, x)[1]), params, xs)
        assert loop.trips == gpu_static.STEPS // GPU_UNROLL


# --- the count itself ------------------------------------------------------------------------------

LISTING = """\
000: kCustomKernel [source] before grid: [1, 1, 1]
001: kWhile         [prev=000 (1)]   
condition:
    002: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1]
  body:
    003: kCustomKernel [source] gemm_fusion_dot_1 grid: [4, 1, 1]
    000: kCommandBuffer [source | sink] 
        004: kCustomKernel [source] loop_add_fusion grid: [1, 1, 1]
        005: kCopy [source] kCopy
    006: kAsyncStart [source] stream=computation_stream[0], async_id=6
        008: kDynamicSliceFusion [source | sink] params=1, results=1
            007: kCopy [source | sink] kCopy
009: kCustomKernel [prev=001] after grid: [1, 1, 1]
"""
PROGRAM = 'while(...), backend_config={"known_trip_count":{"n":"10"},"known_init_step":{}}'


def test_launches_are_counted_from_the_loops_body() -> None:
    """Only launches in the body count; those of command buffers count separately."""
    (loop,) = gpu_static.loops(LISTING, PROGRAM)
    assert loop == gpu_static.Loop(trips=10, kernels=2, copies=2, in_buffers=2, whole=False)


@pytest.mark.parametrize(
    ("listing", "program", "message"),
    [
        (LISTING, "", "1 loops in the listing, 0 trip counts"),
        ("", "", "0 loops"),
        (LISTING.replace("kAsyncStart", "kNewKind"), PROGRAM, "an unknown kind of thunk: kNewKind"),
    ],
)
def test_a_listing_of_another_form_is_refused(listing: str, program: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpu_static.loops(listing, program)


class TestXla(SecondDerivative, Conformance):
    implementation = "xla"
