"""A Char-RNN learns HELLO from (H,E) (E,L) (L,L) (L,O), because it remembers the letter before.

    p(x^{t+1} | x^1 .. x^t) = softmax(h^t W_out + b_out),   loss = -mean ln p(target)

The letter L is followed once by L and once by O. A network with a memory can tell the two apart, so its
least possible loss is 0; one that starts afresh at every letter cannot, and its least is ln(2)/2: of
four predictions two are a toss of a coin. Both are trained here, one-hot letters of the alphabet of 26
in, the softmax over 26 out; "no memory" is the same LSTM with `resets` at every step.

    python -m experiments hello      17 s on two CPU cores

On 2026-11-24: After 1000 steps rnn, lstm and gru are at most 0.0002 nats above their floor of 0 in all
of 5 seeds; the LSTM without a memory is at 0.3467, where ln(2)/2 = 0.3466 is the least it can reach,
and gives the O after the second L 0.500.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from experiments import Outcome, _drawing
from experiments._training import train

ROW = 10
WORD, ALPHABET = "HELLO", jaxrnn.Vocabulary("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
HIDDEN, RATE = 16, 0.02
FLOOR = math.log(2) / 2  # of the network without a memory
KINDS = {  # cell, and whether it is made to forget
    "rnn": (jaxrnn.rnn(HIDDEN), False),
    "lstm": (jaxrnn.lstm(HIDDEN), False),
    "gru": (jaxrnn.gru(HIDDEN), False),
    "lstm, no memory": (jaxrnn.lstm(HIDDEN), True),
}


def learn(cell: Any, forgets: bool, steps: int, seeds: list[int]) -> tuple[Any, Any]:
    """The loss before each step [seeds, steps] and the softmax after the last [seeds, T, V]."""
    net = jaxrnn.network(cell, len(ALPHABET), len(ALPHABET))
    word = jnp.asarray(ALPHABET.encode(WORD), jnp.int32)
    xs = jax.nn.one_hot(word[:-1], len(ALPHABET))[:, None]
    resets = jnp.ones(xs.shape[:2], bool) if forgets else None

    def logits(params: Any) -> Any:
        return net.apply(params, xs, resets=resets)[1][:, 0]

    def loss(params: Any, targets: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params), targets).mean()

    params, losses = train(net, loss, lambda _: word[1:], steps, seeds, RATE)
    return losses, jax.nn.softmax(jax.vmap(logits)(params))


def run(quick: bool) -> Outcome:
    seeds, steps = ([0, 1, 2], 60) if quick else ([0, 1, 2, 3, 4], 1000)
    losses, softmax = {}, {}
    for name, (cell, forgets) in KINDS.items():
        losses[name], softmax[name] = learn(cell, forgets, steps, seeds)
    rows = [
        ["network", "loss at the end, nats", "its floor", "p(O) at the second L", "HELLO spelt"]
    ]
    for name, (_, forgets) in KINDS.items():
        ends, said = losses[name][:, -1], softmax[name]
        spelt = sum("H" + ALPHABET.decode(each.argmax(-1)) == WORD for each in said)
        right = said[:, 3, token("O")]
        spread = f"{np.median(ends):.4f} ({ends.min():.4f} to {ends.max():.4f})"
        floor = f"{FLOOR:.4f}" if forgets else "0"
        rows.append([name, spread, floor, f"{np.median(right):.3f}", f"{spelt} of {len(seeds)}"])
    memory = max(losses[name][:, -1].max() for name, (_, forgets) in KINDS.items() if not forgets)
    none = losses["lstm, no memory"][:, -1]
    sentence = (
        f"After {steps} steps rnn, lstm and gru are at most {memory:.4f} nats above their floor of 0 in "
        f"all of {len(seeds)} seeds; the LSTM without a memory is at {np.median(none):.4f}, where "
        f"ln(2)/2 = {FLOOR:.4f} is the least it can reach, and gives the O after the second L "
        f"{np.median(softmax['lstm, no memory'][:, 3, token('O')]):.3f}."
    )
    thin = slice(None, None, max(1, steps // 200))
    numbers = {
        "steps": steps,
        "hidden": HIDDEN,
        "learning_rate": RATE,
        "every_step": thin.step,
        "loss": {name: each[:, thin].tolist() for name, each in losses.items()},
        "last_loss": {name: each[:, -1].tolist() for name, each in losses.items()},
        "softmax": {name: each.tolist() for name, each in softmax.items()},
    }
    return Outcome(sentence, rows, numbers, seeds, draw(losses, softmax))


def token(letter: str) -> int:
    """The token of a letter."""
    return int(ALPHABET.encode(letter)[0])


def draw(losses: Any, softmax: Any) -> Any:
    figure, (left, *right) = _drawing.figure(3, 13, width_ratios=[1.5, 1, 1])
    left.set(yscale="log")
    ends = []
    for (name, each), colour in zip(losses.items(), _drawing.COLOURS, strict=False):
        middle = _drawing.band(left, 1 + np.arange(each.shape[1]), each, colour)
        ends.append((middle[-1], name, colour))
    left.axhline(FLOOR, color=_drawing.GREY, linestyle="--", linewidth=1)
    left.annotate("ln(2)/2", (1, FLOOR), (0, -12), textcoords="offset points", color=_drawing.GREY)
    left.set_xlim(1, each.shape[1])
    left.set_xscale("log")
    _drawing.label_ends(left, ends)
    seeds = len(each)
    title = f"Only a memory gets below ln(2)/2\n(median and range of {seeds} seeds)"
    _drawing.name_axes(left, title, "step", "loss, nats per letter")
    for axes, name in zip(right, ("lstm", "lstm, no memory"), strict=True):
        said = np.median(softmax[name], axis=0)  # [T, V]
        shown = sorted(set(WORD))
        share = np.stack([said[:, token(letter)] for letter in shown])
        share = np.concatenate([share, np.maximum(1 - share.sum(0, keepdims=True), 0)])
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(share):
            colour = "white" if value > 0.5 else _drawing.BLACK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
        axes.set_xticks(range(4), [f"{a}\n(then {b})" for a, b in pairwise(WORD)])
        axes.set_yticks(range(len(shown) + 1), [*shown, "22 others"])
        axes.spines[["left", "bottom"]].set_visible(False)
        _drawing.name_axes(axes, f"softmax: {name}", "letter in", "probability of the letter out")
    return figure
