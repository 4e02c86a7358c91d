"""A cell that a user wrote runs in `unroll`, and its parameters are checked too."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import record, rnn, unroll
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
