"""The recurrence in C++: values against numpy and gradients against the plain scan in float64, for rows
on cores of their own and for cores that share the rows; JAX's transformations of it; wrong sizes; busy
cores; how it is built."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxrnn import gru, lstm, rnn, unroll
from jaxrnn.recurrence import kernels
from jaxrnn.recurrence.api import unroll_projected
from jaxrnn.recurrence.kernels import cplusplus, native, xla
from jaxrnn.recurrence.kernels.native.build import LIBRARY
from jaxrnn.recurrence.problem import Dense, Lookup
from jaxrnn.recurrence.problem import Problem as Recurrence
from tests.support.conformance import Conformance
from tests.support.oracle import TOLERANCES, assert_close, differences, reference, unchecked
from tests.support.problems import CELLS, Problem, library, problem

ROOT = Path(__file__).parents[3]
TOLERANCE = 1e-5  # of float32 sums of a few hundred products, in units of the largest entry
TWO = ("lstm-peephole", "gru-before")
cells = pytest.mark.parametrize("name", CELLS)
two_cells = pytest.mark.parametrize("name", TWO)
pytestmark = pytest.mark.skipif(
    LIBRARY.unavailable_reason is not None,
    reason=f"waits for a C++ compiler: {LIBRARY.unavailable_reason}",
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


def run_native(cell: Any, given: Problem, reverse: bool = False, **masks: np.ndarray) -> Any:
    on_device = {name: jnp.asarray(mask) for name, mask in masks.items()}
    return library(cell, given, **on_device, reverse=reverse, implementation="native")


def compare(cell: Any, exact: Problem, **how: Any) -> None:
    """Values against numpy; gradients against the scan's automatic derivative, in float64."""
    given = exact.cast("float32")
    results, gradients = run_native(cell, given, **how)
    assert_close(results, reference(cell, *given.exact().inputs, **how), TOLERANCE)
    with jax.enable_x64(True):
        as_arrays = {k: jnp.asarray(v) if k != "reverse" else v for k, v in how.items()}
        _, want = library(cell, given.exact().cast("float64"), **as_arrays, implementation="scan")
    assert_close(gradients, want, TOLERANCE)


# --- values and gradients -----------------------------------------------------------------------


@pytest.mark.first_case
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize(
    ("batch", "hidden"), [(1, 3), (9, 17), (11, 70)], ids=["one unit", "a tile", "more than one"]
)
@cells
def test_rows_on_cores_of_their_own(
    name: str, batch: int, hidden: int, masked: bool, reverse: bool
) -> None:
    cell, steps = dataclasses.replace(CELLS[name], hidden_size=hidden), 6
    given = scaled(problem(cell, steps, batch, features=5))
    masks = masks_for(steps, batch) if masked else {}
    compare(cell, given, **masks, reverse=reverse)


@pytest.mark.slow
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
    """Weights and steps enough for cores to divide the units among them, and meet after each step."""
    steps = 40
    given = scaled(problem(cell, steps, batch, features=5))
    compare(cell, given, **masks_for(steps, batch), reverse=batch == 3)


@pytest.mark.slow
def test_more_steps_than_are_projected_at_once() -> None:
    """With one row, 32 steps are projected at a time; 70 leave a part over."""
    for reverse in (False, True):
        compare(lstm(5), problem(lstm(5), steps=70, batch=1), reverse=reverse)


