"""At its limits alpha = 0 and beta = 0 an LSTM's cell keeps or forgets exactly; peepholes help timing.

    s^t = alpha s^{t-1} + beta g^t   =>   s^t = alpha^t s^0 + beta sum_k alpha^{t-k} g^k

alpha is the forget gate, beta the input gate. Biases hold both gates of an LSTM (16 units, peepholes,
random weights and inputs) at a value for 100 steps: beta = 0 keeps what was there, alpha = 0 forgets
it at once, and between these limits the cell fades or sums up. The cell is compared with the equation
above, and its gradient ds^t / ds^0 with alpha^t I. Where beta = 0 that is the whole gradient; where
beta = 1 the rest arrives through the hidden state.

Two timing tasks after Gers, Schraudolph and Schmidhuber (2002) have one input, a spike. *fire*: a
signal 20 steps after the spike and at no other step. *tell*: at a second spike, whether it came 20 or
21 steps after the first. LSTMs of eight units learn both by cross-entropy, with and without
peepholes. A seed has solved a task if every answer is right in 99% of 500 new sequences.

    python -m experiments lstm_limits      88 s on two CPU cores
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from experiments import Outcome, _drawing, _training, bullets
from jaxrnn.recurrence.cells import LSTMState

ROW = 6
# The values of (alpha, beta).
CASES = {
    "keeps: α = 1, β = 0": (1.0, 0.0),
    "fades: α = 0.9, β = 0": (0.9, 0.0),
    "forgets: α = 0, β = 1": (0.0, 1.0),
    "sums: α = 1, β = 1": (1.0, 1.0),
}
# The cases: units, steps, and the unit that is drawn.
UNITS = 16
TIME = 100
SHOWN = 4
CELL = jaxrnn.lstm(UNITS, peephole=True)
# The timing tasks: delay, steps of which one has the first spike, width, batch, learning rate.
DELAY = 20
EARLY = 5
HIDDEN = 8
BATCH = 32
RATE = 1e-2
# The steps of the timing tasks.
CLOCK = np.arange(EARLY + DELAY + 2)[:, None]
# Share of right sequences for which a task is solved, and the number of sequences.
SOLVED = 0.99
ASKED = 500


def hold(params: Any, gate: int, value: float) -> Any:
    """Return the parameters with one gate (0 input, 1 forget) held at a value, whatever the input."""
    size = params.w_h.shape[0]
    columns = slice(gate * size, (gate + 1) * size)
    bias = math.log(value / (1 - value)) if 0 < value < 1 else math.copysign(1e3, value - 0.5)
    w_x, w_h = (w.at[:, columns].set(0) for w in (params.w_x, params.w_h))
    return type(params)(w_x, w_h, params.b.at[columns].set(bias), params.w_c.at[gate].set(0))


@jax.jit
def watch(params: Any, xs: Any, first: Any) -> tuple[Any, tuple[Any, Any]]:
    """Return ds^t / ds^0 [T, H, H], and cells s^t and block inputs g^t [T, H], from s^0 = first [H]."""

    def cells(first: Any) -> Any:
        # The state as a step would leave it.
        state = LSTMState(jnp.tanh(first)[None], first[None])
        _, _, inside = jaxrnn.record(CELL, params, xs, state, names=["cell", "g"])
        return inside["cell"][:, 0], (inside["cell"][:, 0], inside["g"][:, 0])

    return jax.jacfwd(cells, has_aux=True)(first)


def held(alpha: float, beta: float, seed: int) -> tuple[Any, Any, Any, Any]:
    """Run the LSTM with its gates held.

    Returns:
      The cells [T, H], the cells by the equation [T, H], the size [T] of their gradient with respect to
      the first cell, and the size [T] of that gradient without alpha^t I.
    """
    keys = jax.random.split(jax.random.key(seed), 4)
    peepholes = 0.3 * jax.random.normal(keys[1], (3, UNITS))
    params = CELL.init(keys[0], UNITS)._replace(w_c=peepholes)
    xs, first = jax.random.normal(keys[2], (TIME, 1, UNITS)), jax.random.normal(keys[3], (UNITS,))
    gradient, (cell, g) = jax.device_get(watch(hold(hold(params, 1, alpha), 0, beta), xs, first))
    fading = np.float64(alpha) ** np.arange(1, TIME + 1)[:, None, None] * np.eye(UNITS)
    exact = by_equation(alpha, beta, np.asarray(first), g)
    return cell, exact, size(gradient), size(gradient - fading)


def by_equation(alpha: float, beta: float, first: Any, g: Any) -> Any:
    """Return alpha^t s^0 + beta sum_k alpha^{t-k} g^k for t = 1 ... T, [T, H], in float64."""
    time = np.arange(1, len(g) + 1)[:, None]
    weights = np.tril(np.float64(alpha) ** np.maximum(time - time.T, 0))
    return np.float64(alpha) ** time * first + beta * weights @ g.astype(np.float64)


def size(gradient: Any) -> Any:
    """Return the root mean square over the units of a gradient, [T, H, H] to [T]."""
    return np.sqrt((gradient**2).sum((1, 2)) / UNITS)


def fire(key: Any, rows: int = BATCH) -> tuple[Any, Any, Any]:
    """Return spikes [T, B, 1], the wanted answers [T, B] bool, and which answers count [T, B] bool."""
    first = jax.random.randint(key, (1, rows), 0, EARLY)
    spikes, wanted = ((when == CLOCK) for when in (first, first + DELAY))
    return spikes.astype(jnp.float32)[..., None], wanted, jnp.ones_like(wanted)


def tell(key: Any, rows: int = BATCH) -> tuple[Any, Any, Any]:
    """Return the same as `fire`; the answer counts at the second spike and is whether that came late."""
    first, late = jax.random.randint(key, (2, 1, rows), 0, np.array([EARLY, 2])[:, None, None])
    second = first + DELAY + late == CLOCK
    spikes = (first == CLOCK) | second
    return spikes.astype(jnp.float32)[..., None], second & (late == 1), second


TASKS, KINDS = {"fire": fire, "tell": tell}, {"peepholes": True, "no peepholes": False}


def learn(task: Any, peephole: bool, steps: int, seeds: list[int]) -> tuple[Any, Any]:
    """Return the loss before each step [seeds, steps], and the share of right sequences [seeds]."""
    net = jaxrnn.network(jaxrnn.lstm(HIDDEN, peephole=peephole), 1, 1)

    def loss(params: Any, batch: Any) -> Any:
        spikes, wanted, counts = batch
        logits = net.apply(params, spikes)[1][..., 0]
        each = optax.sigmoid_binary_cross_entropy(logits, wanted.astype(logits.dtype))
        return jnp.where(counts, each, 0).sum(0).mean()

    @jax.jit
    def right(params: Any) -> Any:
        spikes, wanted, counts = task(jax.random.key(10_000), ASKED)
        _, logits = net.apply(params, spikes)
        answers = logits[..., 0] > 0
        return ((answers == wanted) | ~counts).all(0).mean()

    every, losses = _training.train(net, loss, task, steps, seeds, rate=RATE)
    shares = [right(jax.tree.map(lambda p, at=at: p[at], every)) for at in range(len(seeds))]
    return losses, np.array(shares)


def run(quick: bool) -> Outcome:
    seeds, steps = ([0, 1], 5) if quick else (list(range(10)), 3000)
    rows = [["", "measured", "range over the seeds"]]
    cases: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    solved: dict[str, int] = {}
    for name, gates in CASES.items():
        runs = zip(*(held(*gates, seed) for seed in seeds), strict=True)
        cell, by_hand, sizes, rest = [np.stack(each) for each in runs]
        cases[name] = cell, by_hand, sizes, rest
        error = np.abs(cell - by_hand).max((1, 2))
        rows.append([name, "cell, largest error", span(error)])
        rows.append([name, "gradient, largest part besides α^t I", span(rest.max(1))])
        rows += [[name, f"gradient at t = {t}", span(sizes[:, t - 1])] for t in (1, 10, TIME)]
        errors[name] = {"cell": float(error.max()), "gradient": float(rest.max())}
    for task in TASKS:
        for kind, peephole in KINDS.items():
            name, (losses, right) = f"{task}, {kind}", learn(TASKS[task], peephole, steps, seeds)
            each = np.stack([p.mean(1) for p in np.array_split(losses, min(60, steps), 1)], 1)
            solved[name] = int((right >= SOLVED).sum())
            curves[name] = f"{solved[name]} of {len(seeds)}", each
            rows.append([name, "final loss, nats", span(each[:, -1])])
            rows.append([name, f"share of {ASKED} sequences that are right", span(right)])
    losses = {name: each.tolist() for name, (_, each) in curves.items()}
    gradient = {name: sizes.tolist() for name, (_, _, sizes, _) in cases.items()}
    numbers = {"gradient": gradient, "loss": losses, "training_steps": steps}
    numbers |= {"largest": errors, "seeds_that_solve": solved}
    return Outcome(rows, numbers, seeds, draw(cases, curves, steps))


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    cases = [
        f"{name}: largest error of the cell {_drawing.decades(each['cell'])}, largest part of its "
        f"gradient besides α^t I {_drawing.decades(each['gradient'])}"
        for name, each in numbers["largest"].items()
    ]
    tasks = [
        f"{name}: solved by {solved} of {len(seeds)} seeds, median loss "
        f"{np.median(np.array(numbers['loss'][name])[:, -1]):.2g}"
        for name, solved in numbers["seeds_that_solve"].items()
    ]
    return (
        f"The cell in {TIME} steps and {len(seeds)} seeds, and the timing tasks after "
        f"{numbers['training_steps']} training steps:{bullets([*cases, *tasks])}"
    )


def span(values: Any) -> str:
    return " to ".join(dict.fromkeys(map(_drawing.decades, (values.min(), values.max()))))


def draw(cases: Any, curves: Any, steps: int) -> Any:
    figure, ((kept, flow), tasks) = _drawing.figure(2, 13, 8.5, rows=2)
    time, cells, flows = np.arange(1, TIME + 1), [], []
    for (name, each), colour in zip(cases.items(), _drawing.COLOURS, strict=False):
        cell = each[0][0, :30, SHOWN]
        by_hand = each[1][0, :30, SHOWN]
        sizes = each[2]
        kept.plot(time[:30], cell, color=colour)
        kept.plot(time[:30], by_hand, ".", color=colour, markersize=6)
        cells.append((cell[-1], name, colour))
        end = _drawing.band(flow, time, np.maximum(sizes, 1e-12), colour)[-1]
        flows.append((end, name, colour))
    kept.set(xlim=(1, 30))
    flow.set(xlim=(1, TIME), ylim=(1e-8, 1e3), yscale="log")
    _drawing.label_ends(kept, cells)
    _drawing.label_ends(flow, flows)
    title = "One unit with its gates held (dots: the equation)"
    _drawing.name_axes(kept, title, "step t", "cell $s_t$")
    label = r"size of $\partial s_t/\partial s_0$"
    _drawing.name_axes(flow, "Effect of a change of the first cell", "step t", label)
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
