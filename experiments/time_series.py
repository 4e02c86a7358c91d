"""LSTM and GRU forecast real-valued series better than simple baselines, one step ahead and many.

    x^{t+1} = network(x^1 .. x^t),    and further ahead from its own outputs

Three series are made here. *Oscillator*: x' = x + v + dt mu (1 - min(x^2, 4)) v - dt^2 x + noise with
v the last change (van der Pol). *Price*: x' = 0.99 x + noise, where the last value says nearly
everything. *Mackey-Glass*: dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x, chaotic, without
noise, sampled every 6 units of time.

LSTM and GRU learn to forecast one step ahead by squared error. The learning rate of each on each series
is the one of RATES with the smallest error one step ahead on the last quarter of the training part,
after a training on the quarters before, from a seed that is not among those measured. The baselines are
the last value and a linear autoregression by least squares, whose order is chosen on the same last
quarter. All forecast the validation part, which comes later, from 100 known values. The error is the
root mean square, in standard deviations of the training part. The noise floor is the error of the best
possible forecast: the mean of 200 continuations by the equation of the series.

    python -m experiments time_series      6 min on one CPU core
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxrnn
from experiments import Holds, Outcome, Verdict, _drawing, _training, listed

ROW = 16
TRAIN = 4000
VALIDATION = 4000
# A forecast knows this many values and goes this many steps ahead; forecasts start every EVERY steps.
KNOWN = 100
AHEAD = 50
EVERY = 5
HIDDEN = 32
BATCH = 32
# Steps of a training window, and the first of them, which the loss leaves out.
LENGTH = 60
SETTLE = 10
# Orders of the autoregression.
ORDERS = (1, 2, 4, 8, 16, 32, 64)
# Continuations whose mean is the best forecast.
PATHS = 200
FLOOR = "noise floor"
# Horizons of the table.
SHOWN = (1, 10, 50)
KOREAN = {"oscillator": "진동자", "price": "가격", "Mackey-Glass": "Mackey-Glass"}
MODELS = {"lstm": jaxrnn.lstm(HIDDEN), "gru": jaxrnn.gru(HIDDEN)}
# The learning rates to choose from, and the seed of the choice.
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNING_SEED = 100
# Colours and line styles of the other forecasts.
LINEAR = "linear"
LAST = "last value"
STYLES = {
    "lstm": (_drawing.BLUE, "-"),
    "gru": (_drawing.GREEN, (0, (4, 1.5))),
    LINEAR: (_drawing.ORANGE, "-."),
    LAST: (_drawing.PINK, ":"),
    FLOOR: (_drawing.INK, "--"),
}


def oscillator(now: Any, before: Any) -> Any:
    """Return the next value without noise: mu = 2, dt = 0.25, a period of about 19 steps."""
    change = now - before
    return now + change + 0.5 * (1 - np.minimum(now**2, 4)) * change - 0.0625 * now


# The equation and the standard deviation of the noise.
SERIES: dict[str, tuple[Any, float] | None] = {
    "oscillator": (oscillator, 0.05),
    "price": (lambda now, before: 0.99 * now, 0.1),
    "Mackey-Glass": None,
}


def continuation(step: Any, noise: float, before: Any, now: Any, steps: int, rng: Any) -> Any:
    """Return the continuation [steps, ...] of two values [...] by an equation with noise."""
    made = []
    for _ in range(steps):
        before, now = now, step(now, before) + noise * rng.normal(size=now.shape)
        made.append(now)
    return np.stack(made)


def mackey_glass(count: int) -> Any:
    """Return [count] values, by Euler steps of 0.1."""
    xs = [1.2] * 171
    for _ in range(60 * count):
        xs.append(xs[-1] + 0.1 * (0.2 * xs[-171] / (1 + xs[-171] ** 10) - 0.1 * xs[-1]))
    return np.array(xs[-60 * count :: 60])


def series(name: str) -> Any:
    """Return [TRAIN + VALIDATION] values, after 500 that are left out."""
    count = 500 + TRAIN + VALIDATION
    known = SERIES[name]
    start = np.zeros(1)
    if known is None:
        return mackey_glass(count)[500:]
    return continuation(*known, start, start, count, np.random.default_rng(0))[500:, 0]


def best_forecast(step: Any, noise: float, known: Any) -> Any:
    """Return the mean [AHEAD, B] of the continuations of known [T, B] by an equation with noise."""
    start = np.broadcast_to(known[-2:, None], (2, PATHS, known.shape[1]))
    return continuation(step, noise, *start, AHEAD, np.random.default_rng(1)).mean(1)


def lags(xs: Any, order: int) -> Any:
    """Return the `order` values before each of xs[order:], latest first, and a one.

    The result is [T - order, order + 1].
    """
    columns = [xs[order - lag : len(xs) - lag] for lag in range(1, order + 1)]
    return np.stack([*columns, np.ones(len(xs) - order)], axis=1)


def autoregression(xs: Any, order: int) -> Any:
    """Return the least-squares weights of `lags`."""
    return np.linalg.lstsq(lags(xs, order), xs[order:], rcond=None)[0]


def best_order(xs: Any) -> int:
    """Return the order that fits the last quarter best, with weights from the quarters before."""
    cut, errors = len(xs) * 3 // 4, {}
    for order in ORDERS:
        weights, last = autoregression(xs[:cut], order), xs[cut - order :]
        errors[order] = ((lags(last, order) @ weights - last[order:]) ** 2).mean()
    return min(errors, key=errors.__getitem__)


def linear(weights: Any, known: Any, ahead: int) -> Any:
    """Return the forecast [ahead, B] of the autoregression after known [T, B]."""
    xs, order = list(known), len(weights) - 1
    for _ in range(ahead):
        xs.append(np.tensordot(weights[:-1], xs[: -order - 1 : -1], axes=1) + weights[-1])
    return np.stack(xs[-ahead:])


def learn(net: Any, xs: Any, steps: int, seeds: list[int], rate: float) -> Any:
    """Return the parameters [seeds, ...] of networks trained on windows of xs [T, 1]."""

    def task(key: Any) -> Any:
        starts = jax.random.randint(key, (BATCH,), 0, len(xs) - LENGTH)
        return xs[jnp.arange(LENGTH + 1)[:, None] + starts[None]]

    def loss(params: Any, window: Any) -> Any:
        _, outputs = net.apply(params, window[:-1])
        return optax.squared_error(outputs, window[1:])[SETTLE:].mean()

    return _training.train(net, loss, task, steps, seeds, rate)[0]


def tuned_rate(net: Any, xs: Any, steps: int, rates: tuple[float, ...]) -> float:
    """Return the learning rate with the smallest error on the last quarter of xs [T, 1]."""
    cut, errors = len(xs) * 3 // 4, []
    for rate in rates:
        params = learn(net, xs[:cut], steps, [TUNING_SEED], rate)
        _, outputs = net.apply(jax.tree.map(lambda p: p[0], params), xs[cut - SETTLE : -1, None])
        errors.append(float(((outputs[SETTLE:, 0] - xs[cut + 1 :]) ** 2).mean()))
    return _training.best_rate(rates, errors)


def forecast(net: Any, every: Any, known: Any, seeds: list[int]) -> Any:
    """Return forecasts [seeds, AHEAD, B] after known [T, B]."""
    known = jnp.asarray(known, jnp.float32)[..., None]
    ahead = jax.jit(lambda params: net.forecast(params, known, AHEAD)[..., 0])
    return np.stack([ahead(jax.tree.map(lambda p, n=n: p[n], every)) for n in range(len(seeds))])


def compare(name: str, steps: int, seeds: list[int], rates: tuple[float, ...]) -> dict[str, Any]:
    """Return an example and the errors [runs, AHEAD] of all models, and the costs of the networks."""
    raw = series(name)
    mean, scale = raw[:TRAIN].mean(), raw[:TRAIN].std()
    xs = (raw - mean) / scale
    windows = np.lib.stride_tricks.sliding_window_view(xs[TRAIN:], KNOWN + AHEAD)[::EVERY].T
    known, truth = windows[:KNOWN], windows[KNOWN:]
    weights = autoregression(xs[:TRAIN], best_order(xs[:TRAIN]))
    made, costs = {}, {}
    for model, cell in MODELS.items():
        net = jaxrnn.network(cell, 1, 1)
        learnt = jnp.asarray(xs[:TRAIN, None], jnp.float32)
        rate = tuned_rate(net, learnt, steps, rates) if len(rates) > 1 else rates[0]
        start = time.perf_counter()
        every = learn(net, learnt, steps, seeds, rate)
        costs[model] = {
            "learning_rate": rate,
            "parameters": sum(p[0].size for p in jax.tree.leaves(every)),
            "seconds_per_seed": round((time.perf_counter() - start) / len(seeds), 2),
        }
        made[model] = forecast(net, every, known, seeds)
    made[LINEAR] = linear(weights, known, AHEAD)[None]
    costs[LINEAR] = {"order": len(weights) - 1, "parameters": len(weights)}
    made[LAST] = np.repeat(known[-1:], AHEAD, axis=0)[None]
    if equation := SERIES[name]:
        made[FLOOR] = (best_forecast(*equation, known * scale + mean)[None] - mean) / scale
    errors = {model: np.sqrt(((each - truth) ** 2).mean(2)) for model, each in made.items()}
    return {
        "error_by_horizon": {model: each.round(4).tolist() for model, each in errors.items()},
        "costs": costs,
        "example": {
            "truth": windows[KNOWN - 40 :, 0].round(4).tolist(),
            **{model: each[0, :, 0].round(4).tolist() for model, each in made.items()},
        },
    }


def run(quick: bool) -> Outcome:
    seeds, steps, rates = ([0, 1], 3, RATES[:1]) if quick else ([0, 1, 2, 3, 4], 3000, RATES)
    names = list(SERIES)[: 1 if quick else None]
    numbers = {
        "series": {name: compare(name, steps, seeds, rates) for name in names},
        "training_steps": steps,
        "hidden": HIDDEN,
        "rates": rates,
    }
    return Outcome(numbers, seeds)


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    heads = [f"error, {n} step{'s' * (n > 1)} ahead" for n in SHOWN]
    rates = _training.grid(numbers["rates"], numbers["training_steps"])
    rows = [["series", "model", rates, "parameters", "seconds per seed", *heads]]
    for name, found in numbers["series"].items():
        for model, error in found["error_by_horizon"].items():
            costs = found["costs"].get(model, {})
            shown = f"{model}, order {costs['order']}" if model == LINEAR else model
            rate = f"{costs['learning_rate']:g}" if "learning_rate" in costs else ""
            paid = [str(costs.get(what, "")) for what in ("parameters", "seconds_per_seed")]
            values = [span(np.array(error)[:, n - 1]) for n in SHOWN]
            rows.append([name, shown, rate, *paid, *values])
    return rows


def span(runs: Any) -> str:
    several = f" ({runs.min():.3f} to {runs.max():.3f})" if len(runs) > 1 else ""
    return f"{np.median(runs):.3f}{several}"


def better(found: dict[str, Any], model: str) -> int:
    """Return the number of steps ahead up to which the model is better than both baselines."""
    middle = {name: np.median(runs, axis=0) for name, runs in found["error_by_horizon"].items()}
    below = middle[model] < np.minimum(middle[LINEAR], middle[LAST])
    return int(np.append(below, False).argmin())


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    # Both networks have to be better.
    steps = {
        name: min(better(found, model) for model in MODELS)
        for name, found in numbers["series"].items()
    }
    held = [count for count in steps.values() if count]
    holds = Holds.YES if min(steps.values()) == AHEAD else Holds.PARTLY if held else Holds.NO
    (first, count), *others = steps.items()
    english = [f"up to {count} steps ahead on {spelt(first)}"]
    english += [f"{count} on {spelt(name)}" for name, count in others]
    korean = [f"{KOREAN[name]}에서 {count}스텝" for name, count in steps.items()]
    return Verdict(
        holds,
        f"LSTM and GRU are better than both baselines {listed(english)}.",
        f"LSTM과 GRU가 두 기준 예측보다 정확한 것은 {', '.join(korean)} 앞까지입니다.",
    )


def spelt(name: str) -> str:
    """Return the name of a series within a sentence."""
    return name if name[0].isupper() else f"the {name}"


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    ahead, unit = np.arange(1, AHEAD + 1), "standard deviations"
    figure, panels = _drawing.figure(1 + len(numbers["series"]), height=3)
    for axes, (name, found) in zip(panels[1:], numbers["series"].items(), strict=True):
        ends = []
        for model, error in found["error_by_horizon"].items():
            colour, style = STYLES[model]
            middle = _drawing.band(axes, ahead, error, colour, linestyle=style)
            ends.append((middle[-1], model, colour))
        axes.set(xlim=(1, AHEAD), ylim=(0, None))
        _drawing.label_ends(axes, ends, gap=0.1)
        _drawing.name_axes(axes, f"Error on {spelt(name)}", "steps ahead", f"error, {unit}")
    axes, (name, found) = panels[0], list(numbers["series"].items())[-1]
    made = dict(found["example"])
    truth = made.pop("truth")
    axes.plot(
        range(AHEAD - len(truth) + 1, AHEAD + 1), truth, color=_drawing.INK, linewidth=4, alpha=0.5
    )
    ends = [(truth[-1], "truth", _drawing.INK)]
    for model, values in made.items():
        colour, style = STYLES[model]
        axes.plot(ahead, values, color=colour, linestyle=style)
        ends.append((values[-1], model, colour))
    axes.set(xlim=(AHEAD - len(truth) + 1, AHEAD))
    _drawing.label_ends(axes, ends, gap=0.1)
    _drawing.name_axes(axes, f"One forecast of {spelt(name)}", "steps ahead", f"value, {unit}")
    return figure
