"""Test the task of `gates`, and its measure on known gates."""

import jax
import numpy as np
import pytest

from experiments import gates

pytestmark = pytest.mark.once


@pytest.mark.slow
def test_the_symbol_is_shown_early_and_the_cues_come_later() -> None:
    inputs, target = jax.device_get(gates.task(jax.random.key(0), 300))
    shown, keep, tell = np.moveaxis(inputs, -1, 0)
    assert (keep.sum(0) == 1).all() and (keep[gates.EARLY :] == 0).all()
    assert (tell.sum(0) == gates.CUES).all() and (tell[: gates.EARLY] == 0).all()
    assert set(np.unique(shown)) == set(gates.LEVELS)
    symbol = shown[keep.argmax(0), np.arange(300)]
    np.testing.assert_array_equal(target, np.where(tell, symbol, 0))
    assert {keep.argmax(0).min(), keep.argmax(0).max()} == {0, gates.EARLY - 1}


@pytest.mark.slow
def test_the_measure_distinguishes_the_gates_of_the_figure_from_others() -> None:
    inputs = jax.device_get(gates.task(jax.random.key(0), 300)[0])
    shown, keep, tell = np.moveaxis(inputs, -1, 0)
    kept = np.cumsum(keep, axis=0) * (shown * keep).sum(0)
    last = np.cumsum(tell[::-1], axis=0)[::-1] > 0  # what comes after the last cue must not count
    ones = np.ones_like(keep)
    inside = {  # the lecture's unit; one that is always open and holds what is shown now
        "i": np.stack([np.where(last, keep, 1), ones], axis=-1),
        "f": np.stack([np.where(last, 1, 0), ones], axis=-1),
        "o": np.stack([np.where(last, tell, 1), ones], axis=-1),
        "cell": np.stack([np.where(last, kept, 9), shown], axis=-1),
    }
    squared, means = gates.measure(inside, inputs)
    np.testing.assert_allclose(squared, [1, 0], atol=0.01)
    np.testing.assert_array_equal(means.T, [[1, 0, 1, 1, 0], [1, 1, 1, 1, 1]])
    assert gates.as_in_figure(means).T.tolist() == [[True] * 5, [True, False, True, True, False]]
