"""Test the tasks of `long_memory`: their batches are decoded by hand."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from experiments import Holds
from experiments import long_memory as tasks

pytestmark = pytest.mark.once

ROWS = 4000


def batch(name: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    xs, targets = tasks.TASKS[name].make(jax.random.key(5), length, ROWS)
    return np.asarray(xs), np.asarray(targets)


def halves(steps: list[np.ndarray], length: int) -> bool:
    """Return whether the two steps of all rows cover the first and the second half exactly."""
    first, second = np.array(steps).T
    return set(first) == set(range(length // 2)) and set(second) == set(range(length // 2, length))


@pytest.mark.slow
@pytest.mark.parametrize("length", [2, 7, 10])
def test_adding(length: int) -> None:
    xs, targets = batch("adding", length)
    assert xs.shape == (length, ROWS, 2) and targets.shape == (ROWS,)
    steps = [np.flatnonzero(xs[:, row, 1]) for row in range(ROWS)]
    assert halves(steps, length)
    sums = [sum(float(xs[t, row, 0]) for t in steps[row]) for row in range(ROWS)]
    np.testing.assert_allclose(targets, sums, rtol=1e-6)
    assert xs[..., 0].min() >= 0 and xs[..., 0].max() < 1


@pytest.mark.slow
@pytest.mark.parametrize("length", [2, 7, 10])
def test_order(length: int) -> None:
    xs, targets = batch("order", length)
    assert xs.shape == (length, ROWS, 6) and (xs.sum(-1) == 1).all()
    symbols = np.array(list("XYabcd"))[xs.argmax(-1)]
    named = ["".join(s for s in symbols[:, row] if s in "XY") for row in range(ROWS)]
    assert named == [["XX", "XY", "YX", "YY"][target] for target in targets]
    assert halves(
        [np.flatnonzero(np.isin(symbols[:, row], ["X", "Y"])) for row in range(ROWS)], length
    )
    if length > 2:
        assert set(symbols.flat) == set("XYabcd")


@pytest.mark.first_case
@pytest.mark.parametrize("length", [1, 5])
def test_copy(length: int) -> None:
    xs, targets = batch("copy", length)
    assert xs.shape == (length + 10, ROWS, 10) and (xs.sum(-1) == 1).all()
    for row in range(100):
        spelt = "".join("ABCDEFGH_?"[symbol] for symbol in xs[:, row].argmax(-1))
        answer = "".join("ABCDEFGH_"[symbol] for symbol in targets[:, row])
        assert set(spelt[:5]) <= set("ABCDEFGH")
        assert spelt[5:] == "_" * (length - 1) + "?" + "_" * 5
        assert answer == "_" * (length + 5) + spelt[:5]


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_baseline_is_the_smallest_loss_without_looking_at_the_input(name: str) -> None:
    length = 6
    task = tasks.TASKS[name]
    _, targets = batch(name, length)
    if name == "adding":
        blind = np.full((length, ROWS, 1), targets.mean())
        assert abs(targets.mean() - 1) < 0.02
    else:
        # At each step the logarithm of how often each class is the target.
        counts = (targets[..., None] == np.arange(task.outputs)).mean(-2, keepdims=True)
        blind = np.log(np.maximum(counts, 1e-30)) + np.zeros((*targets.shape, 1))
        blind = blind if name == "copy" else blind[None]
    loss = float(np.mean(task.loss(blind.astype(np.float32), targets)))
    assert loss == pytest.approx(task.baseline(length), rel=0.03)
    assert tasks.TASKS["copy"].baseline(length) == 5 * math.log(8) / (length + 10)


def levels(*solved: int) -> list[dict[str, Any]]:
    """Return the results at T = 10, 20, ..., of which so many of 5 seeds solve the task."""
    return [
        {"T": 10 * at, "solved_after": [100] * count + [None] * (5 - count)}
        for at, count in enumerate(solved, 1)
    ]


def test_the_longest_time_ends_where_seeds_first_fail() -> None:
    assert tasks.longest(levels(5, 5, 3, 2), 0.5) == 30
    assert tasks.longest(levels(5, 5, 3, 2), 0.9) == 20
    assert tasks.longest(levels(5, 2, 5), 0.5) == 10
    assert tasks.longest(levels(2), 0.5) == 0


@pytest.mark.parametrize(
    ("gru", "holds"),
    [((5, 5), Holds.YES), ((5, 3), Holds.PARTLY), ((5, 0), Holds.NO)],
)
def test_the_claim_holds_where_a_gated_cell_remembers_for_longer(
    gru: tuple[int, ...], holds: Holds
) -> None:
    cells = {"rnn": levels(4, 1), "rnn, relu": levels(5, 0), "lstm": levels(2), "gru": levels(*gru)}
    numbers = {"tasks": {name: {"cells": cells} for name in tasks.TASKS}}
    assert tasks.verdict(numbers, [0, 1, 2, 3, 4]).holds is holds


def test_training_ends_when_the_task_is_solved() -> None:
    class Descent:
        """Loss 1, then 0.05, then not a number."""

        def begin(self, seed: int) -> int:
            return seed

        def advance(self, state: int, rate: float, steps: int) -> tuple[int, Any]:
            return state + 1, np.full(steps, [1.0, 0.05, np.nan][state])

    training: Any = Descent()
    assert tasks.learn(training, 1.0, 0, 0.1, 500) == (200, pytest.approx(0.05))
    assert tasks.learn(training, 1.0, 0, 0.1, 100) == (None, 1.0)
    solved_after, share = tasks.learn(training, 1.0, 2, 0.1, 500)
    assert solved_after is None and math.isnan(share)
