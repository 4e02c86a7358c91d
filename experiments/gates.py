"""Trained gates let a symbol in, keep it and show it on cue, as in the lecture's figure of open gates.

    s^t = f^t s^{t-1} + i^t g^t,    h^t = o^t tanh(s^t),    y^t = h^t W_out + b_out

Each step shows one of the symbols -1, -1/3, 1/3, 1. The flag "keep" is set at one of the first four
steps, the flag "tell" at two later ones. At "tell" the output has to be the symbol shown at "keep",
at all other steps 0 (squared error). LSTMs of one, two and four units learn the task from ten seeds.

The lecture's figure says five things about a unit. Each is measured as the mean of a gate over 500
sequences, where open means above 0.5: input gate open at the symbol and closed after it, forget gate
open after it, output gate open at the cues and closed between them. They are measured for the units
that keep the symbol: those whose cell, after the symbol, up to the last cue and not at a cue,
correlates with it at r^2 > 0.9. A network has learnt the task when the error of the last hundredth of
its training is below 0.01 per cue (always answering 0 gives 0.556).

    python -m experiments gates      about 1 min on two CPU cores
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxrnn
from experiments import Holds, Outcome, Verdict, _drawing, _training

ROW = 5
# The symbols.
LEVELS = np.linspace(-1, 1, 4, dtype=np.float32)
# T, the number of first steps one of which shows the symbol, and the number of cues.
STEPS = 16
EARLY = 4
CUES = 2
BATCH = 32
RATE = 1e-2
# Sequences over which gates are averaged.
WATCHED = 500
# Largest error of a network that has learnt the task, smallest r^2 of a unit that keeps the symbol, and
# the value above which a gate is open.
LEARNT = 0.01
KEEPS = 0.9
OPEN = 0.5
# The five means, and whether the gate is open there in the lecture's figure.
FIGURE = {
    "input gate at the symbol": True,
    "input gate after it": False,
    "forget gate after it": True,
    "output gate at the cues": True,
    "output gate between": False,
}


def task(key: Any, rows: int = BATCH) -> tuple[Any, Any]:
    """Return inputs [T, B, 3] (symbol, keep, tell) and targets [T, B]."""
    keys = jax.random.split(key, 3)
    time = jnp.arange(STEPS)[:, None]
    shown = jnp.asarray(LEVELS)[jax.random.randint(keys[0], (STEPS, rows), 0, len(LEVELS))]
    keep = time == jax.random.randint(keys[1], (rows,), 0, EARLY)[None]
    lots = jnp.where(time >= EARLY, jax.random.uniform(keys[2], (STEPS, rows)), -1)
    return sequences(shown, keep, lots >= jnp.sort(lots, axis=0)[-CUES][None])


def example() -> tuple[Any, Any]:
    """Return a sequence for the picture: the symbol at step 2, cues at steps 8 and 13."""
    shown, time = task(jax.random.key(20_003), 1)[0][..., 0], jnp.arange(STEPS)[:, None]
    return sequences(shown, time == 1, (time == 7) | (time == 12))


def sequences(shown: Any, keep: Any, tell: Any) -> tuple[Any, Any]:
    symbol = jnp.where(keep, shown, 0).sum(0, keepdims=True)
    flags = [flag.astype(shown.dtype) for flag in (keep, tell)]
    return jnp.stack([shown, *flags], axis=-1), jnp.where(tell, symbol, 0)


def train(units: int, steps: int, seeds: list[int]) -> tuple[Any, Any, Any]:
    """Return the network, its parameters for every seed, and the loss of each step [seeds, steps]."""
    net = jaxrnn.network(jaxrnn.lstm(units), 3, 1)

    def loss(params: Any, batch: Any) -> Any:
        inputs, target = batch
        _, outputs = net.apply(params, inputs)
        return optax.squared_error(outputs[..., 0], target).sum(0).mean() / CUES

    return net, *_training.train(net, loss, task, steps, seeds, rate=RATE)


@functools.partial(jax.jit, static_argnums=0)
def watch(net: Any, params: Any, inputs: Any) -> dict[str, Any]:
    """Return gates and cells [T, B, H] by name, and the outputs "y" [T, B]."""
    names = ["i", "f", "o", "cell"]
    _, hidden, inside = jaxrnn.record(net.cell, params.cell, inputs, names=names)
    return inside | {"y": net.output(params, hidden)[..., 0]}


def measure(inside: dict[str, Any], inputs: Any) -> tuple[Any, Any]:
    """Return r^2 of each unit's cell with the symbol to keep [H], and the means of FIGURE [5, H]."""
    inside, inputs = jax.device_get((inside, inputs))
    shown = inputs[..., 0]
    keep = inputs[..., 1] > 0
    tell = inputs[..., 2] > 0
    after = np.maximum.accumulate(keep, axis=0) & ~keep
    # Up to the last cue.
    after &= np.maximum.accumulate(tell[::-1], axis=0)[::-1]
    between = after & ~tell
    places = (("i", keep), ("i", after), ("f", after), ("o", tell), ("o", between))
    means = np.stack([inside[gate][where].mean(0) for gate, where in places])
    symbol = np.broadcast_to((shown * keep).sum(0), keep.shape)[between]
    r = [np.corrcoef(cell, symbol)[0, 1] for cell in inside["cell"][between].T]
    return np.square(r), means


