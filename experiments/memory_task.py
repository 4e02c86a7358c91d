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
are longer than in training.

    python -m experiments memory_task      73 s on two CPU cores; success 1.00, without memory 0.25
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import Outcome, _drawing, bullets
from jaxrnn.interop.linen import ScannedRNN

ROW = 18
SYMBOLS = 4
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


class Episode(NamedTuple):
    """The state of the environment, each an int32 scalar.

    cue: the symbol to recall.
    shown: the symbol that is shown now.
    time: steps since the cue.
    last: `time` of the question.
    """

    cue: Any
    shown: Any
    time: Any
    last: Any


def begin(key: Any, delays: Any) -> Episode:
    """Return a new episode, whose delay is uniform between the two `delays`."""
    keys = jax.random.split(key)
    cue = jax.random.randint(keys[0], (), 0, SYMBOLS)
    delay = jax.random.randint(keys[1], (), delays[0], delays[1] + 1)
    return Episode(cue, cue, jnp.int32(0), delay + 1)


def observe(episode: Episode) -> Any:
    """Return the symbol as one-hot, whether it is the cue, and whether this is the question [6]."""
    flags = jnp.stack([episode.time == 0, episode.time == episode.last])
    return jnp.concatenate([jax.nn.one_hot(episode.shown, SYMBOLS), flags.astype(jnp.float32)])


def respond(episode: Episode, action: Any, key: Any, delays: Any) -> tuple[Episode, Any, Any]:
    """Return the next state, the reward and whether the episode is over; then the state is a new one."""
    keys = jax.random.split(key)
    over = episode.time == episode.last
    reward = jnp.where(over, jnp.where(action == episode.cue, 1.0, -1.0), 0.0)
    shown = jax.random.randint(keys[0], (), 0, SYMBOLS)
    later = episode._replace(shown=shown, time=episode.time + 1)
    following = jax.tree.map(functools.partial(jnp.where, over), begin(keys[1], delays), later)
    return following, reward, over


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
    head = ["agent", f"success, last tenth of {updates} updates"]
    head += [f"delay {delay}" for delay in TESTED]
    rows = [[*head, "single steps and unroll differ by at most"]]
    # By agent: success [seeds, points], success [seeds, delays], and the difference.
    curves: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    differences: dict[str, float] = {}
    for name, forget in AGENTS.items():
        every = jnp.array(seeds)
        params, curve = train(every, forget, updates)
        curves[name] = np.asarray(curve, float).reshape(len(seeds), -1, EVERY).mean(-1)
        by_delay = [examine(every, params, forget, delay) for delay in TESTED]
        tests[name] = np.stack(by_delay, axis=-1).astype(float)
        differences[name] = float(difference(every, params, forget).max())
        cells = [span(each) for each in tests[name].T]
        rows.append([name, span(end(curves[name])), *cells, _drawing.decades(differences[name])])
    rows.append(["chance", *[f"{CHANCE:.2f}"] * (1 + len(TESTED)), ""])
    numbers = {
        "success_by_update": {name: each.round(4).tolist() for name, each in curves.items()},
        "success_by_delay": {name: each.round(4).tolist() for name, each in tests.items()},
        "delays": {"training": DELAYS, "tested": TESTED},
        "difference": differences,
        "chance": CHANCE,
        "updates": updates,
        "environment_steps_per_update": BATCH * LENGTH,
        "hidden": HIDDEN,
        "first_learning_rate": RATE,
    }
    return Outcome(rows, numbers, seeds, draw(curves, tests))


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    low, high = numbers["delays"]["training"]
    longest = numbers["delays"]["tested"][-1]
    parts = []
    for name, curve in numbers["success_by_update"].items():
        last = np.array(numbers["success_by_delay"][name])[:, -1]
        parts.append(f"{name}: {span(end(np.array(curve)))}; after {longest} steps {span(last)}")
    return (
        f"Success in the last tenth of {numbers['updates']} updates with delays of {low} to {high} "
        f"steps, and after {longest} steps, median and range of {len(seeds)} seeds; chance is "
        f"{numbers['chance']:.2f}:{bullets(parts)}\n\n"
        "Single steps and unrolls differ by at most "
        f"{_drawing.decades(max(numbers['difference'].values()))} in log-probabilities, values and "
        "states."
    )


def end(curve: Any) -> Any:
    """Return the mean of the last tenth of curves [seeds, points]."""
    return curve[:, -max(1, curve.shape[1] // 10) :].mean(1)


def span(runs: Any) -> str:
    return f"{np.median(runs):.2f} ({runs.min():.2f} to {runs.max():.2f})"


def draw(curves: Any, tests: Any) -> Any:
    figure, (left, right) = _drawing.figure(2, 12, 4.5, sharey=True)
    curve_ends, test_ends = [], []
    for name, colour in zip(AGENTS, (_drawing.BLUE, _drawing.RED), strict=True):
        # Thousands of steps at the end of each point.
        steps = np.arange(1, 1 + curves[name].shape[1]) * EVERY * BATCH * LENGTH / 1000
        curve_ends.append((_drawing.band(left, steps, curves[name], colour)[-1], name, colour))
        middle = _drawing.band(right, TESTED, tests[name], colour, marker="o")
        test_ends.append((middle[-1], name, colour))
    right.axvspan(*DELAYS, color=_drawing.GREY, alpha=0.15, linewidth=0)
    right.annotate("in training", (10, 0.6), color=_drawing.GREY, ha="center", fontsize=9)
    for axes, ends in ((left, curve_ends), (right, test_ends)):
        axes.axhline(CHANCE, color=_drawing.GREY, linestyle="--", linewidth=1)
        axes.set(ylim=(0, 1.02))
        ends.append((CHANCE, "chance", _drawing.GREY))
    left.set(xlim=(0, steps[-1]))
    right.set(xscale="log", xlim=(0.9 * TESTED[0], 1.1 * TESTED[-1]))
    right.set_xticks(TESTED, map(str, TESTED))
    right.minorticks_off()
    _drawing.label_ends(left, curve_ends)
    _drawing.label_ends(right, test_ends)
    seeds = f"median and range of {len(tests[name])} seeds"
    _drawing.name_axes(
        left, f"Learning ({seeds})", "environment steps of an agent, thousands", "success"
    )
    title = f"The final agents, by delay ({seeds})"
    _drawing.name_axes(right, title, "steps between cue and question", "")
    return figure
