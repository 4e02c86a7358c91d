"""A cell that a user wrote runs in `unroll`, and its parameters are checked too."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import mgu, network, record, rnn, unroll
from jaxrnn.layers import stacked
from tests.support.oracle import TOLERANCES, assert_close, unchecked
from tests.support.problems import (
    BATCH,
    FEATURES,
    HIDDEN,
    STEPS,
    Leaky,
    LeakyParams,
    problem,
)

# --- a cell of one's own ------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", [None, "scan"])
def test_a_cell_of_ones_own(implementation: Any) -> None:
    """Against a plain loop in numpy float64."""
    cell = Leaky(HIDDEN)
    params = cell.init(jax.random.key(0), FEATURES)
    xs = problem(rnn(HIDDEN), STEPS, BATCH, FEATURES).cast("float32").xs
    final, ys = unroll(cell, params, xs, implementation=implementation)
    w_x, w_h = (np.asarray(w, np.float64) for w in params)
    h, want = np.zeros((BATCH, HIDDEN)), []
    for x in np.asarray(xs, np.float64):
        h = (h + np.tanh(x @ w_x + h @ w_h)) / 2
        want.append(h)
    assert_close((final, ys), (h, np.stack(want)), TOLERANCES["float32"])


def test_parameters_of_a_cell_of_ones_own_are_checked_too() -> None:
    xs = jnp.zeros((STEPS, BATCH, FEATURES))
    with pytest.raises(ValueError, match=r"params\.w_x must be .*\(3, 4\).*Leaky.*\(3, 5\)"):
        unroll(Leaky(4), Leaky(5).init(jax.random.key(0), FEATURES), xs)
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"params must be LeakyParams, .*not RNNParams"),
    ):
        unroll(Leaky(4), rnn(4).init(jax.random.key(0), FEATURES), xs)


class Unlike(Leaky):
    """Compared by identity; its init takes no dtype and needs a number of its key."""

    def __init__(self, hidden: int) -> None:
        object.__setattr__(self, "hidden_size", hidden)

    __eq__, __hash__ = object.__eq__, object.__hash__

    def init(self, key: Any, input_size: int) -> LeakyParams:  # type: ignore[override]
        rng = np.random.default_rng(int(jax.random.key_data(key)[0]))
        shapes = (input_size, self.hidden_size), (self.hidden_size, self.hidden_size)
        return LeakyParams(*(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes))


class Unhashable(Unlike):
    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class Float32Alone(Leaky):
    """Its init knows one dtype; its parameters may be cast all the same."""

    def init(self, key: Any, input_size: int, dtype: Any = None) -> LeakyParams:
        return super().init(key, input_size)

    def project(self, params: LeakyParams, xs: Any) -> Any:
        return super().project(params, xs).astype(jnp.float32)


@pytest.mark.first_case
@pytest.mark.parametrize("make", [Unlike, Unhashable, Float32Alone])
def test_cells_that_are_not_as_the_librarys(make: Any) -> None:
    """An init that JAX cannot evaluate without numbers is not asked; no cell need compare by value."""
    cell, dtype = make(HIDDEN), jnp.bfloat16 if make is Float32Alone else jnp.float32
    params = jax.tree.map(lambda w: w.astype(dtype), cell.init(jax.random.key(0), FEATURES))
    xs = jnp.ones((STEPS, BATCH, FEATURES), dtype)
    with jax.numpy_dtype_promotion("standard"):
        _, got = unroll(cell, params, xs)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, xs))
        _, want = unroll(Leaky(HIDDEN), *wide)
    assert_close(got, want, TOLERANCES[jnp.dtype(dtype).name])


def test_a_cell_of_ones_own_without_activations_cannot_be_recorded() -> None:
    cell = Leaky(HIDDEN)
    params = cell.init(jax.random.key(0), FEATURES)
    with pytest.raises(ValueError, match="Leaky cannot record 'hidden': it has no activations"):
        record(cell, params, jnp.zeros((STEPS, BATCH, FEATURES)), names=["hidden"])


# --- states of any rank, and what does not fit ----------------------------------------------------


class MatrixState(NamedTuple):
    hidden: Any
    matrix: Any
    steps: Any


class Matrix(Leaky):
    """A memory [B, H, H] and a count [B] beside the hidden state."""

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> Any:
        size = self.hidden_size
        shapes = (batch, size), (batch, size, size), (batch,)
        return MatrixState(*(jnp.zeros(shape, dtype) for shape in shapes))

    def step(self, params: LeakyParams, state: Any, gx: Any) -> tuple[Any, Any]:
        written = jnp.tanh(gx + state.hidden @ params.w_h)
        matrix = 0.9 * state.matrix + gx[:, :, None] * written[:, None, :]
        count = state.steps + 1
        hidden = jnp.tanh(matrix.sum(1) / count[:, None])
        return MatrixState(hidden, matrix, count), hidden


@pytest.mark.parametrize("implementation", ["scan", "xla"])
def test_a_state_of_any_rank_is_chosen_by_rows(implementation: Any) -> None:
    """With as many rows as units, so that an axis can be mistaken for another."""
    cell = Matrix(BATCH)
    params = cell.init(jax.random.key(0), FEATURES)
    xs = jax.random.normal(jax.random.key(1), (STEPS, BATCH, FEATURES))
    lengths = np.full(BATCH, STEPS)
    lengths[0] = 2
    resets = np.zeros((STEPS, BATCH), bool)
    resets[3, 1] = True

    def loss(params: Any, xs: Any, run: Any) -> Any:
        state, ys = run(params, xs)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves((state, ys))), (state, ys)

    def together(params: Any, xs: Any) -> Any:
        how: Any = {"lengths": lengths, "resets": resets, "implementation": implementation}
        return unroll(cell, params, xs, **how)

    def row_by_row(params: Any, xs: Any) -> Any:
        states, outputs = [], []
        for row, length in enumerate(lengths):
            state, ys = cell.initial_state(1), []
            for t in range(length):
                if resets[t, row]:
                    state = cell.initial_state(1)
                state, y = cell.step(params, state, cell.project(params, xs[t, row : row + 1]))
                ys.append(y)
            states.append(state)
            outputs.append(jnp.pad(jnp.concatenate(ys), ((0, STEPS - length), (0, 0))))
        return jax.tree.map(lambda *a: jnp.concatenate(a), *states), jnp.stack(outputs, axis=1)

    slope = jax.grad(loss, (0, 1), has_aux=True)
    got, want = (slope(params, xs, run) for run in (together, row_by_row))
    assert_close(got, want, TOLERANCES["float32"])


class Narrow(Leaky):
    """Its output is narrower than its hidden state."""

    def step(self, params: LeakyParams, state: Any, gx: Any) -> tuple[Any, Any]:
        state, y = super().step(params, state, gx)
        return state, y[:, 1:]


class Mapping(Leaky):
    """Its parameters are a dict."""

    def init(self, key: Any, input_size: int, dtype: Any = jnp.float32) -> Any:
        return super().init(key, input_size, dtype)._asdict()


@pytest.mark.parametrize("implementation", ["scan", "xla"])
@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Narrow(HIDDEN), r"the output of a step of Narrow\(.*\[B, hidden_size\] = .* not "),
        (Mapping(HIDDEN), r"params must have the input weights w_x .* and dict has none"),
    ],
    ids=["output", "parameters"],
)
def test_what_a_cell_must_give_is_checked(cell: Any, message: str, implementation: Any) -> None:
    params = cell.init(jax.random.key(0), FEATURES)
    xs = jnp.ones((STEPS, BATCH, FEATURES))
    with unchecked(), pytest.raises(ValueError, match=message):
        unroll(cell, params, xs, implementation=implementation)


def test_what_is_no_cell_is_refused() -> None:
    net = stacked(rnn(HIDDEN), FEATURES)
    params = net.init(jax.random.key(0))
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"cell must be a jaxrnn\.Cell, .*not Stacked"),
    ):
        unroll(net, params, jnp.ones((STEPS, BATCH, FEATURES)))
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"cell must be a jaxrnn\.Cell, .*not Stacked"),
    ):
        network(net, FEATURES, 1)


def test_weights_are_floats() -> None:
    for cell in (rnn(HIDDEN), mgu(HIDDEN)):
        with pytest.raises(ValueError, match=r"the dtype must be one of floats, .* not int32"):
            cell.init(jax.random.key(0), FEATURES, "int32")
