"""Biases and weights that the literature recommends lower the loss after a fixed budget.

    c^t = f^t c^{t-1} + ...,    f^t = sigmoid(... + b_f),    |dc^t / dc^{t-k}| about sigmoid(b_f)^k

An LSTM whose forget bias b_f starts at 0 halves its memory at every step. Gers et al. (2000)
introduced the gate and positive initial biases, and Jozefowicz et al. (2015) recommend b_f = 1. "Chrono"
draws b_f = ln u with u uniform in [1, T - 1], and sets the input bias to -b_f (Tallec & Ollivier 2018).
For plain networks, an orthogonal W_h keeps the length of the gradient (Saxe et al. 2014), and the
identity does so in a ReLU network (Le et al. 2015); Glorot-uniform weights are the common default.

Every network has to learn, in the same number of updates of Adam with clipping to a global norm of 1:

    adding    The sum of two marked numbers out of T (Hochreiter & Schmidhuber 1997), in 600 updates:
              T = 100 for LSTMs and ReLU networks, and T = 20 for tanh networks, which is hard
              for them already. Squared error, as a multiple of that of always answering 1, which is 1/6.
    text      The next character in windows of 50 of Tiny Shakespeare, from the zero state, in 300
              updates. Cross-entropy in nats per character.

The loss is measured at the end on held-out data. The baseline is the loss of an answer that ignores the
inputs. A loss above the baseline is replaced by the baseline, because otherwise one network that
diverges would outweigh all others. The learning rate of each network and task is the best of RATES in
trainings from five separate seeds. The intervals are 95% t-intervals over the seeds of the mean
logarithm of the loss; two initialisations are compared by the ratio of their losses, seed by seed. A
recommendation holds where the interval of its ratio on the adding problem is below 1.

T and the updates were chosen in a trial on the separate seeds, such that some of the networks learn the
task and others do not. A network has learned to add if its loss is below a tenth of the baseline.

    python -m experiments initialisation      15 min on one CPU core
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy import stats

import jaxrnn
from experiments import Holds, Outcome, Verdict, _drawing, _text, _training, listed
from experiments._memory_tasks import adding, squares
from experiments._starts import ADVICE, BIASES, KINDS, STARTS, Start
from experiments._training import State, Training, best_rate, stack

ROW = 6
# T of the adding task.
LENGTHS = {"lstm": 100, "tanh": 20, "relu": 100}
# The starts whose losses during the training are drawn.
CURVES = ["lstm, bias 0", "lstm, bias 1", "lstm, bias 2", "lstm, bias 4", "lstm, chrono"]
UNIT = "multiple of always answering 1"
RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
# Seeds of the tuning, which the trainings that are compared do not use.
TUNING_SEEDS = [100, 101, 102, 103, 104]
HELD_OUT = 512
HELD_OUT_SEED = 105


class Task(NamedTuple):
    """A task.

    batch: function of (key, T, rows, held_out) that returns (inputs [T, B, D], targets).
    loss: function of (outputs [T, B, K], targets) that returns the mean loss.
    hidden: width of the networks.
    inputs, outputs: D and K.
    lengths: T for each kind of network.
    updates, rows: number of updates, and batch size.
    unit: of the loss.
    baseline: the loss of an answer that ignores the inputs.
    """

    batch: Callable[[Any, int, int, bool], tuple[Any, Any]]
    loss: Callable[[Any, Any], Any]
    hidden: int
    inputs: int
    outputs: int
    lengths: dict[str, int]
    updates: int
    rows: int
    unit: str
    baseline: float


def add(key: Any, length: int, rows: int, held_out: bool) -> tuple[Any, Any]:
    """Return a batch of the adding task; every one is new, held out or not."""
    return adding(key, length, rows)


def relative_error(outputs: Any, sums: Any) -> Any:
    """Return the mean squared error of the last outputs, as a multiple of 1/6."""
    return 6 * squares(outputs, sums).mean()


def cross_entropy(outputs: Any, targets: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


def reading(quick: bool) -> Task:
    """Return the task of predicting the next character of a text."""
    corpus, _ = _text.find("shakespeare", quick).read()
    size = len(corpus.vocabulary)
    tokens = jnp.asarray(corpus.tokens, jnp.int32)

    def batch(key: Any, length: int, rows: int, held_out: bool) -> tuple[Any, Any]:
        low, high = (corpus.split, len(tokens)) if held_out else (0, corpus.split)
        starts = jax.random.randint(key, (rows,), low, high - length)
        windows = tokens[starts[None] + jnp.arange(length + 1)[:, None]]
        return jax.nn.one_hot(windows[:-1], size), windows[1:]

    updates = 3 if quick else 300
    lengths = dict.fromkeys(KINDS, 50)
    unit = "nats per character"
    return Task(
        batch, cross_entropy, 64, size, size, lengths, updates, 16, unit, baseline=math.log(size)
    )


def trainings(task: Task) -> dict[str, Training]:
    """Return the training of each kind of network, which all its initialisations share."""

    def training(kind: str) -> Training:
        net = jaxrnn.network(KINDS[kind](task.hidden), task.inputs, task.outputs)

        def loss(params: Any, batch: Any) -> Any:
            xs, targets = batch
            return task.loss(net.apply(params, xs)[1], targets)

        return Training(
            net, loss, lambda key: task.batch(key, task.lengths[kind], task.rows, False)
        )

    return {kind: training(kind) for kind in KINDS}


def begin(training: Training, task: Task, start: Start, seeds: Sequence[int]) -> State:
    """Return the states before the first update, stacked [seeds, ...]."""
    net = jaxrnn.network(start.cell(task.hidden), task.inputs, task.outputs)

    def one(seed: int) -> State:
        key = jax.random.key(seed)
        params = net.init(key)
        cell = start.change(jax.random.fold_in(key, 2), params.cell, task.lengths[start.kind])
        return training.begin(seed)._replace(params=params._replace(cell=cell))

    return stack([one(seed) for seed in seeds])


def judge(training: Training, task: Task, length: int, states: State) -> Any:
    """Return the losses on held-out data, the same for all, [seeds], and at most the baseline."""
    held_out = task.batch(jax.random.key(HELD_OUT_SEED), length, HELD_OUT, True)
    losses = jax.vmap(training.loss, (0, None))(states.params, held_out)
    # fmin prefers a number to NaN.
    return jnp.fmin(losses, task.baseline)


def measure(
    training: Training, task: Task, start: Start, rates: list[float], seeds: list[int]
) -> Any:
    """Return what is measured of an initialisation, by the names under which `run` records it."""

    def learn(seeds: list[int], rates: list[float]) -> tuple[Any, Any, float]:
        states = begin(training, task, start, seeds)
        clock = time.perf_counter()
        states, losses = training.advance_all(states, jnp.array(rates), task.updates)
        jax.block_until_ready(losses)
        seconds = (time.perf_counter() - clock) / len(seeds)
        found = judge(training, task, task.lengths[start.kind], states)
        return np.array(found), np.array(losses), seconds

    # Tune with as many trainings at once as are compared later, so that JAX compiles only once.
    pairs = [(seed, rate) for rate in rates for seed in TUNING_SEEDS]
    parts = [pairs[at : at + len(seeds)] for at in range(0, len(pairs), len(seeds))]
    tried = np.concatenate([learn(*map(list, zip(*part, strict=True)))[0] for part in parts])
    # The geometric mean, as for the losses that are compared.
    tried = np.exp(np.log(tried.reshape(len(rates), -1)).mean(1))
    rate = best_rate(rates, tried)
    losses, curves, seconds = learn(seeds, [rate] * len(seeds))
    window = max(1, task.updates // 60)
    curves = curves[:, : task.updates // window * window].reshape(len(seeds), -1, window).mean(2)
    return {
        "rate": rate,
        "tuning_loss": list(map(plain_number, tried)),
        "loss": list(map(plain_number, losses)),
        "curve": list(map(plain_number, np.median(curves, axis=0))),
        "seconds": round(seconds, 2),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(training.begin(0).params)),
    }


def plain_number(value: Any) -> float | None:
    """Return a number for JSON with five digits, None where it is not finite."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def run(quick: bool) -> Outcome:
    seeds, rates, updates = list(range(10)), RATES, 600
    if quick:
        # JAX compiles again for every other number of seeds, so use as many here as for the tuning.
        seeds, rates, updates = seeds[: len(TUNING_SEEDS)], RATES[:1], 3
    lengths = {kind: 5 for kind in KINDS} if quick else LENGTHS
    compared = {name for _, _, *pair in ADVICE for name in pair}
    starts = {name: STARTS[name] for name in STARTS if name in compared or not quick}
    tasks = {
        "adding": Task(add, relative_error, 32, 2, 1, lengths, updates, 32, UNIT, baseline=1),
        "text": reading(quick),
    }
    numbers: dict[str, Any] = {"rates": rates, "tuning_seeds": TUNING_SEEDS, "tasks": {}}
    for name, task in tasks.items():
        of_kind = trainings(task)
        found = {
            kind: measure(of_kind[start.kind], task, start, rates, seeds)
            for kind, start in starts.items()
        }
        numbers["tasks"][name] = {
            "hidden": task.hidden,
            "batch": task.rows,
            "updates": task.updates,
            "T": task.lengths,
            "unit": task.unit,
            "starts": found,
        }
    return Outcome(numbers, seeds)


