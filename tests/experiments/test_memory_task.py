"""Test the environment and the learning of `memory_task`: numpy decodes episodes, flax is the oracle."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import Holds
from experiments import memory_task as task
from tests.support.oracle import TOLERANCES, assert_close

pytestmark = pytest.mark.once

ROWS = 400


def agent(seed: int) -> Any:
    """Return parameters far from the initial ones, whose policy is nearly uniform."""
    flat, structure = jax.tree.flatten(task.initialize(seed))
    keys = jax.random.split(jax.random.key(seed), len(flat))
    moved = [p + 0.3 * jax.random.normal(key, p.shape) for p, key in zip(flat, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


@jax.jit
def play(forget: Any) -> tuple[Any, Any, Any, task.Unroll]:
    """Return the parameters, the points before and after an unroll, and the unroll."""
    rows = 4
    params = agent(0)
    now = task.start(jax.random.key(1), task.DELAYS, rows)
    now = now._replace(carry=jax.random.normal(jax.random.key(2), now.carry.shape))
    # In the middle of an episode, so that the state before the first step counts.
    now = now._replace(resets=jnp.zeros(rows, bool))
    later, unroll = task.act(params, now, jax.random.key(3), forget, task.DELAYS, 40)
    return params, now, later, unroll


@jax.jit
def by_flax(params: Any, carry: Any, observations: Any, resets: Any) -> tuple[Any, Any, Any]:
    """Return what `Agent` returns, by flax's cell in a scan."""
    weights = params["params"]
    (cell,) = weights["ScannedRNN_0"].values()

    def step(carry: Any, inputs: Any) -> Any:
        x, reset = inputs
        return nn.GRUCell(task.HIDDEN).apply(
            {"params": cell}, jnp.where(reset[:, None], 0, carry), x
        )

    carry, hidden = jax.lax.scan(step, carry, (observations, resets))
    policy, value = (
        hidden @ weights[name]["kernel"] + weights[name]["bias"][None, None]
        for name in ("Dense_0", "Dense_1")
    )
    return carry, jax.nn.log_softmax(policy), value[..., 0]


def test_an_episode_shows_the_cue_then_symbols_then_asks_and_another_begins() -> None:
    delays, steps = (2, 4), 30
    keys = jax.random.split(jax.random.key(0), (steps + 1, ROWS))
    respond = jax.jit(jax.vmap(task.respond, (0, 0, 0, None)))
    observe = jax.jit(jax.vmap(task.observe))
    episodes = jax.jit(jax.vmap(task.begin, (0, None)))(keys[-1], delays)
    actions = np.random.default_rng(0).integers(task.SYMBOLS, size=(steps, ROWS))
    seen, rewards, over = [], [], []
    for t in range(steps):
        seen.append(observe(episodes))
        episodes, reward, done = respond(episodes, actions[t], keys[t], delays)
        rewards.append(reward)
        over.append(done)
    observed, rewards, over = np.array(seen), np.array(rewards), np.array(over)
    symbols, is_cue, is_question = observed[..., :4], observed[..., 4], observed[..., 5]
    assert (symbols.sum(-1) == 1).all() and is_cue[0].all()
    np.testing.assert_array_equal(over, is_question == 1)
    np.testing.assert_array_equal(is_cue[1:] == 1, over[:-1])
    shown = symbols.argmax(-1)
    found, cues, asked, between = set(), [], [], []
    for row in range(ROWS):
        begin = 0
        for question in np.flatnonzero(over[:, row]):
            cue = shown[begin, row]
            found.add(question - begin - 1)
            assert rewards[question, row] == (1 if actions[question, row] == cue else -1)
            cues.append(cue)
            asked.append(shown[question, row])
            between.append(shown[begin + 1, row])
            begin = question + 1
    assert found == {2, 3, 4} and (rewards[~over] == 0).all()
    # Every pair of cue and later symbol is as frequent as the others: what follows says nothing.
    for later in (asked, between):
        counts = np.histogram2d(cues, later, bins=task.SYMBOLS)[0]
        np.testing.assert_allclose(counts / len(cues), 1 / 16, atol=0.02)


@pytest.mark.first_case
@pytest.mark.parametrize("forget", [False, True])
def test_single_steps_for_acting_equal_the_unroll_for_learning(forget: bool) -> None:
    params, now, later, unroll = play(forget)
    # Episodes begin inside the unroll.
    begun = np.asarray(unroll.over)[:-1]
    assert begun.any() and not begun.all()
    np.testing.assert_array_equal(unroll.resets[1:], begun | forget)
    assert unroll.resets[0].all() == forget
    stepwise = (later.carry, unroll.chosen, unroll.values)
    for network in (jax.jit(task.Agent().apply), by_flax):
        carry, policy, values = network(params, now.carry, unroll.observations, unroll.resets)
        whole = (carry, task.pick(policy, unroll.actions), values)
        assert_close(stepwise, whole, TOLERANCES["float32"])


