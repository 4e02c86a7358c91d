"""The cells against the lecture's equations in numpy, PyTorch's and Keras' stored results, and the
promises about their initial weights."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import gru, lstm, rnn, unroll
from tests.golden import make
from tests.support.oracle import TOLERANCES, assert_close, unchecked
from tests.support.problems import CELLS, IMPLEMENTATIONS, Problem, expected, library, problem

LSTMS = [lstm(4), lstm(4, peephole=True)]
SHUT, OPEN = -1e3, 1e3  # biases that hold a gate at exactly 0 and 1


# --- values and gradients -----------------------------------------------------------------------


@cache
def rounded_and_answer(name: str, dtype: str) -> tuple[Problem, Any]:
    with jax.enable_x64(True):
        exact = problem(CELLS[name]).cast(dtype).exact()
    return exact, expected(CELLS[name], exact)


@pytest.mark.first_case
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients_are_those_of_the_equations(
    name: str, dtype: str, implementation: str
) -> None:
    """Against numpy float64 and its finite differences, from the same rounded inputs."""
    exact, (want, want_gradients) = rounded_and_answer(name, dtype)
    with jax.enable_x64(dtype == "float64"):
        given = exact.cast(dtype)
        got, gradients = library(CELLS[name], given, implementation=implementation)
    assert_close(got, want, TOLERANCES[dtype])
    assert_close(gradients, want_gradients, max(TOLERANCES[dtype], TOLERANCES["differences"]))
    dtypes = [jax.tree.map(lambda a: a.dtype, tree) for tree in (gradients, given.inputs)]
    assert dtypes[0] == dtypes[1]


@pytest.mark.first_case
@pytest.mark.parametrize("name", make.CASES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_golden_vectors_of_pytorch_and_keras(name: str, implementation: str) -> None:
    """Against what the peers computed in float64 when `golden/make.py` last ran."""
    given, answer = make.load(name)
    with jax.enable_x64(True):
        given = given.cast("float64")
        got = library(make.CASES[name].cell, given, implementation=implementation)
    assert_close(got, answer, TOLERANCES[make.CASES[name].peer])


def test_every_golden_file_has_its_case() -> None:
    assert {path.stem for path in Path(make.__file__).parent.glob("*.npz")} == set(make.CASES)


# --- gates held open and shut (lecture row 6) -----------------------------------------------------


def held(cell: Any, **biases: float) -> Problem:
    """A problem with some gates' biases set, and no peephole strong enough to matter."""
    given = problem(cell)
    bias = given.params.b.reshape(len(cell.GATES), cell.hidden_size)
    for gate, value in biases.items():
        bias[cell.GATES.index(gate)] = value
    return given.cast("float32")


@pytest.mark.first_case
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cell", LSTMS, ids=["lstm", "peephole"])
def test_forget_gate_shut_only_the_block_input_counts(cell: Any, implementation: str) -> None:
    """With f = 0 and i = 1 the cell is tanh of the block's input at the last step, in numpy."""
    given = held(cell, f=SHUT, i=OPEN)
    final, ys = unroll(cell, *given.inputs, implementation=implementation)
    params, xs, _ = given.exact().inputs
    block = slice(2 * cell.hidden_size, 3 * cell.hidden_size)
    last = np.asarray(ys[-2], np.float64) @ params.w_h[:, block] + xs[-1] @ params.w_x[:, block]
    assert_close(final.cell, np.tanh(last + params.b[block]), TOLERANCES["float32"])


@pytest.mark.first_case
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cell", LSTMS, ids=["lstm", "peephole"])
def test_forget_gate_shut_nothing_of_the_old_cell_is_left(cell: Any, implementation: str) -> None:
    """With f = 0 and i = 1 another first cell changes nothing at all, and has zero gradient."""
    given = held(cell, f=SHUT, i=OPEN)
    other = given._replace(state=given.state._replace(cell=-given.state.cell))
    (got, gradients), (want, _) = (
        library(cell, p, implementation=implementation) for p in (given, other)
    )
    assert_close(got, want, 0)
    assert not gradients[2].cell.any()


