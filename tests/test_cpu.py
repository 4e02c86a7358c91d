"""The recurrence in C++: values against numpy and gradients against the plain scan in float64, for rows
on cores of their own and for cores that share the rows; what it must leave as it was under JAX's
transformations; how it is built."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from oracle import (
    CELLS,
    TOLERANCES,
    Problem,
    assert_close,
    differences,
    library,
    problem,
    reference,
)

from jaxrnn import dispatch, explain, gru, lstm, rnn, unroll
from jaxrnn.kernels.cpu import build
from jaxrnn.kernels.inputs import Lookup
from jaxrnn.unroll import unroll_projected

TOLERANCE = 1e-5  # of float32 sums of a few hundred products, in units of the largest entry
TWO = ("lstm-peephole", "gru-before")
cells = pytest.mark.parametrize("name", CELLS)
two_cells = pytest.mark.parametrize("name", TWO)
pytestmark = pytest.mark.skipif(
    build.why_not() is not None, reason=f"waits for a C++ compiler: {build.why_not()}"
)


def scaled(given: Problem) -> Problem:
    """Weights small enough for wide cells not to saturate, where gradients would be zeros."""
    params = given.params
    shrink = (4 / params.w_h.shape[0]) ** 0.5
    return given._replace(params=params._replace(w_h=params.w_h * shrink, w_x=params.w_x * shrink))


def masks_for(steps: int, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, steps + 1, batch).astype(np.int32)
    return {"resets": rng.random((steps, batch)) < 0.25, "lengths": lengths}


def native(cell: Any, given: Problem, reverse: bool = False, **masks: np.ndarray) -> Any:
    on_device = {name: jnp.asarray(mask) for name, mask in masks.items()}
    return library(cell, given, **on_device, reverse=reverse, implementation="native")


def compare(cell: Any, exact: Problem, **how: Any) -> None:
    """Values against numpy; gradients against the scan's automatic derivative, in float64."""
    given = exact.cast("float32")
    results, gradients = native(cell, given, **how)
    assert_close(results, reference(cell, *given.exact().inputs, **how), TOLERANCE)
    with jax.enable_x64(True):
        as_arrays = {k: jnp.asarray(v) if k != "reverse" else v for k, v in how.items()}
        _, want = library(cell, given.exact().cast("float64"), **as_arrays, implementation="scan")
    assert_close(gradients, want, TOLERANCE)


# --- values and gradients -----------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize(
    ("batch", "hidden"), [(1, 3), (9, 17), (11, 70)], ids=["one unit", "a tile", "more than one"]
)
@cells
def test_rows_on_cores_of_their_own(
    name: str, batch: int, hidden: int, masked: bool, reverse: bool
) -> None:
    cell, steps = dataclasses.replace(CELLS[name], hidden=hidden), 6
    given = scaled(problem(cell, steps, batch, features=5))
    masks = masks_for(steps, batch) if masked else {}
    compare(cell, given, **masks, reverse=reverse)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "cell",
    [
        rnn(400),
        lstm(200),
        lstm(200, peephole=True),
        gru(220, reset="before"),
        gru(220, reset="after"),
    ],
    ids=["rnn", "lstm", "lstm-peephole", "gru-before", "gru-after"],
)
def test_few_rows_that_cores_share(cell: Any, batch: int) -> None:
    """Weights enough for cores to divide the units among them, and meet after each step."""
    steps = 7
    given = scaled(problem(cell, steps, batch, features=5))
    compare(cell, given, **masks_for(steps, batch), reverse=batch == 3)


def test_more_steps_than_are_projected_at_once() -> None:
    """With one row, 32 steps are projected at a time; 70 leave a part over."""
    for reverse in (False, True):
        compare(lstm(5), problem(lstm(5), steps=70, batch=1), reverse=reverse)


@two_cells
def test_finite_differences(name: str) -> None:
    """Without any derivative of JAX's: a few weights moved in numpy."""
    cell = CELLS[name]
    given = problem(cell).cast("float32")
    _, gradients = native(cell, given)
    exact = given.exact()

    def loss(inputs: Any) -> float:
        results = reference(cell, *inputs)
        pairs = zip(*map(jax.tree.leaves, (exact.weights, results)), strict=True)
        return sum(float((w * r).sum()) for w, r in pairs)

    assert_close(gradients, differences(loss, exact.inputs), TOLERANCE)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@two_cells
