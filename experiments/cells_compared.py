"""The LSTM predicts text best, the GRU is near it for less computation, the plain RNN is behind.

    numbers to learn        (G H + V) (E + H + 1)
    operations a character  2 H (G H + V), and some for each unit       G = 1, 4, 3 for rnn, lstm, gru

(H the width, V characters, E = 64 the width of their embedding.) Each cell learns Tiny Shakespeare and
Linux' source at the LSTM's width, and rnn and gru once more at the width that gives them as many numbers
to learn as the LSTM has. Steps, batch, clipping and schedule are the same for all. The learning rate is
each cell's and width's own, of RATES the one with the least validation loss in a run of a third of the
steps on that text, from a seed that is not used again. Operations are what XLA counts in one step
forward; time is that of a whole step of training, measured in turns in one process.

    python -m experiments cells_compared      about 15 min on two CPU cores; 53 s with its models trained

On 2026-11-24: Of 4 comparisons (median of 3 seeds after 1500 steps) the LSTM has the least loss in 0;
the GRU is nearer to the LSTM than to the RNN in 2; the RNN has the greatest loss in 2. Validation loss,
nats per character: shakespeare, equal width: rnn 1.783 (1.769 to 1.794), lstm 1.618 (1.613 to 1.623),
gru 1.593 (1.591 to 1.599); shakespeare, equal parameters: rnn 1.611 (1.610 to 1.617), lstm 1.618 (1.613
to 1.623), gru 1.556 (1.550 to 1.566); linux, equal width: rnn 1.688 (1.679 to 1.698), lstm 1.593 (1.575
to 1.611), gru 1.472 (1.465 to 1.475); linux, equal parameters: rnn 1.573 (1.569 to 1.575), lstm 1.593
(1.575 to 1.611), gru 1.443 (1.437 to 1.448). At equal width a GRU takes 78% and 83% of the LSTM's
operations and 79% and 85% of its time.

So in these short runs of small networks the lecture's order does not hold: the GRU has the least loss
everywhere, and the plain RNN is behind at equal width but beside the LSTM at equal parameters. Times are
from a machine that had other work too; they are ratios measured in turns.
"""

from __future__ import annotations

import bisect
import functools
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np

from experiments import Outcome, _drawing, _text
from jaxrnn import charlm
from jaxrnn.data.corpus import Corpus
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.training import stepping
from jaxrnn.training.config import TrainingConfig

ROW = 8
CELLS = ("rnn", "lstm", "gru")
COLOURS = dict(zip(CELLS, (_drawing.RED, _drawing.BLUE, _drawing.GREEN), strict=True))
HIDDEN, BATCH, LENGTH = 128, 32, 64
RATES, SCAN_SEED = [3e-3, 1e-2, 3e-2, 1e-1], 99
MEASURES = {
    "parameters": "numbers to learn",
    "operations": "operations for a character, forward",
    "milliseconds": f"time of a training step ({BATCH} × {LENGTH} characters), ms",
}


def settings(cell: str, hidden: int, steps: int, rate: float, seed: int) -> TrainingConfig:
    how = {"learning_rate": rate, "eval_every": steps, "sample_every": 0, "seed": seed}
    return TrainingConfig(charlm.ModelConfig(cell, hidden_size=hidden), BATCH, LENGTH, steps, **how)


def model(cell: str, hidden: int, vocabulary: Vocabulary) -> charlm.Params:
    """A char-RNN's shapes without its numbers."""
    return jax.eval_shape(
        lambda: charlm.init(charlm.ModelConfig(cell, hidden_size=hidden), vocabulary)
    )


def width(cell: str, parameters: int, vocabulary: Vocabulary) -> int:
    """Of a cell whose char-RNN has as nearly as can be this many parameters."""

    def count(hidden: int) -> int:
        return charlm.count(model(cell, hidden, vocabulary))

    above = bisect.bisect_left(range(1, 4096), parameters, key=count) + 1
    return min(max(above - 1, 1), above, key=lambda hidden: abs(count(hidden) - parameters))


def operations(params: charlm.Params) -> float:
    """Of one step forward with one character, as XLA counts; tanh and sigmoid are not among them."""
    step = functools.partial(charlm.step, params.config)
    given = jax.eval_shape(charlm.prepare, params), charlm.initial_carry(params.config, 1)
    return jax.jit(step).lower(*given, jnp.zeros(1, jnp.int32)).cost_analysis()["flops"]


