"""The influence of earlier inputs by lag, against finite differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import gradient_flow, lstm, rnn
from tests.support.oracle import TOLERANCES, assert_close, trace
from tests.support.problems import CELLS, problem

T, B = 5, 2


@pytest.mark.first_case
@pytest.mark.parametrize("name", ["rnn-tanh", "lstm-peephole", "gru-before", "gru-after"])
def test_gradient_flow_is_the_norm_of_the_jacobian(name: str) -> None:
    """Every entry of the Jacobian by central differences of the numpy oracle."""
    cell, given = CELLS[name], problem(CELLS[name], T, B)
    params, xs, state = given.inputs
    squares = np.zeros((T, B))
    for at in np.ndindex(xs.shape):
        ends = []
        for change in 1e-5, -1e-5:
            moved = xs.copy()
            moved[at] += change
            ends.append(trace(cell, params, moved, state)[1]["hidden"][-1])
        jacobian = (ends[0] - ends[1]) / 2e-5  # [B, H], zero in the other rows
        squares[at[:2]] += (jacobian[at[1]] ** 2).sum()
    with jax.enable_x64(True):
        flow = gradient_flow(cell, *given.cast("float64").inputs)
    assert_close(np.exp(flow), np.sqrt(squares)[::-1], TOLERANCES["float32"])


@pytest.mark.slow
def test_what_is_too_small_for_float32_is_still_told() -> None:
    """A linear chain, h^t = x^t + h^{t-1}/10^3, whose influence falls by 1000 a step."""
    cell = rnn(1, activation="relu")
    params = cell.init(jax.random.key(0), 1)._replace(w_x=jnp.ones((1, 1)))
    params = params._replace(w_h=jnp.full((1, 1), 1e-3))
    flow = gradient_flow(cell, params, jnp.ones((12, 1, 1)))
    want = -np.arange(12) * math.log(1000)
    np.testing.assert_allclose(flow[:, 0], want, rtol=1e-5)  # 1e-33 squared is 0 in float32
    resets = jnp.zeros((12, 1), bool).at[8].set(True)
    flow = gradient_flow(cell, params, jnp.ones((12, 1, 1)), resets=resets)
    assert np.isneginf(flow[4:]).all() and np.isfinite(flow[:4]).all()


def test_gradient_flow_refuses_what_unroll_refuses() -> None:
    cell = lstm(4)
    with pytest.raises(ValueError, match="cannot run this"):
        gradient_flow(
            cell, cell.init(jax.random.key(0), 3), jnp.ones((4, 2, 3)), implementation="tpu"
        )
