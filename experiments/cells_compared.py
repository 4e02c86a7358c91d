"""The LSTM predicts text best, the GRU comes close with less computation, the plain RNN is behind.

    parameters                 (G H + V) (E + H + 1)
    operations per character   2 H (G H + V), and some for each unit       G = 1, 4, 3 for rnn, lstm, gru

(H is the width, V the number of characters, E = 64 the width of their embedding.) Each cell learns Tiny
Shakespeare and a million bytes of the source of Linux on three terms, each compared with the LSTM:

    equal width         the same H and the same number of steps
    equal parameters    the H that gives as many parameters, the same number of steps
    equal time          the same H, and as many steps as take the time of the LSTM's training

Batch, clipping and schedule are the same for all. The learning rate is chosen for each cell, width and
text: the one of RATES with the smallest validation loss after half of the steps, from a seed that is
not used again. The loss of that run also shows how near the plateau the budget is. Operations are what
XLA counts for one step of the forward pass. Time is that of a whole training step, measured in turns in
one process, which makes ratios reliable even on a machine with other work.

The experiment also looks for the reason for the order. The state of a GRU is a mean of values in (-1,
1). The cell c of an LSTM is a sum without a bound: while a forget gate stays open, c can grow over
thousands of characters, many more than the LENGTH that gradients reach back. Where c is so large that
tanh(c) stays at 1 or -1, the unit is saturated and stores nothing. A unit is counted as saturated if
tanh(c) has a standard deviation below 0.05 in the first READ characters of the validation text. If
saturation is the reason, an LSTM with smaller cells must be better. Two checks test this at equal
width, with the learning rate chosen before; the verdict does not count them as comparisons. In the
first, the forget gates of the LSTM start nearly closed, at a bias of -2. In the second, LSTM and GRU
are trained by Muon, which replaces the gradient of each gate's matrix by an orthogonal one (learning
rate of the matrices 0.02, weight decay 0.1). The time of Muon's steps is not measured.

    python -m experiments cells_compared      2 hours on one CPU core; continues after a stop
"""

from __future__ import annotations

import bisect
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks import measure
from experiments import Holds, Outcome, Verdict, _drawing, _text
from experiments._training import best_rate, grid
from jaxrnn import charlm
from jaxrnn.data.corpus import Corpus
from jaxrnn.data.vocabulary import Vocabulary
from jaxrnn.training.config import TrainingConfig

ROW = 8
CELLS = ("rnn", "lstm", "gru")
TERMS = WIDTH, PARAMETERS, TIME = "equal width", "equal parameters", "equal time"
# Trainings that look for the reason for the order; they are not compared as TERMS are.
CHECKS = BIAS, MUON = "equal width, forget bias -2", "equal width, Muon"
HIDDEN = 96
BATCH = 32
LENGTH = 64
RATES = [3e-3, 1e-2, 3e-2]
# The seed with which the learning rates are chosen.
SCAN_SEED = 99
# Characters in which saturated units are counted.
READ = 20_000


def settings(
    cell: str, hidden: int, steps: int, rate: float, seed: int, term: str = WIDTH
) -> TrainingConfig:
    how: dict[str, Any] = {"learning_rate": rate, "eval_every": steps, "sample_every": 0}
    how |= {"seed": seed}
    if term == MUON:
        how |= {"optimizer": "muon", "weight_decay": 0.1}
    bias = -2.0 if term == BIAS else 1.0
    shape = charlm.ModelConfig(cell, hidden_size=hidden, forget_bias=bias)
    return TrainingConfig(shape, BATCH, LENGTH, steps, **how)


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


def saturated(params: charlm.Params, corpus: Corpus) -> float:
    """Return the share of an LSTM's units whose tanh(c) hardly changes while it reads."""
    tokens = jnp.asarray(corpus.tokens[corpus.split :][:READ], jnp.int32)[:, None]
    carry = charlm.initial_carry(params.config, 1)
    _, _, [layer] = charlm.record(params, tokens, carry, ["cell"])
    return float((jnp.tanh(layer["cell"]).std((0, 1)) < 0.05).mean())


class Budget(NamedTuple):
    """The settings of a comparison: width and steps of the LSTM, learning rates to try, and seeds."""

    hidden: int
    steps: int
    scan_steps: int
    rates: list[float]
    seeds: list[int]