@two_cells
def test_finite_differences(name: str) -> None:
    """Compare with finite differences in numpy of a few weights, which use no derivative of JAX."""
    cell = CELLS[name]
    given = problem(cell).cast("float32")
    _, gradients = run_native(cell, given)
    exact = given.exact()

    def loss(inputs: Any) -> float:
        results = reference(cell, *inputs)
        pairs = zip(*map(jax.tree.leaves, (exact.weights, results)), strict=True)
        return sum(float((w * r).sum()) for w, r in pairs)

    assert_close(gradients, differences(loss, exact.inputs), TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@two_cells
def test_tokens_and_projected_inputs(name: str, masked: bool) -> None:
    """A table's rows, and gx itself; a token out of range means the nearest row."""
    cell, steps, batch = CELLS[name], 6, 9
    given = problem(cell, steps, batch).cast("float32")
    rng = np.random.default_rng(2)
    table = jnp.asarray(rng.standard_normal((7, given.params.w_h.shape[1])), jnp.float32)
    tokens = jnp.asarray(rng.integers(-2, 9, (steps, batch)), jnp.int32)
    masks = {k: jnp.asarray(v) for k, v in masks_for(steps, batch).items()} if masked else {}

    def loss(table: Any, gx: Any, implementation: Any) -> Any:
        run = partial(unroll_projected, cell, given.params, **masks, implementation=implementation)
        (_, looked), (_, projected) = run(Lookup(table, tokens)), run(gx)
        return (looked * given.weights[1]).sum() + (projected * given.weights[1]).sum()

    gradients = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    gx = table[jnp.clip(tokens, 0, 6)]
    want = gradients(table, gx, "scan")
    for implementation in ("native", "xla", "columns"):
        assert_close(gradients(table, gx, implementation), want, TOLERANCE)
    # The table's gradient is that of gx, summed over the tokens that are clipped to the same row.
    by_row = np.zeros(table.shape, np.float64)
    np.add.at(by_row, np.clip(tokens, 0, 6), np.asarray(want[1][1], np.float64))
    assert_close(want[1][0], by_row, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32"])
def test_tokens_of_any_integer_dtype(dtype: str) -> None:
    """The table has more rows than the dtype can count, and some tokens do not fit into int32."""
    cell = CELLS["gru-before"]
    given = problem(cell).cast("float32")
    rows = 300 if dtype != "uint32" else 5
    table = jnp.asarray(np.random.default_rng(0).standard_normal((rows, 12)), jnp.float32)
    values = [0, 1, np.iinfo(dtype).max]
    tokens = jnp.asarray(np.resize(values, (5, 2)), dtype)
    gx = table[np.clip(np.resize(values, (5, 2)), 0, rows - 1)]
    for implementation in ("native", "scan", "xla", "columns"):
        run = partial(unroll_projected, cell, given.params, implementation=implementation)
        with unchecked():
            assert_close(run(Lookup(table, tokens)), run(gx), TOLERANCES["float32"])


# --- arrays that lie in memory with the batch first ----------------------------------------------


def swap(a: Any) -> Any:
    return jnp.swapaxes(a, 0, 1)


def batch_first_slope(cell: Any, implementation: Any, order: bool, **how: Any) -> Any:
    """Values and gradients of a loss of xs [B, T, D], as a jitted function of (params, xs, state)."""

    def loss(params: Any, xs: Any, state: Any, weights: Any) -> Any:
        run = partial(unroll, cell, params, swap(xs), state, **how)
        final, ys = run(implementation=implementation, batch_first_memory=order)
        products = jax.tree.map(lambda a, w: (a * w).sum(), (final, swap(ys)), weights)
        return sum(jax.tree.leaves(products)), (final, swap(ys))

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


@pytest.mark.first_case
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize(
    ("steps", "batch"), [(5, 2), (40, 3), (6, 11)], ids=["few", "long", "rows"]
)
@cells
def test_batch_first_memory(name: str, steps: int, batch: int, masked: bool) -> None:
    """With few rows, several steps of a row are projected at once; the last of 40 are fewer."""
    cell = dataclasses.replace(CELLS[name], hidden_size=19)
    given = scaled(problem(cell, steps, batch, features=5)).cast("float32")
    masks: dict[str, Any] = masks_for(steps, batch) if masked else {}
    how = {k: jnp.asarray(v) for k, v in masks.items()} | {"reverse": batch == 3}
    arguments = (
        given.params,
        swap(given.xs),
        given.state,
        (given.weights[0], swap(given.weights[1])),
    )
    got = batch_first_slope(cell, "native", True, **how)(*arguments)
    assert_close(got, batch_first_slope(cell, "scan", False, **how)(*arguments), TOLERANCE)


@pytest.mark.first_case
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "plain"])
def test_batch_first_memory_has_no_transposed_copy(masked: bool) -> None:
    """The program of values and gradients neither transposes nor copies an array of all steps."""
    cell = CELLS["gru-after"]
    how = {k: jnp.asarray(v) for k, v in masks_for(5, 2).items()} if masked else {}
    given = problem(cell, 5, 2).cast("float32")
    arguments = (
        given.params,
        swap(given.xs),
        given.state,
        (given.weights[0], swap(given.weights[1])),
    )

    def moves(order: bool) -> list[str]:
        text = batch_first_slope(cell, "native", order, **how).lower(*arguments).compile().as_text()
        return re.findall(r"= f32\[(?:5,2|2,5),\d+\]\S* (?:transpose|copy)\(", text)

    assert moves(False) and not moves(True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_a_loop_does_not_change_are_packed_once(dtype: str) -> None:
    """XLA moves the packing of weights out of the loop, for both passes."""
    cell = CELLS["lstm"]
    given = problem(cell, 9, 2).cast(dtype)

    def loss(params: Any, xs: Any) -> Any:
        def body(state: Any, _: None) -> Any:
            state, ys = unroll(cell, params, xs, state, implementation="native")
            return state, ys.sum()

        return jax.lax.scan(body, given.state, length=4)[1].sum()

    for program in (jax.jit(loss), jax.jit(jax.grad(loss))):
        text = program.lower(given.params, given.xs).compile().as_text()
        entry = text[text.index("ENTRY") :]
        assert entry.count('"jaxrnn_pack"') == text.count('"jaxrnn_pack"') >= 2


def test_no_tracer_is_kept() -> None:
    given = problem(CELLS["gru-after"], 9, 2).cast("float32")
    run = partial(unroll, CELLS["gru-after"], implementation="native")

    def loss(params: Any, xs: Any) -> Any:
        return (run(params, xs)[1] ** 2).sum()

    with jax.check_tracer_leaks(True):
        run(given.params, given.xs)
        jax.jit(jax.grad(loss, (0, 1)))(given.params, given.xs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gru-before"])
def test_batch_first_memory_of_other_inputs_and_transformations(name: str) -> None:
    """Tokens and projected inputs; stretches of steps; mapped over rows and over parameters; eagerly."""
    cell, steps, batch = CELLS[name], 6, 3
    given = problem(cell, steps, batch).cast("float32")
    rng = np.random.default_rng(2)
    table = jnp.asarray(rng.standard_normal((7, given.params.w_h.shape[1])), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 7, (batch, steps)), jnp.int32)
    factors = jnp.linspace(0.5, 1.5, 2)

    def loss(factor: Any, table: Any, xs: Any, implementation: Any, order: bool) -> Any:
        params = jax.tree.map(lambda a: a * factor, given.params)
        how: Any = {"implementation": implementation, "batch_first_memory": order}
        run = partial(unroll_projected, cell, params, **how)
        _, looked = run(Lookup(table, swap(tokens)))
        _, projected = run(swap(table[tokens]))
        _, ys = unroll(cell, params, swap(xs), **how)
        _, again = unroll(cell, params, swap(xs), **how, save_every=2)
        return sum((swap(a) ** 3).sum() for a in (looked, projected, ys, again))

    def results(implementation: Any, order: bool) -> Any:
        run = partial(loss, implementation=implementation, order=order)
        slope = jax.value_and_grad(run, (0, 1, 2))
        xs = swap(given.xs)
        several = jnp.stack([xs, xs / 2])
        over_parameters = jax.jit(jax.vmap(slope, (0, None, None)))(factors, table, xs)
        over_rows = jax.jit(jax.vmap(slope, (None, None, 0)))(factors[1], table, several)
        return slope(factors[0], table, xs), over_parameters, over_rows

    assert_close(results("native", True), results("scan", False), TOLERANCE)


# --- numbers at their limits --------------------------------------------------------------------


@pytest.mark.first_case
@pytest.mark.parametrize("size", [30.0, 200.0, 1e30])
@cells
def test_gates_that_saturate(name: str, size: float) -> None:
    """Inputs far beyond what exp can take give 0 and 1, and no NaN."""
    cell = CELLS[name]
    given = problem(cell, 4, 8).cast("float32")
    given = given._replace(xs=jnp.clip(given.xs * size, -size, size))
    if name == "rnn-relu":
        given = given._replace(params=given.params._replace(w_h=given.params.w_h * 0))
    results, gradients = run_native(cell, given)
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
    (_, ys), _ = run_native(cell, given._replace(xs=given.xs.at[1, 2, 0].set(jnp.nan)))
    wrong = np.isnan(np.asarray(ys)).any(axis=2)
    expected = np.zeros_like(wrong)
    expected[1:, 2] = True
    np.testing.assert_array_equal(wrong, expected)


# --- under JAX's transformations ----------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.slow
@two_cells
def test_checkpoint(name: str) -> None:
    cell = CELLS[name]
    given = problem(cell, 4, 6).cast("float32")

    def gradient(implementation: Any) -> Any:
        @jax.checkpoint
        def loss(params: Any) -> Any:
            run = partial(unroll, cell, params, given.xs, given.state)
            return (run(implementation=implementation)[1] ** 2).sum()

        return jax.grad(loss)(given.params)

    assert_close(gradient("native"), gradient("scan"), TOLERANCE)


# --- mapped by jax.vmap -------------------------------------------------------------------------


class Mapped(NamedTuple):
    """The mapped axis of each argument; None where all elements share it."""

    xs: int | None = None
    state: int | None = None
    resets: int | None = None
    lengths: int | None = None
    params: int | None = None


def calls_of(program: Any, *given: Any) -> list[str]:
    """The C++ calls of a compiled program, as "name shape-of-the-first-result", in loops or not."""
    text = program.lower(*given).as_text()
    return re.findall(r"@(jaxrnn_\w+)\(.*?-> (?:tuple<)?\(?tensor<([\dx]+)xf32>", text)


def mapped_problem(cell: Any, axes: Mapped, size: int) -> tuple[Any, ...]:
    """Arguments with a mapped axis where `axes` says, and the shapes that one element has."""
    steps, batch = 5, 2
    given = problem(cell, steps, batch).cast("float32")
    masks = {k: jnp.asarray(v) for k, v in masks_for(steps, batch).items()}
    whole = given.xs, given.state, masks["resets"], masks["lengths"], given.params
    rng = np.random.default_rng(3)

    def several(a: Any, axis: int) -> Any:
        if a.dtype != jnp.float32:
            return jnp.stack([jnp.roll(a, n, axis=a.ndim - 1) for n in range(size)], axis)
        factors = jnp.asarray(rng.uniform(0.5, 1.5, size), jnp.float32)
        return jnp.stack([a * factor for factor in factors], axis)

    return tuple(
        a if axis is None else jax.tree.map(partial(several, axis=axis), a)
        for a, axis in zip(whole, axes, strict=True)
    )


def loss_of(cell: Any, implementation: Any, axes: Mapped) -> Callable[..., Any]:
    """A loss of one element, differentiable by xs, state and params."""

    def loss(xs: Any, state: Any, resets: Any, lengths: Any, params: Any) -> Any:
        run = partial(unroll, cell, params, xs, state, implementation=implementation)
        final, ys = run(resets=resets, lengths=lengths)
        return (ys**3).sum() + sum((s**2).sum() for s in jax.tree.leaves(final))

    return loss


AXES = {
    "inputs": Mapped(xs=0),
    "rows": Mapped(xs=1, state=0, resets=1, lengths=0),
    "states": Mapped(state=1),
    "lengths": Mapped(xs=2, lengths=1, resets=2),
    "stacked parameters": Mapped(params=0),
    "stacked parameters and inputs": Mapped(xs=0, state=0, params=0),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "axes"), list(zip(TWO * 3, AXES.values(), strict=True)), ids=AXES)
