"""Clipping the gradient prevents the divergence that large learning rates cause without it.

    g <- g min(1, c / ||g||),   ||g|| the norm over all parameters together

A plain RNN with ReLU learns the play by gradient descent, with and without clipping to c, from the
same weights and on the same batches, at learning rates from small to too large. The second part is
the example that the lecture links: the line y = 2x through (1,2) (2,4) (3,6) (4,8), one point per
step in turn, 1000 steps of gradient descent at rate 0.01, clipped to 5.

    python -m experiments clipping      about 1 min on two CPU cores
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments import Holds, Outcome, Verdict, _drawing
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
# A run is lost when its loss in nats is above this or not finite; the loss is then recorded as this.
FAILED = 10.0
# Points of a recorded curve, each of several steps.
POINTS = 60
WAYS = {"clipped": CLIP, "not clipped": None}
COLOURS = dict(zip(WAYS, (_drawing.GREEN, _drawing.PINK), strict=True))


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
    seeds, steps = ([0], 5) if quick else ([0, 1, 2, 3, 4], 600)
    rates = np.array([0.1, 1.0] if quick else [0.03, 0.1, 0.3, 1.0, 3.0])
    corpus = make_corpus(play.write(50_000 if quick else 1_000_000).text)
    found: dict[str, Any] = {way: [] for way in WAYS}
    for seed in seeds:
        reads = Batches(corpus.train_size, BATCH, LENGTH, shuffle=True, seed=seed)
        # [steps, B]
        starts = np.stack([reads.starts(n) for n in range(steps)])
        windows = corpus.tokens[starts[:, None] + np.arange(LENGTH + 1)[None, :, None]]
        params = charlm.init(MODEL, corpus.vocabulary, seed)
        for way, clip in WAYS.items():
            found[way].append(read_play(clip, jnp.float32(rates), params, jnp.int32(windows)))
    # [seeds, rates, steps]
    losses = {way: np.array([run[0] for run in runs]) for way, runs in found.items()}
    norms = {way: np.array([run[1] for run in runs]) for way, runs in found.items()}
    lines = {way: line(clip and LINE_CLIP, 1000, seeds) for way, clip in WAYS.items()}
    # The maximum of each pass over the four points.
    passes = {
        way: np.array(each[2]).reshape(len(seeds), -1, 4).max(-1) for way, each in lines.items()
    }
    numbers = {
        "rates": rates.tolist(),
        "last_loss": {way: plain(last(each)) for way, each in losses.items()},
        "steps_per_point": max(1, steps // POINTS),
        "loss": {way: plain(gather(each, np.mean)) for way, each in losses.items()},
        "norm": {way: plain(gather(each, np.max)) for way, each in norms.items()},
        "line": {way: np.array(each[0]).tolist() for way, each in lines.items()},
        "line_norm": {way: plain(each) for way, each in passes.items()},
        "line_steps_clipped": int((np.array(lines["clipped"][2]) > LINE_CLIP).sum(1).max()),
        "clip": CLIP,
        "steps": steps,
    }
    return Outcome(numbers, seeds)


def gather(values: Any, how: Any) -> Any:
    """Return one value [..., points] for each group of steps [..., steps]."""
    width = max(1, values.shape[-1] // POINTS)
    points = values.shape[-1] // width
    return how(values[..., : points * width].reshape(*values.shape[:-1], points, width), axis=-1)


def last(losses: Any) -> Any:
    """Return the mean loss of the last twentieth of the steps, at most FAILED."""
    tail = losses[..., -max(1, losses.shape[-1] // 20) :].mean(-1)
    return np.where(np.isfinite(tail), np.minimum(tail, FAILED), FAILED)


def plain(values: Any) -> Any:
    """Return lists for JSON, with four digits, and None where a number is not finite."""
    rounded = np.vectorize(lambda value: float(f"{value:.4g}"), otypes=[object])(values)
    return np.where(np.isfinite(values), rounded, None).tolist()


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    heads = [head for way in WAYS for head in (f"{way}: final loss, nats", "runs lost")]
    rows = [["learning rate", *heads]]
    for index, rate in enumerate(numbers["rates"]):
        cells = []
        for way in WAYS:
            ends = np.array(numbers["last_loss"][way])[:, index]
            kept = ends[ends < FAILED]
            cells += [_drawing.spread(kept), f"{len(ends) - len(kept)} of {len(seeds)}"]
        rows.append([f"{rate:g}", *cells])
    return rows


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    ends = {way: np.array(losses) for way, losses in numbers["last_loss"].items()}
    lost = {way: int((each >= FAILED).sum()) for way, each in ends.items()}
    fewer = lost["clipped"] < lost["not clipped"]
    runs = ends["clipped"].size
    return Verdict(
        Holds.NO if not fewer else Holds.PARTLY if lost["clipped"] else Holds.YES,
        f"of {runs} runs at learning rates from {numbers['rates'][0]:g} to "
        f"{numbers['rates'][-1]:g}, {lost['not clipped']} are lost without clipping and "
        f"{lost['clipped'] or 'none'} with it.",
        f"학습률 {numbers['rates'][0]:g}~{numbers['rates'][-1]:g}의 실행 {runs}개 중 클리핑이 없으면 "
        f"{lost['not clipped']}개가 발산하고, 클리핑하면 "
        + (
            f"{lost['clipped']}개가 발산합니다." if lost["clipped"] else "하나도 발산하지 않습니다."
        ),
    )


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, (by_rate, loss, norm, fit) = _drawing.figure(4, height=2.9)
    draw_ends(by_rate, numbers)
    # The smallest rate at which a run is lost without clipping.
    lost = {way: np.array(ends) >= FAILED for way, ends in numbers["last_loss"].items()}
    rates = np.flatnonzero(lost["not clipped"].any(0))
    shown = int(rates[0]) if len(rates) else len(numbers["rates"]) - 1
    width = numbers["steps_per_point"]
    rate = f"learning rate {numbers['rates'][shown]:g}"
    for axes, what, top in ((loss, "loss", FAILED), (norm, "norm", 1e4)):
        for way, runs in numbers[what].items():
            for run, ended in zip(np.array(runs, float), lost[way], strict=True):
                draw_run(axes, run[shown], ended[shown], width, COLOURS[way], top)
        axes.set(xscale="log", yscale="log", xlim=(0.9 * width, numbers["steps"]))
    loss.set(ylim=(1.2, 1.5 * FAILED))
    norm.set(ylim=(0.1, 2e4))
    clip_line(norm, numbers["clip"])
    name_clipped(loss)
    name_clipped(norm)
    _drawing.name_axes(loss, f"Every run at {rate} (×: lost)", "training steps", "loss, nats")
    title = f"Gradient before clipping at {rate}"
    _drawing.name_axes(norm, title, "training steps", "global norm")
    for way, runs in numbers["line_norm"].items():
        _drawing.band(fit, 1 + np.arange(len(runs[0])), runs, COLOURS[way])
    fit.set(xscale="log", yscale="log", xlim=(1, len(runs[0])))
    clip_line(fit, LINE_CLIP)
    name_clipped(fit)
    title = "The linked example y = 2x, gradient before clipping"
    _drawing.name_axes(fit, title, "passes over the four points", "largest norm")
    for axes in (by_rate, loss):
        axes.set_yticks([1.5, 2, 3, 5, FAILED], ["1.5", "2", "3", "5", "lost"])
        axes.minorticks_off()
    return figure


def draw_ends(axes: Any, numbers: dict[str, Any]) -> None:
    """Draw the final loss of every run by its learning rate."""
    rates = np.array(numbers["rates"])
    for (way, ends), shift, marker in zip(
        numbers["last_loss"].items(), (0.93, 1.07), "os", strict=True
    ):
        # Lost runs lie side by side, to be counted.
        places = np.array([shift * rates] * len(ends))
        lost = np.array(ends) >= FAILED
        places[lost] *= (1.09 ** (np.cumsum(lost, axis=0) - 1))[lost]
        style = {"color": COLOURS[way], "alpha": 0.7, "markersize": 6}
        axes.plot(places.ravel(), np.ravel(ends), marker, **style)
    axes.set(xscale="log", yscale="log", ylim=(1.2, 1.5 * FAILED))
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    name_clipped(axes)
    title = f"Loss after {numbers['steps']} training steps, every run"
    _drawing.name_axes(axes, title, "learning rate", "loss, nats per character")


def draw_run(axes: Any, run: Any, lost: bool, width: int, colour: str, top: float) -> None:
    """Draw a curve; one of a lost run ends with a cross where it leaves the panel."""
    steps = width * (1 + np.arange(len(run)))
    beyond = np.flatnonzero(~(run < top))
    end = int(beyond[0]) if lost and len(beyond) else len(run)
    axes.plot(steps[:end], run[:end], color=colour, linewidth=1.2, alpha=0.8)
    if end < len(run):
        axes.plot(steps[end], top, "x", color=colour, markersize=9, markeredgewidth=2.5)


def clip_line(axes: Any, clip: float) -> None:
    axes.axhline(clip, color=_drawing.INK, linestyle="--", linewidth=1)
    axes.annotate(f"c = {clip:g}", (1, clip), (3, 3), xycoords=("axes fraction", "data"),
                  textcoords="offset points")  # fmt: skip


def name_clipped(axes: Any) -> None:
    """Write the names of the contenders beside the axes, in their colours."""
    for (way, colour), place in zip(COLOURS.items(), (0.9, 0.76), strict=True):
        axes.annotate(way, (1.03, place), xycoords="axes fraction", color=colour, fontsize=11)
