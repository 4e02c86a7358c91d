"""What must be remembered longer is learnt by fewer cells: adding, temporal order and copy at growing T.

The tasks of Hochreiter & Schmidhuber 1997, the copy task as it is posed since. A batch of each is fresh:

    adding   a number uniform in [0, 1] and a marker come in at each of T steps; two steps are marked,
             one in each half; out after the last step is the sum of the two numbers. Squared error;
             that of always answering 1 is 1/6.
    order    one of four distractors comes in at each of T steps, but at one step of each half X or Y;
             out after the last is which of XX, XY, YX, YY it was. Cross-entropy; a guess has ln 4.
    copy     10 symbols of 8, T - 1 blanks, a cue and 10 blanks come in; out are T + 10 blanks and the
             10 symbols. Mean cross-entropy of all steps; without a memory it is 10 ln 8 / (T + 20).

Width and batch are the same throughout, updates and rate for all cells of a task. It counts as solved
where the mean loss of the last tenth of the updates is below a tenth of the loss without a memory.

    python -m experiments long_memory      14 min on two CPU cores

On 2026-11-24: Up to which T a cell of width 32 solves a task in every one of 3 seeds. adding (T of 20,
40, 80, 160; 2000 updates): 160 gru reset before, gru reset after; 80 lstm, lstm peepholes; 40 rnn relu;
none rnn tanh. order (T of 20, 40, 80, 160; 2000 updates): 160 lstm, lstm peepholes, gru reset before,
gru reset after; 80 rnn relu; 20 rnn tanh. copy (T of 5, 10, 20, 40; 4000 updates): none solves it,
nearest is lstm peepholes with 0.33 of the baseline at T = 5.
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
from experiments import Outcome, _drawing, _training

ROW = 4
HIDDEN, BATCH = 32, 32
SYMBOLS, COPIED, SOLVED = 8, 10, 0.1
CELLS = {
    "rnn tanh": jaxrnn.rnn(HIDDEN),
    "rnn relu": jaxrnn.rnn(HIDDEN, "relu"),
    "lstm": jaxrnn.lstm(HIDDEN),
    "lstm peepholes": jaxrnn.lstm(HIDDEN, peephole=True),
    "gru reset before": jaxrnn.gru(HIDDEN),
    "gru reset after": jaxrnn.gru(HIDDEN, reset="after"),
}


def two_steps(key: Any, length: int, rows: int) -> Any:
    """[2, T, B] bool, true at a random step of the first half and at one of the second."""
    keys = jax.random.split(key)
    first = jax.random.randint(keys[0], (rows,), 0, length // 2)
    second = jax.random.randint(keys[1], (rows,), length // 2, length)
    return jnp.arange(length)[None, :, None] == jnp.stack([first, second])[:, None]


def adding(key: Any, length: int, rows: int) -> tuple[Any, Any]:
    """Numbers and markers [T, B, 2], and the sum [B] of the two marked numbers."""
    keys = jax.random.split(key)
    numbers = jax.random.uniform(keys[0], (length, rows))
    marks = two_steps(keys[1], length, rows).any(0).astype(numbers.dtype)
    return jnp.stack([numbers, marks], axis=-1), (numbers * marks).sum(0)


def order(key: Any, length: int, rows: int) -> tuple[Any, Any]:
    """One-hot X, Y and four distractors [T, B, 6], and which of XX, XY, YX, YY it was [B]."""
    keys = jax.random.split(key, 3)
    noise = jax.random.randint(keys[0], (length, rows), 2, 6)
    shown = jax.random.randint(keys[1], (2, rows), 0, 2)
    at_first, at_second = two_steps(keys[2], length, rows)
    symbols = jnp.where(at_first, shown[:1], jnp.where(at_second, shown[1:], noise))
    return jax.nn.one_hot(symbols, 6), 2 * shown[0] + shown[1]


def copy(key: Any, length: int, rows: int) -> tuple[Any, Any]:
    """One-hot 8 symbols, blank and cue [T + 20, B, 10], and what is to come out [T + 20, B]."""
    symbols = jax.random.randint(key, (COPIED, rows), 0, SYMBOLS)
    blanks = jnp.full((length + COPIED, rows), SYMBOLS)
    shown = jnp.concatenate([symbols, blanks.at[length - 1].set(SYMBOLS + 1)])
    return jax.nn.one_hot(shown, SYMBOLS + 2), jnp.concatenate([blanks, symbols])


class Task(NamedTuple):
    """A task and the budget in which every cell is to learn it."""

    make: Callable[..., tuple[Any, Any]]  # a batch, of (key, T, rows)
    loss: Callable[[Any, Any], Any]  # of (outputs [T, B, K], targets), not yet averaged
    inputs: int
    outputs: int
    baseline: Callable[[int], float]  # the loss without a memory, of T
    lengths: list[int]  # T
    updates: int
    rate: float  # Adam's


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
    """Mean loss of the last tenth of the updates, as a share of the baseline [seeds]."""
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
    shares: dict[str, Any] = {}  # of the baseline, by task and cell [T, seeds]
    rows = [["task", "cell", "T: share of the baseline (seeds in which it is solved)"]]
    told = [
        f"Up to which T a cell of width {HIDDEN} solves a task in every one of {len(seeds)} seeds"
    ]
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
            said = [f"{length}: {np.median(s):.3f} ({solved(s)})" for length, s in by_length]
            rows.append([name, kind, ", ".join(said)])
        tried = f"{name} (T of {', '.join(map(str, lengths))}; {updates} updates)"
        told.append(f"{tried}: {reached(shares[name], lengths)}")
        numbers[name] = {"T": lengths, "updates": updates, "learning_rate": task.rate}
        numbers[name]["share_of_baseline"] = {k: s.tolist() for k, s in shares[name].items()}
    return Outcome(". ".join(told) + ".", rows, numbers, seeds, draw(shares))


def solved(shares: Any) -> str:
    """In how many of the seeds."""
    return f"{(shares < SOLVED).sum()} of {len(shares)}"


def reached(by_cell: Any, lengths: list[int]) -> str:
    """Up to which T the task is solved in every seed, and by which cells; or who came nearest."""
    cells: dict[int, list[str]] = {}
    for kind, shares in by_cell.items():
        count = int(np.cumprod((shares < SOLVED).all(1)).sum())
        cells.setdefault(count, []).append(kind)
    if any(cells):
        told = [(lengths[n - 1] if n else "none", ", ".join(cells[n])) for n in sorted(cells)[::-1]]
        return "; ".join(f"{length} {kinds}" for length, kinds in told)
    least = {kind: np.median(shares[0]) for kind, shares in by_cell.items()}
    best = min(least, key=lambda kind: np.nan_to_num(least[kind], nan=np.inf))
    share = f"{least[best]:.2f} of the baseline at T = {lengths[0]}"
    return f"none solves it, nearest is {best} with {share}"


def draw(shares: Any) -> Any:
    figure, panels = _drawing.figure(3, 13, 5, sharey=True)
    for axes, (name, by_cell) in zip(panels, shares.items(), strict=True):
        every = np.array(list(by_cell.values()))  # [cells, T, seeds]
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
    title = "Loss as a share of that without a memory (median); seeds in which it is below a tenth"
    figure.suptitle(title, x=0.01, ha="left")
    return figure
