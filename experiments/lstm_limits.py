"""The lecture's LSTM cell at its limits, alpha = 0 and beta = 0, and what peepholes add in timing.

    s^t = alpha s^{t-1} + beta g^t   =>   s^t = alpha^t s^0 + beta sum_k alpha^{t-k} g^k

alpha is the forget gate, beta the input gate. Biases hold both of an LSTM (16 units, peepholes, random
weights and inputs) at a value for 100 steps: beta = 0 keeps what was there, alpha = 0 forgets it at
once, and between them the cell fades or sums up. The cell is compared with the equation above, its
gradient ds^t / ds^0 with alpha^t I, which is all of it where beta = 0; where beta = 1 the rest comes
round by the hidden state.

Two timing tasks after Gers, Schraudolph and Schmidhuber (2002), one input, a spike: *fire*, a signal 20
steps after it and at no other step; *tell*, at a second spike whether it came 20 or 21 steps after the
first. LSTMs of eight units learn both by cross-entropy, with and without peepholes. Solved is a seed
that has every answer right in 99% of 500 fresh sequences.

    python -m experiments lstm_limits      88 s on two CPU cores

On 2026-11-24: Largest error of the cell, and largest part of its gradient that is not α^t I but comes by
the hidden state, in 100 steps and 10 seeds: keeps: α = 1, β = 0: 0, 0; fades: α = 0.9, β = 0: 4.0e-07,
1.1e-07; forgets: α = 0, β = 1: 0, 0.535; sums: α = 1, β = 1: 1.8e-05, 59.2. Timing tasks: seeds that
solve them after 3000 steps, and median loss then: fire, peepholes 8 of 10, 0.011; fire, no peepholes 10
of 10, 0.29; tell, peepholes 10 of 10, 4e-05; tell, no peepholes 10 of 10, 4.3e-05.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from experiments import Outcome, _drawing, _training

ROW = 6
CASES = {  # alpha, beta
    "keeps: α = 1, β = 0": (1.0, 0.0),
    "fades: α = 0.9, β = 0": (0.9, 0.0),
    "forgets: α = 0, β = 1": (0.0, 1.0),
    "sums: α = 1, β = 1": (1.0, 1.0),
}
UNITS, TIME, SHOWN = 16, 100, 4  # of the cases; the unit drawn
CELL = jaxrnn.lstm(UNITS, peephole=True)
DELAY, EARLY, HIDDEN, BATCH, RATE = 20, 5, 8, 32, 1e-2  # of the tasks
CLOCK = np.arange(EARLY + DELAY + 2)[:, None]  # their steps
SOLVED, ASKED = 0.99, 500  # share of right sequences, of how many


def hold(params: Any, gate: int, value: float) -> Any:
    """The LSTM's parameters with one gate (0 input, 1 forget) at a value, whatever comes in."""
    size = params.w_h.shape[0]
    columns = slice(gate * size, (gate + 1) * size)
    bias = math.log(value / (1 - value)) if 0 < value < 1 else math.copysign(1e3, value - 0.5)
    w_x, w_h = (w.at[:, columns].set(0) for w in (params.w_x, params.w_h))
    return type(params)(w_x, w_h, params.b.at[columns].set(bias), params.w_c.at[gate].set(0))


@jax.jit
def watch(params: Any, xs: Any, first: Any) -> tuple[Any, tuple[Any, Any]]:
    """ds^t / ds^0 [T, H, H], and the cells s^t and block inputs g^t [T, H], from s^0 = first [H]."""

    def cells(first: Any) -> Any:
        state = jaxrnn.recurrence.cells.LSTMState(
            jnp.tanh(first)[None], first[None]
        )  # as after a step
        inside = jaxrnn.unroll(CELL, params, xs, state, record=["cell", "g"])[2]
        return inside["cell"][:, 0], (inside["cell"][:, 0], inside["g"][:, 0])

    return jax.jacfwd(cells, has_aux=True)(first)


