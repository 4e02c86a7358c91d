"""The influence of an input fades with time, and gates that start open keep it longer.

    dh^T / dx^{T-k} = (dh^T / ds^{T-1}) (ds^{T-1} / ds^{T-2}) ... (ds^{T-k} / dx^{T-k})

This is a product of k Jacobians: where they shrink a vector, the influence falls by a factor with
every step of lag k. Its Frobenius norm is measured at initialisation and after a short training on
`recall`: one of four symbols is shown at one random step of T, distractors at all others, and after
the last step the network has to say which symbol it was. Chance is ln 4 = 1.386 nats.

The learning rate of each cell is the one of RATES with the smallest final loss, in one run of 600
training steps per rate, from a seed that is not among those measured.

    python -m experiments vanishing_gradient      6 min on one CPU core
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxrnn
from experiments import Holds, Outcome, Verdict, _drawing
from experiments._training import best_rate, grid, train

ROW = 4
SYMBOLS = 4
DISTRACTORS = 4
HIDDEN = 64
STEPS = 60
BATCH = 32
# The learning rates to choose from, and the seed of the runs that choose.
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNING_SEED = 100
# Rows of a batch whose influence is measured.
MEASURED = 8
CHANCE = math.log(SYMBOLS)
# Largest final loss of a network that has learnt the task, and smallest of one that has diverged.
LEARNT = 0.1
DIVERGED = 10 * CHANCE
# Smallest influence that is not yet lost, as a share of that at lag 0.
LOST = 0.01
TANH = "rnn, tanh"
FORGET_0 = "lstm, forget bias 0"
FORGET_1 = "lstm, forget bias 1"
CELLS = {
    TANH: jaxrnn.rnn(HIDDEN),
    "rnn, relu": jaxrnn.rnn(HIDDEN, activation="relu"),
    "rnn, sigmoid": jaxrnn.rnn(HIDDEN, activation="sigmoid"),
    FORGET_0: jaxrnn.lstm(HIDDEN, forget_bias=0.0),
    FORGET_1: jaxrnn.lstm(HIDDEN),
    "lstm, peepholes": jaxrnn.lstm(HIDDEN, peephole=True),
    "gru": jaxrnn.gru(HIDDEN),
}
STYLES = dict(zip(CELLS, ["-", "--", ":", "--", "-", ":", "-"], strict=True))


def recall(key: Any, rows: int) -> tuple[Any, Any]:
    """Return one-hot inputs [T, B, symbols + distractors] and the symbol [B] to name at the end."""
    keys = jax.random.split(key, 3)
    symbol = jax.random.randint(keys[0], (rows,), 0, SYMBOLS)
    when = jax.random.randint(keys[1], (rows,), 0, STEPS)
    noise = jax.random.randint(keys[2], (STEPS, rows), SYMBOLS, SYMBOLS + DISTRACTORS)
    shown = jnp.where(jnp.arange(STEPS)[:, None] == when[None], symbol[None], noise)
    return jax.nn.one_hot(shown, SYMBOLS + DISTRACTORS), symbol


def learn(cell: Any, rate: float, steps: int, seeds: list[int]) -> tuple[Any, Any]:
    """Return the trained parameters [seeds, ...] and the mean loss of the last tenth [seeds]."""
    net = jaxrnn.network(cell, SYMBOLS + DISTRACTORS, SYMBOLS)

    def loss(params: Any, batch: Any) -> Any:
        xs, symbol = batch
        _, ys = jaxrnn.unroll(cell, params.cell, xs)
        logits = net.output(params, ys[-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, symbol).mean()

    params, losses = train(net, loss, lambda key: recall(key, BATCH), steps, seeds, rate)
    return params, np.asarray(losses[:, -max(1, steps // 10) :].mean(1))


def flow(cell: Any, params: Any, seeds: list[int]) -> Any:
    """Return log10 of the influence by lag, before and after training [seeds, 2, T]."""
    net = jaxrnn.network(cell, SYMBOLS + DISTRACTORS, SYMBOLS)

    @jax.jit
    def influence(params: Any, xs: Any) -> Any:
        """Return the mean over the rows [T]."""
        return jaxrnn.gradient_flow(cell, params.cell, xs).mean(1) / np.log(10)

    flows = []
    for number, seed in enumerate(seeds):
        seen, _ = recall(jax.random.fold_in(jax.random.key(seed), 2), MEASURED)
        after = jax.tree.map(lambda a, number=number: a[number], params)
        flows.append([influence(each, seen) for each in (net.init(jax.random.key(seed)), after)])
    return np.array(flows)


def below(flow: Any) -> int | None:
    """Return the first lag from which the influence stays below LOST; None if there is none.

    The influence in a network that diverged is NaN, which gives None as well.
    """
    above = np.flatnonzero(~(flow - flow[0] < math.log10(LOST)))
    return None if above[-1] == len(flow) - 1 else int(above[-1]) + 1


def run(quick: bool) -> Outcome:
    seeds, steps, rates = ([0, 1], 3, RATES[:1]) if quick else ([0, 1, 2, 3, 4], 600, RATES)
    cells = (TANH, FORGET_0, FORGET_1) if quick else tuple(CELLS)
    numbers: dict[str, Any] = {
        "T": STEPS,
        "hidden": HIDDEN,
        "batch": BATCH,
        "training_steps": steps,
        "rates": rates,
    }
    measured = ("learning_rate", "loss", "log10_influence", "below_1_percent")
    numbers |= {name: {} for name in measured}
    for name in cells:
        cell, rate = CELLS[name], rates[0]
        if len(rates) > 1:
            tried = [learn(cell, rate, steps, [TUNING_SEED])[1][0] for rate in rates]
            rate = best_rate(rates, tried)
        params, losses = learn(cell, rate, steps, seeds)
        flows = flow(cell, params, seeds)
        found = rate, losses.tolist(), flows.round(3).tolist(), [[*map(below, f)] for f in flows]
        for what, value in zip(measured, found, strict=True):
            numbers[what][name] = value
    return Outcome(numbers, seeds)


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    rows = [
        [
            "cell",
            grid(numbers["rates"], numbers["training_steps"]),
            "lag at which the influence falls below 1%, at initialisation",
            "after training",
            "final loss, nats",
            "seeds that learnt the task",
        ]
    ]
    for name, last in numbers["loss"].items():
        # A network whose weights have become NaN has diverged, too.
        losses = np.nan_to_num(last, nan=math.inf).tolist()
        lags = [span(when) for when in zip(*numbers["below_1_percent"][name], strict=True)]
        loss = "{} ({} to {})".format(*(words(f(losses)) for f in (np.median, min, max)))
        rate = f"{numbers['learning_rate'][name]:g}"
        diverged = sum(loss >= DIVERGED for loss in losses)
        seen = f"{learnt(losses)} of {len(seeds)}" + f"; {diverged} diverged" * (diverged > 0)
        rows.append([name, rate, *lags, loss, seen])
    return rows


def words(loss: float) -> str:
    """Return a loss in digits, or that it diverged."""
    return f"{loss:.3f}" if loss < DIVERGED else "diverged"


def learnt(losses: list[float]) -> int:
    """Return the number of seeds that have learnt the task."""
    return sum(loss < LEARNT for loss in losses)


def filled(lags: Any) -> list[int]:
    """Return lags with None, which means never, as STEPS."""
    return [STEPS if lag is None else lag for lag in lags]


def span(lags: Any) -> str:
    """Return the median and the range of some lags."""
    middle, low, high = (f(filled(lags)) for f in (np.median, min, max))
    words = [f"{lag:g}" if lag < STEPS else "never" for lag in (middle, low, high)]
    return words[0] if low == high else "{} ({} to {})".format(*words)


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    # Lags [seeds] by cell, before and after training.
    first, last = (
        {
            name: filled(pair[when] for pair in pairs)
            for name, pairs in numbers["below_1_percent"].items()
        }
        for when in (0, 1)
    )
    fades = all(max(first[name]) < STEPS for name in first if name.startswith("rnn"))
    longer = min(first[FORGET_1]) > max(*first[FORGET_0], *first[TANH])
    after = {name: np.median(last[name]) for name in (FORGET_1, TANH)}
    remains = after[FORGET_1] >= after[TANH]
    lags = [np.median(first[name]) for name in (TANH, FORGET_1)]
    tanh, opened = (f"{lag:g}" if lag < STEPS else f"more than {STEPS - 1}" for lag in lags)
    korean = [f"{lag:g}스텝 후" if lag < STEPS else f"{STEPS - 1}스텝보다 뒤" for lag in lags]
    if after[FORGET_1] == after[TANH]:
        ended, ended_korean = "equally long in both", "둘에서 똑같이 오래 남습니다"
    else:
        longest = "LSTM" if remains else "RNN"
        ended, ended_korean = f"longer in the {longest}", f"{longest}에서 더 오래 남습니다"
    return Verdict(
        (Holds.YES if remains else Holds.PARTLY) if fades and longer else Holds.NO,
        f"before training, the influence of an input falls below 1% after {tanh} steps in a tanh "
        f"RNN, and after {opened} in an LSTM with forget bias 1. After training, it lasts {ended}.",
        f"학습 전에 인풋의 영향력이 1% 아래로 줄어드는 시점은 tanh RNN에서 {korean[0]}, 포겟 게이트 "
        f"편향이 1인 LSTM에서 {korean[1]}입니다. 학습 후에는 {ended_korean}.",
    )


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, panels = _drawing.figure(2, height=4.4)
    lags, bottom = np.arange(STEPS), 1e-9
    for when, axes in enumerate(panels):
        ends = []
        axes.set(yscale="log", ylim=(bottom, 30), xlim=(0, STEPS - 1))
        for name, flows in numbers["log10_influence"].items():
            each = np.array(flows)[:, when]
            colour = _drawing.CELLS[name.split(",")[0]]
            # Leave out networks that diverged or whose units all died: at lag 0, their influence is no
            # number to divide by.
            each = each[np.isfinite(each[:, 0])]
            if not len(each):
                continue
            share = 10.0 ** (each - each[:, :1])
            # After training, the ranges of seven cells would hide each other.
            runs = np.median(share, axis=0, keepdims=True) if when else share
            middle = _drawing.band(axes, lags, runs, colour, linestyle=STYLES[name])
            label = f"{name} ({learnt(numbers['loss'][name])})" if when else name
            if middle[-1] > bottom:
                ends.append((middle[-1], label, colour))
            else:
                lag = int(np.flatnonzero(middle > bottom)[-1])
                axes.annotate(label, (lag + 2, 3 * bottom), color=colour, fontsize=11)
        axes.axhline(LOST, color=_drawing.INK, linestyle="--", linewidth=1)
        _drawing.label_ends(axes, ends)
        title = f"At initialisation ({len(seeds)} seeds)"
        if when:
            title = f"Medians after training (seeds of {len(seeds)} that learnt)"
        _drawing.name_axes(axes, title, "lag k, steps", "influence, relative to lag 0")
    panels[0].annotate("1%", (STEPS - 1, LOST), (-24, 3), textcoords="offset points")
    return figure
