"""What the experiments on Shakespeare and on C share: three programs, each for about the same time.

The lecture's linked code has two programs. Ours is a smaller network at a higher learning rate, which
falls to 0 by a cosine within the time there is. All are trained by `jaxrnn.train` and write texts at
temperature 1, which are measured as held-out text cut to the same length is.
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
from experiments import Outcome, _drawing, _text
from jaxrnn import charlm, train
from jaxrnn.data.corpus import Corpus
from jaxrnn.training.config import TrainingConfig

Measure = Callable[[list[str]], dict[str, float]]  # shares of 0 to 1; NaN where there is none

TEXTS, LENGTH = 5, 4000  # that each model writes, and characters of each
HELD_OUT, UNTRAINED = "held-out text", "untrained"


class Program(NamedTuple):
    """Settings, their colour in the pictures, and the seconds of a step.

    seconds: about, on two cores of an AMD EPYC with AVX-512; the time is shared out by them.
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
        dataclasses.replace(train.PRESETS["lecture"].training, log_every=5, eval_every=20),
        _drawing.GREEN,
        1.0,
    ),
}
EPOCHS = {"lecture, older": 2, "lecture, newer": 10}  # of the lecture's programs


class Writer(NamedTuple):
    """What wrote texts: a program, or what it is held against.

    texts: [seeds] lists of texts.
    measures: by name, [seeds].
    runs: [seeds]; none where nothing was trained.
    """

    texts: list[list[str]]
    measures: dict[str, np.ndarray]
    runs: list[_text.Run]


class Study(NamedTuple):
    """The writers by name, and what was trained: settings by program and the text."""

    writers: dict[str, Writer]
    settings: dict[str, TrainingConfig]
    corpus: Corpus
    seeds: list[int]

    def characters(self, name: str) -> np.ndarray:
        """What a program had read at each of its validation losses."""
        settings = self.settings[name]
        return self.writers[name].runs[0].val_steps * settings.batch * settings.seq_len

    def seconds(self, name: str) -> np.ndarray:
        """Of training, at each of its validation losses: the median over the seeds."""
        runs = self.writers[name].runs
        return self.characters(name) / np.median([run.speed for run in runs])

    def losses(self, name: str) -> np.ndarray:
        """Validation losses [seeds, points]."""
        return np.array([run.val_losses for run in self.writers[name].runs])

    def epochs(self, name: str) -> float:
        """How many times a program read the training text."""
        settings = self.settings[name]
        return float(settings.steps or 0) / settings.batches(self.corpus).per_epoch


def study(source: _text.Text, seconds: float, quick: bool, mark: str, measure: Measure) -> Study:
    """Train the programs, let them write, and measure that.

    Args:
      source: the text.
      seconds: of training, for each program and seed.
      quick: a few steps of tiny models.
      mark: after which the texts begin, those that are held out too.
      measure: of the texts of one seed.
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
    """A program's settings, for a number of seconds."""
    given = dataclasses.replace(program.settings, sample_every=0)
    if not quick:
        each = given.log_every
        return dataclasses.replace(given, steps=each * round(seconds / program.seconds / each))
    model, steps = (
        charlm.ModelConfig(hidden_size=16, embedding_size=16),
        {"steps": 4, "log_every": 1, "eval_every": 2},
    )
    return dataclasses.replace(given, model=model, batch=32, seq_len=50, **steps)


def write(params: jaxrnn.Params, mark: str, seed: int) -> list[str]:
    """TEXTS texts of a model, that begin after `mark`."""
    texts = jaxrnn.sample(params, mark, LENGTH, seed=seed, count=TEXTS)
    return [whole_lines(each.removeprefix(mark)) for each in texts]


def pieces(held_out: str, mark: str, seeds: int) -> list[list[str]]:
    """TEXTS pieces for each seed, spread over a text, each from after a `mark` where there is one."""
    places = np.linspace(0, max(0, len(held_out) - 2 * LENGTH), seeds * TEXTS).astype(int)
    found = [max(at, held_out.find(mark, at) + len(mark)) for at in places.tolist()]
    cut = [whole_lines(held_out[at : at + LENGTH]) for at in found]
    return [cut[seed::seeds] for seed in range(seeds)]


def whole_lines(piece: str) -> str:
    """A text without its last line, which was cut off; all of it where it is one line."""
    return piece[: piece.rfind("\n") + 1] or piece


