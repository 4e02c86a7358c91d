"""Test `lstm_limits`: gates held at a value, the equation of the cell, the timing tasks."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments import Holds, lstm_limits

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


def test_the_answer_is_the_number_of_steps_between_the_spikes() -> None:
    shown, second, longer = jax.device_get(lstm_limits.spikes(jax.random.key(0), 30, 300))
    for row in range(300):
        first, last = np.flatnonzero(shown[:, row, 0])
        assert first < lstm_limits.EARLY and last - first == 30 + longer[row]
        assert np.flatnonzero(second[:, row]).tolist() == [last]
    assert set(longer) == {0, 1, 2, 3}


class Fixed(NamedTuple):
    """A network whose output [T] is its parameters, for all rows."""

    def apply(self, params: Any, xs: Any) -> tuple[None, Any]:
        return None, jnp.zeros((*xs.shape[:2], 1)) + params[: len(xs), None, None]


def test_measuring_is_not_solved_by_one_answer_for_all() -> None:
    network: Any = Fixed()
    training, solves = lstm_limits.measuring(network, 10)
    shown, second, longer = training.task(jax.random.key(0))
    steps = shown.shape[0]
    answers = jnp.full(steps, 0.5)
    wanted = np.where(longer == 1, 1, -1)
    assert training.loss(answers, (shown, second, longer)) == pytest.approx(
        np.mean((0.5 - wanted) ** 2)
    )
    assert not solves(answers)


def test_generating_is_solved_by_a_spike_at_every_interval_only() -> None:
    network: Any = Fixed()
    training, solves = lstm_limits.generating(network, 5)
    steps = 5 * lstm_limits.TESTED
    wanted = np.where(np.arange(1, 1 + steps) % 5 == 0, 9.0, -9.0).astype(np.float32)
    assert solves(jnp.asarray(wanted))
    assert training.loss(jnp.asarray(wanted), None) == pytest.approx(
        5 * math.log1p(math.exp(-9)), rel=1e-4
    )
    for step in (0, steps - 1):
        other = wanted.copy()
        other[step] *= -1
        assert not solves(jnp.asarray(other))


def test_the_interval_of_a_share() -> None:
    low, high = lstm_limits.interval_of_share(5, 10)
    assert (low, high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert lstm_limits.interval_of_share(0, 12)[0] == 0
    assert lstm_limits.interval_of_share(12, 12)[1] == 1


@pytest.mark.parametrize(
    ("solved", "error", "holds"),
    [
        ((12, 2), 0.0, Holds.YES),
        ((6, 6), 0.0, Holds.PARTLY),
        ((2, 12), 0.0, Holds.PARTLY),
        ((12, 2), 0.1, Holds.NO),
    ],
)
def test_the_claim_needs_exact_limits_and_peepholes_that_help(
    solved: tuple[int, int], error: float, holds: Holds
) -> None:
    by_kind = zip(lstm_limits.KINDS, solved, strict=True)
    numbers = {
        "cases": {name: {"largest_error": error} for name in lstm_limits.LIMITS},
        "timing": {"measure": {kind: [{"solved": count}] for kind, count in by_kind}},
    }
    assert lstm_limits.verdict(numbers, list(range(12))).holds is holds
