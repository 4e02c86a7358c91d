"""The claims of the lecture, one experiment per file.

`python -m experiments` lists the experiments and runs them. Every module here whose name does not begin
with an underscore is an experiment. Its docstring begins with the claim that it tests, and it defines:

    # The row of the lecture, which orders the list.
    ROW = 3

    # Measure; with quick, with few seeds and steps, to see that it runs.
    def run(quick: bool) -> Outcome: ...

    # Present what was measured: a table, a picture, and whether the claim holds.
    def table(numbers: dict, seeds: list[int]) -> list[list[str]]: ...
    def draw(numbers: dict, seeds: list[int]) -> Figure: ...
    def verdict(numbers: dict, seeds: list[int]) -> Verdict: ...

The runner writes the result files. `table`, `draw` and `verdict` read the recorded numbers alone, so
that wording and pictures can be improved without a new measurement: `python -m experiments NAME
--present`.
The course (README.md and README.ko.md) shows the verdicts, and its text is written by hand.

Code that several experiments share is in the modules whose names begin with an underscore; code that is
useful elsewhere belongs in `jaxrnn`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """The measurements of one experiment.

    numbers: everything that was measured, as JSON can hold it.
    seeds: the random seeds.
    pages: further files by name, as text: samples, a page for the browser.
    training_seconds: the seconds of all trainings, or an estimate. They are recorded as the duration of
      a run that was shorter because it loaded models that were trained before.
    """

    numbers: dict[str, Any]
    seeds: list[int]
    pages: Mapping[str, str] = MappingProxyType({})
    training_seconds: float = 0.0


class Holds(enum.Enum):
    """Whether a claim holds; the values are the words in English and in Korean."""

    YES = ("Holds", "성립합니다")
    PARTLY = ("Holds only in part", "일부만 성립합니다")
    NO = ("Does not hold here", "여기서는 성립하지 않습니다")


class Verdict(NamedTuple):
    """Whether the claim of an experiment holds, and why: one plain sentence with the deciding figures.

    The sentences end with a full stop. Both languages give the same figures.
    """

    holds: Holds
    english: str
    korean: str

    def __str__(self) -> str:
        return f"{self.holds.value[0]}: {self.english}"


def listed(names: Sequence[str]) -> str:
    """Return one or more names as a list in words: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