def measured(texts: list[list[str]], measure: Measure) -> dict[str, np.ndarray]:
    """The measures by name, each [seeds]."""
    each = [measure(of_one_seed) for of_one_seed in texts]
    return {name: np.array([shares[name] for shares in each]) for name in each[0]}


def percent(shares: np.ndarray) -> str:
    """Median and range in percent, over the seeds that have any."""
    found = 100 * shares[~np.isnan(shares)]
    if not len(found):
        return "none"
    return f"{np.median(found):.0f}% ({found.min():.0f} to {found.max():.0f})"


def sentence(study: Study, measures: list[str]) -> str:
    """What came out: losses, how much of the lecture's epochs that is, and some of the measures."""
    losses, shares = [], []
    for name in PROGRAMS:
        lasts, read = study.losses(name)[:, -1], f"{study.epochs(name):.2g} epochs"
        if name in EPOCHS:
            read += f", where it has {EPOCHS[name]} in the lecture"
        losses.append(
            f"{name} {np.median(lasts):.3f} ({lasts.min():.3f} to {lasts.max():.3f}) after "
            f"{study.seconds(name)[-1]:.0f} s ({read})"
        )
    for measure in measures:
        told = [
            f"{name} {percent(writer.measures[measure]).split(' (')[0]}"
            for name, writer in study.writers.items()
        ]
        shares.append(f"{measure}: {', '.join(told)}")
    return (
        f"Validation loss in nats per character, median and range of {len(study.seeds)} seeds: "
        f"{'; '.join(losses)}. In the texts, {'; '.join(shares)}."
    )


def outcome(study: Study, sentence: str, language: str, figure: Figure) -> Outcome:
    """The table, the numbers and the samples of a study."""
    names = list(study.writers[HELD_OUT].measures)
    rows = [
        ["who wrote", "parameters", "training, s", "epochs", "validation loss, nats", *names],
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
    return Outcome(sentence, rows, numbers, study.seeds, figure, pages)


def samples(study: Study, language: str, length: int = 900) -> str:
    """How the first text of each begins, as a page."""
    parts = ["# What they wrote\n\nThe beginning of the first text of seed 0, temperature 1.\n"]
    for name, writer in study.writers.items():
        shown = whole_lines(writer.texts[0][0][:length]).strip("\n")
        shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in shown)
        parts.append(f"## {name}\n\n~~~{language}\n{shown}\n~~~\n")
    return "\n".join(parts)


def curves(study: Study, axes: Any, whole: Mapping[str, Any]) -> None:
    """Validation loss against seconds and against characters read, side by side.

    whole: by program, (characters, losses, label) of a longer run, for the right one.
    """
    by_time, by_characters = axes
    ends = []
    for name in PROGRAMS:
        colour, losses, seconds = PROGRAMS[name].colour, study.losses(name), study.seconds(name)
        _drawing.band(
            by_characters, study.characters(name), losses, colour, marker="o", markersize=3
        )
        middle = _drawing.band(by_time, seconds, losses, colour, marker="o", markersize=3)
        ends.append((middle[-1], f"{name}  {middle[-1]:.2f}", colour))
        share = EPOCHS.get(name, np.inf) / study.epochs(name)
        if share < 1:  # all that the lecture's program does is behind it
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
    title = f"Each for about the same time (median and range, {len(study.seeds)} seeds)"
    _drawing.name_axes(by_time, title, "seconds of training", loss)
    title = "The same against what was read" + ("; dotted: longer runs, one seed" * bool(whole))
    _drawing.name_axes(by_characters, title, "characters read", loss)


def shares(study: Study, axes: Any) -> None:
    """A measure each: a dot for who wrote, a line from the least to the greatest of the seeds."""
    colours = {name: program.colour for name, program in PROGRAMS.items()}
    colours |= {HELD_OUT: _drawing.BLACK, UNTRAINED: _drawing.GREY}
    for each, measure in zip(axes, study.writers[HELD_OUT].measures, strict=True):
        for place, (name, writer) in enumerate(study.writers.items()):
            found = 100 * writer.measures[measure][~np.isnan(writer.measures[measure])]
            how = {"color": colours[name]}
            if not len(found):
                each.text(2, place, "none written", va="center", fontsize=9, **how)
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
    """Curves above, measures below."""
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.5, 1])
    upper = above.subplots(1, 2)
    lower = np.atleast_1d(below.subplots(1, len(study.writers[HELD_OUT].measures)))
    for each in [*upper, *lower]:
        each.spines[["top", "right"]].set_visible(False)
    curves(study, upper, whole)
    shares(study, lower)
    return figure
