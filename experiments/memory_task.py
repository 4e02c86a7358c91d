"""An agent with a recurrent state learns to recall a cue; without the state it stays at chance.

    h^t = GRU(x^t, h^{t-1}),    policy = softmax(h^t W_p + b_p),    value = h^t w_v + b_v

The first step of an episode shows the cue, one of four symbols. 5 to 20 steps with random symbols
follow, then the question, which shows a random symbol too. The action at the question earns 1 where it
equals the cue and -1 where it does not; all other actions earn 0. What the question shows says nothing
about the cue, so an agent without memory is right in 1 of 4 episodes at best. The lengths differ, and
episodes begin at any step of an unroll; there the state is set to zero.

Eight agents, one from each seed, learn by proximal policy optimization (Schulman et al., 2017) in one
program, by `jax.vmap` over their parameters. They act by single steps and learn by unrolls of 64 steps
of `jaxrnn.interop.linen.ScannedRNN`; both must give the same values. The agents without memory differ
in one thing: their state is set to zero at every step. The final agents also answer after delays that
are longer than in training. The learning rate is the same for both kinds; a tuned one could not help the
agents without memory, whose best possible success is 1/4.

    python -m experiments memory_task      73 s on two CPU cores that do nothing else
"""

from __future__ import annotations

import functools
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments import Holds, Outcome, Verdict, _drawing
from experiments._recall import SYMBOLS, Episode, begin, observe, respond
from jaxrnn.interop.linen import ScannedRNN

ROW = 18
CHANCE = 1 / SYMBOLS
# Least and greatest number of steps between the cue and the question in training. The final agents are
# tested with each of TESTED.
DELAYS = (5, 20)
TESTED = (5, 10, 20, 40, 80, 160)
HIDDEN = 64
# Environments of each agent, in training and in the test.
BATCH = 32
TEST_BATCH = 500
# Steps of an unroll, and how often the agent learns from it.
LENGTH = 64
PASSES = 4
# Discount of the rewards, and lambda of the advantages.
DISCOUNT = 0.99
LAMBDA = 0.95
# Clipping of the ratio of new to old policy, and weights of the value's loss and of the entropy.
RATIO = 0.2
VALUE = 0.5
ENTROPY = 0.04
# First learning rate of Adam, which falls to zero, and largest norm of the gradient.
RATE = 2e-3
CLIP = 0.5
# Updates that a point of the learning curve averages.
EVERY = 5
# Whether the state is set to zero at every step.
AGENTS = {"with memory": False, "without memory": True}


class Agent(nn.Module):
    """A GRU with a policy and a value."""

    @nn.compact
    def __call__(self, carry: Any, observations: Any, resets: Any) -> tuple[Any, Any, Any]:
        """Return the carry [B, H], log-probabilities [T, B, SYMBOLS] and values [T, B].

        Args:
          carry: the state before the first step [B, H].
          observations: [T, B, 6].
          resets: bool [T, B]; true sets the state to zero before the step.
        """
        carry, hidden = ScannedRNN()(carry, (observations, resets))
        logits = nn.Dense(SYMBOLS, kernel_init=nn.initializers.orthogonal(0.01))(hidden)
        return carry, jax.nn.log_softmax(logits), nn.Dense(1)(hidden)[..., 0]


class Now(NamedTuple):
    """The point between two steps.

    episodes: the environments [B].
    resets: bool [B]; true where a new episode begins.
    carry: the state of the network [B, H].
    """

    episodes: Episode
    resets: Any
    carry: Any


class Unroll(NamedTuple):
    """The steps of an unroll, each array [T, B] but the observations [T, B, 6].

    observations, resets: the inputs of the network.
    actions: the chosen actions.
    chosen: the log-probabilities of these actions.
    values: the expected values.
    rewards, over: what `respond` returned.
    """

    observations: Any
    resets: Any
    actions: Any
    chosen: Any
    values: Any
    rewards: Any
    over: Any