def test_vmap(name: str, axes: Mapped) -> None:
    """Values and gradients, of the sum over the mapped axis and of each element."""
    cell = CELLS[name]
    given = mapped_problem(cell, axes, size=3)
    wanted = (0, 1, 4)

    def results(implementation: Any) -> Any:
        loss = loss_of(cell, implementation, axes)
        mapped = jax.vmap(loss, tuple(axes))
        total = jax.value_and_grad(lambda *given: mapped(*given).sum(), wanted)
        each = jax.vmap(jax.grad(loss, wanted), tuple(axes))
        return jax.jit(lambda *given: (total(*given), each(*given)))(*given)

    assert_close(results("native"), results("scan"), TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gru-before"])
def test_a_mapped_axis_over_shared_weights_becomes_rows(name: str) -> None:
    """One call of three times the rows, the same bits as that batch; no gradient for each element."""
    cell, axes = CELLS[name], Mapped(xs=1, state=0, resets=1, lengths=0)
    xs, state, resets, lengths, params = given = mapped_problem(cell, axes, size=3)
    mapped = jax.vmap(loss_of(cell, "native", axes), tuple(axes))

    def fold(a: Any, axis: int) -> Any:
        return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])

    batch = (fold(xs, 1), jax.tree.map(lambda s: fold(s, 0), state), fold(resets, 1))
    batch = (*batch, fold(lengths, 0), params)
    got = jax.jit(jax.grad(lambda *given: mapped(*given).sum(), 4))
    want = jax.jit(jax.grad(loss_of(cell, "native", axes), 4))
    assert_close(got(*given), want(*batch), 0)
    assert calls_of(got, *given) == calls_of(want, *batch)
    assert "5x3x2x3xf32" not in got.lower(*given).compile().as_text()
    each = jax.jit(jax.vmap(jax.grad(loss_of(cell, "native", axes)), tuple(axes)))
    assert {call for call in calls_of(each, *given) if "outer" not in call[0]} <= {
        *calls_of(want, *batch),
        ("jaxrnn_back", "30x3"),
    }


