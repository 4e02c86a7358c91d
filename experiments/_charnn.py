"""The common part of the experiments on Shakespeare and on C: three programs, each for ten epochs.

The code that the lecture links has two programs. Ours is a smaller network, whose learning rate is
higher and falls to 0 by a cosine. All are trained by `jaxrnn.train` and write texts at temperature 1.
The same measures are taken of these texts and of held-out text of the same length.

The learning rates of the lecture's programs are those of the lecture; ours was chosen among the runs in
benchmarks/LEADERBOARD.md. Products of matrices are in bfloat16, which is several times faster on
processors with AMX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxrnn
from benchmarks import measure as timing
from experiments import Outcome, _drawing, _text
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
EPOCHS = 10
SEEDS = [0, 1, 2, 3, 4]
OURS, OLDER, NEWER = "ours", "lecture, older", "lecture, newer"
PROGRAMS = {
    OURS: TrainingConfig(
        model=charlm.ModelConfig(hidden_size=256, dropout=0.15, weight_dropout=0.1),
        batch=32,
        learning_rate=5e-3,
    ),
    OLDER: TrainingConfig(
        model=charlm.ModelConfig(layers=2, hidden_size=128, embedding_size=128),
        batch=50,
        seq_len=50,
        learning_rate=2e-3,
        schedule="constant",
        warmup=0,
        beta2=0.999,
        clip_norm=5.0,
    ),
    NEWER: PRESETS["lecture"].training,
}
# The programs in Korean.
KOREAN = {OURS: "jaxrnn", OLDER: "강의의 이전 코드", NEWER: "강의의 새 코드"}
COLOURS = {
    OURS: _drawing.BLUE,
    OLDER: _drawing.RED,
    NEWER: _drawing.GREEN,
    HELD_OUT: _drawing.INK,
    UNTRAINED: _drawing.PINK,
}


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
    """The texts and models of a study.

    writers: all writers, by name.
    settings, epoch_steps, step_seconds: of each program its settings, the steps of an epoch, and the
      seconds of a step.
    """

    writers: dict[str, Writer]
    settings: dict[str, TrainingConfig]
    epoch_steps: dict[str, int]
    step_seconds: dict[str, float]
    seeds: list[int]


def study(source: _text.Text, quick: bool, mark: str, measure: Measure) -> Study:
    """Train the programs, let them write texts, and measure these.

    Args:
      source: the text to learn.
      quick: whether to train tiny models for a few steps.
      mark: the characters after which the texts begin, the held-out ones too.
      measure: the measures of the texts of one seed.
    """
    seeds = [0] if quick else SEEDS
    corpus, _ = source.read()
    held_out = corpus.vocabulary.decode(corpus.tokens[corpus.split :])
    real = pieces(held_out, mark, len(seeds))
    programs = {name: settings(each, corpus, quick) for name, each in PROGRAMS.items()}
    writers = {HELD_OUT: Writer(real, measured(real, measure), [])}
    for name, program in programs.items():
        each = [dataclasses.replace(program, seed=seed) for seed in seeds]
        runs = [_text.learn(source, one) for one in each]
        texts = [write(run.params, mark, seed) for run, seed in zip(runs, seeds, strict=True)]
        writers[name] = Writer(texts, measured(texts, measure), runs)
    model = programs[OURS].model
    fresh = [charlm.init(model, corpus.vocabulary, seed) for seed in seeds]
    texts = [write(params, mark, seed) for params, seed in zip(fresh, seeds, strict=True)]
    writers[UNTRAINED] = Writer(texts, measured(texts, measure), [])
    calls = {name: _text.training_step(program, corpus) for name, program in programs.items()}
    times = timing.in_turns(calls, 1 if quick else 9)
    step_seconds = {name: float(np.median(each["seconds"])) for name, each in times.items()}
    epoch_steps = {name: program.batches(corpus).per_epoch for name, program in programs.items()}
    return Study(writers, programs, epoch_steps, step_seconds, seeds)


def settings(program: TrainingConfig, corpus: Corpus, quick: bool) -> TrainingConfig:
    """Return a program's settings for EPOCHS of a text, with two validations in each epoch."""
    given = dataclasses.replace(program, sample_every=0)
    if quick:
        model = charlm.ModelConfig(hidden_size=16, embedding_size=16)
        steps = {"steps": 4, "log_every": 1, "eval_every": 2}
        return dataclasses.replace(given, model=model, batch=32, seq_len=50, **steps)
    epoch = given.batches(corpus).per_epoch
    return dataclasses.replace(
        given,
        model=dataclasses.replace(given.model, dtype="bfloat16"),
        steps=EPOCHS * epoch,
        log_every=epoch // 6,
        eval_every=3 * (epoch // 6),
    )


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


def outcome(study: Study, language: str) -> Outcome:
    """Return the numbers and the samples of a study."""
    numbers: dict[str, Any] = {"measures": {}, "programs": {}, "texts": TEXTS, "length": LENGTH}
    for name, writer in study.writers.items():
        numbers["measures"][name] = {
            measure: [None if math.isnan(share) else round(share, 4) for share in shares.tolist()]
            for measure, shares in writer.measures.items()
        }
        if writer.runs:
            settings, first = study.settings[name], writer.runs[0]
            numbers["programs"][name] = {
                "settings": dataclasses.asdict(settings),
                "parameters": charlm.count(first.params),
                "steps": first.val_steps.tolist(),
                "epochs": (first.val_steps / study.epoch_steps[name]).round(3).tolist(),
                "validation_loss": [run.val_losses.round(5).tolist() for run in writer.runs],
                "seconds_per_step": study.step_seconds[name],
                "seconds_with_validation": [round(run.seconds, 1) for run in writer.runs],
            }
    pages = {"samples.md": samples(study, language)}
    seconds = sum(
        len(study.seeds) * program["steps"][-1] * program["seconds_per_step"]
        for program in numbers["programs"].values()
    )
    return Outcome(numbers, study.seeds, pages, seconds)


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    """Return the table: a row for each writer."""
    rows = [["writer", "parameters", "learning rate", "epochs", "training, s"]]
    rows[0] += ["last validation loss, nats", "smallest", *numbers["measures"][HELD_OUT]]
    for name, shares in numbers["measures"].items():
        percents = [percent(np.array(each, float)) for each in shares.values()]
        if name not in numbers["programs"]:
            rows.append([name, *"------", *percents])
            continue
        program = numbers["programs"][name]
        losses = np.array(program["validation_loss"])
        rows.append(
            [
                name,
                f"{program['parameters']:,}",
                f"{program['settings']['learning_rate']:g}",
                f"{program['epochs'][-1]:.2g}",
                f"{program['steps'][-1] * program['seconds_per_step']:.0f}",
                _drawing.spread(losses[:, -1]),
                _drawing.spread(losses.min(1)),
                *percents,
            ]
        )
    return rows


def median(numbers: dict[str, Any], name: str, measure: str) -> float:
    """Return the median of a measure of a writer over the seeds, 0 to 1; 0 if it has no items."""
    return float(np.median([share or 0 for share in numbers["measures"][name][measure]]))


def samples(study: Study, language: str, length: int = 900) -> str:
    """Return a page with the beginning of the first text of each model."""
    parts = ["# Samples\n\nThe beginning of the first text of seed 0, at temperature 1.\n"]
    for name, writer in study.writers.items():
        if name == HELD_OUT:
            continue
        shown = whole_lines(writer.texts[0][0][:length]).strip("\n")
        shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in shown)
        parts.append(f"## {name}\n\n~~~{language}\n{shown}\n~~~\n")
    return "\n".join(parts)


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    """Draw the validation loss against epochs and seconds, and below it each measure of the texts."""
    measures = list(numbers["measures"][HELD_OUT])
    heights = [1.5, 1.5] + [1] * len(measures)
    figure, panels = _drawing.figure(len(heights), height=2.4, height_ratios=heights)
    for axes, unit in zip(panels, ("epochs", "seconds"), strict=False):
        _draw_losses(axes, numbers, unit)
    _drawing.name_axes(
        panels[0], f"Loss on held-out text ({len(seeds)} seeds)", "epochs", "nats per character"
    )
    _drawing.name_axes(panels[1], "The same by time", "seconds of training", "nats per character")
    for axes, measure in zip(panels[2:], measures, strict=True):
        _draw_measure(axes, numbers["measures"], measure)
    return figure