def start(key: Any, delays: Any, rows: int) -> Now:
    """Return new episodes and the zero state."""
    episodes = jax.vmap(begin, (0, None))(jax.random.split(key, rows), delays)
    return Now(episodes, jnp.ones(rows, bool), ScannedRNN.initialize_carry(rows, HIDDEN))


def act(
    params: Any, now: Now, key: Any, forget: Any, delays: Any, length: int
) -> tuple[Now, Unroll]:
    """Act for `length` steps, one at a time; with `forget`, the state is set to zero at each of them."""

    def step(now: Now, key: Any) -> tuple[Now, Unroll]:
        keys = jax.random.split(key)
        observations = jax.vmap(observe)(now.episodes)
        resets = now.resets | forget
        # A sequence of one step.
        carry, policy, values = Agent().apply(params, now.carry, observations[None], resets[None])
        actions = jax.random.categorical(keys[0], policy[0])
        each = jax.random.split(keys[1], len(actions))
        respond_all = jax.vmap(respond, (0, 0, 0, None))
        episodes, rewards, over = respond_all(now.episodes, actions, each, delays)
        chosen = pick(policy[0], actions)
        taken = Unroll(observations, resets, actions, chosen, values[0], rewards, over)
        return Now(episodes, over, carry), taken

    return jax.lax.scan(step, now, jax.random.split(key, length))


def pick(policy: Any, actions: Any) -> Any:
    """Return the log-probabilities [...] of actions [...], from those of all actions [..., SYMBOLS]."""
    return jnp.take_along_axis(policy, actions[..., None], axis=-1)[..., 0]


def advantages(unroll: Unroll, value: Any) -> Any:
    """Return generalized advantage estimates [T, B] (Schulman et al., 2016).

    Args:
      unroll: the steps.
      value: expected value [B] after its last step.
    """

    def step(later: Any, now: Any) -> Any:
        value, advantage = later
        reward, over, expected = now
        # Nothing is expected after the end of an episode.
        keep = jnp.where(over, 0.0, DISCOUNT)
        advantage = reward + keep * value - expected + keep * LAMBDA * advantage
        return (expected, advantage), advantage

    steps = (unroll.rewards, unroll.over, unroll.values)
    return jax.lax.scan(step, (value, jnp.zeros_like(value)), steps, reverse=True)[1]


def loss(params: Any, carry: Any, unroll: Unroll, advantage: Any) -> Any:
    """Return the clipped loss of the policy plus the loss of the value minus the bonus for entropy."""
    _, policy, values = Agent().apply(params, carry, unroll.observations, unroll.resets)
    ratio = jnp.exp(pick(policy, unroll.actions) - unroll.chosen)
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = jnp.minimum(ratio * scaled, jnp.clip(ratio, 1 - RATIO, 1 + RATIO) * scaled)
    squares = optax.l2_loss(values, unroll.values + advantage)
    entropy = -(jnp.exp(policy) * policy).sum(-1)
    return -gain.mean() + VALUE * squares.mean() - ENTROPY * entropy.mean()


def initialize(seed: Any) -> Any:
    """Return the initial parameters of an agent."""
    now = start(jax.random.key(seed), DELAYS, 1)
    observations = jax.vmap(observe)(now.episodes)[None]
    return Agent().init(jax.random.key(seed), now.carry, observations, now.resets[None])