def as_in_figure(means: Any) -> Any:
    """Return which of the means [5, N] are on the same side of OPEN as in the lecture's figure."""
    return (means > OPEN) == np.array(list(FIGURE.values()))[:, None]


def run(quick: bool) -> Outcome:
    seeds, steps = ([0, 1], 20) if quick else (list(range(10)), 5000)
    seen, _ = task(jax.random.key(10_000), WATCHED)
    losses: dict[str, Any] = {}
    keeping: dict[str, Any] = {}
    examples: dict[str, Any] = {}
    counts: dict[str, dict[str, int]] = {}
    for units in (1, 2, 4):
        net, every, each = train(units, steps, seeds)
        last = each[:, -max(1, steps // 100) :].mean(1)
        learnt = [index for index, loss in enumerate(last) if loss < LEARNT]
        networks = [jax.tree.map(lambda p, at=index: p[at], every) for index in learnt or [0]]
        shown = jax.device_get(watch(net, networks[0], example()[0]))
        found = [measure(watch(net, params, seen), seen) for params in networks[: len(learnt)]]
        # Means [5, units that keep the symbol] by network.
        means = [means[:, squared > KEEPS] for squared, means in found]
        stores = [as_in_figure(each)[:3].all(0) for each in means]
        tells = [as_in_figure(each)[3:].all(0) for each in means]
        key = str(units)
        losses[key] = last.tolist()
        keeping[key] = np.concatenate([np.zeros((len(FIGURE), 0)), *means], axis=1).T.tolist()
        examples[key] = {name: value[:, 0].round(4).tolist() for name, value in shown.items()}
        counts[key] = {
            "learnt": len(learnt),
            "input and forget": sum(int(np.any(each)) for each in stores),
            "output": sum(int(np.any(each)) for each in tells),
            "all": sum(int((a & b).any()) for a, b in zip(stores, tells, strict=True)),
        }
    numbers = {
        "loss": losses,
        "means_by_keeping_unit": keeping,
        "means": list(FIGURE),
        "networks": counts,
        "example_inputs": np.asarray(example()[0])[:, 0].round(4).tolist(),
        "example": examples,
        "training_steps": steps,
        "learning_rate": RATE,
    }
    return Outcome(numbers, seeds)


def means_of(numbers: dict[str, Any], units: str) -> Any:
    """Return the means of FIGURE of the units that keep the symbol [5, N]."""
    return np.reshape(numbers["means_by_keeping_unit"][units], (-1, len(FIGURE))).T


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    head = ["units", "networks that learnt the task", "of these, with a unit as in the figure"]
    rows = [[*head, "units that keep the symbol", *FIGURE]]
    for units, counts in numbers["networks"].items():
        means = means_of(numbers, units)
        pairs = zip(means, as_in_figure(means), strict=True)
        cells = [f"{span(mean)}; {right.sum()} as in the figure" for mean, right in pairs]
        learnt = f"{counts['learnt']} of {len(seeds)}"
        rows.append([units, learnt, str(counts["all"]), str(means.shape[1]), *cells])
    return rows


def span(values: Any) -> str:
    return f"{values.min():.2f} to {values.max():.2f}" if len(values) else "none"


def plural(units: str) -> str:
    return f"{units} unit{'s' * (units != '1')}"


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    networks = numbers["networks"]
    single, several = networks["1"], networks["4"]
    right, learnt = (sum(each[what] for each in networks.values()) for what in ("all", "learnt"))
    # Whether the networks of four units do worse.
    fewer = several["all"] < several["learnt"]
    holds = Holds.NO if not right else Holds.YES if right >= 0.9 * learnt else Holds.PARTLY
    return Verdict(
        holds,
        f"of {single['learnt']} LSTMs of one unit that learnt the task, {single['all']} open and "
        f"close their gates as in the figure, {'but' if fewer else 'and'} of {several['learnt']} LSTMs "
        f"of four units {'only ' * fewer}{several['all']} have such a unit.",
        f"과제를 학습한 유닛이 하나인 LSTM {single['learnt']}개 중 {single['all']}개는 그림처럼 "
        f"게이트를 {'열고 닫지만' if fewer else '열고 닫으며'}, 유닛이 넷인 LSTM {several['learnt']}개 "
        f"중에서 그런 유닛이 있는 것은 {several['all']}개{'뿐' * fewer}입니다.",
    )


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, panels = _drawing.figure(3, height=3.5, height_ratios=[7, 10.5, 9])
    *reading, axes = panels
    for panel, units in zip(reading, (1, 2), strict=True):
        draw_units(panel, numbers["example_inputs"], numbers["example"][str(units)])
        name = f"{plural(str(units))}: gates open (o), closed (–)"
        _drawing.name_axes(panel, name, "step", "")
    kinds = zip(numbers["networks"], "os^", (0.22, 0, -0.22), _drawing.COLOURS[2:], strict=True)
    for units, marker, shift, colour in kinds:
        means = means_of(numbers, units)
        places = np.broadcast_to(shift - np.arange(len(FIGURE))[:, None], means.shape)
        style = {"color": colour, "alpha": 0.7, "markersize": 6, "label": plural(units)}
        axes.plot(means.ravel(), places.ravel(), marker, **style)
    for place, up in enumerate(FIGURE.values()):
        low, high = (OPEN, 1.02) if up else (-0.02, OPEN)
        style = {"color": _drawing.INK, "alpha": 0.2, "linewidth": 0}
        bar = axes.fill_between([low, high], -place - 0.42, -place + 0.42, **style)
    bar.set_label("lecture")
    axes.set_yticks(-np.arange(len(FIGURE)), list(FIGURE))
    axes.set(xlim=(-0.03, 1.03), ylim=(0.5 - len(FIGURE), 0.5))
    axes.legend(ncols=4, loc="upper right", bbox_to_anchor=(1.02, -0.2), columnspacing=1)
    _drawing.name_axes(axes, "Units that keep the symbol", "gate, mean of 500 sequences", "")
    return figure


def draw_units(axes: Any, inputs: Any, inside: dict[str, Any]) -> None:
    """Draw an example: each unit as its gates, open or closed, and its cell; values are colours."""
    cells = np.array(inside["cell"])
    units, top = cells.shape[1], 4 * cells.shape[1] + 1
    shown, keep, tell = np.array(inputs).T
    steps = np.arange(1, len(shown) + 1)
    names = ["input gate", "forget gate", "cell", "output gate"]
    rows = [f"{f'unit {u + 1}: ' * (units > 1)}{name}" for u in range(units) for name in names]
    values = [shown, *(cells / np.abs(cells).max(0)).T, np.array(inside["y"])]
    for y, row in zip([0, *range(3, top, 4), top], values, strict=True):
        colours = [_drawing.BLUE if value > 0 else _drawing.ORANGE for value in row]
        # The frame shows that a value is near 0; the fill shows the value.
        axes.scatter(steps, np.full(len(steps), y), 90, facecolors="none", edgecolors=_drawing.INK,
                     marker="s", linewidths=0.5)  # fmt: skip
        axes.scatter(steps, np.full(len(steps), y), 90, c=colours, marker="s", linewidths=0,
                     alpha=np.clip(np.abs(row), 0, 1))  # fmt: skip
    for unit in range(units):
        for y, gate in enumerate(("i", "f", "", "o"), 4 * unit + 1):
            if gate:
                opened = np.array(inside[gate])[:, unit] > OPEN
                for which, marker in ((opened, "o"), (~opened, "_")):
                    style = {"color": _drawing.INK, "mfc": "none", "mew": 1.7, "markersize": 6}
                    axes.plot(steps[which], np.full(which.sum(), y), marker, **style)
    for flags, name, colour in ((keep, "keep", _drawing.RED), (tell, "tell", _drawing.GREEN)):
        for x in steps[flags > 0]:
            axes.axvspan(x - 0.5, x + 0.5, color=colour, alpha=0.15, linewidth=0, zorder=0)
            axes.text(x, top + 0.75, name, color=colour, ha="center")
    axes.set(xlim=(0.4, len(shown) + 0.6), ylim=(-0.7, top + 1.6), xticks=steps)
    axes.set_yticks(range(top + 1), ["symbol shown", *rows, "output"])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
