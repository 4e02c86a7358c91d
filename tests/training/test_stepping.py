"""A training step is the plain update, however many of them one device call takes."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import charlm
from jaxrnn.training import stepping
from jaxrnn.training.config import TrainingConfig
from jaxrnn.training.feed import device_corpus
from tests.support.runs import (
    CONFIG,
    CORPUS,
    assert_same_bits,
    change,
    rate_by_hand,
    start,
    tokens_of,
)

pytestmark = pytest.mark.usefixtures("without_pictures")

# float32 against numpy in float64, through a few steps of Adam
PLAIN = dict(rtol=2e-4, atol=2e-6)


# The same float32 sums in another order
ORDER = dict(rtol=1e-5, atol=1e-7)


# The difference of float32 weights of about 1
DIFFERENCE = dict(rtol=0, atol=2e-7)


# --- one step ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(schedule="constant", clip_norm=0.0, warmup=0, beta2=0.9),
        dict(cell="lstm", layers=2, clip_norm=0.05, embedding_size=0),
        dict(cell="gru", embedding_size=4, tie=True, learning_rate=0.02),
        dict(schedule="linear", beta1=0.7, weight_decay=0.3),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "plain",
)
def test_train_step_is_the_plain_update(changes: dict[str, Any]) -> None:
    """Against jax.grad of the loss, then clipping, Adam and its rate in numpy float64."""
    config = change(CONFIG, **changes)
    optimizer, state = start(config)
    step = jax.jit(functools.partial(stepping.train_step, optimizer))
    plain = jax.jit(jax.value_and_grad(charlm.loss, has_aux=True))

    leaves, treedef = jax.tree.flatten(state.params)
    params = [np.asarray(leaf, np.float64) for leaf in leaves]
    first, second = [0 * p for p in params], [0 * p for p in params]
    carry = charlm.initial_carry(config.model, config.batch)
    for n in range(5):
        tokens = tokens_of(config, n)
        as_float32 = treedef.unflatten([jnp.asarray(p, jnp.float32) for p in params])
        (loss, carry), gradient = plain(as_float32, tokens, carry)
        gradient = [np.asarray(g, np.float64) for g in jax.tree.leaves(gradient)]
        norm = math.sqrt(sum((g**2).sum() for g in gradient))
        shrink = min(1, config.clip_norm / norm) if config.clip_norm else 1
        rate = rate_by_hand(config, 12, n)
        for i, g in enumerate(shrink * g for g in gradient):
            first[i] = config.beta1 * first[i] + (1 - config.beta1) * g
            second[i] = config.beta2 * second[i] + (1 - config.beta2) * g**2
            unbiased = first[i] / (1 - config.beta1 ** (n + 1))
            spread = np.sqrt(second[i] / (1 - config.beta2 ** (n + 1)))
            decayed = unbiased / (spread + 1e-8) + config.weight_decay * params[i]
            params[i] = params[i] - rate * decayed

        state, metrics = step(state, tokens, jnp.bool_(n == 0))
        np.testing.assert_allclose(metrics.loss, loss, **PLAIN)
        np.testing.assert_allclose(metrics.grad_norm, norm, **PLAIN)
        for ours, by_hand in zip(jax.tree.leaves(state.params), params, strict=True):
            np.testing.assert_allclose(ours, by_hand, **PLAIN)
        for ours, theirs in zip(jax.tree.leaves(state.carry), jax.tree.leaves(carry), strict=True):
            np.testing.assert_allclose(ours, theirs, **PLAIN)
    assert int(state.step) == 5


@pytest.mark.slow
def test_carry_goes_on_and_a_fresh_start_forgets_it() -> None:
    optimizer, state = start(CONFIG)
    tokens = tokens_of(CONFIG, 0)
    before = jax.tree.map(lambda s: s + 0.7, state.carry)
    step = jax.jit(functools.partial(stepping.train_step, optimizer))
    for fresh, carry in [(False, before), (True, state.carry)]:
        loss, after = jax.jit(charlm.loss)(state.params, tokens, carry)
        now, metrics = step(state.replace(carry=before), tokens, jnp.bool_(fresh))
        np.testing.assert_allclose(metrics.loss, loss, **ORDER)
        np.testing.assert_allclose(now.carry[0], after[0], **ORDER)
    broken = jax.tree.map(lambda s: s * np.nan, state.carry)
    _, metrics = step(state.replace(carry=broken), tokens, jnp.bool_(True))
    assert np.isfinite(metrics.loss), "zero times nan is not zero"


@pytest.mark.slow
def test_rate_scales_the_update() -> None:
    optimizer, state = start(change(CONFIG, warmup=0))
    step = jax.jit(functools.partial(stepping.train_step, optimizer))
    tokens = tokens_of(CONFIG, 0)
    whole, quarter = (
        jax.tree.map(jnp.subtract, after.params, state.params)
        for after, _ in (
            step(state.replace(rate=jnp.float32(rate)), tokens, jnp.bool_(True))
            for rate in (1, 0.25)
        )
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(quarter), strict=True):
        np.testing.assert_allclose(0.25 * a, b, **DIFFERENCE)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_are_the_whole_batch(parts: int) -> None:
    config = change(CONFIG, cell="lstm", layers=2)
    _, state = start(config)
    descent = optax.sgd(1.0)  # so that the update is the gradient
    state = state.replace(
        opt_state=descent.init(state.params),
        carry=jax.tree.map(
            lambda s: jnp.linspace(-1, 1, s.size).reshape(s.shape).astype(s.dtype), state.carry
        ),
    )
    step = jax.jit(functools.partial(stepping.train_step, descent), static_argnums=3)
    tokens = tokens_of(config, 1)
    whole, in_parts = (step(state, tokens, jnp.bool_(False), n) for n in (1, parts))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(in_parts), strict=True):
        np.testing.assert_allclose(a, b, **ORDER)


@pytest.mark.slow
def test_dropout_follows_from_the_step_and_differs_between_parts() -> None:
    config = change(CONFIG, dropout=0.5)
    optimizer, state = start(config)
    step = jax.jit(functools.partial(stepping.train_step, optimizer), static_argnums=3)

    def loss(n: int, rows: int, parts: int) -> float:
        # Equal rows, which only dropout distinguishes.
        tokens = jnp.tile(tokens_of(config, 0)[:, :1], (1, rows))
        carry = charlm.initial_carry(config.model, rows)
        now = state.replace(step=jnp.int32(n), carry=carry)
        return float(step(now, tokens, jnp.bool_(True), parts)[1].loss)

    assert loss(3, 1, 1) == loss(3, 1, 1)
    assert loss(3, 1, 1) != loss(4, 1, 1)
    assert loss(3, 2, 2) != pytest.approx(loss(3, 1, 1), abs=1e-6), "both parts drop the same"


# --- many steps in one call of the device ---


def dispatch(config: TrainingConfig, calls: list[int]) -> tuple[stepping.TrainState, np.ndarray]:
    """Train by calls of so many steps each. Returns the state and the metrics [2, N]."""
    optimizer, state = start(config)
    source = device_corpus(CORPUS.tokens, config.memory_map)
    batches = config.batches(CORPUS)
    done, metrics = 0, []
    for count in calls:
        ahead = range(done, done + config.log_every)
        windows = source.windows(np.stack([batches.starts(n) for n in ahead]), config.seq_len)
        fresh = np.array([batches.resets_state(n) for n in ahead])
        state, now = stepping.run_steps(
            config, optimizer, source.devices, state, source.tokens, windows, fresh, count
        )
        metrics.append(np.stack(now)[:, :count])
        done += count
    return state, np.concatenate(metrics, axis=1)


@pytest.mark.slow
def test_dispatch_changes_no_bit() -> None:
    config = change(CONFIG, cell="lstm", dropout=0.3, accumulate=2, eval_every=6, log_every=6)
    whole, metrics = dispatch(config, [6])
    for log_every, calls in [(6, [1] * 6), (6, [4, 2]), (1, [1] * 6), (3, [2, 3, 1])]:
        other, others = dispatch(change(config, log_every=log_every), calls)
        assert_same_bits(whole, other)
        np.testing.assert_array_equal(metrics, others)


def test_state_is_donated() -> None:
    optimizer, state = start(CONFIG)
    source = device_corpus(CORPUS.tokens)
    windows = np.zeros((2, 4), np.int32)
    after, _ = stepping.run_steps(
        CONFIG, optimizer, source.devices, state, source.tokens, windows, np.zeros(2, bool), 2
    )
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state)), "the memory is used again"
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))
    assert not source.tokens.is_deleted()
