"""A char-RNN trained on Linux writes C: brackets in pairs, comments that are closed, names that exist.

    p(x^{t+1} | x^1 .. x^t) = softmax(h^t W_out + b_out),   x^{t+1} drawn from it, 4000 times

The text is the first million bytes of Linux's folder kernel/, with the last tenth held out. The three
programs of `shakespeare` (settings in `_charnn.py`) read it ten times each.

Measured in the texts that they write, outside of comments and strings: functions (everything that
ends in a brace at the left margin) whose brackets balance, brackets that have a partner, comments
that are closed, names that are keywords or occur in the training text, and lines that are indented by
as many tabs as there are open braces, where the previous line was complete. The held-out text is cut
to the same length, since a cut leaves brackets and comments open.

    python -m experiments linux      160 min on one CPU core with AMX
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments import Holds, Outcome, Verdict, _charnn, _text

ROW = 12
QUICK_SIZE = 200_000
# The end of a function.
FUNCTION = "\n}\n"
FUNCTIONS = "functions that balance"
COMMENTS = "comments closed"
NAMES = "names known"
BRACKETS = "brackets with a partner"
INDENT = "lines indented right"
PARTNER = {")": "(", "]": "[", "}": "{"}
# A comment that is not closed ends where the next one begins or the text ends.
COMMENT = r"/\*(?:(?!/\*).)*?(?:\*/|(?=/\*)|\Z)"
ASIDE = re.compile(rf"""({COMMENT})|//[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+'""", re.DOTALL)

# For each item of a kind in a text, whether it is correct.
Judged = Iterator[bool]


def bare(source: str) -> str:
    """Return C code without the content of its comments and strings; line numbers are kept."""
    return ASIDE.sub(lambda aside: "\n" * aside[0].count("\n") if aside[1] else '""', source)


def comments(source: str) -> Judged:
    """Yield for each comment whether it is closed before the next one opens or the text ends."""
    return (found[1].endswith("*/") for found in ASIDE.finditer(source) if found[1])


def brackets(source: str) -> Judged:
    """Yield for each bracket whether it has a partner.

    A closing bracket that skips open ones leaves these without a partner.
    """
    still_open: list[str] = []
    for bracket in re.findall(r"[][(){}]", bare(source)):
        if bracket not in PARTNER:
            still_open.append(bracket)
        elif PARTNER[bracket] not in still_open:
            yield False
        else:
            while still_open.pop() != PARTNER[bracket]:
                yield False
            yield from (True, True)
    yield from (False for _ in still_open)


def functions(source: str) -> Judged:
    """Yield for each part that ends in a brace at the left margin whether its brackets balance."""
    return (all(brackets(part + "}")) for part in re.split(r"^}", bare(source), flags=re.M)[:-1])


def names(source: str) -> list[str]:
    """Return the keywords and identifiers."""
    return re.findall(r"\b[A-Za-z_]\w*", bare(source))


def indentation(source: str) -> Judged:
    """Yield for lines inside braces whether they are indented by one tab per brace.

    Lines that continue an incomplete line are left out.
    """
    depth = 0
    brackets = 0
    before = ";"
    for line in bare(source).split("\n"):
        code = line.strip()
        if not code or code.startswith("#"):
            continue
        judged = depth and not brackets and before in ";{}:" and not code.endswith(":")
        if judged:
            yield len(line) - len(line.lstrip("\t")) == depth - code.startswith("}")
        depth = max(0, depth + code.count("{") - code.count("}"))
        brackets = max(0, brackets + code.count("(") - code.count(")"))
        before = code[-1]


def against(learned: str) -> _charnn.Measure:
    """Return the measures of texts; known names are those of the text learned from."""
    known = set(names(learned))
    judges = {
        FUNCTIONS: functions,
        BRACKETS: brackets,
        COMMENTS: comments,
        NAMES: lambda source: (name in known for name in names(source)),
        INDENT: indentation,
    }

    def share(judge: object, texts: list[str]) -> float:
        found = [right for text in texts for right in judge(text)]  # type: ignore[operator]
        return float(np.mean(found)) if found else np.nan

    return lambda texts: {name: share(judge, texts) for name, judge in judges.items()}


def run(quick: bool) -> Outcome:
    text = _text.beginning(_text.find("linux", quick), QUICK_SIZE if quick else _text.MILLION)
    corpus, _ = text.read()
    learned = corpus.vocabulary.decode(corpus.tokens[: corpus.split])
    return _charnn.outcome(_charnn.study(text, quick, FUNCTION, against(learned)), "c")


table = _charnn.table
draw = _charnn.draw


def verdict(numbers: dict[str, Any], seeds: list[int]) -> Verdict:
    measures = (BRACKETS, COMMENTS, NAMES)
    losses = {
        name: np.median(program["validation_loss"], 0)[-1]
        for name, program in numbers["programs"].items()
    }
    best = min(losses, key=lambda name: losses[name])
    real = {
        each: _charnn.median(numbers, _charnn.HELD_OUT, each) for each in (*measures, FUNCTIONS)
    }
    share = {each: _charnn.median(numbers, best, each) for each in real}
    near = [share[each] > 0.75 * real[each] for each in (*measures, FUNCTIONS)]
    whole = near[-1]
    return Verdict(
        Holds.YES if all(near) else Holds.PARTLY if any(near) else Holds.NO,
        f"in the texts of the best program ({best}), {share[BRACKETS]:.0%} of the brackets have a "
        f"partner and {share[COMMENTS]:.0%} of the comments are closed, "
        f"{'and' if whole else 'but only'} {share[FUNCTIONS]:.0%} of the functions balance as a whole.",
        f"가장 좋은 프로그램({_charnn.KOREAN[best]})의 텍스트에서 괄호의 {share[BRACKETS]:.0%}는 짝이 "
        f"맞고 주석의 {share[COMMENTS]:.0%}는 {'닫히고' if whole else '닫히지만'}, 함수 전체의 "
        f"괄호가 맞는 경우는 {share[FUNCTIONS]:.0%}{'입니다' if whole else '뿐입니다'}.",
    )