def test_tokens_and_projected_inputs(name: str, masked: bool) -> None:
    """A table's rows, and gx itself; tokens before 0 count from the end, as in JAX's indexing."""
    cell, steps, batch = CELLS[name], 6, 9
    given = problem(cell, steps, batch).cast("float32")
    rng = np.random.default_rng(2)
    table = jnp.asarray(rng.standard_normal((7, given.params.w_h.shape[1])), jnp.float32)
    tokens = jnp.asarray(rng.integers(-2, 7, (steps, batch)), jnp.int32)
    masks = {k: jnp.asarray(v) for k, v in masks_for(steps, batch).items()} if masked else {}

    def loss(table: Any, gx: Any, implementation: Any) -> Any:
        run = partial(unroll_projected, cell, given.params, **masks, implementation=implementation)
        (_, looked), (_, projected) = run(Lookup(table, tokens)), run(gx)
        return (looked * given.weights[1]).sum() + (projected * given.weights[1]).sum()

    gradients = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    gx = table[tokens]
    assert_close(gradients(table, gx, "native"), gradients(table, gx, "scan"), TOLERANCE)


# --- numbers at their limits --------------------------------------------------------------------


@pytest.mark.parametrize("size", [30.0, 200.0, 1e30])
@cells
def test_gates_that_saturate(name: str, size: float) -> None:
    """Inputs far beyond what exp can take give 0 and 1, and no NaN."""
    cell = CELLS[name]
    given = problem(cell, 4, 8).cast("float32")
    given = given._replace(xs=jnp.clip(given.xs * size, -size, size))
    if name == "rnn-relu":
        given = given._replace(params=given.params._replace(w_h=given.params.w_h * 0))
    results, gradients = native(cell, given)
    with np.errstate(over="ignore"):  # numpy's exp, where the answer is 0
        want = reference(cell, *given.exact().inputs)
    assert_close(results, want, TOLERANCES["float32"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.filterwarnings("ignore")
@cells
def test_what_is_not_a_number_stays_in_its_row(name: str) -> None:
    """A run that goes wrong must be seen to (training recovers from it), in the rows where it does."""
    cell = CELLS[name]
    given = problem(cell, 4, 8).cast("float32")
    (_, ys), _ = native(cell, given._replace(xs=given.xs.at[1, 2, 0].set(jnp.nan)))
    wrong = np.isnan(np.asarray(ys)).any(axis=2)
    expected = np.zeros_like(wrong)
    expected[1:, 2] = True
    np.testing.assert_array_equal(wrong, expected)


# --- under JAX's transformations ----------------------------------------------------------------


@two_cells
def test_second_derivatives_are_those_of_scan(name: str) -> None:
    cell = CELLS[name]
    given = problem(cell, 3, 2).cast("float32")

    def slope(inputs: Any, implementation: Any) -> Any:
        def loss(params: Any, xs: Any) -> Any:
            final, ys = unroll(cell, params, xs, given.state, implementation=implementation)
            return (ys**3).sum() + sum((s**2).sum() for s in jax.tree.leaves(final))

        return sum((g**2).sum() for g in jax.tree.leaves(jax.grad(loss, (0, 1))(*inputs)))

    second = jax.jit(jax.grad(slope), static_argnums=1)
    inputs = given.params, given.xs
    assert_close(second(inputs, "native"), second(inputs, "scan"), TOLERANCE)


@two_cells
def test_vmap_and_checkpoint(name: str) -> None:
    cell = CELLS[name]
    given = problem(cell, 4, 6).cast("float32")
    several = jnp.stack([given.xs, given.xs * 0.5, -given.xs])

    def gradient(xs: Any, implementation: Any) -> Any:
        @jax.checkpoint
        def loss(params: Any) -> Any:
            return (
                unroll(cell, params, xs, given.state, implementation=implementation)[1] ** 2
            ).sum()

        return jax.grad(loss)(given.params)

    got, want = (
        jax.vmap(lambda xs, name=name: gradient(xs, name))(several) for name in ("native", "scan")
    )
    assert_close(got, want, TOLERANCE)


def test_save_every() -> None:
    cell = CELLS["lstm"]
    given = problem(cell, 7, 5).cast("float32")
    want = library(cell, given, implementation="scan")
    assert_close(library(cell, given, implementation="native", save_every=3), want, TOLERANCE)


def test_sharded_over_the_batch() -> None:
    cell = CELLS["gru-after"]
    given = problem(cell, 4, 4).cast("float32")
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))

    def run(params: Any, xs: Any) -> Any:
        return unroll(cell, params, xs, implementation="native")[1]

    sharded = jax.shard_map(
        run, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P(None, "data")
    )
    got, want = (
        jax.grad(lambda params, f=f: (f(params, given.xs) ** 2).sum())(given.params)
        for f in (sharded, run)
    )
    assert_close(got, want, TOLERANCES["float32"])