def interval(losses: Any) -> tuple[float, float, float]:
    """Return the geometric mean of some values, and its 95% t-interval."""
    logs = np.log(np.maximum(losses, 1e-12))
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    return tuple(np.exp(logs.mean() + half * np.array([0, -1, 1])).tolist())


def learned(losses: Any) -> int:
    """Return how many of the losses are below a tenth of the baseline."""
    return int((np.array(losses) < 0.1).sum())


def ratio(starts: dict[str, Any], one: str, other: str) -> tuple[float, float, float]:
    """Return the ratio of the losses of two starts, and its 95% t-interval."""
    return interval(np.divide(starts[one]["loss"], starts[other]["loss"]))


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    tries = {task: measured["updates"] for task, measured in numbers["tasks"].items()}
    rates = _training.grid(numbers["rates"], max(tries.values()), len(numbers["tuning_seeds"]))
    head = ["task", "T", "network", "loss (95% interval)", "seeds that learn to add", rates]
    rows = [[*head, "parameters", "updates", "training, s"]]
    loss = "{:#.3g} ({:#.3g} to {:#.3g})"
    for task, measured in numbers["tasks"].items():
        for name, start in measured["starts"].items():
            adds = f"{learned(start['loss'])} of {len(seeds)}" if task == "adding" else "-"
            rows.append([task, str(measured["T"][STARTS[name].kind]), name])
            rows[-1] += [loss.format(*interval(start["loss"])), adds]
            rows[-1] += [f"{start['rate']:g}" + edge(start["rate"], numbers["rates"])]
            rows[-1] += [f"{start['parameters']:,}", str(measured["updates"])]
            rows[-1] += [f"{start['seconds']:.1f}"]
    for _, _, one, other in ADVICE:
        for task, measured in numbers["tasks"].items():
            found = loss.format(*ratio(measured["starts"], one, other))
            rows.append([task, "-", f"ratio, {one} / {other}", found, *"-----"])
    return rows


