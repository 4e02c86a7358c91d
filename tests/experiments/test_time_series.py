"""Test the noise floor and the baselines of `time_series` on series with a known best forecast."""

from typing import Any

import numpy as np
import pytest

from experiments import time_series
from experiments.time_series import AHEAD

pytestmark = pytest.mark.once


def error_of_the_best(step: Any, noise: float, rows: int) -> np.ndarray:
    """Return the error of the best forecast by horizon, after 200 steps of the series itself."""
    start = np.random.default_rng(0).normal(size=(2, rows))
    truth = time_series.continuation(step, noise, *start, 200 + AHEAD, np.random.default_rng(5))
    best = time_series.best_forecast(step, noise, truth[:200])
    return np.sqrt(((best - truth[200:]) ** 2).mean(1))


@pytest.mark.slow
def test_the_floor_of_a_linear_series_is_the_known_one() -> None:
    """The best forecast of x' = a x + noise is a^n x, with error noise sqrt((1 - a^2n) / (1 - a^2))."""
    ahead = np.arange(1, AHEAD + 1)
    exact = 0.1 * np.sqrt((1 - 0.99 ** (2 * ahead)) / (1 - 0.99**2))
    reached = error_of_the_best(*time_series.SERIES["price"], rows=4000)
    np.testing.assert_allclose(reached, exact, rtol=0.04)


@pytest.mark.slow
def test_the_floor_one_step_ahead_is_the_noise() -> None:
    step, noise = time_series.SERIES["oscillator"]
    reached = error_of_the_best(step, noise, rows=4000)
    assert reached[0] == pytest.approx(noise, rel=0.04)
    # Below the standard deviation of the series.
    assert 5 * noise < reached[-1] < 1.2


def test_the_linear_baseline_finds_a_linear_equation() -> None:
    xs = [1.0, 0.5]
    for _ in range(300):
        xs.append(1.6 * xs[-1] - 0.9 * xs[-2] + 0.1)
    weights = time_series.autoregression(np.array(xs), 2)
    np.testing.assert_allclose(weights, [1.6, -0.9, 0.1], rtol=1e-6)
    known = np.array(xs)[:20, None]
    np.testing.assert_allclose(time_series.linear(weights, known, 10)[:, 0], xs[20:30], rtol=1e-5)


def test_the_order_is_not_below_that_of_the_equation() -> None:
    rng, xs = np.random.default_rng(0), [0.0] * 4
    for _ in range(6000):
        xs.append(0.8 * xs[-4] + rng.normal())
    assert time_series.best_order(np.array(xs)) >= 4


def test_mackey_glass_follows_its_delay_equation() -> None:
    """Steps that are five times finer give the same values, before chaos separates the two."""
    xs = [1.2] * 851
    for _ in range(5 * 60 * 10):
        xs.append(xs[-1] + 0.02 * (0.2 * xs[-851] / (1 + xs[-851] ** 10) - 0.1 * xs[-1]))
    fine = np.array(xs[851 + 4 :: 300])
    made = time_series.mackey_glass(10)
    assert np.ptp(made) > 0.5
    np.testing.assert_allclose(made, fine, atol=0.01)
