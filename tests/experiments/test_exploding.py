"""Test the measures of `exploding` against products of Jacobians in numpy."""

from typing import Any

import jax
import numpy as np
import pytest

import jaxrnn
from experiments import Holds, exploding

pytestmark = pytest.mark.once


@pytest.mark.parametrize("cell", [jaxrnn.rnn(6), jaxrnn.gru(6)])
def test_every_gate_is_scaled_to_the_radius(cell: Any) -> None:
    params, singular = exploding.scale(cell.init(jax.random.key(1), 3), 1.7)
    gates = np.split(np.asarray(params.w_h, float), len(cell.GATES), axis=1)
    for gate in gates:
        assert np.abs(np.linalg.eigvals(gate)).max() == pytest.approx(1.7, rel=1e-5)
    assert singular == pytest.approx(max(np.linalg.svd(w)[1][0] for w in gates), rel=1e-5)


@pytest.mark.parametrize("name", ["linear", "tanh", "relu"])
def test_the_flow_is_that_of_the_product_of_jacobians(name: str) -> None:
    cell = jaxrnn.rnn(5, activation="relu" if name == "relu" else "tanh", recurrent_init="glorot")
    params, _ = exploding.scale(cell.init(jax.random.key(2), exploding.INPUTS), 1.2)
    key = jax.random.key(3)
    found = np.asarray(exploding.flow(name, cell, params, key))

    xs = np.asarray(jax.random.normal(key, (exploding.STEPS, 1, exploding.INPUTS)), float)[:, 0]
    w_x, w_h = np.asarray(params.w_x, float), np.asarray(params.w_h, float)
    h, slopes = np.zeros(5), []
    for x in xs * (name != "linear"):
        a = x @ w_x + h @ w_h
        h = np.maximum(a, 0) if name == "relu" else np.tanh(a)
        slopes.append((a > 0).astype(float) if name == "relu" else 1 - h**2)
    # dh^T / da^t, from the last step backwards
    jacobian, expected = np.diag(slopes[-1]), []
    for slope in [*slopes[-2::-1], None]:
        with np.errstate(divide="ignore"):
            expected.append(np.log(np.linalg.norm(w_x @ jacobian)))
        if slope is not None:
            jacobian = slope[:, None] * w_h @ jacobian
    # In float32 the norms of long lags are less exact.
    np.testing.assert_allclose(found[:40], expected[:40], atol=1e-3)


def test_growth_is_fitted_between_the_lags() -> None:
    flow = np.log(0.9) * np.arange(exploding.STEPS) + 3
    flow[: exploding.LAGS[0]] = 100
    flow[exploding.LAGS[1] + 1 :] = -np.inf
    assert exploding.growth(flow) == pytest.approx(0.9)


@pytest.mark.parametrize("radius", [0.5, 3.0])
def test_clipping_bounds_the_step(radius: float) -> None:
    cell = jaxrnn.rnn(32, recurrent_init="glorot")
    params, _ = exploding.scale(cell.init(jax.random.key(0), exploding.INPUTS), radius)
    step = exploding.one_step(cell, params, jax.random.key(1))
    clipped = min(step["norm, raw"], exploding.CLIP)
    assert step["norm, clipped"] == pytest.approx(clipped, rel=1e-4)
    if step["norm, raw"] < exploding.CLIP:
        assert step["loss, raw"] == step["loss, clipped"] < 1


def test_the_border_is_where_the_mean_growth_crosses_one() -> None:
    growths = [[0.7, 0.9], [0.8, 1.0], [1.2, 1.4]]
    assert exploding.border([1.0, 1.5, 2.0], growths) == pytest.approx(1.625)
    assert exploding.border([1.0, 1.5], growths[:2]) is None
    assert exploding.border([2.0], growths[2:]) == 2


def test_the_verdict_follows_the_numbers() -> None:
    radii = np.array([0.5, 1.0, 2.0])

    def judge(linear: Any, tanh: Any, relu: Any) -> Any:
        growth = {"linear": linear, "tanh": tanh, "relu": relu}
        pairs = {name: np.stack([each, each], 1).tolist() for name, each in growth.items()}
        return exploding.verdict({"radii": radii.tolist(), "growth": pairs}, [0, 1])

    holds = judge(radii, 0.6 * radii, 0.7 * radii)
    assert holds.holds is Holds.YES
    assert "0.0%" in holds.english and "1.67" in holds.english and "1.67" in holds.korean
    never = judge(radii, 0.4 * radii, 0.7 * radii)
    assert never.holds is Holds.PARTLY and "no radius up to 2" in never.english
    assert judge(radii, 3 * radii, radii).holds is Holds.PARTLY
    assert judge(radii, [0.9, 1.2, 2.0], 0.7 * radii).holds is Holds.PARTLY
    assert judge(2 * radii, 3 * radii, radii).holds is Holds.NO