def held(alpha: float, beta: float, seed: int) -> tuple[Any, Any, Any, Any]:
    """Cells [T, H] of the LSTM so held, and by the equation; the size of their gradient by the first
    cell [T], and of what it has beside alpha^t I [T]."""
    keys = jax.random.split(jax.random.key(seed), 4)
    peepholes = 0.3 * jax.random.normal(keys[1], (3, UNITS))
    params = CELL.init(keys[0], UNITS)._replace(w_c=peepholes)
    xs, first = jax.random.normal(keys[2], (TIME, 1, UNITS)), jax.random.normal(keys[3], (UNITS,))
    gradient, (cell, g) = jax.device_get(watch(hold(hold(params, 1, alpha), 0, beta), xs, first))
    fading = np.float64(alpha) ** np.arange(1, TIME + 1)[:, None, None] * np.eye(UNITS)
    exact = by_equation(alpha, beta, np.asarray(first), g)
    return cell, exact, size(gradient), size(gradient - fading)


def by_equation(alpha: float, beta: float, first: Any, g: Any) -> Any:
    """alpha^t s^0 + beta sum_k alpha^{t-k} g^k for t = 1 ... T, [T, H], in float64."""
    time = np.arange(1, len(g) + 1)[:, None]
    weights = np.tril(np.float64(alpha) ** np.maximum(time - time.T, 0))
    return np.float64(alpha) ** time * first + beta * weights @ g.astype(np.float64)


def size(gradient: Any) -> Any:
    """The root mean square over the units of what is left of a change of s^0: [T, H, H] to [T]."""
    return np.sqrt((gradient**2).sum((1, 2)) / UNITS)


def fire(key: Any, rows: int = BATCH) -> tuple[Any, Any, Any]:
    """Spikes [T, B, 1], the answers wanted [T, B] bool, and which of them count [T, B] bool."""
    first = jax.random.randint(key, (1, rows), 0, EARLY)
    spikes, wanted = ((when == CLOCK) for when in (first, first + DELAY))
    return spikes.astype(jnp.float32)[..., None], wanted, jnp.ones_like(wanted)


def tell(key: Any, rows: int = BATCH) -> tuple[Any, Any, Any]:
    """As `fire`: the answer is whether the second spike came a step late, and counts only there."""
    first, late = jax.random.randint(key, (2, 1, rows), 0, np.array([EARLY, 2])[:, None, None])
    second = first + DELAY + late == CLOCK
    spikes = (first == CLOCK) | second
    return spikes.astype(jnp.float32)[..., None], second & (late == 1), second


TASKS, KINDS = {"fire": fire, "tell": tell}, {"peepholes": True, "no peepholes": False}


def learn(task: Any, peephole: bool, steps: int, seeds: list[int]) -> tuple[Any, Any]:
    """The losses before each step [seeds, steps], and the share of sequences all right [seeds]."""
    net = jaxrnn.network(jaxrnn.lstm(HIDDEN, peephole=peephole), 1, 1)

    def loss(params: Any, batch: Any) -> Any:
        spikes, wanted, counts = batch
        logits = net.apply(params, spikes)[1][..., 0]
        each = optax.sigmoid_binary_cross_entropy(logits, wanted.astype(logits.dtype))
        return jnp.where(counts, each, 0).sum(0).mean()

    @jax.jit
    def right(params: Any) -> Any:
        spikes, wanted, counts = task(jax.random.key(10_000), ASKED)
        said = net.apply(params, spikes)[1][..., 0] > 0
        return ((said == wanted) | ~counts).all(0).mean()

    every, losses = _training.train(net, loss, task, steps, seeds, rate=RATE)
    shares = [right(jax.tree.map(lambda p, at=at: p[at], every)) for at in range(len(seeds))]
    return losses, np.array(shares)


