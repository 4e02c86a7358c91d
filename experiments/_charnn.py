"""The common part of the experiments on Shakespeare and on C: three programs, trained for equal times.

The code that the lecture links has two programs. Ours is a smaller network with a higher learning rate,
which falls to 0 by a cosine within the given time. All are trained by `jaxrnn.train` and write texts at
temperature 1. The same measures are taken of these texts and of held-out text of the same length.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import jaxrnn
from experiments import Outcome, _drawing, _text, bullets
from jaxrnn import charlm
from jaxrnn.data.corpus import Corpus
from jaxrnn.presets import PRESETS
from jaxrnn.training.config import TrainingConfig

# The shares of correct items in some texts, 0 to 1, by name; NaN where there are no items.
Measure = Callable[[list[str]], dict[str, float]]

# Number of texts that each model writes, and characters of each.
TEXTS = 5
LENGTH = 4000
HELD_OUT = "held-out text"
UNTRAINED = "untrained"


class Program(NamedTuple):
    """A training program.

    settings: what it trains and how.
    colour: its colour in the pictures.
    seconds: approximate time of a step on two cores of an AMD EPYC with AVX-512, from which the number
      of steps follows.
    """

    settings: TrainingConfig
    colour: str
    seconds: float


PROGRAMS = {
    "ours": Program(
        TrainingConfig(
            model=charlm.ModelConfig(hidden_size=256, dropout=0.15, weight_dropout=0.1),
            batch=32,
            learning_rate=5e-3,
            eval_every=150,
        ),
        _drawing.BLUE,
        0.0442,
    ),
    "lecture, older": Program(
        TrainingConfig(
            model=charlm.ModelConfig(layers=2, hidden_size=128, embedding_size=128),
            batch=50,
            seq_len=50,
            learning_rate=2e-3,
            schedule="constant",
            warmup=0,
            beta2=0.999,
            clip_norm=5.0,
            eval_every=200,
        ),
        _drawing.RED,
        0.0223,
    ),
    "lecture, newer": Program(
        dataclasses.replace(PRESETS["lecture"].training, log_every=5, eval_every=20),
        _drawing.GREEN,
        1.0,
    ),
}
# Epochs of the programs in the lecture.
EPOCHS = {"lecture, older": 2, "lecture, newer": 10}


class Writer(NamedTuple):
    """A source of texts: a program, or the text or model that it is compared with.

    texts: [seeds] lists of texts.
    measures: shares [seeds] by name.
    runs: [seeds] trained models; empty where nothing was trained.
    """

    texts: list[list[str]]
    measures: dict[str, np.ndarray]
    runs: list[_text.Run]


class Study(NamedTuple):
    """The writers by name, the settings by program, and the text that was learnt."""

    writers: dict[str, Writer]
    settings: dict[str, TrainingConfig]
    corpus: Corpus
    seeds: list[int]

    def characters(self, name: str) -> np.ndarray:
        """Return the number of characters that a program had read at each validation loss."""
        settings = self.settings[name]
        return self.writers[name].runs[0].val_steps * settings.batch * settings.seq_len

    def seconds(self, name: str) -> np.ndarray:
        """Return the seconds of training at each validation loss, median over the seeds."""
        runs = self.writers[name].runs
        return self.characters(name) / np.median([run.speed for run in runs])

    def losses(self, name: str) -> np.ndarray:
        """Return the validation losses [seeds, points]."""
        return np.array([run.val_losses for run in self.writers[name].runs])

    def epochs(self, name: str) -> float:
        """Return how many times a program read the training text."""
        settings = self.settings[name]
        return float(settings.steps or 0) / settings.batches(self.corpus).per_epoch


def study(source: _text.Text, seconds: float, quick: bool, mark: str, measure: Measure) -> Study:
    """Train the programs, let them write texts, and measure these.

    Args:
      source: the text to learn.
      seconds: time to train each program and seed.
      quick: whether to train tiny models for a few steps.
      mark: the characters after which the texts begin, the held-out ones too.
      measure: the measures of the texts of one seed.
    """
    seeds = [0] if quick else [0, 1, 2]
    corpus, _ = source.read()
    held_out = corpus.vocabulary.decode(corpus.tokens[corpus.split :])
    real = pieces(held_out, mark, len(seeds))
    programs = {name: settings(each, seconds, quick) for name, each in PROGRAMS.items()}
    writers = {HELD_OUT: Writer(real, measured(real, measure), [])}
    for name, program in programs.items():
        each = [dataclasses.replace(program, seed=seed) for seed in seeds]
        runs = [_text.learn(source, one) for one in each]
        texts = [write(run.params, mark, seed) for run, seed in zip(runs, seeds, strict=True)]
        writers[name] = Writer(texts, measured(texts, measure), runs)
    model = programs["ours"].model
    fresh = [charlm.init(model, corpus.vocabulary, seed) for seed in seeds]
    texts = [write(params, mark, seed) for params, seed in zip(fresh, seeds, strict=True)]
    writers[UNTRAINED] = Writer(texts, measured(texts, measure), [])
    return Study(writers, programs, corpus, seeds)


def settings(program: Program, seconds: float, quick: bool) -> TrainingConfig:
    """Return a program's settings for a number of seconds."""
    given = dataclasses.replace(program.settings, sample_every=0)
    if not quick:
        each = given.log_every
        return dataclasses.replace(given, steps=each * round(seconds / program.seconds / each))
    model = charlm.ModelConfig(hidden_size=16, embedding_size=16)
    steps = {"steps": 4, "log_every": 1, "eval_every": 2}
    return dataclasses.replace(given, model=model, batch=32, seq_len=50, **steps)


