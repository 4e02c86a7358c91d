"""The lecture's claims, one file each: `python -m experiments` lists them and runs them.

A file here whose name does not begin with an underscore is an experiment. Its docstring begins with the
claim; it says where in the lecture the claim stands and has one function:

    ROW = 3                                  # of the lecture, which orders the list

    def run(quick: bool) -> Outcome: ...     # quick: fewer seeds and steps, to see that it runs

That is all it takes to add one. The runner writes the files, from what `run` returns. What several
experiments share is in the files that begin with an underscore; what anybody can use is in `jaxrnn`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the list of experiments is there without matplotlib
    from matplotlib.figure import Figure


class Outcome(NamedTuple):
    """What an experiment hands back.

    sentence: what came out, made from the numbers. It may not say more than they do.
    table: rows of columns, the first row the heads.
    numbers: all that was measured, for result.json.
    seeds: what every random number came from.
    figure: the picture, readable without its caption.
    pages: more files by name, as text: samples, a page for the browser.
    """

    sentence: str
    table: list[list[str]]
    numbers: dict[str, Any]
    seeds: list[int]
    figure: Figure
    pages: Mapping[str, str] = MappingProxyType({})