@functools.partial(jax.jit, static_argnums=2)
def train(seeds: Any, forget: Any, updates: int) -> tuple[Any, Any]:
    """Return the parameters [N, ...] and the success at each update [N, updates], for seeds [N]."""
    rate = optax.linear_schedule(RATE, 0, updates * PASSES)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(rate))

    def train_one(seed: Any, params: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))

        def update(state: Any, key: Any) -> Any:
            params, memory, now = state
            later, unroll = act(params, now, key, forget, DELAYS, LENGTH)
            # The value of the state that the last step led to; its action is not used.
            _, after = act(params, later, key, forget, DELAYS, 1)
            advantage = advantages(unroll, after.values[0])

            def learn(state: Any, _: Any) -> Any:
                params, memory = state
                gradient = jax.grad(loss)(params, now.carry, unroll, advantage)
                changes, memory = optimizer.update(gradient, memory)
                return (optax.apply_updates(params, changes), memory), None

            (params, memory), _ = jax.lax.scan(learn, (params, memory), length=PASSES)
            return (params, memory, later), success(unroll)

        begun = (params, optimizer.init(params), start(keys[0], DELAYS, BATCH))
        (params, _, _), curve = jax.lax.scan(update, begun, jax.random.split(keys[1], updates))
        return params, curve

    # Not by vmap: the orthogonal weights come from QR decompositions, and on two CPU cores JAX's batched
    # QR decompositions can wait for each other forever.
    params = jax.lax.map(initialize, seeds)
    return jax.vmap(train_one)(seeds, params)


