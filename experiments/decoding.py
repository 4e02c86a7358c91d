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

    python -m experiments decoding      26 min on one CPU core that did other work, too
"""

from __future__ import annotations

import html
import re
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import jaxrnn
from experiments import Holds, Outcome, Verdict, _drawing, _text
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
# The modes that the lecture names, with their colours and line styles.
SHOWN = {
    "argmax": (_drawing.RED, "-"),
    "after-space": (_drawing.BLUE, "--"),
    "softmax": (_drawing.GREEN, "-"),
}
# The measures, with their colours and markers.
MEASURES = {
    "pieces used before": (_drawing.RED, "o"),
    "words not in the training text": (_drawing.BLUE, "s"),
    "pieces not in the training text": (_drawing.ORANGE, "^"),
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
    seeds, count, length = ([0, 1], 2, 200) if quick else ([0, 1, 2, 3, 4], 10, 2000)
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
    numbers = {
        "measures": {
            way: dict(zip(MEASURES, e.T.tolist(), strict=True)) for way, e in shares.items()
        },
        "loops": loops,
        "texts": {"count": count, "length": length, "opening": OPENING, "piece": PIECE},
        "validation_loss": [float(run.val_losses[-1]) for run in runs],
        "seconds_of_training": [run.seconds for run in runs],
    }
    return Outcome(numbers, seeds, {"samples.md": samples(texts, openings)})


def table(numbers: dict[str, Any], seeds: list[int]) -> list[list[str]]:
    rows = [["mode", f"of {numbers['texts']['count']} texts, end in a loop", *MEASURES]]
    for way, measures in numbers["measures"].items():
        ended = [sum(map(bool, some)) for some in numbers["loops"][way]]
        rows.append([way, span(ended, ".0f"), *(span(measures[name], ".3f") for name in MEASURES)])
    return rows


def starts_of_loops(numbers: dict[str, Any], way: str) -> list[int]:
    """Return the characters at which the loops of a mode begin, of all seeds."""
    return [loop[0] for texts in numbers["loops"][way] for loop in texts if loop]


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    starts = {way: starts_of_loops(numbers, way) for way in SHOWN}
    argmax, others = len(starts["argmax"]), len(starts["softmax"]) + len(starts["after-space"])
    texts = numbers["texts"]["count"] * len(seeds)
    often, never = argmax > texts / 2, others == 0
    return Verdict(
        Holds.YES if often and never else Holds.PARTLY if argmax > others else Holds.NO,
        f"with argmax, {argmax} of {texts} texts end in a loop; with draws from the softmax, or "
        f"draws only after a space, {others or 'none'} of {2 * texts} do.",
        f"argmax로는 글 {texts}개 중 {argmax}개가 같은 구절의 반복으로 끝나고, softmax 분포에서 뽑거나 "
        f"공백 뒤에서만 뽑으면 {2 * texts}개 중 "
        + (f"{others}개만 그렇습니다." if others else "하나도 그렇지 않습니다."),
    )


def span(values: Any, form: str) -> str:
    """Return the median and the range over the seeds."""
    parts = [format(value, form) for value in (np.median(values), np.min(values), np.max(values))]
    return parts[0] if parts[1] == parts[2] else "{} ({} to {})".format(*parts)


def samples(texts: Any, openings: list[str]) -> str:
    """Return a page with the beginnings and ends of texts by the first model, side by side."""
    page = ["# The same openings, continued by one model in every mode\n"]
    main = [*SHOWN, REAL]
    ways = [*main, *[way for way in texts if way not in main]]
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


def draw(numbers: dict[str, Any], seeds: list[int]) -> Figure:
    figure, (loops, dots) = _drawing.figure(2, height=4.3, height_ratios=[2.8, 5.8])
    length, texts = numbers["texts"]["length"], numbers["texts"]["count"] * len(seeds)
    written = np.geomspace(1, length, 200)
    ends = []
    for way, (colour, style) in reversed(SHOWN.items()):
        starts = np.array(starts_of_loops(numbers, way))
        share = (starts[:, None] <= written).sum(0) / texts
        loops.plot(written, share, color=colour, linestyle=style)
        ends.append((share[-1], way, colour))
    loops.set(xscale="log", xlim=(1, length), ylim=(-0.04, 1.04))
    _drawing.label_ends(loops, ends, gap=0.12)
    title = f"Share of {texts} texts that have entered a loop"
    _drawing.name_axes(loops, title, "characters written", "share of texts")
    measures = numbers["measures"]
    order = sorted(measures, key=lambda way: np.median(measures[way]["pieces used before"]))
    rows = np.arange(len(order))
    for name, (colour, marker) in MEASURES.items():
        each = [measures[way][name] for way in order]
        low, middle, high = ([f(values) for values in each] for f in (min, np.median, max))
        dots.hlines(rows, low, high, colour)
        dots.plot(middle, rows, marker, color=colour, markersize=6, label=name)
    # The rows are lines, to be followed by the eye.
    dots.hlines(rows, 0, 1, _drawing.INK, linewidth=0.5, alpha=0.4, zorder=0)
    dots.set_yticks(rows, order)
    dots.set(ylim=(-0.7, len(order) - 0.3), xlim=(-0.02, 1.02))
    dots.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13))
    _drawing.name_axes(
        dots,
        "Every mode, and the real text",
        f"share of words, or of pieces of {PIECE} characters",
        "",
    )
    return figure