def write(params: jaxrnn.Params, mark: str, seed: int) -> list[str]:
    """Return TEXTS texts by a model, which begin after `mark`."""
    texts = jaxrnn.sample_many(params, mark, LENGTH, seed=seed, count=TEXTS)
    return [whole_lines(each.removeprefix(mark)) for each in texts]


def pieces(held_out: str, mark: str, seeds: int) -> list[list[str]]:
    """Return TEXTS pieces of a text for each seed, spread over it and beginning after a `mark`."""
    places = np.linspace(0, max(0, len(held_out) - 2 * LENGTH), seeds * TEXTS).astype(int)
    found = [max(at, held_out.find(mark, at) + len(mark)) for at in places.tolist()]
    cut = [whole_lines(held_out[at : at + LENGTH]) for at in found]
    return [cut[seed::seeds] for seed in range(seeds)]


def whole_lines(piece: str) -> str:
    """Return a text without its last line, which was cut off; a single line is kept."""
    return piece[: piece.rfind("\n") + 1] or piece


def measured(texts: list[list[str]], measure: Measure) -> dict[str, np.ndarray]:
    """Return the measures by name, each [seeds]."""
    each = [measure(of_one_seed) for of_one_seed in texts]
    return {name: np.array([shares[name] for shares in each]) for name in each[0]}


def percent(shares: np.ndarray) -> str:
    """Return median and range in percent, over the seeds that have any items."""
    found = 100 * shares[~np.isnan(shares)]
    if not len(found):
        return "none"
    return f"{np.median(found):.0f}% ({found.min():.0f} to {found.max():.0f})"


def summary(numbers: dict[str, Any], seeds: list[int], measures: list[str]) -> str:
    """Return the losses, how many epochs were read, and some of the measures, in words."""
    losses = []
    for name, program in numbers["programs"].items():
        last = np.array(program["validation_loss"])[:, -1]
        seconds = program["characters"][-1] / np.median(program["characters_per_second"])
        read = f"{program['epochs']:.2g} epochs"
        if name in EPOCHS:
            read += f" (in the lecture {EPOCHS[name]})"
        losses.append(f"{name}: {np.median(last):.3f} after {seconds:.0f} s and {read}")
    writers = numbers["measures"]
    shares = []
    for measure in measures:
        medians = [
            percent(np.array(shares_of[measure], float)).split(" (")[0]
            for shares_of in writers.values()
        ]
        shares.append(f"{measure}: {' / '.join(medians)}")
    return (
        f"Validation loss in nats per character, median of {len(seeds)} seeds:"
        f"{bullets(losses)}\n\nShares in the texts of {' / '.join(writers)}:{bullets(shares)}"
    )


def outcome(study: Study, language: str, figure: Figure) -> Outcome:
    """Return the table, the numbers and the samples of a study."""
    names = list(study.writers[HELD_OUT].measures)
    rows = [
        ["writer", "parameters", "training, s", "epochs", "validation loss, nats", *names],
    ]
    for name, writer in study.writers.items():
        shares = [percent(each) for each in writer.measures.values()]
        if not writer.runs:
            rows.append([name, "-", "-", "-", "-", *shares])
            continue
        lasts = study.losses(name)[:, -1]
        rows.append(
            [
                name,
                f"{charlm.count(writer.runs[0].params):,}",
                f"{study.seconds(name)[-1]:.0f}",
                f"{study.epochs(name):.2g}",
                f"{np.median(lasts):.3f} ({lasts.min():.3f} to {lasts.max():.3f})",
                *shares,
            ]
        )
    numbers: dict[str, Any] = {"measures": {}, "programs": {}, "texts": TEXTS, "length": LENGTH}
    for name, writer in study.writers.items():
        numbers["measures"][name] = {
            measure: [None if math.isnan(share) else round(share, 4) for share in shares.tolist()]
            for measure, shares in writer.measures.items()
        }
        if writer.runs:
            numbers["programs"][name] = {
                "settings": dataclasses.asdict(study.settings[name]),
                "epochs": study.epochs(name),
                "characters": study.characters(name).tolist(),
                "validation_loss": study.losses(name).round(5).tolist(),
                "characters_per_second": [round(run.speed) for run in writer.runs],
                "seconds_with_validation": [round(run.seconds, 1) for run in writer.runs],
            }
    pages = {"samples.md": samples(study, language)}
    return Outcome(rows, numbers, study.seeds, figure, pages)