@pytest.mark.first_case
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cell", LSTMS, ids=["lstm", "peephole"])
def test_input_gate_shut_and_forget_gate_open_the_cell_is_kept(
    cell: Any, implementation: str
) -> None:
    """With i = 0 and f = 1 the last cell is the first, bit for bit, and no input reaches it."""
    given = held(cell, f=OPEN, i=SHUT)
    given = given._replace(weights=jax.tree.map(jnp.zeros_like, given.weights))
    weights = given.weights[0]._replace(cell=jnp.ones_like(given.state.cell))
    given = given._replace(weights=(weights, given.weights[1]))
    (final, _), (_, d_xs, d_state) = library(cell, given, implementation=implementation)
    assert_close(final.cell, given.state.cell, 0)
    assert not d_xs.any()
    assert (d_state.cell == 1).all()
    assert not d_state.hidden.any()


@pytest.mark.first_case
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["gru-before", "gru-after"])
def test_update_gate_at_one_keeps_the_state(name: str, implementation: str) -> None:
    """With z = 1 a GRU's last state is its first, bit for bit."""
    given = held(CELLS[name], z=OPEN)
    final, _ = unroll(CELLS[name], *given.inputs, implementation=implementation)
    assert_close(final, given.state, 0)


# --- making a cell ------------------------------------------------------------------------------


@pytest.mark.parametrize("make_cell", [rnn, lstm, gru])
@pytest.mark.parametrize("hidden", [2.5, 8.0, "8", None, True, np.float32(8), np.bool_(True)])
def test_hidden_must_be_a_whole_number(make_cell: Any, hidden: Any) -> None:
    message = f"hidden_size must be a whole number, not {re.escape(repr(hidden))}"
    with unchecked(), pytest.raises(ValueError, match=message):
        make_cell(hidden)


@pytest.mark.parametrize("make_cell", [rnn, lstm, gru])
@pytest.mark.parametrize("hidden", [0, -3, np.int64(0)])
def test_hidden_must_be_positive(make_cell: Any, hidden: Any) -> None:
    with (
        unchecked(),
        pytest.raises(ValueError, match=f"hidden_size must be at least 1, not {hidden}"),
    ):
        make_cell(hidden)


