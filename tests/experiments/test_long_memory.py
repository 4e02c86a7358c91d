"""Test the tasks of `long_memory`: their batches are decoded by hand."""

import math

import jax
import numpy as np
import pytest

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
    assert xs.shape == (length + 20, ROWS, 10) and (xs.sum(-1) == 1).all()
    for row in range(100):
        spelt = "".join("ABCDEFGH_?"[symbol] for symbol in xs[:, row].argmax(-1))
        answer = "".join("ABCDEFGH_"[symbol] for symbol in targets[:, row])
        assert set(spelt[:10]) <= set("ABCDEFGH")
        assert spelt[10:] == "_" * (length - 1) + "?" + "_" * 10
        assert answer == "_" * (length + 10) + spelt[:10]


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
    assert tasks.TASKS["copy"].baseline(length) == 10 * math.log(8) / (length + 20)


def test_a_task_counts_as_solved_below_a_tenth_of_the_baseline_in_every_seed() -> None:
    shares = np.array([[0.01, 0.02], [0.05, 0.0999], [0.05, 0.11], [1.0, np.nan]])
    assert [tasks.solved(each) for each in shares] == ["2 of 2", "2 of 2", "1 of 2", "0 of 2"]
    by_cell = {
        "good": shares[:2],
        "fair": shares[[0, 2]],
        "late": shares[[3, 0]],
        "bad": shares[2:],
    }
    assert tasks.reached(by_cell, [10, 20]) == "20 for good; 10 for fair; none for late, bad"
    assert tasks.reached({"good": shares[:1]}, [10]) == "10 for good"
    nearest = "solved by no cell; bad comes closest with 0.08 of the baseline at T = 10"
    assert tasks.reached({"late": shares[[3, 0]], "bad": shares[2:]}, [10, 20]) == nearest
