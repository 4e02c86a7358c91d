"""A nonlinear recurrence tracks the parity of bits; a linear one with gates in (0, 1) cannot.

    p^t = p^{t-1} XOR x^t,    p^0 = 0,    x^t a random bit

The network reads a bit at each step and gives the logit of "the number of ones is odd". To track the
parity, a bit 1 must turn each state into the other one, and a bit 0 must leave it as it is.

In minGRU and minLSTM the state is linear in its past:

    h^t = a(x^t) h^{t-1} + b(x^t),    0 < a < 1, each unit on its own

The states h and k of an even and an odd number of ones differ by d = h - k, and the same bits multiply
d by the product of the factors a. None of these is negative, so d keeps its sign: a 1 cannot exchange
the two states, it can only bring them closer to each other. A unit can count the ones, but the counts of
longer sequences are ever harder to tell apart. More layers do not help at every length in finite
precision: Grazzi et al. (2024), "Unlocking state-tracking in linear RNNs through negative eigenvalues",
prove that a linear recurrence needs a transition with an eigenvalue that is not positive. Merrill et al.
(2024), "The illusion of state in state-space models", give the limits for harder tasks, such as the
order of five things of which two are exchanged at each step.

In a nonlinear cell the state and the bit meet inside of the activation function, so that the Jacobian
can have a negative eigenvalue at a bit 1.

"signed mingru" tests the reason: it is minGRU with the factor a = 1 - 2 z in (-1, 1) in place of 1 - z.
With a(0) = 1, a(1) = -1, b(0) = 0, b(1) = 1 it is h^t = h^{t-1} XOR x^t. Its factors are learned, and
as none has the absolute value 1 exactly, d fades, however slowly. A nonlinear cell can hold two states
that attract their neighbours (see the experiment `dynamics`), so that d does not fade.

All contenders have the same width and train on 40 new bits with the loss at each step, which is a
curriculum for all: the parity of the first bits is learned first. The learning rate of Adam is tuned for
each contender on three seeds that are not used later: it is the one of RATES with the smallest loss in
the last tenth of the training steps, averaged over these seeds. One seed is not enough: a rate can give
the smallest loss with one seed and fail with another. The test is on 256 bits, and a network tracks the
parity if its accuracy after the first 40 is above 0.99. The seconds are those of a training, without
compilation.

    python -m experiments state_tracking      3 min on one CPU core
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxrnn
from experiments import Holds, Outcome, Verdict, _drawing
from experiments._training import Training, best_rate, grid
from jaxrnn.recurrence.variants.linear import MinGRU, MinParams

ROW = 20
HIDDEN = 32
BATCH = 32
# Bits of a sequence in training and in the test, and sequences of the test.
TRAINED = 40
TESTED = 256
SEQUENCES = 2048
RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
# Seeds of the tuning and of the test, which the trainings that are tested do not use.
TUNING_SEEDS = (100, 101, 102)
TEST_SEED = 103
# Accuracy above which a network tracks the parity.
TRACKS = 0.99
# The steps of the learned accuracy that the picture shows.
SHOWN = np.unique(np.geomspace(1, TESTED, 40).round().astype(int))


@dataclasses.dataclass(frozen=True)
class SignedMinGRU(MinGRU):
    """minGRU with the factor 1 - 2 z, between -1 and 1: h^t = (1 - 2 z^t) h^{t-1} + z^t n^t."""

    def coefficients(self, params: MinParams, gx: Any) -> tuple[Any, Any]:
        a, b = super().coefficients(params, gx)
        return 2 * a - 1, b


@dataclasses.dataclass(frozen=True)
class Tracker:
    """Layers of a cell, and a linear output: the logit of an odd number of ones.

    Attributes:
      cell: the cell of all layers.
      depth: number of layers.
    """

    cell: jaxrnn.Cell
    depth: int = 1

    @property
    def layers(self) -> jaxrnn.layers.Stacked:
        return jaxrnn.layers.stacked(self.cell, inputs=1, layers=self.depth)

    def init(self, key: Any) -> Any:
        """Return initial parameters: those of the layers, the output's weights [H] and its bias."""
        below, above = jax.random.split(key)
        weights = jax.random.normal(above, (HIDDEN,)) / jnp.sqrt(HIDDEN)
        return self.layers.init(below), weights, jnp.zeros(())

    def logits(self, params: Any, bits: Any) -> Any:
        """Return the logit [T, B] after each of the bits [T, B], float32."""
        below, weights, bias = params
        return self.layers.apply(below, bits[..., None])[1] @ weights + bias


