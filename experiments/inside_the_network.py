"""Some units of a char-RNN that has learnt C can be read: they track comments, brackets, indentation.

    r(unit, feature) = correlation of tanh(c^t) with the feature at character t;  c: the LSTM's cell

An LSTM of two layers of 128 learns Linux' C source from three seeds. On a part of the held-out text the
unit is found, of all 256, whose tanh(c) goes best with a feature that plain Python reads off the text; r
is then taken on another part, so that the choice does not flatter it. The network before training goes
through the same. `page.html` shows every unit of one model on C code made for it (Karpathy's picture).

    python -m experiments inside_the_network      5 min on two CPU cores, of which the training takes 4.5

On 2026-11-24 |r|, trained and untrained, was 0.89 and 0.30 in a comment, 0.80 and 0.28 in parentheses,
0.54 and 0.23 for the depth of {}, 0.39 and 0.30 for the indentation: every trained network was above
every untrained one. It was not for the column (0.40 and 0.39) and in quotes (0.18 and 0.12).
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

import jaxrnn
from experiments import Outcome, _drawing, _text
from jaxrnn import charlm
from jaxrnn.training.config import TrainingConfig

ROW = 17
# The C code that page and picture show.
CODE = Path(__file__).with_name("_inside.c").read_text(encoding="utf-8")
TEMPLATE = Path(__file__).with_name("_inside.html").read_text(encoding="utf-8")
TAB = 8
COMMENT_OR_QUOTE = re.compile(r"/\*.*?\*/|//[^\n]*|([\"'])(?:\\.|(?!\1)[^\\\n])*\1", re.DOTALL)
FEATURES = ["column", "indentation", "depth of {}", "in quotes", "in a comment", "in parentheses"]


class Found(NamedTuple):
    """A unit, its layer and itself counted from 1, and its r with a feature on either part."""

    layer: int
    unit: int
    r_found: float
    r: float

    def __str__(self) -> str:
        return f"layer {self.layer}, unit {self.unit}, r = {self.r:.2f} on other text"


def features(text: str) -> dict[str, Any]:
    """What C code is at each character [T], by FEATURES; 0 or 1 where it begins with "in "."""
    told = {name: np.zeros(len(text), np.float32) for name in FEATURES}
    for match in COMMENT_OR_QUOTE.finditer(text):
        kind = "in quotes" if match[1] else "in a comment"
        told[kind][match.start() : match.end()] = 1
    code = told["in quotes"] + told["in a comment"] == 0
    column = indentation = round_open = curly_open = 0
    for place, character in enumerate(text):
        if code[place]:
            round_open = max(0, round_open + (character == "(") - (character == ")"))
            curly_open = max(0, curly_open + (character == "{") - (character == "}"))
        blank = character in " \t" and column == indentation  # nothing else on the line so far
        told["column"][place] = column
        told["in parentheses"][place] = round_open > 0
        told["depth of {}"][place] = curly_open
        column += TAB - column % TAB if character == "\t" else 1
        indentation = column if blank else indentation
        told["indentation"][place] = indentation
        if character == "\n":
            column = indentation = 0
    return told


def units(params: jaxrnn.Params, text: str) -> Any:
    """tanh of every cell at every character, [T, layers, H]."""
    layers = jaxrnn.activations(params, text, ["cell"])
    return np.tanh(np.stack([layer["cell"] for layer in layers], 1))


def correlation(values: Any, feature: Any) -> Any:
    """Pearson's r of each unit [T, layers, H] with a feature [T]; 0 where either does not change."""
    values, feature = values - values.mean(0), feature - feature.mean()
    size = np.sqrt((values**2).sum(0) * (feature**2).sum())
    return np.tensordot(feature, values, 1) / np.where(size == 0, 1, size)


def find(params: jaxrnn.Params, text: str) -> dict[str, Found]:
    """The unit of each feature, found on the first half of a text and judged on the second."""
    values, told, half = units(params, text), features(text), len(text) // 2
    found = {}
    for name, feature in told.items():
        first = correlation(values[:half], feature[:half])
        layer, unit = np.unravel_index(np.abs(first).argmax(), first.shape)
        r = correlation(values[half:, layer : layer + 1, unit : unit + 1], feature[half:])[0, 0]
        found[name] = Found(int(layer) + 1, int(unit) + 1, float(first[layer, unit]), float(r))
    return found


def settings(quick: bool, seed: int) -> TrainingConfig:
    model = charlm.ModelConfig(layers=2, hidden_size=16 if quick else 128, embedding_size=32)
    batch, length, steps, every = (32, 32, 10, 10) if quick else (16, 100, 4000, 2000)
    return TrainingConfig(
        model, batch, length, steps, learning_rate=5e-3, eval_every=every, sample_every=0, seed=seed
    )


