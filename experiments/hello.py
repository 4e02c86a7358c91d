"""A Char-RNN learns HELLO from (H,E) (E,L) (L,L) (L,O) because it remembers the previous letter.

    p(x^{t+1} | x^1 .. x^t) = softmax(h^t W_out + b_out),   loss = -mean ln p(target)

The letter L is followed once by L and once by O. A network with a memory can distinguish the two
cases, so its loss can reach 0. A network that is reset at every letter cannot: two of its four
predictions are a coin toss, so its loss is at least ln(2)/2. Both kinds are trained here, with
one-hot letters of the alphabet as input and a softmax over the 26 letters as output. "No memory" is
the same LSTM with `resets` at every step.

    python -m experiments hello      17 s on two CPU cores
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxrnn
from experiments import Holds, Outcome, Verdict, _drawing
from experiments._training import train

ROW = 10
WORD = "HELLO"
ALPHABET = jaxrnn.Vocabulary("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
HIDDEN = 16
RATE = 0.02
# Least possible loss of a network without a memory.
FLOOR = math.log(2) / 2
NO_MEMORY = "lstm, no memory"
# The cell, and whether it is reset at every letter.
KINDS = {
    "rnn": (jaxrnn.rnn(HIDDEN), False),
    "lstm": (jaxrnn.lstm(HIDDEN), False),
    "gru": (jaxrnn.gru(HIDDEN), False),
    NO_MEMORY: (jaxrnn.lstm(HIDDEN), True),
}


def learn(cell: Any, forgets: bool, steps: int, seeds: list[int]) -> tuple[Any, Any]:
    """Return the loss before each step [seeds, steps] and the softmax after the last [seeds, T, V]."""
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
    losses: dict[str, Any] = {}
    softmax: dict[str, Any] = {}
    for name, (cell, forgets) in KINDS.items():
        losses[name], softmax[name] = learn(cell, forgets, steps, seeds)
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
    return Outcome(numbers, seeds)


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    rows = [["network", "final loss, nats", "lower bound", "p(O) at the second L", "HELLO spelt"]]
    for name, (_, forgets) in KINDS.items():
        ends = _drawing.spread(numbers["last_loss"][name], ".4f")
        predicted = np.array(numbers["softmax"][name])
        spelt = sum("H" + ALPHABET.decode(each.argmax(-1)) == WORD for each in predicted)
        right = predicted[:, 3, token("O")]
        floor = f"{FLOOR:.4f}" if forgets else "0"
        rows.append([name, ends, floor, f"{np.median(right):.3f}", f"{spelt} of {len(seeds)}"])
    return rows


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    last = numbers["last_loss"]
    worst = max(max(losses) for name, losses in last.items() if name != NO_MEMORY)
    without = float(np.median(last[NO_MEMORY]))
    return Verdict(
        Holds.YES if worst < 0.01 and without > 0.95 * FLOOR else Holds.NO,
        f"in each of {len(seeds)} seeds, RNN, LSTM and GRU reach a loss of at most {worst:.4f} nats "
        f"per letter on HELLO; an LSTM without a memory stays at {without:.3f}, because it "
        "cannot know which L it reads.",
        f"시드 {len(seeds)}개 모두에서 RNN, LSTM, GRU는 HELLO의 글자당 손실 {worst:.4f} nats "
        f"이하에 도달합니다. 기억이 없는 LSTM은 두 L을 구별할 수 없어 {without:.3f}에 머뭅니다.",
    )


def token(letter: str) -> int:
    """Return the token of a letter."""
    return int(ALPHABET.encode(letter)[0])


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, panels = _drawing.figure(3, height=3.2, height_ratios=[1.3, 1, 1])
    curves, *predictions = panels
    curves.set(xscale="log", yscale="log")
    ends = []
    for name, losses in numbers["loss"].items():
        colour = _drawing.CELLS.get(name, _drawing.PINK)
        steps = 1 + numbers["every_step"] * np.arange(len(losses[0]))
        middle = _drawing.band(curves, steps, losses, colour)
        ends.append((middle[-1], name, colour))
    curves.axhline(FLOOR, color=_drawing.INK, linestyle="--", linewidth=1)
    curves.annotate("ln(2)/2", (1, FLOOR), (4, -15), textcoords="offset points")
    curves.set_xlim(1, steps[-1])
    _drawing.label_ends(curves, ends)
    title = f"Only a memory gets below ln(2)/2 ({len(seeds)} seeds)"
    _drawing.name_axes(curves, title, "training steps", "loss, nats per letter")
    for axes, name in zip(predictions, ("lstm", NO_MEMORY), strict=True):
        # [T, V]
        predicted = np.median(numbers["softmax"][name], axis=0)
        shown = sorted(set(WORD))
        share = np.stack([predicted[:, token(letter)] for letter in shown])
        share = np.concatenate([share, np.maximum(1 - share.sum(0, keepdims=True), 0)])
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(share):
            colour = "white" if value > 0.5 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
        axes.set_xticks(range(4), [f"{a}\n(then {b})" for a, b in pairwise(WORD)])
        axes.set_yticks(range(len(shown) + 1), [*shown, "others"])
        axes.spines[["left", "bottom"]].set_visible(False)
        _drawing.name_axes(axes, f"Predictions of the {name}", "input letter", "next letter")
    return figure
