"""Argmax sampling ends in loops; drawing from the softmax, or only after a space, does not.

    p(x^{t+1} | x^1 .. x^t) = softmax(logits / temperature)
    argmax        the most likely character
    softmax       a draw from p
    top-k, top-p  a draw among the k most likely, or among the fewest whose probabilities reach p
    after-space   a draw for the first letter of a word, the most likely character inside it

Char-RNNs (LSTM of 256 units) learn Tiny Shakespeare from three seeds and continue the same held-out
openings in every mode. Measured for each text: whether it ends in a loop (a passage repeated three
times or more, up to the last character), which of its pieces of 10 characters it has used before,
which of them are not in the training text, and which words are not. The real text is measured for
comparison.

    python -m experiments decoding      5 min on two CPU cores, of which training takes 4.5
"""

from __future__ import annotations

import html
import re
from typing import Any

import numpy as np

import jaxrnn
from experiments import Outcome, _drawing, _text
from jaxrnn import charlm
from jaxrnn.training.config import TrainingConfig

ROW = 13
# Characters of a piece, and the smallest number of characters of a loop.
PIECE = 10
LOOP = 50
# Characters of an opening, and what precedes it: a speech begins.
OPENING = 100
BEFORE = "\n\n"
WAYS: dict[str, dict[str, Any]] = {
    "argmax": {"mode": "argmax"},
    "after-space": {"mode": "after-space"},
    "softmax": {},
    **{f"temperature {t}": {"temperature": t} for t in (0.2, 0.4, 0.6, 0.8, 1.2, 1.5)},
    **{f"top-k {k}": {"top_k": k} for k in (2, 5, 10)},
    **{f"top-p {p}": {"top_p": p} for p in (0.5, 0.8, 0.9)},
}
REAL = "the real text"
SHOWN = {
    "argmax": _drawing.RED,
    "after-space": _drawing.BLUE,
    "softmax": _drawing.GREEN,
    REAL: _drawing.BLACK,
}
MEASURES = {
    "pieces used before": _drawing.RED,
    "words not in the training text": _drawing.ORANGE,
    "pieces not in the training text": _drawing.PINK,
}


