"""A cell with an output layer: against the equations in numpy, its forecasts, its errors."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import lstm, network
from tests.support.oracle import STEPS, TOLERANCES, assert_close, trace, unchecked
from tests.support.problems import CELLS, HIDDEN

INPUTS, OUTPUTS, BATCH, LENGTH = 3, 2, 2, 6

cells = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def random(like: Any, seed: int) -> Any:
    """Float64 entries, none zero, of the shapes of a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: 0.5 * rng.standard_normal(a.shape), like)


def given(cell: Any, outputs: int = OUTPUTS) -> tuple[Any, Any, Any, Any]:
    net = network(cell, INPUTS, outputs)
    params = random(net.init(jax.random.key(0)), 1)
    xs, state = random((np.empty((LENGTH, BATCH, INPUTS)), cell.initial_state(BATCH)), 2)
    return net, params, xs, state


@pytest.mark.slow
@cells
def test_apply_is_the_output_layer_over_the_cell(cell: Any) -> None:
    net, params, xs, state = given(cell)
    resets = np.zeros((LENGTH, BATCH), bool)
    resets[2, 0] = True
    final, inside = trace(cell, params.cell, xs, state, resets=resets)
    with jax.enable_x64(True):
        got = net.apply(
            *jax.tree.map(jnp.asarray, (params, xs, state)),
            resets=jnp.asarray(resets),
        )
    outputs = inside["hidden"] @ params.w_out + params.b_out
    assert_close(got, (final, outputs), TOLERANCES["float64"])


@pytest.mark.slow
@cells
def test_a_forecast_feeds_its_outputs_back(cell: Any) -> None:
    """Against a loop in numpy; the first value is the plain one-step prediction."""
    net, params, xs, state = given(cell, outputs=INPUTS)
    now, inside = trace(cell, params.cell, xs, state)
    want = [inside["hidden"][-1] @ params.w_out + params.b_out]
    for _ in range(3):
        rows = []
        for row in range(BATCH):
            before = tuple(s[row] for s in now)
            computed = STEPS[type(cell)](cell, params.cell, before, want[-1][row])
            rows.append(tuple(computed.values())[: len(now)])
        now = [np.stack(parts) for parts in zip(*rows, strict=True)]
        want.append(now[0] @ params.w_out + params.b_out)
    with jax.enable_x64(True):
        params, xs, state = jax.tree.map(jnp.asarray, (params, xs, state))
        got = jax.jit(net.forecast, static_argnums=2)(params, xs, 4, state)
    assert_close(got, np.stack(want), TOLERANCES["float64"])


@pytest.mark.slow
def test_a_forecast_of_one_step_is_the_last_output() -> None:
    net, params, xs, state = given(lstm(HIDDEN), outputs=INPUTS)
    params, xs, state = jax.tree.map(jnp.float32, (params, xs, state))
    assert_close(net.forecast(params, xs, 1, state)[0], net.apply(params, xs, state)[1][-1], 0)


@pytest.mark.slow
def test_first_parameters() -> None:
    net = network(lstm(200), 3, 100)
    params = net.init(jax.random.key(0))
    assert params.w_out.shape == (200, 100) and not params.b_out.any()
    np.testing.assert_allclose(params.w_out.var(), 2 / 300, rtol=TOLERANCES["variance"])
    assert net.init(jax.random.key(0), jnp.bfloat16).w_out.dtype == jnp.bfloat16
    assert not np.array_equal(params.cell.w_x, net.init(jax.random.key(1)).cell.w_x)


@pytest.mark.slow
def test_bfloat16_gives_float32_outputs() -> None:
    net, params, xs, state = given(lstm(HIDDEN), outputs=INPUTS)
    params, xs = jax.tree.map(jnp.bfloat16, (params, xs))
    _, outputs = net.apply(params, xs, jax.tree.map(jnp.float32, state))
    assert outputs.dtype == jnp.float32
    assert net.forecast(params, xs, 2).dtype == jnp.bfloat16  # as the series


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (0, 2, "inputs must be at least 1, not 0"),
        (3, -1, "outputs must be at least 1, not -1"),
        (3, 1.5, "outputs must be a whole number, not 1.5"),
        (True, 2, "inputs must be a whole number, not True"),
    ],
)
def test_widths_must_be_positive_whole_numbers(inputs: Any, outputs: Any, message: str) -> None:
    with unchecked(), pytest.raises(ValueError, match=message):
        network(lstm(4), inputs, outputs)


@pytest.mark.parametrize(("w_out", "b_out"), [((4, 3), (3,)), ((5, 2), (2,)), ((4, 2), (1,))])
def test_an_output_layer_of_another_network_is_refused(w_out: Any, b_out: Any) -> None:
    net = network(lstm(4), 3, 2)
    params = net.init(jax.random.key(0))._replace(w_out=jnp.ones(w_out), b_out=jnp.ones(b_out))
    message = re.escape(f"must be of shape (4, 2) and (2,), not {w_out} and {b_out}")
    with unchecked(), pytest.raises(ValueError, match=message):
        net.apply(params, jnp.ones((5, 2, 3)))


def test_widths_may_be_numbers_of_numpy() -> None:
    with unchecked():
        net = network(lstm(4), np.int64(3), np.uint8(3))
    assert net == network(lstm(4), 3, 3) and hash(net) == hash(network(lstm(4), 3, 3))
    series = jnp.ones((5, 2, 3))
    assert net.forecast(net.init(jax.random.key(0)), series, np.int32(4)).shape == (4, 2, 3)


@pytest.mark.parametrize(
    ("outputs", "length", "steps", "message"),
    [
        (2, 6, 1, "outputs 2 must be inputs 3"),
        (3, 6, 0, "steps must be at least 1, not 0"),
        (3, 6, 1.0, "steps must be a whole number, not 1.0"),
        (3, 0, 1, "at least one known step: xs has T = 0"),
    ],
)
def test_a_forecast_that_cannot_be(outputs: int, length: int, steps: int, message: str) -> None:
    net = network(lstm(4), 3, outputs)
    params = net.init(jax.random.key(0))
    with unchecked(), pytest.raises(ValueError, match=message):
        net.forecast(params, jnp.zeros((length, 2, 3)), steps)