@pytest.mark.slow
def test_nested_vmap() -> None:
    cell = CELLS["gru-after"]
    given = problem(cell, 4, 1).cast("float32")
    xs = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 1, 3)), jnp.float32)

    def results(implementation: Any) -> Any:
        def loss(params: Any, xs: Any) -> Any:
            return (unroll(cell, params, xs, implementation=implementation)[1] ** 3).sum()

        twice = jax.vmap(jax.vmap(loss, (None, 0)), (None, 0))
        return jax.jit(jax.grad(lambda params: twice(params, xs).sum()))(given.params)

    assert_close(results("native"), results("scan"), TOLERANCE)


@pytest.mark.slow
def test_vmap_over_tokens_and_over_a_table() -> None:
    cell = CELLS["lstm"]
    given = problem(cell, 4, 2).cast("float32")
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.standard_normal((3, 7, 16)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 7, (3, 4, 2)), jnp.int32)

    def results(implementation: Any) -> Any:
        def loss(table: Any, tokens: Any) -> Any:
            run = partial(unroll_projected, cell, given.params, implementation=implementation)
            return (run(Lookup(table, tokens))[1] ** 3).sum()

        def total(axes: Any) -> Any:
            return lambda *given: jax.vmap(loss, axes)(*given).sum()

        shared = jax.jit(jax.grad(total((None, 0))))(table[0], tokens)
        return shared, jax.jit(jax.grad(total((0, None))))(table, tokens[0])

    assert_close(results("native"), results("scan"), TOLERANCE)


# Which arguments are mapped beside the parameters; all elements share the others.
MEMBERS = {
    "parameters": Mapped(params=0),
    "everything": Mapped(xs=0, state=0, resets=0, lengths=0, params=0),
    "parameters, states and resets": Mapped(state=1, resets=1, params=0),
    "parameters, inputs and lengths": Mapped(xs=1, lengths=1, params=0),
}


def element(given: tuple[Any, ...], axes: Mapped, n: int) -> tuple[Any, ...]:
    """Element n of the mapped axis of the arguments."""
    return tuple(
        a if axis is None else jax.tree.map(partial(jnp.take, indices=n, axis=axis), a)
        for a, axis in zip(given, axes, strict=True)
    )