def _draw_losses(axes: Axes, numbers: dict[str, Any], unit: str) -> None:
    ends = []
    for name, program in numbers["programs"].items():
        x = np.array(program["epochs"])
        if unit == "seconds":
            x = np.array(program["steps"]) * program["seconds_per_step"]
        colour, label = COLOURS[name], name.removeprefix("lecture, ")
        middle = _drawing.band(axes, x, program["validation_loss"], colour, label=label)
        if unit == "epochs":
            ends.append((middle[-1], label, colour))
        else:
            # Mark where the program ends; the programs take different times.
            axes.plot(x[-1], middle[-1], "o", color=colour)
    lowest = min(np.min(program["validation_loss"]) for program in numbers["programs"].values())
    highest = max(
        np.median(program["validation_loss"], 0)[0] for program in numbers["programs"].values()
    )
    axes.set_ylim(lowest - 0.03, min(highest, lowest + 0.7))
    if unit == "seconds":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper right")
        return
    axes.set_xlim(0, max(program["epochs"][-1] for program in numbers["programs"].values()))
    _drawing.label_ends(axes, ends)


def _draw_measure(axes: Axes, shares: dict[str, Any], measure: str) -> None:
    """Draw a dot for the median of each writer and a line for the range of the seeds."""
    held_out = 100 * np.median(shares[HELD_OUT][measure])
    for place, name in enumerate(shares):
        found = 100 * np.array(shares[name][measure], float)
        found = found[~np.isnan(found)]
        how: dict[str, Any] = {"color": COLOURS[name]}
        if not len(found):
            axes.text(2, place, "none", va="center", fontsize=11, **how)
            continue
        if name == HELD_OUT:
            axes.axvline(np.median(found), linestyle="--", linewidth=1, **how)
        axes.plot([found.min(), found.max()], [place, place], linewidth=5, alpha=0.35, **how)
        axes.plot(np.median(found), place, "o", markersize=7, **how)
        # To the left of the dot in the right half, unless the number would be on the dashed line.
        left = np.median(found) > 50 and abs(found.min() - 5 - held_out) > 4
        axes.annotate(
            f"{np.median(found):.0f}", (found.min() if left else found.max(), place),
            (-9 if left else 9, 0), textcoords="offset points", va="center",
            ha="right" if left else "left", fontsize=11, **how,
        )  # fmt: skip
    axes.set(xlim=(0, 101), ylim=(len(shares) - 0.5, -0.5))
    axes.set_yticks(range(len(shares)), [name.removeprefix("lecture, ") for name in shares])
    _drawing.name_axes(axes, measure.capitalize(), "%, dashed: held-out text", "")
