"""Test the search of `dynamics` on maps whose fixed points are known, and its task against numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from experiments import Holds, _fixed_points, dynamics

pytestmark = pytest.mark.once


def test_the_target_is_the_last_pulse_of_each_bit() -> None:
    pulses, targets = jax.device_get(dynamics.flip_flop(jax.random.key(0), 40, 6))
    assert set(np.unique(pulses)) == {-1, 0, 1} and (pulses[0] != 0).all()
    for row in range(6):
        for bit in range(dynamics.BITS):
            last = 0.0
            for t in range(40):
                last = pulses[t, row, bit] or last
                assert targets[t, row, bit] == last


def separate(places: Any) -> tuple[Any, Any]:
    """Evaluate F_i(s) = s_i + (s_i - s_i^3) / 2, with fixed points at -1, 0 and 1 in each direction."""
    places = np.asarray(places, np.float64)
    slopes = 1 + (1 - 3 * places**2) / 2
    return (places - places**3) / 2, slopes[:, :, None] * np.eye(places.shape[1])


def test_the_search_finds_all_points_of_a_cube_and_their_kinds() -> None:
    starts = np.random.default_rng(0).uniform(-1.3, 1.3, size=(400, 3))
    found = _fixed_points.search(separate, starts)
    places = found.points.places
    wanted = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3)
    assert len(places) == 27 and found.slow == 0
    assert {tuple(place) for place in places.round().astype(int)} == set(map(tuple, wanted))
    np.testing.assert_allclose(places, places.round(), atol=1e-4)
    # dF/ds is 0 at -1 and 1, and 1.5 at 0, in each direction.
    np.testing.assert_array_equal(found.unstable, (places.round() == 0).sum(1))
    np.testing.assert_allclose(found.largest, np.where(found.unstable, 1.5, 0), atol=1e-3)
    network = {"unstable": found.unstable.tolist()}
    assert tuple(dynamics.kinds_of(network)) == dynamics.CUBE


def test_a_minimum_of_q_that_is_not_zero_is_a_slow_point() -> None:
    """s + (s^2 + 0.01) / 2 has no fixed point; the least speed is at 0."""

    def evaluate(places: Any) -> tuple[Any, Any]:
        places = np.asarray(places, np.float64)
        return (places**2 + 0.01) / 2, (1 + places)[:, :, None]

    starts = np.linspace(-1, 1, 20)[:, None]
    points = _fixed_points.distinct(_fixed_points.minimise(evaluate, starts))
    np.testing.assert_allclose(points.places, [[0]], atol=0.02)
    np.testing.assert_allclose(points.speeds, [0.005**2 / 2], rtol=1e-2)
    found = _fixed_points.search(evaluate, starts)
    assert len(found.points.places) == 0 and found.slow == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", dynamics.CELLS)
def test_the_map_is_the_cell_without_a_pulse(name: str) -> None:
    """`Network.apply` with zeros as inputs is the oracle; finite differences, of the Jacobian."""
    net = jaxrnn.network(dynamics.CELLS[name], dynamics.BITS, dynamics.BITS)
    params = net.init(jax.random.key(0))
    pulses, _ = dynamics.flip_flop(jax.random.key(1), 10, 4)
    states, outputs = dynamics.visit(net, params, pulses)
    longer = jnp.concatenate([pulses, jnp.zeros((3, 4, dynamics.BITS))])
    state, wanted = net.apply(params, longer)
    np.testing.assert_allclose(outputs, wanted[:10], rtol=1e-4, atol=1e-5)
    later, after = dynamics.wait(net, params, states[-1], 3)
    np.testing.assert_allclose(after, wanted[10:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(later[-1], np.concatenate(state, -1), rtol=1e-4, atol=1e-5)
    evaluate = dynamics.evaluator(net, params)
    places = np.asarray(states[-1], np.float64)
    gaps, jacobians = evaluate(places)
    np.testing.assert_allclose(gaps, later[0] - states[-1], rtol=1e-4, atol=1e-5)
    step = np.random.default_rng(0).normal(size=places.shape)
    ahead, behind = (evaluate(places + sign * 1e-2 * step)[0] for sign in (1, -1))
    slope = (ahead - behind) / 2e-2 + step
    np.testing.assert_allclose((jacobians @ step[..., None])[..., 0], slope, rtol=1e-2, atol=1e-3)


def test_the_verdict_needs_one_stable_point_for_each_state_of_the_bits() -> None:
    signs = np.stack(np.meshgrid(*[[-1, 1]] * dynamics.BITS), axis=-1).reshape(-1, dynamics.BITS)
    whole = {"outputs": signs.tolist()}
    twice = {"outputs": [*signs[1:].tolist(), signs[1].tolist()]}
    missing = {"outputs": signs[1:].tolist()}
    assert dynamics.is_stored(whole)
    assert not dynamics.is_stored(twice) and not dynamics.is_stored(missing)
    judge = lambda *each: dynamics.verdict({"networks": {"gru": each}}, [0, 1])  # noqa: E731
    assert judge(whole, whole).holds is Holds.YES
    assert judge(whole, missing).holds is Holds.PARTLY
    assert judge(twice, missing).holds is Holds.NO
    assert (
        "1 of 2" in judge(whole, missing).english and "2개 중 1개" in judge(whole, missing).korean
    )