NONLINEAR = {
    "rnn": Tracker(jaxrnn.rnn(HIDDEN)),
    "lstm": Tracker(jaxrnn.lstm(HIDDEN)),
    "gru": Tracker(jaxrnn.gru(HIDDEN)),
}
# Linear in the state, with factors in (0, 1).
LINEAR = {
    "mingru": Tracker(jaxrnn.mingru(HIDDEN)),
    "minlstm": Tracker(jaxrnn.minlstm(HIDDEN)),
    "mingru, 2 layers": Tracker(jaxrnn.mingru(HIDDEN), depth=2),
}
SIGNED = "signed mingru"
CONTENDERS = NONLINEAR | LINEAR | {SIGNED: Tracker(SignedMinGRU(HIDDEN))}
# The contenders of the picture's second panel, with their colours and markers.
FACTORS = {
    "mingru": (_drawing.PINK, "o"),
    "minlstm": (_drawing.PINK, "+"),
    SIGNED: (_drawing.ORANGE, "x"),
}
STYLES = {
    "rnn": (_drawing.RED, "-"),
    "lstm": (_drawing.BLUE, "--"),
    "gru": (_drawing.GREEN, ":"),
    "mingru": (_drawing.PINK, "-"),
    "minlstm": (_drawing.PINK, "--"),
    "mingru, 2 layers": (_drawing.PINK, ":"),
    SIGNED: (_drawing.ORANGE, "-"),
}


def draw_bits(key: Any, length: int, rows: int) -> Any:
    """Return random bits [T, B], float32."""
    return jax.random.bernoulli(key, shape=(length, rows)).astype(jnp.float32)


def parities(bits: Any) -> Any:
    """Return 1.0 at each step until which the number of ones is odd, 0.0 elsewhere, [T, B]."""
    return jnp.cumsum(bits, axis=0) % 2


def training(tracker: Tracker) -> Training:
    """Return the training of a contender; one compiled program serves all learning rates and seeds."""

    def loss(params: Any, bits: Any) -> Any:
        logits = tracker.logits(params, bits)
        return optax.sigmoid_binary_cross_entropy(logits, parities(bits)).mean()

    return Training(tracker, loss, functools.partial(draw_bits, length=TRAINED, rows=BATCH))


