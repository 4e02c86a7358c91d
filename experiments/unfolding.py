"""A recurrent network is a T-layer network with shared weights; loop, scan and fused code agree.

    (h^T, y^1..y^T) = f(... f(f(h^0, x^1; W_1), x^2; W_2) ..., x^T; W_T)   with W_1 = ... = W_T = W
    dL/dW = dL/dW_1 + ... + dL/dW_T

The lecture unfolds a sentence of five words into five layers. Here T layers, each with a copy of the
weights, are written out and differentiated copy by copy, in float64. The same network in float32 and
every implementation of `jaxrnn.unroll` that this machine has are compared with it. The price of
writing the layers out is the time to compile them; it is compared with the time to compile the scan,
as T grows.

    python -m experiments unfolding      4 min on one CPU core that did other work, too
"""

from __future__ import annotations

import time
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxrnn
from benchmarks import measure
from experiments import Holds, Outcome, Verdict, _drawing
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
# Largest error, in roundings of float32, of an implementation that agrees.
AGREES = 100


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
    seeds = [0] if quick else [0, 1, 2, 3, 4]
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
    numbers = {"errors": errors, "missing": missing, "lengths": lengths, "compile": compiling}
    numbers |= {"steps": STEPS, "batch": BATCH, "inputs": INPUTS, "hidden": 32}
    return Outcome(numbers, seeds)


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    errors = numbers["errors"]
    rows = [["implementation", *errors["scan"], "worst output", "worst gradient"]]
    for way, by_cell in errors.items():
        worst = np.array([np.max(runs, axis=0) for runs in by_cell.values()])
        pairs = [f"{_drawing.decades(a)} / {_drawing.decades(b)}" for a, b in worst]
        rows.append([way, *pairs, *map(_drawing.decades, worst.max(0))])
    return rows


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    worst = max(np.max(runs) for by_cell in numbers["errors"].values() for runs in by_cell.values())
    written, scan = (np.median(each, axis=0)[-1] for each in numbers["compile"].values())
    length, roundings, times = numbers["lengths"][-1], worst / ROUNDING, written / scan
    return Verdict(
        Holds.YES if roundings < AGREES else Holds.NO,
        f"all implementations differ from the unfolded network by at most {roundings:.1f} float32 "
        f"rounding errors. Written out, {length} layers take {times:.0f} times as long to compile "
        "as the scan.",
        f"모든 구현과 펼친 신경망의 차이는 float32 반올림 오차의 {roundings:.1f}배 이하입니다. "
        f"{length}개 층을 펼쳐 쓰면 컴파일 시간이 scan의 {times:.0f}배입니다.",
    )


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, (agree, compiling) = _drawing.figure(2, height=3.4)
    errors, lengths = numbers["errors"], numbers["lengths"]
    kinds = (("outputs", _drawing.BLUE, "o", 0.17), ("gradients", _drawing.ORANGE, "s", -0.17))
    for row, by_cell in enumerate(errors.values()):
        pairs = np.concatenate(list(by_cell.values()))
        for (_, colour, marker, offset), values in zip(kinds, pairs.T, strict=True):
            places = np.full(len(values), row + offset)
            agree.plot(values, places, marker, color=colour, alpha=0.5)
    agree.set(xscale="log", xlim=(1e-8, 2), ylim=(len(errors) - 0.5, -1.5))
    agree.set_yticks(range(len(errors)), errors)
    for name, colour, _, offset in kinds:
        agree.annotate(name, (1e-5, 0.5 + 4 * offset), va="center", color=colour)
    for error, name, shift, side in (
        (ROUNDING, "rounding of float32", 1.3, "left"),
        (1, "all wrong", 1 / 1.3, "right"),
    ):
        agree.axvline(error, color=_drawing.INK, linestyle="--", linewidth=1)
        agree.annotate(name, (error * shift, -1), ha=side, va="center", fontsize=11)
    x = "largest error, relative to the largest value"
    _drawing.name_axes(agree, "All implementations agree", x, "")
    compiling.set(xscale="log", yscale="log")
    compiling.set_xticks(lengths, lengths)
    compiling.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    compiling.minorticks_off()
    styles = ((_drawing.PINK, "s"), (_drawing.GREEN, "o"))
    ends = []
    for (way, seconds), (colour, marker) in zip(numbers["compile"].items(), styles, strict=True):
        middle = _drawing.band(compiling, lengths, seconds, colour, marker=marker, markersize=5)
        ends.append((middle[-1], way, colour))
    _drawing.label_ends(compiling, ends)
    title = "T layers written out compile slowly (LSTM)"
    _drawing.name_axes(compiling, title, "T, steps", "compile time, seconds")
    return figure
