"""A char-RNN trained on Shakespeare writes speakers' names and their lines, mostly in real words.

    p(x^{t+1} | x^1 .. x^t) = softmax(h^t W_out + b_out),   x^{t+1} drawn from it, 4000 times

Tiny Shakespeare, its last tenth held out. The two programs that the lecture links, with their settings,
and ours are given about the same time; `_charnn.py` has the settings. In that time the older one reads
the text several times as often as in its 2 epochs, and the newer one gets through a small part of its
10: its whole run, and ours of 15 minutes, are in benchmarks/README.md and dotted in the picture.

What they write is measured against the training text: which words occur there, which names above a
speech are names there, and which lines do not. The held-out text is from other plays and has speakers
of its own.

    python -m experiments shakespeare      23 min on two CPU cores, with other work beside it

On 2026-11-24: Validation loss in nats per character, median and range of 3 seeds: ours 1.512 (1.507 to
1.516) after 116 s (6.5 epochs); lecture, older 1.563 (1.552 to 1.577) after 124 s (10 epochs, where it
has 2 in the lecture); lecture, newer 1.859 (1.854 to 1.864) after 121 s (0.58 epochs, where it has 10 in
the lecture). In the texts, words that are in the play: held-out text 96%, ours 83%, lecture, older 83%,
lecture, newer 56%, untrained 8%; names that are speakers: held-out text 66%, ours 86%, lecture, older
79%, lecture, newer 8%, untrained none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments import Outcome, _charnn, _text
from jaxrnn.training import report

ROW = 11
SECONDS = 90.0  # of training on a quiet machine, for each program and seed
SPEECH = "\n\n"  # before a speaker's name
SPEAKER = re.compile(r"(?:\A|(?<=\n\n))([^\n:]+):\n")
LINE = re.compile(r"^.+[^:\n]$", re.MULTILINE)  # spoken: not empty and not a name
WORDS, NAMES, NEW = "words that are in the play", "names that are speakers", "lines that are new"
RUNS = Path(__file__).parent.parent / "benchmarks" / "results"
WHOLE = {
    "lecture, newer": ("shakespeare-lecture", "newer: 10 epochs"),
    "ours": ("shakespeare", "ours: preset shakespeare"),
}


def words(text: str) -> list[str]:
    """The words of a text in small letters; an apostrophe inside belongs to a word."""
    found = (word.strip("'") for word in re.findall(r"[a-z']+", text.lower()))
    return [word for word in found if word]


def speakers(text: str) -> list[str]:
    """The names above the speeches of a text that begins with one."""
    return SPEAKER.findall(text)


def lines(text: str) -> list[str]:
    """The lines that are spoken."""
    return LINE.findall(text)


def share(found: list[str], known: set[str]) -> float:
    """The share of those found that are known; NaN for none."""
    return float(np.mean([one in known for one in found])) if found else np.nan


def against(learned: str) -> _charnn.Measure:
    """The measures of texts, against the text learned from."""
    known = [set(each(learned)) for each in (words, speakers, lines)]

    def measure(texts: list[str]) -> dict[str, float]:
        found = [[one for text in texts for one in each(text)] for each in (words, speakers, lines)]
        real, named, old = map(share, found, known)
        return {WORDS: real, NAMES: named, NEW: 1 - old}

    return measure


def whole_runs() -> dict[str, Any]:
    """The long runs of benchmarks/: characters read, validation losses and a label, by program."""
    found = {}
    for name, (folder, label) in WHOLE.items():
        metrics = [
            m for m in report.read_metrics(RUNS / folder / "metrics.jsonl") if "val_loss" in m
        ]
        characters = np.array([m["step"] for m in metrics]) * 64 * 100
        found[name] = (characters, np.array([m["val_loss"] for m in metrics]), label)
    return found


def run(quick: bool) -> Outcome:
    text = _text.find("shakespeare", quick)
    corpus, _ = text.read()
    learned = corpus.vocabulary.decode(corpus.tokens[: corpus.split])
    study = _charnn.study(text, SECONDS, quick, SPEECH, against(learned))
    figure = _charnn.picture(study, {} if quick else whole_runs())
    return _charnn.outcome(study, _charnn.sentence(study, [WORDS, NAMES]), "text", figure)
