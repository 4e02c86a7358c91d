"""Test the verdicts of some experiments on numbers that a measurement seldom gives."""

import math
import warnings

import numpy as np
import pytest

from experiments import Holds, clipping, vanishing_gradient

pytestmark = pytest.mark.once


def test_the_influence_of_a_network_that_diverged_falls_at_no_lag() -> None:
    fading = -np.arange(10.0)
    assert vanishing_gradient.below(fading) == 3
    assert vanishing_gradient.below(np.zeros(10)) is None
    assert vanishing_gradient.below(np.full(10, np.nan)) is None
    assert vanishing_gradient.below(np.array([0, -5, np.nan])) is None


def test_a_network_whose_loss_is_nan_counts_as_diverged() -> None:
    numbers = {
        "rates": [0.01],
        "training_steps": 600,
        "learning_rate": {"gru": 0.01},
        "loss": {"gru": [0.01, math.nan, 0.02]},
        "below_1_percent": {"gru": [[1, 2], [1, None], [1, 2]]},
    }
    *_, loss, seen = vanishing_gradient.table(numbers, [0, 1, 2])[1]
    assert loss == "0.020 (0.010 to diverged)"
    assert seen == "2 of 3; 1 diverged"


@pytest.mark.parametrize(
    "tanh, words", [(44, "after 44 steps"), (None, "after more than 59 steps")]
)
def test_an_influence_that_does_not_fall_is_not_given_a_lag(tanh: int | None, words: str) -> None:
    lags = {
        vanishing_gradient.TANH: [[tanh, None]],
        vanishing_gradient.FORGET_0: [[13, 20]],
        vanishing_gradient.FORGET_1: [[None, None]],
    }
    found = vanishing_gradient.verdict({"below_1_percent": lags}, [0])
    assert f"{words} in a tanh RNN, and after more than 59 in an LSTM" in found.english
    assert "59스텝보다 뒤" in found.korean
    assert found.holds is (Holds.NO if tanh is None else Holds.YES)


def test_a_network_that_diverged_is_left_out_of_the_picture() -> None:
    fading = (-0.1 * np.arange(60.0)).tolist()
    lost = [float("nan")] * 60
    influence = {
        "rnn, tanh": [[fading, lost], [fading, fading]],
        "rnn, relu": [[fading, lost], [fading, lost]],
        "gru": [[fading, [0.0] + [-math.inf] * 59]] * 2,
    }
    numbers = {"log10_influence": influence, "loss": {name: [0.01, 2.0] for name in influence}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before, after = vanishing_gradient.draw(numbers, [0, 1]).axes
    # One line for each network, and that at 1%.
    assert len(before.lines) == 4
    assert len(after.lines) == 3
    assert all(np.isfinite(line.get_ydata()).all() for line in (*before.lines, *after.lines))


@pytest.mark.parametrize(
    "clipped, free, holds",
    [
        ([1.0, 2.0], [99.0, 2.0], Holds.YES),
        ([99.0, 2.0], [99.0, 99.0], Holds.PARTLY),
        ([1.0, 2.0], [0.5, 1.0], Holds.NO),
    ],
)
def test_clipping_has_to_prevent_every_divergence(
    clipped: list[float], free: list[float], holds: Holds
) -> None:
    losses = {"clipped": [clipped], "not clipped": [free]}
    assert clipping.verdict({"rates": [0.1, 1.0], "last_loss": losses}, [0]).holds is holds
