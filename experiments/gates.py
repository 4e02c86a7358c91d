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

    python -m experiments gates      46 s on two CPU cores
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import colormaps

import jaxrnn
from experiments import Outcome, _drawing, _training, bullets

ROW = 5
# The symbols.
LEVELS = np.linspace(-1, 1, 4, dtype=np.float32)
# T, the first steps of which one shows the symbol, and the number of cues.
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
    rows = [["units", "networks that learnt the task", "units that keep the symbol", *FIGURE]]
    losses: dict[int, Any] = {}
    keeping: dict[int, Any] = {}
    drawn: dict[int, Any] = {}
    counts: dict[int, dict[str, int]] = {}
    for units in (1, 2) if quick else (1, 2, 4):
        net, every, each = train(units, steps, seeds)
        losses[units] = each[:, -max(1, steps // 100) :].mean(1)
        learnt = [index for index, loss in enumerate(losses[units]) if loss < LEARNT]
        networks = [jax.tree.map(lambda p, at=index: p[at], every) for index in learnt or [0]]
        drawn[units] = watch(net, networks[0], example()[0])
        found = [measure(watch(net, params, seen), seen) for params in networks[: len(learnt)]]
        # Means [5, units that keep the symbol] by network.
        means = [means[:, squared > KEEPS] for squared, means in found]
        keeping[units] = np.concatenate([np.zeros((len(FIGURE), 0)), *means], axis=1)
        right, of_seeds = as_in_figure(keeping[units]), f"{len(learnt)} of {len(seeds)}"
        pairs = zip(keeping[units], right, strict=True)
        cells = [f"{span(mean)}; {ok.sum()} as in the figure" for mean, ok in pairs]
        rows.append([f"{units}", of_seeds, f"{right.shape[1]}", *cells])
        stores = [as_in_figure(each)[:3].all(0) for each in means]
        tells = [as_in_figure(each)[3:].all(0) for each in means]
        counts[units] = {
            "learnt": len(learnt),
            "input and forget": sum(int(np.any(each)) for each in stores),
            "output": sum(int(np.any(each)) for each in tells),
            "all": sum(int((a & b).any()) for a, b in zip(stores, tells, strict=True)),
        }
    numbers = {
        "loss": {str(units): each.tolist() for units, each in losses.items()},
        "means_by_keeping_unit": {str(units): each.T.tolist() for units, each in keeping.items()},
        "means": list(FIGURE),
        "networks": {str(units): each for units, each in counts.items()},
        "training_steps": steps,
        "learning_rate": RATE,
    }
    return Outcome(rows, numbers, seeds, draw(drawn, keeping))


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    parts = [
        f"{plural(int(units))}: {each['learnt']} of {len(seeds)} networks learnt the task; among "
        f"these, input and forget gate behave as in the figure in {each['input and forget']}, the "
        f"output gate in {each['output']}, and all three gates of one unit in {each['all']}"
        for units, each in numbers["networks"].items()
    ]
    return (
        "Networks that learnt the task, and those in which a unit that keeps the symbol behaves as "
        f"in the figure:{bullets(parts)}"
    )


def span(values: Any) -> str:
    return f"{values.min():.2f} to {values.max():.2f}" if len(values) else "none"


def plural(units: int) -> str:
    return f"{units} unit{'s' * (units > 1)}"


def draw(drawn: Any, keeping: Any) -> Any:
    figure, (*reading, axes) = _drawing.figure(1, 12, 13, rows=3, height_ratios=[5, 7.5, 5])
    for panel, units in zip(reading, (1, 2), strict=True):
        draw_units(panel, drawn[units])
        title = f"A trained LSTM of {plural(units)}: gates open (o) or closed (-), cells by value"
        _drawing.name_axes(panel, title, "step", "")
    for place, up in enumerate(FIGURE.values()):
        low, high = (OPEN, 1) if up else (0, OPEN)
        axes.fill_between([place - 0.45, place + 0.45], low, high, color=_drawing.GREY, alpha=0.15)
        for shift, units, colour in zip((-0.3, 0, 0.3), keeping, _drawing.COLOURS, strict=False):
            means = keeping[units][place]
            x = place + shift + np.linspace(-0.08, 0.08, len(means))
            axes.plot(x, means, "o", color=colour, alpha=0.6, markersize=5)
            axes.text(place + shift, 1.04, plural(units), color=colour, ha="center", fontsize=9)
    axes.set(xlim=(-0.5, 4.5), ylim=(-0.02, 1.02))
    axes.set_xticks(range(len(FIGURE)), list(FIGURE))
    title = (
        "Units that keep the symbol, in networks that learnt the task; grey: as in the lecture\n"
    )
    _drawing.name_axes(axes, title, "", "gate, mean of 500 sequences")
    return figure


def draw_units(axes: Any, inside: dict[str, Any]) -> None:
    """Draw units as the lecture does: input gate below the cell, forget gate left, output above."""
    units = inside["cell"].shape[-1]
    names = ["input gate", "forget gate and cell", "output gate"]
    largest = np.abs(inside["cell"]).max((0, 1))
    rows = [f"{name}{f', unit {u + 1}' * (units > 1)}" for u in range(units) for name in names]
    axes.set(xlim=(0.3, STEPS + 0.7), ylim=(-0.7, len(rows) + 2.3), xticks=range(1, STEPS + 1))
    axes.set_yticks(range(len(rows) + 2), ["symbol shown", *rows, "output"])
    for step, (shown, keep, tell) in enumerate(np.asarray(example()[0])[:, 0]):
        x = step + 1
        if keep or tell:
            colour, flag = (_drawing.RED, "keep") if keep else (_drawing.GREEN, "tell")
            axes.axvspan(x - 0.28, x + 0.28, color=colour, alpha=0.15, linewidth=0)
            axes.text(x, len(rows) + 1.7, flag, color=colour, ha="center")
        for y, number in ((0, shown), (len(rows) + 1, inside["y"][step, 0])):
            axes.text(x, y, f"{float(number):z.2f}", ha="center", va="center", fontsize=9)
        for unit in range(units):
            i, f, o, cell = (inside[name][step, 0, unit] for name in ("i", "f", "o", "cell"))
            y = 3 * unit + 2
            shade = colormaps["PuOr"](0.5 + 0.5 * cell / largest[unit])
            axes.plot(x, y, "o", color=shade, markeredgecolor=_drawing.BLACK, markersize=17)
            for place, gate in (((x, y - 1), i), ((x - 0.5, y), f), ((x, y + 1), o)):
                mark = {"marker": "o", "mfc": "white"} if gate > OPEN else {"marker": "_"}
                axes.plot(*place, color=_drawing.BLUE, markersize=9, mew=2, **mark)
