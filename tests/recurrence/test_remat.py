"""`save_every`: fewer saved states, the same results."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import lstm, rnn, unroll
from jaxrnn.recurrence.api import unroll_projected
from jaxrnn.recurrence.problem import Lookup
from tests.support.oracle import TOLERANCES, assert_close
from tests.support.problems import (
    BATCH,
    CELLS,
    FEATURES,
    HIDDEN,
    MASKS,
    STEPS,
    expected,
    implementations,
    in_float32,
    library,
    on_device,
    problem,
)

# --- fewer states kept --------------------------------------------------------------------------


@pytest.mark.slow
@implementations
@pytest.mark.parametrize(
    ("name", "mask", "reverse", "save_every"),
    [
        ("lstm-peephole", "both", False, 2),  # a step is left over: the last one
        ("lstm-peephole", "both", True, 2),  # and here it comes first
        ("gru-after", "plain", True, 5),  # all at once
        ("gru-before", "lengths", False, 9),  # more than there are
    ],
)
def test_save_every_changes_no_result(
    name: str, mask: str, reverse: bool, save_every: int, implementation: str
) -> None:
    """Values and gradients are those of the numpy oracle."""
    cell, masks = CELLS[name], MASKS[mask]
    exact = problem(cell, STEPS, BATCH, FEATURES)
    how = {"reverse": reverse, "implementation": implementation, "save_every": save_every}
    with jax.enable_x64(True):
        results, gradients = library(cell, exact.cast("float64"), **on_device(masks), **how)
    want = expected(cell, exact, **masks, reverse=reverse)
    assert_close(results, want[0], TOLERANCES["float64"])
    assert_close(gradients, want[1], TOLERANCES["differences"])


@pytest.mark.slow
@implementations
@pytest.mark.parametrize("kind", ["array", "lookup"])
def test_save_every_of_projected_inputs(kind: str, implementation: str) -> None:
    """The gradients of gx, of the table that all stretches share, and of the weights."""
    cell = CELLS["lstm"]
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 6, (7, BATCH)), jnp.int32)
    with jax.enable_x64(True):
        given = problem(cell, 7, BATCH).cast("float64")
        shape = (6, 4 * HIDDEN) if kind == "lookup" else (7, BATCH, 4 * HIDDEN)
        numbers = jnp.asarray(rng.standard_normal(shape))

        def loss(numbers: Any, params: Any, save_every: int) -> Any:
            gx = Lookup(numbers, tokens) if kind == "lookup" else numbers
            how = {"implementation": implementation, "save_every": save_every}
            _, ys = unroll_projected(cell, params, gx, **how)
            return (ys * given.weights[1]).sum()

        run = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
        got, want = (run(numbers, given.params, every) for every in (3, 1))
    assert_close(got, want, TOLERANCES["float64"])


@pytest.mark.first_case
@implementations
def test_save_every_adds_up_gradients_in_float32(implementation: str) -> None:
    """A sigmoid RNN with no weights: each step adds 1/4 to b, 1/8 to W_h and 1/4 to W_x.

    Above 128 such a sum would not change in bfloat16, whose neighbouring numbers differ by 1 there.
    """
    cell, steps = rnn(2, activation="sigmoid"), 2000
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0), 1, jnp.bfloat16))
    xs = jnp.ones((steps, 1, 1), jnp.bfloat16)

    def loss(params: Any) -> Any:
        how = {"implementation": implementation, "save_every": 2}
        return unroll(cell, params, xs, **how)[1].astype(jnp.float32).sum()

    got = jax.jit(jax.grad(loss))(params)
    whole = {"w_x": steps / 4, "w_h": (steps - 1) / 8, "b": steps / 4}
    want = {name: np.full(getattr(got, name).shape, total) for name, total in whole.items()}
    assert_close(got._asdict(), want, 2**-8)


@pytest.mark.first_case
@implementations
@pytest.mark.parametrize(("name", "states", "gates"), [("lstm", 2, 4), ("gru-before", 1, 3)])
def test_save_every_keeps_every_kth_state_and_the_inputs(
    name: str, states: int, gates: int, implementation: str
) -> None:
    """Counted in what the backward pass is handed."""
    cell, steps = CELLS[name], 60
    _, given = in_float32(name, steps=steps)

    def kept(save_every: int) -> int:
        """Numbers, beside the parameters and the inputs."""
        how = {"implementation": implementation, "save_every": save_every}
        residuals = jax.eval_shape(
            lambda params, xs: jax.vjp(partial(unroll, cell, **how), params, xs)[1],
            given.params,
            given.xs,
        )
        sizes = [leaf.size for leaf in jax.tree.leaves(residuals)]
        return sum(sizes) - sum(leaf.size for leaf in jax.tree.leaves(given[:2]))

    one = BATCH * HIDDEN
    assert kept(10) == states * 6 * one
    assert kept(30) == states * 2 * one
    assert kept(1) >= (states + gates) * steps * one


@pytest.mark.slow
def test_save_every_takes_less_memory() -> None:
    """The compiler reports less than a third of the memory, for a gradient of 16 rows over 500 steps."""
    cell = lstm(32)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))

    def bytes_needed(save_every: int) -> int:
        def loss(params: Any, xs: Any) -> Any:
            state, _ = unroll(cell, params, xs, implementation="xla", save_every=save_every)
            return state.hidden.sum()

        lowered = jax.jit(jax.grad(loss)).lower(
            params, jax.ShapeDtypeStruct((500, 16, 8), jnp.float32)
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert bytes_needed(20) < bytes_needed(1) / 3