def loop(text: str) -> tuple[int, int] | None:
    """Return the start and the period of the loop in which a text ends, or None if it does not."""
    points = np.array([ord(c) for c in text])
    for period in range(1, len(text) // 3 + 1):
        other = np.flatnonzero(points[period:] != points[:-period])
        # From `begin` on, text[i] equals text[i + period].
        begin = int(other[-1]) + 1 if len(other) else 0
        if len(text) - begin >= max(3 * period, LOOP):
            return begin, period
    return None


def pieces(text: str) -> list[str]:
    return [text[i : i + PIECE] for i in range(len(text) - PIECE + 1)]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def used_before(text: str) -> Any:
    """Return for every piece of a text whether it occurs earlier in the text."""
    seen: set[str] = set()
    return np.array([piece in seen or bool(seen.add(piece)) for piece in pieces(text)])


def measure(text: str, learnt_words: set[str], learnt_pieces: set[str]) -> list[float]:
    """Return the MEASURES of a text, shares from 0 to 1.

    The first and the last word are left out, since they may be cut.
    """
    strange = [word not in learnt_words for word in words(text)[1:-1]]
    new = [piece not in learnt_pieces for piece in pieces(text)]
    return [float(used_before(text).mean()), float(np.mean(strange or 0)), float(np.mean(new))]


def settings(quick: bool, seed: int) -> TrainingConfig:
    model = charlm.ModelConfig(hidden_size=32 if quick else 256)
    length, steps, every = (32, 10, 10) if quick else (100, 1800, 600)
    return TrainingConfig(
        model, 32, length, steps, learning_rate=5e-3, eval_every=every, sample_every=0, seed=seed
    )


def write(params: jaxrnn.Params, openings: list[str], length: int, how: dict[str, Any]) -> Any:
    """Yield the continuation of each opening by a model."""
    for seed, opening in enumerate(openings):
        yield jaxrnn.sample(params, opening, length, seed=seed, **how)[len(opening) :]


def run(quick: bool) -> Outcome:
    seeds, count, length = ([0, 1], 2, 200) if quick else ([0, 1, 2], 10, 2000)
    source = _text.find("shakespeare", quick)
    corpus, plain = source.read()
    learnt = plain[: corpus.split]
    held_out = plain[corpus.split :]
    places = np.linspace(0, len(held_out) - 2 * (OPENING + length), count, dtype=int)
    starts = [held_out.index(BEFORE, place) + len(BEFORE) for place in places]
    openings = [held_out[start : start + OPENING] for start in starts]
    runs = [_text.learn(source, settings(quick, seed)) for seed in seeds]
    # Texts [seeds][openings] by mode.
    texts = {
        way: [list(write(run.params, openings, length, how)) for run in runs]
        for way, how in WAYS.items()
    }
    texts[REAL] = [[held_out[start + OPENING :][:length] for start in starts]]
    known = set(words(learnt)), set(pieces(learnt))
    # Mean shares [seeds, measures] by mode.
    shares = {
        way: np.array([[measure(text, *known) for text in some] for some in each]).mean(1)
        for way, each in texts.items()
    }
    loops = {way: [[loop(text) for text in some] for some in each] for way, each in texts.items()}
    ended = {way: [sum(map(bool, some)) for some in each] for way, each in loops.items()}
    rows = [["mode", f"of {count} texts, end in a loop", *MEASURES]]
    for way, each in shares.items():
        rows.append([way, span(ended[way], ".0f"), *[span(column, ".3f") for column in each.T]])
    numbers = {
        "measures": {
            way: dict(zip(MEASURES, e.T.tolist(), strict=True)) for way, e in shares.items()
        },
        "loops": loops,
        "texts": {"count": count, "length": length, "opening": OPENING, "piece": PIECE},
        "validation_loss": [float(run.val_losses[-1]) for run in runs],
        "seconds_of_training": [run.seconds for run in runs],
    }
    figure = draw(texts, shares)
    return Outcome(rows, numbers, seeds, figure, {"samples.md": samples(texts, openings)})


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    count, length = (numbers["texts"][name] for name in ("count", "length"))
    loops = {
        mode: [loop for texts in numbers["loops"][mode] for loop in texts if loop] for mode in SHOWN
    }
    start, period = np.median(loops["argmax"] or [(0, 0)], 0)
    repeated = [
        f"{mode} {np.median(numbers['measures'][mode]['pieces used before']):.1%}" for mode in SHOWN
    ]
    return (
        f"Each of {len(seeds)} models continues {count} openings by {length} characters. With "
        f"argmax, {len(loops['argmax'])} of {count * len(seeds)} texts end in a loop (in the "
        f"median from character {start:.0f} on, with a period of {period:.0f}); with after-space "
        f"{len(loops['after-space'])}, with softmax {len(loops['softmax'])}. Share of pieces of "
        f"{PIECE} characters that the text has used before: {', '.join(repeated)}."
    )


def span(values: Any, form: str) -> str:
    """Return the median and the range over the seeds."""
    parts = [format(value, form) for value in (np.median(values), np.min(values), np.max(values))]
    return parts[0] if parts[1] == parts[2] else "{} ({} to {})".format(*parts)


def samples(texts: Any, openings: list[str]) -> str:
    """Return a page with the beginnings and ends of texts by the first model, side by side."""
    page = ["# The same openings, continued by one model in every mode\n"]
    ways = [*SHOWN, *[way for way in texts if way not in SHOWN]]
    for place in (0, len(openings) // 2):
        page.append(f"## After\n\n```text\n{openings[place]}\n```\n")
        for first in range(0, len(ways), 4):
            cells = ""
            for way in ways[first : first + 4]:
                text = texts[way][0][place]
                text = html.escape(f"{text[:600]}\n\n[...]\n\n{text[-600:]}")
                # A blank line would end the table.
                text = re.sub(r"\n(?=\n)", "\n&nbsp;", text)
                cells += f"<td><b>{way}</b><pre>{text}</pre></td>\n"
            page.append(f'<table><tr valign="top">\n{cells}</tr></table>\n')
    return "\n".join(page)


def draw(texts: Any, shares: Any) -> Any:
    figure, ((along, dots, real), below) = _drawing.figure(3, 16, 10, rows=2)
    ends = []
    for way, colour in SHOWN.items():
        used = np.array([[used_before(text) for text in some] for some in texts[way]]).mean(1)
        width = used.shape[1] // 20
        curves = used[:, : 20 * width].reshape(len(used), 20, width).mean(-1)
        middle = _drawing.band(along, width * (0.5 + np.arange(20)), curves, colour)
        ends.append((middle[-1], way, colour))
    along.set(ylim=(0, 1), xlim=(0, used.shape[1]))
    _drawing.label_ends(along, ends)
    name = f"share of {PIECE}-character pieces used before"
    _drawing.name_axes(along, "Does a text repeat itself?", "characters written", name)
    order = sorted(shares, key=lambda way: np.median(shares[way][:, 0]))
    for index, (name, colour) in enumerate(MEASURES.items()):
        each = [shares[way][:, index] for way in order]
        dots.hlines(
            range(len(order)), *zip(*[(e.min(), e.max()) for e in each], strict=True), colour
        )
        dots.plot([np.median(e) for e in each], range(len(order)), "o", color=colour, markersize=4)
        dots.axvline(shares[REAL][0, index], color=colour, ymax=0.87, linestyle="--", linewidth=1)
        place = {"ha": "right", "va": "top", "transform": dots.transAxes}
        dots.text(1, 1 - 0.045 * index, name, color=colour, **place)
    dots.set_yticks(range(len(order)), order)
    dots.set(ylim=(-1, len(order) + 2), xlim=(-0.02, 1))
    _drawing.name_axes(dots, "Every mode; dashed: the real text", "share of pieces or words", "")
    for axes, way in zip([*below, real], SHOWN, strict=True):
        lines = [line[:52] for line in texts[way][0][0][-1500:].split("\n")][-26:]
        axes.axis("off")
        axes.text(0, 1, "\n".join(lines), family="monospace", fontsize=8, va="top")
        axes.set_title(f"{way}, the end of a text", loc="left", color=SHOWN[way], fontsize=11)
    return figure
