"""At its limits alpha = 0 and beta = 0 an LSTM's cell keeps or forgets exactly.

    s^t = alpha s^{t-1} + beta g^t   =>   s^t = alpha^t s^0 + beta sum_k alpha^{t-k} g^k

alpha is the forget gate, beta the input gate. Biases hold both gates of an LSTM (16 units, peepholes,
random weights and inputs) at a value for 100 steps: beta = 0 keeps what was there, alpha = 0 forgets
it at once, and between these limits the cell fades or sums up. The cell is compared with the equation
above, and its gradient ds^t / ds^0 with alpha^t I. Where beta = 0 that is the whole gradient; where
beta = 1 the rest arrives through the hidden state.

Two timing tasks after Gers, Schraudolph and Schmidhuber (2002) test the peepholes, with few units, so
that a network without peepholes has no spare units to count with:

    measure    Two spikes come in. At the second, a single unit outputs the number of steps
               between them: F to F + F/10, each equally likely. Squared error. Solved: in 99% of 500
               new sequences the answer is closer to the true number than to any other.
    generate   Nothing comes in. Four units produce a spike at every F-th step, for 4 F steps.
               Cross-entropy. Solved: the output is right at each of 10 F steps.

Adam, 4000 training steps; the loss of `measure` is the mean of a batch of 8. The learning rate is the
best of RATES on four other seeds, chosen for each task, interval and kind of LSTM: most
seeds that solve it, then the smallest median loss. The peepholes begin at zero.

    python -m experiments lstm_limits      5 min on one CPU core
"""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxrnn
from experiments import Holds, Outcome, Verdict, _drawing
from experiments._training import Training, grid, stack
from jaxrnn.recurrence.cells import LSTMState

ROW = 6
# The values of (alpha, beta).
CASES = {
    "keeps: α = 1, β = 0": (1.0, 0.0),
    "fades: α = 0.9, β = 0": (0.9, 0.0),
    "forgets: α = 0, β = 1": (0.0, 1.0),
    "sums: α = 1, β = 1": (1.0, 1.0),
}
# The limits of the claim, in which the cell is exactly the one of the equation.
LIMITS = ("keeps: α = 1, β = 0", "forgets: α = 0, β = 1")
# The cases: units, steps, and the unit and the steps that are drawn.
UNITS = 16
TIME = 100
SHOWN = 4
DRAWN = 30
CELL = jaxrnn.lstm(UNITS, peephole=True)
# The timing tasks: intervals F, and units.
INTERVALS = {"measure": [10, 20, 30, 50], "generate": [5, 10, 15, 20]}
HIDDEN = {"measure": 1, "generate": 4}
KINDS = {"peepholes": True, "no peepholes": False}
RATES = [0.001, 0.003, 0.01, 0.03, 0.1]
# Seeds on which the learning rate is chosen.
TRIALS = [100, 101, 102, 103]
# `measure`: steps of which one has the first spike, sequences in a batch, and in the test.
EARLY = 5
BATCH = 8
ASKED = 500
# Share of right sequences for which `measure` is solved.
SOLVED = 0.99
# `generate`: intervals in training and in the test.
LEARNED = 4
TESTED = 10


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


def spikes(key: Any, interval: int, rows: int = BATCH) -> tuple[Any, Any, Any]:
    """Return a batch of `measure`.

    Returns:
      Spikes [T, B, 1], which steps have the second spike [T, B] bool, and by how many steps the time
      between the spikes is longer than `interval` [B].
    """
    keys = jax.random.split(key)
    longest = interval // 10
    first = jax.random.randint(keys[0], (rows,), 0, EARLY)
    longer = jax.random.randint(keys[1], (rows,), 0, longest + 1)
    clock = np.arange(EARLY + interval + longest)[:, None]
    second = clock == (first + interval + longer)[None]
    shown = (clock == first[None]) | second
    return shown.astype(jnp.float32)[..., None], second, longer.astype(jnp.float32)


def measuring(net: jaxrnn.Network, interval: int) -> tuple[Training, Any]:
    """Return the training of `measure`, and a function of the parameters: whether they solve it."""
    half = interval // 10 / 2

    def errors(params: Any, batch: Any) -> Any:
        # In steps; the output of the network is -1 for the shortest and 1 for the longest time.
        shown, second, longer = batch
        answers = half * (1 + net.apply(params, shown)[1][..., 0])
        return jnp.where(second, answers - longer[None], 0).sum(0)

    def loss(params: Any, batch: Any) -> Any:
        return (errors(params, batch) ** 2).mean() / half**2

    def solves(params: Any) -> Any:
        found = errors(params, spikes(jax.random.key(10_000), interval, ASKED))
        return (jnp.abs(found) < 0.5).mean() >= SOLVED

    return Training(net, loss, functools.partial(spikes, interval=interval)), solves