def samples(study: Study, language: str, length: int = 900) -> str:
    """Return a page with the beginning of the first text of each writer."""
    parts = ["# Samples\n\nThe beginning of the first text of seed 0, at temperature 1.\n"]
    for name, writer in study.writers.items():
        shown = whole_lines(writer.texts[0][0][:length]).strip("\n")
        shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in shown)
        parts.append(f"## {name}\n\n~~~{language}\n{shown}\n~~~\n")
    return "\n".join(parts)


def curves(study: Study, axes: Any, whole: Mapping[str, Any]) -> None:
    """Draw the validation loss against seconds and against characters read, side by side.

    whole: (characters, losses, label) of a longer run by program, drawn on the right.
    """
    by_time, by_characters = axes
    ends = []
    for name in PROGRAMS:
        colour = PROGRAMS[name].colour
        losses = study.losses(name)
        seconds = study.seconds(name)
        _drawing.band(
            by_characters, study.characters(name), losses, colour, marker="o", markersize=3
        )
        middle = _drawing.band(by_time, seconds, losses, colour, marker="o", markersize=3)
        ends.append((middle[-1], f"{name}  {middle[-1]:.2f}", colour))
        share = EPOCHS.get(name, np.inf) / study.epochs(name)
        if share < 1:
            # The program has done all its epochs in the lecture before the end.
            place = (share * seconds[-1], np.interp(share * seconds[-1], seconds, middle))
            by_time.plot(*place, "o", color=colour, markerfacecolor="white", markersize=8)
            by_time.annotate(
                f"its {EPOCHS[name]} epochs", place, (8, 4), textcoords="offset points",
                color=colour, fontsize=9,
            )  # fmt: skip
    for name, (characters, losses, label) in whole.items():
        how = {"color": PROGRAMS[name].colour}
        by_characters.plot(characters, losses, ":", linewidth=1, **how)
        by_characters.annotate(
            label, (characters[-1], losses[-1]), (5, 0), textcoords="offset points",
            fontsize=9, va="center", annotation_clip=False, **how,
        )  # fmt: skip
    least = min([y for y, _, _ in ends] + [min(losses) for _, losses, _ in whole.values()])
    first = max(study.losses(name)[:, 0].max() for name in PROGRAMS)
    for each in axes:
        each.set_ylim(least - 0.05, max(least + 0.5, min(2 * least, first)))
    by_time.set_xlim(0, max(study.seconds(name)[-1] for name in PROGRAMS))
    by_characters.set_xscale("log")
    decades = np.log10(by_characters.dataLim.intervalx)
    by_characters.set_xlim(10 ** np.floor(decades[0]), 10 ** np.ceil(decades[1]))
    by_characters.xaxis.set_minor_formatter(NullFormatter())
    _drawing.label_ends(by_time, ends)
    loss = "validation loss, nats per character"
    title = f"By time of training (median and range of {len(study.seeds)} seeds)"
    _drawing.name_axes(by_time, title, "seconds of training", loss)
    title = "By characters read" + ("; dotted: longer runs, one seed" * bool(whole))
    _drawing.name_axes(by_characters, title, "characters read", loss)


def shares(study: Study, axes: Any) -> None:
    """Draw each measure: a dot for the median of each writer and a line for the range of the seeds."""
    colours = {name: program.colour for name, program in PROGRAMS.items()}
    colours |= {HELD_OUT: _drawing.BLACK, UNTRAINED: _drawing.GREY}
    for each, measure in zip(axes, study.writers[HELD_OUT].measures, strict=True):
        for place, (name, writer) in enumerate(study.writers.items()):
            found = 100 * writer.measures[measure][~np.isnan(writer.measures[measure])]
            how = {"color": colours[name]}
            if not len(found):
                each.text(2, place, "none", va="center", fontsize=9, **how)
                continue
            if name == HELD_OUT:
                each.axvline(np.median(found), linestyle="--", linewidth=1, color=_drawing.GREY)
            each.plot([found.min(), found.max()], [place, place], linewidth=4, alpha=0.3, **how)
            each.plot(np.median(found), place, "o", **how)
            left = np.median(found) > 50
            each.annotate(
                f"{np.median(found):.0f}", (found.min() if left else found.max(), place),
                (-8 if left else 8, 0), textcoords="offset points", va="center",
                ha="right" if left else "left", fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, **how,
            )  # fmt: skip
        each.set(xlim=(0, 101), ylim=(len(study.writers) - 0.5, -0.5))
        each.set_yticks(range(len(study.writers)), list(study.writers))
        _drawing.name_axes(each, measure, "% (dashed: held-out text)", "")
    for each in axes[1:]:
        each.tick_params(labelleft=False)


def picture(study: Study, whole: Mapping[str, Any]) -> Figure:
    """Draw the curves above and the measures below."""
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.5, 1])
    upper = above.subplots(1, 2)
    lower = np.atleast_1d(below.subplots(1, len(study.writers[HELD_OUT].measures)))
    for each in [*upper, *lower]:
        each.spines[["top", "right"]].set_visible(False)
    curves(study, upper, whole)
    shares(study, lower)
    return figure
