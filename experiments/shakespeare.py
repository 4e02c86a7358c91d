"""A char-RNN trained on Shakespeare writes speakers' names and their lines, mostly in real words.

    p(x^{t+1} | x^1 .. x^t) = softmax(h^t W_out + b_out),   x^{t+1} drawn from it, 4000 times

The text is Tiny Shakespeare, with the last tenth held out. The two programs that the lecture links,
with their settings, and our own are trained for about the same time each; the settings are in
`_charnn.py`. In that time the older program reads the text more often than in the lecture (2 epochs),
and the newer one completes only a small part of its 10 epochs. Its complete run, and ours of 10
minutes (the preset shakespeare until 2026-11-28), are dotted in the picture and described in
benchmarks/README.md.

The texts that they write are compared with the training text: which words occur in it, which names
above a speech are names in it, and which lines do not occur in it. The held-out text is from other
plays and has speakers of its own.

    python -m experiments shakespeare      23 min on two CPU cores that had other work too
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments import Outcome, _charnn, _text
from jaxrnn.training.metrics import read_metrics

ROW = 11
# Seconds of training of each program and seed, on a machine without other work.
SECONDS = 90.0
# What precedes a speaker's name.
SPEECH = "\n\n"
SPEAKER = re.compile(r"(?:\A|(?<=\n\n))([^\n:]+):\n")
# A spoken line: not empty and not a name.
LINE = re.compile(r"^.+[^:\n]$", re.MULTILINE)
WORDS = "words that are in the play"
NAMES = "names that are speakers"
NEW = "lines that are new"
RUNS = Path(__file__).parent.parent / "benchmarks" / "results"
WHOLE = {
    "lecture, newer": ("shakespeare-lecture", "newer: 10 epochs"),
    "ours": ("shakespeare-former", "ours: former preset shakespeare"),
}


def words(text: str) -> list[str]:
    """Return the words of a text in lower case; an apostrophe inside belongs to a word."""
    found = (word.strip("'") for word in re.findall(r"[a-z']+", text.lower()))
    return [word for word in found if word]


def speakers(text: str) -> list[str]:
    """Return the names above the speeches of a text that begins with a speech."""
    return SPEAKER.findall(text)


def lines(text: str) -> list[str]:
    """Return the spoken lines."""
    return LINE.findall(text)


def share(found: list[str], known: set[str]) -> float:
    """Return the share of the items found that are known; NaN where nothing was found."""
    return float(np.mean([one in known for one in found])) if found else np.nan


def against(learned: str) -> _charnn.Measure:
    """Return the measures of texts, compared with the text learned from."""
    known = [set(each(learned)) for each in (words, speakers, lines)]

    def measure(texts: list[str]) -> dict[str, float]:
        found = [[one for text in texts for one in each(text)] for each in (words, speakers, lines)]
        real, named, old = map(share, found, known)
        return {WORDS: real, NAMES: named, NEW: 1 - old}

    return measure


def whole_runs() -> dict[str, Any]:
    """Return the long runs of benchmarks/: characters read, validation losses and label by program."""
    found = {}
    for name, (folder, label) in WHOLE.items():
        metrics = [m for m in read_metrics(RUNS / folder / "metrics.jsonl") if "val_loss" in m]
        characters = np.array([m["step"] for m in metrics]) * 64 * 100
        found[name] = (characters, np.array([m["val_loss"] for m in metrics]), label)
    return found


def run(quick: bool) -> Outcome:
    text = _text.find("shakespeare", quick)
    corpus, _ = text.read()
    learned = corpus.vocabulary.decode(corpus.tokens[: corpus.split])
    study = _charnn.study(text, SECONDS, quick, SPEECH, against(learned))
    figure = _charnn.picture(study, {} if quick else whole_runs())
    return _charnn.outcome(study, "text", figure)


def summary(numbers: dict[str, Any], seeds: list[int]) -> str:
    """Return the result in words."""
    return _charnn.summary(numbers, seeds, [WORDS, NAMES, NEW])
