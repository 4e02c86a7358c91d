"""The influence of an input fades with time, and gates that start open keep it longer.

    dh^T / dx^{T-k} = (dh^T / ds^{T-1}) (ds^{T-1} / ds^{T-2}) ... (ds^{T-k} / dx^{T-k})

This is a product of k Jacobians: where they shrink a vector, the influence falls by a factor with
every step of lag k. Its Frobenius norm is measured at initialisation and after a short training on
`recall`: one of four symbols is shown at one random step of T, distractors at all others, and after
the last step the network has to say which symbol it was. Chance is ln 4 = 1.386 nats.

    python -m experiments vanishing_gradient      42 s on two CPU cores
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from experiments import Outcome, _drawing, bullets
from experiments._training import train

ROW = 4
SYMBOLS = 4
DISTRACTORS = 4
HIDDEN = 64
STEPS = 60
BATCH = 32
RATE = 3e-3
# Rows of a batch whose influence is measured.
MEASURED = 8
CELLS = {
    "rnn tanh": jaxrnn.rnn(HIDDEN),
    "rnn relu": jaxrnn.rnn(HIDDEN, activation="relu"),
    "rnn sigmoid": jaxrnn.rnn(HIDDEN, activation="sigmoid"),
    "lstm, forget bias 0": jaxrnn.lstm(HIDDEN, forget_bias=0.0),
    "lstm, forget bias 1": jaxrnn.lstm(HIDDEN),
    "lstm, peepholes": jaxrnn.lstm(HIDDEN, peephole=True),
    "gru": jaxrnn.gru(HIDDEN),
}


def recall(key: Any, rows: int) -> tuple[Any, Any]:
    """Return one-hot inputs [T, B, symbols + distractors] and the symbol [B] to name at the end."""
    keys = jax.random.split(key, 3)
    symbol = jax.random.randint(keys[0], (rows,), 0, SYMBOLS)
    when = jax.random.randint(keys[1], (rows,), 0, STEPS)
    noise = jax.random.randint(keys[2], (STEPS, rows), SYMBOLS, SYMBOLS + DISTRACTORS)
    shown = jnp.where(jnp.arange(STEPS)[:, None] == when[None], symbol[None], noise)
    return jax.nn.one_hot(shown, SYMBOLS + DISTRACTORS), symbol


def learn(cell: Any, steps: int, seeds: list[int]) -> Any:
    """Return influence by lag before and after training [seeds, 2, T], and the final loss [seeds]."""
    net = jaxrnn.network(cell, SYMBOLS + DISTRACTORS, SYMBOLS)

    def loss(params: Any, batch: Any) -> Any:
        xs, symbol = batch
        _, ys = jaxrnn.unroll(cell, params.cell, xs)
        logits = net.output(params, ys[-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, symbol).mean()

    @jax.jit
    def influence(params: Any, xs: Any) -> Any:
        """Return log10 of the influence by lag [T], mean over the rows."""
        return jaxrnn.gradient_flow(cell, params.cell, xs).mean(1) / np.log(10)

    params, losses = train(net, loss, lambda key: recall(key, BATCH), steps, seeds, RATE)
    flows = []
    for number, seed in enumerate(seeds):
        seen, _ = recall(jax.random.fold_in(jax.random.key(seed), 2), MEASURED)
        after = jax.tree.map(lambda a, number=number: a[number], params)
        flows.append([influence(each, seen) for each in (net.init(jax.random.key(seed)), after)])
    return np.array(flows), losses[:, -max(1, steps // 10) :].mean(1)


def below(flow: Any) -> int | None:
    """Return the first lag from which the influence stays below 1% of that at lag 0, or None."""
    above = np.flatnonzero(flow - flow[0] >= -2)
    return None if above[-1] == len(flow) - 1 else int(above[-1]) + 1


def run(quick: bool) -> Outcome:
    seeds, steps = ([0, 1], 3) if quick else ([0, 1, 2], 600)
    kinds = dict(list(CELLS.items())[:: 3 if quick else 1])
    flows: dict[str, Any] = {}
    losses: dict[str, Any] = {}
    for name, cell in kinds.items():
        flows[name], losses[name] = learn(cell, steps, seeds)
    lags = {name: [[below(f) for f in pair] for pair in each] for name, each in flows.items()}
    rows = [["cell", "below 1% at initialisation", "after training", "loss after training, nats"]]
    for name, pairs in lags.items():
        loss = losses[name]
        spread = f"{np.median(loss):.3f} ({loss.min():.3f} to {loss.max():.3f})"
        rows.append([name, *(span(when) for when in zip(*pairs, strict=True)), spread])
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
    return Outcome(rows, numbers, seeds, draw(flows, losses))


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    lags = []
    for name, pairs in numbers["below_1_percent"].items():
        before, after = (span(when) for when in zip(*pairs, strict=True))
        lags.append(f"{name}: {before} → {after}")
    solved = [name for name, loss in numbers["loss"].items() if max(loss) < 0.1]
    return (
        "Lag at which the influence has fallen below 1% of that at lag 0, at initialisation → "
        f"after {numbers['training_steps']} training steps (range of {len(seeds)} seeds, "
        f"sequences of {numbers['T']} steps):{bullets(lags)}\n\nCells with a final loss below 0.1 "
        f"in every seed, where chance is 1.386: {', '.join(solved) or 'none'}."
    )


def span(lags: Any) -> str:
    """Return the range of some lags."""
    ordered = sorted(STEPS if lag is None else lag for lag in lags)
    words = [f"{lag}" if lag < STEPS else "never" for lag in (ordered[0], ordered[-1])]
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