@pytest.mark.slow
def test_the_difference_is_zero_up_to_rounding() -> None:
    params = jax.tree.map(lambda *each: jnp.stack(each), agent(0), agent(1))
    found = task.difference(jnp.arange(2), params, False)
    assert found.shape == (2,) and found.max() < 1e-5


def test_advantages_are_discounted_sums_of_errors_that_stop_at_the_end_of_an_episode() -> None:
    rng, length, rows = np.random.default_rng(0), 12, 3
    rewards, values = rng.normal(size=(2, length, rows)).astype(np.float32)
    last = rng.normal(size=rows).astype(np.float32)
    over = rng.random((length, rows)) < 0.3
    empty = jnp.zeros(0)
    unroll = task.Unroll(empty, empty, empty, empty, values, rewards, over)
    following = np.concatenate([values[1:], last[None]]).astype(np.float64)
    wanted = np.zeros((length, rows))
    for row in range(rows):
        for t in range(length):
            weight = 1.0
            for s in range(t, length):
                expected = 0 if over[s, row] else task.DISCOUNT * following[s, row]
                wanted[t, row] += weight * (rewards[s, row] + expected - values[s, row])
                if over[s, row]:
                    break
                weight *= task.DISCOUNT * task.LAMBDA
    assert_close(task.advantages(unroll, jnp.asarray(last)), wanted, TOLERANCES["float32"])


@pytest.mark.slow
def test_the_loss_and_its_gradient() -> None:
    """The loss is written in numpy; flax's cell has the same gradient."""
    _, now, _, unroll = play(False)
    params = agent(4)
    advantage = jax.random.normal(jax.random.key(5), unroll.values.shape)
    _, policy, values = by_flax(params, now.carry, unroll.observations, unroll.resets)
    policy, values = np.asarray(policy, np.float64), np.asarray(values, np.float64)
    chosen = np.take_along_axis(policy, np.asarray(unroll.actions)[..., None], -1)[..., 0]
    ratio = np.exp(chosen - unroll.chosen)
    scaled = (advantage - np.mean(advantage)) / np.std(advantage)
    assert (np.abs(ratio - 1) > task.RATIO).any()
    gain = np.minimum(ratio * scaled, np.clip(ratio, 1 - task.RATIO, 1 + task.RATIO) * scaled)
    squares = (values - unroll.values - advantage) ** 2 / 2
    entropy = -(np.exp(policy) * policy).sum(-1)
    wanted = -gain.mean() + task.VALUE * squares.mean() - task.ENTROPY * entropy.mean()

    def by_cell(params: Any) -> Any:
        class Scan:
            apply = staticmethod(by_flax)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task, "Agent", Scan)
            return task.loss(params, now.carry, unroll, advantage)

    found, gradient = jax.jit(jax.value_and_grad(task.loss))(params, now.carry, unroll, advantage)
    assert_close(found, wanted, TOLERANCES["float32"])
    assert_close(gradient, jax.jit(jax.grad(by_cell))(params), TOLERANCES["float32"])


@pytest.mark.long
@pytest.mark.parametrize("name", task.AGENTS)
def test_the_cue_is_learnt_with_memory_only(name: str) -> None:
    # optax's schedule promotes the count of the updates.
    with jax.numpy_dtype_promotion("standard"):
        _, curve = task.train(jnp.arange(4), task.AGENTS[name], 300)
    reached = np.asarray(curve)[:, -50:].mean(1)
    if name == "with memory":
        assert np.median(reached) > 0.9
    else:
        np.testing.assert_allclose(reached, task.CHANCE, atol=0.03)


@pytest.mark.parametrize(
    ("levels", "holds"),
    [((1, 0.25), Holds.YES), ((0.95, 0.5), Holds.PARTLY), ((0.3, 0.25), Holds.NO)],
)
def test_the_claim_holds_where_only_agents_with_memory_recall(
    levels: tuple[float, float], holds: Holds
) -> None:
    curves = {
        name: [[0.0] * 9 + [level]] * 2 for name, level in zip(task.AGENTS, levels, strict=True)
    }
    numbers = {"success_by_update": curves, "chance": task.CHANCE}
    verdict = task.verdict(numbers, [0, 1])
    assert verdict.holds is holds
    for sentence in (verdict.english, verdict.korean):
        assert all(f"{level:.0%}" in sentence for level in levels)
