"""A recurrent network is a T-layer network with shared weights; loop, scan and fused code agree.

    (h^T, y^1..y^T) = f(... f(f(h^0, x^1; W_1), x^2; W_2) ..., x^T; W_T)   with W_1 = ... = W_T = W
    dL/dW = dL/dW_1 + ... + dL/dW_T

The lecture unfolds a sentence of five words into five layers. Here T layers, each with a copy of the
weights, are written out and differentiated copy by copy, in float64. The same network in float32 and
every implementation of `jaxrnn.unroll` that this machine has are compared with it. The price of
writing the layers out is the time to compile them; it is compared with the time to compile the scan,
as T grows.

    python -m experiments unfolding      85 s on two CPU cores
"""

from __future__ import annotations

import time
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from benchmarks import measure
from experiments import Outcome, _drawing
from jaxrnn.recurrence.kernels import Implementation

ROW = 3
CELLS = {
    "rnn": jaxrnn.rnn(32),
    "lstm": jaxrnn.lstm(32),
    "lstm, peepholes": jaxrnn.lstm(32, peephole=True),
    "gru, reset before": jaxrnn.gru(32),
    "gru, reset after": jaxrnn.gru(32, reset="after"),
}
BATCH = 8
INPUTS = 16
STEPS = 10
ROUNDING = float(np.finfo(np.float32).eps)


def layers(cell: Any, copies: Any, state: Any, xs: Any) -> Any:
    """Run the unfolded network: layer t has weights copies[t] and reads xs[t]."""
    ys = []
    for weights, x in zip(copies, xs, strict=True):
        state, y = cell.step(weights, state, cell.project(weights, x))
        ys.append(y)
    return state, jnp.stack(ys)


def unfolded(cell: Any, params: Any, state: Any, xs: Any, cotangents: Any) -> Any:
    """Return outputs and the gradients of (weights, first state, inputs), weights summed over copies."""
    copies = [params] * len(xs)
    outputs, back = jax.vjp(lambda *given: layers(cell, *given), copies, state, xs)
    by_copy, *others = back(cotangents)
    return outputs, (jax.tree.map(lambda *each: sum(each), *by_copy), *others)


def recurrent(name: Any, cell: Any, params: Any, state: Any, xs: Any, cotangents: Any) -> Any:
    """Return the same from `jaxrnn.unroll` with the implementation of this name."""

    def run(params: Any, state: Any, xs: Any) -> Any:
        return jaxrnn.unroll(cell, params, xs, state, implementation=name)

    outputs, back = jax.vjp(run, params, state, xs)
    return outputs, back(cotangents)


def inputs(cell: Any, seed: int, steps: int = STEPS) -> Any:
    """Return weights, first state, inputs and cotangents, all random so that no zero hides an error."""
    keys = iter(jax.random.split(jax.random.key(seed), 99))

    def random(like: Any) -> Any:
        return jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape), like)

    params, state = cell.init(next(keys), INPUTS), random(cell.initial_state(BATCH))
    params = jax.tree.map(lambda w, noise: w + 0.1 * noise, params, random(params))
    xs = jax.random.normal(next(keys), (steps, BATCH, INPUTS))
    return params, state, xs, (random(state), random(jnp.zeros((steps, BATCH, cell.hidden_size))))


def compile_seconds(run: Any, cell: Any, steps: int) -> float:
    """Return the seconds to trace and compile outputs and gradients over this many steps."""
    start = time.perf_counter()
    jax.jit(lambda *given: run(cell, *given)).lower(*inputs(cell, 0, steps)).compile()
    return time.perf_counter() - start


