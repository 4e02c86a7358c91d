"""The longer something must be remembered, the fewer cells learn it: adding, temporal order, copying.

The first two tasks are from Hochreiter & Schmidhuber (1997), the third in the form that is common
since. Every batch is new:

    adding   A number uniform in [0, 1] and a marker come in at each of T steps; two steps are marked,
             one in each half. The output after the last step is the sum of the two marked numbers.
             Squared error; always answering 1 gives 1/6.
    order    One of four distractors comes in at each of T steps, but X or Y at one step of each half.
             The output after the last step is which of XX, XY, YX, YY it was. Cross-entropy; a guess
             gives ln 4.
    copy     10 symbols out of 8, T - 1 blanks, a cue and 10 blanks come in; the outputs are T + 10
             blanks and the 10 symbols. Mean cross-entropy of all steps; without a memory it is
             10 ln 8 / (T + 20).

Width and batch are the same throughout; updates and learning rate are the same for all cells of a
task. A task is solved where the mean loss of the last tenth of the updates is below a tenth of the
loss without a memory.

    python -m experiments long_memory      14 min on two CPU cores
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn
from experiments import Outcome, _drawing, _training, bullets

ROW = 4
HIDDEN = 32
BATCH = 32
# Different symbols of the copy task, and how many of them are copied.
SYMBOLS = 8
COPIED = 10
# Share of the baseline below which a task is solved.
SOLVED = 0.1
CELLS = {
    "rnn tanh": jaxrnn.rnn(HIDDEN),
    "rnn relu": jaxrnn.rnn(HIDDEN, activation="relu"),
    "lstm": jaxrnn.lstm(HIDDEN),
    "lstm peepholes": jaxrnn.lstm(HIDDEN, peephole=True),
    "gru reset before": jaxrnn.gru(HIDDEN),
    "gru reset after": jaxrnn.gru(HIDDEN, reset="after"),
}


def two_steps(key: Any, length: int, rows: int) -> Any:
    """Return [2, T, B] bool, true at a random step of the first half and at one of the second."""
    keys = jax.random.split(key)
    first = jax.random.randint(keys[0], (rows,), 0, length // 2)
    second = jax.random.randint(keys[1], (rows,), length // 2, length)
    return jnp.arange(length)[None, :, None] == jnp.stack([first, second])[:, None]


def adding(key: Any, length: int, rows: int) -> tuple[Any, Any]:
    """Return numbers and markers [T, B, 2], and the sum [B] of the two marked numbers."""
    keys = jax.random.split(key)
    numbers = jax.random.uniform(keys[0], (length, rows))
    marks = two_steps(keys[1], length, rows).any(0).astype(numbers.dtype)
    return jnp.stack([numbers, marks], axis=-1), (numbers * marks).sum(0)


def order(key: Any, length: int, rows: int) -> tuple[Any, Any]:
    """Return one-hot X, Y and distractors [T, B, 6], and which of XX, XY, YX, YY it was [B]."""
    keys = jax.random.split(key, 3)
    noise = jax.random.randint(keys[0], (length, rows), 2, 6)
    shown = jax.random.randint(keys[1], (2, rows), 0, 2)
    at_first, at_second = two_steps(keys[2], length, rows)
    symbols = jnp.where(at_first, shown[:1], jnp.where(at_second, shown[1:], noise))
    return jax.nn.one_hot(symbols, 6), 2 * shown[0] + shown[1]


def copy(key: Any, length: int, rows: int) -> tuple[Any, Any]:
    """Return one-hot symbols, blank and cue [T + 20, B, 10], and the wanted outputs [T + 20, B]."""
    symbols = jax.random.randint(key, (COPIED, rows), 0, SYMBOLS)
    blanks = jnp.full((length + COPIED, rows), SYMBOLS)
    shown = jnp.concatenate([symbols, blanks.at[length - 1].set(SYMBOLS + 1)])
    return jax.nn.one_hot(shown, SYMBOLS + 2), jnp.concatenate([blanks, symbols])


class Task(NamedTuple):
    """A task, and the number of updates in which every cell is to learn it.

    make: function of (key, T, rows) that returns a batch.
    loss: function of (outputs [T, B, K], targets) that returns losses, not yet averaged.
    inputs, outputs: widths.
    baseline: function of T that returns the loss without a memory.
    lengths: the values of T.
    updates: number of updates.
    rate: learning rate of Adam.
    """

    make: Callable[..., tuple[Any, Any]]
    loss: Callable[[Any, Any], Any]
    inputs: int
    outputs: int
    baseline: Callable[[int], float]
    lengths: list[int]
    updates: int
    rate: float


def squares(outputs: Any, sums: Any) -> Any:
    return (outputs[-1, :, 0] - sums) ** 2


def entropy(outputs: Any, classes: Any) -> Any:
    return entropies(outputs[-1], classes)


def copy_baseline(length: int) -> float:
    return COPIED * math.log(SYMBOLS) / (length + 2 * COPIED)


entropies = optax.softmax_cross_entropy_with_integer_labels
TASKS = {
    "adding": Task(adding, squares, 2, 1, lambda _: 1 / 6, [20, 40, 80, 160], 2000, 3e-3),
    "order": Task(order, entropy, 6, 4, lambda _: math.log(4), [20, 40, 80, 160], 2000, 3e-3),
    "copy": Task(copy, entropies, 10, 9, copy_baseline, [5, 10, 20, 40], 4000, 1e-2),
}


def learn(cell: Any, task: Task, length: int, updates: int, seeds: list[int]) -> Any:
    """Return the mean loss of the last tenth of the updates, as a share of the baseline [seeds]."""
    net = jaxrnn.network(cell, task.inputs, task.outputs)

    def loss(params: Any, batch: Any) -> Any:
        xs, targets = batch
        return task.loss(net.apply(params, xs)[1], targets).mean()

    make = functools.partial(task.make, length=length, rows=BATCH)
    _, losses = _training.train(net, loss, make, updates, seeds, task.rate)
    return np.asarray(losses)[:, -max(1, updates // 10) :].mean(1) / task.baseline(length)


def run(quick: bool) -> Outcome:
    seeds = [0, 1] if quick else [0, 1, 2]
    kinds = dict(list(CELLS.items())[:: 3 if quick else 1])
    # Shares of the baseline by task and cell, [T, seeds].
    shares: dict[str, Any] = {}
    rows = [["task", "cell", "T: share of the baseline (seeds in which it is solved)"]]
    numbers: dict[str, Any] = {"solved_below": SOLVED, "hidden": HIDDEN, "batch": BATCH}
    for name, task in TASKS.items():
        lengths = task.lengths[:1] if quick else task.lengths
        updates = 3 if quick else task.updates
        shares[name] = {
            kind: np.array([learn(cell, task, length, updates, seeds) for length in lengths])
            for kind, cell in kinds.items()
        }
        for kind, each in shares[name].items():
            by_length = zip(lengths, each, strict=True)
            cells = [f"{length}: {np.median(s):.3f} ({solved(s)})" for length, s in by_length]
            rows.append([name, kind, ", ".join(cells)])
        numbers[name] = {"T": lengths, "updates": updates, "learning_rate": task.rate}
        numbers[name]["share_of_baseline"] = {k: s.tolist() for k, s in shares[name].items()}
    return Outcome(rows, numbers, seeds, draw(shares))


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    parts = []
    for name in TASKS:
        task = numbers[name]
        shares = {kind: np.array(each, float) for kind, each in task["share_of_baseline"].items()}
        lengths = ", ".join(map(str, task["T"]))
        parts.append(
            f"{name} (T = {lengths}; {task['updates']} updates): {reached(shares, task['T'])}"
        )
    return (
        f"Largest T at which a cell of width {numbers['hidden']} solves the task in all of "
        f"{len(seeds)} seeds:{bullets(parts)}"
    )


def solved(shares: Any) -> str:
    """Return in how many of the seeds a task is solved."""
    return f"{(shares < SOLVED).sum()} of {len(shares)}"


def reached(by_cell: Any, lengths: list[int]) -> str:
    """Return up to which T each cell solves the task in every seed, or which cell came closest."""
    cells: dict[int, list[str]] = {}
    for kind, shares in by_cell.items():
        count = int(np.cumprod((shares < SOLVED).all(1)).sum())
        cells.setdefault(count, []).append(kind)
    if any(cells):
        best_first = sorted(cells, reverse=True)
        return "; ".join(
            f"{lengths[n - 1] if n else 'none'} for {', '.join(cells[n])}" for n in best_first
        )
    least = {kind: np.median(shares[0]) for kind, shares in by_cell.items()}
    best = min(least, key=lambda kind: np.nan_to_num(least[kind], nan=np.inf))
    share = f"{least[best]:.2f} of the baseline at T = {lengths[0]}"
    return f"solved by no cell; {best} comes closest with {share}"


def draw(shares: Any) -> Any:
    figure, panels = _drawing.figure(3, 13, 5, sharey=True)
    for axes, (name, by_cell) in zip(panels, shares.items(), strict=True):
        # [cells, T, seeds]
        every = np.array(list(by_cell.values()))
        share = np.nan_to_num(np.median(every, axis=-1), nan=np.inf)
        shade = np.log10(np.clip(share, 0.01, 1))
        image = axes.imshow(shade, cmap="Blues_r", vmin=-2, vmax=0, aspect="auto")
        for row, column in np.ndindex(share.shape):
            colour = _drawing.BLACK if share[row, column] > SOLVED else "white"
            text = f"{share[row, column]:.2f}\n{solved(every[row, column])}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(share.shape[1]), TASKS[name].lengths[: share.shape[1]])
        axes.set_yticks(range(len(by_cell)), by_cell)
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        _drawing.name_axes(axes, name, "T, steps", "")
    bar = figure.colorbar(image, ax=panels, ticks=[-2, -1, 0], pad=0.01)
    bar.ax.set_yticklabels(["0.01 or less", "0.1: solved", "1: no memory"])
    title = "Loss as a share of the loss without a memory (median); seeds that are below a tenth"
    figure.suptitle(title, x=0.01, ha="left")
    return figure
