"""Gated cells learn to remember for longer than plain RNNs: adding, temporal order, copying.

The first two tasks are from Hochreiter & Schmidhuber (1997), the third in the form that is common
since (Arjovsky et al. 2016), with half as many symbols. Every batch is new:

    adding   A number uniform in [0, 1] and a marker come in at each of T steps; two steps are marked,
             one in each half. The output after the last step is the sum of the two marked numbers.
             Squared error; always answering 1 gives 1/6.
    order    One of four distractors comes in at each of T steps, but X or Y at one step of each half.
             The output after the last step is which of XX, XY, YX, YY it was. Cross-entropy; a guess
             gives ln 4.
    copy     5 symbols out of 8, T - 1 blanks, a cue and 5 blanks come in; the outputs are T + 5 blanks
             and the 5 symbols. Mean cross-entropy of all steps; without a memory it is
             5 ln 8 / (T + 10).

A new network is trained at each T, with Adam, gradients of a norm of at most 1 and batches
of 16. It has solved a task when the mean loss of 100 training steps is below a tenth of the loss
without a memory; then training ends. There are at most 2000 training steps, for copying 6000. The
learning rate is the best of RATES on another seed, chosen for each cell, task and T: the one that
solves the task in the fewest steps, in at most half of all, else the one of smallest loss. T grows until
most of the seeds fail, up to 100 for adding, 200 for the order and 50 for copying.

    python -m experiments long_memory      6 min on one CPU core
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxrnn
from experiments import Holds, Outcome, Verdict, _drawing
from experiments._memory_tasks import (
    adding,
    copy,
    copy_baseline,
    entropies,
    entropy,
    order,
    squares,
)
from experiments._training import Training, grid

ROW = 4
BATCH = 16
# Share of the baseline below which a task is solved, and over how many training steps.
SOLVED = 0.1
EVERY = 100
RATES = [0.001, 0.003, 0.01, 0.03]
# Seed on which the learning rate is chosen.
TRIAL = 100
PLAIN: dict[str, Callable[[int], Any]] = {
    "rnn": jaxrnn.rnn,
    "rnn, relu": functools.partial(jaxrnn.rnn, activation="relu"),
}
GATED: dict[str, Callable[[int], Any]] = {"lstm": jaxrnn.lstm, "gru": jaxrnn.gru}
CELLS = PLAIN | GATED


class Task(NamedTuple):
    """A task.

    make: function of (key, T, rows) that returns a batch.
    loss: function of (outputs [T, B, K], targets) that returns losses, not yet averaged.
    inputs, hidden, outputs: widths.
    baseline: function of T that returns the loss without a memory.
    lengths: the values of T.
    steps: largest number of training steps.
    """

    make: Callable[..., tuple[Any, Any]]
    loss: Callable[[Any, Any], Any]
    inputs: int
    hidden: int
    outputs: int
    baseline: Callable[[int], float]
    lengths: list[int]
    steps: int


TASKS = {
    "adding": Task(adding, squares, 2, 32, 1, lambda _: 1 / 6, [10, 20, 50, 100], 2000),
    "order": Task(order, entropy, 6, 32, 4, lambda _: math.log(4), [10, 20, 50, 100, 200], 2000),
    "copy": Task(copy, entropies, 10, 32, 9, copy_baseline, [1, 5, 20, 50], 6000),
}


class Result(NamedTuple):
    """How the training from one seed ended.

    solved_after: training steps until the task was solved, or None.
    share: last mean loss, as a share of the baseline.
    """

    solved_after: int | None
    share: float


def learn(training: Training, baseline: float, seed: int, rate: float, steps: int) -> Result:
    """Train from one seed until the task is solved."""
    state = training.begin(seed)
    share = math.inf
    for done in range(EVERY, steps + 1, EVERY):
        state, losses = training.advance(state, rate, EVERY)
        share = float(losses.mean()) / baseline
        if share < SOLVED:
            return Result(done, share)
        if not math.isfinite(share):
            break
    return Result(None, share)


def level(cell: Any, task: Task, length: int, steps: int, seeds: list[int]) -> dict[str, Any]:
    """Choose the learning rate for one T, train from all seeds and return what was measured."""
    start = time.perf_counter()
    net = jaxrnn.network(cell, task.inputs, task.outputs)

    def loss(params: Any, batch: Any) -> Any:
        xs, targets = batch
        return task.loss(net.apply(params, xs)[1], targets).mean()

    make = functools.partial(task.make, length=length, rows=BATCH)
    training, baseline = Training(net, loss, make), task.baseline(length)
    best, limit, trials = RATES[0], max(EVERY, steps // 2), {}
    for rate in RATES:
        trials[rate] = found = learn(training, baseline, TRIAL, rate, limit)
        # A rate that solves the task is better than all before it: they had at least as many steps.
        if found.solved_after or (
            not trials[best].solved_after and not found.share >= trials[best].share
        ):
            best, limit = rate, found.solved_after or limit
    results = [learn(training, baseline, seed, best, steps) for seed in seeds]
    return {
        "T": length,
        "learning_rate": best,
        "solved_after": [result.solved_after for result in results],
        "share_of_baseline": [_digits(result.share) for result in results],
        "trials": {str(rate): [r.solved_after, _digits(r.share)] for rate, r in trials.items()},
        "parameters": sum(p.size for p in jax.tree.leaves(training.begin(0).params)),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _digits(share: float) -> float | None:
    """Return a share with four digits, or None where the training diverged."""
    return float(f"{share:.4g}") if math.isfinite(share) else None


def ladder(task: Task, kind: str, seeds: list[int], quick: bool) -> list[dict[str, Any]]:
    """Return what was measured at each T, up to the first at which most of the seeds fail."""
    levels: list[dict[str, Any]] = []
    cell = CELLS[kind](task.hidden)
    for length in task.lengths[: 1 if quick else None]:
        levels.append(level(cell, task, length, EVERY if quick else task.steps, seeds))
        if 2 * solved(levels[-1]) < len(seeds):
            break
    return levels


def run(quick: bool) -> Outcome:
    seeds = [0, 1] if quick else [0, 1, 2, 3, 4]
    kinds = ["rnn", "gru"] if quick else list(CELLS)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # The longest first, so that no core has to wait at the end.
        running = {
            (name, kind): pool.submit(ladder, TASKS[name], kind, seeds, quick)
            for name in reversed(TASKS)
            for kind in reversed(kinds)
        }
    tasks = {
        name: {
            "lengths": task.lengths,
            "training_steps": EVERY if quick else task.steps,
            "hidden": task.hidden,
            "cells": {kind: running[name, kind].result() for kind in kinds},
        }
        for name, task in TASKS.items()
    }
    numbers = {
        "tasks": tasks,
        "solved_below": SOLVED,
        "batch": BATCH,
        "rates": RATES,
        "trial": TRIAL,
    }
    return Outcome(numbers, seeds)


def solved(level: dict[str, Any]) -> int:
    """Return how many of the seeds solve the task."""
    return sum(after is not None for after in level["solved_after"])


def longest(levels: list[dict[str, Any]], share: float) -> int:
    """Return the largest T up to which more than this share of the seeds solve the task, or 0."""
    reached = 0
    for each in levels:
        if solved(each) <= share * len(each["solved_after"]):
            break
        reached = each["T"]
    return reached


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    rows = [["task", "cell", "parameters", "largest T in all seeds", "in most seeds"]]
    steps = max(task["training_steps"] for task in numbers["tasks"].values())
    rates = grid(numbers["rates"], steps // 2)
    rows[0] += [f"T: seeds that solve it, median training steps, {rates}", "seconds"]
    for name, task in numbers["tasks"].items():
        for kind, levels in task["cells"].items():
            rows.append([
                name,
                kind,
                str(levels[0]["parameters"]),
                str(longest(levels, in_all(seeds)) or "none"),
                str(longest(levels, 0.5) or "none"),
                "; ".join(_words(each) for each in levels),
                f"{sum(each['seconds'] for each in levels):.0f}",
            ])  # fmt: skip
    return rows


def _words(level: dict[str, Any]) -> str:
    """Return the result at one T; of seeds that all fail, the median share of the baseline."""
    after = [each for each in level["solved_after"] if each is not None]
    share = np.median([math.inf if s is None else s for s in level["share_of_baseline"]])
    failed = f"loss at {share:.2f} of guessing" if share < math.inf else "diverges"
    middle = f"{np.median(after):.0f}" if after else failed
    seeds = len(level["solved_after"])
    return f"{level['T']}: {len(after)} of {seeds}, {middle}, {level['learning_rate']}"


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    of = len(numbers["tasks"])
    all_seeds = wins(numbers, in_all(seeds))
    most_seeds = wins(numbers, 0.5)
    some = all_seeds or most_seeds
    return Verdict(
        Holds.YES if all_seeds == most_seeds == of else Holds.PARTLY if some else Holds.NO,
        "the better of LSTM and GRU learns to remember for longer than both plain RNNs in "
        f"{all_seeds} of {of} tasks where all seeds must learn it, and in {most_seeds} of {of} where "
        "most must.",
        "LSTM과 GRU 중 나은 쪽이 게이트 없는 두 순환신경망보다 더 오래 기억하도록 학습되는 과제는, "
        f"모든 시드가 학습해야 한다면 {of}개 중 {all_seeds}개, 과반수로 충분하다면 {of}개 중 "
        f"{most_seeds}개입니다.",
    )


def wins(numbers: dict[str, Any], share: float) -> int:
    """Return in how many tasks the best gated cell has a greater `longest` than the best plain RNN."""
    count = 0
    for task in numbers["tasks"].values():
        reached = {kind: longest(levels, share) for kind, levels in task["cells"].items()}
        gated, plain = (max(reached.get(k, 0) for k in kinds) for kinds in (GATED, PLAIN))
        count += gated > plain
    return count


def in_all(seeds: list[int]) -> float:
    """Return the share that only all of the seeds exceed."""
    return 1 - 0.5 / len(seeds)


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, panels = _drawing.figure(len(numbers["tasks"]), height=3)
    colours = {**_drawing.CELLS, "rnn, relu": _drawing.ORANGE}
    styles = {"rnn": "o-", "rnn, relu": "D:", "lstm": "s--", "gru": "^-"}
    for axes, (name, task) in zip(panels, numbers["tasks"].items(), strict=True):
        lengths, failed = task["lengths"], 1.5 * task["training_steps"]
        for shift, (kind, levels) in zip((-3, -1, 1, 3), task["cells"].items(), strict=False):
            # Most seeds fail where the median is at `failed`.
            after = [[failed if n is None else n for n in each["solved_after"]] for each in levels]
            middle = np.median(after, axis=1)
            places = np.array([lengths.index(each["T"]) for each in levels]) + 0.04 * shift
            axes.errorbar(
                places,
                middle,
                [middle - np.min(after, axis=1), np.max(after, axis=1) - middle],
                fmt=styles[kind],
                color=colours[kind],
                label=kind,
                elinewidth=1,
                markersize=6,
            )
        axes.axhline(1.22 * task["training_steps"], color=_drawing.INK, linestyle=":", linewidth=1)
        axes.set(yscale="log", xlim=(-0.4, len(lengths) - 0.6), ylim=(0.8 * EVERY, 1.35 * failed))
        axes.minorticks_off()
        ticks = [10**k for k in range(2, 5) if 10**k <= task["training_steps"]]
        axes.set_yticks([*ticks, failed], [*(f"{tick:,}" for tick in ticks), "failed"])
        axes.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        names = {"adding": "Adding", "order": "Temporal order", "copy": "Copying"}
        title = f"{names[name]} ({len(seeds)} seeds, {task['hidden']} units)"
        _drawing.name_axes(axes, title, "T, steps", "training steps to learn it")
    panels[-1].legend(loc="lower right", ncols=2)
    return figure