def run(quick: bool) -> Outcome:
    seeds = [0] if quick else [0, 1, 2]
    ways = {"T layers": unfolded}
    missing = {}
    for name in get_args(Implementation):
        try:
            for cell in CELLS.values():
                jaxrnn.explain(cell, (STEPS, BATCH, INPUTS), implementation=name)
            ways[name] = lambda *given, name=name: recurrent(name, *given)
        except ValueError as why:
            missing[name] = str(why)
    errors: dict[str, Any] = {way: {} for way in ways}
    for cell_name, cell in list(CELLS.items())[: 1 if quick else None]:
        exact = jax.jit(lambda *given, c=cell: unfolded(c, *given))
        jitted = {way: jax.jit(lambda *g, c=cell, f=f: f(c, *g)) for way, f in ways.items()}
        for seed in seeds:
            given = inputs(cell, seed)
            with jax.enable_x64(True):
                wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), given)
                truth = jax.device_get(exact(*wide))
            for way, compute in jitted.items():
                pairs = zip(compute(*given), truth, strict=True)
                worst_of = [measure.error(got, want) for got, want in pairs]
                errors[way].setdefault(cell_name, []).append(worst_of)

    lengths = [2, 4] if quick else [2, 4, 8, 16, 32]
    repeats = 1 if quick else 3
    compiling = {
        way: [
            [compile_seconds(ways[way], CELLS["lstm"], t) for t in lengths] for _ in range(repeats)
        ]
        for way in ("T layers", "scan")
    }
    worst = np.array([[np.max(runs, axis=0) for runs in each.values()] for each in errors.values()])
    rows = [["way", *errors["scan"], "worst output", "worst gradient"]]
    for way, by_cell in zip(ways, worst, strict=True):
        pairs = [f"{_drawing.decades(a)} / {_drawing.decades(b)}" for a, b in by_cell]
        rows.append([way, *pairs, *map(_drawing.decades, by_cell.max(0))])
    numbers = {"errors": errors, "missing": missing, "lengths": lengths, "compile": compiling}
    numbers |= {"steps": STEPS, "batch": BATCH, "inputs": INPUTS, "hidden": 32}
    return Outcome(rows, numbers, seeds, draw(errors, lengths, compiling))


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    errors = numbers["errors"]
    compiling = numbers["compile"]
    pairs = np.concatenate(
        [np.array(runs) for by_cell in errors.values() for runs in by_cell.values()]
    )
    output, gradient = pairs.max(0)
    layers_s, scan_s = (np.median(compiling[way], axis=0)[-1] for way in ("T layers", "scan"))
    return (
        f"Over {numbers['steps']} steps, {len(errors['scan'])} cells and {len(seeds)} seeds, "
        f"{', '.join(errors)} differ from the unfolded network in float64 by at most {output:.1e} "
        f"of the largest output and {gradient:.1e} of the largest gradient (float32 rounds to "
        f"{ROUNDING:.1e}). {numbers['lengths'][-1]} layers of an LSTM take {layers_s:.1f} s to "
        f"compile, the scan takes {scan_s:.1f} s."
    )


def draw(errors: Any, lengths: list[int], compiling: Any) -> Any:
    figure, (left, right) = _drawing.figure(2)
    for row, (_, each) in enumerate(errors.items()):
        pairs = np.concatenate(list(each.values()))
        for offset, colour, values in zip(
            (0.16, -0.16), (_drawing.BLUE, _drawing.RED), pairs.T, strict=True
        ):
            left.plot(values, np.full(len(values), row + offset), "o", color=colour, alpha=0.5)
    left.set(xscale="log", xlim=(1e-9, 2), yticks=range(len(errors)), yticklabels=errors)
    left.invert_yaxis()
    left.axvline(ROUNDING, color=_drawing.GREY, linestyle="--", linewidth=1)
    left.axvline(1, color=_drawing.GREY, linewidth=1)
    note = {"xycoords": ("data", "axes fraction"), "fontsize": 9, "color": _drawing.GREY}
    left.annotate("rounding of\nfloat32", (ROUNDING / 1.3, 0.97), ha="right", va="top", **note)
    left.annotate("all wrong", (0.8, 0.97), ha="right", va="top", **note)
    note["xycoords"] = "data"
    left.annotate("gradients", (1e-5, 0 - 0.16), va="center", **note | {"color": _drawing.RED})
    left.annotate("outputs", (1e-5, 0 + 0.16), va="center", **note | {"color": _drawing.BLUE})
    name = "largest error, in units of the largest value"
    _drawing.name_axes(left, "Every way computes the unfolded network", name, "")
    right.set(xscale="log", yscale="log")
    right.set_xticks(lengths, lengths)
    right.set_xticks([], minor=True)
    right.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    right.set_yticks([], minor=True)
    ends = []
    for (way, seconds), colour in zip(compiling.items(), _drawing.COLOURS, strict=False):
        end = _drawing.band(right, lengths, seconds, colour, marker="o", markersize=4)[-1]
        ends.append((end, way, colour))
    _drawing.label_ends(right, ends)
    _drawing.name_axes(
        right,
        "T layers written out take long to compile (LSTM)",
        "T, steps",
        "compile time, seconds",
    )
    return figure