def run(quick: bool) -> Outcome:
    seeds, size = ([0, 1], 4_000) if quick else ([0, 1, 2], 240_000)
    source = _text.find("linux", quick)
    corpus, plain = source.read()
    held_out = plain[corpus.split :].encode("ascii", "replace").decode()
    held_out = held_out[held_out.index("\n}\n") + 3 :][:size]  # from between two functions on
    runs = [_text.learn(source, settings(quick, seed)) for seed in seeds]
    trained = [find(run.params, held_out) for run in runs]
    config, vocabulary = runs[0].params.config, runs[0].params.vocabulary
    fresh = [find(jaxrnn.init(config, vocabulary, seed), held_out) for seed in seeds]
    both = trained, fresh  # |r| on the second part, by feature: [trained or not][seeds]
    r = {name: np.abs([[each[name].r for each in some] for some in both]) for name in FEATURES}
    best = int(np.argmax([np.mean([abs(f.r_found) for f in found.values()]) for found in trained]))
    shown = dict(sorted(trained[best].items(), key=lambda item: -abs(item[1].r)))
    rows = [["feature", "size of r, trained", "untrained", f"the unit of seed {seeds[best]}"]]
    rows += [[name, *map(span, r[name]), str(unit)] for name, unit in shown.items()]
    above = [name for name in shown if r[name][0].min() > r[name][1].max()]
    others = [name for name in shown if name not in above]
    told = "; ".join(f"{row[0]} {row[1]}, untrained {row[2]}" for row in rows[1:])
    sentence = (
        f"|r| of the best unit on text it was not chosen on, median and range of {len(seeds)} seeds: "
        f"{told}. Every trained network is above every untrained one for: {', '.join(above) or 'none'}; "
        f"not for: {', '.join(others) or 'none'}."
    )
    numbers = {
        "trained": [{name: f._asdict() for name, f in found.items()} for found in trained],
        "untrained": [{name: f._asdict() for name, f in found.items()} for found in fresh],
        "characters_read": len(held_out),
        "share_or_mean": {name: float(f.mean()) for name, f in features(held_out).items()},
        "validation_loss": [float(run.val_losses[-1]) for run in runs],
        "seconds_of_training": [run.seconds for run in runs],
        "shown": seeds[best],
    }
    values = units(runs[best].params, CODE)
    pages = {"page.html": page(values, shown, r)}
    return Outcome(sentence, rows, numbers, seeds, draw(values, shown, r), pages)


def span(values: Any) -> str:
    return f"{np.median(values):.2f} ({values.min():.2f} to {values.max():.2f})"


def page(values: Any, found: dict[str, Found], r: Any) -> str:
    """Every unit on CODE as one HTML file: values [T, layers, H] as bytes, -127 to 127."""
    coded = np.round(127 * values).astype(np.int8).transpose(1, 2, 0)
    data = {
        "text": CODE,
        "layers": [base64.b64encode(layer.tobytes()).decode() for layer in coded],
        "found": [
            {**unit._asdict(), "says": f"{name}: {unit} (untrained |r| {span(r[name][1])})"}
            for name, unit in found.items()
        ],
    }
    return TEMPLATE.replace("DATA", json.dumps(data).replace("<", "\\u003c"), 1)


def draw(values: Any, found: dict[str, Found], r: Any) -> Any:
    figure, panels = _drawing.figure(2, 15, 10, rows=2)
    (dots, *texts) = np.ravel(panels)
    for axes, (name, unit) in zip(texts, found.items(), strict=False):
        image = paint(axes, values[:, unit.layer - 1, unit.unit - 1])
        axes.set_title(f"{name}: {unit}", loc="left", fontsize=11)
    figure.colorbar(image, ax=texts, label="tanh of the cell", shrink=0.4)
    names = list(reversed(found))  # the best on top
    for kind, colour, label in ((1, _drawing.GREY, "untrained"), (0, _drawing.BLUE, "trained")):
        for row, name in enumerate(names):
            dots.plot(r[name][kind], [row] * len(r[name][kind]), "o", color=colour, alpha=0.7)
        place = np.median(r[names[-1]][kind]), len(names) - 0.7
        dots.text(*place, label, color=colour, ha="center")
    dots.set_yticks(range(len(names)), names)
    dots.set(xlim=(0, 1), ylim=(-0.5, len(names) - 0.4))
    name = "|r| on text it was not chosen on"
    _drawing.name_axes(dots, "The best unit of each network", name, "")
    return figure


def paint(axes: Any, values: Any, first: str = "static int jar_add", lines: int = 30) -> Any:
    """Some lines of CODE, each character on the colour of its value [T]."""
    start = CODE.index(first)
    grid, row, column = np.full((lines, 84), np.nan), 0, 0
    font = {"family": "monospace", "fontsize": 7, "ha": "center", "va": "center"}
    for character, value in zip(CODE[start:], values[start:], strict=True):
        width = TAB - column % TAB if character == "\t" else 1
        grid[row, column : column + width] = value
        axes.text(column, row, character.strip(), **font)
        row, column = (row + 1, 0) if character == "\n" else (row, column + width)
        if row == lines:
            break
    axes.axis("off")
    colours = LinearSegmentedColormap.from_list("signed", [_drawing.SKY, "white", _drawing.ORANGE])
    return axes.imshow(grid, cmap=colours, vmin=-1, vmax=1, aspect="auto")