def compare(text: _text.Text, budget: Budget) -> list[dict[str, Any]]:
    """Measure the cells on one text: a record for each cell on each term, the LSTM's on equal width."""
    corpus, _ = text.read()
    vocabulary = corpus.vocabulary

    def learn(*which: Any) -> _text.Run:
        return _text.learn(text, settings(*which))

    target = charlm.count(model("lstm", budget.hidden, vocabulary))
    contenders = [(WIDTH, cell, budget.hidden) for cell in CELLS]
    contenders += [(PARAMETERS, cell, width(cell, target, vocabulary)) for cell in ("rnn", "gru")]
    calls = {
        (cell, hidden): _text.training_step(settings(cell, hidden, budget.steps, 0.01, 0), corpus)
        for _, cell, hidden in contenders
    }
    times = measure.in_turns(calls, 25 if len(budget.seeds) > 1 else 1)
    seconds = {kind: float(np.median(times[kind]["seconds"])) for kind in calls}
    contenders += [(TIME, cell, budget.hidden) for cell in ("rnn", "gru")]
    checks = [(BIAS, "lstm"), (MUON, "lstm"), (MUON, "gru")]
    contenders += [(*check, budget.hidden) for check in checks]
    rates: dict[tuple[str, int], float] = {}
    found = []
    for term, cell, hidden in contenders:
        kind, shapes = (cell, hidden), model(cell, hidden, vocabulary)
        record: dict[str, Any] = {"term": term, "cell": cell, "hidden": hidden}
        if kind not in rates:
            scan = [
                float(learn(cell, hidden, budget.scan_steps, rate, SCAN_SEED).val_losses[-1])
                for rate in budget.rates
            ]
            rates[kind] = best_rate(budget.rates, scan)
            record["scan"] = scan
        # Round to quarters: a run that was stopped must find its models again, and times vary.
        share = max(1.0, round(4 * seconds["lstm", budget.hidden] / seconds[kind]) / 4)
        steps = round(budget.steps * share) if term == TIME else budget.steps
        record |= {"learning_rate": rates[kind], "steps": steps}
        runs = [learn(cell, hidden, steps, rates[kind], seed, term) for seed in budget.seeds]
        record["losses"] = [float(run.val_losses[-1]) for run in runs]
        record["training_losses"] = [float(run.losses[-10:].mean()) for run in runs]
        if cell == "lstm":
            record["saturated"] = [saturated(run.params, corpus) for run in runs]
        record |= {"parameters": charlm.count(shapes), "operations": operations(shapes)}
        if term != MUON:
            record["milliseconds"] = 1e3 * seconds[kind]
        found.append(record)
    return found


def trained_steps(record: dict[str, Any], budget: Budget) -> int:
    """Return the training steps behind a record: those of all seeds, and those that chose its rate."""
    chosen: int = budget.scan_steps * len(record.get("scan", []))
    return chosen + record["steps"] * len(budget.seeds)


def run(quick: bool) -> Outcome:
    budget = Budget(HIDDEN, 5000, 2500, RATES, [0, 1, 2, 3, 4])
    if quick:
        # The runs that choose the learning rate are also the ones that are compared.
        budget = Budget(8, 8, 8, RATES[1:2], [SCAN_SEED])
    texts = [_text.find("linux", quick)]
    if not quick:
        texts = [_text.find("shakespeare", quick), _text.beginning(texts[0], _text.MILLION)]
    found = {text.label: compare(text, budget) for text in texts}
    numbers = {"models": found, "rates": budget.rates, "scan_seed": SCAN_SEED}
    numbers |= {"scan_steps": budget.scan_steps, "batch": BATCH, "seq_len": LENGTH}
    # Muon's steps were not timed, so count them as long as Adam's.
    seconds = sum(
        each.get("milliseconds", of(records, WIDTH)[each["cell"]]["milliseconds"])
        / 1e3
        * trained_steps(each, budget)
        for records in found.values()
        for each in records
    )
    return Outcome(numbers, budget.seeds, training_seconds=seconds)


def trio(records: list[dict[str, Any]], term: str) -> dict[str, dict[str, Any]]:
    """Return the records of the three cells on one term, by cell; the LSTM's is that of equal width."""
    return {"lstm": of(records, WIDTH)["lstm"]} | of(records, term)


def of(records: list[dict[str, Any]], term: str) -> dict[str, dict[str, Any]]:
    """Return the records that belong to one term, by cell."""
    return {each["cell"]: each for each in records if each["term"] == term}