def edge(rate: float, rates: list[float]) -> str:
    """Return a remark where the best rate is at an end of the grid."""
    ends = {rates[0]: " (smallest tried)", rates[-1]: " (largest tried)"}
    return ends.get(rate, "") if len(rates) > 1 else ""


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    adding = numbers["tasks"]["adding"]
    starts = adding["starts"]
    helps = [ratio(starts, one, other)[2] < 1 for _, _, one, other in ADVICE]
    read = numbers["tasks"]["text"]["starts"]
    texts = [interval(read[name]["loss"])[0] for name in BIASES if name in read]
    spread = 100 * (max(texts) / min(texts) - 1)
    said = []
    for good in (True, False):
        which = [pair for pair, found in zip(ADVICE, helps, strict=True) if found == good]
        said.append([[pair[language] for pair in which] for language in (0, 1)])
    (yes, yes_korean), (no, no_korean) = said
    english = f"{listed(yes or ['none of the starts'])} reliably lowered the loss on adding"
    korean = f"덧셈 과제에서 {', '.join(yes_korean) or '어떤 초기화'}"
    korean += "의 손실이 확실히 낮아졌습니다" if yes else "도 손실을 확실히 낮추지 못했습니다"
    if yes and no:
        english += f"; {listed(no)} did not"
        korean += f". {', '.join(no_korean)}에서는 확실히 낮아지지 않았습니다"
    counts = {
        name.removeprefix("lstm, bias "): learned(starts[name]["loss"])
        for name in BIASES
        if name in starts
    }
    (bias, count), *others = counts.items()
    with_bias = [f"{count} with forget bias {bias}", *(f"{n} with {b}" for b, n in others)]
    korean_counts = ", ".join(f"{b}에서 {n}개" for b, n in counts.items())
    english += f"; of {len(seeds)} LSTMs each, {listed(with_bias)} learned to add"
    korean += (
        f". 각각 LSTM {len(seeds)}개 중 덧셈을 배운 것은 포겟 게이트 편향 {korean_counts}입니다"
    )
    return Verdict(
        Holds.YES if all(helps) else Holds.PARTLY if any(helps) else Holds.NO,
        f"{english}. On text, the loss differs by at most {spread:.1f}% between forget biases.",
        f"{korean}. 텍스트에서는 포겟 게이트 편향에 따른 손실 차이가 {spread:.1f}% 이하입니다.",
    )


