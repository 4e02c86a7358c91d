"""The LSTM predicts text best, the GRU comes close with less computation, the plain RNN is behind.

    parameters                 (G H + V) (E + H + 1)
    operations per character   2 H (G H + V), and some for each unit       G = 1, 4, 3 for rnn, lstm, gru

(H is the width, V the number of characters, E = 64 the width of their embedding.) Each cell learns Tiny
Shakespeare and the source of Linux at the width of the LSTM; rnn and gru also learn them at the width
that gives them as many parameters as the LSTM has. Steps, batch, clipping and schedule are the same for
all. The learning rate is chosen for each cell, width and text: the one of RATES with the smallest
validation loss after a third of the steps, from a seed that is not used again. Operations are what XLA
counts for one step of the forward pass. Time is that of a whole training step, measured in turns in one
process, which makes ratios reliable even on a machine with other work.

    python -m experiments cells_compared      about 15 min on two CPU cores, or 53 s with trained models
"""

from __future__ import annotations

import bisect
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from experiments import Outcome, _drawing, _text, bullets
from jaxrnn import charlm
from jaxrnn.data.corpus import Corpus
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.training import optimizers, stepping
from jaxrnn.training.config import TrainingConfig

ROW = 8
CELLS = ("rnn", "lstm", "gru")
COLOURS = dict(zip(CELLS, (_drawing.RED, _drawing.BLUE, _drawing.GREEN), strict=True))
HIDDEN = 128
BATCH = 32
LENGTH = 64
RATES = [3e-3, 1e-2, 3e-2, 1e-1]
# The seed with which the learning rates are chosen.
SCAN_SEED = 99
MEASURES = {
    "parameters": "parameters",
    "operations": "operations per character, forward pass",
    "milliseconds": f"time of a training step ({BATCH} × {LENGTH} characters), ms",
}


def settings(cell: str, hidden: int, steps: int, rate: float, seed: int) -> TrainingConfig:
    how = {"learning_rate": rate, "eval_every": steps, "sample_every": 0, "seed": seed}
    return TrainingConfig(charlm.ModelConfig(cell, hidden_size=hidden), BATCH, LENGTH, steps, **how)


def model(cell: str, hidden: int, vocabulary: Vocabulary) -> charlm.Params:
    """Return the shapes of a char-RNN's parameters."""
    return jax.eval_shape(
        lambda: charlm.init(charlm.ModelConfig(cell, hidden_size=hidden), vocabulary)
    )


def width(cell: str, parameters: int, vocabulary: Vocabulary) -> int:
    """Return the width of a cell whose char-RNN has as nearly as possible this many parameters."""

    def count(hidden: int) -> int:
        return charlm.count(model(cell, hidden, vocabulary))

    above = bisect.bisect_left(range(1, 4096), parameters, key=count) + 1
    return min(max(above - 1, 1), above, key=lambda hidden: abs(count(hidden) - parameters))


def operations(params: charlm.Params) -> float:
    """Return the operations of one forward step for one character as XLA counts them.

    XLA does not count tanh and sigmoid.
    """
    step = functools.partial(charlm.step, params.config)
    given = jax.eval_shape(charlm.step_params, params), charlm.initial_carry(params.config, 1)
    return jax.jit(step).lower(*given, jnp.zeros(1, jnp.int32)).cost_analysis()["flops"]


def training_step(config: TrainingConfig, corpus: Corpus) -> Any:
    """Return a function that runs one compiled training step, always the same one."""
    optimizer = optimizers.make_optimizer(config, config.steps)
    state = stepping.create(config, optimizer, corpus.vocabulary)
    starts = config.batches(corpus).starts(0)
    tokens = jnp.int32(corpus.tokens[starts + np.arange(LENGTH + 1)[:, None]])
    step = jax.jit(functools.partial(stepping.train_step, optimizer))
    return lambda: jax.block_until_ready(step(state, tokens, jnp.array(True)))


def compare(
    text: _text.Text, hidden: int, steps: int, scan_steps: int, rates: list[float], seeds: list[int]
) -> list[dict[str, Any]]:
    """Measure rnn, lstm and gru of this width, then rnn and gru with as many parameters as the lstm."""
    corpus, _ = text.read()
    vocabulary = corpus.vocabulary

    def loss(*which: Any) -> float:
        return float(_text.learn(text, settings(*which)).val_losses[-1])

    target = charlm.count(model("lstm", hidden, vocabulary))
    kinds = [(cell, hidden) for cell in CELLS]
    kinds += [(cell, width(cell, target, vocabulary)) for cell in ("rnn", "gru")]
    calls = {kind: training_step(settings(*kind, steps, rates[0], 0), corpus) for kind in kinds}
    times = measure.in_turns(calls, 11 if len(seeds) > 1 else 1)
    found = []
    for cell, size in kinds:
        scan = [loss(cell, size, scan_steps, rate, SCAN_SEED) for rate in rates]
        rate, shapes = rates[int(np.argmin(scan))], model(cell, size, vocabulary)
        record = {"cell": cell, "hidden": size, "learning_rate": rate, "scan": scan}
        record["losses"] = [loss(cell, size, steps, rate, seed) for seed in seeds]
        record |= {"parameters": charlm.count(shapes), "operations": operations(shapes)}
        record["milliseconds"] = 1e3 * float(np.median(times[cell, size]["seconds"]))
        found.append(record)
    return found


