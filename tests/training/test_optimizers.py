"""The optimizers are those of their papers: clipping, learning rates, Muon by gate, averages."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import charlm
from jaxrnn.training import optimizers, stepping
from jaxrnn.training.config import TrainingConfig
from tests.support.runs import CONFIG, change, rate_by_hand, relaxed, start, tokens_of

# Newton and Schulz in float32 against numpy in float64, in units of the largest entry
ORTHOGONALIZED = 2e-4
# A mean of float32 weights against numpy in float64
MEAN = dict(rtol=1e-5, atol=1e-6)

# --- clipping and the learning rate ---


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 5.0])
def test_clip_norm_bounds_the_global_norm(clip_norm: float) -> None:
    gradient = {"a": jnp.asarray([2.0, -1.0]), "b": jnp.asarray([[2.0]])}  # of norm 3
    shrink = min(1.0, clip_norm / 3) if clip_norm else 1.0
    config = change(CONFIG, clip_norm=clip_norm, warmup=0)
    for optimizer, given in [
        (relaxed(optimizers.make_optimizer(config, 10)), gradient),
        (relaxed(optax.adam(1.0)), jax.tree.map(lambda g: g * shrink, gradient)),
    ]:
        _, opt_state = optimizer.update(given, optimizer.init(gradient), gradient)
        seen = optax.tree.get(opt_state, "mu")
        norm = math.sqrt(sum((np.asarray(m) ** 2).sum() for m in seen.values()))
        assert norm / 0.1 == pytest.approx(3 * shrink, rel=1e-6)  # the first moment is a tenth
        np.testing.assert_allclose(seen["a"], 0.1 * shrink * gradient["a"], rtol=1e-6)


@pytest.mark.first_case
@pytest.mark.parametrize(
    "changes, total",
    [
        (dict(schedule="cosine", warmup=4), 20),
        (dict(schedule="cosine", warmup=0), 7),
        (dict(schedule="constant", warmup=5), 12),
        (dict(schedule="constant", warmup=0), 4),
        (dict(schedule="cosine", warmup=100), 5),  # more warm-up than steps
        (dict(schedule="constant", warmup=100), 5),
        (dict(schedule="cosine", warmup=100), 1),
        (dict(schedule="linear", warmup=4), 20),
        (dict(schedule="linear", warmup=0), 7),
        (dict(schedule="linear", warmup=100), 5),
        (dict(schedule="linear", warmup=100), 1),
    ],
)
def test_learning_rate(changes: dict[str, Any], total: int) -> None:
    config = change(CONFIG, learning_rate=0.5, clip_norm=0.0, **changes)
    optimizer = relaxed(optimizers.make_optimizer(config, total))
    weight = jnp.ones(1)
    state = optimizer.init(weight)
    update = jax.jit(optimizer.update)
    rates = []
    for _ in range(total + 1):  # Adam on a gradient of ones steps by the rate
        step, state = update(jnp.ones(1), state, weight)
        rates.append(-float(step[0]))
    by_hand = [rate_by_hand(config, total, n) for n in range(total + 1)]
    np.testing.assert_allclose(rates, by_hand, rtol=1e-5, atol=1e-7)
    if config.schedule != "constant":
        assert rates[total] == pytest.approx(0, abs=1e-7)
    assert max(rates) == pytest.approx(0.5, rel=1e-5), "the peak is reached"


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_weight_decay_takes_a_part_of_every_parameter(optimizer: Any) -> None:
    config = change(CONFIG, cell="lstm", optimizer=optimizer, warmup=0, schedule="constant")
    rates = {"adam": config.learning_rate, "muon": config.muon_learning_rate}
    plain, state = start(config)
    decaying, _ = start(change(config, weight_decay=0.2))
    gradient = jax.tree.map(jnp.ones_like, state.params)
    without, _ = relaxed(plain).update(gradient, state.opt_state, state.params)
    # The state is that of a run without weight decay, which can be resumed with it.
    updates, _ = relaxed(decaying).update(gradient, state.opt_state, state.params)
    for path, parameter in jax.tree_util.tree_leaves_with_path(state.params):
        matrix = "layers" in jax.tree_util.keystr(path) and parameter.ndim == 2
        rate = rates["muon" if optimizer == "muon" and matrix else "adam"]
        got, before = (
            dict(jax.tree_util.tree_leaves_with_path(u))[path] for u in (updates, without)
        )
        np.testing.assert_allclose(got, before - rate * 0.2 * parameter, rtol=1e-5, atol=1e-8)


# --- Muon ---


def orthogonalized(matrix: np.ndarray) -> np.ndarray:
    """Newton and Schulz with the coefficients of Jordan et al. 2024, in float64."""
    x = matrix / np.linalg.norm(matrix)
    if x.shape[0] > x.shape[1]:
        return orthogonalized(matrix.T).T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


@pytest.mark.parametrize(
    "shape, gates", [((6, 24), 4), ((3, 24), 4), ((9, 6), 1), ((6, 8), 1)], ids=str
)
def test_muon_orthogonalizes_each_gate_by_itself(shape: tuple[int, int], gates: int) -> None:
    """Compare two steps with numpy: Nesterov momentum, then each gate's [rows, 6] orthogonalized."""
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=shape) for _ in range(2)]
    transform = relaxed(optimizers.muon_by_gate(6))
    state = transform.init({"w": jnp.zeros(shape)})
    momentum = np.zeros(shape)
    for n, gradient in enumerate(gradients):
        updates, state = transform.update({"w": jnp.asarray(gradient, jnp.float32)}, state)
        assert state.mu["w"].shape == shape, "the momentum is divided over devices like the weights"
        momentum = 0.95 * momentum + 0.05 * gradient
        ahead = 0.95 * momentum / (1 - 0.95 ** (n + 2)) + 0.05 * gradient / (1 - 0.95 ** (n + 1))
        parts = [orthogonalized(part) for part in np.split(ahead, gates, axis=1)]
        scale = optimizers.MUON_UPDATE * math.sqrt(max(shape[0], shape[1] // gates))
        want = scale * np.concatenate(parts, axis=1)
        np.testing.assert_allclose(
            updates["w"], want, rtol=0, atol=ORTHOGONALIZED * np.abs(want).max()
        )


def test_muon_is_for_the_matrices_of_the_layers() -> None:
    """All other parameters take the step that Adam alone takes."""
    config = change(CONFIG, cell="lstm", embedding_size=5, clip_norm=0.0, warmup=0)
    optimizer, state = start(config)
    rng = np.random.default_rng(1)
    gradient = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), state.params
    )
    by_adam, _ = relaxed(optimizer).update(gradient, state.opt_state, state.params)
    muon, state = start(change(config, optimizer="muon"))
    by_muon, _ = relaxed(muon).update(gradient, state.opt_state, state.params)
    (layer,), (other,) = by_muon.layers, by_adam.layers
    for name in ("embedding", "w_out", "b_out"):
        np.testing.assert_array_equal(getattr(by_muon, name), getattr(by_adam, name))
    np.testing.assert_array_equal(layer.b, other.b)
    rate = config.muon_learning_rate
    for name in ("w_x", "w_h"):
        update = getattr(layer, name)
        assert np.sqrt(np.mean(np.square(update))) < 1.3 * optimizers.MUON_UPDATE * rate
        assert not np.allclose(update, getattr(other, name), rtol=0.1)