@pytest.mark.first_case
@pytest.mark.parametrize("axes", list(MEMBERS.values()), ids=MEMBERS)
@pytest.mark.parametrize("name", ["gru-after", "lstm-peephole", "gru-before", "rnn-tanh"])
def test_vmap_over_parameters_equals_a_loop(name: str, axes: Mapped) -> None:
    """Values and gradients of each element."""
    cell, size = CELLS[name], 3
    given = mapped_problem(cell, axes, size)
    slope = jax.value_and_grad(loss_of(cell, "native", axes), (0, 1, 4))
    got, one = jax.jit(jax.vmap(slope, tuple(axes)))(*given), jax.jit(slope)
    for n in range(size):
        want = one(*element(given, axes, n))
        assert_close(jax.tree.map(itemgetter(n), got), want, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("axes", list(MEMBERS.values()), ids=MEMBERS)
def test_gradient_of_vmap_over_parameters(axes: Mapped) -> None:
    """The gradient of what the elements share is a sum over them; with and without jit."""
    cell, size = CELLS["gru-after"], 3
    given = mapped_problem(cell, axes, size)

    def total(implementation: Any) -> Any:
        mapped = jax.vmap(loss_of(cell, implementation, axes), tuple(axes))
        return jax.value_and_grad(lambda *given: mapped(*given).sum(), (0, 1, 4))

    want = jax.jit(total("scan"))(*given)
    assert_close(jax.jit(total("native"))(*given), want, TOLERANCE)
    assert_close(total("native")(*given), want, TOLERANCE)


def test_a_mapped_axis_over_parameters_is_one_call() -> None:
    """No loop, and no copy of the inputs, which all elements share, for each of them."""
    cell, axes = CELLS["gru-after"], Mapped(params=0)
    given = mapped_problem(cell, axes, size=3)
    program = jax.jit(jax.vmap(loss_of(cell, "native", axes), tuple(axes)))
    calls = [call for call in calls_of(program, *given) if call[0] != "jaxrnn_pack"]
    assert calls == [("jaxrnn_forward", "3x5x2x4")]
    text = program.lower(*given).compile().as_text()
    assert "while" not in text and "f32[3,5,2,3]" not in text and "f32[1,5,2,3]" in text


@pytest.mark.slow
def test_nested_vmap_over_parameters() -> None:
    """Agents of seeds: the outer axis maps parameters and data, the inner axis w_x or b alone."""
    cell = CELLS["gru-after"]
    given = problem(cell, 4, 2).cast("float32")
    rng = np.random.default_rng(0)

    def stacked(a: Any, *sizes: int) -> Any:
        shape = (*sizes, *[1] * a.ndim)
        return jnp.asarray(np.asarray(a) * rng.uniform(0.5, 1.5, shape), jnp.float32)

    w_x, b, xs = (
        stacked(a, *sizes)
        for a, sizes in ((given.params.w_x, (2, 3)), (given.params.b, (3,)), (given.xs, (2,)))
    )

    def loss(w_x: Any, b: Any, xs: Any, implementation: Any) -> Any:
        params = given.params._replace(w_x=w_x, b=b)
        return (unroll(cell, params, xs, implementation=implementation)[1] ** 3).sum()

    slope = jax.value_and_grad(loss, (0, 1, 2))
    twice = jax.vmap(jax.vmap(slope, (0, 0, None, None)), (0, None, 0, None))
    got = jax.jit(twice, static_argnums=3)(w_x, b, xs, "native")
    one = jax.jit(slope, static_argnums=3)
    for seed, agent in np.ndindex(2, 3):
        want = one(w_x[seed, agent], b[agent], xs[seed], "native")
        assert_close(jax.tree.map(itemgetter((seed, agent)), got), want, TOLERANCE)

    def total(w_x: Any, b: Any, xs: Any, implementation: Any) -> Any:
        inner = jax.vmap(loss, (0, 0, None, None))
        return jax.vmap(inner, (0, None, 0, None))(w_x, b, xs, implementation).sum()

    sums = jax.jit(jax.grad(total, (0, 1, 2)), static_argnums=3)
    assert_close(sums(w_x, b, xs, "native"), sums(w_x, b, xs, "scan"), TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("members", [2, 3, 5])
@pytest.mark.parametrize(("cell", "batch"), [(lstm(40), 24), (gru(220), 2)], ids=["rows", "units"])
def test_members_whose_rows_or_units_are_divided(cell: Any, batch: int, members: int) -> None:
    """Fewer elements than threads, or more."""
    given = scaled(problem(cell, 20, batch, features=8)).cast("float32")
    factors = jnp.linspace(0.5, 1.5, members)

    def results(factor: Any) -> Any:
        params = jax.tree.map(lambda a: a * factor, given.params)
        return run_native(cell, given._replace(params=params))

    got = jax.vmap(results)(factors)
    for n, factor in enumerate(factors):
        assert_close(jax.tree.map(itemgetter(n), got), results(factor), TOLERANCE)


@pytest.mark.slow
def test_second_derivative_of_vmap_over_parameters() -> None:
    cell, axes = CELLS["lstm-peephole"], Mapped(params=0)
    given = mapped_problem(cell, axes, size=2)

    def slope(xs: Any, implementation: Any) -> Any:
        each = jax.vmap(jax.grad(loss_of(cell, implementation, axes), 4), tuple(axes))
        return sum((g**2).sum() for g in jax.tree.leaves(each(xs, *given[1:])))

    second = jax.jit(jax.grad(slope), static_argnums=1)
    assert_close(second(given[0], "native"), second(given[0], "scan"), TOLERANCE)


def test_vmap_of_nothing() -> None:
    cell = CELLS["lstm"]
    params = cell.init(jax.random.key(0), 3)
    run = partial(unroll, cell, params, implementation="native")
    _, ys = jax.vmap(run)(jnp.zeros((0, 5, 2, 3)))
    assert ys.shape == (0, 5, 2, 4)


# --- on several devices -------------------------------------------------------------------------


@pytest.mark.slow
def test_save_every() -> None:
    cell = CELLS["lstm"]
    given = problem(cell, 7, 5).cast("float32")
    want = library(cell, given, implementation="scan")
    assert_close(library(cell, given, implementation="native", save_every=3), want, TOLERANCE)


@pytest.mark.slow
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


DIVIDED = """
import re, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from tests.support.oracle import TOLERANCES, assert_close
from jaxrnn import gru, lstm, unroll
from jaxrnn.recurrence.problem import Lookup
from jaxrnn.recurrence.api import unroll_projected

mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "more"), axis_types=(AxisType.Auto,) * 2)
rng = np.random.default_rng(0)

def loss(cell, params, xs, tokens, table, lengths, order=False):
    how = {"lengths": lengths, "implementation": "native", "batch_first_memory": order}
    final, ys = unroll(cell, params, xs, **how)
    _, looked = unroll_projected(cell, params, Lookup(table, tokens), final, **how)
    return (ys**2).sum() + (looked**2).sum()

for cell, choices in (
    (lstm(8, peephole=True), [(8, "data"), (8, None)]),
    (gru(8, reset="after"), [(8, ("data", "more")), (6, "data")]),
):
    for rows, axes in choices:
        params = cell.init(jax.random.key(0), 4)
        given = (
            params,
            jnp.asarray(rng.standard_normal((6, rows, 4)), jnp.float32),
            jnp.asarray(rng.integers(-1, 6, (6, rows)), jnp.int32),
            jnp.asarray(rng.standard_normal((5, params.w_h.shape[1])), jnp.float32),
            jnp.asarray(rng.integers(0, 7, rows), jnp.int32),
        )
        slope = jax.jit(jax.value_and_grad(loss, (1, 2, 4)), static_argnums=0)
        want = slope(cell, *given)
        over = P(), P(None, axes), P(None, axes), P(), P(axes)
        put = [jax.device_put(a, NamedSharding(mesh, p)) for a, p in zip(given, over)]
        program = slope.lower(cell, *put).compile()
        assert_close(program(*put), want, TOLERANCES["float32"])
        text = program.as_text()
        parts = {None: 1, "data": 2}.get(axes, 4)
        assert not re.search("all-gather|all-to-all|collective-permute", text), axes
        assert f"f32[6,{rows // parts},8]" in text and (axes is None or f"f32[6,{rows},8]" not in text)

def mapped(params, xs, tokens, table, lengths):
    axes = None, 0, None, None, 0, None, None
    each = jax.vmap(jax.value_and_grad(loss, (1, 2, 4)), axes)
    return each(cell, params, xs, tokens, table, lengths, True)

params, xs, tokens, table, lengths = given
stacked = [jax.tree.map(lambda p: jnp.stack([p, p / 2]), a) for a in (params, table)]
given = stacked[0], xs, tokens, stacked[1], lengths
put = [jax.device_put(a, NamedSharding(mesh, p)) for a, p in zip(given, over)]
assert_close(jax.jit(mapped)(*put), jax.jit(mapped)(*given), TOLERANCES["float32"])
print("done")
"""


@pytest.mark.process
def test_jit_divides_the_rows_over_devices(tmp_path: Path) -> None:
    """If a batch is sharded, each device computes its own rows, and only gradients are exchanged."""
    environment = {"JAXRNN_CACHE": str(LIBRARY.path().parent), "JAX_NUM_CPU_DEVICES": "4"}
    assert ask(tmp_path, DIVIDED, **environment).stdout == "done\n"


# --- many callers and busy cores ----------------------------------------------------------------


@pytest.mark.first_case
@pytest.mark.parametrize(("cell", "batch"), [(lstm(64), 32), (gru(256), 1)], ids=["own", "shared"])
def test_many_calls_at_once_end_and_agree(cell: Any, batch: int) -> None:
    """More callers than cores, each with a loop on all cores: no call may wait for another for ever."""
    given = scaled(problem(cell, 30, batch, features=8)).cast("float32")
    want = run_native(cell, given)
    with ThreadPoolExecutor(6) as callers:
        for got in callers.map(lambda _: run_native(cell, given), range(24)):
            assert_close(got, want, 0)  # bit-identical, whichever thread did which part


BUSY = """
import time, jax, jax.numpy as jnp
from jaxrnn import gru, unroll

cell = gru(256)
params, xs = cell.init(jax.random.key(0), 8), jnp.ones((100, 2, 8))
run = jax.jit(jax.grad(lambda p: (unroll(cell, p, xs, implementation="native")[1] ** 2).sum()))
times = []
for _ in range(20):
    begun = time.perf_counter()
    jax.block_until_ready(run(params))
    times.append(time.perf_counter() - begun)
print(sorted(times)[10])
"""


@pytest.mark.process
@pytest.mark.skipif(os.cpu_count() == 1, reason="waits for a second core")
def test_few_rows_on_busy_cores(tmp_path: Path) -> None:
    """Beside busy processes, all cores together take no many times as long as one thread alone."""
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    cached = str(LIBRARY.path().parent)
    try:
        alone, together = (
            float(ask(tmp_path, BUSY, JAXRNN_CACHE=cached, NPROC=threads).stdout)
            for threads in ("1", str(os.cpu_count()))
        )
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert together < 6 * alone, f"{together:.3f} s, against {alone:.3f} s of one thread"


def compiled(tmp_path: Path, source: str, *options: str) -> Path:
    """A C++ program of this folder, built."""
    program = tmp_path / "program"
    headers, file = LIBRARY.source.parent, Path(__file__).with_name(source)
    command = [*COMPILER, "-std=c++17", "-pthread", *options, f"-I{headers}", str(file)]
    subprocess.run([*command, "-o", str(program)], check=True, capture_output=True)
    return program


@pytest.mark.process
@pytest.mark.once
def test_turns_with_threads_that_are_hindered(tmp_path: Path) -> None:
    """Threads that come late or never, and one that falls asleep: order, and time."""
    result = subprocess.run([compiled(tmp_path, "turns.cc", "-O2")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.process
@pytest.mark.once
def test_turns_under_a_thread_sanitizer(tmp_path: Path) -> None:
    try:
        program = compiled(tmp_path, "turns.cc", "-O1", "-fsanitize=thread")
    except subprocess.CalledProcessError:
        pytest.skip("the compiler has no thread sanitizer")
    result = subprocess.run([program], capture_output=True, text=True)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert result.returncode == 0, result.stderr


# --- sizes that do not fit ----------------------------------------------------------------------


def sanitizer() -> list[str]:
    """Return the library to preload into a process that runs code with an address sanitizer."""
    names = "libasan.so", "libstdc++.so"
    found = [
        subprocess.run([*COMPILER, f"-print-file-name={name}"], capture_output=True, text=True)
        for name in names
    ]
    paths = [result.stdout.strip() for result in found]
    return paths if all(os.path.isabs(path) for path in paths) else []


@pytest.mark.rare
@pytest.mark.process
@pytest.mark.once
@pytest.mark.timeout(600)
def test_no_handler_reads_or_writes_outside_of_its_arrays(tmp_path: Path) -> None:
    """Each call with each array of another shape or dtype: refused, under an address sanitizer."""
    preload = sanitizer()
    if not preload:
        pytest.skip("the compiler has no address sanitizer that can be loaded into Python")
    environment = {"LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": "detect_leaks=0"}
    environment |= {"JAXRNN_CACHE": str(tmp_path / "cache")}
    program = "from tests.support.children import fuzz; fuzz.main()"
    refused = json.loads(ask(tmp_path, program, **environment).stdout)
    assert set(refused) == set(LIBRARY.handlers)
    assert refused["jaxrnn_forward"] >= 26 and refused["jaxrnn_backward"] >= 24


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["b", "w_c"])
def test_narrower_vectors_beside_float32_weights(wrong: str) -> None:
    """Handlers take float32 alone; a bias or peepholes of bfloat16 are widened, as by the others."""
    cell = CELLS["lstm-peephole"]
    given = problem(cell).cast("float32")
    narrow = given.params._replace(**{wrong: getattr(given.params, wrong).astype(jnp.bfloat16)})
    inputs = Dense(given.xs, narrow.w_x, narrow.b)

    def results(implementation: Any) -> Any:
        def loss(params: Any) -> Any:
            run = native.run if implementation == "native" else xla.run
            return (run(Recurrence(cell, params, inputs, given.state))[1] ** 2).sum()

        return jax.value_and_grad(loss)(narrow._replace(w_x=None, b=None))

    assert_close(results("native"), results("xla"), TOLERANCES["bfloat16"])


@pytest.mark.first_case
@pytest.mark.parametrize(("steps", "batch", "features"), [(3, 0, 2), (0, 2, 2), (3, 2, 0)])
def test_sizes_of_zero(steps: int, batch: int, features: int) -> None:
    cell = CELLS["gru-after"]
    params = cell.init(jax.random.key(0), 2)
    params = params._replace(w_x=params.w_x[:features])
    inputs = Dense(jnp.zeros((steps, batch, features)), params.w_x, params.b)
    state = cell.initial_state(batch)
    empty = Recurrence(cell, params, inputs, state)
    _, ys = native.run(empty)
    _, want = xla.run(empty)
    assert_close(ys, want, TOLERANCES["float32"])


# --- how it is built ----------------------------------------------------------------------------


ASK = """
import jaxrnn
print(jaxrnn.explain(jaxrnn.lstm(8), (30, 2, 4)))
"""
COMPILER = cplusplus.find_compiler() or ["c++"]


def ask(tmp_path: Path, program: str = ASK, **environment: str) -> Any:
    """Run a program in a new process that has nothing in its cache yet."""
    own = {"JAXRNN_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | own | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def script(tmp_path: Path, text: str, name: str = "compiler") -> str:
    path = tmp_path / name
    path.write_text("#!/bin/sh\n" + text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def quick_compiler(tmp_path: Path, name: str = "compiler") -> str:
    """A compiler that copies what is compiled already, and counts its calls in the file "calls"."""
    ready = str(LIBRARY.path())
    return script(
        tmp_path,
        f'echo once >> "{tmp_path}/calls"\n'
        'while [ "$1" != -o ]; do shift; done\n'
        f'exec cp "{ready}" "$2"\n',
        name,
    )


def times_compiled(tmp_path: Path) -> int:
    calls = tmp_path / "calls"
    return len(calls.read_text(encoding="utf-8").splitlines()) if calls.exists() else 0


def libraries(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").glob("*.so"))


@pytest.mark.process
def test_without_a_compiler_xla_runs_and_says_why(tmp_path: Path) -> None:
    said = ask(tmp_path, CXX="no-such-compiler")
    reason = "no C++ compiler is here (no-such-compiler); install one, or name one in CXX"
    assert said.stdout.startswith(f"xla: native cannot run this: {reason}; the usual choice")
    warning = f'the recurrence runs by "xla" in place of "native": {reason}'
    assert said.stderr.count(warning) == 1


@pytest.mark.process
def test_the_first_fallback_warns_and_no_other(tmp_path: Path) -> None:
    program = """
import jax, jax.numpy as jnp, jaxrnn, warnings
cell = jaxrnn.lstm(8)
params = cell.init(jax.random.key(0), 4)
jaxrnn.unroll(cell, params, jnp.ones((1, 2, 4)))
try:
    jaxrnn.unroll(cell, params, jnp.ones((30, 2, 4)), implementation="native")
except ValueError:
    print("refused")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for steps in (30, 31):
        jaxrnn.unroll(cell, params, jnp.ones((steps, 2, 4)))
print(len(said), said[0].category.__name__)
"""
    said = ask(tmp_path, program, CXX="no-such-compiler")
    assert said.stdout == "refused\n1 RuntimeWarning\n" and "Warning" not in said.stderr


@pytest.mark.process
def test_a_command_reports_the_fallback_in_one_line(tmp_path: Path) -> None:
    program = """
import jax, jax.numpy as jnp, jaxrnn
from jaxrnn import console
console.open_streams()
cell = jaxrnn.lstm(8)
jaxrnn.unroll(cell, cell.init(jax.random.key(0), 4), jnp.ones((30, 2, 4)))
"""
    said = ask(tmp_path, program, CXX="no-such-compiler").stderr
    assert said.startswith("note: the recurrence runs by ") and said.count("\n") == 1


@pytest.mark.process
def test_a_compiler_that_fails_is_reported_in_a_line(tmp_path: Path) -> None:
    failing = script(tmp_path, "echo 'x.cc:1: error: no such ‘header' >&2; exit 1")
    said = ask(tmp_path, CXX=failing, LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="utf-8").stdout
    assert said.startswith("xla: native cannot run this: ") and said.count("\n") == 1
    assert "x.cc:1: error: no such ‘header" in said
    assert not list((tmp_path / "cache").iterdir())  # nothing half-made stays


@pytest.mark.process
def test_it_is_compiled_once(tmp_path: Path) -> None:
    compiler = quick_compiler(tmp_path)
    for _ in range(2):
        assert ask(tmp_path, CXX=compiler).stdout.startswith("native: ")
    assert times_compiled(tmp_path) == 1


@pytest.mark.process
def test_cxx_is_read_as_a_shell_reads_it(tmp_path: Path) -> None:
    quick_compiler(tmp_path, "a compiler")
    wrapper = script(tmp_path, 'test "$2" = -DOPTION || exit 1\nexec "$@"', "cache")
    chosen = f'"{wrapper}" "{tmp_path}/a compiler" -DOPTION'
    assert ask(tmp_path, CXX=chosen).stdout.startswith("native: ")
    assert times_compiled(tmp_path) == 1
    said = ask(tmp_path, CXX="'never closed").stdout
    assert "CXX cannot be read as a shell command: No closing quotation" in said
    assert ask(tmp_path, CXX=" ", PATH="/nowhere").stdout.startswith("native: ")  # of the cache


@pytest.mark.process
def test_a_library_of_the_cache_needs_no_compiler(tmp_path: Path) -> None:
    assert ask(tmp_path, CXX=quick_compiler(tmp_path)).stdout.startswith("native: ")
    said = ask(tmp_path, CXX="no-such-compiler")
    assert said.stdout.startswith("native: ") and not said.stderr


@pytest.mark.process
@pytest.mark.parametrize("left", [0, 1000, -1], ids=["empty", "short", "one byte less"])
def test_a_damaged_library_is_compiled_again(tmp_path: Path, left: int) -> None:
    compiler = quick_compiler(tmp_path)
    ask(tmp_path, CXX=compiler)
    (library,) = libraries(tmp_path)
    whole = library.read_bytes()
    library.write_bytes(whole[:left])
    assert ask(tmp_path, CXX="no-such-compiler").stdout.startswith("xla: ")
    assert ask(tmp_path, CXX=compiler).stdout.startswith("native: ")
    assert [path.read_bytes() for path in libraries(tmp_path)] == [whole]
    assert times_compiled(tmp_path) == 2


@pytest.mark.process
def test_a_library_that_does_not_load_is_compiled_again(tmp_path: Path) -> None:
    """Whole, but not for this system, as in a home directory that several of them share."""
    compiler = quick_compiler(tmp_path)
    ask(tmp_path, CXX=compiler)
    (library,) = libraries(tmp_path)
    start, _, _ = library.stem.rpartition("-")
    library.unlink()
    content = b"no library at all"
    (library.parent / f"{start}-{cplusplus.digest(content)}.so").write_bytes(content)
    assert ask(tmp_path, CXX=compiler).stdout.startswith("native: ")
    assert times_compiled(tmp_path) == 2


@pytest.mark.process
def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """Then the folder for temporary files serves."""
    (tmp_path / "cache").write_text("a file, not a folder", encoding="utf-8")
    (tmp_path / "temporary").mkdir()
    how = {"CXX": quick_compiler(tmp_path), "TMPDIR": str(tmp_path / "temporary")}
    for _ in range(2):
        assert ask(tmp_path, **how).stdout.startswith("native: ")
    assert times_compiled(tmp_path) == 1
    (own,) = (tmp_path / "temporary").iterdir()
    assert own.name == f"jaxrnn-{os.getuid()}" and own.stat().st_mode & 0o077 == 0


@pytest.mark.process
def test_nothing_is_loaded_from_a_folder_that_others_can_write(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder", encoding="utf-8")
    shared = tmp_path / "temporary" / f"jaxrnn-{os.getuid()}"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    how = {"CXX": quick_compiler(tmp_path), "TMPDIR": str(tmp_path / "temporary")}
    assert ask(tmp_path, **how).stdout.startswith("xla: native cannot run this: its C++ could not")
    assert not list(shared.iterdir())


@pytest.mark.process
@pytest.mark.skipif(os.getuid() != 0, reason="waits for root, who can be somebody without a home")
def test_without_a_home_directory(tmp_path: Path) -> None:
    """A user without an entry in /etc/passwd and without HOME, as in containers."""
    program = f"""
import os, pathlib, tempfile
os.environ["TMPDIR"] = tempfile.mkdtemp(dir="/tmp")  # pytest's is closed to other users
os.chmod(os.environ["TMPDIR"], 0o777)
tempfile.tempdir = None
from jaxrnn.devices import storage
from jaxrnn.recurrence.kernels.cplusplus import Library
import jax.numpy as jnp, jaxrnn, jax, shutil
ready = pathlib.Path({str(LIBRARY.path())!r}).read_bytes()
cell = jaxrnn.lstm(8)
xs, params = jnp.ones((30, 2, 4)), cell.init(jax.random.key(0), 4)
jaxrnn.unroll(cell, params, xs, implementation="xla")
jaxrnn.explain(cell, xs.shape, "float64")  # all is imported that this user may not be able to read
for name in ("HOME", "XDG_CACHE_HOME", "JAXRNN_CACHE"):
    os.environ.pop(name, None)
os.setgid(12345); os.setuid(12345)
def compile(library, compiler, folder):
    path = folder / (library.prefix(compiler) + "0.so")
    path.write_bytes(ready)
    return path
Library.compile = compile
print(jaxrnn.unroll(cell, params, xs)[1].shape, *jaxrnn.explain(cell, xs.shape))
print(storage.cache_folder().name)
shutil.rmtree(storage.cache_folder())
"""
    said = ask(tmp_path, program).stdout
    assert said.startswith("(30, 2, 8) native ") and said.endswith("jaxrnn-12345\n")


@pytest.mark.process
def test_an_ascii_locale(tmp_path: Path) -> None:
    """The C++ has characters that are none of ASCII, and so may a processor's name."""
    how = {"LC_ALL": "C", "PYTHONUTF8": "0", "CXX": quick_compiler(tmp_path)}
    assert ask(tmp_path, **how).stdout.startswith("native: ")


@pytest.mark.rare
@pytest.mark.process
@pytest.mark.once
@pytest.mark.skipif("x86" not in os.uname().machine, reason="waits for a processor with AVX")
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx"])
def test_narrower_vectors(tmp_path: Path, without: str) -> None:
    """Compile for older processors, with vectors of 8 and of 4 numbers: the results are the same."""
    program = """
from tests import conftest
from tests.recurrence.kernels import test_native
from tests.support.problems import CELLS
for name in CELLS:
    test_native.test_rows_on_cores_of_their_own(name, 11, 70, True, False)
test_native.test_few_rows_that_cores_share(test_native.lstm(200), 1)
print("done")
"""
    compiler = script(tmp_path, f'exec {shlex.join(COMPILER)} "$@" {without}')
    assert ask(tmp_path, program, CXX=compiler).stdout == "done\n"


def test_the_program_says_native() -> None:
    """Not that something else answered in its name."""
    cell = CELLS["lstm"]
    given = problem(cell, steps=30).cast("float32")
    run: Callable[..., Any] = partial(unroll, cell)
    assert "jaxrnn_forward" in jax.jit(run).lower(*given.inputs).as_text()
    assert kernels.load("native") is native


class TestNative(Conformance):
    implementation = "native"
    exact = "float32"