def learn(training: Training, rate: float, seed: int, steps: int) -> tuple[Any, float]:
    """Return the final parameters, and the mean loss of the last tenth of the training steps."""
    state, losses = training.advance(training.begin(seed), rate, steps)
    return state.params, float(losses[-max(1, steps // 10) :].mean())


@functools.partial(jax.jit, static_argnames="tracker")
def examine(tracker: Tracker, params: Any) -> Any:
    """Return the accuracy at each step of the test [TESTED]."""
    bits = draw_bits(jax.random.key(TEST_SEED), TESTED, SEQUENCES)
    return ((tracker.logits(params, bits) > 0) == (parities(bits) == 1)).mean(1)


def factors(cell: Any, params: Any) -> Any:
    """Return the factors a for the bits 0 and 1, [2, H], of a linear cell."""
    return cell.coefficients(params, cell.project(params, jnp.array([[0.0], [1.0]])))[0]


def measure(tracker: Tracker, rates: tuple[float, ...], steps: int, seeds: list[int]) -> Any:
    """Return what is measured of a contender, by the names under which `run` records it."""
    to_learn = training(tracker)
    tuning = {
        rate: [round(learn(to_learn, rate, seed, steps)[1], 5) for seed in TUNING_SEEDS]
        for rate in rates
    }
    rate = best_rate(rates, [sum(tuning[rate]) for rate in rates])
    begin = time.perf_counter()
    trained = [learn(to_learn, rate, seed, steps) for seed in seeds]
    seconds = (time.perf_counter() - begin) / len(seeds)
    params = [each for each, _ in trained]
    found = np.stack([examine(tracker, each) for each in params]).astype(float)
    measured = {
        "tuning": {str(each): losses for each, losses in tuning.items()},
        "rate": rate,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params[0])),
        "seconds": round(seconds, 2),
        "loss": [round(loss, 5) for _, loss in trained],
        "accuracy_by_step": found[:, SHOWN - 1].round(4).tolist(),
        "accuracy": {
            "within": found[:, :TRAINED].mean(1).round(5).tolist(),
            "beyond": found[:, TRAINED:].mean(1).round(5).tolist(),
            "last": found[:, -1].round(5).tolist(),
        },
    }
    if tracker in (CONTENDERS[name] for name in FACTORS):
        by_seed = [factors(tracker.cell, layers.cells[0]) for layers, _, _ in params]
        measured["factors"] = np.stack(by_seed).astype(float).round(4).tolist()
    return measured


def run(quick: bool) -> Outcome:
    seeds, steps, rates = ([0, 1], 20, RATES[:1]) if quick else (list(range(8)), 1000, RATES)
    numbers = {
        "steps": steps,
        "hidden": HIDDEN,
        "batch": BATCH,
        "lengths": {"training": TRAINED, "tested": TESTED},
        "rates": rates,
        "tuning_seeds": TUNING_SEEDS,
        "contenders": {
            name: measure(tracker, rates, steps, seeds) for name, tracker in CONTENDERS.items()
        },
    }
    return Outcome(numbers, seeds)


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    trained, tested = numbers["lengths"]["training"], numbers["lengths"]["tested"]
    rates = grid(numbers["rates"], numbers["steps"], len(numbers["tuning_seeds"]))
    head = ["contender", rates, "parameters", "seconds per seed", "final loss, nats"]
    spans = [f"bits 1 to {trained}", f"bits {trained + 1} to {tested}", f"bit {tested}"]
    rows = [head + [f"accuracy, {span}" for span in spans]]
    for name, measured in numbers["contenders"].items():
        rows.append(
            [
                name,
                f"{measured['rate']:g}",
                f"{measured['parameters']:,}",
                f"{measured['seconds']:.1f}",
                _drawing.spread(measured["loss"]),
                *(
                    _drawing.spread(measured["accuracy"][part])
                    for part in ("within", "beyond", "last")
                ),
            ]
        )
    return rows


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    contenders = numbers["contenders"]
    tracking = {
        name: sum(accuracy > TRACKS for accuracy in measured["accuracy"]["beyond"])
        for name, measured in contenders.items()
    }
    nonlinear = sum(tracking[name] for name in NONLINEAR)
    linear = sum(tracking[name] for name in LINEAR)
    most, none = len(NONLINEAR) * len(seeds), len(LINEAR) * len(seeds)
    holds = Holds.NO
    if not linear and nonlinear > most / 2:
        holds = Holds.YES if nonlinear == most else Holds.PARTLY
    return Verdict(
        holds,
        f"beyond the training length, {nonlinear} of {most} RNNs, LSTMs and GRUs track the parity, and "
        f"{linear} of {none} minGRUs (one or two layers) and minLSTMs.",
        f"학습 때보다 긴 입력에서 RNN, LSTM, GRU는 {most}개 중 {nonlinear}개가 홀짝을 "
        f"계속 맞히고, minGRU(한 층과 두 층)와 minLSTM은 {none}개 중 {linear}개가 맞힙니다.",
    )


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, (curves, plane) = _drawing.figure(2, height=3.8, height_ratios=[1, 1.15])
    ends = []
    for name, (colour, line) in STYLES.items():
        runs = numbers["contenders"][name]["accuracy_by_step"]
        middle = _drawing.band(curves, SHOWN, runs, colour, linestyle=line)
        ends.append((middle[-1], name, colour))
    trained, tested = numbers["lengths"]["training"], numbers["lengths"]["tested"]
    curves.axvline(trained, color=_drawing.INK, linestyle="--", linewidth=1)
    curves.annotate(
        "training", (trained, 0.7), (-5, 0), textcoords="offset points", ha="right", va="center"
    )
    curves.set(xscale="log", xlim=(1, tested), ylim=(0.3, 1.02))
    ticks = [1, 2, 5, 10, 20, trained, 100, tested]
    curves.set_xticks(ticks, [str(tick) for tick in ticks])
    curves.minorticks_off()
    _drawing.label_ends(curves, ends, gap=0.1)
    title = f"Parity of the bits so far ({len(seeds)} seeds)"
    _drawing.name_axes(curves, title, "bits", "accuracy")
    for name, (colour, marker) in FACTORS.items():
        by_bit = np.moveaxis(np.array(numbers["contenders"][name]["factors"]), 1, 0).reshape(2, -1)
        plane.scatter(*by_bit, color=colour, marker=marker, s=22, alpha=0.6, label=name)
    plane.axhline(0, color=_drawing.INK, linewidth=1)
    plane.axvline(0, color=_drawing.INK, linewidth=1)
    needed = {"markersize": 13, "fillstyle": "none", "clip_on": False, "zorder": 3}
    plane.plot(1, -1, "s", color=_drawing.INK, label="needed for parity", **needed)
    plane.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
    ticks = [-1, -0.5, 0, 0.5, 1]
    plane.set(xticks=ticks, yticks=ticks)
    plane.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    title = "Factors that each unit has learned"
    _drawing.name_axes(plane, title, "factor a at the bit 0", "factor a at the bit 1")
    return figure