# --- averages of the weights ---


def averages(config: TrainingConfig) -> tuple[list[charlm.Params], list[charlm.Params]]:
    """Return the parameters and their averages after each step of a run."""
    optimizer, state = start(config)
    params, found = [], []
    for n in range(config.steps or 0):
        tokens = tokens_of(config, n)
        state, _ = jax.jit(
            lambda state, tokens: stepping.train_step(optimizer, state, tokens, jnp.bool_(True))
        )(state, tokens)
        state = stepping.averaged(config, state)
        params.append(state.params)
        found.append(state.model)
    return params, found


def test_the_tail_is_a_plain_mean() -> None:
    params, found = averages(change(CONFIG, average="tail", average_tail=0.5, steps=6, warmup=0))
    for n in range(6):
        members = params[n : n + 1] if n < 3 else params[3 : n + 1]
        want = np.mean([np.asarray(p.w_out, np.float64) for p in members], axis=0)
        np.testing.assert_allclose(found[n].w_out, want, **MEAN)
    assert not np.allclose(found[5].w_out, params[5].w_out, **MEAN)


def test_the_exponential_average_begins_as_a_plain_mean() -> None:
    config = change(CONFIG, average="ema", average_decay=0.7, steps=6, warmup=0)
    params, found = averages(config)
    average = np.zeros(params[0].w_out.shape)
    for n in range(6):
        weight = max(1 / (n + 1), 1 - 0.7)
        average += weight * (np.asarray(params[n].w_out, np.float64) - average)
        np.testing.assert_allclose(found[n].w_out, average, **MEAN)


def test_without_an_average_the_model_is_the_newest() -> None:
    params, found = averages(change(CONFIG, steps=2))
    assert params == found
