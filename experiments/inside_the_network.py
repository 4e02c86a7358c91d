"""Some units of a char-RNN that has learnt C can be read: they track comments, brackets, indentation.

    r(unit, feature) = correlation of tanh(c^t) with the feature at character t;  c: the LSTM's cell

An LSTM of two layers of 128 units (255,232 parameters) learns the source of Linux for 4000 steps of
Adam with a learning rate of 5e-3, from five seeds. For each feature, which plain Python reads off the
text, the best of all 256 units is chosen on one half of 240,000 characters of held-out text; its r is
then measured on the other half, so that the choice does not flatter it. The same is done with the
network before training. The claim holds if, for each of the four features that it names, |r| has a
median of at least 0.5 and every trained network is above every untrained one.

`page.html` shows every unit of one model on C code written for it (after Karpathy's picture);
`python -m jaxrnn.inspect` writes such a page for any model and text.

    python -m experiments inside_the_network      41 min on two CPU cores that did other work, too
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

import jaxrnn
from experiments import Holds, Outcome, Verdict, _drawing, _text, listed
from jaxrnn import charlm
from jaxrnn.formats import inspection
from jaxrnn.training.config import TrainingConfig
from jaxrnn.units import features
from jaxrnn.units.recording import Recorder
from jaxrnn.units.search import Found, correlations

ROW = 17
# The C code that the page shows, and the function of it in the picture.
CODE = Path(__file__).with_name("_inside.c").read_text(encoding="utf-8")
EXCERPT = CODE[CODE.index("/* Take beans") : CODE.index("static ssize_t jar_show")].rstrip() + "\n"
COMMENT = r"/\*(?s:.*?)\*/|//[^\n]*"
# The features, and the Korean name of each.
FEATURES = {
    "in a comment": "주석 안",
    "in parentheses": "괄호 안",
    "depth of braces": "중괄호의 깊이",
    "indentation": "들여쓰기",
    "in quotes": "따옴표 안",
    "position in the line": "줄 안의 위치",
}
# Those that the claim names.
CLAIMED = [*FEATURES][:4]
# Least median of |r| of a unit that tracks a feature.
TRACKS = 0.5
# Panels of code in the picture.
PANELS = 3
# The columns of a tab there.
TAB = 4


def features_of(code: str) -> dict[str, Any]:
    """Return the FEATURES of C code at each character [T]."""
    comments = features.matches(code, [COMMENT])
    found = {"in a comment": comments[COMMENT], **features.features(code)}
    return {name: found[name] for name in FEATURES}


def find(params: jaxrnn.Params, text: str, wanted: dict[str, Any]) -> dict[str, list[Found]]:
    """Return the best cells for each feature [T] of a text, chosen on its first half."""
    return correlations(Recorder(params, ["cell"]), text, wanted).best(3)


def settings(quick: bool, seed: int) -> TrainingConfig:
    model = charlm.ModelConfig(layers=2, hidden_size=16 if quick else 128, embedding_size=32)
    batch, length, steps, every = (32, 32, 10, 10) if quick else (16, 100, 4000, 2000)
    return TrainingConfig(
        model, batch, length, steps, learning_rate=5e-3, eval_every=every, sample_every=0, seed=seed
    )


def run(quick: bool) -> Outcome:
    seeds, size = ([0, 1], 4_000) if quick else ([0, 1, 2, 3, 4], 240_000)
    source = _text.find("linux", quick)
    corpus, plain = source.read()
    held_out = plain[corpus.split :].encode("ascii", "replace").decode()
    # Begin between two functions.
    held_out = held_out[held_out.index("\n}\n") + 3 :][:size]
    wanted = features_of(held_out)
    runs = [_text.learn(source, settings(quick, seed)) for seed in seeds]
    trained = [find(run.params, held_out, wanted) for run in runs]
    config = runs[0].params.config
    vocabulary = runs[0].params.vocabulary
    fresh = [find(jaxrnn.init(config, vocabulary, seed), held_out, wanted) for seed in seeds]
    best = int(
        np.argmax([np.mean([abs(f[0].r_chosen) for f in found.values()]) for found in trained])
    )
    recorder = Recorder(runs[best].params, ["cell"])
    # [T, units]
    values = recorder.values(CODE, recorder.units)
    numbers = {
        "trained": [recorded(found) for found in trained],
        "untrained": [recorded(found) for found in fresh],
        "characters_read": len(held_out),
        "share_or_mean": {n: round(float(f.mean()), 5) for n, f in wanted.items()},
        "parameters": charlm.count(runs[0].params),
        "learning_rate": settings(quick, 0).learning_rate,
        "validation_loss": [round(float(run.val_losses[-1]), 5) for run in runs],
        "seconds_of_training": [round(run.seconds, 1) for run in runs],
        "shown": best,
        "excerpt": EXCERPT,
        "excerpt_values": excerpt_values(values, recorder, trained[best]),
    }
    content = inspection.Content(
        CODE,
        recorder.units,
        values,
        {name: [(each.unit, *each[1:]) for each in found] for name, found in trained[best].items()},
    )
    note = (
        "An LSTM of two layers that has learnt the C source of Linux reads code that was written for "
        "this page. Its units were chosen and judged on held-out source of Linux."
    )
    return Outcome(
        numbers,
        seeds,
        {"page.html": inspection.page(content, "Inside the network", note)},
        training_seconds=sum(run.seconds for run in runs),
    )


def recorded(found: dict[str, list[Found]]) -> dict[str, Any]:
    """Return the best unit of each feature as JSON can hold it."""
    return {
        name: {
            "layer": best.unit.layer,
            "unit": best.unit.unit,
            "r_chosen": round(best.r_chosen, 5),
            "r": round(best.r, 5),
        }
        for name, (best, *_) in found.items()
    }


def excerpt_values(
    values: Any, recorder: Recorder, found: dict[str, list[Found]]
) -> dict[str, list[float]]:
    """Return the values of the best unit of each feature at the characters of EXCERPT."""
    start = CODE.index(EXCERPT)
    shown = values[start : start + len(EXCERPT)]
    columns = {name: recorder.units.index(best.unit) for name, (best, *_) in found.items()}
    return {name: shown[:, n].astype(float).round(2).tolist() for name, n in columns.items()}


# --- presentation ---


def sizes(numbers: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return |r| of each seed, trained and untrained, by feature; the largest median first."""
    names = [name for name in FEATURES if name in numbers["trained"][0]]
    r = {
        name: tuple(
            np.abs([found[name]["r"] for found in numbers[kind]])
            for kind in ("trained", "untrained")
        )
        for name in names
    }
    return dict(sorted(r.items(), key=lambda item: -np.median(item[1][0])))


