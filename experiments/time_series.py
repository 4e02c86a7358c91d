"""Recurrent networks forecast real-valued series, one step ahead and many, against simple baselines.

    x^{t+1} = network(x^1 .. x^t),    and further ahead from its own outputs

Three series, made here. *Oscillator*: x' = x + v + dt mu (1 - min(x^2, 4)) v - dt^2 x + noise with v the
last change (van der Pol). *Price*: x' = 0.99 x + noise, where the last value says nearly all. *Mackey-
Glass*: dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x, chaotic, no noise, taken every 6 units.

LSTM and GRU learn one step ahead by squared error. Baselines: the last value, and a linear
autoregression by least squares, its order chosen by the last quarter of the training part. All forecast
the later validation part from 100 known values. The error is the root mean square, in standard
deviations of the training part; the noise floor that of the best forecast there is, the mean of 200
continuations by the series' own equation.

    python -m experiments time_series      113 s on two CPU cores

On 2026-11-24: RMS error 1 / 50 steps ahead, in standard deviations of the series, median of 3 seeds.
oscillator, lstm below both baselines for 8 steps: lstm 0.046 / 1.065, gru 0.044 / 1.060, linear, order
16 0.167 / 0.902, last value 0.359 / 1.676, noise floor 0.042 / 0.882. price, lstm below both baselines
for 0 steps: lstm 0.141 / 1.016, gru 0.138 / 0.954, linear, order 1 0.137 / 0.891, last value 0.137 /
1.017, noise floor 0.137 / 0.885. Mackey-Glass, lstm below both baselines for 50 steps: lstm 0.012 /
0.179, gru 0.009 / 0.192, linear, order 64 0.271 / 0.714, last value 0.826 / 0.802.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from experiments import Outcome, _drawing, _training

ROW = 16
TRAIN, VALIDATION, KNOWN, AHEAD, EVERY = 4000, 4000, 100, 50, 5  # EVERY: from origin to origin
HIDDEN, BATCH, LENGTH, SETTLE = 32, 32, 60, 10  # SETTLE: first steps, which the loss leaves out
ORDERS, PATHS, FLOOR = (1, 2, 4, 8, 16, 32, 64), 200, "noise floor"
SHOWN = (1, 10, 50)  # horizons of the table
COLOURS = (_drawing.BLUE, _drawing.RED, _drawing.GREEN, _drawing.PINK, _drawing.GREY)
MODELS = {"lstm": jaxrnn.lstm(HIDDEN), "gru": jaxrnn.gru(HIDDEN)}


def oscillator(now: Any, before: Any) -> Any:
    """The next value but for the noise: mu = 2, dt = 0.25, about 19 steps a turn."""
    change = now - before
    return now + change + 0.5 * (1 - np.minimum(now**2, 4)) * change - 0.0625 * now


SERIES: dict[str, tuple[Any, float] | None] = {  # equation and deviation of the noise
    "oscillator": (oscillator, 0.05),
    "price": (lambda now, before: 0.99 * now, 0.1),
    "Mackey-Glass": None,
}


def go_on(step: Any, noise: float, before: Any, now: Any, steps: int, rng: Any) -> Any:
    """[steps, ...]: what an equation with noise makes of two values [...]."""
    made = []
    for _ in range(steps):
        before, now = now, step(now, before) + noise * rng.normal(size=now.shape)
        made.append(now)
    return np.stack(made)


def mackey_glass(count: int) -> Any:
    """[count] values, by Euler steps of 0.1."""
    xs = [1.2] * 171
    for _ in range(60 * count):
        xs.append(xs[-1] + 0.1 * (0.2 * xs[-171] / (1 + xs[-171] ** 10) - 0.1 * xs[-1]))
    return np.array(xs[-60 * count :: 60])


def series(name: str) -> Any:
    """[TRAIN + VALIDATION] values, after 500 to settle."""
    count, known, start = 500 + TRAIN + VALIDATION, SERIES[name], np.zeros(1)
    if known is None:
        return mackey_glass(count)[500:]
    return go_on(*known, start, start, count, np.random.default_rng(0))[500:, 0]


def best_forecast(step: Any, noise: float, known: Any) -> Any:
    """[AHEAD, B]: the mean of the continuations of known [T, B] that an equation with noise makes."""
    start = np.broadcast_to(known[-2:, None], (2, PATHS, known.shape[1]))
    return go_on(step, noise, *start, AHEAD, np.random.default_rng(1)).mean(1)


def lags(xs: Any, order: int) -> Any:
    """The `order` values before each of xs[order:], latest first, and a one: [T - order, order + 1]."""
    columns = [xs[order - lag : len(xs) - lag] for lag in range(1, order + 1)]
    return np.stack([*columns, np.ones(len(xs) - order)], axis=1)


def autoregression(xs: Any, order: int) -> Any:
    """The least-squares weights of `lags`."""
    return np.linalg.lstsq(lags(xs, order), xs[order:], rcond=None)[0]


def best_order(xs: Any) -> int:
    """The order that fits the last quarter best, learnt from the quarters before."""
    cut, errors = len(xs) * 3 // 4, {}
    for order in ORDERS:
        weights, last = autoregression(xs[:cut], order), xs[cut - order :]
        errors[order] = ((lags(last, order) @ weights - last[order:]) ** 2).mean()
    return min(errors, key=errors.__getitem__)


def linear(weights: Any, known: Any, ahead: int) -> Any:
    """Forecast [ahead, B] of the autoregression after known [T, B]."""
    xs, order = list(known), len(weights) - 1
    for _ in range(ahead):
        xs.append(np.tensordot(weights[:-1], xs[: -order - 1 : -1], axes=1) + weights[-1])
    return np.stack(xs[-ahead:])


def learn(net: Any, xs: Any, known: Any, steps: int, seeds: list[int]) -> Any:
    """Forecasts [seeds, AHEAD, B] after known [T, B] of networks trained on windows of xs [T]."""
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
    """What was [KNOWN + AHEAD, B] and the forecasts by model [runs, AHEAD, B], scaled."""
    raw = series(name)
    mean, scale = raw[:TRAIN].mean(), raw[:TRAIN].std()
    xs = (raw - mean) / scale
    windows = np.lib.stride_tricks.sliding_window_view(xs[TRAIN:], KNOWN + AHEAD)[::EVERY].T
    known, made = windows[:KNOWN], {}
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
    rows, errors, told = [["series", "model", *(f"{n} ahead" for n in SHOWN)]], {}, []
    for name, (windows, made) in found.items():
        truth, said = windows[KNOWN:], []
        errors[name] = {m: np.sqrt(((each - truth) ** 2).mean(2)) for m, each in made.items()}
        for model, error in errors[name].items():
            cells = [span(error[:, n - 1]) for n in SHOWN]
            rows.append([name, model, *cells])
            said.append(f"{model} {' / '.join(cell.split()[0] for cell in cells[::2])}")
        middle = {model: np.median(error, axis=0) for model, error in errors[name].items()}
        simple = [error for model, error in middle.items() if model not in (*MODELS, FLOOR)]
        below = np.append(middle["lstm"] < np.min(simple, axis=0), False).argmin()
        told.append(f"{name}, lstm below both baselines for {below} steps: {', '.join(said)}")
    sentence = (
        f"RMS error {SHOWN[0]} / {SHOWN[2]} steps ahead, in standard deviations of the series, median "
        f"of {len(seeds)} seeds. {'. '.join(told)}."
    )
    plain = {n: {m: e.round(5).tolist() for m, e in each.items()} for n, each in errors.items()}
    numbers = {"error_by_horizon": plain, "training_steps": steps, "hidden": HIDDEN}
    return Outcome(sentence, rows, numbers, seeds, draw(found, errors))


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
