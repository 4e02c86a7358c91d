"""Test the tasks, the initial weights and the comparisons of `initialisation` by hand and numpy."""

import math
from typing import Any

import jax
import numpy as np
import pytest

import jaxrnn
from experiments import Holds, _starts, initialisation

pytestmark = pytest.mark.once


def test_adding() -> None:
    xs, sums = map(np.asarray, initialisation.add(jax.random.key(5), 50, 500, False))
    assert xs.shape == (50, 500, 2)
    for row in range(500):
        first, second = np.flatnonzero(xs[:, row, 1])
        assert first < 25 <= second
        assert sums[row] == pytest.approx(xs[first, row, 0] + xs[second, row, 0])
    ones = np.ones((50, 500, 1), np.float32)
    assert float(initialisation.relative_error(ones, sums)) == pytest.approx(1, rel=0.15)


def test_the_targets_of_the_text_are_the_next_characters() -> None:
    task = initialisation.reading(quick=True)
    for held_out in (True, False):
        xs, targets = map(np.asarray, task.batch(jax.random.key(0), 50, 7, held_out))
        assert xs.shape == (50, 7, task.inputs)
        np.testing.assert_array_equal(xs[1:].argmax(-1), targets[:-1])
    uniform = np.zeros((*targets.shape, task.outputs), np.float32)
    assert float(task.loss(uniform, targets)) == pytest.approx(math.log(task.outputs), rel=1e-5)


def test_identity_and_chrono_change_what_they_name_alone() -> None:
    key = jax.random.key(1)
    before = jaxrnn.rnn(4, activation="relu").init(key, 2)
    after = _starts.identity(key, before, 50)
    np.testing.assert_array_equal(after.w_h, np.eye(4))
    np.testing.assert_array_equal(after.w_x, before.w_x)
    before = jaxrnn.lstm(1000).init(key, 2)
    after = _starts.chrono(key, before, 50)
    i, f, g, o = np.split(np.asarray(after.b), 4)
    np.testing.assert_array_equal(i, -f)
    assert not g.any() and not o.any()
    times = np.exp(f)
    assert 1 <= times.min() < 1.5 and 48 < times.max() <= 49.01
    # The mean of a uniform number in [1, T - 1].
    assert times.mean() == pytest.approx(25, rel=0.06)
    np.testing.assert_array_equal(after.w_h, before.w_h)


def test_a_start_changes_the_initial_weights_alone() -> None:
    task = initialisation.reading(quick=True)
    training = initialisation.trainings(task)["lstm"]
    states = initialisation.begin(training, task, _starts.STARTS["lstm, bias 4"], [3, 5])
    _, f, _, _ = np.split(np.asarray(states.params.cell.b), 4, axis=-1)
    np.testing.assert_array_equal(f, 4)
    for row, seed in enumerate((3, 5)):
        common = training.begin(seed)
        np.testing.assert_array_equal(states.params.cell.w_h[row], common.params.cell.w_h)
        np.testing.assert_array_equal(
            *(jax.random.key_data(key) for key in (states.key[row], common.key))
        )


def test_intervals_and_ratios() -> None:
    losses = [0.1, 0.2, 0.4]
    middle, low, high = initialisation.interval(losses)
    assert middle == pytest.approx(0.2)
    # Student's t of 2 degrees of freedom at 97.5% is 4.3027.
    assert high / middle == pytest.approx(2 ** (4.3027 / 3**0.5), rel=1e-4)
    assert low * high == pytest.approx(middle**2)
    starts = {"a": {"loss": losses}, "b": {"loss": [0.2, 0.4, 0.8]}}
    assert initialisation.ratio(starts, "a", "b") == pytest.approx((0.5, 0.5, 0.5))


def test_no_loss_is_worse_than_the_baseline() -> None:
    task = initialisation.reading(quick=True)
    training = initialisation.trainings(task)["lstm"]
    states = initialisation.begin(training, task, _starts.STARTS["lstm, bias 1"], [0, 1, 2])
    factors = np.array([1, 1e6, np.nan], np.float32)
    weights = states.params.w_out * factors[:, None, None]
    states = states._replace(params=states.params._replace(w_out=weights))
    losses = np.asarray(initialisation.judge(training, task, 50, states))
    # Before the training, the first network is close to the baseline.
    assert losses[0] == pytest.approx(task.baseline, rel=0.05)
    np.testing.assert_array_equal(losses[1:], np.float32(task.baseline))


def test_the_verdict_follows_the_numbers() -> None:
    def judge(better: set[str]) -> Any:
        adding = {
            name: {"loss": [0.05, 0.06] if name in better else [0.2, 0.22]}
            for name in _starts.STARTS
        }
        texts = {name: {"loss": [2.0, 2.0]} for name in _starts.STARTS}
        texts["lstm, bias -2"] = {"loss": [2.0, 2 * 1.02**2]}
        numbers = {"tasks": {"adding": {"starts": adding}, "text": {"starts": texts}}}
        return initialisation.verdict(numbers, [0, 1])

    found = judge({"lstm, chrono", "tanh, orthogonal", "relu, identity"})
    assert found.holds is Holds.PARTLY
    assert "2.0%" in found.english and "2.0%" in found.korean
    assert "; a forget bias of 1 did not" in found.english
    assert "of 2 LSTMs each, 0 with forget bias -2, 0 with 0, 0 with 1" in found.english
    part = judge({"lstm, bias 1"})
    assert part.holds is Holds.PARTLY
    assert part.english.startswith("a forget bias of 1 reliably") and "tanh" in part.english
    none = judge(set())
    assert none.holds is Holds.NO and none.english.startswith("none of the starts")


def test_a_network_has_learned_below_a_tenth_of_the_baseline() -> None:
    assert initialisation.learned([0.09, 0.11, 1.0, 0.01]) == 2
