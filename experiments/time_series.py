"""Recurrent networks forecast real-valued series, one step ahead and many, against simple baselines.

    x^{t+1} = network(x^1 .. x^t),    and further ahead from its own outputs

Three series are made here. *Oscillator*: x' = x + v + dt mu (1 - min(x^2, 4)) v - dt^2 x + noise with
v the last change (van der Pol). *Price*: x' = 0.99 x + noise, where the last value says nearly
everything. *Mackey-Glass*: dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x, chaotic, without
noise, sampled every 6 units of time.

LSTM and GRU learn to forecast one step ahead by squared error. The baselines are the last value and a
linear autoregression by least squares, whose order is chosen on the last quarter of the training
part. All forecast the validation part, which comes later, from 100 known values. The error is the
root mean square, in standard deviations of the training part. The noise floor is the error of the
best possible forecast: the mean of 200 continuations by the equation of the series.

    python -m experiments time_series      113 s on two CPU cores
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from experiments import Outcome, _drawing, _training, bullets

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
COLOURS = (_drawing.BLUE, _drawing.RED, _drawing.GREEN, _drawing.PINK, _drawing.GREY)
MODELS = {"lstm": jaxrnn.lstm(HIDDEN), "gru": jaxrnn.gru(HIDDEN)}


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


def learn(net: Any, xs: Any, known: Any, steps: int, seeds: list[int]) -> Any:
    """Return forecasts [seeds, AHEAD, B] after known [T, B] by networks trained on windows of xs [T]."""
    xs, known = (jnp.asarray(values, jnp.float32)[..., None] for values in (xs, known))

    def task(key: Any) -> Any:
        starts = jax.random.randint(key, (BATCH,), 0, len(xs) - LENGTH)
        return xs[jnp.arange(LENGTH + 1)[:, None] + starts[None]]

    def loss(params: Any, window: Any) -> Any:
        _, outputs = net.apply(params, window[:-1])
        return optax.squared_error(outputs, window[1:])[SETTLE:].mean()

    every, _ = _training.train(net, loss, task, steps, seeds)
    ahead = jax.jit(lambda params: net.forecast(params, known, AHEAD)[..., 0])
    return np.stack([ahead(jax.tree.map(lambda p, n=n: p[n], every)) for n in range(len(seeds))])


def compare(name: str, steps: int, seeds: list[int]) -> tuple[Any, dict[str, Any]]:
    """Return the true values [KNOWN + AHEAD, B] and forecasts [runs, AHEAD, B] by model, scaled."""
    raw = series(name)
    mean, scale = raw[:TRAIN].mean(), raw[:TRAIN].std()
    xs = (raw - mean) / scale
    windows = np.lib.stride_tricks.sliding_window_view(xs[TRAIN:], KNOWN + AHEAD)[::EVERY].T
    known = windows[:KNOWN]
    made = {}
    for model, cell in MODELS.items():
        made[model] = learn(jaxrnn.network(cell, 1, 1), xs[:TRAIN], known, steps, seeds)
    weights = autoregression(xs[:TRAIN], best_order(xs[:TRAIN]))
    made[f"linear, order {len(weights) - 1}"] = linear(weights, known, AHEAD)[None]
    made["last value"] = np.repeat(known[-1:], AHEAD, axis=0)[None]
    if equation := SERIES[name]:
        made[FLOOR] = (best_forecast(*equation, known * scale + mean)[None] - mean) / scale
    return windows, made


def run(quick: bool) -> Outcome:
    seeds, steps = ([0, 1], 3) if quick else ([0, 1, 2], 3000)
    found = {name: compare(name, steps, seeds) for name in list(SERIES)[: 1 if quick else None]}
    rows: list[list[str]] = [["series", "model", *(f"{n} ahead" for n in SHOWN)]]
    errors: dict[str, Any] = {}
    for name, (windows, made) in found.items():
        truth = windows[KNOWN:]
        errors[name] = {m: np.sqrt(((each - truth) ** 2).mean(2)) for m, each in made.items()}
        for model, error in errors[name].items():
            rows.append([name, model, *(span(error[:, n - 1]) for n in SHOWN)])
    plain = {n: {m: e.round(5).tolist() for m, e in each.items()} for n, each in errors.items()}
    numbers = {"error_by_horizon": plain, "training_steps": steps, "hidden": HIDDEN}
    return Outcome(rows, numbers, seeds, draw(found, errors))


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    parts = []
    for name, errors in numbers["error_by_horizon"].items():
        middle = {model: np.median(runs, axis=0) for model, runs in errors.items()}
        simple = [error for model, error in middle.items() if model not in (*MODELS, FLOOR)]
        below = np.append(middle["lstm"] < np.min(simple, axis=0), False).argmin()
        values = [
            f"{model} {error[SHOWN[0] - 1]:.3f} / {error[SHOWN[-1] - 1]:.3f}"
            for model, error in middle.items()
        ]
        parts.append(
            f"{name}: the lstm is better than both baselines up to {below} steps ahead: "
            f"{', '.join(values)}"
            if below
            else f"{name}: the lstm is never better than both baselines: {', '.join(values)}"
        )
    return (
        f"RMS error {SHOWN[0]} / {SHOWN[-1]} steps ahead, in standard deviations of the series, "
        f"median of {len(seeds)} seeds:{bullets(parts)}"
    )


def span(runs: Any) -> str:
    several = f" ({runs.min():.3f} to {runs.max():.3f})" if len(runs) > 1 else ""
    return f"{np.median(runs):.3f}{several}"


def draw(found: Any, errors: Any) -> Any:
    rows, time, unit = len(found), np.arange(1, AHEAD + 1), "standard deviations"
    figure, panels = _drawing.figure(2, 13, 1 + 3.4 * rows, rows=rows, squeeze=False)
    for (left, right), (name, (windows, made)) in zip(panels, found.items(), strict=True):
        truth = windows[KNOWN - 40 :, 0]
        left.plot(range(-39, AHEAD + 1), truth, color=_drawing.BLACK, linewidth=3)
        ends, lines = [(truth[-1], "truth", _drawing.BLACK)], []
        for (model, forecast), colour in zip(made.items(), COLOURS, strict=False):
            style = "--" if model == FLOOR else "-"
            left.plot(time, forecast[0, :, 0], color=colour, linestyle=style)
            middle = _drawing.band(right, time, errors[name][model], colour, linestyle=style)
            ends.append((forecast[0, -1, 0], model.replace(FLOOR, "best forecast"), colour))
            lines.append((middle[-1], model, colour))
        left.set(xlim=(-39, AHEAD))
        right.set(xlim=(1, AHEAD), ylim=(0, None))
        _drawing.label_ends(left, ends)
        _drawing.label_ends(right, lines)
        _drawing.name_axes(left, f"{name}: one forecast", "steps ahead", f"value, {unit}")
        _drawing.name_axes(right, f"{name}: error", "steps ahead", f"RMS error, {unit}")
    return figure