def training_step(config: TrainingConfig, corpus: Corpus) -> Any:
    """A call that takes one compiled step of training, always the same one."""
    optimizer = stepping.make_optimizer(config, config.steps)
    state = stepping.create(config, optimizer, corpus.vocabulary)
    starts = config.batches(corpus).starts(0)
    tokens = jnp.int32(corpus.tokens[starts + np.arange(LENGTH + 1)[:, None]])
    step = jax.jit(functools.partial(stepping.train_step, optimizer))
    return lambda: jax.block_until_ready(step(state, tokens, jnp.array(True)))


def compare(
    text: _text.Text, hidden: int, steps: int, scan_steps: int, rates: list[float], seeds: list[int]
) -> list[dict[str, Any]]:
    """All about rnn, lstm and gru of this width, then rnn and gru of as many parameters as the lstm."""
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
    """The lecture's claims in one comparison, of the median losses."""
    rnn, lstm, gru = (float(np.median(each["losses"])) for each in (rnn, lstm, gru))
    return {
        "the LSTM has the least loss": lstm < min(rnn, gru),
        "the GRU is nearer to the LSTM than to the RNN": abs(gru - lstm) < abs(gru - rnn),
        "the RNN has the greatest loss": rnn > max(lstm, gru),
    }


def run(quick: bool) -> Outcome:
    names, rates, seeds = ["shakespeare", "linux"], RATES, [0, 1, 2]
    hidden, steps, scan_steps = HIDDEN, 1500, 500
    if quick:  # the scan's runs are also the ones that are compared
        names, rates, seeds = ["linux"], RATES[1:2], [SCAN_SEED]
        hidden, steps, scan_steps = 8, 10, 10
    texts = [_text.find(name, quick) for name in names]
    found = {t.label: compare(t, hidden, steps, scan_steps, rates, seeds) for t in texts}

    rows = [["text", "cell", "width", "learning rate", "validation loss, nats (range)", *MEASURES]]
    held, told, shares = [], [], {"operations": [], "milliseconds": []}
    for label, (rnn, lstm, gru, wide_rnn, wide_gru) in found.items():
        for each in found[label]:
            rows.append([label, each["cell"], f"{each['hidden']}", f"{each['learning_rate']:g}"])
            rows[-1] += [span(each), f"{each['parameters']:,}", f"{each['operations']:,.0f}"]
            rows[-1] += [f"{each['milliseconds']:.2f}"]
        for what, seen in shares.items():
            seen.append(f"{gru[what] / lstm[what]:.0%}")
        trios = {"equal width": (rnn, lstm, gru), "equal parameters": (wide_rnn, lstm, wide_gru)}
        for footing, trio in trios.items():
            held.append(claims(*trio))
            losses = ", ".join(f"{e['cell']} {np.median(e['losses']):.3f}" for e in trio)
            told.append(f"{label}, {footing}: {losses}")
    verdicts = "; ".join(f"{claim} in {sum(h[claim] for h in held)}" for claim in held[0])
    sentence = (
        f"Of {len(held)} comparisons (median of {len(seeds)} seeds after {steps} steps) {verdicts}. "
        f"Validation loss, nats per character: {'; '.join(told)}. At equal width a GRU takes "
        f"{' and '.join(shares['operations'])} of the LSTM's operations and "
        f"{' and '.join(shares['milliseconds'])} of its time."
    )
    numbers = {"models": found, "rates": rates, "scan_seed": SCAN_SEED, "scan_steps": scan_steps}
    numbers |= {"steps": steps, "batch": BATCH, "seq_len": LENGTH}
    return Outcome(sentence, rows, numbers, seeds, draw(found))


def span(record: Any) -> str:
    losses = record["losses"]
    return f"{np.median(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"


def draw(found: Any) -> Any:
    figure, grid = _drawing.figure(3, 13, 4 * len(found), len(found), squeeze=False, sharey="row")
    for row, (label, records) in zip(grid, found.items(), strict=True):
        middle = np.median([each["losses"] for each in records])
        for axes, (measured, name) in zip(row, MEASURES.items(), strict=True):
            for index, each in enumerate(records):
                x, losses, colour = each[measured], each["losses"], COLOURS[each["cell"]]
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
    title = (
        "Cell and width; filled: of equal width, hollow: with as many numbers to learn as the lstm"
    )
    figure.suptitle(title, x=0.01, ha="left")
    return figure