@pytest.mark.parametrize(("cell", "batch"), [(lstm(64), 32), (gru(256), 1)], ids=["own", "shared"])
def test_many_calls_at_once_end_and_agree(cell: Any, batch: int) -> None:
    """More callers than cores, each with a loop on all cores: none may wait for another for ever."""
    given = scaled(problem(cell, 30, batch, features=8)).cast("float32")
    want = native(cell, given)
    with ThreadPoolExecutor(6) as callers:
        for got in callers.map(lambda _: native(cell, given), range(24)):
            assert_close(got, want, 0)  # to the bit, whoever did which part


# --- how it is built ----------------------------------------------------------------------------


def test_what_it_cannot_multiply() -> None:
    with pytest.raises(ValueError, match="multiplies float32 alone, not bfloat16; use 'xla'"):
        explain(lstm(300), (10, 7, 5), "bfloat16", "native")


ASK = """
import jaxrnn
print(jaxrnn.explain(jaxrnn.lstm(8), (3, 2, 4)))
"""


def ask(tmp_path: Path, compiler: str, program: str = ASK) -> str:
    """What a new process prints, that has nothing in its cache yet."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"CXX": compiler, "JAXRNN_CACHE": str(tmp_path / "cache")},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "compiler"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_without_a_compiler_xla_runs_and_says_why(tmp_path: Path) -> None:
    said = ask(tmp_path, "no-such-compiler")
    assert said.startswith(
        "xla: native cannot run this: no C++ compiler is here (no-such-compiler)"
    )


def test_a_compiler_that_fails_is_told_in_a_line(tmp_path: Path) -> None:
    said = ask(tmp_path, script(tmp_path, "echo 'x.cc:1: error: no such header' >&2; exit 1"))
    assert said.startswith("xla: native cannot run this: ") and said.count("\n") == 1
    assert "x.cc:1: error: no such header" in said
    assert not list((tmp_path / "cache").iterdir())  # nothing half-made stays


def test_it_is_compiled_once(tmp_path: Path) -> None:
    real = shutil.which(os.environ.get("CXX", "c++"))
    compiler = script(tmp_path, f'echo once >> "{tmp_path}/calls"\nexec {real} "$@"')
    for _ in range(2):
        assert ask(tmp_path, compiler).startswith("native: ")
    assert (tmp_path / "calls").read_text() == "once\n"


@pytest.mark.once
@pytest.mark.skipif("x86" not in os.uname().machine, reason="waits for a processor with AVX")
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx"])
def test_narrower_vectors(tmp_path: Path, without: str) -> None:
    """What older processors run: the same, with vectors of 8 and of 4."""
    real = shutil.which(os.environ.get("CXX", "c++"))
    program = """
import conftest, test_cpu
from oracle import CELLS, problem
for name in CELLS:
    test_cpu.test_rows_on_cores_of_their_own(name, 11, 70, True, False)
test_cpu.test_few_rows_that_cores_share(test_cpu.lstm(200), 1)
print("done")
"""
    assert ask(tmp_path, script(tmp_path, f'exec {real} "$@" {without}'), program) == "done\n"


def test_the_program_says_native() -> None:
    """Not that something else answered in its name."""
    cell = CELLS["lstm"]
    given = problem(cell).cast("float32")
    run: Callable[..., Any] = partial(unroll, cell)
    assert "jaxrnn_forward" in jax.jit(run).lower(*given.inputs).as_text()
    assert dispatch.kernel("native").__name__ == "jaxrnn.kernels.cpu"