def colour(name: str) -> str:
    """Return the colour of a network by its cell."""
    if name.startswith("lstm"):
        return _drawing.BLUE
    return _drawing.RED if name.startswith("tanh") else _drawing.ORANGE


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, panels = _drawing.figure(3, height=3.9, height_ratios=[1.2, 1.2, 1])
    *ends, curves = panels
    for axes, (task, measured) in zip(ends, numbers["tasks"].items(), strict=True):
        starts = measured["starts"]
        for place, (name, start) in enumerate(starts.items()):
            middle, low, high = interval(start["loss"])
            axes.plot([low, high], [place, place], linewidth=5, alpha=0.35, color=colour(name))
            axes.plot(middle, place, "o", color=colour(name))
        axes.set_yticks(range(len(starts)), list(starts))
        axes.set_ylim(len(starts) - 0.5, -0.5)
        axes.set_xscale("log" if task == "adding" else "linear")
        axes.grid(axis="x", alpha=0.25)
        title = f"{task.capitalize()} after {measured['updates']} updates ({len(seeds)} seeds)"
        _drawing.name_axes(axes, title, f"loss, {measured['unit']}", "")
    measured = numbers["tasks"]["adding"]
    labels = []
    for name, shade, line in zip(
        CURVES, _drawing.COLOURS, ("-", "--", "-.", ":", "-"), strict=True
    ):
        if name not in measured["starts"]:
            continue
        curve = np.array(measured["starts"][name]["curve"], float)
        x = measured["updates"] * (0.5 + np.arange(len(curve))) / len(curve)
        curves.plot(x, curve, color=shade, linestyle=line)
        labels.append((curve[-1], name.removeprefix("lstm, "), shade))
    curves.set(yscale="log", xlim=(0, measured["updates"]))
    _drawing.label_ends(curves, labels)
    title = f"Adding: biases of the LSTM (median of {len(seeds)} seeds)"
    _drawing.name_axes(curves, title, "training steps", "training loss")
    return figure