def claims(rnn: Any, lstm: Any, gru: Any) -> dict[str, bool]:
    """Return which of the lecture's claims hold in one comparison of median losses."""
    rnn, lstm, gru = (float(np.median(each["losses"])) for each in (rnn, lstm, gru))
    return {
        "the LSTM has the smallest loss": lstm < min(rnn, gru),
        "the GRU is closer to the LSTM than to the RNN": abs(gru - lstm) < abs(gru - rnn),
        "the RNN has the largest loss": rnn > max(lstm, gru),
    }


def run(quick: bool) -> Outcome:
    names = ["shakespeare", "linux"]
    rates = RATES
    seeds = [0, 1, 2]
    hidden = HIDDEN
    steps = 1500
    scan_steps = 500
    if quick:
        # The runs that choose the learning rate are also the ones that are compared.
        names = ["linux"]
        rates = RATES[1:2]
        seeds = [SCAN_SEED]
        hidden = 8
        steps = 10
        scan_steps = 10
    texts = [_text.find(name, quick) for name in names]
    found = {t.label: compare(t, hidden, steps, scan_steps, rates, seeds) for t in texts}

    rows = [["text", "cell", "width", "learning rate", "validation loss, nats (range)", *MEASURES]]
    for label, records in found.items():
        for each in records:
            rows.append([label, each["cell"], f"{each['hidden']}", f"{each['learning_rate']:g}"])
            rows[-1] += [span(each), f"{each['parameters']:,}", f"{each['operations']:,.0f}"]
            rows[-1] += [f"{each['milliseconds']:.2f}"]
    numbers = {"models": found, "rates": rates, "scan_seed": SCAN_SEED, "scan_steps": scan_steps}
    numbers |= {"steps": steps, "batch": BATCH, "seq_len": LENGTH}
    return Outcome(rows, numbers, seeds, draw(found))


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    held = []
    losses = []
    shares: dict[str, list[str]] = {"operations": [], "milliseconds": []}
    for label, (rnn, lstm, gru, wide_rnn, wide_gru) in numbers["models"].items():
        for what, seen in shares.items():
            seen.append(f"{gru[what] / lstm[what]:.0%}")
        trios = {"equal width": (rnn, lstm, gru), "equal parameters": (wide_rnn, lstm, wide_gru)}
        for footing, trio in trios.items():
            held.append(claims(*trio))
            medians = ", ".join(f"{e['cell']} {np.median(e['losses']):.3f}" for e in trio)
            losses.append(f"{label}, {footing}: {medians}")
    verdicts = "; ".join(f"{claim} in {sum(h[claim] for h in held)}" for claim in held[0])
    return (
        f"Of {len(held)} comparisons (median of {len(seeds)} seeds after {numbers['steps']} "
        f"steps), {verdicts}. At equal width, a GRU takes {' and '.join(shares['operations'])} of "
        f"the LSTM's operations and {' and '.join(shares['milliseconds'])} of its time. Validation "
        f"losses in nats per character:{bullets(losses)}"
    )


def span(record: Any) -> str:
    losses = record["losses"]
    return f"{np.median(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"


def draw(found: Any) -> Any:
    figure, grid = _drawing.figure(3, 13, 4 * len(found), len(found), squeeze=False, sharey="row")
    for row, (label, records) in zip(grid, found.items(), strict=True):
        middle = np.median([each["losses"] for each in records])
        for axes, (measured, name) in zip(row, MEASURES.items(), strict=True):
            for index, each in enumerate(records):
                x = each[measured]
                losses = each["losses"]
                colour = COLOURS[each["cell"]]
                face = colour if index < len(CELLS) else "white"
                axes.plot([x, x], [min(losses), max(losses)], color=colour)
                place = x, np.median(losses)
                axes.plot(*place, "o", color=colour, markerfacecolor=face, markersize=7)
                how = {"textcoords": "offset points", "color": colour, "fontsize": 9}
                side = "bottom" if place[1] > middle else "top"
                axes.annotate("{cell} {hidden}".format(**each), place, (8, 0), va=side, **how)
            axes.set_xlim(0, 1.25 * max(each[measured] for each in records))
            axes.locator_params(axis="x", nbins=5)
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.margins(y=0.1)
            _drawing.name_axes(axes, "", name, "")
        _drawing.name_axes(
            row[0], label, row[0].get_xlabel(), "validation loss, nats per character"
        )
    title = "Cell and width; filled: equal width, hollow: as many parameters as the lstm"
    figure.suptitle(title, x=0.01, ha="left")
    return figure