def tracked(numbers: dict[str, Any]) -> list[str]:
    """Return the features that the trained networks track."""
    return [
        name
        for name, (trained, untrained) in sizes(numbers).items()
        if np.median(trained) >= TRACKS and trained.min() > untrained.max()
    ]


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    shown = numbers["shown"]
    unit = f"unit of seed {seeds[shown]}, with r"
    rows = [["feature", "|r|, trained", "|r|, untrained", unit]]
    for name, (trained, untrained) in sizes(numbers).items():
        best = numbers["trained"][shown][name]
        unit = f"layer {best['layer']}, unit {best['unit']}: {best['r']:.2f}"
        measured = [_drawing.spread(values, ".2f") for values in (trained, untrained)]
        rows.append([name, *measured, unit])
    return rows


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    r = sizes(numbers)
    tracks = tracked(numbers)
    claimed = [name for name in tracks if name in CLAIMED]
    missed = [name for name in CLAIMED if name not in tracks]
    holds = Holds.PARTLY if claimed and missed else Holds.NO if missed else Holds.YES
    first = claimed[0] if claimed else next(iter(r))
    trained, untrained = (float(np.median(each)) for each in r[first])
    english = f"the best unit for “{first}” has a median |r| of {trained:.2f} on other text"
    korean = f"“{FEATURES[first]}”에 가장 잘 맞는 유닛의 |r| 중앙값은 다른 텍스트에서 {trained:.2f}"
    english += f" ({untrained:.2f} without training)"
    korean += f"(학습 전 {untrained:.2f})입니다"
    if claimed[1:]:
        english += f"; units also track {listed(quoted(claimed[1:]))}"
        korean += f". {', '.join(FEATURES[n] for n in claimed[1:])}에 대해서도 그런 유닛이 있습니다"
    if missed:
        english += f"; the units for {listed(quoted(missed))} fall short of {TRACKS:g}, or of an "
        english += "untrained network"
        korean += (
            f". {', '.join(FEATURES[n] for n in missed)}의 유닛은 {TRACKS:g}나 "
            "학습하지 않은 신경망의 값에 미치지 못합니다"
        )
    return Verdict(holds, english + ".", korean + ".")


