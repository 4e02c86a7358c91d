"""An input's influence fades with time, the vanishing gradient; gates that begin open keep it longer.

    dh^T / dx^{T-k} = (dh^T / ds^{T-1}) (ds^{T-1} / ds^{T-2}) ... (ds^{T-k} / dx^{T-k})

A product of k Jacobians: where they shrink a vector, the influence falls by a factor with every step of
lag k. Shown is the Frobenius norm of it, at initialisation and after a short training on `recall`: at
one random moment of T a symbol of four is shown, at all others distractors, and after the last step the
network tells which symbol it was. Chance is ln 4 = 1.386 nats.

    python -m experiments vanishing_gradient      42 s on two CPU cores

On 2026-11-24: Lag at which the influence has fallen below 1% of that at lag 0, at initialisation →
after 600 steps of training (range of 3 seeds, sequences of 60): rnn tanh 38 to 43 → 21 to never; rnn
relu 13 to 15 → 19 to 44; rnn sigmoid 4 → 4; lstm, forget bias 0 13 → 17 to 35; lstm, forget bias 1
never → 41 to 47; lstm, peepholes never → 43 to never; gru 13 to 14 → 22 to never. Loss below 0.1 in
every seed, where chance is 1.386: lstm, forget bias 0, lstm, forget bias 1, lstm, peepholes, gru.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from experiments import Outcome, _drawing
from experiments._training import train

ROW = 4
SYMBOLS, DISTRACTORS, HIDDEN = 4, 4, 64
STEPS, BATCH, RATE, MEASURED = 60, 32, 3e-3, 8  # T, rows of a batch, Adam's rate, rows measured
CELLS = {
    "rnn tanh": jaxrnn.rnn(HIDDEN),
    "rnn relu": jaxrnn.rnn(HIDDEN, "relu"),
    "rnn sigmoid": jaxrnn.rnn(HIDDEN, "sigmoid"),
    "lstm, forget bias 0": jaxrnn.lstm(HIDDEN, forget_bias=0.0),
    "lstm, forget bias 1": jaxrnn.lstm(HIDDEN),
    "lstm, peepholes": jaxrnn.lstm(HIDDEN, peephole=True),
    "gru": jaxrnn.gru(HIDDEN),
}


def recall(key: Any, rows: int) -> tuple[Any, Any]:
    """One-hot inputs [T, B, symbols + distractors] and the symbol [B] to be told at the end."""
    keys = jax.random.split(key, 3)
    symbol = jax.random.randint(keys[0], (rows,), 0, SYMBOLS)
    when = jax.random.randint(keys[1], (rows,), 0, STEPS)
    noise = jax.random.randint(keys[2], (STEPS, rows), SYMBOLS, SYMBOLS + DISTRACTORS)
    shown = jnp.where(jnp.arange(STEPS)[:, None] == when[None], symbol[None], noise)
    return jax.nn.one_hot(shown, SYMBOLS + DISTRACTORS), symbol


def learn(cell: Any, steps: int, seeds: list[int]) -> Any:
    """Influence by lag before and after training [seeds, 2, T], and the last tenth's loss [seeds]."""
    net = jaxrnn.network(cell, SYMBOLS + DISTRACTORS, SYMBOLS)

    def loss(params: Any, batch: Any) -> Any:
        xs, symbol = batch
        _, ys = jaxrnn.unroll(cell, params.cell, xs)
        told = net.output(params, ys[-1])
        return optax.softmax_cross_entropy_with_integer_labels(told, symbol).mean()

    @jax.jit
    def influence(params: Any, xs: Any) -> Any:
        """log10 of the mean row's."""
        return jaxrnn.gradient_flow(cell, params.cell, xs).mean(1) / np.log(10)

    params, losses = train(net, loss, lambda key: recall(key, BATCH), steps, seeds, RATE)
    flows = []
    for number, seed in enumerate(seeds):
        seen, _ = recall(jax.random.fold_in(jax.random.key(seed), 2), MEASURED)
        after = jax.tree.map(lambda a, number=number: a[number], params)
        flows.append([influence(each, seen) for each in (net.init(jax.random.key(seed)), after)])
    return np.array(flows), losses[:, -max(1, steps // 10) :].mean(1)


def below(flow: Any) -> int | None:
    """The first lag from which on the influence stays below 1% of that at lag 0; None: not by T - 1."""
    above = np.flatnonzero(flow - flow[0] >= -2)
    return None if above[-1] == len(flow) - 1 else int(above[-1]) + 1


def run(quick: bool) -> Outcome:
    seeds, steps = ([0, 1], 3) if quick else ([0, 1, 2], 600)
    kinds = dict(list(CELLS.items())[:: 3 if quick else 1])
    flows, losses = {}, {}
    for name, cell in kinds.items():
        flows[name], losses[name] = learn(cell, steps, seeds)
    lags = {name: [[below(f) for f in pair] for pair in each] for name, each in flows.items()}
    rows = [["cell", "below 1% at initialisation", "after training", "loss after training, nats"]]
    for name, pairs in lags.items():
        told = [span(when) for when in zip(*pairs, strict=True)]
        loss = losses[name]
        rows.append([name, *told, f"{np.median(loss):.3f} ({loss.min():.3f} to {loss.max():.3f})"])
    solved = [name for name, loss in losses.items() if loss.max() < 0.1]
    told = "; ".join(f"{row[0]} {row[1]} → {row[2]}" for row in rows[1:])
    sentence = (
        f"Lag at which the influence has fallen below 1% of that at lag 0, at initialisation → after "
        f"{steps} steps of training (range of {len(seeds)} seeds, sequences of {STEPS}): {told}. "
        f"Loss below 0.1 in every seed, where chance is 1.386: {', '.join(solved) or 'none'}."
    )
    numbers = {
        "log10_influence": {name: each.tolist() for name, each in flows.items()},
        "below_1_percent": lags,
        "loss": {name: each.tolist() for name, each in losses.items()},
        "T": STEPS,
        "hidden": HIDDEN,
        "batch": BATCH,
        "training_steps": steps,
        "learning_rate": RATE,
    }
    return Outcome(sentence, rows, numbers, seeds, draw(flows, losses))


def span(lags: Any) -> str:
    """The least and the greatest of some lags."""
    told = sorted(STEPS if lag is None else lag for lag in lags)
    words = [f"{lag}" if lag < STEPS else "never" for lag in (told[0], told[-1])]
    return words[0] if words[0] == words[1] else " to ".join(words)


def draw(flows: Any, losses: Any) -> Any:
    figure, panels = _drawing.figure(2, 13, 5.5, sharey=True)
    for when, axes in enumerate(panels):
        ends = []
        axes.set(yscale="log", ylim=(1e-8, 30), xlim=(0, STEPS - 1))
        for (name, each), colour in zip(flows.items(), _drawing.COLOURS, strict=False):
            share = 10.0 ** (each[:, when] - each[:, when, :1])
            middle = _drawing.band(axes, np.arange(STEPS), share, colour)
            loss = f" (loss {np.median(losses[name]):.2f})" if when else ""
            ends.append((middle[-1], name + loss, colour))
        axes.axhline(0.01, color=_drawing.GREY, linestyle="--", linewidth=1)
        _drawing.label_ends(axes, ends)
        title = ("At initialisation", "After training; chance is a loss of 1.39")[when]
        _drawing.name_axes(axes, title, "lag k, steps", "")
    panels[0].set_ylabel(
        r"influence $\|\partial h_T/\partial x_{T-k}\|$, relative to that at lag 0"
    )
    panels[0].annotate("1%", (1, 0.012), color=_drawing.GREY)
    return figure