def generating(net: jaxrnn.Network, interval: int) -> tuple[Training, Any]:
    """Return the training of `generate`, and a function of the parameters: whether they solve it."""

    def logits(params: Any, intervals: int) -> tuple[Any, Any]:
        time = jnp.arange(1, 1 + intervals * interval)
        return net.apply(params, jnp.zeros((len(time), 1, 1)))[1][:, 0, 0], time % interval == 0

    def loss(params: Any, _: Any) -> Any:
        found, wanted = logits(params, LEARNED)
        each = optax.sigmoid_binary_cross_entropy(found, wanted.astype(found.dtype))
        return each.sum() / LEARNED

    def solves(params: Any) -> Any:
        found, wanted = logits(params, TESTED)
        return ((found > 0) == wanted).all()

    # The batch is the same each time: nothing.
    return Training(net, loss, lambda _: jnp.zeros(())), solves


TASKS = {"measure": measuring, "generate": generating}


def learn(task: str, interval: int, peephole: bool, steps: int, seeds: list[int]) -> dict[str, Any]:
    """Choose the learning rate, train from all seeds and return what was measured."""
    start = time.perf_counter()
    net = jaxrnn.network(jaxrnn.lstm(HIDDEN[task], peephole=peephole), 1, 1)
    training, solves = TASKS[task](net, interval)
    solve = jax.jit(jax.vmap(solves))

    def trained(seeds: list[int], rates: Any) -> tuple[Any, Any, Any]:
        """Return which networks solve the task halfway and at the end, and their final losses."""
        states = stack([training.begin(seed) for seed in seeds])
        states, _ = training.advance_all(states, rates, steps // 2)
        halfway = solve(states.params)
        states, losses = training.advance_all(states, rates, steps // 2)
        last = losses[:, -max(1, steps // 40) :].mean(1)
        return np.array(halfway), np.array(solve(states.params)), np.array(last, float)

    _, solved, losses = trained(TRIALS * len(RATES), jnp.repeat(jnp.array(RATES), len(TRIALS)))
    counts = solved.reshape(len(RATES), -1).sum(1)
    middle = np.median(losses.reshape(len(RATES), -1), axis=1)
    best = min(range(len(RATES)), key=lambda at: (-counts[at], middle[at]))
    halfway, solved, losses = trained(seeds, jnp.full(len(seeds), RATES[best]))
    return {
        "learning_rate": RATES[best],
        "solved_in_trials": dict(zip(map(str, RATES), counts.tolist(), strict=True)),
        "solved_halfway": int(halfway.sum()),
        "solved": int(solved.sum()),
        "loss": [float(f"{each:.4g}") for each in losses],
        "parameters": sum(each.size for each in jax.tree.leaves(training.begin(0).params)),
        "seconds": round(time.perf_counter() - start, 1),
    }


def run(quick: bool) -> Outcome:
    seeds, steps = ([0, 1], 6) if quick else (list(range(12)), 4000)
    cases = {}
    for name, gates in CASES.items():
        runs = zip(*(held(*gates, seed) for seed in seeds), strict=True)
        cell, exact, sizes, rest = [np.stack(each) for each in runs]
        cases[name] = {
            "cell": cell[0, :DRAWN, SHOWN].round(5).tolist(),
            "equation": exact[0, :DRAWN, SHOWN].round(5).tolist(),
            "gradient": [
                [float(f"{value:.4g}") for value in each]
                for each in (sizes.min(0), np.median(sizes, axis=0), sizes.max(0))
            ],
            "largest_error": float(np.abs(cell - exact).max()),
            "largest_other_gradient": float(rest.max()),
        }
    timing: dict[str, Any] = {
        task: {
            kind: [
                learn(task, interval, peephole, steps, seeds)
                for interval in intervals[: 1 if quick else None]
            ]
            for kind, peephole in KINDS.items()
        }
        for task, intervals in INTERVALS.items()
    }
    numbers = {
        "cases": cases,
        "timing": timing,
        "intervals": INTERVALS,
        "hidden": HIDDEN,
        "training_steps": steps,
        "rates": RATES,
        "trials": TRIALS,
    }
    return Outcome(numbers, seeds)


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    rates = grid(numbers["rates"], numbers["training_steps"], len(numbers["trials"]))
    rows = [["case, or task and interval", "LSTM", "parameters", rates]]
    rows[0] += [
        "solved (95% interval)",
        "after half the steps",
        "largest error, or loss",
        "seconds",
    ]
    for name, case in numbers["cases"].items():
        error = _drawing.decades(case["largest_error"])
        rows.append([name, f"{UNITS} units, peepholes", "", "", "", "", error, ""])
    for task, kinds in numbers["timing"].items():
        for at, interval in enumerate(numbers["intervals"][task]):
            for kind, found in kinds.items():
                # A quick run has the first interval only.
                for each in found[at : at + 1]:
                    low, high = interval_of_share(each["solved"], len(seeds))
                    loss = each["loss"]
                    rows.append([
                        f"{task}, F = {interval}",
                        f"{units(numbers, task)}, {kind}",
                        str(each["parameters"]),
                        str(each["learning_rate"]),
                        f"{each['solved']} of {len(seeds)} ({low:.0%} to {high:.0%})",
                        str(each["solved_halfway"]),
                        f"{np.median(loss):.2g} ({min(loss):.2g} to {max(loss):.2g})",
                        f"{each['seconds']:.0f}",
                    ])  # fmt: skip
    return rows


def units(numbers: dict[str, Any], task: str) -> str:
    """Return the width of the networks of a task in words."""
    count = numbers["hidden"][task]
    return "one unit" if count == 1 else f"{count} units"


def interval_of_share(count: int, of: int) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson 1927)."""
    share, z = count / of, 1.96
    middle = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z / (1 + z**2 / of) * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def totals(numbers: dict[str, Any]) -> dict[str, int]:
    """Return how many trainings of all tasks and intervals solve their task, by kind of LSTM."""
    timing = numbers["timing"].values()
    return {k: sum(each["solved"] for kinds in timing for each in kinds[k]) for k in KINDS}


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    error = max(numbers["cases"][name]["largest_error"] for name in LIMITS)
    exact = error < 1e-6
    of = len(seeds) * sum(len(kinds["peepholes"]) for kinds in numbers["timing"].values())
    found = totals(numbers)
    (low, high), (other_low, other_high) = [interval_of_share(found[k], of) for k in KINDS]
    helps, hurts = low > other_high, high < other_low
    kept = "keeps and forgets exactly" if exact else "does not keep and forget exactly"
    effect = "help" if helps else "do harm" if hurts else "make no clear difference"
    kept_ko = "정확히 유지하고 잊습니다" if exact else "정확히 유지하거나 잊지 못합니다"
    effect_ko = "도움이 됩니다" if helps else "해가 됩니다" if hurts else "뚜렷한 차이가 없습니다"
    return Verdict(
        Holds.NO if not exact else Holds.YES if helps else Holds.PARTLY,
        f"at its limits the cell {kept}. In the timing tasks peepholes {effect}: {of} trainings with "
        f"them solve {found['peepholes']} tasks, as many without them {found['no peepholes']}.",
        f"한계에서 셀은 값을 {kept_ko}. 타이밍 과제에서 핍홀(peephole)은 {effect_ko}. "
        f"학습 {of}회 중 핍홀이 있으면 {found['peepholes']}회, 없으면 {found['no peepholes']}회 "
        "과제를 풀었습니다.",
    )


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, (kept, flow, *tasks) = _drawing.figure(4, height=2.9)
    cells, flows = [], []
    for (name, case), colour in zip(numbers["cases"].items(), _drawing.COLOURS, strict=False):
        time = np.arange(1, 1 + len(case["cell"]))
        kept.plot(time, case["cell"], color=colour)
        kept.plot(time, case["equation"], ".", color=colour, markersize=6)
        alpha, beta = CASES[name]
        label = f"{name.split(':')[0]}\n({alpha:g}, {beta:g})"
        cells.append((case["cell"][-1], label, colour))
        low, middle, high = np.maximum(case["gradient"], 1e-12)
        steps = np.arange(1, 1 + len(middle))
        flow.fill_between(steps, low, high, color=colour, alpha=0.25, linewidth=0)
        flow.plot(steps, middle, color=colour)
        flows.append((middle[-1], label, colour))
    kept.set(xlim=(1, DRAWN), ymargin=0.15)
    flow.set(xlim=(1, TIME), ylim=(1e-8, 1e3), yscale="log")
    _drawing.label_ends(kept, cells, gap=0.21)
    _drawing.label_ends(flow, flows, gap=0.21)
    title = "A cell with its gates (α, β) held (dots: equation)"
    _drawing.name_axes(kept, title, "step t", "cell $s_t$")
    label = r"size of $\partial s_t/\partial s_0$"
    _drawing.name_axes(flow, "What is left of a change of the first cell", "step t", label)
    for axes, (task, kinds) in zip(tasks, numbers["timing"].items(), strict=True):
        draw_solved(axes, numbers["intervals"][task], kinds, len(seeds))
        title = {"measure": "Measure an interval", "generate": "Generate spikes at an interval"}
        _drawing.name_axes(
            axes,
            f"{title[task]} ({units(numbers, task)})",
            "interval F, steps",
            "seeds that solve it",
        )
    return figure


def draw_solved(axes: Axes, intervals: list[int], kinds: dict[str, Any], of: int) -> None:
    """Draw the seeds that solve a task against the interval, with 95% intervals."""
    styles = zip((_drawing.BLUE, _drawing.PINK), ("o-", "s--"), (-0.06, 0.06), strict=True)
    for (kind, found), (colour, style, shift) in zip(kinds.items(), styles, strict=True):
        counts = np.array([each["solved"] for each in found])
        bounds = np.array([interval_of_share(count, of) for count in counts]).T * of
        places = np.arange(len(counts)) + shift
        bars = np.maximum(np.abs(bounds - counts), 0)
        axes.errorbar(
            places, counts, bars, fmt=style, color=colour, label=kind, capsize=3, elinewidth=1
        )
    axes.set_xticks(range(len(counts)), [str(each) for each in intervals[: len(counts)]])
    axes.set_ylim(-0.04 * of, 1.04 * of)
    axes.set_yticks(range(0, of + 1, max(1, of // 4)))
    axes.legend()