@pytest.mark.parametrize("integer", [np.int64, np.uint8, np.int32, jnp.int32])
def test_numbers_of_numpy_are_numbers(integer: Any) -> None:
    """The cell is the one made from Python's, its text too."""
    with unchecked():
        cell = lstm(integer(8), peephole=np.bool_(True), forget_bias=np.float32(0.5))
    same = lstm(8, peephole=True, forget_bias=0.5)
    assert cell == same and repr(cell) == repr(same) and hash(cell) == hash(same)
    w_x = cell.init(jax.random.key(0), np.int64(3)).w_x
    assert w_x.shape == (3, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peephole": 64}, "peephole must be True or False, not 64"),  # torch's second width
        ({"peephole": "yes"}, "peephole must be True or False, not 'yes'"),
        ({"forget_bias": "1"}, "forget_bias must be a finite number, not '1'"),
        ({"forget_bias": float("nan")}, "forget_bias must be a finite number, not nan"),
        ({"forget_bias": True}, "forget_bias must be a finite number, not True"),
    ],
)
def test_options_of_the_lstm_are_checked(options: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(ValueError, match=message):
        lstm(4, **options)


@pytest.mark.parametrize(
    ("make_cell", "option", "choices"),
    [
        (rnn, "activation", "tanh, relu, sigmoid"),
        (gru, "reset", "before, after"),
        (rnn, "recurrent_init", "orthogonal, glorot"),
        (lstm, "recurrent_init", "orthogonal, glorot"),
        (gru, "recurrent_init", "orthogonal, glorot"),
    ],
)
def test_options_must_be_listed(make_cell: Any, option: str, choices: str) -> None:
    message = f"{option} must be one of {choices}, not 'swish'"
    with unchecked(), pytest.raises(ValueError, match=message):
        make_cell(4, **{option: "swish"})


@pytest.mark.parametrize(
    ("input_size", "message"),
    [(0, "at least 1, not 0"), (-1, "at least 1, not -1"), (2.0, "a whole number, not 2.0")],
)
def test_input_size_must_be_positive(input_size: Any, message: str) -> None:
    with unchecked(), pytest.raises(ValueError, match=f"input_size must be {message}"):
        lstm(4).init(jax.random.key(0), input_size)


def test_cells_compare_by_value() -> None:
    assert lstm(4, peephole=True) == lstm(4, peephole=True) != lstm(4)
    assert hash(gru(4)) == hash(gru(4, reset="before"))
    assert len({rnn(4), lstm(4), gru(4), rnn(5), rnn(4, activation="relu")}) == 5


# --- initial weights and states -----------------------------------------------------------------

FEATURES, WIDTH = 64, 48


def blocks(cell: Any, w: Any) -> list[np.ndarray]:
    return np.split(np.asarray(w), len(cell.GATES), axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [rnn(WIDTH), lstm(WIDTH), gru(WIDTH)], ids=["rnn", "lstm", "gru"])
def test_recurrent_weights_are_orthogonal_gate_by_gate(cell: Any) -> None:
    params = cell.init(jax.random.key(0), FEATURES)
    for q in blocks(cell, params.w_h):
        np.testing.assert_allclose(q.T @ q, np.eye(WIDTH), atol=TOLERANCES["orthogonal"])


@pytest.mark.parametrize("cell", [rnn(WIDTH), lstm(WIDTH), gru(WIDTH)], ids=["rnn", "lstm", "gru"])
def test_input_weights_are_glorot_uniform_gate_by_gate(cell: Any) -> None:
    """Uniform within sqrt(6 / (D + H)): the limit kept and reached, the variance limit^2 / 3."""
    params = cell.init(jax.random.key(0), FEATURES)
    limit = np.sqrt(6 / (FEATURES + WIDTH))
    for w in blocks(cell, params.w_x):
        assert 0.99 * limit < np.abs(w).max() <= limit
        assert np.var(w) == pytest.approx(limit**2 / 3, rel=TOLERANCES["variance"])


@pytest.mark.slow
def test_orthogonal_weights_are_distributed_as_those_of_a_qr_decomposition() -> None:
    """Moments of the entries, which of a sparse or little-mixed rotation are far larger."""
    w = np.asarray(rnn(256).init(jax.random.key(0), 1).w_h, np.float64)
    assert (w**4).mean() == pytest.approx(3 / (256 * 258), rel=TOLERANCES["variance"])
    assert np.abs(w).max() < 6 / 16  # six standard deviations
    assert abs(np.trace(w)) < 5  # normal, of variance 1
    inner = np.linalg.svd(w[:128, :128], compute_uv=False)  # squares: half below 1/2, by arcsine
    assert np.mean(inner**2 < 0.5) == pytest.approx(0.5, abs=0.1)


INITIAL = """
import os, sys
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]))
import hashlib, jax, numpy as np, jaxrnn
for cell in (jaxrnn.rnn(300), jaxrnn.gru(257)):
    for leaf in jax.tree.leaves(cell.init(jax.random.key(0), 100)):
        print(hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest())
"""


@pytest.mark.process
@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="waits for two cores",
)
def test_initial_weights_do_not_depend_on_the_number_of_cores() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", INITIAL, cores], capture_output=True, text=True, check=True
        ).stdout
        for cores in ("1", "2")
    ]
    assert found[0] and found[0] == found[1]


