"""A char-RNN trained on Shakespeare writes speakers' names and their lines, mostly in real words.

    p(x^{t+1} | x^1 .. x^t) = softmax(h^t W_out + b_out),   x^{t+1} drawn from it, 4000 times

The text is Tiny Shakespeare, with the last tenth held out. The two programs that the lecture links,
with their settings, and our own read it ten times, as the lecture's newer program does there (the older
one reads it twice); the settings are in `_charnn.py`.

The texts that they write are compared with the training text: which words occur in it, which names
above a speech are names in it, and which lines do not occur in it. The held-out text is from other
plays, and some of its speakers do not occur in the training text.

    python -m experiments shakespeare      144 min on one CPU core with AMX
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from experiments import Holds, Outcome, Verdict, _charnn, _text

ROW = 11
# What precedes a speaker's name.
SPEECH = "\n\n"
SPEAKER = re.compile(r"(?:\A|(?<=\n\n))([^\n:]+):\n")
# A spoken line: not empty and not a name.
LINE = re.compile(r"^.+[^:\n]$", re.MULTILINE)
WORDS = "words that are in the play"
NAMES = "names that are speakers"
NEW = "lines that are new"


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


def run(quick: bool) -> Outcome:
    text = _text.find("shakespeare", quick)
    corpus, _ = text.read()
    learned = corpus.vocabulary.decode(corpus.tokens[: corpus.split])
    return _charnn.outcome(_charnn.study(text, quick, SPEECH, against(learned)), "text")


table = _charnn.table
draw = _charnn.draw


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    found = {name: _charnn.median(numbers, name, WORDS) for name in numbers["programs"]}
    named = {name: _charnn.median(numbers, name, NAMES) for name in numbers["programs"]}
    best = max(found, key=lambda name: found[name])
    holds = [found[name] > 0.5 and named[name] > 0.5 for name in found]
    return Verdict(
        Holds.YES if all(holds) else Holds.PARTLY if any(holds) else Holds.NO,
        f"of the words that the three programs write, {min(found.values()):.0%} to "
        f"{found[best]:.0%} are words of the play, and {named[best]:.0%} of the names above the "
        f"speeches of the best one ({best}) are speakers in it.",
        f"세 프로그램이 쓴 단어 중 희곡에 있는 단어는 {min(found.values()):.0%}에서 {found[best]:.0%}"
        f"이고, 가장 좋은 프로그램({_charnn.KOREAN[best]})이 쓴 화자 이름 중 {named[best]:.0%}는 "
        "희곡의 화자입니다.",
    )
