"""Gradients vanish where the spectral radius of W_h is below 1, and can explode only above 1.

    dh^T / dh^{T-k} = D^T W_h' D^{T-1} W_h' ... D^{T-k+1} W_h',    D^t = diag(f'(a^t))
    growth per step = lim ||dh^T / dh^{T-k}||^{1/k}

Without the derivatives f', the growth is the spectral radius rho of W_h, its largest absolute
eigenvalue (Bengio et al. 1994; Pascanu et al. 2013). A tanh has f' = 1 only at 0, so saturation dampens
the gradient. The growth is at most max f' times the largest singular value of W_h, which is about 2 rho
in the random matrices here.

W_h is drawn Glorot-uniform and scaled to rho (in LSTM and GRU, the matrix of each gate); the inputs are
standard normal. The norm of dh^T / dx^{T-k} is measured with `jaxrnn.gradient_flow`, and the growth is
fitted to its logarithm over the lags 20 to 60. "Linear" is a tanh network at rest: with inputs of zero,
its states are 0 and all f' are 1, so it is exactly linear. The intervals are 95% t-intervals over seeds.

Clipping does not change the growth, but bounds the step. From the initial parameters of the tanh
network, one step of gradient descent is made with and without clipping to a global norm of 10. The loss
is the mean squared error between an output after the last step and the sum of the first input, divided
by the square root of T.

    python -m experiments exploding      2 min on two CPU cores
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy import stats

import jaxrnn
from experiments import Holds, Outcome, Verdict, _drawing

ROW = 4
HIDDEN = 128
INPUTS = 8
STEPS = 80
# The lags between which the growth is fitted; before the first, other eigenvalues play a part.
LAGS = (20, 60)
RADII = [0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 1.5, 1.75, 2.0]
# Radii whose norms are recorded by lag.
SHOWN = [0.5, 1.0, 2.0]
LINEAR = "linear"
PLAIN: dict[str, Any] = {
    LINEAR: jaxrnn.rnn(HIDDEN, recurrent_init="glorot"),
    "tanh": jaxrnn.rnn(HIDDEN, recurrent_init="glorot"),
    "relu": jaxrnn.rnn(HIDDEN, activation="relu", recurrent_init="glorot"),
}
GATED: dict[str, Any] = {
    "lstm": jaxrnn.lstm(HIDDEN, recurrent_init="glorot"),
    "gru": jaxrnn.gru(HIDDEN, recurrent_init="glorot"),
}
COLOURS = {
    LINEAR: _drawing.INK,
    "tanh": _drawing.RED,
    "relu": _drawing.ORANGE,
    "lstm": _drawing.BLUE,
    "gru": _drawing.GREEN,
}
LINES = {LINEAR: "--", "tanh": "-", "relu": "-.", "lstm": "-", "gru": "-"}
CLIP = 10.0
RATE = 0.01
BATCH = 16
# Relative error up to which a growth counts as equal to the radius.
TOLERANCE = 0.05


def scale(params: Any, radius: float) -> tuple[Any, float]:
    """Scale the recurrent matrix of each gate [H, H] to a spectral radius.

    Returns:
      (params, singular): the parameters, and the largest singular value of the scaled matrices.
    """
    size = params.w_h.shape[0]
    gates = np.split(np.asarray(params.w_h, np.float64), params.w_h.shape[1] // size, axis=1)
    scaled = [w * radius / np.abs(np.linalg.eigvals(w)).max() for w in gates]
    singular = max(float(np.linalg.norm(w, 2)) for w in scaled)
    return params._replace(w_h=jnp.float32(np.concatenate(scaled, axis=1))), singular


def growth(flow: Any) -> float:
    """Return the growth per step of a norm, whose logarithm by lag [T] is given."""
    lags = np.arange(LAGS[0], LAGS[1] + 1)
    return float(np.exp(np.polyfit(lags, np.asarray(flow)[lags], 1)[0]))


def flow(name: str, cell: Any, params: Any, key: Any) -> Any:
    """Return ln ||dh^T / dx^{T-k}|| by lag [T], for normal inputs, or zeros if "linear"."""
    xs = jax.random.normal(key, (STEPS, 1, INPUTS))
    return jaxrnn.gradient_flow(cell, params, 0 * xs if name == LINEAR else xs)[:, 0]


def one_step(cell: Any, params: Any, key: Any) -> dict[str, float]:
    """Make a step of gradient descent with and without clipping.

    Returns:
      The norm of the gradient before and after clipping, and the loss after a step with each, as a
      multiple of the loss before.
    """
    net = jaxrnn.network(cell, INPUTS, 1)
    keys = jax.random.split(key)
    whole = net.init(keys[0])._replace(cell=params)
    xs = jax.random.normal(keys[1], (STEPS, BATCH, INPUTS))
    wanted = xs[..., 0].sum(0) / STEPS**0.5

    def loss(params: Any) -> Any:
        return ((net.apply(params, xs)[1][-1, :, 0] - wanted) ** 2).mean()

    before, gradient = jax.value_and_grad(loss)(whole)
    found = {}
    for way, transform in {
        "raw": optax.identity(),
        "clipped": optax.clip_by_global_norm(CLIP),
    }.items():
        used, _ = transform.update(gradient, transform.init(whole))
        after = jax.tree.map(lambda p, g: p - RATE * g, whole, used)
        found[f"norm, {way}"] = digits(optax.tree.norm(used))
        found[f"loss, {way}"] = digits(loss(after) / before)
    return found


def digits(value: Any) -> float:
    """Return a number with five digits."""
    return float(f"{value:.5g}")


def run(quick: bool) -> Outcome:
    seeds = [0, 1] if quick else [0, 1, 2, 3, 4]
    radii = SHOWN if quick else RADII
    kinds = PLAIN if quick else PLAIN | GATED
    numbers: dict[str, Any] = {
        "hidden": HIDDEN,
        "T": STEPS,
        "lags": LAGS,
        "clip": CLIP,
        "rate": RATE,
        "radii": radii,
        # [radii, seeds] each
        "growth": {name: [] for name in kinds},
        "singular": [],
        # Measures of `one_step` by radius, [seeds] each
        "step": [],
        # Relative to lag 0, [shown radii, seeds, every second lag]
        "log10_norm": {LINEAR: [], "tanh": []},
    }
    for name, cell in kinds.items():
        for radius in radii:
            flows, singulars, steps = [], [], []
            for seed in seeds:
                keys = jax.random.split(jax.random.key(seed), 3)
                params, singular = scale(cell.init(keys[0], INPUTS), radius)
                flows.append(np.asarray(flow(name, cell, params, keys[1])))
                singulars.append(round(singular, 4))
                if name == "tanh":
                    steps.append(one_step(cell, params, keys[2]))
            numbers["growth"][name].append([round(growth(each), 5) for each in flows])
            if name in numbers["log10_norm"] and radius in SHOWN:
                relative = [(each - each[0]) / np.log(10) for each in flows]
                thin = np.round(relative, 4)[:, : LAGS[1] + 1 : 2]
                numbers["log10_norm"][name].append(thin.tolist())
            if steps:
                numbers["singular"].append(singulars)
                numbers["step"].append({key: [step[key] for step in steps] for key in steps[0]})
    return Outcome(numbers, seeds)


def interval(values: Any) -> tuple[float, float]:
    """Return the mean and half of the 95% t-interval."""
    values = np.asarray(values, float)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(half)


def border(radii: list[float], growths: Any) -> float | None:
    """Return the radius from which the mean growth [radii, seeds] is above 1, None if it never is."""
    means = np.mean(growths, axis=1)
    above = np.flatnonzero(means > 1)
    if not len(above):
        return None
    at = above[0]
    if at == 0:
        return radii[0]
    share = (1 - means[at - 1]) / (means[at] - means[at - 1])
    return float(radii[at - 1] + share * (radii[at] - radii[at - 1]))


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    kinds = list(numbers["growth"])
    rows = [
        [
            "spectral radius",
            "largest singular value",
            *(f"growth per step, {name}" for name in kinds),
            "gradient norm of tanh, raw / clipped",
            "loss after / before the step, raw / clipped",
        ]
    ]
    for at, radius in enumerate(numbers["radii"]):
        step = numbers["step"][at]
        growths = [interval(numbers["growth"][name][at]) for name in kinds]
        rows.append(
            [
                f"{radius:g}",
                f"{np.median(numbers['singular'][at]):.2f}",
                *(f"{mean:.3f} ± {half:.3f}" for mean, half in growths),
                " / ".join(f"{np.median(step[f'norm, {way}']):.3g}" for way in ("raw", "clipped")),
                " / ".join(f"{np.median(step[f'loss, {way}']):.3g}" for way in ("raw", "clipped")),
            ]
        )
    return rows


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    radii = np.array(numbers["radii"])
    # [radii, seeds]
    growths = {name: np.array(numbers["growth"][name]) for name in PLAIN}
    error = float(np.abs(growths[LINEAR] / radii[:, None] - 1).max())
    vanish = all((each[radii < 1] < 1).all() for each in growths.values())
    starts = border(numbers["radii"], growths["tanh"])
    follows = error < TOLERANCE
    if starts is None:
        english = f"gradients of tanh explode at no radius up to {radii[-1]:g}"
        korean = f"tanh의 경사도는 스펙트럼 반지름 {radii[-1]:g}까지 폭발하지 않습니다"
    else:
        english = f"a tanh saturates, so its gradients explode only above a radius of {starts:.2f}"
        korean = f"tanh는 포화되므로 스펙트럼 반지름이 {starts:.2f}보다 커야 경사도가 폭발합니다"
    explodes = starts is not None and starts >= 1
    holds = Holds.YES if follows and vanish and explodes else Holds.PARTLY
    return Verdict(
        holds if follows or vanish else Holds.NO,
        f"in a linear network the gradient grows per step by the spectral radius, to within "
        f"{100 * error:.1f}%; {english}.",
        f"선형 순환신경망의 경사도는 한 스텝마다 스펙트럼 반지름만큼 곱해지고(오차 "
        f"{100 * error:.1f}% 이내), {korean}.",
    )


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, (by_lag, by_radius, step) = _drawing.figure(3, height=3.3)
    radii = numbers["radii"]

    shown = [radius for radius in SHOWN if radius in radii]
    ends = []
    by_lag.set(xlim=(0, LAGS[1]))
    for name, norms in numbers["log10_norm"].items():
        for radius, each in zip(shown, norms, strict=True):
            lags = 2 * np.arange(len(each[0]))
            last = _drawing.band(by_lag, lags, each, COLOURS[name], linestyle=LINES[name])[-1]
            ends.append((last, f"ρ = {radius:g}, {name}", COLOURS[name]))
    exponents = [-30, -20, -10, 0, 10, 20]
    by_lag.set_yticks(exponents, [f"$10^{{{each}}}$" for each in exponents])
    _drawing.label_ends(by_lag, ends)
    title = f"The influence of earlier inputs ({len(seeds)} seeds)"
    _drawing.name_axes(by_lag, title, "lag k, time steps", "norm of the Jacobian")

    ends = []
    by_radius.set(xlim=(radii[0], radii[-1]), ylim=(0.2, 2.05))
    for name, growths in numbers["growth"].items():
        means, halves = np.array([interval(each) for each in growths]).T
        how = {"color": COLOURS[name], "linestyle": LINES[name]}
        by_radius.errorbar(radii, means, halves, marker="o", markersize=4, elinewidth=1.2, **how)
        ends.append((means[-1], name, COLOURS[name]))
    by_radius.axhline(1, color=_drawing.INK, linestyle=":", linewidth=1.2)
    _drawing.label_ends(by_radius, ends)
    title = "Growth per step: gradients explode above 1"
    _drawing.name_axes(
        by_radius, title, "spectral radius ρ of the recurrent weights", "growth, 95% interval"
    )

    ends = []
    step.set(yscale="log", xlim=(radii[0], radii[-1]))
    styles = {
        "raw": (_drawing.RED, "-", "not clipped"),
        "clipped": (_drawing.BLUE, "--", "clipped"),
    }
    for way, (colour, line, label) in styles.items():
        norms = np.transpose([each[f"norm, {way}"] for each in numbers["step"]])
        last = _drawing.band(step, radii, norms, colour, linestyle=line)[-1]
        ends.append((last, label, colour))
    _drawing.label_ends(step, ends)
    title = "One step of the tanh network: clipping bounds it"
    _drawing.name_axes(step, title, "spectral radius ρ of the recurrent weights", "gradient norm")
    return figure
