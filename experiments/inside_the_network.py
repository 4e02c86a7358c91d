"""Some units of a char-RNN that has learnt C can be read: they track comments, brackets, indentation.

    r(unit, feature) = correlation of tanh(c^t) with the feature at character t;  c: the LSTM's cell

An LSTM of two layers of 128 units learns the source of Linux from three seeds. For each feature,
which plain Python reads off the text, the best of all 256 units is chosen on one part of the held-out
text; its r is then measured on another part, so that the choice does not flatter it. The same is done
with the network before training. `page.html` shows every unit of one model on C code written for it
(after Karpathy's picture).

    python -m experiments inside_the_network      5 min on two CPU cores, of which training takes 4.5
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
# The C code that the page and the picture show.
CODE = Path(__file__).with_name("_inside.c").read_text(encoding="utf-8")
TEMPLATE = Path(__file__).with_name("_inside.html").read_text(encoding="utf-8")
TAB = 8
COMMENT_OR_QUOTE = re.compile(r"/\*.*?\*/|//[^\n]*|([\"'])(?:\\.|(?!\1)[^\\\n])*\1", re.DOTALL)
FEATURES = ["column", "indentation", "depth of {}", "in quotes", "in a comment", "in parentheses"]


class Found(NamedTuple):
    """A unit and its layer, both counted from 1, and its r on the first part and on the second."""

    layer: int
    unit: int
    r_found: float
    r: float

    def __str__(self) -> str:
        return f"layer {self.layer}, unit {self.unit}, r = {self.r:.2f} on other text"


def features(text: str) -> dict[str, Any]:
    """Return the FEATURES of C code at each character [T]; those that begin with "in " are 0 or 1."""
    values_of = {name: np.zeros(len(text), np.float32) for name in FEATURES}
    for match in COMMENT_OR_QUOTE.finditer(text):
        kind = "in quotes" if match[1] else "in a comment"
        values_of[kind][match.start() : match.end()] = 1
    code = values_of["in quotes"] + values_of["in a comment"] == 0
    column = indentation = round_open = curly_open = 0
    for place, character in enumerate(text):
        if code[place]:
            round_open = max(0, round_open + (character == "(") - (character == ")"))
            curly_open = max(0, curly_open + (character == "{") - (character == "}"))
        # Nothing but blanks on the line so far.
        blank = character in " \t" and column == indentation
        values_of["column"][place] = column
        values_of["in parentheses"][place] = round_open > 0
        values_of["depth of {}"][place] = curly_open
        column += TAB - column % TAB if character == "\t" else 1
        indentation = column if blank else indentation
        values_of["indentation"][place] = indentation
        if character == "\n":
            column = indentation = 0
    return values_of


def units(params: jaxrnn.Params, text: str) -> Any:
    """Return tanh of every cell at every character, [T, layers, H]."""
    layers = jaxrnn.activations(params, text, ["cell"])
    return np.tanh(np.stack([layer["cell"] for layer in layers], 1))


def correlation(values: Any, feature: Any) -> Any:
    """Return Pearson's r of each unit [T, layers, H] with a feature [T]; 0 where either is constant."""
    values, feature = values - values.mean(0), feature - feature.mean()
    size = np.sqrt((values**2).sum(0) * (feature**2).sum())
    return np.tensordot(feature, values, 1) / np.where(size == 0, 1, size)


def find(params: jaxrnn.Params, text: str) -> dict[str, Found]:
    """Return the unit of each feature, chosen on the first half of a text and judged on the second."""
    values, values_of, half = units(params, text), features(text), len(text) // 2
    found = {}
    for name, feature in values_of.items():
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
    # Begin between two functions.
    held_out = held_out[held_out.index("\n}\n") + 3 :][:size]
    runs = [_text.learn(source, settings(quick, seed)) for seed in seeds]
    trained = [find(run.params, held_out) for run in runs]
    config = runs[0].params.config
    vocabulary = runs[0].params.vocabulary
    fresh = [find(jaxrnn.init(config, vocabulary, seed), held_out) for seed in seeds]
    # |r| on the second part by feature: [trained or untrained][seeds].
    r = {
        name: np.abs([[each[name].r for each in some] for some in (trained, fresh)])
        for name in FEATURES
    }
    best = int(np.argmax([np.mean([abs(f.r_found) for f in found.values()]) for found in trained]))
    shown = dict(sorted(trained[best].items(), key=lambda item: -abs(item[1].r)))
    rows = [["feature", "|r|, trained", "|r|, untrained", f"unit of seed {seeds[best]}"]]
    rows += [[name, *map(span, r[name]), str(unit)] for name, unit in shown.items()]
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
    return Outcome(rows, numbers, seeds, draw(values, shown, r), pages)


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    r = {
        name: [
            np.abs([each[name]["r"] for each in numbers[kind]]) for kind in ("trained", "untrained")
        ]
        for name in FEATURES
    }
    ordered = sorted(r, key=lambda name: -np.median(r[name][0]))
    medians = [
        f"{name} {np.median(r[name][0]):.2f} (untrained {np.median(r[name][1]):.2f})"
        for name in ordered
    ]
    above = [name for name in ordered if r[name][0].min() > r[name][1].max()]
    others = [name for name in ordered if name not in above]
    return (
        f"|r| of the best unit on text on which it was not chosen, median of {len(seeds)} seeds: "
        f"{'; '.join(medians)}. Every trained network is above every untrained one for "
        f"{', '.join(above) or 'no feature'}; this does not hold for "
        f"{', '.join(others) or 'no feature'}."
    )


def span(values: Any) -> str:
    return f"{np.median(values):.2f} ({values.min():.2f} to {values.max():.2f})"


def page(values: Any, found: dict[str, Found], r: Any) -> str:
    """Return a page that shows every unit on CODE, from values [T, layers, H] as bytes, -127 to 127."""
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
    # The best on top.
    names = list(reversed(found))
    for kind, colour, label in ((1, _drawing.GREY, "untrained"), (0, _drawing.BLUE, "trained")):
        for row, name in enumerate(names):
            dots.plot(r[name][kind], [row] * len(r[name][kind]), "o", color=colour, alpha=0.7)
        place = np.median(r[names[-1]][kind]), len(names) - 0.7
        dots.text(*place, label, color=colour, ha="center")
    dots.set_yticks(range(len(names)), names)
    dots.set(xlim=(0, 1), ylim=(-0.5, len(names) - 0.4))
    name = "|r| on text on which the unit was not chosen"
    _drawing.name_axes(dots, "The best unit of each network", name, "")
    return figure


def paint(axes: Any, values: Any, first: str = "static int jar_add", lines: int = 30) -> Any:
    """Draw some lines of CODE, each character on the colour of its value [T]."""
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
