"""Clipping the gradient keeps training alive where a steep place would throw the weights away.

    g <- g min(1, c / ||g||),   ||g|| the norm over all parameters together

A plain RNN with ReLU learns the play by gradient descent, with and without clipping to c, from the
same weights and on the same batches, at learning rates from small to too large. The second part is
the example that the lecture links: the line y = 2x through (1,2) (2,4) (3,6) (4,8), one point per
step in turn, 1000 steps of gradient descent at rate 0.01, clipped to 5.

    python -m experiments clipping      41 s on two CPU cores
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import Outcome, _drawing
from jaxrnn import charlm
from jaxrnn.data import play
from jaxrnn.data.corpus import Batches, make_corpus

ROW = 14
MODEL = charlm.ModelConfig(cell="rnn", activation="relu", hidden_size=64, embedding_size=0)
BATCH = 16
LENGTH = 50
CLIP = 1.0
LINE_CLIP = 5.0
LINE_RATE = 0.01
# A loss in nats above this, or one that is not finite, counts as lost and is drawn here.
FAILED = 10.0


def descend(rate: float, clip: float | None) -> optax.GradientTransformation:
    """Return gradient descent, with clipping by the global norm where `clip` is given."""
    step = optax.sgd(rate)
    return optax.chain(optax.clip_by_global_norm(clip), step) if clip else step


def follow(loss: Any, params: Any, optimizer: Any, batches: Any) -> tuple[Any, Any, Any]:
    """Return the parameters after a step on each batch, and the loss and gradient norm of each step."""

    def step(state: Any, batch: Any) -> Any:
        params, memory = state
        now, gradient = jax.value_and_grad(loss)(params, batch)
        updates, memory = optimizer.update(gradient, memory)
        return (optax.apply_updates(params, updates), memory), (now, optax.tree.norm(gradient))

    (params, _), (losses, norms) = jax.lax.scan(step, (params, optimizer.init(params)), batches)
    return params, losses, norms


@functools.partial(jax.jit, static_argnums=0)
def read_play(clip: float | None, rates: Any, params: Any, batches: Any) -> tuple[Any, Any]:
    """Return losses and gradient norms [rates, steps] of the network on batches [steps, T + 1, B]."""
    carry = charlm.initial_carry(MODEL, BATCH)

    def run(rate: Any) -> Any:
        def loss(params: Any, tokens: Any) -> Any:
            _, logits = charlm.forward(params, tokens[:-1], carry, implementation="scan")
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:]).mean()

        return follow(loss, params, descend(rate, clip), batches)[1:]

    return jax.vmap(run)(rates)


def line(clip: float | None, steps: int, seeds: list[int]) -> tuple[Any, Any, Any]:
    """Return slope and offset [seeds, 2], losses and gradient norms [seeds, steps] of the example."""
    xs = jnp.tile(jnp.array([1.0, 2, 3, 4]), steps // 4)

    def loss(params: Any, x: Any) -> Any:
        return (params[0] * x + params[1] - 2 * x) ** 2

    def run(seed: Any) -> Any:
        # Keras's initial weight of a layer with one input and one output.
        limit = 3**0.5
        slope = jax.random.uniform(jax.random.key(seed), minval=-limit, maxval=limit)
        return follow(loss, jnp.stack([slope, 0 * slope]), descend(LINE_RATE, clip), xs)

    return jax.jit(jax.vmap(run))(jnp.array(seeds))


def run(quick: bool) -> Outcome:
    seeds, steps = ([0], 5) if quick else ([0, 1, 2], 600)
    rates = np.array([0.1, 1.0] if quick else [0.03, 0.1, 0.3, 1.0, 3.0])
    corpus = make_corpus(play.write(50_000 if quick else 1_000_000).text)
    ways = {"clipped": CLIP, "not clipped": None}
    found: dict[str, Any] = {way: [] for way in ways}
    for seed in seeds:
        reads = Batches(corpus.train_size, BATCH, LENGTH, shuffle=True, seed=seed)
        # [steps, B]
        starts = np.stack([reads.starts(n) for n in range(steps)])
        windows = corpus.tokens[starts[:, None] + np.arange(LENGTH + 1)[None, :, None]]
        params = charlm.init(MODEL, corpus.vocabulary, seed)
        for way, clip in ways.items():
            found[way].append(read_play(clip, jnp.float32(rates), params, jnp.int32(windows)))
    losses = {way: np.array([run[0] for run in runs]) for way, runs in found.items()}
    norms = {way: np.array([run[1] for run in runs]) for way, runs in found.items()}
    # [seeds, rates]
    ends = {way: last(each) for way, each in losses.items()}
    lines = {way: line(clip and LINE_CLIP, 1000, seeds) for way, clip in ways.items()}

    heads = [f"{way}: final loss (range)" for way in ways]
    rows = [["learning rate", *heads, "runs lost without clipping"]]
    for index, rate in enumerate(rates):
        cells = [f"{np.median(e[:, index]):.3f} ({span(e[:, index])})" for e in ends.values()]
        lost = (ends["not clipped"][:, index] >= FAILED).sum()
        rows.append([f"{rate:g}", *cells, f"{lost} of {len(seeds)}"])
    numbers = {
        "rates": rates.tolist(),
        "last_loss": {way: plain(each) for way, each in ends.items()},
        "loss": {way: plain(each[..., :: max(1, steps // 100)]) for way, each in losses.items()},
        "norm": {way: plain(each[..., :: max(1, steps // 100)]) for way, each in norms.items()},
        "line": {way: np.array(each[0]).tolist() for way, each in lines.items()},
        "line_steps_clipped": int((np.array(lines["clipped"][2]) > LINE_CLIP).sum(1).max()),
        "clip": CLIP,
        "steps": steps,
    }
    return Outcome(rows, numbers, seeds, draw(rates, losses, norms, ends, lines))


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    ends = {way: np.array(losses, float) for way, losses in numbers["last_loss"].items()}
    lost = {way: f"{(each >= FAILED).sum()} of {each.size}" for way, each in ends.items()}
    best = []
    for way, each in ends.items():
        medians = np.median(each, axis=0)
        at = int(medians.argmin())
        best.append(f"{medians[at]:.3f} {way} (at rate {numbers['rates'][at]:g})")
    slopes = [
        f"{np.median(np.array(runs)[:, 0]):.4f} {way}" for way, runs in numbers["line"].items()
    ]
    return (
        f"Of the runs on the play (all learning rates, {len(seeds)} seeds), {lost['not clipped']} "
        f"were lost without clipping and {lost['clipped']} with it. The smallest losses after "
        f"{numbers['steps']} steps, in nats per character: {' and '.join(best)}. In the linked "
        f"example the slope 2 is learnt as {' and '.join(slopes)}; at most "
        f"{numbers['line_steps_clipped']} of its 1000 steps were clipped."
    )


def last(losses: Any) -> Any:
    """Return the mean loss of the last twentieth of the steps, at most FAILED."""
    tail = losses[..., -max(1, losses.shape[-1] // 20) :].mean(-1)
    return np.where(np.isfinite(tail), np.minimum(tail, FAILED), FAILED)


def plain(values: Any) -> Any:
    """Return lists for JSON, with None where a number is not finite."""
    return np.where(np.isfinite(values), np.round(values, 5), None).tolist()


def span(values: Any) -> str:
    return f"{values.min():.3f} to {values.max():.3f}"


def draw(rates: Any, losses: Any, norms: Any, ends: Any, lines: Any) -> Any:
    figure, ((loss, norm), (by_rate, fit)) = _drawing.figure(2, 12, 8, rows=2)
    colours = dict(zip(ends, (_drawing.BLUE, _drawing.RED), strict=True))
    lost = np.flatnonzero((ends["not clipped"] >= FAILED).any(0))
    # The rate at which the two begin to differ.
    shown = int(lost[0]) if len(lost) else len(rates) - 1
    steps = losses["clipped"].shape[-1]
    window = max(1, steps // 60)
    x = window * (1 + np.arange(steps // window))
    for axes, kind, cap, gather in ((loss, losses, FAILED, np.mean), (norm, norms, 1e4, np.max)):
        labels = []
        for way, each in kind.items():
            runs = np.where(np.isfinite(each[:, shown]), np.minimum(each[:, shown], cap), cap)
            runs = gather(runs[:, : len(x) * window].reshape(len(runs), -1, window), axis=-1)
            labels.append((_drawing.band(axes, x, runs, colours[way])[-1], way, colours[way]))
        # Below every tick, since ticks would move the limits.
        low = 1.3 if axes is loss else None
        axes.set(yscale="log", ylim=(low, 1.1 * cap), xlim=(0, steps))
        _drawing.label_ends(axes, labels)
    norm.axhline(CLIP, color=_drawing.GREY, linestyle="--", linewidth=1)
    norm.annotate("c", (0, CLIP), (2, 2), textcoords="offset points", color=_drawing.GREY)
    title = f"The play at learning rate {rates[shown]:g}"
    _drawing.name_axes(loss, title, "step", "loss, nats per character (10: lost)")
    title = f"The gradient before clipping, maximum of {window} steps"
    _drawing.name_axes(norm, title, "step", "global norm (10⁴: more, or not finite)")
    labels = []
    for way, each in ends.items():
        middle = _drawing.band(by_rate, rates, each, colours[way], marker="o", markersize=5)
        labels.append((middle[-1], way, colours[way]))
    by_rate.set(xscale="log", yscale="log", ylim=(1.3, 1.1 * FAILED))
    by_rate.set_xticks(rates, [f"{rate:g}" for rate in rates])
    by_rate.minorticks_off()
    for axes in (loss, by_rate):
        axes.set_yticks([1.5, 2, 3, 5, 10], ["1.5", "2", "3", "5", "10"])
        axes.minorticks_off()
    _drawing.label_ends(by_rate, labels)
    title = f"The play after {steps} steps"
    _drawing.name_axes(by_rate, title, "learning rate", "loss, nats per character (10: lost)")
    labels = []
    for way, (_, _, each) in lines.items():
        # The maximum of each pass over the four points.
        runs = np.asarray(each).reshape(len(each), -1, 4).max(-1)
        middle = _drawing.band(fit, 1 + np.arange(runs.shape[1]), runs, colours[way])
        labels.append((middle[-1], way, colours[way]))
    fit.set(xscale="log", yscale="log", xlim=(1, runs.shape[1]))
    fit.axhline(LINE_CLIP, color=_drawing.GREY, linestyle="--", linewidth=1)
    fit.annotate("c", (1, LINE_CLIP), (2, 2), textcoords="offset points", color=_drawing.GREY)
    _drawing.label_ends(fit, labels)
    title = "The linked example, y = 2x, before clipping"
    y = "largest global norm of the gradient"
    _drawing.name_axes(fit, title, "pass over the four points", y)
    return figure