def run(quick: bool) -> Outcome:
    seeds, steps = ([0, 1], 5) if quick else (list(range(10)), 3000)
    rows, told, cases, curves = [["", "measured", "least to greatest of the seeds"]], [], {}, {}
    for name, gates in CASES.items():
        runs = zip(*(held(*gates, seed) for seed in seeds), strict=True)
        cases[name] = cell, by_hand, sizes, beside = [np.stack(each) for each in runs]
        error = np.abs(cell - by_hand).max((1, 2))
        rows.append([name, "cell, largest error", span(error)])
        rows.append([name, "gradient, largest part that is not α^t I", span(beside.max(1))])
        rows += [[name, f"gradient at t = {t}", span(sizes[:, t - 1])] for t in (1, 10, TIME)]
        told.append(f"{name}: {_drawing.decades(error.max())}, {_drawing.decades(beside.max())}")
    for task in TASKS:
        for kind, peephole in KINDS.items():
            name, (losses, right) = f"{task}, {kind}", learn(TASKS[task], peephole, steps, seeds)
            each = np.stack([p.mean(1) for p in np.array_split(losses, min(60, steps), 1)], 1)
            curves[name] = f"{(right >= SOLVED).sum()} of {len(seeds)}", each
            rows.append([name, "loss at the end, nats", span(each[:, -1])])
            rows.append([name, f"share of {ASKED} sequences all right", span(right)])
    ends = [f"{name} {n}, {np.median(each[:, -1]):.2g}" for name, (n, each) in curves.items()]
    sentence = (
        f"Largest error of the cell, and largest part of its gradient that is not α^t I but comes by "
        f"the hidden state, in {TIME} steps and {len(seeds)} seeds: {'; '.join(told)}. Timing tasks: "
        f"seeds that solve them after {steps} steps, and median loss then: {'; '.join(ends)}."
    )
    losses = {name: each.tolist() for name, (_, each) in curves.items()}
    gradient = {name: sizes.tolist() for name, (_, _, sizes, _) in cases.items()}
    numbers = {"gradient": gradient, "loss": losses, "training_steps": steps}
    return Outcome(sentence, rows, numbers, seeds, draw(cases, curves, steps))


def span(values: Any) -> str:
    return " to ".join(dict.fromkeys(map(_drawing.decades, (values.min(), values.max()))))


def draw(cases: Any, curves: Any, steps: int) -> Any:
    figure, ((kept, flow), tasks) = _drawing.figure(2, 13, 8.5, rows=2)
    time, cells, flows = np.arange(1, TIME + 1), [], []
    for (name, each), colour in zip(cases.items(), _drawing.COLOURS, strict=False):
        cell, by_hand, sizes = each[0][0, :30, SHOWN], each[1][0, :30, SHOWN], each[2]
        kept.plot(time[:30], cell, color=colour)
        kept.plot(time[:30], by_hand, ".", color=colour, markersize=6)
        cells.append((cell[-1], name, colour))
        end = _drawing.band(flow, time, np.maximum(sizes, 1e-12), colour)[-1]
        flows.append((end, name, colour))
    kept.set(xlim=(1, 30))
    flow.set(xlim=(1, TIME), ylim=(1e-8, 1e3), yscale="log")
    _drawing.label_ends(kept, cells)
    _drawing.label_ends(flow, flows)
    title = "One unit, its gates held (dots: by the equation)"
    _drawing.name_axes(kept, title, "step t", "cell $s_t$")
    label = r"what is left, size of $\partial s_t/\partial s_0$"
    _drawing.name_axes(flow, "A change of the first cell", "step t", label)
    titles = f"Fire {DELAY} steps after a spike", f"Tell intervals of {DELAY} and {DELAY + 1} steps"
    for axes, task, title in zip(tasks, TASKS, titles, strict=True):
        ends = []
        for kind, colour in zip(KINDS, _drawing.COLOURS, strict=False):
            count, each = curves[f"{task}, {kind}"]
            x = np.linspace(0, steps, each.shape[1] + 1)[1:]
            end = _drawing.band(axes, x, each, colour)[-1]
            ends.append((end, f"{kind}:\n{count} solved", colour))
        axes.set(yscale="log", xlim=(x[0], x[-1]), ymargin=0.15)
        _drawing.label_ends(axes, ends, gap=0.12)
        _drawing.name_axes(axes, title, "training step", "loss, nats per sequence")
    return figure
