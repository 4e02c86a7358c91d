"""Test `lstm_limits`: gates held at a value, the equation of the cell, the timing tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments import lstm_limits

pytestmark = pytest.mark.once


@pytest.mark.slow
@pytest.mark.parametrize(("gate", "name"), [(0, "i"), (1, "f")])
@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_a_gate_that_is_held_does_not_change(gate: int, name: str, value: float) -> None:
    cell = jaxrnn.lstm(5, peephole=True)
    keys = jax.random.split(jax.random.key(0), 3)
    params = cell.init(keys[0], 3)._replace(w_c=jax.random.normal(keys[1], (3, 5)))
    xs = 5 * jax.random.normal(keys[2], (20, 4, 3))
    state = cell.initial_state(4)._replace(cell=3 * jnp.ones((4, 5)))
    params = lstm_limits.hold(params, gate, value)
    _, _, inside = jaxrnn.record(cell, params, xs, state, names=["i", "f"])
    exactly = 0 if value in (0, 1) else 1e-7
    np.testing.assert_allclose(inside[name], value, rtol=0, atol=exactly)
    other = inside["f" if name == "i" else "i"]
    assert other.max() - other.min() > 0.5


def test_the_equation_is_the_cells_recurrence() -> None:
    g, first = np.random.default_rng(0).normal(size=(30, 4)), np.array([1.0, -2, 0, 5])
    for alpha, beta in ((0.9, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.3)):
        cell, cells = first, []
        for block_input in g:
            cell = alpha * cell + beta * block_input
            cells.append(cell)
        made = lstm_limits.by_equation(alpha, beta, first, g)
        np.testing.assert_allclose(made, np.stack(cells), rtol=1e-12, atol=1e-12)


@pytest.mark.first_case
@pytest.mark.parametrize("name", ["fire", "tell"])
def test_the_answer_follows_from_the_spikes(name: str) -> None:
    spikes, wanted, counts = jax.device_get(lstm_limits.TASKS[name](jax.random.key(0), 200))
    delays = set()
    for row in range(200):
        when = np.flatnonzero(spikes[:, row, 0])
        answers = np.flatnonzero(wanted[:, row])
        assert when[0] < lstm_limits.EARLY
        if name == "fire":
            assert len(when) == 1 and answers.tolist() == [when[0] + lstm_limits.DELAY]
            assert counts[:, row].all()
        else:
            delays.add(when[1] - when[0])
            late = when[1] - when[0] == lstm_limits.DELAY + 1
            assert answers.tolist() == (when[1:].tolist() if late else [])
            assert np.flatnonzero(counts[:, row]).tolist() == when[1:].tolist()
    assert name == "fire" or delays == {lstm_limits.DELAY, lstm_limits.DELAY + 1}