def quoted(names: list[str]) -> list[str]:
    return [f"“{name}”" for name in names]


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    r = sizes(numbers)
    shown = numbers["shown"]
    strongest = [name for name in r if name in CLAIMED][:PANELS]
    lines = numbers["excerpt"].count("\n")
    ratios = [3.3, *[0.21 * lines] * len(strongest)]
    figure, panels = _drawing.figure(
        len(ratios), height=sum(ratios) / len(ratios) + 0.45, height_ratios=ratios
    )
    dots, *texts = panels
    names = [*reversed(r)]
    for kind, marker, colour, label in (
        (1, "x", _drawing.INK, "untrained"),
        (0, "o", _drawing.BLUE, "trained"),
    ):
        for row, name in enumerate(names):
            points = r[name][kind]
            named = label if row == 0 else None
            dots.plot(points, [row] * len(points), marker, color=colour, alpha=0.8, label=named)
    dots.set_yticks(range(len(names)), names)
    dots.set(xlim=(0, 1), ylim=(-0.5, len(names) - 0.5))
    dots.grid(axis="y", color=_drawing.INK, alpha=0.25)
    dots.legend(loc="lower right")
    title = f"The best unit of each network ({len(seeds)} seeds)"
    _drawing.name_axes(dots, title, "|r| on text on which it was not chosen", "")
    for axes, name in zip(texts, strongest, strict=True):
        best = numbers["trained"][shown][name]
        paint(axes, numbers["excerpt"], numbers["excerpt_values"][name])
        axes.set_title(f"{name}: layer {best['layer']}, unit {best['unit']}, r = {best['r']:.2f}")
    scale = ScalarMappable(Normalize(-1, 1), COLOURS)
    figure.colorbar(
        scale, ax=texts[-1], location="bottom", label="tanh of the cell", shrink=0.7, aspect=30
    )
    return figure


# Blue below zero, orange above; all of them are light enough for dark letters.
COLOURS = LinearSegmentedColormap.from_list("signed", ["#56B4E9", "#EDEDED", "#E69F00"])


def paint(axes: Axes, text: str, values: list[float]) -> None:
    """Draw code, each character on the colour of its value [T]."""
    lines = text.expandtabs(TAB).splitlines()
    grid = np.full((len(lines), max(map(len, lines))), np.nan)
    row = column = 0
    font = {
        "family": "monospace",
        "fontsize": 11.5,
        "ha": "center",
        "va": "center",
        "color": "black",
    }
    for character, value in zip(text, values, strict=True):
        if character == "\n":
            row, column = row + 1, 0
            continue
        width = TAB - column % TAB if character == "\t" else 1
        grid[row, column : column + width] = value
        if character.strip():
            # Hundreds of letters would make the layout slow.
            axes.text(column, row, character, in_layout=False, **font)  # type: ignore[arg-type]
        column += width
    axes.axis("off")
    axes.imshow(grid, cmap=COLOURS, vmin=-1, vmax=1, aspect="auto")