def claims(records: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Return which parts of the lecture's claim hold among the median losses of the three cells."""
    rnn, lstm, gru = (float(np.median(records[cell]["losses"])) for cell in CELLS)
    return {
        "the LSTM has the smallest loss": lstm < min(rnn, gru),
        "the GRU is closer to the LSTM than to the RNN": abs(gru - lstm) < abs(gru - rnn),
        "the RNN has the largest loss": rnn > max(lstm, gru),
    }


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    rates = grid(numbers["rates"], numbers["scan_steps"])
    rows = [["text", "on", "cell", "width", rates, "steps", "validation loss, nats (range)"]]
    rows[0] += [
        "after a training of half the steps",
        "training loss, nats (range)",
        "saturated units (range)",
        "parameters",
        "operations per character",
        "ms per step",
        "seconds of training",
    ]
    for label, records in numbers["models"].items():
        for each in records:
            losses = each["losses"]
            rows.append([label, each["term"], each["cell"], f"{each['hidden']}"])
            rows[-1] += [f"{each['learning_rate']:g}", f"{each['steps']:,}"]
            rows[-1] += [_drawing.spread(losses), half(each)]
            rows[-1] += [_drawing.spread(each["training_losses"]), share(each)]
            rows[-1] += [f"{each['parameters']:,}", f"{each['operations']:,.0f}"]
            if "milliseconds" not in each:
                rows[-1] += ["-", "-"]
                continue
            rows[-1] += [f"{each['milliseconds']:.1f}"]
            rows[-1] += [f"{each['milliseconds'] * each['steps'] / 1e3:.0f}"]
    return rows


def half(each: dict[str, Any]) -> str:
    """Return the loss of the trial with the chosen learning rate, which had half of the steps."""
    return f"{np.nanmin(each['scan']):.3f}" if "scan" in each else "-"


def share(each: dict[str, Any]) -> str:
    """Return the share of saturated units."""
    if "saturated" not in each:
        return "-"
    shares = [100 * part for part in each["saturated"]]
    return f"{np.median(shares):.0f}% ({min(shares):.0f} to {max(shares):.0f})"


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    found = [
        claims(trio(records, term)) for records in numbers["models"].values() for term in TERMS
    ]
    best, near, last = (sum(each[claim] for each in found) for claim in found[0])
    every = len(found)
    if best == near == last == every:
        holds = Holds.YES
    else:
        holds = Holds.PARTLY if last == every or best > every / 2 else Holds.NO
    pairs = [of(records, MUON) for records in numbers["models"].values()]
    ahead = sum(
        np.median(pair["lstm"]["losses"]) < np.median(pair["gru"]["losses"]) for pair in pairs
    )
    return Verdict(
        holds,
        f"of {every} comparisons, the RNN is last in {last} and the LSTM first in "
        f"{best}; the GRU is closer to the LSTM than to the RNN in {near}. With Muon, the LSTM "
        f"is ahead of the GRU on {ahead} of {len(pairs)} texts.",
        f"비교 {every}가지 중 RNN이 꼴찌인 경우는 {last}가지, LSTM이 가장 좋은 경우는 "
        f"{best}가지이고, GRU가 RNN보다 LSTM에 가까운 경우는 {near}가지입니다. Muon으로 학습하면 "
        f"텍스트 {len(pairs)}개 중 {ahead}개에서 LSTM이 GRU를 앞섭니다.",
    )


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, panels = _drawing.figure(len(numbers["models"]), height=5.6, squeeze=False)
    for axes, (label, records) in zip(panels[:, 0], numbers["models"].items(), strict=True):
        places, names, place = [], [], 0
        for term in (*TERMS, *CHECKS):
            axes.annotate(
                term, (0, place - 0.75), xycoords=("axes fraction", "data"), style="italic", va="center"
            )  # fmt: skip
            shown = trio(records, term) if term in TERMS else of(records, term)
            for cell, each in sorted(shown.items()):
                colour, losses = _drawing.CELLS[cell], each["losses"]
                axes.plot(
                    [min(losses), max(losses)], [place, place], color=colour, alpha=0.4, linewidth=6
                )
                axes.plot(np.median(losses), place, "o", color=colour, markersize=8)
                places.append(place)
                names.append(f"{cell} {each['hidden']}")
                place += 1
            # Leave a row for the name of the next term.
            place += 1
        axes.set_yticks(places, names)
        axes.set_ylim(max(places) + 0.7, -1.2)
        axes.grid(axis="x", alpha=0.3)
        _drawing.name_axes(
            axes, f"{label} ({len(seeds)} seeds)", "validation loss, nats per character", ""
        )
    return figure
