"""Test the task of `state_tracking` against numpy, and its linear cell on weights set by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import Holds
from experiments import state_tracking as tracking

pytestmark = pytest.mark.once


def test_the_target_is_the_exclusive_or_of_all_bits_so_far() -> None:
    bits = np.asarray(tracking.draw_bits(jax.random.key(0), 30, 8))
    assert set(np.unique(bits)) == {0, 1}
    wanted = np.logical_xor.accumulate(bits.astype(bool), axis=0)
    np.testing.assert_array_equal(tracking.parities(bits), wanted)


@pytest.mark.slow
def test_the_factor_of_the_signed_cell_is_negative_where_that_of_mingru_is_small() -> None:
    """The loop over the steps is in numpy."""
    cell = tracking.SignedMinGRU(4)
    params = cell.init(jax.random.key(0), 1)
    xs = np.random.default_rng(0).normal(size=(6, 3, 1)).astype(np.float32)
    _, found = tracking.jaxrnn.unroll(cell, params, xs)
    gates = np.asarray(xs @ params.w_x + params.b[None, None], np.float64)
    state = np.zeros((3, 4))
    for t in range(6):
        z = 1 / (1 + np.exp(-gates[t, :, :4]))
        state = (1 - 2 * z) * state + z * gates[t, :, 4:]
        np.testing.assert_allclose(found[t], state, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_signed_unit_with_the_factors_1_and_minus_1_gives_the_parity() -> None:
    params = by_hand(closed=-30.0, opened=30.0)
    tracker = tracking.Tracker(tracking.SignedMinGRU(1))
    weights, bias = jnp.ones(1), jnp.array(-0.5)
    layers = tracker.layers.init(jax.random.key(0))._replace(cells=(params,))
    found = tracking.examine(tracker, (layers, weights, bias))
    assert found.shape == (tracking.TESTED,) and (found == 1).all()
    # The same weights in a minGRU give the last 1 for ever, and so a guess.
    found = tracking.examine(tracking.Tracker(tracking.jaxrnn.mingru(1)), (layers, weights, bias))
    assert found[0] == 1 and abs(found[50:].mean() - 0.5) < 0.05


@pytest.mark.slow
def test_the_factors_are_those_of_both_bits() -> None:
    params = by_hand(closed=-1.0, opened=2.0)
    z = 1 / (1 + np.exp([[1.0], [-2.0]]))
    found = tracking.factors(tracking.SignedMinGRU(1), params)
    np.testing.assert_allclose(found, 1 - 2 * z, rtol=1e-6)
    np.testing.assert_allclose(
        tracking.factors(tracking.jaxrnn.mingru(1), params), 1 - z, rtol=1e-6
    )


def by_hand(closed: float, opened: float) -> Any:
    """Return a unit whose gate z has these logits at the bits 0 and 1, and whose candidate is 1."""
    cell = tracking.jaxrnn.mingru(1)
    return cell.init(jax.random.key(0), 1)._replace(
        w_x=jnp.array([[opened - closed, 0.0]]), b=jnp.array([closed, 1.0])
    )


def test_the_verdict_counts_the_networks_that_track_the_parity() -> None:
    def judge(nonlinear: list[float], linear: list[float]) -> Any:
        names = dict.fromkeys(tracking.NONLINEAR, nonlinear) | dict.fromkeys(
            tracking.LINEAR, linear
        )
        contenders = {name: {"accuracy": {"beyond": each}} for name, each in names.items()}
        contenders[tracking.SIGNED] = {"accuracy": {"beyond": [1.0, 1.0]}}
        return tracking.verdict({"contenders": contenders}, [0, 1])

    assert judge([1.0, 0.995], [0.5, 0.9]).holds is Holds.YES
    assert judge([1.0, 0.5], [0.5, 0.9]).holds is Holds.NO
    assert judge([1.0, 1.0], [0.5, 0.995]).holds is Holds.NO
    for words in (judge([1.0, 0.995], [0.5, 0.9]).english, judge([1.0, 0.995], [0.5, 0.9]).korean):
        assert words.count("6") == 3 and "0" in words