def success(unroll: Unroll) -> Any:
    """Return the share of the questions that were answered with the cue."""
    return (unroll.rewards > 0).sum() / unroll.over.sum()


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, None, None))
def examine(seed: Any, params: Any, forget: Any, delay: Any) -> Any:
    """Return the success [N] of agents [N] after this delay, in new episodes."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2))
    delays = (delay, delay)
    now = start(keys[0], delays, TEST_BATCH)
    # Long enough for an episode with the longest delay.
    _, unroll = act(params, now, keys[1], forget, delays, TESTED[-1] + 2)
    return success(unroll)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def difference(seed: Any, params: Any, forget: Any) -> Any:
    """Return by how much single steps and the unroll differ at most, for agents [N].

    Compared are the log-probabilities of the actions, the values and the last state.
    """
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 3), 3)
    # The first unroll ends with a state that is not zero.
    now, _ = act(params, start(keys[0], DELAYS, BATCH), keys[1], forget, DELAYS, LENGTH)
    later, unroll = act(params, now, keys[2], forget, DELAYS, LENGTH)
    carry, policy, values = Agent().apply(params, now.carry, unroll.observations, unroll.resets)
    stepwise = (later.carry, unroll.chosen, unroll.values)
    whole = (carry, pick(policy, unroll.actions), values)
    return jnp.stack([jnp.abs(a - b).max() for a, b in zip(stepwise, whole, strict=True)]).max()


def run(quick: bool) -> Outcome:
    seeds, updates = ([0, 1], 2 * EVERY) if quick else (list(range(8)), 500)
    every = jnp.array(seeds)
    # By agent: success [seeds, points], success [seeds, delays], the difference, and seconds.
    curves: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    differences: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for name, forget in AGENTS.items():
        begin = time.perf_counter()
        params, curve = jax.device_get(train(every, forget, updates))
        seconds[name] = round(time.perf_counter() - begin, 1)
        curves[name] = np.asarray(curve, float).reshape(len(seeds), -1, EVERY).mean(-1)
        by_delay = [examine(every, params, forget, delay) for delay in TESTED]
        tests[name] = np.stack(by_delay, axis=-1).astype(float)
        differences[name] = float(difference(every, params, forget).max())
    numbers = {
        "success_by_update": {name: each.round(4).tolist() for name, each in curves.items()},
        "success_by_delay": {name: each.round(4).tolist() for name, each in tests.items()},
        "delays": {"training": DELAYS, "tested": TESTED},
        "difference": differences,
        "seconds_of_training": seconds,
        "parameters": sum(each[0].size for each in jax.tree.leaves(params)),
        "chance": CHANCE,
        "updates": updates,
        "updates_per_point": EVERY,
        "environment_steps_per_update": BATCH * LENGTH,
        "hidden": HIDDEN,
        "first_learning_rate": RATE,
    }
    return Outcome(numbers, seeds)


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    tested = numbers["delays"]["tested"]
    rows = [["agent", f"success, last tenth of {numbers['updates']} updates"]]
    rows[0] += [f"delay {delay}" for delay in tested]
    rows[0] += ["parameters", "first learning rate", "seconds"]
    rows[0] += ["single steps and unroll differ by at most"]
    by_delay = numbers["success_by_delay"]
    for name, curve in numbers["success_by_update"].items():
        rows.append([
            name,
            _drawing.spread(end(curve), ".2f"),
            *(_drawing.spread(each, ".2f") for each in np.array(by_delay[name]).T),
            str(numbers["parameters"]),
            str(numbers["first_learning_rate"]),
            f"{numbers['seconds_of_training'][name]:.0f}",
            _drawing.decades(numbers["difference"][name]),
        ])  # fmt: skip
    return [*rows, ["chance", *[f"{numbers['chance']:.2f}"] * (1 + len(tested)), *[""] * 4]]


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    chance = numbers["chance"]
    reached = {name: end(curve) for name, curve in numbers["success_by_update"].items()}
    with_memory, without = (reached[name] for name in AGENTS)
    stays = bool((np.abs(without - chance) < 0.1).all())
    learns = with_memory > 0.9
    holds = Holds.YES if stays and learns.all() else Holds.PARTLY if learns.any() else Holds.NO
    return Verdict(
        holds,
        f"in the last tenth of training, agents with memory recall the cue in "
        f"{np.median(with_memory):.0%} of the episodes, and agents without in "
        f"{np.median(without):.0%} (medians of {len(seeds)} seeds), where chance gives {chance:.0%}.",
        "학습의 마지막 구간에서, 기억이 있는 에이전트는 에피소드의 "
        f"{np.median(with_memory):.0%}에서, 기억이 없는 에이전트는 {np.median(without):.0%}에서 "
        f"단서를 맞힙니다(시드 {len(seeds)}개의 중앙값). 우연히 맞힐 확률은 {chance:.0%}입니다.",
    )


def end(curve: Any) -> Any:
    """Return the mean of the last tenth of curves [seeds, points]."""
    curve = np.asarray(curve)
    return curve[:, -max(1, curve.shape[1] // 10) :].mean(1)


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, (learning, final) = _drawing.figure(2, height=3.2)
    training, tested = (numbers["delays"][name] for name in ("training", "tested"))
    curve_ends, test_ends = [], []
    for name, colour in zip(AGENTS, (_drawing.GREEN, _drawing.PINK), strict=True):
        curve = np.array(numbers["success_by_update"][name])
        # Thousands of steps at the end of each point.
        point = numbers["updates_per_point"] * numbers["environment_steps_per_update"] / 1000
        steps = point * np.arange(1, 1 + curve.shape[1])
        label = name.replace(" ", "\n")
        curve_ends.append((_drawing.band(learning, steps, curve, colour)[-1], label, colour))
        by_delay = numbers["success_by_delay"][name]
        middle = _drawing.band(final, tested, by_delay, colour, marker="o")
        test_ends.append((middle[-1], label, colour))
    final.axvspan(*training, color=_drawing.INK, alpha=0.2, linewidth=0)
    final.annotate(
        "delays in training", (np.sqrt(np.prod(training)), 0.6), ha="center", fontsize=11
    )
    for axes in (learning, final):
        axes.axhline(numbers["chance"], color=_drawing.INK, linestyle="--", linewidth=1)
        axes.annotate(
            "chance", (0.02, numbers["chance"] - 0.09), xycoords=("axes fraction", "data")
        )
        axes.set(ylim=(0, 1.03))
    learning.set(xlim=(0, steps[-1]))
    final.set(xscale="log", xlim=(0.9 * tested[0], 1.1 * tested[-1]))
    final.set_xticks(tested, [str(delay) for delay in tested])
    final.minorticks_off()
    _drawing.label_ends(learning, curve_ends, gap=0.2)
    _drawing.label_ends(final, test_ends, gap=0.2)
    title = f"Learning to recall the cue ({len(seeds)} seeds)"
    _drawing.name_axes(learning, title, "environment steps, thousands", "success")
    title = "The final agents, after shorter and longer delays"
    _drawing.name_axes(final, title, "steps between cue and question", "success")
    return figure