@pytest.mark.first_case
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_small_widths_are_orthogonal_too(size: int) -> None:
    w = np.asarray(rnn(size).init(jax.random.key(0), 1).w_h)
    np.testing.assert_allclose(w.T @ w, np.eye(size), atol=TOLERANCES["orthogonal"])


@pytest.mark.slow
def test_recurrent_weights_may_be_glorot_uniform() -> None:
    cell = gru(WIDTH, recurrent_init="glorot")
    limit = np.sqrt(6 / (2 * WIDTH))
    for w in blocks(cell, cell.init(jax.random.key(0), FEATURES).w_h):
        assert 0.99 * limit < np.abs(w).max() <= limit


@pytest.mark.parametrize("cell", [rnn(WIDTH), lstm(WIDTH), gru(WIDTH)], ids=["rnn", "lstm", "gru"])
def test_gates_are_drawn_apart_and_the_key_decides(cell: Any) -> None:
    params, same, other = (cell.init(jax.random.key(seed), FEATURES) for seed in (0, 0, 1))
    assert_close(params, same, 0)
    for w, again in ((params.w_x, other.w_x), (params.w_h, other.w_h)):
        every = blocks(cell, w) + blocks(cell, again)
        assert len({block.tobytes() for block in every}) == len(every)


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_biases_and_peepholes_start_at_zero_but_for_the_forget_gate(name: str) -> None:
    cell = CELLS[name]
    params = cell.init(jax.random.key(0), 3)
    bias = dict(zip(cell.GATES, np.split(np.asarray(params.b), len(cell.GATES)), strict=True))
    for gate, b in bias.items():
        assert (b == (1 if gate == "f" else 0)).all()
    for extra in params[3:]:
        assert extra is None or not extra.any()


def test_forget_bias_is_the_callers() -> None:
    b = lstm(2, forget_bias=-0.5).init(jax.random.key(0), 3).b
    np.testing.assert_array_equal(b, [0, 0, -0.5, -0.5, 0, 0, 0, 0])


@pytest.mark.first_case
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CELLS)
def test_dtypes_of_parameters_state_and_projection(name: str, dtype: str) -> None:
    """Parameters in the dtype asked for; the state zero, it and the projection in float32."""
    cell = CELLS[name]
    params = cell.init(jax.random.key(0), 3, dtype)
    state = cell.initial_state(2)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    assert all(s.dtype == jnp.float32 and s.shape == (2, 4) and not s.any() for s in state)
    assert cell.project(params, jnp.ones((2, 3), dtype)).dtype == jnp.float32


@pytest.mark.first_case
@pytest.mark.parametrize("name", CELLS)
def test_project_takes_any_leading_axes(name: str) -> None:
    """[5, 2, 3], [2, 3] and [3] give the same rows, and those are x W_x + b in numpy."""
    given = problem(CELLS[name])
    params, xs, _ = given.cast("float32").inputs
    whole = CELLS[name].project(params, xs)
    assert_close(whole, given.xs @ given.params.w_x + given.params.b, TOLERANCES["float32"])
    assert_close(CELLS[name].project(params, xs[1]), whole[1], TOLERANCES["float32"])
    assert_close(CELLS[name].project(params, xs[1, 1]), whole[1, 1], TOLERANCES["float32"])


@pytest.mark.first_case
@pytest.mark.parametrize("name", CELLS)
def test_a_step_of_one_row_without_a_batch_axis(name: str) -> None:
    """The state [H] and all that the step computes are the row of the batch, not [1, H]."""
    cell = CELLS[name]
    params, xs, state = problem(cell).cast("float32").inputs
    one = jax.tree.map(lambda s: s[1], state)
    gx = cell.project(params, xs[0])
    want = jax.tree.map(
        lambda a: a[1], (cell.step(params, state, gx), cell.activations(params, state, gx))
    )
    with unchecked():  # the annotations say [B, H]
        got = cell.step(params, one, gx[1]), cell.activations(params, one, gx[1])
    assert_close(got, want, TOLERANCES["float32"])
